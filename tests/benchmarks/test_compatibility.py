"""The table of other libraries' agents: its rows from made-up numbers, one script for real."""

import json

import pytest

from benchmarks import compatibility
from benchmarks.cli import main
from benchmarks.compatibility import PLUGINS, SCRIPTS, Plugin, Reached, measure, missing, table

SCRIPT = """
import numpy as np

TASK, LEVEL, STEPS = "bandit", 1, 5
agent = lambda observations: np.full(len(observations), 0)
print("something")
"""


def reached(script="sb3_ppo", mean=0.95, seconds=10.0):
    return Reached(
        script, "sort", 1, 1000, seconds, mean, mean - 0.01, mean + 0.01, 1.0, 0.125, {"stable-baselines3": "2"}
    )


def test_every_script_is_a_row_and_every_row_a_script():
    files = {file.stem for file in SCRIPTS.glob("*.py")} - {"__init__", "conftest"}
    assert files == {plugin.script for plugin in PLUGINS} and len(files) == len(PLUGINS)


def test_the_page_shows_the_saved_table():
    root = SCRIPTS.parents[1]
    page = (root / "agents" / "adapters" / "README.md").read_text(encoding="utf-8")
    saved = (root / "benchmarks" / "results" / "agents" / "table.md").read_text(encoding="utf-8")
    lines = [line for line in saved.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(PLUGINS) and all(f"{line}\n" in page for line in lines)


def test_examples_are_short():
    for file in SCRIPTS.glob("*.py"):
        lines = sum(bool(line.strip()) for line in file.read_text(encoding="utf-8").splitlines())
        assert lines < 150 if file.stem == "cleanrl_ppo" else lines <= 40, file


@pytest.mark.parametrize(
    ("mean", "seconds", "verdict"), [(0.9, 180, "met"), (0.899, 10, "NOT MET"), (1.0, 181, "NOT MET")]
)
def test_verdicts(mean, seconds, verdict):
    assert reached(mean=mean, seconds=seconds).verdict == verdict


def test_the_table_shows_what_was_reached_and_what_was_not_run():
    lines = table({"sb3_ppo": reached()}).splitlines()
    assert len(lines) == 2 + len(PLUGINS)
    [line] = (line for line in lines if "0.950 (0.940-0.960)" in line)
    cells = [cell.strip() for cell in line.split("|")[1:-1]]
    assert cells[:4] == ["stable-baselines3", "2", "PPO", "sort 1"] and cells[-2] == "100"
    assert sum("missing" in line for line in lines) == len(PLUGINS) - 1


@pytest.fixture
def one(monkeypatch, tmp_path):
    """A single script, which runs at once; its place."""
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "mine.py").write_text(SCRIPT, encoding="utf-8")
    plugins = (
        Plugin("mine", "torch", "PPO", "none", False, "it does not learn"),
        Plugin("other", "no-such-library", "X", "none"),
    )
    monkeypatch.setattr(compatibility, "PLUGINS", plugins)
    monkeypatch.setattr(compatibility, "SCRIPTS", tmp_path / "plugins")

    def in_this_process(module, *arguments):
        compatibility._main(arguments, iter([10.0, 12.5]).__next__)
        return ""

    monkeypatch.setattr(compatibility, "output_of", in_this_process)
    return plugins


def test_a_script_is_timed_and_its_agent_measured(one):
    found = measure(one[0])
    assert (found.task, found.steps, found.seconds, found.optimum, found.uniform) == ("bandit", 5, 2.5, 1.0, 0.5)
    assert found.mean in (0.0, 0.5, 1.0) and {"torch", "gymnasium"} <= set(found.versions)
    assert missing(one[1]) == "no-such-library is not installed"


def test_the_command_adds_to_what_was_run_before(one, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["agents", "--add-to", "found"]) == 0
    said = capsys.readouterr()
    assert "other: no-such-library is not installed" in said.err and "mine" in said.err
    assert main(["agents", "--add-to", "found", "--only", "mine"]) == 0
    assert len((tmp_path / "found" / "runs.jsonl").read_text().splitlines()) == 2
    summary = json.loads((tmp_path / "found" / "summary.json").read_text())
    assert list(summary["runs"]) == ["mine"]
    page = (tmp_path / "found" / "table.md").read_text()
    assert "it does not learn" in page or " met |" in page
    assert main(["agents", "--only", "other"]) == 1  # asked for, and not there


def test_a_script_that_fails_loses_itself_alone(one, tmp_path, monkeypatch, capsys):
    def fails(module, *arguments):
        raise RuntimeError("no such thing")

    monkeypatch.setattr(compatibility, "output_of", fails)
    assert main(["agents", "--output", str(tmp_path / "found")]) == 1
    said = capsys.readouterr()
    assert "mine: FAILED: no such thing" in said.err and "other: no-such-library" in said.err
    assert (tmp_path / "found" / "table.md").is_file()


def test_wrong_arguments_are_wrong_usage(capsys):
    assert main(["agents", "--only", "sb3_pop"]) == 2
    assert "Did you mean 'sb3_ppo'?" in capsys.readouterr().err
    assert main(["agents", "--add-to", "a", "--output", "b"]) == 2


def test_a_script_runs_in_a_process_of_its_own():
    found = measure(next(plugin for plugin in PLUGINS if plugin.script == "sb3_dqn"))
    assert found.verdict == "met" and found.seconds > 1
