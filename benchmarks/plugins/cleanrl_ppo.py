"""PPO in one file, in the style of CleanRL: torch and Gymnasium alone, action masks included."""

from dataclasses import dataclass

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Categorical

import textgym

TASK, LEVEL, STEPS = "sort", 1, 160_000


@dataclass
class Args:
    task: str = TASK
    level: int = LEVEL
    on_limit: str = "terminate"  # "truncate" bootstraps from a state that is never acted in: its value is a guess
    total_timesteps: int = STEPS
    seed: int = 1
    num_envs: int = 128
    num_steps: int = 16  # of each environment in a rollout; episodes go on from one rollout to the next
    learning_rate: float = 2e-3
    gamma: float = 1.0
    gae_lambda: float = 0.95
    num_minibatches: int = 4
    update_epochs: int = 4
    clip_coef: float = 0.2
    ent_coef: float = 0.003
    vf_coef: float = 0.5
    max_grad_norm: float = 0.5


class Agent(nn.Module):
    def __init__(self, length: int, size: int, seed: int, width: int = 16, hidden: int = 256) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(seed)
        self.embed = nn.Sequential(nn.Embedding(size + 1, width), nn.Flatten())  # tokens are names; PAD = V is one too
        self.trunk = nn.Sequential(nn.Linear(length * width, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU())
        self.actor, self.critic = nn.Linear(hidden, size), nn.Linear(hidden, 1)
        nn.init.normal_(self.embed[0].weight, generator=self.generator)
        for layer, gain in ((self.trunk[0], 2**0.5), (self.trunk[2], 2**0.5), (self.actor, 0.01), (self.critic, 1.0)):
            nn.init.orthogonal_(layer.weight, gain, generator=self.generator)
            nn.init.zeros_(layer.bias)

    def get_value(self, tokens: Tensor) -> Tensor:
        return self.critic(self.trunk(self.embed(tokens))).squeeze(-1)

    def get_distribution_and_value(self, tokens: Tensor, masks: Tensor) -> tuple[Categorical, Tensor]:
        hidden = self.trunk(self.embed(tokens))
        # The least number, not -inf: 0 · -inf would make the entropy NaN.
        logits = self.actor(hidden).masked_fill(~masks, torch.finfo(torch.float32).min)
        return Categorical(logits=logits, validate_args=False), self.critic(hidden).squeeze(-1)

    def sample(self, distribution: Categorical) -> Tensor:
        return torch.multinomial(distribution.probs, 1, generator=self.generator).squeeze(-1)

    @torch.no_grad()
    def forward(self, observations: dict[str, np.ndarray]) -> np.ndarray:
        return self.sample(self.get_distribution_and_value(*tensors(observations))[0]).numpy()


def tensors(observations: dict[str, np.ndarray]) -> tuple[Tensor, Tensor]:
    """Histories int64 [N, L] and action masks bool [N, V], all True where the task constrains nothing."""
    return torch.from_numpy(observations["tokens"]), torch.from_numpy(observations["action_mask"]).bool()


def make_envs(args: Args) -> gym.vector.VectorEnv:
    kwargs = dict(task=args.task, level=args.level, on_limit=args.on_limit, observation="dict")
    return gym.make_vec("TextGen-v0", num_envs=args.num_envs, autoreset_mode="SameStep", **kwargs)


def bootstrapped(agent: Agent, rewards: np.ndarray, truncated: np.ndarray, infos: dict, gamma: float) -> Tensor:
    """Rewards [N], to which a truncated row adds γ V(s) of the state that its episode was cut off in."""
    rewards = torch.from_numpy(rewards).float()
    if truncated.any():  # the next observation is the next episode's; the last of this one is in final_obs
        last = np.stack([observation["tokens"] for observation in infos["final_obs"][truncated]])
        rewards[torch.from_numpy(truncated)] += gamma * agent.get_value(torch.from_numpy(last)).detach()
    return rewards


def gae(rewards: Tensor, values: Tensor, next_value: Tensor, dones: Tensor, gamma: float, gae_lambda: float) -> Tensor:
    """Advantages [T, N]; dones: where the step that was paid the reward ended an episode, by either flag."""
    advantages, last, following = torch.zeros_like(rewards), torch.zeros_like(next_value), next_value
    for t in reversed(range(len(rewards))):
        delta = rewards[t] + gamma * following * ~dones[t] - values[t]
        advantages[t] = last = delta + gamma * gae_lambda * last * ~dones[t]
        following = values[t]
    return advantages


def train(args: Args) -> Agent:
    envs = make_envs(args)
    next_obs, _ = envs.reset(seed=args.seed)
    length, size = next_obs["tokens"].shape[1], envs.single_action_space.n
    agent = Agent(length, size, args.seed)
    optimizer = torch.optim.Adam(agent.parameters(), lr=args.learning_rate, eps=1e-5)
    shape, batch_size = (args.num_steps, args.num_envs), args.num_steps * args.num_envs
    obs, masks = torch.zeros(*shape, length, dtype=torch.int64), torch.zeros(*shape, size, dtype=torch.bool)
    actions, dones = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape, dtype=torch.bool)
    logprobs, rewards, values = torch.zeros(shape), torch.zeros(shape), torch.zeros(shape)
    num_iterations = args.total_timesteps // batch_size
    for iteration in range(num_iterations):
        optimizer.param_groups[0]["lr"] = args.learning_rate * (1 - iteration / num_iterations)
        for step in range(args.num_steps):
            obs[step], masks[step] = tensors(next_obs)
            with torch.no_grad():
                distribution, values[step] = agent.get_distribution_and_value(obs[step], masks[step])
                actions[step] = agent.sample(distribution)
                logprobs[step] = distribution.log_prob(actions[step])
            next_obs, reward, terminated, truncated, infos = envs.step(actions[step].numpy())
            dones[step] = torch.from_numpy(terminated | truncated)
            rewards[step] = bootstrapped(agent, reward, truncated, infos, args.gamma)
        next_value = agent.get_value(tensors(next_obs)[0]).detach()
        advantages = gae(rewards, values, next_value, dones, args.gamma, args.gae_lambda)
        batch = [x.flatten(0, 1) for x in (obs, masks, actions, logprobs, advantages, advantages + values)]
        for _ in range(args.update_epochs):
            for chosen in torch.randperm(batch_size, generator=agent.generator).chunk(args.num_minibatches):
                b_obs, b_masks, b_actions, b_logprobs, b_advantages, b_returns = (x[chosen] for x in batch)
                distribution, newvalue = agent.get_distribution_and_value(b_obs, b_masks)
                ratio = (distribution.log_prob(b_actions) - b_logprobs).exp()
                b_advantages = (b_advantages - b_advantages.mean()) / (b_advantages.std() + 1e-8)
                clipped = ratio.clamp(1 - args.clip_coef, 1 + args.clip_coef)
                pg_loss = -torch.min(b_advantages * ratio, b_advantages * clipped).mean()
                v_loss = 0.5 * (newvalue - b_returns).square().mean()
                loss = pg_loss - args.ent_coef * distribution.entropy().mean() + args.vf_coef * v_loss
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(agent.parameters(), args.max_grad_norm)
                optimizer.step()
    return agent


def evaluate(agent: Agent, args: Args, seed: int = 10_000) -> float:
    """Mean return of one fresh episode in each row."""
    envs = make_envs(args)
    observations, _ = envs.reset(seed=seed)
    returns, running = np.zeros(args.num_envs), np.ones(args.num_envs, dtype=bool)
    while running.any():
        observations, rewards, terminated, truncated, _ = envs.step(agent(observations))
        returns[running] += rewards[running]
        running &= ~(terminated | truncated)
    return float(returns.mean())


agent = train(Args())
print("mean return of 512 episodes:", evaluate(agent, Args(num_envs=512)))
