"""`textgym sample`: what it writes is what the model would write, its numbers are the model's, its output is safe."""

import json
import re

import pytest
from transformers import AutoTokenizer

from tests.agents.commands import HOSTILE, exit_code, greedy_ids, save_policy, token_log_probs, unsafe
from tests.agents.zoo import CHAT_TEMPLATE
from tests.stories.run import textgym
from textgym.vocabulary import Vocabulary

SYMBOLS = ["a", "b", "c", "<eos>"]
STOP = 3
HORIZON = ("--max-new-tokens", 6)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_policy(tmp_path_factory.mktemp("sample") / "model", SYMBOLS)


@pytest.fixture
def lines(capsys):
    """Runs `textgym sample --json` and returns its objects."""

    def sampled(*flags):
        code = exit_code("sample", *flags, "--json")
        said = capsys.readouterr()
        assert code == 0, said.err
        return [json.loads(line) for line in said.out.splitlines()]

    return sampled


@pytest.fixture
def shown(capsys):
    """Runs `textgym sample` and returns what it prints."""

    def sampled(*flags):
        code = exit_code("sample", *flags)
        said = capsys.readouterr()
        assert code == 0, said.err
        return said.out

    return sampled


# --- texts and numbers are the model's


@pytest.mark.parametrize("name", ["llama", "gpt2", "llama-padded", "gemma"])
def test_log_probs_are_those_of_the_plain_model(name, zoo_folder, lines):
    folder = zoo_folder(name)
    prompts = ["red green", "one"]
    entries = lines("--model", folder, "--prompt", prompts[0], "--prompt", prompts[1], "--num", 3, *HORIZON)
    assert len(entries) == 6
    vocabulary = Vocabulary.from_path(folder)
    for place, entry in enumerate(entries):
        prompt_ids = vocabulary.encode(prompts[place // 3])
        assert entry["prompt"] == vocabulary.decode(prompt_ids)
        assert entry["completion"] == vocabulary.decode(entry["completion_ids"])
        expected = token_log_probs(folder, prompt_ids, entry["completion_ids"])
        # The padded folder's weights are saved in half precision, and opened in single as the command opens them.
        assert entry["log_probs"] == pytest.approx(expected, abs=1e-4)
        assert entry["finish_reason"] == (1 if entry["completion_ids"][-1] in vocabulary.stop_ids else 2)
        assert entry["score"] is None
    assert len({tuple(entry["completion_ids"]) for entry in entries}) > 3


def test_the_text_says_what_the_lines_say(model, lines, shown):
    flags = ("--model", model, "--prompt", "a", "--prompt", "cb", "--num", 2, "--seed", 5, *HORIZON)
    entries = lines(*flags)
    expected = []
    for place, entry in enumerate(entries):
        steps = len(entry["completion_ids"])
        end = {1: "ended by a stop token or string", 2: "cut off at the limit"}[entry["finish_reason"]]
        after = f"after {steps} token{'' if steps == 1 else 's'}"
        expected += [] if place % 2 else [f"prompt: {entry['prompt']}"]
        expected += [f"completion: {entry['completion']}", f"  {end} {after}, log-prob {sum(entry['log_probs']):.4g}"]
    assert shown(*flags).splitlines() == expected
    assert [line for line in expected if line.startswith("prompt")] == ["prompt: a", "prompt: cb"]


@pytest.mark.parametrize(
    "flags",
    [["--greedy"], ["--temperature", 1e-4], ["--top-k", 1], ["--top-p", 1e-6], ["--min-p", 1]],
)
def test_the_greedy_text_is_that_of_an_argmax_loop(flags, model, lines):
    prompts = {"a": [0], "bc": [1, 2], "": []}
    given = [word for prompt in prompts for word in ("--prompt", prompt)]
    entries = lines("--model", model, *given, *HORIZON, *flags)
    assert [entry["prompt"] for entry in entries] == list(prompts)
    for entry, prompt_ids in zip(entries, prompts.values(), strict=True):
        assert entry["completion_ids"] == greedy_ids(model, prompt_ids, [STOP], 6)
        alone = token_log_probs(model, prompt_ids, entry["completion_ids"])
        assert entry["log_probs"] == pytest.approx(alone if flags == ["--greedy"] else [0.0] * len(alone), abs=1e-4)


def test_a_seed_is_the_whole_of_chance(model, shown):
    flags = ("--model", model, "--prompt", "a", "--num", 8, *HORIZON)
    assert shown(*flags, "--seed", 1) == shown(*flags, "--seed", 1) != shown(*flags, "--seed", 2)


def test_frequencies_are_the_probabilities_of_the_model(model, lines):
    entries = lines("--model", model, "--prompt", "b", "--num", 3000, "--max-new-tokens", 1)
    for token in range(4):
        expected = 2.718281828459045 ** token_log_probs(model, [1], [token])[0]
        count = sum(entry["completion_ids"] == [token] for entry in entries)
        assert abs(count / 3000 - expected) < 4.5 * (expected * (1 - expected) / 3000) ** 0.5 + 1e-9


# --- prompts


def test_without_a_prompt_a_text_begins_at_the_bos(zoo_folder, model, shown, lines):
    assert shown("--model", zoo_folder("llama"), *HORIZON).startswith("prompt: <s>\ncompletion: ")
    (entry,) = lines("--model", model, *HORIZON)
    assert entry["prompt"] == ""
    assert entry["log_probs"] == pytest.approx(token_log_probs(model, [], entry["completion_ids"]), abs=1e-4)


@pytest.mark.parametrize(("flags", "count"), [([], 300), (["--num-prompts", 7], 7), (["--num-prompts", 999], 300)])
def test_a_file_is_answered_in_its_order(flags, count, model, tmp_path, lines):
    """More prompts than are played at a time."""
    prompts = ["".join("abc"[(number // 3**place) % 3] for place in range(6)) for number in range(300)]
    (tmp_path / "prompts.txt").write_text("\n".join(prompts) + "\n")
    flags = ["--prompts", tmp_path / "prompts.txt", "--num", 2, "--max-new-tokens", 2, *flags]
    entries = lines("--model", model, *flags)
    assert [entry["prompt"] for entry in entries] == [prompt for prompt in prompts[:count] for _ in range(2)]


@pytest.mark.parametrize("num", [1, 700])
def test_a_prompt_may_have_more_samples_than_are_played_at_a_time(num, model, shown):
    said = shown("--model", model, "--prompt", "a", "--prompt", "b", "--num", num, "--max-new-tokens", 1)
    texts = re.fullmatch(r"prompt: a\n((?:completion:.*\n  .*\n)+)prompt: b\n((?:completion:.*\n  .*\n)+)", said)
    assert [text.count("completion:") for text in texts.groups()] == [num, num]


def test_a_task_brings_prompts_and_a_score(tmp_path, lines, shown):
    model = save_policy(tmp_path / "model", "01234567")
    entries = lines("--model", model, "--task", "sort", "--seed", 3)
    assert len(entries) == 4 == len({entry["prompt"] for entry in entries})
    for entry in entries:
        right = sum(a == b for a, b in zip(sorted(entry["prompt"]), entry["completion"], strict=True))
        assert entry["score"] == right / 4
    again, other = (lines("--model", model, "--task", "sort", "--seed", seed) for seed in (3, 4))
    assert again == entries and other != entries
    assert len(lines("--model", model, "--task", "sort", "--num-prompts", 9)) == 9
    assert shown("--model", model, "--task", "sort", "--seed", 3).count(", score ") == 4


def test_a_task_with_fewer_prompts_shows_each_once(tmp_path, lines):
    model = save_policy(tmp_path / "model", ["0", "1"])
    assert len(lines("--model", model, "--task", "bandit")) == 1
    model = save_policy(tmp_path / "other", "01234567")
    prompts = [entry["prompt"] for entry in lines("--model", model, "--task", "memorise", "--num-prompts", 8)]
    assert len(set(prompts)) == 8


def test_own_prompts_are_scored_by_a_task_and_by_an_own_reward(tmp_path, lines):
    model = save_policy(tmp_path / "model", "01234567")
    (entry,) = lines("--model", model, "--task", "sort", "--prompt", "7531", "--greedy")
    assert entry["score"] == sum(a == b for a, b in zip("1357", entry["completion"], strict=True)) / 4
    (tmp_path / "reward.py").write_text(
        "def score(completions): return [float(text.count('3')) for text in completions]"
    )
    flags = ("--model", model, "--reward", f"{tmp_path / 'reward.py'}:score", "--num", 20)
    for entry in lines(*flags):  # on an empty prompt
        assert entry["score"] == entry["completion"].count("3")


def test_a_hidden_score_is_shown_beside_the_score(tmp_path, shown):
    model = save_policy(tmp_path / "model", "0123456789+= ")
    said = shown("--model", model, "--task", "noisy_verifier")
    assert len(re.findall(r", score [01], true score [01]\n", said)) == 4


def test_masks_of_a_task_are_kept(tmp_path, lines):
    model = save_policy(tmp_path / "model", ["(", ")", "<eos>"])
    for entry in lines("--model", model, "--task", "brackets", "--num", 50):
        text = entry["completion"].removesuffix("<eos>")
        depths = [text[:end].count("(") - text[:end].count(")") for end in range(len(text) + 1)]
        assert min(depths) == depths[-1] == 0


def test_stop_strings_end_a_text(model, lines):
    entries = lines("--model", model, "--prompt", "a", "--num", 40, "--stop", "ab", "--stop=c", *HORIZON)
    for entry in entries:
        text = entry["completion"].removesuffix("<eos>")
        assert (entry["finish_reason"] == 1) == (text.endswith(("ab", "c")) or text != entry["completion"])
        assert "ab" not in text[:-1] and "c" not in text[:-1]
    assert any(entry["completion"].endswith("ab") for entry in entries)


# --- chat


def test_a_chat_is_written_by_the_template_of_the_model(zoo_folder, lines):
    folder = zoo_folder("qwen2")
    first, second = lines("--model", folder, "--chat", "red cat", "--chat", "one", "--greedy", *HORIZON)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for entry, said in ((first, "red cat"), (second, "one")):
        messages = [{"role": "user", "content": said}]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert entry["prompt"] == text == f"user {said} dog "
        prompt_ids = tokenizer.encode(text, add_special_tokens=False)
        expected = token_log_probs(folder, prompt_ids, entry["completion_ids"])
        assert entry["log_probs"] == pytest.approx(expected, abs=1e-4)
    assert "dog " in CHAT_TEMPLATE


def test_a_chat_without_a_template_is_one_message(zoo_folder, capsys):
    assert exit_code("sample", "--model", zoo_folder("llama"), "--chat", "red") == 1
    assert "has no chat template" in capsys.readouterr().err


# --- what a model, a file or a reward may hold


def test_hostile_texts_never_reach_the_output(tmp_path, capsys):
    model = save_policy(tmp_path / "mod\x1b[31mel", [*HOSTILE, "<eos>"], scale=0.0)
    rows = [{"prompt": text} for text in (*HOSTILE, "".join(HOSTILE))]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    flags = ("sample", "--model", model, "--prompts", tmp_path / "prompts.jsonl", "--num", 20, "--max-new-tokens", 9)
    assert exit_code(*flags) == 0
    text = capsys.readouterr().out
    assert unsafe(text) == set()
    assert r"\x1b[31m" in text and "\\u202e" in text
    assert len(text.splitlines()) == len(rows) * 41  # none of them breaks a line
    assert exit_code(*flags, "--json") == 0
    out = capsys.readouterr().out
    assert unsafe(out) == set() and out.isascii()
    entries = [json.loads(line) for line in out.splitlines()]
    assert [entry["prompt"] for entry in entries[::20]] == [row["prompt"] for row in rows]  # and none is lost
    assert {char for entry in entries for char in entry["completion"]} >= set("".join(HOSTILE))


def test_a_text_whose_reward_fails_may_be_dropped(model, tmp_path, lines, shown):
    (tmp_path / "reward.py").write_text(
        "def score(completions): return [float('nan') if 'c' in text else 1.0 for text in completions]"
    )
    reward = ("--reward", f"{tmp_path / 'reward.py'}:score", "--on-reward-error", "drop")
    flags = ("--model", model, "--prompt", "a", "--num", 30, *reward, *HORIZON)
    with pytest.warns(UserWarning, match="dropped"):
        entries = lines(*flags)
    assert {(entry["score"], "c" in entry["completion"]) for entry in entries} == {(None, True), (1.0, False)}
    with pytest.warns(UserWarning, match="dropped"):
        said = shown(*flags)
    assert said.count(", no score: the reward function failed\n") == sum(entry["score"] is None for entry in entries)


# --- refusals


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "which model? Give --model FOLDER"),
        (["--model", "m", "--num", 0], "--num 0; give a finite number above 0"),
        (["--model", "m", "--num-prompts", -1, "--task", "sort"], "--num-prompts -1"),
        (["--model", "m", "--num-prompts", 2], "--num-prompts 2 is for the prompts of a file or a task"),
        (["--model", "m", "--num-prompts", 2, "--prompt", "a", "--task", "sort"], "--num-prompts 2 is for"),
        (["--model", "m", "--prompt", "a", "--prompts", "p.txt"], "give one of them"),
        (["--model", "m", "--level", 2], "--level 2 needs a --task"),
        (["--model", "m", "--task", "sotr"], "Did you mean 'sort'"),
        (["--model", "m", "--greedy", "--num", 2], "--greedy writes the same every time; leave out --num 2"),
        (["--model", "m", "--seed", -1], "--seed -1"),
        (["--model", "m", "--temperature", 0], "--temperature 0.0"),
        (["--model", "m", "--promt", "a"], "--prompt"),
        (["--model", "m", "--max-new-tokens", "many"], "--max-new-tokens"),
    ],
)
def test_wrong_usage_is_refused_with_2(flags, words, capsys):
    assert exit_code("sample", *flags) == 2
    said = capsys.readouterr()
    assert words in said.out + said.err


@pytest.mark.parametrize(
    ("name", "flags", "words"),
    [
        (None, ["--prompt", "a"], "nowhere"),
        ("qwen2", [], "the model has no BOS token to begin a text with; give --prompt TEXT"),
        ("qwen2", ["--prompt", "red", "--prompt", ""], "no BOS token"),
        ("llama", ["--device", "cuda:99"], "--device 'cuda:99' is not available; here are cpu"),
        ("llama", ["--prompts", "absent.txt"], "absent.txt"),
        ("llama", ["--prompt", "red", "--reward", "reward.py:fails"], "ZeroDivisionError"),
        ("llama", ["--prompt", "red", "--reward", "reward.py:absent"], "absent"),
        ("llama", ["--prompt", "purple"], "purple"),
        ("gpt2", ["--prompt", "red", "--max-new-tokens", 99], "new ones are more than the 48 that the model takes"),
        ("llama", ["--prompt", "red", "--temperature", 1e-45], "not finite"),
    ],
)
def test_failures_end_with_1_and_one_message(name, flags, words, zoo_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "reward.py").write_text("def fails(completions): return 1 / 0\n")
    assert exit_code("sample", "--model", "nowhere" if name is None else zoo_folder(name), *flags) == 1
    said = capsys.readouterr()
    assert said.err.startswith("textgym: error: ") and words in said.err.replace("\n", " ")
    assert "Traceback" not in said.err and said.out == ""


def test_the_help_fits_a_screen(capsys):
    assert exit_code("sample", "--help") == 0
    short = capsys.readouterr().out
    assert len(short.splitlines()) <= 60 and "--prompt " in short and "--top-p" not in short
    assert exit_code("sample", "--help-all") == 0
    assert "--top-p" in capsys.readouterr().out


def test_a_stranger_samples(tmp_path):
    save_policy(tmp_path / "model", SYMBOLS)
    result = textgym("sample", "--model", "model", "--prompt", "a", "--num", 2, "--max-new-tokens", 3, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert re.fullmatch(r"prompt: a\n(completion: [abc]*(<eos>)?\n  \S.* tokens?, log-prob -\S+\n){2}", result.stdout)
    assert result.stderr == ""
