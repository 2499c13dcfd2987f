"""How fast a whole step of training is, beside TRL's GRPOTrainer; and whether both learn the same.

A step samples completions, scores them, and updates the weights once. Both sides have the same weights, prompts, reward
function and settings. Files are left to others.
"""

import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from agents.learner import PolicyGradient, Update
from benchmarks import workload
from benchmarks.finding import Finding, missing_lines, rate, requirement_records, requirement_table
from benchmarks.requirement import Requirement
from benchmarks.statistics import Interval, t_interval
from benchmarks.tables import markdown_table
from benchmarks.timing import Timing, spread
from benchmarks.trl_peer import Trainer

REPEATS, QUICK_REPEATS = 3, 1
OURS, PEER = "PolicyGradient", "TRL's GRPOTrainer"
MISSING = "trl is not installed"
AT_LEAST = 2.5
PROMPT_TOKENS = 8
BATCHES = (64, 256)  # completions that the peer takes in one backward pass
SEEDS, UPDATES, LEARNING_EPISODES = 5, 40, 64
_LEARNING_RATE, _TIMED_LEARNING_RATE = 1e-3, 1e-9  # timed, both sides stay where they are, as do their lengths
_NOTES = """\
A step samples 256 completions in groups of 8, scores and learns from them: GRPO, no KL, one step of the optimizer. The
peer's time is that between its own callbacks before and after a step; its completions in a backward pass are the better
one of 64 and 256. In learning, a number is one seed's mean reward over the last quarter of the updates, or over all."""


class Key(NamedTuple):
    """One timed side."""

    size: str
    what: str

    def __str__(self) -> str:
        return f"{self.what}, {self.size}"


class Curves(NamedTuple):
    """Mean reward of each update, float64 [seeds, updates]."""

    ours: np.ndarray
    peer: np.ndarray


def measure(quick: bool, threads: int, say: Callable[[str], None]) -> Finding:
    """Time both sides in turns, at each size; then let both learn.

    Args:
        quick: once each, and no learning.
        threads: of torch, already set; noted alone.
        say: shows progress.
    """
    repeats = QUICK_REPEATS if quick else REPEATS
    timings: dict[Any, Timing] = {}
    for size in ("S", "M"):
        timings |= time_steps(size, repeats, BATCHES[:1] if quick else BATCHES)
        say(f"{size}: timed")
    requirements = [Requirement(Key(size, OURS), Key(size, PEER), AT_LEAST) for size in ("S", "M")]
    table = markdown_table(
        ["completions a second", *("S", "M")],
        [[what, *(rate(timings[Key(size, what)], ",.1f") for size in ("S", "M"))] for what in (OURS, PEER)],
    )
    tables = [table, requirement_table(requirements, timings)]
    curves = None
    if not quick and find_spec("trl"):
        curves = learn(say)
        tables.append(learning_table(curves))
    return Finding(
        title="Speed of training",
        workload=(
            f"{workload.EPISODES} completions of up to {workload.HORIZON} tokens a step, a stop token with a mean "
            f"length of 24, prompts of {PROMPT_TOKENS}, V={workload.VOCABULARY_SIZE:,}, float32; S: d=64, 2 layers, "
            "M: d=128, 4 layers."
        ),
        repeats=repeats,
        tables=tables,
        notes=_NOTES + ("\nLearning is left out with --quick." if quick else "") + missing_lines(timings),
        record={
            "rates": {str(key): list(timing.rates) for key, timing in timings.items()},
            "requirements": requirement_records(requirements, timings),
            "curves": curves and {name: values.tolist() for name, values in curves._asdict().items()},
        },
    )


