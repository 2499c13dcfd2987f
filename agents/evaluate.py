"""`textgym evaluate`: what the greedy and the sampled policy of a model get, as a table and as JSON."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from agents.any_agent import Playable, open_agent
from agents.display import known, say
from agents.evaluate_settings import EvaluateSettings
from agents.evaluation import Measure, Plan, make_plan, measures
from agents.opening import described, make_envs, prepare, setup_errors, wave_envs
from agents.playing import Actor
from agents.rollout import Rollout, collect
from agents.tables import aligned
from textgym.escape import escape
from textgym.problem import Problem

_NUMBERS = ("episodes", "share", "mean", "tokens")
_UNKNOWN = "unknown"  # an interval


def evaluate(settings: EvaluateSettings) -> int:
    """Evaluate as the settings say; returns the exit code.

    Raises:
        SetupError, OSError: something cannot be read, built or written.
        textgym.RewardError, FloatingPointError, ValueError: the evaluation failed; nothing was written then.
    """
    settings = settings.resolved()
    prepare(settings)
    _check_output(settings.output)  # before any work
    with setup_errors():
        problem = make_envs(settings.env_keywords()).problem
        playable = open_agent(settings, problem)
        actors = playable.chosen(settings.policies)
    bounds = _known_range(settings, problem)
    plans = {name: _plan(settings, problem, name, playable) for name in actors}
    played = " and ".join(f"{_episodes(plan)} {name}" for name, plan in plans.items())
    say(
        f"textgym evaluate: {described(problem)}; {escape(str(settings.model or settings.agent))}; up to "
        f"{problem.max_new_tokens} new tokens; {played}; seed {settings.seed}"
    )
    lines: list[Measure] = []
    notes: list[str] = []
    for name, plan in plans.items():
        rollout = _play(problem, actors[name], plan, settings.seed)
        lines += measures(name, rollout, plan, problem.reward.names, settings.confidence, bounds)
        notes.append(f"{name}: {in_words(plan, _chance(problem, name, playable))}{_dropped(rollout)}")
    notes += [f"agent: {playable.note}"] if playable.note else []
    notes += _general_notes(problem, bounds, lines)
    say("\n".join([table(lines, settings.confidence), "", *notes]))
    if settings.output is not None:
        _write(settings.output, _as_json(settings, problem, bounds, plans, notes, lines))
    return 0


def table(lines: list[Measure], confidence: float) -> str:
    """The measures as aligned text, names of reward functions escaped."""
    rows = [("", "measure", "episodes", "share", "mean", f"{confidence * 100:g}% interval", "tokens")]
    for line in lines:
        rows.append(
            (
                line.policy,
                escape(line.measure),
                f"{line.episodes:,}",
                "" if line.share is None else f"{line.share:.1%}",
                _number(line.mean),
                _interval_cell(line),
                "" if line.tokens is None else f"{line.tokens:.2f}",
            )
        )
    return aligned(rows, _NUMBERS)


def in_words(plan: Plan, chance: str = "") -> str:
    """How the prompts of a plan were chosen, and what the intervals are about and cover.

    Args:
        plan: what was played.
        chance: what differs when a prompt is played again; "" where nothing does.

    >>> in_words(Plan(8, 8, 1, "exact"))
    'each of 8 prompts once, as it leads to the same every time; the means over them are exact'
    >>> in_words(Plan(8, 16, 2, "these"), "chance in the texts")
    'each of 8 prompts 2 times; the intervals are about these prompts, and cover chance in the texts'
    """
    count = f"{plan.num_prompts:,}" if plan.num_prompts < 10**6 else f"{plan.num_prompts:.2g}"
    also = f" and {chance}" if chance else ""
    if plan.basis == "drawn":
        about = f"about all of them, and cover which were drawn{also}"
        return f"{plan.episodes:,} prompts drawn of {count}; the intervals are {about}"
    times = f"{plan.repeats:,} times" if plan.repeats > 1 else "once"
    each = f"each of {count} prompts {times}" if plan.num_prompts > 1 else f"the prompt {times}"
    if not chance:
        each += ", as it leads to the same every time"
    if plan.basis == "exact":
        return f"{each}; the means over them are exact"
    if plan.basis == "these":
        which = "these prompts" if plan.num_prompts > 1 else "this prompt"
        return f"{each}; the intervals are about {which}, and cover {chance}"
    return f"{each}; the intervals are about prompts like these, of which they are a sample, and cover which{also}"


def _episodes(plan: Plan) -> str:
    return f"{plan.episodes:,} episode{'s' if plan.episodes > 1 else ''}"


def _chance(problem: Problem, policy: str, playable: Playable) -> str:
    """What differs when a policy plays a prompt again."""
    parts = ([] if policy == "greedy" and playable.certain else ["the texts"]) + (
        ["the scores"] if problem.draws else []
    )
    return f"chance in {' and '.join(parts)}" if parts else ""


def _plan(settings: EvaluateSettings, problem: Problem, policy: str, playable: Playable) -> Plan:
    fixed = settings.fixed_prompts or settings.prompts is None  # a task's prompts are all there are
    return make_plan(
        len(problem.prompts), settings.episodes or playable.episodes, not _chance(problem, policy, playable), fixed
    )


def _play(problem: Problem, policy: Actor, plan: Plan, seed: int) -> Rollout:
    envs = wave_envs(problem, plan.episodes, in_order=plan.basis != "drawn")
    return collect(policy, envs, plan.episodes, np.random.default_rng(seed), group_size=plan.repeats)


def _known_range(settings: EvaluateSettings, problem: Problem) -> tuple[float, float] | None:
    """What no score can lie outside of: those of the built-in tasks lie within [0, 1]."""
    if settings.score_range is not None or settings.reward is not None or problem.task is None:
        return settings.score_range
    return (0.0, 1.0) if getattr(problem.task.reward, "__module__", "").startswith("textgym.tasks.") else None


def _general_notes(problem: Problem, bounds: tuple[float, float] | None, lines: list[Measure]) -> list[str]:
    notes = []
    if problem.optimum is not None:
        notes.append(f"return:{known(problem.optimum, problem.uniform)}")
    if bounds is not None:
        notes.append(f"intervals: scores lie within {bounds[0]:g} to {bounds[1]:g}")
    elif any(_interval_cell(line) == _UNKNOWN for line in lines):
        notes.append(
            f"{_UNKNOWN}: scores that are all equal do not make their mean certain; where it is known what no score "
            "can lie outside of, give --score-range LOW HIGH"
        )
    return notes


def _dropped(rollout: Rollout) -> str:
    count = int((~rollout.valid).sum())
    return f"; {count:,} of {len(rollout.valid):,} episodes dropped and left out" if count else ""


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _interval_cell(line: Measure) -> str:
    if line.low is None or line.high is None:
        return _UNKNOWN if line.mean is not None and not line.measure.startswith("rewards/") else ""
    return "exact" if line.low == line.high else f"{line.low:.4g} to {line.high:.4g}"


def _check_output(path: Path | None) -> None:
    if path is None:
        return
    if path.exists():
        raise FileExistsError(f"--output {str(path)!r} exists already; remove it, or give another name")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"--output {str(path)!r}: there is no folder {str(path.parent)!r}; make it first")


def _as_json(
    settings: EvaluateSettings,
    problem: Problem,
    bounds: tuple[float, float] | None,
    plans: dict[str, Plan],
    notes: list[str],
    lines: list[Measure],
) -> dict[str, Any]:
    return {
        "settings": settings.as_json(),
        "score_range": bounds,
        "optimum": problem.optimum,
        "uniform": problem.uniform,
        "plans": {name: plan._asdict() for name, plan in plans.items()},
        "notes": notes,
        "measures": [line._asdict() for line in lines],
    }


def _write(path: Path, content: dict[str, Any]) -> None:
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    with path.open("x", encoding="utf-8") as file:
        file.write(text)
