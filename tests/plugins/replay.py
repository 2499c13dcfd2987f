"""What scalar environments pay and show when they are stepped directly with the actions that a library took."""

import gymnasium as gym
import numpy as np


def replayed(env: gym.Env, actions: np.ndarray, observation: np.ndarray):
    """Step an environment that stands at an observation through actions [T], over the ends of its episodes.

    Returns:
        Arrays [T, ...] by name: the observation before and after each action, reward, whether the episode terminated,
        and the score that the info holds, 0 until the end.
    """
    steps = []
    for action in actions:
        after, reward, terminated, truncated, info = env.step(int(action))
        steps.append((observation, after, reward, terminated, info["score"]))
        assert not truncated
        observation = env.reset()[0] if terminated else after
    names = ("obs", "obs_next", "rewards", "terminated", "scores")
    return {name: np.array(values) for name, values in zip(names, zip(*steps, strict=True), strict=True)}
