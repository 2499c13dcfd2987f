"""From the results of runs to a comparison of schemes: intervals over seeds, paired differences, tables.

Runs nothing and writes no file.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from agents.algorithms import make_algorithm
from agents.rollout import Rollout
from benchmarks.schemes import Row, RunResult
from benchmarks.statistics import Interval, paired_t_interval, t_interval
from benchmarks.tables import markdown_table
from textgym.escape import escape
from textgym.finish import FinishReason
from textgym.vocabulary import Vocabulary

MEASURES = {"normalized_score": "score at the end", "normalized_area": "mean score in training"}
FEWEST_SEEDS = 5


@dataclass(frozen=True)
class SchemeSummary:
    """One scheme over its seeds.

    Attributes:
        scheme: its name.
        num_seeds: n.
        intervals: the mean of each of `MEASURES` with its 95% t interval.
        num_tokens: generated tokens of a run, mean.
        reward_calls: calls of the reward function in a run, mean; each scores a batch of texts.
        texts_scored: texts that it scored in a run, mean.
    """

    scheme: str
    num_seeds: int
    intervals: dict[str, Interval]
    num_tokens: float
    reward_calls: float
    texts_scored: float


@dataclass(frozen=True)
class Difference:
    """A scheme minus the reference, seed by seed: of each of `MEASURES` the mean with its 95% paired t interval."""

    scheme: str
    reference: str
    intervals: dict[str, Interval]


@dataclass(frozen=True)
class Comparison:
    """What runs that differ in scheme and seed say; the first scheme is the reference."""

    schemes: tuple[SchemeSummary, ...]
    differences: tuple[Difference, ...]
    warnings: tuple[str, ...]

    def record(self) -> dict[str, Any]:
        """A JSON object with everything in it."""
        return asdict(self)

    def markdown(self) -> str:
        """Two tables and the warnings, as Markdown that is aligned as plain text too."""
        warnings = [f"Warning: {escape(warning)}\n" for warning in self.warnings]
        return "\n".join([_scheme_table(self.schemes), _difference_table(self.differences), *warnings])


def compare(results: Sequence[RunResult]) -> Comparison:
    """Compare schemes over their seeds, each with the first one by pairs of one seed.

    Args:
        results: of rows that differ in scheme and seed alone, every scheme with the same seeds; at least two.

    Raises:
        ValueError: other rows than these.
    """
    by_scheme: dict[str, dict[int, RunResult]] = {}
    for result in results:
        runs = by_scheme.setdefault(result.row.scheme, {})
        if result.row.seed in runs:
            raise ValueError(f"two runs of scheme {result.row.scheme!r} have seed {result.row.seed}; give one")
        runs[result.row.seed] = result
    seeds = _common_seeds(by_scheme, [result.row for result in results])
    reference = next(iter(by_scheme))
    return Comparison(
        schemes=tuple(_summary(scheme, [runs[seed] for seed in seeds]) for scheme, runs in by_scheme.items()),
        differences=tuple(
            Difference(
                scheme,
                reference,
                {
                    measure: paired_t_interval(
                        [getattr(runs[seed], measure) for seed in seeds],
                        [getattr(by_scheme[reference][seed], measure) for seed in seeds],
                    )
                    for measure in MEASURES
                },
            )
            for scheme, runs in by_scheme.items()
            if scheme != reference
        ),
        warnings=tuple(_warnings(len(seeds), results[0].row.algorithm)),
    )


def sees_when_paid(algorithm: str) -> bool:
    """Whether an algorithm's advantages depend on when a reward is paid, rather than on an episode's return alone.

    Where they do not, schemes that pay the same sum are the same problem.

    >>> sees_when_paid("reinforce_to_go"), sees_when_paid("rloo")
    (True, False)
    """
    mask = np.ones((2, 2), dtype=bool)
    late = np.array([[0.0, 1.0], [0.0, 0.0]])
    rollout = Rollout(
        tokens=np.zeros((2, 3), dtype=np.int64),
        prompt_length=np.ones(2, dtype=np.int64),
        length=np.full(2, 3),
        actions=np.zeros((2, 2), dtype=np.int64),
        mask=mask,
        log_probs=np.zeros((2, 2), dtype=np.float32),
        rewards=late,
        score=late.sum(axis=1),
        scores=late.sum(axis=1, keepdims=True),
        scores_valid=np.ones((2, 1), dtype=bool),
        valid=np.ones(2, dtype=bool),
        finish_reason=np.full(2, FinishReason.LIMIT),
        group=np.zeros(2, dtype=np.int64),
        vocabulary=Vocabulary.from_symbols(["0"]),
        values=np.zeros((2, 2)),
    )
    advantages = make_algorithm(algorithm).advantages_of
    return not np.array_equal(advantages(rollout), advantages(rollout._replace(rewards=late[:, ::-1])))


def _common_seeds(by_scheme: dict[str, dict[int, RunResult]], rows: list[Row]) -> list[int]:
    if len({replace(row, scheme="", seed=0) for row in rows}) != 1:
        raise ValueError("the runs must differ in scheme and seed alone; compare one task and one set of settings")
    first, *others = (list(runs) for runs in by_scheme.values())
    for scheme, runs in by_scheme.items():
        if set(runs) != set(first):
            raise ValueError(f"scheme {scheme!r} has seeds {sorted(runs)} and not {sorted(first)}; pairs need the same")
    if len(first) < 2 or not others:
        raise ValueError(f"{len(first)} seeds and {len(by_scheme)} schemes; a comparison needs at least two of each")
    return first


def _summary(scheme: str, results: list[RunResult]) -> SchemeSummary:
    def mean(name: str) -> float:
        return float(np.mean([getattr(result, name) for result in results]))

    return SchemeSummary(
        scheme=scheme,
        num_seeds=len(results),
        intervals={measure: t_interval([getattr(result, measure) for result in results]) for measure in MEASURES},
        num_tokens=mean("num_tokens"),
        reward_calls=mean("reward_calls"),
        texts_scored=mean("texts_scored"),
    )


def _warnings(num_seeds: int, algorithm: str) -> list[str]:
    warnings = []
    if num_seeds < FEWEST_SEEDS:
        warnings.append(
            f"too few: {num_seeds} seeds. The intervals lean on the normal distribution and are wide; use at least "
            f"{FEWEST_SEEDS}, and 20 for a claim."
        )
    if not sees_when_paid(algorithm):
        warnings.append(
            f"{algorithm} uses the sum of an episode's rewards alone. Schemes that pay the same sum are the same "
            "problem to it: a difference of 0 is by construction, not a finding."
        )
    return warnings


def _scheme_table(summaries: Sequence[SchemeSummary]) -> str:
    header = ["scheme", "seeds", *MEASURES.values(), "tokens", "reward calls", "texts scored"]
    rows = [
        [
            escape(summary.scheme),
            str(summary.num_seeds),
            *(_interval(summary.intervals[measure], "") for measure in MEASURES),
            *(f"{count:,.0f}" for count in (summary.num_tokens, summary.reward_calls, summary.texts_scored)),
        ]
        for summary in summaries
    ]
    return markdown_table(header, rows)


def _difference_table(differences: Sequence[Difference]) -> str:
    header = ["paired difference", *(cell for name in MEASURES.values() for cell in (name, "p"))]
    rows = [
        [
            escape(f"{difference.scheme} - {difference.reference}"),
            *(cell for measure in MEASURES for cell in _tested(difference.intervals[measure])),
        ]
        for difference in differences
    ]
    return markdown_table(header, rows)


def _tested(interval: Interval) -> tuple[str, str]:
    return _interval(interval, "+"), f"{interval.p_value:.2g}"


def _interval(interval: Interval, sign: str) -> str:
    """Mean and interval; `sign` is that of a format specification."""
    return f"{interval.mean:{sign}.3f} [{interval.low:{sign}.3f}, {interval.high:{sign}.3f}]"
