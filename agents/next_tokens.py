"""From histories, as the environment shows them, to what the model says of the next token.

PAD, the empty history and histories that are too long are dealt with here; temperature, masks and sampling are not.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from agents.attention import cacheable_length
from agents.histories import Histories, nested
from agents.models import logits_at, max_length_of
from agents.prefix_cache import PrefixCache
from agents.token_scores import features_at, head_is_last
from agents.value_head import logits_and_features_at

Reader = Callable[[PreTrainedModel, Tensor, Tensor], tuple[Tensor, ...]]

_UNKNOWN = -1


class NextTokens:
    """A language model over histories that are padded on the right with PAD = V.

    Args:
        model: the language model.
        size: V.
        bos_id: the token that an empty history is fed as; None refuses empty histories.
        attends_to_all: whether it is known that every layer attends to the whole history, so that keys and values can
            be kept; otherwise that is found out when it is first of use.
    """

    def __init__(self, model: PreTrainedModel, size: int, bos_id: int | None, attends_to_all: bool = False) -> None:
        self.model, self.size, self.bos_id = model, size, bos_id
        self._cacheable: int | None = None if attends_to_all else _UNKNOWN
        self._head_is_last: bool | None = None

    @property
    def cacheable(self) -> int | None:
        """Tokens of the longest history that a prefix cache is right for; None where there is no limit."""
        if self._cacheable == _UNKNOWN:
            self._cacheable = cacheable_length(self.model)
        return self._cacheable

    @property
    def head_is_last(self) -> bool:
        """See `agents.token_scores.head_is_last`; found out when it is first of use."""
        if self._head_is_last is None:
            self._head_is_last = head_is_last(self.model)
        return self._head_is_last

    def after(self, histories: np.ndarray, cache: PrefixCache | None = None) -> Tensor:
        """Logits [N, V'] of the token after each history; without gradient where a cache is of use.

        Args:
            histories: int64 [N, L].
            cache: of the same model.

        Raises:
            ValueError: the cache is of another model.
        """
        lengths = self._lengths(histories)
        if cache is None or not self._fits(cache, lengths):
            return self.at(histories, lengths[:, None] - 1)[:, 0]
        return cache.logits(*self._as_fed(histories, lengths))

    def after_with_features(self, histories: np.ndarray, cache: PrefixCache | None = None) -> tuple[Tensor, Tensor]:
        """As `after`, with what the output layer made the logits from, [N, d].

        Without a cache histories that others go on from are run as part of those, once for all of them.
        """
        lengths = self._lengths(histories)
        if cache is not None and self._fits(cache, lengths):
            return cache.logits_and_features(*self._as_fed(histories, lengths))
        rows, sequence, rank = nested(Histories(histories, lengths))
        positions = np.zeros((len(rows), int(rank.max()) + 1), dtype=np.int64)
        positions[sequence, rank] = lengths - 1
        read: Reader = features_at if self.head_is_last else logits_and_features_at
        places = torch.as_tensor(sequence * positions.shape[1] + rank, device=self.model.device)
        found = [each.flatten(0, 1)[places] for each in self.read_at(histories[rows], positions, read)]
        return (self.model.get_output_embeddings()(found[0]) if self.head_is_last else found[0]), found[-1]

    def _lengths(self, histories: np.ndarray) -> np.ndarray:
        return (histories != self.size).sum(axis=1)

    def _fits(self, cache: PrefixCache, lengths: np.ndarray) -> bool:
        """Whether a cache is right for histories of such lengths."""
        if cache.model is not self.model:
            raise ValueError("the prefix cache is of another model; make one with this policy's prefix_cache()")
        return self.cacheable is None or max(1, int(lengths.max())) <= self.cacheable

    def _as_fed(self, histories: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Tokens and lengths as a cache takes them: an empty history begins with the BOS."""
        tokens = histories[:, : max(1, int(lengths.max()))].copy()
        if not lengths.all():
            tokens[lengths == 0, 0] = self._checked_bos()
        self._check_length(tokens.shape[1])
        return tokens, np.maximum(lengths, 1)

    def at(self, histories: np.ndarray, positions: np.ndarray) -> Tensor:
        """Logits [B, K, V'], with gradient, of the token after each position; see `read_at`."""
        [logits] = self.read_at(histories, positions, lambda *inputs: (logits_at(*inputs),))
        return logits

    def read_at(self, histories: np.ndarray, positions: np.ndarray, read: Reader) -> tuple[Tensor, ...]:
        """What is read off the model after each position.

        Padding stands on the right and attention is causal, so no token sees it and no attention mask is needed.

        Args:
            histories: int64 [B, L].
            positions: int64 [B, K], the last token of each history; -1 for the empty one.
            read: from the model, tokens int64 [B, T] and places int64 [B, K] to tensors [B, K, d].
        """
        device = self.model.device
        places = np.maximum(positions, 0)
        tokens = histories[:, : int(places.max()) + 1]
        self._check_length(tokens.shape[1])
        tokens = np.where(tokens == self.size, self._filler(), tokens)
        outputs = read(self.model, torch.as_tensor(tokens, device=device), torch.as_tensor(places, device=device))
        if (positions >= 0).all():
            return outputs
        alone = torch.full((1, 1), self._checked_bos(), device=device)
        first = read(self.model, alone, torch.zeros_like(alone))
        empty = torch.as_tensor(positions < 0, device=device)[:, :, None]
        return tuple(torch.where(empty, one, other) for one, other in zip(first, outputs, strict=True))

    def _filler(self) -> int:
        """What PAD is replaced by: any token, but for the model's own padding, which some models would warn of."""
        pads_with_0 = getattr(self.model.config.get_text_config(), "pad_token_id", None) == 0
        return 1 if pads_with_0 and self.size > 1 else 0

    def _checked_bos(self) -> int:
        if self.bos_id is None:
            raise ValueError(
                "a history is empty and the model has no BOS token; give it a prompt of at least one token"
            )
        return self.bos_id

    def _check_length(self, length: int) -> None:
        longest = max_length_of(self.model)
        if longest is not None and length > longest:
            raise ValueError(f"a history has {length} tokens, more than the {longest} of the model")
