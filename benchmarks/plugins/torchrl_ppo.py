import gymnasium as gym
import torch
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.collectors import Collector
from torchrl.envs import ActionMask, DTypeCastTransform, GymWrapper, TransformedEnv
from torchrl.modules import MLP, MaskedCategorical, ProbabilisticActor, ValueOperator
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value import GAE

TASK, LEVEL, STEPS, N, BATCH = "sort", 1, 204_800, 128, 2048
envs = gym.make_vec("textgym:TextGen-v0", N, task=TASK, level=LEVEL, observation="dict", autoreset_mode="Disabled")
env = TransformedEnv(GymWrapper(envs, categorical_action_encoding=True), ActionMask())
env.insert_transform(0, DTypeCastTransform(torch.int8, torch.bool, in_keys=["action_mask"]))
V, L = envs.single_action_space.n, envs.single_observation_space["tokens"].shape[0]
policy_net, value_net = (  # tokens are names: look them up; PAD = V is one too
    nn.Sequential(nn.Embedding(V + 1, 16), nn.Flatten(-2), MLP(16 * L, n, depth=2, num_cells=256)) for n in (V, 1)
)
logits, keys = TensorDictModule(policy_net, ["tokens"], ["logits"]), {"logits": "logits", "mask": "action_mask"}
actor = ProbabilisticActor(logits, keys, distribution_class=MaskedCategorical, return_log_prob=True)
critic = ValueOperator(value_net, in_keys=["tokens"])
advantages, loss_module = GAE(gamma=1.0, lmbda=0.95, value_network=critic), ClipPPOLoss(actor, critic)
optimizer = torch.optim.Adam(loss_module.parameters(), lr=1e-3)
scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=STEPS // BATCH)
for data in Collector(env, actor, frames_per_batch=BATCH, total_frames=STEPS, auto_register_policy_transforms=True):
    advantages(data)
    for batch in (part for _ in range(4) for part in data.reshape(-1)[torch.randperm(BATCH)].split(BATCH // 4)):
        sum(loss for name, loss in loss_module(batch).items() if name.startswith("loss_")).backward()
        optimizer.step()
        optimizer.zero_grad()
    scheduler.step()


def agent(observations):  # the most probable token, as TorchRL deploys
    logits = policy_net(torch.from_numpy(observations["tokens"]))
    return logits.masked_fill(torch.from_numpy(observations["action_mask"] == 0), -torch.inf).argmax(-1).numpy()


rollout = env.rollout(64, actor, break_when_any_done=False)["next"]
print("mean return:", (rollout["reward"].sum() / rollout["done"].sum()).item())
