"""The call of reward functions, what they may return, and how their failures read."""

import array
import collections
import fractions
import itertools
import sys
import threading

import gymnasium as gym
import numpy as np
import pytest

import textgym
from tests.names import stable
from tests.textgym.cases import MODES, assert_same
from textgym.escape import shown

SYMBOLS = ["a", "b", "<eos>"]
PROMPTS = [{"prompt": "a", "answer": "x"}, {"prompt": "ba", "answer": None}]


def make_vec(reward, num_envs=2, **keywords):
    defaults = dict(tokenizer=SYMBOLS, prompts=PROMPTS, max_new_tokens=2)
    return gym.make_vec("TextGen-v0", num_envs=num_envs, reward=reward, **(defaults | keywords))


def first_end(reward, **keywords):
    """Two rows end at once: "b" and the stop token after prompt 0, the horizon with "ab" after prompt 1."""
    envs = make_vec(reward, **keywords)
    envs.reset(options={"rows": {"prompt_index": [0, 1]}})
    envs.step(np.array([1, 0]))
    return envs.step(np.array([2, 1]))


def test_texts_that_end_together_are_scored_in_one_call_by_keyword():
    calls = []

    def score(*, prompts, completions, completion_ids, answer):
        calls.append((prompts, completions, completion_ids, answer))
        return [0.25, 4]

    _, rewards, terminated, _, infos = first_end(score)
    assert calls == [(["a", "ba"], ["b", "ab"], [[1, 2], [0, 1]], ["x", None])]
    assert rewards.tolist() == infos["score"].tolist() == [0.25, 4.0]
    assert (infos["scores"].tolist(), infos["scores_valid"].tolist()) == ([[0.25], [4.0]], [[True], [True]])
    assert terminated.all() and infos["valid"].all()


def test_nothing_is_scored_and_all_is_zero_before_the_end():
    envs = make_vec(lambda completions: 1 / 0)
    _, at_reset = envs.reset(seed=0)
    _, rewards, _, _, running = envs.step(np.array([0, 1]))
    assert rewards.tolist() == [0.0, 0.0]
    for infos in (at_reset, running):
        assert infos["score"].tolist() == [0.0, 0.0] and infos["scores"].tolist() == [[0.0], [0.0]]
        assert not infos["scores_valid"].any() and infos["valid"].all()


def test_a_new_episode_knows_nothing_of_the_score_before():
    env = gym.make("TextGen-v0", tokenizer=SYMBOLS, prompts=PROMPTS, max_new_tokens=1, reward=lambda completions: [3.0])
    env.reset(seed=0)
    assert env.step(1)[4]["scores_valid"].tolist() == [True]
    info = env.reset()[1]
    assert (info["score"], info["scores"].tolist(), info["scores_valid"].tolist()) == (0.0, [0.0], [False])


def test_a_function_receives_only_the_keywords_that_it_names():
    received = {}

    def few(completions, answer="unset"):
        received["few"] = (completions, answer)
        return [0.0, 0.0]

    def every(completions, **others):
        received["every"] = set(others)
        return [0.0, 0.0]

    class Scorer:
        def __call__(self, prompts):
            received["object"] = prompts
            return [0.0, 0.0]

    for reward in (few, every, Scorer()):
        first_end(reward)
    assert received["few"] == (["b", "ab"], ["x", None])
    assert received["every"] == {"prompts", "completion_ids", "answer"}
    assert received["object"] == ["a", "ba"]


def test_a_stop_token_first_scores_the_empty_text():
    seen = []
    env = gym.make(
        "TextGen-v0",
        tokenizer=SYMBOLS,
        prompts=[""],
        reward=lambda completions, completion_ids: seen.append((completions, completion_ids)) or [2.0],
        max_new_tokens=2,
    )
    env.reset()
    assert env.step(2)[1] == 2.0
    assert seen == [([""], [[2]])]


@pytest.mark.parametrize(
    "returned",
    [
        [1, 0.5],
        (1.0, 0.5),
        np.array([1, 0.5]),
        np.array([1, 0.5], dtype=np.float32),
        [np.int64(1), np.float16(0.5)],
        [np.array(1), np.array(0.5, dtype=object)],
        [True, fractions.Fraction(1, 2)],
        array.array("d", [1, 0.5]),
        collections.deque([1, 0.5]),
    ],
    ids=repr,
)
def test_any_sequence_of_numbers_is_one_score_a_completion(returned):
    rewards = first_end(lambda completions: returned)[1]
    assert rewards.dtype == np.float64 and rewards.tolist() == [1.0, 0.5]


