"""TextGenVecEnv: the native vector environment behind stable-baselines3's VecEnv, which is not Gymnasium's VectorEnv.

It is what DummyVecEnv over scalar environments is, step for step, and many times as fast.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from stable_baselines3.common.vec_env import VecEnv, VecMonitor

import textgym  # noqa: F401  (registers the environment)
from textgym.vector_env import TextGenVectorEnv

Observations = np.ndarray | dict[str, np.ndarray]
_METHODS = ("action_masks", "render")  # that a row has by itself


class TextGenVecEnv(VecEnv):
    """N rows of the native environment in SAME_STEP mode.

    A row that ends shows its next episode at once; the last observation of the ended one is `terminal_observation` in
    its info, and the flag of a truncation `TimeLimit.truncated`.

    Args:
        envs: `gym.make_vec("TextGen-v0", ..., autoreset_mode=AutoresetMode.SAME_STEP)`, wrapped or not.

    Raises:
        TypeError, ValueError: no such environment.
    """

    def __init__(self, envs: VectorEnv) -> None:
        native = envs.unwrapped if isinstance(envs, VectorEnv) else None
        if not isinstance(native, TextGenVectorEnv):
            raise TypeError(f"envs is a {type(envs).__name__}; give gym.make_vec('TextGen-v0', ...)")
        if native.autoreset_mode is not AutoresetMode.SAME_STEP:
            raise ValueError(
                f"envs has autoreset_mode {native.autoreset_mode.name}; make it with "
                "autoreset_mode=AutoresetMode.SAME_STEP, which is what stable-baselines3 expects"
            )
        if not native.problem.copy:
            raise ValueError(
                "envs has copy=False; leave that out: stable-baselines3 keeps observations past the next step"
            )
        self.envs, self.native = envs, native
        self._actions = np.zeros(0, dtype=np.int64)
        super().__init__(envs.num_envs, envs.single_observation_space, envs.single_action_space)

    def reset(self) -> Observations:
        """Begin an episode in every row, with the seeds and options that were set; observations [N, ...]."""
        seeds: Any = None if all(seed is None for seed in self._seeds) else self._seeds
        if seeds is not None and self.native.problem.rng == "shared":
            seeds = seeds[0]  # all rows draw from one generator
        observations, infos = self.envs.reset(seed=seeds, options=_joined(self._options))
        self._reset_seeds()
        self._reset_options()
        self.reset_infos = _rows(infos)
        return observations

    def step_async(self, actions: np.ndarray) -> None:
        """Note what `step_wait` is to do: token ids, int [N]."""
        self._actions = np.asarray(actions)

    def step_wait(self) -> tuple[Observations, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """Observations [N, ...], rewards float32 [N], whether episodes have ended, bool [N], and an info a row."""
        observations, rewards, terminated, truncated, infos = self.envs.step(self._actions)
        ended = terminated | truncated
        rows = _rows(infos)
        for row in np.flatnonzero(ended).tolist():
            self.reset_infos[row] = rows[row]
        if ended.any():
            last = _rows(infos["final_info"])
            for row in np.flatnonzero(ended).tolist():
                rows[row] = rows[row] | last[row] | {"terminal_observation": infos["final_obs"][row]}
        for info, cut in zip(rows, (truncated & ~terminated).tolist(), strict=True):
            info["TimeLimit.truncated"] = cut
        return observations, rewards.astype(np.float32), ended, rows

    def close(self) -> None:
        """Close the environment."""
        self.envs.close()

    def get_images(self) -> Sequence[np.ndarray | None]:
        """A frame of each row, where `render_mode` is "rgb_array"."""
        return self.native.call("render")

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """The attribute of each row; of `action_masks` and `render` a method of each row."""
        rows = list(self._get_indices(indices))
        if attr_name in _METHODS:
            return [partial(self._call, attr_name, row) for row in rows]
        values = self.native.get_attr(attr_name)
        return [values[row] for row in rows]

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Refused: rows have no attributes of their own."""
        raise NotImplementedError(
            f"set_attr({attr_name!r}): the rows of a native environment share all attributes; make the environment "
            "with the keyword that says so, or give stable-baselines3 a DummyVecEnv of scalar environments"
        )

    def env_method(self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any) -> list[Any]:
        """What the method `action_masks` or `render` of each row returns."""
        values = self.native.call(method_name, *method_args, **method_kwargs)
        return [values[row] for row in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class: type, indices: Any = None) -> list[bool]:
        """Whether rows are wrapped: never one by one."""
        return [False for _ in self._get_indices(indices)]

    def _call(self, name: str, row: int) -> Any:
        return self.native.call(name)[row]


def make_vec_env(
    env_id: str = "TextGen-v0",
    n_envs: int = 1,
    seed: int | None = None,
    monitor_dir: str | None = None,
    env_kwargs: dict[str, Any] | None = None,
) -> VecMonitor:
    """As stable-baselines3's function of this name, over the native vector environment.

    Where the task constrains actions the observations are dicts, which hold the action mask, unless `env_kwargs` says
    otherwise: `TextGenPolicy` reads it there.

    Args:
        env_id: of the registered environment.
        n_envs: N.
        seed: row i is seeded with seed + i at the first reset.
        monitor_dir: folder for the monitor's file, made where it does not exist; none is written without.
        env_kwargs: the environment's keywords.

    Returns:
        The environment in a VecMonitor, so that episodes are counted in the logs.
    """
    keywords = {"autoreset_mode": AutoresetMode.SAME_STEP, **(env_kwargs or {})}
    envs = gym.make_vec(env_id, num_envs=n_envs, **keywords)
    native: Any = envs.unwrapped
    if isinstance(native, TextGenVectorEnv) and native.problem.constraint is not None and "observation" not in keywords:
        envs = gym.make_vec(env_id, num_envs=n_envs, observation="dict", **keywords)
    vec_env = TextGenVecEnv(envs)
    if monitor_dir is not None:
        Path(monitor_dir).mkdir(parents=True, exist_ok=True)
    if seed is not None:
        vec_env.seed(seed)
    return VecMonitor(vec_env, monitor_dir)


def _joined(options: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The options of N rows as those of a vector environment."""
    names = sorted({name for own in options for name in own})
    return {"rows": {name: [own.get(name) for own in options] for name in names}} if names else None


def _rows(infos: dict[str, Any]) -> list[dict[str, Any]]:
    """A dict a row, with the values that a scalar environment has there, of Gymnasium's dict of arrays."""
    names = [name for name in infos if not name.startswith(("_", "final_"))]
    # Python's own numbers, as a scalar environment has them; what has more than one value stays an array.
    columns = [_column(infos[name]) for name in names]
    rows = [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]
    for name in names:  # what a wrapper says of some rows alone
        for row in np.flatnonzero(~infos.get(f"_{name}", np.ones(len(rows), dtype=bool))):
            del rows[row][name]
    return rows


def _column(values: Any) -> list[Any]:
    if isinstance(values, dict):  # a wrapper's
        return _rows(values)
    return values.tolist() if values.ndim == 1 else list(values)
