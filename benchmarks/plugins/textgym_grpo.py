import gymnasium as gym

from agents import PolicyGradient, TransformerPolicy

TASK, LEVEL, STEPS = "sort", 1, 250_000

envs = gym.make_vec("textgym:TextGen-v0", num_envs=256, task=TASK, level=LEVEL)
policy = TransformerPolicy.small(envs)
settings = dict(group_size=8, episodes_per_update=256, learning_rate=2e-3, decay_timesteps=(0, STEPS))
PolicyGradient(policy, envs, "grpo", **settings).learn(STEPS)


def agent(observations):
    return policy.act(observations)[0]


observations, returns = envs.reset(seed=0)[0], 0
for _ in range(4):
    observations, rewards, *_ = envs.step(agent(observations))
    returns += rewards
print("mean return:", returns.mean())
