"""What an estimator of the policy gradient is in expectation, and how much it varies: exact numbers, without sampling.

Any estimator is a matrix of token coefficients, c = -∂loss/∂log π. They are read off production code (an algorithm's
advantages and its loss, at the first step of an update) for every batch that can be drawn, and weighed with the
probability of the batch. What a batch's coefficients depend on is a few numbers of each episode, so that episodes fall
into classes, and batches of one composition have the same coefficients. Which estimators are certified, and on what
task, is left to `benchmarks.estimators`.
"""

import math
from itertools import combinations_with_replacement
from typing import NamedTuple

import numpy as np
import torch

from agents.algorithms import make_algorithm
from agents.axes import Algorithm
from agents.experience import make_experience
from agents.policy import TransformerPolicy
from agents.reference import ReferencePolicy
from agents.rollout import Rollout
from agents.surrogate import Batch, surrogate
from benchmarks.fixture import Fixture
from textgym.oracle.ties import distinct

BATCH = 4  # episodes of an estimator whose statistics are the batch's
MOST_EPISODES = 4_000_000  # of all compositions of a batch together
_AT_ONCE = 2**16  # episodes in a call
_NUMBERS = 2**22  # in an array
_TOKENS_PER_PASS = 4096
_OF_THE_RETURN = ("return", "batch_leave_one_out", "leave_one_out", "group_mean")  # the same at each step


class Certificate(NamedTuple):
    """An estimator's gradient g, over the batches that can be drawn."""

    mean: np.ndarray  # float64 [D], E[g]
    variance: float  # B (E‖g‖² - ‖E[g]‖²) of a batch of B episodes: that of one episode, so that estimators compare
    episodes: int  # B


def certify(fixture: Fixture, row: Algorithm, group_size: int) -> Certificate:
    """The exact mean and variance of an algorithm's gradient at the first step of an update.

    An update is one group of G episodes where the algorithm compares those of a prompt, `BATCH` episodes of any prompts
    where it compares all or divides by all their tokens, and one episode otherwise. Dynamic sampling and a penalty for
    overlong episodes are left out.

    Args:
        fixture: the task.
        row: the algorithm; one with a function of one's own is certified for the smallest of tasks alone.
        group_size: G.

    Raises:
        ValueError: there are too many compositions of a batch.
    """
    size, one_prompt = _unit(row, group_size)
    cell_weights, second = np.zeros(len(fixture.scores)), 0.0
    for prompt, weight in enumerate(fixture.tree.weights) if one_prompt else [(None, 1.0)]:
        rows = np.arange(len(fixture.probs)) if prompt is None else np.flatnonzero(fixture.prompt == prompt)
        found, square = _of_pool(fixture, row, rows, size, one_prompt)
        cell_weights += weight * found
        second += weight * square
    return _certificate(fixture, cell_weights, second, size)


def certify_kl(fixture: Fixture, form: str, reference: TransformerPolicy) -> Certificate:
    """The exact mean and variance of the gradient of a KL term by itself, of one episode: that of -KL(π‖π_ref).

    Args:
        fixture: the task; its rewards play no part.
        form: one of `agents.algorithms.KL_FORMS`.
        reference: π_ref.
    """
    row = make_algorithm("reinforce", kl=form)
    rollout = fixture.rollout._replace(rewards=np.zeros(fixture.rollout.mask.shape))
    held_to = ReferencePolicy(fixture.policy, reference)
    horizon = fixture.tree.problem.max_new_tokens
    experience = make_experience(fixture.policy, row, rollout, horizon, _TOKENS_PER_PASS, held_to, kl_coef=1.0)
    found = _coefficients(row, rollout, experience.advantages, 1, 1, experience.ref_log_probs, kl_coef=1.0)
    rows = np.arange(len(fixture.probs))
    return _certificate(fixture, *_moments(fixture, rows, rows, rows[:, None], fixture.probs, found[:, None]), 1)


