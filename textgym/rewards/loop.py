"""Await what reward functions returned, side by side, from a thread without an event loop or with one.

One event loop runs in a background thread and is kept from call to call, so that a function's open connections live on.
It is made when first needed, and anew after it died, after a function blocked it, and in a forked process.
"""

import asyncio
import os
import threading
from collections.abc import Sequence
from concurrent import futures
from typing import Any

from textgym.rewards.calls import Outcome, Pending, ThreadEnded, discard, end_thread
from textgym.rewards.values import overran, refusal

_PATIENCE = 0.2  # of the time limit, for a loop that does not answer


class _Loop:
    """An event loop and its thread."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self._run, name="textgym-reward-loop", daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            while not self.loop.is_closed():
                try:
                    self.loop.run_forever()
                except ThreadEnded:
                    break
                except (SystemExit, KeyboardInterrupt):
                    pass  # a function's own; asyncio ends the loop with it, and its future holds it
            self.loop.run_until_complete(self._cancel_all())
        finally:
            self.loop.close()

    async def _cancel_all(self) -> None:
        """Nobody waits for ever for what this loop was to do."""
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


_current: _Loop | None = None
_lock = threading.Lock()


def finish(pending: Sequence[Pending], stop_at_failure: bool = False) -> list[Outcome | None]:
    """Await all of them at once.

    Args:
        pending: what to await, each with its own time limit.
        stop_at_failure: cancel the others when one has failed.

    Returns:
        How each ended; None for one that was cancelled because another had failed.
    """
    if not pending:
        return []
    try:
        background = _background()
    except RuntimeError:
        for one in pending:
            discard(one)
        raise
    running = [asyncio.run_coroutine_threadsafe(_within(one), background.loop) for one in pending]
    limit = max((one.limit for one in pending if one.limit is not None), default=None)
    patience = None if limit is None else max(one.left or 0.0 for one in pending) + _PATIENCE * limit
    try:
        until = futures.FIRST_EXCEPTION if stop_at_failure else futures.ALL_COMPLETED
        done, _ = futures.wait(running, patience, until)
        outcomes = [_outcome(future) if future in done else None for future in running]
    finally:
        for future in running:
            future.cancel()
    if len(done) == len(running) or (stop_at_failure and any(outcome and outcome.failure for outcome in outcomes)):
        return outcomes
    assert limit is not None
    _retire(background, limit)  # a function blocks it, or does not let itself be cancelled
    return [Outcome(failure=overran(limit)) if outcome is None else outcome for outcome in outcomes]


async def _within(pending: Pending) -> Any:
    try:
        async with asyncio.timeout(pending.left) as timeout:
            return await pending.awaitable
    except TimeoutError:
        if timeout.expired() and pending.limit is not None:
            raise overran(pending.limit) from None
        raise  # the function's own


def _outcome(future: "futures.Future[Any]") -> Outcome:
    try:
        return Outcome(future.result())
    except (Exception, SystemExit) as error:
        return Outcome(failure=refusal(error))


def _background() -> _Loop:
    global _current
    with _lock:
        if _current is not None and _current.thread is threading.current_thread():
            raise RuntimeError(
                "a reward function is waited for by code that runs in the event loop of reward functions"
            )
        if _current is None or not _current.thread.is_alive():
            _current = _Loop()
        return _current


def _retire(background: _Loop, limit: float) -> None:
    global _current
    with _lock:
        if _current is background:
            _current = None
    end_thread(background.thread, min(limit / 10, 0.1))


def _new_lock() -> None:
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):  # a forked process has no other thread that would open the lock, nor the loop's
    os.register_at_fork(after_in_child=_new_lock)
