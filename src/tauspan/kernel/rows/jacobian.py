"""`Jacobian`: the Jacobian of the tangent model over rows of data, which makes one side of a kernel."""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from tauspan import models
from tauspan.core import params
from tauspan.core.errors import MismatchError, UsageError
from tauspan.core.params import Params
from tauspan.kernel.rows.data import AnyBatch, Data, batches_of, checksum, described, digest, rows_of, taken
from tauspan.kernel.rows.selector import Outputs, Selector, selector
from tauspan.tangent import Linearized
from tauspan.tangent.engine.backward import Graph
from tauspan.tangent.engine.check import far, require_function, rounding, vanishing


@dataclass(frozen=True)
class Jacobian:
    """J = df/dtheta at theta0 over N rows of data, shape (N I, P), as an operator: `push` is J tau, `pull` is J^T alpha.

    Args:
        tangent: the linearised model.
        batches: the rows.
        select: which outputs of the model count.
        together: whether the outputs of a row depend on the other rows of its batch, so that J is that of whole batches.
        cut: whether the batches were cut from one here, so that where they end means nothing.
    """

    tangent: Linearized
    batches: Sequence[AnyBatch]
    select: Selector
    together: bool = False
    cut: bool = False

    @staticmethod
    def of(tangent: Linearized, x: Data, size: int, outputs: Outputs) -> "Jacobian":
        """A side of some data.

        Cost:
            A forward pass of each batch, of each row of the first one alone, and of three rows of each other one; with
            `check="off"`, of the first batch and of one row.

        Raises:
            MismatchError: the model does not take the data, or a row's output is no vector.
            UsageError: no rows, or rows that depend on one another and would be cut into batches here.
            RandomError: the model is no function of its inputs.
        """
        batches, cut = batches_of(tangent.base, x, size)
        try:
            tangent.verified(batches[0])  # first: a module may keep what it makes at its first call
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
        if side.each_apart(value):
            return side
        if tangent.check != "off":  # what draws random numbers differs from itself, and not from its batch
            require_function(tangent.function(batches[0]), value)
        return side.joined()

    def each_apart(self, first: Tensor) -> bool:
        """Whether rows have the same outputs alone as in their batch.

        Each row of the first batch, whose outputs are `first`, and three rows of each other one; without the check, the
        last row of the first batch. A row that happens to agree says little: of texts cut at the longest of their
        batch, the longest does.
        """
        if self.tangent.check == "off":
            return self.apart(self.batches[0], first, [len(first) - 1])
        if not self.apart(self.batches[0], first, range(len(first))):
            return False
        draw = random.Random(0)
        for batch in self.batches[1:]:
            count = rows_of(batch)
            with torch.no_grad():
                value = self.tangent.function(batch)(self.tangent.theta0())
            if not self.apart(batch, value, sorted({0, draw.randrange(count), count - 1})):
                return False
        return True

    def apart(self, batch: AnyBatch, value: Tensor, rows: Sequence[int]) -> bool:
        """Whether rows have the same outputs alone as in their batch, whose outputs are `value`."""
        for row in rows if len(value) > 1 else ():
            try:
                with torch.no_grad():
                    alone = self.tangent.function(taken(batch, [row]))(self.tangent.theta0())
            except Exception:  # the module takes whole batches alone
                return False
            if alone.shape[1:] != value.shape[1:] or far(alone, value[row : row + 1], rounding(value.dtype)):
                return False
        return True

    def joined(self) -> "Jacobian":
        """The same side with J of whole batches.

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

    @cached_property
    def samples(self) -> int:
        """N, the rows of data."""
        return sum(map(rows_of, self.batches))

    def parts(self, places: Sequence[int] | None = None) -> Iterator[tuple[list[int], AnyBatch]]:
        """The batches with the places of their rows; of `places` only, in their order, where they are given."""
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

    def graph(self, batch: AnyBatch) -> Graph:
        """f(x; theta0), shape (n, C), with ordinary autograd's graph."""
        return Graph(self.tangent.function(batch))

    def push(self, taus: Sequence[Params]) -> Tensor:
        """J tau for several directions, shape (T, N I), float64; I outputs per row."""
        parts = []
        for places, batch in self.parts():
            args, kwargs = self.tangent.inputs_of(batch)
            _, tangents = self.tangent.tangent(*args, vectors=taus, **kwargs)
            weights = self.select.weights_of(places).to(tangents.device)
            parts.append(torch.einsum("tnc,noc->tno", tangents.double(), weights).cpu())
        return torch.cat(parts, 1).flatten(1)

    def pull(self, alpha: Tensor) -> dict[str, Tensor]:
        """J^T alpha for alpha of shape (N I): one backward pass per batch, sums in float64."""
        total: dict[str, Tensor] = {}
        shaped = alpha.view(self.samples, -1)
        for places, batch in self.parts():
            graph = self.graph(batch)
            cotangent = torch.einsum("no,noc->nc", shaped[places].double(), self.select.weights_of(places))
            for name, found in graph.pull(cotangent.to(graph.value)).items():
                total[name] = total[name] + found.double() if name in total else found.double()
        return total

    def dense_rows(
        self, places: Sequence[int] | None = None
    ) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
        """Rows of J written out, by a backward pass for each row and output: shape (n, I, *parameter), float64.

        The plain way, and the oracle of every other. Each row runs alone, or in its batch if rows depend on one another.
        """
        for begin, numbers, batch in self.spans(places):
            found: list[list[dict[str, Tensor]]] = []
            whole = self.graph(batch) if self.together else None
            for number in numbers:
                graph = whole or self.graph(taken(batch, [number]))
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
        """A row of J by ordinary autograd on the module itself, in its whole batch, with none of our own ways.

        Returns:
            The row, and the length that rounding would leave of it if it were 0.
        """
        begin, (number, *_), batch = next(iter(self.spans([place])))
        graph = self.graph(batch)
        cotangent = torch.zeros_like(graph.value)
        cotangent[number] = self.select.weights_of([begin + number])[0, output].to(cotangent)
        row = {name: found.double().cpu() for name, found in graph.pull(cotangent).items()}
        entries = sum(found.numel() for found in row.values())
        return row, vanishing(graph.value * cotangent, self.tangent.theta0()) * entries**0.5


def identity(sides: Mapping[str, Jacobian], backend: str) -> dict[str, str]:
    """Everything that decides the numbers of a kernel between `sides`, up to rounding, as short texts."""
    one = next(iter(sides.values()))
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
        "backend": backend,
    } | {name: side.checksum() for name, side in sides.items()}
