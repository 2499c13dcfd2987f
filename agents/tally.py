"""Tally: means and ranges over the tokens of an update, gathered part by part."""

from collections import defaultdict

import numpy as np
from torch import Tensor


class Tally:
    """Sums and extremes of what is measured, by name.

    >>> import torch
    >>> tally = Tally()
    >>> tally.add("ratio", torch.tensor([1.0, 3.0]))
    >>> tally.add("ratio", torch.tensor([2.0]))
    >>> tally.mean("ratio"), tally.least("ratio"), tally.most("ratio"), tally.mean("never measured")
    (2.0, 1.0, 3.0, 0.0)
    """

    def __init__(self) -> None:
        self._sums: dict[str, float] = defaultdict(float)
        self._counts: dict[str, int] = defaultdict(int)
        self._least: dict[str, float] = {}
        self._most: dict[str, float] = {}

    def add(self, name: str, values: Tensor) -> None:
        """Count further values, [n]."""
        if values.numel() == 0:
            return
        values = values.detach().double()
        self._sums[name] += float(values.sum())
        self._counts[name] += values.numel()
        self._least[name] = min(self._least.get(name, np.inf), float(values.min()))
        self._most[name] = max(self._most.get(name, -np.inf), float(values.max()))

    def mean(self, name: str) -> float:
        """The mean of what was counted; 0 where nothing was."""
        return self._sums[name] / self._counts[name] if self._counts[name] else 0.0

    def least(self, name: str) -> float:
        """The least value counted; 0 where none was."""
        return self._least.get(name, 0.0)

    def most(self, name: str) -> float:
        """The largest value counted; 0 where none was."""
        return self._most.get(name, 0.0)
