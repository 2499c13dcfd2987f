"""Attention of one new token a row over keys in two places: those of a trunk that rows share, and the row's own.

The trunk's keys are read once for all the rows of a group, in one product, rather than once a row. Stands in for
transformers' `sdpa` while `attending` is entered, and there only where it is sure of what it is asked.
"""

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

_NAME = "textgym_grouped"
_MOST_PADDING = 3  # places of all groups, padded to the largest, for each row
_UNDERSTOOD = {"dropout", "scaling", "is_causal", "position_ids", "use_cache", "cache_position", "output_attentions"}
_feeding = threading.local()
_locks: "weakref.WeakKeyDictionary[PreTrainedModel, threading.RLock]" = weakref.WeakKeyDictionary()


class Grouping(NamedTuple):
    """Rows by the trunk that they begin with; G trunks, at most g rows each.

    In index_select's terms, so that one pass over memory puts every head's rows in order.
    """

    members: Tensor  # int64 [G · kept · g], rows times heads, the first row where a group has fewer
    place: Tensor  # int64 [b · kept], where a head of a row stands in `members`
    num_groups: int  # G
    kept: int  # heads of keys and values


class Parts(NamedTuple):
    """What b rows look at in a layer."""

    keys: Tensor  # [b, heads, C, d]
    values: Tensor
    trunk_keys: Tensor  # [trunks, heads, P, d]
    trunk_values: Tensor
    grouping: Grouping | None
    uniform: bool  # whether every row sees all of it


class Stored(NamedTuple):
    """Keys and values of a layer, of all rows and trunks that are kept."""

    keys: Tensor  # [S, heads, C, d]
    values: Tensor
    trunk_keys: Tensor  # [trunks, heads, P, d]
    trunk_values: Tensor


class View(NamedTuple):
    """Which part of what is stored b rows look at, in every layer."""

    num_rows: int  # b
    rows: Tensor | None  # int64 [b]; None for the first b
    trunk: Tensor  # int64 [b], what each begins with
    seen: int  # positions of its own that any of them looks at
    trunk_seen: int  # the same of its trunk
    grouping: Grouping | None
    uniform: bool  # see `Parts`

    def whole(self, stored: Stored) -> tuple[Tensor, Tensor]:
        """Keys and values [b, heads, P + C, d], those of the trunk copied to each row."""
        own = self._own(stored)
        if not self.trunk_seen:
            return own
        trunks = [trunk[self.trunk, :, : self.trunk_seen] for trunk in (stored.trunk_keys, stored.trunk_values)]
        keys, values = (torch.cat(pair, dim=2) for pair in zip(trunks, own, strict=True))
        return keys, values

    def parts(self, stored: Stored) -> Parts:
        """The same where it lies; without a grouping for its heads, whole."""
        grouping = self.grouping
        if grouping is not None and grouping.kept != stored.keys.shape[1]:
            grouping = None
        keys, values = self.whole(stored) if grouping is None else self._own(stored)
        seen = slice(self.trunk_seen)
        return Parts(
            keys, values, stored.trunk_keys[:, :, seen], stored.trunk_values[:, :, seen], grouping, self.uniform
        )

    def _own(self, stored: Stored) -> tuple[Tensor, Tensor]:
        rows = slice(self.num_rows) if self.rows is None else self.rows  # of a slice a view, no copy
        return stored.keys[rows, :, : self.seen], stored.values[rows, :, : self.seen]


def write(storage: Tensor, states: Tensor, places: Tensor) -> None:
    """Put keys or values where they are kept.

    Args:
        storage: [S, heads, C, d].
        states: [b, heads, q, d].
        places: int64 [b · heads · q], rows of the storage as a matrix: faster than three indices.
    """
    size = states.shape[3]
    storage.view(-1, size).index_copy_(0, places, states.reshape(-1, size))


def grouping(trunk: np.ndarray, base: np.ndarray, kept: int) -> tuple[np.ndarray, np.ndarray, int, int] | None:
    """The fields of a `Grouping`; None where nothing is shared, or padding would cost more than sharing saves.

    Args:
        trunk: int64 [b]; any where a row begins with none.
        base: int64 [b], how many tokens of it a row begins with.
        kept: heads of keys and values.
    """
    rooted, rows = base > 0, len(trunk)
    if not rooted.any():
        return None
    # Rows that begin with none see nothing of a trunk and stand anywhere: spread out, so that no group grows by them.
    if not rooted.all():
        trunk = np.where(rooted, trunk, np.arange(rows) % (trunk[rooted].max() + 1))
    sizes = np.bincount(trunk)
    count, most = len(sizes), sizes.max()
    if count * most > _MOST_PADDING * rows:
        return None
    order = np.argsort(trunk, kind="stable")
    within = np.empty_like(trunk)
    within[order] = np.arange(rows) - (sizes.cumsum() - sizes)[trunk[order]]
    members = np.zeros((count, most), dtype=np.int64)
    members[trunk, within] = np.arange(rows)
    heads = np.arange(kept)
    members = members[:, None] * kept + heads[:, None]  # [G, kept, g]
    place = ((trunk * kept)[:, None] + heads) * most + within[:, None]  # [b, kept]
    return members.ravel(), place.ravel(), count, kept


