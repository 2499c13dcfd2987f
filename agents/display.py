"""What `textgym train` shows: a live table on a terminal, plain lines elsewhere, two samples with each.

All text of a model or a file is escaped; none is read as markup.
"""

import os
import sys
import time
from collections import deque
from typing import IO

import numpy as np
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from agents.learner import Update
from agents.rollout import Rollout, spaced_rows
from textgym.escape import escape

_SMOOTHING = 10  # updates that the shown return is a mean of
_SAMPLE_WIDTH = 100
_TABLE_WIDTH = 60  # on a narrower terminal the rows would wrap


class Display:
    """Shows a training as it goes.

    Args:
        total_timesteps: tokens to generate.
        optimum: J*, or None where it is not known.
        uniform: J of the uniform policy, or None.
        interval: seconds between two lines off a terminal.
        console: where to.
    """

    def __init__(
        self,
        total_timesteps: int,
        optimum: float | None,
        uniform: float | None,
        interval: float = 5.0,
        console: Console | None = None,
    ) -> None:
        self.total_timesteps, self.optimum, self.uniform, self.interval = total_timesteps, optimum, uniform, interval
        self.console = console or Console(highlight=False)
        self._returns: deque[float] = deque(maxlen=_SMOOTHING)
        self._begun = time.perf_counter()
        self._shown = float("-inf")
        self._live: Live | None = None
        self._draws_table = (
            self.console.is_terminal and not self.console.is_dumb_terminal and self.console.width >= _TABLE_WIDTH
        )

    def show(self, update: Update) -> None:
        """Show an update, if it is time to."""
        if update.rollout.valid.any():  # otherwise the metrics are 0 and mean nothing
            self._returns.append(update.metrics["reward"])
        now = time.perf_counter()
        last = update.num_timesteps >= self.total_timesteps
        if self._draws_table:
            if self._live is None:
                self._live = Live(console=self.console, auto_refresh=False)
                self._live.start()
            self._live.update(Group(self._table(update, now), *map(Text, samples(update.rollout))), refresh=True)
        elif last or now - self._shown >= self.interval:
            self._shown = now
            self._print_line(update, now)

    def close(self) -> None:
        """Leave the last table standing."""
        if self._live is not None:
            self._live.stop()

    def _mean_return(self) -> str:
        """Mean return of the last updates that had one, and what it is compared with."""
        mean = f"{sum(self._returns) / len(self._returns):.3f}" if self._returns else "not known yet"
        return f"{mean}{known(self.optimum, self.uniform)}"

    def _rates(self, update: Update, now: float) -> tuple[float, float]:
        """Tokens per second, and seconds left."""
        rate = update.num_timesteps / max(now - self._begun, 1e-9)
        return rate, max(0, self.total_timesteps - update.num_timesteps) / rate

    def _table(self, update: Update, now: float) -> Table:
        rate, left = self._rates(update, now)
        metrics = update.metrics
        table = Table(show_header=False, title=f"update {update.step}", title_justify="left")
        table.add_row("return", self._mean_return())
        if "true_score" in metrics:
            table.add_row("true score", f"{metrics['true_score']:.3f}")
        table.add_row("entropy", f"{metrics['entropy']:.3f} nats per token")
        table.add_row("gradient norm", f"{metrics['grad_norm']:.3f}")
        if no_signal(update) or _has_groups(update):
            table.add_row("groups without signal", no_signal(update) or f"{metrics['frac_reward_zero_std']:.0%}")
        table.add_row("completion length", f"{metrics['completions/mean_length']:.1f} tokens")
        table.add_row("ended by the horizon", f"{metrics['completions/clipped_ratio']:.0%}")
        if metrics["episodes/dropped"]:
            table.add_row("dropped", _dropped(update))
        table.add_row("tokens", f"{update.num_timesteps:,} of {self.total_timesteps:,}")
        table.add_row("speed", f"{rate:,.0f} tokens/s")
        table.add_row("time left", f"{left:.0f} s")
        return table

    def _print_line(self, update: Update, now: float) -> None:
        rate, left = self._rates(update, now)
        metrics = update.metrics
        parts = [
            f"update {update.step:>4}",
            f"return {self._mean_return()}",
            f"true score {metrics['true_score']:.3f}" if "true_score" in metrics else "",
            f"entropy {metrics['entropy']:.3f}",
            f"grad norm {metrics['grad_norm']:.2f}",
            f"{_dropped(update)} dropped" if metrics["episodes/dropped"] else "",
            no_signal(update),
            f"{update.num_timesteps:,} tokens",
            f"{rate:,.0f} tokens/s",
            f"{left:.0f} s left",
        ]
        for text in ("  ".join(filter(None, parts)), *samples(update.rollout)):
            say(text, self.console.file)


def say(text: str, file: IO[str] | None = None) -> None:
    """Print a line; where nobody reads any more (`| head`), drop it, for the training goes on."""
    file = file or sys.stdout
    try:
        print(text, file=file, flush=True)
    except BrokenPipeError:
        # What is still buffered would fail again when the process ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), file.fileno())


def known(optimum: float | None, uniform: float | None) -> str:
    """What the return is compared with, where it is known.

    >>> known(1.0, 0.125)
    ' (optimum 1, uniform policy 0.125)'
    """
    if optimum is None:
        return ""
    beside = f", uniform policy {uniform:.3g}" if uniform is not None else ""
    return f" (optimum {optimum:.3g}{beside})"


def no_signal(update: Update) -> str:
    """Why the rewards of an update taught nothing, in words; "" where they did, or no episode was left."""
    if update.advantages.any() or not update.rollout.valid.any():
        return ""
    if update.metrics["frac_reward_zero_std"] == 1:
        return "no signal: the returns of every group are equal"
    return "no signal: every advantage is 0"


def samples(rollout: Rollout, count: int = 2) -> list[str]:
    """Lines that show some episodes, of different prompts where there are several; escaped and cut to a line each."""
    lines = []
    for row in spaced_rows(rollout, count):
        prompt, completion = (_cut(escape(text)) for text in rollout.texts(row))
        lines.append(f"  {prompt} → {completion}  {_verdict(rollout, row)}")
    return lines


def _has_groups(update: Update) -> bool:
    """Whether there are episodes to compare."""
    return len(np.unique(update.rollout.group)) < len(update.rollout.group)


def _verdict(rollout: Rollout, row: int) -> str:
    if not rollout.valid[row]:
        return "dropped"
    true = "" if rollout.true_score is None else f", true score {rollout.true_score[row]:.3g}"
    return f"score {rollout.score[row]:.3g}{true}"


def _dropped(update: Update) -> str:
    return f"{update.metrics['episodes/dropped']:.0f} of {len(update.rollout.valid)} episodes"


def _cut(text: str) -> str:
    return text if len(text) <= _SAMPLE_WIDTH else f"...{text[-_SAMPLE_WIDTH:]}"
