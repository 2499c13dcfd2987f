import gymnasium as gym
import numpy as np

import textgym

env = gym.make("TextGen-v0", task="reverse").unwrapped
env.reset(options={"prompt": "0123", "completion_ids": [3, 2]})  # half of the answer stands already
np.savez("half.npz", **env.get_state())  # numbers and JSON, nothing pickled
for action in range(env.action_space.n):
    env.set_state(np.load("half.npz", allow_pickle=False))
    env.step(action)
    print(action, env.step(0)[1])  # the score of 32, the action, and 0
