"""RLlib: its two scripts learn, nothing is lost on its way from the environment to the learner, masks are obeyed.

Most of it needs no running Ray: env runners and learners are plain objects then. `cluster` starts a real one.
"""

import gymnasium as gym
import numpy as np
import pytest
import torch

from agents.policy import TransformerPolicy
from tests.plugins.playing import play
from textgym.wrappers import rename_observation

pytestmark = pytest.mark.plugins

TINY = {"d_model": 32, "num_layers": 1}


def test_ppo_learns_to_sort():
    task, printed, played = play("rllib_ppo")
    assert task == "sort"
    assert printed > 0.9 and played > 0.9  # a uniform policy gets .125


def test_ppo_with_action_masks_learns_to_nest():
    task, printed, played = play("rllib_masks", observation="dict")
    assert task == "brackets"
    assert printed > 0.9 and played > 0.9


def config_of(observation="tokens", task="sort", num_envs=3, policy=TINY, **training):
    """PPO with a TransformerModule over the native vector environment."""
    from ray.rllib.algorithms.ppo import PPOConfig
    from ray.rllib.core.rl_module import RLModuleSpec

    from agents.adapters.rllib import TransformerModule

    return (
        PPOConfig()
        .environment("textgym:TextGen-v0", env_config={"task": task, "observation": observation})
        .env_runners(num_env_runners=0, num_envs_per_env_runner=num_envs, gym_env_vectorize_mode="vector_entry_point")
        .rl_module(rl_module_spec=RLModuleSpec(module_class=TransformerModule, model_config={"policy": policy}))
        .training(**{"gamma": 1.0, "train_batch_size": 60, "minibatch_size": 60, "num_epochs": 1, **training})
    )


def masked_config(num_env_runners=0):
    """PPO with RLlib's own module for action masks."""
    from ray.rllib.algorithms.ppo import PPOConfig
    from ray.rllib.core.rl_module import RLModuleSpec
    from ray.rllib.examples.rl_modules.classes.action_masking_rlm import ActionMaskingTorchRLModule
    from ray.tune import register_env

    def make(settings):
        envs = gym.make_vec("textgym:TextGen-v0", task="brackets", observation="dict", **settings)
        return rename_observation(envs, "rllib")

    register_env("brackets", make)
    return (
        PPOConfig()
        .environment("brackets")
        .env_runners(
            num_env_runners=num_env_runners,
            num_envs_per_env_runner=8,
            gym_env_vectorize_mode="vector_entry_point",
        )
        .rl_module(rl_module_spec=RLModuleSpec(module_class=ActionMaskingTorchRLModule))
        .training(gamma=1.0, train_batch_size=128, minibatch_size=64, num_epochs=1)
    )


def runner_of(config):
    from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner

    return SingleAgentEnvRunner(config=config)


def module_of(policy=TINY, size=5, length=6, observation="tokens"):
    from agents.adapters.rllib import TransformerModule

    space = gym.spaces.Box(0, size, (length,), np.int64)
    if observation == "dict":
        space = gym.spaces.Dict(tokens=space, action_mask=gym.spaces.Box(0, 1, (size,), np.int8))
    return TransformerModule(
        observation_space=space, action_space=gym.spaces.Discrete(size), model_config={"policy": policy}
    )


def padded(histories, size=5, length=6):
    return torch.tensor([[*history, *[size] * (length - len(history))] for history in histories])


# From the environment to the learner


@pytest.mark.parametrize("random_actions", [True, False])
def test_episodes_are_what_the_environment_says_to_the_same_actions(random_actions):
    runner = runner_of(config_of())
    episodes = [e for e in runner.sample(num_timesteps=600, random_actions=random_actions) if e.is_done]
    assert len(episodes) >= 140
    env = gym.make("textgym:TextGen-v0", task="sort")
    for episode in episodes:
        observations, actions, rewards = episode.get_observations(), episode.get_actions(), episode.get_rewards()
        prompt = observations[0][observations[0] < env.action_space.n]
        steps = [env.reset(options={"prompt_ids": prompt.tolist()})[0]]
        for action, reward in zip(actions, rewards, strict=True):
            observation, expected, terminated, truncated, _ = env.step(int(action))
            steps.append(observation)
            assert reward == expected
        assert (terminated, truncated) == (episode.is_terminated, episode.is_truncated) == (True, False)
        assert observations.dtype == np.int64 and np.array_equal(observations, steps)
    assert sum(episode.get_return() for episode in episodes) > 0  # so that zeros would not do


