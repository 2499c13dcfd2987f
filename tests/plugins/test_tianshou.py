"""Tianshou over TextGen-v0: the scripts learn, its collectors keep every reward, and the glue does what it says."""

import copy

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import textgym  # noqa: F401
from agents import TransformerPolicy
from tests.plugins.replay import replayed
from tests.plugins.scripts import printed_return

pytestmark = pytest.mark.plugins


@pytest.mark.parametrize("name", ["tianshou_ppo", "tianshou_ppo_masks", "tianshou_dqn"])
def test_the_script_reaches_90_percent_of_the_optimum(name, tmp_path):
    assert printed_return(name, tmp_path) >= 0.9  # of 1


def make_env(task="brackets", observation="dict", **settings):
    return gym.make("TextGen-v0", task=task, observation=observation, **settings)


def make_actor(env, **settings):
    from agents.adapters.tianshou import Actor

    return Actor(TransformerPolicy.small(env, d_model=16, num_layers=1, value_head=True, **settings))


def make_policy(actor, env):
    from tianshou.algorithm.modelfree.reinforce import DiscreteActorPolicy

    return DiscreteActorPolicy(actor=actor, action_space=env.action_space)


def make_collector(policy, task, num_envs, seed, size, level=1):
    from tianshou.data import Collector, VectorReplayBuffer
    from tianshou.env import DummyVectorEnv

    envs = DummyVectorEnv([lambda: make_env(task, level=level) for _ in range(num_envs)])
    envs.seed(seed)
    return Collector(policy, envs, VectorReplayBuffer(size, num_envs))


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    task=st.sampled_from(["sort", "brackets", "palindrome", "length_trap"]),
    num_envs=st.integers(1, 5),
    steps=st.integers(1, 25),
    seed=st.integers(0, 1000),
)
def test_the_collector_keeps_every_reward_and_every_last_observation(task, num_envs, steps, seed):
    env = make_env(task)
    collector = make_collector(make_policy(make_actor(env), env), task, num_envs, seed, 100 * num_envs)
    collector.reset()
    stats = collector.collect(n_step=steps * num_envs)
    scores = 0.0
    for row, buffer in enumerate(collector.buffer.buffers):
        got = buffer[:]
        env = make_env(task)
        env.reset(seed=seed + row)
        expected = replayed(env, got.act, env.reset()[0])
        for part in ("tokens", "length", "attention_mask", "action_mask"):
            np.testing.assert_array_equal(got.obs[part], [observation[part] for observation in expected["obs"]])
            np.testing.assert_array_equal(
                got.obs_next[part], [observation[part] for observation in expected["obs_next"]]
            )
        np.testing.assert_array_equal(got.rew, expected["rewards"])
        np.testing.assert_array_equal(got.terminated, expected["terminated"])
        scores += expected["scores"].sum()
    assert collector.buffer.rew.sum() == scores
    finished = [float(episode) for episode in stats.returns]
    assert sum(finished) == scores  # an unfinished episode has none yet


def test_masks_hold_in_every_state_that_is_collected():
    env = make_env(level=3)
    policy = make_policy(make_actor(env, temperature=4.0), env)
    collector = make_collector(policy, "brackets", 8, 0, 4000, level=3)
    collector.reset()
    with pytest.raises(ValueError, match="mask"):  # a library that knows no mask
        collector.collect(n_step=800, random=True)
    collector.reset()
    collector.collect(n_step=4000)
    taken = collector.buffer[:]
    assert len(taken) == 4000
    assert taken.obs.action_mask[np.arange(4000), taken.act].all()
    assert (taken.obs.action_mask == 0).any()


def test_dqn_explores_within_the_masks():
    from tianshou.algorithm.modelfree.dqn import DiscreteQLearningPolicy
    from tianshou.data import Collector, VectorReplayBuffer
    from tianshou.env import DummyVectorEnv

    from textgym.wrappers import rename_observation

    class Unmoved(torch.nn.Module):
        """Prefers what is mostly illegal."""

        def forward(self, obs, state=None, info=None):
            return torch.arange(3.0).expand(len(obs), 3), state

    env = make_env()
    policy = DiscreteQLearningPolicy(model=Unmoved(), action_space=env.action_space, eps_inference=0.5)
    envs = DummyVectorEnv([lambda: rename_observation(make_env(), "tianshou") for _ in range(4)])
    collector = Collector(policy, envs, VectorReplayBuffer(2000, 4), exploration_noise=True)
    collector.reset()
    collector.collect(n_step=2000)
    taken = collector.buffer[:]
    assert taken.obs.mask.dtype == bool and not taken.obs.mask.all()
    assert taken.obs.mask[np.arange(2000), taken.act].all()


def states(task="brackets", count=12):
    """A Batch of dict observations along episodes of random legal actions."""
    from tianshou.data import Batch

    env = make_env(task)
    generator = np.random.default_rng(0)
    observation, found = env.reset(seed=0)[0], []
    while len(found) < count:
        found.append(observation)
        action = generator.choice(np.flatnonzero(observation["action_mask"]))
        observation, _, terminated, _, _ = env.step(int(action))
        if terminated:
            observation = env.reset()[0]
    return Batch(found)


