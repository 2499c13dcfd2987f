"""Prompts of messages: what the chat template makes of them is what transformers makes of them, whatever they hold."""

import copy
import json
import subprocess
import sys
import threading
from datetime import datetime
from enum import StrEnum
from importlib import metadata
from pathlib import Path

import datasets
import gymnasium as gym
import jinja2
import numpy as np
import pyarrow
import pytest
from jinja2.exceptions import SecurityError
from pyarrow import parquet
from tokenizers import Tokenizer
from transformers import AutoTokenizer, ByT5Tokenizer, PreTrainedTokenizerFast

from tests.textgym.chat_templates import CHATML, CHATS, TEMPLATES, TOKENS, chat_tokenizer, message, write_folder
from textgym import Vocabulary, template_sandbox
from textgym.prompts import load_prompts
from textgym.template_sandbox import run
from textgym.vocabulary import make_vocabulary

ROOT = Path(__file__).parents[2]
ASK = [message("user", "hi")]
ASKED = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
OPEN = [*ASK, message("assistant", "he")]
OPENED = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nhe"


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "model", CHATML)


@pytest.fixture
def vocabulary(folder):
    return make_vocabulary(folder)


def oracle_of(tokenizer, messages, **options):
    """What transformers makes of messages."""
    open_end = messages[-1]["role"] == "assistant"
    options = dict(add_generation_prompt=not open_end, continue_final_message=open_end) | options
    return tokenizer.apply_chat_template(messages, **options)


def make(**keywords):
    keywords = dict(max_new_tokens=1, text_info=True, reward=lambda completions: [0.0] * len(completions)) | keywords
    return gym.make("textgym:TextGen-v0", **keywords)


def noting(seen):
    def score(prompts, messages, completions):
        seen.extend(zip(prompts, messages, strict=True))
        return [0.0] * len(completions)

    return score


# What transformers makes of messages

