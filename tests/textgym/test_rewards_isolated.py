"""Reward functions in a subprocess: what they do to their process, what goes there and back, and how it ends."""

import copy
import functools
import gc
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import textgym
from tests.textgym import reward_cases as cases
from tests.textgym.reward_cases import generators, interrupted_after, texts
from textgym.rewards import cached, load_reward

ROOT = Path(__file__).parents[2]
POSIX = pytest.mark.skipif(os.name != "posix", reason="signals and forks")


def isolated(reward, **options):
    return load_reward(reward, isolate=True, **options)


def alive(process_id):
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    return True


def ends(process_id, seconds=20.0):
    limit = time.monotonic() + seconds
    while alive(process_id) and time.monotonic() < limit:
        time.sleep(0.02)
    return not alive(process_id)


def test_a_function_runs_in_another_process_that_is_kept():
    reward = isolated(cases.process_id)
    [first], [second] = reward(texts(["a"])).score, reward(texts(["b"])).score
    assert first == second != os.getpid()


def test_functions_are_given_by_place_or_by_themselves(tmp_path, monkeypatch):
    (tmp_path / "neighbour_of_isolated.py").write_text("value = 2.0\n")
    (tmp_path / "own.py").write_text(
        "from neighbour_of_isolated import value\ndef score(completions):\n    return [value] * len(completions)\n"
    )
    monkeypatch.chdir(tmp_path)
    reward = isolated({"file": "own.py:score", "module": ("own:score", 3.0), "function": cases.length})
    monkeypatch.chdir(ROOT)
    assert reward(texts(["abab"])).scores.tolist() == [[2.0, 2.0, 4.0]]


def test_the_same_arguments_arrive_as_in_this_process():
    deep = (1, {2: None, "x": [True, "\ud800", float("inf")]})
    for isolate in (False, True):
        assert load_reward(cases.echo, isolate=isolate)(texts(deep=[deep] * 3)).score.tolist() == [1.0] * 3


def test_trls_own_keywords_are_made_there():
    assert isolated(cases.trained)(texts()).score.tolist() == [1.0] * 3


def test_a_function_keeps_its_state_between_calls():
    reward = isolated(cases.count_calls)
    assert [reward(texts(["a"])).score.item() for _ in range(3)] == [1.0, 2.0, 3.0]


def test_a_function_that_is_cached_in_its_module_is_cached_there(tmp_path):
    (tmp_path / "own.py").write_text(
        "from textgym.rewards import cached\ncalls = 0\n"
        "@cached\ndef score(completions):\n    global calls\n    calls += 1\n    return [calls] * len(completions)\n"
    )
    reward = isolated(f"{tmp_path}/own.py:score")
    same = texts(["a"])
    assert [reward(text).score.item() for text in (same, same, texts(["b"]), same)] == [1.0, 1.0, 2.0, 1.0]


@pytest.mark.parametrize("function", [cases.draw, cases.draw_later], ids=lambda function: function.__name__)
@pytest.mark.parametrize("shared", [False, True])
def test_draws_are_those_of_this_process(function, shared):
    here, there = ([generators(1)[0]] * 3 if shared else generators(3) for _ in range(2))
    rewards = load_reward(function), isolated(function)
    for _ in range(2):
        scores = [
            reward(texts(generators=own)).score.tolist() for reward, own in zip(rewards, (here, there), strict=True)
        ]
        assert scores[0] == scores[1]
    assert [own.bit_generator.state for own in here] == [own.bit_generator.state for own in there]


def test_after_a_failure_the_generators_are_as_before():
    own = generators(3)
    with pytest.raises(textgym.RewardError, match="'draw_and_fail' raised RuntimeError: after the draw"):
        isolated([cases.draw, cases.draw_and_fail])(texts(generators=own))
    assert [one.bit_generator.state for one in own] == [one.bit_generator.state for one in generators(3)]


def test_a_generator_cannot_spawn_there():
    with pytest.raises(textgym.RewardError, match="'spawn' raised TypeError: .* does not implement spawning"):
        isolated(cases.spawn)(texts(generators=generators(3)))


def test_a_generator_of_another_kind_is_refused():
    own = [np.random.Generator(np.random.MT19937(row)) for row in range(3)]
    with pytest.raises(textgym.RewardError, match="generator of MT19937 cannot be sent"):
        isolated(cases.draw)(texts(generators=own))


