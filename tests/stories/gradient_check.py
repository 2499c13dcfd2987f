import gymnasium as gym
import numpy as np
import torch

import textgym
from agents import PolicyGradient, TransformerPolicy, collect
from agents.exact import exact_gradient, node_log_probs
from textgym.oracle import enumerate_tree, values

envs = gym.make_vec("TextGen-v0", num_envs=512, task="palindrome", level=2)  # 4 symbols, 5 tokens
policy = TransformerPolicy.small(envs).double()
tree = enumerate_tree(envs)  # every state and every complete text, paid by the environment itself
exact = exact_gradient(policy, tree)  # ∇J = Σ_s d(s) Σ_a π(a | s) A(s, a) ∇ log π(a | s), nothing sampled
norm = torch.cat([part.flatten() for part in exact.gradient]).norm()
print(f"{tree.num_sequences:,} texts, J = {exact.objective:.6f}, |∇J| = {norm:.6f}")

ends = []  # 1. what J does a small step up and down its gradient
for step in (1e-5, -2e-5):
    with torch.no_grad():
        for parameter, part in zip(policy.parameters(), exact.gradient):
            parameter += step * part / norm
    ends.append(values(tree, node_log_probs(policy, tree)).objective)
with torch.no_grad():
    for parameter, part in zip(policy.parameters(), exact.gradient):
        parameter += 1e-5 * part / norm
print(f"finite difference over |∇J|: {(ends[0] - ends[1]) / 2e-5 / norm:.6f}")

learner = PolicyGradient(policy, envs, "rloo", entropy_coef=0.0, max_grad_norm=1e9)  # 2. what the learner ascends
rollout = collect(policy, envs, 8_000, np.random.default_rng(0), group_size=8)
learner.accumulate_gradient(learner.experience(rollout))
projection = sum(-(parameter.grad * part).sum() for parameter, part in zip(policy.parameters(), exact.gradient))
print(f"sampled gradient of 8,000 texts, projected on ∇J: {projection / norm**2:.3f}")
