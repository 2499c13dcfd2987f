"""Rollout: finished episodes as arrays, and `collect`, which plays exactly the episodes asked for.

Knows nothing of gradients. `collect` plays every episode that it starts to its end: taking the first N that finish
would favour short ones.
"""

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from gymnasium.vector import VectorEnv

from agents.playing import Actor, play, problem_of, rollout_env
from textgym.problem import Problem
from textgym.vocabulary import Vocabulary

if TYPE_CHECKING:  # names of the table of algorithms are checked before torch is loaded
    import torch

_PER_STEP = ("actions", "mask", "log_probs", "rewards", "action_mask", "cut_off", "values")  # the arrays [B, T, ...]


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
    scores_valid: np.ndarray  # bool [B, K], False where a function returned None
    valid: np.ndarray  # bool [B], False for a dropped episode, from which nothing is learned
    finish_reason: np.ndarray  # int64 [B]
    group: np.ndarray  # int64 [B], episodes of one group share their prompt
    vocabulary: Vocabulary
    action_mask: np.ndarray | None = None  # bool [B, T, V], True where a token was legal and where not mask; None: all
    true_score: np.ndarray | None = None  # float64 [B], where the task has a hidden gold reward
    cut_off: np.ndarray | None = None  # uint8 [B, T, ⌈V / 8⌉], bits; see `support`. None: nothing is
    values: np.ndarray | None = None  # float64 [B, T], V(s_t) of a critic; 0 where not mask. None without one

    @property
    def returns(self) -> np.ndarray:
        """R(τ) = Σ_t r_t of each episode, float64 [B]."""
        return self.rewards.sum(axis=1)

    @property
    def sizes(self) -> np.ndarray:
        """Σ_t |r_t| of each episode, float64 [B]: what a return is summed up from, and so how well it is known."""
        return np.abs(self.rewards).sum(axis=1)

    @property
    def num_tokens(self) -> int:
        """Tokens that the policy generated."""
        return int(self.mask.sum())

    def select(self, rows: np.ndarray) -> "Rollout":
        """The episodes `rows`, int64 [n], cut to their own longest history and completion."""
        width = int(self.length[rows].max(initial=0))
        steps = int((self.length - self.prompt_length)[rows].max(initial=0))
        cut = {"tokens": width, **dict.fromkeys(_PER_STEP, steps)}
        arrays = {name: value[rows] for name, value in self._asdict().items() if isinstance(value, np.ndarray)}
        return self._replace(
            **{name: value[:, : cut[name]] if name in cut else value for name, value in arrays.items()}
        )

    @property
    def support(self) -> np.ndarray | None:
        """What each token was sampled from, bool [B, T, V], made anew each time; None where nothing was cut off.

        True where a token was neither illegal nor cut off by top-k, top-p or min-p, and where not mask.
        """
        if self.cut_off is None:
            return None
        return np.unpackbits(self.cut_off, axis=-1, count=self.vocabulary.size) == 0

    def without_dropped(self) -> "Rollout":
        """The episodes that were not dropped; groups may have shrunk, and there may be none left."""
        return self if self.valid.all() else self.select(np.flatnonzero(self.valid))

    def followed_by(self, other: "Rollout") -> "Rollout":
        """These episodes and then others of the same environment, whose groups are numbered on."""
        count = int(self.group.max(initial=-1)) + 1
        other = other._replace(group=other.group + count)
        pairs = {name: (value, getattr(other, name)) for name, value in self._asdict().items()}
        arrays = {name: pair for name, pair in pairs.items() if isinstance(pair[0], np.ndarray)}
        beyond = {"tokens": self.vocabulary.pad_id, "action_mask": True}  # what stands where a row has ended
        stacked: dict[str, Any] = {name: _stacked(*pair, beyond.get(name, 0)) for name, pair in arrays.items()}
        return self._replace(**stacked)

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


def _stacked(first: np.ndarray, second: np.ndarray, filler: float) -> np.ndarray:
    """Rows under rows, the narrower ones filled up."""
    if first.ndim == 1:
        return np.concatenate([first, second])
    width = max(first.shape[1], second.shape[1])
    wide = [np.full((len(part), width, *part.shape[2:]), filler, dtype=part.dtype) for part in (first, second)]
    for target, part in zip(wide, (first, second), strict=True):
        target[:, : part.shape[1]] = part
    return np.concatenate(wide)


def spaced_rows(rollout: Rollout, count: int) -> list[int]:
    """Up to `count` episodes to show, far apart, so that they differ in their prompts where there are several."""
    total = len(rollout.length)
    return [index * total // min(count, total) for index in range(min(count, total))]


def collect(
    policy: Actor,
    envs: VectorEnv,
    episodes: int,
    generator: np.random.Generator,
    group_size: int = 1,
    action_generator: "torch.Generator | None" = None,
    first_prompt: int = 0,
    cache: Any = None,
) -> Rollout:
    """Play exactly `episodes` episodes, in groups that share a prompt.

    Args:
        policy: acts. One with a `prefix_cache` gets a fresh one for these episodes.
        envs: see `rollout_env`; any number of rows. Where there are fewer rows than episodes, a row whose episode has
            ended takes another as soon as half the rows have.
        episodes: B, a multiple of the group size.
        generator: draws the prompts, each with the same probability, or is what draws them where they come from a
            function; then, where a reward function draws, the seed of the rows' generators.
        group_size: G, consecutive episodes with one prompt.
        action_generator: draws the actions; the policy's own without one.
        first_prompt: with `prompt_order="sequential"`, the index of the first group's prompt; the others follow in
            order, and after the last comes the first.
        cache: what the policy's `prefix_cache` made, instead of a fresh one: what it holds is forgotten first, and its
            memory used again, which saves a collector the time that a system takes to hand it out.

    Returns:
        B episodes, dropped ones included.

    Raises:
        ValueError: episodes that are no positive multiple of the group size.
    """
    if group_size < 1 or episodes < 1 or episodes % group_size:
        raise ValueError(f"episodes={episodes} is no positive multiple of group_size={group_size}")
    envs = rollout_env(envs)
    problem = problem_of(envs)
    chosen = _chosen_prompts(problem, episodes // group_size, generator, first_prompt)
    starts = {name: [value for value in values for _ in range(group_size)] for name, values in chosen.items()}
    # A draw of its own: with one prompt, or prompts in order, nothing else moves the generator on.
    seed = int(generator.integers(2**62)) if problem.draws else None
    arrays = play(policy, envs, starts, seed, action_generator, cache)
    steps = int((arrays["length"] - arrays["prompt_length"]).max())
    for name in arrays.keys() & set(_PER_STEP):
        arrays[name] = arrays[name][:, :steps]
    return Rollout(
        **arrays, group=np.repeat(np.arange(episodes // group_size), group_size), vocabulary=problem.vocabulary
    )


def _chosen_prompts(problem: Problem, count: int, generator: np.random.Generator, first: int) -> dict[str, list[Any]]:
    """The reset options that name the prompts of `count` groups, one value a group."""
    prompts = problem.prompts
    if not prompts.sized:
        return {"prompt": [prompts.draw(generator) for _ in range(count)]}
    if problem.prompt_order == "sequential":
        indices = (first + np.arange(count)) % len(prompts)
    else:
        indices = generator.integers(len(prompts), size=count)
    return {"prompt_index": indices.tolist()}
