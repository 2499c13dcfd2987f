"""Advantages: how good an action was, as pure functions of rewards.

Values are float64, and constant returns give exactly 0 under every baseline: a rounding error would otherwise be turned
into a step by Adam.
"""

import numpy as np


def total_return(rewards: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """R(τ) at every step (REINFORCE, Williams 1992).

    Args:
        rewards: [B, T] what each step paid.
        mask: bool [B, T], True where the policy chose the token.

    Returns:
        [B, T], 0 where not mask.

    >>> total_return(np.array([[0.0, 2.0, 0.0]]), np.array([[True, True, False]]))
    array([[2., 2., 0.]])
    """
    assert rewards.shape == mask.shape
    return np.where(mask, np.where(mask, rewards, 0.0).sum(axis=1, keepdims=True), 0.0)


def reward_to_go(rewards: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Σ_{k≥t} r_k: an action cannot change the rewards before it (the policy gradient theorem, Sutton et al. 2000).

    Args:
        rewards: [B, T] what each step paid.
        mask: bool [B, T], True where the policy chose the token.

    Returns:
        [B, T], 0 where not mask.

    >>> reward_to_go(np.array([[1.0, 2.0, 3.0]]), np.array([[True, True, True]]))
    array([[6., 5., 3.]])
    """
    assert rewards.shape == mask.shape
    paid = np.where(mask, rewards, 0.0)
    return np.where(mask, np.cumsum(paid[:, ::-1], axis=1)[:, ::-1], 0.0)


def leave_one_out(returns: np.ndarray, group: np.ndarray) -> np.ndarray:
    """R_i minus the mean of the other members' returns (RLOO, Kool et al. 2019).

    The baseline of an episode does not depend on it, so that the gradient stays unbiased. An episode without others,
    since they were dropped, has nothing to be compared with: its advantage is 0.

    Args:
        returns: [B] R(τ).
        group: int [B], the group of each episode; any order.

    Returns:
        [B] advantages; exactly 0 in a group of equal returns, or of one.

    >>> leave_one_out(np.array([1.0, 0.0, 0.5]), np.array([0, 0, 0]))
    array([ 0.75, -0.75,  0.  ])
    """
    assert returns.shape == group.shape
    advantages = np.empty_like(returns)
    for member in np.unique(group):
        rows = np.flatnonzero(group == member)
        gap = returns[rows] - returns[rows].min()  # a common shift changes nothing, and makes equal returns exact zeros
        advantages[rows] = (len(rows) * gap - gap.sum()) / max(len(rows) - 1, 1)
    return advantages


def spread(advantages: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Repeat one advantage an episode, [B], at each of its steps, [B, T]; 0 where not mask."""
    assert advantages.shape == mask.shape[:1]
    return np.where(mask, advantages[:, None], 0.0)
