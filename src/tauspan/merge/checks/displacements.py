"""How far models are from their base and in which directions, by one pass over their files."""

from collections.abc import Iterator, Sequence
from math import sqrt

import torch
from torch import Tensor

from tauspan.core.report import Cell, Table
from tauspan.merge.sources.inputs import Source
from tauspan.merge.sources.problems import Problem

_BLOCK = 1 << 20  # entries looked at together
_SAMPLES, _SAMPLE, _ENOUGH = 4, 1 << 12, 1 << 10  # tensors, entries of each, and how many say something
_STRANGE = 0.2  # the cosine of a fine-tuned model with its base is near 1
_FAR, _ALIKE = (
    0.9,
    0.5,
)  # |tau| / |theta0| beyond the first with a cosine below the second: another model's weights


def displacements(base: Source, models: Sequence[Source]) -> tuple[Table, list[Problem]]:
    """The table of |tau_t| / |theta0|, of cosines with the base and between displacements; and what is odd in it.

    Over the floating-point tensors that all of them have in one shape; a displacement that lacks one does not move it.
    Sums are in float64.

    Args:
        base: theta0.
        models: weights theta_t, or displacements tau_t = theta_t - theta0.

    Returns:
        One row a model, and warnings: it equals the base, or it is no fine-tuning of it.

    Cost: one read of all files, and 8 bytes times 2^20 times the number of models of memory.
    """
    products = torch.zeros(len(models) + 1, len(models) + 1, dtype=torch.float64)
    for values in _blocks(base, models):
        products += values @ values.T
    own = sqrt(products[0, 0])
    moved = products.diagonal()[1:].sqrt().tolist()
    rows: list[dict[str, Cell]] = []
    problems: list[Problem] = []
    for place, model in enumerate(models):
        dot, norm = float(products[0, place + 1]), moved[place]
        point = sqrt(max(own**2 + 2 * dot + norm**2, 0.0))  # |theta0 + tau|
        relative, cosine = norm / own if own else 0.0, (own**2 + dot) / (own * point) if own * point else 0.0
        others = {
            f"cos {other.label}": _cosine(float(products[place + 1, at + 1]), norm, moved[at])
            for at, other in enumerate(models)
        }
        rows.append({"model": model.label, "displacement": f"{relative:.2e}", "cos base": cosine, **others})
        if not norm:
            problems.append(
                _odd(
                    "unmoved", model, f"{model.path} equals the base {base.path}: it adds nothing to a merge."
                )
            )
        elif relative > _FAR and cosine < _ALIKE:
            problems.append(_odd(
                "unrelated", model,
                f"{model.path} lies {relative:.2f} of the base's norm away from {base.path}, at cosine {cosine:.2f}: "
                "it is no fine-tuning of it. Name the model that it was trained from as the base.",
            ))  # fmt: skip
    note = "displacement: |tau| / |theta0|; cosines: of theta with theta0, and of tau with each model's tau."
    return Table("displacements", rows, note), problems


def strangers(base: Source, models: Sequence[Source]) -> Iterator[Problem]:
    """Warnings of weights that share nothing with the base: another model's, or a displacement that lost its header.

    Some entries of the largest matrices decide; too few of them, as in toys, decide nothing.

    Cost: reads at most 2^14 entries of each.
    """
    sampled = _sampled(base)
    for model in models:
        if model.kind != "point":
            continue
        shapes = {name: stored.shape for name, stored in model.tensors.items()}
        own = [name for name in sampled if shapes.get(name) == base.tensors[name].shape]
        if sum(len(sampled[name]) for name in own) < _ENOUGH:
            continue
        theirs = torch.cat([model.read(name, 0, len(sampled[name])).double() for name in own])
        ours = torch.cat([sampled[name] for name in own])
        norms = float(ours.norm() * theirs.norm())
        cosine = _cosine(float(ours @ theirs), norms, 1.0)
        if cosine is not None and abs(cosine) < _STRANGE:
            yield _odd(
                "unrelated", model,
                f"{model.path} is read as a model and shares nothing with the base {base.path} (cosine {cosine:.2f} over "
                f"{len(theirs)} entries): it was trained from another one, or is a displacement whose header is lost. "
                "Name its own base, or make the vector again with `tauspan vector diff`.",
            )  # fmt: skip


def _sampled(base: Source) -> dict[str, Tensor]:
    """The first entries of the base's largest matrices; the scales of norms are alike in all models."""
    every = base.tensors.items()
    real = [name for name, own in every if own.dtype.is_floating_point and len(own.shape) > 1]
    real.sort(key=lambda name: -base.tensors[name].shape.numel())
    sizes = {name: min(_SAMPLE, base.tensors[name].shape.numel()) for name in real[:_SAMPLES]}
    return {name: base.read(name, 0, size).double() for name, size in sizes.items()}


def _blocks(base: Source, models: Sequence[Source]) -> Iterator[Tensor]:
    """Blocks of theta0 and all tau_t, shape (1 + T, entries)."""
    for name, stored in base.tensors.items():
        fitting = [model.tensors.get(model.aliases.get(name, name)) for model in models]
        lacks = [one is None and model.kind == "point" for one, model in zip(fitting, models, strict=True)]
        wrong = [one is not None and one.shape != stored.shape for one in fitting]
        if not stored.dtype.is_floating_point or any(lacks) or any(wrong):
            continue
        size = stored.shape.numel()
        for start in range(0, size, _BLOCK):
            stop = min(start + _BLOCK, size)
            point = base.read(name, start, stop).double()
            values = torch.zeros(1 + len(models), stop - start, dtype=torch.float64)
            values[0] = point
            for into, one, model in zip(values[1:], fitting, models, strict=True):
                if one is not None:
                    into += model.read(one.name, start, stop).double()
                    into -= point if model.kind == "point" else 0
            yield values


def _cosine(dot: float, first: float, second: float) -> float | None:
    return dot / (first * second) if first and second else None


def _odd(kind: str, model: Source, message: str) -> Problem:
    return Problem("warning", kind, None, model.label, model.path, message)
