import gymnasium as gym

import textgym
from agents import PolicyGradient, TransformerPolicy

envs = gym.make_vec("TextGen-v0", num_envs=256)  # the task "sort"
policy = TransformerPolicy.small(envs)  # π_θ(a_t | s_t), a small transformer
# ∇J = E Σ_t ∇ log π_θ(a_t | s_t) A(s_t, a_t), in steps that get smaller towards the end
learner = PolicyGradient(policy, envs, algorithm="rloo", decay_timesteps=(140_000, 200_000))
learner.learn(total_timesteps=200_000, callback=lambda update: print(update.step, update.metrics["reward"]))