TURNS = "Conversation roles must alternate user/assistant/user/assistant/..."
ROLES = "Only user and assistant roles are supported!"
REFUSED = {
    "gemma": {"system": "System role not supported", "not_alternating": TURNS, "fields": TURNS},
    "mistral": dict.fromkeys(("system", "fields", "late_system"), ROLES),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_texts_and_ids_are_those_of_transformers(name, tmp_path):
    folder = write_folder(tmp_path / "model", TEMPLATES[name])
    oracle = AutoTokenizer.from_pretrained(folder)
    for vocabulary in (make_vocabulary(folder), make_vocabulary(oracle)):
        refused = {}
        for chat, messages in CHATS.items():
            try:
                text = oracle_of(oracle, messages, tokenize=False)
            except jinja2.TemplateError as error:
                refused[chat] = str(error)
                with pytest.raises(ValueError) as ours:
                    load_prompts([{"prompt": messages}], vocabulary)
                assert str(ours.value).startswith("prompts[0]: field 'prompt': the chat template of ")
                assert str(ours.value).endswith(f": TemplateError: {error}")
                continue
            prompt = load_prompts([{"prompt": messages}], vocabulary)[0]
            assert prompt.text == text
            assert prompt.ids.tolist() == oracle_of(oracle, messages, tokenize=True, return_dict=False)
        assert refused == REFUSED.get(name, {})


def test_a_text_worked_by_hand(vocabulary):
    assert (vocabulary.render(ASK), vocabulary.render(OPEN)) == (ASKED, OPENED)
    system = [message("system", "s"), *OPEN, message("user", "u")]
    assert vocabulary.render(system) == (
        "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nhe<|im_end|>\n"
        "<|im_start|>user\nu<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize(
    ("template", "messages", "text"),
    [
        ("{{ bos_token }}", ASK, "<s>"),
        ("<s>{% for m in messages %}{{ m.content }}</s>{% endfor %}", OPEN, "<s>hi</s>he"),
        (
            "{{ messages[0].content|trim }}|{{ messages[1].content|trim }}|",
            [ASK[0], message("assistant", "a ")],
            "hi|a",
        ),
        ("{{ messages[0].content }}|{{ messages[1].content }} |", [ASK[0], message("assistant", "a ")], "hi|a "),
        ("{{ missing_token }}{{ messages[0].missing }}.", ASK, "."),
    ],
)
def test_special_tokens_are_the_templates_own_and_are_not_put_there_twice(tmp_path, template, messages, text):
    vocabulary = make_vocabulary(write_folder(tmp_path / "model", template))
    assert vocabulary.render(messages) == text
    body = Tokenizer.from_file(str(tmp_path / "model" / "tokenizer.json")).encode(text, add_special_tokens=False).ids
    assert load_prompts([{"prompt": messages}], vocabulary)[0].ids.tolist() == body
    assert load_prompts([text], vocabulary)[0].ids.tolist() == [vocabulary.tokenizer.token_to_id("<s>"), *body]


def test_texts_and_chats_of_one_list(vocabulary):
    rows = ["hi", {"prompt": ASK}, {"prompt": ASKED}, {"prompt": OPEN}]
    prompts = [load_prompts(rows, vocabulary)[place] for place in range(4)]
    assert [prompt.text for prompt in prompts] == ["hi", ASKED, ASKED, OPENED]
    start = vocabulary.tokenizer.token_to_id("<s>")
    assert [prompt.ids[0] == start for prompt in prompts] == [True, False, True, False]
    assert prompts[1].ids.tolist() == prompts[2].ids.tolist()[1:]


def test_a_template_that_does_not_write_the_last_message_cannot_be_gone_on_with(tmp_path):
    vocabulary = make_vocabulary(write_folder(tmp_path / "model", "{{ messages[0].content }}"))
    assert vocabulary.render(ASK) == "hi"
    with pytest.raises(ValueError, match=r"does not write the last message as it is, 'he', .* end the messages with"):
        vocabulary.render(OPEN)


def test_a_tokenizer_object_written_in_python():
    tokenizer = ByT5Tokenizer(chat_template=CHATML)
    prompts = load_prompts([{"prompt": ASK}, {"prompt": OPEN}], make_vocabulary(tokenizer))
    assert [prompts[0].text, prompts[1].text] == [ASKED, OPENED]
    for place, messages in enumerate((ASK, OPEN)):
        assert prompts[place].ids.tolist() == oracle_of(tokenizer, messages, return_dict=False)


def test_what_an_object_is_asked_and_must_return():
    class Own(ByT5Tokenizer):
        def apply_chat_template(self, messages, **options):
            asked.append((json.dumps(messages), options))
            messages.clear()
            return answers.pop()

    asked, answers, messages = [], [3, "x"], [dict(one) for one in OPEN]
    vocabulary = make_vocabulary(Own())  # without a `chat_template` that is a text
    assert vocabulary.tokenizer is not None
    with pytest.raises(ValueError, match="has no chat template"):
        vocabulary.render(messages)
    tokenizer = Own(chat_template="its own")
    assert make_vocabulary(tokenizer).render(messages) == "x"
    assert asked == [(json.dumps(OPEN), dict(tokenize=False, add_generation_prompt=False, continue_final_message=True))]
    assert messages == OPEN
    with pytest.raises(ValueError, match="apply_chat_template of the tokenizer of type Own returned 3; it must"):
        make_vocabulary(tokenizer).render(messages)


@pytest.mark.parametrize("hour", [1, 23])
def test_the_date_is_that_of_the_machine(tmp_path, monkeypatch, hour):
    class Clock(datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2024, 2, 29, hour)

    monkeypatch.setattr(template_sandbox, "datetime", Clock)
    vocabulary = make_vocabulary(write_folder(tmp_path / "model", "{{ strftime_now('%d %b %Y, %H') }}"))
    assert vocabulary.render(ASK) == f"29 Feb 2024, {hour:02}"


# Where the template is found


def with_template(template):
    return {"tokenizer_class": "PreTrainedTokenizerFast", **TOKENS, "chat_template": template}


NAMED = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": CHATML}]
PLACES = {
    "jinja": dict(template=CHATML),
    "config": dict(tokenizer_config=with_template(CHATML)),
    "config_list": dict(tokenizer_config=with_template(NAMED)),
    "legacy": dict(chat_template={"chat_template": CHATML}),
    "jinja_first": dict(
        template=CHATML, tokenizer_config=with_template("no"), chat_template={"chat_template": "neither"}
    ),
    "config_second": dict(tokenizer_config=with_template(CHATML), chat_template={"chat_template": "no"}),
}


@pytest.mark.parametrize("place", PLACES)
def test_the_template_is_found_saved_and_found_again(place, tmp_path):
    folder = write_folder(tmp_path / "model", **PLACES[place])
    vocabulary = make_vocabulary(folder)
    vocabulary.save(tmp_path / "saved")
    vocabulary.save(tmp_path / "again")
    make_vocabulary(tmp_path / "again").save(tmp_path / "again")
    for path in (folder, tmp_path / "saved", tmp_path / "again"):
        assert [make_vocabulary(path).render(messages) for messages in (ASK, OPEN)] == [ASKED, OPENED]
        if place != "legacy":  # a processor's file, which tokenizers do not read
            assert oracle_of(AutoTokenizer.from_pretrained(path), ASK, tokenize=False) == ASKED


def test_the_template_of_an_object_is_saved(tmp_path):
    template = "{{ bos_token }}{{ messages[0].content }}{% if add_generation_prompt %}>{% endif %}"
    given = PreTrainedTokenizerFast(tokenizer_object=chat_tokenizer(), chat_template=template, **TOKENS)
    make_vocabulary(given).save(tmp_path)
    opened = make_vocabulary(tmp_path)
    assert opened.render(ASK) == oracle_of(AutoTokenizer.from_pretrained(tmp_path), ASK, tokenize=False) == "<s>hi>"
    assert opened.encode("<s>hi>", rendered=True) == oracle_of(given, ASK, return_dict=False)


SHOW = "{{ bos_token }}|{{ eos_token }}|{{ pad_token }}|{{ image_token }}|{{ add_bos_token }}"
ADDED = {"__type": "AddedToken", "content": "<s>", "lstrip": False, "rstrip": False, "normalized": False}
SPECIAL = {
    "texts": (dict(tokenizer_config=TOKENS), "<s>|</s>|<pad>||"),
    "dicts": (dict(tokenizer_config={"bos_token": ADDED, "eos_token": None}), "<s>||||"),
    "map": (dict(tokenizer_config={}, special_tokens_map={"bos_token": "<s>", "eos_token": ADDED}), "<s>|<s>|||"),
    "map_over": (dict(tokenizer_config=TOKENS, special_tokens_map={"bos_token": "</s>"}), "</s>|</s>|<pad>||"),
    "no_map": (
        dict(tokenizer_config={**TOKENS, "added_tokens_decoder": {}}, special_tokens_map={"bos_token": "<pad>"}),
        "<s>|</s>|<pad>||",
    ),
    "own": (dict(tokenizer_config={**TOKENS, "image_token": "<i>", "add_bos_token": True}), "<s>|</s>|<pad>|<i>|"),
    "extra": (dict(tokenizer_config={**TOKENS, "extra_special_tokens": {"image_token": "<j>"}}), "<s>|</s>|<pad>|<j>|"),
}


@pytest.mark.parametrize("name", SPECIAL)
def test_special_tokens_are_variables_of_the_template(name, tmp_path):
    files, expected = SPECIAL[name]
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **files.pop("tokenizer_config")}
    folder = write_folder(tmp_path / "model", SHOW, tokenizer_config=config, **files)
    assert make_vocabulary(folder).render(ASK) == expected
    assert oracle_of(AutoTokenizer.from_pretrained(folder), ASK, tokenize=False) == expected


