import numpy as np
import torch
from sb3_contrib import RecurrentPPO
from stable_baselines3.common.evaluation import evaluate_policy

from agents.adapters.stable_baselines3 import TransformerFeatures, make_vec_env

TASK, LEVEL, STEPS = "palindrome", 1, 20_000
torch.set_num_threads(1)
envs = make_vec_env("TextGen-v0", n_envs=64, seed=0, env_kwargs={"task": TASK, "level": LEVEL})
model = RecurrentPPO(
    "MlpLstmPolicy",
    envs,
    n_steps=16,
    batch_size=256,
    n_epochs=4,
    learning_rate=1e-3,
    gamma=1.0,
    ent_coef=0.01,
    policy_kwargs={"features_extractor_class": TransformerFeatures, "lstm_hidden_size": 64, "net_arch": []},
    seed=0,
    device="cpu",
)
model.learn(total_timesteps=STEPS)
print(evaluate_policy(model, envs, n_eval_episodes=512, deterministic=False)[0])


def agent(observations):  # the recurrent state of a whole episode: all texts of this task begin with nothing
    state, size = None, envs.action_space.n
    for length in range((observations[0] < size).sum() + 1):
        shown = np.where(np.arange(observations.shape[1]) < length, observations, size)
        begins = np.full(len(shown), length == 0)
        actions, state = model.predict(shown, state, episode_start=begins, deterministic=True)
    return actions
