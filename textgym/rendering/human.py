"""Draw episodes on a terminal as they go: the prompt dim, the generated text bold, then how it ended.

Text of a policy or a file is escaped and never read as markup. A reader that goes away (`| head`) or a terminal that
lacks a character does not end the run. When to draw is left to the environments.
"""

import contextlib
import os
from collections.abc import Mapping
from typing import IO, TYPE_CHECKING

from textgym.escape import escape
from textgym.rendering.text import BLOCK, JOINERS, View, summary

if TYPE_CHECKING:
    from rich.console import Console

_ROW_WIDTH = 60  # characters of a prompt or completion in the line of a row


class HumanRenderer:
    """Draws one streamed episode, or a line for each ended row of many.

    Args:
        console: where to; standard output by default.

    Raises:
        ImportError: rich is not installed.
    """

    def __init__(self, console: "Console | None" = None) -> None:
        self._console = console
        if console is None:
            _standard_output()  # a missing library shows here, not in the middle of an episode
        self._last: View | None = None
        self._written = ""  # of the completion on the open line
        self._line_is_open = False
        self._has_reader = True

    def show(self, view: View) -> None:
        """Draw what is new of an episode; a new episode, or text that a decoder changed, starts on a new line."""
        if view == self._last:
            return
        completion = self._settled(view)
        if not (self._continues(view) and completion.startswith(self._written)):
            self._begin(view)
        self._write((escape(completion[len(self._written) :], keep=BLOCK), "bold"))
        self._written, self._last = completion, view
        if view.finish_reason:
            self._write((f"\n{summary(view)}\n", "dim"))
            self._line_is_open = False

    def show_rows(self, views: Mapping[int, View]) -> None:
        """Draw a line for each row whose episode has just ended."""
        for row, view in views.items():
            prompt, completion = (_cut(escape(text, keep=JOINERS)) for text in (view.prompt, view.completion))
            self._write(
                (f"row {row}  ", ""), (prompt, "dim"), (" → ", ""), (completion, "bold"), (f"  {summary(view)}\n", "")
            )

    def _continues(self, view: View) -> bool:
        """Whether the view may be a later one of the episode on the open line."""
        last = self._last
        if last is None or last.finish_reason:
            return False
        return view.prompt == last.prompt and view.num_tokens >= last.num_tokens

    def _settled(self, view: View) -> str:
        """The completion, but while it runs without the bytes at its end that are no character yet."""
        if view.finish_reason or not view.completion.endswith("\ufffd"):
            return view.completion
        whole = view.completion.rstrip("\ufffd")
        # Some decoders take back a whole run of bytes, characters among them, until its last character is complete.
        waits = self._continues(view) and self._written.startswith(whole)
        return self._written if waits else whole

    def _begin(self, view: View) -> None:
        self._write(("\n" if self._line_is_open else "", ""), (escape(view.prompt, keep=BLOCK), "dim"))
        self._written, self._line_is_open = "", True

    def _write(self, *parts: tuple[str, str]) -> None:
        """Write texts, each in a style; rich colours them, and what to do about a closed pipe is decided here."""
        if not self._has_reader:
            return
        # Not kept: a console holds locks, and an environment that draws can be copied like any other.
        console = self._console if self._console is not None else _standard_output()
        with console.capture() as capture:
            for text, style in parts:
                console.out(text, style=style, highlight=False, end="")
        file = console.file
        encoding = getattr(file, "encoding", None) or "utf-8"
        try:
            file.write(capture.get().encode(encoding, "backslashreplace").decode(encoding))
            file.flush()
        except BrokenPipeError:
            self._has_reader = False
            _discard(file)


def _cut(text: str) -> str:
    return text if len(text) <= _ROW_WIDTH else f"...{text[-_ROW_WIDTH:]}"


def _discard(file: IO[str]) -> None:
    """Send a closed pipe's descriptor nowhere: what is still buffered would fail again when the process ends."""
    with contextlib.suppress(OSError, AttributeError):  # a file without a descriptor has none to send
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, file.fileno())
        os.close(nowhere)


def _standard_output() -> "Console":
    try:
        from rich.console import Console
    except ImportError as error:
        raise ImportError("render_mode='human' draws with rich: pip install 'textgym[render]'") from error
    return Console()
