import gymnasium as gym
import torch
from ray import tune
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core.rl_module import RLModuleSpec
from ray.rllib.examples.rl_modules.classes.action_masking_rlm import ActionMaskingTorchRLModule

import textgym
from textgym.wrappers import rename_observation

TASK, LEVEL, STEPS = "brackets", 1, 32_768


def make(settings):  # in each env runner: the names and dtypes that RLlib's module for action masks insists on
    envs = gym.make_vec("textgym:TextGen-v0", task=TASK, level=LEVEL, observation="dict", **settings)
    return rename_observation(envs, "rllib")


tune.register_env("brackets", make)
config = (
    PPOConfig()
    .environment("brackets")
    .env_runners(num_env_runners=0, num_envs_per_env_runner=64, gym_env_vectorize_mode="vector_entry_point")
    .rl_module(rl_module_spec=RLModuleSpec(module_class=ActionMaskingTorchRLModule))
    .training(lr=1e-3, gamma=1.0, train_batch_size=2048, minibatch_size=256, num_epochs=8)
)
ppo = config.build_algo()
steps = 0
while steps < STEPS:
    result = ppo.train()
    steps = result["num_env_steps_sampled_lifetime"]
    print(steps, result["env_runners"]["episode_return_mean"], flush=True)
module = ppo.get_module()


def agent(observations):
    batch = {"obs": {key: torch.from_numpy(value) for key, value in observations.items()}}
    logits = module.forward_inference(batch)["action_dist_inputs"]
    return module.get_inference_action_dist_cls().from_logits(logits).sample().numpy()


envs = make({"num_envs": 500, "autoreset_mode": "Disabled"})
observations, _ = envs.reset(seed=0)
returns = 0.0
for _ in range(envs.unwrapped.problem.max_new_tokens):
    observations, rewards, *_ = envs.step(agent(observations))
    returns += rewards
print(f"mean return {returns.mean():.3f}")
