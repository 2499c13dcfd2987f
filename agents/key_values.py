"""Keys and values of many histories that stand at different positions, under any Hugging Face causal language model.

A row may begin with the first tokens of a trunk, which is stored once for all the rows that share it. Storage and
arithmetic alone: which tokens a row holds is known to `agents.prefix_cache`.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin

from agents.decoding import compiled, step_of
from agents.grouped_attention import Grouping, Parts, Stored, View, attending, grouping, takes_parts, write
from agents.models import forward_parameters, logits_at, max_length_of
from agents.value_head import logits_and_features_at

Reader = Callable[..., tuple[Tensor, ...]]
_BLOCK = 32  # positions that storage grows by at least


class Feed(NamedTuple):
    """Tokens that b rows go on with; positions are those of the whole history, the trunk's tokens included."""

    rows: np.ndarray | None  # int64 [b]; None for the first b
    tokens: np.ndarray  # int64 [b, q]; past a row's own count, anything
    first: np.ndarray  # int64 [b], tokens that the row holds already
    meant: np.ndarray  # int64 [b], how many of its q tokens count, at least 1
    trunk: np.ndarray  # int64 [b], the trunk that the row begins with; any where it begins with none
    base: np.ndarray  # int64 [b], how many first tokens of the trunk are the row's; 0 for none


