"""`Jacobian`: the Jacobian of the tangent model over rows of data, which makes one side of a kernel."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import cast

import torch
from torch import Tensor

from tauspan import models
from tauspan.core import params
from tauspan.core.errors import MismatchError, UsageError
from tauspan.core.params import Params
from tauspan.kernel.rows.data import (
    AnyBatch,
    Data,
    batches_of,
    checksum,
    described,
    digest,
    rows_of,
    taken,
    together,
)
from tauspan.kernel.rows.selector import Outputs, Selector, selector
from tauspan.tangent import Linearized
from tauspan.tangent.cache.tape import Tape
from tauspan.tangent.engine.backward import Graph
from tauspan.tangent.engine.check import (
    far,
    require_finite_rows,
    require_function,
    rounding,
    scales,
    vanishing,
    wrong_gradient,
)
from tauspan.tangent.engine.precision import random_like


@dataclass(frozen=True)
class Jacobian:
    """J = df/dtheta at theta0 over N rows of data, shape (N I, P), as an operator: `push` is J tau, `pull` is J^T alpha.

    Args:
        tangent: the linearised model.
        batches: the rows.
        select: which outputs of the model count.
        together: whether the outputs of a row depend on the other rows of its batch, so that J is that of whole batches.
        cut: whether the batches were cut from one here, so that where they end means nothing.
        tapes: the recorded pass of each batch, through which products go; None makes each pass anew. See `recorded`.
    """

    tangent: Linearized
    batches: Sequence[AnyBatch]
    select: Selector
    together: bool = False
    cut: bool = False
    tapes: Sequence[Tape] | None = None

    @staticmethod
    def of(tangent: Linearized, x: Data, size: int, outputs: Outputs) -> "Jacobian":
        """The side of a kernel that some data make.

        Cost:
            A forward pass of each batch and of each of its rows alone, and a backward pass of each where batches were
            cut here; with `check="off"`, a forward pass of the first batch and of one row.

        Raises:
            MismatchError: the model does not take the data, or a row's output is no vector.
            UsageError: no rows, or rows that depend on one another and would be cut into batches here.
            RandomError: the model is no function of its inputs.
            NonFiniteError: a row's output is NaN or infinite.
        """
        batches, cut = batches_of(tangent.base, x, size)
        try:
            tangent.verified(batches[0])  # first: a module may keep what its first call makes
            with torch.no_grad():
                value = tangent.function(batches[0])(tangent.theta0())
        except (
            RuntimeError,
            IndexError,
            TypeError,
            AttributeError,
        ) as error:  # another width, dtype, index or name
            raise MismatchError(
                f"the model does not take the data, whose first batch is {described(batches[0])}: {error}"
            ) from error
        count = rows_of(batches[0])
        if value.dim() != 2 or len(value) != count:
            raise MismatchError(
                f"the model gives outputs of shape {tuple(value.shape)} for {count} rows, and a kernel needs one vector "
                f"for each row: ({count}, C). Wrap it in a module that gives that (`.flatten(1)`, `.unsqueeze(1)`)."
            )
        chosen = selector(outputs, sum(map(rows_of, batches)), value.shape[1])
        side = Jacobian(tangent, batches, chosen, cut=cut)
        side.require_finite(value, range(count))
        if side.each_apart(value):
            return side
        if tangent.check != "off":  # random outputs differ at each call, whatever the batch
            require_function(tangent.function(batches[0]), value)
        return side.joined()

    def each_apart(self, first: Tensor) -> bool:
        """Whether every row has the same outputs alone as in its batch.

        All rows are compared, because one that agrees says nothing about the next: in a batch of texts padded to the
        longest, the longest always agrees. If batches were cut here, rows are also compared with their outputs in
        batches that begin in the middle of these. With `check="off"` only the last row of the first batch is compared.
        `first` holds the outputs of the first batch.
        """
        if self.tangent.check == "off":
            last = self.alone(self.batches[0], [len(first) - 1])
            return last is not None and _same(last, first[-1:])
        begin, before = 0, None
        for batch in self.batches:
            rows = range(rows_of(batch))
            value = self.value(batch, range(begin, begin + len(rows))) if begin else first
            alone = self.alone(batch, rows) if len(rows) > 1 else value
            if alone is None or not _same(alone, value) or (self.cut and not self.derived_apart(batch)):
                return False
            if self.cut and before is not None and not self.apart_across(before, (batch, alone)):
                return False
            begin, before = begin + len(rows), (batch, alone)
        return True

    def alone(self, batch: AnyBatch, rows: Sequence[int]) -> Tensor | None:
        """The outputs of some rows, each computed alone; None if the module does not accept single rows."""
        try:
            with torch.no_grad():
                calls = (self.tangent.function(taken(batch, [row])) for row in rows)
                return torch.cat([call(self.tangent.theta0()) for call in calls])
        except Exception:  # any error counts as a refusal of single rows
            return None

    def apart_across(self, first: tuple[AnyBatch, Tensor], second: tuple[AnyBatch, Tensor]) -> bool:
        """Whether the rows on both sides of a cut have the same outputs alone as in a batch across the cut.

        Each argument is a batch with the outputs that its rows have alone.
        """
        (before, ours), (after, theirs) = first, second
        left, right = range(len(ours) // 2, len(ours)), range(len(ours) // 2)[: len(theirs)]
        if not right:  # batches of one row each, as the user asked for
            return True
        try:
            with torch.no_grad():
                across = together(taken(before, list(left)), taken(after, list(right)))
                value = self.tangent.function(across)(self.tangent.theta0())
        except Exception:  # inputs that belong to all rows of a batch, and not to these
            return True
        return _same(torch.cat([ours[left.start :], theirs[: len(right)]]), value)

    def derived_apart(self, batch: AnyBatch) -> bool:
        """Whether the rows of J are the same alone as in their batch; their sums with random weights are compared.

        The rows of J may depend on the batch although the outputs do not: a mean over the batch may be multiplied by a
        gate that is 0, or be in a straight-through estimator.
        """
        graph = self.graph(batch)
        weights = random_like(graph.value.detach(), 1)
        total: dict[str, Tensor] = {}
        for row in range(len(weights)) if len(weights) > 1 else ():
            for name, found in self.graph(taken(batch, [row])).pull(weights[row : row + 1]).items():
                total[name] = total[name].add_(found) if name in total else found.clone()
        return not total or self.difference(graph, weights, total) is None

    def difference(self, graph: Graph, cotangent: Tensor, found: Params) -> str | None:
        """Which tensor of `found` is not the gradient of a batch, and by how much; None if all are."""
        expected = graph.pull(cotangent)
        tolerance, noise = scales(graph.value, expected)
        least = vanishing(graph.value * cotangent, self.tangent.theta0())
        return wrong_gradient(found, expected, tolerance, max(noise, least))

    def value(self, batch: AnyBatch, places: Sequence[int]) -> Tensor:
        """f(x; theta0), shape (n, C), without a graph."""
        with torch.no_grad():
            found = self.tangent.function(batch)(self.tangent.theta0())
        self.require_finite(found, places)
        return found

    def require_finite(self, value: Tensor, places: Sequence[int]) -> None:
        """Raise if an output is NaN or infinite; `places` are those of its rows in the data."""
        require_finite_rows(value, models.core(self.tangent.base)[0], places)

    def joined(self) -> "Jacobian":
        """The same side, with J computed for whole batches.

        Raises:
            UsageError: the batches were cut here, so that the kernel would depend on where.
        """
        if self.cut:
            name = type(models.core(self.tangent.base)[0]).__name__
            raise UsageError(
                f"the rows of a batch depend on one another in {name}, so the kernel is that of whole batches. Say "
                f"which: `batch_size={self.samples}` for one batch of all rows, or a list of batches as `x`."
            )
        return replace(self, together=True)

    def of_outputs(self, outputs: Outputs) -> "Jacobian":
        """The same rows with other outputs of the model."""
        return replace(self, select=selector(outputs, self.samples, self.select.weights.shape[2]))

    @cached_property
    def samples(self) -> int:
        """N, the rows of data."""
        return sum(map(rows_of, self.batches))

    def parts(self, places: Sequence[int] | None = None) -> Iterator[tuple[list[int], AnyBatch]]:
        """The batches with the places of their rows; if `places` are given, only these rows, in that order."""
        for begin, numbers, batch in self.spans(places):
            yield [begin + number for number in numbers], batch if places is None else taken(batch, numbers)

    def spans(self, places: Sequence[int] | None = None) -> Iterator[tuple[int, list[int], AnyBatch]]:
        """Whole batches, with the place of their first row, and which of their rows are wanted."""
        begins, begin = [], 0
        for batch in self.batches:
            begins.append((begin, begin + rows_of(batch), batch))
            begin = begins[-1][1]
        if places is None:
            yield from ((low, list(range(high - low)), batch) for low, high, batch in begins)
            return
        current: tuple[int, int, AnyBatch] | None = None
        run: list[int] = []
        for place in places:
            if current is None or not current[0] <= place < current[1]:
                if current is not None:
                    yield current[0], run, current[2]
                current, run = next(span for span in begins if span[0] <= place < span[1]), []
            run.append(place - current[0])
        if current is not None:
            yield current[0], run, current[2]

    def checksum(self) -> str:
        """A hash of the rows, the same for batches of any size that are cut from one tensor."""
        return checksum(self.batches)

    def graph(self, batch: AnyBatch, places: Sequence[int] | None = None) -> Graph:
        """f(x; theta0), shape (n, C), with ordinary autograd's graph; finite, if the places of its rows are given."""
        graph = Graph(self.tangent.function(batch))
        if places is not None:
            self.require_finite(graph.value, places)
        return graph

    def push(self, taus: Sequence[Params]) -> Tensor:
        """J tau for several directions, shape (T, N I), float64; I outputs per row."""
        parts = []
        for number, (places, batch) in enumerate(self.parts()):
            if self.tapes is None:
                args, kwargs = self.tangent.inputs_of(batch)
                _, tangents = self.tangent.tangent(*args, vectors=taus, **kwargs)
            else:
                tangents = torch.stack([self.tapes[number].push(tau) for tau in taus])
            weights = self.select.weights_of(places).to(tangents.device)
            parts.append(torch.einsum("tnc,noc->tno", tangents.double(), weights).cpu())
        return torch.cat(parts, 1).flatten(1)

    def pull(self, alphas: Tensor) -> list[dict[str, Tensor]]:
        """J^T alpha for each column of alphas, shape (N I, k), sums in float64: one graph per batch, k times backward."""
        totals: list[dict[str, Tensor]] = [{} for _ in range(alphas.shape[1])]
        shaped = alphas.reshape(self.samples, -1, alphas.shape[1])
        for number, (places, batch) in enumerate(self.parts()):
            graph = self.graph(batch, places) if self.tapes is None else self.tapes[number]
            weights = self.select.weights_of(places)
            cotangents = torch.einsum("nok,noc->knc", shaped[places].double(), weights)
            for total, cotangent in zip(totals, cotangents, strict=True):
                for name, found in graph.pull(cotangent.to(graph.value)).items():
                    total[name] = total[name] + found.double() if name in total else found.double()
        return totals

    def recorded(self) -> "Jacobian":
        """The same side with the pass of each batch recorded, so that products run none of the module's operations again.

        Raises:
            UsageError: the passes do not fit half of the free memory.
            ModelError: the model's pass cannot be recorded.

        Cost:
            A forward pass, and the memory of a primal cache; see `Linearized.cache`.
        """
        cache = self.tangent.cache(list(self.batches), "primal")
        return replace(self, tapes=[cast(Tape, batch.cell) for batch in cache])

    def dense_rows(
        self, places: Sequence[int] | None = None
    ) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
        """Rows of J written out, by a backward pass for each row and output: shape (n, I, *parameter), float64.

        It is the plainest way, against which all others are tested. Each row runs alone, or in its batch if rows depend
        on one another.
        """
        for begin, numbers, batch in self.spans(places):
            found: list[list[dict[str, Tensor]]] = []
            whole = self.graph(batch, range(begin, begin + rows_of(batch))) if self.together else None
            for number in numbers:
                graph = whole or self.graph(taken(batch, [number]), [begin + number])
                weights = self.select.weights_of([begin + number])[0].to(graph.value)
                cotangent = torch.zeros_like(graph.value)
                pulled = []
                for weight in weights:
                    cotangent[number if whole else 0] = weight
                    pulled.append(graph.pull(cotangent))
                found.append(pulled)
            stacked = {
                name: torch.stack([torch.stack([one[name].double().cpu() for one in row]) for row in found])
                for name in found[0][0]
            }
            yield [begin + number for number in numbers], stacked

    def plain_row(self, place: int, output: int) -> tuple[dict[str, Tensor], float]:
        """A row of J by ordinary autograd on the module itself, in its whole batch, without any code of the engines.

        Returns:
            The row, and the length that rounding would leave of it if it were 0.
        """
        begin, (number, *_), batch = next(iter(self.spans([place])))
        graph = self.graph(batch, range(begin, begin + rows_of(batch)))
        cotangent = torch.zeros_like(graph.value)
        cotangent[number] = self.select.weights_of([begin + number])[0, output].to(cotangent)
        row = {name: found.double().cpu() for name, found in graph.pull(cotangent).items()}
        entries = sum(found.numel() for found in row.values())
        return row, vanishing(graph.value * cotangent, self.tangent.theta0()) * entries**0.5


