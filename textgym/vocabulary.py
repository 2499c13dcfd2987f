"""Text to token ids and back, the stop tokens, and PAD.

The actions of the environment are the ids 0..V-1 of a vocabulary; PAD is V, an id that no policy can emit, so that the
length of a history can always be read off it. Does not download anything: a tokenizer is a list of symbols, a
tokenizer.json or a Hugging Face folder on disk, or an object.
"""

import json
import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from textgym.chat import FolderChat, Messages, ObjectChat, refuse_chat
from textgym.escape import excerpt, shown, type_name
from textgym.lost_characters import explain, lone_surrogate, longest_match, losses_allowed, refuse_losses
from textgym.tokenizer_folders import folder_stop_ids, read_json, setting_files
from textgym.tokenizer_objects import PythonTokenizer, adopt

STOP_SYMBOL = "<eos>"
_LONGEST_PATH = 4096  # of what systems take


class Vocabulary:
    """The tokens of an environment.

    Args:
        tokenizer: belongs to the vocabulary from now on, which changes its settings; `from_object` takes a copy.
        stop_ids: the ids that end an episode.
        source: what errors call the tokenizer.

    Attributes:
        tokenizer: the tokenizer behind it.
        size: V, the number of tokens; ids are 0..V-1.
        pad_id: PAD = V, outside the action space.
        stop_ids: the ids that end an episode, sorted.
    """

    def __init__(
        self, tokenizer: Tokenizer | PythonTokenizer, stop_ids: Iterable[int] = (), source: str = "tokenizer"
    ) -> None:
        if isinstance(tokenizer, Tokenizer):
            # Both settings travel inside tokenizer.json files and would cut or pad prompts without a word.
            tokenizer.no_truncation()
            tokenizer.no_padding()
            refuse_losses(tokenizer)
        self.tokenizer = tokenizer
        ids = tokenizer.get_vocab(with_added_tokens=True).values()
        if not ids:
            raise ValueError(f"{source} has no tokens; give a tokenizer with at least one")
        self.size = max(ids) + 1  # the number of tokens, or past the highest id where ids have holes
        self.pad_id = self.size
        self._settings: dict[str, bytes] = {}  # files of the folder that it was read from
        self._save_object: Callable[[str], Any] | None = None  # writes the object that it was made of
        self.stop_ids = self._checked_stop_ids(stop_ids, source)
        self._front = _front_special_tokens(tokenizer)
        self._render: Callable[[Messages], str] = partial(refuse_chat, source)

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
            if lone_surrogate(symbol):
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
        if len(str(path)) > _LONGEST_PATH:
            raise ValueError(f"tokenizer is {excerpt(str(path))}; give the path of a file or folder, not its content")
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
            stop_ids = folder_stop_ids(path, tokenizer) if path.is_dir() else []
        if path.is_dir():
            tokenizer.encode_special_tokens = (
                read_json(path / "tokenizer_config.json").get("split_special_tokens") is True
            )
        vocabulary = cls(tokenizer, stop_ids, str(path))
        if path.is_dir():
            vocabulary._settings = {file.name: file.read_bytes() for file in setting_files(path)}
            vocabulary._render = FolderChat(vocabulary._settings, repr(str(path)))
        return vocabulary

    @classmethod
    def from_object(cls, tokenizer: Any, stop_ids: Iterable[int] | None = None) -> "Vocabulary":
        """A vocabulary from a tokenizer object, which stays as it is.

        Args:
            tokenizer: a `tokenizers.Tokenizer` (no stop ids of its own), or a Hugging Face tokenizer with the stop ids
                of its `eos_token_id`; one written in Rust is copied, one written in Python is called.
            stop_ids: the stop tokens instead of those.

        Raises:
            TypeError, ValueError: no such object, or one that cannot be copied.
        """
        adopted = adopt(tokenizer)
        if adopted is None:
            raise TypeError(f"tokenizer is {shown(tokenizer)} of type {type_name(tokenizer)}; give {_ALLOWED}")
        own_stop_ids = adopted.stop_ids if stop_ids is None else stop_ids
        source = f"the tokenizer of type {type_name(tokenizer)}"
        vocabulary = cls(adopted.tokenizer, own_stop_ids, source)
        vocabulary._save_object = adopted.save
        vocabulary._render = ObjectChat(tokenizer, source)
        return vocabulary

    def is_of_symbols(self, symbols: Sequence[str]) -> bool:
        """Whether the tokens are just these symbols, id i the i-th."""
        ids = {symbol: position for position, symbol in enumerate(symbols)}
        return self.tokenizer.get_vocab(with_added_tokens=True) == ids

    def render(self, messages: Messages) -> str:
        """The text of a chat, with all special tokens, as the tokenizer's chat template writes it; see `textgym.chat`.

        Args:
            messages: as `textgym.chat.checked_prompt` returns them.

        Raises:
            ImportError: jinja2 is not installed.
            ValueError: there is no template, or it does not take these messages.
        """
        return self._render(messages)

    def encode(self, text: str, rendered: bool = False) -> list[int]:
        """Token ids of a text, with the BOS that the tokenizer puts in front, if any; no closing special token.

        Args:
            text: the text.
            rendered: whether it is that of a chat, which holds its special tokens: nothing is put in front.

        Raises:
            ValueError: the text holds something that the vocabulary has no token for.
        """
        return self.encode_batch([text], [rendered])[0]

    def encode_batch(self, texts: list[str], rendered: Sequence[bool] | None = None) -> list[list[int]]:
        """Token ids of several texts, and whether each is that of a chat; see `encode`."""
        try:
            bodies = [encoding.ids for encoding in self.tokenizer.encode_batch(texts, add_special_tokens=False)]
        except Exception as error:  # the library raises bare Exception and does not say where
            raise ValueError(explain(self.tokenizer, texts, error)) from error
        whole = rendered or [False] * len(texts)
        return [body if own else [*self._front, *body] for body, own in zip(bodies, whole, strict=True)]

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
        if self._save_object is not None:
            self._save_object(str(folder))
        if isinstance(self.tokenizer, Tokenizer):
            with losses_allowed(self.tokenizer):
                self.tokenizer.save(str(folder / "tokenizer.json"))
        for name, content in self._settings.items():
            (folder / name).write_bytes(content)
        if self._save_object is not None or "tokenizer_config.json" in self._settings:
            return
        config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
        if self.stop_ids:
            config["eos_token"] = self.tokenizer.id_to_token(self.stop_ids[0])
        (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


_ALLOWED = (
    "a list of symbols, the path of a tokenizer.json or of a Hugging Face folder, a tokenizers.Tokenizer, or a Hugging "
    "Face tokenizer"
)


def make_vocabulary(tokenizer: Any, stop_ids: Iterable[int] | None = None) -> Vocabulary:
    """The vocabulary that the keyword `tokenizer` describes: a list of symbols, a path, or a tokenizer object."""
    if isinstance(tokenizer, str | Path):
        return Vocabulary.from_path(tokenizer, stop_ids)
    if isinstance(tokenizer, list | tuple):
        return Vocabulary.from_symbols(tokenizer, stop_ids)
    return Vocabulary.from_object(tokenizer, stop_ids)


def _symbol_tokenizer(symbols: Sequence[str]) -> Tokenizer:
    ids = {symbol: position for position, symbol in enumerate(symbols)}
    unknown = "<unk>"  # the library gives unknown text the id of this one; without an id, it is an error
    while unknown in ids:
        unknown += "?"
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(longest_match(symbols)), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return tokenizer


def _front_special_tokens(tokenizer: Tokenizer | PythonTokenizer) -> list[int]:
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
