"""Which prompt comes next: in order, or drawn; one generator a row, or one for all."""

import gymnasium as gym
import numpy as np
import pytest

from tests.textgym.cases import any_prompt, assert_same

KEYWORDS = dict(
    tokenizer=["a", "b", "c", "<eos>"],
    prompts=["a", "b", "c"],
    reward=lambda completions: [0.0] * len(completions),
    max_new_tokens=1,
)


def sequential(**keywords):
    return gym.make("TextGen-v0", prompt_order="sequential", **{**KEYWORDS, **keywords})


def prompt(result):
    return int(result[0][0])


def test_in_order_an_environment_walks_the_list_round_and_round():
    env = sequential()
    assert [prompt(env.reset()) for _ in range(7)] == [0, 1, 2, 0, 1, 2, 0]


def test_a_seed_begins_the_walk_again():
    env = sequential()
    assert [prompt(env.reset(seed=seed)) for seed in (5, None, 5, None, 6)] == [0, 1, 0, 1, 0]


def test_a_prompt_that_is_named_does_not_move_the_walk():
    env = sequential()
    walk = [env.reset(), env.reset(options={"prompt": "c"}), env.reset(options={"prompt_index": 2}), env.reset()]
    walk.append(env.reset(options={"completion_ids": []}))
    assert [prompt(result) for result in walk] == [0, 2, 2, 1, 2]


def test_each_row_of_a_vector_environment_walks_the_list_from_its_start():
    envs = gym.make_vec("TextGen-v0", num_envs=2, prompt_order="sequential", autoreset_mode="Disabled", **KEYWORDS)
    envs.reset(seed=0)
    observations, _ = envs.reset(options={"reset_mask": np.array([True, False])})
    assert observations[:, 0].tolist() == [1, 0]
    assert envs.reset()[0][:, 0].tolist() == [2, 1]
    assert envs.reset(seed=[None, 4])[0][:, 0].tolist() == [0, 0]
    assert envs.reset()[0][:, 0].tolist() == [1, 1]


def test_in_order_needs_a_list():
    words = "prompt_order='sequential' needs a list of prompts"
    with pytest.raises(ValueError, match=words):
        sequential(prompts=any_prompt, max_prompt_tokens=4)


def shared(num_envs=4, **keywords):
    return gym.make_vec(
        "TextGen-v0", num_envs=num_envs, task="sort", level=3, rng="shared", autoreset_mode="SameStep", **keywords
    )


def test_a_shared_generator_gives_the_same_walk_for_the_same_seed_and_another_for_another():
    first, same, other = shared(), shared(), shared()
    start = first.reset(seed=3)
    assert_same(start, same.reset(seed=3))
    assert not np.array_equal(start[0], other.reset(seed=4)[0])
    rng = np.random.default_rng(0)
    for _ in range(30):
        actions = rng.integers(10, size=4)
        assert_same(first.step(actions), same.step(actions))


def test_rows_with_a_shared_generator_draw_one_after_the_other_from_it():
    envs = shared(num_envs=5)
    observations, _ = envs.reset(seed=11)
    generator = np.random.default_rng(11)
    indices = generator.integers(10**8, size=5)
    assert [int("".join(map(str, row[:8]))) for row in observations] == indices.tolist()
    assert envs.unwrapped.np_random_seed == (11,) * 5
    assert len({id(one) for one in envs.unwrapped.np_random}) == 1


def test_a_shared_generator_takes_one_seed():
    with pytest.raises(ValueError, match="with rng='shared' give one integer"):
        shared().reset(seed=[1, 2, 3, 4])


def test_a_shared_generator_reaches_reward_functions_and_prompt_functions():
    def score(completions, rng):
        return [float(generator.random()) for generator in rng]

    keywords = {**KEYWORDS, "prompts": any_prompt, "max_prompt_tokens": 4, "reward": score}
    envs = [gym.make_vec("TextGen-v0", num_envs=3, rng="shared", **keywords) for _ in range(2)]
    for env in envs:
        env.reset(seed=7)
    results = [env.step(np.array([0, 1, 2])) for env in envs]
    assert_same(*results)
    assert len(set(results[0][1].tolist())) == 3


def test_one_row_does_not_care_who_shares_its_generator():
    envs = [gym.make("TextGen-v0", task="sort", rng=rng) for rng in ("shared", "per_env")]
    assert_same(*[env.reset(seed=1) for env in envs])
