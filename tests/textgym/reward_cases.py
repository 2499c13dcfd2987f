"""Texts to score, and reward functions that a subprocess can import."""

import asyncio
import os
import signal
import sys
import time
from contextlib import contextmanager

import numpy as np

from textgym.rewards import Texts

COMPLETIONS = ("", "b", "abab")


def texts(completions=COMPLETIONS, generators=(), **columns):
    """Texts after the prompts p0, p1, ...; each character is a token of its own."""
    return Texts(
        prompts=[f"p{row}" for row in range(len(completions))],
        completions=list(completions),
        completion_ids=[[ord(char) for char in text] for text in completions],
        columns={name: list(values) for name, values in columns.items()},
        generators=generators,
    )


def generators(count, seed=0):
    return [np.random.default_rng(seed + row) for row in range(count)]


@contextmanager
def interrupted_after(seconds):
    """Ctrl-C in the main thread."""

    def interrupt(number, frame):
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def length(completions):
    return [float(len(text)) for text in completions]


def constant(completions):
    return [10.0] * len(completions)


def draw(completions, rng):
    return [float(generator.normal()) for generator in rng]


async def draw_later(completions, rng):
    await asyncio.sleep(0)
    return [float(generator.integers(2**40)) + generator.random(dtype=np.float32) for generator in rng]


def draw_and_fail(completions, rng):
    for generator in rng:
        generator.normal()
    raise RuntimeError("after the draw")


def spawn(completions, rng):
    rng[0].spawn(1)
    return [0.0] * len(completions)


def echo(prompts, completions, completion_ids, deep):
    assert completion_ids == [[ord(char) for char in text] for text in completions]
    return [float(deep == [(1, {2: None, "x": [True, "\ud800", float("inf")]})] * len(prompts))] * len(completions)


def trained(completions, trainer_state, log_extra, log_metric):
    log_extra("length", [len(text) for text in completions])
    log_metric("count", len(completions))
    return [float(trainer_state is None)] * len(completions)


def talk(completions):
    print("printed by the function")
    os.write(1, b"written by the function\n")
    return [1.0] * len(completions)


def leave(completions):
    os._exit(3)


def leave_politely(completions):
    sys.exit(4)


def leave_at_b(completions):
    if "b" in completions:
        os._exit(5)
    return length(completions)


def die(completions):
    os.kill(os.getpid(), signal.SIGKILL)


def devour(completions):
    return [float(len(bytearray(2**62)))]


def spin(completions):
    while "b" in completions:
        pass
    return length(completions)


def hold(completions):
    """A call into C that gives nobody else a turn."""
    if "b" in completions:
        sum(range(10**12))
    return length(completions)


def fork_and_leave(completions):
    if os.fork() == 0:
        time.sleep(60)
        os._exit(0)
    os._exit(6)


def fail_at_b(completions):
    if "b" in completions:
        raise KeyError("no b\x1b[31m")
    return length(completions)


def odd_values(completions):
    return [np.float32(0.5), None, float("nan")]


_calls = 0


def count_calls(completions):
    global _calls
    _calls += 1
    return [float(_calls)] * len(completions)


def process_id(completions):
    return [float(os.getpid())] * len(completions)
