"""What there is to see of an episode, and the render mode "ansi": an episode as text."""

from typing import NamedTuple

from textgym.escape import escape
from textgym.finish import FinishReason

JOINERS = "\u200c\u200d"  # which many scripts and emoji are made with
BLOCK = f"\n\t{JOINERS}"  # what stays where a text is shown as it reads


class View(NamedTuple):
    """One episode as it stands, as plain values."""

    prompt: str
    completion: str  # without its stop token
    finish_reason: int  # a `FinishReason`, 0 while the episode runs
    num_tokens: int  # generated so far, the stop token included
    reward: float  # of the last step
    episode_return: float  # sum of the episode's rewards so far
    score: float  # 0 until the end


def render_ansi(view: View) -> str:
    r"""The prompt, the completion and the state of an episode, each text unbroken on lines of its own.

    >>> print(render_ansi(View("2+2=", "4\x07", 1, 3, reward=0.5, episode_return=0.5, score=0.5)))
    prompt: 2+2=
    completion: 4\x07
    stop, 3 tokens, reward 0.5, score 0.5
    """
    return (
        f"prompt: {escape(view.prompt, keep=BLOCK)}\n"
        f"completion: {escape(view.completion, keep=BLOCK)}\n"
        f"{_state(view)}, reward {view.reward:g}, score {view.score:g}"
    )


def summary(view: View) -> str:
    """How an episode stands, in one line.

    >>> summary(View("2+2=", "4", 1, 2, reward=0.25, episode_return=0.5, score=0.5))
    'stop, 2 tokens, reward 0.25, return 0.5, score 0.5'
    """
    return f"{_state(view)}, reward {view.reward:g}, return {view.episode_return:g}, score {view.score:g}"


def _state(view: View) -> str:
    reason = FinishReason(view.finish_reason).name.lower().replace("_", " ")
    return f"{reason}, {view.num_tokens} tokens"