# No template, and templates that fail


def tokenizers_without_template(tmp_path):
    bare = write_folder(tmp_path / "bare")
    return [
        (["h", "i"], "the list of symbols"),
        (bare, f"'{bare}'"),
        (bare / "tokenizer.json", str(bare / "tokenizer.json")),
        (chat_tokenizer(), "the tokenizer of type Tokenizer"),
        (PreTrainedTokenizerFast(tokenizer_object=chat_tokenizer()), "the tokenizer of type"),
    ]


def test_a_tokenizer_without_a_template_is_named_with_the_row_and_the_way_out(tmp_path):
    for tokenizer, named in tokenizers_without_template(tmp_path):
        with pytest.raises(ValueError) as error:
            make(tokenizer=tokenizer, prompts=["hi", {"prompt": ASK}])
        text = str(error.value)
        assert text.startswith(f"prompts[1]: field 'prompt': it is a list of messages, and {named}"), text
        assert "has no chat template" in text and "chat_template.jinja" in text and "prompt as a str" in text


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (dict(template="{% if"), "the chat template of .* does not take the messages: TemplateSyntaxError"),
        (dict(template="{{ raise_exception('no\x1b') }}"), r"TemplateError: no\\x1b$"),
        (dict(template="{{ messages[0].a.b }}"), "UndefinedError: .* has no attribute 'a'"),
        (dict(template="{% include 'x' %}"), "TypeError: no loader"),
        (dict(template="{{ '\ud800'.encode('utf-8') }}".encode("utf-8", "surrogatepass")), "jinja of .* is not UTF-8"),
        (dict(tokenizer_config=with_template(3)), "the chat_template in tokenizer_config.json of .* is 3; it must be"),
        (dict(chat_template={"chat_template": {}}), "the chat_template in chat_template.json of .* is {}; it must be"),
        (dict(chat_template="{"), "chat_template.json of .* is not JSON"),
        (dict(chat_template=[]), "chat_template.json of .* is a JSON list; it must be an object"),
        (
            dict(tokenizer_config=with_template([{"name": "rag", "template": "x"}, 3])),
            r"tokenizer_config.json of .* has the chat templates \['rag'\] and none with the name 'default'; give",
        ),
        (dict(tokenizer_config=with_template([{"name": "default"}])), "has no chat template"),
        (dict(template="x", tokenizer_config={"bos_token": 3}), "the bos_token of .* is 3; it must be a text"),
        (dict(template="x", special_tokens_map={"bos_token": {"a": 1}}), "the bos_token of .* is None; it must be"),
    ],
)
def test_a_template_that_fails_is_an_error_of_chats_alone(files, words, tmp_path):
    template = files.pop("template", None)
    folder = write_folder(tmp_path / "model", **files)
    if template is not None:
        content = template if isinstance(template, bytes) else template.encode()
        (folder / "chat_template.jinja").write_bytes(content)
    vocabulary = make_vocabulary(folder)
    assert load_prompts(["hi"], vocabulary)[0].text == "hi"
    with pytest.raises(ValueError, match=words) as error:
        load_prompts([{"prompt": ASK}], vocabulary)
    assert str(error.value).startswith("prompts[0]: field 'prompt': ") and "\x1b" not in str(error.value)


