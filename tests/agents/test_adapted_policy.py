"""LoRA, half precision and recomputed activations through policy and learner."""

import copy
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from agents.experience import Experience
from agents.learner import PolicyGradient
from agents.policy import TransformerPolicy
from agents.rollout import collect
from tests.agents import tiny
from tests.agents.tiny import PAD, A, B, C
from textgym.schemes import Reference

OBSERVATIONS = np.array([[A, PAD, PAD], [B, C, A]])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    TransformerPolicy.small(tiny.make_envs(), d_model=16, seed=3).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def trained(policy: TransformerPolicy, tokens: int = 100, **settings) -> PolicyGradient:
    envs = tiny.make_envs(16)
    settings = {"group_size": 4, "episodes_per_update": 16, "learning_rate": 0.02} | settings
    return PolicyGradient(policy, envs, **settings).learn(tokens)


def log_probs(policy: TransformerPolicy) -> np.ndarray:
    return policy.distribution(OBSERVATIONS).log_probs.detach().float().numpy()


def weights(policy: TransformerPolicy) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in policy.model.state_dict().items()}


# --- LoRA


def test_adapters_alone_are_trained(folder):
    policy = TransformerPolicy.from_pretrained(folder, lora_rank=2)
    np.testing.assert_array_equal(log_probs(policy), log_probs(TransformerPolicy.from_pretrained(folder)))
    before = weights(policy)
    trained(policy)
    changed = {name for name, value in weights(policy).items() if not torch.equal(value, before[name])}
    assert changed and all("lora_" in name for name in changed)
    assert np.abs(log_probs(policy) - log_probs(TransformerPolicy.from_pretrained(folder))).max() > 0.01


def test_the_reference_is_the_same_model_with_the_adapters_off(folder):
    policy = TransformerPolicy.from_pretrained(folder, lora_rank=2)
    base = TransformerPolicy.from_pretrained(folder)
    trained(policy)
    rollout = collect(policy, tiny.make_envs(8), 8, np.random.default_rng(0))
    reference = policy.reference_log_probs(rollout)
    assert not reference.requires_grad
    np.testing.assert_array_equal(reference, base.log_probs(rollout).detach())
    assert not np.allclose(reference, policy.log_probs(rollout).detach(), atol=1e-3)
    actions = np.array([C, B])
    expected = log_probs(base)[[0, 1], actions]
    for _ in range(2):  # the second time from the cache
        np.testing.assert_allclose(policy.reference_log_prob(OBSERVATIONS, actions), expected, atol=1e-6)
        assert policy.act(OBSERVATIONS)[1].dtype == np.float32
    with pytest.raises(ValueError, match="no adapters"):
        base.reference_log_probs(rollout)


def test_the_reference_prices_the_tokens_of_an_environment(folder):
    policy = TransformerPolicy.from_pretrained(folder, lora_rank=2)
    envs = tiny.make_envs(8, scheme=["terminal", Reference(policy.reference_log_prob, beta=0.5)])
    rollout = collect(policy, envs, 8, np.random.default_rng(0))
    priced = rollout.rewards.sum(axis=1) - rollout.score
    np.testing.assert_allclose(priced, 0.5 * rollout.log_probs.sum(axis=1), atol=1e-5)  # an untrained adapter adds 0


def test_a_saved_policy_is_merged_and_opens_without_peft(folder, tmp_path):
    policy = TransformerPolicy.from_pretrained(folder, lora_rank=2)
    trained(policy)
    before = weights(policy)
    policy.save_pretrained(tmp_path / "merged")
    assert all(torch.equal(value, before[name]) for name, value in weights(policy).items())
    assert not list((tmp_path / "merged").rglob("adapter_config.json"))
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert not any("lora" in name for name in plain.state_dict())
    np.testing.assert_allclose(
        log_probs(TransformerPolicy.from_pretrained(tmp_path / "merged")), log_probs(policy), atol=1e-5
    )


def test_base_and_adapters_can_be_saved_apart(folder, tmp_path):
    policy = TransformerPolicy.from_pretrained(folder, lora_rank=2)
    trained(policy)
    policy.save_pretrained(tmp_path / "apart", merge_adapters=False)
    again = TransformerPolicy.from_pretrained(tmp_path / "apart")
    np.testing.assert_array_equal(log_probs(again), log_probs(policy))
    rollout = collect(policy, tiny.make_envs(8), 8, np.random.default_rng(0))
    np.testing.assert_array_equal(again.reference_log_probs(rollout), policy.reference_log_probs(rollout))


