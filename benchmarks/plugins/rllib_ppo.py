import gymnasium as gym
import torch
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core.rl_module import RLModuleSpec

import textgym
from agents.adapters.rllib import TransformerModule

TASK, LEVEL, STEPS = "sort", 1, 65_536

config = (
    PPOConfig()
    .environment("textgym:TextGen-v0", env_config={"task": TASK, "level": LEVEL})
    .env_runners(num_env_runners=0, num_envs_per_env_runner=256, gym_env_vectorize_mode="vector_entry_point")
    .rl_module(rl_module_spec=RLModuleSpec(module_class=TransformerModule, model_config={"policy": {"num_layers": 2}}))
    .training(lr=1e-3, gamma=1.0, train_batch_size=2048, minibatch_size=512, num_epochs=4, shuffle_batch_per_epoch=False)
)
ppo = config.build_algo()
steps = 0
while steps < STEPS:
    result = ppo.train()
    steps = result["num_env_steps_sampled_lifetime"]
    print(steps, result["env_runners"]["episode_return_mean"], flush=True)
module = ppo.get_module()


def agent(observations):
    outputs = module.forward_inference({"obs": torch.from_numpy(observations)})
    return module.get_inference_action_dist_cls().from_logits(outputs["action_dist_inputs"]).sample().numpy()


envs = gym.make_vec("TextGen-v0", num_envs=500, task=TASK, level=LEVEL, autoreset_mode="Disabled")
observations, _ = envs.reset(seed=0)
returns = 0.0
for _ in range(envs.unwrapped.problem.max_new_tokens):
    observations, rewards, *_ = envs.step(agent(observations))
    returns += rewards
print(f"mean return {returns.mean():.3f}")