def _same(alone: Tensor, value: Tensor) -> bool:
    """Whether two computations of the same rows agree, each row up to rounding."""
    tolerance = rounding(value.dtype)
    return alone.shape == value.shape and not any(
        far(one, other, tolerance) for one, other in zip(alone, value, strict=True)
    )


def identity(sides: Mapping[str, Jacobian], backend: str) -> dict[str, str]:
    """Everything that decides the numbers of a kernel between `sides`, up to rounding, as short texts."""
    one = next(iter(sides.values()))
    facts = _facts(one) | {"backend": backend}
    for name, side in sides.items():
        facts[name] = side.checksum()
        if side.tangent is not one.tangent:  # another module
            facts |= {f"{fact} of {name}": value for fact, value in _facts(side).items()}
    return facts


def _facts(one: Jacobian) -> dict[str, str]:
    """What decides the numbers of a side beside its rows."""
    base = one.tangent.base
    head = getattr(base, "head", None)
    plain = {name: getattr(head, name, None) for name in ("scale", "normalize")}
    features = getattr(getattr(base, "encoder", base), "features", None)
    weights = {name: theta.dtype for name, theta in one.tangent.theta0().items()}
    return {
        "the model's weights": params.fingerprint(
            {**dict(base.named_parameters()), **dict(base.named_buffers())}
        ),
        "the model": f"{base!r} {plain} {getattr(features, '__qualname__', '')} {one.tangent.point}",
        "params": repr(weights),
        "outputs": f"{one.select.traced} {digest([one.select.weights])}",
    }
