"""Rollout: finished episodes as arrays, and `collect`, which plays exactly the episodes asked for.

Knows nothing of gradients. `collect` plays every episode that it starts to its end: taking the first N that finish
would favour short ones.
"""

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv

from textgym.finish import FinishReason
from textgym.vector_env import TextGenVectorEnv
from textgym.vocabulary import Vocabulary

if TYPE_CHECKING:  # names of the table of algorithms are checked before torch is loaded
    import torch


class Step(NamedTuple):
    """One state and action of a trajectory, as text and as ids."""

    state: str
    state_ids: list[int]
    action: str
    action_id: int
    log_prob: float  # of the policy that acted
    reward: float


class Rollout(NamedTuple):
    """B finished episodes; T is the longest completion.

    `mask` is True where the policy chose the token: the stop token included, prompt and padding excluded.
    """

    tokens: np.ndarray  # int64 [B, L], prompt, completion, then PAD
    prompt_length: np.ndarray  # int64 [B]
    length: np.ndarray  # int64 [B], prompt and completion together
    actions: np.ndarray  # int64 [B, T], 0 where not mask
    mask: np.ndarray  # bool [B, T]
    log_probs: np.ndarray  # float32 [B, T], of the policy that acted; 0 where not mask
    rewards: np.ndarray  # float64 [B, T], what each step paid; 0 where not mask
    score: np.ndarray  # float64 [B]
    scores: np.ndarray  # float64 [B, K], one a reward function
    finish_reason: np.ndarray  # int64 [B]
    group: np.ndarray  # int64 [B], episodes of one group share their prompt
    vocabulary: Vocabulary

    @property
    def returns(self) -> np.ndarray:
        """R(τ) = Σ_t r_t of each episode, float64 [B]."""
        return self.rewards.sum(axis=1)

    @property
    def num_tokens(self) -> int:
        """Tokens that the policy generated."""
        return int(self.mask.sum())

    def select(self, rows: np.ndarray) -> "Rollout":
        """The episodes `rows`, int64 [n], cut to their own longest history and completion."""
        width = int(self.length[rows].max())
        steps = int((self.length - self.prompt_length)[rows].max())
        cut = {"tokens": width, "actions": steps, "mask": steps, "log_probs": steps, "rewards": steps}
        arrays = {name: value[rows] for name, value in self._asdict().items() if name != "vocabulary"}
        return self._replace(
            **{name: value[:, : cut[name]] if name in cut else value for name, value in arrays.items()}
        )

    def texts(self, row: int) -> tuple[str, str]:
        """Prompt and completion of an episode, special tokens visible."""
        prompt_length, length = self.prompt_length[row], self.length[row]
        ids = self.tokens[row].tolist()
        return self.vocabulary.decode(ids[:prompt_length]), self.vocabulary.decode(ids[prompt_length:length])

    def trajectory(self, row: int) -> list[Step]:
        """The pairs (s_0, a_0), (s_1, a_1), ... of an episode."""
        ids = self.tokens[row].tolist()
        start = int(self.prompt_length[row])
        return [
            Step(
                state=self.vocabulary.decode(ids[: start + step]),
                state_ids=ids[: start + step],
                action=self.vocabulary.decode([ids[start + step]]),
                action_id=ids[start + step],
                log_prob=float(self.log_probs[row, step]),
                reward=float(self.rewards[row, step]),
            )
            for step in range(int(self.length[row]) - start)
        ]