@pytest.mark.parametrize("version", ["3.1.6", "3.2", "10.0.0.dev1"])
def test_a_jinja2_whose_sandbox_holds(folder, monkeypatch, version):
    monkeypatch.setattr(metadata, "version", lambda name: version)
    assert make_vocabulary(folder).render(ASK) == ASKED


@pytest.mark.parametrize("version", ["3.1.5", "2.11.3", "3.0"])
def test_a_jinja2_whose_sandbox_does_not_hold_is_refused(folder, monkeypatch, version):
    monkeypatch.setattr(metadata, "version", lambda name: version)
    with pytest.raises(ImportError, match=rf"jinja2 {version} does not hold .* 3.1.6 does: .*textgym\[chat\]"):
        make(tokenizer=folder, prompts=[{"prompt": ASK}])


def test_jinja2_is_asked_for_where_it_is_missing(vocabulary, monkeypatch):
    monkeypatch.delitem(sys.modules, "textgym.template_sandbox")
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(ImportError, match=r"prompts of messages need jinja2 .*textgym\[chat\]"):
        load_prompts([{"prompt": ASK}], vocabulary)
    assert load_prompts(["hi"], vocabulary)[0].text == "hi"


def test_neither_transformers_nor_torch_is_loaded_for_a_chat(folder):
    code = (
        "import sys, textgym, gymnasium as gym\n"
        f"env = gym.make('TextGen-v0', tokenizer={str(folder)!r}, prompts=[{{'prompt': {ASK!r}}}], text_info=True,\n"
        "               reward=lambda completions: [0.0])\n"
        "assert 'jinja2' in sys.modules, 'the template was not rendered'\n"
        "print(*{name.split('.')[0] for name in sys.modules} & {'transformers', 'torch'})"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, "\n"), result.stderr


# Where messages come from


def test_messages_in_files_and_objects(vocabulary, tmp_path):
    rows = [{"prompt": ASK, "answer": "A"}, {"prompt": [*OPEN, message("user", "x", name="N")], "answer": None}]
    lines = tmp_path / "p.jsonl"
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows))
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "p.parquet")  # every message has a `name` there
    arrays = [{**row, "prompt": np.array(row["prompt"], dtype=object)} for row in rows]
    sources = [rows, lines, tmp_path / "p.parquet", datasets.Dataset.from_list(rows), arrays]
    for source in sources:
        prompts = load_prompts(source, vocabulary)
        assert [prompts[place].text for place in range(2)] == [vocabulary.render(row["prompt"]) for row in rows]
        assert [prompts[place].columns for place in range(2)] == [
            {"answer": row["answer"], "messages": row["prompt"]} for row in rows
        ]