def test_values_are_refused_as_in_this_process():
    messages = []
    for isolate in (False, True):
        reward = load_reward([cases.odd_values, cases.length], isolate=isolate)
        with pytest.raises(textgym.RewardError) as error:
            reward(texts())
        messages.append(str(error.value))
        with pytest.warns(UserWarning):
            result = load_reward([cases.odd_values, cases.length], isolate=isolate, on_error="drop")(texts())
        assert (result.score.tolist(), result.kept.tolist()) == ([0.5, 1.0, 0.0], [True, True, False])
    assert messages[0] == messages[1] and "returned nan; return a finite number (completion 2 of 3" in messages[0]


def test_an_exception_arrives_as_type_and_text():
    messages = []
    for isolate in (False, True):
        with pytest.raises(textgym.RewardError) as error:
            load_reward(cases.fail_at_b, isolate=isolate)(texts())
        messages.append(str(error.value))
    assert messages[0] == messages[1] and r"raised KeyError: 'no b\x1b[31m'" in messages[0]


CRASHES = [
    (cases.leave, "ended its subprocess with exit code 3"),
    (cases.leave_politely, "raised SystemExit: 4"),
    (cases.devour, "raised MemoryError"),
    pytest.param(cases.die, "lost its subprocess to the signal SIGKILL", marks=POSIX),
    pytest.param(cases.fork_and_leave, "ended its subprocess with exit code 6", marks=POSIX),
]


@pytest.mark.parametrize("timeout", [None, 30])
@pytest.mark.parametrize(("function", "words"), CRASHES)
def test_whatever_a_function_does_to_its_process_is_an_error_that_shows_the_text(function, words, timeout):
    reward = isolated({"crash": function, "length": cases.length}, timeout=timeout)
    with pytest.raises(textgym.RewardError) as error:
        reward(texts())
    for word in ("reward function 'crash'", words, "prompt: 'p0'", "completion: ''"):
        assert word in str(error.value)


def test_the_next_call_has_a_new_process():
    reward = isolated(cases.leave_at_b)
    for _ in range(2):
        with pytest.raises(textgym.RewardError, match="exit code 5"):
            reward(texts())
        assert reward(texts(["aaa"])).score.tolist() == [3.0]


def test_a_crash_drops_only_the_text_that_crashes_alone():
    with pytest.warns(UserWarning, match="'leave_at_b' ended its subprocess with exit code 5"):
        result = isolated(cases.leave_at_b, on_error="drop")(texts())
    assert (result.score.tolist(), result.kept.tolist()) == ([0.0, 0.0, 4.0], [True, False, True])


@pytest.mark.parametrize("function", [cases.spin, cases.hold], ids=lambda function: function.__name__)
def test_a_time_limit_ends_what_loops_for_ever(function):
    reward = isolated(function, timeout=0.5)
    assert reward(texts(["aa"])).score.tolist() == [2.0]  # the limit is for calls, not for the start of the process
    start = time.monotonic()
    with pytest.raises(textgym.RewardError, match="took longer than 0.5 s; raise reward_timeout=0.5"):
        reward(texts())
    assert 0.5 <= time.monotonic() - start < 0.75 + 0.5
    assert reward(texts(["aa"])).score.tolist() == [2.0]


def test_a_time_limit_drops_every_text_of_the_call():
    with pytest.warns(UserWarning, match="took longer than 0.5 s"):
        result = isolated(cases.spin, timeout=0.5, on_error="drop")(texts())
    assert not result.kept.any()


def test_a_column_that_cannot_be_sent_is_named():
    with pytest.raises(textgym.RewardError) as error:
        isolated(cases.echo)(texts(deep=[1, {"x": [{3}]}, 1]))
    for word in ("'echo'", "column 'deep'", "{3} of type set", "isolate_reward=True", "completion: 'b'"):
        assert word in str(error.value)
    deep: list = []
    for _ in range(10_000):
        deep = [deep]
    with pytest.raises(textgym.RewardError, match="column 'deep' holds a value of type list that JSON cannot hold"):
        isolated(cases.echo)(texts(["a"], deep=[deep]))


