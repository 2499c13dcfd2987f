"""`textgym train` as a user meets it: flags, exit codes, messages, run folder, signals."""

import json
import signal
import subprocess
import sys
import time

import pytest

from tests.stories.run import offline_environment, textgym

QUICK = ("--task", "bandit", "--total-timesteps", 600)


def error_of(result):
    return result.stderr.replace("\n", " ")


def test_help_fits_a_screen_and_help_all_has_every_setting(tmp_path):
    short, everything = (textgym("train", flag, cwd=tmp_path) for flag in ("--help", "--help-all"))
    assert short.returncode == everything.returncode == 0
    assert len(short.stdout.splitlines()) <= 60
    flags = "task level model prompts tokenizer reward scheme algorithm group-size max-new-tokens total-timesteps"
    for flag in f"{flags} learning-rate seed run-dir resume overwrite device".split():
        assert f"--{flag} " in short.stdout
    assert "--entropy-coef" not in short.stdout
    assert "--entropy-coef" in everything.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "usage: textgym COMMAND"),
        (["trian"], "unknown command 'trian' Did you mean 'train'"),
        (["report"], "'report' is not built yet"),
        (["sample"], "'sample' is not built yet"),
        (["train", "--algoritm", "rloo"], "--algorithm"),
        (["train", "--group-size", "two"], "--group-size"),
        (["train", "--task", "sotr"], "unknown task 'sotr' bandit, reverse, sort Did you mean 'sort'"),
        (["train", "--level", "9"], "level=9 1, 2, 3, 4"),
        (["train", "--scheme", "potential"], "'potential' is not built yet"),
        (["train", "--algorithm", "ppo"], "'ppo' is not built yet rloo"),
        (["train", "--resume", "runs/x"], "--resume is not built yet"),
        (["train", "--device", "cuda"], "--device cpu"),
        (["train", "--group-size", "1"], "--group-size 1 at least 2 for rloo"),
        (["train", "--learning-rate", "0"], "--learning-rate 0.0 above 0"),
        (["train", "--prompts", "p.jsonl"], "--prompts needs a --model"),
        (["train", "--prompts", "p.jsonl", "--tokenizer", "t.json"], "--prompts needs a --reward"),
    ],
)
def test_wrong_usage_is_refused_with_2(arguments, words, tmp_path):
    result = textgym(*arguments, cwd=tmp_path)
    assert result.returncode == 2
    said = result.stderr + result.stdout
    position = 0
    for word in words.split():
        position = said.find(word, position)
        assert position >= 0, (word, said)
    assert "Traceback" not in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "nowhere"], ["nowhere", "config.json"]),
        (["--task", "sort", "--reward", "absent.py:score"], ["absent.py"]),
        (["--task", "sort", "--reward", "reward.py:scroe"], ["scroe", "Did you mean 'score'"]),
        (["--task", "sort", "--reward", "reward.py:fails"], ["'fails'", "ZeroDivisionError", "prompt:", "completion:"]),
        (["--task", "sort", "--prompts", "broken.jsonl"], ["broken.jsonl line 2", "not JSON"]),
    ],
)
def test_failures_end_with_1_and_one_message(arguments, words, tmp_path):
    (tmp_path / "broken.jsonl").write_text('{"prompt": "01"}\n{"prompt"\n')
    (tmp_path / "reward.py").write_text(
        "def score(completions): return [0.0 for _ in completions]\ndef fails(completions): return 1 / 0\n"
    )
    result = textgym("train", *arguments, cwd=tmp_path)
    assert result.returncode == 1
    assert result.stderr.startswith("textgym: error: ")
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in error_of(result)
    assert not (tmp_path / "runs").exists()


def test_a_used_folder_is_refused_until_overwrite(tmp_path):
    first = textgym("train", *QUICK, "--run-dir", "run", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    (tmp_path / "run" / "notes.txt").write_text("mine")
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run").iterdir()}
    refused = textgym("train", *QUICK, "--run-dir", "run", cwd=tmp_path)
    assert refused.returncode == 1
    assert "--overwrite" in refused.stderr
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run").iterdir()} == before
    again = textgym("train", *QUICK, "--run-dir", "run", "--overwrite", "--seed", 1, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert json.loads((tmp_path / "run" / "config.json").read_text())["seed"] == 1
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"


def test_the_same_seed_writes_the_same_bytes(tmp_path):
    for name, hash_seed in (("a", "1"), ("b", "2")):
        result = textgym("train", *QUICK, "--run-dir", name, cwd=tmp_path, PYTHONHASHSEED=hash_seed)
        assert result.returncode == 0, result.stderr
    for file in ("metrics.jsonl", "trajectories.jsonl", "config.json", "policy/model.safetensors"):
        first, second = ((tmp_path / name / file).read_bytes() for name in ("a", "b"))
        assert first.replace(b'"run_dir": "a"', b'"run_dir": "b"') == second, file
    steps = [json.loads(line)["step"] for line in (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, len(steps) + 1))
    assert set(json.loads((tmp_path / "a" / "timings.jsonl").read_text().splitlines()[0])) == {
        "step",
        "step_time",
        "elapsed",
    }


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_the_policy(number, code, tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", "from agents.cli import main; main()", "train", "--run-dir", "run"],
        cwd=tmp_path,
        env=offline_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    metrics = tmp_path / "run" / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and metrics.stat().st_size):
        time.sleep(0.05)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert out.splitlines()[-1].startswith("stopped: ")
    assert "--model run/policy" in out.splitlines()[-1]
    assert (tmp_path / "run" / "policy" / "model.safetensors").is_file()
    assert len(metrics.read_text().splitlines()) < 196
