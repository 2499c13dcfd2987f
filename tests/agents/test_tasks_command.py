"""`textgym tasks`: what it prints is what the tasks declare, within 120 columns and without an extra."""

import re

import pytest

from tests.agents.test_cli import textgym
from tests.stories.run import run
from textgym import TASKS, make_task


def cells(line):
    return re.split(r"  +", line.strip())


def test_every_task_has_a_line_with_its_numbers(tmp_path):
    result = textgym("tasks", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    heading, *lines = result.stdout.split("\n\n")[0].splitlines()
    assert [cells(line)[0] for line in lines] == sorted(TASKS)
    assert cells(heading)[:7] == ["task", "levels", "tokens", "horizon", "prompts", "optimum", "uniform"]
    by_name = {cells(line)[0]: cells(line)[1:] for line in lines}
    assert by_name["sort"] == ["1,2,3,4", "8", "4", "4096", "1", "0.125", TASKS["sort"].description]
    assert by_name["length_trap"][:6] == ["1,2,3", "3", "10", "1", "1", "0.333"]
    assert by_name["noisy_verifier"][:5] == ["1,2,3,4", "13", "3", "100", "0.9"]


@pytest.mark.parametrize("arguments", [[], *([name] for name in TASKS)], ids=str)
def test_the_table_is_aligned_and_at_most_120_wide(arguments, tmp_path):
    result = textgym("tasks", *arguments, cwd=tmp_path)
    assert max(map(len, result.stdout.splitlines())) <= 120
    table = next(part for part in result.stdout.split("\n\n") if part.startswith(("task ", "level ")))
    heading, *lines = table.splitlines()
    for column in ("tokens", "horizon", "prompts", "optimum", "uniform"):
        end = heading.index(column) + len(column)
        assert all(line[end - 1] != " " and line[end : end + 1] in ("", " ") for line in lines), column


def test_a_task_shows_every_level_and_a_right_answer(tmp_path):
    result = textgym("tasks", "reverse", cwd=tmp_path)
    assert result.returncode == 0
    lines = [cells(line) for line in result.stdout.splitlines() if re.match(r"\d ", line)]
    assert lines == [
        ["1", "4", "4", "256", "1", "0.25"],
        ["2", "8", "6", "262144", "1", "0.125"],
        ["3", "12", "10", "6.2e+10", "1", "0.0833"],
        ["4", "16", "12", "2.8e+14", "1", "0.0625"],
    ]
    prompt, answer = re.search(r"prompt: '(\d+)'   a right answer: '(\d+)'", result.stdout).groups()
    assert answer == prompt[::-1] != prompt


@pytest.mark.parametrize("name", [name for name in TASKS if TASKS[name].make.__module__.startswith("textgym.")])
def test_the_right_answer_shown_is_one(name, tmp_path):
    result = textgym("tasks", name, cwd=tmp_path)
    prompt, answer = re.search(r"level 1, prompt: '(.*)'   a right answer: '(.*)'", result.stdout).groups()
    assert answer == make_task(name).solution(prompt)


def test_what_is_special_of_a_task_is_said(tmp_path):
    assert "A constraint says which tokens are legal next" in textgym("tasks", "brackets", cwd=tmp_path).stdout
    noisy = textgym("tasks", "noisy_verifier", cwd=tmp_path).stdout
    assert "flipped with probability 0.3" in noisy and "The reward is a proxy" in noisy
    assert "constraint" not in noisy


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["sotr"], "textgym: error: unknown task 'sotr'; allowed: .*Did you mean 'sort'"),
        (["--level", "2"], "unrecognized arguments"),
        (["sort", "copy"], "unrecognized arguments: copy"),
    ],
)
def test_wrong_usage_is_refused_with_2(arguments, words, tmp_path):
    result = textgym("tasks", *arguments, cwd=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert re.search(words, result.stderr)


def test_help_ends_with_0(tmp_path):
    result = textgym("tasks", "--help", cwd=tmp_path)
    assert result.returncode == 0
    assert "usage: textgym tasks" in result.stdout
    assert "  tasks " in textgym("--help", cwd=tmp_path).stdout


def test_no_extra_is_loaded(tmp_path):
    code = (
        "import sys; from agents.cli import run; assert run(['tasks']) == run(['tasks', 'sort']) == 0; "
        "print(*sorted({name.split('.')[0] for name in sys.modules}))"
    )
    result = run("-c", code, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    loaded = result.stdout.splitlines()[-1].split()
    assert "tokenizers" in loaded
    assert not {"torch", "transformers", "tyro", "rich", "safetensors", "tensorboard"} & set(loaded)
