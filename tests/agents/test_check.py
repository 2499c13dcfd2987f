"""`textgym check` as a user meets it: every bad row, the summary, three tried scores, exit codes."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models

from tests.agents.test_cli import textgym
from tests.stories.run import offline_environment
from textgym import Vocabulary

GOOD = '{"prompt": "ab", "answer": "x", "n": 1}\n{"prompt": "b", "answer": "y"}\n{"prompt": "abb"}\n{"prompt": "b"}\n'
BAD = b'{"prompt": "ab"}\n{"prompt"\n{"promt": "b"}\n{"prompt": "a?"}\n{"prompt": "\xe9"}\n{"prompt": "abab"}\n'
REWARD = """
def length(completions, prompts):
    return [len(text) + len(prompt) / 10 for text, prompt in zip(completions, prompts)]
def stars(completions, answer):
    return [0.0 if value is None else 1.0 for value in answer]
def fails(completions):
    return [float("nan")]
def hostile(completions):
    raise ValueError("\\x1b[31m\\u202e")
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "good.jsonl").write_text(GOOD)
    (tmp_path / "bad.jsonl").write_bytes(BAD)
    (tmp_path / "digits.txt").write_text("31\n2\n")
    (tmp_path / "reward.py").write_text(REWARD)
    Vocabulary.from_symbols(["a", "b", "<eos>"]).save(tmp_path / "model")
    return tmp_path


def check(folder, *arguments):
    return textgym("check", *arguments, cwd=folder)


def test_a_good_file_is_summed_up(folder):
    result = check(folder, "--prompts", "good.jsonl", "--model", "model")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.splitlines() == [
        "good.jsonl: 4 good rows, 0 bad",
        "columns beside the prompt: 'answer' (missing in 2 of 4 rows), 'n' (missing in 3 of 4 rows)",
        "tokens of a prompt: 1 to 3, median 1.5",
        "prompts that stand there a second time: 1",
        "no reward function was tried: give --reward, or --task for the task's",
    ]


def test_every_bad_row_is_listed(folder):
    flags = ("--tokenizer", "model/tokenizer.json", "--max-prompt-tokens", 3)
    result = check(folder, "--prompts", "bad.jsonl", *flags)
    assert result.returncode == 1
    listed = result.stdout.splitlines()
    expected = [
        ("bad.jsonl line 2 is not JSON", "{"),
        ("bad.jsonl line 3 has no field 'prompt'", "Did you mean 'promt'"),
        ("bad.jsonl line 4: field 'prompt'", "no token for '?' at character 1"),
        ("bad.jsonl line 5", "not UTF-8"),
        ("bad.jsonl line 6: field 'prompt' has 4 tokens", "max_prompt_tokens=3"),
    ]
    for line, (place, reason) in zip(listed, expected, strict=False):
        assert line.startswith(place) and reason in line
    assert listed[5] == "bad.jsonl: 1 good rows, 5 bad"
    assert result.stderr == "textgym: error: 'bad.jsonl': 5 of 6 rows are bad\n"


def tried(result):
    """Score, prompt and completion of each tried line."""
    lines = [line for line in result.stdout.splitlines() if line.startswith("  ")]
    parts = [line.split(" for ") for line in lines]
    return [(float(score), *(text.strip("'") for text in texts.split(" and then "))) for score, texts in parts]


def test_three_random_completions_are_scored(folder):
    flags = ("--prompts", "good.jsonl", "--model", "model", "--reward", "reward.py:length", "--max-new-tokens", 6)
    results = [check(folder, *flags, "--seed", seed) for seed in (0, 0, 1)]
    assert [result.returncode for result in results] == [0, 0, 0], results[0].stderr
    first, again, other = map(tried, results)
    assert first == again != other
    assert len(first) == 3
    for score, prompt, completion in first:
        assert prompt in ("ab", "b", "abb")
        assert set(completion) <= {"a", "b"} and len(completion) <= 6  # never the stop token
        assert score == pytest.approx(len(completion) + len(prompt) / 10)


