"""Blocks of a curvature G = E_x J^T J, one for each parameter, with tau^T G tau as a function of tau."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import ClassVar, Self

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Block(ABC):
    """tau^T G tau of one parameter, or of one of its views; a new form is a subclass.

    The fields are tensors; they are what a file holds.
    """

    word: ClassVar[str]

    @abstractmethod
    def square(self, tau: Tensor) -> Tensor:
        """The value tau^T G tau for tau in the form (b, a) of a layer, or flat, with its graph."""

    @classmethod
    def mean(cls, blocks: Sequence[Self], weights: Sequence[float]) -> Self:
        """One block in the place of several, with weights of a sum of at most 1: by default the mean of each tensor.

        It is exact where the value is linear in the tensors. Of Kronecker factors it has cross terms A_s x B_u of
        different blocks, as in TAK.
        """
        tensors = [one.tensors() for one in blocks]
        return cls(**{name: _averaged([one[name] for one in tensors], weights) for name in tensors[0]})

    def tensors(self) -> dict[str, Tensor]:
        """The fields by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def _averaged(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    return torch.stack([weight * tensor for weight, tensor in zip(weights, tensors, strict=True)]).sum(0)


@dataclass(frozen=True, eq=False)
class Kronecker(Block):
    """A layer's weight: tr(B dW A dW^T), A (a, a) of its inputs, B (b, b) of the outputs' sensitivities."""

    word: ClassVar[str] = "kronecker"
    inputs: Tensor
    outputs: Tensor

    def square(self, tau: Tensor) -> Tensor:
        """Two products of the size of the weight."""
        matrix = tau.view(len(self.outputs), len(self.inputs))
        return ((self.outputs.to(tau) @ matrix) * (matrix @ self.inputs.to(tau))).sum()


@dataclass(frozen=True, eq=False)
class Thin(Block):
    """Kronecker factors by roots of low rank, A = R_A R_A^T and B = R_B R_B^T: |R_B^T dW R_A|^2."""

    word: ClassVar[str] = "thin"
    inputs: Tensor
    outputs: Tensor

    def square(self, tau: Tensor) -> Tensor:
        """Two products, thinner than the weight."""
        matrix = tau.view(len(self.outputs), len(self.inputs))
        return (self.outputs.T.to(tau) @ matrix @ self.inputs.to(tau)).square().sum()

    def full(self) -> Kronecker:
        """The same value by whole factors, in float64."""
        inputs, outputs = self.inputs.double(), self.outputs.double()
        return Kronecker(inputs @ inputs.T, outputs @ outputs.T)

    @classmethod
    def mean(cls, blocks: Sequence[Self], weights: Sequence[float]) -> Self:
        """As of full factors: roots beside one another."""

        def beside(roots: Sequence[Tensor]) -> Tensor:
            return torch.cat([weight**0.5 * root for weight, root in zip(weights, roots, strict=True)], 1)

        return cls(beside([one.inputs for one in blocks]), beside([one.outputs for one in blocks]))


@dataclass(frozen=True, eq=False)
class Rotated(Block):
    """A layer's weight in the eigenvectors of A and B: sum_ij D_ij (U_B^T dW U_A)_ij^2 (EK-FAC, arXiv 1806.03884)."""

    word: ClassVar[str] = "rotated"
    inputs: Tensor
    outputs: Tensor
    scale: Tensor

    def square(self, tau: Tensor) -> Tensor:
        """Two products of the size of the weight."""
        matrix = tau.view(len(self.outputs), len(self.inputs))
        return (self.scale.to(tau) * (self.outputs.T.to(tau) @ matrix @ self.inputs.to(tau)).square()).sum()

    @classmethod
    def mean(cls, blocks: Sequence[Self], weights: Sequence[float]) -> Self:
        """The first block's eigenvectors, with the diagonal of all blocks in them."""
        first = blocks[0]
        total = torch.zeros_like(first.scale)
        for weight, one in zip(weights, blocks, strict=True):
            turned_in = (
                first.inputs.T @ one.inputs
            ).square()  # how much of each old direction lies in each new one
            turned_out = (first.outputs.T @ one.outputs).square()
            total += weight * turned_out @ one.scale @ turned_in.T
        return cls(first.inputs, first.outputs, total)


@dataclass(frozen=True, eq=False)
class Table(Block):
    """An embedding: sum_v f_v tau_v^T B tau_v, f how often each row of the table is read, B of the sensitivities."""

    word: ClassVar[str] = "table"
    often: Tensor
    outputs: Tensor

    def square(self, tau: Tensor) -> Tensor:
        """One product of the size of the table."""
        rows = tau.view(len(self.often), len(self.outputs))
        return (self.often.to(tau)[:, None] * (rows @ self.outputs.to(tau)) * rows).sum()


@dataclass(frozen=True, eq=False)
class Whole(Block):
    """A short parameter, such as a bias or the weight of a norm: tau^T G tau with the exact G (p, p)."""

    word: ClassVar[str] = "whole"
    matrix: Tensor

    def square(self, tau: Tensor) -> Tensor:
        """One product with G."""
        flat = tau.flatten()
        return flat @ (self.matrix.to(tau) @ flat)


@dataclass(frozen=True, eq=False)
class Diagonal(Block):
    """Sum_i d_i tau_i^2 with the exact diagonal of G."""

    word: ClassVar[str] = "diagonal"
    entries: Tensor

    def square(self, tau: Tensor) -> Tensor:
        """A sum over entries."""
        return (self.entries.to(tau) * tau.flatten().square()).sum()


BLOCKS: Mapping[str, type[Block]] = {
    one.word: one for one in (Kronecker, Thin, Rotated, Table, Whole, Diagonal)
}
