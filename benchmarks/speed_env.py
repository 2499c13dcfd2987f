"""How many steps a second the environment takes, beside Gymnasium's own ways and an environment that does the least.

The workload is that of `benchmarks.toy`, with random actions drawn beforehand. A step is a token appended: the call
that restarts an ended row in NEXT_STEP counts as none. Rows of one number of environments are timed in turns; files and
tables are left to others.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from benchmarks.requirement import Requirement
from benchmarks.timing import Timing, Work, interleave
from benchmarks.toy import HORIZON, KEYWORDS, MAX_LENGTH, VOCABULARY_SIZE, ToyEnv
from textgym.env import TextGenEnv
from textgym.vector_env import TextGenVectorEnv

NUM_ENVS = (1, 16, 256, 1024)
REPEATS, QUICK_REPEATS, QUICK_SHARE = 5, 3, 8
SCALAR, TOY = "TextGenEnv", "ToyEnv"
COPY = "a copy of the observations alone"  # the machine's limit: every step returns a fresh one
SYNC, SYNC_TOY = f"SyncVectorEnv of {SCALAR}", f"SyncVectorEnv of {TOY}"
DUMMY = f"stable-baselines3's DummyVecEnv of {SCALAR}"
_SEED = 0


def native(mode: AutoresetMode, extra: str) -> str:
    """The name of a row of the native vector environment."""
    return f"TextGenVectorEnv, {mode.name}, {extra}"


PER_ENV, SHARED = "rng='per_env'", "rng='shared'"
VIEWS, DICT = "rng='shared', copy=False", "rng='shared', observation='dict'"
_NATIVE: dict[str, dict[str, Any]] = {
    native(mode, extra): {"autoreset_mode": mode, **keywords}
    for mode, extra, keywords in (
        (AutoresetMode.NEXT_STEP, PER_ENV, {"rng": "per_env"}),
        (AutoresetMode.NEXT_STEP, SHARED, {"rng": "shared"}),
        (AutoresetMode.SAME_STEP, PER_ENV, {"rng": "per_env"}),
        (AutoresetMode.SAME_STEP, SHARED, {"rng": "shared"}),
        (AutoresetMode.SAME_STEP, VIEWS, {"rng": "shared", "copy": False}),
        (AutoresetMode.SAME_STEP, DICT, {"rng": "shared", "observation": "dict"}),
    )
}


@dataclass(frozen=True)
class Row:
    """What is timed: `episodes` episodes in each of `num_envs` environments.

    Attributes:
        name: what is stepped.
        num_envs: N.
        episodes: of each environment, in one repeat.
        make: called as make(num_envs, episodes), builds the environments and returns the work.
        needs: the module that it cannot run without.
    """

    name: str
    num_envs: int
    episodes: int
    make: Callable[[int, int], Work]
    needs: str = "textgym"

    @property
    def steps(self) -> int:
        """Steps of one repeat, of all environments together."""
        return self.num_envs * self.episodes * HORIZON


# A sketch of such an environment took 808,000 steps a second by itself and 483,000 under SyncVectorEnv; a factor of 1.3
# off that ratio is allowed.
_SCALAR_AT_LEAST = 808 / 483 / 1.3
COMPARISONS = (
    Requirement((native(AutoresetMode.NEXT_STEP, SHARED), 1024), (SYNC, 1024), 10.0),
    Requirement((native(AutoresetMode.SAME_STEP, SHARED), 1024), (SYNC, 1024), 10.0),
    Requirement((native(AutoresetMode.NEXT_STEP, PER_ENV), 1024), (SYNC, 1024), 4.0),
    Requirement((native(AutoresetMode.SAME_STEP, PER_ENV), 1024), (SYNC, 1024), 4.0),
    Requirement((SCALAR, 1), (SYNC, 1024), _SCALAR_AT_LEAST),
    Requirement((native(AutoresetMode.NEXT_STEP, SHARED), 1024), (SYNC_TOY, 1024), None),
    Requirement((native(AutoresetMode.NEXT_STEP, PER_ENV), 1024), (SYNC_TOY, 1024), None),
    Requirement((SYNC_TOY, 1024), (SYNC, 1024), None),
    Requirement((native(AutoresetMode.NEXT_STEP, SHARED), 1024), (COPY, 1024), None),
    Requirement((TOY, 1), (SCALAR, 1), None),
    Requirement((native(AutoresetMode.SAME_STEP, SHARED), 1024), (DUMMY, 1024), None),
)


def groups(quick: bool = False) -> list[list[Row]]:
    """The rows to time, those that are timed in turns side by side; with `quick` fewer episodes of each."""
    made = [list(_rows(num_envs, QUICK_SHARE if quick else 1)) for num_envs in NUM_ENVS]
    share = QUICK_SHARE if quick else 1
    # Beside the largest number of environments, which the scalar one is compared with.
    made[-1] += [
        Row(SCALAR, 1, 2048 // share, lambda _, episodes: _scalar(TextGenEnv(**KEYWORDS), episodes)),
        Row(TOY, 1, 8192 // share, lambda _, episodes: _scalar(ToyEnv(), episodes)),
    ]
    return made


def measure(
    rows: list[Row], repeats: int, clock: Callable[[], float] = time.perf_counter
) -> dict[tuple[str, int], Timing]:
    """Time rows in turns; a row whose library is not installed is missing."""
    works: dict[tuple[str, int], Work | str] = {
        (row.name, row.num_envs): row.make(row.num_envs, row.episodes)
        if find_spec(row.needs)
        else f"{row.needs} is not installed"
        for row in rows
    }
    return interleave(works, repeats, clock)


def _rows(num_envs: int, share: int) -> Iterator[Row]:
    """The vector rows of one N. The slower ones play fewer episodes, so that all take about as long."""
    few = max(1, 1024 // num_envs // share)
    yield Row(SYNC, num_envs, few, partial(_sync, partial(TextGenEnv, **KEYWORDS)))
    yield Row(SYNC_TOY, num_envs, 4 * few, partial(_sync, ToyEnv))
    yield Row(DUMMY, num_envs, few, _dummy, needs="stable_baselines3")
    many = max(1, min(num_envs, 32) * 1024 // num_envs // share)
    for name, keywords in _NATIVE.items():
        yield Row(name, num_envs, many, partial(_native, keywords))
    yield Row(COPY, num_envs, 8 * many, _copy)


def _scalar(env: gym.Env[Any, Any], episodes: int) -> Work:
    actions = list(_actions(HORIZON))
    env.reset(seed=_SEED)

    def run() -> int:
        for _ in range(episodes):
            for action in actions:
                _, _, terminated, truncated, _ = env.step(action)
                if terminated or truncated:
                    env.reset()
        return episodes * HORIZON

    return run


def _sync(make: Callable[[], gym.Env[Any, Any]], num_envs: int, episodes: int) -> Work:
    envs = SyncVectorEnv([make] * num_envs)
    envs.reset(seed=_SEED)
    return _vector(envs, num_envs, episodes, HORIZON + 1)


def _native(keywords: dict[str, Any], num_envs: int, episodes: int) -> Work:
    envs = TextGenVectorEnv(num_envs, **KEYWORDS, **keywords)
    envs.reset(seed=_SEED)
    restarts = keywords["autoreset_mode"] is AutoresetMode.NEXT_STEP
    return _vector(envs, num_envs, episodes, HORIZON + restarts)


def _copy(num_envs: int, episodes: int) -> Work:
    observations = np.zeros((num_envs, MAX_LENGTH), dtype=np.int64)

    def run() -> int:
        for _ in range(episodes * HORIZON):
            observations.copy()
        return num_envs * episodes * HORIZON

    return run


def _dummy(num_envs: int, episodes: int) -> Work:
    from stable_baselines3.common.vec_env import DummyVecEnv

    envs = DummyVecEnv([partial(TextGenEnv, **KEYWORDS)] * num_envs)
    envs.seed(_SEED)
    envs.reset()
    return _vector(envs, num_envs, episodes, HORIZON)


def _vector(envs: Any, num_envs: int, episodes: int, calls: int) -> Work:
    """Work of `calls` calls an episode; all rows begin and end their episodes together."""
    actions = _actions(calls, num_envs)

    def run() -> int:
        for _ in range(episodes):
            for chosen in actions:
                envs.step(chosen)
        return num_envs * episodes * HORIZON

    return run


def _actions(*shape: int) -> np.ndarray:
    return np.random.default_rng(_SEED).integers(VOCABULARY_SIZE, size=shape)
