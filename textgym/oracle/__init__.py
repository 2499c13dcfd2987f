"""Exact ground truth for small tasks: values, optima and distributions by enumeration; numpy only."""

from textgym.oracle.groups import effective_reward
from textgym.oracle.policy_values import Optimum, Values, optimum, values
from textgym.oracle.sequence_level import BestOfN, best_of_n, sequence_log_probs
from textgym.oracle.soft import SoftOptimum, entropy, kl, regularised_objective, soft_optimum
from textgym.oracle.tree import Sequences, Tree, enumerate_tree

__all__ = [
    "BestOfN",
    "Optimum",
    "Sequences",
    "SoftOptimum",
    "Tree",
    "Values",
    "best_of_n",
    "effective_reward",
    "entropy",
    "enumerate_tree",
    "kl",
    "optimum",
    "regularised_objective",
    "sequence_log_probs",
    "soft_optimum",
    "values",
]
