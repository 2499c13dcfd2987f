"""skrl over the native vector environment: the script learns, and what skrl stores is what the environment pays."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, VectorWrapper
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import textgym  # noqa: F401
from tests.plugins.replay import replayed
from tests.plugins.scripts import printed_return

pytestmark = pytest.mark.plugins


def test_the_script_reaches_90_percent_of_the_optimum(tmp_path):
    assert printed_return("skrl_ppo", tmp_path) >= 0.9  # of 1


class Seeded(VectorWrapper):
    """skrl seeds with a global setting of its own; this keeps a seed to one environment."""

    def __init__(self, env, seed):
        super().__init__(env)
        self.own_seed = seed

    def reset(self, *, seed=None, options=None):
        return self.env.reset(seed=self.own_seed, options=options)


def stored(task, num_envs, steps, seed, autoreset_mode):
    """What skrl's trainer has stored of a policy that knows nothing: arrays [T, N, ...] by name."""
    from skrl.agents.torch.ppo import PPO, PPO_CFG
    from skrl.envs.wrappers.torch import wrap_env
    from skrl.memories.torch import RandomMemory
    from skrl.models.torch import CategoricalMixin, DeterministicMixin, Model
    from skrl.trainers.torch import SequentialTrainer

    class Linear(Model):
        def __init__(self, env, outputs):
            Model.__init__(self, observation_space=env.observation_space, action_space=env.action_space, device="cpu")
            self.layer = torch.nn.Linear(self.num_observations, outputs)

        def compute(self, inputs, role):
            return self.layer(inputs["observations"]), {}

    class Policy(CategoricalMixin, Linear):
        def __init__(self, env):
            Linear.__init__(self, env, int(env.action_space.n))
            CategoricalMixin.__init__(self)

    class Value(DeterministicMixin, Linear):
        def __init__(self, env):
            Linear.__init__(self, env, 1)
            DeterministicMixin.__init__(self)

    envs = gym.make_vec("TextGen-v0", num_envs=num_envs, task=task, autoreset_mode=autoreset_mode)
    env = wrap_env(Seeded(envs, seed), verbose=False)
    memory = RandomMemory(memory_size=steps, num_envs=num_envs, device="cpu")
    cfg = PPO_CFG(rollouts=steps + 1)  # no update
    cfg.experiment.write_interval = cfg.experiment.checkpoint_interval = 0
    agent = PPO(
        models={"policy": Policy(env), "value": Value(env)},
        memory=memory,
        cfg=cfg,
        observation_space=env.observation_space,
        action_space=env.action_space,
        device="cpu",
    )
    trainer_cfg = {
        "timesteps": steps,
        "headless": True,
        "disable_progressbar": True,
        "close_environment_at_exit": False,
    }
    SequentialTrainer(cfg=trainer_cfg, env=env, agents=agent).train()
    names = ("observations", "actions", "rewards", "terminated", "truncated")
    return {name: memory.get_tensor_by_name(name).numpy() for name in names}


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    task=st.sampled_from(["sort", "copy", "palindrome", "length_trap"]),
    num_envs=st.integers(1, 5),
    steps=st.integers(1, 25),
    seed=st.integers(0, 1000),
)
def test_the_trainer_stores_every_reward_and_observation_in_same_step(task, num_envs, steps, seed):
    got = stored(task, num_envs, steps, seed, AutoresetMode.SAME_STEP)
    scores = 0.0
    for row in range(num_envs):
        env = gym.make("TextGen-v0", task=task)
        expected = replayed(env, got["actions"][:, row, 0], env.reset(seed=seed + row)[0])
        np.testing.assert_array_equal(got["observations"][:, row], expected["obs"])
        np.testing.assert_array_equal(got["rewards"][:, row, 0], expected["rewards"])
        np.testing.assert_array_equal(got["terminated"][:, row, 0], expected["terminated"])
        scores += expected["scores"].sum()
    assert not got["truncated"].any()
    assert got["rewards"].sum(dtype=np.float64) == scores  # of these tasks, sums of quarters


def test_in_next_step_every_reset_is_stored_as_a_step():
    """Why the script asks for SAME_STEP: no reward is lost, but one transition in five was taken by no policy."""
    got = stored("sort", 4, 50, 0, AutoresetMode.NEXT_STEP)
    ended = (got["observations"] != 8).all(axis=-1)  # no PAD left to write to
    assert ended.sum() == 4 * 10
    assert got["rewards"][ended].sum() == 0 and not got["terminated"][ended].any()
    assert not (stored("sort", 4, 50, 0, AutoresetMode.SAME_STEP)["observations"] != 8).all(axis=-1).any()


def test_in_disabled_nothing_is_played_after_the_first_episode():
    got = stored("sort", 4, 20, 0, AutoresetMode.DISABLED)
    assert got["terminated"][3:].all()
    assert (got["observations"][4:] == got["observations"][4]).all()


def shared_model(**model_settings):
    from skrl.envs.wrappers.torch import wrap_env

    from agents import TransformerPolicy
    from agents.adapters.skrl import SharedModel

    envs = gym.make_vec("TextGen-v0", num_envs=4, autoreset_mode=AutoresetMode.SAME_STEP)
    policy = TransformerPolicy.small(envs, **{"d_model": 16, "num_layers": 1, "value_head": True} | model_settings)
    if policy.value_head is not None:
        with torch.no_grad():
            policy.value_head.linear.weight.copy_(torch.linspace(-1, 1, 16))
    return SharedModel(policy, wrap_env(envs, verbose=False))


def histories(seed):
    """As skrl hands them over, floats; of several lengths."""
    observations = np.random.default_rng(seed).integers(8, size=(4, 8))
    observations[np.arange(8) >= np.array([[4], [5], [6], [7]])] = 8
    return torch.as_tensor(observations, dtype=torch.float32)


@pytest.mark.parametrize("gradient", [True, False])
def test_the_model_says_what_the_policy_says(gradient):
    model, observations = shared_model(), histories(0)
    expected, values = model.policy.distribution_and_values(observations.long().numpy())
    actions = torch.tensor([[0], [3], [5], [7]], dtype=torch.float32)
    inputs = {"observations": observations, "taken_actions": actions}
    with torch.set_grad_enabled(gradient):
        _, outputs = model.act(inputs, role="policy")
        said, _ = model.act(inputs, role="value")
    assert outputs["log_prob"].requires_grad == said.requires_grad == gradient
    torch.testing.assert_close(outputs["log_prob"][:, 0], expected.log_prob(actions[:, 0].long()))
    torch.testing.assert_close(said, values[:, None])
    torch.testing.assert_close(model.get_entropy()[:, 0], expected.entropy())


def test_a_value_is_of_its_own_observations_and_weights():
    model, first, second = shared_model(), histories(0), histories(1)
    model.act({"observations": first}, role="policy")
    said, _ = model.act({"observations": second}, role="value")
    torch.testing.assert_close(said[:, 0], model.policy.values(second.long().numpy()))
    with torch.no_grad():
        before, _ = model.act({"observations": first}, role="value")
        for parameter in model.policy.model.parameters():
            parameter.data.mul_(1.5)  # leaves no version behind
        after, _ = model.act({"observations": first}, role="value")
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after[:, 0], model.policy.values(first.long().numpy()))


def test_what_the_model_cannot_take_is_refused():
    from agents.adapters.skrl import SharedModel

    with pytest.raises(TypeError, match=r"give an agents\.TransformerPolicy"):
        SharedModel(torch.nn.Linear(2, 2), None)
    with pytest.raises(ValueError, match="value_head=True"):
        shared_model(value_head=False)
