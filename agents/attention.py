"""Where a model's layers look: never ahead, and how far back, which says for how long keys and values can be kept.

Told by comparison of what the model computes, since configurations name windows in many ways and other layers not at
all.
"""

import math
import re
import warnings
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from agents.models import logits_at, max_length_of
from agents.prefix_cache import PrefixCache
from textgym.escape import told

_SHORT = 8  # tokens of the comparison where nothing says that layers have a window, and past one
_ROWS, _STEPS = 3, 3  # histories that are compared, and tokens that they grow by
_MOST_OPERATIONS = 1e12  # of a look past a window, some 20 seconds on one core; a window is believed otherwise
_MATTERS = 1e-3  # probability of the tokens that are compared, beside the most probable one
_WINDOWS = re.compile("window|chunk|local|top_?k", re.IGNORECASE)  # in names of settings
# Nats that log-probs may differ by: never more than these, nor more than a small part of how far they are apart.
_MOST = {torch.float64: 1e-6, torch.float32: 1e-3}
_MOST_IN_HALF_PRECISION = 0.25
_PART_OF_SPREAD, _ROUNDINGS = 1e-4, 32


class Difference(NamedTuple):
    """How far log-probs are from what they should be, in nats."""

    figure: float  # NaN where not all is finite
    allowed: float

    @property
    def passed(self) -> bool:
        """Whether it is rounding and no more."""
        return self.figure <= self.allowed  # NaN is not


def cacheable_length(model: PreTrainedModel) -> int | None:
    """Tokens of the longest history that a prefix cache is right for; None where there is no limit, 0 for no history.

    A model is compared on a few tokens, and past the windows that its configuration names.

    Warns:
        UserWarning: there is a limit.
    """
    longest, windows = max_length_of(model), windows_of(model)
    limits = [limit for limit in (_SHORT, longest, *windows) if limit is not None]
    if not cache_difference(model, min(limits)).passed:
        _warn("the model's layers keep something else than keys and values: it runs without the prefix cache")
        return 0
    reached = [window for window in windows if longest is None or window < longest]
    for window in sorted(reached):
        past = window + _SHORT if longest is None else min(window + _SHORT, longest)
        if affordable(model, 2 * _ROWS * past) and cache_difference(model, past).passed and _says_something(model):
            continue  # what is named is no window, or no layer uses it
        _warn(
            f"the model attends to the last {window} tokens alone: histories of more than {window} tokens run without "
            "the prefix cache, in full at every step"
        )
        return window
    return None


def check_causal(model: PreTrainedModel) -> None:
    """Refuse a model for which a token's probability depends on what comes after it.

    Raises:
        ValueError: it does, and by how much; or its log-probs are not finite.
    """
    try:
        difference = lookahead(model)
    except Exception as error:  # settings that do not fit each other show when the model first runs
        raise ValueError(f"{type(model).__name__} does not run: {told(error)}") from error
    if not math.isfinite(difference.figure):
        raise ValueError(f"the log-probs of {type(model).__name__} are not finite: its weights are damaged")
    if not difference.passed:
        raise ValueError(
            f"{type(model).__name__} is not causal: what follows a history changes its log-probs by "
            f"{difference.figure:.2g} nats; give a model whose tokens see earlier ones alone (is_decoder, "
            "use_bidirectional_attention of config.json)"
        )


