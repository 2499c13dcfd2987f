import gymnasium as gym
import numpy as np
from agilerl.algorithms import PPO
from agilerl.rollouts import collect_rollouts

import textgym

TASK, LEVEL, STEPS = "brackets", 1, 40_960

envs = gym.make_vec("TextGen-v0", num_envs=64, task=TASK, level=LEVEL, observation="dict", autoreset_mode="SameStep")
settings = {"lr": 1e-3, "learn_step": 2048, "batch_size": 256, "gamma": 1.0}
settings["rollout_buffer_config"] = {"use_gae": False}  # its GAE credits the last token alone with the score
ppo = PPO(envs.single_observation_space, envs.single_action_space, num_envs=envs.num_envs, **settings)
last = {}
for _ in range(STEPS // ppo.learn_step):
    _, *state = collect_rollouts(ppo, envs, **last)  # within info["action_mask"]
    last = dict(zip(("last_obs", "last_done", "last_scores", "last_info"), state))  # and then goes on from there
    ppo.learn()


def agent(observations):
    return ppo.get_action(observations, action_mask=observations["action_mask"])[0]


scores = collect_rollouts(ppo, envs)[0]
print(f"mean return of {len(scores)} episodes: {np.mean(scores)}")
