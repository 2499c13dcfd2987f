"""The error classes, and the parts that every error message has: what was given, what is allowed, how to mend it."""

import difflib
from collections.abc import Iterable

from textgym.escape import shown


class RewardError(RuntimeError):
    """A reward function failed: it raised, or what it returned is not one finite number per completion."""


class NotBuiltError(NotImplementedError, ValueError):
    """A keyword or value that is documented for a later version and does nothing yet."""


def did_you_mean(name: object, allowed: Iterable[str]) -> str:
    """A hint that names the closest allowed word, or an empty string.

    >>> did_you_mean("sotr", ["sort", "reverse"])
    " Did you mean 'sort'?"
    """
    close = difflib.get_close_matches(str(name), list(allowed), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def unknown(what: str, value: object, allowed: Iterable[str]) -> str:
    """The message for a name outside a list of names.

    >>> unknown("task", "sotr", ["sort", "reverse"])
    "unknown task 'sotr'; allowed: reverse, sort. Did you mean 'sort'?"
    """
    names = sorted(allowed)
    return f"unknown {what} {shown(value)}; allowed: {', '.join(names)}.{did_you_mean(value, names)}"
