"""A problem small enough to enumerate: V = 4 with a stop token, W = 3, two prompts; and its exact ground truth.

The truth comes from plain forward passes of the model over every complete episode and from the scalar environment's
rewards; nothing of `agents` but the model's weights is used for it.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from torch import Tensor

from agents.policy import TransformerPolicy
from agents.rollout import Rollout
from textgym.vocabulary import Vocabulary

SYMBOLS = ["a", "b", "c", "<eos>"]
A, B, C, STOP, PAD = range(5)
PROMPTS = ["a", "bc"]
HORIZON = 3
SEQUENCES_PER_PROMPT = 1 + 3 + 9 + 27


def score(prompts: list[str], completion_ids: list[list[int]]) -> list[float]:
    """In [0.2, 1]: depends on the prompt, on every token and its place, and on whether the text was stopped."""
    return [0.2 + 0.8 * _raw(prompt, ids) for prompt, ids in zip(prompts, completion_ids, strict=True)]


def _raw(prompt: str, ids: Sequence[int]) -> float:
    phase = len(prompt) + sum((place + 1) * (id_ + 1) ** 2 for place, id_ in enumerate(ids))
    return 0.5 * (ids[-1] == STOP) + 0.5 * np.sin(phase) ** 2


def make_envs(num_envs: int = 4, mode: AutoresetMode = AutoresetMode.DISABLED, **keywords: Any) -> VectorEnv:
    own = dict(tokenizer=SYMBOLS, prompts=PROMPTS, reward=score, max_new_tokens=HORIZON)
    return gym.make_vec("TextGen-v0", num_envs=num_envs, autoreset_mode=mode, **(own | keywords))


def make_env(**keywords: Any) -> gym.Env:
    own = dict(tokenizer=SYMBOLS, prompts=PROMPTS, reward=score, max_new_tokens=HORIZON)
    return gym.make("TextGen-v0", **(own | keywords))


def make_policy(envs: VectorEnv, seed: int = 0, scale: float = 1.0) -> TransformerPolicy:
    """A float64 policy; larger weights make it less uniform."""
    policy = TransformerPolicy.small(envs, d_model=16, num_layers=1, seed=seed).double()
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.mul_(scale)
    return policy


class Episode(NamedTuple):
    """One complete episode: its history, where the completion starts, and what each step paid."""

    prompt_index: int
    prompt: list[int]
    completion: list[int]
    rewards: list[float]
    finish_reason: int


def every_episode(**keywords: Any) -> list[Episode]:
    """All complete episodes of the problem, played one by one in the scalar environment."""
    env = make_env(**keywords)
    return [_play(env, index, ids) for index in range(len(PROMPTS)) for ids in _completions()]


def _completions() -> list[list[int]]:
    content = [[]]
    complete = []
    for _ in range(HORIZON):
        complete += [[*ids, STOP] for ids in content]
        content = [[*ids, token] for ids in content for token in (A, B, C)]
    return complete + content


def _play(env: gym.Env, prompt_index: int, completion: list[int]) -> Episode:
    observation, info = env.reset(options={"prompt_index": prompt_index})
    prompt = observation[: info["prompt_length"]].tolist()
    rewards = []
    for token in completion:
        _, reward, terminated, _, info = env.step(token)
        rewards.append(reward)
    assert terminated, "a complete sequence ends the episode"
    return Episode(prompt_index, prompt, completion, rewards, info["finish_reason"])


def rollout_of(episodes: Iterable[Episode], group: Sequence[int] | None = None) -> Rollout:
    """The episodes as a rollout, laid out by hand."""
    episodes = list(episodes)
    count, width = len(episodes), max(len(s.prompt) + len(s.completion) for s in episodes)
    steps = max(len(s.completion) for s in episodes)
    tokens = np.full((count, width), PAD, dtype=np.int64)
    actions, mask = np.zeros((count, steps), dtype=np.int64), np.zeros((count, steps), dtype=bool)
    rewards = np.zeros((count, steps))
    for row, s in enumerate(episodes):
        history = s.prompt + s.completion
        tokens[row, : len(history)] = history
        actions[row, : len(s.completion)] = s.completion
        mask[row, : len(s.completion)] = True
        rewards[row, : len(s.completion)] = s.rewards
    return Rollout(
        tokens=tokens,
        prompt_length=np.array([len(s.prompt) for s in episodes]),
        length=np.array([len(s.prompt) + len(s.completion) for s in episodes]),
        actions=actions,
        mask=mask,
        log_probs=np.zeros((count, steps), dtype=np.float32),
        rewards=rewards,
        score=rewards.sum(axis=1),
        scores=rewards.sum(axis=1, keepdims=True),
        scores_valid=np.ones((count, 1), dtype=bool),
        valid=np.ones(count, dtype=bool),
        finish_reason=np.array([s.finish_reason for s in episodes]),
        group=np.arange(count) if group is None else np.asarray(group),
        vocabulary=Vocabulary.from_symbols(SYMBOLS),
    )


def step_log_probs(policy: TransformerPolicy, episodes: Sequence[Episode]) -> list[Tensor]:
    """Log-probability of each token of each completion, by one plain forward pass a sequence, without padding."""
    results = []
    for s in episodes:
        logits = policy.model(input_ids=torch.tensor([s.prompt + s.completion])).logits[0, :, : len(SYMBOLS)]
        table = torch.log_softmax(logits, dim=-1)
        first = len(s.prompt) - 1
        results.append(torch.stack([table[first + step, token] for step, token in enumerate(s.completion)]))
    return results


def flat_gradient(output: Tensor, policy: TransformerPolicy) -> Tensor:
    """The gradient by every parameter, in one vector."""
    grads = torch.autograd.grad(output, list(policy.parameters()), allow_unused=True, retain_graph=True)
    pairs = zip(grads, policy.parameters(), strict=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in pairs])


def stored_gradient(policy: TransformerPolicy) -> Tensor:
    """What `backward` left in the parameters, in one vector."""
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in policy.parameters()])


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())


def shift(policy: TransformerPolicy, direction: Tensor, step: float) -> None:
    """Move the parameters along a direction."""
    first = 0
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += step * direction[first : first + parameter.numel()].view_as(parameter)
            first += parameter.numel()
