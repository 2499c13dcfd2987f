"""One call of a reward function, within a time limit; what must be awaited is handed back.

Works from any thread and without signals. A function that overruns is told to end, which Python code obeys; code that
stays outside of Python lives on in its thread until it returns, and a subprocess of its own (`isolate_reward`) is the
only thing that ends it.
"""

import contextvars
import ctypes
import inspect
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from textgym.rewards.values import Refused, overran, refusal


class Outcome(NamedTuple):
    """How a call ended: with what it returned, or with the reason why there is nothing."""

    value: Any = None
    failure: Refused | None = None


class Pending(NamedTuple):
    """What a call returned and must still be awaited."""

    awaitable: Any
    limit: float | None = None  # seconds for the whole call
    left: float | None = None  # seconds that are left of it


class ThreadEnded(SystemExit):
    """Raised in a thread that has overrun; a thread ends without a word of a SystemExit."""


def begin(call: Callable[[], Any], limit: float | None) -> Outcome | Pending:
    """Make a call.

    Args:
        call: the function with its keywords.
        limit: seconds that it may take, None for any time.
    """
    started = time.monotonic()
    try:
        value = call() if limit is None else _limited(call, limit)
        if not inspect.isawaitable(value):
            return Outcome(value)
    except (Exception, SystemExit) as error:
        return Outcome(failure=refusal(error))
    return Pending(value, limit, None if limit is None else max(0.0, limit - (time.monotonic() - started)))


def discard(pending: Pending) -> None:
    """Give up what was never begun to be awaited, without Python's warning about it."""
    if inspect.iscoroutine(pending.awaitable):
        pending.awaitable.close()


def end_thread(thread: threading.Thread, grace: float) -> None:
    """Raise `ThreadEnded` in a thread, and wait at most `grace` seconds for its end."""
    if thread.ident is not None:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(ThreadEnded))
    thread.join(grace)


def _limited(call: Callable[[], Any], limit: float) -> Any:
    """What the call returns, or its exception, from a thread that is waited for `limit` seconds."""
    ended: list[tuple[Any, BaseException | None]] = []

    def run() -> None:
        try:
            ended.append((call(), None))
        except BaseException as error:  # whatever it is, the caller's thread raises it
            ended.append((None, error))

    context = contextvars.copy_context()
    thread = threading.Thread(target=context.run, args=(run,), name="textgym-reward", daemon=True)
    thread.start()
    try:
        thread.join(limit)
    finally:
        in_time = bool(ended)
        if not in_time:
            end_thread(thread, min(limit / 10, 0.1))
    if not in_time:
        raise overran(limit)
    value, error = ended[0]
    if error is not None:
        raise error
    return value
