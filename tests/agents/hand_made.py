"""Four episodes, and what each algorithm weighs their tokens with, worked out by hand."""

import statistics
from collections.abc import Sequence

import numpy as np
import torch

from agents.axes import Algorithm
from agents.rollout import Rollout
from agents.surrogate import Batch, surrogate
from tests.agents import tiny
from tests.agents.tiny import STOP, A, B, C

# Three endings: a stop at once, a stop last, the horizon; and a stop in between.
EPISODES = [
    tiny.Episode(0, [A], [STOP], [0.5], 1),
    tiny.Episode(0, [A], [B, C, STOP], [0.25, -1.0, 2.0], 1),
    tiny.Episode(1, [B, C], [A, A, B], [0.0, 0.0, 1.0], 2),
    tiny.Episode(1, [B, C], [C, STOP], [0.0, 3.0], 1),
]
GROUP = [0, 0, 1, 1]
VALUES = [[0.25, 0, 0], [0.5, -0.5, 1.0], [0.5, 0.75, 0.25], [1.0, 2.0, 0]]  # of a critic

# Returns .5 and 1.25, 1 and 3: the members of a group are ∓.375 and ∓1 from its mean, and with deviations of .75/√2 and
# 2/√2 both groups have ∓1/√2.
_S = 0.5**0.5
_GRPO = [[-_S / 4, 0, 0], [_S / 3 / 4] * 3, [-_S / 3 / 4] * 3, [_S / 2 / 4, _S / 2 / 4, 0]]
_PER_TOKEN = [[-_S / 9, 0, 0], [_S / 9] * 3, [-_S / 9] * 3, [_S / 9, _S / 9, 0]]


def _whitened(values: Sequence[float]) -> list[list[float]]:
    """Of the nine tokens in order, over their number, as the standard library has mean and deviation."""
    one, *rest = [(value - statistics.mean(values)) / statistics.stdev(values) / 9 for value in values]
    return [[one, 0, 0], rest[:3], rest[3:6], [*rest[6:], 0]]


# Minus the derivative of the loss by each token's log-probability, at the first step: an advantage over B = 4 or over
# the nine tokens, nothing on the padding.
COEFFICIENTS = {
    "reinforce": [[0.125, 0, 0], [0.3125, 0.3125, 0.3125], [0.25, 0.25, 0.25], [0.75, 0.75, 0]],
    "reinforce_to_go": [[0.125, 0, 0], [0.3125, 0.25, 0.5], [0.25, 0.25, 0.25], [0.75, 0.75, 0]],
    "rloo": [[-0.1875, 0, 0], [0.1875, 0.1875, 0.1875], [-0.5, -0.5, -0.5], [0.5, 0.5, 0]],
    # The others' means are 5.25/3, 4.5/3, 4.75/3 and 2.75/3.
    "reinforce_baseline": [
        [-1.25 / 4, 0, 0],
        [-0.25 / 4, -0.25 / 4, -0.25 / 4],
        [-1.75 / 12, -1.75 / 12, -1.75 / 12],
        [6.25 / 12, 6.25 / 12, 0],
    ],
    "grpo": _GRPO,
    "gspo": _GRPO,
    "dr_grpo": [[-0.375 / 4, 0, 0], [0.375 / 4] * 3, [-0.25] * 3, [0.25, 0.25, 0]],
    "dapo": _PER_TOKEN,
    "cispo": _PER_TOKEN,
    "reinforce_pp": _whitened([0.5, 1.25, 1, 2, 1, 1, 1, 3, 3]),
    # Rewards to go minus the critic's values.
    "a2c": [[0.25 / 4, 0, 0], [0.75 / 4, 1.5 / 4, 1 / 4], [0.5 / 4, 0.25 / 4, 0.75 / 4], [2 / 4, 1 / 4, 0]],
    # One-step errors .25; -.75, .5, 1; .25, -.5, .75; 1, 1; each takes .95 of the next advantage with it.
    "ppo": _whitened(
        [
            *[0.25],
            *[-0.75 + 0.95 * (0.5 + 0.95), 0.5 + 0.95, 1],
            *[0.25 + 0.95 * (-0.5 + 0.95 * 0.75), -0.5 + 0.95 * 0.75, 0.75],
            *[1 + 0.95, 1],
        ]
    ),
}


def rollout() -> Rollout:
    """The episodes, with the critic's values."""
    return tiny.rollout_of(EPISODES, GROUP)._replace(values=np.array(VALUES))


def coefficients(algorithm: Algorithm, of: Rollout) -> np.ndarray:
    """What the production advantages and loss weigh each token's log-probability with at the first step, [B, T]."""
    mask = torch.tensor(of.mask)
    leaf = torch.full(mask.shape, -1.0, dtype=torch.float64, requires_grad=True)
    batch = Batch(torch.tensor(algorithm.advantages_of(of)), mask, len(mask), of.num_tokens)
    return -torch.autograd.grad(surrogate(algorithm, leaf, batch).loss, leaf)[0].numpy()
