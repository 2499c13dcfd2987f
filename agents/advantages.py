"""Advantages: how good an action was, as pure functions of rewards.

Values are float64, and equal returns give exactly 0 under every baseline: a rounding error would otherwise be turned
into a step by Adam, or into ±1 by a division by the standard deviation. Which of them an algorithm uses is the business
of `agents.algorithms`.
"""

import numpy as np

# Sums that are equal on paper differ by less than this, relative to the size of what was summed; no reward means more.
_SAME = 1e-12


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


def reward_to_go(rewards: np.ndarray, mask: np.ndarray, gamma: float = 1.0) -> np.ndarray:
    """Σ_{k≥t} γ^{k-t} r_k: an action cannot change the rewards before it (Sutton et al. 2000).

    Args:
        rewards: [B, T] what each step paid.
        mask: bool [B, T], True where the policy chose the token.
        gamma: γ, the discount; below 1 the gradient is that of another objective.

    Returns:
        [B, T], 0 where not mask.

    >>> reward_to_go(np.array([[1.0, 2.0, 4.0]]), np.array([[True, True, True]]), gamma=0.5)
    array([[3., 4., 4.]])
    """
    return gae(rewards, np.zeros(rewards.shape), mask, gamma, gae_lambda=1.0)


def gae(
    rewards: np.ndarray, values: np.ndarray, mask: np.ndarray, gamma: float = 1.0, gae_lambda: float = 1.0
) -> np.ndarray:
    """Σ_{k≥t} (γλ)^{k-t} δ_k with δ_t = r_t + γ V(s_{t+1}) - V(s_t) (Schulman et al., 1506.02438).

    V of an ended episode is 0, one that the horizon ended included: the horizon is part of the process, and its reward
    is paid in full. With λ = 1 it is the discounted reward to go minus V(s_t), unbiased whatever the critic says.

    Args:
        rewards: [B, T] what each step paid.
        values: [B, T] V(s_t) of the state before each action.
        mask: bool [B, T], True where the policy chose the token; a prefix of each row.
        gamma: γ, the discount.
        gae_lambda: λ; 0 trusts the critic alone.

    Returns:
        [B, T], 0 where not mask.

    >>> gae(np.array([[0.0, 1.0]]), np.array([[0.5, 0.75]]), np.array([[True, True]]), gae_lambda=0.0)
    array([[0.25, 0.25]])
    """
    assert rewards.shape == values.shape == mask.shape
    paid, known = np.where(mask, rewards, 0.0), np.where(mask, values, 0.0)
    advantages = np.zeros(mask.shape)
    ahead = next_value = np.zeros(len(mask))
    for step in reversed(range(mask.shape[1])):
        delta = paid[:, step] + gamma * next_value - known[:, step]
        ahead = np.where(mask[:, step], delta + gamma * gae_lambda * ahead, 0.0)
        advantages[:, step], next_value = ahead, known[:, step]
    return advantages


def leave_one_out(returns: np.ndarray, group: np.ndarray, sizes: np.ndarray | None = None) -> np.ndarray:
    """R_i minus the mean of the other members' returns (RLOO, Kool et al. 2019).

    The baseline of an episode does not depend on it, so that the gradient stays unbiased. An episode without others,
    since they were dropped, has nothing to be compared with: its advantage is 0.

    Args:
        returns: [B] R(τ).
        group: int [B], the group of each episode; any order.
        sizes: [B] Σ_t |r_t|, what each return was summed up from, which says what a rounding error is; |R| by default.

    Returns:
        [B] advantages; exactly 0 in a group of equal returns, or of one.

    >>> leave_one_out(np.array([1.0, 0.0, 0.5]), np.array([0, 0, 0]))
    array([ 0.75, -0.75,  0.  ])
    """
    gap, member, size = _gaps(returns, group, sizes)
    return (size[member] * gap - np.bincount(member, gap)[member]) / np.maximum(size[member] - 1, 1)


def group_mean(returns: np.ndarray, group: np.ndarray, sizes: np.ndarray | None = None) -> np.ndarray:
    """R_i minus the mean return of its whole group, itself included, which scales the gradient by (G-1)/G.

    Args:
        returns: [B] R(τ).
        group: int [B], the group of each episode; any order.
        sizes: [B] Σ_t |r_t|, what each return was summed up from, which says what a rounding error is; |R| by default.

    Returns:
        [B] advantages; exactly 0 in a group of equal returns, or of one.

    >>> group_mean(np.array([1.0, 0.0, 0.5]), np.array([0, 0, 0]))
    array([ 0.5, -0.5,  0. ])
    """
    gap, member, size = _gaps(returns, group, sizes)
    return gap - (np.bincount(member, gap) / size)[member]


