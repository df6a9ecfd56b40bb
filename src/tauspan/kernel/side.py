"""One side of a kernel: rows of data, the tangent model on them, and which outputs count."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from tauspan import models
from tauspan.errors import MismatchError, NonFiniteError, UsageError
from tauspan.kernel.selector import Outputs, Selector, selector
from tauspan.linear import Linearized
from tauspan.linear.tape import gradients
from tauspan.models import Batch
from tauspan.params import Params

Data: TypeAlias = Batch | Sequence[Batch]
Rows: TypeAlias = dict[str, Tensor]


def batches_of(x: Data, size: int) -> list[Batch]:
    """The data in batches of at most `size` rows; a sequence of batches is taken as it is.

    Raises:
        UsageError: no rows.
    """
    if not isinstance(x, Tensor | Mapping):
        batches = list(x)
    else:
        count = rows_of(x)
        batches = [taken(x, slice(start, start + size)) for start in range(0, count, size)]
    if not batches or not all(rows_of(batch) for batch in batches):
        raise UsageError("a kernel needs rows: a side is empty, or one of its batches is.")
    return batches


def rows_of(batch: Batch) -> int:
    """How many rows a batch has."""
    return len(batch if isinstance(batch, Tensor) else next(iter(batch.values())))


def size_of(batch: Batch) -> int:
    """How many numbers a batch has."""
    return batch.numel() if isinstance(batch, Tensor) else sum(value.numel() for value in batch.values())


def taken(batch: Batch, rows: slice | list[int]) -> Batch:
    """Some rows of a batch."""
    if isinstance(batch, Tensor):
        return batch[rows]
    return {key: value[rows] for key, value in batch.items()}


def digest(tensors: Iterable[Tensor]) -> str:
    """SHA-256 of the rows of several tensors, with their dtype and the shape of a row."""
    found, kind = hashlib.sha256(), ""
    for tensor in tensors:
        now = f"{tuple(tensor.shape[1:])}|{tensor.dtype}|"
        found.update(b"" if now == kind else now.encode())
        found.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
        kind = now
    return found.hexdigest()


def _described(batch: Batch) -> str:
    named = {"": batch} if isinstance(batch, Tensor) else batch
    return ", ".join(f"{name} {tuple(value.shape)} {value.dtype}".strip() for name, value in named.items())


@dataclass(frozen=True)
class Side:
    """N rows in batches, and the linear maps J and J^T over them.

    Args:
        tangent: the linearised model.
        batches: the rows.
        select: what outputs count.
    """

    tangent: Linearized
    batches: Sequence[Batch]
    select: Selector

    @staticmethod
    def of(tangent: Linearized, x: Data, size: int, outputs: Outputs) -> "Side":
        """A side of some data; one forward pass of one row says how many outputs there are."""
        batches = batches_of(x, size)
        for number, batch in enumerate(batches):
            for value in [batch] if isinstance(batch, Tensor) else batch.values():
                if value.is_floating_point() and not bool(torch.isfinite(value).all()):
                    raise NonFiniteError(
                        f"batch {number} of the data holds NaN or infinity: clean the rows first."
                    )
        try:
            with torch.no_grad(), models.eval_mode(tangent.base):
                value = tangent.function(taken(batches[0], slice(0, 1)))(tangent.theta0())
        except (RuntimeError, IndexError) as error:  # what torch raises for another width, dtype or index
            raise MismatchError(
                f"the model does not take the data, whose first batch is {_described(batches[0])}: {error}"
            ) from error
        if value.dim() != 2:
            raise MismatchError(
                f"the model gives outputs of shape {tuple(value.shape[1:])} a row, and a kernel needs one vector: (C,)."
            )
        return Side(tangent, batches, selector(outputs, sum(map(rows_of, batches)), value.shape[1]))

    @property
    def samples(self) -> int:
        """N."""
        return sum(map(rows_of, self.batches))

    def parts(self, places: Sequence[int] | None = None) -> Iterator[tuple[list[int], Batch]]:
        """The batches with the places of their rows; of `places` only, in their order, where they are given."""
        begin = 0
        spans = []
        for batch in self.batches:
            spans.append((begin, begin + rows_of(batch), batch))
            begin = spans[-1][1]
        if places is None:
            yield from ((list(range(low, high)), batch) for low, high, batch in spans)
            return
        current: tuple[int, int, Batch] | None = None
        run: list[int] = []
        for place in places:
            if current is None or not current[0] <= place < current[1]:
                if current is not None:
                    yield run, taken(current[2], [p - current[0] for p in run])
                current, run = next(span for span in spans if span[0] <= place < span[1]), []
            run.append(place)
        if current is not None:
            yield run, taken(current[2], [p - current[0] for p in run])

    def checksum(self) -> str:
        """A hash of the rows, the same for batches of any size that are cut from one tensor."""
        mappings = [{"": batch} if isinstance(batch, Tensor) else batch for batch in self.batches]
        keys = sorted({key for batch in mappings for key in batch})
        return "|".join(f"{key}={digest(batch[key] for batch in mappings if key in batch)}" for key in keys)

    def value(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """f(x; theta0), shape (n, C), with its graph, and the leaves it was made of."""
        points = {name: theta.detach().requires_grad_() for name, theta in self.tangent.theta0().items()}
        with torch.enable_grad(), models.eval_mode(self.tangent.base):
            return self.tangent.function(batch)(points), points

    def push(self, taus: Sequence[Params]) -> Tensor:
        """J tau for several directions, shape (T, N I), float64; I outputs are derived a row."""
        parts = []
        for places, batch in self.parts():
            _, tangents = self.tangent.tangent(batch, vectors=taus)
            weights = self.select.of(places).to(tangents.device)
            parts.append(torch.einsum("tnc,noc->tno", tangents.double(), weights).cpu())
        return torch.cat(parts, 1).flatten(1)

    def pull(self, alpha: Tensor) -> Rows:
        """J^T alpha for alpha of shape (N I): one backward pass a batch, sums in float64."""
        total: Rows = {}
        shaped = alpha.view(self.samples, -1)
        for places, batch in self.parts():
            value, points = self.value(batch)
            cotangent = torch.einsum("no,noc->nc", shaped[places].double(), self.select.of(places))
            for name, found in gradients(value, points, cotangent.to(value)).items():
                total[name] = total[name] + found.double() if name in total else found.double()
        return total

    def jacobian(self, places: Sequence[int] | None = None) -> Iterator[tuple[list[int], Rows]]:
        """Rows of J written out, by a backward pass a row and output: shape (n, I, *parameter), float64.

        The plain way, and the oracle of every other.
        """
        for rows, batch in self.parts(places):
            found: list[list[Rows]] = []
            for number, place in enumerate(rows):
                value, points = self.value(taken(batch, slice(number, number + 1)))
                weights = self.select.of([place])[0].to(value)
                found.append([gradients(value, points, weight[None]) for weight in weights])
            names = found[0][0]
            yield (
                rows,
                {
                    name: torch.stack(
                        [torch.stack([one[name].double().cpu() for one in row]) for row in found]
                    )
                    for name in names
                },
            )
