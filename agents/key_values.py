"""Keys and values of many histories that stand at different positions, under any Hugging Face causal language model.

Storage and arithmetic alone: which tokens a row holds is known to `agents.prefix_cache`.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin

from agents.models import logits_at, max_length_of

_BLOCK = 32  # positions that storage grows by at least


class KeyValues(Cache):
    """Storage for S rows of C positions, for each layer of a model; both grow as needed.

    What stands at a position that no row has reached is never seen by a token, and is finite.
    """

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.num_rows = self.length = self.seen = 0
        self.rows: Tensor | slice = slice(0)
        self.positions = torch.zeros(0, 0, dtype=torch.long)

    def feed(
        self, model: PreTrainedModel, tokens: Tensor, rows: Tensor | slice, first: Tensor, count: Tensor
    ) -> Tensor:
        """Run the next tokens of some rows, and keep their keys and values.

        Args:
            model: the language model.
            tokens: int64 [b, q], what each row goes on with; past its own count, anything.
            rows: int64 [b], or a slice of b rows.
            first: int64 [b], positions that the row holds already.
            count: int64 [b], how many of its q tokens are meant, at least 1.

        Returns:
            [b, V'] logits after the last token of each row.
        """
        self.rows = rows
        self.positions = first[:, None] + torch.arange(tokens.shape[1], device=tokens.device)  # [b, q]
        self.seen = int(self.positions.max()) + 1
        most = max_length_of(model)
        # Tokens past a row's count may stand further than the model has positions for; nothing reads what they say.
        position_ids = self.positions if most is None else self.positions.clamp(max=most - 1)
        logits = logits_at(
            model,
            tokens,
            (count - 1)[:, None],
            attention_mask=self._mask(model),
            position_ids=position_ids,
            past_key_values=self,
            use_cache=True,
        )
        return logits[:, 0]

    def reserve(self, num_rows: int, length: int) -> None:
        """Make room for so many rows and positions."""
        if num_rows > self.num_rows or length > self.length:
            self.num_rows = max(num_rows, self.num_rows)
            if length > self.length:  # by half at least, so that all growth together copies a few times the whole
                self.length = -(-max(length, self.length + self.length // 2) // _BLOCK) * _BLOCK
            for layer in self._kept():
                layer.grow()

    def copy_rows(self, source: Tensor, target: Tensor, length: int) -> None:
        """Copy the first positions of some rows, int64 [n], to others."""
        for layer in self._kept():
            layer.keys[target, :, :length] = layer.keys[source, :, :length]
            layer.values[target, :, :length] = layer.values[source, :, :length]

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Keep what a layer has computed, and return all that its rows may look at."""
        while len(self.layers) <= layer_idx:
            self.layers.append(_Layer(self))
        return self.layers[layer_idx].update(key_states, value_states)

    def _kept(self) -> "list[_Layer]":
        return [layer for layer in self.layers if layer.is_initialized]  # of some models not every layer keeps any

    def _mask(self, model: PreTrainedModel) -> Tensor:
        """[b, 1, q, seen]: a token sees its own row up to itself."""
        columns = torch.arange(self.seen, device=self.positions.device)
        visible = (columns <= self.positions[:, :, None])[:, None]
        if model.config._attn_implementation != "eager":
            return visible
        # Eager attention adds the mask to its weights.
        nothing = torch.zeros((), dtype=model.dtype, device=visible.device)
        return nothing.expand(visible.shape).masked_fill(~visible, torch.finfo(model.dtype).min)


class _Layer(CacheLayerMixin):
    """Keys and values of one layer, [S, heads, C, size of a head]."""

    is_compileable = False

    def __init__(self, owner: KeyValues) -> None:
        super().__init__()
        self.owner = owner

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.keys, self.values = self._storage(key_states), self._storage(value_states)
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        rows, positions, seen = self.owner.rows, self.owner.positions, self.owner.seen
        if isinstance(rows, slice):
            numbers = torch.arange(rows.start, rows.stop, device=positions.device)
        else:
            numbers = rows
        self.keys[numbers[:, None], :, positions] = key_states.transpose(1, 2)
        self.values[numbers[:, None], :, positions] = value_states.transpose(1, 2)
        return self.keys[rows, :, :seen], self.values[rows, :, :seen]  # of a slice, a view and no copy

    def grow(self) -> None:
        """Take the owner's measures, keeping what is there."""
        for name in ("keys", "values"):
            old = getattr(self, name)
            new = self._storage(old)
            new[: old.shape[0], :, : old.shape[2]] = old
            setattr(self, name, new)

    def _storage(self, like: Tensor) -> Tensor:
        # Zeros: a weight of 0 on a NaN would be a NaN.
        return like.new_zeros(self.owner.num_rows, like.shape[1], self.owner.length, like.shape[3])

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.owner.seen, 0

    def get_seq_length(self) -> int:
        return 0  # positions are given, never counted

    def get_max_length(self) -> int:
        return self.owner.length
