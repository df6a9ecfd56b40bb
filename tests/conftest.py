"""What every test gets: no network, a fixed global seed, no deadline on a shared machine."""

import os
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from benchmarks.families.__main__ import import_torchvision
from hypothesis import settings

from tauspan.core.measure import quiet

os.environ["HF_HUB_OFFLINE"] = "1"
signal.signal(
    signal.SIGINT, signal.default_int_handler
)  # a shell's background job, and its children, ignore it
# The same examples in each run: a change turns a test red, never luck; `--hypothesis-profile explore` looks for new ones.
settings.register_profile("explore", deadline=None)
settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.load_profile("repeatable")


import_torchvision()


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Move all but one in n cases of a test that is marked `thinned(n)` to the next set: slow, or long if it is slow."""
    seen: Counter[str] = Counter()
    for item in items:
        marker = item.get_closest_marker("thinned")
        if marker is not None:
            test = item.nodeid.partition("[")[0]
            if seen[test] % marker.args[0]:
                item.add_marker(pytest.mark.long if item.get_closest_marker("slow") else pytest.mark.slow)
            seen[test] += 1


@pytest.fixture(scope="session", autouse=True)
def _quiet() -> Iterator[None]:
    with quiet():
        yield


@pytest.fixture(scope="module", autouse=True)
def _seeded_module() -> None:
    """What a module's own fixtures draw does not depend on the tests before it."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the jobs of a sweep leave traces, outside its folder."""
    return tmp_path_factory.mktemp("traces")
