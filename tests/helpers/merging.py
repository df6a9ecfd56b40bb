"""What the tests of merging files share: small checkpoints on disk, and jobs over them."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from helpers import tiny
from tauspan.merge import METHODS
from tauspan.merge.engine.settings import Settings
from tauspan.merge.methods.method import Method
from tauspan.merge.sources.opening import open_source
from tauspan.merge.stream.job import Job
from tauspan.store import Checkpoint, write_tensors

SHAPES = {"emb.weight": (11, 6), "h.0.w": (6, 7), "h.0.b": (7,), "h.1.w": (6, 7), "h.1.b": (7,), "s": ()}


def values(seed: int, dtype: torch.dtype = torch.float32, scale: float = 64.0) -> dict[str, Tensor]:
    """Multiples of 1/64 up to 1, so that differences and sums are exact in every dtype but bfloat16's."""
    return {
        name: (tiny.whole(shape, 1000 * seed + place, torch.float64) / scale).to(dtype)
        for place, (name, shape) in enumerate(SHAPES.items())
    }


def checkpoints(
    folder: Path, models: int = 3, dtype: torch.dtype = torch.float32, **more: Tensor
) -> list[Path]:
    """Base and models, a file each; `more` stands in all of them."""
    base, paths = values(0, dtype), []
    for number in range(models + 1):
        moved = values(number, dtype, 512.0)
        own = {name: tensor + moved[name] if number else tensor for name, tensor in base.items()}
        paths.append(folder / f"{'m' if number else 'base'}{number or ''}.safetensors")
        write_tensors(paths[-1], {**own, **more})
    return paths


def job(
    paths: list[Path],
    method: str | Method = "task_arithmetic",
    options: Mapping[str, Any] | None = None,
    access: Any = "mmap",
    **settings: Any,
) -> Job:
    """A job over a base and models."""
    base, *models = [open_source(path, access=access) for path in paths]
    chosen = METHODS[method] if isinstance(method, str) else method
    return Job(chosen, Settings.of(chosen, options or {}, len(models)), base, tuple(models), **settings)


def read(out: Path) -> dict[str, Tensor]:
    """All tensors of a result."""
    return Checkpoint(out).read()


def sha(out: Path) -> str:
    """A hash of a result's names and bytes."""
    digest = hashlib.sha256()
    for file in sorted(out.iterdir()) if out.is_dir() else [out]:
        digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()