class KeyValues(Cache):
    """Storage for S rows of C positions and for trunks, for each layer of a model; all grow as needed.

    What stands at a position that no row has reached is never seen by a token, and is finite.

    Args:
        model: the language model; it stays where it is.
        compiled: whether steps that are written out are compiled, see `agents.decoding.compiled`.
    """

    def __init__(self, model: PreTrainedModel, compiled: bool = False) -> None:
        super().__init__(layers=[])
        self.compiled = compiled
        self.model, self.device, self.most = model, model.device, max_length_of(model)  # each slow to ask for
        self.name, self.format = _cache_name(model), _format(model)
        self.num_rows = self.length = self.num_trunks = self.trunk_length = 0
        self.view = View(0, None, torch.zeros(0, dtype=torch.long), 0, 0, None, False)  # of the rows that are fed
        self.places = torch.zeros(0, 0, dtype=torch.long)  # of the tokens fed, in the row's own storage, [b, q]
        self.written: Tensor | None = None  # the same, as rows of a matrix that holds every position of every head
        self.read_elsewhere = False  # whether attention was seen to read what `update` returns

    def feed(self, feed: Feed, features: bool = False) -> Tensor:
        """Run the next tokens of some rows, and keep their keys and values.

        Args:
            feed: the tokens.
            features: whether what the output layer reads is wanted too.

        Returns:
            [b, V'] logits after the last token of each row; with features [b, V' + d], these behind.
        """
        width = feed.tokens.shape[1]
        single = width == 1 and takes_parts(self.model)
        step = step_of(self.model) if single and self.layers else None
        seen, trunk_seen = int((feed.first - feed.base).max()) + width, int(feed.base.max())
        columns = [feed.tokens.T, feed.first, feed.meant - 1, feed.base, feed.trunk]
        *tokens, first, last, base, trunk = self.to_device(np.vstack(columns)).unbind()  # in one transfer
        positions = first[:, None] + torch.arange(width, device=self.device)
        self.places, self.written = positions - base[:, None], None
        alike = (feed.first - feed.base == seen - width) & (feed.base == trunk_seen)
        layers = self._kept()
        found = grouping(feed.trunk, feed.base, layers[0].keys.shape[1]) if single and layers else None
        self.view = View(
            len(first),
            None if feed.rows is None else self.to_device(feed.rows),
            trunk,
            seen,
            trunk_seen,
            None if found is None else Grouping(self.to_device(found[0]), self.to_device(found[1]), *found[2:]),
            uniform=width == 1 and bool(alike.all()),
        )
        if step is not None:
            stored = [layer.stored for layer in self.layers]
            places = self.written_to(stored[0].keys.shape[1])
            step = compiled(step) if self.compiled else step
            visible = _visible(self.places, base, self.view)
            said = step(self.model, stored, self.view, places, tokens[0], first, visible)
            return torch.cat(said, dim=1) if features else said[0]
        with attending(self.model, self), self._returning_nothing():
            read: Reader = logits_and_features_at if features else _logits_alone
            outputs = read(
                self.model,
                torch.stack(tokens, dim=1),
                last[:, None],
                attention_mask=self._mask(base),
                # Tokens past a row's count may stand further than the model has positions for; nothing reads what
                # they say.
                position_ids=positions if self.most is None else positions.clamp(max=self.most - 1),
                use_cache=True,
                **{self.name: self},
            )
        return torch.cat(outputs, dim=2)[:, 0] if features else outputs[0][:, 0]

    @contextmanager
    def _returning_nothing(self) -> Iterator[None]:
        """Afterwards no layer holds on to what it returned, which growth would leave behind."""
        try:
            yield
        finally:
            for layer in self.layers:
                layer.returned = None

    def wipe(self) -> None:
        """Make zeros of everything: what diverged weights left would be NaN, and a weight of 0 on that is."""
        for layer in self._kept():
            for storage in (layer.keys, layer.values, layer.trunk_keys, layer.trunk_values):
                storage.zero_()

    @property
    def fits(self) -> bool:
        """Whether what the model computes now can be stored here, and its memory is worth keeping for that.

        A system hands out fresh memory page by page, which can take a quarter of a rollout. On other devices torch
        keeps freed memory itself, for whoever needs it next.
        """
        return self.device.type == "cpu" and self.format == _format(self.model)

    def to_device(self, array: np.ndarray) -> Tensor:
        """An array as a tensor where the model is."""
        return torch.as_tensor(array, device=self.device)

    def reserve(self, num_rows: int, length: int, used: int) -> None:
        """Make room for so many rows and positions; none but the `used` first positions hold anything."""
        if num_rows > self.num_rows or length > self.length:
            self.num_rows = max(num_rows, self.num_rows)
            self.length = _grown(self.length, length)
            for layer in self._kept():
                layer.grow(used)

    def copy_rows(self, source: np.ndarray, target: np.ndarray, length: int) -> None:
        """Copy what some rows, int64 [n], hold of their own, so many first positions of it, to others."""
        sources, targets = self.to_device(np.stack([source, target])).unbind()
        for layer in self._kept():
            for storage in (layer.keys, layer.values):
                storage[targets, :, :length] = storage[sources, :, :length]

    def add_trunks(
        self, first: int, rows: np.ndarray, trunk: np.ndarray, base: np.ndarray, lengths: np.ndarray
    ) -> None:
        """Make trunks number `first` and on out of what some rows hold.

        Args:
            first: how many trunks there are, which stay.
            rows: int64 [n].
            trunk: int64 [n], the trunk that each of them begins with itself.
            base: int64 [n], how many tokens of that.
            lengths: int64 [n], how many tokens of a row, those of its trunk included, the new trunk gets.
        """
        if first + len(lengths) > self.num_trunks or lengths.max() > self.trunk_length:
            self.num_trunks = max(first + len(lengths), self.num_trunks)
            self.trunk_length = _grown(self.trunk_length, int(lengths.max()))
            for layer in self._kept():
                layer.grow_trunks()
        made = list(zip(rows.tolist(), trunk.tolist(), base.tolist(), lengths.tolist(), strict=True))
        for layer in self._kept():
            for storage, trunks in ((layer.keys, layer.trunk_keys), (layer.values, layer.trunk_values)):
                for place, (row, old, shared, length) in enumerate(made, start=first):
                    if shared:
                        trunks[place, :, :shared] = trunks[old, :, :shared]
                    trunks[place, :, shared:length] = storage[row, :, : length - shared]

    def move_trunk(self, source: int, target: int) -> None:
        """Put a trunk in the place of another."""
        for layer in self._kept():
            layer.trunk_keys[target] = layer.trunk_keys[source]
            layer.trunk_values[target] = layer.trunk_values[source]

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Keep what a layer has computed, and return all that its rows may look at."""
        while len(self.layers) <= layer_idx:
            self.layers.append(_Layer(self))
        return self.layers[layer_idx].update(key_states, value_states)

    def written_to(self, heads: int) -> Tensor:
        """Where the tokens fed go, int64 [b · heads · q], rows of storage as a matrix: faster than three indices."""
        if self.written is None or self.written.numel() != heads * self.places.numel():
            count, rows = self.view.num_rows, self.view.rows
            numbers = torch.arange(count, device=self.device) if rows is None else rows
            first = (numbers[:, None] * heads + torch.arange(heads, device=self.device)) * self.length  # [b, heads]
            self.written = (first[:, :, None] + self.places[:, None]).flatten()
        return self.written

    def parts_of(self, layer_idx: int | None, keys: Tensor) -> Parts | None:
        """What a layer's rows look at, in two parts, if `keys` is what `update` has just returned for that layer."""
        if layer_idx is None or layer_idx >= len(self.layers):
            return None
        layer = self.layers[layer_idx]
        return layer.parts() if layer.returned is keys else None

    def _kept(self) -> "list[_Layer]":
        return [layer for layer in self.layers if layer.is_initialized]  # of some models not every layer keeps any

    def _mask(self, base: Tensor) -> Tensor:
        """`_visible` [b, 1, q, trunk_seen + seen], as attention wants it."""
        visible = _visible(self.places, base, self.view)[:, None]
        if self.model.config._attn_implementation != "eager":
            return visible
        # Eager attention adds the mask to its weights.
        nothing = torch.zeros((), dtype=self.model.dtype, device=visible.device)
        return nothing.expand(visible.shape).masked_fill(~visible, torch.finfo(self.model.dtype).min)


