"""V(s): what the head reads, what it is of, and that it travels with the policy."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, OPTConfig, OPTForCausalLM

from agents.learner import PolicyGradient
from agents.policy import TransformerPolicy
from agents.rollout import collect
from tests.agents import tiny
from tests.agents.tiny import PAD, A, B, C


def make_policy(value: float = 0.5, **settings) -> TransformerPolicy:
    """A policy whose value head is not 0."""
    policy = TransformerPolicy.small(tiny.make_envs(), d_model=16, value_head=True, **settings)
    torch.nn.init.normal_(policy.value_head.linear.weight, std=1.0, generator=torch.Generator().manual_seed(0))
    torch.nn.init.constant_(policy.value_head.linear.bias, value)
    return policy


def expected_value(policy: TransformerPolicy, history) -> float:
    """The head on the model's last hidden state after an unpadded history."""
    tokens = torch.tensor([list(history) or [policy.bos_id]])
    with torch.no_grad():
        hidden = policy.model(input_ids=tokens, output_hidden_states=True).hidden_states[-1][0, -1]
        return float(policy.value_head.linear(hidden))


def test_off_by_default():
    policy = TransformerPolicy.small(4, d_model=16)
    assert policy.value_head is None
    with pytest.raises(ValueError, match="value_head=True"):
        policy.values(np.array([[A, PAD]]))


def test_a_new_head_says_zero():
    policy = TransformerPolicy.small(tiny.make_envs(), d_model=16, value_head=True)
    assert policy.values(np.array([[A, PAD], [B, C]])).tolist() == [0, 0]


def test_values_of_observations():
    policy = make_policy()
    histories = [[A], [], [B, C, A]]
    observations = np.full((3, 5), PAD)
    for row, history in enumerate(histories):
        observations[row, : len(history)] = history
    values = policy.values(observations)
    assert values.shape == (3,) and values.requires_grad
    np.testing.assert_allclose(values.detach(), [expected_value(policy, h) for h in histories], atol=1e-5)
    np.testing.assert_allclose(policy.values({"tokens": observations}).detach(), values.detach(), atol=1e-6)


@pytest.mark.parametrize("prompts", [["a", "bc"], ["", "a"]], ids=["prompts", "an empty prompt"])
def test_values_of_a_rollout_are_of_the_states_before_the_actions(prompts):
    envs = tiny.make_envs(8, prompts=prompts)
    policy = make_policy()
    rollout = collect(policy, envs, 16, np.random.default_rng(0))
    values = policy.values(rollout).detach().numpy()
    assert values.shape == rollout.mask.shape
    assert (values[~rollout.mask] == 0).all()
    for row, step in zip(*np.nonzero(rollout.mask), strict=True):
        history = rollout.tokens[row, : rollout.prompt_length[row] + step]
        assert values[row, step] == pytest.approx(expected_value(policy, history), abs=1e-5)


def test_one_pass_gives_both():
    policy = make_policy()
    rollout = collect(policy, tiny.make_envs(8), 16, np.random.default_rng(0))
    calls = []
    policy.model.register_forward_pre_hook(lambda *_: calls.append(1))
    distribution, values = policy.action_distribution_and_values(rollout)
    assert len(calls) == 1
    np.testing.assert_array_equal(values.detach(), policy.values(rollout).detach())
    expected = policy.action_distribution(rollout).log_probs
    np.testing.assert_array_equal(distribution.log_probs.detach(), expected.detach())


def test_the_gradient_reaches_head_and_model():
    policy = make_policy()
    policy.values(np.array([[A, B]])).sum().backward()
    assert all(parameter.grad is not None for parameter in policy.value_head.parameters())
    assert float(policy.model.get_input_embeddings().weight.grad[A].norm()) > 0


def test_it_reads_what_the_output_layer_reads():
    """In OPT that is narrower than the hidden states."""
    config = OPTConfig(
        vocab_size=9, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, ffn_dim=16, word_embed_proj_dim=8
    )
    policy = TransformerPolicy(OPTForCausalLM(config), 9, value_head=True)
    assert policy.value_head.linear.in_features == 8
    assert policy.values(np.array([[1, 2, 3]])).shape == (1,)


def test_it_is_saved_beside_the_model(tmp_path: Path):
    policy = make_policy()
    policy.save_pretrained(tmp_path)
    AutoModelForCausalLM.from_pretrained(tmp_path)  # without it
    observations = np.array([[A, B, PAD], [C, PAD, PAD]])
    again = TransformerPolicy.from_pretrained(tmp_path)
    np.testing.assert_array_equal(again.values(observations).detach(), policy.values(observations).detach())
    assert TransformerPolicy.from_pretrained(tmp_path, value_head=False).value_head is None
    (tmp_path / "value_head.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ValueError, match="value head .*value_head.safetensors"):
        TransformerPolicy.from_pretrained(tmp_path)


def test_a_folder_without_a_head_can_be_given_one(tmp_path: Path):
    TransformerPolicy.small(tiny.make_envs(), d_model=16).save_pretrained(tmp_path)
    policy = TransformerPolicy.from_pretrained(tmp_path, value_head=True)
    assert policy.values(np.array([[A]])).tolist() == [0]


def test_a_learner_keeps_the_head_of_its_policy(tmp_path: Path):
    envs = tiny.make_envs(8)
    policy = make_policy()
    learner = PolicyGradient(policy, envs, episodes_per_update=8)
    learner.learn(30)
    learner.save(tmp_path)
    again = PolicyGradient.load(tmp_path, envs)
    observations = np.array([[A, B]])
    np.testing.assert_array_equal(again.policy.values(observations).detach(), policy.values(observations).detach())
