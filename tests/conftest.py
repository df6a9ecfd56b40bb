"""What every test gets: no network, a fixed global seed, no deadline on a shared machine."""

import importlib
import importlib.util
import os
import signal
import sys
import types
from pathlib import Path

import pytest
import torch
from hypothesis import settings

os.environ["HF_HUB_OFFLINE"] = "1"
signal.signal(
    signal.SIGINT, signal.default_int_handler
)  # a shell's background job, and its children, ignore it
settings.register_profile("shared machine", deadline=None)
settings.load_profile("shared machine")


def _import_torchvision() -> None:
    """Where its compiled operators do not load beside this torch, import it without registering them.

    timm and open_clip import it, and transformers does where it is installed; none of their models needs the operators.
    """
    if importlib.util.find_spec("torchvision") is None:
        return
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        sys.modules["torchvision._meta_registrations"] = types.ModuleType("_meta_registrations")
        importlib.import_module("torchvision")


_import_torchvision()


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the jobs of a sweep leave traces, outside its folder."""
    return tmp_path_factory.mktemp("traces")
