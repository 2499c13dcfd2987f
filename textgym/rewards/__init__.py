"""Scoring whole texts with users' functions.

`reward.py` holds the call contract; beside it what a function sees and returns (`texts`, `values`, `signatures`), where
it comes from (`sources`), how it is called (`functions`, `calls`, `loop`, `isolation`), and what is remembered
(`cache`).
"""

from textgym.rewards.cache import cached
from textgym.rewards.reward import Reward, load_reward
from textgym.rewards.texts import Scores, Texts

__all__ = ["Reward", "Scores", "Texts", "cached", "load_reward"]
