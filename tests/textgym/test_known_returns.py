"""What is known of a task's returns is told only where it still holds."""

import gymnasium as gym
import numpy as np
import pytest

import textgym


class HalfScore:
    scores_prefixes = False

    def pay(self, payment):
        return np.where(payment.ended, payment.score / 2, 0.0)


@pytest.mark.parametrize("scheme", ["terminal", "prefix_delta", textgym.schemes.PrefixDelta()])
def test_schemes_that_pay_the_score_keep_the_optimum(scheme):
    env = gym.make("TextGen-v0", task="reverse", scheme=scheme).unwrapped
    assert (env.optimum, env.uniform) == (1.0, 1 / 4)


@pytest.mark.parametrize(
    "keywords",
    [
        {"scheme": HalfScore()},
        {"reward": lambda completions: [0.0] * len(completions)},
        {"max_new_tokens": 2},
        {"prompts": ["0101"]},
        {"stop_ids": [0]},
    ],
)
def test_own_parts_make_them_unknown(keywords):
    env = gym.make("TextGen-v0", task="reverse", **keywords).unwrapped
    assert env.optimum is None
    assert env.uniform is None


def test_keywords_come_before_the_parts_of_a_task():
    env = gym.make(
        "TextGen-v0", task="sort", prompts=["70"], reward=lambda completions: [7.0], stop_ids=[3], max_new_tokens=2
    )
    observation, info = env.reset()
    assert (observation.tolist(), info["prompt_length"]) == ([7, 0, 8, 8], 2)
    assert env.step(3)[1:3] == (7.0, True)
    env.reset()
    env.step(0)
    assert env.step(0)[1:3] == (7.0, True)


def test_call_gives_each_row_its_own_space():
    envs = gym.make_vec("TextGen-v0", num_envs=2)
    assert envs.get_attr("action_space") == (envs.single_action_space,) * 2
    assert envs.get_attr("observation_space") == (envs.single_observation_space,) * 2


def test_prompts_alone_suffice():
    env = gym.make("TextGen-v0", prompts=["3120"]).unwrapped
    env.reset()
    rewards = [env.step(action)[1] for action in (0, 1, 2, 3)]
    assert rewards == [0.0, 0.0, 0.0, 1.0]


@pytest.mark.parametrize(
    ("keywords", "part"),
    [
        ({"prompts": ["3120"], "reward": lambda completions: [1.0] * len(completions)}, "tokenizer"),
        ({"prompts": ["ab"], "tokenizer": ["a", "b"]}, "reward"),
    ],
)
def test_a_part_of_the_default_task_is_not_taken_in_silence(keywords, part):
    with pytest.warns(UserWarning, match=f"{part}= is not given: that of the default task 'sort' is used"):
        gym.make("TextGen-v0", **keywords)


def test_the_default_values_given_by_hand_change_nothing():
    env = gym.make("TextGen-v0", stop=[], prompt_order="random", copy=True, rng="per_env").unwrapped
    assert (env.optimum, env.uniform) == (1.0, 1 / 8)
    assert env.reset(seed=1)[0].tolist() == gym.make("TextGen-v0").reset(seed=1)[0].tolist()


def test_a_tokenizer_of_the_tasks_symbols_without_its_stop_token_makes_them_unknown():
    own = textgym.Vocabulary.from_symbols(list(textgym.make_task("addition").tokenizer)).tokenizer
    assert gym.make("TextGen-v0", task="addition", tokenizer=own).unwrapped.optimum is None
    assert gym.make("TextGen-v0", task="addition", tokenizer=own, stop_ids=[12]).unwrapped.optimum is None
    own = textgym.Vocabulary.from_symbols(list(textgym.make_task("sort").tokenizer)).tokenizer
    assert gym.make("TextGen-v0", task="sort", tokenizer=own).unwrapped.optimum == 1.0


def test_a_task_that_was_made_cannot_be_changed_for_others():
    task = textgym.make_task("memorise")
    for part in (task.tokenizer, task.prompts):
        with pytest.raises(AttributeError):
            part.append("q")
