"""The measurement of an update's memory, small, and its tables from numbers given by hand."""

import pytest
import torch
from safetensors.torch import save_file

from benchmarks import speed_memory
from benchmarks.memory import MIB
from benchmarks.speed_memory import CASE, CLOSE, OURS, PADDED, QUICK_CASE, Case, Measured, Result, report


def test_the_vocabulary_is_large_and_a_sequence_has_512_tokens():
    assert CASE == Case(episodes=8, horizon=504, size="M", vocabulary_size=50_257)
    assert QUICK_CASE.vocabulary_size == CASE.vocabulary_size


def test_both_sides_are_measured_in_processes_of_their_own():
    said: list[str] = []
    result = speed_memory.measure_case(Case(4, 6, "S", 300), threads=1, say=said.append)
    assert said == [f"{OURS}: measured", f"{PADDED}: measured"]
    assert 0 < result.gradient_error < CLOSE
    for side in (result.ours, result.padded):
        assert 50 * MIB < side.before < 2000 * MIB
        assert 0 < side.above < 500 * MIB
        assert 0 < side.limit < side.seconds < 60


@pytest.mark.parametrize(("above", "error", "verdicts"), [(250, 1e-5, ("met", "met")), (251, 2e-5, ("NOT MET",) * 2)])
def test_the_requirements(above, error, verdicts):
    result = Result(Measured(400 * MIB, above * MIB, 2.0, 0.5), Measured(401 * MIB, 1000 * MIB, 3.25, 0.6), error)
    finding = report(CASE, result)
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in finding.tables[0].splitlines()[2:]]
    assert cells == [[OURS, "400", f"{above}", "2.0", "0.5"], [PADDED, "401", "1,000", "3.2", "0.6"]]
    assert (finding.record["ratio"]["verdict"], finding.record["gradient_error"]["verdict"]) == verdicts
    assert f"{above / 1000:.3f}" in finding.tables[1]


def test_the_difference_is_relative_to_the_norm_of_the_peer(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    save_file({"a": torch.tensor([3.0, 1.0]), "b": torch.tensor([4.0])}, first)
    save_file({"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([4.0])}, second)
    assert speed_memory._difference(first, second) == pytest.approx(0.2)
