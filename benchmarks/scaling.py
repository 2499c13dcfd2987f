"""How cost grows: exponents fitted to seconds, and what they may be. Pure arithmetic, but for the plot."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

_ROUNDING = 0.1  # of an exponent, that the noise of a few seconds is allowed


class Fit(NamedTuple):
    """Seconds ∝ x^exponent."""

    exponent: float
    error: float  # standard error of the exponent
    factor: float  # seconds at x = 1

    def verdict(self, at_most: float) -> str:
        """What the exponent says of the largest that it may be."""
        return "met" if self.exponent <= at_most + _ROUNDING else "NOT MET"


class Curve(NamedTuple):
    """Seconds of some work along one axis."""

    axis: str
    work: str
    values: tuple[int, ...]
    seconds: tuple[float, ...]
    at_most: float  # the exponent

    @property
    def fit(self) -> Fit:
        """Of the upper half: what a call costs by itself hides how small work grows."""
        return fit(*upper_half(self.values, self.seconds))


def upper_half(values: Sequence[int], seconds: Sequence[float]) -> tuple[Sequence[int], Sequence[float]]:
    """The larger values, at least three, with their seconds."""
    first = min(len(values) // 2, max(0, len(values) - 3))
    return values[first:], seconds[first:]


def fit(values: Sequence[float], seconds: Sequence[float]) -> Fit:
    """Least squares on logarithms.

    >>> found = fit([1, 2, 4], [3.0, 12.0, 48.0])
    >>> round(found.exponent, 6), round(found.error, 6), round(found.factor, 6)
    (2.0, 0.0, 3.0)
    """
    x, y = np.log(values), np.log(seconds)
    slope, intercept = np.polyfit(x, y, 1)
    residuals = y - slope * x - intercept
    freedom = max(1, len(x) - 2)
    error = np.sqrt((residuals**2).sum() / freedom / ((x - x.mean()) ** 2).sum())
    return Fit(float(slope), float(error), float(np.exp(intercept)))


def draw(curves: Mapping[str, Sequence[Curve]], folder: Path) -> None:
    """Write scaling.png: a panel for each axis, logarithmic, with the fitted lines.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure  # without a window, nor a global state

    figure = Figure(figsize=(10, 7), layout="constrained", facecolor="white")
    panels = figure.subplots(2, 2).flat
    for panel, (axis, along) in zip(panels, curves.items(), strict=True):
        for curve, colour in zip(along, ("#0b6bcb", "#c2410c"), strict=False):
            found = curve.fit
            ends = np.array([upper_half(curve.values, curve.seconds)[0][0], curve.values[-1]], dtype=float)
            panel.plot(curve.values, curve.seconds, "o", color=colour, label=f"{curve.work}, ∝ x^{found.exponent:.2f}")
            panel.plot(ends, found.factor * ends**found.exponent, "-", color=colour)
        panel.set(xscale="log", yscale="log", xlabel=axis, ylabel="seconds")
        # Over less than a decade labels of the scale's own would overlap.
        panel.set_xticks(along[0].values, [f"{value:,}" for value in along[0].values])
        panel.set_xticks([], minor=True)
        panel.grid(True, which="major", alpha=0.3)
        panel.legend(frameon=False)
    figure.savefig(folder / "scaling.png", dpi=120)
