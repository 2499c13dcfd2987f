import torch
from sb3_contrib import MaskablePPO
from sb3_contrib.common.maskable.evaluation import evaluate_policy

from agents.adapters.stable_baselines3 import MaskableTextGenPolicy, make_vec_env

TASK, LEVEL, STEPS = "brackets", 1, 20_000
torch.set_num_threads(1)
envs = make_vec_env("TextGen-v0", n_envs=64, seed=0, env_kwargs={"task": TASK, "level": LEVEL})
agent = MaskablePPO(
    MaskableTextGenPolicy,
    envs,
    n_steps=32,
    batch_size=512,
    n_epochs=4,
    learning_rate=1e-3,
    gamma=1.0,
    ent_coef=0.01,
    seed=0,
    device="cpu",
)
agent.learn(total_timesteps=STEPS)
print(evaluate_policy(agent, envs, n_eval_episodes=512, deterministic=False)[0])