@pytest.mark.parametrize("rank", [0, -1, True, 1.5])
def test_a_rank_that_is_none_is_refused(folder, rank):
    with pytest.raises((TypeError, ValueError), match="rank="):
        TransformerPolicy.from_pretrained(folder, lora_rank=rank)


@pytest.mark.parametrize("settings", [{}, {"top_k": 2}, {"top_p": 0.6, "temperature": 0.7}], ids=str)
@pytest.mark.parametrize("task", ["sort", "brackets"])
def test_the_reference_is_the_same_step_by_step_and_not_restricted(tmp_path, task, settings):
    envs = gym.make_vec("TextGen-v0", num_envs=8, task=task, autoreset_mode="Disabled")
    TransformerPolicy.small(envs, d_model=16).save_pretrained(tmp_path)
    policy = TransformerPolicy.from_pretrained(tmp_path, lora_rank=2, **settings)
    rollout = collect(policy, envs, 8, np.random.default_rng(0))
    of_rollout = policy.reference_log_probs(rollout).numpy()
    assert np.isfinite(of_rollout).all()
    for row, step in zip(*np.nonzero(rollout.mask), strict=True):
        history = rollout.tokens[row : row + 1].copy()
        history[0, rollout.prompt_length[row] + step :] = policy.size
        fed = history[history != policy.size] if history[0, 0] != policy.size else np.array([policy.bos_id])
        logits = policy.model(input_ids=torch.as_tensor(fed[None])).logits[0, -1]
        plain = torch.log_softmax(logits[: policy.size].detach() / policy.temperature, dim=-1)  # adapters add 0 yet
        action = rollout.actions[row, step]
        assert of_rollout[row, step] == pytest.approx(float(plain[action]), abs=1e-5)
        [one] = policy.reference_log_prob(history, np.array([action]))
        assert one == pytest.approx(of_rollout[row, step], abs=1e-5)


def test_what_was_saved_in_a_folder_before_leaves_nothing_behind(folder, tmp_path):
    adapted = TransformerPolicy.from_pretrained(folder, lora_rank=2, value_head=True)
    trained(adapted)
    adapted.save_pretrained(tmp_path / "f", merge_adapters=False)
    for policy in (adapted, TransformerPolicy.from_pretrained(folder)):
        policy.save_pretrained(tmp_path / "f")
        again = TransformerPolicy.from_pretrained(tmp_path / "f")
        np.testing.assert_allclose(log_probs(again), log_probs(policy), atol=1e-5)
        assert not (tmp_path / "f" / "adapter").exists()
    assert not (tmp_path / "f" / "value_head.safetensors").exists()
    trained(adapted).save(tmp_path / "g")
    learner = trained(TransformerPolicy.from_pretrained(folder))
    learner.save(tmp_path / "g")
    again = PolicyGradient.load(tmp_path / "g", tiny.make_envs(16))
    np.testing.assert_array_equal(log_probs(again.policy), log_probs(learner.policy))


def test_a_learner_is_loaded_with_an_environment_that_asks_its_policy(folder, tmp_path):
    def envs_of(policy):
        return tiny.make_envs(16, scheme=["terminal", Reference(policy.reference_log_prob, beta=0.1)])

    policy = TransformerPolicy.from_pretrained(folder, lora_rank=2)
    learner = PolicyGradient(policy, envs_of(policy), episodes_per_update=16).learn(50)
    learner.save(tmp_path / "learner")
    again = PolicyGradient.load(tmp_path / "learner", envs_of)
    for one in (learner, again):
        one.learn(50)
    np.testing.assert_array_equal(log_probs(again.policy), log_probs(learner.policy))


# --- saved in the middle of a training


@pytest.mark.parametrize(
    "settings",
    [{"lora_rank": 2}, {"dtype": torch.bfloat16}, {"dtype": torch.bfloat16, "lora_rank": 2}, {"value_head": True}],
    ids=str,
)
def test_a_training_goes_on_exactly_where_it_was_saved(folder, tmp_path, settings):
    learner = trained(TransformerPolicy.from_pretrained(folder, **settings))
    learner.save(tmp_path / "learner")
    again = PolicyGradient.load(tmp_path / "learner", tiny.make_envs(16))
    for one in (learner, again):
        one.learn(100)
    after = weights(again.policy)
    assert all(torch.equal(value, after[name]) for name, value in weights(learner.policy).items())
    AutoModelForCausalLM.from_pretrained(tmp_path / "learner" / "policy")


