"""KL to a reference through the learner: what it holds the policy to, where its gradient leads, and what is refused."""

import math
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from agents.algorithms import ALGORITHMS, KL_FORMS, make_algorithm
from agents.experience import Experience
from agents.gradient import reference_kl
from agents.learner import PolicyGradient
from agents.lora import adapter_off
from agents.policy import TransformerPolicy
from agents.reference import ReferencePolicy
from agents.rollout import Rollout, collect
from agents.surrogate import Batch, surrogate
from tests.agents import hand_made, tiny
from tests.agents.family import make_learner, make_policy, updates_of
from textgym.vocabulary import Vocabulary

BETA = 0.3


def changed(policy: TransformerPolicy) -> None:
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.5


def some_rollout(policy: TransformerPolicy) -> Rollout:
    return collect(policy, tiny.make_envs(8), 16, np.random.default_rng(0), 4, torch.Generator().manual_seed(0))


# --- the gradient, against enumeration


@pytest.mark.parametrize(
    ("name", "form"),
    [(name, "k1_reward") for name in ("reinforce", "reinforce_to_go", "a2c")] + [("reinforce", "k2_sequence")],
)
def test_the_exact_forms_follow_the_regularised_objective(name, form):
    """E[R] - β KL(π‖π_ref), by plain passes over all episodes; the estimator, weighted by each one's probability."""
    envs, episodes = tiny.make_envs(), tiny.every_episode()
    policy, other = tiny.make_policy(envs, scale=2.0), tiny.make_policy(envs, seed=1, scale=1.5)
    policy.add_value_head()  # says 0, as a critic does at first
    log_probs = torch.stack([steps.sum() for steps in tiny.step_log_probs(policy, episodes)])
    with torch.no_grad():
        ref = torch.stack([steps.sum() for steps in tiny.step_log_probs(other, episodes)])
    probs = log_probs.exp() / len(tiny.PROMPTS)
    returns = torch.tensor([sum(e.rewards) for e in episodes], dtype=torch.float64)
    exact = tiny.flat_gradient((probs * (returns - BETA * (log_probs - ref))).sum(), policy)
    plain = tiny.flat_gradient((probs * returns).sum(), policy)
    assert tiny.relative_error(plain, exact) > 0.1  # the term matters

    rollout = tiny.rollout_of(episodes)
    rollout = rollout._replace(log_probs=policy.log_probs(rollout).detach().numpy())
    row = make_algorithm(name, kl=form)
    experience = PolicyGradient(policy, envs, row, kl_coef=BETA, reference=other).experience(rollout)
    leaf = torch.tensor(rollout.log_probs, requires_grad=True)
    own = (torch.tensor(one) for one in (experience.advantages, rollout.mask))
    batch = Batch(*own, len(episodes), rollout.num_tokens, None, torch.tensor(experience.ref_log_probs))
    [each] = torch.autograd.grad(-surrogate(row, leaf, batch, BETA).loss * len(episodes), leaf)
    weights = each * probs.detach()[:, None]
    mean = tiny.flat_gradient((weights * policy.log_probs(rollout)).sum(), policy)
    assert tiny.relative_error(mean, exact) < 1e-9


def test_the_learner_adds_the_term_of_the_loss():
    envs, rollout = tiny.make_envs(), hand_made.rollout()
    policy, other = tiny.make_policy(envs), tiny.make_policy(envs, seed=1)
    row = make_algorithm("dr_grpo", kl="k2")
    learner = PolicyGradient(policy, envs, row, kl_coef=BETA, reference=other, entropy_coef=0.0, max_grad_norm=1e9)
    learner.accumulate_gradient(learner.experience(rollout))
    of_group = np.array(hand_made.COEFFICIENTS["dr_grpo"])
    value: Any = 0.0
    pairs = zip(
        tiny.step_log_probs(policy, hand_made.EPISODES), tiny.step_log_probs(other, hand_made.EPISODES), strict=True
    )
    for row_of, (new, ref) in zip(of_group, pairs, strict=True):
        value = (
            value + (torch.tensor(row_of)[: len(new)] * new).sum() - BETA * (new - ref.detach()).square().sum() / 2 / 4
        )
    assert tiny.relative_error(-tiny.stored_gradient(policy), tiny.flat_gradient(value, policy)) < 1e-9


# --- what is measured


def test_the_kl_is_that_of_the_sampled_tokens():
    rollout = hand_made.rollout()
    gap = np.where(np.arange(4)[:, None] < 2, math.log(2), math.log(0.5))  # log π/π_ref on four tokens, and on five
    sampled = np.where(rollout.mask, -1.0, 0.0)
    experience = Experience(rollout, sampled, sampled, sampled - gap * rollout.mask)
    k3 = (4 * (0.5 - 1 + math.log(2)) + 5 * (2 - 1 - math.log(2))) / 9
    expected = {"kl": k3, "kl/k1": -math.log(2) / 9, "kl/k3": k3}
    assert reference_kl(experience) == pytest.approx(expected, rel=1e-12)
    # Kept from tokens of π_ref, k3 has another mean than the KL.
    masked = rollout._replace(action_mask=np.ones((*rollout.mask.shape, 4), dtype=bool))
    assert reference_kl(experience._replace(rollout=masked)) == pytest.approx(expected | {"kl": expected["kl/k1"]})


