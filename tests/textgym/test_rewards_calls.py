"""Async reward functions and time limits, from any thread."""

import asyncio
import contextvars
import gc
import multiprocessing
import os
import threading
import time
import warnings

import pytest

import textgym
from tests.textgym.reward_cases import draw, draw_later, fail_at_b, generators, interrupted_after, length, texts
from textgym.rewards import load_reward
from textgym.rewards import loop as reward_loop

ENDLESS = 60.0  # seconds; a test that waits for as long has failed


def elsewhere(call):
    """What the call returns or raises in a thread that is not the main one."""
    ended = []

    def run():
        try:
            ended.append((call(), None))
        except BaseException as error:
            ended.append((None, error))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(ENDLESS)
    [(value, error)] = ended
    if error is not None:
        raise error
    return value


def within_a_loop(call):
    async def main():
        return call()

    return asyncio.run(main())


WHERE = [lambda call: call(), elsewhere, within_a_loop]
IDS = ["main thread", "thread", "running loop"]


async def later(completions):
    await asyncio.sleep(0.01)
    return [float(len(text)) for text in completions]


@pytest.mark.parametrize("timeout", [None, 30])
@pytest.mark.parametrize("where", WHERE, ids=IDS)
def test_an_async_function_is_awaited(where, timeout):
    assert where(lambda: load_reward(later, timeout=timeout)(texts())).score.tolist() == [0.0, 1.0, 4.0]


def test_what_is_awaitable_need_not_be_a_coroutine():
    class Answer:
        def __init__(self, completions):
            self.completions = completions

        def __await__(self):
            return later(self.completions).__await__()

    assert load_reward(Answer)(texts()).score.tolist() == [0.0, 1.0, 4.0]


@pytest.mark.parametrize("options", [{}, {"timeout": 30}, {"on_error": "drop"}], ids=str)
def test_async_functions_run_side_by_side(options):
    """Each waits for the other; one after the other, neither would end."""
    met = {}

    def meeting(own, other):
        async def wait(completions):
            met.setdefault(own, asyncio.Event()).set()
            await asyncio.wait_for(met.setdefault(other, asyncio.Event()).wait(), 20)
            return [1.0] * len(completions)

        return wait

    reward = load_reward({"a": meeting("a", "b"), "sync": length, "b": meeting("b", "a")}, **options)
    assert reward(texts()).scores.tolist() == [[1.0, 0.0, 1.0], [1.0, 1.0, 1.0], [1.0, 4.0, 1.0]]


def test_texts_tried_alone_run_side_by_side():
    arrived = []

    async def meet(completions):
        if len(completions) == 3:
            raise RuntimeError("all at once")
        arrived.append(asyncio.Event())
        while len(arrived) < 3:
            await asyncio.sleep(0.001)
        return [2.0]

    assert load_reward(meet, on_error="drop", timeout=20)(texts()).score.tolist() == [2.0, 2.0, 2.0]


def test_async_functions_that_draw_are_awaited_in_order():
    """Draws do not depend on who waits for how long."""

    def drawing(seconds):
        async def function(completions, rng):
            await asyncio.sleep(seconds)
            return [generator.random() for generator in rng]

        return function

    scores = load_reward([drawing(0.02), draw, drawing(0)])(texts(generators=generators(3))).scores
    for row, generator in enumerate(generators(3)):
        assert scores[row].tolist() == [generator.random(), generator.normal(), generator.random()]


def test_the_event_loop_is_kept_from_call_to_call():
    loops = []

    async def note(completions):
        loops.append(asyncio.get_running_loop())
        return [0.0] * len(completions)

    reward = load_reward(note)
    reward(texts())
    elsewhere(lambda: reward(texts()))
    assert loops[0] is loops[1] and loops[0].is_running()


def test_a_loop_that_has_died_is_replaced():
    reward = load_reward(later)
    reward(texts())
    thread = reward_loop._current.thread
    reward_loop.end_thread(thread, 0)
    reward_loop._current.loop.call_soon_threadsafe(lambda: None)
    thread.join(ENDLESS)
    assert not thread.is_alive()
    assert reward(texts()).score.tolist() == [0.0, 1.0, 4.0]


async def raising(completions):
    await asyncio.sleep(0)
    raise KeyError("no key")


async def leaving(completions):
    await asyncio.sleep(0)
    raise SystemExit(3)


