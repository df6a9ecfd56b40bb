"""Whole models compared by their values: how far they are from their base, and which share nothing with it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor

from tauspan.core.results import ratio
from tauspan.merge.sources.problems import Problem, about
from tauspan.merge.sources.source import Source, ranges

_SAMPLES, _SAMPLE, _ENOUGH = 4, 1 << 12, 1 << 10  # tensors, entries of each, fewest entries in all
_STRANGE = 0.2  # the cosine of a fine-tuned model with its base is near 1
# |tau| / |theta0| beyond the first with a cosine below the second: another model's weights
_FAR, _ALIKE = 0.9, 0.5


@dataclass(frozen=True)
class Displacement:
    """How far a model is from its base: |tau| / |theta0|, and cosines; None where a vector is 0.

    Args:
        model: its label.
        relative: |tau| / |theta0|.
        base: the cosine of theta with theta0.
        others: the cosine of tau with each model's tau, by label.
    """

    model: str
    relative: float | None
    base: float | None
    others: Mapping[str, float | None]


def displacements(base: Source, models: Sequence[Source]) -> tuple[list[Displacement], list[Problem]]:
    """The displacement of each model, and what is odd about it.

    They are computed over the floating-point tensors that all have in one shape; a tensor that a displacement lacks
    counts as 0. Sums are in float64.

    Args:
        base: theta0.
        models: weights theta_t, or displacements tau_t = theta_t - theta0.

    Returns:
        One entry for each model, and warnings: it equals the base, or it is no fine-tuning of it.

    Cost: one read of all files, and 8 bytes times 2^20 times the number of models of memory.
    """
    products = torch.zeros(len(models) + 1, len(models) + 1, dtype=torch.float64)
    for values in _blocks(base, models):
        products += values @ values.T
    own = sqrt(products[0, 0])
    moved = products.diagonal()[1:].sqrt().tolist()
    measured, problems = [], []
    for place, model in enumerate(models):
        dot, norm = float(products[0, place + 1]), moved[place]
        point = sqrt(max(own**2 + 2 * dot + norm**2, 0.0))  # |theta0 + tau|
        relative, cosine = ratio(norm, own), _cosine(own**2 + dot, own, point)
        others = {
            other.label: _cosine(float(products[place + 1, at + 1]), norm, moved[at])
            for at, other in enumerate(models)
        }
        measured.append(Displacement(model.label, relative, cosine, others))
        if not norm:
            text = f"{model.path} equals the base {base.path}: it adds nothing to a merge."
            problems.append(_odd("unmoved", model, text))
        elif relative is not None and relative > _FAR and (cosine or 0.0) < _ALIKE:
            text = (
                f"{model.path} lies {relative:.2f} of the base's norm away from {base.path}, at cosine "
                f"{cosine or 0.0:.2f}: it is no fine-tuning of it. Name the model that it was trained from as the base."
            )
            problems.append(_odd("unrelated", model, text))
    return measured, problems


def strangers(base: Source, models: Sequence[Source]) -> Iterator[Problem]:
    """Warnings of weights that share nothing with the base: another model's, or a displacement that lost its header.

    Some entries of the largest matrices are compared. With too few of them, as in toy models, nothing is reported.

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
                "unrelated",
                model,
                f"{model.path} is read as a model and shares nothing with the base {base.path} (cosine {cosine:.2f} over "
                f"{len(theirs)} entries): it was trained from another one, or is a displacement whose header is lost. "
                "Name its own base, or make the vector again with `tauspan vector diff`.",
            )


def _sampled(base: Source) -> dict[str, Tensor]:
    """The first entries of the base's largest matrices; not the scales of norms, which are alike in all models."""
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
        for start, stop in ranges(stored.shape.numel()):
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
    return about(model, kind, message, severity="warning")