def test_messages_of_a_function_and_of_reset_options(vocabulary):
    def draw(generator):
        return {"prompt": [message("user", "ab"[int(generator.integers(2))])], "answer": "A"}

    def score(prompts, completions, messages, answer):
        seen.append((prompts[0], messages[0], answer[0]))
        return [0.0]

    def play(**options):
        observation, info = env.reset(**options)
        env.step(0)
        return observation[: info["prompt_length"]].tolist()

    seen, tokenizer = [], PreTrainedTokenizerFast(tokenizer_object=chat_tokenizer(), chat_template=CHATML)
    env = make(tokenizer=tokenizer, prompts=draw, max_prompt_tokens=60, reward=score)
    for seed in range(12):
        play(seed=seed)
    assert {text for text, _, _ in seen} == {ASKED.replace("hi", letter) for letter in "ab"}
    assert all(text == vocabulary.render(messages) and answer == "A" for text, messages, answer in seen)
    seen.clear()
    open_ids = vocabulary.encode(OPENED, rendered=True)
    assert play(options={"prompt": OPEN, "columns": {"answer": "B"}}) == open_ids
    play(options={"prompt": "hi", "columns": {"messages": "mine"}})
    play(options={"prompt": ASK, "columns": {"messages": "mine"}})
    play(options={"prompt": ASK})
    play(options={"prompt": "hi"})
    assert seen == [
        (OPENED, OPEN, "B"),
        ("hi", "mine", None),
        (ASKED, "mine", None),
        (ASKED, ASK, None),
        ("hi", None, None),
    ]


def test_messages_for_each_row_of_a_vector_environment(folder):
    keywords = dict(tokenizer=folder, prompts=["hi"], max_prompt_tokens=60, max_new_tokens=1, text_info=True)
    seen = []
    keywords["reward"] = lambda completions, messages: seen.extend(messages) or [0.0] * len(completions)
    envs = gym.make_vec("textgym:TextGen-v0", num_envs=3, autoreset_mode="SameStep", **keywords)
    for options in ({"rows": {"prompt": [ASK, "hi", tuple(OPEN)]}}, {"prompt": ASK}):
        envs.reset(seed=0, options=options)
        infos = envs.step(np.zeros(3, dtype=int))[4]["final_info"]
        assert infos["prompt"].tolist() == ([ASKED, "hi", OPENED] if "rows" in options else [ASKED] * 3)
    assert seen == [ASK, None, OPEN, ASK, ASK, ASK]


def test_a_reward_sees_the_messages_unless_a_column_has_their_name(folder):
    seen = []

    def score(prompts, messages, completions):
        seen.append((prompts[0], copy.deepcopy(messages[0])))
        if isinstance(messages[0], list):
            messages[0].clear()  # it is a copy
        return [0.0]

    class Role(StrEnum):
        user = "user"

    rows = [
        {"prompt": ASK},
        {"prompt": [{"role": Role.user, "content": np.str_("hi"), "name": None, "n": np.int64(2), "of": (1, None)}]},
        {"prompt": ASK, "messages": "own"},
        {"prompt": ASK, "messages": None},
        "hi",
    ]
    env = make(tokenizer=folder, prompts=rows, prompt_order="sequential", reward=score, max_new_tokens=1)
    for _ in range(2 * len(rows)):
        env.reset()
        env.step(0)
    plain = [{"role": "user", "content": "hi", "n": 2, "of": [1, None]}]
    once = [(ASKED, ASK), (ASKED, plain), (ASKED, "own"), (ASKED, None), ("hi", None)]
    assert seen == 2 * once
    assert [type(value) for value in seen[1][1][0].values()] == [str, str, int, list]


def test_messages_are_copied_when_the_environment_is_made(folder):
    messages = [dict(one) for one in ASK]
    env = make(tokenizer=folder, prompts=[{"prompt": messages}], reward=noting(seen := []))
    messages[0]["content"] = "changed"
    env.reset()
    env.step(0)
    assert seen == [(ASKED, ASK)]


def test_a_state_holds_the_messages(folder, tmp_path):
    def build():
        return make(
            tokenizer=folder,
            prompts=[{"prompt": OPEN}],
            max_prompt_tokens=60,
            max_new_tokens=2,
            reward=lambda prompts, completions, messages: [float(len(messages[0]))],
        ).unwrapped

    env = build()
    env.reset(seed=0, options={"prompt": [message("user", "é", parts=[1, {"a": None}])] * 3})
    env.step(7)
    np.savez(tmp_path / "state.npz", **env.get_state())
    other = build()
    other.set_state(np.load(tmp_path / "state.npz", allow_pickle=False))
    results = [one.step(8) for one in (env, other)]
    np.testing.assert_array_equal(results[0][0], results[1][0])
    assert results[0][1] == results[1][1] == 3.0
    assert results[0][4]["prompt"] == results[1][4]["prompt"] != ""


