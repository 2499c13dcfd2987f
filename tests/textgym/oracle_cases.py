"""Trees to work on, policies on them, and the same ground truth played episode by episode in the environment."""

from functools import cache
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np

from tests.textgym.cases import CASES, make
from textgym.oracle import Tree, enumerate_tree

# Stop tokens, several, none; stop strings that span tokens; masks with dead ends; every scheme; several prompts.
TREES = (
    "columns",
    "several_stops",
    "no_stops",
    "stop_strings",
    "prefix_delta",
    "shaped",
    "masked",
    "masked_dict",
    "brackets-1",
    "only_stop",
)


class Episode(NamedTuple):
    """One complete episode."""

    prompt: int
    ids: tuple[int, ...]
    rewards: tuple[float, ...]
    finish_reason: int


class Played(NamedTuple):
    """Every complete episode of an environment, and the mask of every state, by prompt and completion."""

    episodes: list[Episode]
    legal: dict[tuple[int, tuple[int, ...]], np.ndarray]
    observations: dict[tuple[int, tuple[int, ...]], Any]


def play_all(env: gym.Env) -> Played:
    """Every episode that legal actions lead to, each played from its prompt on."""
    played = Played([], {}, {})
    stack = [(prompt, ()) for prompt in range(len(env.unwrapped.problem.prompts))]
    while stack:
        prompt, ids = stack.pop()
        observation, info = env.reset(options={"prompt_index": prompt})
        rewards, ended = [], False
        for action in ids:
            assert not ended
            observation, reward, terminated, truncated, info = env.step(action)
            rewards.append(float(reward))
            ended = terminated or truncated
        if ended:
            played.episodes.append(Episode(prompt, ids, tuple(rewards), info["finish_reason"]))
            continue
        played.legal[prompt, ids] = env.unwrapped.action_masks()
        played.observations[prompt, ids] = observation
        stack += [(prompt, (*ids, action)) for action in np.flatnonzero(env.unwrapped.action_masks()).tolist()]
    return played


def states_of(tree: Tree) -> list[tuple[int, tuple[int, ...]]]:
    """Prompt and completion of each node."""
    pad = tree.size
    rows = zip(tree.prompt.tolist(), tree.completions().tolist(), strict=True)
    return [(prompt, tuple(id_ for id_ in ids if id_ != pad)) for prompt, ids in rows]


def episodes_of(tree: Tree) -> list[Episode]:
    """The sequences of a tree, as episodes."""
    s = tree.sequences()
    return [
        Episode(int(p), tuple(ids[:n].tolist()), tuple(rewards[:n].tolist()), int(reason))
        for p, ids, rewards, n, reason in zip(s.prompt, s.actions, s.rewards, s.length, s.finish_reason, strict=True)
    ]


@cache
def tree_of(name: str) -> Tree:
    """The tree of a case; its prompts are not equally likely."""
    count = len(make(name).unwrapped.problem.prompts)
    return enumerate_tree(make(name), weights=np.arange(1, count + 1))


@cache
def played(name: str) -> Played:
    """Every episode of a case."""
    return play_all(make(name))


def random_policy(tree: Tree, seed: int, scale: float = 1.5, never: float = 0.0) -> np.ndarray:
    """Log-probabilities of a random policy; a share `never` of the actions has probability 0, but for one a node."""
    rng = np.random.default_rng(seed)
    logits = np.where(tree.legal, rng.normal(scale=scale, size=tree.legal.shape), -np.inf)
    dropped = rng.random(tree.legal.shape) < never
    dropped[np.arange(tree.num_nodes), logits.argmax(axis=1)] = False
    logits[dropped] = -np.inf
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def small_tree(rewards: dict[str, float], symbols: str = "ab", **keywords: Any) -> Tree:
    """The tree of a table of rewards of texts, with one token a letter and no stop token by default."""
    own = dict(
        tokenizer=list(symbols),
        prompts=[""],
        reward=lambda completions: [rewards[text] for text in completions],
        max_new_tokens=max(map(len, rewards)),
    )
    return enumerate_tree(gym.make("TextGen-v0", **(own | keywords)))


assert set(TREES) <= set(CASES)
