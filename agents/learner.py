"""PolicyGradient: the loop of the policy gradient theorem, with stable-baselines3's verbs.

Does not print or write a run folder; a callback sees every update. What a step minimises is said in `agents.surrogate`,
what its files hold in `agents.learner_files`.
"""

import operator
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from gymnasium.vector import VectorEnv

from agents import learner_files
from agents.advantages import equal_returns
from agents.algorithms import check_kl, make_algorithm
from agents.axes import Algorithm
from agents.checks import check_length, check_same_tokens, check_settings
from agents.defaults import decayed, default_learning_rate
from agents.experience import Experience, make_experience, minibatches
from agents.full_precision import FullPrecision
from agents.gradient import accumulate_gradient, critic_metrics, reference_kl, update_metrics
from agents.kl import adapted
from agents.metrics import rollout_metrics
from agents.observations import action_mask_of, tokens_of
from agents.policy import TransformerPolicy
from agents.reference import ReferencePolicy
from agents.rollout import Rollout, collect, rollout_env
from agents.tally import Tally


class Update(NamedTuple):
    """What a callback sees after each update."""

    step: int  # updates so far, from 1
    num_timesteps: int  # generated tokens so far
    metrics: dict[str, float]  # TRL's names
    rollout: Rollout  # dropped episodes included
    advantages: np.ndarray  # float64 [B, T]; 0 in episodes that were dropped or left out


Callback = Callable[[Update], bool | None]


