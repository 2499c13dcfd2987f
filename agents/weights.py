"""A mark of a model's weights that changes when they do, however they are written.

Optimizers count up a version of every parameter; fused ones and writes through `.data` do not, which is why the mark
can hold a checksum too.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from transformers import PreTrainedModel

from agents.lora import adapter_state
from agents.plain_modules import parts_of

_WIDTH = 4096


def weights_mark(model: PreTrainedModel, checksum: bool) -> tuple[Any, ...]:
    """What tells one state of the weights from another.

    Args:
        model: the language model.
        checksum: read every weight, which finds what leaves versions and addresses as they are.

    Returns:
        Something to compare with an earlier mark; equal where nothing has changed.
    """
    tensors = list(_tensors(model))
    places = tuple((tensor.data_ptr(), None if tensor.is_inference() else tensor._version) for tensor in tensors)
    device = model.device.type
    kind = (torch.is_autocast_enabled(device), torch.get_autocast_dtype(device), adapter_state(model))
    return (places, kind, _checksum(tensors) if checksum else ())


def _tensors(model: Module) -> Iterator[Tensor]:
    """Parameters and buffers, tied ones each time."""
    for module in parts_of(model):
        yield from (tensor for tensor in module._parameters.values() if tensor is not None)
        yield from (tensor for tensor in module._buffers.values() if tensor is not None)


def _checksum(tensors: Iterable[Tensor]) -> tuple[float, ...]:
    """A weighted sum of each tensor: another where a number is another, or stands elsewhere."""
    with torch.no_grad():
        sums = [_weighted_sum(tensor.detach().reshape(-1)) for tensor in tensors]
        return tuple(torch.stack([one.float() for one in sums]).tolist())


def _weighted_sum(values: Tensor) -> Tensor:
    values = values.float() if values.dtype != torch.float64 else values
    within, beyond = _factors(values.device, values.dtype)
    whole = values.numel() // _WIDTH
    rest = values[whole * _WIDTH :]
    total = torch.dot(rest, within[: len(rest)])
    for first in range(0, whole, _WIDTH):
        block = values[first * _WIDTH : min(whole, first + _WIDTH) * _WIDTH].view(-1, _WIDTH)
        total = total + torch.dot(torch.mv(block, within), beyond[: len(block)])
    return total


_FACTORS: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor]] = {}


def _factors(device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Two fixed vectors of random factors."""
    if (device, dtype) not in _FACTORS:
        generator = torch.Generator().manual_seed(0)
        drawn = torch.rand(2, _WIDTH, generator=generator, dtype=torch.float64) + 0.5
        _FACTORS[device, dtype] = tuple(drawn.to(dtype).to(device).unbind())  # type: ignore[assignment]
    return _FACTORS[device, dtype]