def test_every_token_is_credited_with_the_score_at_the_end():
    config = config_of()
    runner = runner_of(config)
    episodes = runner.sample(num_timesteps=300, random_actions=False)
    expected = []
    for episode in episodes:
        paid = episode.get_return() if episode.is_done else 0.0  # V = 0 where it was cut
        expected += [[*[paid] * len(episode), None]]  # the last is the state after the last action
    learner = config.build_learner(env=runner.env)
    pipeline = learner._learner_connector
    batch = pipeline(rl_module=learner.module, batch={}, episodes=episodes, shared_data={}, metrics=learner.metrics)
    [batch] = batch.values()
    expected = [value for episode in expected for value in episode]
    valid = batch["loss_mask"].tolist()
    assert valid == [value is not None for value in expected]
    targets = batch["value_targets"][batch["loss_mask"]].tolist()
    assert targets == pytest.approx([value for value in expected if value is not None])
    assert sum(targets) > 0
    assert batch["obs"].dtype == torch.int64


def test_a_learner_moves_both_heads_towards_what_is_paid():
    config = config_of(lr=1e-2)
    runner = runner_of(config)
    episodes = runner.sample(num_timesteps=300)
    learner = config.build_learner(env=runner.env)
    module = learner.module["default_policy"]
    before = {name: value.clone() for name, value in module.named_parameters()}
    learner.update(episodes=episodes, num_epochs=1, minibatch_size=300)
    changed = {name for name, value in module.named_parameters() if not torch.equal(value, before[name])}
    assert changed == set(before)
    assert all(value.isfinite().all() for value in module.parameters())
    assert module.policy.value_head.linear.bias.item() > 0  # all that is paid is


# Action masks


def legal(episode, tokens, action_mask):
    masks = episode.get_observations()[action_mask][:-1]
    return masks[np.arange(len(episode)), episode.get_actions()]


def test_rllibs_module_for_masks_obeys_them():
    episodes = runner_of(masked_config()).sample(num_timesteps=4_000)
    assert sum(len(episode) for episode in episodes) >= 4_000
    forbidden = 0
    for episode in episodes:
        assert legal(episode, "observations", "action_mask").all()
        forbidden += int((episode.get_observations()["action_mask"] == 0).sum())
    assert forbidden > 1_000
    returns = [episode.get_return() for episode in episodes if episode.is_done]
    assert 0 < np.mean(returns) < 1


def test_the_adapter_obeys_masks_in_collecting_and_in_learning():
    config = config_of("dict", "brackets", num_envs=8)
    runner = runner_of(config)
    episodes = runner.sample(num_timesteps=2_000)
    for episode in episodes:
        assert legal(episode, "tokens", "action_mask").all()
        assert np.isfinite(episode.get_extra_model_outputs("action_logp")).all()
    learner = config.build_learner(env=runner.env)
    learner.update(episodes=episodes, num_epochs=2, minibatch_size=256)
    assert all(value.isfinite().all() for value in learner.module["default_policy"].parameters())


@pytest.mark.parametrize("make", [masked_config, lambda: config_of("dict", "brackets")])
def test_an_action_outside_the_mask_is_an_error(make):
    with pytest.raises(RuntimeError) as caught:
        runner_of(make()).sample(num_timesteps=500, random_actions=True)
    assert "mask" in str(caught.value.__cause__)


# The module


def test_collecting_and_learning_see_the_policy_itself():
    module = module_of(observation="dict")
    torch.nn.init.ones_(module.policy.value_head.linear.weight)
    mask = torch.tensor([[1, 1, 0, 0, 1], [0, 0, 0, 1, 0], [1, 1, 1, 1, 1]], dtype=torch.int8)
    tokens = padded([[0, 1, 2], [0, 1], [4]])
    batch = {"obs": {"tokens": tokens, "length": None, "action_mask": mask}}
    alone = [module.policy.distribution(tokens[row : row + 1].numpy(), mask[row : row + 1].numpy()) for row in range(3)]
    expected = torch.cat([distribution.log_probs for distribution in alone])
    explored, inferred, trained = (
        getattr(module, f"forward_{kind}")(batch) for kind in ("exploration", "inference", "train")
    )
    for outputs in (explored, inferred, trained):
        log_probs = outputs["action_dist_inputs"]
        assert torch.allclose(log_probs, expected, atol=1e-5)
        assert torch.equal(log_probs.isinf(), mask == 0)
    assert not explored["action_dist_inputs"].requires_grad and trained["action_dist_inputs"].requires_grad
    values = module.compute_values(batch, embeddings=trained["embeddings"])
    assert values.requires_grad and not module.compute_values(batch).requires_grad
    assert torch.allclose(values, module.compute_values(batch), atol=1e-6)
    assert torch.allclose(values, module.policy.values(tokens.numpy()), atol=1e-5)