@pytest.mark.parametrize("in_list", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_tensor_of_one_dimension_is_one_score_a_completion(in_list, dtype):
    torch = pytest.importorskip("torch")
    scores = torch.tensor([1, 0.5], dtype=getattr(torch, dtype), requires_grad=True)
    assert first_end(lambda completions: list(scores) if in_list else scores)[1].tolist() == [1.0, 0.5]


def raising(completions):
    raise KeyError("no key \x1b[31m")


def leaving(completions):
    raise SystemExit(3)


def wants_more(completions, reference):
    return [0.0] * len(completions)


class Hostile:
    def __repr__(self):
        raise RuntimeError("repr refused")


class Coloured:
    def __repr__(self):
        return "\x1b[31m"


class HostileList(list):
    def __len__(self):
        raise RuntimeError("len refused")


class Indexed:
    def __len__(self):
        return 2

    def __getitem__(self, index):
        return [1.0, 1.0][index]

    def __repr__(self):
        return "[1.0, 1.0, ...]"


class HostileFloat(float):
    def __float__(self):
        raise RuntimeError("float refused")


class HostileError(Exception):
    def __str__(self):
        raise ValueError("str refused")


def raising_hostile(completions):
    raise HostileError


def emptying(prompts, completions):
    prompts.clear()
    completions.clear()
    return []


@pytest.mark.parametrize(
    ("returned", "row", "words"),
    [
        ({1.0, 0.5}, 0, ["set", "list"]),
        ({0.0: "a", 1.0: "b"}.keys(), 0, ["dict_keys", "list"]),
        ({"a": 0.0, "b": 1.0}.values(), 0, ["dict_values", "list"]),
        (b"12", 0, ["b'12'", "list"]),
        (bytearray(b"12"), 0, ["bytearray", "list"]),
        (memoryview(b"12"), 0, ["memoryview", "list"]),
        (collections.UserString("12"), 0, ["UserString", "list"]),
        (np.ma.MaskedArray([1.0, 2.0], [False, True]), 0, ["MaskedArray", "list"]),
        ([1.0, np.ma.masked], 1, ["MaskedConstant", "float"]),
        ([1.0, np.ma.MaskedArray(1.0)], 1, ["MaskedArray", "float"]),
        (np.array(1.0), 0, ["array(1.)", "ndarray", "list"]),
        (np.float64(1.0), 0, ["float64", "list"]),
        ([1.0, 10**400], 1, ["OverflowError"]),
        ([1.0, 10**5000], 1, ["OverflowError"]),
        (10**5000, 0, ["int", "list"]),  # Python refuses to write it
        (np.array([1, 2], dtype="timedelta64[ns]"), 0, ["timedelta64", "float"]),
        ([1.0, np.array(1, dtype="timedelta64[ns]")], 1, ["timedelta64", "float"]),
        ([1.0, 1j], 1, ["complex", "float"]),
        ([1.0, Hostile()], 1, ["Hostile", "float"]),
        (Hostile(), 0, ["Hostile", "list"]),
        (HostileList([1.0, 1.0]), 0, ["RuntimeError", "len refused"]),
        (Indexed(), 0, ["1.0, 1.0", "Indexed", "list"]),
        ([1.0, HostileFloat(1.0)], 1, ["RuntimeError", "float refused"]),
        ([1.0, "\x1b[31m"], 1, ["x1b[31m"]),
        ([1.0, Coloured()], 1, [r"\x1b[31m"]),
        (raising_hostile, 0, ["HostileError", "str() raises ValueError"]),
        (emptying, 0, ["0 values", "2 completions"]),
        ([1.0, float("nan")], 1, ["nan", "finite"]),
        ([float("inf"), 1.0], 0, ["inf", "finite"]),
        ([1.0, -float("inf")], 1, ["-inf"]),
        ([1.0, None], 1, ["None"]),
        ([1.0, "1"], 1, ["'1'", "str", "float"]),
        ([1.0, [1.0]], 1, ["list", "float"]),
        ([1.0], 0, ["1 values", "2 completions"]),
        ([1.0, 1.0, 1.0], 0, ["3 values", "2 completions"]),
        (np.ones((2, 2)), 0, ["ndarray", "float"]),
        (1.0, 0, ["float", "list"]),
        ("12", 0, ["'12'", "list"]),
        ({0: 1.0, 1: 1.0}, 0, ["dict", "list"]),
        (None, 0, ["None"]),
        (raising, 0, ["KeyError", "no key", r"\x1b[31m"]),
        (leaving, 0, ["SystemExit"]),
        (wants_more, 0, ["TypeError", "reference"]),
    ],
    ids=lambda value: stable(getattr(value, "__name__", shown(value, 40))),
)
def test_what_is_not_one_finite_number_a_completion_is_an_error_that_shows_the_text(returned, row, words):
    def made_for_this_test(completions):
        return returned

    reward = returned if callable(returned) else made_for_this_test
    with pytest.raises(textgym.RewardError) as error:
        first_end(reward)
    prompt, completion = [("a", "b"), ("ba", "ab")][row]
    for word in [*words, reward.__name__, f"prompt: '{prompt}'", f"completion: '{completion}'"]:
        assert word in str(error.value)
    assert "\x1b" not in str(error.value)


def test_a_tensor_without_dimensions_is_an_error_that_shows_the_text():
    torch = pytest.importorskip("torch")
    for returned in (torch.tensor(1.0), torch.ones(2, 2)):
        with pytest.raises(textgym.RewardError, match="Tensor"):
            first_end(lambda completions, returned=returned: returned)


def test_a_list_that_gives_more_than_its_length_is_cut_off():
    class More(list):
        def __iter__(self):
            yield from [1.0] * 1000

    assert first_end(lambda completions: More([1.0, 1.0]))[1].tolist() == [1.0, 1.0]


def test_a_name_with_control_characters_is_written_with_codes():
    def score(completions):
        return None

    score.__name__ = "sc\x1b[31more"
    with pytest.raises(textgym.RewardError) as error:
        first_end(score)
    assert r"'sc\x1b[31more'" in str(error.value) and "\x1b" not in str(error.value)


@pytest.mark.parametrize("num_envs", [1, 3])
def test_a_value_that_the_function_changes_in_place_is_as_before_in_the_next_row_and_call(num_envs):
    rows = [{"prompt": "a", "answer": [], "names": {"deep": [1]}}]
    seen = []

    def spoil(completions, answer, names):
        for own, deep in zip(answer, names, strict=True):
            seen.append((list(own), list(deep["deep"])))
            own.append("x")
            deep["deep"].clear()
        return [1.0] * len(completions)

    envs = make_vec(spoil, num_envs=num_envs, prompts=rows, max_new_tokens=1, scheme="prefix_delta")
    for _ in range(2):
        envs.reset(options={"prompt_index": 0})
        envs.step(np.zeros(num_envs, dtype=int))
    assert seen == [([], [1])] * 2 * num_envs
    assert rows == [{"prompt": "a", "answer": [], "names": {"deep": [1]}}]


def test_a_value_that_cannot_be_copied_is_handed_out_itself():
    lock = threading.Lock()
    seen = []

    def note(completions, lock):
        seen.extend(lock)
        return [1.0]

    env = gym.make("TextGen-v0", tokenizer=SYMBOLS, prompts=[{"prompt": "a", "lock": lock}], reward=note)
    env.reset()
    env.step(2)
    assert seen == [lock]


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
def test_after_an_error_the_step_can_be_taken_again(mode):
    failures = [True, False, True, False]

    def sometimes(completions):
        if failures.pop(0):
            raise RuntimeError("busy")
        return [float(len(text)) for text in completions]

    failing = make_vec(sometimes, autoreset_mode=mode)
    untouched = make_vec(lambda completions: [float(len(text)) for text in completions], autoreset_mode=mode)
    assert_same(failing.reset(seed=0), untouched.reset(seed=0))
    for actions in ([2, 0], [1, 1]):
        with pytest.raises(textgym.RewardError):
            failing.step(np.array(actions))
        assert_same(failing.step(np.array(actions)), untouched.step(np.array(actions)))


def test_a_file_and_a_module_name_a_function(tmp_path, monkeypatch):
    (tmp_path / "my_rewards.py").write_text(
        "from dataclasses import dataclass\n\n@dataclass\nclass Weight:\n    value: 'float' = 3.0\n\n"
        "def score(completions):\n    return [Weight().value] * len(completions)\n"
    )
    monkeypatch.chdir(tmp_path)
    for reward in (str(tmp_path / "my_rewards.py") + ":score", "my_rewards.py:score", "my_rewards:score"):
        assert first_end(reward)[1].tolist() == [3.0, 3.0]


def test_the_score_of_a_prompt_with_other_columns_than_its_neighbour_keeps_its_own():
    def own(prompts, answer):
        return [{"x": 1.0, None: 2.0, "z": 3.0}[value] for value in answer]

    envs = make_vec(own, num_envs=3, max_new_tokens=1)
    envs.reset(options={"rows": {"prompt": ["a", "b", "ab"], "columns": [{"answer": "z"}, {}, {"answer": "x"}]}})
    assert envs.step(np.zeros(3, dtype=int))[1].tolist() == [3.0, 2.0, 1.0]


_NUMBERS = itertools.count()


def written(folder, content):
    """A file of a name that no other test has imported, and its name as a module."""
    name = f"rewards_{next(_NUMBERS)}"
    (folder / f"{name}.py").write_text(content)
    return name


def refused_import(reward, kind=ImportError):
    """The message of the refusal; the path and the modules are as before."""
    path, modules = list(sys.path), {name for name in sys.modules if "rewards_" in name}
    with pytest.raises(kind) as error:
        make_vec(reward)
    assert (sys.path, {name for name in sys.modules if "rewards_" in name}) == (path, modules)
    return str(error.value)


@pytest.mark.parametrize("suffix", ["", ".py"], ids=["module", "file"])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("import sys\nsys.exit(0)\n", ["SystemExit: 0"]),
        ("1 / 0\n", ["ZeroDivisionError"]),
        ("def score(:\n", ["SyntaxError"]),
        ("import absent_inner\n", ["'absent_inner'", "imports a module that is not found"]),
        ("raise ValueError('\\x1b[31m')\n", [r"ValueError: \x1b[31m"]),
        ("class E(Exception):\n    __str__ = None\nraise E\n", ["raised E: <E whose str() raises TypeError>"]),
    ],
    ids=["exit", "raise", "syntax", "inner", "escape", "hostile"],
)
def test_what_fails_while_it_is_imported_is_an_import_error_that_names_it(
    tmp_path, monkeypatch, suffix, content, words
):
    monkeypatch.chdir(tmp_path)
    source = written(tmp_path, content) + suffix
    message = refused_import(f"{source}:score")
    assert [word for word in [f"'{source}'", *words] if word not in message] == [], message
    assert "\x1b" not in message and f"'{source}' is not found" not in message


