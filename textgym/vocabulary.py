"""Text to token ids and back, the stop tokens, and PAD.

The actions of the environment are the ids 0..V-1 of a vocabulary; PAD is V, an id that no policy can emit, so that the
length of a history can always be read off it. Does not download anything: a tokenizer is a list of symbols, a
tokenizer.json or a Hugging Face folder on disk.
"""

import json
import re
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from textgym.errors import NotBuiltError
from textgym.escape import excerpt

STOP_SYMBOL = "<eos>"
_SURROGATE = re.compile("[\ud800-\udfff]")  # half of a character: what UTF-8 cannot hold


class Vocabulary:
    """The tokens of an environment.

    Attributes:
        tokenizer: the `tokenizers.Tokenizer` behind it.
        size: V, the number of tokens; ids are 0..V-1.
        pad_id: PAD = V, outside the action space.
        stop_ids: the ids that end an episode, sorted.
    """

    def __init__(self, tokenizer: Tokenizer, stop_ids: Iterable[int] = (), source: str = "tokenizer") -> None:
        # Both settings travel inside tokenizer.json files and would cut or pad prompts without a word.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self.tokenizer = tokenizer
        ids = tokenizer.get_vocab(with_added_tokens=True).values()
        if not ids:
            raise ValueError(f"{source} has no tokens; give a tokenizer with at least one")
        self.size = max(ids) + 1  # the number of tokens, or past the highest id where ids have holes
        self.pad_id = self.size
        self._settings: dict[str, bytes] = {}  # files of the folder that it was read from
        self.stop_ids = self._checked_stop_ids(stop_ids, source)
        self._front = _front_special_tokens(tokenizer)

    def _checked_stop_ids(self, stop_ids: Iterable[int], source: str) -> tuple[int, ...]:
        if isinstance(stop_ids, str) or not isinstance(stop_ids, Iterable):
            raise TypeError(f"stop_ids is {stop_ids!r} of type {type(stop_ids).__name__}; give a list of integers")
        known = set()
        for stop_id in stop_ids:
            if isinstance(stop_id, bool) or not hasattr(stop_id, "__index__"):
                raise TypeError(f"stop_ids holds {stop_id!r} of type {type(stop_id).__name__}; give integers")
            if stop_id < 0:
                raise ValueError(f"stop_ids holds {stop_id}; ids are 0 to {self.size - 1}")
            if stop_id >= self.size:
                message = f"stop id {stop_id} of {source} is dropped: the vocabulary has ids 0 to {self.size - 1}"
                warnings.warn(message, UserWarning, stacklevel=2)
            else:
                known.add(int(stop_id))
        return tuple(sorted(known))

    @classmethod
    def from_symbols(cls, symbols: Sequence[str], stop_ids: Iterable[int] | None = None) -> "Vocabulary":
        """A vocabulary of symbols; encodes by longest match, decodes by joining without a separator.

        Args:
            symbols: distinct non-empty strings; `<eos>` among them is the stop token.
            stop_ids: the stop tokens instead of `<eos>`.

        Raises:
            TypeError, ValueError: symbols that are no strings, no text, empty, or given twice.

        >>> words = Vocabulary.from_symbols(["a", "ab", "<eos>"])
        >>> words.encode("aab"), words.decode([0, 1]), words.stop_ids
        ([0, 1], 'aab', (2,))
        """
        for position, symbol in enumerate(symbols):
            if not isinstance(symbol, str):
                raise TypeError(f"tokenizer[{position}] is {symbol!r} of type {type(symbol).__name__}; give strings")
            if not symbol:
                raise ValueError(f"tokenizer[{position}] is the empty string; every symbol needs a character")
            if _SURROGATE.search(symbol):
                raise ValueError(f"tokenizer[{position}] is {excerpt(symbol)}; a lone surrogate is not a character")
        if len(set(symbols)) != len(symbols):
            twice = next(symbol for symbol in symbols if list(symbols).count(symbol) > 1)
            raise ValueError(f"the symbol {excerpt(twice)} stands twice in the tokenizer; give each symbol once")
        if stop_ids is None:
            stop_ids = [position for position, symbol in enumerate(symbols) if symbol == STOP_SYMBOL]
        return cls(_symbol_tokenizer(symbols), stop_ids, "the list of symbols")

    @classmethod
    def from_path(cls, path: str | Path, stop_ids: Iterable[int] | None = None) -> "Vocabulary":
        """A vocabulary from a tokenizer.json, or from a Hugging Face folder with its stop ids.

        Args:
            path: a file made by `tokenizers` (no stop ids of its own), or a folder that holds a tokenizer.json; the
                folder's stop ids are all `eos_token_id` of generation_config.json, or failing that the `eos_token` of
                tokenizer_config.json or special_tokens_map.json. Its settings are kept, and saved again by `save`.
            stop_ids: the stop tokens instead of those.

        Raises:
            FileNotFoundError, ValueError: no such file, or one that is not a tokenizer.
        """
        path = Path(path)
        file = path / "tokenizer.json" if path.is_dir() else path
        if not file.is_file():
            hint = " (a folder needs a tokenizer.json: save its tokenizer as a fast one)" if path.is_dir() else ""
            raise FileNotFoundError(f"tokenizer {str(path)!r}: there is no file {str(file)!r}{hint}")
        try:
            tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises bare Exception
            raise ValueError(f"tokenizer {str(file)!r} is not a tokenizer.json: {error}") from error
        if stop_ids is None:
            stop_ids = _folder_stop_ids(path, tokenizer) if path.is_dir() else []
        vocabulary = cls(tokenizer, stop_ids, str(path))
        if path.is_dir():
            vocabulary._settings = {file.name: file.read_bytes() for file in _setting_files(path)}
        return vocabulary

    def is_of_symbols(self, symbols: Sequence[str]) -> bool:
        """Whether the tokens are just these symbols, id i the i-th."""
        ids = {symbol: position for position, symbol in enumerate(symbols)}
        return self.tokenizer.get_vocab(with_added_tokens=True) == ids

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, with the BOS that the tokenizer puts in front, if any; no closing special token.

        Raises:
            ValueError: the text holds something that the vocabulary has no token for.
        """
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Token ids of several texts; see `encode`."""
        try:
            bodies = [encoding.ids for encoding in self.tokenizer.encode_batch(texts, add_special_tokens=False)]
        except Exception as error:  # the library raises bare Exception and does not say where
            raise ValueError(self._explain(texts, error)) from error
        return [[*self._front, *body] for body in bodies]

    def _explain(self, texts: list[str], error: Exception) -> str:
        for text in texts:
            if lone := _SURROGATE.search(text):
                return (
                    f"{excerpt(lone[0])} at character {lone.start()} of {excerpt(text)} is a lone surrogate, which is "
                    "not a character; mend the text"
                )
        symbols = list(self.tokenizer.get_vocab())
        known = re.compile(_longest_match(symbols))
        for text in texts:
            position = 0
            while match := known.match(text, position):
                position = match.end()
            if position < len(text):
                some = ", ".join(excerpt(symbol) for symbol in sorted(symbols)[:20])
                more = f" and {len(symbols) - 20} more" if len(symbols) > 20 else ""
                return (
                    f"no token for {excerpt(text[position])} at character {position} of {excerpt(text)}; the "
                    f"vocabulary has {some}{more}. Add the symbol to the tokenizer or change the text ({error})"
                )
        return f"the tokenizer cannot encode {excerpt(texts[0])}: {error}"

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids; special tokens stay visible."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=False)

    def decode_batch(self, sequences: list[list[int]]) -> list[str]:
        """The texts of several sequences of token ids; see `decode`."""
        return self.tokenizer.decode_batch(sequences, skip_special_tokens=False)

    def save(self, folder: str | Path) -> None:
        """Write tokenizer.json and tokenizer_config.json, so that `AutoTokenizer.from_pretrained` opens the folder."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.tokenizer.save(str(folder / "tokenizer.json"))
        for name, content in self._settings.items():
            (folder / name).write_bytes(content)
        if "tokenizer_config.json" in self._settings:
            return
        config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
        if self.stop_ids:
            config["eos_token"] = self.tokenizer.id_to_token(self.stop_ids[0])
        (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def make_vocabulary(tokenizer: Any, stop_ids: Iterable[int] | None = None) -> Vocabulary:
    """The vocabulary that the keyword `tokenizer` describes: a list of symbols, or a path."""
    if isinstance(tokenizer, str | Path):
        return Vocabulary.from_path(tokenizer, stop_ids)
    if isinstance(tokenizer, list | tuple):
        return Vocabulary.from_symbols(tokenizer, stop_ids)
    allowed = "a list of symbols, or the path of a tokenizer.json or of a Hugging Face folder"
    if hasattr(tokenizer, "encode") and hasattr(tokenizer, "decode"):
        raise NotBuiltError(
            f"tokenizer is an object of type {type(tokenizer).__name__}, which is not built yet; save it to a folder "
            f"and give its path. Allowed now: {allowed}"
        )
    raise TypeError(f"tokenizer is {tokenizer!r} of type {type(tokenizer).__name__}; give {allowed}")


def _symbol_tokenizer(symbols: Sequence[str]) -> Tokenizer:
    ids = {symbol: position for position, symbol in enumerate(symbols)}
    unknown = "<unk>"  # the library gives unknown text the id of this one; without an id, it is an error
    while unknown in ids:
        unknown += "?"
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(_longest_match(symbols)), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return tokenizer


def _longest_match(symbols: Sequence[str]) -> str:
    """A pattern of all symbols; an alternation tries its branches in order, so the longest come first."""
    return "|".join(re.escape(symbol) for symbol in sorted(symbols, key=len, reverse=True))


def _front_special_tokens(tokenizer: Tokenizer) -> list[int]:
    """What the tokenizer's template puts in front of a text, read off a symbol that is no such token itself."""
    if not tokenizer.num_special_tokens_to_add(False):
        return []
    added = set(tokenizer.encode("").ids)
    for symbol in sorted(tokenizer.get_vocab()):
        try:
            body = tokenizer.encode(symbol, add_special_tokens=False).ids
        except Exception:  # the library raises bare Exception; a model without the unknown token
            continue
        if body and added.isdisjoint(body):
            full = tokenizer.encode(symbol).ids
            return full[: full.index(body[0])]
    return []


def _setting_files(folder: Path) -> list[Path]:
    """What else makes the tokenizer of a folder: special tokens, and how a chat is written."""
    names = ("tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", "chat_template.json")
    return [folder / name for name in names if (folder / name).is_file()]


def _folder_stop_ids(folder: Path, tokenizer: Tokenizer) -> list[int]:
    eos = _read_json(folder / "generation_config.json").get("eos_token_id")
    if eos is not None:
        return eos if isinstance(eos, list) else [eos]
    places = ("tokenizer_config.json", "special_tokens_map.json")
    eos_token = next((token for name in places if (token := _read_json(folder / name).get("eos_token"))), None)
    if isinstance(eos_token, dict):  # an added token with its options
        eos_token = eos_token.get("content")
    eos_id = tokenizer.token_to_id(eos_token) if eos_token else None
    if eos_token and eos_id is None:
        message = (
            f"the eos_token {excerpt(eos_token)} of {str(folder)!r} is no token of its tokenizer.json and is dropped"
        )
        warnings.warn(message, UserWarning, stacklevel=2)
    return [] if eos_id is None else [eos_id]


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{str(path)!r} is not JSON: {error}") from error
    return content if isinstance(content, dict) else {}
