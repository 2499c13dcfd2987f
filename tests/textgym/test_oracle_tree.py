"""The tree holds every state and every complete episode of the environment, and what each step pays there."""

from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest

import textgym
from tests.textgym.cases import CASES, DROPPED, make, make_no_repeat, make_vec, weighted_ids
from tests.textgym.oracle_cases import Episode, episodes_of, play_all, small_tree, states_of
from textgym.oracle import enumerate_tree, expansion

REFUSED = ("drawn_prompts", "several_rewards", "dropped", "dropped_prefixes")
LARGE = ("chat", "default", "own_prompts_alone", "prefix_delta_task", "truncate", "wide")
SMALL = 3_000  # sequences that are played one by one in a test


def ids_task(**keywords):
    own = dict(tokenizer=["a", "b", "c"], prompts=["", "ab"], reward=weighted_ids, max_new_tokens=3)
    return gym.make("TextGen-v0", **(own | keywords))


@pytest.mark.parametrize("name", [name for name in CASES if name not in REFUSED and "noisy" not in name])
def test_every_state_and_every_episode_is_that_of_the_environment(name):
    try:
        tree = enumerate_tree(make(name), limit=SMALL)
    except ValueError as error:
        assert "too large to enumerate" in str(error)
        assert name in LARGE or "-" in name  # a built-in task
        return
    played = play_all(make(name))
    assert sorted(episodes_of(tree)) == sorted(played.episodes)
    states = states_of(tree)
    assert len(set(states)) == tree.num_nodes
    assert set(states) == set(played.legal)
    tokens = {key: value["tokens"] if isinstance(value, dict) else value for key, value in played.observations.items()}
    for node, state in enumerate(states):
        np.testing.assert_array_equal(tree.legal[node], played.legal[state])
        np.testing.assert_array_equal(tree.histories()[node], tokens[state])


@pytest.mark.parametrize("name", ["columns", "masked", "stop_strings", "brackets-1"])
def test_nodes_are_numbered_by_depth_and_joined_both_ways(name):
    tree = enumerate_tree(make(name))
    states, count = states_of(tree), len(tree.prompts)
    assert tree.levels[0] == slice(0, count)
    assert tree.prompt[:count].tolist() == list(range(count))
    assert (tree.parent[:count] == -1).all() and (tree.action[:count] == -1).all()
    assert [node for level in tree.levels for node in range(level.start, level.stop)] == list(range(tree.num_nodes))
    for depth, level in enumerate(tree.levels):
        assert {len(states[node][1]) for node in range(level.start, level.stop)} == {depth}
        assert set(tree.depth[level]) == {depth}
    for node in range(count, tree.num_nodes):
        parent, action = tree.parent[node], tree.action[node]
        prompt, ids = states[parent]
        assert states[node] == (prompt, (*ids, action))
        assert tree.child[parent, action] == node
    assert (tree.child >= 0).sum() == tree.num_nodes - count
    assert (tree.ends == (tree.finish_reason > 0)).all()
    assert (tree.reward[~tree.legal] == 0).all() and (tree.child[~tree.legal] == -1).all()
    assert tree.num_sequences == tree.ends.sum() == len(tree.sequences().prompt)


