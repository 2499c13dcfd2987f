"""ValueHead: V(s), linear in what the model's output layer reads."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from agents.models import forward_parameters, logits_at, open_to_readers

_FILE = "value_head.safetensors"


class ValueHead(nn.Module):
    """From the features [..., d] of states to their values [...].

    It starts at 0 everywhere, so that the first advantages are returns and not noise.

    Args:
        model: whose features are read.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        width = model.get_output_embeddings().weight.shape[1]
        # Values are sums of rewards: half precision would round them more than they differ.
        dtype = torch.promote_types(model.dtype, torch.float32)
        # Without a draw from torch's global generator.
        self.linear = nn.utils.skip_init(nn.Linear, width, 1, device=model.device, dtype=dtype)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Values [...] of features [..., d]."""
        return self.linear(features.to(self.linear.weight.dtype)).squeeze(-1)

    def save(self, folder: Path) -> None:
        """Write value_head.safetensors."""
        save_file({name: value.detach().cpu() for name, value in self.state_dict().items()}, folder / _FILE)
        open_to_readers(folder)

    @staticmethod
    def remove(folder: Path) -> None:
        """Remove what `save` wrote."""
        (folder / _FILE).unlink(missing_ok=True)

    def load(self, folder: Path) -> None:
        """Read value_head.safetensors.

        Raises:
            ValueError: it does not load, or is of another width.
        """
        try:
            self.load_state_dict(load_file(folder / _FILE))
        except (OSError, RuntimeError, SafetensorError) as error:
            raise ValueError(f"value head {str(folder / _FILE)!r} does not load: {error}") from error


def logits_and_features_at(
    model: PreTrainedModel, tokens: Tensor, places: Tensor, **inputs: Any
) -> tuple[Tensor, Tensor]:
    """What `agents.models.logits_at` returns, [B, K, V'], and what the output layer made it from, [B, K, d]."""
    read: list[Tensor] = []

    def note(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        read.append(inputs[0])

    handle = model.get_output_embeddings().register_forward_pre_hook(note)
    try:
        logits = logits_at(model, tokens, places, **inputs)
    finally:
        handle.remove()
    [features] = read
    if "logits_to_keep" not in forward_parameters(type(model)):  # a model that projects every place
        features = torch.take_along_dim(features, places[:, :, None], dim=1)
    return logits, features
