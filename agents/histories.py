"""Histories as arrays: told apart, in the order of a dictionary, hashed, and given slots. Pure functions over numpy."""

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np

_ORDERED = np.dtype(">u4")  # the bytes of such numbers are in order where the numbers are
_FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd, so that its powers never vanish


class Histories(NamedTuple):
    """Histories that differ from one another."""

    tokens: np.ndarray  # int64 [n, L]
    lengths: np.ndarray  # int64 [n]

    def take(self, order: np.ndarray) -> "Histories":
        """The same in another order."""
        return Histories(self.tokens[order], self.lengths[order])


def distinct(histories: Histories) -> tuple[Histories, np.ndarray, list[bytes]]:
    """The histories, each once, which of them each row is, int64 [N], and their keys."""
    places: dict[bytes, int] = {}
    row_of = np.array([places.setdefault(key, len(places)) for key in keys_of(histories)])
    return histories.take(np.unique(row_of, return_index=True)[1]), row_of, list(places)


def keys_of(histories: Histories) -> list[bytes]:
    """Bytes in the order of which a history stands right before those that go on from it."""
    encoded = np.ascontiguousarray(histories.tokens, dtype=_ORDERED)
    return [row[:length].tobytes() for row, length in zip(encoded, histories.lengths.tolist(), strict=True)]


class Nested(NamedTuple):
    """Which of N histories go on from which others.

    Every history is the beginning of `rows[sequence]`, one that no other goes on from; `rank` counts those of one.
    """

    rows: np.ndarray  # int64 [S], of the N
    sequence: np.ndarray  # int64 [N], into `rows`
    rank: np.ndarray  # int64 [N], from 0 in each sequence


def nested(histories: Histories) -> Nested:
    """Find, for each of N histories, which may be equal too, the longest one that goes on from it.

    Those that go on from a history stand right behind it in the order of a dictionary, so that it goes on in the next
    one or in none.

    >>> found = nested(Histories(np.array([[1, 9], [1, 2], [3, 9], [1, 2]]), np.array([1, 2, 1, 2])))
    >>> found.rows[found.sequence].tolist(), found.rank.tolist()
    ([3, 3, 2, 3], [0, 1, 0, 2])
    """
    keys = keys_of(histories)
    order = sorted(range(len(keys)), key=keys.__getitem__)
    ends = [not keys[after].startswith(keys[place]) for place, after in zip(order, order[1:], strict=False)] + [True]
    end, in_order = np.array(ends), np.array(order)
    number = np.cumsum(end) - end  # of the sequence that each belongs to, in the order of a dictionary
    first = np.concatenate([[0], np.flatnonzero(end)[:-1] + 1])
    sequence, rank = np.empty_like(in_order), np.empty_like(in_order)
    sequence[in_order], rank[in_order] = number, np.arange(len(order)) - first[number]
    return Nested(in_order[end], sequence, rank)


@lru_cache(maxsize=8)
def _powers(width: int) -> np.ndarray:
    return np.cumprod(np.full(width, _FACTOR))  # modulo 2^64


def hashes_of(tokens: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Of the first tokens of each row, uint64 [n]: Σ_t (x_t + 1) F^t; of no tokens, 0."""
    width = tokens.shape[1]
    terms = np.where(np.arange(width) < lengths[:, None], tokens + 1, 0).astype(np.uint64)
    return terms @ _powers(width)


def grown_hashes(hashes: np.ndarray, tokens: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The hashes of histories with one token more, uint64 [n].

    Args:
        hashes: of the histories, uint64 [n].
        tokens: the new one of each, int64 [n].
        lengths: with it, int64 [n].
    """
    return hashes + (tokens + 1).astype(np.uint64) * _powers(int(lengths.max()))[lengths - 1]


def slots_of(source: np.ndarray, grows: np.ndarray) -> np.ndarray:
    """A slot for each history, a permutation of 0..n-1: those that grow first, as many as can where their source is."""
    slots = np.full(len(source), -1)
    for chosen, low, high in ((grows, 0, grows.sum()), (~grows, grows.sum(), len(source))):
        stay = np.flatnonzero(chosen & (source >= low) & (source < high))
        stay = stay[np.unique(source[stay], return_index=True)[1]]  # one of those that share a source
        slots[stay] = source[stay]
        free = np.setdiff1d(np.arange(low, high), source[stay])
        slots[chosen & (slots < 0)] = free
    return slots


def batches_of(counts: np.ndarray) -> Iterator[np.ndarray]:
    """Rows that are run together, int64 [b]: those with one token, and others of like number, to pad little."""
    order = np.argsort(counts, kind="stable")
    first = 0
    while first < len(order):
        least = counts[order[first]]
        within = counts[order] <= (1 if least == 1 else 2 * least)
        end = int(within.sum())
        yield order[first:end]
        first = end
