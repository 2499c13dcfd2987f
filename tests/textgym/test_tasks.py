"""The optimum and J(uniform) that each task declares, by means that do not read them off the task."""

import itertools
import math

import gymnasium as gym
import numpy as np
import pytest

from textgym import TASKS, make_task

LEVELS = [(name, level) for name, module in TASKS.items() for level in module.LEVELS]
MOST_LEAVES = 70_000  # a tree of this many leaves is walked whole


def counting_sort(prompt: str) -> str:
    return "".join(symbol * prompt.count(symbol) for symbol in "0123456789abcdefghijklmnopqrstuvwxyz")


def read_backwards(prompt: str) -> str:
    return "".join(prompt[len(prompt) - 1 - place] for place in range(len(prompt)))


SOLVERS = {"sort": counting_sort, "reverse": read_backwards}


def scores(name: str, level: int, prompt_indices: list[int], completions: np.ndarray) -> np.ndarray:
    """Returns of completions [n, W], each after its own prompt, played through the real environment."""
    envs = gym.make_vec("TextGen-v0", num_envs=len(completions), task=name, level=level, autoreset_mode="Disabled")
    envs.reset(seed=0, options={"rows": {"prompt_index": prompt_indices}})
    rewards = np.array([envs.step(tokens)[1] for tokens in completions.T])  # [W, n]
    return rewards.sum(axis=0)


def every_completion(size: int, horizon: int) -> np.ndarray:
    return np.array(list(itertools.product(range(size), repeat=horizon)))


def num_leaves(name: str, level: int) -> int:
    task = make_task(name, level)
    return len(task.prompts) * len(task.tokenizer) ** task.max_new_tokens


@pytest.mark.parametrize(("name", "level"), [pair for pair in LEVELS if num_leaves(*pair) <= MOST_LEAVES])
def test_optimum_and_uniform_of_a_small_task_by_full_enumeration(name, level):
    task = make_task(name, level)
    completions = every_completion(len(task.tokenizer), task.max_new_tokens)  # no stop token: all are equally likely
    rows = np.repeat(np.arange(len(task.prompts)), len(completions))
    leaves = scores(name, level, rows.tolist(), np.tile(completions, (len(task.prompts), 1)))
    leaves = leaves.reshape(len(task.prompts), -1)
    assert task.uniform == pytest.approx(leaves.mean(), abs=1e-12)
    assert task.optimum == pytest.approx(leaves.max(axis=1).mean(), abs=1e-12)


@pytest.mark.parametrize("prompt", ["0000", "7301", "0007", "6655", "1234"])
def test_sort_after_one_prompt_by_enumeration_of_all_completions(prompt):
    index = int(prompt, 8)  # row i is i in base 8
    leaves = scores("sort", 1, [index] * 8**4, every_completion(8, 4))
    assert (leaves.mean(), leaves.max(), leaves.min()) == (1 / 8, 1.0, 0.0)
    assert (leaves == 1.0).sum() == 1  # one right answer
    assert (leaves == 0.75).sum() == 4 * 7  # one of four places wrong, in seven ways


@pytest.mark.parametrize(("name", "level"), [pair for pair in LEVELS if pair[0] in SOLVERS])
def test_a_constructed_answer_attains_the_optimum(name, level):
    task = make_task(name, level)
    indices = np.random.default_rng(level).integers(len(task.prompts), size=200).tolist()
    answers = [SOLVERS[name](task.prompts[index]) for index in indices]
    tokens = np.array([[list(task.tokenizer).index(symbol) for symbol in answer] for answer in answers])
    assert (scores(name, level, indices, tokens) == task.optimum).all()


@pytest.mark.parametrize(("name", "level"), LEVELS)
def test_random_completions_agree_with_uniform_and_never_exceed_the_optimum(name, level):
    task = make_task(name, level)
    rng = np.random.default_rng(100 + level)
    indices = rng.integers(len(task.prompts), size=4000).tolist()
    sample = scores(name, level, indices, rng.integers(len(task.tokenizer), size=(4000, task.max_new_tokens)))
    standard_error = sample.std(ddof=1) / math.sqrt(len(sample))
    assert abs(sample.mean() - task.uniform) < 4.5 * standard_error
    assert 0.0 <= sample.min() and sample.max() <= task.optimum <= 1.0


def test_the_reward_of_sort_and_reverse_is_the_share_of_right_places():
    index = int("3120", 8)
    assert scores("sort", 1, [index] * 3, np.array([[0, 1, 2, 3], [0, 1, 3, 3], [3, 2, 1, 0]])).tolist() == [1, 0.75, 0]
    index = int("3120", 4)
    assert scores("reverse", 1, [index] * 2, np.array([[0, 2, 1, 3], [0, 1, 2, 3]])).tolist() == [1, 0.5]


@pytest.mark.parametrize(("level", "arms"), [(1, 3), (2, 10), (3, 32)])
def test_the_best_arm_of_the_bandit_is_neither_the_first_nor_the_last(level, arms):
    paid = scores("bandit", level, [0] * arms, np.arange(arms)[:, None])
    np.testing.assert_allclose(sorted(paid), np.linspace(0, 1, arms), rtol=1e-15)
    assert 0 < paid.argmax() < arms - 1


def test_the_default_is_sort_at_its_easiest_level():
    env = gym.make("TextGen-v0").unwrapped
    assert (env.problem.task.name, env.problem.task.level) == ("sort", 1)
    assert (env.optimum, env.uniform) == (1.0, 1 / 8)


@pytest.mark.parametrize("name", TASKS)
def test_without_a_level_a_task_is_at_its_easiest(name):
    assert make_task(name) == make_task(name, 1)


@pytest.mark.parametrize(
    "own",
    [
        dict(prompts=["31"]),
        dict(reward=lambda completions: [0.0] * len(completions)),
        dict(max_new_tokens=3),
        dict(stop_ids=[0]),
        dict(tokenizer=list("01234567x")),
    ],
    ids=lambda own: next(iter(own)),
)
def test_what_is_known_of_a_task_is_not_claimed_of_a_changed_one(own):
    room = {"max_prompt_tokens": 4} if "tokenizer" in own else {}
    env = gym.make("TextGen-v0", task="sort", **own, **room).unwrapped
    assert env.optimum is None and env.uniform is None


@pytest.mark.parametrize("scheme", ["terminal", "prefix_delta"])
def test_a_scheme_that_pays_the_same_total_keeps_the_optimum(scheme):
    env = gym.make_vec("TextGen-v0", num_envs=2, scheme=scheme)
    assert (env.optimum, env.uniform) == (1.0, 1 / 8)