def time_steps(
    size: str, repeats: int, batches: tuple[int, ...], clock: Callable[[], float] = time.perf_counter
) -> dict[Key, Timing]:
    """Steps of both sides in turns, after one that does not count; the peer's best batch size is what is kept."""
    learner = _learner(size, workload.EPISODES, seed=0, learning_rate=_TIMED_LEARNING_RATE)
    ours: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        peers = [_trainer(learner, batch, 0, Path(folder), workload.EPISODES, clock) for batch in batches]
        for repeat in range(-1, repeats):
            start = clock()
            learner.learn(1)
            if repeat >= 0:
                ours.append(clock() - start)
            for peer in filter(None, peers):
                peer.train(1)
    found = {Key(size, OURS): _timing(ours)}
    measured = [_timing(peer.seconds[1:]) for peer in peers if peer is not None]
    fastest = max(measured, key=lambda timing: spread(timing.rates).median, default=Timing(missing=MISSING))
    return found | {Key(size, PEER): fastest}


def learn(say: Callable[[str], None]) -> Curves:
    """Let both sides learn from the same weights, with several seeds."""
    ours, peer = [], []
    for seed in range(SEEDS):
        learner = _learner("S", LEARNING_EPISODES, seed)
        with tempfile.TemporaryDirectory() as folder:
            trainer = _trainer(learner, LEARNING_EPISODES, seed, Path(folder), LEARNING_EPISODES, time.perf_counter)
            assert trainer is not None
            trainer.train(UPDATES)
        peer.append(trainer.rewards)
        ours.append(_rewards(learner, UPDATES))
        say(f"learning, seed {seed}: {ours[-1][-1]:.3f} and {peer[-1][-1]:.3f}")
    return Curves(np.array(ours), np.array(peer))


def learning_table(curves: Curves) -> str:
    """Means over the seeds with 95% t intervals, and whether those overlap."""
    last = max(1, curves.ours.shape[1] // 4)
    rows = []
    for name, part in (("all updates", slice(None)), ("last quarter", slice(-last, None))):
        ours, peer = (t_interval(values[:, part].mean(axis=1)) for values in curves)
        rows.append([name, _interval(ours), _interval(peer), "yes" if overlap(ours, peer) else "NO"])
    return markdown_table(
        [f"mean reward of {UPDATES} updates, {len(curves.ours)} seeds", OURS, PEER, "intervals overlap"], rows
    )


def overlap(one: Interval, other: Interval) -> bool:
    """Whether two intervals have a number in common.

    >>> overlap(t_interval([1.0, 3.0]), t_interval([2.0, 2.5]))
    True
    """
    return one.low <= other.high and other.low <= one.high


def _learner(size: str, episodes: int, seed: int, learning_rate: float = _LEARNING_RATE) -> PolicyGradient:
    envs = workload.make_envs(episodes, PROMPT_TOKENS)
    return PolicyGradient(
        workload.make_policy(envs, workload.SIZES[size]),
        envs,
        "grpo",
        group_size=workload.GROUP_SIZE,
        episodes_per_update=episodes,
        learning_rate=learning_rate,
        entropy_coef=0.0,
        seed=seed,
    )


def _trainer(
    learner: PolicyGradient, batch: int, seed: int, folder: Path, episodes: int, clock: Callable[[], float]
) -> Trainer | None:
    if not find_spec("trl"):
        return None
    prompts = workload.prompts(workload.EPISODES, PROMPT_TOKENS)
    learning_rate = learner.settings["learning_rate"]
    return Trainer(learner.policy.model, prompts, episodes, batch, learning_rate, seed, folder / str(batch), clock)


def _rewards(learner: PolicyGradient, updates: int) -> list[float]:
    rewards: list[float] = []

    def note(update: Update) -> bool:
        rewards.append(update.metrics["reward"])
        return update.step < updates

    learner.learn(2**62, note)
    return rewards


def _timing(seconds: list[float]) -> Timing:
    return Timing(tuple(workload.EPISODES / each for each in seconds))


def _interval(interval: Interval) -> str:
    return f"{interval.mean:.3f} [{interval.low:.3f}, {interval.high:.3f}]"
