import torch
from stable_baselines3 import PPO
from stable_baselines3.common.evaluation import evaluate_policy

from agents.adapters.stable_baselines3 import TextGenPolicy, make_vec_env

TASK, LEVEL, STEPS = "sort", 1, 60_000
torch.set_num_threads(1)
envs = make_vec_env("TextGen-v0", n_envs=64, seed=0, env_kwargs={"task": TASK, "level": LEVEL})
agent = PPO(
    TextGenPolicy,  # a transformer with the prefix cache, or policy_kwargs={"model": "FOLDER"}
    envs,
    n_steps=16,  # four episodes of each row
    batch_size=512,
    n_epochs=4,
    learning_rate=1e-3,
    gamma=1.0,  # the reward comes at the end, and is worth as much
    ent_coef=0.01,
    seed=0,
    device="cpu",
)
agent.learn(total_timesteps=STEPS)
print(evaluate_policy(agent, envs, n_eval_episodes=512, deterministic=False)[0])
