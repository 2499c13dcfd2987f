"""How the cost of rollouts and updates grows with horizon, vocabulary, environments and the size of groups.

Everything else stays as it is along an axis. Fits and plots are left to `benchmarks.scaling`.
"""

import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
import torch

from agents.learner import PolicyGradient
from agents.rollout import collect
from benchmarks import scaling, workload
from benchmarks.finding import Finding
from benchmarks.roofline import bandwidth, decoding_limit, product_rate, products, update_limit
from benchmarks.scaling import Curve, fit, upper_half
from benchmarks.tables import markdown_table

REPEATS, QUICK_REPEATS = 3, 1
ROLLOUT, UPDATE = "rollout", "update"
_SEED = 0
_SIZE = "S"
_FLOAT = 4  # bytes
_NOTES = """\
Seconds of all tokens together, of the larger half of the values: up to 1 is linear in what an axis counts, and with the
size of groups, the episodes staying as many, nothing may grow. Attention reads every earlier token, so that the horizon
may go up to 2; beside it stands what operations and bytes, at the rates measured, grow by. An exponent is allowed .1 of
noise. Episodes are as long as the horizon. The limit is the machine's own: every token once, at the rates measured for
products of these shapes and for memory."""


class Point(NamedTuple):
    """A workload."""

    horizon: int = 16
    vocabulary: int = 256
    environments: int = 64
    group_size: int = 1
    prompt_tokens: int = 8


class Axis(NamedTuple):
    """What is varied, and how fast cost may grow with it."""

    name: str
    field: str  # of a point
    values: tuple[int, ...]
    quick: tuple[int, ...]
    start: Point
    at_most: float


AXES = (
    Axis("horizon, tokens", "horizon", (64, 128, 256, 512, 1024), (32, 64, 128, 256), Point(environments=16), 2.0),
    Axis(
        "vocabulary, tokens", "vocabulary", (64, 256, 1024, 4096, 16384, 50257), (64, 1024, 4096, 16384), Point(), 1.0
    ),
    Axis("environments", "environments", (1, 4, 16, 64, 256, 1024, 4096), (1, 16, 128, 512, 1024), Point(), 1.0),
    Axis("group size", "group_size", (1, 2, 4, 8, 16, 32), (1, 4, 16), Point(environments=128, prompt_tokens=64), 0.0),
)


def measure(quick: bool, threads: int, say: Callable[[str], None]) -> Finding:
    """Measure along every axis.

    Args:
        quick: fewer and smaller values, once.
        threads: of torch, already set; noted alone.
        say: shows progress.
    """
    repeats = QUICK_REPEATS if quick else REPEATS
    curves: dict[str, list[Curve]] = {}
    limits: dict[str, list[dict[str, float]]] = {}
    memory = bandwidth()
    for axis in AXES:
        values = axis.quick if quick else axis.values
        points = [axis.start._replace(**{axis.field: value}) for value in values]
        found = seconds(points, repeats)
        limits[axis.name] = [limit(point, memory) for point in points]
        curves[axis.name] = [
            Curve(axis.name, work, values, tuple(each[work] for each in found), axis.at_most)
            for work in (ROLLOUT, UPDATE)
        ]
        say(f"{axis.name}: measured")
    drawn = find_spec("matplotlib") is not None
    return Finding(
        title="How cost grows",
        workload=(
            f"d=64, 2 layers, float32; where an axis does not say otherwise V={Point().vocabulary}, "
            f"{Point().environments} environments, completions of {Point().horizon} tokens after prompts of "
            f"{Point().prompt_tokens}. Horizon: {AXES[0].start.environments} environments. Groups: "
            f"{AXES[3].start.environments} episodes after prompts of {AXES[3].start.prompt_tokens}."
        ),
        repeats=repeats,
        tables=[_table(curves, memory), _points(curves, limits)],
        notes=_NOTES + ("" if drawn else "\nMissing: the plot: matplotlib is not installed."),
        record={
            "curves": [
                {**curve._asdict(), "fit": curve.fit._asdict(), "verdict": curve.fit.verdict(curve.at_most)}
                for along in curves.values()
                for curve in along
            ],
            "limits": limits,
        },
        draw=partial(scaling.draw, curves) if drawn else None,
    )