def test_prints_go_to_standard_error():
    code = (
        "from tests.textgym.reward_cases import talk, texts\nfrom textgym.rewards import load_reward\n"
        "print(load_reward(talk, isolate=True)(texts()).score.tolist())"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout == "[1.0, 1.0, 1.0]\n"
    assert result.stderr == "printed by the function\nwritten by the function\n"


class Scorer:
    def __call__(self, completions):
        return [0.0] * len(completions)

    def method(self, completions):
        return [0.0] * len(completions)


def wrapped_in(function):
    return functools.wraps(function)(lambda completions: [0.0] * len(completions))


@pytest.mark.parametrize(
    ("reward", "why"),
    [
        (lambda completions: [0.0], "is a lambda"),
        (wrapped_in(cases.length), "tests.textgym.reward_cases:length is another object"),
        (functools.partial(cases.length), "object of type partial"),
        (Scorer(), "object of type Scorer"),
        (Scorer().method, "Scorer.method is another object"),
        (cached(cases.length), "tests.textgym.reward_cases:length is another object"),
    ],
    ids=["lambda", "wrapped", "partial", "object", "method", "cached"],
)
def test_what_cannot_be_imported_again_is_refused_with_the_way_out(reward, why):
    with pytest.raises(ValueError, match="cannot be isolated") as error:
        isolated({"mine": reward})
    for word in ("'mine'", why, "isolate_reward=True", "top level of a file", "'file.py:function'"):
        assert word in str(error.value)


def test_a_function_of_the_script_that_runs_is_refused(tmp_path):
    (tmp_path / "script.py").write_text(
        "print('the script runs')\nfrom textgym.rewards import load_reward\n"
        "def score(completions):\n    return [0.0] * len(completions)\n"
        "load_reward(score, isolate=True)\n"
    )
    result = subprocess.run(
        [sys.executable, "script.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert result.stdout == "the script runs\n" and result.returncode == 1
    assert "'score' cannot be isolated: it is defined in the script that runs" in result.stderr


def test_a_module_that_the_subprocess_cannot_import_is_an_error_that_says_so(tmp_path):
    (tmp_path / "own.py").write_text("def score(completions):\n    return [0.0] * len(completions)\n")
    reward = isolated(f"{tmp_path}/own.py:score")
    (tmp_path / "own.py").write_text("import sys\nsys.exit(7)\n")
    for _ in range(2):
        with pytest.raises(
            textgym.RewardError, match="cannot be imported in a subprocess: ImportError: .*SystemExit: 7"
        ):
            reward(texts(["a"]))


def test_the_process_ends_with_its_reward():
    reward = isolated(cases.process_id)
    [process_id] = reward(texts(["a"])).score
    assert alive(int(process_id))
    del reward
    gc.collect()
    assert ends(int(process_id))


CHILD_OF_A_CHILD = """
import os, sys, time
from tests.textgym.reward_cases import process_id, spin, texts
from textgym.rewards import load_reward
reward = load_reward(process_id, isolate=True)
print(int(reward(texts(["a"])).score[0]), flush=True)
{end}
"""


@POSIX
@pytest.mark.parametrize("end", ["os.kill(os.getpid(), 9)", "os._exit(0)", "raise SystemExit(0)", "pass"])
def test_the_process_ends_with_this_one(end):
    code = CHILD_OF_A_CHILD.format(end=end)
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ends(int(result.stdout)) and result.stderr == ""


SPINNING = """
import os, threading
from tests.textgym.reward_cases import texts
from textgym.rewards import load_reward
reward = load_reward("{place}", isolate=True)
reward(texts(["b"]))
"""


@POSIX
def test_a_call_that_loops_ends_when_this_process_is_killed(tmp_path):
    (tmp_path / "own.py").write_text(
        "import os, pathlib\ndef score(completions):\n"
        f"    pathlib.Path({str(tmp_path / 'id')!r}).write_text(str(os.getpid()) + '\\n')\n"
        "    while True:\n        pass\n"
    )
    code = SPINNING.format(place=f"{tmp_path}/own.py:score")
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.DEVNULL)
    limit = time.monotonic() + 60
    while not (tmp_path / "id").exists() or not (tmp_path / "id").read_text().endswith("\n"):
        assert time.monotonic() < limit and parent.poll() is None
        time.sleep(0.02)
    parent.send_signal(signal.SIGKILL)
    parent.wait(60)
    assert ends(int((tmp_path / "id").read_text()))


@POSIX
@pytest.mark.parametrize("timeout", [None, 60])
def test_after_an_interrupted_call_the_next_has_its_own_answer(timeout):
    reward = isolated(cases.spin, timeout=timeout)
    reward(texts(["a"]))
    with interrupted_after(0.3), pytest.raises(KeyboardInterrupt):
        reward(texts())
    assert reward(texts(["aa"])).score.tolist() == [2.0]


def test_a_deep_copy_has_the_same_process():
    reward = isolated(cases.process_id)
    assert copy.deepcopy(reward)(texts(["a"])).score.tolist() == reward(texts(["a"])).score.tolist()


@POSIX
def test_a_forked_process_has_a_subprocess_of_its_own():
    reward = isolated(cases.process_id)
    [own] = reward(texts(["a"])).score
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write, json.dumps(reward(texts(["a"])).score.tolist()).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as answer:
        [other] = json.loads(answer.read())
    os.waitpid(child, 0)
    assert other not in (own, os.getpid()) and reward(texts(["a"])).score.tolist() == [own]
