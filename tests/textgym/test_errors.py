"""Bad input: what is raised, and that the message says what was given, what is allowed and how to mend it."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest

import textgym
from textgym.errors import did_you_mean, unknown

OWN = dict(tokenizer=["a", "b", "<eos>"], prompts=["a"], reward=lambda completions: [0.0] * len(completions))
SORT_LEVELS = "1, 2, 3, 4"


def own(**keywords: Any) -> dict[str, Any]:
    return OWN | {"max_new_tokens": 3} | keywords


KEYWORDS = [
    (dict(task="sotr"), ValueError, ["task", "'sotr'", "palindrome, regex, reverse, sort", "Did you mean 'sort'"]),
    (dict(task=3), TypeError, ["task", "3", "int", "sort"]),
    (dict(level=9), ValueError, ["level=9", "'sort'", SORT_LEVELS]),
    (dict(level=0), ValueError, ["level=0", SORT_LEVELS]),
    (dict(level="2"), TypeError, ["level", "'2'", "str", "integer"]),
    (dict(level=True), TypeError, ["level", "True", "bool", "integer"]),
    (own(level=1), ValueError, ["level=1", "task="]),
    (dict(max_new_tokens=0), ValueError, ["max_new_tokens=0", "at least 1"]),
    (dict(max_new_tokens="4"), TypeError, ["max_new_tokens", "'4'", "str", "at least 1"]),
    (dict(max_new_tokens=True), TypeError, ["max_new_tokens", "True", "bool"]),
    (dict(max_prompt_tokens=-1), ValueError, ["max_prompt_tokens=-1", "at least 0"]),
    (dict(max_prompt_tokens=2.0), TypeError, ["max_prompt_tokens", "2.0", "float"]),
    (dict(max_new_tokens=10**12), ValueError, ["max_new_tokens=1000000000000", "1000000000004", "lower", "268435456"]),
    (dict(max_prompt_tokens=10**12, prompts=["0"]), ValueError, ["1000000000004", "max_prompt_tokens", "2 GiB"]),
    (own(max_prompt_tokens=0), ValueError, ["prompts[0]", "'prompt'", "1 tokens", "max_prompt_tokens=0", "raise"]),
    (dict(promts=["a"]), TypeError, ["'promts'", "max_new_tokens", "Did you mean 'prompts'"]),
    (
        dict(scheme="terminl"),
        ValueError,
        ["scheme", "'terminl'", "reference, terminal", "Did you mean 'terminal'"],
    ),
    (dict(scheme=None), TypeError, ["scheme", "None", "prefix_delta, reference, terminal"]),
    (dict(scheme=textgym.schemes.Terminal), TypeError, ["scheme", "textgym.schemes.Terminal()"]),
    (dict(stop_ids=5), TypeError, ["stop_ids", "5", "int", "list"]),
    (dict(stop_ids=["1"]), TypeError, ["stop_ids", "'1'", "str", "integers"]),
    (dict(stop_ids=[True]), TypeError, ["stop_ids", "True", "bool"]),
    (dict(stop_ids=[-1]), ValueError, ["stop_ids", "-1", "0 to 7"]),
    (own(tokenizer=[]), ValueError, ["symbols", "no tokens", "at least one"]),
    (own(tokenizer=["a", "b", "a"]), ValueError, ["'a'", "twice", "once"]),
    (own(tokenizer=["a", ""]), ValueError, ["tokenizer[1]", "empty"]),
    (own(tokenizer=["a", 3]), TypeError, ["tokenizer[1]", "3", "int", "strings"]),
    (own(tokenizer=["a", "\ud800"]), ValueError, ["tokenizer[1]", r"'\ud800'", "lone surrogate"]),
    (own(prompts=["a", "b\udfffa"]), ValueError, ["prompts[1]", r"'\udfff'", "character 1", "lone surrogate"]),
    (own(tokenizer=["a", "<unk>"], prompts=["ab"]), ValueError, ["prompts[0]", "no token for 'b'", "character 1"]),
    (own(tokenizer=["a", "<unk>", "<unk>?"], prompts=["ab"]), ValueError, ["no token for 'b'", "'<unk>?'"]),
    (own(tokenizer=7), TypeError, ["tokenizer", "7", "int", "list of symbols", "tokenizer.json", "folder"]),
    (own(tokenizer="absent/tokenizer.json"), FileNotFoundError, ["tokenizer", "'absent/tokenizer.json'"]),
    (own(tokenizer="folder"), FileNotFoundError, ["'folder'", "tokenizer.json", "fast"]),
    (own(tokenizer="rows.jsonl"), ValueError, ["'rows.jsonl'", "not a tokenizer.json"]),
    (own(tokenizer="bad_config"), ValueError, ["generation_config.json", "not JSON"]),
    (own(prompts=[]), ValueError, ["prompts", "empty", "at least one"]),
    (own(prompts=["a", 3]), TypeError, ["prompts[1]", "int", "str", "dict"]),
    (own(prompts=["a", {"promt": "a"}]), ValueError, ["prompts[1]", "'prompt'", "['promt']", "Did you mean"]),
    (own(prompts=[{"prompt": 3}]), TypeError, ["prompts[0]", "'prompt'", "3", "int", "str"]),
    (own(prompts=[{"prompt": "a", "completions": 1}]), ValueError, ["prompts[0]", "'completions'"]),
    (own(prompts=[{"prompt": "a", 3: 1}]), TypeError, ["prompts[0]", "3", "int", "str"]),
    (own(prompts=["a", "ab?b"]), ValueError, ["prompts[1]", "'?'", "character 2", "'ab?b'", "'<eos>'", "Add"]),
    (own(prompts=7), TypeError, ["prompts", "int", "list", ".jsonl"]),
    (own(prompts=range(3)), TypeError, ["prompts[0]", "int", "str"]),
    (own(prompts={"prompt": ["a"]}), TypeError, ["prompts", "dict", "['prompt']", "list"]),
    (own(prompts=lambda generator: "a"), ValueError, ["'<lambda>'", "max_prompt_tokens"]),
    (own(prompts=lambda: "a", max_prompt_tokens=1), TypeError, ["'<lambda>'", "generator"]),
    (own(tokenizer=object()), TypeError, ["tokenizer", "object", "list of symbols", "Hugging Face tokenizer"]),
    (own(prompts="Once upon a time"), ValueError, ["'Once upon a time'", ".jsonl", "list"]),
    (own(prompts="absent.jsonl"), FileNotFoundError, ["prompts", "'absent.jsonl'"]),
    (own(prompts="empty.jsonl"), ValueError, ["'empty.jsonl'", "no rows", "'prompt'"]),
    (own(prompts="rows.jsonl"), ValueError, ["rows.jsonl line 3", "not JSON"]),
    (own(prompts="list.jsonl"), TypeError, ["list.jsonl line 2", "list", "object"]),
    (own(prompts="field.jsonl"), ValueError, ["field.jsonl line 2", "'prompt'", "['text']"]),
    (own(prompts="latin.jsonl"), ValueError, ["latin.jsonl line 2", "UTF-8"]),
    (own(prompts="twice.jsonl"), ValueError, ["twice.jsonl line 2", "'answer'", "twice", "once"]),
    (own(prompts="deep.jsonl"), ValueError, ["deep.jsonl line 2", "'x'", "twice", "once"]),
    (own(prompts="nan.jsonl"), ValueError, ["nan.jsonl line 2", "NaN", "null"]),
    (own(prompts="infinity.jsonl"), ValueError, ["infinity.jsonl line 2", "-Infinity", "null"]),
    (own(prompts="surrogate.jsonl"), ValueError, ["surrogate.jsonl line 2", r"'\ud800'", "lone surrogate"]),
    (own(prompts="long.jsonl", max_prompt_tokens=2), ValueError, ["long.jsonl line 3", "3 tokens", "'aba'", "Shorten"]),
    (dict(reward=5), TypeError, ["reward", "5", "int", "function"]),
    (dict(reward=[]), ValueError, ["reward", "empty", "at least one"]),
    (dict(reward={}), ValueError, ["reward", "empty", "at least one"]),
    (dict(reward=[len, 5]), TypeError, ["reward[1]", "5", "int", "function", "dict"]),
    (dict(reward=[len, (len, 2.0)]), TypeError, ["reward[1]", "tuple", "weights", "(function, weight)"]),
    (dict(reward=[len, "absent.py:score"]), FileNotFoundError, ["reward", "'absent.py'"]),
    (dict(reward={"a": 5}), TypeError, ["reward['a']", "5", "int", "function"]),
    (dict(reward={"a": (5, 1.0)}), TypeError, ["reward['a'][0]", "5", "int", "function"]),
    (dict(reward={"a": (len, 1.0, 2.0)}), ValueError, ["reward['a']", "3 parts", "(function, weight)"]),
    (dict(reward={"a": ()}), ValueError, ["reward['a']", "0 parts", "(function, weight)"]),
    (dict(reward={"a": (len, "1")}), TypeError, ["weight", "reward['a']", "'1'", "str", "finite number"]),
    (dict(reward={"a": (len, True)}), TypeError, ["weight", "reward['a']", "True", "bool", "finite number"]),
    (dict(reward={"a": (len, None)}), TypeError, ["weight", "reward['a']", "None", "finite number"]),
    (dict(reward={"a": (len, float("nan"))}), ValueError, ["weight", "reward['a']", "nan", "finite number"]),
    (dict(reward={"a": (len, -float("inf"))}), ValueError, ["weight", "reward['a']", "-inf", "finite number"]),
    (dict(reward={"a": (len, 10**400)}), ValueError, ["weight", "reward['a']", "finite number"]),
    (dict(reward={3: len}), TypeError, ["reward", "3", "int", "str"]),
    (dict(reward={"": len}), TypeError, ["reward", "''", "not empty"]),
    (dict(reward="score"), ValueError, ["'score'", "module:function", "file.py:function"]),
    (dict(reward="absent.py:score"), FileNotFoundError, ["reward", "'absent.py'"]),
    (dict(reward="my_reward.py:scroe"), AttributeError, ["'scroe'", "my_reward.py", "Did you mean 'score'"]),
    (dict(reward="my_reward.py:number"), TypeError, ["my_reward.py:number", "int", "function"]),
    (dict(reward="broken.py:score"), ImportError, ["'broken.py'", "ZeroDivisionError"]),
    (dict(reward="absent_module:score"), ImportError, ["'absent_module'", "absent_module.py:"]),
    (
        dict(prompt_order="sequental"),
        ValueError,
        ["prompt_order", "'sequental'", "Did you mean 'sequential'"],
    ),
    (dict(prompt_order=1), TypeError, ["prompt_order", "1", "int", "'random' or 'sequential'"]),
    (
        own(prompts=lambda generator: {"prompt": "a"}, max_prompt_tokens=2, prompt_order="sequential"),
        ValueError,
        ["prompt_order='sequential'", "list of prompts", "function", "leave prompt_order out"],
    ),
    (dict(on_limit="trunc"), ValueError, ["on_limit", "'trunc'", "terminate, truncate", "Did you mean 'truncate'"]),
    (dict(on_limit=True), TypeError, ["on_limit", "True", "bool", "'terminate' or 'truncate'"]),
    (dict(on_reward_error="skip"), ValueError, ["on_reward_error", "'skip'", "drop, raise"]),
    (dict(on_illegal_action="end"), ValueError, ["on_illegal_action", "'end'", "raise, terminate"]),
    (dict(observation="dictionary"), ValueError, ["observation", "'dictionary'", "dict, tokens"]),
    (dict(rng="per_row"), ValueError, ["rng", "'per_row'", "per_env, shared"]),
    (dict(text_info=1), TypeError, ["text_info", "1", "int", "True or False"]),
    (dict(copy=None), TypeError, ["copy", "None", "NoneType", "True or False"]),
    (dict(isolate_reward="yes"), TypeError, ["isolate_reward", "'yes'", "str", "True or False"]),
    (dict(reward_timeout=0), ValueError, ["reward_timeout", "0"]),
    (dict(reward_timeout="2"), TypeError, ["reward_timeout", "'2'", "str"]),
    (
        dict(isolate_reward=True, reward=lambda completions: []),
        ValueError,
        ["<lambda>", "isolate_reward=True", "file.py:function"],
    ),
    (dict(stop="END"), TypeError, ["stop", "'END'", "str", "list of strings", "stop=['END']"]),
    (dict(stop=["a", ""]), ValueError, ["stop[1]", "empty"]),
    (dict(scheme="potential"), ValueError, ["'potential'", "arguments", "textgym.schemes.Potential(potential"]),
    (dict(scheme="length"), ValueError, ["'length'", "arguments", "textgym.schemes.Length(price)"]),
    (dict(scheme=["terminal", "prefix_delta"]), ValueError, ["Terminal()", "PrefixDelta()", "both pay", "one"]),
    (dict(scheme=[]), ValueError, ["scheme", "empty list"]),
]
OPTIONS = [
    ({"promt": "a"}, ValueError, ["'promt'", "prompt_index", "Did you mean 'prompt'"]),
    ({"prompt": "01", "prompt_index": 1}, ValueError, ["prompt and prompt_index", "one"]),
    ({"prompt": 3}, TypeError, ["'prompt'", "3", "int", "str"]),
    ({"prompt": "0x"}, ValueError, ["'x'", "character 1", "'0x'"]),
    ({"prompt": "01234"}, ValueError, ["5 tokens", "max_prompt_tokens=4", "shorten"]),
    ({"prompt_ids": [0, 8]}, ValueError, ["'prompt_ids'", "8 at place 1", "0 to 7"]),
    ({"prompt_ids": [0.5]}, TypeError, ["'prompt_ids'", "[0.5]", "integers"]),
    ({"prompt_ids": 3}, TypeError, ["'prompt_ids'", "3", "list of token ids"]),
    ({"prompt_ids": [[1]]}, TypeError, ["'prompt_ids'", "flat"]),
    ({"prompt_index": 4096}, ValueError, ["'prompt_index'", "4096", "0 to 4095"]),
    ({"prompt_index": -1}, ValueError, ["'prompt_index'", "-1", "0 to 4095"]),
    ({"prompt_index": "1"}, TypeError, ["'prompt_index'", "'1'", "str", "integer"]),
    ({"prompt_index": True}, TypeError, ["'prompt_index'", "bool"]),
    ({"columns": {"answer": 1}}, ValueError, ["'columns'", "'prompt' or 'prompt_ids'"]),
    ({"columns": {"answer": 1}, "prompt_index": 0}, ValueError, ["'columns'", "'prompt' or 'prompt_ids'"]),
    ({"columns": [1], "prompt": "0"}, TypeError, ["'columns'", "list", "dict"]),
    ({"columns": {"completions": 1}, "prompt": "0"}, ValueError, ["'columns'", "'completions'"]),
    ({"completion_ids": [0, 0, 0, 0]}, ValueError, ["'completion_ids'", "ends", "4 tokens", "max_new_tokens=4"]),
    ({"completion_ids": [0, 7]}, ValueError, ["'completion_ids'", "ends", "place 1", "stop token 7"]),
    ({"completion_ids": [9]}, ValueError, ["'completion_ids'", "9", "0 to 7"]),
]
VECTOR_OPTIONS = [
    ({"rows": [1, 2]}, TypeError, ["'rows'", "list", "dict"]),
    ({"rows": {"prompt": ["0"]}}, ValueError, ["rows['prompt']", "2 rows"]),
    ({"rows": {"prompt": "01"}}, ValueError, ["rows['prompt']", "2 rows"]),
    ({"rows": {"prompt_index": {5: 1, 6: 2}}}, ValueError, ["rows['prompt_index']", "dict", "list", "2 rows"]),
    ({"rows": {"prompt_index": {5, 6}}}, ValueError, ["rows['prompt_index']", "{5, 6}", "set", "list", "2 rows"]),
    ({"rows": {"prompt_index": 5}}, ValueError, ["rows['prompt_index']", "5", "int", "list", "2 rows"]),
    ({"rows": {"prompt_index": np.array(5)}}, ValueError, ["rows['prompt_index']", "ndarray", "list", "2 rows"]),
    ({"rows": {"prompt_index": range(3)}}, ValueError, ["rows['prompt_index']", "3 values", "2 rows"]),
    ({"rows": {"promt": ["0", "1"]}}, ValueError, ["'promt'", "Did you mean 'prompt'"]),
    ({"prompt": "0", "rows": {"prompt": ["0", "1"]}}, ValueError, ["'prompt'", "once"]),
    ({"reset_mask": [True, True]}, TypeError, ["'reset_mask'", "list", "bool (2,)"]),
    ({"reset_mask": np.array([1, 0])}, TypeError, ["'reset_mask'", "int64", "bool (2,)"]),
    ({"reset_mask": np.array([True])}, ValueError, ["'reset_mask'", "(1,)", "bool (2,)"]),
    ({"reset_mask": np.array([False, False])}, ValueError, ["'reset_mask'", "all False", "at least one"]),
]
VECTOR = [
    (dict(num_envs=0), ValueError, ["num_envs=0", "at least 1"]),
    (dict(num_envs=2.0), ValueError, ["num_envs=2.0", "integer"]),
    (dict(num_envs=10**10), ValueError, ["10000000000 environments", "8 tokens", "fewer environments"]),
    (dict(num_envs=2, max_episode_steps=5), ValueError, ["max_episode_steps=5", "max_new_tokens"]),
]


def refused(exception: type[Exception], words: list[str], call: Any, **keywords: Any) -> None:
    with pytest.raises(exception) as error:
        call(**keywords)
    assert [word for word in words if word not in str(error.value)] == [], str(error.value)


@pytest.fixture
def in_folder(tmp_path, monkeypatch):
    """The current folder holds the files that the table names."""
    row = '{"prompt": "a"}\n'
    (tmp_path / "rows.jsonl").write_text(row + "\n" + '{"prompt": "a"\n')
    (tmp_path / "list.jsonl").write_text(row + "[1]\n")
    (tmp_path / "field.jsonl").write_text(row + '{"text": "a"}\n')
    (tmp_path / "long.jsonl").write_text(row + "\n" + '{"prompt": "aba"}\n')
    (tmp_path / "twice.jsonl").write_text(row + '{"prompt": "a", "answer": 1, "answer": 2}\n')
    (tmp_path / "deep.jsonl").write_text(row + '{"prompt": "a", "answer": [{"x": 1, "x": 1}]}\n')
    (tmp_path / "nan.jsonl").write_text(row + '{"prompt": "a", "answer": [NaN]}\n')
    (tmp_path / "infinity.jsonl").write_text(row + '{"prompt": "a", "answer": -Infinity}\n')
    (tmp_path / "surrogate.jsonl").write_text(row + '{"prompt": "\\ud800"}\n')
    (tmp_path / "latin.jsonl").write_bytes(row.encode() + '{"prompt": "é"}'.encode("latin-1"))
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "my_reward.py").write_text("number = 3\ndef score(completions):\n    return [0.0]\n")
    (tmp_path / "broken.py").write_text("1 / 0\n")
    (tmp_path / "folder").mkdir()
    (tmp_path / "bad_config").mkdir()
    textgym.Vocabulary.from_symbols(["a"]).save(tmp_path / "bad_config")
    (tmp_path / "bad_config" / "generation_config.json").write_text("{")
    monkeypatch.chdir(tmp_path)


def label(value: Any) -> str | None:
    if not isinstance(value, dict):
        return ""
    return " ".join(f"{key}={item!r:.20}" for key, item in value.items() if OWN.get(key) is not item)


@pytest.mark.usefixtures("in_folder")
@pytest.mark.parametrize(("keywords", "exception", "words"), KEYWORDS, ids=label)
def test_a_bad_keyword(keywords, exception, words):
    refused(exception, words, gym.make, id="TextGen-v0", **keywords)
    refused(exception, words, gym.make_vec, id="TextGen-v0", num_envs=2, **keywords)


@pytest.mark.parametrize(("options", "exception", "words"), OPTIONS, ids=label)
def test_a_bad_reset_option(options, exception, words):
    scalar = gym.make("TextGen-v0", stop_ids=[7])
    vector = gym.make_vec("TextGen-v0", num_envs=2, stop_ids=[7])
    for env in (scalar, vector):
        refused(exception, words, env.reset, options=options)
    rows = {name: [value, value] for name, value in options.items()}
    refused(exception, words, vector.reset, options={"rows": rows})


@pytest.mark.parametrize(("options", "exception", "words"), VECTOR_OPTIONS, ids=label)
def test_a_bad_reset_option_of_a_vector_environment(options, exception, words):
    refused(exception, words, gym.make_vec("TextGen-v0", num_envs=2).reset, options=options)


@pytest.mark.parametrize("options", [5, 0, [], ["prompt"], "prompt", np.array([1, 2])], ids=repr)
def test_reset_options_that_are_no_dict(options):
    for env in (gym.make("TextGen-v0"), gym.make_vec("TextGen-v0", num_envs=2)):
        words = ["reset options", type(options).__name__, "dict", "prompt_index"]
        refused(TypeError, words, env.unwrapped.reset, options=options)


@pytest.mark.parametrize("name", ["rows", "reset_mask"])
def test_a_scalar_environment_has_no_rows(name):
    refused(ValueError, [f"'{name}'", "prompt_index"], gym.make("TextGen-v0").reset, options={name: {}})


@pytest.mark.parametrize(("keywords", "exception", "words"), VECTOR, ids=label)
def test_a_bad_keyword_of_a_vector_environment(keywords, exception, words):
    refused(exception, words, gym.make_vec, id="TextGen-v0", **keywords)


@pytest.mark.parametrize(
    ("seed", "exception"), [([1], ValueError), ([1, 2, 3], ValueError), (1.5, TypeError), ([1, 0.5], TypeError)]
)
def test_a_bad_seed_of_a_vector_environment(seed, exception):
    with pytest.raises(exception):
        gym.make_vec("TextGen-v0", num_envs=2).reset(seed=seed)


def test_a_not_built_error_is_both_kinds_of_error():
    assert issubclass(textgym.NotBuiltError, NotImplementedError) and issubclass(textgym.NotBuiltError, ValueError)


def test_hints():
    assert did_you_mean("prmpt", ["prompt", "level"]) == " Did you mean 'prompt'?"
    assert did_you_mean("xyz", ["prompt", "level"]) == ""
    assert unknown("color", 3, ["b", "a"]) == "unknown color 3; allowed: a, b."
