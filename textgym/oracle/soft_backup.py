"""The backup of the KL-regularised problem: V_β and π* of states whose Q_β is known, at any β."""

import numpy as np


def soft_backup(log_ref: np.ndarray, q: np.ndarray, beta: float) -> tuple[np.ndarray, np.ndarray]:
    """V_β = β log Σ_a π_ref(a) e^{Q_β(a)/β}, log π*(a) = log π_ref(a) + (Q_β(a) - V_β)/β.

    Around the best token, V_β = max Q + β log1p(Σ_a π_ref(a) expm1((Q(a) - max Q)/β)): nothing overflows where β is
    small, and nothing cancels where it is so large that e^{Q/β} is 1. That needs probabilities that sum to 1 exactly;
    those of π_ref, which a check of policies lets differ by rounding, are divided by their sum.

    Args:
        log_ref: float64 [..., V], log π_ref; -inf where it never writes the token, nor does π* then. At least one is
            finite.
        q: float64 [..., V], finite.
        beta: β > 0.

    Returns:
        V_β, float64 [...], and log π*, float64 [..., V].

    >>> v, log_probs = soft_backup(np.log([[0.5, 0.5]]), np.array([[1.0, 0.0]]), beta=1e20)
    >>> v, np.exp(log_probs)
    (array([0.5]), array([[0.5, 0.5]]))
    """
    within = np.where(log_ref > -np.inf, q, -np.inf)
    best = within.max(axis=-1, keepdims=True)
    with np.errstate(over="ignore"):  # a small β: all but the best weigh nothing
        worse = (within - best) / beta  # at most 0
    probabilities = np.exp(log_ref)
    total = probabilities.sum(axis=-1, keepdims=True)
    lost = (probabilities * np.expm1(worse)).sum(axis=-1, keepdims=True) / total  # in [-1, 0]
    weights = log_ref - np.log(total) + worse
    # Where little is left of 1 + lost, it has no digits, and the best tokens are too rare for π_ref itself.
    log_sum = np.where(lost > -0.5, np.log1p(np.maximum(lost, -0.5)), _log_sum_exp(weights))
    return (best + beta * log_sum)[..., 0], weights - log_sum


def log_partition(v: np.ndarray, beta: float) -> np.ndarray:
    """V_β / β of initial states, which is log Z.

    Args:
        v: float64 [...], V_β.
        beta: β > 0.

    Raises:
        ValueError: it is larger than a float64 can be.
    """
    with np.errstate(over="ignore"):
        found = v / beta
    if not np.isfinite(found).all():
        raise ValueError(
            f"beta={beta:g} is too small: log Z = V/β overflows, V being {np.abs(v).max():g}; give a larger beta, or "
            "ask for the optimum, which β = 0 stands for"
        )
    return found


def _log_sum_exp(weights: np.ndarray) -> np.ndarray:
    """Over the last axis, which stays; at least one weight is finite."""
    largest = weights.max(axis=-1, keepdims=True)
    return largest + np.log(np.exp(weights - largest).sum(axis=-1, keepdims=True))
