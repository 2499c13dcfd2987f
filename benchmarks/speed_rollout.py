"""How fast episodes are sampled, beside `generate` of transformers on the same weights.

The workload is that of `benchmarks.workload`; both sides draw from the whole distribution. Ours also steps the
environment and scores the texts; `generate` does neither. Files are left to others.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import GenerationConfig

from agents.policy import TransformerPolicy
from agents.rollout import Rollout, collect
from benchmarks import workload
from benchmarks.finding import Finding, missing_lines, of_limit, rate, requirement_records, requirement_table
from benchmarks.requirement import Requirement
from benchmarks.roofline import bandwidth, decoding_limit
from benchmarks.tables import markdown_table
from benchmarks.timing import Timing, Work, interleave

REPEATS, QUICK_REPEATS = 3, 1
BATCHES = (64, 256)  # rows of a batch of the peer
QUICK_BATCH = {"S": 256, "M": 64, "L": 64}  # which of them was the better one
OURS, COMPILED = "collect", "collect, compiled"
_SEED = 0
_FEW = 8  # rows that the peer warms up with; it keeps nothing from one call to the next
_NOTES = """\
Tokens are those of completions. `generate` keeps finished rows in its batch and reads a group's prompt once a row; its
batch size is the better one of 64 and 256, in one run of each before (if quick: 256 at S, 64 at M and L). Both sides
sample from the whole distribution with a key-value cache; the peer's has one token more, its padding, which is not
counted. The limit is an estimate for any program that runs every token once: products at the rate measured for their
shapes with the mean number of rows, or keys, values and weights read at the bandwidth measured, whichever is longer.
"""


class Case(NamedTuple):
    """What is sampled: episodes of up to 64 tokens after prompts, some of which may be shared."""

    size: str  # of `benchmarks.workload.SIZES`
    prompt_tokens: int
    group_size: int
    at_least: float
    episodes: int = workload.EPISODES
    batches: tuple[int, ...] = BATCHES  # of the peer

    def __str__(self) -> str:
        prompts = "own prompts" if self.group_size == 1 else f"groups of {self.group_size}"
        return f"{self.size}, {self.episodes} episodes, {prompts} of {self.prompt_tokens}"


def cases(quick: bool) -> list[Case]:
    """Every size with prompts of 8 tokens, and with groups of 8 that share prompts of 64."""
    return [
        Case(size, prompt_tokens, group_size, at_least, batches=(QUICK_BATCH[size],) if quick else BATCHES)
        for prompt_tokens, group_size, at_least in ((8, 1, 2.0), (64, 8, 3.0))
        for size in workload.SIZES
    ]


class Key(NamedTuple):
    """One timed piece of work."""

    case: Case
    what: str

    def __str__(self) -> str:
        return f"{self.what}: {self.case}"


def measure(quick: bool, threads: int, say: Callable[[str], None]) -> Finding:
    """Time all cases, one after the other; in each, both sides in turns.

    Args:
        quick: once each.
        threads: of torch, already set; noted alone.
        say: shows progress.
    """
    repeats = QUICK_REPEATS if quick else REPEATS
    timings: dict[Any, Timing] = {}
    limits: dict[Case, float] = {}
    requirements, memory = [], bandwidth()
    for case in cases(quick):
        found, rollout = time_case(case, repeats)
        timings |= found
        lengths = rollout.length - rollout.prompt_length
        size = workload.SIZES[case.size]
        limit = decoding_limit(size, workload.VOCABULARY_SIZE, lengths, case.prompt_tokens, case.group_size, memory)
        limits[case] = rollout.num_tokens / limit.seconds
        ours, peer = found
        requirements.append(Requirement(ours, peer, case.at_least))
        say(f"{case}: timed")
    tables = [_speed_table(timings, limits), requirement_table(requirements, timings)]
    options: dict[Any, Timing] = {}
    ratios: list[dict[str, float]] = []
    if not quick:
        half, ratios = half_precision(repeats)
        compiled = compiled_decoding(repeats)
        tables += [_half_table(half, ratios), _compiled_table(compiled)]
        options = half | compiled
    return Finding(
        title="Speed of rollouts",
        workload=(
            f"Episodes of up to {workload.HORIZON} tokens, a stop token with a mean length of 24, "
            f"V={workload.VOCABULARY_SIZE:,}, float32; "
            + ", ".join(f"{name}: d={size.d_model}, {size.num_layers} layers" for name, size in workload.SIZES.items())
            + "."
        ),
        repeats=repeats,
        tables=tables,
        notes=_NOTES + missing_lines(options),
        record={
            "rates": {str(key): list(timing.rates) for key, timing in (timings | options).items()},
            "limits": {str(case): limit for case, limit in limits.items()},
            "requirements": requirement_records(requirements, timings),
            "ratio_errors": ratios,
        },
    )


def time_case(
    case: Case, repeats: int, clock: Callable[[], float] = time.perf_counter
) -> tuple[dict[Key, Timing], Rollout]:
    """Time both sides of a case in turns, the peer at its better batch size; and what ours sampled."""
    ours = _Collector(case)
    prompts = np.random.default_rng(_SEED).integers(
        1, workload.VOCABULARY_SIZE, size=(case.episodes // case.group_size, case.prompt_tokens)
    )
    tokens = torch.as_tensor(prompts).repeat_interleave(case.group_size, dim=0)
    peers = {batch: partial(_generate, ours.policy, tokens, batch) for batch in case.batches}
    seconds = dict.fromkeys(peers, 0.0)
    for batch, peer in peers.items() if len(peers) > 1 else ():
        _generate(ours.policy, tokens[:_FEW], _FEW)  # warms up
        start = clock()
        peer()
        seconds[batch] = clock() - start
    best = min(seconds, key=lambda batch: seconds[batch])
    works: dict[Key, Work | str] = {Key(case, OURS): ours, Key(case, _peer(best)): peers[best]}
    few = partial(_generate, ours.policy, tokens[:_FEW], _FEW)
    timings = interleave(works, repeats, clock, {Key(case, _peer(best)): few})
    assert ours.rollout is not None
    return timings, ours.rollout


def half_precision(repeats: int) -> tuple[dict[Key, Timing], list[dict[str, float]]]:
    """The same in bfloat16, and how far the sampler's probabilities are from those that an update computes."""
    case = Case("M", 8, 1, 0.0, episodes=64)
    timings: dict[Key, Timing] = {}
    ratios = []
    for dtype in (torch.float32, torch.bfloat16):
        ours = _Collector(case, dtype=dtype)
        timings |= interleave({Key(case, f"{OURS}, {str(dtype).removeprefix('torch.')}"): ours}, repeats)
        rollout = ours.rollout
        assert rollout is not None
        with torch.no_grad():
            gap = np.abs(ours.policy.log_probs(rollout).double().numpy() - rollout.log_probs)[rollout.mask]
        ratios.append({"mean": float(np.expm1(gap).mean()), "most": float(np.expm1(gap).max())})
    return timings, ratios


