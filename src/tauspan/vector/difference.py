"""The displacement between two checkpoints, tensor by tensor."""

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tauspan import models, store
from tauspan.core import params
from tauspan.core.errors import listed
from tauspan.core.params import Params
from tauspan.core.report import versions
from tauspan.models import folders


def difference(
    base: str | Path | nn.Module | Params, tuned: str | Path | nn.Module | Params, dtype: torch.dtype
) -> tuple[dict[str, Tensor], str, dict[str, Any]]:
    """The displacement tuned - base, the fingerprint of the base, and where both came from.

    `TaskVector.from_checkpoints` says which tensors it holds and which errors it raises.
    """
    before, after = models.point_of(base), models.point_of(tuned)
    params.require_finite(before.tensors, "the base")
    params.require_finite(after.tensors, "the fine-tuned model")
    start = params.fingerprint(before.tensors)
    _warn_of_layers(before.directory, after.directory)
    whole = models.differing(before, after)
    before, after, beyond = models.aligned(before, after)
    deltas = {
        name: (new.double() - old.double()).to(dtype).detach()
        for name, old, new in params.zip_strict(
            before.tensors, after.tensors, "the base", "the fine-tuned model"
        )
    }
    named = base if isinstance(base, str | Path) else type(base).__name__
    info: dict[str, Any] = {"base_id": str(named), "versions": versions()}
    if whole:
        warnings.warn(
            f"{len(whole)} tensors of whole numbers differ ({listed(whole)}): they are no displacement and are not "
            "in the vector; an edited model has the base's.",
            stacklevel=3,
        )
    if beyond:
        info["beyond"] = {"base": list(beyond.base), "tuned": list(beyond.tuned)}
        _warn_of_heads(beyond, base, tuned)
    path = before.path
    chosen = {n: d for n, d in deltas.items() if path is None or n in path or bool(d.any())}
    return chosen, start, info


def _warn_of_layers(base: Path | None, tuned: Path | None) -> None:
    """Warn of layers of sentence-transformers behind the pooling that differ: they are frozen and in no vector."""
    ours, theirs = ({} if one is None else folders.parts(one) for one in (base, tuned))
    moved = [
        name
        for name in dict.fromkeys([*ours, *theirs])
        if not (name in ours and name in theirs) or _hash(ours[name]) != _hash(theirs[name])
    ]
    if base is not None and tuned is not None and moved:
        warnings.warn(
            f"{base} and {tuned} differ in {listed(moved)} too, layers behind the pooling, which are frozen and in no "
            "vector: an edited model has the base's. `tauspan merge` merges them.",
            stacklevel=4,
        )


def _hash(file: Path) -> str:
    return params.fingerprint(store.Checkpoint(file).read())


def _warn_of_heads(beyond: models.Beyond, base: object, tuned: object) -> None:
    """Warn that the tensors of a head are not in the vector."""
    repair = f" `tauspan apply BASE VECTOR OUT --head-from {tuned}` writes an edited model with this head."
    for owner, other, names, more in ((base, tuned, beyond.base, ""), (tuned, base, beyond.tuned, repair)):
        if names:
            warnings.warn(
                f"{owner} has {len(names)} tensors of a head that {other} lacks or has in another shape "
                f"({listed(names)}): they are no displacement, are not in the vector, and stay where they are.{more}",
                stacklevel=4,
            )
