"""What must hold of a model before it is trained, measured: its log-probs depend on the history alone.

Padding, the rest of the batch and the prefix cache must not matter, what is sampled must be scored the same, and the
tokens that end an episode must be known.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from agents.attention import Difference, affordable, log_prob_difference, lookahead, tolerance
from agents.policy import TransformerPolicy
from agents.rollout import Rollout
from textgym.escape import excerpt
from textgym.finish import FinishReason
from textgym.vocabulary import Vocabulary

_ROWS, _STEPS = 4, 4  # histories, and tokens that are sampled
_SHORT = 8  # tokens of the longest history, where nothing is known of those to come
_PASSES = 16  # through the model, about


class Check(NamedTuple):
    """One thing that was looked at."""

    name: str
    passed: bool
    detail: str  # what was found, with the figure and what is allowed
    figure: float | None = None


class SelfCheckError(ValueError):
    """A model that cannot be trained rightly; the message has the figures."""


def self_check(policy: TransformerPolicy, vocabulary: Vocabulary, longest: int = _SHORT) -> list[Check]:
    """Measure what must hold of a policy; the same figures each time, whatever its own generator.

    Args:
        policy: over the tokens of the vocabulary.
        vocabulary: the environment's.
        longest: tokens of the longest history that it will see; where that would take long, shorter ones are looked at.
    """
    observations = _random_histories(policy, longest)
    return [
        _compared("looks back alone", policy, lambda: lookahead(policy.model), "what comes after a history"),
        _compared("padding", policy, lambda: _padding(policy, observations), "padding"),
        _compared("batch", policy, lambda: _batch(policy, observations), "the other rows of a batch, and their order"),
        _compared("prefix cache", policy, lambda: _cache(policy, observations), "the prefix cache"),
        _ratio(policy, observations, vocabulary),
        _stop_tokens(vocabulary),
    ]


def refuse_failed(checks: list[Check]) -> None:
    """Raise SelfCheckError, with their figures, where checks have failed."""
    failed = [f"{check.name}: {check.detail}" for check in checks if not check.passed]
    if failed:
        raise SelfCheckError(f"the model fails its self-check: {'; '.join(failed)}")


def in_a_line(checks: list[Check]) -> str:
    """The figures in short."""
    figures = [f"{check.name} {check.figure:.2g}" for check in checks if check.figure is not None]
    result = "passed" if all(check.passed for check in checks) else "FAILED"
    return f"self-check {result}, differences: {', '.join(figures)}; {checks[-1].name} {checks[-1].detail}"


def _compared(name: str, policy: TransformerPolicy, measure: Callable[[], Difference], what: str) -> Check:
    with torch.no_grad():
        difference = measure()
    detail = f"{what} changes log-probs by {difference.figure:.2g} nats (allowed {difference.allowed:.2g})"
    return Check(name, difference.passed, detail, difference.figure)


def _padding(policy: TransformerPolicy, observations: np.ndarray) -> Difference:
    """Beside a longer row, up to whose length they are padded."""
    more = _STEPS if policy.max_length is None else min(_STEPS, policy.max_length - observations.shape[1])
    wider = np.pad(observations, ((0, 1), (0, max(0, more))), constant_values=policy.size)
    wider[-1] = 0
    return log_prob_difference(policy.next_logits(wider)[:-1], _alone(policy, observations))


def _batch(policy: TransformerPolicy, observations: np.ndarray) -> Difference:
    """With one another, the other way round."""
    return log_prob_difference(policy.next_logits(observations[::-1]).flip(0), _alone(policy, observations))


def _alone(policy: TransformerPolicy, observations: np.ndarray) -> Tensor:
    return torch.cat([policy.next_logits(row[None, row != policy.size]) for row in observations])


def _cache(policy: TransformerPolicy, observations: np.ndarray) -> Difference:
    """Along growing histories that change places; the worst."""
    cache, differences = policy.prefix_cache(), []
    lengths = (observations != policy.size).sum(axis=1)
    for back in range(_STEPS - 1, -1, -1):
        shown = np.arange(observations.shape[1]) < np.maximum(1, lengths - back)[:, None]
        histories = np.where(shown, observations, policy.size)[:: -1 if back % 2 else 1]
        differences.append(log_prob_difference(policy.next_logits(histories, cache), policy.next_logits(histories)))
    return max(differences, key=lambda difference: difference.figure / difference.allowed)


def _ratio(policy: TransformerPolicy, observations: np.ndarray, vocabulary: Vocabulary) -> Check:
    """Sample some tokens, score them again, and compare."""
    rollout = _sampled(policy, observations, vocabulary)
    with torch.no_grad():
        scored = policy.log_probs(rollout).cpu().numpy()
    worst = float(np.abs(np.exp(scored - rollout.log_probs) - 1)[rollout.mask].max())
    allowed = tolerance(policy.model)
    detail = f"π(a | s) scored over π(a | s) sampled differs from 1 by up to {worst:.2g} (allowed {allowed:g})"
    return Check("ratio", worst <= allowed, detail, worst)


def _stop_tokens(vocabulary: Vocabulary) -> Check:
    tokens = [f"{excerpt(vocabulary.decode([stop_id]))} (id {stop_id})" for stop_id in vocabulary.stop_ids]
    # Without any a model can be trained: a stop string or the horizon ends its episodes.
    return Check("stop tokens", True, ", ".join(tokens) or "none: stop strings and the horizon alone end an episode")


def _random_histories(policy: TransformerPolicy, longest: int) -> np.ndarray:
    """Histories of different lengths, int64 [rows, L], that leave room for what is sampled."""
    length = longest if affordable(policy.model, _PASSES * _ROWS * longest) else min(_SHORT, longest)
    length = max(length, _SHORT)
    if policy.max_length is not None:
        length = max(1, min(length, policy.max_length - _STEPS))
    tokens = np.random.default_rng(0).integers(policy.size, size=(_ROWS, length))
    lengths = np.maximum(1, length - 2 * np.arange(_ROWS))
    return np.where(np.arange(length) < lengths[:, None], tokens, policy.size)


def _sampled(policy: TransformerPolicy, observations: np.ndarray, vocabulary: Vocabulary) -> Rollout:
    """Episodes of a few tokens each, stop tokens or not, begun with these histories."""
    starts = (observations != policy.size).sum(axis=1)
    tokens = np.pad(observations, ((0, 0), (0, _STEPS)), constant_values=policy.size)
    generator, cache = torch.Generator().manual_seed(0), policy.prefix_cache()
    choices = []
    room = _STEPS if policy.max_length is None else policy.max_length - int(starts.max()) + 1
    for step in range(max(1, min(_STEPS, room))):
        choices.append(policy.choose(tokens, generator, cache=cache))
        tokens[np.arange(_ROWS), starts + step] = choices[-1].actions
    shape, nothing = (_ROWS, len(choices)), np.zeros(_ROWS)
    supports = [choice.support for choice in choices if choice.support is not None]
    return Rollout(
        tokens=tokens,
        prompt_length=starts,
        length=starts + len(choices),
        actions=np.stack([choice.actions for choice in choices], axis=1),
        mask=np.ones(shape, dtype=bool),
        log_probs=np.stack([choice.log_probs for choice in choices], axis=1),
        rewards=np.zeros(shape),
        score=nothing,
        scores=nothing[:, None],
        scores_valid=np.ones((_ROWS, 1), dtype=bool),
        valid=np.ones(_ROWS, dtype=bool),
        finish_reason=np.full(_ROWS, FinishReason.LIMIT),
        group=np.arange(_ROWS),
        vocabulary=vocabulary,
        cut_off=np.packbits(~np.stack(supports, axis=1), axis=-1) if supports else None,
    )
