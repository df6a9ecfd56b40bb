"""`merge`: task vectors in memory, by any method of the table."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from tauspan.core import params
from tauspan.core.arguments import checked
from tauspan.core.errors import UsageError
from tauspan.core.params import Params
from tauspan.merge.engine.engine import Account, Engine
from tauspan.merge.engine.plugins import named
from tauspan.merge.engine.settings import Settings, depths
from tauspan.merge.methods.method import Block, Method, Need, Spec
from tauspan.merge.methods.scope import Read, apart, pieces, shaped, specs_of, stacked
from tauspan.models import stored_state
from tauspan.vector import TaskVector


def find(method: object) -> Method:
    """The method with that name, see `plugins.named`; a `Method` is returned as it is."""
    if isinstance(method, Method):
        return method
    if not isinstance(method, str):
        given = (
            f"options={method!r}" if isinstance(method, Mapping) else f"{type(method).__name__} is neither"
        )
        raise UsageError(
            f"the second argument is the method, a name of METHODS or a Method: {given}. Options come third: "
            "merge(vectors, method, options={...})."
        )
    return named(method)


@checked
def merge(
    vectors: Sequence[TaskVector],
    method: str | Method = "task_arithmetic",
    options: Mapping[str, Any] | None = None,
    *,
    base: nn.Module | Params | None = None,
    statistics: Mapping[Need, Sequence[Params]] | None = None,
    seed: int = 0,
) -> TaskVector:
    """One task vector made of several, by a method of `METHODS`.

    A method of the space `point` merges theta0 + tau_t and gives the merged point minus theta0, if `base` is given.
    Without a base it merges the displacements themselves. For `linear` with normalised weights that is the same; for what
    depends on lengths and angles from the origin (`slerp`, `multislerp_point`, `nuslerp_point`, `karcher`) it is another
    result: it turns tau_1 into tau_2, and not theta_1 into theta_2.

    Args:
        vectors: from one base and in one regime, over the same tensors.
        method: a name of `METHODS`, a name that an installed package gives in the entry-point group `tauspan.methods`, or
            a `Method` of your own.
        options: the method's options; a list gives one number for each vector where an option is per model.
        base: theta0, for the methods that need it, and for those of the space `point` to merge points.
        statistics: for methods that need them: for each need, one mapping per vector.
        seed: of random masks; they are keyed by seed, tensor name and the vector's label (of equal labels the second one
            counts as `label#2`, and so on).

    Returns:
        A vector of the same base and regime, in the vectors' dtype; the arithmetic is float32, or float64 for float64
        vectors. Its `info["merge"]` says how it was made, and for a sparse method which share of its entries each vector
        `kept`.

    Raises:
        UsageError: unknown method or option, or a number outside its range.
        MismatchError, BaseMismatchError: the vectors do not fit together.
        NonFiniteError: a vector holds NaN or infinity.

    Example:
        >>> a = TaskVector({"w": torch.tensor([3.0, -1.0])}, "b", "standard", "a")
        >>> b = TaskVector({"w": torch.tensor([1.0, 2.0])}, "b", "standard", "b")
        >>> merge([a, b], "magmax").deltas["w"]
        tensor([3., 2.])
    """
    chosen = find(method)
    if options is not None and not isinstance(options, Mapping):
        raise UsageError(
            f"options={options!r}: it is a mapping by name, for example options={{'density': 0.1}}."
        )
    chosen.require_count(len(vectors))
    first = _compatible(vectors)
    kind = torch.float64 if any(d.dtype == torch.float64 for d in first.deltas.values()) else torch.float32
    theta0 = None if base is None else _point(base, first)
    own: dict[Need, Sequence[Params]] = {
        need: _statistics(chosen, need, statistics or {}, len(vectors))
        for need in chosen.needs
        if need != "base"
    }
    if "base" in chosen.needs and theta0 is None:
        raise UsageError(f"the method {chosen.name!r} needs the base: pass `base=`, the pre-trained model.")
    settings = Settings.of(chosen, options or {}, len(vectors))
    labels = apart([vector.label for vector in vectors])

    places = depths(first.deltas)
    shapes = {name: delta.shape for name, delta in first.deltas.items()}
    specs = specs_of(chosen, shapes, settings.at, places, labels)
    engine = Engine(chosen, specs, _reader(chosen, vectors, labels, theta0, own, kind, seed))
    engine.measure()
    merged, kept = {}, Account()
    for spec in specs:
        parts, ready = [], engine.ready(spec)
        for start, stop in pieces(spec.shape, chosen.grain, engine.size):
            done = engine.piece(spec, start, stop, ready)
            shift = done.block.base if chosen.space == "point" else None
            parts.append(done.result if shift is None else done.result - shift.reshape(-1))
            kept += Account(kept=done.kept)
        whole = torch.cat(parts) if parts else torch.zeros(0, dtype=kind)
        merged[spec.name] = whole.view(spec.shape).to(first.deltas[spec.name].dtype)
    params.require_finite(merged, f"the vector merged by {chosen.name!r}")
    told: dict[str, Any] = {"method": chosen.name, "options": dict(options or {}), "of": list(labels)}
    if kept.kept:
        entries = sum(spec.shape.numel() for spec in specs)
        told["kept"] = [count / entries for count in kept.kept]
    return replace(first, deltas=merged, label=chosen.name, info={**first.info, "merge": told})


def _reader(
    method: Method,
    vectors: Sequence[TaskVector],
    labels: tuple[str, ...],
    theta0: Params | None,
    statistics: Mapping[Need, Sequence[Params]],
    kind: torch.dtype,
    seed: int,
) -> Read:
    """Blocks cut out of tensors in memory."""

    def read(spec: Spec, start: int, stop: int) -> Block:
        def cut(tensor: Tensor) -> Tensor:
            return shaped(tensor.detach().reshape(-1)[start:stop].to(kind), spec.shape, method.grain)

        point = None if theta0 is None else cut(theta0[spec.name])
        values = torch.stack([cut(vector.deltas[spec.name]) for vector in vectors])
        if method.space == "point" and point is not None:
            values = values + point
        known: dict[str, Tensor] = {
            need: stacked(need, [model[spec.name] for model in given], cut)
            for need, given in statistics.items()
            if spec.name in given[0]
        }
        return Block(
            values, point, spec.name, start, spec.shape, spec.options, labels, seed, spec.depth, known
        )

    return read


def _compatible(vectors: Sequence[TaskVector]) -> TaskVector:
    first, *rest = vectors
    for vector in vectors:
        params.require_finite(vector.deltas, f"the vector {vector.label!r}")
    for other in rest:
        first.require_compatible(other)
    return first


def _point(base: nn.Module | Params, vector: TaskVector) -> Params:
    point = base if isinstance(base, Mapping) else stored_state(base)
    vector.require_base(params.fingerprint(point))
    return point


def _statistics(
    method: Method, need: Need, given: Mapping[Need, Sequence[Params]], models: int
) -> Sequence[Params]:
    found = given.get(need, ())
    if len(found) != models:
        raise UsageError(
            f"the method {method.name!r} needs {need!r} statistics, one mapping a vector: {len(found)} were given for "
            f"{models} vectors. Pass `statistics={{{need!r}: [...]}}`."
        )
    return found
