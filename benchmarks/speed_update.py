"""How fast the gradient of an update is, beside a padded forward and backward pass over the same episodes.

The workload is that of `benchmarks.workload`. The peer is what one writes with transformers alone: all rows padded, an
attention mask, the logits of every place. Both take the same loss, and their gradients are compared first. Files are
left to others.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from torch import Tensor

from agents.experience import Experience
from agents.learner import PolicyGradient
from agents.policy import TransformerPolicy
from agents.rollout import collect
from benchmarks import workload
from benchmarks.finding import Finding, missing_lines, of_limit, rate, requirement_records, requirement_table
from benchmarks.requirement import Requirement
from benchmarks.roofline import update_limit
from benchmarks.tables import markdown_table
from benchmarks.timing import Timing, Work, interleave

REPEATS, QUICK_REPEATS = 3, 1
PROMPT_TOKENS, GROUP_SIZE = 8, 4
ENTROPY_COEF = 0.05
BATCHES = (32, 64)  # rows of a pass of the peer
QUICK_EPISODES = {"S": 256, "M": 256, "L": 128}
AT_LEAST = 2.0
CLOSE = 1e-5  # relative norm of the gradients' difference
OURS = "accumulate_gradient"
_SEED = 0
_NOTES = """\
Tokens are those of completions. The loss is RLOO's with an entropy bonus; ours also counts what a learner reports. The
peer pads all rows of a pass to the longest of them, and is measured at the rows a pass that suit it best. How far apart
the gradients are is a norm, relative to the peer's. The limit is the machine's own: the products of a forward and a
backward pass over every token once, the output layer on completions alone, at the rates measured for their shapes.
"""


class Key(NamedTuple):
    """One timed piece of work."""

    size: str  # of `benchmarks.workload.SIZES`
    what: str

    def __str__(self) -> str:
        return f"{self.what}: {self.size}"


class Case(NamedTuple):
    """A size's learner, and the episodes that it learns from."""

    learner: PolicyGradient
    experience: Experience


def measure(quick: bool, threads: int, say: Callable[[str], None]) -> Finding:
    """Compare the gradients of each size, and time both sides in turns.

    Args:
        quick: once, beside one batch size; the largest size with half the episodes.
        threads: of torch, already set; noted alone.
        say: shows progress.
    """
    repeats = QUICK_REPEATS if quick else REPEATS
    timings: dict[Any, Timing] = {}
    errors: dict[str, float] = {}
    limits: dict[str, float] = {}
    requirements = []
    batches = BATCHES[:1] if quick else BATCHES
    for name, size in workload.SIZES.items():
        case = make_case(size, QUICK_EPISODES[name] if quick else workload.EPISODES)
        errors[name] = gradient_error(case)
        found = time_case(name, case, repeats, batches)
        timings |= found
        best = max(batches, key=lambda batch: _median(found[Key(name, padded(batch))]))
        requirements.append(Requirement(Key(name, OURS), Key(name, padded(best)), AT_LEAST))
        rollout = case.experience.rollout
        tokens, run = rollout.num_tokens, int(rollout.length.sum())
        limits[name] = tokens / update_limit(size, workload.VOCABULARY_SIZE, run, tokens)
        say(f"{name}: timed")
    sizes = ", ".join(
        f"{name}: d={workload.SIZES[name].d_model}, {workload.SIZES[name].num_layers} layers" for name in errors
    )
    return Finding(
        title="Speed of updates",
        workload=(
            f"{workload.EPISODES} episodes (if quick, {QUICK_EPISODES['L']} at L) of up to {workload.HORIZON} tokens "
            f"after prompts of {PROMPT_TOKENS}, a stop token with a mean length of 24, "
            f"V={workload.VOCABULARY_SIZE:,}, float32; {sizes}."
        ),
        repeats=repeats,
        tables=[
            speed_table(timings, limits),
            requirement_table(requirements, timings),
            error_table(errors),
        ],
        notes=_NOTES + missing_lines(timings),
        record={
            "rates": {str(key): list(timing.rates) for key, timing in timings.items()},
            "limits": limits,
            "requirements": requirement_records(requirements, timings),
            "gradient_errors": errors,
        },
    )


def make_case(size: workload.Size, episodes: int = workload.EPISODES) -> Case:
    """A learner of RLOO, and a rollout of its policy.

    Args:
        size: of the model.
        episodes: B, a multiple of 4.
    """
    envs = workload.make_envs(episodes, PROMPT_TOKENS)
    return sampled(make_learner(envs, workload.make_policy(envs, size)))


