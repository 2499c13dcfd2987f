"""The subprocess of an isolated reward function: reads a request a line, calls the function, writes a reply a line.

What the function prints goes to standard error. The process ends when its standard input closes.
"""

import inspect
import json
import os
import queue
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np
from numpy.random.bit_generator import ISeedSequence

from textgym.escape import told
from textgym.rewards.calls import Pending
from textgym.rewards.loop import finish
from textgym.rewards.plain_json import loads
from textgym.rewards.signatures import accepts, as_batched, trainer_keywords
from textgym.rewards.sources import import_function
from textgym.rewards.values import Refused, read, refusal

_LAST_SECONDS = 1.0  # for a call that is running when the other side has gone


def main() -> None:
    """Answer until standard input closes."""
    requests, replies = _pipes()
    lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(requests, lines), daemon=True).start()
    try:
        function = as_batched(import_function(json.loads(lines.get())))
    except (Exception, SystemExit) as error:
        _reply(replies, {"failed": told(error), "row": 0})
        return
    _reply(replies, {})
    while line := lines.get():
        _reply(replies, _answer(function, json.loads(line)))


def _pipes() -> tuple[BinaryIO, BinaryIO]:
    """Standard input and output, taken away from the function and from the processes that it forks."""
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=replies.close)
    return requests, replies


def _listen(requests: BinaryIO, lines: "queue.SimpleQueue[bytes]") -> None:
    """Hand on lines while calls run, so that the end of the other side is noticed then too."""
    while line := requests.readline():
        lines.put(line)
    lines.put(b"")
    time.sleep(_LAST_SECONDS)
    os._exit(0)


def _reply(replies: BinaryIO, reply: dict[str, Any]) -> None:
    replies.write(json.dumps(reply).encode() + b"\n")
    replies.flush()


def _answer(function: Callable[..., Any], request: dict[str, Any]) -> dict[str, Any]:
    distinct = [_generator(state) for state in request["states"]]
    keywords = {name: loads(values) for name, values in request["keywords"].items()}
    if distinct:
        keywords["rng"] = [distinct[place] for place in request["rng"]]
    keywords = trainer_keywords(accepts(function).names) | keywords
    try:
        entries = read(_returned(function, keywords), request["count"])
    except (Exception, SystemExit) as error:
        failure = refusal(error)
        return {"failed": str(failure), "row": failure.row}
    return {
        "entries": [{"refused": str(entry)} if isinstance(entry, Refused) else entry for entry in entries],
        "states": [generator.bit_generator.state for generator in distinct],
    }


def _returned(function: Callable[..., Any], keywords: dict[str, Any]) -> Any:
    returned = function(**keywords)
    if not inspect.isawaitable(returned):
        return returned
    [outcome] = finish([Pending(returned)])
    assert outcome is not None
    if outcome.failure is not None:
        raise outcome.failure
    return outcome.value


class _NoSeeds(ISeedSequence):
    """Seeds a generator whose state is set at once; it cannot spawn others, whose seeds are not known here."""

    def generate_state(self, n_words: int, dtype: Any = np.uint32) -> np.ndarray:
        return np.zeros(n_words, dtype)


def _generator(state: dict[str, Any]) -> np.random.Generator:
    bits = getattr(np.random, state["bit_generator"])(_NoSeeds())
    bits.state = state
    return np.random.Generator(bits)
