"""Train half-precision weights without losing small steps: the optimizer moves float32 copies of them.

A bfloat16 weight has 8 significant bits: a step below 1/512 of it is rounded away, and with it whole trainings at the
usual learning rates of Adam. The copies sum the steps up, and the weights follow them by rounding. Does not scale
losses: gradients of float16 models below 6e-8 are lost before they arrive here.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from textgym.escape import shown

_HALF = (torch.float16, torch.bfloat16)


class FullPrecision:
    """The parameters that are trained, in at least float32.

    Parameters that have that precision are used themselves; only `zero_grad` does anything to them. The copies of the
    others are the truth: a weight that is set by other means is overwritten by the next `write_back`.

    Args:
        parameters: of a model; those that are frozen are left out.

    Attributes:
        parameters: what the optimizer and gradient clipping are given, in the order of the model's.

    >>> weight = nn.Parameter(torch.ones(1, dtype=torch.bfloat16))
    >>> weights = FullPrecision([weight])
    >>> optimizer = torch.optim.SGD(weights.parameters, lr=0.001)
    >>> for _ in range(4):  # by itself, each step would be rounded away
    ...     weights.zero_grad()
    ...     weight.sum().backward()
    ...     weights.take_gradients()
    ...     optimizer.step()
    ...     weights.write_back()
    >>> weight.item()
    0.99609375
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        self.parameters = [_copied(weight) if weight.dtype in _HALF else weight for weight in trained]
        pairs = zip(trained, self.parameters, strict=True)
        self._copies = {index: pair for index, pair in enumerate(pairs) if pair[0] is not pair[1]}

    def zero_grad(self) -> None:
        """Set every gradient to None, the model's and the copies'."""
        for parameter in self.parameters:
            parameter.grad = None
        for weight, _ in self._copies.values():
            weight.grad = None

    def take_gradients(self) -> None:
        """After a `backward`: add its gradients to those of the copies, in float32, and free them in the model."""
        for weight, copy in self._copies.values():
            if weight.grad is None:
                continue
            if copy.grad is None:
                copy.grad = weight.grad.float()
            else:
                copy.grad += weight.grad
            weight.grad = None

    @torch.no_grad()
    def write_back(self) -> None:
        """After a step of the optimizer: set the model's weights to the copies, rounded."""
        for weight, copy in self._copies.values():
            weight.copy_(copy)

    def state(self) -> dict[str, Tensor]:
        """The copies by their place among `parameters`, as safetensors saves them; empty where there are none."""
        return {str(index): copy.detach() for index, (_, copy) in self._copies.items()}

    @torch.no_grad()
    def load_state(self, state: dict[str, Tensor]) -> None:
        """Continue from what `state` returned; the model's weights become these, rounded.

        Raises:
            ValueError: it is of other parameters; nothing was changed.
        """
        own = self.state()
        for name in sorted(own.keys() | state.keys()):
            here, there = _told(own.get(name)), _told(state.get(name))
            if here != there:
                raise ValueError(f"parameter {shown(name)} is {there} in the saved state and {here} in training")
        for name, copy in own.items():
            copy.copy_(state[name])
        self.write_back()


def _copied(weight: nn.Parameter) -> nn.Parameter:
    return nn.Parameter(weight.detach().float().contiguous())


def _told(tensor: Tensor | None) -> str:
    return "nothing" if tensor is None else f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
