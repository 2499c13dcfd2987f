import torch
from stable_baselines3 import DQN
from stable_baselines3.common.evaluation import evaluate_policy

from agents.adapters.stable_baselines3 import TransformerFeatures, make_vec_env

TASK, LEVEL, STEPS = "palindrome", 1, 20_000
torch.set_num_threads(1)
envs = make_vec_env("TextGen-v0", n_envs=64, seed=0, env_kwargs={"task": TASK, "level": LEVEL})
agent = DQN(
    "MlpPolicy",
    envs,
    learning_rate=1e-3,
    gamma=1.0,
    batch_size=256,
    train_freq=1,
    learning_starts=1_000,
    buffer_size=20_000,
    exploration_fraction=0.5,
    target_update_interval=200,
    policy_kwargs={"features_extractor_class": TransformerFeatures, "net_arch": []},
    seed=0,
    device="cpu",
)
agent.learn(total_timesteps=STEPS)
print(evaluate_policy(agent, envs, n_eval_episodes=64)[0])
