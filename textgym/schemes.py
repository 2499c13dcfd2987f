"""Reward schemes: when and how the score of a text is paid along its trajectory.

A base scheme pays the score itself, an extra one adds a term of its own at every step. A scheme sees numbers and token
ids, never texts; what a text scores, and its potential, is the business of the functions that score texts.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, Self

import numpy as np

from textgym.errors import RewardError, unknown
from textgym.escape import escape, shown, told, type_name


class Payment(NamedTuple):
    """One step of n running episodes, as a scheme sees it."""

    previous_score: np.ndarray  # float64 [n], score of the text before the step; 0 for the empty completion
    score: np.ndarray  # float64 [n], score of the text after the step; 0 where it was not scored
    ended: np.ndarray  # bool [n], the step ended the episode
    previous_potentials: np.ndarray  # float64 [n, P], Φ of the state before the step, one a potential function
    potentials: np.ndarray  # float64 [n, P], Φ of the state after the step; 0 where the episode ended
    observations: np.ndarray  # int64 [n, L], the states before the step; [n, 0] where no scheme reads them
    actions: np.ndarray  # int64 [n], the tokens that the step appended


class Base(Protocol):
    """A scheme that pays the score, wholly or in parts. An attribute that an object lacks counts as False.

    Attributes:
        scores_prefixes: whether every prefix must be scored, rather than complete texts alone.
        pays_score: whether the rewards of an episode always add up to its score, so that what is known of a task's
            scores holds for returns too.
    """

    scores_prefixes: bool
    pays_score: bool

    def pay(self, payment: Payment) -> np.ndarray:
        """The rewards of one step, float64 [n]."""
        ...


class Extra(Protocol):
    """A scheme that adds a term of its own to what the base scheme pays.

    Attributes:
        potentials: functions of a text, called as reward functions are, whose values before and after the step the
            term is made of; an object without it needs none.
        reads_observations: whether the term is made of token ids; an object without it does not.
    """

    potentials: Sequence[Callable[..., Any] | str]
    reads_observations: bool

    def extra(self, payment: Payment) -> np.ndarray:
        """The term of one step, float64 [n]; `payment` holds the potentials of this scheme alone."""
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


class Potential:
    """Potential-based shaping, γΦ(s') - Φ(s) at every step, with Φ of an ended episode 0 (Ng, Harada & Russell 1999).

    With γ = 1 the terms of an episode add up to -Φ(s_0), which no action changes: the optimum stays where it is.

    Args:
        potential: Φ, with the signature of a reward function; it is called on the prompt and the completion so far.
        gamma: γ, the discount that the agent uses.
    """

    def __init__(self, potential: Callable[..., Any] | str, gamma: float = 1.0) -> None:
        if not (callable(potential) or isinstance(potential, str)):
            raise TypeError(
                f"potential is {shown(potential)} of type {type_name(potential)}; give a function with the signature "
                "of a reward function, 'module:function' or 'file.py:function'"
            )
        self.potentials = (potential,)
        self.gamma = _finite("gamma", gamma)

    def extra(self, payment: Payment) -> np.ndarray:
        """γΦ(s') - Φ(s), float64 [n]."""
        return self.gamma * payment.potentials[:, 0] - payment.previous_potentials[:, 0]

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self  # it never changes; environment specs are deep-copied, and a model in it should not be

    def __repr__(self) -> str:
        return f"Potential({_name(self.potentials[0])}, gamma={self.gamma:g})"


class Length:
    """A price for every token, the stop token included.

    Args:
        price: what a token costs, in units of score; below 0 a token is rewarded.
    """

    def __init__(self, price: float) -> None:
        self.price = _finite("price", price)

    def extra(self, payment: Payment) -> np.ndarray:
        """Minus the price, float64 [n]."""
        return np.full(len(payment.ended), -self.price)

    def __repr__(self) -> str:
        return f"Length({self.price:g})"


class Reference:
    """Closeness to a reference policy: β log π_ref(a | s) for every token.

    For an agent whose entropy enters its returns with weight β, this is the KL-regularised problem exactly: E[score] -
    β KL(π‖π_ref). With the usual bonus on the entropy of each state alone, it is an approximation.

    Args:
        log_prob: called as log_prob(observations int64 [n, L], actions int64 [n]); returns log π_ref(a | s), n finite
            numbers. The observations are histories padded on the right with PAD = V.
        beta: β, in units of score per nat.
    """

    reads_observations = True

    def __init__(self, log_prob: Callable[[np.ndarray, np.ndarray], Any], beta: float) -> None:
        if not callable(log_prob):
            raise TypeError(
                f"log_prob is {shown(log_prob)} of type {type_name(log_prob)}; give a function of observations int64 "
                "[n, L] and actions int64 [n] that returns log π_ref(a | s), n numbers"
            )
        self.log_prob = log_prob
        self.beta = _finite("beta", beta)

    def extra(self, payment: Payment) -> np.ndarray:
        """β log π_ref(a | s), float64 [n]."""
        name = f"the log-prob function '{_name(self.log_prob)}' of Reference"
        try:
            log_probs = np.asarray(self.log_prob(payment.observations, payment.actions), dtype=np.float64)
        except Exception as error:
            raise RewardError(f"{name} raised {told(error)}") from error
        if log_probs.shape != payment.actions.shape:
            raise RewardError(
                f"{name} returned an array of shape {log_probs.shape} for {len(payment.actions)} actions; return one "
                "number for each"
            )
        bad = ~np.isfinite(log_probs)
        if bad.any():
            place = int(bad.argmax())
            raise RewardError(
                f"{name} returned {log_probs[place]} for the action {payment.actions[place]} (state {place} of "
                f"{len(bad)} in this call); return finite numbers: a reference that gives a token no probability at "
                "all cannot price it"
            )
        return self.beta * log_probs

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self  # it never changes; environment specs are deep-copied, and a model in it should not be

    def __repr__(self) -> str:
        return f"Reference({_name(self.log_prob)}, beta={self.beta:g})"


class Scheme:
    """One base scheme and any extra ones: the base is paid once, the extra terms are added.

    Attributes:
        parts: the schemes, the base first.
        scores_prefixes: whether every prefix must be scored.
        pays_score: whether the rewards of an episode always add up to its score.
        pays_at_end_alone: whether it is `terminal` and nothing else.
        potentials: the potential functions of all extra schemes, P of them.
        reads_observations: whether a term is made of token ids.
    """

    def __init__(self, base: Base, extras: Sequence[Extra] = ()) -> None:
        self.parts = (base, *extras)
        self._base, self._extras = base, tuple(extras)
        self.scores_prefixes = bool(getattr(base, "scores_prefixes", False))
        self.pays_score = bool(getattr(base, "pays_score", False)) and not extras
        self.pays_at_end_alone = type(base) is Terminal and not extras
        self.potentials = tuple(function for part in extras for function in getattr(part, "potentials", ()))
        self.reads_observations = any(getattr(part, "reads_observations", False) for part in self.parts)

    def pay(self, payment: Payment) -> np.ndarray:
        """The rewards of one step, float64 [n].

        Raises:
            RewardError: a scheme paid what is not one finite number for each episode.
        """
        reward = self._checked(self._base, self._base.pay(payment), payment)
        first = 0
        for part in self._extras:
            own = slice(first, first := first + len(getattr(part, "potentials", ())))
            seen = payment._replace(
                potentials=payment.potentials[:, own], previous_potentials=payment.previous_potentials[:, own]
            )
            with np.errstate(over="ignore"):  # an infinity is told below
                reward = reward + self._checked(part, part.extra(seen), payment)
        return self._checked(self, reward, payment)

    def _checked(self, part: Any, paid: Any, payment: Payment) -> np.ndarray:
        rewards = np.asarray(paid, dtype=np.float64)
        if rewards.shape != payment.ended.shape or not np.isfinite(rewards).all():
            raise RewardError(
                f"the scheme {_name_of(part)} paid {shown(paid)} for {len(payment.ended)} episodes; pay one finite "
                "number for each"
            )
        return rewards

    def __repr__(self) -> str:
        return repr(self.parts[0]) if len(self.parts) == 1 else repr(list(self.parts))


SCHEMES: dict[str, type] = {
    "terminal": Terminal,
    "prefix_delta": PrefixDelta,
    "potential": Potential,
    "length": Length,
    "reference": Reference,
}
_ARGUMENTS = {"potential": "potential, gamma=1.0", "length": "price", "reference": "log_prob, beta"}


def make_scheme(scheme: Any) -> Scheme:
    """The scheme that the keyword `scheme` describes: a name, an object, or a list of them.

    Extra schemes without a base are added to `terminal`.

    Raises:
        TypeError, ValueError: an unknown name, no scheme, or two base schemes in a list.

    >>> make_scheme("prefix_delta"), make_scheme(Length(0.1)), make_scheme(["prefix_delta", Length(0.1)])
    (PrefixDelta(), [Terminal(), Length(0.1)], [PrefixDelta(), Length(0.1)])
    """
    if isinstance(scheme, Scheme):
        return scheme
    given = list(scheme) if isinstance(scheme, list | tuple) else [scheme]
    if not given:
        raise ValueError("scheme is an empty list; give at least one scheme, 'terminal' for instance")
    parts = [_part(one) for one in given]
    bases = [part for part in parts if hasattr(part, "pay")]
    if len(bases) > 1:
        raise ValueError(
            f"scheme holds {' and '.join(shown(base) for base in bases)}, which both pay the score; give one of them"
        )
    return Scheme(bases[0] if bases else Terminal(), [part for part in parts if not hasattr(part, "pay")])


def _part(scheme: Any) -> Any:
    if isinstance(scheme, str):
        if scheme not in SCHEMES:
            raise ValueError(unknown("scheme", scheme, SCHEMES))
        if scheme in _ARGUMENTS:
            name = SCHEMES[scheme].__name__
            raise ValueError(
                f"the scheme {scheme!r} needs arguments; give textgym.schemes.{name}({_ARGUMENTS[scheme]})"
            )
        return SCHEMES[scheme]()
    if isinstance(scheme, type) or not (hasattr(scheme, "pay") or hasattr(scheme, "extra")):
        raise TypeError(
            f"scheme is {shown(scheme)} of type {type_name(scheme)}; give one of {', '.join(sorted(SCHEMES))}, an "
            "object such as textgym.schemes.Terminal(), or a list of them"
        )
    return scheme


def _name_of(part: Any) -> str:
    return shown(part) if isinstance(part, Scheme) else type_name(part)


def _finite(name: str, value: Any) -> float:
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | float | np.integer | np.floating):
        raise TypeError(f"{name} is {shown(value)} of type {type_name(value)}; give a number")
    if not math.isfinite(value):
        raise ValueError(f"{name}={value}; give a finite number")
    return float(value)


def _name(function: Any) -> str:
    return escape(function if isinstance(function, str) else getattr(function, "__name__", type(function).__name__))
