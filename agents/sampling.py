"""TokenDistribution: the one distribution that samples the next token and scores it.

Temperature, action mask and truncation are part of the policy, so they are applied here and nowhere else: what is
sampled is what is scored. Does not run the model.
"""

import math
import operator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from textgym.escape import shown


def is_number(value: Any) -> bool:
    """Whether a value is a real number, numpy's among them."""
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


@dataclass(frozen=True)
class Truncation:
    """Which tokens stay when improbable ones are cut off; each part works on what the one before it left.

    What is cut off depends on the weights, so that a token sampled once may be cut off after an update: whoever learns
    stores the support that it sampled from and scores within it.

    Attributes:
        top_k: the k most probable tokens, and those as probable as the last of them (Fan et al., 1805.04833).
        top_p: the least number of most probable tokens whose probability reaches p (Holtzman et al., 1904.09751).
        min_p: tokens at least p times as probable as the most probable one (Nguyen et al., 2407.01082).

    Raises:
        ValueError: a top_k below 1, a top_p outside (0, 1], a min_p outside [0, 1].
    """

    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None

    def __post_init__(self) -> None:
        if self.top_k is not None:
            if isinstance(self.top_k, bool) or not hasattr(self.top_k, "__index__") or self.top_k < 1:
                raise ValueError(f"top_k={shown(self.top_k)}; give an integer of at least 1, or None for all tokens")
            object.__setattr__(self, "top_k", operator.index(self.top_k))  # numpy's integers are not JSON's
        for name, least in (("top_p", "above 0"), ("min_p", "from 0")):
            value = getattr(self, name)
            if value is None:
                continue
            if not is_number(value) or not 0 <= value <= 1 or (value == 0 and name == "top_p"):
                raise ValueError(f"{name}={shown(value)}; give a number {least} up to 1")
            object.__setattr__(self, name, float(value))

    def __bool__(self) -> bool:
        """Whether anything can be cut off."""
        return self.top_k is not None or self.top_p not in (None, 1) or bool(self.min_p)

    def support(self, logits: Tensor) -> Tensor:
        """Bool [..., V], True where a token stays; the most probable one always does.

        Args:
            logits: [..., V], -inf where a token is illegal.
        """
        kept = logits
        if self.top_k is not None:
            least = kept.topk(min(self.top_k, kept.shape[-1]), dim=-1).values[..., -1:]
            kept = kept.masked_fill(kept < least, float("-inf"))
        if self.top_p is not None and self.top_p < 1:
            ascending, order = kept.sort(dim=-1)
            up_to = ascending.softmax(dim=-1).cumsum(dim=-1)
            cut = up_to <= 1 - self.top_p
            cut[..., -1] = False
            kept = kept.masked_fill(torch.zeros_like(cut).scatter(-1, order, cut), float("-inf"))
        if self.min_p:
            probs = kept.softmax(dim=-1)
            kept = kept.masked_fill(probs < self.min_p * probs.amax(dim=-1, keepdim=True), float("-inf"))
        return kept > float("-inf")


NO_TRUNCATION = Truncation()


def checked_temperature(temperature: Any) -> float:
    """A temperature as a float.

    Raises:
        ValueError: no finite number above 0.
    """
    if not is_number(temperature) or not 0 < temperature < math.inf:
        raise ValueError(f"temperature={shown(temperature)}; give a finite number above 0, or act deterministically")
    return float(temperature)