async def leaving_deep(completions):
    await asyncio.create_task(leaving(completions))


async def cancelled(completions):
    asyncio.current_task().cancel()
    await asyncio.sleep(0)


async def impatient(completions):
    async with asyncio.timeout(0):
        await asyncio.sleep(1)


async def wrong(completions):
    return [1.0]


@pytest.mark.parametrize("options", [{}, {"timeout": 30}], ids=str)
@pytest.mark.parametrize(
    ("function", "words"),
    [
        (raising, "raised KeyError: 'no key'"),
        (leaving, "raised SystemExit: 3"),
        (leaving_deep, "raised SystemExit: 3"),
        (cancelled, "raised CancelledError"),
        (impatient, "raised TimeoutError"),
        (wrong, "returned 1 values for 3 completions"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_an_async_function_raises_is_told_like_that_of_another(function, words, options):
    with pytest.raises(textgym.RewardError, match=f"^reward function '{function.__name__}' {words}"):
        load_reward(function, **options)(texts())
    assert load_reward(later, **options)(texts()).score.tolist() == [0.0, 1.0, 4.0]


def test_a_keyboard_interrupt_of_an_async_function_is_handed_on():
    async def interrupted(completions):
        raise KeyboardInterrupt

    for options in ({}, {"on_error": "drop"}):
        with pytest.raises(KeyboardInterrupt):
            load_reward(interrupted, **options)(texts())
    assert load_reward(later)(texts()).score.tolist() == [0.0, 1.0, 4.0]


def test_the_first_failure_ends_the_wait_for_the_others():
    ended = []

    async def waiting(completions):
        try:
            await asyncio.sleep(ENDLESS)
        finally:
            ended.append("waiting")

    start = time.monotonic()
    with pytest.raises(textgym.RewardError, match="^reward function 'raising' raised KeyError"):
        load_reward([waiting, raising])(texts())
    while not ended and time.monotonic() - start < 10:
        time.sleep(0.01)
    assert ended == ["waiting"] and time.monotonic() - start < 10


def test_an_async_function_is_not_left_waiting_when_a_later_one_fails():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with pytest.raises(textgym.RewardError, match="'fail_at_b' raised"):
            load_reward([later, fail_at_b])(texts(["b"]))
        gc.collect()
    assert [str(warning.message) for warning in caught] == []  # "coroutine 'later' was never awaited"


def test_context_variables_reach_the_function():
    variable = contextvars.ContextVar("variable", default=0.0)

    def here(completions):
        return [variable.get()] * len(completions)

    async def there(completions):
        return [variable.get()] * len(completions)

    variable.set(3.0)
    assert load_reward([here, there], timeout=30)(texts(["a"])).scores.tolist() == [[3.0, 3.0]]


def test_awaiting_within_the_loop_of_reward_functions_is_refused():
    async def nested(completions):
        return load_reward(later)(texts()).score

    with pytest.raises(textgym.RewardError, match="raised RuntimeError: .* runs in the event loop"):
        load_reward(nested)(texts())


def scored_in_a_fork(queue):
    queue.put(load_reward(later)(texts()).score.tolist())


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="the system does not fork")
def test_a_forked_process_has_a_loop_of_its_own():
    load_reward(later)(texts())  # the parent's runs
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=scored_in_a_fork, args=(queue,), daemon=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks in a process with threads, from Python 3.12 on
        with reward_loop._lock:  # as a thread may hold it just then
            process.start()
    assert queue.get(timeout=ENDLESS) == [0.0, 1.0, 4.0]
    process.join(ENDLESS)


# Time limits


def spin(completions):
    while True:
        pass


def nap(completions):
    time.sleep(1.5)
    return [0.0] * len(completions)


async def spin_later(completions):
    while True:
        pass


async def wait(completions):
    await asyncio.sleep(ENDLESS)


async def stubborn(completions):
    end = time.monotonic() + 2
    while time.monotonic() < end:
        try:
            await asyncio.sleep(ENDLESS)
        except asyncio.CancelledError:
            pass


def slow_then_wait(completions):
    time.sleep(0.2)
    return wait(completions)


@pytest.mark.parametrize("where", WHERE, ids=IDS)
@pytest.mark.parametrize("function", [spin, nap, spin_later, wait, stubborn, slow_then_wait])
def test_a_time_limit_holds_within_half_of_it_again(function, where):
    def call():
        start = time.monotonic()
        with pytest.raises(textgym.RewardError) as error:
            load_reward(function, timeout=0.3)(texts())
        return time.monotonic() - start, str(error.value)

    seconds, message = where(call)
    assert 0.3 <= seconds < 0.45 + 0.5  # what a busy machine may add
    for word in (f"'{function.__name__}'", "took longer than 0.3 s", "reward_timeout", "prompt: 'p0'"):
        assert word in message
    assert load_reward([length, later], timeout=30)(texts(["ab"])).scores.tolist() == [[2.0, 2.0]]


def test_a_call_in_time_is_not_touched():
    assert load_reward(length, timeout=30)(texts()).score.tolist() == [0.0, 1.0, 4.0]


def test_each_function_has_the_time_for_itself():
    def brief(completions):
        time.sleep(0.3)
        return [1.0] * len(completions)

    assert load_reward([brief, brief], timeout=0.5)(texts(["a"])).score.tolist() == [2.0]


def running_threads():
    return [thread for thread in threading.enumerate() if thread.name == "textgym-reward"]


def none_is_left():
    end = time.monotonic() + 20
    while running_threads() and time.monotonic() < end:
        time.sleep(0.02)
    return not running_threads()


def test_a_thread_that_overran_ends():
    with pytest.raises(textgym.RewardError):
        load_reward(spin, timeout=0.05)(texts())
    assert none_is_left()


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize("timeout", [None, 60])
@pytest.mark.parametrize("function", [spin, wait])
def test_an_interrupt_of_the_caller_ends_the_call(function, timeout):
    own = generators(3)
    with interrupted_after(0.2), pytest.raises(KeyboardInterrupt):
        load_reward([draw, function], timeout=timeout)(texts(generators=own))
    assert [generator.normal() for generator in own] == [generator.normal() for generator in generators(3)]
    assert none_is_left()


@pytest.mark.parametrize("function", [spin, wait, spin_later])
def test_a_time_limit_drops_every_text_of_the_call_and_does_not_try_again(function):
    calls = []

    def count(completions):
        calls.append(completions)
        return function(completions)

    reward = load_reward({"count": count, "length": length}, timeout=0.2, on_error="drop")
    with pytest.warns(UserWarning, match="'count' took longer than 0.2 s"):
        result = reward(texts())
    assert len(calls) == 1
    assert (result.kept.any(), result.valid.any(), result.scores.any(), reward.num_dropped) == (False, False, False, 3)


def test_only_the_text_that_takes_too_long_alone_is_dropped():
    def slow_b(completions):
        if len(completions) > 1:
            raise RuntimeError("one at a time")
        return spin(completions) if completions == ["b"] else length(completions)

    with pytest.warns(UserWarning, match="completion: 'b'"):
        result = load_reward(slow_b, timeout=0.2, on_error="drop")(texts())
    assert (result.score.tolist(), result.kept.tolist()) == ([0.0, 0.0, 4.0], [True, False, True])


@pytest.mark.parametrize("delay", [spin, wait])
def test_after_a_time_limit_the_generators_are_as_before(delay):
    def draw_and_stay(completions, rng):
        for generator in rng:
            generator.normal()
        return delay(completions)

    own = generators(3)
    with pytest.raises(textgym.RewardError, match="took longer"):
        load_reward([draw, draw_later, draw_and_stay], timeout=0.2)(texts(generators=own))
    assert [generator.normal() for generator in own] == [generator.normal() for generator in generators(3)]


def test_an_exception_in_time_is_the_functions_own():
    def busy(completions):
        raise TimeoutError("the server is busy")

    with pytest.raises(textgym.RewardError, match="raised TimeoutError: the server is busy") as error:
        load_reward(busy, timeout=30)(texts())
    assert isinstance(error.value.__cause__, TimeoutError)


def test_a_function_that_blocks_the_loop_does_not_leave_another_thread_waiting():
    ended = []

    def other():
        try:
            load_reward(wait)(texts())
        except textgym.RewardError as error:
            ended.append(str(error))

    thread = threading.Thread(target=other, daemon=True)
    thread.start()
    time.sleep(0.1)  # it waits in the loop
    with pytest.raises(textgym.RewardError, match="took longer"):
        load_reward(spin_later, timeout=0.2)(texts())
    thread.join(ENDLESS)
    assert len(ended) == 1 and "CancelledError" in ended[0]
