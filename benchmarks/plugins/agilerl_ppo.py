import gymnasium as gym
import numpy as np
import torch
from agilerl.algorithms import PPO
from agilerl.modules.dummy import DummyEvolvable
from agilerl.rollouts import collect_rollouts

import textgym

TASK, LEVEL, STEPS = "sort", 1, 200_000


class Encoder(torch.nn.Module):  # tokens are names, not quantities: look them up
    num_outputs = 128

    def __init__(self, space):
        super().__init__()
        self.table = torch.nn.Embedding(int(space.high.max()) + 1, 32)
        self.dense = torch.nn.Linear(32 * space.shape[0], self.num_outputs)

    def forward(self, observations):
        return torch.relu(self.dense(self.table(observations.long()).flatten(start_dim=1)))


envs = gym.make_vec("TextGen-v0", num_envs=64, task=TASK, level=LEVEL, autoreset_mode="SameStep")
space = envs.single_observation_space
ppo = PPO(
    space,
    envs.single_action_space,
    num_envs=envs.num_envs,
    actor_network=DummyEvolvable("cpu", module_fn=Encoder, module_kwargs={"space": space}),
    critic_network=DummyEvolvable("cpu", module_fn=Encoder, module_kwargs={"space": space}),
    lr=1e-3,
    learn_step=2048,
    batch_size=256,
    gamma=1.0,
    rollout_buffer_config={"use_gae": False},  # its GAE reads each `done` one step late
)
ppo.set_training_mode(True)
last = {}
for _ in range(STEPS // ppo.learn_step):
    scores, *state = collect_rollouts(ppo, envs, **last)
    last = dict(zip(("last_obs", "last_done", "last_scores", "last_info"), state))
    ppo.learn()
    print(np.mean(scores))


def agent(observations):
    return ppo.get_action(observations)[0]
