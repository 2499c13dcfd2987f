import torch
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor


class Embedding(BaseFeaturesExtractor):  # tokens are names, not quantities: look them up
    def __init__(self, space):
        super().__init__(space, features_dim=16 * space.shape[0])
        self.table = torch.nn.Embedding(int(space.high.max()) + 1, 16)

    def forward(self, observations):
        return self.table(observations.long()).flatten(start_dim=1)


env = make_vec_env("textgym:TextGen-v0", n_envs=16, seed=0)
agent = PPO("MlpPolicy", env, n_steps=64, policy_kwargs={"features_extractor_class": Embedding}, seed=0, device="cpu")
agent.learn(total_timesteps=30_000)
print(evaluate_policy(agent, env, n_eval_episodes=200, deterministic=False)[0])
