"""`Contributions`: what each direction adds to the tangent model's outputs, computed once, for any coefficients."""

import copy
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from tauspan import store
from tauspan.core.arguments import checked
from tauspan.core.errors import BaseMismatchError, MismatchError, ModelError, StoreError, UsageError, listed
from tauspan.core.params import require_finite_rows
from tauspan.core.processes import world
from tauspan.models import Batch, Classifier, Head
from tauspan.objectives import Classification, Objective, objective_of, spelled
from tauspan.tangent import Linearized
from tauspan.tangent.engine.precision import far, rounding
from tauspan.tasks.batches import Batches, Prepared
from tauspan.vector import TaskVector

FORMAT = "tauspan-contributions/1"
Advance = Callable[[int, str], None]


def silent(steps: int, note: str) -> None:
    """Report no progress, as the default of `advance`."""


@checked
@dataclass(frozen=True)
class Contributions:
    """The tangent model's outputs over some rows as an affine function of the coefficients a_1 ... a_T.

    f(x; theta0) + sum_t a_t J(x) tau_t, then the frozen head if the linearisation point is before it. One
    pass over the data gives every choice of coefficients by a small contraction.

    Args:
        value: f(x; theta0), shape (N, C).
        tangents: J(x) tau_t, shape (T, N, C).
        labels: the rows' targets; of classes of shape (N,).
        names: the T directions, as people call them.
        head: what follows the linearisation point; None where the outputs are logits already.
        info: where the numbers come from: base fingerprint, task, split, point, directions.
        objective: what the rows are trained and measured by.
    """

    value: Tensor
    tangents: Tensor
    labels: Tensor
    names: tuple[str, ...]
    head: Head | None = None
    info: Mapping[str, Any] = field(default_factory=dict)
    objective: Objective = Classification()

    def __post_init__(self) -> None:
        if self.tangents.shape != (len(self.names), *self.value.shape) or len(self.labels) != len(self.value):
            raise MismatchError(
                f"contributions of {len(self.names)} directions to values of shape {tuple(self.value.shape)} cannot have "
                f"tangents of shape {tuple(self.tangents.shape)} and {len(self.labels)} labels."
            )

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        rows, outputs = self.value.shape
        return f"Contributions({rows} rows, {outputs} outputs, directions {listed(self.names)})"

    def outputs(self, coefficients: Tensor) -> Tensor:
        """What the head reads, shape (N, C), at coefficients of shape (T,); differentiable in them."""
        if coefficients.shape != (len(self.names),):
            raise MismatchError(
                f"{tuple(coefficients.shape)} coefficients for the {len(self.names)} directions {listed(self.names)}."
            )
        return self.value + torch.einsum("t,tnc->nc", coefficients.to(self.value), self.tangents)

    def logits(self, coefficients: Sequence[float] | Tensor) -> Tensor:
        """Logits of shape (N, K) at a_1 ... a_T."""
        found = self.outputs(torch.as_tensor(coefficients, dtype=self.value.dtype))
        return found if self.head is None else cast(Tensor, self.head(found))

    def rows(self, places: Tensor) -> "Contributions":
        """The contributions to some of the rows, repeats allowed (for the bootstrap)."""
        return replace(
            self, value=self.value[places], tangents=self.tangents[:, places], labels=self.labels[places]
        )

    def double(self) -> "Contributions":
        """The same numbers in float64, the head's too."""
        head = None if self.head is None else copy.deepcopy(self.head).double()
        return replace(self, value=self.value.double(), tangents=self.tangents.double(), head=head)

    def folded(self) -> "Contributions":
        """The same contributions with the head applied to outputs and tangents, if it is affine; exact.

        A head that normalises is kept.
        """
        if self.head is None or self.head.normalize:
            return self
        zero = self.head(torch.zeros_like(self.value[:1]))  # the bias alone
        return replace(self, value=self.head(self.value), tangents=self.head(self.tangents) - zero, head=None)

    def summed(self, groups: Mapping[str, Sequence[str]]) -> "Contributions":
        """Fewer directions: each new one is the sum of some of these, exact because outputs are affine.

        Raises:
            UsageError: a group names a direction that is not there.
        """
        place = {name: index for index, name in enumerate(self.names)}
        for group in groups.values():
            for name in group:
                if name not in place:
                    raise UsageError(f"there is no direction {name!r} among {listed(self.names)}.")
        parts = [self.tangents[[place[name] for name in group]].sum(0) for group in groups.values()]
        return replace(self, tangents=torch.stack(parts), names=tuple(groups))

    # -- files -----------------------------------------------------------------------------------------------

    @checked
    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write one safetensors file with its provenance.

        Raises:
            StoreError: the file is already there or cannot be written; nothing is left behind.
            UsageError: an objective of the user's own, which a file does not hold.
        """
        tensors = {"value": self.value, "tangents": self.tangents, "labels": self.labels}
        header: dict[str, Any] = {"format": FORMAT, "names": self.names, "info": dict(self.info)}
        if self.objective != Classification():
            objective_of(self.objective.word)  # one of the user's cannot be read again
            header["objective"] = spelled(self.objective)
        if self.head is not None:
            header["head"] = {"scale": self.head.scale, "normalize": self.head.normalize}
            tensors["head.weight"] = self.head.weight
            if self.head.bias is not None:
                tensors["head.bias"] = self.head.bias
        file = Path(path)
        store.write_tensors(
            file, tensors, {"tauspan": json.dumps(header, sort_keys=True)}, overwrite=overwrite
        )
        return file

    @staticmethod
    @checked
    def from_file(
        path: str | Path, *, base: str | None = None, expect: Mapping[str, Any] | None = None
    ) -> "Contributions":
        """Read what `save` wrote, if it is what the caller needs.

        Args:
            path: the file.
            base: the fingerprint of the model it must come from.
            expect: further entries that its `info` must have, such as the task's checksum or the split.

        Raises:
            StoreError: not a whole file of contributions.
            BaseMismatchError: it was made from another model.
            MismatchError: it was made from other data or another selection.
        """
        checkpoint = store.Checkpoint(path)
        header = _header(checkpoint, Path(path))
        found = header["info"].get("fingerprint")
        if base is not None and found != base:
            raise BaseMismatchError(
                f"{path} was computed from base {str(found)[:12]}, and this model is {base[:12]}. Compute it anew."
            )
        for key, wanted in (expect or {}).items():
            if header["info"].get(key) != wanted:
                raise MismatchError(
                    f"{path} has {key}={header['info'].get(key)!r}, and {wanted!r} is wanted. Compute it anew."
                )
        tensors = checkpoint.read()
        head = None
        if "head" in header:
            head = Head(tensors["head.weight"], tensors.get("head.bias"), **header["head"])
        names = tuple(header["names"])
        try:
            parts = (tensors["value"], tensors["tangents"], tensors["labels"])
        except KeyError as error:
            raise StoreError(f"{path} lacks the tensor {error}: write it anew.") from error
        return Contributions(
            *parts, names, head, header["info"], objective_of(header.get("objective", Classification.word))
        )


def _header(checkpoint: store.Checkpoint, file: Path) -> dict[str, Any]:
    text = checkpoint.metadata.get("tauspan", "{}")
    try:
        header = json.loads(text)
    except json.JSONDecodeError as error:
        raise StoreError(f"the header of {file} is not JSON: {error}.") from error
    whole = isinstance(header, dict) and isinstance(header.get("info"), dict) and "names" in header
    if not whole or header.get("format") != FORMAT:
        found = header.get("format") if isinstance(header, dict) else header
        raise StoreError(f"{file} has format {found!r}; this version reads contributions of {FORMAT!r}.")
    result: dict[str, Any] = header
    return result


@checked
def contributions(
    tangent: Linearized,
    vectors: Mapping[str, TaskVector],
    prepared: Batches,
    labels: Tensor,
    *,
    info: Mapping[str, Any] | None = None,
    objective: Objective = Classification(),
    together: int = 16,
    advance: Advance = silent,
) -> Contributions:
    """One pass of the tangent model over prepared batches in all directions.

    Args:
        tangent: the linearised model.
        vectors: the directions by name, from this model (the caller has checked it); each must hold the tensors
            that `tangent` moves.
        prepared: batches with the places of their rows; see `tauspan.editing.evaluation.batches`.
        labels: the rows' targets.
        info: further provenance.
        objective: what the rows are trained and measured by.
        together: so many directions share one forward pass; it bounds the memory.
        advance: progress.

    Raises:
        NonFiniteError: a row's outputs or tangents are NaN or infinite.

    Cost:
        A forward pass with T tangents, 1 + 2 T times the module's own; one more forward pass for each further
        `together` directions. Several processes share the batches.
    """
    if not vectors:
        raise UsageError("contributions need at least one direction.")
    if together < 1:
        raise UsageError(f"together={together}: at least one direction must share a pass.")
    taus = list(vectors.values())
    groups = [taus[begin : begin + together] for begin in range(0, len(taus), together)]

    def both(batch: Batch) -> tuple[Tensor, Tensor]:
        pairs = [tangent.parts(batch, vectors=group) for group in groups]
        return pairs[0][0].detach().cpu(), torch.cat([directions.detach().cpu() for _, directions in pairs])

    found = by_batch(both, prepared, advance)
    values = [(places, value) for places, (value, _) in found]
    tangents = [(places, moved) for places, (_, moved) in found]
    head = tangent.base.head if isinstance(tangent.base, Classifier) and tangent.point == "encoder" else None
    base = next(iter(vectors.values())).base
    facts = {"fingerprint": base, "point": tangent.point, **(info or {})}
    value, stacked = in_order(values, 0), in_order(tangents, 1)
    if tangent.check != "off":
        _require_in_place(tangent, taus[:1], prepared, value, stacked)
    of = f" of {facts['task']!r}" if "task" in facts else ""
    on = f" on {facts['split']}" if "split" in facts else ""
    require_finite_rows(value, f"f(x; theta0){of}{on}")
    for name, moved in zip(vectors, stacked, strict=True):
        require_finite_rows(moved, f"J(x) tau of {name!r}{of}{on}")
    return Contributions(value, stacked, labels, tuple(vectors), head, facts, objective)


def _require_in_place(
    tangent: Linearized, taus: Sequence[TaskVector], prepared: Batches, value: Tensor, tangents: Tensor
) -> None:
    """Raise unless two rows of the last batch, run again by themselves, give the outputs that are at their places.

    Raises:
        ModelError: they have not; rows that depend on their batch are compared with the whole of it.

    Cost:
        A tangent pass over two rows.
    """
    places, batch = prepared[len(prepared) - 1]
    call = tangent.function(batch)
    fewer = call.sample()
    mine = [places[0], places[-1]] if fewer is not call else list(places)
    found = tangent.tangent(*fewer.args, vectors=taus, **fewer.kwargs)
    if any(map(_far, found, (value[mine], tangents[:1, mine]))):
        mine, found = list(places), tangent.tangent(*call.args, vectors=taus, **call.kwargs)
    if any(map(_far, found, (value[mine], tangents[:1, mine]))):
        raise ModelError(
            f"outputs or tangents of row {mine[0]} differ when it is run again: the model, or the order of the rows, has "
            "changed during the pass. Run it again, with nothing else at work on the model."
        )


def _far(found: Tensor, wanted: Tensor) -> bool:
    return far(found.detach().cpu(), wanted, rounding(wanted.dtype))


Found = TypeVar("Found")


def by_batch(
    run: Callable[[Batch], Found], prepared: Batches, advance: Advance = silent
) -> list[tuple[list[int], Found]]:
    """The results of `run` for each batch, with the places of its rows.

    Of P processes each runs every P-th batch, and every process gets all results. The batches are the same for any P,
    so the numbers are too.

    Raises:
        MismatchError: the processes were given different numbers of batches.
    """
    with world() as processes:
        processes.require_same({"the number of batches": str(len(prepared))})
        mine = []
        for places, batch in _share(prepared, processes.rank, processes.size):
            mine.append((places, run(batch)))
            advance(len(places) * processes.size, "")  # the other processes are about as far
        return processes.gathered(mine)


def _share(prepared: Batches, first: int, step: int) -> Iterator[tuple[list[int], Batch]]:
    if isinstance(prepared, Prepared):
        return prepared.share(first, step)
    return (prepared[number] for number in range(first, len(prepared), step))


def in_order(parts: Sequence[tuple[list[int], Tensor]], axis: int) -> Tensor:
    """The batches' tensors put together along the axis of the rows, in the original order of the rows."""
    places = [place for block, _ in parts for place in block]
    return torch.cat([values for _, values in parts], axis).index_select(axis, torch.tensor(places).argsort())