def multisets(probs: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Every composition of `size` draws from K classes, int64 [M, size], and its probability, float64 [M].

    Args:
        probs: float64 [K].
        size: at least 1.

    Raises:
        ValueError: there are too many.

    >>> multisets(np.array([0.25, 0.75]), 2)
    (array([[0, 0],
           [0, 1],
           [1, 1]]), array([0.0625, 0.375 , 0.5625]))
    """
    count = math.comb(len(probs) + size - 1, size)
    if count * size > MOST_EPISODES:
        raise ValueError(
            f"batches of {size} episodes from {len(probs)} classes have {count:,} compositions, and at most "
            f"{MOST_EPISODES // size:,} are enumerated; give a smaller group size"
        )
    members = np.array(list(combinations_with_replacement(range(len(probs)), size)))
    repeated = np.ones(count)  # Π n_k! as the product of each draw's place among its like
    for place in range(1, size):
        repeated *= (members[:, : place + 1] == members[:, place : place + 1]).sum(axis=1)
    return members, math.factorial(size) / repeated * probs[members].prod(axis=1)


def classes(rollout: Rollout, row: Algorithm) -> np.ndarray:
    """Which episodes a row's advantages and its loss treat alike, by number, int64 [B].

    They see the return and the length alone where the advantage is one of the whole episode; all rewards and the
    critic's values where it is one of each token; whatever they like where one of them is a function of one's own.
    """
    if not all(isinstance(axis, str) for axis in (row.advantages, row.objective, row.aggregation)):
        return np.arange(len(rollout.mask))
    if row.advantages in _OF_THE_RETURN:
        scale = np.abs(rollout.rewards).sum(axis=1).max(initial=0.0)
        seen = np.column_stack([distinct(rollout.returns, scale)[1], rollout.mask.sum(axis=1)])
    else:
        values = np.zeros(rollout.mask.shape) if rollout.values is None else rollout.values
        seen = np.column_stack([rollout.rewards, values, rollout.mask])
    return np.unique(seen, axis=0, return_inverse=True)[1].reshape(-1)


def _unit(row: Algorithm, group_size: int) -> tuple[int, bool]:
    """How many episodes the row's statistics are taken over, and whether they are of one prompt."""
    if row.min_group_size > 1:
        return group_size, True
    alone = row.min_episodes == 1 and row.scale == "none" and row.aggregation in ("constant", "sequence_mean")
    return (1 if alone else BATCH), False


def _of_pool(
    fixture: Fixture, row: Algorithm, rows: np.ndarray, size: int, one_prompt: bool
) -> tuple[np.ndarray, float]:
    """The moments of batches that are drawn from some of the episodes."""
    label = classes(fixture.rollout.select(rows), row)
    mass = np.bincount(label, weights=fixture.probs[rows])
    members, weights = multisets(mass / mass.sum(), size)
    representative = rows[np.unique(label, return_index=True)[1]]
    batches = representative[members]
    found = np.empty((*batches.shape, fixture.cells.shape[1]))
    advantages = _advantages(row, fixture.rollout, batches, one_prompt)
    tokens = fixture.rollout.mask[batches].sum(axis=(1, 2))
    for total in np.unique(tokens):
        same = tokens == total  # these batches have the same denominators: they can be parts of one sum
        part = fixture.rollout.select(batches[same].ravel())
        own = advantages[same].reshape(len(part.mask), -1)[:, : part.mask.shape[1]]
        of_part = _coefficients(row, part, own, size, int(total))
        found[same] = _widened(of_part, found.shape[2]).reshape(-1, *found.shape[1:])
    return _moments(fixture, rows, label, members, weights, found)


def _advantages(row: Algorithm, rollout: Rollout, batches: np.ndarray, one_prompt: bool) -> np.ndarray:
    """The row's advantages of batches int64 [M, B], rows of the rollout; float64 [M, B, T]."""
    count, size = batches.shape
    steps = rollout.mask.shape[1]
    apart = row.scale != "whiten" and (one_prompt or size == 1)  # several batches in a call do not see each other
    at_once = max(1, _AT_ONCE // size) if apart else 1
    found = []
    for first in range(0, count, at_once):
        some = batches[first : first + at_once]
        group = np.repeat(np.arange(len(some)), size) if one_prompt else np.arange(some.size)
        part = rollout.select(some.ravel())._replace(group=group)
        found.append(_widened(row.advantages_of(part), steps).reshape(-1, size, steps))
    return np.concatenate(found)


def _coefficients(
    row: Algorithm,
    rollout: Rollout,
    advantages: np.ndarray,
    num_episodes: int,
    num_tokens: int,
    ref_log_probs: np.ndarray | None = None,
    kl_coef: float = 0.0,
) -> np.ndarray:
    """-∂loss/∂log π of the production loss at the policy that sampled, float64 [B, T]."""
    leaf = torch.tensor(rollout.log_probs, requires_grad=True)
    reference = None if ref_log_probs is None else torch.tensor(ref_log_probs)
    batch = Batch(torch.tensor(advantages), torch.tensor(rollout.mask), num_episodes, num_tokens, None, reference)
    loss = surrogate(row, leaf, batch, kl_coef).loss
    [gradient] = torch.autograd.grad(loss, leaf)
    return -gradient.numpy()


def _moments(
    fixture: Fixture, rows: np.ndarray, label: np.ndarray, members: np.ndarray, weights: np.ndarray, found: np.ndarray
) -> tuple[np.ndarray, float]:
    """E[g] as weights of the scores, float64 [N·V], and E‖g‖², over batches of classes.

    Given its class, each member of a batch is an independent draw.

    Args:
        fixture: the task.
        rows: int64 [S'], the episodes that are drawn from.
        label: int64 [S'], their classes.
        members: int64 [M, B], the classes of each batch.
        weights: float64 [M], its probability.
        found: float64 [M, B, T], its coefficients.
    """
    cells, mask = fixture.cells[rows], fixture.rollout.mask[rows]
    steps, count = cells.shape[1], int(label.max()) + 1
    place = np.arange(steps)
    within = fixture.probs[rows] / np.bincount(label, weights=fixture.probs[rows])[label]
    mean = np.zeros((count, steps, len(fixture.scores)))  # of the score, by class and step
    np.add.at(mean, (label[:, None], place, cells), within[:, None] * mask)
    square = np.zeros((count, steps, steps))  # E⟨score, score⟩ within an episode, by class and steps
    inner = fixture.gram[cells[:, :, None], cells[:, None, :]] * (mask[:, :, None] & mask[:, None, :])
    np.add.at(square, label, within[:, None, None] * inner)
    total = np.zeros((count, steps))
    np.add.at(total, members, weights[:, None, None] * found)
    second = float(weights @ np.einsum("mbt,mbtu,mbu->m", found, square[members], found, optimize=True))
    if members.shape[1] > 1:
        second += _between(fixture, mean, members, weights, found)
    return np.einsum("kt,ktc->c", total, mean), second


def _between(fixture: Fixture, mean: np.ndarray, members: np.ndarray, weights: np.ndarray, found: np.ndarray) -> float:
    """E Σ_{i≠j} ⟨g_i, g_j⟩ of a batch's members: products of their means; see `_moments`, mean is [K, T, N·V]."""
    count, steps, _ = mean.shape
    flat = mean.reshape(count * steps, -1)
    inner = flat @ fixture.gram @ flat.T
    same = inner.reshape(count, steps, count, steps)[np.arange(count), :, np.arange(count)]
    places = members[:, :, None] * steps + np.arange(steps)
    result, at_once = 0.0, max(1, _NUMBERS // (count * steps))
    for first in range(0, len(members), at_once):
        some = slice(first, first + at_once)
        summed = np.zeros((len(members[some]), count * steps))
        np.add.at(summed, (np.arange(len(summed))[:, None, None], places[some]), found[some])
        all_pairs = ((summed @ inner) * summed).sum(axis=1)
        own = np.einsum("mbt,mbtu,mbu->m", found[some], same[members[some]], found[some], optimize=True)
        result += float(weights[some] @ (all_pairs - own))
    return result


def _certificate(fixture: Fixture, cell_weights: np.ndarray, second: float, episodes: int) -> Certificate:
    mean = cell_weights @ fixture.scores
    return Certificate(mean, episodes * (second - float(mean @ mean)), episodes)


def _widened(array: np.ndarray, steps: int) -> np.ndarray:
    """[B, t] with zeros up to [B, steps]."""
    return np.pad(array, ((0, 0), (0, steps - array.shape[1])))
