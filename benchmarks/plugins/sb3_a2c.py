import torch
from stable_baselines3 import A2C
from stable_baselines3.common.evaluation import evaluate_policy

from agents.adapters.stable_baselines3 import TextGenPolicy, make_vec_env

TASK, LEVEL, STEPS = "sort", 1, 100_000
torch.set_num_threads(1)
envs = make_vec_env("TextGen-v0", n_envs=64, seed=0, env_kwargs={"task": TASK, "level": LEVEL})
agent = A2C(
    TextGenPolicy,
    envs,
    n_steps=4,  # one episode of each row
    learning_rate=1e-3,
    gamma=1.0,
    ent_coef=0.01,
    use_rms_prop=False,
    seed=0,
    device="cpu",
)
agent.learn(total_timesteps=STEPS)
print(evaluate_policy(agent, envs, n_eval_episodes=512, deterministic=False)[0])