def takes_parts(model: PreTrainedModel) -> bool:
    """Whether the layers of a model can be made to look at parts."""
    return model.config._attn_implementation in ("sdpa", _NAME)


class Storage(Protocol):
    """What knows where the keys and values of the rows lie that are being fed; `agents.key_values` has one."""

    read_elsewhere: bool  # whether a layer was seen to read what it was given, which then has to be whole

    def parts_of(self, layer_idx: int | None, keys: Tensor) -> Parts | None:
        """What a layer's rows look at, if `keys` are what that layer was just given of it; None otherwise."""
        ...


@contextmanager
def attending(model: PreTrainedModel, storage: Storage) -> Iterator[None]:
    """Let the layers of a model look at what the storage holds by its parts, where they use transformers' `sdpa`."""
    if not takes_parts(model):
        yield
        return
    with _locks.setdefault(model, threading.RLock()):  # other threads may run the model over storage of their own
        _feeding.storage, model.config._attn_implementation = storage, _NAME
        try:
            yield
        finally:
            _feeding.storage, model.config._attn_implementation = None, "sdpa"


def _attention(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """Transformers' interface for attention: [B, heads, q, d] to [B, q, heads, d]."""
    storage: Storage | None = getattr(_feeding, "storage", None)  # of this thread
    unusual = any(argument is not None for name, argument in kwargs.items() if name not in _UNDERSTOOD)
    if storage is not None and query.shape[2] == 1 and attention_mask is not None and not unusual:
        parts = storage.parts_of(getattr(module, "layer_idx", None), key)
        if parts is not None:
            scaling = kwargs.get("scaling")
            scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
            return one_token(query[:, :, 0], attention_mask[:, 0], parts, scaling)[:, None], None
    if storage is not None:
        storage.read_elsewhere = True  # layers share keys, say
    return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)


AttentionInterface.register(_NAME, _attention)
AttentionMaskInterface.register(_NAME, sdpa_mask)


def one_token(query: Tensor, visible: Tensor, parts: Parts, scaling: float) -> Tensor:
    """softmax(q Kᵀ · scaling) V of one query a row, over both parts.

    Args:
        query: [b, H, d].
        visible: bool [b, 1, P + C].
        parts: with heads that divide H.
        scaling: of the scores.

    Returns:
        [b, H, size of a value].
    """
    rows, heads, size = query.shape
    kept = parts.keys.shape[1]
    query = query.reshape(rows, kept, heads // kept, size) * scaling
    scores = torch.matmul(query, parts.keys.transpose(2, 3))  # [b, kept, heads / kept, C]
    if parts.grouping is not None:
        scores = torch.cat([_by_group(query, parts.trunk_keys.transpose(2, 3), parts.grouping), scores], dim=3)
    if not parts.uniform:
        scores = scores.masked_fill_(~visible[:, None], float("-inf"))
    # Half precision would round the sum of the weights.
    weights = scores.softmax(dim=3, dtype=torch.promote_types(scores.dtype, torch.float32)).to(scores.dtype)
    shared = weights.shape[3] - parts.keys.shape[2]
    output = torch.matmul(weights[..., shared:], parts.values)
    if parts.grouping is not None:
        output = output + _by_group(weights[..., :shared], parts.trunk_values, parts.grouping)
    return output.reshape(rows, heads, -1)


def _by_group(rows: Tensor, matrices: Tensor, grouping: Grouping) -> Tensor:
    """Each row, [b, kept, n, x], times the matrix of its group, [trunks, kept, x, y]: [b, kept, n, y]."""
    count, kept, each, inner = rows.shape
    gathered = rows.reshape(count * kept, each, inner).index_select(0, grouping.members)  # [G · kept · g, n, x]
    matrices = matrices[: grouping.num_groups].flatten(0, 1)  # [G · kept, x, y]
    product = torch.bmm(gathered.view(grouping.num_groups * kept, -1, inner), matrices)  # [G · kept, g · n, y]
    return product.view(-1, each, product.shape[2]).index_select(0, grouping.place).view(count, kept, each, -1)
