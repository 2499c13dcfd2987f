import gymnasium as gym

import textgym
from agents import PolicyGradient, TransformerPolicy

envs = gym.make_vec("TextGen-v0", num_envs=256)  # the task "sort"
policy = TransformerPolicy.small(envs)  # π_θ(a_t | s_t), a small transformer
learner = PolicyGradient(policy, envs, algorithm="rloo")  # ∇J = E Σ_t ∇ log π_θ(a_t | s_t) A(s_t, a_t)
learner.learn(total_timesteps=200_000, callback=lambda update: print(update.step, update.metrics["reward"]))
