"""Rename and cast the parts of dict observations, for agent libraries that insist on names and dtypes of their own.

`rename_observation` wraps a scalar or a vector environment made with `observation="dict"`; a preset names a library.
What an observation holds is left to the environment.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Dict, Space
from gymnasium.utils import RecordConstructorArgs
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from numpy.typing import DTypeLike

from textgym.errors import unknown
from textgym.escape import shown, type_name

Names = Mapping[str, str] | str
Dtypes = Mapping[str, DTypeLike] | None


class Preset(NamedTuple):
    """What a library insists on."""

    names: dict[str, str]  # key -> new name
    dtypes: dict[str, str]  # key -> dtype


PRESETS = {
    "rllib": Preset(
        {"tokens": "observations", "action_mask": "action_mask"}, {"tokens": "float32", "action_mask": "float32"}
    ),
    "tianshou": Preset({"tokens": "obs", "action_mask": "mask"}, {"action_mask": "bool"}),
}


class RenameObservation(gym.ObservationWrapper, RecordConstructorArgs):
    """A scalar environment whose observations have other names and dtypes.

    Args:
        env: an environment with dict observations.
        names: key -> new name; other keys are dropped, and the order is this one. Or the name of a preset, "rllib" or
            "tianshou".
        dtypes: key -> dtype, one that holds every value of the key's space; beside a preset, instead of its own.

    Raises:
        TypeError, ValueError: observations that are no dict, an unknown key or preset, one name for two keys, or a
            dtype that does not hold the values.
    """

    def __init__(self, env: gym.Env, names: Names, dtypes: Dtypes = None) -> None:
        self._renaming = _Renaming(env.observation_space, names, dtypes)
        RecordConstructorArgs.__init__(self, **_recorded(names, dtypes))
        gym.ObservationWrapper.__init__(self, env)
        self.observation_space = self._renaming.space(env.observation_space)

    def observation(self, observation: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The observation under its new names."""
        return self._renaming.values(observation)

    def action_masks(self) -> np.ndarray:
        """Which actions are legal now, bool [V]."""
        return self.env.get_wrapper_attr("action_masks")()


class VectorRenameObservation(VectorWrapper, RecordConstructorArgs):
    """A vector environment whose observations, `final_obs` among them, have other names and dtypes.

    Args:
        env: a vector environment with dict observations, in any autoreset mode.
        names: as for `RenameObservation`.
        dtypes: as for `RenameObservation`.

    Raises:
        TypeError, ValueError: as for `RenameObservation`.
    """

    def __init__(self, env: VectorEnv, names: Names, dtypes: Dtypes = None) -> None:
        self._renaming = _Renaming(env.single_observation_space, names, dtypes)
        RecordConstructorArgs.__init__(self, **_recorded(names, dtypes))
        VectorWrapper.__init__(self, env)  # Gymnasium's own wrapper of observations refuses SAME_STEP
        self.single_observation_space = self._renaming.space(env.single_observation_space)
        self.observation_space = self._renaming.space(env.observation_space)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset the environment; the observations have their new names."""
        observations, infos = self.env.reset(seed=seed, options=options)
        return self._renaming.values(observations), infos

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Step the environment; the observations, and the last ones of ended episodes, have their new names."""
        observations, rewards, terminated, truncated, infos = self.env.step(actions)
        if "final_obs" in infos:
            final_obs = np.full(self.num_envs, None, dtype=object)
            for row in np.flatnonzero(infos["_final_obs"]):
                final_obs[row] = self._renaming.values(infos["final_obs"][row])
            infos = {**infos, "final_obs": final_obs}
        return self._renaming.values(observations), rewards, terminated, truncated, infos

    def action_masks(self) -> np.ndarray:
        """Which actions are legal now, bool [N, V]."""
        return self.env.unwrapped.action_masks()  # type: ignore[attr-defined]

    @property
    def autoreset_mode(self) -> AutoresetMode:
        """When a row whose episode has ended restarts."""
        return self.env.metadata["autoreset_mode"]


def rename_observation(
    env: gym.Env | VectorEnv, names: Names, dtypes: Dtypes = None
) -> RenameObservation | VectorRenameObservation:
    """The environment, scalar or vector, with other names and dtypes of its observations; see `RenameObservation`."""
    if isinstance(env, VectorEnv):
        return VectorRenameObservation(env, names, dtypes)
    if isinstance(env, gym.Env):
        return RenameObservation(env, names, dtypes)
    raise TypeError(f"env is {shown(env)} of type {type_name(env)}; give a Gymnasium environment, scalar or vector")


