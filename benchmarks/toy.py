"""The workload of `speed env`: 32 tokens, histories of up to 24 of them, the score is the share of one token.

`ToyEnv` is the least that does this job behind Gymnasium's interface. It draws the same prompts with the same seed and
pays the same rewards, but it holds no text, its info is empty, and it checks nothing: what it is faster by is what
texts, infos and checks cost.
"""

from typing import Any

import gymnasium as gym
import numpy as np

SYMBOLS = tuple("abcdefghijklmnopqrstuvwxyzABCDEF")
PROMPTS = ("a", "bc", "def", "ghi")
VOCABULARY_SIZE, HORIZON, MAX_LENGTH = len(SYMBOLS), 21, 24
PAID_TOKEN = 7


def share_of_token(completion_ids: list[list[int]]) -> list[float]:
    """The share of one token in each completion.

    >>> share_of_token([[7, 1, 7, 2]])
    [0.5]
    """
    return [ids.count(PAID_TOKEN) / len(ids) for ids in completion_ids]


# Without a stop token every episode has HORIZON steps, whatever the actions are.
KEYWORDS: dict[str, Any] = {
    "prompts": list(PROMPTS),
    "tokenizer": list(SYMBOLS),
    "stop_ids": [],
    "reward": share_of_token,
    "max_new_tokens": HORIZON,
}
_PROMPT_IDS = tuple(np.array([SYMBOLS.index(symbol) for symbol in prompt]) for prompt in PROMPTS)


class ToyEnv(gym.Env[np.ndarray, np.int64]):
    """What `TextGenEnv(**KEYWORDS)` does, with an empty info; see there."""

    def __init__(self) -> None:
        self.observation_space = gym.spaces.Box(0, VOCABULARY_SIZE, (MAX_LENGTH,), np.int64)
        self.action_space = gym.spaces.Discrete(VOCABULARY_SIZE)
        self._tokens = np.full(MAX_LENGTH, VOCABULARY_SIZE)
        self._length = self._end = self._hits = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode with a prompt drawn at random."""
        super().reset(seed=seed)
        prompt = _PROMPT_IDS[int(self.np_random.integers(len(_PROMPT_IDS)))]
        self._length, self._hits = len(prompt), 0
        self._end = self._length + HORIZON
        self._tokens[:] = VOCABULARY_SIZE
        self._tokens[: self._length] = prompt
        return self._tokens.copy(), {}

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Append a token; the last step pays."""
        self._tokens[self._length] = action
        self._length += 1
        if action == PAID_TOKEN:
            self._hits += 1
        ended = self._length == self._end
        return self._tokens.copy(), self._hits / HORIZON if ended else 0.0, ended, False, {}
