"""Paths of a tree as a rollout: against episodes that the scalar environment played."""

import gymnasium as gym
import numpy as np
import pytest

from agents.rollout import Rollout
from agents.tree_rollouts import longest_contexts, rollout_of
from tests.agents import tiny
from tests.textgym import cases
from textgym.oracle import enumerate_tree

assert cases.no_repeat  # registers the task


def rows_of(rollout: Rollout) -> list[tuple]:
    """What a rollout says of each episode, in one order."""
    rows = []
    for row, length in enumerate(rollout.length):
        history = tuple(rollout.tokens[row, :length])
        assert (rollout.tokens[row, length:] == rollout.vocabulary.pad_id).all()
        scalars = (rollout.prompt_length[row], rollout.finish_reason[row], rollout.score[row])
        rows.append(
            (history, *scalars, tuple(rollout.rewards[row]), tuple(rollout.actions[row]), tuple(rollout.mask[row]))
        )
    return sorted(rows)


@pytest.mark.parametrize("scheme", ["terminal", "prefix_delta"])
def test_every_sequence_is_the_episode_that_the_environment_plays(scheme):
    tree = enumerate_tree(tiny.make_env(scheme=scheme))
    sequences = tree.sequences()
    found = rollout_of(tree, sequences.nodes, sequences.actions)
    assert rows_of(found) == rows_of(tiny.rollout_of(tiny.every_episode(scheme=scheme)))
    assert found.action_mask is None and found.valid.all()
    assert len(set(found.group)) == len(found.group)


@pytest.mark.parametrize("task", ["no_repeat", "brackets"])
def test_every_state_is_read_once_and_where_it_stands(task):
    tree = enumerate_tree(gym.make("TextGen-v0", task=task))
    contexts = longest_contexts(tree)
    read = contexts.nodes[contexts.nodes >= 0]
    assert sorted(read) == list(range(tree.num_nodes))
    histories, rollout = tree.histories(), contexts.rollout
    assert rollout.action_mask is not None
    for row, step in zip(*np.nonzero(contexts.nodes >= 0), strict=True):
        node = contexts.nodes[row, step]
        length = rollout.prompt_length[row] + step
        assert (rollout.tokens[row, :length] == histories[node, :length]).all()
        assert (histories[node, length:] == rollout.vocabulary.pad_id).all()
        assert rollout.mask[row, step]
        assert (rollout.action_mask[row, step] == tree.legal[node]).all()


def test_only_contexts_that_carry_weight_are_kept():
    tree = enumerate_tree(tiny.make_env())
    contexts = longest_contexts(tree)
    node = int(contexts.nodes[4][contexts.nodes[4] >= 0][-1])
    weights = np.zeros(tree.legal.shape)
    weights[node, 1] = -1.0
    kept = contexts.carrying(weights)
    assert len(kept.nodes) == 1 and node in kept.nodes
    assert len(contexts.carrying(0 * weights).nodes) == 0
    parts = list(contexts.parts(tokens_per_pass=10))
    assert sum(len(nodes) for _, nodes in parts) == len(contexts.nodes)
    assert all(part.tokens.size <= 10 or len(nodes) == 1 for part, nodes in parts)
