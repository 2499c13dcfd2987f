import gymnasium as gym
import ray
import torch
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core.rl_module import RLModuleSpec
from ray.rllib.examples.rl_modules.classes.action_masking_rlm import ActionMaskingTorchRLModule
from ray.tune import register_env

from textgym.wrappers import rename_observation

TASK, LEVEL, STEPS = "brackets", 1, 24_576


def make(settings):  # with the names and dtypes that RLlib's module for action masks insists on
    envs = gym.make_vec("textgym:TextGen-v0", task=TASK, level=LEVEL, observation="dict", **settings)
    return rename_observation(envs, "rllib")


register_env("brackets", make)
config = (
    PPOConfig()
    .environment("brackets")
    .env_runners(num_env_runners=0, num_envs_per_env_runner=64, gym_env_vectorize_mode="vector_entry_point")
    .rl_module(rl_module_spec=RLModuleSpec(module_class=ActionMaskingTorchRLModule))
    .training(lr=1e-3, gamma=1.0, train_batch_size=2048, minibatch_size=256, num_epochs=8)
    .evaluation(evaluation_duration=500)
    .reporting(metrics_num_episodes_for_smoothing=500)
)
ray.init(include_dashboard=False, object_store_memory=100_000_000)
ppo = config.build_algo()
while ppo.train()["num_env_steps_sampled_lifetime"] < STEPS:
    pass
print("mean return of 500 episodes:", ppo.evaluate()["env_runners"]["episode_return_mean"])
module = ppo.get_module()
ray.shutdown()


def agent(observations):
    names = {"observations": "tokens", "action_mask": "action_mask"}
    obs = {name: torch.from_numpy(observations[key]).float() for name, key in names.items()}
    outputs = module.forward_inference({"obs": obs})
    return torch.distributions.Categorical(logits=outputs["action_dist_inputs"]).sample().numpy()
