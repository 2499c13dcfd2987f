"""A TransformerPolicy inside stable-baselines3's and sb3-contrib's algorithms."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode
from sb3_contrib import TRPO, MaskablePPO, RecurrentPPO
from stable_baselines3 import A2C, DQN, PPO
from torch.distributions import kl_divergence
from transformers import AutoModelForCausalLM, AutoTokenizer

from agents import PolicyGradient, TransformerPolicy
from agents.adapters.stable_baselines3 import (
    MaskableTextGenPolicy,
    TextGenPolicy,
    TransformerFeatures,
    make_vec_env,
)


def small():
    """Anew each time: A2C adds to it."""
    return {"d_model": 32, "num_layers": 1}


def features(**more):
    return {
        "features_extractor_class": TransformerFeatures,
        "features_extractor_kwargs": small(),
        "net_arch": [],
        **more,
    }


def ppo(envs, **settings):
    own = {"n_steps": 8, "batch_size": 16, "n_epochs": 2, "seed": 0, "device": "cpu", "policy_kwargs": small()}
    return PPO(TextGenPolicy, envs, **own | settings)


def walk(envs, steps, seed=0):
    """Observations of rows that take random legal actions, one batch a step."""
    generator = np.random.default_rng(seed)
    observations = envs.reset()
    for _ in range(steps):
        yield observations
        actions = np.array([generator.choice(np.flatnonzero(mask)) for mask in envs.env_method("action_masks")])
        observations, *_ = envs.step(actions)


def tensors(observations):
    if isinstance(observations, dict):
        return {name: torch.as_tensor(value) for name, value in observations.items()}
    return torch.as_tensor(observations)


@pytest.mark.parametrize("task", ["sort", "brackets"])
def test_what_acts_is_what_is_scored(task):
    envs = make_vec_env(n_envs=6, seed=0, env_kwargs={"task": task})
    policy = ppo(envs).policy
    for observations in walk(envs, 20):
        with torch.no_grad():
            actions, values, log_probs = policy(tensors(observations))
        legal = np.stack(envs.env_method("action_masks"))
        assert legal[np.arange(6), actions.numpy()].all()
        again, scored, entropy = policy.evaluate_actions(tensors(observations), actions)
        assert torch.allclose(scored, log_probs, atol=1e-5) and torch.allclose(again, values, atol=1e-5)
        theirs = policy.get_distribution(tensors(observations))
        assert torch.allclose(theirs.log_prob(actions), scored, atol=1e-5)
        assert torch.allclose(theirs.entropy(), entropy, atol=1e-5)
        assert torch.equal(theirs.distribution.probs > 0, torch.as_tensor(legal))


def test_rollouts_go_through_the_cache_and_updates_forget_it():
    envs = make_vec_env(n_envs=8, seed=0)
    agent = ppo(envs)
    cache = agent.policy.cache
    agent.learn(8 * 8)
    # Two episodes a row: 4 tokens of each prompt, and 3 further tokens; one more for the value after the last step.
    assert cache.tokens_fed <= 8 * (2 * (4 + 3) + 4)
    assert not cache._lengths.any()


def test_an_update_runs_each_episode_once():
    envs = make_vec_env(n_envs=2, seed=0)
    policy = ppo(envs).policy
    observations = np.concatenate(list(walk(envs, 4)))  # one episode in each row
    policy.evaluate_actions(tensors(observations), torch.zeros(8, dtype=torch.int64))
    run = []
    policy.transformer.model.transformer.register_forward_pre_hook(
        lambda module, inputs: run.append(tuple(inputs[0].shape))
    )
    policy.evaluate_actions(tensors(observations), torch.zeros(8, dtype=torch.int64))
    assert run == [(2, 7)]


def test_it_learns():
    envs = make_vec_env(n_envs=32, seed=0, env_kwargs={"task": "bandit", "level": 2})
    agent = ppo(envs, n_steps=4, batch_size=128, n_epochs=4, learning_rate=0.01)
    agent.learn(4_000)
    observations = envs.reset()
    _, rewards, *_ = envs.step(agent.predict(observations, deterministic=True)[0])
    assert (rewards == 1).all()


def weights(agent):
    return [parameter.detach().clone() for parameter in agent.policy.parameters()]


ALGORITHMS = {
    "A2C": lambda envs: A2C(TextGenPolicy, envs, n_steps=4, seed=0, device="cpu", policy_kwargs=small()),
    "TRPO": lambda envs: TRPO(
        TextGenPolicy, envs, n_steps=8, batch_size=32, cg_max_steps=2, seed=0, device="cpu", policy_kwargs=small()
    ),
    "DQN": lambda envs: DQN(
        "MlpPolicy" if isinstance(envs.observation_space, gym.spaces.Box) else "MultiInputPolicy",
        envs,
        learning_starts=32,
        buffer_size=500,
        train_freq=2,
        seed=0,
        device="cpu",
        policy_kwargs=features(),
    ),
    "RecurrentPPO": lambda envs: RecurrentPPO(
        "MlpLstmPolicy",
        envs,
        n_steps=8,
        batch_size=32,
        n_epochs=1,
        seed=0,
        device="cpu",
        policy_kwargs=features(lstm_hidden_size=16),
    ),
    "MaskablePPO": lambda envs: MaskablePPO(
        MaskableTextGenPolicy, envs, n_steps=8, batch_size=32, n_epochs=1, seed=0, device="cpu", policy_kwargs=small()
    ),
}


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_trains(name):
    envs = make_vec_env(n_envs=8, seed=0)
    agent = ALGORITHMS[name](envs)
    before = weights(agent)
    agent.learn(128)
    after = weights(agent)
    assert all(parameter.isfinite().all() for parameter in after)
    names = [name for name, _ in agent.policy.named_parameters()]
    moved = [name for name, one, other in zip(names, before, after, strict=True) if not torch.equal(one, other)]
    assert any("c_attn" in name for name in moved)  # the transformer itself
    actions, _ = agent.predict(envs.reset(), deterministic=True)
    assert actions.shape == (8,)


@pytest.mark.parametrize("name", ["A2C", "TRPO", "MaskablePPO"])
def test_masks_are_never_violated(name):
    envs = make_vec_env(n_envs=8, seed=0, env_kwargs={"task": "brackets"})  # an illegal token raises
    agent = ALGORITHMS[name](envs)
    agent.learn(256)
    assert all(parameter.isfinite().all() for parameter in weights(agent))


def test_masks_that_sb3_contrib_asks_for_hold_without_those_of_observations():
    envs = make_vec_env(n_envs=8, seed=0, env_kwargs={"task": "brackets", "observation": "tokens"})
    agent = ALGORITHMS["MaskablePPO"](envs)
    agent.learn(256)  # an illegal token raises
    assert agent.num_timesteps >= 256 and all(parameter.isfinite().all() for parameter in weights(agent))


def test_features_begin_as_the_folder_says(tmp_path):
    TransformerPolicy.small(8, d_model=32, num_layers=1, seed=5).save_pretrained(tmp_path)
    kwargs = {"features_extractor_class": TransformerFeatures, "features_extractor_kwargs": {"model": tmp_path}}
    agent = PPO("MlpPolicy", make_vec_env(n_envs=2), n_steps=8, batch_size=16, device="cpu", policy_kwargs=kwargs)
    expected = TransformerPolicy.from_pretrained(tmp_path).model.state_dict()
    found = agent.policy.features_extractor.transformer.model.state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_only_the_critic_is_called_value():
    class Attention(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.query_key_value = torch.nn.Linear(2, 2)

    policy = ppo(make_vec_env(n_envs=2)).policy
    policy.transformer.model.other = Attention()
    names = [name for name, _ in policy.named_parameters() if "value" in name]
    assert names == ["transformer.value_head.linear.weight", "transformer.value_head.linear.bias"]
    assert len(list(policy.parameters())) == len({id(parameter) for parameter in policy.parameters()}) > 2


def test_a_target_network_is_not_asked_about_its_old_weights():
    agent = ALGORITHMS["DQN"](make_vec_env(n_envs=4, seed=0))
    observations = torch.as_tensor(agent.env.reset())
    with torch.no_grad():
        agent.q_net_target(observations)
        for parameter in agent.q_net_target.parameters():
            parameter.data.mul_(1.5)  # as polyak_update writes them
        found = agent.q_net_target(observations)
    assert torch.allclose(found, agent.q_net_target(observations), atol=1e-5)  # with a gradient, and no cache


def test_a_policy_without_masks_is_told_what_it_did():
    envs = make_vec_env(n_envs=8, seed=0, env_kwargs={"task": "brackets", "observation": "tokens"})
    with pytest.raises(ValueError, match="is illegal now"):
        ALGORITHMS["A2C"](envs).learn(256)


def test_trpo_can_differentiate_twice():
    envs = make_vec_env(n_envs=4, seed=0)
    policy = ppo(envs).policy
    observations = tensors(np.concatenate(list(walk(envs, 4))))
    with torch.no_grad():
        fixed = policy.get_distribution(observations).distribution
    found = kl_divergence(policy.get_distribution(observations).distribution, fixed).mean()
    parameter = policy.transformer.model.transformer.h[0].attn.c_attn.weight
    [gradient] = torch.autograd.grad(found, [parameter], create_graph=True)
    direction = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    [product] = torch.autograd.grad((gradient * direction).sum(), [parameter])
    # At π itself the gradient of the KL is 0 and its second derivative, Fisher's matrix, is not.
    assert gradient.abs().max() < 1e-5 < 1e-3 < product.abs().max()


def test_a_truncated_episode_is_bootstrapped_from_its_last_state():
    keywords = {"task": "copy", "on_limit": "truncate"}
    agent = ppo(make_vec_env(n_envs=4, seed=0, env_kwargs=keywords), gamma=0.5, n_steps=4)
    with torch.no_grad():
        agent.policy.transformer.value_head.linear.bias.fill_(2.0)  # V = 2 everywhere
    agent._setup_learn(16)
    agent.collect_rollouts(agent.env, _Silent(agent), agent.rollout_buffer, 4)
    # The last of 4 steps pays its score, one of 0 to 1, and half of the value.
    assert ((agent.rollout_buffer.rewards[3] >= 1) & (agent.rollout_buffer.rewards[3] <= 2)).all()
    assert (agent.rollout_buffer.rewards[:3] == 0).all()


def _Silent(agent):  # noqa: N802  (a callback that does nothing)
    from stable_baselines3.common.callbacks import CallbackList

    callback = CallbackList([])
    callback.init_callback(agent)
    callback.on_training_start({}, {})
    return callback


def test_the_seed_of_the_algorithm_is_that_of_the_weights_and_draws():
    def trained(seed):
        agent = ppo(make_vec_env(n_envs=4, seed=0), seed=seed)
        agent.learn(32)
        return weights(agent)

    first, again, other = trained(1), trained(1), trained(2)
    assert all(map(torch.equal, first, again)) and not all(map(torch.equal, first, other))


def test_it_is_saved_and_loaded_by_stable_baselines3(tmp_path):
    envs = make_vec_env(n_envs=4, seed=0)
    agent = ppo(envs)
    agent.learn(32)
    agent.save(tmp_path / "agent.zip")
    loaded = PPO.load(tmp_path / "agent.zip", envs, device="cpu")
    assert all(map(torch.equal, weights(agent), weights(loaded)))
    agent.policy.save(tmp_path / "policy.pth")
    alone = TextGenPolicy.load(tmp_path / "policy.pth", device="cpu")
    observations = envs.reset()
    for other in (loaded.policy, alone):
        assert (
            other.predict(observations, deterministic=True)[0] == agent.predict(observations, deterministic=True)[0]
        ).all()


def test_there_and_back_as_a_hugging_face_folder(tmp_path):
    native = gym.make_vec("TextGen-v0", num_envs=16, autoreset_mode=AutoresetMode.SAME_STEP)
    envs = make_vec_env(n_envs=16, seed=0)
    agent = ppo(envs)
    agent.learn(128)
    agent.policy.save_pretrained(tmp_path / "theirs", envs.get_attr("vocabulary")[0])
    assert AutoTokenizer.from_pretrained(tmp_path / "theirs")("0123", return_token_type_ids=False).input_ids == [
        0,
        1,
        2,
        3,
    ]
    AutoModelForCausalLM.from_pretrained(tmp_path / "theirs")
    ours = TransformerPolicy.from_pretrained(tmp_path / "theirs")
    histories, _ = native.reset(seed=0)
    assert torch.equal(
        ours.distribution(histories).log_probs, agent.policy.transformer.distribution(histories).log_probs
    )
    learner = PolicyGradient(ours, native, "ppo", group_size=1, episodes_per_update=16).learn(64)
    learner.policy.save_pretrained(tmp_path / "ours")
    again = ppo(envs, policy_kwargs={"model": tmp_path / "ours"})
    assert torch.equal(
        again.policy.transformer.distribution(histories).log_probs, ours.distribution(histories).log_probs
    )
    assert torch.equal(again.policy.transformer.values(histories), ours.values(histories))


@pytest.mark.parametrize(
    ("env_id", "message"), [("CartPole-v1", "token histories of TextGen-v0"), ("FrozenLake-v1", "token histories")]
)
def test_other_environments_are_refused(env_id, message):
    with pytest.raises(ValueError, match=message):
        PPO(TextGenPolicy, env_id, device="cpu")


def test_settings_that_do_not_fit_are_refused(tmp_path):
    envs = make_vec_env()
    with pytest.raises(ValueError, match="continuous"):
        ppo(envs, use_sde=True)
    TransformerPolicy.small(5, d_model=32, num_layers=1).save_pretrained(tmp_path / "five")
    with pytest.raises(ValueError, match="5 tokens and the environment 8"):
        ppo(envs, policy_kwargs={"model": tmp_path / "five"})
    TransformerPolicy.small(8, d_model=32, num_layers=1, top_k=2).save_pretrained(tmp_path / "cut")
    with pytest.raises(ValueError, match="cuts tokens off"):
        ppo(envs, policy_kwargs={"model": tmp_path / "cut"})
    with pytest.raises(ValueError, match="temperature"):
        ppo(envs, policy_kwargs={"temperature": 0.0})
    with pytest.raises(ValueError, match="num_layers=0"):
        ppo(envs, policy_kwargs={"num_layers": 0})
    with pytest.raises(ValueError, match="copy=False"):
        make_vec_env(env_kwargs={"copy": False})
