"""n-gram models: the next token's distribution given the last n - 1 tokens of the completion; the prompt is not read.

Before a text has n - 1 tokens, PAD = V stands for those that it lacks, so that its beginning may have distributions of
its own.
"""

import operator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from textgym.escape import shown, type_name
from textgym.tasks.base import is_integer

_TOLERANCE = 1e-9  # of the sum of a context's probabilities, which hundreds of tokens multiply


@dataclass(frozen=True)
class Contexts:
    """What an n-gram model of V tokens sees of a history, as a number: its last n - 1 tokens in base V + 1.

    Attributes:
        order: n.
        size: V.
    """

    order: int
    size: int

    @property
    def count(self) -> int:
        """C = (V + 1)^(n - 1)."""
        return (self.size + 1) ** (self.order - 1)

    @property
    def start(self) -> int:
        """The context of the empty text: PAD alone."""
        return self.count - 1

    @cached_property
    def following(self) -> np.ndarray:
        """The context after each context and token, int64 [C, V]."""
        contexts, tokens = np.arange(self.count)[:, None], np.arange(self.size)
        return (contexts * (self.size + 1) + tokens) % self.count


class NGram:
    """An n-gram model, as a table of log-probabilities.

    Args:
        log_probs: float64 [V + 1, ..., V + 1, V], of n axes: log π_ref(a given the last n - 1 tokens), the oldest token
            first; -inf where a token never comes. Index V of a context is PAD. For contexts that cannot be, such as PAD
            after a token, any distribution will do.

    Attributes:
        contexts: its order n and V.
        log_probs: float64 [C, V], the table with one row a context.

    Raises:
        TypeError, ValueError: another shape, not a number, or probabilities that do not sum to 1 within 1e-9.

    >>> NGram(np.log([[0.5, 0.5], [0.1, 0.9], [1.0, 1e-300]])).contexts  # after 0, after 1, at the beginning
    Contexts(order=2, size=2)
    """

    def __init__(self, log_probs: Any) -> None:
        try:
            table = np.array(log_probs, dtype=np.float64)
        except (TypeError, ValueError):
            raise TypeError(
                f"log_probs is {shown(log_probs)} of type {type_name(log_probs)}; give an array of log-probabilities"
            ) from None
        size = table.shape[-1] if table.ndim else 0
        if not size or set(table.shape[:-1]) - {size + 1}:
            raise ValueError(
                f"log_probs has the shape {table.shape}; give [V], [V + 1, V], [V + 1, V + 1, V] and so on: one axis "
                "for each token of the context, index V where the text has not begun, and the next token last"
            )
        self.contexts = Contexts(table.ndim, size)
        self.log_probs = table.reshape(-1, size)
        self.log_probs.flags.writeable = False
        self._check(table)

    @classmethod
    def uniform(cls, size: int, order: int = 1) -> "NGram":
        """The model that draws every one of V tokens alike, in contexts of n - 1 tokens.

        >>> np.exp(NGram.uniform(4).log_probs)
        array([[0.25, 0.25, 0.25, 0.25]])
        """
        for name, value in (("size", size), ("order", order)):
            if not is_integer(value) or value < 1:
                raise ValueError(f"{name} of an n-gram model is {shown(value)}; give an integer of at least 1")
        size, order = operator.index(size), operator.index(order)
        return cls(np.full((size + 1,) * (order - 1) + (size,), -np.log(size)))

    def _check(self, table: np.ndarray) -> None:
        with np.errstate(over="ignore"):
            sums = np.exp(table).sum(axis=-1)
        wrong = ~(np.abs(sums - 1) <= _TOLERANCE)  # NaN too
        if wrong.any():
            context = tuple(int(place) for place in np.argwhere(wrong)[0])
            raise ValueError(
                f"the probabilities exp(log_probs) sum to {sums[context]:.12g} in the context {context}, and must sum "
                "to 1 in each; give log-probabilities in float64, such as log(counts / counts.sum(-1, keepdims=True))"
            )
