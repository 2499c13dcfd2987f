"""PPO of Tianshou on the task sort; actor and critic are one TransformerPolicy."""

import gymnasium as gym
from tianshou.algorithm import PPO
from tianshou.algorithm.modelfree.reinforce import DiscreteActorPolicy
from tianshou.algorithm.optim import AdamOptimizerFactory
from tianshou.data import Batch, Collector, VectorReplayBuffer
from tianshou.env import DummyVectorEnv
from tianshou.trainer import OnPolicyTrainerParams

import textgym
from agents import TransformerPolicy
from agents.adapters.tianshou import Actor, Critic

TASK, LEVEL, STEPS = "sort", 1, 51_200


def make_env():
    return gym.make("TextGen-v0", task=TASK, level=LEVEL)


envs = DummyVectorEnv([make_env] * 64)
envs.seed(0)
actor = Actor(TransformerPolicy.small(make_env(), value_head=True))
policy = DiscreteActorPolicy(actor=actor, action_space=make_env().action_space, deterministic_eval=True)
optim = AdamOptimizerFactory(lr=7e-4)
ppo = PPO(policy=policy, critic=Critic(actor), optim=optim, gamma=1.0, ent_coef=0.0, max_grad_norm=0.5)
params = OnPolicyTrainerParams(
    training_collector=Collector(ppo, envs, VectorReplayBuffer(1024, 64)),
    max_epochs=1,
    epoch_num_steps=STEPS,
    collection_step_num_env_steps=1024,
    update_step_num_repetitions=4,
    batch_size=256,
    show_progress=False,
)
ppo.run_training(params)
policy.eval()


def agent(observations):
    return policy(Batch(obs=observations, info={})).act.numpy()


print(Collector(policy, envs).collect(n_episode=512, reset_before_collect=True).returns.mean())
