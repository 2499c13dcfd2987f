import torch
from sb3_contrib import TRPO
from stable_baselines3.common.evaluation import evaluate_policy

from agents.adapters.stable_baselines3 import TextGenPolicy, make_vec_env

TASK, LEVEL, STEPS = "palindrome", 1, 20_000
torch.set_num_threads(1)
envs = make_vec_env("TextGen-v0", n_envs=64, seed=0, env_kwargs={"task": TASK, "level": LEVEL})
agent = TRPO(
    TextGenPolicy,
    envs,
    n_steps=32,
    batch_size=1024,
    learning_rate=1e-3,
    gamma=1.0,
    target_kl=0.05,
    cg_max_steps=5,
    n_critic_updates=2,
    seed=0,
    device="cpu",
)
agent.learn(total_timesteps=STEPS)
print(evaluate_policy(agent, envs, n_eval_episodes=512, deterministic=False)[0])
