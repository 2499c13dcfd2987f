"""How an episode ends: flags, finish reasons, masks, and what is paid then, on a process worked by hand."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

from tests.textgym.cases import MODES, promise
from textgym import schemes
from textgym.finish import FinishReason

A, B, C, D, STOP, PAD = range(6)
REVERSE = dict(tokenizer=["a", "b", "<eos>"], prompts=["b"], max_new_tokens=2)


def length(completions):
    return [len(text) / 4 for text in completions]


@pytest.mark.parametrize(("on_limit", "flags"), [("terminate", (True, False)), ("truncate", (False, True))])
def test_the_horizon_sets_the_flag_that_on_limit_names_and_pays_all_the_same(on_limit, flags):
    env = gym.make("TextGen-v0", reward=length, on_limit=on_limit, **REVERSE)
    env.reset()
    assert env.step(0)[1:4] == (0.0, False, False)
    _, reward, terminated, truncated, info = env.step(1)
    assert (reward, (terminated, truncated), info["finish_reason"]) == (0.5, flags, FinishReason.LIMIT)


def test_a_stop_token_terminates_also_at_the_last_allowed_place():
    env = gym.make("TextGen-v0", reward=length, on_limit="truncate", **REVERSE)
    env.reset()
    env.step(0)
    _, reward, terminated, truncated, info = env.step(2)
    assert (reward, terminated, truncated, info["finish_reason"]) == (0.25, True, False, FinishReason.STOP)


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
def test_vector_flags_of_the_horizon(mode):
    envs = gym.make_vec("TextGen-v0", num_envs=2, reward=length, on_limit="truncate", autoreset_mode=mode, **REVERSE)
    envs.reset(seed=0)
    envs.step(np.array([0, 0]))
    _, rewards, terminated, truncated, _ = envs.step(np.array([2, 1]))
    assert rewards.tolist() == [0.25, 0.5]
    assert (terminated.tolist(), truncated.tolist()) == ([True, False], [False, True])
    _, rewards, terminated, truncated, infos = envs.step(np.array([0, 0]))
    frozen = mode is AutoresetMode.DISABLED
    assert rewards.tolist() == [0.0, 0.0]
    assert (terminated.tolist(), truncated.tolist()) == ([frozen, False], [False, frozen])
    assert infos["finish_reason"].tolist() == ([1, 2] if frozen else [0, 0])


def masked(**keywords):
    return gym.make("TextGen-v0", task="no_repeat", **keywords)


def test_the_mask_of_every_state_of_an_episode():
    env = masked().unwrapped
    _, info = env.reset(options={"prompt": "bc"})
    masks = [info["action_mask"].tolist()]
    for action in (D, A):
        masks.append(env.step(action)[4]["action_mask"].tolist())
        assert env.action_masks().tolist() == [bool(legal) for legal in masks[-1]]
    assert masks == [[1, 0, 0, 1, 0], [1, 0, 0, 0, 0], [0, 0, 0, 0, 1]]
    _, reward, terminated, _, info = env.step(STOP)
    assert (reward, terminated, info["finish_reason"]) == (1 / 3, True, FinishReason.STOP)
    assert info["action_mask"].tolist() == [1, 1, 1, 1, 1]  # never all zeros
    assert info["action_mask"].dtype == np.int8


def test_a_dead_end_ends_the_episode_and_its_text_is_scored():
    env = masked()
    env.reset(options={"prompt": ""})
    for action in (A, B):
        assert env.step(action)[2] is False
    _, reward, terminated, truncated, info = env.step(C)  # after three tokens nothing is legal, the horizon is four
    assert (reward, terminated, truncated) == (2 / 3, True, False)
    assert (info["finish_reason"], info["length"], info["true_score"]) == (FinishReason.DEAD_END, 3, 1.0)


def test_an_illegal_action_raises_says_what_is_legal_and_changes_nothing():
    env = masked()
    before, _ = env.reset(options={"prompt": "bc"})
    with pytest.raises(ValueError, match=r"action 1 of row 0 is illegal now; legal are 0, 3\. Choose by action_masks"):
        env.step(B)
    observation, *_, info = env.step(D)
    assert observation.tolist() == [B, C, D, PAD, PAD, PAD]
    assert before.tolist() == [B, C, PAD, PAD, PAD, PAD]
    assert info["action_mask"].tolist() == [1, 0, 0, 0, 0]


def test_an_illegal_action_ends_the_episode_unscored_where_it_may():
    env = masked(on_illegal_action="terminate")
    env.reset(options={"prompt": "a"})
    env.step(C)
    observation, reward, terminated, truncated, info = env.step(C)
    assert observation.tolist() == [A, C, C, PAD, PAD, PAD]  # what was done stays in the history
    assert (reward, terminated, truncated) == (0.0, True, False)
    assert (info["finish_reason"], info["score"], info["true_score"]) == (FinishReason.ILLEGAL_ACTION, 0.0, 0.0)
    assert not info["scores_valid"].any()
    assert info["action_mask"].all() and info["valid"]


@pytest.mark.parametrize("scheme", ["terminal", "prefix_delta"])
def test_the_true_score_comes_with_the_end_and_goes_with_the_next_episode(scheme):
    env = masked(scheme=scheme)
    for _ in range(2):
        infos = [env.reset(options={"prompt": ""})[1], *(env.step(action)[4] for action in (A, B, STOP))]
        assert [info["true_score"] for info in infos] == [0.0, 0.0, 0.0, 2 / 3]


def test_a_reward_of_ones_own_has_no_true_score():
    assert "true_score" in masked().reset(seed=0)[1]
    assert "true_score" not in masked(reward=length).reset(seed=0)[1]


@pytest.mark.parametrize("actions", [[STOP], [A, B, A]], ids=["stop token", "horizon"])
def test_an_illegal_action_comes_before_a_stop_and_the_horizon(actions):
    env = masked(on_illegal_action="terminate", on_limit="truncate", max_new_tokens=3)
    env.reset(options={"prompt": ""})
    *_, (_, reward, terminated, truncated, info) = [env.step(action) for action in actions]
    assert (info["finish_reason"], terminated, truncated) == (FinishReason.ILLEGAL_ACTION, True, False)
    assert (reward, info["score"]) == (0.0, 0.0)


def test_after_an_illegal_action_the_rewards_of_prefix_delta_still_sum_to_the_score():
    env = masked(on_illegal_action="terminate", scheme="prefix_delta")
    env.reset(options={"prompt": "b"})
    assert [env.step(action)[1] for action in (A, C, C)] == [1 / 3, 1 / 3, -2 / 3]


def test_after_an_illegal_action_the_potential_of_the_end_is_zero():
    env = masked(on_illegal_action="terminate", scheme=schemes.Potential(promise))
    env.reset(options={"prompt": "b"})
    # Φ of the states: -1/7, 1 - 1/7, and 0 of the end
    assert [env.step(action)[1] for action in (A, A)] == pytest.approx([1.0, -6 / 7])


def test_an_action_outside_the_space_is_never_taken_for_an_illegal_one():
    env = masked(on_illegal_action="terminate")
    env.reset(seed=0)
    for action in (-1, 5):
        with pytest.raises(ValueError, match="outside the action space"):
            env.step(action)


def test_a_start_without_a_legal_token_is_refused():
    with pytest.raises(ValueError, match=r"allows no token at all at the start.*'a'.*3 tokens"):
        masked().reset(options={"prompt": "a", "completion_ids": [1, 2, 3]})


def test_vector_masks_of_rows_that_stand_apart():
    envs = gym.make_vec(
        "TextGen-v0", num_envs=3, task="no_repeat", on_illegal_action="terminate", autoreset_mode="Disabled"
    )
    _, infos = envs.reset(options={"rows": {"prompt": ["", "bc", "a"]}})
    assert infos["action_mask"].tolist() == [[1, 1, 1, 1, 0], [1, 0, 0, 1, 0], [0, 1, 1, 1, 0]]
    *_, infos = envs.step(np.array([A, B, C]))
    assert infos["action_mask"].tolist() == [[0, 1, 1, 1, 0], [1, 1, 1, 1, 1], [0, 1, 0, 1, 0]]
    assert infos["finish_reason"].tolist() == [0, 4, 0]
    np.testing.assert_array_equal(envs.unwrapped.action_masks(), infos["action_mask"].astype(bool))


def test_an_illegal_action_of_one_row_leaves_every_row_where_it_is():
    envs = gym.make_vec("TextGen-v0", num_envs=2, task="no_repeat")
    envs.reset(options={"rows": {"prompt": ["", "bc"]}})
    with pytest.raises(ValueError, match="action 2 of row 1 is illegal"):
        envs.step(np.array([C, C]))
    assert envs.step(np.array([C, A]))[0].tolist() == [[C, *[PAD] * 5], [B, C, A, *[PAD] * 3]]


@pytest.mark.parametrize(
    ("returned", "error", "words"),
    [
        ([True] * 5, TypeError, "constraint 'wrong' returned .*list.*numpy array"),
        (np.ones(5), ValueError, r"constraint 'wrong' returned float64 \(5,\).*bool \(5,\)"),
        (np.ones(4, dtype=bool), ValueError, r"constraint 'wrong' returned bool \(4,\)"),
    ],
)
def test_a_constraint_that_returns_something_else(returned, error, words):
    from dataclasses import replace

    import textgym
    from tests.textgym.cases import make_no_repeat

    def wrong(prompt, completion_ids, tokens_left):
        return returned

    textgym.tasks.TASKS.pop("wrong_mask", None)
    textgym.register_task(
        "wrong_mask", lambda level: replace(make_no_repeat(level), name="wrong_mask", constraint=wrong)
    )
    with pytest.raises(error, match=words):
        gym.make("TextGen-v0", task="wrong_mask").reset()


@pytest.mark.parametrize("keywords", [dict(tokenizer=["a", "b", "c", "d", "e", "<eos>"])])
def test_an_own_tokenizer_drops_the_constraint_of_the_task_with_its_ids(keywords):
    env = masked(**keywords)
    assert "action_mask" not in env.reset(seed=0)[1]


@pytest.mark.parametrize("horizon", [2, 3, 4, 7])
def test_a_constraint_knows_the_tokens_that_a_horizon_of_ones_own_leaves(horizon):
    envs = gym.make_vec(
        "TextGen-v0", num_envs=40, task="brackets", max_new_tokens=horizon, autoreset_mode="SameStep", text_info=True
    )
    rng, written = np.random.default_rng(0), set()
    _, infos = envs.reset(seed=0)
    for _ in range(2 * horizon):
        actions = np.array([rng.choice(np.flatnonzero(mask)) for mask in infos["action_mask"]])
        *_, infos = envs.step(actions)
        written |= set(infos.get("final_info", {"completion": []})["completion"]) - {None}
    assert written
    for text in written:
        while "()" in text:
            text = text.replace("()", "")
        assert text == ""  # balanced, whatever the horizon


def test_a_prefix_that_the_mask_forbids_is_refused():
    env = masked().unwrapped
    env.reset(options={"prompt": "a"})
    before = env.get_state()
    with pytest.raises(ValueError, match=r"breaks the task's constraint: token 1 at place 1 .* after \[1\]"):
        env.reset(seed=4, options={"prompt": "a", "completion_ids": [1, 1]})
    assert {name: array.tolist() for name, array in env.get_state().items()} == {
        name: array.tolist() for name, array in before.items()
    }
