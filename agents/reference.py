"""The reference policy π_ref that a KL term holds the policy to: as it was, another folder's, or without adapters.

What its log-probabilities are used for is left to others.
"""

import copy
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from agents.checks import check_length, check_same_tokens
from agents.lora import is_lora
from agents.policy import TransformerPolicy
from agents.rollout import Rollout
from textgym.escape import shown, type_name

_FOLDER = "learner-reference"  # a name that nobody else gives


class ReferencePolicy:
    """π_ref of a policy.

    Args:
        policy: π_θ, whose temperature π_ref has too.
        source: None takes π_θ as it is now: the model without its adapters where it has some, otherwise a copy; or
            another policy, or a Hugging Face folder, with the same tokens.

    Raises:
        TypeError, ValueError: a source of another kind, or with other tokens.
    """

    def __init__(self, policy: TransformerPolicy, source: TransformerPolicy | str | Path | None = None) -> None:
        self._policy = policy
        self._frozen = None if source is None and is_lora(policy.model) else _frozen(policy, source)

    def log_probs(self, rollout: Rollout) -> Tensor:
        """Log π_ref(a_t | s_t), [B, T], without gradient; 0 where not mask. Over all tokens: masks bind the policy."""
        if self._frozen is None:
            return self._policy.reference_log_probs(rollout)
        self._frozen.temperature = self._policy.temperature
        return self._frozen.unrestricted_log_probs(rollout)

    def check_length(self, length: int) -> None:
        """Refuse histories that it does not take; see `agents.checks.check_length`."""
        if self._frozen is not None:
            check_length(self._frozen, length, "the reference")

    @property
    def dtype(self) -> torch.dtype | None:
        """Of its own weights; None where it has none, since it is the policy without its adapters."""
        return None if self._frozen is None else self._frozen.model.dtype

    def save(self, folder: Path) -> Path | None:
        """Write it beside a learner and say where; None where it is in the policy already."""
        if self._frozen is None:
            return None
        self._frozen.save_pretrained(folder / _FOLDER, merge_adapters=False)  # a sum would have other last digits
        return folder / _FOLDER

    @staticmethod
    def load(folder: Path, dtype: torch.dtype, device: str | torch.device) -> TransformerPolicy:
        """What `save` wrote, to the last bit, where the weights had that dtype."""
        return TransformerPolicy.from_pretrained(folder / _FOLDER, dtype=dtype, device=device)

    @staticmethod
    def remove(folder: Path) -> None:
        """Remove what `save` wrote."""
        shutil.rmtree(folder / _FOLDER, ignore_errors=True)


def _frozen(policy: TransformerPolicy, source: Any) -> TransformerPolicy:
    if source is None:
        source = policy
    if isinstance(source, str | Path):
        try:
            source = TransformerPolicy.from_pretrained(source, dtype=policy.model.dtype, device=policy.device)
        except (FileNotFoundError, ValueError) as error:
            raise type(error)(f"the reference: {error}") from error
    elif not isinstance(source, TransformerPolicy):
        raise TypeError(
            f"reference is {shown(source)} of type {type_name(source)}; give None, a TransformerPolicy, or the path of "
            "a Hugging Face folder"
        )
    if source.size != policy.size:
        raise ValueError(f"the reference has {source.size} tokens and the policy {policy.size}; give one with the same")
    check_same_tokens(source.vocabulary, policy.vocabulary, "the reference", "the policy")
    return copy.deepcopy(source).requires_grad_(False)  # what its owner does to his own later changes nothing here
