"""How far back a model's layers look: the longest history for which keys and values can be kept and used again.

Told by comparison with the plain model, since configurations name windows in many ways and other layers not at all.
"""

import warnings

import numpy as np
import torch
from transformers import PreTrainedModel

from agents.models import logits_at, max_length_of
from agents.prefix_cache import PrefixCache

_SHORT = 8  # tokens of the comparison where nothing says that layers have a window, and past one
_ROWS, _STEPS = 3, 3  # histories that are compared, and tokens that they grow by
_LONGEST_WINDOW = 1024  # that is looked past; for a longer one it would take minutes
_MATTERS = 1e-3  # probability of the tokens that are compared
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}  # nats
_HALF_PRECISION_TOLERANCE = 0.25


def cacheable_length(model: PreTrainedModel) -> int | None:
    """Tokens of the longest history that a prefix cache is right for; None where there is no limit, 0 for no history.

    A model with windows is compared past the window, any other on a few tokens.

    Warns:
        UserWarning: there is a limit.
    """
    longest, window = max_length_of(model), window_of(model)
    if window is not None and (longest is None or window < longest):
        within, past = window, window + _SHORT
    else:
        within = past = _SHORT if longest is None else min(_SHORT, longest)
    if not agrees(model, min(within, _LONGEST_WINDOW)):
        _warn("the model's layers keep something else than keys and values: it runs without the prefix cache")
        return 0
    if past == within or (past <= _LONGEST_WINDOW + _SHORT and agrees(model, past)):
        return None
    _warn(
        f"the model attends to the last {within} tokens alone: histories of more than {within} tokens run without the "
        "prefix cache, in full at every step"
    )
    return within


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
    difference = cache_difference(model, length)
    return difference <= TOLERANCE.get(model.dtype, _HALF_PRECISION_TOLERANCE)  # NaN does not


def cache_difference(model: PreTrainedModel, length: int) -> float:
    """Largest difference, in nats, of the cached from the plain log-probs of random histories.

    Args:
        model: the language model.
        length: tokens of the longest of a few histories, which grow up to there and change places on the way: a model
            that keeps a state of its own mixes them up.

    Returns:
        Over all tokens with a probability of at least .001; infinity where the model cannot be cached at all.
    """
    size = model.get_input_embeddings().weight.shape[0]
    tokens = np.random.default_rng(0).integers(size, size=(_ROWS, length))
    lengths = np.maximum(1, length - np.arange(_STEPS, -1, -1) - np.arange(_ROWS)[:, None])  # [rows, steps]
    cache, cached = PrefixCache(model), []
    for step in range(lengths.shape[1]):
        order = np.roll(np.arange(_ROWS), step)
        try:
            cached.append(cache.logits(tokens[order], lengths[order, step])[np.argsort(order)])
        except Exception:  # a model of another kind may fail in any way
            return float("inf")
    with torch.no_grad():
        inputs, places = (torch.as_tensor(array, device=model.device) for array in (tokens, lengths - 1))
        rows = [logits_at(model, inputs[row : row + 1], places[row : row + 1]) for row in range(_ROWS)]
    expected = torch.cat(rows).float().log_softmax(dim=-1)
    difference = (torch.stack(cached, dim=1).float().log_softmax(dim=-1) - expected).abs()
    return float(difference[expected.exp() >= _MATTERS].max())


def _warn(message: str) -> None:
    warnings.warn(message, UserWarning, stacklevel=5)
