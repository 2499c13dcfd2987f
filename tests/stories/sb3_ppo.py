from stable_baselines3 import PPO
from stable_baselines3.common.evaluation import evaluate_policy

from agents.adapters.stable_baselines3 import TextGenPolicy, make_vec_env

envs = make_vec_env("TextGen-v0", n_envs=64, seed=0)  # the task "sort", in the native vector environment
agent = PPO(
    TextGenPolicy, envs, n_steps=16, batch_size=512, n_epochs=4, learning_rate=1e-3, gamma=1.0, seed=0, device="cpu"
)
agent.learn(total_timesteps=60_000)
agent.save("agent.zip")
print(evaluate_policy(agent, envs, n_eval_episodes=512, deterministic=False)[0])
