"""`textgym train` as a user meets it: flags, exit codes, messages, run folder, signals."""

import contextlib
import dataclasses
import io
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from agents import TransformerPolicy
from agents.cli import main
from agents.settings import AdvancedSettings
from tests.stories.own_model import make_files
from tests.stories.run import offline_environment
from tests.stories.run import textgym as in_a_process
from textgym.tasks.brackets import deepest_nesting

QUICK = ("--task", "bandit", "--total-timesteps", 600)


def textgym(*arguments, cwd):
    """The command in this process: what it says and its exit code, without the seconds that imports take."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.chdir(cwd), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(list(map(str, arguments)))
        except SystemExit as end:
            code = end.code
    return SimpleNamespace(returncode=code, stdout=out.getvalue(), stderr=err.getvalue())


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


ADVANCED = {
    "episodes_per_update": 64,
    "entropy_coef": 0.25,
    "decay_share": 0.5,
    "max_grad_norm": 0.5,
    "tokens_per_microbatch": 512,
    "temperature": 2.0,
    "dtype": "bfloat16",
    "stop_ids": [1],
    "d_model": 32,
    "num_layers": 1,
    "max_prompt_tokens": 0,
    "prompt_order": "sequential",
    "on_limit": "truncate",
    "on_illegal_action": "terminate",
    "on_reward_error": "drop",
    "reward_timeout": 60.0,
    "isolate_reward": True,
    "lora_rank": 2,
    "gradient_checkpointing": True,
    "num_threads": 1,
    "trajectory_interval": 3,
    "advantages": "gae",
    "scale": "whiten",
    "objective": "clip",
    "importance": "sequence",
    "aggregation": "token_mean",
    "kl": "k3",
    "clip_epsilon": 0.1,
    "clip_epsilon_high": 0.3,
    "num_epochs": 2,
    "num_minibatches": 2,
    "gamma": 0.9,
    "gae_lambda": 0.8,
    "value_coef": 0.1,
    "overlong_buffer": 0.5,
    "kl_coef": 0.1,
    "kl_target": 0.2,
}


def test_every_advanced_flag_is_read(tmp_path):
    elsewhere = {"top_k", "top_p", "min_p", "reference", "sampling_rounds", "compile_decoding"}  # tests of their own
    assert set(ADVANCED) | elsewhere == {field.name for field in dataclasses.fields(AdvancedSettings)}
    (tmp_path / "reward.py").write_text(
        "def score(completions): return [text.count('1') / 4 for text in completions]\n"
    )
    given = {name: value[0] if isinstance(value, list) else value for name, value in ADVANCED.items()}
    flags = [f"--{name.replace('_', '-')}{'' if value is True else f'={value}'}" for name, value in given.items()]
    result = textgym("train", *QUICK, *flags, "--reward", "reward.py:score", "--run-dir", "run", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert {name: config[name] for name in ADVANCED} == ADVANCED
    model = json.loads((tmp_path / "run" / "policy" / "config.json").read_text())
    assert (model["n_embd"], model["n_layer"]) == (32, 1)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "usage: textgym COMMAND"),
        (["trian"], "unknown command 'trian' Did you mean 'train'"),
        (["report"], "'report' is not built yet"),
        (["train", "--algoritm", "rloo"], "--algorithm"),
        (["train", "--group-size", "two"], "--group-size"),
        (
            ["train", "--task", "sotr"],
            "unknown task 'sotr' addition, bandit, palindrome, reverse, sort Did you mean 'sort'",
        ),
        (["train", "--level", "9"], "level=9 1, 2, 3, 4"),
        (["train", "--scheme", "potential"], "--scheme potential is for Python alone textgym.schemes.Potential("),
        (["train", "--scheme", "length"], "--scheme length is for Python alone terminal or prefix_delta"),
        (["train", "--scheme", "prefix"], "unknown scheme 'prefix' Did you mean 'prefix_delta'"),
        (["train", "--stop", "END", "--stop", ""], "stop[1] is the empty string"),
        (["train", "--prompt-order", "sequentially"], "--prompt-order 'random' 'sequential'"),
        (["train", "--on-limit", "stop"], "--on-limit 'terminate' 'truncate'"),
        (["train", "--on-reward-error", "ignore"], "--on-reward-error 'raise' 'drop'"),
        (["train", "--on-illegal-action", "drop"], "--on-illegal-action 'raise' 'terminate'"),
        (["train", "--reward-timeout", "0"], "--reward-timeout 0.0 above 0"),
        (["train", "--reward-timeout", "soon"], "--reward-timeout"),
        (["train", "--isolate-reward", "yes"], "yes"),
        (["train", "--algorithm", "gpo"], "unknown algorithm 'gpo' a2c, cispo Did you mean '"),
        (["train", "--aggregation", "tokens_mean"], "unknown aggregation Did you mean 'token_mean'"),
        (["train", "--num-epochs", "0"], "num_epochs is 0 at least 1"),
        (["train", "--num-epochs", "2"], "'rloo': 2 steps objective='clip'"),
        (["train", "--clip-epsilon", "0.2"], "'rloo' clipping objective='clip'"),
        (["train", "--gae-lambda", "1.5"], "gae_lambda is 1.5 from 0 to 1"),
        (["train", "--gamma", "0.9"], "'rloo': gamma is 0.9 nothing reads advantages='to_go'"),
        (["train", "--value-coef", "0.9"], "'rloo': value_coef is 0.9 nothing reads advantages='gae'"),
        (["train", "--algorithm", "ppo", "--sampling-rounds", "2"], "'ppo': sampling_rounds=2 'leave_one_out'"),
        (["train", "--kl-coef", "-1"], "kl_coef=-1.0 at least 0"),
        (["train", "--algorithm", "dapo", "--kl-coef", "1"], "kl_coef=1.0 'dapo' no KL term kl='k3'"),
        (["train", "--kl-target", "0.1"], "kl_target is given kl_coef=0"),
        (["train", "--reference", "folder"], "reference is given kl_coef=0"),
        (["train", "--kl-coef", "1", "--kl-target", "0"], "kl_target=0.0 above 0"),
        (["train", "--resume", "runs/x"], "--resume is not built yet"),
        (["train", "--stop-ids", "2", "--stop-ids=-1"], "--stop-ids -1 from 0"),
        (["train", "--dtype", "float16"], "--dtype 'float32' 'bfloat16'"),
        (["train", "--temperature", "0"], "--temperature 0.0 above 0"),
        (["train", "--top-k", "0"], "--top-k 0 above 0"),
        (["train", "--top-p", "0"], "--top-p 0.0 above 0, at most 1"),
        (["train", "--top-p", "1.5"], "--top-p 1.5 above 0, at most 1"),
        (["train", "--min-p", "-0.5"], "--min-p -0.5 from 0 to 1"),
        (["train", "--group-size", "1"], "--group-size 1 at least 2 for rloo"),
        (["train", "--learning-rate", "0"], "--learning-rate 0.0 above 0"),
        (["train", "--learning-rate", "inf"], "--learning-rate inf finite"),
        (["train", "--entropy-coef", "nan"], "--entropy-coef nan finite"),
        (["train", "--decay-share", "1.5"], "--decay-share 1.5 from 0 to 1"),
        (["train", "--num-threads", "100000"], "--num-threads 100000 1 to 1024"),
        (["train", "--seed", str(2**64)], "--seed 18446744073709551616"),
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
        (["--device", "cuda:99"], ["--device 'cuda:99' is not available", "cpu"]),
        (["--device", "gpu"], ["--device 'gpu' is not available", "cpu"]),
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
        result = in_a_process("train", *QUICK, "--run-dir", name, cwd=tmp_path, PYTHONHASHSEED=hash_seed)
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


def test_overwrite_removes_a_run_and_nothing_else(tmp_path):
    (tmp_path / "project" / "policy").mkdir(parents=True)
    (tmp_path / "project" / "policy" / "terms.txt").write_text("mine")
    (tmp_path / "project" / "config.json").write_text('{"mine": 1}')
    refused = textgym("train", *QUICK, "--run-dir", "project", "--overwrite", cwd=tmp_path)
    assert refused.returncode == 1
    assert "not of a run" in refused.stderr
    assert (tmp_path / "project" / "policy" / "terms.txt").read_text() == "mine"
    assert (tmp_path / "project" / "config.json").read_text() == '{"mine": 1}'


def test_overwrite_does_not_remove_the_model_it_starts_from(tmp_path):
    assert textgym("train", *QUICK, "--run-dir", "run", cwd=tmp_path).returncode == 0
    flags = ("--model", "run/policy", "--run-dir", "run", "--overwrite")
    refused = textgym("train", *QUICK, *flags, cwd=tmp_path)
    assert refused.returncode == 1
    assert "lies in the run that --overwrite removes" in refused.stderr
    assert (tmp_path / "run" / "policy" / "model.safetensors").is_file()


def test_training_on_keeps_the_optimum(tmp_path):
    assert textgym("train", *QUICK, "--run-dir", "run", cwd=tmp_path).returncode == 0
    again = textgym("train", *QUICK, "--model", "run/policy", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "(optimum 1, uniform policy 0.5)" in again.stdout.splitlines()[-1]


def test_a_model_brings_its_tokenizer_to_a_task(tmp_path):
    make_files(tmp_path)
    flags = ("--model", "model", "--task", "reverse", "--run-dir", "run", "--total-timesteps", 64)
    result = textgym("train", *flags, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    first, second = (json.loads((tmp_path / name / "tokenizer.json").read_text()) for name in ("model", "run/policy"))
    assert first["model"]["vocab"] == second["model"]["vocab"]


def test_sampling_settings_of_a_model_do_not_lose_the_training(tmp_path):
    make_files(tmp_path)
    (tmp_path / "model" / "generation_config.json").write_text('{"do_sample": false, "temperature": 0.7, "top_k": 20}')
    flags = ("--model", "model", "--task", "reverse", "--run-dir", "run", "--total-timesteps", 64)
    result = textgym("train", *flags, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "run" / "policy" / "model.safetensors").is_file()


def test_code_in_a_model_folder_is_never_run(tmp_path):
    make_files(tmp_path)
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    del config["model_type"]
    config["auto_map"] = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    (tmp_path / "model" / "evil.py").write_text("import pathlib\npathlib.Path('ran').touch()\n")
    result = textgym("train", "--model", "model", "--task", "reverse", cwd=tmp_path)
    assert result.returncode == 1
    assert "code of its own (auto_map), which is never run" in result.stderr
    assert not list(tmp_path.rglob("ran"))


@pytest.mark.parametrize("damage", ["cut", "missing"])
def test_broken_weights_are_refused(damage, tmp_path):
    make_files(tmp_path)
    if damage == "cut":
        weights = tmp_path / "model" / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-100])
    else:
        config = json.loads((tmp_path / "model" / "config.json").read_text())
        (tmp_path / "model" / "config.json").write_text(json.dumps(config | {"n_layer": 3}))
    result = textgym("train", "--model", "model", "--task", "reverse", cwd=tmp_path)
    assert result.returncode == 1
    assert "textgym: error: model 'model' " in result.stderr
    assert "Traceback" not in result.stderr


def test_a_console_of_another_encoding_ends_no_training(tmp_path):
    result = in_a_process("train", *QUICK, cwd=tmp_path, PYTHONIOENCODING="ascii")
    assert result.returncode == 0, result.stderr
    assert "\\u2192" in result.stdout


def test_a_reader_that_leaves_ends_no_training(tmp_path):
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-c", "from agents.cli import main; main()", "train", *map(str, QUICK)]
    result = subprocess.run(command, cwd=tmp_path, env=offline_environment(), stdout=writing, timeout=120)
    os.close(writing)
    assert result.returncode == 0
    assert (tmp_path / "runs" / "bandit-rloo" / "policy" / "model.safetensors").is_file()


def test_errors_are_escaped(tmp_path):
    (tmp_path / "loud.py").write_text('raise ValueError("\\x1b[31mRED\\x1b]0;title\\x07")')
    result = textgym("train", "--reward", "loud.py:score", cwd=tmp_path)
    assert result.returncode == 1
    assert "RED" in result.stderr
    assert "\x1b" not in result.stderr


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--reward", "huge.py:score"), "Scale the reward down"),
        (("--learning-rate", "1e30"), "diverged"),
    ],
)
def test_what_overflows_ends_the_run_and_keeps_the_last_good_policy(flags, words, tmp_path):
    (tmp_path / "huge.py").write_text("def score(completions): return [1e308 for _ in completions]")
    result = textgym("train", "--task", "sort", *flags, "--run-dir", "run", cwd=tmp_path)
    assert result.returncode == 1
    assert words in result.stderr
    assert "Traceback" not in result.stderr
    policy = TransformerPolicy.from_pretrained(tmp_path / "run" / "policy")
    assert all(bool(weights.abs().max() < 1e3) for weights in policy.parameters())


def test_a_full_disk_is_one_message(tmp_path):
    command = "ulimit -f 200; exec " + shlex.join(
        [sys.executable, "-c", "from agents.cli import main; main()", "train", *map(str, QUICK), "--run-dir", "run"]
    )
    result = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, env=offline_environment(), capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 1
    assert "the policy cannot be saved" in result.stderr
    assert "Traceback" not in result.stderr
    assert not list(tmp_path.rglob(".policy-unfinished"))


def test_a_saved_temperature_is_kept(tmp_path):
    first = textgym("train", *QUICK, "--temperature", 0.5, "--run-dir", "a", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    again = textgym("train", *QUICK, "--model", "a/policy", "--run-dir", "b", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert json.loads((tmp_path / "b" / "policy" / "textgym.json").read_text())["temperature"] == 0.5
    assert json.loads((tmp_path / "b" / "config.json").read_text())["temperature"] == 0.5


def test_an_empty_prompt_without_a_bos_is_one_message(tmp_path):
    make_files(tmp_path)
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps(config | {"bos_token_id": None}))
    (tmp_path / "prompts.jsonl").write_text('{"prompt": ""}\n')
    flags = ("--model", "model", "--prompts", "prompts.jsonl", "--reward", "my_reward.py:score")
    result = textgym("train", *flags, cwd=tmp_path)
    assert result.returncode == 1
    assert "a history is empty and the model has no BOS token" in result.stderr
    assert "Traceback" not in result.stderr


def test_stop_strings_end_the_texts(tmp_path):
    often = ("--trajectory-interval", 1, "--episodes-per-update", 16, "--total-timesteps", 600)
    flags = ("--task", "sort", "--stop", "0", "--stop=1", *often, "--run-dir", "run")
    result = textgym("train", *flags, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert json.loads((tmp_path / "run" / "config.json").read_text())["stop"] == ["0", "1"]
    lines = (tmp_path / "run" / "trajectories.jsonl").read_text().splitlines()
    stopped = [entry["completion"] for entry in map(json.loads, lines) if entry["finish_reason"] == 1]
    assert stopped and all(text.endswith(("0", "1")) for text in stopped)
    assert all(set(text[:-1]).isdisjoint("01") for text in stopped)
    last = result.stdout.splitlines()[-1]
    assert "--stop=0 --stop=1" in last and "optimum" not in last  # with stop strings, the task is another one


def test_a_constrained_task_is_trained_within_its_masks(tmp_path):
    flags = ("--task", "brackets", "--total-timesteps", 600, "--run-dir", "run")
    result = textgym("train", *flags, cwd=tmp_path)  # an illegal action would raise
    assert result.returncode == 0, result.stderr
    assert "(optimum 1, uniform policy 0.25)" in result.stdout.splitlines()[-1]
    for line in (tmp_path / "run" / "trajectories.jsonl").read_text().splitlines():
        entry = json.loads(line)
        assert deepest_nesting(entry["completion"].removesuffix("<eos>")) is not None