def test_a_tree_by_hand():
    tree = enumerate_tree(
        gym.make(
            "TextGen-v0",
            tokenizer=["a", "<eos>"],
            prompts=["", "a"],
            reward=lambda prompts, completions: [
                len(p) + 10 * len(c) for p, c in zip(prompts, completions, strict=True)
            ],
            max_new_tokens=2,
        )
    )
    assert (tree.num_nodes, tree.size, tree.num_sequences) == (4, 2, 6)
    assert tree.levels == (slice(0, 2), slice(2, 4))
    assert tree.parent.tolist() == [-1, -1, 0, 1]
    assert tree.action.tolist() == [-1, -1, 0, 0]
    assert tree.child.tolist() == [[2, -1], [3, -1], [-1, -1], [-1, -1]]
    assert tree.reward.tolist() == [[0, 0], [0, 1], [20, 10], [21, 11]]
    assert tree.finish_reason.tolist() == [[0, 1], [0, 1], [2, 1], [2, 1]]
    assert tree.completions().tolist() == [[2, 2], [2, 2], [0, 2], [0, 2]]
    assert tree.histories().tolist() == [[2, 2, 2], [0, 2, 2], [0, 2, 2], [0, 0, 2]]
    sequences = tree.sequences()
    assert sequences.prompt.tolist() == [0, 1, 0, 0, 1, 1]
    assert sequences.nodes.tolist() == [[0, -1], [1, -1], [0, 2], [0, 2], [1, 3], [1, 3]]
    assert sequences.actions.tolist() == [[1, 0], [1, 0], [0, 0], [0, 1], [0, 0], [0, 1]]
    assert sequences.mask.tolist() == [[True, False]] * 2 + [[True, True]] * 4
    assert sequences.returns.tolist() == [0, 1, 20, 10, 21, 11]
    assert sequences.length.tolist() == [1, 1, 2, 2, 2, 2]
    assert sequences.finish_reason.tolist() == [1, 1, 2, 1, 2, 1]


def test_the_uniform_policy_draws_legal_tokens_alike():
    tree = enumerate_tree(make("masked"))
    expected = tree.legal / tree.legal.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(np.exp(tree.uniform()), expected, rtol=1e-15)
    assert (expected == 0).any()


def test_each_sequence_is_scored_once():
    seen = []

    def score(completion_ids):
        seen.extend(map(tuple, completion_ids))
        return [0.0] * len(completion_ids)

    tree = enumerate_tree(ids_task(reward=score))
    assert len(seen) == tree.num_sequences == 2 * 27
    seen.clear()
    tree = enumerate_tree(ids_task(reward=score, scheme="prefix_delta"))
    assert len(seen) == tree.legal.sum() == 2 * (3 + 9 + 27)  # every prefix once, the empty one never


@pytest.mark.parametrize("name", ["masked_dict", "shaped", "stop_strings"])
def test_steps_in_small_chunks_lead_to_the_same_tree(name, monkeypatch):
    tree = enumerate_tree(make(name))
    monkeypatch.setattr(expansion, "_ROWS", 3)
    again = enumerate_tree(make(name))
    for part in ("prompt", "parent", "action", "legal", "child", "reward", "finish_reason"):
        np.testing.assert_array_equal(getattr(again, part), getattr(tree, part))
    assert again.levels == tree.levels


def test_a_tree_cannot_be_changed():
    tree = enumerate_tree(ids_task())
    for array in (tree.reward, tree.legal, tree.weights, tree.ends, tree.depth, tree.completions()):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


def test_what_can_be_enumerated():
    env, task = make("masked"), make_no_repeat(1)
    expected = sorted(episodes_of(enumerate_tree(env)))
    assert sorted(play_all(env).episodes) == expected
    wrapped = gym.wrappers.RecordEpisodeStatistics(env)
    unregistered = replace(task, name="another")
    for given in (env.unwrapped, wrapped, make_vec("masked"), env.unwrapped.problem, task, unregistered, "no_repeat"):
        assert sorted(episodes_of(enumerate_tree(given))) == expected


def test_a_task_keeps_what_it_declares():
    problem = enumerate_tree(textgym.make_task("bandit")).problem
    assert (problem.task.name, problem.optimum, problem.uniform) == ("bandit", 1.0, 0.5)
    assert enumerate_tree(make_no_repeat(1)).problem.true_reward.names == ("<lambda>",)


@pytest.mark.parametrize("given", [None, 3, object(), gym.make("CartPole-v1")])
def test_what_cannot_be_enumerated(given):
    with pytest.raises(TypeError, match="is neither an environment nor a task; give a TextGen-v0 environment, a task"):
        enumerate_tree(given)


def test_no_such_task():
    with pytest.raises(ValueError, match="unknown task 'palindrom'.*Did you mean 'palindrome'"):
        enumerate_tree("palindrom")