def compiled_decoding(repeats: int) -> dict[Key, Timing]:
    """The same with compiled steps, and without, in turns."""
    case = Case("M", 8, 1, 0.0)
    works: dict[Key, Work | str] = {Key(case, OURS): _Collector(case)}
    compiled = _Collector(case, compile_decoding=True)
    try:
        compiled()
        works[Key(case, COMPILED)] = compiled
    except RuntimeError as error:  # there is no compiler here
        works[Key(case, COMPILED)] = str(error)
    return interleave(works, repeats)


class _Collector:
    """Our side; its cache is kept from one rollout to the next, as the learner keeps it."""

    def __init__(self, case: Case, **settings: Any) -> None:
        self.case = case
        self.envs = workload.make_envs(case.episodes, case.prompt_tokens, prompt_order="sequential")
        self.policy: TransformerPolicy = workload.make_policy(self.envs, workload.SIZES[case.size], **settings)
        self.cache = self.policy.prefix_cache()
        self.rollout: Rollout | None = None  # the last one

    def __call__(self) -> int:
        self.rollout = collect(
            self.policy,
            self.envs,
            self.case.episodes,
            np.random.default_rng(_SEED),
            self.case.group_size,
            torch.Generator().manual_seed(_SEED),
            cache=self.cache,
        )
        return self.rollout.num_tokens


def _peer(batch: int) -> str:
    return f"generate, batches of {batch}"


def _generate(policy: TransformerPolicy, tokens: torch.Tensor, batch: int) -> int:
    """The peer; its sampling takes torch's global generator, which is put back afterwards."""
    size = policy.size
    config = GenerationConfig(
        do_sample=True,
        top_k=0,
        top_p=1.0,
        max_new_tokens=workload.HORIZON,
        eos_token_id=workload.STOP_ID,
        pad_token_id=size,
        use_cache=True,
    )
    count = 0
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(_SEED)
        for part in tokens.split(batch):
            texts = policy.model.generate(part, attention_mask=torch.ones_like(part), generation_config=config)
            count += int((texts[:, tokens.shape[1] :] != size).sum())
    return count


def _speed_table(timings: dict[Any, Timing], limits: dict[Case, float]) -> str:
    rows = []
    for case, limit in limits.items():
        ours, peer = (timing for key, timing in timings.items() if key.case == case)
        rows.append([str(case), rate(ours), rate(peer), f"{limit:,.0f}", of_limit(ours, limit)])
    header = ["tokens a second", OURS, "generate", "the machine's limit", "reached by collect"]
    return markdown_table(header, rows)


def _compiled_table(compiled: dict[Key, Timing]) -> str:
    plain, faster = compiled
    return requirement_table([Requirement(faster, plain, None)], compiled)


def _half_table(half: dict[Key, Timing], ratios: list[dict[str, float]]) -> str:
    rows = [
        [str(key), rate(timing), f"{error['mean']:.1e}", f"{error['most']:.1e}"]
        for (key, timing), error in zip(half.items(), ratios, strict=True)
    ]
    return markdown_table(["number format", "tokens a second", "mean ratio error", "largest ratio error"], rows)
