"""The machine's own limit: how fast it multiplies the matrices at hand and reads memory; hence tokens a second.

An estimate for any program that runs every token once, with the number format and threads that are set. It charges the
weights of every step to memory, though those of a small model stay in a cache, and a backward pass twice a forward one.
"""

import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

from benchmarks.workload import Size

Clock = Callable[[], float]
_REPEATS = 5
_OPERATIONS = 2e8  # of one timed piece of products, at least
_READ = 2**28  # bytes, more than caches hold
_FLOAT = 4  # bytes


class Limit(NamedTuple):
    """Seconds that work takes at least."""

    compute: float  # of its products
    memory: float  # of what it reads

    @property
    def seconds(self) -> float:
        """Of the slower of both, which may overlap."""
        return max(self.compute, self.memory)


def products(size: Size) -> tuple[tuple[int, int], ...]:
    """The matrices [in, out] that a token is multiplied with in a block: queries with keys and values, output, MLP."""
    width = size.d_model
    return (width, 3 * width), (width, width), (width, 4 * width), (4 * width, width)


def product_rate(
    rows: int, inner: int, outer: int, clock: Clock = time.perf_counter, dtype: torch.dtype = torch.float32
) -> float:
    """Operations a second of [rows, inner] times [inner, outer], the best of a few; a sum of products is two each."""
    first, second = torch.ones(rows, inner, dtype=dtype), torch.ones(inner, outer, dtype=dtype)
    operations = 2 * rows * inner * outer
    count = max(1, round(_OPERATIONS / operations))

    def run() -> None:
        for _ in range(count):
            torch.mm(first, second)

    return operations * count / _best(run, clock)


def bandwidth(clock: Clock = time.perf_counter) -> float:
    """Bytes a second that memory is read with, the best of a few."""
    values = torch.ones(_READ // _FLOAT)
    return _READ / _best(values.sum, clock)


def decoding_limit(
    size: Size, vocabulary_size: int, lengths: np.ndarray, prompt_tokens: int, group_size: int, rate_of_memory: float
) -> Limit:
    """Of sampling episodes that begin together, one token each at a time, until each has ended.

    The last token of an episode is drawn and never run. What a group begins with is run and projected once, and its
    first tokens are all drawn from that.

    Args:
        size: of the model.
        vocabulary_size: V.
        lengths: tokens of each completion, [B].
        prompt_tokens: of each prompt.
        group_size: episodes that share a prompt, which is run and read once for all of them.
        rate_of_memory: bytes a second.
    """
    steps = np.arange(int(lengths.max()))
    running = (lengths[:, None] > steps).sum(axis=0)  # [T]
    rows = max(1, round(float((running * running).sum() / running.sum())))  # beside the mean token
    groups = len(lengths) // group_size
    prompts, run = groups * prompt_tokens, int(lengths.sum()) - len(lengths)  # tokens
    width = size.d_model
    compute = 2 * (run + groups) * width * vocabulary_size / product_rate(rows, width, vocabulary_size)
    for inner, outer in products(size):
        layers = 2 * size.num_layers * inner * outer
        compute += layers * (
            run / product_rate(rows, inner, outer) + prompts / product_rate(min(prompts, 1024), inner, outer)
        )
    weights = _FLOAT * (12 * size.num_layers * width**2 + width * vocabulary_size)
    a_token = 2 * _FLOAT * size.num_layers * width  # keys and values
    own = float((running * steps).sum())  # of completions
    longest = lengths.reshape(groups, group_size).max(axis=1)
    shared = float((longest - 1).sum()) * prompt_tokens
    return Limit(float(compute), (len(steps) * weights + (own + shared) * a_token) / rate_of_memory)


def update_limit(
    size: Size,
    vocabulary_size: int,
    tokens: int,
    scored: int,
    rows: int = 1024,
    dtype: torch.dtype = torch.float32,
) -> float:
    """Seconds of the products with weights, forward and backward, which is twice forward; attention's are left out.

    Args:
        size: of the model.
        vocabulary_size: V.
        tokens: run through the model.
        scored: tokens that are projected on the vocabulary.
        rows: tokens that a product has at a time.
        dtype: of the weights.
    """

    def rate(inner: int, outer: int) -> float:
        return product_rate(rows, inner, outer, dtype=dtype)

    head = 2 * scored * size.d_model * vocabulary_size / rate(size.d_model, vocabulary_size)
    blocks = sum(2 * size.num_layers * tokens * inner * outer / rate(inner, outer) for inner, outer in products(size))
    return 3 * (head + blocks)


def _best(work: Callable[[], object], clock: Clock) -> float:
    work()
    seconds = []
    for _ in range(_REPEATS):
        start = clock()
        work()
        seconds.append(clock() - start)
    return min(seconds)
