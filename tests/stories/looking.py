import gymnasium as gym

env = gym.make("textgym:TextGen-v0", render_mode="ansi", task="brackets")
env = gym.wrappers.RecordEpisodeStatistics(env)
observation, info = env.reset(seed=0)
terminated = False
while not terminated:
    action = env.action_space.sample(mask=info["action_mask"])  # an illegal one would be an error
    observation, reward, terminated, truncated, info = env.step(action)
print(env.render())
print(info["episode"]["r"], info["episode"]["l"])
