"""Agents without a model, to measure others against: random, uniform over legal tokens, tabular, and the oracle's.

They act as `collect` asks; each draws with a numpy generator of its own.
"""

from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np
from gymnasium.vector import AutoresetMode

from agents.playing import rollout_env
from textgym.escape import excerpt
from textgym.oracle import enumerate_tree, optimum
from textgym.problem import Problem
from textgym.vector_env import TextGenVectorEnv

if TYPE_CHECKING:
    import torch


class RandomAgent:
    """Every token alike; or, with `legal_only`, every legal one.

    Args:
        size: V.
        seed: of its draws.
        legal_only: whether it looks at action masks.
    """

    def __init__(self, size: int, seed: int, legal_only: bool) -> None:
        self.size, self.legal_only = size, legal_only
        self._generator = np.random.default_rng(seed)

    def act(
        self,
        observations: np.ndarray,
        generator: "torch.Generator | None" = None,
        action_mask: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Actions int64 [N] and their log-probs float32 [N]."""
        legal = action_mask if self.legal_only else None
        if legal is None:
            legal = np.ones((len(observations), self.size), dtype=bool)
        return _drawn(legal, self._generator), -np.log(legal.sum(axis=1)).astype(np.float32)


class TabularAgent:
    """A mean return for every history and token that was met (every-visit Monte Carlo control).

    Sutton and Barto, Reinforcement Learning, 2nd edition, section 5.4. It explores with probability ε, which falls
    linearly from 1 to 0 over its training, and knows nothing of a history that it has not met: there it takes the first
    legal token. Nothing that it learns of one history says anything of another.

    Args:
        problem: what it is trained on.
        seed: of its draws.
    """

    def __init__(self, problem: Problem, seed: int) -> None:
        self.problem, self.size = problem, problem.vocabulary.size
        self._seed, self._generator = seed, np.random.default_rng(seed)
        # Mean returns and how many there were, [2, V], of each history.
        self._table: defaultdict[bytes, np.ndarray] = defaultdict(lambda: np.zeros((2, self.size)))

    def learn(self, total_timesteps: int, num_envs: int = 64) -> "TabularAgent":
        """Play so many tokens, and learn from each episode as it ends.

        Args:
            total_timesteps: tokens, to whole episodes of all environments.
            num_envs: episodes at a time.
        """
        envs = rollout_env(TextGenVectorEnv(num_envs, autoreset_mode=AutoresetMode.DISABLED, problem=self.problem))
        done = 0
        seed: int | None = self._seed
        while done < total_timesteps:
            observations, infos = envs.reset(seed=seed)
            seed = None  # the generators go on
            running = np.ones(num_envs, dtype=bool)
            visited: list[list[tuple[bytes, int, float]]] = [[] for _ in range(num_envs)]
            while running.any():
                rows = np.flatnonzero(running)
                legal = infos["action_mask"] != 0 if "action_mask" in infos else None
                actions = self._explored(observations, legal, 1 - done / total_timesteps)
                keys = [observations[row].tobytes() for row in rows]
                observations, rewards, terminated, truncated, infos = envs.step(actions)
                for key, row in zip(keys, rows.tolist(), strict=True):
                    visited[row].append((key, int(actions[row]), float(rewards[row])))
                done += len(rows)
                running &= ~(terminated | truncated)
            for row in np.flatnonzero(infos["valid"]).tolist():  # nothing is learned from a dropped episode
                self._learn_from(visited[row])
        return self

    def act(
        self,
        observations: np.ndarray,
        generator: "torch.Generator | None" = None,
        action_mask: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The tokens of the best mean return, int64 [N]; certain of them, log-probs 0."""
        return self._best(observations, action_mask), np.zeros(len(observations), dtype=np.float32)

    def _best(self, observations: np.ndarray, legal: np.ndarray | None) -> np.ndarray:
        nothing = np.zeros((2, self.size))
        means = np.stack([self._table.get(row.tobytes(), nothing)[0] for row in observations])
        return (means if legal is None else np.where(legal, means, -np.inf)).argmax(axis=1)

    def _explored(self, observations: np.ndarray, legal: np.ndarray | None, epsilon: float) -> np.ndarray:
        allowed = np.ones((len(observations), self.size), dtype=bool) if legal is None else legal
        explores = self._generator.random(len(observations)) < epsilon
        return np.where(explores, _drawn(allowed, self._generator), self._best(observations, legal))

    def _learn_from(self, episode: list[tuple[bytes, int, float]]) -> None:
        total = 0.0
        for key, action, reward in reversed(episode):
            total += reward
            entry = self._table[key]
            entry[1, action] += 1
            entry[0, action] += (total - entry[0, action]) / entry[1, action]


class GreedyOracle:
    """The best token in every state, by enumerating what can follow the prompt: what any other agent is to reach.

    Args:
        problem: its prompts must be a list, and its rewards draw nothing.
        limit: the most complete texts after one prompt.

    Raises:
        ValueError: the prompts come from a function, or two that are alike have other columns.
    """

    def __init__(self, problem: Problem, limit: int = 1_000_000) -> None:
        if not problem.prompts.sized:
            raise ValueError(
                "greedy-oracle enumerates what follows a prompt of a list, and the prompts come from a function"
            )
        self.problem, self.limit = problem, limit
        self._places: dict[bytes, int] = {}
        for place in range(len(problem.prompts)):
            prompt = problem.prompts[place]
            first = self._places.setdefault(_key(prompt.ids), place)
            if first != place and problem.prompts[first].columns != prompt.columns:
                raise ValueError(
                    f"greedy-oracle: prompts {first} and {place} are alike, {excerpt(prompt.text)}, and have other "
                    "columns, so that no agent can tell which answer is asked for"
                )
        self._lengths = sorted({len(key) // 8 for key in self._places}, reverse=True)
        self._actions: dict[bytes, int] = {}  # by history, of the prompts that were met

    def act(
        self,
        observations: np.ndarray,
        generator: "torch.Generator | None" = None,
        action_mask: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The best tokens, int64 [N]; certain of them, log-probs 0."""
        return np.array([self._best(row) for row in observations]), np.zeros(len(observations), dtype=np.float32)

    def _best(self, history: np.ndarray) -> int:
        key = _key(history)
        if key not in self._actions:
            self._enumerate(self._place(history))
        return self._actions[key]

    def _place(self, history: np.ndarray) -> int:
        known = [_key(history[:length]) for length in self._lengths]
        found = [self._places[key] for key in known if key in self._places]
        if len(found) != 1:
            raise ValueError(
                f"greedy-oracle: the history {history.tolist()} begins with {len(found)} prompts of the list; it takes "
                "prompts none of which begins with another"
            )
        return found[0]

    def _enumerate(self, place: int) -> None:
        tree = enumerate_tree(self.problem, limit=self.limit, places=[place])
        best = optimum(tree).log_probs.argmax(axis=1)
        self._actions |= {_key(row): int(action) for row, action in zip(tree.histories(), best, strict=True)}


def _drawn(legal: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """A legal token of each row, all alike, int64 [N], of bool [N, V]."""
    order = np.argsort(~legal, axis=1, kind="stable")  # the legal tokens first
    return order[np.arange(len(order)), generator.integers(legal.sum(axis=1))]


def _key(tokens: np.ndarray) -> bytes:
    return np.ascontiguousarray(tokens, dtype=np.int64).tobytes()