def lookahead(model: PreTrainedModel) -> Difference:
    """What other tokens to come make of the log-probs after a short random history.

    The same numbers are reckoned with either way, so that a causal model says exactly the same.
    """
    longest = max_length_of(model)
    length = _SHORT if longest is None else min(_SHORT, longest)
    tokens = _random_tokens(model, 2, length)
    known = max(1, length // 2)
    tokens[1, :known] = tokens[0, :known]
    with torch.no_grad():
        one, other = logits_at(model, tokens, torch.full((2, 1), known - 1, device=model.device))
    return log_prob_difference(one, other, part_of_spread=0.0)


def tolerance(model: PreTrainedModel) -> float:
    """The most, in nats, that is ever taken for rounding."""
    return _MOST.get(model.dtype, _MOST_IN_HALF_PRECISION)


def log_prob_difference(logits: Tensor, expected: Tensor, part_of_spread: float = _PART_OF_SPREAD) -> Difference:
    """Largest difference of log-probs, over the tokens that are expected with a probability of at least .001.

    A model that has learned little may differ by little, for a reason that will make it differ by much: what is allowed
    shrinks with what its log-probs differ by from token to token and history to history.

    Args:
        logits: [..., V'].
        expected: [..., V'], in the number format that they were reckoned in.
        part_of_spread: how large a part of that is allowed; rounding is, in any case.
    """
    eps = torch.finfo(expected.dtype).eps
    log_probs, truth = (values.double().log_softmax(dim=-1) for values in (logits, expected))
    most = _MOST.get(expected.dtype, _MOST_IN_HALF_PRECISION)
    if not torch.isfinite(truth).all():
        return Difference(math.nan, most)
    matter = truth >= truth.amax(dim=-1, keepdim=True).clamp(max=math.log(_MATTERS))
    figure = float((log_probs - truth).abs()[matter].max())
    rounding = _ROUNDINGS * eps * max(1.0, float(expected.abs().max()))
    spread = float(truth[matter].std(correction=0))
    return Difference(figure, min(most, max(rounding, part_of_spread * spread)))


def windows_of(model: PreTrainedModel) -> list[int]:
    """What the configuration names that may be how many tokens layers look back at."""
    config = model.config.get_text_config()
    if getattr(config, "use_sliding_window", True) is False:
        return []
    named = [value for name, value in config.to_dict().items() if _WINDOWS.search(name)]
    return [value for value in named if type(value) is int and value > 1]


def affordable(model: PreTrainedModel, tokens: int) -> bool:
    """Whether so many tokens can be run through a model without anyone noticing."""
    return 2 * sum(weights.numel() for weights in model.parameters()) * tokens <= _MOST_OPERATIONS


def cache_difference(model: PreTrainedModel, length: int) -> Difference:
    """What a prefix cache makes of the log-probs after random histories.

    Args:
        model: the language model.
        length: tokens of the longest of a few histories, which grow up to there and change places on the way: a model
            that keeps a state of its own mixes them up.

    Returns:
        The figure is infinite where the model cannot be cached at all.
    """
    inputs = _random_tokens(model, _ROWS, length)
    tokens = inputs.cpu().numpy()
    lengths = np.maximum(1, length - np.arange(_STEPS, -1, -1) - np.arange(_ROWS)[:, None])  # [rows, steps]
    cache, cached = PrefixCache(model), []
    for step in range(lengths.shape[1]):
        order = np.roll(np.arange(_ROWS), step)
        try:
            cached.append(cache.logits(tokens[order], lengths[order, step])[np.argsort(order)])
        except Exception:  # a model of another kind may fail in any way
            return Difference(math.inf, 0.0)
    with torch.no_grad():
        places = torch.as_tensor(lengths - 1, device=model.device)
        rows = [logits_at(model, inputs[row : row + 1], places[row : row + 1]) for row in range(_ROWS)]
    return log_prob_difference(torch.stack(cached, dim=1), torch.cat(rows))


def _says_something(model: PreTrainedModel) -> bool:
    """Whether histories make a difference at all, so that what is the same is the same for a reason."""
    tokens = _random_tokens(model, 2, 1)
    tokens[1] = (tokens[0] + 1) % model.get_input_embeddings().weight.shape[0]
    with torch.no_grad():
        one, other = logits_at(model, tokens, torch.zeros(2, 1, dtype=torch.long, device=model.device))
    return not log_prob_difference(one, other).passed


def _random_tokens(model: PreTrainedModel, rows: int, length: int) -> Tensor:
    size = model.get_input_embeddings().weight.shape[0]
    tokens = np.random.default_rng(0).integers(size, size=(rows, length))
    return torch.as_tensor(tokens, device=model.device)


def _warn(message: str) -> None:
    warnings.warn(message, UserWarning, stacklevel=5)
