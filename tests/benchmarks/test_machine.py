"""Facts about the machine, and threads that are put back."""

import os
import platform

import pytest

from benchmarks.machine import cpu_model, machine, tokenizer_threads, versions

NAMES = ("TOKENIZERS_PARALLELISM", "RAYON_NUM_THREADS")


def test_versions_are_of_what_is_installed():
    found = versions(("numpy", "a-package-that-is-not-there"))
    assert found["python"] == platform.python_version()
    assert list(found) == ["python", "numpy"]


def test_the_machine_is_described_and_not_named():
    facts = machine(3)
    assert facts["threads"] == 3 and facts["cpus"] == os.cpu_count()
    assert facts["cpu"] and platform.node() not in map(str, facts.values())


@pytest.mark.parametrize("text", ["", "no colon\n", "model: 3\n"])
def test_without_a_model_python_is_asked(text, monkeypatch):
    monkeypatch.setattr(platform, "processor", lambda: "")
    monkeypatch.setattr(platform, "machine", lambda: "abacus")
    assert cpu_model(text) == "abacus"


@pytest.mark.parametrize("count, parallel", [(1, "false"), (4, "true")])
def test_threads_hold_inside_and_are_put_back(count, parallel, monkeypatch):
    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    monkeypatch.setenv("RAYON_NUM_THREADS", "7")
    with pytest.raises(KeyError), tokenizer_threads(count):
        assert [os.environ[name] for name in NAMES] == [parallel, str(count)]
        raise KeyError
    assert [os.environ.get(name) for name in NAMES] == [None, "7"]