class PolicyGradient:
    """Ascend J(θ) = E[R(τ)] along ∇J = E[Σ_t ∇ log π_θ(a_t | s_t) A(s_t, a_t)].

    Episodes that the environment drops (`on_reward_error="drop"`) count as tokens generated, and nowhere else:
    baselines, gradient and metrics are those of an update without them. Where none is left, it changes nothing.

    Args:
        policy: π_θ.
        envs: `gym.make_vec("TextGen-v0", ...)`; see `agents.rollout.rollout_env` for modes and wrappers.
        algorithm: a name of `agents.algorithms.ALGORITHMS`, or a row of one's own.
        group_size: G, episodes that share a prompt.
        episodes_per_update: B, a multiple of the group size.
        learning_rate: of Adam; by default 0.064 over the model's width, and over the root of an update's steps; twice
            that where it decays.
        decay_timesteps: two values of num_timesteps between which the learning rate falls linearly to a tenth; None
            leaves it as it is.
        entropy_coef: weight of the mean entropy per token, in units of reward per nat.
        kl_coef: β, weight of the KL to the reference policy, where the algorithm's row says that it stands; 0 for none.
        kl_target: the KL to the reference, in nats per token, that β is adapted to; None leaves β as it is.
        reference: π_ref where β is not 0: None takes the policy as it is now, or the model without its adapters; or
            another policy, or the path of a Hugging Face folder.
        max_grad_norm: the gradient is scaled down to this norm.
        tokens_per_microbatch: most tokens, padding included, in one forward pass; the gradient does not depend on it.
        seed: of the prompts and actions that are drawn.

    Attributes:
        num_timesteps: generated tokens so far.
        num_updates: updates so far.
        kl_coef: β of the next update; None without a reference.

    Raises:
        TypeError, ValueError: settings outside their range, or envs that cannot be driven.
    """

    def __init__(
        self,
        policy: TransformerPolicy,
        envs: VectorEnv,
        algorithm: str | Algorithm = "rloo",
        *,
        group_size: int = 8,
        episodes_per_update: int = 256,
        learning_rate: float | None = None,
        decay_timesteps: Sequence[int] | None = None,
        entropy_coef: float = 0.05,
        kl_coef: float = 0.0,
        kl_target: float | None = None,
        reference: TransformerPolicy | str | Path | None = None,
        max_grad_norm: float = 1.0,
        tokens_per_microbatch: int = 16_384,
        seed: int = 0,
    ) -> None:
        self.policy, self.envs = policy, rollout_env(envs)
        self.algorithm = make_algorithm(algorithm)
        self.settings: dict[str, Any] = {
            "group_size": operator.index(group_size),  # numpy's integers are not JSON's
            "episodes_per_update": operator.index(episodes_per_update),
            "learning_rate": float(
                default_learning_rate(policy, self.algorithm.num_steps, decay_timesteps is not None)
                if learning_rate is None
                else learning_rate
            ),
            "decay_timesteps": None if decay_timesteps is None else [*map(operator.index, decay_timesteps)],
            "entropy_coef": float(entropy_coef),
            "kl_coef": float(kl_coef),
            "kl_target": None if kl_target is None else float(kl_target),
            "max_grad_norm": float(max_grad_norm),
            "tokens_per_microbatch": operator.index(tokens_per_microbatch),
            "seed": operator.index(seed),
        }
        check_settings(self.settings, self.algorithm)
        check_kl(self.algorithm, self.settings["kl_coef"], self.settings["kl_target"], reference is not None)
        vocabulary = self.envs.unwrapped.vocabulary  # type: ignore[attr-defined]
        if vocabulary.size != policy.size:
            raise ValueError(
                f"the policy has {policy.size} tokens and the environment {vocabulary.size}; make the policy from the "
                "environment, TransformerPolicy.small(envs), or give the environment the model's tokenizer"
            )
        check_same_tokens(policy.vocabulary, vocabulary, "the policy", "the environment")
        check_length(policy, self.envs.unwrapped.problem.max_length)  # type: ignore[attr-defined]
        policy.vocabulary = vocabulary  # saved beside the weights, with the stop tokens that are trained with
        self.reference = ReferencePolicy(policy, reference) if kl_coef else None
        if self.reference is not None:
            self.reference.check_length(self.envs.unwrapped.problem.max_length)  # type: ignore[attr-defined]
        self.kl_coef = self.settings["kl_coef"] if kl_coef else None
        if self.algorithm.critic:
            policy.add_value_head()
        self.weights = FullPrecision(policy.parameters())
        self.optimizer = torch.optim.Adam(self.weights.parameters, lr=self.settings["learning_rate"])
        self.cache = policy.prefix_cache()  # of all rollouts, one after the other
        self.prompt_generator = np.random.default_rng(seed)
        self.minibatch_generator = np.random.default_rng([self.settings["seed"], 1])
        self.action_generator = torch.Generator(device="cpu").manual_seed(self.settings["seed"])
        self.num_timesteps = self.num_updates = self.num_prompts = 0

    def learn(self, total_timesteps: int, callback: Callback | None = None) -> Self:
        """Update the policy until it has generated `total_timesteps` further tokens.

        Args:
            total_timesteps: a whole update is made as long as they are not reached.
            callback: called after each update; False ends the training.
        """
        end = self.num_timesteps + total_timesteps
        while self.num_timesteps < end:
            rollout = self._collect()  # τ ~ π_θ
            metrics = self._measured(rollout)
            rows = self._informative(rollout)
            experience = self.experience(rollout.select(rows))  # A(s_t, a_t), and what else stays constant
            metrics |= self._ascend(experience)
            self.num_timesteps += rollout.num_tokens
            self.num_updates += 1
            metrics["num_tokens"] = self.num_timesteps
            advantages = np.zeros(rollout.mask.shape)
            advantages[rows, : experience.advantages.shape[1]] = experience.advantages
            update = Update(self.num_updates, self.num_timesteps, metrics, rollout, advantages)
            if callback is not None and callback(update) is False:
                break
        return self

    def experience(self, rollout: Rollout) -> Experience:
        """What an update learns from B episodes, none of them dropped: advantages, and all that stays constant."""
        horizon: int = self.envs.unwrapped.problem.max_new_tokens  # type: ignore[attr-defined]
        limit = self.settings["tokens_per_microbatch"]
        return make_experience(self.policy, self.algorithm, rollout, horizon, limit, self.reference, self.kl_coef)

    def accumulate_gradient(self, experience: Experience, tally: Tally | None = None) -> dict[str, float]:
        """Set every parameter's gradient to that of the loss over all episodes of the experience, clipped.

        Args:
            experience: see `agents.gradient.accumulate_gradient`.
            tally: counts what the passes show, beside earlier ones.

        Returns:
            The metrics of the tally: the loss, the mean entropy per token in nats, the gradient's norm before clipping,
            and more; 0 without episodes.

        Raises:
            FloatingPointError: the gradient is not finite; the weights are as they were.
        """
        tally = Tally() if tally is None else tally
        norm = accumulate_gradient(
            self.policy, self.weights, self.algorithm, self.settings, experience, self.kl_coef or 0.0, tally
        )
        if not np.isfinite(norm):
            raise FloatingPointError(
                f"the gradient's norm is {norm} at update {self.num_updates + 1}; nothing was changed by this step. "
                "Lower the learning rate, or look for a reward of an extreme size"
            )
        return update_metrics(tally)

    def predict(
        self,
        observation: Any,
        deterministic: bool = False,
        *,
        state: Any = None,
        episode_start: Any = None,
        action_masks: np.ndarray | None = None,
    ) -> tuple[Any, None]:
        """Actions for one observation, int [L], or for several, [N, L]; as stable-baselines3 has it.

        Args:
            observation: the histories, or dict observations, whose `tokens` and `action_mask` are read.
            deterministic: take the most probable token.
            state: not used, the policy keeps none.
            episode_start: not used.
            action_masks: bool or 0/1, [V] or [N, V], True where a token is legal; by default that of dict observations.

        Returns:
            An action or int64 [N], and None for the state that the policy does not have.
        """
        histories = tokens_of(observation)
        masks = action_mask_of(observation) if action_masks is None else action_masks
        actions, _ = self.policy.act(
            np.atleast_2d(histories),
            deterministic=deterministic,
            action_mask=None if masks is None else np.atleast_2d(masks),
        )
        return (actions[0] if np.ndim(histories) == 1 else actions), None

    @property
    def reward_names(self) -> tuple[str, ...]:
        """The names of the reward functions."""
        return self.envs.unwrapped.problem.reward.names  # type: ignore[attr-defined]

    def save(self, folder: str | Path) -> None:
        """Write policy, optimizer, reference, generators and settings to a folder; `load` continues from it exactly."""
        learner_files.save(self, Path(folder))

    @classmethod
    def load(
        cls,
        folder: str | Path,
        envs: VectorEnv | Callable[[TransformerPolicy], VectorEnv],
        algorithm: str | Algorithm | None = None,
        device: str | torch.device = "cpu",
    ) -> Self:
        """The learner that `save` wrote, over an environment like the one it was trained on.

        Args:
            folder: what `save` wrote.
            envs: see the class; or a function of the loaded policy that makes them, where they refer to it.
            algorithm: needed where a row of one's own was used; the saved one by default.
            device: where the model runs.
        """
        return learner_files.load(cls, Path(folder), envs, algorithm, device)

    def _measured(self, rollout: Rollout) -> dict[str, float]:
        metrics = rollout_metrics(rollout, self.reward_names)
        for name, value in metrics.items():
            if not np.isfinite(value):
                returns = rollout.without_dropped().returns
                raise FloatingPointError(
                    f"{name} is {value} at update {self.num_updates + 1}; nothing was changed. Scale the reward "
                    f"down: its returns run from {returns.min():.3g} to {returns.max():.3g}"
                )
        return metrics

    def _collect(self) -> Rollout:
        """The episodes of an update: sampled again, where the algorithm says so, as long as groups teach nothing."""
        rollout = self._play()
        for _ in range(self.algorithm.sampling_rounds - 1):
            if len(np.unique(rollout.group[self._informative(rollout)])) == self._num_groups:
                break
            rollout = rollout.followed_by(self._play())
        return rollout

    @property
    def _num_groups(self) -> int:
        """Groups of episodes that are played at a time, and the most that an update learns from."""
        return self.settings["episodes_per_update"] // self.settings["group_size"]

    def _play(self) -> Rollout:
        if self.cache.model is not self.policy.model:  # somebody has put another in its place
            self.cache = self.policy.prefix_cache()
        episodes, group_size = self.settings["episodes_per_update"], self.settings["group_size"]
        first_prompt = self.num_prompts  # in order, where the updates so far left off
        self.num_prompts += self._num_groups
        rollout = collect(
            self.policy,
            self.envs,
            episodes,
            self.prompt_generator,
            group_size,
            self.action_generator,
            first_prompt=first_prompt,
            cache=self.cache,
        )
        self.cache.forget()  # on an accelerator its memory is free for the update
        return rollout

    def _informative(self, rollout: Rollout) -> np.ndarray:
        """The rows to learn from, int64 [n]: those that were not dropped, and under dynamic sampling teach something.

        Under dynamic sampling no more groups than an update has, the first ones. The returns are those that the
        environment paid, without the charges that the algorithm adds.
        """
        kept = np.flatnonzero(rollout.valid)
        if self.algorithm.sampling_rounds == 1:
            return kept
        unequal = kept[~equal_returns(rollout.returns[kept], rollout.group[kept], rollout.sizes[kept])]
        groups = np.unique(rollout.group[unequal])[: self._num_groups]
        return unequal[np.isin(rollout.group[unequal], groups)]

    def _ascend(self, experience: Experience) -> dict[str, float]:
        """The steps of an update: θ ← θ + α ∇J; nothing where there is no gradient."""
        tally, count = Tally(), len(experience.rollout.mask)
        learning_rate = self.settings["learning_rate"] * decayed(self.num_timesteps, self.settings["decay_timesteps"])
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        for _ in range(self.algorithm.num_epochs):
            for rows in minibatches(count, self.algorithm.num_minibatches, self.minibatch_generator):
                self.accumulate_gradient(experience.select(rows), tally)
                self.optimizer.step()
                self.weights.write_back()
        metrics = update_metrics(tally) | {"learning_rate": learning_rate}
        if self.algorithm.critic:
            metrics |= critic_metrics(tally, experience)
        if self.kl_coef is not None:
            metrics |= {"kl_coef": self.kl_coef} | reference_kl(experience)
            if self.settings["kl_target"] is not None and count:
                self.kl_coef = adapted(self.kl_coef, metrics["kl/k1"], self.settings["kl_target"])
        return metrics
