"""How much memory a large environment takes at its peak, above what importing the package takes.

Each number is the peak resident set of a process of its own that does nothing else: it makes the environment from a
tokenizer.json and a .jsonl file on disk, resets it and takes some steps.
"""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

MIB = 2**20
LONGEST_PROMPT = 16  # tokens
_STOP = 0


@dataclass(frozen=True)
class MemoryCase:
    """An environment, and how much memory it may take.

    Attributes:
        num_envs: N.
        vocabulary_size: V.
        max_length: L.
        num_prompts: prompts of 1 to 16 tokens, each with one more column.
        bound: bytes that it may take at its peak above the import.
    """

    num_envs: int
    vocabulary_size: int
    max_length: int
    num_prompts: int
    bound: int

    @property
    def histories(self) -> int:
        """Bytes of the histories of all rows, int64 [N, L].

        There are three of them at the peak of a step: the environment's own, the observation that the caller still
        holds, and the one that the step returns.
        """
        return self.num_envs * self.max_length * 8


LARGE = MemoryCase(4096, 128_000, 4096, 100_000, bound=1024 * MIB)
SMALL = MemoryCase(256, 1000, 512, 10_000, bound=40 * MIB)


class Peaks(NamedTuple):
    """Peak resident sets, in bytes."""

    imported: int  # of a process that imports the environment and no more
    used: int  # of one that makes the environment and uses it

    @property
    def above_import(self) -> int:
        """What the environment itself takes."""
        return self.used - self.imported


def measure(case: MemoryCase) -> Peaks:
    """Run a case.

    Raises:
        RuntimeError: the process failed; the message says how.
    """
    with tempfile.TemporaryDirectory() as folder:
        tokenizer, prompts = write_files(case, Path(folder))
        keywords = {
            "tokenizer": str(tokenizer),
            "prompts": str(prompts),
            "stop_ids": [_STOP],
            "max_prompt_tokens": LONGEST_PROMPT,
            "max_new_tokens": case.max_length - LONGEST_PROMPT,
        }
        return Peaks(_peak(), _peak(json.dumps({"num_envs": case.num_envs, "keywords": keywords})))


def write_files(case: MemoryCase, folder: Path) -> tuple[Path, Path]:
    """Write a tokenizer of V words and the prompts, the same ones every time; returns their paths."""
    tokenizer, prompts = folder / "tokenizer.json", folder / "prompts.jsonl"
    model = {"type": "WordLevel", "vocab": {f"w{id_}": id_ for id_ in range(case.vocabulary_size)}, "unk_token": "w0"}
    content = {
        **dict.fromkeys(("truncation", "padding", "normalizer", "post_processor", "decoder")),
        **{"version": "1.0", "added_tokens": [], "pre_tokenizer": {"type": "WhitespaceSplit"}, "model": model},
    }
    tokenizer.write_text(json.dumps(content), encoding="utf-8")
    generator = np.random.default_rng(0)
    with prompts.open("w", encoding="utf-8") as file:
        for index in range(case.num_prompts):
            ids = generator.integers(1, case.vocabulary_size, size=generator.integers(1, LONGEST_PROMPT + 1))
            prompt = " ".join(f"w{id_}" for id_ in ids)
            file.write(json.dumps({"prompt": prompt, "answer": str(index)}) + "\n")
    return tokenizer, prompts


def output_of(module: str, *arguments: str) -> str:
    """What a module prints when it is run in a process of its own.

    A process starts with the peak of the one that started it, on Linux; so a small one stands between.

    Raises:
        RuntimeError: the process failed; the message says how.
    """
    between = "import subprocess, sys; sys.exit(subprocess.call(sys.argv[1:]))"
    root = str(Path(__file__).parents[1])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-c", between, sys.executable, "-m", module, *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": path},
    )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise RuntimeError(f"the process of {module} ended with code {done.returncode}: {last}")
    return done.stdout


def peak_resident() -> int:
    """The peak resident set of this process so far, in bytes."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _peak(*arguments: str) -> int:
    """Bytes at the peak of a process that runs this module with the arguments."""
    return int(output_of("benchmarks.memory", *arguments))


def _use(num_envs: int, keywords: dict[str, Any]) -> None:
    """Make the environment, reset it twice, take steps in between and after, some of which end episodes."""
    from textgym.vector_env import TextGenVectorEnv

    envs = TextGenVectorEnv(num_envs, reward=_length, **keywords)
    generator = np.random.default_rng(0)
    for seed in range(2):
        observations, _ = envs.reset(seed=seed)
        for step in range(4):
            actions = generator.integers(1, envs.vocabulary.size, size=num_envs)
            actions[step::7] = _STOP
            observations, *_ = envs.step(actions)
    assert observations.shape == (num_envs, envs.problem.max_length)


def _length(completion_ids: list[list[int]]) -> list[int]:
    return [len(ids) for ids in completion_ids]


def _main(arguments: list[str]) -> None:
    import textgym.vector_env  # noqa: F401  (what is imported without arguments too)

    for argument in arguments:
        _use(**json.loads(argument))
    print(peak_resident())


if __name__ == "__main__":
    _main(sys.argv[1:])
