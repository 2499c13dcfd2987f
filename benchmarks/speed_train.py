"""How fast a whole step of training is, beside TRL's GRPOTrainer; and whether both learn the same.

A step samples completions, scores them, and updates the weights once. Both sides have the same weights, prompts, reward
function and settings. Files are left to others.
"""

import operator
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from agents.learner import PolicyGradient, Update
from benchmarks import workload
from benchmarks.finding import Finding, missing_lines, of_limit, rate, requirement_records, requirement_table
from benchmarks.requirement import Requirement
from benchmarks.roofline import bandwidth, decoding_limit, update_limit
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
one of 64 and 256 (256, if quick), ours as many as a number of tokens allows. Lengths are drawn anew in each step. In
learning, a number is one seed's mean reward over the last quarter of the updates, or over all. The limit, in tokens a
second, is the machine's own: every token once, at the rates measured for products of these shapes and for memory.
"""


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


class Steps(NamedTuple):
    """Timed steps of one side; none where it cannot be run."""

    seconds: tuple[float, ...]  # one number a step
    tokens: tuple[int, ...]  # of all completions of a step
    batch: int | None = None  # completions in one backward pass; None: a number of tokens
    missing: str = ""

    @property
    def completions(self) -> Timing:
        """Completions a second."""
        return Timing(tuple(workload.EPISODES / each for each in self.seconds), self.missing)

    @property
    def token_rates(self) -> Timing:
        """Generated tokens a second."""
        return Timing(tuple(map(operator.truediv, self.tokens, self.seconds)), self.missing)

    @property
    def mean_length(self) -> float:
        """Tokens of a completion."""
        return sum(self.tokens) / (len(self.tokens) * workload.EPISODES)


def measure(quick: bool, threads: int, say: Callable[[str], None]) -> Finding:
    """Time both sides in turns, at each size; then let both learn.

    Args:
        quick: once, beside one batch size; nothing is learned.
        threads: of torch, already set; noted alone.
        say: shows progress.
    """
    repeats, sizes = QUICK_REPEATS if quick else REPEATS, ("S", "M")
    steps: dict[Key, Steps] = {}
    for size in sizes:
        steps |= time_steps(size, repeats, BATCHES[-1:] if quick else BATCHES)
        say(f"{size}: timed")
    timings: dict[Any, Timing] = {key: side.completions for key, side in steps.items()}
    requirements = [Requirement(Key(size, OURS), Key(size, PEER), AT_LEAST) for size in sizes]
    memory = bandwidth()
    limits = {size: token_limit(size, memory) for size in sizes}
    tables = [steps_table(steps, limits), requirement_table(requirements, timings)]
    curves = None
    if find_spec("trl") and not quick:
        curves = learn(say, SEEDS, UPDATES)
        tables.append(learning_table(curves))
    return Finding(
        title="Speed of training",
        workload=(
            f"{workload.EPISODES} completions of up to {workload.HORIZON} tokens a step, a stop token with a mean "
            f"length of 24, prompts of {PROMPT_TOKENS}, V={workload.VOCABULARY_SIZE:,}, float32; "
            f"{_shapes(sizes)}."
        ),
        repeats=repeats,
        tables=tables,
        notes=_NOTES + missing_lines(timings),
        record={
            "steps": {str(key): side._asdict() for key, side in steps.items()},
            "limits": limits,
            "rates": {str(key): list(timing.rates) for key, timing in timings.items()},
            "requirements": requirement_records(requirements, timings),
            "curves": curves and {name: values.tolist() for name, values in curves._asdict().items()},
        },
    )


def time_steps(
    size: str, repeats: int, batches: tuple[int, ...], clock: Callable[[], float] = time.perf_counter
) -> dict[Key, Steps]:
    """Steps of both sides in turns, after one that does not count; the peer's best batch size is what is kept."""
    learner = _learner(size, workload.EPISODES, seed=0, learning_rate=_TIMED_LEARNING_RATE)
    seconds, tokens = [], []
    with tempfile.TemporaryDirectory() as folder:
        peers = [_trainer(learner, batch, 0, Path(folder), workload.EPISODES, clock) for batch in batches]
        for _ in range(1 + repeats):
            before, start = learner.num_timesteps, clock()
            learner.learn(1)
            seconds.append(clock() - start)
            tokens.append(learner.num_timesteps - before)
            for peer in filter(None, peers):
                peer.train(1)
    ours = Steps(tuple(seconds[1:]), tuple(tokens[1:]))
    theirs = [Steps(tuple(peer.seconds[1:]), tuple(peer.tokens[1:]), peer.batch) for peer in peers if peer is not None]
    fastest = min(theirs, key=lambda side: spread(side.seconds).median, default=Steps((), (), missing=MISSING))
    return {Key(size, OURS): ours, Key(size, PEER): fastest}