def make_learner(envs: VectorEnv, policy: TransformerPolicy) -> PolicyGradient:
    """A learner of RLOO with an entropy bonus, an episode a row."""
    return PolicyGradient(
        policy,
        envs,
        "rloo",
        group_size=GROUP_SIZE,
        episodes_per_update=envs.num_envs,
        entropy_coef=ENTROPY_COEF,
        max_grad_norm=1e9,  # the peer does not clip
    )


def sampled(learner: PolicyGradient) -> Case:
    """A learner and a rollout of its policy, the same one every time."""
    draws = np.random.default_rng(_SEED), GROUP_SIZE, torch.Generator().manual_seed(_SEED)
    return Case(learner, learner.experience(collect(learner.policy, learner.envs, learner.envs.num_envs, *draws)))


def time_case(
    name: str,
    case: Case,
    repeats: int,
    batches: tuple[int, ...] = BATCHES,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[Key, Timing]:
    """Time both sides in turns, the peer at each of its batch sizes."""
    works: dict[Key, Work | str] = {Key(name, OURS): partial(our_gradient, case)}
    works |= {Key(name, padded(batch)): partial(padded_gradient, case, batch) for batch in batches}
    return interleave(works, repeats, clock)


def our_gradient(case: Case) -> int:
    """Set the gradient of all parameters; returns the tokens of the completions."""
    case.learner.accumulate_gradient(case.experience)
    return case.experience.rollout.num_tokens


def padded_gradient(case: Case, batch: int) -> int:
    """The same of the peer, so many rows at a time."""
    policy, experience = case.learner.policy, case.experience
    policy.zero_grad()
    for first in range(0, len(experience.rollout.mask), batch):
        _padded_loss(policy.model, policy.size, experience, slice(first, first + batch)).backward()
    return experience.rollout.num_tokens


def gradient_error(case: Case) -> float:
    """The norm of the difference of both gradients, relative to the peer's."""
    gradients = []
    for work in (our_gradient, partial(padded_gradient, batch=max(BATCHES))):
        work(case)
        found = [parameter.grad for parameter in case.learner.policy.parameters() if parameter.grad is not None]
        gradients.append(torch.cat([gradient.flatten().double() for gradient in found]))
    ours, theirs = gradients
    return float((ours - theirs).norm() / theirs.norm())


def speed_table(timings: dict[Any, Timing], limits: dict[str, float]) -> str:
    """Tokens a second of every piece of work, and the machine's limit."""
    rows = [
        [key.what, key.size, rate(timing), f"{limits[key.size]:,.0f}", of_limit(timing, limits[key.size])]
        for key, timing in timings.items()
    ]
    return markdown_table(["work", "size", "tokens/s", "limit", "reached"], rows)


def error_table(errors: dict[str, float]) -> str:
    """How far apart the gradients are, and may be."""
    rows = [
        [name, f"{error:.1e}", f"at most {CLOSE:.0e}", "met" if error <= CLOSE else "NOT MET"]
        for name, error in errors.items()
    ]
    return markdown_table(["size", "gradients' difference", "required", "verdict"], rows)


def padded(batch: int) -> str:
    """The name of the peer's work."""
    return f"padded, {batch} rows a pass"


def _padded_loss(model: Any, size: int, experience: Experience, rows: slice) -> Tensor:
    """The part that some rows have in the loss."""
    whole = experience.rollout
    lengths = torch.as_tensor(whole.length[rows])
    tokens = torch.as_tensor(whole.tokens[rows])[:, : int(lengths.max())]
    places = torch.arange(tokens.shape[1])
    attention_mask = (places < lengths[:, None]).long()
    # The last token of a row predicts nothing; the model has one output more than there are tokens.
    logits = model(input_ids=tokens, attention_mask=attention_mask, use_cache=False).logits[:, :-1, :size]
    log_probs = torch.log_softmax(logits, dim=-1)
    mask = (attention_mask.bool() & (places >= torch.as_tensor(whole.prompt_length[rows])[:, None]))[:, 1:]
    chosen = log_probs.gather(-1, tokens[:, 1:, None].clamp(max=size - 1)).squeeze(-1)
    entropy = -(log_probs.exp() * log_probs).sum(dim=-1)
    # An episode's advantage is that of each of its tokens.
    advantages = torch.as_tensor(experience.advantages[rows][:, :1], dtype=chosen.dtype)
    objective = (advantages * chosen * mask).sum() / len(whole.mask)
    return -objective - ENTROPY_COEF * (entropy * mask).sum() / whole.num_tokens


def _median(timing: Timing) -> float:
    return timing.spread.median if timing.spread else 0.0
