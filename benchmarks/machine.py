"""What a figure depends on besides the code: versions, the processor, threads."""

import os
import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_CPU_INFO = Path("/proc/cpuinfo")
_THREADS = ("TOKENIZERS_PARALLELISM", "RAYON_NUM_THREADS")


def versions(names: Sequence[str]) -> dict[str, str]:
    """The versions of Python and of those of the named packages that are installed."""
    found = {"python": platform.python_version()}
    for name in names:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def machine(threads: int) -> dict[str, str | int]:
    """The processor, how many of it there are, and the threads in use; nothing that names a machine or a person."""
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": cpu_model(_CPU_INFO.read_text(encoding="utf-8") if _CPU_INFO.is_file() else ""),
        "cpus": os.cpu_count() or 1,
        "threads": threads,
    }


def cpu_model(cpu_info: str) -> str:
    r"""The model of the processor out of the text of /proc/cpuinfo, or what Python knows where there is none.

    >>> cpu_model("processor : 0\nmodel name : Some CPU 5000\n")
    'Some CPU 5000'
    """
    for line in cpu_info.splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.processor() or platform.machine() or "unknown"


@contextmanager
def tokenizer_threads(count: int) -> Iterator[None]:
    """Let `tokenizers` use so many threads, in this process and in those that it starts.

    The library reads the number once, when it first works on several texts in parallel.
    """
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict(zip(_THREADS, ("false" if count == 1 else "true", str(count)), strict=True)))
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let torch use so many threads in this process."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
