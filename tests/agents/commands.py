"""What the tests of commands share: folders of small policies, texts that would do harm, what a plain model says."""

import unicodedata
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import gymnasium as gym
import torch

from agents.cli import run
from agents.policy import TransformerPolicy

# Colours, a window title, bidirectional overrides, line ends of other kinds, C1 controls, what cannot be seen.
HOSTILE = ["\x1b[31m", "\x1b]0;title\x07", "\u202e", "\u2066", "\u2028", "\x9b2J", "\x7f", "\r", "\u200b"]
LONGEST = 40  # tokens of a history


def exit_code(*arguments: object) -> int:
    """The exit code of the command in this process."""
    try:
        return run(list(map(str, arguments)))
    except SystemExit as end:  # a wrong flag, or the help
        assert isinstance(end.code, int)
        return end.code


def save_policy(folder: Path, symbols: Sequence[str], scale: float = 3.0) -> Path:
    """A small policy over symbols; larger weights make it less uniform, and weights of 0 exactly uniform."""
    parts = dict(tokenizer=list(symbols), prompts=[""], reward=len, max_new_tokens=LONGEST)
    policy = TransformerPolicy.small(gym.make("textgym:TextGen-v0", **parts), d_model=16, num_layers=1)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.mul_(scale)
    policy.save_pretrained(folder)
    return folder


def token_log_probs(folder: Path, prompt_ids: Sequence[int], completion_ids: Sequence[int]) -> list[float]:
    """Log-probability of each token of a completion, by plain forward passes of the model."""
    histories = [[*prompt_ids, *completion_ids[:step]] for step in range(len(completion_ids))]
    return [float(next_log_probs(folder, one)[token]) for one, token in zip(histories, completion_ids, strict=True)]


def greedy_ids(folder: Path, prompt_ids: Sequence[int], stop_ids: Sequence[int], horizon: int) -> list[int]:
    """The most probable token after token, by plain forward passes."""
    chosen: list[int] = []
    while len(chosen) < horizon and not set(chosen[-1:]) & set(stop_ids):
        chosen.append(int(next_log_probs(folder, [*prompt_ids, *chosen]).argmax()))
    return chosen


def next_log_probs(folder: Path, history: Sequence[int]) -> torch.Tensor:
    """Log-probabilities of the next token, float64 [V]; an empty history is fed as BOS."""
    policy = _opened(folder)
    with torch.no_grad():
        logits = policy.model(input_ids=torch.tensor([list(history) or [policy.bos_id]])).logits[0, -1]
    return logits[: policy.size].double().log_softmax(dim=-1)


@cache
def _opened(folder: Path) -> TransformerPolicy:
    return TransformerPolicy.from_pretrained(folder)


def unsafe(text: str) -> set[str]:
    """Characters that do something to a terminal, line ends aside."""
    return {char for char in text if unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp") and char != "\n"}
