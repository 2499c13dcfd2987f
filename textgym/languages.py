"""Regular languages, built of parts, and the automaton that tells which texts belong to one.

A language is over characters, so that the tokens may be symbols of any length: what counts is the text that they spell.
Each carries the pattern that says the same to Python's `re`. The automaton comes from partial derivatives (Antimirov
1996): what may follow a character is a set of languages, and there are finitely many of them.
"""

import functools
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from textgym.automata import Automaton
from textgym.escape import shown, type_name
from textgym.vocabulary import STOP_SYMBOL


class Language(ABC):
    """A regular language; made by the functions below.

    >>> binary = either("0", sequence("1", star(one_of("01"))))  # without leading zeros
    >>> binary.pattern, binary.automaton(["0", "1", "<eos>"]).score.tolist()
    ('(?:0|1[01]*)', [0.0, 1.0, 1.0, 0.0])
    """

    @property
    @abstractmethod
    def pattern(self) -> str:
        """The regular expression that `re.fullmatch` agrees on."""

    @property
    @abstractmethod
    def has_empty(self) -> bool:
        """Whether the empty text belongs to it."""

    @abstractmethod
    def after(self, character: str) -> frozenset["Language"]:
        """What may follow a character: the texts of all these languages."""

    def automaton(self, symbols: Sequence[str]) -> Automaton:
        """The smallest automaton over tokens that scores 1 for a text of the language and 0 for any other.

        Args:
            symbols: the text of each token; `<eos>` is the stop token, which writes nothing.
        """
        states: list[frozenset[Language]] = [frozenset({self})]
        number, transitions = {states[0]: 0}, []
        for state in states:  # grows on the way
            reached = [state if symbol == STOP_SYMBOL else _after_text(state, symbol) for symbol in symbols]
            for following in reached:
                if following not in number:
                    number[following] = len(states)
                    states.append(following)
            transitions.append([number[following] for following in reached])
        accepted = [any(language.has_empty for language in state) for state in states]
        return Automaton(np.array(transitions), np.array(accepted, dtype=np.float64)).minimal()


def literal(text: str) -> Language:
    """The one text."""
    if not isinstance(text, str):
        raise TypeError(f"a part of a language is {shown(text)} of type {type_name(text)}; give a str or a language")
    return sequence(*(_OneOf(frozenset(character)) for character in text))


def one_of(characters: str) -> Language:
    """Any one of some characters."""
    if not isinstance(characters, str):
        raise TypeError(f"one_of: {shown(characters)} is of type {type_name(characters)}; give a str")
    if not characters:
        raise ValueError("one_of(''): give at least one character")
    return _OneOf(frozenset(characters))


def sequence(*parts: Language | str) -> Language:
    """A text of each part, one after another; the empty text where there is none."""
    flat: list[Language] = []
    for part in map(_language, parts):
        flat += part.parts if isinstance(part, _Sequence) else [part]
    return flat[0] if len(flat) == 1 else _Sequence(tuple(flat))


def either(*options: Language | str) -> Language:
    """A text of any of the options."""
    if not options:
        raise ValueError("either(): give at least one language")
    return _Either(tuple(map(_language, options)))


def star(part: Language | str) -> Language:
    """Any number of texts of a part, none included."""
    return _Star(_language(part))


def repeat(part: Language | str, least: int, most: int | None = None) -> Language:
    """At least `least` texts of a part, and at most `most`; any number more where that is None.

    >>> repeat("a", 1).pattern, repeat("a", 1, 2).pattern
    ('aa*', 'a(?:|a)')
    """
    if not hasattr(least, "__index__") or not (most is None or hasattr(most, "__index__")):
        raise TypeError(f"repeat: least={shown(least)}, most={shown(most)}; give integers, or most=None")
    if least < 0 or (most is not None and most < least):
        raise ValueError(f"repeat: least={least}, most={most}; give 0 <= least <= most, or most=None")
    rest = [star(part)] if most is None else [either("", part)] * (most - least)
    return sequence(*[part] * least, *rest)


@dataclass(frozen=True)
class _OneOf(Language):
    characters: frozenset[str]

    @property
    def pattern(self) -> str:
        escaped = "".join(map(re.escape, sorted(self.characters)))
        return escaped if len(self.characters) == 1 else f"[{escaped}]"

    @property
    def has_empty(self) -> bool:
        return False

    def after(self, character: str) -> frozenset[Language]:
        return frozenset({sequence()} if character in self.characters else ())


@dataclass(frozen=True)
class _Sequence(Language):
    parts: tuple[Language, ...]

    @property
    def pattern(self) -> str:
        return "".join(part.pattern for part in self.parts)

    @property
    def has_empty(self) -> bool:
        return all(part.has_empty for part in self.parts)

    def after(self, character: str) -> frozenset[Language]:
        reached: set[Language] = set()
        for place, part in enumerate(self.parts):
            reached |= {sequence(rest, *self.parts[place + 1 :]) for rest in part.after(character)}
            if not part.has_empty:
                break
        return frozenset(reached)


@dataclass(frozen=True)
class _Either(Language):
    options: tuple[Language, ...]

    @property
    def pattern(self) -> str:
        return f"(?:{'|'.join(option.pattern for option in self.options)})"

    @property
    def has_empty(self) -> bool:
        return any(option.has_empty for option in self.options)

    def after(self, character: str) -> frozenset[Language]:
        return frozenset[Language]().union(*(option.after(character) for option in self.options))


@dataclass(frozen=True)
class _Star(Language):
    part: Language

    @property
    def pattern(self) -> str:
        single = isinstance(self.part, _OneOf | _Either)
        return f"{self.part.pattern}*" if single else f"(?:{self.part.pattern})*"

    @property
    def has_empty(self) -> bool:
        return True

    def after(self, character: str) -> frozenset[Language]:
        return frozenset(sequence(rest, self) for rest in self.part.after(character))


def _language(part: Any) -> Language:
    return part if isinstance(part, Language) else literal(part)


def _after_text(state: frozenset[Language], text: str) -> frozenset[Language]:
    def step(languages: frozenset[Language], character: str) -> frozenset[Language]:
        return frozenset[Language]().union(*(language.after(character) for language in languages))

    return functools.reduce(step, text, state)
