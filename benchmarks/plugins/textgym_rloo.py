import gymnasium as gym
import torch

import textgym
from agents import PolicyGradient, TransformerPolicy

TASK, LEVEL, STEPS = "sort", 1, 200_000
torch.set_num_threads(1)
envs = gym.make_vec("TextGen-v0", num_envs=256, task=TASK, level=LEVEL)
agent = PolicyGradient(TransformerPolicy.small(envs), envs, algorithm="rloo", decay_timesteps=(140_000, STEPS))
agent.learn(total_timesteps=STEPS, callback=lambda update: print(update.step, update.metrics["reward"]))
