"""π and V of single states: the same from every way of asking, nested prefixes once, and through a cache."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from agents.histories import Histories, nested
from agents.policy import TransformerPolicy
from tests.agents.small_models import ARCHITECTURES, make_model

V = 6


def with_values(policy):
    """The policy, whose value head says something."""
    policy.add_value_head()
    weights = torch.linspace(
        -1, 1, policy.value_head.linear.weight.numel(), dtype=policy.value_head.linear.weight.dtype
    )
    with torch.no_grad():
        policy.value_head.linear.weight.copy_(weights)
        policy.value_head.linear.bias.fill_(0.5)
    return policy


def padded(histories, width):
    return np.array([[*history, *[V] * (width - len(history))] for history in histories])


@given(st.lists(st.lists(st.integers(0, 1), max_size=5), min_size=1, max_size=12))
def test_every_history_begins_a_longest_one(histories):
    lengths = np.array([len(history) for history in histories])
    rows, sequence, rank = nested(Histories(padded(histories, 5), lengths))
    longest = {tuple(h) for h in histories if not any(g[: len(h)] == h and len(g) > len(h) for g in histories)}
    assert sorted(longest) == sorted(tuple(histories[row]) for row in rows) and len(set(rows.tolist())) == len(rows)
    for number, history in enumerate(histories):
        assert histories[rows[sequence[number]]][: len(history)] == history
    for number in range(len(rows)):
        assert sorted(rank[sequence == number].tolist()) == list(range((sequence == number).sum()))


HISTORIES = [[1, 2, 3, 4], [1, 2], [5], [1, 2, 3, 4], [0, 1, 2, 3, 4, 5], [1, 3], [0, 1, 2], [5, 5]]


@pytest.mark.parametrize("empty", [False, True])
def test_states_are_judged_as_one_by_one_with_their_gradient(empty):
    policy = with_values(TransformerPolicy.small(V, d_model=32).double())
    observations = padded([*HISTORIES, []] if empty else HISTORIES, 6)
    weights = torch.linspace(-1, 2, len(observations) * V, dtype=torch.float64).reshape(-1, V)

    def gradient(log_probs, values):
        policy.zero_grad()
        ((log_probs * weights).sum() + (values**2).sum()).backward()
        return [parameter.grad.clone() for parameter in policy.parameters()]

    alone = [policy.distribution(row[None]).log_probs for row in observations]
    expected = torch.cat(alone), torch.cat([policy.values(row[None]) for row in observations])
    wanted = gradient(*expected)
    distribution, values = policy.distribution_and_values(observations)
    assert torch.allclose(distribution.log_probs, expected[0], atol=1e-12)
    assert torch.allclose(values, expected[1], atol=1e-12)
    for one, other in zip(gradient(distribution.log_probs, values), wanted, strict=True):
        assert torch.allclose(one, other, atol=1e-12)


def test_nested_states_are_run_once():
    policy = with_values(TransformerPolicy.small(V, d_model=32))
    run = []
    policy.model.transformer.register_forward_pre_hook(lambda module, inputs: run.append(tuple(inputs[0].shape)))
    _ = policy._next_tokens.head_is_last  # asks the model once
    run.clear()
    episode = [list(range(V))[:length] for length in range(1, V + 1)]
    policy.distribution_and_values(padded(episode[::-1], 6))
    assert run == [(1, 6)]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_through_a_cache_they_are_the_same(architecture):
    settings = {"sliding_window": None} if architecture == "mistral" else {}
    policy = with_values(TransformerPolicy(make_model(architecture, **settings).double(), V, bos_id=0))
    cache = policy.prefix_cache()
    tokens = np.random.default_rng(0).integers(V, size=(5, 7))
    for length in (2, 3, 4, 4, 6, 1):  # grown by a token, asked again, by two, and begun anew
        observations = np.where(np.arange(7) < length, tokens, V)
        expected, values = policy.distribution_and_values(observations)
        found, cached = policy.distribution_and_values(observations, cache=cache)
        assert torch.allclose(found.log_probs, expected.log_probs, atol=1e-9)
        assert torch.allclose(cached, values, atol=1e-9)
        assert expected.log_probs.requires_grad and not found.log_probs.requires_grad
        alone = policy.distribution(observations, cache=cache).log_probs
        assert torch.allclose(alone, found.log_probs, atol=1e-9)


def test_masks_of_dict_observations_hold():
    policy = with_values(TransformerPolicy.small(V, d_model=32))
    mask = np.ones((2, V), dtype=np.int8)
    mask[0, 2:] = 0
    distribution, _ = policy.distribution_and_values({"tokens": padded([[1], [1, 2]], 3), "action_mask": mask})
    assert (distribution.log_probs[0, 2:] == -torch.inf).all() and (distribution.log_probs[1] > -torch.inf).all()


def test_without_a_value_head_it_says_so():
    with pytest.raises(ValueError, match="value_head=True"):
        TransformerPolicy.small(V, d_model=32).distribution_and_values(padded([[1]], 2))
