"""Tokenizer objects that a user brings, as what a `Vocabulary` works with; the objects themselves are not changed.

They are told by what they offer, since transformers is not imported here: a Hugging Face tokenizer has a
`backend_tokenizer` or is written in Python, one of `tokenizers` turns into JSON.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from tokenizers import Tokenizer

from textgym.escape import told, type_name


class _Encoded(NamedTuple):
    """The part of `tokenizers.Encoding` that is read."""

    ids: list[int]


class PythonTokenizer:
    """A Hugging Face tokenizer written in Python, behind the methods of a `tokenizers.Tokenizer` that are used."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._ids = frozenset(tokenizer.get_vocab().values())

    def get_vocab(self, with_added_tokens: bool = True) -> dict[str, int]:
        """The id of each token, added tokens included."""
        return dict(self._tokenizer.get_vocab())

    def id_to_token(self, id_: int) -> str:
        """The token of an id."""
        return str(self._tokenizer.convert_ids_to_tokens(id_))

    def num_special_tokens_to_add(self, is_pair: bool) -> int:
        """How many special tokens are put around a text."""
        return int(self._tokenizer.num_special_tokens_to_add(is_pair))

    def encode(self, text: str, add_special_tokens: bool = True) -> _Encoded:
        """The ids of a text."""
        encoded = self._tokenizer(text, add_special_tokens=add_special_tokens, verbose=False)
        return _Encoded(list(encoded["input_ids"]))

    def encode_batch(self, texts: Sequence[str], add_special_tokens: bool = True) -> list[_Encoded]:
        """The ids of several texts."""
        return [self.encode(text, add_special_tokens) for text in texts]

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """The text of ids; ids without a token are left out, as `tokenizers` does."""
        known = [id_ for id_ in ids if id_ in self._ids]
        return str(self._tokenizer.decode(known, skip_special_tokens=skip_special_tokens))

    def decode_batch(self, sequences: Iterable[Iterable[int]], skip_special_tokens: bool = True) -> list[str]:
        """The texts of several sequences of ids."""
        return [self.decode(ids, skip_special_tokens) for ids in sequences]


class Adopted(NamedTuple):
    """What a `Vocabulary` takes from a tokenizer object."""

    tokenizer: Tokenizer | PythonTokenizer
    stop_ids: list[int]
    save: Callable[[str], Any] | None  # writes the folder that the object came from; None where it has no such thing


def adopt(tokenizer: Any) -> Adopted | None:
    """The parts of a tokenizer object, copies where they could be changed; None where it is no tokenizer.

    Raises:
        ValueError: a tokenizer that cannot be copied.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if hasattr(backend, "to_str"):
        own = _copy(backend, tokenizer)
        own.encode_special_tokens = bool(getattr(tokenizer, "split_special_tokens", False))
        return Adopted(own, _eos_ids(tokenizer), tokenizer.save_pretrained)
    if hasattr(tokenizer, "to_str"):
        own = _copy(tokenizer, tokenizer)
        own.encode_special_tokens = bool(getattr(tokenizer, "encode_special_tokens", False))
        return Adopted(own, [], None)
    if callable(tokenizer) and all(hasattr(tokenizer, name) for name in ("get_vocab", "decode", "save_pretrained")):
        return Adopted(PythonTokenizer(tokenizer), _eos_ids(tokenizer), tokenizer.save_pretrained)
    return None


def _copy(backend: Any, tokenizer: Any) -> Tokenizer:
    try:
        return Tokenizer.from_str(backend.to_str())
    except Exception as error:  # the library raises bare Exception: parts written in Python have no JSON
        raise ValueError(
            f"tokenizer of type {type_name(tokenizer)} cannot be copied: {told(error)}. Build it of parts that "
            "`tokenizers` can save"
        ) from error


def _eos_ids(tokenizer: Any) -> list[int]:
    eos = getattr(tokenizer, "eos_token_id", None)
    if eos is None:
        return []
    return list(eos) if isinstance(eos, list | tuple) else [eos]
