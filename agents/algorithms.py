"""The algorithms: a table from a name to a choice on each of several independent axes.

A row of one's own is a choice too: `ALGORITHMS["mine"] = Algorithm("mine", advantages="group_mean", objective="clip")`,
or `make_algorithm("grpo", aggregation="token_mean")`; on some axes a function stands for a name. What there is to
choose is in `agents.axes`. Does not import torch: names are checked before it is loaded.
"""

import math
from dataclasses import replace
from typing import Any

from agents.axes import AXES, KL_FORMS, Algorithm
from textgym.errors import unknown
from textgym.escape import shown

_THE_GRADIENT = "∇J, unbiased"
_BY_LENGTH = "each token over the length of its text"

ALGORITHMS: dict[str, Algorithm] = {
    row.name: row
    for row in (
        Algorithm("reinforce", "return", batch_multiple=6, ascends=_THE_GRADIENT),
        Algorithm("reinforce_baseline", "batch_leave_one_out", batch_multiple=2, ascends=_THE_GRADIENT),
        Algorithm("reinforce_to_go", "to_go", batch_multiple=6, ascends=_THE_GRADIENT),
        Algorithm("rloo", "leave_one_out", ascends=_THE_GRADIENT),
        Algorithm(
            "grpo",
            "group_mean",
            scale="group_std",
            objective="clip",
            aggregation="sequence_mean",
            kl="k3",
            clip_epsilon=0.2,
            ascends=f"for rewards of 0 and 1, 2 arcsin √p as G grows; {_BY_LENGTH}",
        ),
        Algorithm(
            "dr_grpo",
            "group_mean",
            objective="clip",
            kl="k3",
            clip_epsilon=0.2,
            ascends="(G-1)/G ∇J: the right direction, scaled",
        ),
        Algorithm(
            "dapo",
            "group_mean",
            scale="group_std",
            objective="clip",
            aggregation="token_mean",
            kl="none",
            clip_epsilon=0.2,
            clip_epsilon_high=0.28,
            sampling_rounds=3,
            overlong_buffer=0.2,
            ascends="as grpo, but each token over the mean length of the batch",
        ),
        Algorithm(
            "gspo",
            "group_mean",
            scale="group_std",
            objective="clip",
            importance="sequence",
            aggregation="sequence_mean",
            kl="k3",
            clip_epsilon=3e-4,
            clip_epsilon_high=4e-4,
            ascends="as grpo at the first step: E[A / length], A held fixed",
        ),
        Algorithm(
            "cispo",
            "group_mean",
            scale="group_std",
            objective="cispo",
            aggregation="token_mean",
            kl="none",
            clip_epsilon_high=4.0,
            ascends="as grpo, but each token over the mean length of the batch",
        ),
        Algorithm(
            "reinforce_pp",
            "to_go",
            scale="whiten",
            objective="clip",
            aggregation="token_mean",
            clip_epsilon=0.2,
            ascends="∇J over the deviation of the batch's advantages, each token over the batch's mean length",
        ),
        Algorithm("a2c", "gae", ascends=f"{_THE_GRADIENT} whatever the critic says, since λ = 1"),
        Algorithm(
            "ppo",
            "gae",
            scale="whiten",
            objective="clip",
            aggregation="token_mean",
            clip_epsilon=0.2,
            num_epochs=4,
            gae_lambda=0.95,
            ascends="∇J as far as the critic is right, scaled; its bound, from the second step on",
        ),
    )
}
# What the advantages of a row need, and what they alone read, goes with them.
_OF_ADVANTAGES = "min_group_size min_episodes critic gamma gae_lambda value_coef batch_multiple"
_WITHOUT = {name: getattr(Algorithm, name) for name in _OF_ADVANTAGES.split()}  # the class holds the defaults


def make_algorithm(algorithm: str | Algorithm, **axes: Any) -> Algorithm:
    """The algorithm of a name, or the row itself, with other choices on some axes.

    Args:
        algorithm: a name of `ALGORITHMS`, or a row.
        **axes: attributes of `Algorithm` to replace. Other advantages need what they need themselves, and no critic
            or group because those of the row did.

    Raises:
        TypeError, ValueError: no such name, axis or choice.

    >>> make_algorithm("grpo", aggregation="token_mean").aggregation
    'token_mean'
    """
    if not isinstance(algorithm, str | Algorithm):
        names = ", ".join(sorted(ALGORITHMS))
        raise TypeError(f"algorithm is {shown(algorithm)}; give one of {names}, or an Algorithm")
    if isinstance(algorithm, str):
        if algorithm not in ALGORITHMS:
            raise ValueError(unknown("algorithm", algorithm, ALGORITHMS))
        algorithm = ALGORITHMS[algorithm]
    for axis in axes:
        if axis not in AXES:
            raise TypeError(f"algorithm {algorithm.name!r}: {unknown('axis', axis, AXES)}")
    if "advantages" in axes:
        axes = _WITHOUT | axes
    return replace(algorithm, **axes, ascends="") if axes else algorithm  # which was said of the row as it was


def check_kl(algorithm: Algorithm, kl_coef: float, kl_target: float | None, reference: bool) -> None:
    """Refuse settings of the KL to a reference that are out of range, or that nothing would read.

    Args:
        algorithm: whose KL term they are about.
        kl_coef: β, its weight.
        kl_target: what β is adapted to, in nats per token; None leaves it as it is.
        reference: whether a reference is given.

    Raises:
        ValueError: with the setting, its value and what is allowed.
    """
    if not 0 <= kl_coef < math.inf:
        raise ValueError(f"kl_coef={kl_coef}; give a finite number of at least 0")
    if kl_coef and algorithm.kl == "none":
        raise ValueError(
            f"kl_coef={kl_coef} and algorithm {algorithm.name!r}, which has no KL term; leave kl_coef out, or choose "
            f"where the term stands, kl='k3' for instance: {', '.join(KL_FORMS[1:])}"
        )
    if kl_target is not None and not 0 < kl_target < math.inf:
        raise ValueError(f"kl_target={kl_target}; give a finite number above 0, in nats per token")
    for name, given in (("kl_target", kl_target is not None), ("reference", reference)):
        if given and not kl_coef:
            raise ValueError(f"{name} is given and kl_coef=0, which does not use it; give a kl_coef above 0 too")
