"""TransformerPolicy: a causal language model as π_θ(a_t | s_t) = P_θ(x_t | x_<t).

The state is a token history as the environment shows it; the policy is stateless to its caller. Does not know episodes,
rewards or gradients. Every call runs the whole history through the model; nothing is cached between calls.
"""

import inspect
import json
import os
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GenerationConfig, GPT2Config, GPT2LMHeadModel, PreTrainedModel

from agents.observations import action_mask_of, tokens_of
from agents.rollout import Rollout
from agents.sampling import TokenDistribution
from textgym.problem import Problem
from textgym.vocabulary import Vocabulary

_HEAD_SIZE = 32
_MAX_POSITIONS = 1024  # of a small policy, where no environment asks for more
# Wide enough that a small untrained model tells positions and tokens apart from the first update on.
_INITIALIZER_RANGE = 0.1
_SETTINGS_FILE = "textgym.json"


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
    """

    def __init__(
        self,
        model: PreTrainedModel,
        size: int,
        vocabulary: Vocabulary | None = None,
        bos_id: int | None = None,
        temperature: float = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        rows = model.get_input_embeddings().weight.shape[0]
        if rows < size:
            raise ValueError(
                f"the model has {rows} embeddings for {size} tokens; give it the tokenizer it was made for"
            )
        if bos_id is not None and not 0 <= bos_id < rows:
            raise ValueError(f"bos_id={bos_id}; the model has embeddings 0 to {rows - 1}")
        self.model, self.size, self.vocabulary, self.bos_id = model, size, vocabulary, bos_id
        self.temperature = temperature
        self.generator = torch.Generator(device="cpu").manual_seed(seed)
        self._keeps_logits = "logits_to_keep" in inspect.signature(model.forward).parameters
        self.eval()

    @classmethod
    def small(
        cls,
        env_or_vocabulary_size: Any,
        d_model: int = 64,
        num_layers: int = 2,
        temperature: float = 1.0,
        seed: int = 0,
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

        >>> TransformerPolicy.small(5).size
        5
        """
        vocabulary, size, max_length = _shape_of(env_or_vocabulary_size)
        if d_model < 1 or (d_model > _HEAD_SIZE and d_model % _HEAD_SIZE):
            raise ValueError(f"d_model={d_model}; give a multiple of {_HEAD_SIZE}, or a number below it")
        stop_ids = list(vocabulary.stop_ids) if vocabulary else []
        config = GPT2Config(
            vocab_size=size + 1,
            n_embd=d_model,
            n_layer=num_layers,
            n_head=max(1, d_model // _HEAD_SIZE),
            n_positions=max(_MAX_POSITIONS, max_length),
            initializer_range=_INITIALIZER_RANGE,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=size,
            eos_token_id=stop_ids or None,
            pad_token_id=None,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = GPT2LMHeadModel(config)
        return cls(model, size, vocabulary, bos_id=size, temperature=temperature, seed=seed)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        vocabulary: Vocabulary | None = None,
        temperature: float | None = None,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> Self:
        """The policy of a Hugging Face folder, or of a folder that `save_pretrained` wrote.

        Args:
            folder: holds config.json, safetensors weights and, without `vocabulary`, a tokenizer.json.
            vocabulary: the tokens instead of the folder's, for instance an environment's.
            temperature: instead of the saved one; 1 where none was saved.
            seed: of the policy's own generator.
            dtype: of the weights, whatever they were saved in.

        Raises:
            FileNotFoundError, ValueError: no model there, or a tokenizer that does not fit it.
        """
        folder = Path(folder)
        check_model_folder(folder)
        settings = _read_settings(folder)
        if vocabulary is None and (folder / "tokenizer.json").is_file():
            vocabulary = Vocabulary.from_path(folder)
        model = _load_model(folder, dtype)
        size = vocabulary.size if vocabulary else int(settings.get("size", model.config.get_text_config().vocab_size))
        if temperature is None:
            temperature = float(settings.get("temperature", 1.0))
        bos_id = settings["bos_id"] if "bos_id" in settings else _bos_id(model)
        return cls(model, size, vocabulary, bos_id, temperature, seed)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a folder that `AutoModelForCausalLM` and, with a vocabulary, `AutoTokenizer` open."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if self.vocabulary is not None:
            self.model.generation_config.eos_token_id = list(self.vocabulary.stop_ids) or None
        _save_model(self.model, folder)
        if self.vocabulary is not None:
            self.vocabulary.save(folder)
        settings = {"size": self.size, "temperature": self.temperature, "bos_id": self.bos_id}
        (folder / _SETTINGS_FILE).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")

    @torch.no_grad()
    def act(
        self,
        observations: Any,
        generator: torch.Generator | None = None,
        deterministic: bool = False,
        action_mask: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Choose the next token in each state.

        Args:
            observations: int [N, L], histories padded on the right with PAD = V; or dict observations, whose `tokens`
                and `action_mask` are read.
            generator: draws the tokens; the policy's own seeded one by default.
            deterministic: take the most probable token instead.
            action_mask: bool or 0/1 [N, V], True where a token is legal; by default that of dict observations.

        Returns:
            actions int64 [N] and their log π(a | s), float32 [N].

        Raises:
            ValueError: observations of another shape or with ids outside 0..V, or an empty history without a BOS.
        """
        if np.shape(tokens_of(observations))[:1] == (0,):
            return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float32)
        distribution = self.distribution(observations, action_mask)
        actions = distribution.mode() if deterministic else distribution.sample(generator or self.generator)
        log_probs = distribution.log_prob(actions)
        return actions.cpu().numpy(), log_probs.float().cpu().numpy()

    def distribution(self, observations: Any, action_mask: np.ndarray | None = None) -> TokenDistribution:
        """π(· | s) in each state; see `act` for the arguments."""
        histories = self._checked(tokens_of(observations))
        if action_mask is None:
            action_mask = action_mask_of(observations)
        lengths = (histories != self.size).sum(dim=1)
        logits = self._logits(histories, lengths[:, None] - 1)[:, 0]
        mask = None if action_mask is None else self._checked_mask(action_mask, (len(histories), self.size))
        return TokenDistribution(logits, self.size, self.temperature, mask)

    def action_distribution(self, rollout: Rollout) -> TokenDistribution:
        """π(· | s_t) at every step of B episodes, [B, T], under the action masks that they were played with.

        What it says where `rollout.mask` is False means nothing.
        """
        steps = torch.arange(rollout.mask.shape[1])
        start = torch.as_tensor(rollout.prompt_length)[:, None] - 1
        last = torch.as_tensor(rollout.length)[:, None] - 2  # the last action is predicted from the token before it
        positions = torch.minimum(start + steps, last)
        mask = None
        if rollout.action_mask is not None:
            mask = self._checked_mask(rollout.action_mask, (*rollout.mask.shape, self.size))
        logits = self._logits(self._checked(rollout.tokens), positions)
        return TokenDistribution(logits, self.size, self.temperature, mask)

    def log_probs(self, rollout: Rollout) -> Tensor:
        """Log π_θ(a_t | s_t) of the sampled tokens, [B, T], with gradient; 0 where not mask."""
        mask = torch.as_tensor(rollout.mask)
        log_probs = self.action_distribution(rollout).log_prob(self._to_device(rollout.actions))
        return log_probs.masked_fill(~mask.to(log_probs.device), 0.0)

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
        return getattr(self.model.config.get_text_config(), "max_position_embeddings", None)

    def _to_device(self, array: np.ndarray) -> Tensor:
        return torch.as_tensor(array, device=self.device)

    def _checked(self, observations: np.ndarray) -> Tensor:
        array = np.asarray(observations)
        if array.ndim != 2 or not np.issubdtype(array.dtype, np.integer):
            raise ValueError(f"observations are {array.dtype} {array.shape}; give integers of shape [N, L]")
        if array.size and (array.min() < 0 or array.max() > self.size):
            raise ValueError(
                f"observations hold ids from {array.min()} to {array.max()}; this policy has tokens 0 to "
                f"{self.size - 1} and PAD = {self.size}: make the policy for this environment's vocabulary"
            )
        padding = array == self.size
        if (padding[:, :-1] & ~padding[:, 1:]).any():
            raise ValueError(f"observations hold PAD = {self.size} before a token; histories are padded on the right")
        return self._to_device(array.astype(np.int64))

    def _checked_mask(self, action_mask: np.ndarray, shape: tuple[int, ...]) -> Tensor:
        mask = np.asarray(action_mask, dtype=bool)
        if mask.shape != shape:
            raise ValueError(f"action_mask has the shape {mask.shape}; give {shape}, one value a state and token")
        return self._to_device(mask)

    def _logits(self, histories: Tensor, positions: Tensor) -> Tensor:
        """Next-token logits after the token at each position.

        Padding stands on the right and attention is causal, so no token sees it and no attention mask is needed.

        Args:
            histories: int64 [B, L], PAD on the right.
            positions: int64 [B, K], the last token of each history; -1 for the empty one.

        Returns:
            [B, K, V'].
        """
        positions = positions.to(self.device)
        empty = positions < 0
        places = positions.clamp(min=0)
        tokens = histories[:, : int(places.max()) + 1]
        if self.max_length is not None and tokens.shape[1] > self.max_length:
            raise ValueError(f"a history has {tokens.shape[1]} tokens, more than the {self.max_length} of the model")
        logits = self._model_logits(tokens.masked_fill(tokens == self.size, 0), places)
        if not empty.any():
            return logits
        if self.bos_id is None:
            raise ValueError(
                "a history is empty and the model has no BOS token; give it a prompt of at least one token"
            )
        first = self._model_logits(places.new_full((1, 1), self.bos_id), places.new_zeros(1, 1))
        return torch.where(empty[:, :, None], first, logits)

    def _model_logits(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Logits [B, K, V'] of token ids [B, T] at positions int64 [B, K]."""
        if self._keeps_logits:  # the other positions are not projected on the vocabulary at all
            return self.model(input_ids=tokens, use_cache=False, logits_to_keep=positions).logits
        logits = self.model(input_ids=tokens, use_cache=False).logits
        return torch.take_along_dim(logits, positions[:, :, None], dim=1)


def check_model_folder(folder: Path) -> None:
    """Raise FileNotFoundError where a folder holds no model."""
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"model {str(folder)!r}: there is no file {str(folder / 'config.json')!r}")


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


def _load_model(folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    name = f"model {str(folder)!r}"
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            dtype=dtype,
            output_loading_info=True,
        )
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        if "auto_map" in _read_json(folder / "config.json"):
            raise ValueError(f"{name} needs code of its own (auto_map), which is never run") from error
        raise ValueError(f"{name} does not load as a causal language model: {error}") from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise ValueError(f"{name} lacks the weights {', '.join(missing[:5])} ({len(missing)} in all); save it again")
    return model


def _save_model(model: PreTrainedModel, folder: Path) -> None:
    # Sampling settings that a model came with are not the policy's, and contradictory ones refuse to be saved.
    own = model.generation_config
    model.generation_config = GenerationConfig(
        bos_token_id=own.bos_token_id, eos_token_id=own.eos_token_id, pad_token_id=own.pad_token_id
    )
    model.save_pretrained(folder)
    umask = os.umask(0)
    os.umask(umask)
    for file in folder.glob("*.safetensors"):
        file.chmod(0o666 & ~umask)  # safetensors makes its files readable by their owner alone


def _bos_id(model: PreTrainedModel) -> int | None:
    rows = model.get_input_embeddings().weight.shape[0]
    bos_id = model.config.get_text_config().bos_token_id
    return bos_id if isinstance(bos_id, int) and 0 <= bos_id < rows else None


def _read_settings(folder: Path) -> dict[str, Any]:
    file = folder / _SETTINGS_FILE
    return _read_json(file) if file.is_file() else {}


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{str(file)!r} does not load: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{str(file)!r} holds no JSON object")
    return content
