import gymnasium as gym
import torch
from torchrl.collectors import Collector
from torchrl.envs import ActionMask, GymWrapper, TransformedEnv
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value import GAE

from agents import TransformerPolicy
from agents.adapters.torchrl import actor_value_operator

TASK, LEVEL, STEPS, N = "sort", 1, 102_400, 128

envs = gym.make_vec("textgym:TextGen-v0", N, task=TASK, level=LEVEL, observation="dict", autoreset_mode="Disabled")
env = TransformedEnv(GymWrapper(envs, categorical_action_encoding=True), ActionMask())
env.set_seed(0)
policy = TransformerPolicy.small(envs, value_head=True)
model = actor_value_operator(policy)  # one transformer, whose prefix cache serves the collector
actor = model.get_policy_operator()
advantages = GAE(gamma=1.0, lmbda=0.95, value_network=model.get_value_operator(), shifted=True)
loss_module = ClipPPOLoss(actor, model.get_value_head(), entropy_coeff=0.003, normalize_advantage=True)
optimizer = torch.optim.Adam(loss_module.parameters(), lr=1e-3)
shuffling = torch.Generator().manual_seed(0)
for data in Collector(env, actor, frames_per_batch=8 * N, total_frames=STEPS, auto_register_policy_transforms=True):
    advantages(data)
    for _ in range(3):
        for batch in data[torch.randperm(N, generator=shuffling)].split(N // 4):  # whole episodes
            losses = loss_module(batch)
            sum(value for name, value in losses.items() if name.startswith("loss_")).backward()
            torch.nn.utils.clip_grad_norm_(loss_module.parameters(), 0.5)
            optimizer.step()
            optimizer.zero_grad()


def agent(observations):
    return policy.act(observations)[0]


with torch.no_grad():
    rollout = env.rollout(32, actor, break_when_any_done=False)["next"]
print("mean return:", (rollout["reward"].sum() / rollout["done"].sum()).item())
