import gymnasium as gym
import numpy as np
import torch
from agilerl.algorithms import PPO
from agilerl.modules.dummy import DummyEvolvable
from agilerl.rollouts import collect_rollouts

import textgym

TASK, LEVEL, STEPS = "sort", 1, 102_400


class Encoder(torch.nn.Module):  # tokens are names, not quantities: look them up
    num_outputs = 128

    def __init__(self, space):
        super().__init__()
        table, dense = torch.nn.Embedding(space.high.max() + 1, 32), torch.nn.Linear(32 * len(space.high), 128)
        self.layers = torch.nn.Sequential(table, torch.nn.Flatten(), dense, torch.nn.ReLU())

    def forward(self, observations):
        return self.layers(observations.long())


envs = gym.make_vec("TextGen-v0", num_envs=64, task=TASK, level=LEVEL, autoreset_mode="SameStep")
space, actions = envs.single_observation_space, envs.single_action_space
nets = [DummyEvolvable("cpu", module_fn=Encoder, module_kwargs={"space": space}) for _ in range(2)]
settings = {"num_envs": envs.num_envs, "lr": 1e-3, "learn_step": 2048, "batch_size": 256, "gamma": 1.0}
settings["rollout_buffer_config"] = {"use_gae": False}  # its GAE credits the last token alone with the score
ppo = PPO(space, actions, actor_network=nets[0], critic_network=nets[1], **settings)
for _ in range(STEPS // ppo.learn_step):
    collect_rollouts(ppo, envs)  # 8 whole episodes in each environment
    ppo.learn()


def agent(observations):
    return ppo.get_action(observations)[0]


print("mean return of 512 episodes:", np.mean(collect_rollouts(ppo, envs)[0]))
