"""Reward schemes: when and how the score of a text is paid along its trajectory.

A scheme sees scores, never texts; what a text scores is the reward function's business.
"""

from typing import Any, NamedTuple, Protocol

import numpy as np

from textgym.errors import NotBuiltError, unknown


class Payment(NamedTuple):
    """One step of n running episodes, as a scheme sees it."""

    previous_score: np.ndarray  # float64 [n], score of the text before the step; 0 for the empty completion
    score: np.ndarray  # float64 [n], score of the text after the step; 0 where it was not scored
    ended: np.ndarray  # bool [n], the step ended the episode


class Scheme(Protocol):
    """What a reward scheme is.

    Attributes:
        scores_prefixes: whether every prefix must be scored, rather than complete texts alone.
        pays_score: whether the rewards of an episode always add up to its score, so that what is known of a task's
            scores holds for returns too; an object without it counts as False.
    """

    scores_prefixes: bool
    pays_score: bool

    def pay(self, payment: Payment) -> np.ndarray:
        """The rewards of one step, float64 [n]."""
        ...


class Terminal:
    """The score is paid once, at the end."""

    scores_prefixes = False
    pays_score = True

    def pay(self, payment: Payment) -> np.ndarray:
        """The score where the episode ended, 0 elsewhere; float64 [n]."""
        return np.where(payment.ended, payment.score, 0.0)

    def __repr__(self) -> str:
        return "Terminal()"


class PrefixDelta:
    """Every step pays what it added: f(prefix_{t+1}) - f(prefix_t), with f(empty) := 0; the sum is the terminal score.

    The reward function is called at every step, on unfinished texts too.
    """

    scores_prefixes = True
    pays_score = True

    def pay(self, payment: Payment) -> np.ndarray:
        """The gain of score of the step; float64 [n]."""
        return payment.score - payment.previous_score

    def __repr__(self) -> str:
        return "PrefixDelta()"


SCHEMES: dict[str, type[Scheme]] = {"terminal": Terminal, "prefix_delta": PrefixDelta}
_LATER = ("potential", "length", "reference")


def __getattr__(name: str) -> Any:
    later = f"; it comes in a later version, there are {', '.join(scheme.__name__ for scheme in SCHEMES.values())} now"
    raise AttributeError(f"textgym.schemes has no {name!r}{later if name.lower() in _LATER else ''}")


def make_scheme(scheme: Any) -> Scheme:
    """The scheme that the keyword `scheme` describes: a name, or an object with `pay` and `scores_prefixes`.

    >>> make_scheme("prefix_delta")
    PrefixDelta()
    """
    if isinstance(scheme, str):
        if scheme in _LATER:
            raise NotBuiltError(f"the scheme {scheme!r} is not built yet; allowed now: {', '.join(sorted(SCHEMES))}")
        if scheme not in SCHEMES:
            raise ValueError(unknown("scheme", scheme, SCHEMES))
        return SCHEMES[scheme]()
    if isinstance(scheme, list | tuple):
        raise NotBuiltError("a list of schemes is not built yet; give one scheme")
    if isinstance(scheme, type) or not (hasattr(scheme, "pay") and hasattr(scheme, "scores_prefixes")):
        raise TypeError(
            f"scheme is {scheme!r}; give one of {', '.join(sorted(SCHEMES))}, or an object such as "
            "textgym.schemes.Terminal()"
        )
    return scheme
