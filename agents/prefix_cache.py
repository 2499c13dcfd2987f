"""PrefixCache: next-token logits of histories, of which only what is new is run through the model.

Each slot holds one history and its keys and values. A history that goes on from what a slot holds is charged the tokens
that differ: one, for a row that grew by a token. Rows may come in any order, fewer or more than before, twice, or new.
What many of them begin with is kept once, as a trunk. Does not sample, and knows nothing of observations or PAD.
"""

import copy
import threading
from bisect import bisect_left
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from agents.key_values import Feed, KeyValues
from agents.weights import weights_mark

_NOTHING = -1  # in the table of held tokens; no token
_ORDERED = np.dtype(">u4")  # the bytes of such numbers are in order where the numbers are
_FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd, so that its powers never vanish
_WORTH_SHARING = 16  # tokens; fewer are copied to each row


class PrefixCache:
    """Keys and values of histories seen, for one model.

    Whoever owns a cache clears it when the weights change. Most changes are noticed and clear it too: those that move
    a parameter's version or address, and with `checksum` others.

    Args:
        model: the language model.
        checksum: read all weights at every call, so that a change that leaves no other trace is noticed: fused
            optimizers and writes through `.data`. It costs what reading the weights once does. What it can miss is a
            change of less than the rounding of a weighted sum of the weights.

    Attributes:
        tokens_fed: tokens run through the model so far.
    """

    def __init__(self, model: PreTrainedModel, checksum: bool = False) -> None:
        self.model, self.checksum = model, checksum
        self.tokens_fed = 0
        self._lock = threading.RLock()  # rows that are being fed are noted on the storage
        self.clear()

    def __deepcopy__(self, memo: dict[int, Any]) -> "PrefixCache":
        return PrefixCache(copy.deepcopy(self.model, memo), self.checksum)  # it fills again by itself

    def __reduce__(self) -> tuple[Any, ...]:
        return PrefixCache, (self.model, self.checksum)

    def clear(self) -> None:
        """Forget every history, and free the memory."""
        self._storage = KeyValues()
        # Of each of S slots:
        self._tokens = np.full((0, 0), _NOTHING, dtype=np.int64)  # the history that it holds, [S, C]
        self._lengths = np.zeros(0, dtype=np.int64)  # of that, [S]
        self._hashes = np.zeros(0, dtype=np.uint64)  # of that, [S]
        self._trunk = np.zeros(0, dtype=np.int64)  # the trunk that it begins with, [S]
        self._base = np.zeros(0, dtype=np.int64)  # how many tokens of it; 0 where it begins with none
        self._num_trunks = 0
        self._mark: tuple[Any, ...] | None = None

    def logits(self, tokens: np.ndarray, lengths: np.ndarray) -> Tensor:
        """Logits of the token after each history.

        Args:
            tokens: int64 [N, L], histories of ids that the model has embeddings for; past its length, anything.
            lengths: int64 [N], at least 1.

        Returns:
            [N, V'], without gradient.
        """
        # Tensors of inference mode could not be written to outside it, where the next call may come from.
        with self._lock, torch.inference_mode(False), torch.no_grad():
            try:
                return self._logits(tokens, lengths)
            except BaseException:  # an interrupt or a lack of memory may have come in the middle of a copy
                self.clear()
                raise

    def _logits(self, tokens: np.ndarray, lengths: np.ndarray) -> Tensor:
        self._clear_if_weights_changed()
        tokens = tokens[:, : int(lengths.max())]
        histories, row_of = _Histories(tokens, lengths), np.arange(len(tokens))
        source = self._grown_from(histories)
        if source is not None:
            shared = lengths - 1
        else:
            histories, row_of, keys = _distinct(histories)
            self._read_common_header(histories)
            source, shared = self._longest_prefixes(histories, keys)
        slots = _slots(source, histories.lengths - shared == 1)
        order = np.argsort(slots)  # from here on, history k is the one of slot k
        logits = self._extend(histories.take(order), source[order], shared[order])
        return logits[torch.as_tensor(slots[row_of], device=logits.device)]

    def _grown_from(self, histories: "_Histories") -> np.ndarray | None:
        """For each history the slot whose history it is, but for the last token; None unless all are, of one each.

        That is the usual case, and this its short way: slots are found by their hashes, and then compared.
        """
        known = histories.lengths - 1
        width = histories.tokens.shape[1] - 1
        if not 0 < width <= self._tokens.shape[1] or not known.all():
            return None
        order = np.argsort(self._hashes)
        place = np.searchsorted(self._hashes[order], _hashes(histories.tokens, known))
        source = order[np.minimum(place, len(order) - 1)]
        same = (self._tokens[source, :width] == histories.tokens[:, :width]) | (np.arange(width) >= known[:, None])
        if not (self._lengths[source] == known).all() or not same.all() or np.bincount(source).max() > 1:
            return None
        return source

    def _clear_if_weights_changed(self) -> None:
        mark = weights_mark(self.model, self.checksum)
        if self._mark is not None and mark != self._mark:
            self.clear()
        self._mark = mark

    def _longest_prefixes(self, histories: "_Histories", keys: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
        """For each history the slot that shares most with it, -1 for none, and how many tokens of that are of use.

        In the order of a dictionary, the slot that shares most with a history stands right before or right after it.
        """
        numbers = np.flatnonzero(self._lengths)
        if not len(numbers):
            return np.full(len(keys), -1), np.zeros(len(keys), dtype=np.int64)
        held = _keys(_Histories(self._tokens[numbers], self._lengths[numbers]))
        order = sorted(range(len(held)), key=held.__getitem__)
        held, numbers = [held[place] for place in order], numbers[order]
        place = np.array([bisect_left(held, key) for key in keys])
        before, after = numbers[np.maximum(place - 1, 0)], numbers[np.minimum(place, len(numbers) - 1)]
        shared_before, shared_after = self._shared(histories, before), self._shared(histories, after)
        source = np.where(shared_before >= shared_after, before, after)
        # The last token is always run: its logits are what is asked for.
        shared = np.minimum(np.maximum(shared_before, shared_after), histories.lengths - 1)
        return np.where(shared > 0, source, -1), shared

    def _shared(self, histories: "_Histories", slots: np.ndarray) -> np.ndarray:
        """How many first tokens each history shares with a slot, int64 [n]."""
        width = min(self._tokens.shape[1], histories.tokens.shape[1])
        differ = self._tokens[slots, :width] != histories.tokens[:, :width]
        shared = np.where(differ.any(axis=1), differ.argmax(axis=1), width)
        return np.minimum(shared, histories.lengths)

    def _read_common_header(self, histories: "_Histories") -> None:
        """Where nothing is known yet, run what all the histories begin with once."""
        if self._storage.num_rows or len(histories.lengths) < 2:
            return
        differ = (histories.tokens != histories.tokens[0]).any(axis=0)
        common = int(differ.argmax()) if differ.any() else len(differ)
        common = min(common, int(histories.lengths.min()) - 1)
        if common >= _WORTH_SHARING:
            header = _Histories(histories.tokens[:1, :common], np.array([common]))
            self._extend(header, np.array([-1]), np.array([0]))

    def _extend(self, histories: "_Histories", source: np.ndarray, shared: np.ndarray) -> Tensor:
        """Bring what is of use to each slot, and run what is new; logits [n, V'] in the order of slots."""
        trunk, base = self._rooted(source, shared)
        counts, own = histories.lengths - shared, shared - base
        batches = list(_batches(counts))
        # Past its own count a row is written to as well, up to that of the longest beside it.
        self._storage.reserve(len(source), max(int(own[rows].max() + counts[rows].max()) for rows in batches))
        self._remember(histories, shared)
        moved = np.flatnonzero((source != np.arange(len(source))) & (own > 0))
        if len(moved):
            source_rows, rows = self._to_device(source[moved]), self._to_device(moved)
            self._storage.copy_rows(source_rows, rows, int(own[moved].max()))
        self._root(trunk, base)
        parts = [self._feed(histories, rows, shared[rows], counts[rows]) for rows in batches]
        self._remember(histories, histories.lengths)
        order = np.argsort(np.concatenate(batches))
        return torch.cat(parts)[self._to_device(order)]

    def _rooted(self, source: np.ndarray, shared: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The trunk that each history will begin with, and how many of its tokens, int64 [n] each.

        That of its source, unless several histories share much else with one: what they share becomes a trunk.
        """
        trunk, base = np.zeros_like(source), np.zeros_like(source)
        known = source >= 0
        trunk[known] = self._trunk[source[known]]
        base[known] = np.minimum(self._base[source[known]], shared[known])
        slots, which, counts = np.unique(source, return_inverse=True, return_counts=True)
        forks = known & (counts[which] > 1) & (shared - base >= _WORTH_SHARING)
        if 2 * forks.sum() < len(source):  # else reading the others' keys twice, which they do not share, costs more
            return trunk, base
        new = np.unique(which[forks])
        lengths = np.array([shared[forks & (which == number)].max() for number in new])
        rows = slots[new]
        old = np.minimum(self._base[rows], lengths)
        device = [self._to_device(array) for array in (rows, self._trunk[rows], old)]
        self._storage.add_trunks(self._num_trunks, *device, lengths)
        trunk[forks] = self._num_trunks + np.searchsorted(new, which[forks])
        base[forks] = shared[forks]
        self._num_trunks += len(new)
        return trunk, base

    def _root(self, trunk: np.ndarray, base: np.ndarray) -> None:
        """Note what the first slots begin with; trunks that none of them begins with are given up."""
        used = np.unique(trunk[base > 0])
        others = np.arange(len(trunk), len(self._trunk))
        for slot in others[(self._base[others] > 0) & ~np.isin(self._trunk[others], used)]:
            self._tokens[slot], self._lengths[slot], self._hashes[slot], self._base[slot] = _NOTHING, 0, 0, 0
        self._trunk[: len(trunk)], self._base[: len(base)] = trunk, base
        free = np.setdiff1d(np.arange(len(used)), used)
        number = np.zeros(self._num_trunks, dtype=np.int64)
        number[used] = used
        for old, new in zip(used[used >= len(used)].tolist(), free.tolist(), strict=True):
            self._storage.move_trunk(old, new)
            number[old] = new
        self._num_trunks = len(used)
        self._trunk = np.where(self._base > 0, number[self._trunk], 0) if len(number) else self._trunk

    def _feed(self, histories: "_Histories", rows: np.ndarray, first: np.ndarray, counts: np.ndarray) -> Tensor:
        columns = first[:, None] + np.arange(counts.max())
        tokens = histories.tokens[rows[:, None], np.minimum(columns, histories.lengths[rows, None] - 1)]
        self.tokens_fed += int(counts.sum())
        # The first slots as a slice: their keys and values are looked at where they are, not copied.
        in_order = np.array_equal(rows, np.arange(len(rows)))
        numbers = slice(0, len(rows)) if in_order else self._to_device(rows)
        arrays = tokens, first, counts, self._trunk[rows], self._base[rows]
        tokens, *rest = (self._to_device(array) for array in arrays)
        return self._storage.feed(self.model, Feed(numbers, tokens, *rest))

    def _remember(self, histories: "_Histories", counts: np.ndarray) -> None:
        """Note that the first slots hold so many tokens of their histories, and nothing else."""
        num_rows, width = histories.tokens.shape
        added = num_rows - len(self._lengths)
        if added > 0 or width > self._tokens.shape[1]:
            # Twice as wide as before at least, so that growth copies little in all.
            wide = max(width, 2 * self._tokens.shape[1]) if width > self._tokens.shape[1] else self._tokens.shape[1]
            table = np.full((max(num_rows, len(self._lengths)), wide), _NOTHING)
            table[: self._tokens.shape[0], : self._tokens.shape[1]] = self._tokens
            self._tokens = table
        if added > 0:
            for name in ("_lengths", "_hashes", "_trunk", "_base"):
                setattr(self, name, np.pad(getattr(self, name), (0, added)))
        self._tokens[:num_rows, width:] = _NOTHING
        self._tokens[:num_rows, :width] = np.where(np.arange(width) < counts[:, None], histories.tokens, _NOTHING)
        self._lengths[:num_rows], self._hashes[:num_rows] = counts, _hashes(histories.tokens, counts)

    def _to_device(self, array: np.ndarray) -> Tensor:
        return torch.as_tensor(array, device=self.model.device)


class _Histories(NamedTuple):
    """Histories that differ from one another."""

    tokens: np.ndarray  # int64 [n, L]
    lengths: np.ndarray  # int64 [n]

    def take(self, order: np.ndarray) -> "_Histories":
        """The same in another order."""
        return _Histories(self.tokens[order], self.lengths[order])


def _distinct(histories: _Histories) -> tuple[_Histories, np.ndarray, list[bytes]]:
    """The histories, each once, which of them each row is, int64 [N], and their keys."""
    places: dict[bytes, int] = {}
    row_of = np.array([places.setdefault(key, len(places)) for key in _keys(histories)])
    return histories.take(np.unique(row_of, return_index=True)[1]), row_of, list(places)


def _keys(histories: _Histories) -> list[bytes]:
    """Bytes in the order of which a history stands right before those that go on from it."""
    encoded = np.ascontiguousarray(histories.tokens, dtype=_ORDERED)
    return [row[:length].tobytes() for row, length in zip(encoded, histories.lengths.tolist(), strict=True)]


def _hashes(tokens: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Of the first tokens of each row, uint64 [n]: Σ_t (x_t + 1) F^t; of no tokens, 0."""
    width = tokens.shape[1]
    powers = np.cumprod(np.full(width, _FACTOR))
    terms = np.where(np.arange(width) < lengths[:, None], tokens + 1, 0).astype(np.uint64)
    return terms @ powers


def _slots(source: np.ndarray, grows: np.ndarray) -> np.ndarray:
    """A slot for each history, a permutation of 0..n-1: those that grow first, as many as can where their source is."""
    slots = np.full(len(source), -1)
    for chosen, low, high in ((grows, 0, grows.sum()), (~grows, grows.sum(), len(source))):
        stay = np.flatnonzero(chosen & (source >= low) & (source < high))
        stay = stay[np.unique(source[stay], return_index=True)[1]]  # one of those that share a source
        slots[stay] = source[stay]
        free = np.setdiff1d(np.arange(low, high), source[stay])
        slots[chosen & (slots < 0)] = free
    return slots


def _batches(counts: np.ndarray) -> Iterator[np.ndarray]:
    """Rows that are run together, int64 [b]: those with one token, and others of like number, to pad little."""
    order = np.argsort(counts, kind="stable")
    first = 0
    while first < len(order):
        least = counts[order[first]]
        within = counts[order] <= (1 if least == 1 else 2 * least)
        end = int(within.sum())
        yield order[first:end]
        first = end
