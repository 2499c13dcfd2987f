"""Text generation as a Gymnasium environment: `gym.make("TextGen-v0")`.

The state is the token history, the action the next token, the reward comes at the end of the sequence. Needs numpy,
gymnasium and tokenizers alone; policies and learners live in `agents`.
"""

import gymnasium as _gym

from textgym import rewards, schemes, wrappers
from textgym.errors import NotBuiltError, RewardError
from textgym.finish import FinishReason
from textgym.tasks import TASKS, make_task, register_task
from textgym.tasks.base import Task, TaskFamily
from textgym.vocabulary import Vocabulary

__all__ = [
    "TASKS",
    "FinishReason",
    "NotBuiltError",
    "RewardError",
    "Task",
    "TaskFamily",
    "Vocabulary",
    "make_task",
    "register_task",
    "rewards",
    "schemes",
    "wrappers",
]
__version__ = "0.1.0"

# Strings, so that making the one environment never imports the other; no max_episode_steps, for TimeLimit would end an
# episode before its reward is paid.
if "TextGen-v0" not in _gym.registry:
    _gym.register(
        id="TextGen-v0",
        entry_point="textgym.env:TextGenEnv",
        vector_entry_point="textgym.vector_env:TextGenVectorEnv",
    )
