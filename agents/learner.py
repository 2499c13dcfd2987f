"""PolicyGradient: the loop of the policy gradient theorem, with stable-baselines3's verbs.

Does not print or write a run folder; a callback sees every update.
"""

import json
import operator
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from agents.algorithms import Algorithm, make_algorithm
from agents.defaults import default_learning_rate
from agents.full_precision import FullPrecision
from agents.lora import is_lora
from agents.losses import entropy_bonus, policy_gradient_loss
from agents.metrics import rollout_metrics
from agents.observations import action_mask_of, tokens_of
from agents.policy import TransformerPolicy
from agents.rollout import Rollout, collect, rollout_env
from textgym.escape import excerpt
from textgym.vocabulary import Vocabulary

_SETTINGS_FILE = "learner.json"
_STATE_FILE = "learner.safetensors"
_LORA_FOLDER = "lora"  # base and adapters, which the merged weights of policy/ cannot be taken apart into


class Update(NamedTuple):
    """What a callback sees after each update."""

    step: int  # updates so far, from 1
    num_timesteps: int  # generated tokens so far
    metrics: dict[str, float]  # TRL's names
    rollout: Rollout  # dropped episodes included
    advantages: np.ndarray  # float64 [B, T]; 0 in dropped episodes


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
        learning_rate: of Adam; by default 0.064 over the model's width, see `agents.defaults`.
        entropy_coef: weight of the mean entropy per token, in units of reward per nat.
        max_grad_norm: the gradient is scaled down to this norm.
        tokens_per_microbatch: most tokens, padding included, in one forward pass; the gradient does not depend on it.
        seed: of the prompts and actions that are drawn.

    Attributes:
        num_timesteps: generated tokens so far.
        num_updates: updates so far.

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
        entropy_coef: float = 0.05,
        max_grad_norm: float = 1.0,
        tokens_per_microbatch: int = 16_384,
        seed: int = 0,
    ) -> None:
        self.policy, self.envs = policy, rollout_env(envs)
        self.algorithm = make_algorithm(algorithm)
        self.settings: dict[str, Any] = {
            "group_size": operator.index(group_size),  # numpy's integers are not JSON's
            "episodes_per_update": operator.index(episodes_per_update),
            "learning_rate": default_learning_rate(policy) if learning_rate is None else float(learning_rate),
            "entropy_coef": float(entropy_coef),
            "max_grad_norm": float(max_grad_norm),
            "tokens_per_microbatch": operator.index(tokens_per_microbatch),
            "seed": operator.index(seed),
        }
        _check_settings(self.settings, self.algorithm)
        vocabulary = self.envs.unwrapped.vocabulary  # type: ignore[attr-defined]
        if vocabulary.size != policy.size:
            raise ValueError(
                f"the policy has {policy.size} tokens and the environment {vocabulary.size}; make the policy from the "
                "environment, TransformerPolicy.small(envs), or give the environment the model's tokenizer"
            )
        _check_same_tokens(policy, vocabulary)
        _check_length(policy, self.envs.unwrapped.problem.max_length)  # type: ignore[attr-defined]
        policy.vocabulary = vocabulary  # saved beside the weights, with the stop tokens that are trained with
        self.weights = FullPrecision(policy.parameters())
        self.optimizer = torch.optim.Adam(self.weights.parameters, lr=self.settings["learning_rate"])
        self.prompt_generator = np.random.default_rng(seed)
        self.action_generator = torch.Generator(device="cpu").manual_seed(self.settings["seed"])
        self.num_timesteps = self.num_updates = 0

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
            advantages = self._advantages(rollout)  # A(s_t, a_t)
            gradient = self.accumulate_gradient(rollout, advantages)  # -Σ_t A ∇ log π_θ(a_t | s_t)
            self.optimizer.step()  # θ ← θ + α ∇J; nothing where there is no gradient
            self.weights.write_back()
            self.num_timesteps += rollout.num_tokens
            self.num_updates += 1
            metrics |= gradient | {"num_tokens": self.num_timesteps}
            update = Update(self.num_updates, self.num_timesteps, metrics, rollout, advantages)
            if callback is not None and callback(update) is False:
                break
        return self

    def accumulate_gradient(self, rollout: Rollout, advantages: np.ndarray) -> dict[str, float]:
        """Set every parameter's gradient to that of the loss over all episodes that were not dropped, clipped.

        Microbatches are parts of one sum, with the denominators of all those episodes. Where there are none, every
        parameter's gradient is None.

        Args:
            rollout: B episodes.
            advantages: float64 [B, T]; those of dropped episodes are not looked at.

        Returns:
            The loss, the mean entropy per token in nats, and the gradient's norm before clipping; 0 without episodes.

        Raises:
            FloatingPointError: the gradient is not finite; the weights are as they were.
        """
        self.weights.zero_grad()
        loss = entropy = 0.0
        kept, advantages = rollout.without_dropped(), advantages[rollout.valid]
        for rows in microbatches(kept, self.settings["tokens_per_microbatch"]):
            part = kept.select(rows)
            part_loss, part_entropy = self._loss(part, advantages[rows][:, : part.mask.shape[1]], kept)
            part_loss.backward()  # ∇_θ
            self.weights.take_gradients()
            loss += float(part_loss.detach())
            entropy += float(part_entropy.detach())
        norm = float(torch.nn.utils.clip_grad_norm_(self.weights.parameters, self.settings["max_grad_norm"]))
        if not np.isfinite(norm):
            raise FloatingPointError(
                f"the gradient's norm is {norm} at update {self.num_updates + 1}; nothing was changed. Lower the "
                "learning rate, or look for a reward of an extreme size"
            )
        return {"loss": loss, "entropy": entropy, "grad_norm": norm}

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
        """Write policy, optimizer, generators and settings to a folder; `load` continues from it exactly."""
        folder = Path(folder)
        self.policy.save_pretrained(folder / "policy")
        shutil.rmtree(folder / _LORA_FOLDER, ignore_errors=True)  # of a learner that was saved there before
        if is_lora(self.policy.model):
            self.policy.save_pretrained(folder / _LORA_FOLDER, merge_adapters=False)
        tensors = {"action_generator": self.action_generator.get_state()}
        tensors["policy_generator"] = self.policy.generator.get_state()
        for index, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": value.contiguous() for name, value in moments.items()}
        tensors |= {f"weights.{name}": value for name, value in self.weights.state().items()}
        save_file(tensors, folder / _STATE_FILE)
        content = {
            "algorithm": self.algorithm.name,
            "dtype": str(self.policy.model.dtype).removeprefix("torch."),
            "gradient_checkpointing": self.policy.gradient_checkpointing,
            "lora": is_lora(self.policy.model),
            "trained": [name for name, weights in self.policy.named_parameters() if weights.requires_grad],
            "settings": self.settings,
            "num_timesteps": self.num_timesteps,
            "num_updates": self.num_updates,
            "prompt_generator": self.prompt_generator.bit_generator.state,
        }
        (folder / _SETTINGS_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

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
            algorithm: needed where a row of one's own was used; the saved name by default.
            device: where the model runs.
        """
        folder = Path(folder)
        if not (folder / _SETTINGS_FILE).is_file():
            raise FileNotFoundError(f"learner {str(folder)!r}: there is no file {str(folder / _SETTINGS_FILE)!r}")
        content = json.loads((folder / _SETTINGS_FILE).read_text(encoding="utf-8"))
        name = _LORA_FOLDER if content["lora"] else "policy"
        dtype = getattr(torch, content["dtype"])
        policy = TransformerPolicy.from_pretrained(
            folder / name, dtype=dtype, device=device, gradient_checkpointing=content["gradient_checkpointing"]
        )
        for weights_name, weights in policy.named_parameters():
            weights.requires_grad_(weights_name in content["trained"])
        envs = envs(policy) if callable(envs) else envs
        learner = cls(policy, envs, algorithm or content["algorithm"], **content["settings"])
        try:
            tensors = load_file(folder / _STATE_FILE)
        except (OSError, SafetensorError) as error:
            raise ValueError(f"learner {str(folder / _STATE_FILE)!r} does not load: {error}") from error
        learner.action_generator.set_state(tensors.pop("action_generator"))
        policy.generator.set_state(tensors.pop("policy_generator"))
        learner.prompt_generator.bit_generator.state = content["prompt_generator"]
        learner.num_timesteps, learner.num_updates = content["num_timesteps"], content["num_updates"]
        learner.weights.load_state(_of("weights", tensors))
        state = learner.optimizer.state_dict()
        for name, value in _of("optimizer", tensors).items():
            index, moment = name.split(".")
            state["state"].setdefault(int(index), {})[moment] = value
        learner.optimizer.load_state_dict(state)
        return learner

    def _advantages(self, rollout: Rollout) -> np.ndarray:
        """A_t as if dropped episodes had not been played, float64 [B, T]; 0 in those."""
        advantages = np.zeros(rollout.mask.shape)
        if rollout.valid.any():
            of_kept = self.algorithm.advantages(rollout.without_dropped())
            advantages[rollout.valid, : of_kept.shape[1]] = of_kept
        return advantages

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
        episodes, group_size = self.settings["episodes_per_update"], self.settings["group_size"]
        return collect(
            self.policy,
            self.envs,
            episodes,
            self.prompt_generator,
            group_size,
            self.action_generator,
            first_prompt=self.num_updates * (episodes // group_size),  # in order, where the updates so far left off
        )

    def _loss(self, part: Rollout, advantages: np.ndarray, whole: Rollout) -> tuple[Tensor, Tensor]:
        distribution = self.policy.action_distribution(part)
        device = distribution.log_probs.device
        mask = torch.as_tensor(part.mask, device=device)
        log_probs = distribution.log_prob(torch.as_tensor(part.actions, device=device))  # log π_θ(a_t | s_t)
        weights = torch.as_tensor(advantages, dtype=log_probs.dtype, device=device)
        bonus = entropy_bonus(distribution.entropy(), mask, whole.num_tokens)
        loss = policy_gradient_loss(log_probs, weights, mask, len(whole.mask))
        return loss - self.settings["entropy_coef"] * bonus, bonus


def _of(part: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a part, by the names that it gave them."""
    return {name.removeprefix(f"{part}."): value for name, value in tensors.items() if name.startswith(f"{part}.")}


def microbatches(rollout: Rollout, max_tokens: int) -> Iterator[np.ndarray]:
    """Rows of episodes of like length, int64 [n], at most `max_tokens` tokens with padding, or one episode."""
    order = np.argsort(rollout.length, kind="stable")[::-1]  # the longest first: memory is short early or never
    first = 0
    while first < len(order):
        count = max(1, max_tokens // int(rollout.length[order[first]]))
        yield order[first : first + count]
        first += count


def _check_same_tokens(policy: TransformerPolicy, vocabulary: Vocabulary) -> None:
    if policy.vocabulary is None or policy.vocabulary is vocabulary:
        return
    own, theirs = policy.vocabulary.tokenizer.get_vocab(), vocabulary.tokenizer.get_vocab()
    if own != theirs:
        token = next(token for token in sorted(own.keys() | theirs.keys()) if own.get(token) != theirs.get(token))
        raise ValueError(
            f"the policy and the environment have other tokens: {excerpt(token)} is id {own.get(token)} to the policy "
            f"and {theirs.get(token)} to the environment; give the environment the policy's tokenizer"
        )


def _check_length(policy: TransformerPolicy, length: int) -> None:
    # The last token of a history is only ever an action, so the model sees one token less.
    if policy.max_length is not None and length - 1 > policy.max_length:
        raise ValueError(
            f"histories have up to {length} tokens and the model takes {policy.max_length}; lower max_new_tokens or "
            "max_prompt_tokens"
        )


def _check_settings(settings: dict[str, Any], algorithm: Algorithm) -> None:
    group_size, episodes = settings["group_size"], settings["episodes_per_update"]
    if group_size < 1 or episodes < 1 or episodes % group_size:
        raise ValueError(f"episodes_per_update={episodes} is no positive multiple of group_size={group_size}")
    if group_size < algorithm.min_group_size or episodes < algorithm.min_episodes:
        raise ValueError(
            f"algorithm {algorithm.name!r} needs group_size of at least {algorithm.min_group_size} and "
            f"episodes_per_update of at least {algorithm.min_episodes}, not {group_size} and {episodes}"
        )
    for name in ("learning_rate", "max_grad_norm", "tokens_per_microbatch"):
        if not 0 < settings[name] < np.inf:
            raise ValueError(f"{name}={settings[name]}; give a finite number above 0")
    if not 0 <= settings["entropy_coef"] < np.inf:
        raise ValueError(f"entropy_coef={settings['entropy_coef']}; give a finite number of at least 0")
