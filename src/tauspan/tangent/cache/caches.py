"""Caches across epochs: the parts of a batch's pass that depend on theta0 alone are computed once and kept.

All are exact. What they save, in matrix products of the size of the model's own forward (5 in a training step without
a cache, 3 in ordinary fine-tuning):

| kind       | kept for each batch                       | a step | memory            |
|------------|-------------------------------------------|--------|-------------------|
| `none`     | nothing                                   | 5                     | 0     |
| `features` | the input of the first block that trains  | 5 of the trained blocks | N L d |
| `primal`   | f's graph and the tangent rules           | 4      | all activations   |
| `factors`  | each layer's input and output gradients   | 2      | (1 + C) times the layers' inputs |

Batches are fixed when the cache is built: their inputs, and which rows form a batch.
"""

import logging
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import numpy as np
import torch
from torch import Tensor

from tauspan.core.arguments import described, no_rows
from tauspan.core.choices import CacheKind
from tauspan.core.errors import BaseMismatchError, ModelError, StoreError, UsageError, nearest
from tauspan.core.params import Params
from tauspan.tangent.cache import factors, features
from tauspan.tangent.cache.room import Room, free_memory, require_room
from tauspan.tangent.cache.tape import Tape, gradients, hold, record, release
from tauspan.tangent.engine import check, precision
from tauspan.tangent.engine.call import leaves
from tauspan.tangent.engine.dual import NoRuleError, Trace
from tauspan.tangent.engine.maps import applied

if TYPE_CHECKING:
    from tauspan.tangent.taylor import Linearized

log = logging.getLogger(__name__)
_READ = 256  # entries of each tensor that are read to see whether the base has changed
_FEW = 8  # the largest number of outputs for which `auto` uses factors


# One batch: the linear map tau -> J tau (`push`, without a graph) and its adjoint (`pull`), at fixed inputs.
Cell: TypeAlias = Tape | factors.FactorCell | features.FeatureCell


class CachedBatch:
    """The tangent model on one batch of a cache; call it as the `Linearized` is called, without inputs."""

    def __init__(self, linearized: "Linearized", cell: Cell) -> None:
        self._linearized, self.cell = linearized, cell
        self._made_at = _state(linearized)

    def tangent(self) -> tuple[Tensor, Tensor]:
        """`(f, J tau)` at the linearisation point, differentiable once in tau.

        Raises:
            BaseMismatchError: the base's parameters were changed or moved since the cache was built.
        """
        if self._made_at != _state(self._linearized):
            raise BaseMismatchError(
                "the base model was changed since this cache was built, so what it keeps no longer holds. Build it anew: "
                "`linearized.cache(batches)`."
            )
        if isinstance(self.cell, features.FeatureCell):
            return self.cell.tangent()
        tau = self._linearized.tau
        return self.cell.value.detach(), applied(self.cell, tau)

    def __call__(self) -> Tensor:
        """f(x; theta0) + J(x) tau, then the head if the point is before it."""
        value, tangent = self.tangent()
        return self._linearized.finish(value + tangent)


def _state(linearized: "Linearized") -> tuple[Any, ...]:
    """For each tensor of the base: its address, how often it was written to, and the sum of some entries.

    A write through `.data` is visible in the numbers only, so some entries are read.
    """
    tensors = [*linearized.base.parameters(), *linearized.base.buffers()]
    with torch.no_grad():
        read = [_some(tensor) for tensor in tensors if tensor.numel()]
    return (
        tuple((tensor.data_ptr(), tensor._version) for tensor in tensors),
        torch.stack(read).tolist() if read else [],
    )