@pytest.mark.parametrize("settings", [{"lora_rank": 2}, {"value_head": True}], ids=str)
def test_a_small_policy_in_half_precision_goes_on_too(tmp_path, settings):
    policy = TransformerPolicy.small(tiny.make_envs(), d_model=16, dtype=torch.bfloat16, **settings)
    assert policy.model.dtype == torch.bfloat16
    trained(policy).save(tmp_path)
    again = PolicyGradient.load(tmp_path, tiny.make_envs(16)).policy
    np.testing.assert_array_equal(log_probs(again), log_probs(policy))


# --- half precision


def test_half_precision_samples_and_scores_in_single(folder):
    policy = TransformerPolicy.from_pretrained(folder, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in policy.parameters()} == {torch.bfloat16}
    rollout = collect(policy, tiny.make_envs(8), 32, np.random.default_rng(0))
    scored = policy.log_probs(rollout).detach()
    assert scored.dtype == torch.float32
    np.testing.assert_allclose(scored, rollout.log_probs, atol=0.05)
    np.testing.assert_allclose(log_probs(policy), log_probs(TransformerPolicy.from_pretrained(folder)), atol=0.05)


def test_small_steps_are_not_lost_in_half_precision(folder):
    """Steps of Adam that bfloat16 weights of this size would all round away sum up to what float32 weights do."""
    half = TransformerPolicy.from_pretrained(folder, dtype=torch.bfloat16)
    whole = TransformerPolicy.from_pretrained(folder)
    whole.load_state_dict({name: value.float() for name, value in half.state_dict().items()})
    before = weights(half)
    for policy in (half, whole):
        envs = tiny.make_envs(16)
        learner = PolicyGradient(policy, envs, episodes_per_update=16, learning_rate=2e-5)
        rollout = collect(policy, envs, 16, np.random.default_rng(0), group_size=8)
        experience = Experience(rollout, np.broadcast_to(rollout.score[:, None], rollout.mask.shape))
        for _ in range(60):
            learner.accumulate_gradient(experience)
            learner.optimizer.step()
            learner.weights.write_back()
    moved = {name: (value.float() - before[name].float()).abs().mean() for name, value in weights(half).items()}
    expected = {name: (value - before[name].float()).abs().mean() for name, value in weights(whole).items()}
    name = "transformer.h.0.attn.c_attn.weight"
    assert float(moved[name]) == pytest.approx(float(expected[name]), rel=0.15)
    assert float(expected[name]) > 5e-4


# --- recomputed activations


def test_recomputed_activations_give_the_same_gradient(folder):
    gradients = []
    for checkpointing in (False, True):
        policy = TransformerPolicy.from_pretrained(folder, gradient_checkpointing=checkpointing).double()
        rollout = collect(policy, tiny.make_envs(8), 16, np.random.default_rng(0))
        policy.log_probs(rollout).sum().backward()
        gradients.append(tiny.stored_gradient(policy))
    assert tiny.relative_error(gradients[1], gradients[0]) < 1e-12


def test_recomputing_is_remembered_by_a_saved_learner(folder, tmp_path):
    learner = trained(TransformerPolicy.from_pretrained(folder, gradient_checkpointing=True))
    learner.save(tmp_path / "learner")
    assert PolicyGradient.load(tmp_path / "learner", tiny.make_envs(16)).policy.gradient_checkpointing


# --- another device


def test_a_generator_of_another_device_draws_from_the_same_distribution():
    from scipy import stats

    from agents.sampling import inverse_cdf

    probs = torch.tensor([[0.0, 0.2, 0.0, 0.5, 0.3, 0.0]]).expand(20_000, 6)
    drawn = inverse_cdf(probs, torch.rand(20_000, 1, generator=torch.Generator().manual_seed(0)))
    assert drawn.shape == (20_000, 1) and drawn.dtype == torch.int64
    counts = np.bincount(drawn[:, 0], minlength=6)
    assert counts[[0, 2, 5]].sum() == 0
    assert stats.chisquare(counts[[1, 3, 4]], 20_000 * np.array([0.2, 0.5, 0.3])).pvalue > 1e-3
    for edge in (0.0, 1 - 2**-24):
        assert probs[0, inverse_cdf(probs[:1], torch.tensor([[edge]]))] > 0


def test_a_copy_trains_its_own_weights(folder):
    policy = TransformerPolicy.from_pretrained(folder, lora_rank=2, gradient_checkpointing=True)
    twin = copy.deepcopy(policy)
    trained(twin)
    np.testing.assert_array_equal(log_probs(policy), log_probs(TransformerPolicy.from_pretrained(folder)))