class _Renaming:
    """Checked names and dtypes: what becomes of the spaces and values of one observation, or of a batch."""

    def __init__(self, space: Space, names: Names, dtypes: Dtypes) -> None:
        if not isinstance(space, Dict):
            raise TypeError(
                f"the observations are no dict, their space is {shown(space)}; make the environment with "
                "observation='dict'"
            )
        if isinstance(names, str):
            if names not in PRESETS:
                raise ValueError(unknown("preset", names, PRESETS))
            names, own = PRESETS[names]
            dtypes = {**own, **(dtypes or {})}
        self.names = _checked_names(names, list(space))
        self.dtypes = _checked_dtypes(dtypes or {}, {key: space[key] for key in self.names})

    def space(self, space: Space) -> Dict:
        assert isinstance(space, Dict)
        # A list keeps the order; Gymnasium sorts the keys of a dict.
        return Dict([(name, self._cast_space(key, space[key])) for key, name in self.names.items()])

    def values(self, observation: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {
            name: observation[key].astype(self.dtypes[key]) if key in self.dtypes else observation[key]
            for key, name in self.names.items()
        }

    def _cast_space(self, key: str, space: Space) -> Space:
        if key not in self.dtypes:
            return space
        assert isinstance(space, Box)
        dtype = self.dtypes[key]
        return Box(space.low.astype(dtype), space.high.astype(dtype), dtype=dtype)


def _checked_names(names: Mapping[str, str], keys: list[str]) -> dict[str, str]:
    if not isinstance(names, Mapping):
        raise TypeError(
            f"names is {shown(names)} of type {type_name(names)}; give a dict of key -> new name, or one of "
            f"{', '.join(sorted(PRESETS))}"
        )
    if not names:
        raise ValueError(f"names is empty; name at least one of {', '.join(sorted(keys))}")
    first: dict[str, str] = {}  # new name -> key
    for key, name in names.items():
        if key not in keys:
            raise ValueError(unknown("key of the observation", key, keys))
        if not isinstance(name, str):
            raise TypeError(f"names[{key!r}] is {shown(name)} of type {type_name(name)}; give a str")
        if name in first:
            raise ValueError(f"names gives {first[name]!r} and {key!r} one name, {shown(name)}; give each its own")
        first[name] = key
    return dict(names)


def _checked_dtypes(dtypes: Mapping[str, DTypeLike], spaces: Mapping[str, Space]) -> dict[str, np.dtype]:
    if not isinstance(dtypes, Mapping):
        raise TypeError(f"dtypes is {shown(dtypes)} of type {type_name(dtypes)}; give a dict of key -> dtype")
    checked = {}
    for key, value in dtypes.items():
        if key not in spaces:
            raise ValueError(unknown("key of dtypes", key, spaces))
        try:
            dtype = np.dtype(value)
        except TypeError as error:
            raise TypeError(
                f"dtypes[{key!r}] is {shown(value)}, which is no dtype; give 'float32' or the like"
            ) from error
        space = spaces[key]
        if not isinstance(space, Box) or not _holds(dtype, space):
            raise ValueError(
                f"dtypes[{key!r}] is {dtype}, which does not hold every value of {shown(space)} exactly; give a wider "
                "dtype of numbers, or leave it out"
            )
        checked[key] = dtype
    return checked


def _holds(dtype: np.dtype, box: Box) -> bool:
    """Whether every value of a box is one of a dtype."""
    if box.dtype.kind in "iu" and dtype.kind in "biuf":
        least, most = _whole_numbers(dtype)
        return least <= int(box.low.min()) and int(box.high.max()) <= most
    return dtype.kind in "biuf" and np.can_cast(box.dtype, dtype, "safe")


def _whole_numbers(dtype: np.dtype) -> tuple[int, int]:
    """The range in which a dtype holds every whole number."""
    if dtype.kind == "b":
        return 0, 1
    if dtype.kind == "f":
        most = 2 ** (np.finfo(dtype).nmant + 1)  # float32: 2^24
        return -most, most
    return int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)


def _recorded(names: Names, dtypes: Dtypes) -> dict[str, Any]:
    """The arguments as plain text, so that a spec that holds them can be written as JSON."""
    return {
        "names": names if isinstance(names, str) else dict(names),
        "dtypes": None if dtypes is None else {key: str(np.dtype(value)) for key, value in dtypes.items()},
    }