def test_by_default_it_is_the_policy_as_it_was():
    learner = make_learner(kl_coef=1e-9, learning_rate=0.01)
    updates = updates_of(learner, 4)
    assert updates[0].metrics["kl"] == updates[0].metrics["kl/k1"] == 0
    assert updates[-1].metrics["kl"] > 1e-3 and updates[-1].metrics["kl_coef"] == 1e-9


def test_a_strong_kl_holds_the_policy():
    reached = {}
    for kl_coef in (1e-3, 3.0):
        learner = make_learner("rloo", kl_coef=kl_coef, learning_rate=0.01, entropy_coef=0.0, episodes_per_update=32)
        reached[kl_coef] = updates_of(learner, 15)[-1].metrics["kl"]
    assert reached[3.0] < 0.02 < reached[1e-3]


@pytest.mark.parametrize(("kl_target", "factor"), [(10.0, 0.98), (1e-4, 1.02)])
def test_the_coefficient_adapts(kl_target, factor):
    other = tiny.make_policy(tiny.make_envs(), seed=7, scale=3.0)  # far away
    learner = make_learner(kl_coef=BETA, kl_target=kl_target, reference=other)
    updates = updates_of(learner, 3)
    assert [update.metrics["kl_coef"] for update in updates] == pytest.approx([BETA * factor**n for n in range(3)])
    assert learner.kl_coef == pytest.approx(BETA * factor**3) and learner.settings["kl_coef"] == BETA


