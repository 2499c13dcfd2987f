"""Tasks of a user's own: what `Task` and `register_task` refuse, and that what they take is an environment."""

import dataclasses
import re

import gymnasium as gym
import numpy as np
import pytest

import textgym
from tests.names import stable
from textgym import TASKS, Task, TaskFamily, make_task, register_task


@pytest.fixture(autouse=True)
def table():
    """The table with the built-in tasks alone; then as it was, with those that other tests and stories registered."""
    before = dict(TASKS)
    for name in [name for name, family in before.items() if not family.make.__module__.startswith("textgym.")]:
        del TASKS[name]
    yield
    TASKS.clear()
    TASKS.update(before)


def vowels(completions):
    return [float(text == "ae") for text in completions]


def task(**changed):
    parts = dict(
        name="vowels",
        level=1,
        tokenizer=["a", "e", "x", "<eos>"],
        prompts=["axe", {"prompt": "x"}],
        max_prompt_tokens=3,
        max_new_tokens=3,
        reward=vowels,
    )
    return Task(**parts | changed)


def make(level):
    return task(level=level, optimum=1.0, max_new_tokens=2 + level)


def test_a_registered_task_is_an_environment():
    assert register_task("vowels", make, levels=(2, 1), description="the vowels") is make
    assert TASKS["vowels"] == TaskFamily("vowels", make, (1, 2), "the vowels")
    env = gym.make("TextGen-v0", task="vowels", level=2).unwrapped
    assert (env.optimum, env.uniform, env.problem.max_new_tokens) == (1.0, None, 4)
    env.reset(options={"prompt": "axe"})
    assert [env.step(token)[1] for token in (0, 1, 3)] == [0.0, 0.0, 1.0]
    assert gym.make("TextGen-v0", task="vowels").unwrapped.problem.task.level == 1
    envs = gym.make_vec("TextGen-v0", num_envs=2, task="vowels", vectorization_mode="sync")
    assert envs.reset(seed=0)[0].shape == (2, 6)


def test_the_decorator_registers_and_keeps_the_function():
    @textgym.register_task("vowels", levels=[1, 2, 3])
    def vowel_task(level):
        """Of my own."""
        return make(level)

    assert vowel_task.__doc__ == "Of my own."
    assert TASKS["vowels"].make is vowel_task
    assert make_task("vowels", 3).max_new_tokens == 5


def test_a_task_without_a_description_gets_that_of_its_family():
    register_task("vowels", make, description="the vowels")
    assert make_task("vowels").description == "the vowels"
    register_task("own", lambda level: task(name="own", description="mine"), description="the vowels")
    assert make_task("own").description == "mine"


def test_the_lowest_level_is_the_default():
    register_task("vowels", make, levels=range(4, 1, -1))
    assert TASKS["vowels"].levels == (2, 3, 4)
    assert make_task("vowels").level == 2
    with pytest.raises(ValueError, match=re.escape("level=1 of task 'vowels'; allowed: 2, 3, 4")):
        make_task("vowels", 1)


def test_a_level_may_be_a_numpy_integer():
    register_task("vowels", make, levels=(np.int64(1), np.int8(2)))
    assert [type(level) for level in TASKS["vowels"].levels] == [int, int]
    assert type(make_task("vowels", np.int64(2)).level) is int


def test_the_same_function_may_be_registered_again_and_another_not():
    register_task("vowels", make)
    register_task("vowels", make, levels=(1, 2))
    assert TASKS["vowels"].levels == (1, 2)
    words = (
        "'vowels' is taken, by tests.textgym.test_register_task.make; give another name, or take .* del textgym.TASKS"
    )
    with pytest.raises(ValueError, match=words):
        register_task("vowels", lambda level: make(level))
    del TASKS["vowels"]
    register_task("vowels", lambda level: make(level))


def test_a_built_in_name_is_never_given_away():
    with pytest.raises(
        ValueError, match="the task name 'sort' is taken, by textgym.tasks.sort.make; give another name$"
    ):
        register_task("sort", make)
    with pytest.raises(ValueError, match="'sort' is taken"):
        register_task("sort", TASKS["sort"].make)
    assert make_task("sort").optimum == 1.0


def test_a_misspelt_registered_task_is_suggested():
    register_task("vowels", make)
    with pytest.raises(ValueError, match="unknown task 'vowel'; allowed: .*Did you mean 'vowels'"):
        gym.make("TextGen-v0", task="vowel")


class Unnamed:
    def __call__(self, level):
        return make(level)


def test_an_object_may_make_the_task():
    register_task("vowels", Unnamed())
    assert make_task("vowels").reward is vowels
    with pytest.raises(ValueError, match="taken, by tests.textgym.test_register_task.Unnamed"):
        register_task("vowels", make)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (("", make), ValueError, "the name of a task is ''; give one of letters, digits"),
        (("../up", make), ValueError, "'../up'"),
        (("a b", make), ValueError, "'a b'"),
        (("-v", make), ValueError, "'-v'.*begins with a letter or digit"),
        (("a\x1b[2J", make), ValueError, re.escape("'a\\x1b[2J'")),
        ((make,), TypeError, "the name of a task is <function make.* of type function; give a str"),
        (("vowels", 3), TypeError, "task 'vowels': make is 3 of type int; give a function of the level"),
        (("vowels", make, ()), ValueError, "levels is empty; give at least one integer"),
        (("vowels", make, 2), TypeError, r"levels is 2 of type int; give a tuple of integers, such as \(2,\)"),
        (("vowels", make, "12"), TypeError, "levels is '12' of type str"),
        (("vowels", make, {1, 2}), TypeError, "levels is .* of type set"),
        (("vowels", make, (1, 2.0)), TypeError, "levels holds 2.0 of type float"),
        (("vowels", make, (True,)), TypeError, "levels holds True of type bool"),
        (("vowels", make, (1, 2, 1)), ValueError, r"levels is \(1, 2, 1\); give each level once"),
        (("vowels", make, (1,), 5), TypeError, "description is 5 of type int; give a str"),
        (("vowels", make, (1,), "two\nlines"), ValueError, r"description is 'two\\nlines'; give one line"),
    ],
    ids=stable,
)
def test_wrong_arguments_of_register_task(arguments, error, words):
    before = dict(TASKS)
    with pytest.raises(error, match=words):
        returned = register_task(*arguments)
        returned(make)  # a decorator finds out when it is used
    assert before == TASKS