# Malformed messages

BAD = [
    ([], ValueError, "is an empty list; give a str, or at least one message"),
    ({"role": "user", "content": "x"}, TypeError, "of type dict; give a str, or a list of messages"),
    (3, TypeError, "is 3 of type int; give a str, or a list of messages"),
    (None, TypeError, "is None of type NoneType; give a str"),
    (["hi"], TypeError, "messages[0] is 'hi' of type str; give a dict with a 'role' and a 'content'"),
    ([ASK[0], None], TypeError, "messages[1] is None of type NoneType; give a dict"),
    ([ASK], TypeError, "messages[0] is [{'role': 'user', 'content': 'hi'}] of type list; give a dict"),
    ([{"content": "x"}], ValueError, "messages[0] has no 'role', only ['content']."),
    ([{"role": "user"}], ValueError, "messages[0] has no 'content', only ['role']."),
    ([{"roles": "user", "content": ""}], ValueError, "only ['roles', 'content']. Did you mean 'roles'?"),
    ([{"role": 3, "content": "x"}], TypeError, "messages[0]['role'] is 3 of type int; give a str"),
    ([ASK[0], message("user", None)], TypeError, "messages[1]['content'] is None of type NoneType; give a str"),
    ([message("user", [{"type": "text"}])], TypeError, "messages[0]['content'] is [{'type': 'text'}] of type list"),
    ([message("user", "a\ud800")], ValueError, r"messages[0]['content']: '\ud800' at character 1 of"),
    ([message("\udfff", "a")], ValueError, r"messages[0]['role']: '\udfff' at character 0"),
    ([message("user", "a", x={"y": ["\ud800"]})], ValueError, r"messages[0]['x']['y'][0]: '\ud800' at character 0"),
    ([message("user", "a", **{"\ud800": 1})], ValueError, r"messages[0]: '\ud800' at character 0"),
    ([message("user", "\x1b[31m", role2=1) | {"role": "\x1b"}], None, ""),
]
NOT_PLAIN = [
    ([message("user", "a", x=object)], TypeError, "messages[0]['x'] is <class 'object'> of type type; give what JSON"),
    ([message("user", "a", x=[float("nan")])], TypeError, "messages[0]['x'][0] is nan of type float; give what JSON"),
    ([message("user", "a", x={1: 2})], TypeError, "messages[0]['x'] is {1: 2} of type dict; give what JSON holds"),
    ([{"role": "user", "content": "a", 3: 4}], TypeError, "messages[0] is {'role': 'user', "),
    ([message("user", "a", x={1, 2})], TypeError, "messages[0]['x'] is {1, 2} of type set"),
]


def test_a_malformed_message_is_named_with_its_row_and_field(vocabulary):
    for value, kind, words in BAD + NOT_PLAIN:
        rows = ["hi", {"prompt": value}]
        if kind is None:
            assert load_prompts(rows, vocabulary)[1].text.startswith("<|im_start|>\x1b\n\x1b[31m")
            continue
        with pytest.raises(kind) as error:
            load_prompts(rows, vocabulary)
        assert str(error.value).startswith("prompts[1]: field 'prompt'") and words in str(error.value)
        str(error.value).encode()
        with pytest.raises(kind) as error:
            load_prompts(lambda generator, value=value: {"prompt": value}, vocabulary, 9).draw(None)
        assert "returned: field 'prompt'" in str(error.value) and words in str(error.value)


def test_a_malformed_message_of_a_file_is_named_with_its_line(vocabulary, tmp_path):
    path = tmp_path / "p.jsonl"
    for value, kind, words in BAD:
        if kind is None:
            continue
        path.write_text('{"prompt": "hi"}\n\n' + json.dumps({"prompt": value}) + "\n")
        with pytest.raises(kind) as error:
            load_prompts(path, vocabulary)
        assert str(error.value).startswith(f"{path} line 3: field 'prompt'") and words in str(error.value)


def test_a_malformed_message_of_reset_options_is_named_and_changes_nothing(folder):
    env = make(tokenizer=folder, prompts=[{"prompt": ASK}], max_prompt_tokens=40)
    env.reset()
    for value, kind, words in BAD + NOT_PLAIN:
        if kind is None or value is None:
            continue
        with pytest.raises(kind) as error:
            env.reset(options={"prompt": value})
        assert str(error.value).startswith("the reset option 'prompt'") and words in str(error.value)
    assert env.step(0)[4]["prompt"] == ASKED


