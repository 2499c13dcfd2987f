"""TextGenVectorEnv: N rows of the transition behind Gymnasium's vector interface, in all three autoreset modes.

Row i of an environment seeded s behaves exactly as a scalar environment seeded s + i.
"""

import operator
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from textgym.draws import PromptDraws, RowGenerators
from textgym.finish import FinishReason
from textgym.observations import observation_space, observe, row_of
from textgym.problem import Problem, make_problem
from textgym.rendering import RENDER_MODES, HumanRenderer, render_ansi, render_rgb, usable_render_mode
from textgym.starts import Start, make_start, row_options
from textgym.state import get_state, set_state
from textgym.transition import StartPlan, Transition

_OF_EACH_ROW = frozenset({"action_masks", "render", "np_random", "np_random_seed"})


class TextGenVectorEnv(VectorEnv[Any, np.ndarray, np.ndarray]):
    """N text-generation environments as one; see `TextGenEnv` for the process.

    Args:
        num_envs: N.
        autoreset_mode: Gymnasium's `AutoresetMode` or its value. In DISABLED an ended row is frozen until
            `reset(options={"reset_mask": mask})`: it keeps observation, flags and info, pays 0 and ignores its action.
        max_episode_steps: refused; the horizon is `max_new_tokens`.
        render_mode: None, "ansi", "human" or "rgb_array".
        problem: a problem that is built already, instead of keywords.
        **keywords: those of `textgym.problem.make_problem`.

    Attributes:
        problem: the checked keywords.
        vocabulary: the tokens.
        optimum: J*, or None where it is not known.
        uniform: J of the uniform policy, or None where it is not known.
    """

    metadata: dict[str, Any] = {"render_modes": list(RENDER_MODES), "render_fps": 4}

    def __init__(
        self,
        num_envs: int = 1,
        *,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        max_episode_steps: int | None = None,
        render_mode: str | None = None,
        problem: Problem | None = None,
        **keywords: Any,
    ) -> None:
        if isinstance(num_envs, bool) or not hasattr(num_envs, "__index__") or num_envs < 1:
            raise ValueError(f"num_envs={num_envs!r}; give an integer of at least 1")
        if max_episode_steps is not None:
            raise ValueError(
                f"max_episode_steps={max_episode_steps}; the horizon of this environment is max_new_tokens"
            )
        if problem is not None and keywords:
            raise TypeError(f"problem= is complete; leave out {', '.join(keywords)}")
        self.problem = make_problem(**keywords) if problem is None else problem
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.metadata = {**type(self).metadata, "autoreset_mode": self.autoreset_mode}
        self.render_mode, warning = usable_render_mode(render_mode)
        if warning:
            warnings.warn(warning, UserWarning, stacklevel=2)
        self._human = HumanRenderer() if self.render_mode == "human" else None
        self.num_envs = operator.index(num_envs)
        shared = self.problem.rng == "shared"
        self._generators = RowGenerators(self.num_envs, shared)
        # Before the spaces: it refuses an absurd length.
        self._transition = Transition(self.problem, self.num_envs, self._generators)
        sequential = self.problem.prompt_order == "sequential"
        self._draws = PromptDraws(self.problem.prompts, sequential, self._generators, self.num_envs, shared)
        self.vocabulary = self.problem.vocabulary
        self.optimum, self.uniform = self.problem.optimum, self.problem.uniform
        self.single_observation_space = observation_space(self.problem)
        self.single_action_space = gym.spaces.Discrete(self.vocabulary.size)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._ended = np.zeros(self.num_envs, dtype=bool)
        scheme = self.problem.scheme
        self._starts_surely = (
            self.problem.prompts.checked
            and self.problem.constraint is None
            and not (scheme.scores_prefixes or scheme.potentials)
        )

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Begin an episode in every row, or in those of `options["reset_mask"]`.

        Args:
            seed: an integer s seeds row i with s + i, or the one generator of `rng="shared"` with s; a sequence holds
                one seed a row. A row that is seeded begins its walk in order at the first prompt again.
            options: see `textgym.starts`; `rows` holds one value a row, `reset_mask` bool [N] picks rows.

        Returns:
            The observations and the infos; entries of rows that were not reset are 0 (save `action_mask`, the mask that
            holds) and masked out.

        Raises:
            TypeError, ValueError: options or seeds of another kind, or a state outside the process.
            textgym.RewardError: the scheme needs the score of a starting state, and that failed. Whatever is raised,
                nothing has changed then.
        """
        rows = np.arange(self.num_envs)
        each = row_options(options, self.num_envs) if options is not None else None
        if options is not None and options.get("reset_mask") is not None:
            rows = np.flatnonzero(self._checked_mask(options["reset_mask"]))
        with self._generators.undone_on_failure(rows), self._draws.undone_on_failure():
            self._draws.rewind(self._generators.seed(rows, seed))
            plan = self._transition.plan(rows, self._starts(rows, each))
        self._transition.begin(plan)
        self._ended[rows] = False
        return observe(self._transition), self._infos(rows)

    def step(self, actions: np.ndarray) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Append a token to every running row.

        Args:
            actions: int [N], token ids 0 to V-1; that of a row which is frozen, or restarts now, is not looked at.

        Returns:
            The observations, rewards float64 [N], terminated bool [N], truncated bool [N] and infos. In SAME_STEP a row
            that ended shows its next episode, and `final_obs` and `final_info` the ended one.

        Raises:
            ValueError: an action outside the action space, or one that the mask forbids, or a wrong number of them.
            textgym.RewardError: the reward function failed. Whatever is raised, also by the start of an episode that
                follows in the same step, nothing has changed then, and the step can be taken again.
            gymnasium.error.ResetNeeded: the environment was never reset.
        """
        self._check_reset()
        actions = self._checked_actions(actions)
        stepping = np.flatnonzero(self._transition.running)
        plan = self._advance(actions, stepping)
        ended = self._ended.copy() if self.autoreset_mode is AutoresetMode.DISABLED else np.zeros_like(self._ended)
        ended[stepping] = ~self._transition.running[stepping]
        rewards = np.zeros(self.num_envs)
        rewards[stepping] = self._transition.reward[stepping]
        limit = self._transition.finish_reason == FinishReason.LIMIT
        truncated = ended & limit if self.problem.on_limit == "truncate" else np.zeros_like(ended)
        self._show(stepping[ended[stepping]])
        final = self._final(ended) if self.autoreset_mode is AutoresetMode.SAME_STEP and ended.any() else {}
        if plan is not None:
            self._transition.begin(plan)
        self._ended = np.zeros_like(ended) if final else ended.copy()
        infos = {**final, **self._infos(np.arange(self.num_envs))}
        return observe(self._transition), rewards, ended & ~truncated, truncated, infos

    def action_masks(self) -> np.ndarray:
        """Which actions are legal now, bool [N, V]; all in a row that has ended, and where no task constrains them."""
        return self._transition.action_masks()

    def render(self) -> tuple[str, ...] | tuple[np.ndarray, ...] | None:
        """Each row's episode as text ("ansi") or as a frame ("rgb_array"); "human" prints by itself."""
        if self.render_mode == "ansi":
            return tuple(render_ansi(self._transition.view(row)) for row in range(self.num_envs))
        if self.render_mode == "rgb_array":
            return tuple(render_rgb(self._transition.view(row)) for row in range(self.num_envs))
        return None

    def get_state(self) -> dict[str, np.ndarray]:
        """The episodes, the generators and the places in the list of prompts, as arrays that `np.savez` can store.

        Raises:
            TypeError: a column that JSON cannot hold.
        """
        state = get_state(self._transition, self._draws, self._generators.state())
        return state | {"ended": self._ended.copy()}

    def set_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Go on where `get_state` was called, on an environment that was made with the same keywords and `num_envs`.

        Raises:
            TypeError, ValueError: no state of such an environment; nothing has changed then.
        """
        count = self._generators.count
        generators, arrays = set_state(self._transition, self._draws, state, {"ended": self._ended}, count)
        self._generators.restore(generators)
        self._ended[:] = arrays["ended"]

    @property
    def any_running(self) -> bool:
        """Whether an episode is running in some row."""
        return bool(self._transition.running.any())

    def call(self, name: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """What each row answers to the attribute or method `name`, N values.

        Raises:
            AttributeError: there is none, or a method that is one for all rows together.
        """
        single = f"single_{name}"  # a row's own spaces
        value = getattr(self, single if hasattr(self, single) else name)
        if name in _OF_EACH_ROW:
            value = value(*args, **kwargs) if callable(value) else value
            return (None,) * self.num_envs if value is None else tuple(value)
        if callable(value):
            raise AttributeError(
                f"call({name!r}) asks for the method of a single row, and {name} is one for all rows; call it on the "
                f"environment itself. Of each row there are {', '.join(sorted(_OF_EACH_ROW))}"
            )
        return (value,) * self.num_envs

    def get_attr(self, name: str) -> tuple[Any, ...]:
        """The attribute `name` of each row, N values."""
        return self.call(name)

    @property
    def np_random_seed(self) -> tuple[int | None, ...]:  # type: ignore[override]
        """The seed of each row."""
        return self._generators.seeds

    @property  # type: ignore[misc]
    def np_random(self) -> tuple[np.random.Generator, ...]:  # type: ignore[override]
        """The generator of each row."""
        return tuple(self._generators(row) for row in range(self.num_envs))

    def _starts(self, rows: np.ndarray, options: list[dict[str, Any]] | None) -> list[Start]:
        if options is None:
            return [Start(prompt) for prompt in self._draws(rows)]
        return [make_start(self.problem, options[row], partial(self._draws.one, row)) for row in rows.tolist()]

    def _advance(self, actions: np.ndarray, stepping: np.ndarray) -> StartPlan | None:
        """Take the step, and plan the episodes that begin with it; where such a plan fails, nothing is kept."""
        plans = []
        restarting = np.flatnonzero(self._ended) if self.autoreset_mode is AutoresetMode.NEXT_STEP else stepping[:0]

        def prepare(ended: np.ndarray) -> None:
            rows = ended if self.autoreset_mode is AutoresetMode.SAME_STEP else restarting
            if len(rows):
                plans.append(self._plan(rows))

        if len(stepping):
            self._transition.step(actions, stepping, prepare)
        else:
            prepare(stepping)
        return plans[0] if plans else None

    def _plan(self, rows: np.ndarray) -> StartPlan:
        if self._starts_surely:
            return self._transition.plan(rows, self._starts(rows, None))
        with self._generators.undone_on_failure(rows), self._draws.undone_on_failure():
            return self._transition.plan(rows, self._starts(rows, None))

    def _show(self, ended: np.ndarray) -> None:
        if self._human is not None:  # before an ended row restarts
            self._human.show_rows({row: self._transition.view(row) for row in ended.tolist()})

    def _final(self, ended: np.ndarray) -> dict[str, Any]:
        """What the rows that ended, bool [N], look like before they restart, as Gymnasium has it in SAME_STEP."""
        rows = np.flatnonzero(ended)
        final_obs = np.full(self.num_envs, None, dtype=object)
        observations = observe(self._transition, rows)
        for place, row in enumerate(rows.tolist()):
            final_obs[row] = row_of(observations, place)
        final = {"final_obs": final_obs, "final_info": self._infos(rows)}
        return final | {f"_{name}": ended.copy() for name in final}

    def _infos(self, rows: np.ndarray) -> dict[str, Any]:
        present = np.zeros(self.num_envs, dtype=bool)
        present[rows] = True
        infos: dict[str, Any] = {}
        for name, values in self._transition.infos().items():
            if len(rows) < self.num_envs and name != "action_mask":  # a mask without a legal token would be a trap
                values[~present] = None if values.dtype == object else 0
            infos[name], infos[f"_{name}"] = values, present.copy()
        return infos

    def _checked_mask(self, mask: Any) -> np.ndarray:
        if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_ or mask.shape != (self.num_envs,):
            described = f"{mask.dtype} {mask.shape}" if isinstance(mask, np.ndarray) else type(mask).__name__
            message = f"the reset option 'reset_mask' is {described}; give a numpy array, bool ({self.num_envs},)"
            raise (TypeError if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_ else ValueError)(message)
        if not mask.any():
            raise ValueError("the reset option 'reset_mask' is all False; set at least one row")
        return mask

    def _check_reset(self) -> None:
        begun = self._transition.running | self._ended
        if self.autoreset_mode is AutoresetMode.DISABLED and begun.any():
            return  # a row that was never begun is frozen, like one that has ended
        if not begun.all():
            raise gym.error.ResetNeeded(
                f"call reset() before the first step: row {int(begun.argmin())} was never reset"
            )

    def _checked_actions(self, actions: Any) -> np.ndarray:
        array = np.asarray(actions)
        if array.shape != (self.num_envs,) or not np.issubdtype(array.dtype, np.integer):
            raise ValueError(
                f"actions are {array.dtype} {array.shape}; give integers, one for each of {self.num_envs} rows"
            )
        return array