def test_every_token_is_drawn_equally_often(folder):
    writes = "from pathlib import Path\ndef score(completions, prompts):\n    "
    writes += "Path('seen' + prompts[0]).write_text(completions[0])\n    return [0.0]\n"
    (folder / "writes.py").write_text(writes)
    flags = ("--prompts", "digits.txt", "--task", "sort", "--reward", "writes.py:score", "--max-new-tokens", 2000)
    assert check(folder, *flags).returncode == 0
    symbols = "".join((folder / f"seen{prompt}").read_text() for prompt in ("31", "2"))
    counts = np.array([symbols.count(symbol) for symbol in "01234567"])
    assert counts.sum() == len(symbols) == 2 * 2000
    assert ((counts - 500) ** 2 / 500).sum() < 24.3  # chi-squared, 7 degrees of freedom, p = .001


def test_a_column_that_a_tried_row_lacks_is_none(folder):
    flags = ("--prompts", "good.jsonl", "--model", "model", "--reward", "reward.py:stars")
    for score, prompt, _ in tried(check(folder, *flags)):
        assert score == {"ab": 1.0, "abb": 0.0}.get(prompt, score)


def test_a_task_fills_in_its_tokens_and_its_reward(folder):
    result = check(folder, "--prompts", "digits.txt", "--task", "sort", "--level", 2)
    assert result.returncode == 0, result.stderr
    assert sorted({prompt for _, prompt, _ in tried(result)}) == ["2", "31"]
    for score, prompt, completion in tried(result):
        wanted = "".join(sorted(prompt))
        assert len(completion) == 6  # the horizon of level 2
        assert score == sum(map(str.__eq__, completion, wanted)) / len(wanted)


def test_without_a_tokenizer_characters_take_the_place_of_tokens(folder):
    result = check(folder, "--prompts", "bad.jsonl", "--reward", "reward.py:length")
    assert result.returncode == 1
    assert "bad.jsonl: 3 good rows, 3 bad" in result.stdout
    assert "characters of a prompt: 2 to 4, median 2" in result.stdout
    assert len(tried(result)) == 3
    assert all(set(completion) <= set("ab?") for _, _, completion in tried(result))


@pytest.mark.parametrize(
    ("reward", "words"),
    [
        ("reward.py:fails", ["'fails' returned nan", "prompt: '", "completion: '"]),
        ("reward.py:hostile", [r"ValueError: \x1b[31m\u202e"]),
        ("reward.py:lenght", ["Did you mean 'length'"]),
        ("absent.py:score", ["there is no file 'absent.py'"]),
    ],
)
def test_a_reward_function_that_fails_is_shown(folder, reward, words):
    result = check(folder, "--prompts", "good.jsonl", "--model", "model", "--reward", reward)
    assert result.returncode == 1
    assert result.stderr.startswith("textgym: error: ")
    assert [word for word in words if word not in result.stderr] == []
    assert "good.jsonl: 4 good rows, 0 bad" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--prompts", "absent.jsonl"], ["no file 'absent.jsonl'"]),
        (["--prompts", "godo.jsonl"], ["Did you mean 'good.jsonl'"]),
        (["--prompts", "reward.py"], [".txt, .jsonl, .csv, .parquet"]),
        (["--prompts", "good.jsonl", "--tokenizer", "absent.json"], ["'absent.json'"]),
        (["--prompts", "good.jsonl", "--model", "."], ["tokenizer.json"]),
    ],
)
def test_what_cannot_be_read_at_all_ends_with_1(folder, arguments, words):
    result = check(folder, *arguments)
    assert (result.returncode, result.stdout) == (1, "")
    assert [word for word in words if word not in result.stderr] == []
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["which prompts", "--prompts FILE"]),
        (["--promts", "a.txt"], ["'--promts'", "Did you mean '--prompts'"]),
        (["--prompts", "a.txt", "\x1b[31m"], [r"'\x1b[31m'"]),
        (["--prompts", "a.txt", "--seed", "\x1b"], ["--seed", r"\x1b"]),
        (["--prompts", "a.txt", "--seed", "-1"], ["--seed -1", "at least 0"]),
        (["--prompts", "a.txt", "--max-new-tokens", "0"], ["--max-new-tokens 0", "at least 1"]),
        (["--prompts", "a.txt", "--max-prompt-tokens", "-1"], ["--max-prompt-tokens -1", "at least 0"]),
        (["--prompts", "a.txt", "--task", "sotr"], ["Did you mean 'sort'"]),
        (["--prompts", "a.txt", "--task", "sort", "--level", "9"], ["level=9"]),
        (["--prompts", "a.txt", "--level", "1"], ["--level 1 needs a --task"]),
        (["--prompts", "a.txt", "--model", "a", "--tokenizer", "b"], ["not allowed with"]),
    ],
)
def test_wrong_usage_ends_with_2(tmp_path, arguments, words):
    result = check(tmp_path, *arguments)
    assert (result.returncode, result.stdout) == (2, "")
    assert [word for word in words if word not in result.stderr] == []
    assert "\x1b" not in result.stderr


