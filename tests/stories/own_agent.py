import gymnasium as gym
import numpy as np

envs = gym.make_vec("textgym:TextGen-v0", num_envs=64, task="bandit", level=2, autoreset_mode="SameStep")
generator = np.random.default_rng(0)
theta = np.zeros(envs.single_action_space.n)  # one weight a token: π_θ is their softmax
observations, infos = envs.reset(seed=0)
for update in range(201):
    probabilities = np.exp(theta) / np.exp(theta).sum()
    actions = generator.choice(len(theta), size=envs.num_envs, p=probabilities)
    observations, rewards, terminated, truncated, infos = envs.step(actions)
    scores = np.eye(len(theta))[actions] - probabilities  # ∇ log π_θ(a | s)
    theta += 2.0 * np.mean((rewards - rewards.mean())[:, None] * scores, axis=0)
    if update % 50 == 0:
        print(update, rewards.mean())