def seconds(
    points: Sequence[Point], repeats: int, clock: Callable[[], float] = time.perf_counter
) -> list[dict[str, float]]:
    """Seconds of sampling the episodes of each point and of their gradient, medians after a first time.

    The points take turns: whatever slows the machine for a while would otherwise look like growth.
    """
    runs = [_run_of(point, clock) for point in points]
    found: list[list[tuple[float, float]]] = [[] for _ in points]
    for _ in range(repeats + 1):
        for run, each in zip(runs, found, strict=True):
            gc.collect()  # what the others left
            each.append(run())
    timed = [zip(*each[1:], strict=True) for each in found]  # after the warm-up
    return [dict(zip((ROLLOUT, UPDATE), map(statistics.median, each), strict=True)) for each in timed]


def _run_of(point: Point, clock: Callable[[], float]) -> Callable[[], tuple[float, float]]:
    """What samples the episodes of a point and takes their gradient, and returns the seconds of each."""
    envs = workload.make_envs(
        point.environments, point.prompt_tokens, horizon=point.horizon, size=point.vocabulary, stop_ids=[]
    )
    policy = workload.make_policy(envs, workload.SIZES[_SIZE])
    learner = PolicyGradient(
        policy, envs, "reinforce", group_size=point.group_size, episodes_per_update=point.environments
    )
    cache = policy.prefix_cache()

    def run() -> tuple[float, float]:
        generator = torch.Generator().manual_seed(_SEED)
        prompts = np.random.default_rng(_SEED)
        start = clock()
        rollout = collect(policy, envs, point.environments, prompts, point.group_size, generator, cache=cache)
        middle = clock()
        learner.accumulate_gradient(learner.experience(rollout))
        return middle - start, clock() - middle

    return run


def predicted_seconds(point: Point, rates: Mapping[tuple[int, int], float], memory: float) -> float:
    """Of a rollout without what stands around its products: operations and bytes at the rates measured.

    Args:
        point: the workload.
        rates: operations a second of a product with each matrix [in, out].
        memory: bytes a second.
    """
    size = workload.SIZES[_SIZE]
    tokens = point.environments * point.horizon
    weights = [(matrix, size.num_layers) for matrix in products(size)] + [((size.d_model, point.vocabulary), 1)]
    compute = sum(2 * tokens * matrix[0] * matrix[1] * count / rates[matrix] for matrix, count in weights)
    read = tokens * (point.prompt_tokens + point.horizon / 2)
    return compute + read * 2 * _FLOAT * size.num_layers * size.d_model / memory


def limit(point: Point, memory: float) -> dict[str, float]:
    """Seconds of each work at least.

    Args:
        point: the workload.
        memory: bytes a second.
    """
    size, tokens = workload.SIZES[_SIZE], point.environments * point.horizon
    lengths = np.full(point.environments, point.horizon)
    rollout = decoding_limit(size, point.vocabulary, lengths, point.prompt_tokens, point.group_size, memory)
    run = tokens + point.environments * point.prompt_tokens
    return {ROLLOUT: rollout.seconds, UPDATE: update_limit(size, point.vocabulary, run, tokens)}


def _table(curves: dict[str, list[Curve]], memory: float) -> str:
    axis = AXES[0]
    values = curves[axis.name][0].values
    size = workload.SIZES[_SIZE]
    # Measured once: along the horizon the shapes stay as they are, and noise between them would look like growth.
    rates = {
        matrix: product_rate(axis.start.environments, *matrix)
        for matrix in (*products(size), (size.d_model, axis.start.vocabulary))
    }
    horizon = [predicted_seconds(axis.start._replace(horizon=value), rates, memory) for value in values]
    expected = {(axis.name, ROLLOUT): f"{fit(*upper_half(values, horizon)).exponent:.2f}"}
    rows: list[list[str]] = []
    for name, along in curves.items():
        for curve in along:
            found = curve.fit
            limit = f"at most {curve.at_most:g}"
            by_count: Any = expected.get((name, curve.work), "")
            shown = f"{found.exponent:.2f} ± {found.error:.2f}"
            rows.append([name, curve.work, shown, by_count, limit, found.verdict(curve.at_most)])
    return markdown_table(["axis", "work", "exponent", "by operations and bytes", "required", "verdict"], rows)


def _points(curves: dict[str, list[Curve]], limits: dict[str, list[dict[str, float]]]) -> str:
    rows = []
    for name, along in curves.items():
        for place, value in enumerate(along[0].values):
            row = [name, f"{value:,}"]
            for curve in along:
                took, least = curve.seconds[place], limits[name][place][curve.work]
                row += [f"{took:.3f}", f"{least:.4f}", f"{least / took:.0%}"]
            rows.append(row)
    header = [f"{work}, {what}" for work in (ROLLOUT, UPDATE) for what in ("s", "limit, s", "reached")]
    return markdown_table(["axis", "value", *header], rows)
