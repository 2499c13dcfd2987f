"""The report of `speed env`, and its files, from numbers given by hand."""

import importlib
import json
from functools import partial

import pytest
import torch

from benchmarks import memory, speed_env, speed_exact
from benchmarks.cli import main
from benchmarks.finding import Finding
from benchmarks.memory import MIB, SMALL, MemoryCase, Peaks
from benchmarks.speed_report import memory_table, report, speed_table
from benchmarks.timing import Timing

NATIVE = speed_env.native(speed_env.AutoresetMode.NEXT_STEP, speed_env.SHARED)


ALL = ["env", "exact", "rollout", "update", "train", "loop", "memory", "scaling"]


def made_up(part, quick, threads, say):
    """What a part finds, at once."""
    record = {"part": part, "quick": quick, "threads": threads, "torch": torch.get_num_threads()}
    return Finding(f"Speed of {part}", "A workload.", 1, ["| a table |\n"], "Notes.", record)


def timings():
    """10,000 steps a second for every row."""
    keys = [(row.name, row.num_envs) for group in speed_env.groups() for row in group]
    return {key: Timing((10_000.0, 10_000.0)) for key in keys}


def test_rates_are_shown_in_thousands_with_their_range():
    table = speed_table({("a", 16): Timing((1_000.0, 2_000_000.0, 30_000.0)), ("b", 1): Timing(missing="gone")})
    header, _, first, second = ([cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines())
    assert header == ["thousand steps a second", "N = 1", "N = 16", "N = 256", "N = 1,024"]
    assert first == ["a", "", "30 (1-2,000)", "", ""]
    assert second == ["b", "missing", "", "", ""]


def test_a_missing_row_is_named_with_the_reason_and_its_comparison_is_not_measured():
    shown = report(timings() | {(speed_env.DUMMY, 1024): Timing(missing="x is not installed")}, SMALL, Peaks(0, 0))
    assert f"Missing: {speed_env.DUMMY}: x is not installed." in shown
    lines = [line for line in shown.splitlines() if speed_env.DUMMY in line and "not measured" in line]
    assert len(lines) == 1 and "missing" in lines[0]


def test_verdicts_follow_the_ratios():
    shown = report(timings() | {(NATIVE, 1024): Timing((95_000.0, 105_000.0))}, SMALL, Peaks(0, 0))
    lines = [line for line in shown.splitlines() if "at least 10 " in line]
    assert ["10.00 (9.50-10.50)" in line for line in lines] == [True, False]
    assert [" met |" in line for line in lines] == [True, False]
    assert "NOT MET" in lines[1] and "1.00 (1.00-1.00)" in lines[1]


@pytest.mark.parametrize("used, verdict", [(149, "met"), (150, "NOT MET")])
def test_memory_is_told_above_the_import(used, verdict):
    case = MemoryCase(num_envs=1024, vocabulary_size=50, max_length=4096, num_prompts=1000, bound=100 * MIB)
    line = memory_table(case, Peaks(50 * MIB, used * MIB)).splitlines()[-1]
    cells = [cell.strip() for cell in line.split("|")[1:-1]]
    assert cells == ["TextGenVectorEnv", "1,024", "50", "4,096", "1,000", "50", "96", str(used - 50), "100", verdict]


@pytest.fixture
def measured(monkeypatch, tmp_path):
    """The command in an empty folder, with measurements that take no time."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(memory, "measure", lambda case: Peaks(40 * MIB, 50 * MIB))
    monkeypatch.setattr(
        speed_env,
        "measure",
        lambda rows, repeats: {(row.name, row.num_envs): Timing((float(row.steps),) * repeats) for row in rows},
    )
    for part in ALL[2:]:
        module = importlib.import_module(f"benchmarks.speed_{part}")
        monkeypatch.setattr(module, "measure", partial(made_up, part))
    monkeypatch.setattr(speed_exact, "CASES", ())
    monkeypatch.setattr(speed_exact, "QUICK_CASES", ())
    return tmp_path / "results"


@pytest.mark.parametrize("part", [["env"], []])
def test_the_command_shows_the_tables_and_writes_them(part, measured, capsys):
    assert main(["speed", *part, "--quick"]) == 0
    shown = capsys.readouterr()
    assert "leave the machine alone" in shown.err
    folder = measured / "speed-env"
    assert {file.name for file in folder.iterdir()} == {"runs.jsonl", "table.md", "summary.json"}
    table = (folder / "table.md").read_text()
    assert table in shown.out and f"    textgym-bench {' '.join(['speed', *part, '--quick'])}\n" in table
    assert "1 thread.\n" in table and "Medians of 3 repeats" in table
    rows = [json.loads(line) for line in (folder / "runs.jsonl").read_text().splitlines()]
    summary = json.loads((folder / "summary.json").read_text())
    assert rows == summary["rows"] and len(rows) == 4 * 10 + 2
    assert all(row["rates"] == [row["steps"]] * 3 for row in rows)
    assert {"python", "numpy", "gymnasium"} <= set(summary["versions"])
    assert summary["machine"]["threads"] == 1 and summary["machine"]["cpu"] in table
    assert summary["memory"]["above_import"] == 10 * MIB and summary["memory"]["num_envs"] == 256
    assert summary["comparisons"][0]["ratio"]["median"] == rows_ratio(rows, NATIVE, speed_env.SYNC)


def rows_ratio(rows, first, second):
    steps = {row["name"]: row["steps"] for row in rows if row["num_envs"] == 1024}
    return steps[first] / steps[second]


def test_the_whole_measurement_uses_the_large_case_and_overwrites_nothing(measured, capsys):
    for _ in range(2):
        assert main(["speed", "env", "--threads", "2"]) == 0
    assert sorted(folder.name for folder in measured.iterdir()) == ["speed-env", "speed-env-2"]
    summary = json.loads((measured / "speed-env-2" / "summary.json").read_text())
    assert (summary["memory"]["num_envs"], summary["machine"]["threads"]) == (4096, 2)
    assert "2 threads.\n" in capsys.readouterr().out


def test_without_a_part_all_are_measured(measured, tmp_path):
    assert main(["speed", "--quick", "--output", str(tmp_path / "mine")]) == 0
    folders = sorted((tmp_path / "mine").iterdir())
    assert [folder.name for folder in folders] == sorted(f"speed-{part}" for part in ALL)
    assert all((folder / "table.md").is_file() for folder in folders)
    for part in ALL[2:]:
        summary = json.loads((tmp_path / "mine" / f"speed-{part}" / "summary.json").read_text())
        assert (summary["part"], summary["quick"], summary["threads"], summary["torch"]) == (part, True, 1, 1)


def test_a_part_runs_with_the_threads_that_are_asked_for(measured):
    before = torch.get_num_threads()
    assert main(["speed", "rollout", "--threads", "2"]) == 0
    assert torch.get_num_threads() == before
    summary = json.loads((measured / "speed-rollout" / "summary.json").read_text())
    assert (summary["quick"], summary["threads"], summary["torch"], summary["machine"]["threads"]) == (False, 2, 2, 2)
    page = (measured / "speed-rollout" / "table.md").read_text()
    assert "    textgym-bench speed rollout --threads 2\n" in page and "| a table |" in page and "2 threads.\n" in page


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["evn"], "Did you mean 'env'?"),
        (["\x1b[2J"], "\\x1b[2J"),
        (["env", "--threads", "0"], "--threads 0; give at least 1"),
    ],
)
def test_a_wrong_argument_is_wrong_usage(arguments, message, measured, capsys):
    assert main(["speed", *arguments]) == 2
    shown = capsys.readouterr().err
    assert message in shown and "\x1b" not in shown
    assert not measured.exists()


def test_help_fits_a_screen(capsys):
    with pytest.raises(SystemExit) as end:
        main(["speed", "env", "--help"])
    assert end.value.code == 0
    shown = capsys.readouterr().out
    assert len(shown.splitlines()) <= 60
    for flag in ("quick", "threads", "output"):
        assert f"--{flag} " in shown
