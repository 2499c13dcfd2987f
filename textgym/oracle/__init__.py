"""Exact ground truth for small tasks: values, optima and distributions by enumeration; numpy only."""

from textgym.oracle.tree import Sequences, Tree, enumerate_tree

__all__ = ["Sequences", "Tree", "enumerate_tree"]