@pytest.mark.parametrize("flag", ["--help", "-h", "--help-all"])
def test_help_fits_a_screen(tmp_path, flag):
    result = check(tmp_path, flag)
    assert result.returncode == 0
    assert len(result.stdout.splitlines()) <= 60
    flags = "prompts tokenizer model reward max-prompt-tokens max-new-tokens task level seed"
    assert [name for name in flags.split() if f"--{name} " not in result.stdout] == []


def test_hostile_text_is_escaped(tmp_path):
    hostile = "\x1b]0;x\x07\u202e"
    row = f'{{"prompt": "a{hostile}", "{hostile}": 1}}\n'.replace("\x1b", "\\u001b").replace("\x07", "\\u0007")
    (tmp_path / "h.jsonl").write_text(row + f"{hostile}\n" + row.replace("prompt", f"p{hostile[-1]}"))
    (tmp_path / "r.py").write_text("def score(completions): return [1.0]")
    result = check(tmp_path, "--prompts", "h.jsonl", "--reward", "r.py:score")
    assert result.returncode == 1
    assert len(tried(result)) == 3
    assert all(line.isprintable() for line in (result.stdout + result.stderr).splitlines())


def test_a_tokenizer_that_would_lose_a_character_is_found_out(folder):
    Tokenizer(models.BPE({"a": 0, "b": 1}, [])).save(str(folder / "pairs.json"))
    result = check(folder, "--prompts", "bad.jsonl", "--tokenizer", "pairs.json")
    assert "bad.jsonl line 4: field 'prompt': no token for '?' at character 1" in result.stdout


def test_it_works_in_a_base_install(folder):
    missing = "torch transformers tyro rich safetensors tensorboard jinja2 pyarrow"
    code = f"import sys; sys.modules.update(dict.fromkeys({missing!r}.split())); from agents.cli import main; main()"
    flags = ["check", "--prompts", "good.jsonl", "--model", "model", "--reward", "reward.py:length"]
    result = subprocess.run(
        [sys.executable, "-c", code, *flags], cwd=folder, env=offline_environment(), capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.splitlines()) == 8


CHAT_MODEL = Path(__file__).parents[1] / "textgym" / "chat_model"
CHATS = """{"prompt": [{"role": "user", "content": "ab"}], "answer": "x"}
{"prompt": "ab"}
{"prompt": [{"role": "user"}]}
{"prompt": []}
{"prompt": [{"role": "user", "content": 3}]}
{"prompt": [{"role": "user", "content": "b"}, {"role": "assistant", "content": "a"}]}
{"prompt": [{"role": "user", "content": "a?"}]}
"""
MALFORMED = [
    "chats.jsonl line 3: field 'prompt': messages[0] has no 'content', only ['role'].",
    "chats.jsonl line 4: field 'prompt' is an empty list; give a str, or at least one message",
    "chats.jsonl line 5: field 'prompt': messages[0]['content'] is 3 of type int; give a str",
]
SEEN = """
def score(prompts, completions, messages):
    with open("seen", "a") as file:
        file.writelines(f"{prompt!r} {chat!r}\\n" for prompt, chat in zip(prompts, messages))
    return [0.0] * len(prompts)
"""


