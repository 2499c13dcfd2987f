"""TextGenEnv: one row of the transition behind Gymnasium's scalar interface."""

import operator
import warnings
from typing import Any

import gymnasium as gym
import numpy as np

from textgym.problem import make_problem
from textgym.rendering import RENDER_MODES, HumanRenderer, render_ansi, render_rgb, usable_render_mode
from textgym.starts import make_start
from textgym.transition import Transition

_ROW = np.array([0])


class TextGenEnv(gym.Env[np.ndarray, np.int64]):
    """Text generation as a Markov decision process.

    ## Description
    The agent writes a text token by token after a prompt. The transition is deterministic: the chosen token is appended
    to the history. The whole text is scored at the end.

    ## Action Space
    `Discrete(V)`, the next token; a stop token is an action like any other.

    ## Observation Space
    `Box(0, V, (L,), int64)`: prompt, generated tokens, then PAD = V. L = max_prompt_tokens + max_new_tokens.

    ## Starting State
    A prompt drawn with the environment's generator, or the one that the reset options name (`prompt`, `prompt_ids` or
    `prompt_index`, `columns`, `completion_ids`).

    ## Reward
    A float. With the scheme `terminal` the score of the text at the last step and 0 before; with `prefix_delta` what
    each step added to the score.

    ## Episode End
    `terminated` at a stop token or at the horizon of `max_new_tokens`; never `truncated`. The horizon is part of the
    task: the state holds the whole history, so nothing is left to bootstrap from. `info["finish_reason"]` is 0 while
    running, 1 after a stop token, 2 at the horizon.

    ## Info
    `prompt_length`, `length`, `finish_reason` (int); `score` (float); `scores` float64 [K] and `scores_valid` bool [K],
    one for each reward function; `valid` (bool).

    ## Arguments
    The keywords of `textgym.problem.make_problem`, and `render_mode` (None, "ansi", "human" or
    "rgb_array").

    ## Version History
    * v0: the first version.
    """

    metadata: dict[str, Any] = {"render_modes": list(RENDER_MODES), "render_fps": 4}

    def __init__(self, *, render_mode: str | None = None, **keywords: Any) -> None:
        self.problem = make_problem(**keywords)
        self._transition = Transition(self.problem, 1)  # before the spaces: it refuses an absurd length
        self.render_mode, warning = usable_render_mode(render_mode)
        if warning:
            warnings.warn(warning, UserWarning, stacklevel=2)
        self._human = HumanRenderer() if self.render_mode == "human" else None
        self.vocabulary = self.problem.vocabulary
        self.optimum, self.uniform = self.problem.optimum, self.problem.uniform
        self.observation_space = observation_space(self.problem.max_length, self.vocabulary.size)
        self.action_space = gym.spaces.Discrete(self.vocabulary.size)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode.

        Args:
            seed: seeds the generator that prompts are drawn with.
            options: see `textgym.starts`.

        Returns:
            The observation int64 [L] and the info.
        """
        super().reset(seed=None if seed is None else operator.index(seed))
        self._transition.start(_ROW, [make_start(self.problem, options, self.np_random)])
        self._draw()
        return self._transition.tokens[0].copy(), self._info()

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Append a token.

        Args:
            action: the token id, 0 to V-1.

        Returns:
            The observation int64 [L], reward, terminated, truncated (always False) and info.

        Raises:
            ValueError: an action outside the action space.
            textgym.RewardError: the reward function failed.
            gymnasium.error.ResetNeeded: no episode is running.
        """
        if not self._transition.running[0]:
            raise gym.error.ResetNeeded("no episode is running: call reset() before the first step and after an end")
        self._transition.step(np.array([action_id(action)]), _ROW)
        self._draw()
        terminated = not bool(self._transition.running[0])
        return self._transition.tokens[0].copy(), float(self._transition.reward[0]), terminated, False, self._info()

    def action_masks(self) -> np.ndarray:
        """Which actions are legal now, bool [V]; all are, no task constrains them."""
        return np.ones(self.vocabulary.size, dtype=bool)

    def render(self) -> str | np.ndarray | None:
        """The episode as it stands.

        Returns:
            With `render_mode="ansi"` a text, with "rgb_array" a picture uint8 [360, 640, 3]; None with "human", which
            draws on standard output at every reset and step by itself, and without a render mode.

        Raises:
            ImportError: a picture is asked for and pillow is not installed.
        """
        if self.render_mode == "ansi":
            return render_ansi(self._transition.view(0))
        if self.render_mode == "rgb_array":
            return render_rgb(self._transition.view(0))
        return None

    def _draw(self) -> None:
        if self._human is not None:
            self._human.show(self._transition.view(0))

    def _info(self) -> dict[str, Any]:
        # Plain Python numbers for scalars: Gymnasium batches them into the dtypes of the native vector environment.
        return {
            name: values[0].item() if values.ndim == 1 else values[0]
            for name, values in self._transition.infos().items()
        }


def observation_space(length: int, size: int) -> gym.spaces.Box:
    """The space of token histories of `length` tokens over `size` tokens and PAD."""
    return gym.spaces.Box(0, size, (length,), np.int64)


def action_id(action: Any) -> int:
    """The action as an integer; accepts what indexes, and arrays of one integer."""
    if isinstance(action, np.ndarray) and action.size == 1 and np.issubdtype(action.dtype, np.integer):
        return int(action.reshape(()))
    try:
        return operator.index(action)
    except TypeError as error:
        raise ValueError(
            f"action is {action!r:.80} of type {type(action).__name__}; give an integer token id"
        ) from error
