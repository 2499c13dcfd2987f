"""Which of some returns are the same number: sums along different paths round differently."""

import numpy as np

_TOLERANCE = 1e-12  # of the largest number that was summed


def distinct(returns: np.ndarray, scale: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """The distinct values of K returns, and the place of each return among them.

    Args:
        returns: float64 [K], finite.
        scale: the largest Σ_t |r_t| of them, where returns are sums: terms that cancel leave a rounding error of their
            own size. The largest return counts too.

    Returns:
        Values, float64 [D], ascending, and places, int64 [K].

    >>> distinct(np.array([0.3, 0.0, 0.1 + 0.2]))
    (array([0. , 0.3]), array([1, 0, 1]))
    """
    order = np.argsort(returns, kind="stable")
    ascending = returns[order]
    new = np.diff(ascending, prepend=-np.inf) > _TOLERANCE * np.abs(returns).max(initial=scale)
    places = np.empty(len(returns), dtype=np.int64)
    places[order] = np.cumsum(new) - 1
    return ascending[new], places
