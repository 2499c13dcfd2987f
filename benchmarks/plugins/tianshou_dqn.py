"""DQN of Tianshou on the task brackets, with action masks."""

import gymnasium as gym
import torch
from tianshou.algorithm import DQN
from tianshou.algorithm.modelfree.dqn import DiscreteQLearningPolicy
from tianshou.algorithm.optim import AdamOptimizerFactory
from tianshou.data import Batch, Collector, VectorReplayBuffer
from tianshou.env import DummyVectorEnv
from tianshou.trainer import OffPolicyTrainerParams

import textgym
from textgym.wrappers import rename_observation

TASK, LEVEL, STEPS = "brackets", 1, 20_000


def make_env():
    env = gym.make("TextGen-v0", task=TASK, level=LEVEL, observation="dict")
    return rename_observation(env, "tianshou")  # obs and mask


class Network(torch.nn.Sequential):
    def forward(self, obs, state=None, info=None):
        return super().forward(torch.as_tensor(obs)), state


env = make_env()
envs = DummyVectorEnv([make_env] * 16)
envs.seed(0)
length, size = env.observation_space["obs"].shape[0], int(env.action_space.n)
table = torch.nn.Embedding(size + 1, 16)  # tokens are names, not quantities; one more for PAD
hidden, out = torch.nn.Linear(16 * length, 64), torch.nn.Linear(64, size)
model = Network(table, torch.nn.Flatten(), hidden, torch.nn.ReLU(), out)
policy = DiscreteQLearningPolicy(model=model, action_space=env.action_space, eps_training=0.2)
dqn = DQN(policy=policy, optim=AdamOptimizerFactory(lr=1e-3), gamma=1.0, target_update_freq=200)
params = OffPolicyTrainerParams(
    training_collector=Collector(dqn, envs, VectorReplayBuffer(STEPS, 16), exploration_noise=True),
    max_epochs=1,
    epoch_num_steps=STEPS,
    collection_step_num_env_steps=64,
    update_step_num_gradient_steps_per_sample=0.2,
    show_progress=False,
)
dqn.run_training(params)


def agent(observations):
    obs = Batch(obs=observations["tokens"], mask=observations["action_mask"])  # as the environment names them
    return policy(Batch(obs=obs, info={})).act


print(Collector(policy, envs).collect(n_episode=256, reset_before_collect=True).returns.mean())
