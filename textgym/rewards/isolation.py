"""Reward functions in a subprocess of their own: whatever a function does to its process, this one goes on.

The subprocess is started at the first call and anew after it ended; it ends with this process. Requests and replies are
lines of JSON through pipes. Its side is `textgym.rewards.isolation_worker`.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from textgym.escape import escape, excerpt
from textgym.rewards.calls import Outcome
from textgym.rewards.plain_json import dumps
from textgym.rewards.values import Refused, TimedOut, overran

_START_SECONDS = 60.0  # for the imports of a function with a time limit, which its calls are not charged for
_CLOSE_SECONDS = 2.0
_START = """\
import json, sys
sys.path[:] = json.loads(sys.argv.pop())
from textgym.rewards.isolation_worker import main
main()"""


class Isolated:
    """A function in a subprocess.

    Args:
        place: "module:function" or "/folder/file.py:function".
    """

    def __init__(self, place: str) -> None:
        self._place, self._folder = place, str(Path.cwd())
        self._child: _Child | None = None
        self._lock = threading.Lock()

    def __deepcopy__(self, memo: dict[int, Any]) -> "Isolated":
        return self  # as a function is its own copy

    def call(
        self, keywords: dict[str, Any], generators: Sequence[np.random.Generator], count: int, limit: float | None
    ) -> Outcome:
        """Call the function for `count` texts, within `limit` seconds.

        Its draws from the generators are made here too, once it has answered.
        """
        try:
            request = _request(keywords, generators, count)
            with self._lock:
                reply = self._running_child(limit).ask(request, limit)
        except Refused as failure:
            return Outcome(failure=failure)
        if "failed" in reply:
            return Outcome(failure=Refused(reply["failed"], reply["row"]))
        for generator, state in zip(_distinct(generators), reply["states"], strict=True):
            generator.bit_generator.state = state
        return Outcome([Refused(one["refused"]) if isinstance(one, dict) else one for one in reply["entries"]])

    def _running_child(self, limit: float | None) -> "_Child":
        if self._child is not None and self._child.is_running():
            return self._child
        child = _Child(self._folder)
        seconds = None if limit is None else max(limit, _START_SECONDS)
        try:
            reply = child.ask(json.dumps(self._place), seconds)
        except TimedOut:
            raise TimedOut(f"was not imported in its subprocess within {seconds:g} s; raise reward_timeout") from None
        if "failed" in reply:
            raise Refused(f"cannot be imported in a subprocess: {reply['failed']}")
        self._child = child
        return child


class _Child:
    """A subprocess that answers one line with one line."""

    def __init__(self, folder: str) -> None:
        command = [sys.executable, "-c", _START, json.dumps([str(entry) for entry in sys.path])]
        pipe = subprocess.PIPE
        try:  # in a session of its own: Ctrl-C is for this process, which then ends the other and all that it started
            self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, cwd=folder, start_new_session=True)
        except OSError as error:
            raise Refused(f"cannot be isolated, its subprocess does not start: {escape(str(error))}") from error
        self._was_killed = False
        weakref.finalize(self, _close, self._process)

    def is_running(self) -> bool:
        """Whether it can be asked; not in a process that was forked since, which has no such child."""
        return not self._was_killed and self._process.poll() is None

    def ask(self, request: str, limit: float | None) -> dict[str, Any]:
        """The reply to a request.

        Raises:
            TimedOut: there is none within `limit` seconds, and the subprocess was ended.
            Refused: the subprocess has ended by itself.
        """
        timer = threading.Timer(limit, self._kill) if limit is not None else None
        if timer is not None:
            timer.daemon = True
            timer.start()
        try:
            line = self._exchange(request)
        except BaseException:
            self._kill()  # the reply would be taken for that of the next request
            raise
        finally:
            if timer is not None:
                timer.cancel()
                timer.join()
        if line.endswith(b"\n"):
            return json.loads(line)
        if self._was_killed and limit is not None:
            raise overran(limit)
        raise Refused(self._how_it_ended())

    def _exchange(self, request: str) -> bytes:
        assert self._process.stdin is not None and self._process.stdout is not None
        with suppress(OSError):  # it has ended, and the empty reply says so
            self._process.stdin.write(request.encode() + b"\n")
            self._process.stdin.flush()
        return self._process.stdout.readline()

    def _kill(self) -> None:
        self._was_killed = True
        _kill(self._process)

    def _how_it_ended(self) -> str:
        try:
            code = self._process.wait(_CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            self._kill()
            return "closed the pipe of its subprocess"
        if code >= 0:
            return f"ended its subprocess with exit code {code}"
        with suppress(ValueError):
            return f"lost its subprocess to the signal {signal.Signals(-code).name}"
        return f"lost its subprocess to the signal {-code}"


def _kill(process: "subprocess.Popen[bytes]") -> None:
    """End a subprocess and, where the system has sessions, all that it started."""
    if process.poll() is not None:
        return
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL) if hasattr(os, "killpg") else process.kill()


def _close(process: "subprocess.Popen[bytes]") -> None:
    """Let a subprocess end, which it does when its standard input closes, or end it."""
    assert process.stdin is not None and process.stdout is not None
    with suppress(OSError):
        process.stdin.close()
    try:
        process.wait(_CLOSE_SECONDS)
    except subprocess.TimeoutExpired:
        _kill(process)
        process.wait()
    process.stdout.close()


def _request(keywords: dict[str, Any], generators: Sequence[np.random.Generator], count: int) -> str:
    distinct = _distinct(generators)
    places = {id(generator): place for place, generator in enumerate(distinct)}
    return json.dumps(
        {
            "keywords": {name: _column(name, values) for name, values in keywords.items()},
            "count": count,
            "states": [_state(generator) for generator in distinct],
            "rng": [places[id(generator)] for generator in generators],
        }
    )


def _column(name: str, values: list[Any]) -> str:
    try:
        return dumps(values)
    except TypeError:
        for row, value in enumerate(values):
            try:
                dumps(value)
            except TypeError as error:
                raise Refused(
                    f"cannot be called in a subprocess: the column {excerpt(name)} holds {error}; isolate_reward=True "
                    "needs columns of str, int, float, bool, None, and lists, tuples and dicts of them",
                    row,
                ) from None
        raise


def _distinct(generators: Sequence[np.random.Generator]) -> list[np.random.Generator]:
    return list({id(generator): generator for generator in generators}.values())


def _state(generator: np.random.Generator) -> dict[str, Any]:
    state = dict(generator.bit_generator.state)
    if state["bit_generator"] not in ("PCG64", "PCG64DXSM"):
        kind = state["bit_generator"]
        raise Refused(f"names 'rng', and a generator of {kind} cannot be sent to a subprocess; use numpy's default_rng")
    return state
