"""Steps at fixed sizes, recorded once for each and replayed: what CUDA calls graphs.

On a GPU a small model's step is shorter than what it takes to ask for its parts one by one. A recording asks for all of
them at once; in return nothing in it may change but the numbers in its inputs, so that rows and positions are rounded
up. Which rows and positions those are is left to `agents.key_values`.
"""

import functools
from collections.abc import Callable, Hashable
from typing import NamedTuple

import torch
from torch import Tensor

Recorder = Callable[[Callable[[], Tensor]], tuple[Callable[[], object], Tensor]]
_WARM_UPS = 2  # compilation and libraries' own workspaces are no part of a recording


class _Recording(NamedTuple):
    inputs: Tensor
    replay: Callable[[], object]
    output: Tensor  # written anew by each replay


class Recordings:
    """Recordings by their sizes.

    Args:
        record: makes one of a function that reads and writes the same memory at every call; see `recorder`.
    """

    def __init__(self, record: Recorder) -> None:
        self._record = record
        self._made: dict[Hashable, _Recording] = {}

    def __len__(self) -> int:
        return len(self._made)

    def clear(self) -> None:
        """Forget them all: what they read or write lies elsewhere now."""
        self._made.clear()

    def __call__(self, sizes: Hashable, function: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
        """What a function says of its inputs.

        Args:
            sizes: whatever the function depends on but for its inputs and what stands in the memory that it reads.
            function: does the same work at every call; it may be called several times with the same inputs.
            inputs: of one shape for the same sizes.
        """
        if sizes not in self._made:
            own = inputs.clone()
            self._made[sizes] = _Recording(own, *self._record(lambda: function(own)))
        recording = self._made[sizes]
        recording.inputs.copy_(inputs)
        recording.replay()
        return recording.output.clone()  # the next replay writes over it


def recorder(device: torch.device) -> Recorder | None:
    """What records on a device; None where nothing does."""
    return functools.partial(_on_cuda, device) if device.type == "cuda" else None


def _on_cuda(device: torch.device, function: Callable[[], Tensor]) -> tuple[Callable[[], object], Tensor]:
    with torch.cuda.device(device):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UPS):
                function()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = function()
        return graph.replay, output
