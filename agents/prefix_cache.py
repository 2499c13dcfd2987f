"""PrefixCache: next-token logits of histories, of which only what is new is run through the model.

Each slot holds one history and its keys and values. A history that goes on from what a slot holds is charged the tokens
that differ: one, for a row that grew by a token. Rows may come in any order, fewer or more than before, twice, or new.
What many of them begin with is kept once, as a trunk. Does not sample, and knows nothing of observations or PAD.
"""

import copy
import threading
from bisect import bisect_left
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from agents.histories import (
    Histories,
    batches_of,
    distinct,
    grown_hashes,
    hashes_of,
    keys_of,
    slots_of,
)
from agents.key_values import Feed, KeyValues
from agents.weights import weights_mark

_NOTHING = -1  # in the table of held tokens; no token
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
        compiled: whether steps of one token a row are compiled, where they are written out (`agents.decoding`).

    Attributes:
        tokens_fed: tokens run through the model so far.
    """

    def __init__(self, model: PreTrainedModel, checksum: bool = False, compiled: bool = False) -> None:
        self.model, self.checksum, self.compiled = model, checksum, compiled
        self.tokens_fed = 0
        self._features = False  # whether they are wanted
        self._lock = threading.RLock()  # rows that are being fed are noted on the storage
        self.clear()

    def __deepcopy__(self, memo: dict[int, Any]) -> "PrefixCache":
        return PrefixCache(copy.deepcopy(self.model, memo), self.checksum, self.compiled)  # it fills again by itself

    def __reduce__(self) -> tuple[Any, ...]:
        return PrefixCache, (self.model, self.checksum, self.compiled)

    def clear(self) -> None:
        """Forget every history, and free the memory."""
        self._storage, self._lengths = self._new_storage(), np.zeros(0, dtype=np.int64)
        self.forget()

    def forget(self) -> None:
        """Forget every history; on a CPU the memory is kept for the next ones."""
        if not self._storage.fits:
            self._storage = self._new_storage()
        elif len(self._lengths):
            self._storage.wipe()
        # Of each of S slots:
        self._tokens = np.full((0, 0), _NOTHING, dtype=np.int64)  # the history that it holds, [S, C]
        self._lengths = np.zeros(0, dtype=np.int64)  # of that, [S]
        self._hashes = np.zeros(0, dtype=np.uint64)  # of that, [S]
        self._trunk = np.zeros(0, dtype=np.int64)  # the trunk that it begins with, [S]
        self._base = np.zeros(0, dtype=np.int64)  # how many tokens of it; 0 where it begins with none
        self._num_trunks = 0
        self._num_first = 0  # slots that the last call used, the first ones
        self._mark: tuple[Any, ...] | None = None

    def _new_storage(self) -> KeyValues:
        return KeyValues(self.model, self.compiled)

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

    def logits_and_features(self, tokens: np.ndarray, lengths: np.ndarray) -> tuple[Tensor, Tensor]:
        """As `logits`, with what the output layer made them from, [N, d]."""
        with self._lock:
            self._features = True
            try:
                both = self.logits(tokens, lengths)
            finally:
                self._features = False
        width = self.model.get_output_embeddings().weight.shape[1]
        return both[:, :-width], both[:, -width:]

    def _logits(self, tokens: np.ndarray, lengths: np.ndarray) -> Tensor:
        self._clear_if_weights_changed()
        histories = Histories(tokens[:, : int(lengths.max())], lengths)
        source = self._grown_from(histories)
        if source is not None:
            return self._grow(histories, source)
        histories, row_of, keys = distinct(histories)
        self._read_common_header(histories)
        source, shared = self._longest_prefixes(histories, keys)
        slots = slots_of(source, histories.lengths - shared == 1)
        order = np.argsort(slots)  # from here on, history k is the one of slot k
        # As many slots as there are rows: equal histories, groups at their start, differ one token later.
        logits = self._extend(histories.take(order), source[order], shared[order], len(row_of))
        return logits[self._storage.to_device(slots[row_of])]

    def _grown_from(self, histories: Histories) -> np.ndarray | None:
        """For each history the slot whose history it is, but for the last token; None unless all are, of one each.

        That is the usual case, and this its short way: slots are found by their hashes, and then compared.
        """
        known = histories.lengths - 1
        width = histories.tokens.shape[1] - 1
        if not 0 < width <= self._tokens.shape[1] or not known.all():
            return None
        order = np.argsort(self._hashes)
        place = np.searchsorted(self._hashes[order], hashes_of(histories.tokens, known))
        source = order[np.minimum(place, len(order) - 1)]
        same = (self._tokens[source, :width] == histories.tokens[:, :width]) | (np.arange(width) >= known[:, None])
        if not (self._lengths[source] == known).all() or not same.all() or np.bincount(source).max() > 1:
            return None
        return source

    def _grow(self, histories: Histories, source: np.ndarray) -> Tensor:
        """Run the last token of each history, whose others are what its slot holds; logits [n, V']."""
        num_rows, lengths = len(source), histories.lengths
        slots, beyond = source, source >= num_rows
        if beyond.any():  # to where rows have been dropped
            slots = source.copy()
            slots[beyond] = np.setdiff1d(np.arange(num_rows), source)
            self._move(source[beyond], slots[beyond])
        if self._num_trunks and num_rows < self._num_first:
            self._root(self._trunk[:num_rows].copy(), self._base[:num_rows].copy())
        self._num_first = num_rows
        own = self._lengths - self._base
        self._make_room(num_rows, histories.tokens.shape[1])
        self._storage.reserve(num_rows, int(own[:num_rows].max()) + 1, int(own.max()))
        last = histories.tokens[np.arange(num_rows), lengths - 1]
        self._tokens[slots, lengths - 1] = last
        self._hashes[slots] = grown_hashes(self._hashes[slots], last, lengths)
        self._lengths[slots] = lengths
        in_order = np.array_equal(slots, np.arange(num_rows))
        order = slice(None) if in_order else np.argsort(slots)
        logits = self._feed(None, last[order, None], lengths[order] - 1, np.ones(num_rows, dtype=int))
        return logits if in_order else logits[self._storage.to_device(slots)]

    def _move(self, source: np.ndarray, target: np.ndarray) -> None:
        """Let some slots hold what others do."""
        self._storage.copy_rows(source, target, int((self._lengths - self._base)[source].max()))
        for held in (self._tokens, self._lengths, self._hashes, self._trunk, self._base):
            held[target] = held[source]

    def _clear_if_weights_changed(self) -> None:
        mark = weights_mark(self.model, self.checksum)
        if mark != self._mark:
            self.forget()
        self._mark = mark

    def _longest_prefixes(self, histories: Histories, keys: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
        """For each history the slot that shares most with it, -1 for none, and how many tokens of that are of use.

        In the order of a dictionary, the slot that shares most with a history stands right before or right after it.
        """
        numbers = np.flatnonzero(self._lengths)
        if not len(numbers):
            return np.full(len(keys), -1), np.zeros(len(keys), dtype=np.int64)
        held = keys_of(Histories(self._tokens[numbers], self._lengths[numbers]))
        order = sorted(range(len(held)), key=held.__getitem__)
        held, numbers = [held[place] for place in order], numbers[order]
        place = np.array([bisect_left(held, key) for key in keys])
        before, after = numbers[np.maximum(place - 1, 0)], numbers[np.minimum(place, len(numbers) - 1)]
        shared_before, shared_after = self._shared(histories, before), self._shared(histories, after)
        source = np.where(shared_before >= shared_after, before, after)
        # The last token is always run: its logits are what is asked for.
        shared = np.minimum(np.maximum(shared_before, shared_after), histories.lengths - 1)
        return np.where(shared > 0, source, -1), shared

    def _shared(self, histories: Histories, slots: np.ndarray) -> np.ndarray:
        """How many first tokens each history shares with a slot, int64 [n]."""
        width = min(self._tokens.shape[1], histories.tokens.shape[1])
        differ = self._tokens[slots, :width] != histories.tokens[:, :width]
        shared = np.where(differ.any(axis=1), differ.argmax(axis=1), width)
        return np.minimum(shared, histories.lengths)

    def _read_common_header(self, histories: Histories) -> None:
        """Where nothing is known yet, run what all the histories begin with once."""
        if self._lengths.any() or len(histories.lengths) < 2:
            return
        differ = (histories.tokens != histories.tokens[0]).any(axis=0)
        common = int(differ.argmax()) if differ.any() else len(differ)
        common = min(common, int(histories.lengths.min()) - 1)
        if common >= _WORTH_SHARING:
            header = Histories(histories.tokens[:1, :common], np.array([common]))
            self._extend(header, np.array([-1]), np.array([0]))

    def _extend(self, histories: Histories, source: np.ndarray, shared: np.ndarray, num_slots: int = 1) -> Tensor:
        """Bring what is of use to each slot, and run what is new; logits [n, V'] in the order of slots.

        There will be room for at least `num_slots`.
        """
        trunk, base = self._rooted(source, shared)
        counts, own = histories.lengths - shared, shared - base
        batches = list(batches_of(counts))
        # Past its own count a row is written to as well, up to that of the longest beside it.
        needed = max(int(own[rows].max() + counts[rows].max()) for rows in batches)
        self._storage.reserve(max(len(source), num_slots), needed, int((self._lengths - self._base).max(initial=0)))
        self._remember(histories, shared)
        moved = np.flatnonzero((source != np.arange(len(source))) & (own > 0))
        if len(moved):
            self._storage.copy_rows(source[moved], moved, int(own[moved].max()))
        self._root(trunk, base)
        self._num_first = len(source)
        parts = [self._run(histories, rows, shared[rows], counts[rows]) for rows in batches]
        self._remember(histories, histories.lengths)
        order = np.argsort(np.concatenate(batches))
        return torch.cat(parts)[self._storage.to_device(order)]

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
        self._storage.add_trunks(self._num_trunks, rows, self._trunk[rows], old, lengths)
        trunk[forks] = self._num_trunks + np.searchsorted(new, which[forks])
        base[forks] = shared[forks]
        self._num_trunks += len(new)
        return trunk, base

    def _root(self, trunk: np.ndarray, base: np.ndarray) -> None:
        """Note what the first slots begin with; trunks that none of them begins with are given up."""
        used = np.zeros(self._num_trunks, dtype=bool)
        used[trunk[base > 0]] = True
        count = int(used.sum())
        others = np.arange(len(trunk), len(self._trunk))
        rooted = others[self._base[others] > 0]
        lost = rooted[~used[self._trunk[rooted]]]
        self._tokens[lost], self._lengths[lost], self._hashes[lost], self._base[lost] = _NOTHING, 0, 0, 0
        self._trunk[: len(trunk)], self._base[: len(base)] = trunk, base
        number = np.arange(self._num_trunks)
        for old, new in zip(
            (count + np.flatnonzero(used[count:])).tolist(), np.flatnonzero(~used[:count]).tolist(), strict=True
        ):
            self._storage.move_trunk(old, new)
            number[old] = new
        self._num_trunks = count
        self._trunk = np.where(self._base > 0, number[self._trunk], 0) if len(number) else self._trunk

    def _run(self, histories: Histories, rows: np.ndarray, first: np.ndarray, counts: np.ndarray) -> Tensor:
        columns = first[:, None] + np.arange(counts.max())
        tokens = histories.tokens[rows[:, None], np.minimum(columns, histories.lengths[rows, None] - 1)]
        # The first slots by no number: their keys and values are looked at where they are, not copied.
        in_order = np.array_equal(rows, np.arange(len(rows)))
        return self._feed(None if in_order else rows, tokens, first, counts)

    def _feed(self, rows: np.ndarray | None, tokens: np.ndarray, first: np.ndarray, counts: np.ndarray) -> Tensor:
        """See `Feed`."""
        self.tokens_fed += int(counts.sum())
        fed = slice(len(tokens)) if rows is None else rows
        return self._storage.feed(Feed(rows, tokens, first, counts, self._trunk[fed], self._base[fed]), self._features)

    def _remember(self, histories: Histories, counts: np.ndarray) -> None:
        """Note that the first slots hold so many tokens of their histories, and nothing else."""
        num_rows, width = histories.tokens.shape
        self._make_room(num_rows, width)
        self._tokens[:num_rows, width:] = _NOTHING
        self._tokens[:num_rows, :width] = np.where(np.arange(width) < counts[:, None], histories.tokens, _NOTHING)
        self._lengths[:num_rows], self._hashes[:num_rows] = counts, hashes_of(histories.tokens, counts)

    def _make_room(self, num_rows: int, width: int) -> None:
        """Let there be so many slots, and so many tokens in each: twice as many as before, that growth cost little."""
        slots, wide = self._tokens.shape
        if num_rows <= slots and width <= wide:
            return
        added = max(0, num_rows - slots)
        more = max(width, 2 * wide) - wide if width > wide else 0
        self._tokens = np.pad(self._tokens, ((0, added), (0, more)), constant_values=_NOTHING)
        for name in ("_lengths", "_hashes", "_trunk", "_base"):
            setattr(self, name, np.pad(getattr(self, name), (0, added)))