def test_the_critic_is_to_say_what_is_paid_with_the_cost():
    other = make_policy(tiny.make_envs(), seed=7)
    learner = make_learner("a2c", kl_coef=BETA, reference=other)
    rollout = some_rollout(learner.policy)
    ref = np.where(rollout.mask, other.log_probs(rollout).detach().numpy(), 0)
    paid = rollout.rewards - BETA * (rollout.log_probs - ref)
    ahead = np.cumsum(paid[:, ::-1], axis=1)[:, ::-1]  # 0 is paid after the end
    experience = learner.experience(rollout)
    np.testing.assert_allclose(experience.targets, np.where(rollout.mask, ahead, 0), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(experience.rollout.rewards, rollout.rewards)  # what is reported stays


def test_the_coefficient_stays_without_a_target_and_is_what_the_reward_is_charged():
    other = make_policy(tiny.make_envs(), seed=7)
    learner = make_learner("reinforce", kl_coef=BETA, reference=other)
    experience = learner.experience(some_rollout(learner.policy))
    rollout = experience.rollout
    ref = np.where(rollout.mask, other.log_probs(rollout).detach().numpy(), 0)
    cost = BETA * (rollout.log_probs - ref).sum(axis=1)
    # Sums of float32 log-probs, of which those of the sampler come from its cache; a difference may cancel.
    np.testing.assert_allclose(experience.advantages[:, 0], rollout.returns - cost, rtol=1e-6, atol=1e-6)
    learner.kl_coef = 0.0  # an adapted coefficient is the one that counts
    assert learner.experience(rollout).advantages[:, 0].tolist() == pytest.approx(rollout.returns.tolist())
    learner.kl_coef = BETA
    assert {update.metrics["kl_coef"] for update in updates_of(learner, 2)} == {BETA}


# --- what it is


def test_it_stays_whatever_becomes_of_the_policies():
    given = make_policy(tiny.make_envs(), seed=7)
    for source in (None, given):
        learner = make_learner(kl_coef=BETA, reference=source)
        rollout = some_rollout(learner.policy)
        before = learner.reference.log_probs(rollout).clone()
        assert not before.requires_grad and not before[~torch.tensor(rollout.mask)].any()
        updates_of(learner, 2)
        changed(learner.policy)
        if source is not None:
            assert torch.equal(before, source.log_probs(rollout).detach())
            changed(source)
        assert torch.equal(learner.reference.log_probs(rollout), before)
        assert not torch.allclose(learner.policy.log_probs(rollout), before)
    assert all(parameter.requires_grad for parameter in given.parameters())  # its owner may go on training it


def test_it_has_the_temperature_of_the_policy(tmp_path):
    envs = tiny.make_envs(8)
    given = make_policy(envs, seed=7)
    given.save_pretrained(tmp_path)
    policy = make_policy(envs, temperature=0.5)
    rollout = some_rollout(policy)
    found = [ReferencePolicy(policy, source).log_probs(rollout) for source in (given, tmp_path, str(tmp_path))]
    assert given.temperature == 1
    for row, steps in enumerate(rollout.mask.sum(axis=1)):
        history = rollout.tokens[row, : rollout.length[row]]
        with torch.no_grad():
            logits = given.model(input_ids=torch.tensor(history[None])).logits[0, :, :4]
        table = torch.log_softmax(logits / 0.5, dim=-1)
        first = rollout.prompt_length[row] - 1
        for step in range(steps):
            expected = float(table[first + step, rollout.actions[row, step]])
            assert [float(one[row, step]) for one in found] == pytest.approx([expected] * 3, abs=1e-5)


def test_of_a_model_with_adapters_it_is_the_model_without_them():
    envs = tiny.make_envs(8)
    policy = make_policy(envs, lora_rank=2)
    learner = make_learner("grpo", envs, policy, kl_coef=BETA, learning_rate=0.05)
    base = ReferencePolicy(make_policy(envs))
    updates = updates_of(learner, 4)
    rollout = some_rollout(policy)
    torch.testing.assert_close(learner.reference.log_probs(rollout), base.log_probs(rollout))
    with adapter_off(policy.model):
        torch.testing.assert_close(policy.log_probs(rollout).detach(), learner.reference.log_probs(rollout))
    assert learner.reference.dtype is None and updates[-1].metrics["kl"] > 1e-3
    assert all(parameter.requires_grad == ("lora_" in name) for name, parameter in policy.named_parameters())


@pytest.mark.parametrize("truncation", [{}, dict(top_p=0.8)], ids=["all tokens", "top-p"])
@pytest.mark.parametrize("form", [form for form in KL_FORMS if form != "none"])
def test_masked_and_truncated_policies_have_finite_terms(form, truncation):
    envs = gym.make_vec("TextGen-v0", num_envs=8, task="brackets")
    policy = TransformerPolicy.small(envs, d_model=16, num_layers=1, **truncation)
    row = make_algorithm("dr_grpo", kl=form, num_epochs=2)
    settings = dict(group_size=4, episodes_per_update=8, kl_coef=BETA, entropy_coef=0.1)
    for update in updates_of(PolicyGradient(policy, envs, row, **settings), 2):
        assert all(map(math.isfinite, update.metrics.values())) and update.metrics["grad_norm"] > 0
        # π is restricted to legal tokens and π_ref is not, so that π says more of each: above 0 from the start.
        assert update.metrics["kl/k1"] > 0.1 and update.metrics["entropy"] >= 0
    assert all(parameter.isfinite().all() for parameter in policy.parameters())


# --- refusals


@pytest.mark.parametrize(
    ("algorithm", "settings", "match"),
    [
        ("dapo", dict(kl_coef=0.1), "'dapo', which has no KL term"),
        ("cispo", dict(kl_coef=0.1), "'cispo', which has no KL term"),
        ("rloo", dict(kl_coef=-0.1), "kl_coef=-0.1; give a finite number of at least 0"),
        ("rloo", dict(kl_coef=math.nan), "kl_coef=nan"),
        ("rloo", dict(kl_coef=math.inf), "kl_coef=inf"),
        ("rloo", dict(kl_target=0.1), "kl_target is given and kl_coef=0"),
        ("rloo", dict(kl_coef=0.1, kl_target=0.0), "kl_target=0.0; give a finite number above 0"),
        ("rloo", dict(kl_coef=0.1, kl_target=math.nan), "kl_target=nan"),
        ("rloo", dict(reference="somewhere"), "reference is given and kl_coef=0"),
    ],
    ids=str,
)
def test_settings_that_contradict_each_other_are_refused(algorithm, settings, match):
    with pytest.raises(ValueError, match=match):
        make_learner(algorithm, **settings)


def test_a_row_without_a_term_takes_one():
    [update] = updates_of(make_learner(make_algorithm("dapo", kl="k3"), kl_coef=0.1), 1)
    assert "kl" in update.metrics and ALGORITHMS["dapo"].kl == "none"


def test_a_reference_with_other_tokens_is_refused(tmp_path):
    with pytest.raises(ValueError, match="the reference has 5 tokens and the policy 4"):
        make_learner(kl_coef=0.1, reference=TransformerPolicy.small(5, d_model=16))
    other = TransformerPolicy.small(4, d_model=16)
    other.vocabulary = Vocabulary.from_symbols(["a", "c", "b", "<eos>"])
    with pytest.raises(ValueError, match="other tokens: 'b' is id 2 to the reference and 1 to the policy"):
        make_learner(kl_coef=0.1, reference=other)
    with pytest.raises(TypeError, match="reference is 7 of type int; give None, a TransformerPolicy, or the path"):
        make_learner(kl_coef=0.1, reference=7)
    with pytest.raises(FileNotFoundError, match="the reference: .*nowhere"):
        make_learner(kl_coef=0.1, reference=tmp_path / "nowhere")