class _Layer(CacheLayerMixin):
    """Keys and values of one layer, [S, heads, C, size of a head]."""

    is_compileable = False

    def __init__(self, owner: KeyValues) -> None:
        super().__init__()
        self.owner = owner
        self.returned: Tensor | None = None  # keys, by the last update
        self.apart = False  # whether attention is known to ask for the parts

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        rows, length = self.owner.num_rows, self.owner.length
        self.keys, self.values = _zeros(key_states, rows, length), _zeros(value_states, rows, length)
        self.trunk_keys, self.trunk_values = _zeros(key_states, 0, 0), _zeros(value_states, 0, 0)
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.write(key_states, value_states)
        owner = self.owner
        if self.apart and owner.view.grouping is not None and not owner.read_elsewhere:
            keys, values = key_states, value_states  # a token of what will be asked for by its parts
        else:
            keys, values = owner.view.whole(self.stored)
        self.returned = keys
        return keys, values

    def write(self, key_states: Tensor, value_states: Tensor) -> None:
        """Keep keys and values of the tokens that are fed, [b, heads, q, size of a head]."""
        places = self.owner.written_to(key_states.shape[1])
        write(self.keys, key_states, places)
        write(self.values, value_states, places)

    def parts(self) -> Parts:
        """What the rows look at, where it lies."""
        self.apart = True
        return self.owner.view.parts(self.stored)

    @property
    def stored(self) -> Stored:
        """All that is kept."""
        return Stored(self.keys, self.values, self.trunk_keys, self.trunk_values)

    def grow(self, used: int) -> None:
        """Take the owner's measures, keeping what is there."""
        rows, length = self.owner.num_rows, self.owner.length
        self.keys, self.values = (_copied(old[:, :, :used], rows, length) for old in (self.keys, self.values))

    def grow_trunks(self) -> None:
        """The same of the trunks."""
        count, length = self.owner.num_trunks, self.owner.trunk_length
        self.trunk_keys = _copied(self.trunk_keys, count, length)
        self.trunk_values = _copied(self.trunk_values, count, length)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.owner.view.trunk_seen + self.owner.view.seen, 0

    def get_seq_length(self) -> int:
        return 0  # positions are given, never counted

    def get_max_length(self) -> int:
        return self.owner.trunk_length + self.owner.length


def _logits_alone(*arguments: Any, **inputs: Any) -> tuple[Tensor]:
    return (logits_at(*arguments, **inputs),)


def _format(model: PreTrainedModel) -> tuple[Any, ...]:
    device = model.device
    return device, model.dtype, torch.is_autocast_enabled(device.type), torch.get_autocast_dtype(device.type)


def _cache_name(model: PreTrainedModel) -> str:
    """What the model calls the argument; transformers 5.24 renamed it."""
    return "cache" if "cache" in forward_parameters(type(model)) else "past_key_values"


def _visible(places: Tensor, base: Tensor, view: View) -> Tensor:
    """Bool [b, q, trunk_seen + seen]: a token sees its row's part of the trunk, and its own row up to itself.

    Args:
        places: of the tokens in the row's own storage, int64 [b, q].
        base: tokens of the trunk that the row begins with, int64 [b].
        view: tells how much there is to see.
    """
    visible = torch.arange(view.seen, device=base.device) <= places[:, :, None]
    if not view.trunk_seen:
        return visible
    shared = torch.arange(view.trunk_seen, device=base.device) < base[:, None, None]
    return torch.cat([shared.expand(-1, visible.shape[1], -1), visible], dim=2)


def _grown(length: int, needed: int) -> int:
    """Positions of storage: twice as many where there are too few, so that growth copies little in all."""
    return length if needed <= length else math.ceil(max(needed, 2 * length) / _BLOCK) * _BLOCK


def _copied(old: Tensor, rows: int, length: int) -> Tensor:
    new = _zeros(old, rows, length)
    new[: old.shape[0], :, : old.shape[2]] = old
    return new


def _zeros(like: Tensor, rows: int, length: int) -> Tensor:
    """Storage [rows, heads, length, size of a head]. Zeros: a weight of 0 on a NaN would be a NaN."""
    return like.new_zeros(rows, like.shape[1], length, like.shape[3])