def _some(tensor: Tensor) -> Tensor:
    """The sum of at most about `_READ` entries."""
    flat = tensor.detach().reshape(-1)
    part = flat[:: max(1, flat.numel() // _READ)]
    return (torch.view_as_real(part) if part.is_complex() else part).sum(dtype=torch.float64).nan_to_num()


class Cache(Sequence[CachedBatch]):
    """The batches of a cache, in the order they were given.

    Attributes:
        kind: `"factors"`, `"primal"`, `"features"` or `"none"`.
        bytes: the size of the cache.
    """

    def __init__(self, linearized: "Linearized", kind: CacheKind, cells: Sequence[Cell], size: int) -> None:
        self.kind, self.bytes = kind, size
        self._batches = [CachedBatch(linearized, cell) for cell in cells]

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, place: Any) -> Any:
        return self._batches[place]

    def __iter__(self) -> Iterator[CachedBatch]:
        return iter(self._batches)

    def __repr__(self) -> str:
        return f"Cache({self.kind}, {len(self)} batches, {self.bytes / 2**20:.1f} MiB)"


def build(
    linearized: "Linearized",
    batches: Sequence[Any],
    kind: CacheKind | Literal["auto"] = "auto",
    room: int | None = None,
    folder: Path | None = None,
) -> Cache:
    """Build the cache of `Linearized.cache`; its size is measured on the largest batch and scaled by input elements."""
    if kind != "auto" and kind not in get_args(CacheKind):
        raise UsageError(f"kind={kind!r}. {nearest(str(kind), (*get_args(CacheKind), 'auto'))}")
    one = isinstance(batches, Tensor | np.ndarray | Mapping)
    wrong = f"{described(batches)}, which is one batch: write [batch]" if one else no_rows(batches)
    if wrong is not None:
        raise UsageError(f"a cache is of a list of batches, and this is {wrong.replace('rows', 'batches')}.")
    if not batches:
        raise UsageError("a cache needs at least one batch.")
    if room is None and folder is None:
        room = free_memory() // 2
    weights = [_elements(batch) for batch in batches]
    largest = max(range(len(batches)), key=weights.__getitem__)
    preferred = _preferred(linearized, batches[largest]) if kind == "auto" else (kind,)
    known: dict[Hashable, frozenset[int]] = {}
    for chosen in preferred:
        try:
            first = _cell(linearized, batches[largest], chosen, folder, known)
            needed = round(first[1] * sum(weights) / max(weights[largest], 1))
            require_room(needed, room, folder, f"the {chosen} cache of {len(batches)} batches")
        except (UsageError, StoreError, ModelError) as error:
            if kind != "auto":
                raise
            log.info("%s", error)
            continue
        log.info("%s cache: about %.0f MiB", chosen, needed / 2**20)
        break
    cells, total = [], 0
    for place, batch in enumerate(batches):
        cell, held = first if place == largest else _cell(linearized, batch, chosen, folder, known)
        cells.append(cell)
        total += held
    return Cache(linearized, chosen, cells, total)


def _preferred(linearized: "Linearized", batch: Any) -> tuple[CacheKind, ...]:
    """The kinds that `auto` tries, the cheapest step first; factors only while the outputs are few."""
    args, kwargs = linearized.inputs_of(batch)
    with torch.no_grad():
        outputs = linearized.tangent(*args, **kwargs)[0].flatten(1).shape[1]
    rest: tuple[CacheKind, ...] = ("primal", "features", "none")
    return ("factors", *rest) if outputs <= _FEW else rest


def _elements(batch: Any) -> int:
    """The number of input elements of a batch, to which the size of its cache is proportional."""
    sizes = [leaf.numel() for leaf in leaves(batch) if isinstance(leaf, Tensor)]
    return sum(sizes) if sizes else 1


def _cell(
    linearized: "Linearized",
    batch: Any,
    kind: CacheKind,
    folder: Path | None,
    known: dict[Hashable, frozenset[int]],
) -> tuple[Cell, int]:
    """One batch's cell, checked against autograd and the engine, and the bytes it holds."""
    if kind == "none":
        return features.FeatureCell(linearized, batch, [], None), 0
    if kind == "features":
        cell, held = features.cell(linearized, batch, folder)
        if linearized.check != "off":
            _require_features(linearized, batch, cell)
        return cell, held
    return _recorded(linearized, batch, kind, folder, known)


def _recorded(
    linearized: "Linearized",
    batch: Any,
    kind: CacheKind,
    folder: Path | None,
    known: dict[Hashable, frozenset[int]],
) -> tuple[Tape | factors.FactorCell, int]:
    """A cell made from a tape, and the bytes it holds."""
    checked = linearized.check != "off"
    if checked and linearized.verified(batch) != "onepass":
        raise ModelError(
            f"the model cannot be cached as {kind!r}, which keeps what one pass goes through: its tangents are "
            f"computed by the {linearized.engine!r} engine. Train it without a cache (cache='none')."
        )
    room = Room([*linearized.base.parameters(), *linearized.base.buffers()], folder)
    trace = Trace(linearized.base, linearized.strict, linearized.told)
    saving = torch.autograd.graph.saved_tensors_hooks(room.hold, lambda kept: kept.tensor)
    probe = _probe(linearized.theta0()) if checked else None
    cell: Tape | factors.FactorCell
    try:
        with saving if kind == "primal" else nullcontext():
            tape, expected = record(linearized.function(batch), linearized.theta0(), probe, trace)
        check.require_finite_rows(tape.value, linearized.base)
        if kind == "primal":
            cell = replace(tape, entries=tuple(replace(entry, values=()) for entry in tape.entries))
        else:
            cell = factors.cell(tape, room, known, check=checked)
    except (NoRuleError, NotImplementedError) as error:
        raise ModelError(f"the model cannot be cached as {kind!r}: {error}.") from error
    pushes = hold(cell.entries, room)
    held = room.settle()
    release(pushes)
    if isinstance(cell, factors.FactorCell):
        cell.connect()
        if cell.probe is not None:
            weights, expected_gradients = cell.probe
            _require_gradients(cell.pull(weights), expected_gradients, cell.value, kind)
        cell.probe = None
    if probe is not None:
        _require_tangent(cell.push(probe), expected, kind)
    return cell, held


def _probe(theta0: Params) -> dict[str, Tensor]:
    """A fixed direction without zeros."""
    return {name: precision.random_like(theta, number) for number, (name, theta) in enumerate(theta0.items())}


def _require_features(linearized: "Linearized", batch: Any, cell: features.FeatureCell) -> None:
    """Compare J tau and J^T g with those of the whole model."""
    args, kwargs = linearized.inputs_of(batch)
    probe = _probe(linearized.theta0())
    value, tangents = linearized.tangent(*args, vectors=[probe], **kwargs)
    _require_tangent(cell.push(probe), tangents[0], "features")
    weights = precision.random_like(value, 1)
    with torch.enable_grad():
        whole = gradients(linearized.tangent(*args, **kwargs)[1], linearized.tau, weights)
    _require_gradients(cell.pull(weights), whole, value, "features")


def _require_tangent(found: Tensor, expected: Tensor, kind: CacheKind) -> None:
    if precision.far(found, expected, precision.rounding(expected.dtype)):
        scale, gap = float(expected.abs().max()), float((found - expected).abs().max())
        raise _inexact(kind, f"its J tau differs by {gap:g} of {scale:g}")


def _require_gradients(found: Params, expected: Params, value: Tensor, kind: CacheKind) -> None:
    fault = precision.wrong_gradient(found, expected, *precision.scales(value, expected))
    if fault:
        raise _inexact(kind, fault)


def _inexact(kind: CacheKind, fault: str) -> ModelError:
    return ModelError(
        f"the model cannot be cached as {kind!r}: {fault}. Its rows or its blocks depend on one another in a way that "
        "this cache does not know; choose another kind, or kind='auto'."
    )
