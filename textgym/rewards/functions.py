"""One reward function, ready to be called: what it asks for is handed to it, in this process or in a subprocess."""

import functools
from collections.abc import Sequence
from typing import Any

from textgym.escape import escape
from textgym.rewards.calls import Outcome, Pending, begin
from textgym.rewards.isolation import Isolated
from textgym.rewards.signatures import TRAINER_KEYWORDS, accepts, as_batched, trainer_keywords
from textgym.rewards.sources import Named, importable_place
from textgym.rewards.texts import Texts
from textgym.rewards.values import Refused

_GIVEN = frozenset({"prompts", "completions", "completion_ids", "rng", *TRAINER_KEYWORDS})


class Function:
    """A function with its name, and with what it names.

    Args:
        named: the function.
        timeout: seconds that a call may take; None for any time.
        isolate: call it in a subprocess.

    Attributes:
        name: what errors and metrics call it.
        draws: it asks for the rows' generators.
        needs: the columns that it cannot do without.
    """

    def __init__(self, named: Named, timeout: float | None, isolate: bool) -> None:
        self.name = escape(named.name)
        self._function = as_batched(named.function)
        self._accepts = accepts(self._function)
        self._timeout = timeout
        self.draws = "rng" in self._accepts.names
        self.needs = self._accepts.needed - _GIVEN
        place = (named.place or importable_place(named.function, named.name)) if isolate else None
        self._isolated = Isolated(place) if place is not None else None

    def begin(self, texts: Texts) -> Outcome | Pending:
        """Call it once for all texts."""
        generators = list(texts.generators) if self.draws else []
        if self.draws and len(generators) != len(texts.completions):
            return Outcome(failure=Refused("names 'rng', and these texts come without their rows' generators"))
        keywords: dict[str, Any] = dict(texts.keywords(self._accepts.columns))
        if self._isolated is not None:
            return self._isolated.call(keywords, generators, len(texts.completions), self._timeout)
        if self.draws:
            keywords["rng"] = generators
        keywords = trainer_keywords(self._accepts.names) | keywords
        return begin(functools.partial(self._function, **keywords), self._timeout)


def await_all(pending: Sequence[Pending], stop_at_failure: bool = False) -> Sequence[Outcome | None]:
    """How each ended, see `textgym.rewards.loop.finish`."""
    if not pending:
        return []
    from textgym.rewards.loop import finish  # asyncio takes long to import, and few functions are async

    return finish(pending, stop_at_failure)
