"""TransformerPolicy: a causal language model as π_θ(a_t | s_t) = P_θ(x_t | x_<t).

The state is a token history as the environment shows it. To its caller the policy is stateless: the prefix cache behind
`act` changes what a call costs, not what it says. Does not know episodes, rewards or advantages.
"""

import json
import operator
import shutil
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from agents.attention import check_causal
from agents.decoding import step_of
from agents.lora import adapter_off, add_lora, is_lora
from agents.lora_files import load_adapter, save_adapter, save_base, save_merged
from agents.models import bos_id_of, load_model, logits_at, max_length_of, read_json, save_model
from agents.next_tokens import NextTokens, Reader
from agents.observations import action_mask_of, checked_mask, histories_of, tokens_of
from agents.prefix_cache import PrefixCache
from agents.recompute import recompute_activations
from agents.rollout import Rollout
from agents.sampling import NO_TRUNCATION, TokenDistribution, Truncation, checked_temperature
from agents.small_model import make_small_model
from agents.token_scores import TokenScores, features_at, scored, spread_out
from agents.value_head import ValueHead, logits_and_features_at
from textgym.problem import Problem
from textgym.vocabulary import Vocabulary

_SETTINGS_FILE = "textgym.json"
_NO_VALUE_HEAD = "the policy has no value head; make it with value_head=True"
_ADAPTER_FOLDER = "adapter"  # adapters that lie beside the base
_SAVED = ("temperature", "top_k", "top_p", "min_p", "value_head")  # beside the size and the BOS


class Choice(NamedTuple):
    """What a policy has chosen in N states."""

    actions: np.ndarray  # int64 [N]
    log_probs: np.ndarray  # float32 [N], log π(a | s)
    support: np.ndarray | None  # bool [N, V], True where a token could be sampled; None where nothing was cut off