@pytest.mark.parametrize("training", [False, True])
def test_the_actor_says_what_the_policy_says(training):
    from tianshou.data import Batch

    actor, obs = make_actor(make_env()).train(training), states()
    expected = actor.policy.distribution({"tokens": obs.tokens, "action_mask": obs.action_mask})
    legal = obs.action_mask.astype(bool)
    memory = object()
    for given_obs in (obs, Batch(obs=obs.tokens, mask=legal)):
        log_probs, state = actor(given_obs, state=memory)
        assert state is memory and log_probs.isfinite().all() and log_probs.requires_grad == training
        torch.testing.assert_close(log_probs[legal], expected.log_probs[legal])
        dist = torch.distributions.Categorical(logits=log_probs)
        assert (dist.probs[~torch.as_tensor(legal)] == 0).all()
        torch.testing.assert_close(dist.entropy(), expected.entropy())
    unmasked = actor.policy.distribution(obs.tokens).log_probs
    for tokens in (obs.tokens, Batch(tokens=obs.tokens)):
        torch.testing.assert_close(actor(tokens)[0], unmasked)


def test_a_history_that_grew_costs_one_token_where_tianshou_collects():
    actor = make_actor(make_env("sort")).eval()
    tokens = np.full((3, 8), 8)
    tokens[:, :4] = np.random.default_rng(0).integers(8, size=(3, 4))
    actor(tokens)
    fed = actor._cache.tokens_fed
    tokens[:, 4] = 5
    actor(tokens)
    assert actor._cache.tokens_fed == fed + 3


def test_actor_and_critic_share_a_pass_and_its_gradient():
    from agents.adapters.tianshou import Critic

    actor, obs = make_actor(make_env()).double(), states()
    critic = Critic(actor)
    torch.nn.init.normal_(actor.policy.value_head.linear.weight, generator=torch.Generator().manual_seed(0))
    actor(obs)  # the first one looks at the model too
    passes = []
    actor.policy.model.transformer.h[0].register_forward_hook(lambda *_: passes.append(1))
    actor(obs)
    one_pass = len(passes)

    def gradients(second):
        actor.zero_grad()
        passes.clear()
        log_probs = actor(obs)[0][torch.as_tensor(obs.action_mask).bool()]
        ((log_probs**2).sum() + (second(obs) ** 2).sum()).backward()
        return len(passes), [parameter.grad.clone() for parameter in actor.parameters()]

    shared, together = gradients(critic)
    apart, alone = gradients(lambda obs: actor.policy.values({"tokens": obs.tokens}))
    assert shared == one_pass < apart
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one, other)


def test_a_collector_samples_from_the_weights_as_they_are():
    actor, obs = make_actor(make_env()).eval(), states()
    actor(obs)
    for parameter in actor.policy.model.parameters():
        parameter.data.mul_(1.5)  # leaves no version behind
    torch.testing.assert_close(actor(obs.tokens)[0], actor.policy.distribution(obs.tokens).log_probs)


def test_values_are_of_the_weights_as_they_are():
    from agents.adapters.tianshou import Critic

    actor, obs = make_actor(make_env()), states()
    critic = Critic(actor)
    with torch.no_grad():
        actor.policy.value_head.linear.weight.copy_(torch.linspace(-1, 1, 16))
        actor(obs)
        torch.testing.assert_close(critic(obs), actor.policy.values({"tokens": obs.tokens}))
    actor(obs)
    for parameter in actor.policy.model.parameters():
        parameter.data.mul_(1.5)  # leaves no version behind
    now = actor.policy.values({"tokens": obs.tokens})
    torch.testing.assert_close(critic(obs), now)
    other = states("brackets", count=5)
    actor(obs)
    assert critic(other).shape == (5,)
    actor(obs)
    critic(obs).sum().backward()
    critic(obs).sum().backward()  # the graph of the shared pass is gone


@pytest.mark.parametrize("name", ["PPO", "A2C", "Reinforce"])
def test_an_algorithm_of_tianshou_updates_within_the_masks(name):
    import tianshou.algorithm
    from tianshou.algorithm.optim import AdamOptimizerFactory
    from tianshou.trainer import OnPolicyTrainerParams

    from agents.adapters.tianshou import Critic

    env = make_env()  # a text in four is paid for
    actor = make_actor(env)
    critic = {} if name == "Reinforce" else {"critic": Critic(actor), "ent_coef": 0.1}
    algorithm = getattr(tianshou.algorithm, name)(
        policy=make_policy(actor, env), optim=AdamOptimizerFactory(lr=1e-2), **critic
    )
    collector = make_collector(algorithm, "brackets", 4, 0, 64)
    before = {name: weight.clone() for name, weight in actor.policy.state_dict().items()}
    algorithm.run_training(
        OnPolicyTrainerParams(
            training_collector=collector,
            max_epochs=1,
            epoch_num_steps=512,
            collection_step_num_env_steps=64,
            batch_size=32,
            show_progress=False,
            verbose=False,
        )
    )
    after = actor.policy.state_dict()
    assert all(weight.isfinite().all() for weight in after.values())
    assert any((after[name] != before[name]).any() for name in before if "value" not in name)
    copy.deepcopy(algorithm)  # no graph is left behind


def test_what_the_glue_cannot_take_is_refused():
    from tianshou.data import Batch

    from agents.adapters.tianshou import Actor, Critic

    env = make_env()
    with pytest.raises(TypeError, match="give a TransformerPolicy"):
        Actor(torch.nn.Linear(2, 2))
    with pytest.raises(TypeError, match="give an Actor"):
        Critic(TransformerPolicy.small(env, value_head=True))
    with pytest.raises(ValueError, match="value_head=True"):
        Critic(Actor(TransformerPolicy.small(env)))
    with pytest.raises(ValueError, match=r"\['history'\]; give one with 'tokens' or 'obs'"):
        make_actor(env)(Batch(history=np.zeros((1, 8), dtype=int)))
    with pytest.raises(ValueError, match="integers"):
        make_actor(env)(np.zeros((1, 8)))
