"""Derivatives of a batch's outputs in the results of some operations, and whether they can be read row by row."""

from typing import Literal

import torch
from torch import Tensor

from tauspan.tangent.cache.tape import Tape
from tauspan.tangent.engine.maps import dense
from tauspan.tangent.engine.precision import noise, rounding


def parted(tensor: Tensor) -> Tensor:
    """The tensor, or the real and imaginary parts of a complex one as one more axis.

    Autograd's gradient g of a complex y is that of its parts: the output moves by Re(conj(g) dy), their inner product.
    """
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


class Sensitivities:
    """The derivatives of a batch's outputs in the results of some operations, row by row.

    One backward pass gives the derivatives of an output summed over rows, with random signs. These are the derivatives
    of each row if every slice of an operation's result belongs to one row. One more pass, with random weights for rows
    and outputs, checks this: its gradient must equal the weighted slices.

    Args:
        tape: the batch's pass.
        results: the results of the operations.
        mixing: what the pass with random weights checks: `"all"` (rows, and the gradient of each parameter, kept in
            `pulled`), `"rows"`, or `"none"` (no such pass).

    Cost:
        One backward pass for each output, and one more unless `mixing` is `"none"`.
    """

    def __init__(self, tape: Tape, results: list[Tensor], mixing: Literal["all", "rows", "none"]) -> None:
        value = tape.value
        generator = torch.Generator().manual_seed(0)
        signs = torch.randint(0, 2, value.shape, generator=generator) * 2 - 1
        self._signs = signs.to(value)
        self.weights = torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value)
        self._columns: list[tuple[Tensor | None, ...]] = []
        self.pulled = {name: torch.zeros_like(point) for name, point in tape.points.items()}
        self._mixed: tuple[Tensor | None, ...] = (None,) * len(results)
        self._noise = 0.0
        if not value.requires_grad:
            return
        if results:
            for c in range(value.shape[1]):
                self._columns.append(_derived(value[:, c] * self._signs[:, c], results))
        inputs = [*results, *(tape.points.values() if mixing == "all" else ())]
        if mixing == "none" or not inputs:
            return
        gradients = _derived(value * self.weights, inputs)
        self._mixed = gradients[: len(results)]
        for name, gradient in zip(tape.points, gradients[len(results) :], strict=mixing == "all"):
            if gradient is not None:
                self.pulled[name] = dense(gradient)
        self._noise = max(
            (float(g.abs().max()) for g in self._mixed if g is not None and g.numel()), default=0.0
        )

    def of(self, index: int) -> Tensor | None:
        """The derivatives in one result, shape (N, C, entries of a slice); None where no output depends on it.

        A complex result has two entries for each number, as in `parted`.
        """
        slices = [column[index] for column in self._columns]
        if not slices or slices[0] is None:
            return None
        rows = len(self._signs)
        flat = [
            parted(g).reshape(rows, 1, -1) * self._signs[:, c].view(rows, 1, 1)
            for c, g in enumerate(slices)
            if g is not None
        ]
        return flat[0] if len(flat) == 1 else torch.cat(flat, 1)

    def by_rows(self, index: int) -> bool:
        """Whether each slice of one result belongs to one row."""
        rows, mixed = len(self._signs), self._mixed[index]
        if rows == 1 or mixed is None:
            return True
        sensitivity = self.of(index)
        assert sensitivity is not None  # noqa: S101 - both come from one graph
        expected = torch.einsum("nck,nc->nk", sensitivity, self.weights)
        mixed = parted(mixed)
        gap = float((expected - mixed.reshape(rows, -1)).abs().max())
        dtype = mixed.dtype
        return gap <= max(rounding(dtype) * float(mixed.abs().max()), noise(dtype) * self._noise)


def _derived(weighted: Tensor, inputs: list[Tensor]) -> tuple[Tensor | None, ...]:
    return torch.autograd.grad(weighted.sum(), inputs, retain_graph=True, allow_unused=True)
