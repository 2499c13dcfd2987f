"""Large environments stay within a stated memory, and the meter sees what it should see."""

import json

import numpy as np
import pytest

from benchmarks.memory import LARGE, MIB, SMALL, MemoryCase, measure, write_files
from textgym.prompts import load_prompts
from textgym.vocabulary import Vocabulary


def test_a_small_environment_stays_within_its_bound():
    assert (SMALL.num_envs, SMALL.vocabulary_size, SMALL.max_length, SMALL.num_prompts) == (256, 1000, 512, 10_000)
    assert measure(SMALL).above_import < SMALL.bound


@pytest.mark.full
def test_a_large_environment_stays_within_its_bound():
    assert (LARGE.num_envs, LARGE.vocabulary_size, LARGE.max_length, LARGE.num_prompts) == (
        4096,
        128_000,
        4096,
        100_000,
    )
    peaks = measure(LARGE)
    print(f"{peaks.above_import / MIB:.0f} MiB above the import, bound {LARGE.bound / MIB:.0f} MiB")
    assert peaks.above_import < LARGE.bound


def test_histories_are_held_three_times_and_nothing_else_grows_with_them():
    case = MemoryCase(num_envs=1024, vocabulary_size=50, max_length=4096, num_prompts=10, bound=0)
    assert case.histories == 1024 * 4096 * 8 == 32 * MIB
    # three histories, and 2.25 times as much in the bounds of Gymnasium's space, a copy of them while it is made
    assert 3 * case.histories <= measure(case).above_import < 6 * case.histories


def test_what_the_caller_holds_is_not_counted():
    held = np.ones(50 * MIB)  # 400 MiB
    peaks = measure(MemoryCase(num_envs=1, vocabulary_size=50, max_length=64, num_prompts=10, bound=0))
    assert held.nbytes == 400 * MIB
    assert 10 * MIB < peaks.imported < peaks.used < 200 * MIB


def test_the_files_are_a_tokenizer_and_prompts_that_the_environment_reads(tmp_path):
    case = MemoryCase(num_envs=1, vocabulary_size=300, max_length=64, num_prompts=200, bound=0)
    tokenizer, prompts = write_files(case, tmp_path)
    vocabulary = Vocabulary.from_path(tokenizer, [0])
    loaded = load_prompts(str(prompts), vocabulary)
    assert (vocabulary.size, len(loaded), loaded.max_tokens) == (300, 200, 16)
    assert loaded.column_names == ("answer",)
    lines = [json.loads(line) for line in prompts.read_text().splitlines()]
    assert [f"w{id_}" for id_ in loaded[3].ids.tolist()] == lines[3]["prompt"].split()
    assert write_files(case, tmp_path)[1].read_text().splitlines()[3] == json.dumps(lines[3])


def test_a_process_that_fails_says_how(monkeypatch):
    monkeypatch.setattr("benchmarks.memory.LONGEST_PROMPT", 64)  # leaves no token to generate
    with pytest.raises(RuntimeError, match="ended with code 1: ValueError: max_new_tokens=0"):
        measure(MemoryCase(num_envs=1, vocabulary_size=50, max_length=64, num_prompts=10, bound=0))
