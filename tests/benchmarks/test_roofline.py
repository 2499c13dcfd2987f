"""The machine's limit with rates that the test says, worked by hand; and the meters on a clock that it says."""

import numpy as np
import pytest

from benchmarks import roofline
from benchmarks.roofline import Limit, bandwidth, decoding_limit, product_rate, update_limit
from benchmarks.workload import Size


def clock_of(*differences):
    """A clock whose readings come in pairs so far apart."""
    readings = [reading for each in differences for reading in (100.0, 100.0 + each)]
    return iter(readings).__next__


def test_the_best_of_the_repeats_counts():
    clock = clock_of(5.0, 2.0, 9.0, 4.0, 3.0)
    assert bandwidth(clock) == 2**28 / 2.0


def test_operations_of_a_product_are_two_each():
    operations = 2 * 100 * 1000 * 1000  # 2e8: once is enough
    assert product_rate(100, 1000, 1000, clock_of(1.0, 1.0, 0.5, 1.0, 1.0)) == operations / 0.5


@pytest.fixture
def a_billion(monkeypatch):
    asked = []
    monkeypatch.setattr(roofline, "product_rate", lambda *shape, dtype=None: asked.append(shape) or 1e9)
    return asked


def test_the_slower_of_both_is_the_limit():
    assert Limit(2.0, 3.0).seconds == 3.0 and Limit(4.0, 3.0).seconds == 4.0


def test_decoding_by_hand(a_billion):
    # Two episodes of 1 and 3 tokens after one prompt of 5 that they share; d=2, one layer, V=10.
    found = decoding_limit(Size(2, 1), 10, np.array([1, 3]), 5, 2, rate_of_memory=100.0)
    # Blocks: 2·6 + 2·2 + 2·8 + 8·2 = 48 weights; the prompt's 5 tokens and 2 of the longer episode, whose last is drawn
    # and not run. The head, 20: once after the prompt, for both, and after those 2.
    assert found.compute == pytest.approx(2 * (48 * (5 + 2) + 20 * (1 + 2)) / 1e9)
    # Three steps read 48 + 20 weights; then the longer one reads 1 and 2 own tokens, and 5 of the prompt each time.
    keys_and_values = 2 * 2 * (1 + 2 + 5 * 2)
    assert found.memory == pytest.approx(4 * (3 * 68 + keys_and_values) / 100.0)
    assert {shape[0] for shape in a_billion} == {2, 5}  # (4 + 1 + 1) / 4 rows, rounded; the prompt's tokens


def test_an_episode_of_one_token_runs_its_prompt_alone(a_billion):
    alone = decoding_limit(Size(2, 1), 10, np.array([1]), 5, 1, rate_of_memory=100.0)
    assert alone.compute == pytest.approx(2 * (48 * 5 + 20) / 1e9)
    assert alone.memory == pytest.approx(4 * 68 / 100.0)
    # Seven more from the same prompt are drawn from the same probabilities.
    assert decoding_limit(Size(2, 1), 10, np.ones(8, dtype=int), 5, 8, rate_of_memory=100.0) == alone


def test_an_update_is_three_forward_passes(a_billion):
    assert update_limit(Size(2, 3), 10, tokens=7, scored=4) == pytest.approx(3 * 2 * (3 * 48 * 7 + 20 * 4) / 1e9)
