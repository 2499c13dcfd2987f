"""PPO of skrl on the task sort; policy and value are two roles of one TransformerPolicy."""

import gymnasium as gym
import torch
from skrl.agents.torch.ppo import PPO, PPO_CFG
from skrl.envs.wrappers.torch import wrap_env
from skrl.memories.torch import RandomMemory
from skrl.trainers.torch import SequentialTrainer
from skrl.utils import set_seed

import textgym
from agents import TransformerPolicy
from agents.adapters.skrl import SharedModel

TASK, LEVEL, STEPS = "sort", 1, 61_440

set_seed(0)
# SAME_STEP: skrl never resets a vector environment, and takes NEXT_STEP's resets for steps of an episode.
env = wrap_env(gym.make_vec("TextGen-v0", num_envs=128, task=TASK, level=LEVEL, autoreset_mode="SameStep"))
model = SharedModel(TransformerPolicy.small(env, value_head=True), env)
cfg = PPO_CFG(rollouts=8, learning_epochs=4, mini_batches=4, learning_rate=7e-4)
cfg.discount_factor, cfg.value_clip, cfg.value_loss_scale = 1.0, 0.0, 0.5
cfg.experiment.write_interval = cfg.experiment.checkpoint_interval = 0
ppo = PPO(
    models={"policy": model, "value": model},
    memory=RandomMemory(memory_size=cfg.rollouts, num_envs=env.num_envs, device=env.device),
    cfg=cfg,
    observation_space=env.observation_space,
    action_space=env.action_space,
    device=env.device,
)
trainer_cfg = {"timesteps": STEPS // env.num_envs, "headless": True, "disable_progressbar": None}
SequentialTrainer(cfg=trainer_cfg, env=env, agents=ppo).train()


@torch.no_grad()
def agent(observations):
    return model.act({"observations": torch.as_tensor(observations)}, role="policy")[0].flatten().numpy()


envs = gym.make_vec("TextGen-v0", num_envs=512, task=TASK, level=LEVEL)
observations, _ = envs.reset(seed=1)
for _ in range(4):  # every text of this task is 4 tokens long
    observations, rewards, *_ = envs.step(agent(observations))
print(rewards.mean())
