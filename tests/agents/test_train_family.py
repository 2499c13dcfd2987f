"""`textgym train` with every algorithm: that it runs, what it logs, and in the long checks, that it gets there."""

import json
import re
from pathlib import Path

import pytest

from agents.algorithms import ALGORITHMS
from agents.policy import TransformerPolicy
from tests.agents.commands import exit_code
from textgym.problem import make_problem

DIAGNOSTICS = (
    "frac_reward_zero_std",
    "ratio/mean ratio/min ratio/max",
    "clip_ratio/low_mean clip_ratio/high_mean clip_ratio/region_mean",
    "sampling/importance_sampling_ratio/mean",
    "entropy grad_norm approx_kl/k1 approx_kl/k3",
)


def metrics_of(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_runs_and_logs_its_diagnostics(name, tmp_path):
    flags = "--d-model 16 --num-layers 1 --episodes-per-update 16 --total-timesteps 128"
    assert exit_code("train", "--algorithm", name, *flags.split(), "--run-dir", tmp_path / "run") == 0
    for metrics in metrics_of(tmp_path / "run"):
        assert set(" ".join(DIAGNOSTICS).split()) <= metrics.keys()
        assert ("explained_variance" in metrics) == ALGORITHMS[name].critic
        assert abs(metrics["sampling/importance_sampling_ratio/mean"] - 1) < 1e-5
    config = json.loads((tmp_path / "run" / "config.json").read_text(encoding="utf-8"))
    assert (config["algorithm"], config["objective"]) == (name, ALGORITHMS[name].objective)
    policy = TransformerPolicy.from_pretrained(tmp_path / "run" / "policy")
    assert (policy.value_head is not None) == ALGORITHMS[name].critic


def test_sampling_again_is_counted(tmp_path):
    flags = "--d-model 16 --num-layers 1 --episodes-per-update 16 --total-timesteps 64 --sampling-rounds 3"
    constant = tmp_path / "reward.py"
    constant.write_text("def score(completions): return [1.0 for _ in completions]\n", encoding="utf-8")
    assert exit_code("train", *flags.split(), "--reward", f"{constant}:score", "--run-dir", tmp_path / "run") == 0
    [metrics] = metrics_of(tmp_path / "run")
    assert (metrics["num_tokens"], metrics["frac_reward_zero_std"], metrics["grad_norm"]) == (3 * 16 * 4, 1, 0)


def test_a_reference_of_a_folder_holds_the_policy(tmp_path, capsys):
    TransformerPolicy.small(8, d_model=16, num_layers=1, seed=7).save_pretrained(tmp_path / "other")
    problem = make_problem()
    reference = TransformerPolicy.from_pretrained(tmp_path / "other", vocabulary=problem.vocabulary)
    reference.save_pretrained(tmp_path / "reference")
    flags = "--d-model 16 --num-layers 1 --episodes-per-update 64 --total-timesteps 25600 --learning-rate 0.01"
    reached = {}
    for kl_coef in (0.001, 10.0):
        run = tmp_path / str(kl_coef)
        held = ("--kl-coef", kl_coef, "--reference", tmp_path / "reference")
        assert exit_code("train", *flags.split(), *held, "--run-dir", run) == 0
        reached[kl_coef] = metrics_of(run)[-1]["kl/k1"]
    assert reached[10.0] < 0.05 < 0.5 < reached[0.001]
    capsys.readouterr()
    assert exit_code("train", "--kl-coef", "1", "--reference", tmp_path / "nowhere") == 1
    assert "the reference: model" in capsys.readouterr().err


@pytest.mark.full
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_reaches_95_percent_of_the_optimum(name, seed, tmp_path, capsys):
    assert exit_code("train", "--algorithm", name, "--seed", seed, "--run-dir", tmp_path / "run") == 0
    last = capsys.readouterr().out.splitlines()[-1]
    print(f"\n{name}, seed {seed}: {last[:90]}")
    assert float(re.match(r"done: return ([\d.]+) \(optimum 1,", last).group(1)) >= 0.95
