"""Transformer policies and policy-gradient learners over `gym.make_vec("TextGen-v0")`.

Names are loaded when first used: the command line answers `--help` and wrong flags before torch is imported.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agents.algorithms import ALGORITHMS, make_algorithm
    from agents.axes import Algorithm
    from agents.learner import PolicyGradient, Update
    from agents.policy import TransformerPolicy
    from agents.rollout import Rollout, collect
    from agents.sampling import TokenDistribution

__all__ = [
    "ALGORITHMS",
    "Algorithm",
    "PolicyGradient",
    "Rollout",
    "TokenDistribution",
    "TransformerPolicy",
    "Update",
    "collect",
    "make_algorithm",
]
_HOMES = {
    "ALGORITHMS": "algorithms",
    "Algorithm": "axes",
    "PolicyGradient": "learner",
    "Rollout": "rollout",
    "TokenDistribution": "sampling",
    "TransformerPolicy": "policy",
    "Update": "learner",
    "collect": "rollout",
    "make_algorithm": "algorithms",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'agents' has no attribute {name!r}")
    return getattr(importlib.import_module(f"agents.{_HOMES[name]}"), name)
