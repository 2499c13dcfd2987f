"""The render modes: as text ("ansi"), on a terminal as it goes ("human"), as a picture ("rgb_array").

Each draws a `View`, a plain value, with every control character visible as a code; how stands in a file for each mode.
When to draw is left to the environments.
"""

from textgym.rendering.human import HumanRenderer
from textgym.rendering.rgb import render_rgb
from textgym.rendering.text import View, render_ansi

__all__ = ["RENDER_MODES", "HumanRenderer", "View", "render_ansi", "render_rgb", "usable_render_mode"]

RENDER_MODES = ("ansi", "human", "rgb_array")


def usable_render_mode(render_mode: str | None) -> tuple[str | None, str]:
    """The render mode to use, and a warning where another was asked for."""
    if render_mode is None or render_mode in RENDER_MODES:
        return render_mode, ""
    return None, f"render_mode={render_mode!r} is not drawn, nothing is rendered; allowed: {', '.join(RENDER_MODES)}"
