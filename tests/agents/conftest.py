"""One thread for torch: sums come in one order, and the machine is left to others. Folders of the zoo, written once."""

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
import torch

from tests.agents.zoo import write_folder


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def zoo_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a row of the zoo; tests leave it as it is."""
    return cache(lambda name: write_folder(name, tmp_path_factory.mktemp("zoo") / name))
