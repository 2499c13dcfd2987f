"""Stop strings: where a generated text ends that holds one, also when it spans tokens.

Does not know stop tokens; those are ids of the vocabulary.
"""

from collections.abc import Sequence
from typing import Any

from textgym.escape import shown, type_name
from textgym.lost_characters import lone_surrogate
from textgym.vocabulary import Vocabulary

_LOOK_BACK = 16  # tokens or bytes more than needed, since a tail may begin inside a character or a word


class StopStrings:
    """The strings that end an episode.

    Args:
        strings: non-empty, none of them twice.
        vocabulary: decodes the texts.
    """

    def __init__(self, strings: Sequence[str], vocabulary: Vocabulary) -> None:
        self.strings = tuple(strings)
        self._vocabulary = vocabulary
        self._longest = max((len(string.encode()) for string in strings), default=0)
        self._window = self._longest + _LOOK_BACK  # tokens; most hold at least a byte

    def __bool__(self) -> bool:
        return bool(self.strings)

    def completed(self, completions: Sequence[Sequence[int]]) -> list[bool]:
        """Whether each completion, given as ids, holds a stop string; only its end is searched."""
        found = [self._first(tail) is not None for tail in self._tails(completions)]
        # What a tail decodes to may differ from the end of the text, where a word is begun in its middle.
        return [
            one and self._first(self._vocabulary.decode(ids)) is not None
            for one, ids in zip(found, completions, strict=True)
        ]

    def _tails(self, completions: Sequence[Sequence[int]]) -> list[str]:
        """The end of each text, at least as many bytes as the longest stop string has, or all of it."""
        tails = self._vocabulary.decode_batch([list(ids[-self._window :]) for ids in completions])
        for place, ids in enumerate(completions):
            window = self._window
            while window < len(ids) and len(tails[place].encode(errors="replace")) < self._longest + _LOOK_BACK:
                window *= 2  # tokens that decode to nothing
                tails[place] = self._vocabulary.decode(list(ids[-window:]))
        return tails

    def cut(self, text: str) -> str:
        """The text before its first stop string, all of it where there is none."""
        return text[: self._first(text)]

    def _first(self, text: str) -> int | None:
        places = [place for string in self.strings if (place := text.find(string)) >= 0]
        return min(places, default=None)


def checked_stop_strings(stop: Any) -> tuple[str, ...]:
    r"""The stop strings that the keyword `stop` lists, each once.

    Raises:
        TypeError, ValueError: no list of strings, or an empty string, which every text would end with.

    >>> checked_stop_strings(["\n\n", "User:"]), checked_stop_strings(None)
    (('\n\n', 'User:'), ())
    """
    if stop is None:
        return ()
    if not isinstance(stop, list | tuple):
        raise TypeError(f"stop is {shown(stop)} of type {type_name(stop)}; give a list of strings, as in stop=['END']")
    for position, text in enumerate(stop):
        if not isinstance(text, str):
            raise TypeError(f"stop[{position}] is {shown(text)} of type {type_name(text)}; give strings")
        if not text:
            raise ValueError(
                f"stop[{position}] is the empty string; every text ends there. Give [] for no stop strings"
            )
        if problem := lone_surrogate(text):
            raise ValueError(f"stop[{position}]: {problem}")
    return tuple(dict.fromkeys(stop))