class TransformerPolicy(nn.Module):
    """A Hugging Face causal language model as a policy over V tokens.

    Dropout is always off, in training too: sampling and scoring must see the same distribution.

    Args:
        model: the language model; it may have more outputs than V, those lie outside the distribution.
        size: V, the number of actions.
        vocabulary: the tokens, saved beside the model; None where only their number is known.
        bos_id: the token that an empty history is fed as; None refuses empty histories.
        temperature: logits are divided by it, in sampling and in scoring.
        seed: of the generator that `act` draws with when it gets none.
        top_k: see `agents.sampling.Truncation`, as for `top_p` and `min_p`; a rollout stores what was left to sample
            from, and its episodes are scored within it.
        top_p: see `top_k`.
        min_p: see `top_k`.
        value_head: whether the model gets a linear head for the value of a state, V(s).
        lora_rank: freeze the model and train adapters of this rank alone (`agents.lora`); without them, it is the
            reference.
        gradient_checkpointing: keep the input of each block alone, and compute the rest again for the gradient.
        compile_decoding: compile the steps of sampling with `torch.compile`, as they are first needed: some programs of
            ten seconds or more each, and a C++ compiler, on a GPU Triton. For GPT-2's architecture alone.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        size: int,
        vocabulary: Vocabulary | None = None,
        bos_id: int | None = None,
        temperature: float = 1.0,
        seed: int = 0,
        *,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        value_head: bool = False,
        lora_rank: int | None = None,
        gradient_checkpointing: bool = False,
        compile_decoding: bool = False,
    ) -> None:
        super().__init__()
        rows = model.get_input_embeddings().weight.shape[0]
        if rows < size:
            raise ValueError(
                f"the model has {rows} embeddings for {size} tokens; give it the tokenizer it was made for"
            )
        if bos_id is not None and not 0 <= bos_id < rows:
            raise ValueError(f"bos_id={bos_id}; the model has embeddings 0 to {rows - 1}")
        if lora_rank is not None:
            add_lora(model, lora_rank, seed)
        if gradient_checkpointing:
            recompute_activations(model)
        if compile_decoding and step_of(model.eval()) is None:
            raise ValueError(
                f"compile_decoding=True and a {type(model).__name__}; steps are written out, and can be compiled, for "
                "a plain GPT2LMHeadModel with sdpa attention alone, without adapters, hooks, autocast or "
                "gradient_checkpointing: leave it out"
            )
        self.compile_decoding = compile_decoding
        self.size, self.vocabulary = size, vocabulary
        self.bos_id = None if bos_id is None else operator.index(bos_id)
        self.model = model
        self.gradient_checkpointing = gradient_checkpointing
        self.temperature, self.truncation = checked_temperature(temperature), Truncation(top_k, top_p, min_p)
        self.value_head = ValueHead(model) if value_head else None
        self.generator = torch.Generator(device="cpu").manual_seed(seed)
        self.eval()

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "model":  # whoever puts another in its place has it used everywhere
            self._next_tokens = NextTokens(value, self.size, self.bos_id)
            self._cache = PrefixCache(value, checksum=True, compiled=self.compile_decoding)  # where none is given
            self._reference_cache = PrefixCache(value)  # of frozen weights

    @classmethod
    def small(
        cls,
        env_or_vocabulary_size: Any,
        d_model: int = 64,
        num_layers: int = 2,
        temperature: float = 1.0,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        **settings: Any,
    ) -> Self:
        """A small untrained GPT-2-architecture policy for an environment, or for V tokens.

        Its positions are learned: where a token stands is what most tasks turn on, and a small rotary model without a
        first token to look back at learns it many times slower. It has one embedding more than tokens, id V, which an
        empty history is fed as.

        Args:
            env_or_vocabulary_size: an environment, scalar or vector, wrapped or not; or V.
            d_model: width; a multiple of 32, or less than 32 for one narrower head.
            num_layers: transformer blocks.
            temperature: see the class.
            seed: of the initial weights and of the policy's own generator; the global generator stays as it is.
            dtype: of the weights; adapters and a value head are in float32 at least.
            device: where the model runs.
            settings: further arguments of the class, by keyword.

        >>> TransformerPolicy.small(5).size
        5
        """
        vocabulary, size, max_length = _shape_of(env_or_vocabulary_size)
        stop_ids = vocabulary.stop_ids if vocabulary else ()
        model = make_small_model(size, d_model, num_layers, max_length, stop_ids, seed).to(dtype)
        policy = cls(model, size, vocabulary, bos_id=size, temperature=temperature, seed=seed, **settings)
        policy._next_tokens = NextTokens(model, size, policy.bos_id, attends_to_all=True)
        return policy.to(device)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        vocabulary: Vocabulary | None = None,
        temperature: float | None = None,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        **settings: Any,
    ) -> Self:
        """The policy of a Hugging Face folder, or of a folder that `save_pretrained` wrote.

        Args:
            folder: holds config.json, safetensors weights and, without `vocabulary`, a tokenizer.json.
            vocabulary: the tokens instead of the folder's, for instance an environment's.
            temperature: instead of the saved one; 1 where none was saved.
            seed: of the policy's own generator.
            dtype: of the weights, whatever they were saved in.
            device: where the model runs.
            settings: further arguments of the class, by keyword, instead of the saved ones.

        Raises:
            FileNotFoundError, ValueError: no model there, one that is not causal, or a tokenizer that does not fit it.

        Warns:
            UserWarning: the model cannot be run with a prefix cache, or not past some length.
        """
        folder = Path(folder)
        model = load_model(folder, dtype)
        saved = _read_settings(folder)
        if saved.get("adapter"):
            load_adapter(model, folder / _ADAPTER_FOLDER)
        if vocabulary is None and (folder / "tokenizer.json").is_file():
            vocabulary = Vocabulary.from_path(folder, saved.get("stop_ids"))
        size = vocabulary.size if vocabulary else int(saved.get("size", model.config.get_text_config().vocab_size))
        if temperature is not None:
            settings["temperature"] = temperature
        settings = {name: saved[name] for name in _SAVED if name in saved} | settings
        bos_id = saved["bos_id"] if "bos_id" in saved else bos_id_of(model)
        policy = cls(model, size, vocabulary, bos_id, seed=seed, **settings)
        if policy.value_head is not None and saved.get("value_head"):
            policy.value_head.load(folder)
        policy.to(device)
        check_causal(model)
        _ = policy._next_tokens.cacheable  # said now, where it is limited
        return policy

    def save_pretrained(self, folder: str | Path, merge_adapters: bool = True) -> None:
        """Write a folder that `AutoModelForCausalLM` and, with a vocabulary, `AutoTokenizer` open.

        Args:
            folder: made where it does not exist.
            merge_adapters: whether the adapters of LoRA are added to the weights. Otherwise the weights are those of
                the reference, and the adapters lie beside them in `adapter/`, where `from_pretrained` finds them.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if self.vocabulary is not None:
            self.model.generation_config.eos_token_id = list(self.vocabulary.stop_ids) or None
        apart = is_lora(self.model) and not merge_adapters
        self._save_model(folder, apart)
        if self.vocabulary is not None:
            self.vocabulary.save(folder)
        if self.value_head is not None:
            self.value_head.save(folder)
        else:
            ValueHead.remove(folder)
        truncation = self.truncation
        settings = {
            "size": self.size,
            "bos_id": self.bos_id,
            "temperature": self.temperature,
            "top_k": truncation.top_k,
            "top_p": truncation.top_p,
            "min_p": truncation.min_p,
            "value_head": self.value_head is not None,
            "adapter": apart,
            "stop_ids": None if self.vocabulary is None else list(self.vocabulary.stop_ids),
        }
        (folder / _SETTINGS_FILE).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")

    def _save_model(self, folder: Path, apart: bool) -> None:
        shutil.rmtree(folder / _ADAPTER_FOLDER, ignore_errors=True)  # of what was saved there before
        if apart:
            save_base(self.model, folder)
            save_adapter(self.model, folder / _ADAPTER_FOLDER)
        elif is_lora(self.model):
            save_merged(self.model, folder)
        else:
            save_model(self.model, folder)

    def act(
        self,
        observations: Any,
        generator: torch.Generator | None = None,
        deterministic: bool = False,
        action_mask: np.ndarray | None = None,
        cache: PrefixCache | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Choose the next token in each state.

        Args:
            observations: int [N, L], histories padded on the right with PAD = V; or dict observations, whose `tokens`
                and `action_mask` are read.
            generator: draws the tokens; the policy's own seeded one by default.
            deterministic: take the most probable token instead.
            action_mask: bool or 0/1 [N, V], True where a token is legal; by default that of dict observations.
            cache: what `prefix_cache` makes; its owner clears it when the weights change. Without one, the policy uses
                one of its own, for which it looks at all weights in every call.

        Returns:
            actions int64 [N] and their log π(a | s), float32 [N].

        Raises:
            ValueError: observations of another shape or with ids outside 0..V, or an empty history without a BOS.
        """
        choice = self.choose(observations, generator, deterministic, action_mask, cache)
        return choice.actions, choice.log_probs

    @torch.no_grad()
    def choose(
        self,
        observations: Any,
        generator: torch.Generator | None = None,
        deterministic: bool = False,
        action_mask: np.ndarray | None = None,
        cache: PrefixCache | None = None,
    ) -> Choice:
        """As `act`, with the support that the tokens were sampled from."""
        if np.shape(tokens_of(observations))[:1] == (0,):
            return Choice(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float32), None)
        distribution = self.distribution(observations, action_mask, cache or self._cache)
        actions = distribution.mode() if deterministic else distribution.sample(generator or self.generator)
        log_probs = distribution.log_prob(actions)
        support = distribution.support.cpu().numpy() if self.truncation and distribution.support is not None else None
        return Choice(actions.cpu().numpy(), log_probs.float().cpu().numpy(), support)

    def distribution(
        self, observations: Any, action_mask: np.ndarray | None = None, cache: PrefixCache | None = None
    ) -> TokenDistribution:
        """π(· | s) in each state; see `act` for the arguments. It carries a gradient where there is no cache."""
        return self._distribution(self.next_logits(observations, cache), observations, action_mask)

    def distribution_and_values(
        self, observations: Any, action_mask: np.ndarray | None = None, cache: PrefixCache | None = None
    ) -> tuple[TokenDistribution, Tensor]:
        """π(· | s) and V(s) [N] of each state, from one pass through the model: what an actor-critic learner asks for.

        Without a cache both carry a gradient, and states of one episode, any number of them in any order, cost no more
        than the longest of them.

        Args:
            observations: see `act`, N ≥ 1 of them.
            action_mask: see `act`.
            cache: see `act`.

        Raises:
            ValueError: as `act`; or there is no value head.
        """
        if self.value_head is None:
            raise ValueError(_NO_VALUE_HEAD)
        logits, features = self._next_tokens.after_with_features(histories_of(observations, self.size), cache)
        return self._distribution(logits, observations, action_mask), self.value_head(features)

    def features(self, observations: Any, cached: bool = False) -> Tensor:
        """What the output layer reads in each state, [N, d]: for networks of one's own that stand on the model.

        Args:
            observations: see `act`, N ≥ 1 of them.
            cached: whether the policy's own prefix cache is used, and there is no gradient.
        """
        cache = self._cache if cached else None
        return self._next_tokens.after_with_features(histories_of(observations, self.size), cache)[1]

    def _distribution(self, logits: Tensor, observations: Any, action_mask: np.ndarray | None) -> TokenDistribution:
        if action_mask is None:
            action_mask = action_mask_of(observations)
        mask = None if action_mask is None else self._to_device(checked_mask(action_mask, (len(logits), self.size)))
        return TokenDistribution(logits, self.size, self.temperature, mask, self.truncation)

    def next_logits(self, observations: Any, cache: PrefixCache | None = None) -> Tensor:
        """What the model says of the next token in each state, [N, V'], before temperature, masks and truncation.

        Args:
            observations: as `act` takes them.
            cache: see `act`; without one the logits carry a gradient.
        """
        return self._next_tokens.after(histories_of(observations, self.size), cache)

    def prefix_cache(self) -> PrefixCache:
        """A cache for `act`, to be cleared by its owner when the weights change."""
        return PrefixCache(self.model, compiled=self.compile_decoding)

    def action_distribution(self, rollout: Rollout) -> TokenDistribution:
        """π(· | s_t) at every step of B episodes, [B, T], within the action masks or the support of the sampling.

        What it says where `rollout.mask` is False means nothing.
        """
        logits = self._next_tokens.at(histories_of(rollout.tokens, self.size), _positions(rollout))
        return self._action_distribution(rollout, logits)

    def token_scores(
        self, rollout: Rollout, values: bool = False, entropy_gradient: bool = True, restricted: bool = True
    ) -> TokenScores:
        """Log-probabilities of the sampled tokens and entropies of π(· | s_t), [B, T], from one pass through the model.

        What `action_distribution` says of them, without the logits of B · T places: see `agents.token_scores`.

        Args:
            rollout: B episodes.
            values: whether V(s_t) of the value head is wanted too.
            entropy_gradient: whether the entropies carry a gradient, as all else does.
            restricted: within the action masks or the support of the sampling; False takes all tokens.

        Raises:
            ValueError: values are wanted and there is no value head.
        """
        if values and self.value_head is None:
            raise ValueError(_NO_VALUE_HEAD)
        mask = self._to_device(rollout.mask)
        if not len(mask):
            none = torch.zeros(mask.shape, device=mask.device)
            return TokenScores(none, none, none if values else None)
        if rollout.action_mask is not None:
            checked_mask(rollout.action_mask, (*rollout.mask.shape, self.size))
        rows, steps = np.nonzero(rollout.mask)

        def distribution(logits: Tensor, part: slice) -> TokenDistribution:
            if not restricted:
                return TokenDistribution(logits, self.size, self.temperature)
            return self._action_distribution(_at(rollout, rows[part], steps[part]), logits)

        read = self._read_where_chosen(rollout, values)
        head = self.model.get_output_embeddings() if self._next_tokens.head_is_last else None
        actions = self._to_device(rollout.actions[rows, steps])
        log_probs, entropy = scored(read[0], head, distribution, actions, entropy_gradient)
        said = self.value_head(read[-1]) if self.value_head is not None and values else None
        return TokenScores(
            spread_out(log_probs, mask), spread_out(entropy, mask), None if said is None else spread_out(said, mask)
        )

    def log_probs(self, rollout: Rollout) -> Tensor:
        """Log π_θ(a_t | s_t) of the sampled tokens, [B, T], with gradient; 0 where not mask."""
        return self.token_scores(rollout).log_probs

    @torch.no_grad()
    def unrestricted_log_probs(self, rollout: Rollout) -> Tensor:
        """Log π(a_t | s_t) over all tokens at the policy's temperature, [B, T], without gradient; 0 where not mask.

        Neither masks nor truncation play a part: they restrict a policy, and not what it is held to. KL(π‖π_ref) needs
        π_ref over all tokens.
        """
        return self.token_scores(rollout, restricted=False).log_probs

    def reference_log_probs(self, rollout: Rollout) -> Tensor:
        """`unrestricted_log_probs` of the model without its adapters, log π_ref(a_t | s_t).

        Raises:
            ValueError: the model has no adapters.
        """
        with adapter_off(self.model):
            return self.unrestricted_log_probs(rollout)

    def reference_log_prob(self, observations: Any, actions: np.ndarray) -> np.ndarray:
        """The same of single steps, float64 [N]: what `textgym.schemes.Reference` asks for.

        Args:
            observations: as `act` takes them.
            actions: int64 [N].

        Raises:
            ValueError: the model has no adapters, or actions of another shape or outside 0..V-1.
        """
        actions = np.asarray(actions)
        if actions.ndim != 1 or not np.issubdtype(actions.dtype, np.integer):
            raise ValueError(f"actions are {actions.dtype} {actions.shape}; give integers of shape [N]")
        if actions.size and (actions.min() < 0 or actions.max() >= self.size):
            raise ValueError(f"actions go from {actions.min()} to {actions.max()}; give 0 to {self.size - 1}")
        with adapter_off(self.model), torch.no_grad():
            logits = self.next_logits(observations, self._reference_cache)
            distribution = TokenDistribution(logits, self.size, self.temperature)
            return distribution.log_prob(self._to_device(actions)).double().cpu().numpy()

    def values(self, states: Any) -> Tensor:
        """V(s) of the value head, with gradient.

        Args:
            states: a rollout, or observations as `act` takes them.

        Returns:
            Of a rollout [B, T], the value of the state before each action, 0 where not mask; of observations [N].

        Raises:
            ValueError: there is no value head.
        """
        if isinstance(states, Rollout):
            return self.action_distribution_and_values(states)[1]
        histories = histories_of(states, self.size)
        lengths = (histories != self.size).sum(axis=1)
        return self._logits_and_values(histories, lengths[:, None] - 1)[1][:, 0]

    def action_distribution_and_values(self, rollout: Rollout) -> tuple[TokenDistribution, Tensor]:
        """`action_distribution` and `values` of a rollout, from one pass through the model."""
        logits, values = self._logits_and_values(histories_of(rollout.tokens, self.size), _positions(rollout))
        values = values.masked_fill(~self._to_device(rollout.mask), 0.0)
        return self._action_distribution(rollout, logits), values

    def add_value_head(self) -> None:
        """Give the model a value head, which says 0 of every state, where it has none."""
        if self.value_head is None:
            self.value_head = ValueHead(self.model)

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode: dropout would make the scored distribution another than the sampled one."""
        return super().train(False)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    @property
    def max_length(self) -> int | None:
        """Tokens of the longest history that the model was made for, or None where it sets no limit."""
        return max_length_of(self.model)

    def _to_device(self, array: np.ndarray) -> Tensor:
        return torch.as_tensor(array, device=self.device)

    def _action_distribution(self, rollout: Rollout, logits: Tensor) -> TokenDistribution:
        # The support holds the action mask; cut off anew, it would be another after an update.
        support = rollout.support
        legal = rollout.action_mask if support is None else support
        mask = None if legal is None else self._to_device(checked_mask(legal, (*rollout.mask.shape, self.size)))
        truncation = self.truncation if support is None else NO_TRUNCATION
        return TokenDistribution(logits, self.size, self.temperature, mask, truncation)

    def _read_where_chosen(self, rollout: Rollout, features: bool) -> tuple[Tensor, ...]:
        """What is read off the model before each of the M sampled tokens, [M, ...].

        First what the output layer reads, where nothing follows that layer, otherwise the logits. Where the features
        are wanted, they are the last.
        """
        read: Reader = logits_and_features_at if features else _logits_alone
        if self._next_tokens.head_is_last:
            read = features_at
        mask = rollout.mask
        # Where nothing was chosen the history may be empty, which not every policy can be asked about.
        positions = np.where(mask, _positions(rollout), 0)
        found = self._next_tokens.read_at(histories_of(rollout.tokens, self.size), positions, read)
        chosen = self._to_device(np.flatnonzero(mask))
        return tuple(each.flatten(0, 1).index_select(0, chosen) for each in found)

    def _logits_and_values(self, histories: np.ndarray, positions: np.ndarray) -> tuple[Tensor, Tensor]:
        if self.value_head is None:
            raise ValueError(_NO_VALUE_HEAD)
        logits, features = self._next_tokens.read_at(histories, positions, logits_and_features_at)
        return logits, self.value_head(features)


def _positions(rollout: Rollout) -> np.ndarray:
    """Where the token stands that each action follows, int64 [B, T]; -1 where the history is empty."""
    start, last = rollout.prompt_length[:, None] - 1, rollout.length[:, None] - 2
    return np.minimum(start + np.arange(rollout.mask.shape[1]), last)


def _at(rollout: Rollout, rows: np.ndarray, steps: np.ndarray) -> Rollout:
    """Some steps, int64 [n] each, as far as the masks and supports of their states go: these are [n, V] then."""

    def at(array: np.ndarray | None) -> np.ndarray | None:
        return None if array is None else array[rows, steps]

    return rollout._replace(
        mask=rollout.mask[rows, steps], action_mask=at(rollout.action_mask), cut_off=at(rollout.cut_off)
    )


def _logits_alone(model: PreTrainedModel, tokens: Tensor, places: Tensor) -> tuple[Tensor]:
    return (logits_at(model, tokens, places),)


def _shape_of(env_or_vocabulary_size: Any) -> tuple[Vocabulary | None, int, int]:
    """The vocabulary where there is one, V, and the longest history, 0 where it is not known."""
    env = env_or_vocabulary_size
    if hasattr(env, "__index__") and not isinstance(env, bool):
        if env < 1:
            raise ValueError(f"vocabulary size {env}; give at least 1")
        return None, int(env), 0
    problem = getattr(getattr(env, "unwrapped", env), "problem", None)
    if not isinstance(problem, Problem):
        raise TypeError(f"give a TextGen-v0 environment or a number of tokens, not {type(env).__name__}")
    return problem.vocabulary, problem.vocabulary.size, problem.max_length


def _read_settings(folder: Path) -> dict[str, Any]:
    file = folder / _SETTINGS_FILE
    return read_json(file) if file.is_file() else {}