def test_messages_that_nest_too_deeply_or_hold_themselves(vocabulary):
    deep, itself = [], []
    for _ in range(100_000):
        deep = [deep]
    itself.append(itself)
    for value in (deep, itself):
        with pytest.raises(ValueError, match=r"prompts\[0\]: field 'prompt': messages\[0\] nests too deeply"):
            load_prompts([{"prompt": [message("user", "a", x=value)]}], vocabulary)


def test_a_chat_that_is_too_long_is_refused_with_its_text(vocabulary):
    size = len(vocabulary.encode(ASKED, rendered=True))
    assert load_prompts([{"prompt": ASK}], vocabulary, size)[0].text == ASKED
    with pytest.raises(ValueError, match=rf"prompts\[0\]: field 'prompt' has {size} tokens, more than .*={size - 1}:"):
        load_prompts([{"prompt": ASK}], vocabulary, size - 1)


def test_a_chat_that_the_tokenizer_cannot_encode_is_named(tmp_path):
    folder = tmp_path / "model"
    Vocabulary.from_symbols(["a", "<eos>"]).save(folder)
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}!")
    with pytest.raises(ValueError, match=r"prompts\[0\]: field 'prompt': no token for '!' at character 1 of 'a!'"):
        make(tokenizer=folder, prompts=[{"prompt": [message("user", "a")]}])
    env = make(tokenizer=folder, prompts=["a"])
    with pytest.raises(ValueError, match="the reset option 'prompt': no token for '!' at character 1 of 'a!'"):
        env.reset(options={"prompt": [message("user", "a")]})


# The sandbox

SECRETS = ["__class__", "__init__", "__globals__", "__subclasses__", "__mro__", "_sandbox", "__self__", "__func__"]
ATTACKS = [
    "{{ messages.__class__.__base__.__subclasses__() }}",
    "{{ messages['__class__'].__mro__ }}",
    "{{ (messages|attr('__class__')).__mro__ }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ '{0.__class__.__mro__}'.format(messages) }}",
    "{{ '{m.__class__.__mro__}'.format_map({'m': messages}) }}",
    "{{ ['{0.__class__.__mro__}'.format]|map('string')|first|attr('__self__').x }}",
    "{{ (messages|map(attribute='__class__')|first).__mro__ }}",
    "{{ raise_exception.__globals__.json }}",
    "{{ strftime_now.__globals__['json'] }}",
    "{{ range.__self__.begin() }}",
    "{{ dict.__class__.__init__.__globals__ }}",
    "{{ dict.fromkeys.__self__.x }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ namespace.mro() }}",
    "{{ cycler.__init__.__globals__.os }}",
    "{{ joiner.__init__.__globals__ }}",
    "{{ self._TemplateReference__context.environment }}",
    "{{ self.__init__.__globals__ }}",
    "{% for m in messages %}{{ loop._iterator.x }}{% endfor %}",
    "{% macro f() %}{% endmacro %}{{ f._func.__globals__ }}",
    "{% macro f() %}{{ caller._environment.x }}{% endmacro %}{% call f() %}{% endcall %}",
    "{{ (messages|tojson).__class__.__mro__ }}",
    "{% set n = namespace() %}{% set n.__class__ = messages %}",
    "{% set n = namespace(_x=1) %}",
    "{{ namespace({'__html__': 1}) }}",
    "{{ lipsum.__globals__ }}",
    "{{ lipsum() }}",
    "{{ messages|random }}",
    "{{ messages.append(1) }}",
    "{{ messages.clear() }}",
    "{{ messages|attr('pop')() }}",
    "{{ messages[0].update({'content': 'x'}) }}",
    "{{ messages[0].pop('content') }}",
    "{% set messages[0].content = 'x' %}",
    "{% set _ = messages[0].setdefault('x', 1) %}",
    "{{ messages|map('attr', 'clear')|first()() }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}{{ os }}",
    "{% extends 'x' %}",
    "{{ range(1000000) }}",
    "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
    "{% for i in range(1000) %}{% for j in range(1000) %}x{% endfor %}{% endfor %}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "{% block b %}{{ self.b() }}{% endblock %}",
    "{% set n = namespace(x=60) %}{% block b %}{% if n.x %}{% set n.x = n.x - 1 %}{{ self.b() }}{{ self.b() }}"
    "{% set n.x = n.x + 1 %}{% endif %}{% endblock %}",
    "{% for i in [1, 2] recursive %}{{ loop([1, 2]) }}{% endfor %}",
    "{% macro f() %}{% for i in [1, 2] %}{{ caller() }}{% endfor %}{% endmacro %}"
    "{% macro g(n) %}{% if n %}{% call f() %}{{ g(n - 1) }}{% endcall %}{% endif %}{% endmacro %}{{ g(60) }}",
    "{{ 9 ** (9 ** 9) }}",
    "{{ 2 ** (9 ** 9) }}",
    "{% set n = namespace(x=3) %}{% for i in range(64) %}{% set n.x = n.x * n.x %}{% endfor %}",
    "{{ 'a' * 10 ** 12 }}",
    "{{ 10 ** 12 * 'a' }}",
    "{{ [0] * 10 ** 11 }}",
    "{{ 'a' * 10 ** 4300000 }}",
    "{{ 'a'|center(10 ** 19) }}",
    "{% for a in 'ab' %}" * 30 + "{% endfor %}" * 30,
    "{{" + "(" * 3000 + "1" + ")" * 3000 + "}}",
]


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack[:60])
def test_the_sandbox_holds(attack, tmp_path, monkeypatch):
    monkeypatch.setattr(template_sandbox, "MOST_STEPS", 20_000)
    vocabulary = make_vocabulary(write_folder(tmp_path / "model", attack))
    messages = [dict(one) for one in ASK]
    with pytest.raises(ValueError, match="the chat template of .* does not take the messages: ") as error:
        vocabulary.render(messages)
    assert messages == ASK
    assert len(str(error.value)) < 2000