@pytest.fixture
def chats(folder):
    (folder / "chats.jsonl").write_text(CHATS)
    (folder / "seen.py").write_text(SEEN)
    return folder


def test_bad_chats_are_listed_and_good_ones_tried_with_a_template(chats):
    flags = ("--prompts", "chats.jsonl", "--model", CHAT_MODEL, "--reward", "seen.py:score", "--max-new-tokens", 2)
    result = check(chats, *flags)
    lines = result.stdout.splitlines()
    assert result.returncode == 1
    assert lines[:3] == MALFORMED
    assert lines[3].startswith(
        "chats.jsonl line 7: field 'prompt': no token for '?' at character 8 of '<bos>U:a?<eos>A:'"
    )
    assert lines[4:8] == [
        "chats.jsonl: 3 good rows, 4 bad",
        "columns beside the prompt: 'answer' (missing in 2 of 3 rows), 'messages' (missing in 1 of 3 rows)",
        "tokens of a prompt: 2 to 8, median 7",  # <bos> ab; <bos> U : ab <eos> A :; <bos> U : b <eos> A : a
        "prompts that stand there a second time: 0",
    ]
    assert sorted((chats / "seen").read_text().splitlines()) == [
        "'<bos>U:ab<eos>A:' [{'role': 'user', 'content': 'ab'}]",
        "'<bos>U:b<eos>A:a' [{'role': 'user', 'content': 'b'}, {'role': 'assistant', 'content': 'a'}]",
        "'ab' None",
    ]


def test_without_a_tokenizer_the_contents_of_chats_are_checked(chats):
    result = check(chats, "--prompts", "chats.jsonl", "--reward", "seen.py:score")
    lines = result.stdout.splitlines()
    assert (result.returncode, lines[:3]) == (1, MALFORMED)
    assert lines[3:7] == [
        "chats.jsonl: 4 good rows, 3 bad",
        "rows of messages: 3; with a --tokenizer or --model, its chat template writes their text",
        "columns beside the prompt: 'answer' (missing in 3 of 4 rows), 'messages' (missing in 1 of 4 rows)",
        "characters of a prompt: 2 to 3, median 2",  # ab, ab, b and a on a line each, a?
    ]
    assert set((chats / "seen").read_text().splitlines()) <= {
        "'ab' [{'role': 'user', 'content': 'ab'}]",
        "'b\\na' [{'role': 'user', 'content': 'b'}, {'role': 'assistant', 'content': 'a'}]",
        "'a?' [{'role': 'user', 'content': 'a?'}]",
        "'ab' None",
    }


def test_chats_of_a_tokenizer_without_a_template_are_bad_rows(chats):
    result = check(chats, "--prompts", "chats.jsonl", "--model", "model")
    lacking = [line for line in result.stdout.splitlines() if "has no chat template" in line]
    assert [line.split(":")[0] for line in lacking] == [f"chats.jsonl line {number}" for number in (1, 6, 7)]
    assert "chats.jsonl: 1 good rows, 6 bad" in result.stdout and "'model' has no chat template" in lacking[0]


@pytest.mark.parametrize("flags", [(), ("--model", CHAT_MODEL)])
def test_chats_in_a_base_install_need_jinja2_for_the_template_alone(chats, flags):
    command = "import sys; sys.modules['jinja2'] = None; from agents.cli import main; main()"
    result = subprocess.run(
        [sys.executable, "-c", command, "check", "--prompts", "chats.jsonl", *flags],
        cwd=chats,
        env=offline_environment(),
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1
    assert ("pip install -U 'textgym[chat]'" in result.stderr) == bool(flags)
    assert ("4 good rows, 3 bad" in result.stdout) != bool(flags)