def test_a_grown_history_costs_one_token():
    module = module_of()
    for length, fed in ((3, 6), (4, 8), (5, 10)):
        module.forward_exploration({"obs": padded([[0, 1, 2, 3, 4][:length], [4, 3, 2, 1, 0][:length]])})
        assert module._cache.tokens_fed == fed


def test_states_of_one_episode_are_read_in_one_pass():
    module = module_of()
    module.forward_train({"obs": padded([[0]])})  # what is asked of the model once
    fed = []
    module.policy.model.transformer.register_forward_pre_hook(lambda _, inputs: fed.append(tuple(inputs[0].shape)))
    module.forward_train({"obs": padded([[0, 1, 2, 3, 4][:length] for length in (2, 3, 4, 5)])})
    assert fed == [(1, 5)]


def test_new_weights_are_seen():
    ours, theirs = module_of(), module_of({**TINY, "seed": 1})
    batch = {"obs": padded([[0, 1, 2], [3]])}
    before = ours.forward_exploration(batch)["action_dist_inputs"]
    ours.set_state(theirs.get_state())
    after = ours.forward_exploration(batch)["action_dist_inputs"]
    assert torch.allclose(after, theirs.forward_exploration(batch)["action_dist_inputs"], atol=1e-6)
    assert not torch.allclose(before, after, atol=1e-3)


def test_a_saved_policy_is_trained_on(tmp_path):
    policy = TransformerPolicy.small(5, **TINY, seed=4)
    policy.save_pretrained(tmp_path)
    module = module_of({"folder": str(tmp_path)})
    observations = padded([[0, 1, 2], [3]])
    found = module.forward_inference({"obs": observations})["action_dist_inputs"]
    assert torch.allclose(found, policy.distribution(observations.numpy()).log_probs, atol=1e-5)
    assert module.compute_values({"obs": observations}).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ({"depth": 2}, "makes no policy.*depth"),
        ("gpt2", "is a str; give a dict"),
        ({"top_k": 2}, "RLlib does not store which"),
    ],
)
def test_bad_settings_are_refused(policy, message):
    with pytest.raises(ValueError, match=message):
        module_of(policy)


def test_a_model_that_does_not_fit_is_refused(tmp_path):
    TransformerPolicy.small(7, **TINY).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has 7 tokens, the environment 5"):
        module_of({"folder": str(tmp_path)})
    with pytest.raises(ValueError, match="up to 2000 tokens, the model reads 1024"):
        module_of(length=2000)


@pytest.mark.parametrize(
    "space",
    [
        gym.spaces.Box(0, 5, (6,), np.float32),
        gym.spaces.Box(0, 5, (2, 6), np.int64),
        gym.spaces.Dict(observations=gym.spaces.Box(0, 5, (6,), np.float32)),
    ],
)
def test_other_observations_are_refused(space):
    from agents.adapters.rllib import TransformerModule

    with pytest.raises(ValueError, match="takes the observations of TextGen-v0"):
        TransformerModule(observation_space=space, action_space=gym.spaces.Discrete(5), model_config={})


# Env runners in processes of their own


@pytest.fixture(scope="module")
def cluster():
    """A Ray of two processors."""
    import ray

    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=80_000_000, log_to_driver=False)
    yield ray
    ray.shutdown()


@pytest.mark.parametrize("masks", [False, True])
def test_remote_env_runners_collect_and_get_the_new_weights(cluster, masks):
    config = masked_config(1) if masks else config_of(num_envs=8, train_batch_size=128).env_runners(num_env_runners=1)
    algorithm = config.build_algo()
    try:
        for _ in range(3):
            result = algorithm.train()
        assert result["num_env_steps_sampled_lifetime"] >= 3 * 128
        assert 0 < result["env_runners"]["episode_return_mean"] <= 1
        assert result["fault_tolerance"]["num_remote_worker_restarts"] == 0
        assert algorithm.env_runner_group.num_healthy_remote_workers() == 1
        [episodes] = algorithm.env_runner_group.foreach_env_runner(
            lambda runner: runner.sample(num_timesteps=300), local_env_runner=False
        )
        [remote] = algorithm.env_runner_group.foreach_env_runner(
            lambda runner: runner.module.get_state(), local_env_runner=False
        )
        trained = algorithm.learner_group._learner.module["default_policy"].get_state()
    finally:
        algorithm.stop()
    for name, value in remote.items():
        np.testing.assert_array_equal(value, trained[name])
    assert sum(len(episode) for episode in episodes) >= 300
    if masks:
        assert all(legal(episode, "observations", "action_mask").all() for episode in episodes)
