"""Numbers: what a reward function returned, one or None for each completion, or why it is refused; and settings.

What a refusal means for the episode is the reward's business, not this module's.
"""

import math
import numbers
from collections import UserString
from collections.abc import Sequence
from itertools import islice
from typing import Any

import numpy as np

from textgym.escape import shown, told, type_name


class Refused(ValueError):
    """Why a function gives no score; the text goes on after "reward function 'f' ...".

    Args:
        problem: that text.
        row: the text that it is about, counted within the call.
    """

    def __init__(self, problem: str, row: int = 0) -> None:
        super().__init__(problem)
        self.row = row


class TimedOut(Refused):
    """A call did not end in time."""


Entry = float | None | Refused  # what one function says of one text


def overran(limit: float) -> TimedOut:
    """A call did not end within `limit` seconds."""
    return TimedOut(f"took longer than {limit:g} s; raise reward_timeout={limit:g}, or make the function faster")


def refusal(error: BaseException) -> Refused:
    """The refusal that an exception of a function amounts to."""
    if isinstance(error, Refused):
        return error
    refused = Refused(f"raised {told(error)}")
    refused.__cause__ = error
    return refused


def read(returned: Any, count: int) -> list[Entry]:
    """The `count` entries of a list, another sequence or a one-dimensional array; a set or a view has no order.

    Raises:
        Refused: it is not one value for each completion, or cannot be read; values that are refused are entries.

    >>> read([1, None, "2"], 3)
    [1.0, None, Refused("returned '2' of type str; return a float")]
    """
    try:
        values = _values(returned, count)
    except Refused:
        raise
    except (Exception, SystemExit) as error:
        raise _unreadable(error) from error
    return [_entry(value) for value in values]


def finite_number(value: Any, what: str) -> float:
    """The float of a setting.

    Raises:
        TypeError, ValueError: it is not a finite number; `what` is how the message names it.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{what} is {shown(value)} of type {type_name(value)}; give a finite number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"{what} is {shown(value)}; give a finite number")
    return number


def _values(returned: Any, count: int) -> list[Any]:
    is_text = isinstance(returned, str | bytes | bytearray | memoryview | UserString)
    is_list = isinstance(returned, Sequence) or getattr(returned, "ndim", None) == 1  # an array, a torch tensor
    if is_text or not is_list or isinstance(returned, np.ma.MaskedArray):
        raise Refused(f"returned {shown(returned)} of type {type_name(returned)}; return a list of floats")
    values = list(islice(returned, count)) if len(returned) == count else []
    if len(values) != count:
        raise Refused(f"returned {len(returned)} values for {count} completions; return one for each")
    return values


def _entry(value: Any) -> Entry:
    if value is None or isinstance(value, Refused):
        return value
    if type(value) is float and math.isfinite(value):  # by far the most
        return value
    try:
        return _number(value)
    except Refused as refused:
        return refused.with_traceback(None)
    except (Exception, SystemExit) as error:
        unreadable = _unreadable(error)
        unreadable.__cause__ = error
        return unreadable


def _number(value: Any) -> float:
    """A finite float of a returned number or an array without dimensions."""
    number = value
    if isinstance(value, np.ndarray):
        number = value[()] if value.ndim == 0 and not isinstance(value, np.ma.MaskedArray) else None
    elif not isinstance(value, numbers.Real) and getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        number = value.item()  # a torch tensor
    if not isinstance(number, numbers.Real | np.bool_) or isinstance(number, np.timedelta64):
        raise Refused(f"returned {shown(value)} of type {type_name(value)}; return a float")
    number = float(number)
    if not math.isfinite(number):
        raise Refused(f"returned {number}; return a finite number")
    return number


def _unreadable(error: BaseException) -> Refused:
    return Refused(f"returned what cannot be read as a number per completion: {told(error)}")
