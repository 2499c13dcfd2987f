"""The timing helper on a clock that tells what the test says, with numbers worked by hand."""

import gc

import pytest

from benchmarks.timing import Spread, Timing, interleave, ratio


class World:
    """A clock, and work that takes as long as it is told to."""

    def __init__(self):
        self.now, self.calls, self.readings = 100.0, [], 0

    def clock(self):
        self.readings += 1
        return self.now

    def work(self, name, steps, *seconds):
        durations = iter(seconds)

        def run():
            self.calls.append(name)
            self.now += next(durations)
            return steps

        return run


def test_work_is_done_in_turns_and_the_warm_up_does_not_count():
    world = World()
    works = {"a": world.work("a", 12, 50.0, 2.0, 4.0, 3.0), "b": world.work("b", 6, 70.0, 1.0, 2.0, 6.0)}
    timings = interleave(works, 3, world.clock)
    assert world.calls == ["a", "b"] * 4
    assert timings == {"a": Timing((6.0, 3.0, 4.0)), "b": Timing((6.0, 3.0, 1.0))}
    assert timings["a"].spread == Spread(median=4.0, low=3.0, high=6.0)
    assert world.readings == 2 * 2 * 3  # before and after each timed piece


def test_a_warm_up_may_be_less_than_the_work():
    world = World()
    works = {"a": world.work("a", 12, 2.0), "b": world.work("b", 6, 70.0, 1.0)}
    timings = interleave(works, 1, world.clock, {"a": world.work("few of a", 1, 50.0)})
    assert world.calls == ["few of a", "b", "a", "b"]
    assert timings == {"a": Timing((6.0,)), "b": Timing((6.0,))}


def test_an_even_number_of_repeats_has_the_mean_of_the_middle_two_as_its_median():
    assert Timing((1.0, 9.0, 3.0, 4.0)).spread == Spread(3.5, 1.0, 9.0)


def test_ratios_are_taken_repeat_by_repeat():
    # The machine is ten times as slow in the second repeat; the medians, 20 and 22, would say that the first is slower.
    first, second = Timing((200.0, 20.0, 10.0)), Timing((100.0, 11.0, 22.0))
    assert ratio(first, second) == Spread(median=20 / 11, low=10 / 22, high=2.0)


def test_what_cannot_be_run_is_missing_and_has_no_ratio():
    world = World()
    timings = interleave({"a": "not installed", "b": world.work("b", 1, 1.0, 1.0)}, 1, world.clock)
    assert list(timings) == ["a", "b"]
    assert timings["a"] == Timing(missing="not installed") and timings["a"].spread is None
    assert ratio(timings["a"], timings["b"]) is None and ratio(timings["b"], timings["a"]) is None


def test_timings_of_another_number_of_repeats_are_no_pairs():
    with pytest.raises(ValueError):
        ratio(Timing((1.0, 2.0)), Timing((1.0,)))


def test_nobody_pays_for_the_garbage_of_others():
    world, collected = World(), []

    def note(phase, info):
        if phase == "start" and info["generation"] == 2:
            collected.append(world.readings)

    gc.callbacks.append(note)
    try:
        interleave({"a": world.work("a", 1, 1.0, 1.0), "b": world.work("b", 1, 1.0, 1.0)}, 1, world.clock)
    finally:
        gc.callbacks.remove(note)
    assert {0, 2} <= set(collected) <= {0, 2, 4}  # before each timed piece, and never while the clock runs
