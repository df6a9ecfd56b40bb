"""What the tests of merging files share: small checkpoints on disk, and recipes and plans over them."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from helpers import tiny
from tauspan.merge import METHODS, MergeRecipe
from tauspan.merge.engine.engine import BLOCK
from tauspan.merge.engine.settings import Settings
from tauspan.merge.methods.method import Method
from tauspan.merge.recipe.parts import Input
from tauspan.merge.stream.plan import Plan
from tauspan.merge.stream.planning import planned
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


def recipe(
    paths: list[Path],
    method: str | Method = "task_arithmetic",
    options: Mapping[str, Any] | None = None,
    based: bool = True,
    **more: Any,
) -> MergeRecipe:
    """A merge of models with their base, the first of the paths; a list of options is one for each model.

    `more` are further keys of the recipe.
    """
    base, *models = [None, *map(str, paths)][based:]
    row = METHODS[method] if isinstance(method, str) else method
    own = None if METHODS.get(row.name) is row else row
    settings = Settings.of(row, options or {}, len(models))
    inputs = tuple(Input(model, given) for model, given in zip(models, settings.each, strict=True))
    name = row.name if row.name in METHODS else f"own:{row.name}"
    return MergeRecipe(name, inputs, base, settings.common, own=own, **more)


def plan(chosen: MergeRecipe, block: int = BLOCK, workers: int | None = 2, access: Any = "mmap") -> Plan:
    """The plan of a merge; its inputs are opened again when they are read."""
    with planned(chosen, block=block, workers=workers, access=access) as made:
        return made


def read(out: Path) -> dict[str, Tensor]:
    """All tensors of a result."""
    return Checkpoint(out).read()


def sha(out: Path) -> str:
    """A hash of a result's names and bytes."""
    digest = hashlib.sha256()
    for file in sorted(out.iterdir()) if out.is_dir() else [out]:
        digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()
