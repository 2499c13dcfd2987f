"""The measurement of exact gradients, small and from numbers given by hand, and its files."""

import json

import pytest

from benchmarks import speed_exact
from benchmarks.cli import main
from benchmarks.memory import MIB
from benchmarks.speed_exact import CASES, QUICK_CASES, Case, Measured, measure, report


def test_both_sizes_are_measured_in_both_precisions():
    sizes = {(case.horizon, case.d_model, case.dtype): case.bound for case in CASES}
    assert len(sizes) == len(CASES) == 8
    assert {bound for (horizon, *_), bound in sizes.items() if horizon == 5} == {2.0}
    assert {bound for (horizon, *_), bound in sizes.items() if horizon == 6} == {15.0}
    assert set(QUICK_CASES) < set(CASES)


def test_a_case_is_measured_in_a_process_of_its_own():
    found = measure(Case(3, 32, "float64", bound=60.0), threads=1, repeats=2)
    # 9 embeddings and 1,024 positions of width 32, two layers of 12 · 32² weights and 13 · 32 biases, a last norm
    assert found.parameters == 32 * (9 + 1024) + 2 * (12 * 32**2 + 13 * 32) + 2 * 32
    assert found.sequences == 8**3
    assert len(found.tree) == len(found.gradient) == 2
    assert 0 < min(found.tree + found.gradient) < 60
    assert 0 < found.above_import < 500 * MIB
    assert 0 < found.limit < min(found.gradient)


@pytest.mark.parametrize(("seconds", "verdict"), [(1.4, "met"), (1.5, "NOT MET")])
def test_the_bound_is_on_the_median_of_both_steps(seconds, verdict):
    found = Measured(1000, 64, tree=(0.5, 0.5, 9.0), gradient=(seconds, 0.1, seconds), above_import=3 * MIB, limit=0.15)
    case = Case(2, 32, "float32", bound=2.0)
    cells = [cell.strip() for cell in report({case: found}).splitlines()[2].split("|")[1:-1]]
    assert cells[:5] == ["V=8, W=2", "64", "32", "1,000", "float32"]
    assert cells[5] == "0.50 (0.50-9.00)"
    assert cells[7] == f"{0.5 + seconds:.2f} (0.60-{9 + seconds:.2f})"
    assert cells[8:] == ["under 2", verdict, "0.15", f"{0.15 / seconds:.0%}", "3"]


def test_the_command_writes_its_files_and_overwrites_nothing(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    found = Measured(58_528, 8**5, tree=(0.25,) * 3, gradient=(0.5,) * 3, above_import=100 * MIB, limit=0.1)
    monkeypatch.setattr(speed_exact, "measure", lambda case, threads: found)
    for _ in range(2):
        assert main(["speed", "exact", "--quick"]) == 0
    shown = capsys.readouterr()
    assert "leave the machine alone" in shown.err
    assert sorted(folder.name for folder in (tmp_path / "results").iterdir()) == ["speed-exact", "speed-exact-2"]
    folder = tmp_path / "results" / "speed-exact"
    assert {file.name for file in folder.iterdir()} == {"runs.jsonl", "table.md", "summary.json"}
    table = (folder / "table.md").read_text()
    assert table in shown.out and "    textgym-bench speed exact --quick\n" in table and "1 thread.\n" in table
    rows = [json.loads(line) for line in (folder / "runs.jsonl").read_text().splitlines()]
    assert rows == json.loads((folder / "summary.json").read_text())["rows"]
    expected = (5, "met", 100 * MIB)
    assert [(row["horizon"], row["verdict"], row["above_import"]) for row in rows] == [expected] * len(QUICK_CASES)