def test_a_module_or_its_parent_that_is_missing_is_not_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for module in ("absent_module", "absent_parent.inner", "math.inner"):
        assert f"'{module}' is not found" in refused_import(f"{module}:score")


@pytest.mark.parametrize("module", [".rewards", "..", ".a.b"])
def test_a_relative_module_is_refused(module):
    message = refused_import(f"{module}:score", ValueError)
    assert f"'{module}'" in message and "relative" in message and "file.py:function" in message


def test_a_failed_file_leaves_the_one_that_was_imported_before(tmp_path):
    name = written(tmp_path, "def score(completions):\n    return [2.0] * len(completions)\n")
    place = str(tmp_path / f"{name}.py") + ":score"
    assert first_end(place)[1].tolist() == [2.0, 2.0]
    before = sys.modules[f"textgym_reward_{name}"]
    (tmp_path / f"{name}.py").write_text("1 / 0  # now longer than it was, so that no cached code fits\n")
    refused_import(place)
    assert sys.modules[f"textgym_reward_{name}"] is before


def test_a_reward_file_imports_its_neighbour(tmp_path, monkeypatch):
    folder = tmp_path / "rewards"
    folder.mkdir()
    neighbour = written(folder, "weight = 4.0\n")
    content = f"from {neighbour} import weight\ndef score(completions):\n    return [weight] * len(completions)\n"
    name = written(folder, content)
    monkeypatch.chdir(tmp_path)
    path = list(sys.path)
    assert first_end(f"rewards/{name}.py:score")[1].tolist() == [4.0, 4.0]
    assert sys.path == path


def test_a_module_that_changes_the_path_keeps_its_change(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    content = "import sys\nsys.path.pop(0)\ndef score(completions):\n    return [5.0] * len(completions)\n"
    assert first_end(written(tmp_path, content) + ":score")[1].tolist() == [5.0, 5.0]
