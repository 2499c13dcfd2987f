"""CalledAgent: anything that chooses actions when it is called, as an actor that `collect` can drive."""

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np

from textgym.escape import shown, told, type_name

if TYPE_CHECKING:
    import torch


class CalledAgent:
    """An agent of any library: `predict(observation, deterministic)`, or a callable from observations to actions.

    It is asked about the running episodes alone, so that N differs from call to call. Where the task constrains
    actions, a `predict` with a parameter `action_masks` gets them, and dict observations hold them.

    Args:
        agent: the object.
        size: V.
        name: what errors call it.
        deterministic: what `predict` is told; a callable is told nothing.
        dict_observations: whether it gets dict observations, as `observation="dict"` has them; None asks its
            `observation_space`, and gives histories where it has none.

    Raises:
        TypeError: it has no `predict`, and cannot be called.
    """

    def __init__(
        self, agent: Any, size: int, name: str, deterministic: bool = False, dict_observations: bool | None = None
    ) -> None:
        if not predicts(agent) and not callable(agent):
            raise TypeError(
                f"{name} is of type {type_name(agent)}; give an object with predict(observation, deterministic), or a "
                "function from observations to actions"
            )
        self.agent, self.size, self.name, self.deterministic = agent, size, name, deterministic
        space = getattr(agent, "observation_space", None)
        self.dict_observations = isinstance(space, gym.spaces.Dict) if dict_observations is None else dict_observations
        self._takes_masks = predicts(agent) and _has_parameter(agent.predict, "action_masks")

    def act(
        self,
        observations: np.ndarray,
        generator: "torch.Generator | None" = None,
        action_mask: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Actions int64 [N] in the states of int64 [N, L]; their log-probs are not known, NaN float32 [N].

        Raises:
            ValueError: it returned something else than N tokens.
        """
        given = self._dict(observations, action_mask) if self.dict_observations else observations.copy()
        try:
            actions = np.asarray(self._asked(given, action_mask))
        except (Exception, SystemExit) as error:  # it may be anything
            raise ValueError(f"{self.name} raised {told(error)}") from error
        return self._checked(actions, len(observations)), np.full(len(observations), np.nan, dtype=np.float32)

    def _asked(self, given: Any, action_mask: np.ndarray | None) -> Any:
        if not predicts(self.agent):
            return self.agent(given)
        masks = {"action_masks": action_mask} if self._takes_masks and action_mask is not None else {}
        returned = self.agent.predict(given, deterministic=self.deterministic, **masks)
        if not isinstance(returned, tuple):
            return returned
        if len(returned) > 1 and returned[1] is not None:
            raise ValueError(
                "it keeps a state, and running episodes come and go in a batch: wrap it in a function that needs the "
                "histories alone"
            )
        return returned[0]

    def _dict(self, histories: np.ndarray, action_mask: np.ndarray | None) -> dict[str, np.ndarray]:
        written = histories != self.size
        legal = np.ones((len(histories), self.size)) if action_mask is None else action_mask
        return {
            "tokens": histories.copy(),
            "length": written.sum(axis=1, keepdims=True),
            "attention_mask": written.astype(np.int8),
            "action_mask": legal.astype(np.int8),
        }

    def _checked(self, array: np.ndarray, count: int) -> np.ndarray:
        if array.shape != (count,) or not np.issubdtype(array.dtype, np.integer):
            raise ValueError(
                f"{self.name} returned {array.dtype} {array.shape} for {count} observations; return one token id for "
                f"each, integers of shape ({count},)"
            )
        if array.min() < 0 or array.max() >= self.size:
            bad = array[(array < 0) | (array >= self.size)][0]
            raise ValueError(f"{self.name} returned the action {shown(bad)}; tokens are 0 to {self.size - 1}")
        return array.astype(np.int64)


def predicts(agent: Any) -> bool:
    """Whether an object has a method `predict`."""
    return callable(getattr(agent, "predict", None))


def _has_parameter(function: Callable[..., Any], name: str) -> bool:
    try:
        return name in inspect.signature(function).parameters
    except (TypeError, ValueError):  # written in C
        return False