def test_a_decorator_without_its_name_is_told():
    with pytest.raises(TypeError, match="the name of a task is <function .*give a str, such as 'vowels'"):

        @textgym.register_task
        def vowel_task(level):
            return make(level)


@pytest.mark.parametrize(
    ("made", "error", "words"),
    [
        (None, TypeError, r"task 'vowels': make\(1\) returned None of type NoneType; return a textgym.Task"),
        ({"name": "vowels"}, TypeError, "of type dict; return a textgym.Task"),
        (Task, TypeError, "of type type; return a textgym.Task"),
        (task(name="vowel"), ValueError, "name='vowel', level=1; give it name='vowels', level=1"),
        (task(level=2), ValueError, "name='vowels', level=2; give it name='vowels', level=1"),
    ],
    ids=["none", "dict", "class", "name", "level"],
)
def test_what_a_function_makes_is_checked(made, error, words):
    register_task("vowels", lambda level: made)
    with pytest.raises(error, match=words):
        gym.make("TextGen-v0", task="vowels")


@pytest.mark.parametrize(
    ("changed", "error", "words"),
    [
        (dict(name="the vowels"), ValueError, "the name of a task is 'the vowels'"),
        (dict(level="1"), TypeError, "level is '1' of type str; give an integer$"),
        (dict(level=True), TypeError, "level is True of type bool"),
        (dict(tokenizer="abc"), TypeError, "tokenizer is 'abc' of type str; give a list of symbols"),
        (dict(tokenizer={"a", "b"}), TypeError, "tokenizer is .* of type set; give a list of symbols"),
        (dict(tokenizer=[]), ValueError, "task 'vowels': .*has no tokens"),
        (dict(tokenizer=["a", 1]), TypeError, r"task 'vowels': tokenizer\[1\] is 1 of type int"),
        (dict(tokenizer=["a", "a"]), ValueError, "task 'vowels': the symbol 'a' stands twice"),
        (dict(prompts="axe"), TypeError, "prompts is 'axe' of type str; give a list of str"),
        (dict(prompts={"prompt": "axe"}), TypeError, "prompts is .* of type dict"),
        (dict(prompts=iter(["axe"])), TypeError, "prompts is .* of type list_iterator"),
        (dict(prompts=[]), ValueError, "prompts is empty; give at least one prompt, '' for none"),
        (dict(max_prompt_tokens=-1), ValueError, "max_prompt_tokens=-1; give an integer of at least 0"),
        (dict(max_prompt_tokens=None), TypeError, "max_prompt_tokens is None of type NoneType; give an integer"),
        (dict(max_new_tokens=0), ValueError, "max_new_tokens=0; give an integer of at least 1"),
        (dict(max_new_tokens=2.0), TypeError, "max_new_tokens is 2.0 of type float; give an integer of at least 1"),
        (dict(reward=None), TypeError, "reward is None of type NoneType; give a function$"),
        (dict(reward="file.py:score"), TypeError, "reward is 'file.py:score' of type str; give a function$"),
        (dict(true_reward=1.0), TypeError, "true_reward is 1.0 of type float; give a function, or None"),
        (dict(constraint=[True, False]), TypeError, "constraint is .* of type list; give a function, or None"),
        (dict(solution="ae"), TypeError, "solution is 'ae' of type str; give a function, or None"),
        (dict(optimum="1"), TypeError, "optimum is '1' of type str; give a number, or None"),
        (dict(optimum=True), TypeError, "optimum is True of type bool; give a number"),
        (dict(optimum=float("inf")), ValueError, "optimum is inf; give a finite number, or None"),
        (dict(uniform=float("nan")), ValueError, "uniform is nan; give a finite number, or None"),
        (dict(optimum=0.5, uniform=0.75), ValueError, "uniform is 0.75, more than the optimum 0.5"),
        (dict(description=None), TypeError, "task 'vowels': description is None of type NoneType; give a str"),
        (dict(description="a\nb"), ValueError, r"description is 'a\\nb'; give one line"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_wrong_parts_of_a_task(changed, error, words):
    with pytest.raises(error, match=words):
        task(**changed)


def test_a_task_need_not_know_its_returns():
    own = task()
    for attribute in ("optimum", "uniform", "true_reward", "constraint", "solution"):
        assert getattr(own, attribute) is None
    assert dataclasses.replace(own, optimum=0.5, uniform=0.5).optimum == 0.5
    assert task(optimum=np.float32(1.0), uniform=0).uniform == 0


def test_a_hostile_name_is_shown_escaped():
    with pytest.raises(ValueError) as error:
        make_task("so\x1brt\u202e")
    assert "\x1b" not in str(error.value) and "\u202e" not in str(error.value)