@pytest.mark.parametrize("name", SECRETS)
def test_a_private_attribute_is_never_a_value(name):
    for value in ("messages", "''", "range", "dict", "namespace", "cycler", "raise_exception", "strftime_now", "self"):
        template = "{{ " + value + "." + name + " is defined }}{{ (" + value + "|attr('" + name + "')) is defined }}"
        assert run(template, {"messages": ASK}) == "FalseFalse"


@pytest.mark.parametrize(
    ("template", "steps"),
    [
        ("{% for i in 'abcde' %}{% endfor %}", 5),
        ("{% for i in range(3) %}{% endfor %}", 3 + 3),
        ("{% for i in 'ab' %}{% for j in 'abc' %}{% endfor %}{% endfor %}", 2 + 2 * 3),
        ("{% macro f() %}{% endmacro %}{{ f() }}{{ f() }}", 2),
        ("{{ 'ab' * 5 }}{{ 3 * [1] }}", 10 + 3),
        ("{{ 8 ** 3 }}{{ 5 * 9 }}{{ 0.5 * 3 }}{{ 2 ** -1 }}{{ 'a' * -9 }}", 4 * 3 + 3 + 4),
    ],
)
def test_steps_are_counted_anew_for_each_text(template, steps, monkeypatch):
    for most in (steps, steps - 1):
        monkeypatch.setattr(template_sandbox, "MOST_STEPS", most)
        for _ in range(2):
            if most == steps:
                run(template, {"messages": ASK})
            else:
                with pytest.raises(SecurityError, match=f"it takes more than {most} steps"):
                    run(template, {"messages": ASK})


def test_what_is_done_once_takes_no_step(monkeypatch):
    monkeypatch.setattr(template_sandbox, "MOST_STEPS", 0)
    assert run("{{ 'a' + 'b' ~ 'c' }}{% if messages %}d{% endif %}{{ messages|length }}", {"messages": ASK}) == "abcd1"


def test_the_steps_of_threads_are_counted_apart(monkeypatch):
    monkeypatch.setattr(template_sandbox, "MOST_STEPS", 20)
    both, texts = threading.Barrier(2, timeout=30), []

    def render():
        template = "{{ wait() }}{% for i in range(6) %}{{ i }}{% endfor %}"  # 12 steps, begun at once
        texts.append(run(template, {"wait": lambda: both.wait() and ""}).lstrip("0"))

    threads = [threading.Thread(target=render) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == ["12345", "12345"]


def test_what_a_generation_block_sets_stays_inside_as_in_transformers(tmp_path):
    template = (
        "{% set x = 1 %}{% generation %}{% set x = 2 %}{{ x }}{% endgeneration %}{{ x }}\n"
        "{% for m in messages %}  {% generation %}  \n  {{- m.content }}{{ loop.index }}\n {% endgeneration -%} \n."
        "{% endfor %}"
    )
    folder = write_folder(tmp_path / "model", template)
    text = oracle_of(AutoTokenizer.from_pretrained(folder), ASK, tokenize=False)
    assert make_vocabulary(folder).render(ASK) == text
    assert text.startswith("21\n")
