"""Show an episode as text, with every control character visible as a code."""

from textgym.escape import escape
from textgym.transition import FinishReason, Transition


def render_ansi(transition: Transition, row: int) -> str:
    """The prompt, the completion and the state of a row, each text unbroken on lines of its own."""
    prompt, completion = transition.text(row)
    reason = FinishReason(int(transition.finish_reason[row]))
    state = reason.name.lower().replace("_", " ")
    tokens = transition.length[row] - transition.prompt_length[row]
    return (
        f"prompt: {escape(prompt, keep=_BLOCK)}\n"
        f"completion: {escape(completion, keep=_BLOCK)}\n"
        f"{state}, {tokens} tokens, reward {transition.reward[row]:g}, score {transition.score[row]:g}"
    )


# Line ends, tabs and joiners, which many scripts and emoji are made with, stay: a text is shown as it reads.
_BLOCK = "\n\t\u200c\u200d"
RENDER_MODES = ("ansi",)


def usable_render_mode(render_mode: str | None) -> tuple[str | None, str]:
    """The render mode to use, and a warning where another was asked for."""
    if render_mode is None or render_mode in RENDER_MODES:
        return render_mode, ""
    return None, f"render_mode={render_mode!r} is not drawn, nothing is rendered; allowed: {', '.join(RENDER_MODES)}"