def group_std(returns: np.ndarray, group: np.ndarray, sizes: np.ndarray | None = None) -> np.ndarray:
    """The standard deviation of each episode's group, with Bessel's correction: over G - 1.

    Args:
        returns: [B] R(τ).
        group: int [B], the group of each episode; any order.
        sizes: [B] Σ_t |r_t|, what each return was summed up from, which says what a rounding error is; |R| by default.

    Returns:
        [B]; 1 in a group of equal returns, or of one, whose advantages are 0 and stay so when divided by it.

    >>> group_std(np.array([1.0, 0.0, 7.0, 7.0]), np.array([0, 0, 1, 1])).round(4)
    array([0.7071, 0.7071, 1.    , 1.    ])
    """
    _, member, size = _gaps(returns, group, sizes)
    squares = np.bincount(member, group_mean(returns, group, sizes) ** 2)
    deviation = np.sqrt(squares / np.maximum(size - 1, 1))
    return np.where(deviation > 0, deviation, 1.0)[member]


def equal_returns(returns: np.ndarray, group: np.ndarray, sizes: np.ndarray | None = None) -> np.ndarray:
    """Where an episode's group has one return alone, bool [B]: nothing can be learned from comparing its members.

    Args:
        returns: [B] R(τ).
        group: int [B], the group of each episode; any order.
        sizes: [B] Σ_t |r_t|, what each return was summed up from, which says what a rounding error is; |R| by default.

    >>> equal_returns(np.array([1.0, 0.0, 7.0, 7.0]), np.array([0, 0, 1, 1]))
    array([False, False,  True,  True])
    """
    gap, member, size = _gaps(returns, group, sizes)
    largest = np.zeros(len(size))
    np.maximum.at(largest, member, gap)
    return (largest == 0)[member]


def whiten(advantages: np.ndarray, mask: np.ndarray, sizes: np.ndarray | None = None) -> np.ndarray:
    """Advantages of the batch's tokens with mean 0 and standard deviation 1 (REINFORCE++, 2501.03262; PPO).

    The mean and the deviation hold the sample itself: the gradient is scaled, and no longer unbiased.

    Args:
        advantages: [B, T].
        mask: bool [B, T], True where the policy chose the token.
        sizes: [B] Σ_t |r_t| of what an episode's advantages were made from; see `group_mean`.

    Returns:
        [B, T], 0 where not mask; 0 everywhere where all are equal.

    >>> whiten(np.array([[1.0, 3.0], [2.0, 0.0]]), np.array([[True, True], [True, False]]))
    array([[-1.,  1.],
           [ 0.,  0.]])
    """
    assert advantages.shape == mask.shape
    one_group = np.zeros(int(mask.sum()), dtype=np.int64)
    whitened, each = np.zeros(mask.shape), advantages[mask]
    size = np.abs(each) if sizes is None else np.broadcast_to(sizes[:, None], mask.shape)[mask]
    whitened[mask] = group_mean(each, one_group, size) / group_std(each, one_group, size)
    return whitened


def overlong_penalty(length: np.ndarray, horizon: int, buffer: int) -> np.ndarray:
    """What an episode near the horizon is charged: 0 up to `buffer` tokens before it, then linearly down to -1 at it.

    Soft overlong punishment (DAPO, 2503.14476).

    Args:
        length: int [B], tokens that each episode generated.
        horizon: W.
        buffer: tokens over which the penalty grows; 0 for none.

    Returns:
        [B], from -1 to 0.

    >>> overlong_penalty(np.array([6, 7, 8]), horizon=8, buffer=2)
    array([ 0. , -0.5, -1. ])
    """
    if buffer == 0:
        return np.zeros(len(length))
    return np.minimum(0.0, (horizon - buffer - length) / buffer)


def spread(advantages: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Repeat one advantage an episode, [B], at each of its steps, [B, T]; 0 where not mask."""
    assert advantages.shape == mask.shape[:1]
    return np.where(mask, advantages[:, None], 0.0)


def _gaps(
    returns: np.ndarray, group: np.ndarray, sizes: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each return above the least of its group, [B], the number of its group, int [B], and the groups' sizes.

    A common shift changes no advantage, and makes equal returns exact zeros.
    """
    assert returns.shape == group.shape
    groups, member = np.unique(group, return_inverse=True)
    least, largest = np.full(len(groups), np.inf), np.full(len(groups), -np.inf)
    np.minimum.at(least, member, returns)
    np.maximum.at(largest, member, returns)
    size = np.zeros(len(groups))
    np.maximum.at(size, member, np.abs(returns) if sizes is None else sizes)
    same = largest - least <= _SAME * size
    gap = np.where(same[member], 0.0, returns - least[member])
    return gap, member, np.bincount(member, minlength=len(groups))