class TokenDistribution:
    """π(a | s) over V tokens, from logits: divided by the temperature, masked, then truncated.

    Args:
        logits: [..., V'] with V' ≥ V; ids ≥ V (models pad their embeddings) lie outside the distribution.
        size: V.
        temperature: logits are divided by it.
        action_mask: bool [..., V], True where a token is legal; None where all are. The support that a rollout stored
            is given here too, and nothing is truncated then.
        truncation: which of the legal tokens are cut off.

    Attributes:
        log_probs: [..., V] log π(a | s); -inf where a token is illegal or cut off.
        support: bool [..., V], True where a token can be sampled; None where all can.

    Raises:
        ValueError: a temperature that is not positive, fewer logits than tokens, or a state without a legal token.
    """

    def __init__(
        self,
        logits: Tensor,
        size: int,
        temperature: float = 1.0,
        action_mask: Tensor | None = None,
        truncation: Truncation = NO_TRUNCATION,
    ) -> None:
        temperature = checked_temperature(temperature)
        if logits.shape[-1] < size:
            raise ValueError(f"{logits.shape[-1]} logits for {size} tokens; the model needs an output for every token")
        # Half precision would round the log-probs that ratios are made of.
        logits = logits[..., :size].to(torch.promote_types(logits.dtype, torch.float32)) / temperature
        self.support = action_mask
        if action_mask is not None:
            if not action_mask.any(dim=-1).all():
                raise ValueError("action_mask leaves a state without a legal token; every row needs a True")
            logits = logits.masked_fill(~action_mask, float("-inf"))
        if truncation:
            self.support = truncation.support(logits.detach())
            logits = logits.masked_fill(~self.support, float("-inf"))
        self.log_probs = torch.log_softmax(logits, dim=-1)

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """Draw one token for each state, int64 [...].

        Args:
            generator: on any device.

        Raises:
            FloatingPointError: the probabilities are not finite.
        """
        probs = self.log_probs.exp().reshape(-1, self.log_probs.shape[-1])
        # One number a state; torch.multinomial draws one a token.
        device = probs.device if generator is None else generator.device
        # No finer than it will be compared: rounded to 1 it would pass every token.
        exact = min(_exact(device), _exact(probs.device), key=lambda dtype: torch.finfo(dtype).bits)
        uniform = torch.rand(len(probs), 1, generator=generator, dtype=exact, device=device)
        return inverse_cdf(probs, uniform).reshape(self.log_probs.shape[:-1])

    def mode(self) -> Tensor:
        """The most probable token of each state, int64 [...].

        Raises:
            FloatingPointError: the probabilities are not finite.
        """
        _check_finite(self.log_probs.logsumexp(dim=-1))
        return self.log_probs.argmax(dim=-1)

    def log_prob(self, actions: Tensor) -> Tensor:
        """Log π(a | s) of actions int64 [...], shape [...]."""
        return self.log_probs.gather(-1, actions.unsqueeze(-1)).squeeze(-1)

    def entropy(self) -> Tensor:
        """H(π(· | s)) in nats, shape [...]; tokens outside the support add 0, to the gradient too."""
        # Before the product: -inf · 0 is NaN, and so would be its gradient.
        finite = self.log_probs.masked_fill(self.log_probs == float("-inf"), 0.0)
        return -(self.log_probs.exp() * finite).sum(dim=-1)


def inverse_cdf(probs: Tensor, uniform: Tensor) -> Tensor:
    """The tokens at which cumulative probabilities pass given numbers.

    Args:
        probs: [N, V]; a token of probability 0 is never returned.
        uniform: [N, 1] in [0, 1), on any device.

    Returns:
        int64 [N, 1].

    Raises:
        FloatingPointError: the probabilities are not finite.
    """
    exact = _exact(probs.device)
    cumulative = probs.cumsum(dim=-1, dtype=exact)
    _check_finite(cumulative[:, -1])
    reached = uniform.to(exact).to(probs.device) * cumulative[:, -1:]
    return torch.searchsorted(cumulative, reached, right=True)


def _exact(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64  # which that device does not have


def _check_finite(totals: Tensor) -> None:
    if not torch.isfinite(totals).all():
        raise FloatingPointError(
            "the policy's probabilities are not finite: its weights have diverged (lower the learning rate), its "
            "temperature is too small, or it rules out every legal token"
        )