def spaced_rows(rollout: Rollout, count: int) -> list[int]:
    """Up to `count` episodes to show, far apart, so that they differ in their prompts where there are several."""
    total = len(rollout.length)
    return [index * total // min(count, total) for index in range(min(count, total))]


class Actor(Protocol):
    """What `collect` needs of a policy."""

    def act(
        self, observations: np.ndarray, generator: "torch.Generator | None" = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Actions int64 [N] and their log-probs float32 [N] in the states of `observations`, int64 [N, L]."""
        ...


def rollout_env(envs: VectorEnv) -> VectorEnv:
    """The environment that `collect` can drive: in DISABLED mode, where an ended row is frozen.

    A bare native environment in another mode, or in the middle of its owner's episodes, gets a twin over the same
    problem and is itself left alone. A wrapper or a subclass must be made in DISABLED mode, since it cannot be copied.

    Raises:
        TypeError, ValueError: not a native TextGen-v0 vector environment, or a wrapped one in another mode.
    """
    if not isinstance(envs.unwrapped, TextGenVectorEnv):
        raise TypeError(
            f"envs is {type(envs).__name__}; give the native vector environment, gym.make_vec('TextGen-v0', num_envs=N)"
        )
    native = envs.unwrapped
    own = type(envs) is not TextGenVectorEnv  # a wrapper or a subclass, whose behaviour a twin would lose
    if native.autoreset_mode is AutoresetMode.DISABLED and (own or not native.any_running):
        return envs
    if own:
        raise ValueError(
            f"envs is a wrapper or subclass ({type(envs).__name__}) and not in DISABLED mode; make it with "
            "autoreset_mode=gymnasium.vector.AutoresetMode.DISABLED"
        )
    return TextGenVectorEnv(native.num_envs, autoreset_mode=AutoresetMode.DISABLED, problem=native.problem)


def collect(
    policy: Actor,
    envs: VectorEnv,
    episodes: int,
    generator: np.random.Generator,
    group_size: int = 1,
    action_generator: "torch.Generator | None" = None,
) -> Rollout:
    """Play exactly `episodes` episodes, in groups that share a prompt.

    Args:
        policy: acts.
        envs: see `rollout_env`; any number of rows.
        episodes: B, a multiple of the group size.
        generator: draws the prompts, each with the same probability.
        group_size: G, consecutive episodes with one prompt.
        action_generator: draws the actions; the policy's own without one.

    Raises:
        ValueError: episodes that are no positive multiple of the group size.
    """
    if group_size < 1 or episodes < 1 or episodes % group_size:
        raise ValueError(f"episodes={episodes} is no positive multiple of group_size={group_size}")
    envs = rollout_env(envs)
    native = envs.unwrapped
    assert isinstance(native, TextGenVectorEnv)
    num_prompts = len(native.problem.prompts)
    prompt_index = np.repeat(generator.integers(num_prompts, size=episodes // group_size), group_size)
    waves = [
        _play(policy, envs, prompt_index[first : first + envs.num_envs], native, action_generator)
        for first in range(0, episodes, envs.num_envs)
    ]
    joined = {name: np.concatenate([wave[name] for wave in waves]) for name in waves[0]}
    steps = int((joined["length"] - joined["prompt_length"]).max())
    for name in ("actions", "mask", "log_probs", "rewards"):
        joined[name] = joined[name][:, :steps]
    return Rollout(
        **joined, group=np.repeat(np.arange(episodes // group_size), group_size), vocabulary=native.vocabulary
    )


def _play(
    policy: Actor,
    envs: VectorEnv,
    prompt_index: np.ndarray,
    native: TextGenVectorEnv,
    generator: "torch.Generator | None",
) -> dict[str, np.ndarray]:
    """Play one episode in each of the first `len(prompt_index)` rows to its end."""
    count, horizon = len(prompt_index), native.problem.max_new_tokens
    used = np.arange(envs.num_envs) < count
    padded = np.resize(prompt_index, envs.num_envs)
    observations, infos = envs.reset(options={"rows": {"prompt_index": padded}, "reset_mask": used})
    steps: dict[str, Any] = {
        "actions": np.zeros((count, horizon), dtype=np.int64),
        "mask": np.zeros((count, horizon), dtype=bool),
        "log_probs": np.zeros((count, horizon), dtype=np.float32),
        "rewards": np.zeros((count, horizon)),
    }
    actions = np.zeros(envs.num_envs, dtype=np.int64)
    running = np.arange(count)
    for step in range(horizon):
        actions[running], log_probs = policy.act(observations[running], generator=generator)
        observations, rewards, terminated, truncated, infos = envs.step(actions)
        steps["actions"][running, step] = actions[running]
        steps["mask"][running, step] = True
        steps["log_probs"][running, step] = log_probs
        steps["rewards"][running, step] = rewards[running]
        running = running[~(terminated | truncated)[running]]
        if not len(running):
            break
    assert not len(running), "an episode outlived the horizon"
    ends = {name: infos[name][:count] for name in ("prompt_length", "length", "score", "scores", "finish_reason")}
    assert (ends["finish_reason"] != FinishReason.RUNNING).all()
    return {"tokens": observations[:count], **ends, **steps}
