"""Comparisons of made-up runs whose means and differences are worked out by hand."""

import json

import pytest

from agents.algorithms import ALGORITHMS
from benchmarks.comparison import compare, sees_when_paid
from benchmarks.schemes import Row, RunResult, run


def result(scheme: str, seed: int, score: float, **settings) -> RunResult:
    texts = 400 if scheme == "prefix_delta" else 100
    row = Row(scheme=scheme, seed=seed, **settings)
    return RunResult(row, score, score, score / 2, 400, texts // 10, texts, ((400, score),))


# Seed 2 comes in another order: pairs are made by seed.
SCORES = {"terminal": {0: 0.1, 1: 0.2, 2: 0.3}, "prefix_delta": {2: 0.6, 0: 0.2, 1: 0.4}}
RESULTS = [result(scheme, seed, score) for scheme, runs in SCORES.items() for seed, score in runs.items()]


def test_means_and_paired_differences_by_hand():
    comparison = compare(RESULTS)
    terminal, delta = comparison.schemes
    assert (terminal.scheme, terminal.num_seeds, terminal.texts_scored) == ("terminal", 3, 100)
    assert (delta.scheme, delta.num_tokens, delta.reward_calls, delta.texts_scored) == ("prefix_delta", 400, 40, 400)
    assert terminal.intervals["normalized_score"].mean == pytest.approx(0.2)
    assert terminal.intervals["normalized_area"].mean == pytest.approx(0.1)
    (difference,) = comparison.differences
    assert (difference.scheme, difference.reference) == ("prefix_delta", "terminal")
    # The differences are .1, .2, .3: mean .2, s = .1, and t_{2, .975} = 4.302653 (any table).
    interval = difference.intervals["normalized_score"]
    assert interval.mean == pytest.approx(0.2)
    assert interval.half_width == pytest.approx(4.302653 * 0.1 / 3**0.5, rel=1e-6)


def test_a_bandit_has_a_paired_difference_of_exactly_zero():
    settings = {"episodes_per_update": 16, "evaluation_episodes": 64, "d_model": 16, "num_layers": 1}
    rows = [
        Row("bandit", scheme=scheme, seed=seed, total_timesteps=64, **settings)
        for seed in range(2)
        for scheme in SCORES
    ]
    (difference,) = compare([run(row) for row in rows]).differences
    for interval in difference.intervals.values():
        assert (interval.mean, interval.low, interval.high, interval.p_value) == (0, 0, 0, 1)


def test_table_is_aligned_and_holds_the_numbers():
    table = compare(RESULTS).markdown()
    blocks = [block.splitlines() for block in table.split("\n\n")]
    for lines in blocks[:2]:
        assert len({len(line) for line in lines}) == 1
        assert len({line.count("|") for line in lines}) == 1
    assert "0.200 [-0.048, 0.448]" in blocks[0][2]  # .2 ± 4.3027 · .1/√3
    assert "+0.200 [-0.048, +0.448]" in blocks[1][2]


def test_hostile_names_are_escaped():
    hostile = [
        result(scheme, seed, score) for scheme, score in (("a", 0.1), ("\x1b[2Jb\n| x", 0.2)) for seed in range(2)
    ]
    table = compare(hostile).markdown()
    assert "\x1b" not in table
    assert "\\x1b[2Jb\\n" in table


@pytest.mark.parametrize("count, warned", [(2, True), (4, True), (5, False)])
def test_few_seeds_are_warned_of(count, warned):
    results = [result(scheme, seed, 0.1 * seed) for scheme in SCORES for seed in range(count)]
    assert any("too few" in warning for warning in compare(results).warnings) is warned
    assert ("too few" in compare(results).markdown()) is warned


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_an_algorithm_that_cannot_see_the_difference_is_named(algorithm):
    results = [result(scheme, seed, 0.1 * seed, algorithm=algorithm) for scheme in SCORES for seed in range(5)]
    # These alone leave out what was paid before an action.
    sees = algorithm in ("reinforce_to_go", "reinforce_pp", "a2c", "ppo")
    assert sees_when_paid(algorithm) is sees
    assert [algorithm in warning for warning in compare(results).warnings] == [True] * (not sees)


def test_record_is_plain_json():
    comparison = compare(RESULTS)
    assert json.loads(json.dumps(comparison.record(), allow_nan=False))["schemes"][1]["texts_scored"] == 400


@pytest.mark.parametrize(
    "results, message",
    [
        (RESULTS[:-1], "pairs need the same"),
        (RESULTS[:3], "at least two"),
        ([RESULTS[0], RESULTS[4]], "at least two"),
        ([*RESULTS, RESULTS[0]], "two runs"),
        ([*RESULTS, result("terminal", 3, 0.1, task="reverse")], "differ in scheme and seed alone"),
        ([], "differ in scheme and seed alone"),
    ],
)
def test_runs_that_are_no_comparison_are_refused(results, message):
    with pytest.raises(ValueError, match=message):
        compare(results)
