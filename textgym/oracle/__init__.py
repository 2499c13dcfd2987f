"""Exact ground truth: values, optima and distributions by enumeration, or over an automaton; numpy only."""

from textgym.oracle.automaton import (
    FoldedOptimum,
    FoldedSoftOptimum,
    FoldedValues,
    folded_kl,
    folded_optimum,
    folded_soft_optimum,
    folded_values,
)
from textgym.oracle.folding import Folded, FoldedPolicy, fold
from textgym.oracle.groups import effective_reward
from textgym.oracle.ngram import NGram
from textgym.oracle.policy_values import Optimum, Values, optimum, values
from textgym.oracle.sequence_level import BestOfN, best_of_n, sequence_log_probs
from textgym.oracle.soft import SoftOptimum, entropy, kl, regularised_objective, soft_optimum
from textgym.oracle.tree import Sequences, Tree, enumerate_tree

__all__ = [
    "BestOfN",
    "Folded",
    "FoldedOptimum",
    "FoldedPolicy",
    "FoldedSoftOptimum",
    "FoldedValues",
    "NGram",
    "Optimum",
    "Sequences",
    "SoftOptimum",
    "Tree",
    "Values",
    "best_of_n",
    "effective_reward",
    "entropy",
    "enumerate_tree",
    "fold",
    "folded_kl",
    "folded_optimum",
    "folded_soft_optimum",
    "folded_values",
    "kl",
    "optimum",
    "regularised_objective",
    "sequence_log_probs",
    "soft_optimum",
    "values",
]
