"""Action masks: what is sampled under a mask is scored under it, in the policy, its gradient and its entropy."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode
from torch import Tensor

from agents.experience import Experience
from agents.learner import PolicyGradient
from agents.policy import TransformerPolicy
from agents.rollout import Rollout, collect
from tests.agents import tiny
from tests.textgym import cases
from textgym.finish import FinishReason

EXACT = 1e-9
PROMPTS = ["a", "", "bc"]  # of the task no_repeat, on the symbols a, b, c, d and a stop token
STOP = 4


def make_envs(num_envs: int = 8, mode: AutoresetMode = AutoresetMode.NEXT_STEP, **keywords: Any) -> Any:
    return gym.make_vec("TextGen-v0", num_envs=num_envs, autoreset_mode=mode, task="no_repeat", **keywords)


def make_policy() -> TransformerPolicy:
    return tiny.make_policy(make_envs(), scale=2.0)


def make_learner(policy: TransformerPolicy, **settings: Any) -> PolicyGradient:
    own = dict(group_size=2, episodes_per_update=8, entropy_coef=0.0, max_grad_norm=1e9)
    return PolicyGradient(policy, make_envs(), "rloo", **(own | settings))


def played(policy: TransformerPolicy, episodes: int = 60, **keywords: Any) -> Rollout:
    actions = torch.Generator().manual_seed(3)
    return collect(policy, make_envs(**keywords), episodes, np.random.default_rng(0), action_generator=actions)


def legal(prompt: str, completion: list[int]) -> np.ndarray:
    return cases.no_repeat(prompt, completion, 4 - len(completion))


def ids(prompt: str) -> list[int]:
    return ["abcd".index(char) for char in prompt]


def legal_log_probs(policy: TransformerPolicy, prompt: str, completion: list[int]) -> dict[int, Tensor]:
    """Log π(a | s) of each legal token, by a plain forward pass and the softmax over the legal logits alone."""
    history = ids(prompt) + completion or [policy.bos_id]
    logits = policy.model(input_ids=torch.tensor([history])).logits[0, -1]
    allowed = np.flatnonzero(legal(prompt, completion)).tolist()
    total = sum(logits[token].exp() for token in allowed)
    return {token: (logits[token].exp() / total).log() for token in allowed}


# --- collecting


def test_masks_are_those_of_the_task_and_true_beyond_the_end():
    rollout = played(make_policy(), num_envs=7)
    assert rollout.action_mask.dtype == bool and rollout.action_mask.shape == (*rollout.mask.shape, 5)
    for row in range(60):
        prompt, _ = rollout.texts(row)
        for step in range(rollout.mask.shape[1]):
            expected = legal(prompt, rollout.actions[row, :step].tolist()) if rollout.mask[row, step] else [True] * 5
            assert rollout.action_mask[row, step].tolist() == list(expected), (row, step)


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED])
def test_no_illegal_action_is_played(mode):
    rollout = played(make_policy(), 400, num_envs=50, mode=mode, on_illegal_action="raise")
    rows, steps = np.nonzero(rollout.mask)
    assert rollout.action_mask[rows, steps, rollout.actions[rows, steps]].all()
    assert not rollout.action_mask[rows, steps].all()  # something was forbidden
    assert set(rollout.finish_reason) == {FinishReason.STOP, FinishReason.DEAD_END}


def test_select_cuts_the_masks_with_the_rest():
    rollout = played(make_policy())
    short = np.flatnonzero(rollout.mask.sum(axis=1) < rollout.mask.shape[1])[:3]
    part = rollout.select(short)
    assert part.action_mask.shape == (*part.mask.shape, 5) and part.mask.shape[1] < rollout.mask.shape[1]
    np.testing.assert_array_equal(part.action_mask, rollout.action_mask[short, : part.mask.shape[1]])


class Plain:
    """An actor that knows no masks."""

    def act(self, observations, generator=None):
        return np.zeros(len(observations), dtype=np.int64), np.zeros(len(observations), dtype=np.float32)


def test_only_constrained_tasks_ask_an_actor_for_masks():
    envs = gym.make_vec("TextGen-v0", num_envs=2, task="bandit")
    assert collect(Plain(), envs, 2, np.random.default_rng(0)).action_mask is None
    with pytest.raises(TypeError, match="action_mask"):
        collect(Plain(), make_envs(), 2, np.random.default_rng(0))


# --- scoring


def test_what_was_sampled_is_what_is_scored():
    policy = make_policy()
    rollout = played(policy, 200)
    scored = policy.log_probs(rollout).detach().numpy()
    ratio = np.exp(scored - rollout.log_probs)[rollout.mask]
    np.testing.assert_allclose(ratio, 1, atol=1e-6)  # the log-probs of the rollout are float32
    for row in range(0, 200, 10):
        prompt, completion = rollout.texts(row)[0], rollout.actions[row].tolist()
        for step in range(int(rollout.mask[row].sum())):
            expected = legal_log_probs(policy, prompt, completion[:step])[completion[step]].item()
            assert scored[row, step] == pytest.approx(expected, rel=1e-9)


def test_a_score_without_the_masks_would_be_noticed():
    """The check above is worth something: under the whole softmax the ratios are far from 1."""
    policy = make_policy()
    rollout = played(policy)
    scored = policy.log_probs(rollout._replace(action_mask=None)).detach().numpy()
    assert np.exp(scored - rollout.log_probs)[rollout.mask].min() < 0.7


def test_masks_of_another_shape_are_refused():
    policy, rollout = make_policy(), played(make_policy())
    with pytest.raises(ValueError, match=r"action_mask has the shape \(60, 1, 5\)"):
        policy.log_probs(rollout._replace(action_mask=rollout.action_mask[:, :1]))


# --- the gradient, against enumeration


def every_episode(prompt: str, completion: list[int]) -> list[list[int]]:
    """All complete episodes of a prompt that begin as the completion does."""
    allowed = np.flatnonzero(legal(prompt, completion)).tolist()
    ended = completion[-1:] == [STOP] or len(completion) == 4 or not allowed
    return [completion] if ended else [one for token in allowed for one in every_episode(prompt, [*completion, token])]


def score_of(completion: list[int]) -> float:
    """A third for each a and c."""
    return sum(token in (0, 2) for token in completion) / 3


def enumerated() -> list[tuple[str, list[int]]]:
    return [(prompt, completion) for prompt in PROMPTS for completion in every_episode(prompt, [])]


def rollout_of(episodes: list[tuple[str, list[int]]]) -> Rollout:
    """The episodes laid out by hand, with their masks."""
    plain = [
        tiny.Episode(PROMPTS.index(prompt), ids(prompt), ids_, [0.0] * (len(ids_) - 1) + [score_of(ids_)], 1)
        for prompt, ids_ in episodes
    ]
    rollout = tiny.rollout_of(plain)
    masks = np.ones((*rollout.mask.shape, 5), dtype=bool)
    for row, (prompt, completion) in enumerate(episodes):
        for step in range(len(completion)):
            masks[row, step] = legal(prompt, completion[:step])
    tokens = np.full(rollout.tokens.shape, 5)  # PAD is 5 here
    for row, (prompt, completion) in enumerate(episodes):
        tokens[row, : rollout.length[row]] = ids(prompt) + completion
    return rollout._replace(tokens=tokens, action_mask=masks)


def episode_log_prob(policy: TransformerPolicy, prompt: str, completion: list[int]) -> Tensor:
    steps = range(len(completion))
    return torch.stack([legal_log_probs(policy, prompt, completion[:step])[completion[step]] for step in steps]).sum()


def test_the_enumeration_is_complete():
    policy, episodes = make_policy(), enumerated()
    assert len(episodes) > 30
    probs = [episode_log_prob(policy, *episode).exp().item() / 3 for episode in episodes]
    assert sum(probs) == pytest.approx(1, abs=1e-12)
    assert max(probs) > 10 * min(probs)
    frequent = played(policy, 3000, num_envs=300)
    counted = {episode: 0 for episode in ((prompt, tuple(one)) for prompt, one in episodes)}
    for row in range(3000):
        completion = tuple(frequent.actions[row, : frequent.mask[row].sum()].tolist())
        counted[frequent.texts(row)[0], completion] += 1  # none lies outside
        assert frequent.returns[row] == pytest.approx(score_of(list(completion)))
    error = np.sqrt(np.array(probs) * (1 - np.array(probs)) / 3000)
    assert (np.abs(np.array(list(counted.values())) / 3000 - probs) < 5 * error + 1e-3).all()


def exact_gradient(policy: TransformerPolicy) -> Tensor:
    """∇J, J = Σ p(τ) R(τ), through the probabilities themselves."""
    value = sum(
        episode_log_prob(policy, prompt, completion).exp() / 3 * score_of(completion)
        for prompt, completion in enumerated()
    )
    assert isinstance(value, Tensor)
    return tiny.flat_gradient(value, policy)


@pytest.mark.parametrize("tokens_per_microbatch", [1, 12, 10_000])
def test_the_expected_gradient_of_the_learner_is_that_of_the_objective(tokens_per_microbatch):
    policy, episodes = make_policy(), enumerated()
    learner = make_learner(policy, tokens_per_microbatch=tokens_per_microbatch)
    rollout = rollout_of(episodes)
    probs = np.array([episode_log_prob(policy, *episode).exp().item() / 3 for episode in episodes])
    # Every episode once, weighted by its probability; the loss takes the mean, so the weights are multiplied by B.
    weights = np.where(rollout.mask, (probs * rollout.returns * len(episodes))[:, None], 0.0)
    learner.accumulate_gradient(Experience(rollout, weights))
    gradient = exact_gradient(policy)
    assert tiny.relative_error(-tiny.stored_gradient(policy), gradient) < EXACT
    learner.accumulate_gradient(Experience(rollout._replace(action_mask=None), weights))  # a planted fault
    assert tiny.relative_error(-tiny.stored_gradient(policy), gradient) > 0.05


@pytest.mark.parametrize("tokens_per_microbatch", [1, 10_000])
def test_entropy_and_its_gradient_are_finite_and_of_the_legal_tokens(tokens_per_microbatch):
    policy = make_policy()
    learner = make_learner(policy, entropy_coef=0.7, tokens_per_microbatch=tokens_per_microbatch)
    rollout = played(policy, 24)
    metrics = learner.accumulate_gradient(Experience(rollout, np.zeros(rollout.mask.shape)))
    places = zip(*np.nonzero(rollout.mask), strict=True)
    states = [(rollout.texts(row)[0], rollout.actions[row, :step].tolist()) for row, step in places]
    terms = [torch.stack(list(legal_log_probs(policy, *state).values())) for state in states]
    mean = -torch.stack([(own.exp() * own).sum() for own in terms]).mean()
    assert min(len(own) for own in terms) < 3 < max(len(own) for own in terms)
    assert metrics["entropy"] == pytest.approx(mean.item(), rel=1e-12)
    expected = tiny.flat_gradient(0.7 * mean, policy)
    assert tiny.relative_error(-tiny.stored_gradient(policy), expected) < EXACT


# --- learning


def test_training_on_a_masked_task_improves():
    envs = gym.make_vec("TextGen-v0", num_envs=128, task="brackets", on_illegal_action="raise")
    policy = TransformerPolicy.small(envs, d_model=32, num_layers=1)
    learner = PolicyGradient(policy, envs, episodes_per_update=128, learning_rate=5e-3)
    rewards: list[float] = []
    learner.learn(15_000, lambda update: rewards.append(update.metrics["reward"]))
    assert 0.1 < rewards[0] < 0.5  # a uniform policy gets 1/4
    assert np.mean(rewards[-3:]) > 0.8


def test_predict_takes_masks_beside_an_observation_or_within():
    learner = make_learner(make_policy())
    masks = np.array([[0, 1, 0, 0, 0], [0, 0, 0, 1, 0]], dtype=np.int8)
    histories = np.array([[0, 5, 5], [1, 2, 5]])
    for given in (masks, masks.astype(bool)):
        assert learner.predict(histories, action_masks=given)[0].tolist() == [1, 3]
        assert learner.predict(histories[1], True, action_masks=given[1])[0] == 3
    as_dict = {"tokens": histories, "length": np.array([[1], [2]]), "action_mask": masks}
    assert learner.predict(as_dict)[0].tolist() == [1, 3]
    one = {name: values[1] for name, values in as_dict.items()}
    action, state = learner.predict(one)
    assert (np.ndim(action), action, state) == (0, 3, None)
    assert learner.predict(as_dict, action_masks=masks[::-1])[0].tolist() == [3, 1]  # the keyword comes first


def test_episodes_can_be_played_by_predict_alone():
    env = gym.make("TextGen-v0", task="no_repeat", observation="dict")
    learner = make_learner(make_policy())
    for seed in range(20):
        observation, _ = env.reset(seed=seed)
        terminated = False
        while not terminated:
            action, _ = learner.predict(observation)
            observation, _, terminated, _, _ = env.step(action)  # raises where the action is illegal
