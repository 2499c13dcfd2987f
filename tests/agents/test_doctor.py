"""`textgym doctor`, and the flags of `train` that open a model otherwise."""

import json
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM, BertConfig, BertLMHeadModel

from agents.attention import Difference
from agents.cli import run
from agents.policy import TransformerPolicy
from tests.agents.zoo import write_folder
from tests.stories.run import textgym

MODELS = ("llama", "opt", "qwen3", "gpt2-dropout")


def test_without_a_model_it_says_what_is_installed(capsys):
    assert run(["doctor"]) == 0
    shown = capsys.readouterr().out
    for words in (
        "python 3.",
        f"torch {torch.__version__}",
        "torch threads ",
        "devices cpu",
        "disk free",
        "extra lora:",
    ):
        assert words in shown
    assert "--model FOLDER" in shown


@pytest.mark.parametrize("name", MODELS)
def test_a_sound_model_passes(name, zoo_folder, capsys):
    assert run(["doctor", "--model", str(zoo_folder(name))]) == 0
    shown = capsys.readouterr().out
    assert shown.count("passed  ") == 6 and "FAILED" not in shown
    assert "nats (allowed " in shown and "stop tokens: " in shown


def test_half_precision_is_measured_with_its_own_tolerance(zoo_folder, capsys):
    assert run(["doctor", "--model", str(zoo_folder("llama")), "--dtype", "bfloat16"]) == 0
    assert "(allowed 0.25)" in capsys.readouterr().out


def test_a_model_that_looks_ahead_is_refused_with_the_figure(tmp_path, zoo_folder, capsys):
    size = TransformerPolicy.from_pretrained(zoo_folder("llama")).size
    config = BertConfig(
        vocab_size=size, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    model, generator = BertLMHeadModel(config), torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(tmp_path / "ahead")
    shutil.copy(zoo_folder("llama") / "tokenizer.json", tmp_path / "ahead")
    assert run(["doctor", "--model", str(tmp_path / "ahead")]) == 1
    error = capsys.readouterr().err
    assert "BertLMHeadModel is not causal" in error and "nats" in error


def test_a_model_that_fails_is_refused_by_doctor_and_train(tmp_path, zoo_folder, capsys, monkeypatch):
    monkeypatch.setattr("agents.self_check._padding", lambda policy, observations: Difference(0.31, 0.001))
    model = str(zoo_folder("llama"))
    assert run(["doctor", "--model", model]) == 1
    shown = capsys.readouterr()
    assert "FAILED  padding: padding changes log-probs by 0.31 nats (allowed 0.001)" in shown.out
    assert "fails its self-check: padding: " in shown.err
    reward = tmp_path / "reward.py"
    reward.write_text("def score(completions, **columns):\n    raise SystemExit('never called')\n", encoding="utf-8")
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("red green\n", encoding="utf-8")
    flags = [
        "--model",
        model,
        "--prompts",
        str(prompts),
        "--reward",
        f"{reward}:score",
        "--run-dir",
        str(tmp_path / "run"),
    ]
    assert run(["train", *flags]) == 1
    assert "0.31 nats (allowed 0.001)" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        (["--model", "nowhere"], 1, "config.json"),
        (["--device", "tpu"], 0, "devices cpu"),  # nothing is opened
        (["--top-p", "1.5"], 2, "--top-p 1.5"),
        (["--model", "nowhere", "--rank", "3"], 2, "--rank"),
    ],
)
def test_wrong_flags(flags, code, words, capsys):
    try:
        assert run(["doctor", *flags]) == code
    except SystemExit as stop:  # tyro's own way
        assert stop.code == code
    shown = capsys.readouterr()
    assert words in shown.out + shown.err


def test_a_device_that_is_not_here(zoo_folder, capsys):
    assert run(["doctor", "--model", str(zoo_folder("llama")), "--device", "cuda:7"]) == 1
    assert "--device 'cuda:7' is not available; here are cpu" in capsys.readouterr().err


def test_a_warning_is_a_line(tmp_path):
    write_folder("mistral-window", tmp_path / "model")
    result = textgym("doctor", "--model", "model", cwd=tmp_path)
    assert result.returncode == 0
    lines = [line for line in result.stderr.splitlines() if "warning" in line]
    assert len(lines) == 1
    assert lines[0].startswith("textgym: warning: the model attends to the last 8 tokens alone: ")


def test_train_with_adapters_and_recomputed_activations(tmp_path, zoo_folder, capsys):
    """The saved policy is the whole model, merged, and differs from the one that it began with."""
    prompts, reward = tmp_path / "prompts.txt", tmp_path / "reward.py"
    prompts.write_text("red green\nblue\n", encoding="utf-8")
    reward.write_text("def score(completions, **columns):\n    return [float(len(t)) for t in completions]\n")
    flags = ["--model", str(zoo_folder("llama")), "--prompts", str(prompts), "--reward", f"{reward}:score"]
    flags += ["--max-new-tokens", "6", "--total-timesteps", "300", "--run-dir", str(tmp_path / "run")]
    assert run(["train", *flags, "--lora-rank", "2", "--gradient-checkpointing", "--top-p", "0.9"]) == 0
    assert "self-check passed" in capsys.readouterr().out
    config = json.loads((tmp_path / "run" / "config.json").read_text(encoding="utf-8"))
    assert (config["lora_rank"], config["gradient_checkpointing"], config["top_p"]) == (2, True, 0.9)
    before = AutoModelForCausalLM.from_pretrained(zoo_folder("llama")).state_dict()
    after = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "policy").state_dict()
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all("proj" in name for name in changed)


@pytest.mark.parametrize("flags", [["--lora-rank", "0"], ["--lora-rank", "-2"], ["--top-k", "0"], ["--min-p", "2"]])
def test_numbers_outside_their_range_are_wrong_usage(flags, capsys):
    assert run(["train", *flags]) == 2
    assert flags[0] in capsys.readouterr().err
