"""TextGenEnv: one row of the transition behind Gymnasium's scalar interface."""

import operator
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np

from textgym.draws import PromptDraws, generator_state
from textgym.finish import FinishReason
from textgym.observations import observation_space, observe, read_only, row_of
from textgym.problem import make_problem
from textgym.rendering import RENDER_MODES, HumanRenderer, render_ansi, render_rgb, usable_render_mode
from textgym.rewards.texts import generator_states, put_back
from textgym.starts import Start, make_start
from textgym.state import get_state, set_state
from textgym.transition import Transition

_ROW = np.array([0])


class TextGenEnv(gym.Env[Any, np.int64]):
    """Text generation as a Markov decision process.

    ## Description
    The agent writes a text token by token after a prompt. The transition is deterministic: the chosen token is appended
    to the history. The whole text is scored at the end.

    ## Action Space
    `Discrete(V)`, the next token; a stop token is an action like any other.

    ## Observation Space
    `Box(0, V, (L,), int64)`: prompt, generated tokens, then PAD = V. L = max_prompt_tokens + max_new_tokens. With
    `observation="dict"`: `tokens` as above, `length` int64 [1], `attention_mask` int8 [L], `action_mask` int8 [V].

    ## Starting State
    A prompt drawn with the environment's generator, or the next one of the list, or the one that the reset options name
    (`prompt`, `prompt_ids` or `prompt_index`, `columns`, `completion_ids`).

    ## Reward
    A float. With the scheme `terminal` the score of the text at the last step and 0 before; other schemes pay parts of
    it earlier, or add terms of their own.

    ## Episode End
    `terminated` at a stop token or string, at the horizon of `max_new_tokens`, where no token is legal, or after an
    illegal one. With `on_limit="truncate"` the horizon sets `truncated` instead. By default it terminates: it is part
    of the task, the state holds the whole history, and nothing is left to bootstrap from. `info["finish_reason"]` is
    0 while running, 1 stop, 2 horizon, 3 dead end, 4 illegal action.

    ## Info
    `prompt_length`, `length`, `finish_reason` (int); `score` (float); `scores` float64 [K] and `scores_valid` bool [K],
    one for each reward function; `valid` (bool). Where the task has them `true_score` (float), the hidden gold score,
    and `action_mask` int8 [V]. With `text_info=True` `prompt` and `completion` (str), "" until the end.

    ## Arguments
    The keywords of `textgym.problem.make_problem`, and `render_mode` (None, "ansi", "human" or "rgb_array").

    ## Version History
    * v0: the first version.
    """

    metadata: dict[str, Any] = {"render_modes": list(RENDER_MODES), "render_fps": 4}

    def __init__(self, *, render_mode: str | None = None, **keywords: Any) -> None:
        self.problem = make_problem(**keywords)
        # Before the spaces: it refuses an absurd length.
        self._transition = Transition(self.problem, 1, self._generator_of)
        self._draws = PromptDraws(self.problem.prompts, self.problem.prompt_order == "sequential", self._generator_of)
        self.render_mode, warning = usable_render_mode(render_mode)
        if warning:
            warnings.warn(warning, UserWarning, stacklevel=2)
        self._human = HumanRenderer() if self.render_mode == "human" else None
        self.vocabulary = self.problem.vocabulary
        self.optimum, self.uniform = self.problem.optimum, self.problem.uniform
        self.observation_space = observation_space(self.problem)
        self.action_space = gym.spaces.Discrete(self.vocabulary.size)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode.

        Args:
            seed: seeds the generator that prompts are drawn with; a walk in order begins again at the first prompt.
            options: see `textgym.starts`.

        Returns:
            The observation and the info.
        """
        with self._generator_undone_on_failure(), self._draws.undone_on_failure():
            super().reset(seed=None if seed is None else operator.index(seed))
            if seed is not None:
                self._draws.rewind(_ROW)
            if options is None:
                start = Start(self._draws.one(0))
            else:
                start = make_start(self.problem, options, partial(self._draws.one, 0))
            plan = self._transition.plan(_ROW, [start])
        self._transition.begin(plan)
        self._show()
        return self._observation(), self._transition.info(0)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Append a token.

        Args:
            action: the token id, 0 to V-1.

        Returns:
            The observation, reward, terminated, truncated and info.

        Raises:
            ValueError: an action outside the action space, or one that the mask forbids.
            textgym.RewardError: a reward function failed.
            gymnasium.error.ResetNeeded: no episode is running.
        """
        if not self._transition.running[0]:
            raise gym.error.ResetNeeded("no episode is running: call reset() before the first step and after an end")
        transition = self._transition
        transition.step_one(action_id(action))
        ended = not transition.running.item(0)
        truncated = ended and self.problem.on_limit == "truncate" and transition.finish_reason[0] == FinishReason.LIMIT
        self._show()
        return (
            self._observation(),
            transition.reward.item(0),
            ended and not truncated,
            bool(truncated),
            transition.info(0),
        )

    def action_masks(self) -> np.ndarray:
        """Which actions are legal now, bool [V]; all once the episode has ended, and where no task constrains them."""
        return self._transition.action_masks()[0]

    def render(self) -> str | np.ndarray | None:
        """The episode as text ("ansi") or as a frame uint8 [H, W, 3] ("rgb_array"); "human" prints by itself."""
        if self.render_mode == "ansi":
            return render_ansi(self._transition.view(0))
        if self.render_mode == "rgb_array":
            return render_rgb(self._transition.view(0))
        self._show()
        return None

    def get_state(self) -> dict[str, np.ndarray]:
        """The episode, the generator and the place in the list of prompts, as arrays that `np.savez` can store.

        Raises:
            TypeError: a column that JSON cannot hold.
        """
        return get_state(self._transition, self._draws, [generator_state(self.np_random, self.np_random_seed)])

    def set_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Go on where `get_state` was called, on an environment that was made with the same keywords.

        Raises:
            TypeError, ValueError: no state of such an environment; nothing has changed then.
        """
        ((self._np_random, self._np_random_seed),), _ = set_state(self._transition, self._draws, state, {}, 1)

    # A method, where a lambda would leave a copy of the environment with the generator of the original.
    def _generator_of(self, row: int) -> np.random.Generator:
        return self.np_random

    @contextmanager
    def _generator_undone_on_failure(self) -> Iterator[None]:
        generator, seed = self._np_random, self._np_random_seed
        states = generator_states([] if generator is None else [generator])
        try:
            yield
        except BaseException:
            self._np_random, self._np_random_seed = generator, seed
            put_back(states)
            raise

    def _observation(self) -> Any:
        if self.problem.observation == "tokens":
            tokens = self._transition.tokens[0]
            return tokens.copy() if self.problem.copy else read_only(tokens)
        return row_of(observe(self._transition), 0)

    def _show(self) -> None:
        if self._human is not None:
            self._human.show(self._transition.view(0))


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
