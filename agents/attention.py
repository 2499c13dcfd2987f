"""Where a model's layers look: never ahead, and how far back, which says for how long keys and values can be kept.

Told by comparison of what the model computes, since configurations name windows in many ways and other layers not at
all.
"""

import math
import warnings

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from agents.models import logits_at, max_length_of
from agents.prefix_cache import PrefixCache

_SHORT = 8  # tokens of the comparison where nothing says that layers have a window, and past one
_ROWS, _STEPS = 3, 3  # histories that are compared, and tokens that they grow by
_MOST_OPERATIONS = 1e12  # of a look past a window, some 20 seconds on one core; a window is believed otherwise
_MATTERS = 1e-3  # probability of the tokens that are compared
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}  # nats
_HALF_PRECISION_TOLERANCE = 0.25


def cacheable_length(model: PreTrainedModel) -> int | None:
    """Tokens of the longest history that a prefix cache is right for; None where there is no limit, 0 for no history.

    A model is compared on a few tokens, and past the window that its configuration names.

    Warns:
        UserWarning: there is a limit.
    """
    longest, window = max_length_of(model), window_of(model)
    if not agrees(model, min(limit for limit in (_SHORT, longest, window) if limit is not None)):
        _warn("the model's layers keep something else than keys and values: it runs without the prefix cache")
        return 0
    if window is None or (longest is not None and longest <= window):
        return None
    past = window + _SHORT if longest is None else min(window + _SHORT, longest)
    operations = 2 * sum(weights.numel() for weights in model.parameters()) * past * 2 * _ROWS
    if operations <= _MOST_OPERATIONS and agrees(model, past):
        return None  # the layers do not use the window that is named
    _warn(
        f"the model attends to the last {window} tokens alone: histories of more than {window} tokens run without the "
        "prefix cache, in full at every step"
    )
    return window


def check_causal(model: PreTrainedModel) -> None:
    """Refuse a model for which a token's probability depends on what comes after it.

    Raises:
        ValueError: it does, and by how much.
    """
    difference = lookahead(model)
    if not math.isfinite(difference):
        raise ValueError(f"the log-probs of {type(model).__name__} are not finite: its weights are damaged")
    if not difference <= tolerance(model):
        raise ValueError(
            f"{type(model).__name__} is not causal: what follows a history changes its log-probs by {difference:.2g} "
            "nats; give a model whose tokens see earlier ones alone (is_decoder, use_bidirectional_attention of "
            "config.json)"
        )


def lookahead(model: PreTrainedModel) -> float:
    """Largest difference, in nats, that later tokens make to the log-probs after a short random history."""
    longest = max_length_of(model)
    length = _SHORT if longest is None else min(_SHORT, longest)
    tokens = _random_tokens(model, 1, length)
    place = torch.full((1, 1), max(0, length // 2 - 1), device=model.device)
    with torch.no_grad():
        alone = logits_at(model, tokens[:, : int(place) + 1], place)
        inside = logits_at(model, tokens, place)
    return log_prob_difference(inside, alone)


def tolerance(model: PreTrainedModel) -> float:
    """How far log-probs of a model may differ by rounding alone, in nats."""
    return _TOLERANCE.get(model.dtype, _HALF_PRECISION_TOLERANCE)


def log_prob_difference(logits: Tensor, expected: Tensor) -> float:
    """Largest difference of log-probs, in nats, over the tokens that are expected with a probability of at least .001.

    Args:
        logits: [..., V'].
        expected: [..., V'].

    Returns:
        NaN where not all is finite.
    """
    log_probs, expected = (values.float().log_softmax(dim=-1) for values in (logits, expected))
    if not torch.isfinite(expected).all():
        return math.nan
    return float((log_probs - expected).abs()[expected.exp() >= _MATTERS].max())


def window_of(model: PreTrainedModel) -> int | None:
    """Tokens that the layers with the shortest window look back at; None where the configuration names no window."""
    config = model.config.get_text_config()
    if getattr(config, "use_sliding_window", True) is False:
        return None
    named = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size", "window_size")]
    windows = [value for value in named if isinstance(value, int) and value > 0]
    return min(windows) if windows else None


def agrees(model: PreTrainedModel, length: int) -> bool:
    """Whether log-probs from a prefix cache equal the plain model's on a history of so many tokens."""
    return cache_difference(model, length) <= tolerance(model)  # NaN does not


def cache_difference(model: PreTrainedModel, length: int) -> float:
    """Largest difference, in nats, of the cached from the plain log-probs of random histories.

    Args:
        model: the language model.
        length: tokens of the longest of a few histories, which grow up to there and change places on the way: a model
            that keeps a state of its own mixes them up.

    Returns:
        Over all tokens with a probability of at least .001; infinity where the model cannot be cached at all.
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
            return float("inf")
    with torch.no_grad():
        places = torch.as_tensor(lengths - 1, device=model.device)
        rows = [logits_at(model, inputs[row : row + 1], places[row : row + 1]) for row in range(_ROWS)]
    return log_prob_difference(torch.stack(cached, dim=1), torch.cat(rows))


def _random_tokens(model: PreTrainedModel, rows: int, length: int) -> Tensor:
    size = model.get_input_embeddings().weight.shape[0]
    tokens = np.random.default_rng(0).integers(size, size=(rows, length))
    return torch.as_tensor(tokens, device=model.device)


def _warn(message: str) -> None:
    warnings.warn(message, UserWarning, stacklevel=5)
