"""PrefixCache: next-token logits of histories, of which only what is new is run through the model.

Each slot holds one history and its keys and values. A history that goes on from what a slot holds is charged the tokens
that differ: one, for a row that grew by a token. Rows may come in any order, fewer or more than before, twice, or new.
Does not sample, and knows nothing of observations or PAD.
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

from agents.key_values import KeyValues
from agents.weights import weights_mark

_NOTHING = -1  # in the table of held tokens; no token
_ORDERED = np.dtype(">u4")  # the bytes of such numbers are in order where the numbers are
_BYTES = _ORDERED.itemsize


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
        self._held: list[bytes] = []  # the history of each slot
        self._tokens = np.full((0, 0), _NOTHING, dtype=np.int64)  # the same, [S, C]
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
        histories, row_of = _distinct(tokens, lengths)
        source, shared = self._longest_prefixes(histories)
        slots = _slots(source, histories.lengths - shared == 1)
        order = np.argsort(slots)  # from here on, history k is the one of slot k
        histories = histories.take(order)
        logits = self._extend(histories, source[order], shared[order])
        return logits[torch.as_tensor(slots[row_of], device=logits.device)]

    def _clear_if_weights_changed(self) -> None:
        mark = weights_mark(self.model, self.checksum)
        if self._mark is not None and mark != self._mark:
            self.clear()
        self._mark = mark

    def _longest_prefixes(self, histories: "_Histories") -> tuple[np.ndarray, np.ndarray]:
        """For each history the slot that shares most with it, -1 for none, and how many tokens of that are of use.

        In the order of a dictionary, the slot that shares most with a history stands right before or right after it.
        """
        slots = sorted((slot for slot, held in enumerate(self._held) if held), key=self._held.__getitem__)
        if not slots:
            return np.full(len(histories.keys), -1), np.zeros(len(histories.keys), dtype=np.int64)
        held, numbers = [self._held[slot] for slot in slots], np.array(slots)
        place = np.array([bisect_left(held, key) for key in histories.keys])
        before, after = numbers[np.maximum(place - 1, 0)], numbers[np.minimum(place, len(slots) - 1)]
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

    def _extend(self, histories: "_Histories", source: np.ndarray, shared: np.ndarray) -> Tensor:
        """Bring what is of use to each slot, and run what is new; logits [n, V'] in the order of slots."""
        counts = histories.lengths - shared
        batches = list(_batches(counts))
        # Past its own count a row is written to as well, up to that of the longest beside it.
        self._storage.reserve(len(source), max(int(shared[rows].max() + counts[rows].max()) for rows in batches))
        self._remember(histories, shared)
        moved = np.flatnonzero((source != np.arange(len(source))) & (shared > 0))
        if len(moved):
            source_rows, rows = self._to_device(source[moved]), self._to_device(moved)
            self._storage.copy_rows(source_rows, rows, int(shared[moved].max()))
        parts = [self._feed(histories, rows, shared[rows], counts[rows]) for rows in batches]
        self._remember(histories, histories.lengths)
        order = np.argsort(np.concatenate(batches))
        return torch.cat(parts)[self._to_device(order)]

    def _feed(self, histories: "_Histories", rows: np.ndarray, first: np.ndarray, counts: np.ndarray) -> Tensor:
        columns = first[:, None] + np.arange(counts.max())
        tokens = histories.tokens[rows[:, None], np.minimum(columns, histories.lengths[rows, None] - 1)]
        self.tokens_fed += int(counts.sum())
        # The first slots as a slice: their keys and values are looked at where they are, not copied.
        in_order = np.array_equal(rows, np.arange(len(rows)))
        return self._storage.feed(
            self.model,
            self._to_device(tokens),
            slice(0, len(rows)) if in_order else self._to_device(rows),
            self._to_device(first),
            self._to_device(counts),
        )

    def _remember(self, histories: "_Histories", counts: np.ndarray) -> None:
        """Note that the first slots hold so many tokens of their histories, and nothing else."""
        num_rows, width = histories.tokens.shape
        if num_rows > self._tokens.shape[0] or width > self._tokens.shape[1]:
            shape = tuple(np.maximum(self._tokens.shape, histories.tokens.shape))
            table = np.full(shape, _NOTHING)
            table[: self._tokens.shape[0], : self._tokens.shape[1]] = self._tokens
            self._tokens = table
            self._held += [b""] * (len(table) - len(self._held))
        self._tokens[:num_rows] = _NOTHING
        self._tokens[:num_rows, :width] = np.where(np.arange(width) < counts[:, None], histories.tokens, _NOTHING)
        self._held[:num_rows] = [key[: _BYTES * n] for key, n in zip(histories.keys, counts.tolist(), strict=True)]

    def _to_device(self, array: np.ndarray) -> Tensor:
        return torch.as_tensor(array, device=self.model.device)


class _Histories(NamedTuple):
    """Histories that differ from one another."""

    tokens: np.ndarray  # int64 [n, L]
    lengths: np.ndarray  # int64 [n]
    keys: list[bytes]  # in the order of which a history stands right before those that go on from it

    def take(self, order: np.ndarray) -> "_Histories":
        """The same in another order."""
        return _Histories(self.tokens[order], self.lengths[order], [self.keys[place] for place in order])


def _distinct(tokens: np.ndarray, lengths: np.ndarray) -> tuple[_Histories, np.ndarray]:
    """The histories, each once, and which of them each row is, int64 [N]."""
    tokens = tokens[:, : int(lengths.max())]
    encoded = np.ascontiguousarray(tokens, dtype=_ORDERED)
    keys = [row[:length].tobytes() for row, length in zip(encoded, lengths.tolist(), strict=True)]
    places: dict[bytes, int] = {}
    row_of = np.array([places.setdefault(key, len(places)) for key in keys])
    first = np.unique(row_of, return_index=True)[1]
    return _Histories(tokens[first], lengths[first], list(places)), row_of


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