def token_limit(size: str, rate_of_memory: float) -> float:
    """Generated tokens a second that the machine's own products and memory allow for sampling and one pass back."""
    shape, lengths = workload.SIZES[size], workload.likely_lengths(workload.EPISODES)
    tokens = int(lengths.sum())
    args = shape, workload.VOCABULARY_SIZE
    sampling = decoding_limit(*args, lengths, PROMPT_TOKENS, workload.GROUP_SIZE, rate_of_memory).seconds
    return tokens / (sampling + update_limit(*args, tokens + workload.EPISODES * PROMPT_TOKENS, tokens))


def steps_table(steps: Mapping[Key, Steps], limits: Mapping[str, float]) -> str:
    """What each side did in a second, how long its completions were, and how many it learns from at a time."""
    rows = []
    for key, side in steps.items():
        length = "" if side.missing else f"{side.mean_length:.1f}"
        batch = "" if side.batch is None else str(side.batch)
        limit = limits[key.size]
        reached = [f"{limit:,.0f}", of_limit(side.token_rates, limit)]
        rows.append([str(key), rate(side.completions, ",.1f"), rate(side.token_rates), *reached, length, batch])
    header = ["", "completions a second", "tokens a second", "limit", "reached", "tokens a completion"]
    header.append("completions a backward pass")
    return markdown_table(header, rows)


def learn(say: Callable[[str], None], seeds: int, updates: int) -> Curves:
    """Let both sides learn from the same weights, with several seeds."""
    ours, peer = [], []
    for seed in range(seeds):
        learner = _learner("S", LEARNING_EPISODES, seed)
        with tempfile.TemporaryDirectory() as folder:
            trainer = _trainer(learner, LEARNING_EPISODES, seed, Path(folder), LEARNING_EPISODES, time.perf_counter)
            assert trainer is not None
            trainer.train(updates)
        peer.append(trainer.rewards)
        ours.append(_rewards(learner, updates))
        say(f"learning, seed {seed}: {ours[-1][-1]:.3f} and {peer[-1][-1]:.3f}")
    return Curves(np.array(ours), np.array(peer))


def learning_table(curves: Curves) -> str:
    """Means over the seeds with 95% t intervals, and whether those overlap."""
    seeds, updates = curves.ours.shape
    last = max(1, updates // 4)
    rows = []
    for name, part in (("all updates", slice(None)), ("last quarter", slice(-last, None))):
        ours, peer = (t_interval(values[:, part].mean(axis=1)) for values in curves)
        rows.append([name, _interval(ours), _interval(peer), "yes" if overlap(ours, peer) else "NO"])
    return markdown_table([f"mean reward of {updates} updates, {seeds} seeds", OURS, PEER, "intervals overlap"], rows)


def overlap(one: Interval, other: Interval) -> bool:
    """Whether two intervals have a number in common.

    >>> overlap(t_interval([1.0, 3.0]), t_interval([2.0, 2.5]))
    True
    """
    return one.low <= other.high and other.low <= one.high


def _shapes(sizes: Sequence[str]) -> str:
    return "; ".join(
        f"{size}: d={shape.d_model}, {shape.num_layers} layers"
        for size, shape in workload.SIZES.items()
        if size in sizes
    )


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


def _interval(interval: Interval) -> str:
    return f"{interval.mean:.3f} [{interval.low:.3f}, {interval.high:.3f}]"