def test_prompts_of_a_function_are_refused():
    with pytest.raises(ValueError, match="prompts come from a function.*give prompts= a list"):
        enumerate_tree(make("drawn_prompts"))


@pytest.mark.parametrize(
    ("name", "functions"),
    [("several_rewards", "one of 'ids', 'half', 'drawn'"), ("noisy_verifier-1", "'flipped_verdict'")],
)
def test_rewards_that_draw_are_refused(name, functions):
    with pytest.raises(ValueError, match=f"the reward is drawn: {functions} asks for a generator, rng, and an exact"):
        enumerate_tree(make(name))


def test_a_dropped_episode_is_refused():
    with (
        pytest.warns(UserWarning, match=DROPPED),
        pytest.raises(ValueError, match="an episode is dropped: .*prompt 'ab' and the completion 'a*b'.*mend the"),
    ):
        enumerate_tree(make("dropped"))
    kept = ids_task(reward=lambda completions: [1.0] * len(completions), on_reward_error="drop")
    assert (enumerate_tree(kept).sequences().returns == 1).all()


def test_a_dropped_start_is_refused():
    def potential(prompts, completions):
        return [
            float("nan") if prompt == "ab" and not text else 0.0
            for prompt, text in zip(prompts, completions, strict=True)
        ]

    env = ids_task(scheme=textgym.schemes.Potential(potential), on_reward_error="drop")
    with (
        pytest.warns(UserWarning, match=DROPPED),
        pytest.raises(ValueError, match="an episode is dropped: .*prompt 'ab' and the completion ''"),
    ):
        enumerate_tree(env)


def test_a_reward_that_fails_is_told():
    def fails(completions):
        raise ZeroDivisionError("no")

    with pytest.raises(textgym.RewardError, match="'fails' raised ZeroDivisionError: no"):
        enumerate_tree(ids_task(reward=fails))


def test_a_prompt_that_allows_no_token_is_refused():
    task = replace(make_no_repeat(1), prompts=["", "abcd"], max_prompt_tokens=4)
    with pytest.raises(ValueError, match="allows no token at all at the start, for the prompt 'abcd'"):
        enumerate_tree(task)


def test_weights_of_prompts():
    assert enumerate_tree(ids_task()).weights.tolist() == [0.5, 0.5]
    assert enumerate_tree(ids_task(), weights=[1, 3]).weights.tolist() == [0.25, 0.75]
    assert enumerate_tree(ids_task(), weights=np.array([0, 7])).weights.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("weights", "error", "words"),
    [
        ([1.0], ValueError, r"weights has the shape \(1,\); give one number for each of the 2 prompts"),
        ([[0.5, 0.5]], ValueError, r"shape \(1, 2\)"),
        ([1.0, -0.5], ValueError, r"weights\[1\] is -0.5; give finite numbers of at least 0"),
        ([1.0, float("nan")], ValueError, r"weights\[1\] is nan"),
        ([float("inf"), 1.0], ValueError, r"weights\[0\] is inf"),
        ([0.0, 0.0], ValueError, "weights add up to 0.0; give at least one above 0"),
        ([1e308, 1e308], ValueError, "weights add up to inf.*a finite sum"),
        (["a", "b"], TypeError, r"weights is \['a', 'b'\] of type list; give 2 numbers"),
    ],
)
def test_malformed_weights(weights, error, words):
    with pytest.raises(error, match=words):
        enumerate_tree(ids_task(), weights=weights)


def test_sequences_are_in_the_order_of_the_ends():
    tree = small_tree({"aa": 1.0, "ab": 2.0, "ba": 3.0, "bb": 4.0})
    assert [episode.ids for episode in episodes_of(tree)] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert episodes_of(tree)[2] == Episode(0, (1, 0), (0.0, 3.0), 2)
    last, token = np.nonzero(tree.ends)
    assert tree.sequences().nodes[:, 1].tolist() == last.tolist() == [1, 1, 2, 2]
    assert tree.sequences().actions[:, 1].tolist() == token.tolist()
