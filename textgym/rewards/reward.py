"""Score whole texts with users' functions, and refuse anything that is not one finite number per text.

The call is TRL's: by keyword, batched, `f(prompts=, completions=, completion_ids=, **columns)`. When and how a score is
paid along the trajectory is the scheme's business, not this module's.
"""

import math
import threading
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from textgym.errors import RewardError, unknown
from textgym.escape import excerpt, shown, type_name
from textgym.rewards.calls import Outcome, Pending, discard
from textgym.rewards.functions import Function, await_all
from textgym.rewards.signatures import own_name
from textgym.rewards.sources import Named, named_functions
from textgym.rewards.texts import GeneratorStates, Scores, Texts, generator_states, put_back
from textgym.rewards.values import Entry, Refused, TimedOut, finite_number, read

_ON_ERROR = ("raise", "drop")
_ALL_NONE = "returned None, and no other function scores this completion"


class Reward:
    """One or several reward functions with their call contract checked.

    Each is called by keyword once for all texts that must be scored, and returns one number or None per completion, or
    an awaitable of that; awaitables of one call are awaited side by side.

    Args:
        function: a function, or several as `named_functions` gives them.
        name: what errors and metrics call a single function; its own name by default.
        timeout: seconds that a call of a function may take; None for any time.
        on_error: "raise", or "drop" the texts that a function fails on.
        isolate: call each function in a subprocess of its own.
        what: what errors call a function.

    Attributes:
        names: the name of each function, K of them.
        weights: the weight of each function's number in the score.
        draws: whether a function asks for the rows' generators.
        needs: the columns that the functions cannot do without.
        num_dropped: texts dropped so far.

    Raises:
        TypeError, ValueError: a setting that is malformed, or a function that cannot be isolated.
    """

    def __init__(
        self,
        function: Callable[..., Any] | Sequence[Named],
        name: str | None = None,
        *,
        timeout: float | None = None,
        on_error: str = "raise",
        isolate: bool = False,
        what: str = "reward function",
    ) -> None:
        if on_error not in _ON_ERROR:
            raise ValueError(unknown("on_reward_error", on_error, _ON_ERROR))
        if not isinstance(isolate, bool):
            raise TypeError(f"isolate_reward is {shown(isolate)} of type {type_name(isolate)}; give True or False")
        several = [Named(name or own_name(function), function)] if callable(function) else function
        self._functions = [Function(named, _seconds(timeout), isolate) for named in several]
        self._drops, self._what = on_error == "drop", what
        self.draws = any(function.draws for function in self._functions)
        self.needs = frozenset(name for function in self._functions for name in function.needs)
        self.names = tuple(function.name for function in self._functions)
        self.weights = tuple(named.weight for named in several)
        self.num_dropped = 0
        self._told_of_whole = False  # that a call failed as a whole while each of its texts alone did not

    def __call__(self, texts: Texts) -> Scores:
        """Score n texts.

        Raises:
            RewardError: a function raised or overran, or returned a wrong count, a wrong type, NaN or an infinity, or
                all returned None. The generators are as before.
        """
        states = generator_states(texts.generators) if self.draws else []
        try:
            return self._scores(texts, self._run([(function, texts) for function in self._functions]))
        except BaseException:
            put_back(states)
            raise

    def _run(self, calls: Sequence[tuple[Function, Texts]]) -> list[list[Entry]]:
        """What each call says of each of its texts. Awaitables wait for all calls to begin."""
        begun: list[list[Entry] | Pending] = []
        try:
            for function, texts in calls:
                begun.append(self._begin(function, texts))
        except BaseException:
            for pending in begun:
                if isinstance(pending, Pending):
                    discard(pending)
            raise
        waiting = {place: one for place, one in enumerate(begun) if isinstance(one, Pending)}
        finished = {
            place: self._entries(*calls[place], outcome)
            for place, outcome in zip(waiting, await_all(list(waiting.values()), not self._drops), strict=True)
            if outcome is not None  # None: cancelled since another failed, which raises here
        }
        return [finished[place] if isinstance(one, Pending) else one for place, one in enumerate(begun)]

    def _begin(self, function: Function, texts: Texts) -> list[Entry] | Pending:
        """Call a function; one that draws is awaited at once, so that draws have an order."""
        states = generator_states(texts.generators) if function.draws else []
        begun = function.begin(texts)
        if isinstance(begun, Pending):
            if not function.draws:
                return begun
            [finished] = await_all([begun])
            assert finished is not None
            begun = finished
        return self._entries(function, texts, begun, states)

    def _entries(self, function: Function, texts: Texts, outcome: Outcome, states: GeneratorStates = ()) -> list[Entry]:
        """What a call says of each text; the generators' states are put back where it failed as a whole."""
        count, failure = len(texts.completions), outcome.failure
        if failure is None:
            try:
                return read(outcome.value, count)
            except Refused as refused:
                failure = refused
        put_back(states)
        if not self._drops:
            raise self._error([function.name], texts, failure.row, failure) from failure.__cause__
        if count == 1 or isinstance(failure, TimedOut):  # tried one by one, it would take the time limit each time
            return [failure] * count
        alone = [entry for [entry] in self._run([(function, texts.only(row)) for row in range(count)])]
        if not any(isinstance(entry, Refused) for entry in alone) and not self._told_of_whole:
            self._told_of_whole = True
            note = "its texts were scored one by one, since on_reward_error='drop', and none is dropped; look whether"
            error = self._error([function.name], texts, failure.row, failure)
            warnings.warn(f"{error}\n  {note} it takes several texts in a call", UserWarning, stacklevel=6)
        return alone

    def _scores(self, texts: Texts, entries: list[list[Entry]]) -> Scores:
        """The numbers of K functions for n texts, from K lists of n entries."""
        score = [0.0] * len(texts.completions)
        failure = [_ALL_NONE] * len(score)
        refused: dict[int, tuple[Sequence[str], Refused]] = {}  # the first of each row
        for name, weight, column in zip(self.names, self.weights, entries, strict=True):
            for row, entry in enumerate(column):
                if isinstance(entry, float):
                    score[row] += weight * entry  # Python's sums: no row depends on another
                    failure[row] = "" if math.isfinite(score[row]) else f"added up to {score[row]}; lower the weights"
                elif entry is not None:
                    refused.setdefault(row, ([name], entry))
        for row in [row for row, problem in enumerate(failure) if problem]:
            refused.setdefault(row, (self.names, Refused(failure[row])))
        result = Scores(
            np.array(score),
            np.array([[entry if isinstance(entry, float) else 0.0 for entry in column] for column in entries]).T.copy(),
            np.array([[isinstance(entry, float) for entry in column] for column in entries]).T.copy(),
            np.ones(len(score), dtype=bool),
        )
        if refused:
            self._drop_or_raise(texts, refused)
            for values in result:
                values[list(refused)] = 0
        return result

    def _drop_or_raise(self, texts: Texts, refused: dict[int, tuple[Sequence[str], Refused]]) -> None:
        """Count the dropped rows and warn of the first one, or raise."""
        row = min(refused)
        names, failure = refused[row]
        error = self._error(names, texts, row, failure)
        if not self._drops:
            raise error from failure.__cause__
        self.num_dropped += len(refused)
        if self.num_dropped == len(refused):
            note = "the episode is dropped, since on_reward_error='drop'; later ones are dropped without a warning"
            warnings.warn(f"{error}\n  {note}", UserWarning, stacklevel=4)

    def _error(self, names: Sequence[str], texts: Texts, row: int, failure: Refused) -> RewardError:
        listed = ", ".join(f"'{name}'" for name in names)
        count = len(texts.completions)
        place = f" (completion {row} of {count} in this call)" if count > 1 else ""
        return RewardError(
            f"{self._what}{'s' if len(names) > 1 else ''} {listed} {failure}{place}\n"
            f"  prompt: {excerpt(texts.prompts[row])}\n"
            f"  completion: {excerpt(texts.completions[row])}"
        )


def load_reward(
    reward: Any,
    *,
    timeout: float | None = None,
    on_error: str = "raise",
    isolate: bool = False,
    what: str = "reward function",
) -> Reward:
    """The reward that the keyword `reward` describes.

    Args:
        reward: a function, "module:function", "file.py:function", a list of those, or a dict of name to one of those or
            to (one of those, weight).
        timeout: seconds that a call of a function may take; None for any time.
        on_error: "raise", or "drop" the texts that a function fails on.
        isolate: call each function in a subprocess of its own.
        what: what errors call a function; its first word is what they call the keyword.

    Raises:
        FileNotFoundError, ImportError, AttributeError, TypeError, ValueError: a function cannot be found, called or
            isolated, or a name, a weight or a setting is malformed.
    """
    functions = named_functions(reward, what.split()[0])
    return Reward(functions, timeout=timeout, on_error=on_error, isolate=isolate, what=what)


def _seconds(timeout: Any) -> float | None:
    if timeout is None:
        return None
    seconds = finite_number(timeout, "reward_timeout (None for any time)")
    if seconds <= 0:
        raise ValueError(f"reward_timeout={seconds:g}; give more than 0 seconds, or None for any time")
    return min(seconds, threading.TIMEOUT_MAX / 2)
