"""How much memory the gradient of an update takes at its peak where the vocabulary is large, and where logits are held.

Each side works in a process of its own, so that its peak is its own: it imports everything, makes the model and notes
the peak so far; then it samples the episodes and sets the gradient once. The peer is that of `benchmarks.speed_update`.
Files are left to others.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.finding import Finding
from benchmarks.memory import MIB, output_of, peak_resident
from benchmarks.tables import markdown_table

VOCABULARY_SIZE = 50_257
AT_MOST = 0.25  # of the peer's peak
CLOSE = 1e-5  # relative norm of the gradients' difference
OURS, PADDED = "accumulate_gradient", "padded"
_NEVER = 1e-12  # the probability of the stop token
_NOTES = """\
The peak resident set of a process that samples the episodes and sets the gradient once, above what it was with
everything imported and the model made. The gradient itself is part of it on both sides. The loss is RLOO's with an
entropy bonus; the gradients' difference is the norm relative to the peer's. The
peer takes all rows in one pass, as a padded batch is. Seconds are those of one pass, not warmed up; the limit is the
machine's own, of the products with weights, forward and backward, at the rates measured for their shapes.
"""


class Case(NamedTuple):
    """Episodes of one length, and a model."""

    episodes: int
    horizon: int  # tokens of each completion
    size: str = "M"  # of `benchmarks.workload.SIZES`
    vocabulary_size: int = VOCABULARY_SIZE


CASE, QUICK_CASE = Case(8, 504), Case(8, 248)  # with prompts of 8 tokens: 512 and 256


class Measured(NamedTuple):
    """What one side took."""

    before: int  # bytes at the peak before it
    above: int  # further bytes at its peak
    seconds: float
    limit: float  # seconds that the products take at least


class Result(NamedTuple):
    """Both sides, and how far apart their gradients are, relative to the peer's norm."""

    ours: Measured
    padded: Measured
    gradient_error: float

    @property
    def ratio(self) -> float:
        """Our peak above the start as a share of the peer's."""
        return self.ours.above / self.padded.above


def measure(quick: bool, threads: int, say: Callable[[str], None]) -> Finding:
    """Measure both sides of the case, each in a process of its own.

    Args:
        quick: fewer and shorter episodes; the same vocabulary.
        threads: of torch, in both processes.
        say: shows progress.

    Raises:
        RuntimeError: a process failed; the message says how.
    """
    return report(QUICK_CASE if quick else CASE, measure_case(QUICK_CASE if quick else CASE, threads, say))


def measure_case(case: Case, threads: int, say: Callable[[str], None]) -> Result:
    """As `measure`, of any case."""
    with tempfile.TemporaryDirectory() as folder:
        sides: dict[str, Measured] = {}
        files = {what: Path(folder) / f"{what}.safetensors" for what in (OURS, PADDED)}
        for what, file in files.items():
            asked = case._asdict() | {"what": what, "threads": threads, "file": str(file)}
            sides[what] = Measured(**json.loads(output_of("benchmarks.speed_memory", json.dumps(asked))))
            say(f"{what}: measured")
        return Result(sides[OURS], sides[PADDED], _difference(files[OURS], files[PADDED]))


def report(case: Case, result: Result) -> Finding:
    """The tables, and how to read them."""
    sides = {OURS: result.ours, PADDED: result.padded}
    rows = [
        [what, f"{side.before / MIB:,.0f}", f"{side.above / MIB:,.0f}", f"{side.seconds:.1f}", f"{side.limit:.1f}"]
        for what, side in sides.items()
    ]
    small, close = result.ratio <= AT_MOST, result.gradient_error <= CLOSE
    required = [
        ["peak above the start, of the peer's", f"{result.ratio:.3f}", f"at most {AT_MOST:g}", _verdict(small)],
        ["gradients' difference", f"{result.gradient_error:.1e}", f"at most {CLOSE:.0e}", _verdict(close)],
    ]
    return Finding(
        title="Memory of updates",
        workload=(
            f"{case.episodes} episodes of {case.horizon} tokens after prompts of 8, V={case.vocabulary_size:,}, "
            f"size {case.size}, float32."
        ),
        repeats=1,
        tables=[
            markdown_table(["work", "start, MiB", "peak above it, MiB", "seconds", "limit, s"], rows),
            markdown_table(["what", "measured", "required", "verdict"], required),
        ],
        notes=_NOTES,
        record={
            "case": case._asdict(),
            "ours": result.ours._asdict(),
            "padded": result.padded._asdict(),
            "ratio": {"value": result.ratio, "at_most": AT_MOST, "verdict": _verdict(small)},
            "gradient_error": {"value": result.gradient_error, "at_most": CLOSE, "verdict": _verdict(close)},
        },
    )


def _verdict(met: bool) -> str:
    return "met" if met else "NOT MET"


def _difference(ours: Path, padded: Path) -> float:
    from safetensors import safe_open

    apart = norm = 0.0
    with safe_open(ours, "pt") as first, safe_open(padded, "pt") as second:
        assert set(first.keys()) == set(second.keys())
        for name in first.keys():  # noqa: SIM118  (no mapping)
            expected = second.get_tensor(name).double()
            apart += float((first.get_tensor(name).double() - expected).square().sum())
            norm += float(expected.square().sum())
    return (apart / norm) ** 0.5


def _main(arguments: Sequence[str], clock: Callable[[], float] = time.perf_counter) -> None:
    import torch
    from safetensors.torch import save_file

    from benchmarks import speed_update, workload
    from benchmarks.roofline import update_limit

    [asked] = (json.loads(argument) for argument in arguments)
    torch.set_num_threads(asked["threads"])
    envs = workload.make_envs(
        asked["episodes"], speed_update.PROMPT_TOKENS, size=asked["vocabulary_size"], horizon=asked["horizon"]
    )
    # All episodes run to the horizon.
    policy = workload.make_policy(envs, workload.SIZES[asked["size"]], stop_probability=_NEVER)
    learner = speed_update.make_learner(envs, policy)
    before = peak_resident()
    case = speed_update.sampled(learner)
    start = clock()
    if asked["what"] == OURS:
        speed_update.our_gradient(case)
    else:
        speed_update.padded_gradient(case, asked["episodes"])
    found: dict[str, Any] = {"seconds": clock() - start, "above": peak_resident() - before, "before": before}
    size, tokens = workload.SIZES[asked["size"]], asked["episodes"] * asked["horizon"]
    run = tokens + asked["episodes"] * speed_update.PROMPT_TOKENS
    found["limit"] = update_limit(size, asked["vocabulary_size"], run, tokens)  # after the peak was noted
    # GPT-2's output layer is its embedding, named once here.
    gradients = {name: each.grad for name, each in policy.named_parameters() if each.grad is not None}
    save_file({name: gradient.contiguous() for name, gradient in gradients.items()}, asked["file"])
    print(json.dumps(found))


if __name__ == "__main__":
    _main(sys.argv[1:])
