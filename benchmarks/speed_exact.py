"""How long the exact gradient of a small policy takes, the building of the tree included, and its peak memory.

Each case is measured in a process of its own, so that its peak is its own: it imports everything, notes the peak so
far, works on a small tree to warm up, and then times the case a few times. Files are left to others.
"""

import gc
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from benchmarks.memory import MIB, output_of, peak_resident
from benchmarks.tables import markdown_table
from benchmarks.timing import Spread, spread

SYMBOLS = tuple("abcdefgh")
REPEATS = 3
HOW = f"Medians of {REPEATS} repeats, the range in brackets."
_WARM_UP = 2  # the horizon of the small tree
_NOTES = """\
The tree of all completions of one prompt, no stop token; a two-layer policy of the GPT-2 architecture, whose parameters
include 1,024 positions. J and ∇J take everything that follows the tree: log-probabilities of all states, values, and
the pass with gradient. The limit is the machine's own: every state once, forward and backward, at the rates measured
for products of these shapes; J and ∇J reach that share of it. Peak memory is that of the process above what importing
takes.
"""


@dataclass(frozen=True)
class Case:
    """A task, a policy, and how long both steps may take.

    Attributes:
        horizon: W.
        d_model: width of the policy.
        dtype: of its weights.
        bound: seconds.
    """

    horizon: int
    d_model: int
    dtype: str
    bound: float


CASES = tuple(
    Case(horizon, d_model, dtype, bound)
    for horizon, bound in ((5, 2.0), (6, 15.0))
    for d_model in (32, 64)
    for dtype in ("float32", "float64")
)
QUICK_CASES = (Case(5, 64, "float64", bound=2.0),)  # the slowest of its horizon


class Measured(NamedTuple):
    """What a case took."""

    parameters: int
    sequences: int
    tree: tuple[float, ...]  # seconds, one number a repeat
    gradient: tuple[float, ...]
    above_import: int  # bytes
    limit: float  # seconds that the products of one pass over all states with gradient take at least

    @property
    def together(self) -> Spread:
        """Seconds of both steps."""
        return spread([tree + gradient for tree, gradient in zip(self.tree, self.gradient, strict=True)])

    def verdict(self, case: Case) -> str:
        """What the median says of the bound."""
        return "met" if self.together.median < case.bound else "NOT MET"


def measure(case: Case, threads: int, repeats: int = REPEATS) -> Measured:
    """Run a case in a process of its own.

    Args:
        case: what to run.
        threads: of torch.
        repeats: how often.

    Raises:
        RuntimeError: the process failed; the message says how.
    """
    asked = {"horizon": case.horizon, "d_model": case.d_model, "dtype": case.dtype, "threads": threads}
    found = json.loads(output_of("benchmarks.speed_exact", json.dumps(asked | {"repeats": repeats})))
    return Measured(**(found | {name: tuple(found[name]) for name in ("tree", "gradient")}))


def report(found: Mapping[Case, Measured]) -> str:
    """The table, and how to read it."""
    rows = [
        [
            f"V={len(SYMBOLS)}, W={case.horizon}",
            f"{measured.sequences:,}",
            f"{case.d_model}",
            f"{measured.parameters:,}",
            case.dtype,
            *(_seconds(one) for one in (spread(measured.tree), spread(measured.gradient), measured.together)),
            f"under {case.bound:g}",
            measured.verdict(case),
            f"{measured.limit:.2f}",
            f"{measured.limit / spread(measured.gradient).median:.0%}",
            f"{measured.above_import / MIB:,.0f}",
        ]
        for case, measured in found.items()
    ]
    header = ["task", "sequences", "d_model", "parameters", "weights", "tree, s", "J and ∇J, s", "together, s"]
    return "\n".join(
        [markdown_table([*header, "required", "verdict", "limit, s", "reached", "peak, MiB"], rows), _NOTES]
    )


def case_record(case: Case, measured: Measured) -> dict[str, Any]:
    """One case as a JSON object."""
    return {**asdict(case), **measured._asdict(), "verdict": measured.verdict(case)}


def _seconds(measured: Spread) -> str:
    return f"{measured.median:.2f} ({measured.low:.2f}-{measured.high:.2f})"


def _score(completion_ids: list[list[int]]) -> list[float]:
    import numpy as np

    ids = np.array(completion_ids) + 1
    return (np.sin(ids @ np.arange(1, ids.shape[1] + 1)) ** 2).tolist()


def _main(arguments: Sequence[str], clock: Callable[[], float] = time.perf_counter) -> None:
    import torch

    from agents.exact import exact_gradient
    from agents.policy import TransformerPolicy
    from benchmarks.roofline import update_limit
    from benchmarks.workload import Size
    from textgym.env import TextGenEnv
    from textgym.oracle import enumerate_tree

    [asked] = (json.loads(argument) for argument in arguments)
    torch.set_num_threads(asked["threads"])
    imported = peak_resident()
    found: dict[str, Any] = {"tree": [], "gradient": []}
    for horizon in (_WARM_UP, *[asked["horizon"]] * asked["repeats"]):
        env = TextGenEnv(tokenizer=list(SYMBOLS), prompts=["a"], reward=_score, max_new_tokens=horizon)
        policy = TransformerPolicy.small(env, d_model=asked["d_model"], dtype=getattr(torch, asked["dtype"]))
        gc.collect()  # what the one before left
        start = clock()
        tree = enumerate_tree(env)
        built = clock()
        exact_gradient(policy, tree)
        if horizon == asked["horizon"]:
            found["tree"].append(built - start)
            found["gradient"].append(clock() - built)
    found["parameters"] = sum(parameter.numel() for parameter in policy.parameters())
    found |= {"sequences": tree.num_sequences, "above_import": peak_resident() - imported}
    size = Size(asked["d_model"], len(policy.model.transformer.h))
    states = tree.num_nodes
    limit = update_limit(size, policy.size, states, states, dtype=policy.model.dtype)  # after the peak was noted
    print(json.dumps(found | {"limit": limit}))


if __name__ == "__main__":
    _main(sys.argv[1:])
