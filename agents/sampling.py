"""TokenDistribution: the one distribution that samples the next token and scores it.

Temperature and action mask are part of the policy, so they are applied here and nowhere else: what is sampled is what
is scored. Does not run the model.
"""

import torch
from torch import Tensor


class TokenDistribution:
    """π(a | s) over V tokens, from logits.

    Args:
        logits: [..., V'] with V' ≥ V; ids ≥ V (models pad their embeddings) lie outside the distribution.
        size: V.
        temperature: logits are divided by it.
        action_mask: bool [..., V], True where a token is legal; None where all are.

    Attributes:
        log_probs: [..., V] log π(a | s); -inf where a token is illegal.

    Raises:
        ValueError: a temperature that is not positive, fewer logits than tokens, or a state without a legal token.
    """

    def __init__(self, logits: Tensor, size: int, temperature: float = 1.0, action_mask: Tensor | None = None) -> None:
        if not temperature > 0:
            raise ValueError(f"temperature={temperature}; give a number above 0, or act deterministically")
        if logits.shape[-1] < size:
            raise ValueError(f"{logits.shape[-1]} logits for {size} tokens; the model needs an output for every token")
        # Half precision would round the log-probs that ratios are made of.
        logits = logits[..., :size].to(torch.promote_types(logits.dtype, torch.float32)) / temperature
        self.action_mask = action_mask
        if action_mask is not None:
            if not action_mask.any(dim=-1).all():
                raise ValueError("action_mask leaves a state without a legal token; every row needs a True")
            logits = logits.masked_fill(~action_mask, float("-inf"))
        self.log_probs = torch.log_softmax(logits, dim=-1)

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """Draw one token for each state, int64 [...].

        Raises:
            FloatingPointError: the probabilities are not finite.
        """
        if not torch.isfinite(self.log_probs.logsumexp(dim=-1)).all():
            raise FloatingPointError(
                "the policy's probabilities are not finite: its weights have diverged; lower the learning rate"
            )
        flat = self.log_probs.exp().reshape(-1, self.log_probs.shape[-1])
        return torch.multinomial(flat, 1, generator=generator).reshape(self.log_probs.shape[:-1])

    def mode(self) -> Tensor:
        """The most probable token of each state, int64 [...]."""
        return self.log_probs.argmax(dim=-1)

    def log_prob(self, actions: Tensor) -> Tensor:
        """Log π(a | s) of actions int64 [...], shape [...]."""
        return self.log_probs.gather(-1, actions.unsqueeze(-1)).squeeze(-1)

    def entropy(self) -> Tensor:
        """H(π(· | s)) in nats, shape [...]; illegal tokens add 0, to the gradient too."""
        terms = self.log_probs.exp() * self.log_probs
        if self.action_mask is not None:
            # The mask goes on before the product: -inf · 0 is NaN, and so would be its gradient.
            terms = self.log_probs.exp() * self.log_probs.masked_fill(~self.action_mask, 0.0)
        return -terms.sum(dim=-1)
