import gymnasium as gym
import numpy as np

import textgym
from agents import TransformerPolicy, collect

envs = gym.make_vec(
    "TextGen-v0",
    num_envs=1,
    prompts=["The capital of France is"],
    tokenizer=["The", " capital", " of", " France", " is", " Paris", " Rome", " big", "<eos>"],
    reward=lambda completions: [float(text.startswith(" Paris")) for text in completions],
    max_new_tokens=4,
)
policy = TransformerPolicy.small(envs)
rollout = collect(policy, envs, episodes=1, generator=np.random.default_rng(0))
for t, step in enumerate(rollout.trajectory(0)):
    print(f"s_{t} = {step.state!r} {step.state_ids}")
    print(f"a_{t} = {step.action!r} [{step.action_id}]  log π_θ = {step.log_prob:.2f}  r_{t} = {step.reward:g}")
