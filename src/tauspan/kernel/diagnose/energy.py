"""Local energy: are the eigenfunctions of a task's kernel large on the task's own inputs only, or elsewhere too?"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor

from tauspan.core.errors import MismatchError, UsageError, listed
from tauspan.kernel import Estimate, Kernel, Modes
from tauspan.kernel.solvers.estimates import finite, standard_error
from tauspan.kernel.solvers.solution import rounding_floor, vector_for

Chosen: TypeAlias = int | float | Sequence[int]


@dataclass(frozen=True, eq=False)
class Eigenfunctions:
    """Eigenfunctions of a kernel over a task's rows (its support), extended to any other input.

    The eigenpairs are those of K / n, n = N O: (1/n) K u_r = lam_r u_r, phi_r = sqrt(n) u_r on the support, so that
    the mean square of phi_r is 1, and phi_r(x) = k(x, X) u_r sqrt(n) / (n lam_r) elsewhere. The kernel is that at
    theta0: the tangent model never moves it.

    Args:
        values: lam_r, falling, shape (R).
        vectors: u_r as columns, shape (n, R).
        outputs: O.
    """

    values: Tensor
    vectors: Tensor
    outputs: int = 1

    def __repr__(self) -> str:
        return f"Eigenfunctions({len(self.values)} over {len(self.vectors) // self.outputs} rows)"

    @staticmethod
    def of(kernel: Kernel) -> "Eigenfunctions":
        """All eigenfunctions of a kernel whose eigenvalue is above rounding.

        Raises:
            UsageError: a kernel that is zero, not symmetric, or too large for a matrix.
            NonFiniteError: NaN or infinity in the kernel.
        """
        modes = Modes.of(kernel)
        n = len(modes.values)
        values = modes.values.flip(0) / n
        seen = values > rounding_floor(values)
        if not bool(seen.any()):
            raise UsageError(
                "the kernel is zero and has no eigenfunctions: no parameter moves these outputs."
            )
        return Eigenfunctions(values[seen], modes.vectors.flip(1)[:, seen], kernel.outputs)

    @property
    def support(self) -> Tensor:
        """phi_r on the support, shape (n, R)."""
        return self.vectors * math.sqrt(len(self.vectors))

    def at(self, cross: Tensor) -> Tensor:
        """phi_r at other inputs, shape (m, R), from k(x, X) of shape (m, n)."""
        if cross.dim() != 2 or cross.shape[1] != len(self.vectors):
            raise MismatchError(
                f"the kernel between other inputs and the support has shape {tuple(cross.shape)}, and the support has "
                f"{len(self.vectors)} rows x outputs: give (m, {len(self.vectors)})."
            )
        n = len(self.vectors)
        functions: Tensor = finite(cross, "the kernel's entries") @ self.vectors * n**0.5 / (n * self.values)
        return functions

    def coefficients(self, targets: Tensor) -> Tensor:
        """c_r = (1/n) sum_i phi_r(x_i) y_i of targets of shape (n) or (n, columns), shape (R) or (R, columns)."""
        found: Tensor = self.support.T @ targets.double() / len(self.vectors)
        return found

    def choose(self, which: Chosen, targets: Tensor | None = None) -> list[int]:
        """The numbers r of the chosen eigenfunctions, from 0.

        `which` is a count of the leading eigenfunctions (an int), a share of the largest |c_r| above which an
        eigenfunction is chosen (a float), or a list of numbers.

        Raises:
            UsageError: none chosen, one that does not exist, or a threshold without targets.
        """
        count = len(self.values)
        if isinstance(which, bool) or (isinstance(which, int) and not 1 <= which <= count):
            raise UsageError(f"which={which}: the first 1 to {count} eigenfunctions can be chosen.")
        if isinstance(which, int):
            return list(range(which))
        if isinstance(which, float):
            if targets is None or not 0 <= which < 1:
                raise UsageError(
                    f"which={which}: a share of the largest |c_r|, from 0 to below 1, needs targets; give them, or a "
                    "whole number for the first eigenfunctions."
                )
            if targets.numel() % len(self.vectors):
                raise MismatchError(
                    f"targets of shape {tuple(targets.shape)}, and the support has {len(self.vectors)} rows x outputs: "
                    "give as many, or columns of as many."
                )
            sizes = self.coefficients(targets.reshape(len(self.vectors), -1)).norm(dim=1)
            places: list[int] = (sizes > which * sizes.max()).nonzero().flatten().tolist()
            if not places:
                raise UsageError("the targets are zero: no eigenfunction has a coefficient. Give others.")
            return places
        chosen = list(which)
        outside = [str(r) for r in chosen if not 0 <= r < count]
        if not chosen or outside or len(set(chosen)) < len(chosen):
            raise UsageError(
                f"which={chosen}: name eigenfunctions from 0 to {count - 1}, each once (not {listed(outside)})."
            )
        return chosen


@dataclass(frozen=True, eq=False)
class LocalEnergy:
    """E(x) = sum over the chosen r of phi_r(x)^2, its mean over the outputs, at each row.

    Args:
        chosen: the eigenfunctions, by number from 0.
        support: on the task's rows, shape (N). Over all n eigenfunctions it is n everywhere, so a choice is essential.
        control: on other rows, shape (M).
    """

    chosen: Sequence[int]
    support: Tensor
    control: Tensor

    def __repr__(self) -> str:
        return (
            f"LocalEnergy({len(self.chosen)} eigenfunctions: {self.on_support.value:.3g} on {len(self.support)} own "
            f"rows, {self.on_control.value:.3g} on {len(self.control)} others)"
        )

    @property
    def on_support(self) -> Estimate:
        """The mean on the support, with its standard error over rows, which is None if there is one row only."""
        return _mean(self.support)

    @property
    def on_control(self) -> Estimate:
        """The mean on the control rows, with its standard error over rows."""
        return _mean(self.control)

    @property
    def ratio(self) -> Estimate:
        """Control over support: 0 where the eigenfunctions vanish off the task.

        It may exceed 1: an eigenfunction of small eigenvalue grows without bound away from the support.
        """
        support, control = self.on_support, self.on_control
        value = control.value / support.value
        spread = None
        if control.standard_error is not None and support.standard_error is not None:
            spread = (control.standard_error / support.value) ** 2
            spread += (value * support.standard_error / support.value) ** 2
            spread **= 0.5
        return Estimate(value, True, "exact on these rows", spread)


def _mean(values: Tensor) -> Estimate:
    error = standard_error(values) if len(values) > 1 else None
    return Estimate(float(values.mean()), True, "exact on these rows", error)


def local_energy(
    kernel: Kernel, cross: Tensor, which: Chosen = 20, targets: Tensor | None = None
) -> LocalEnergy:
    """Local energy of a task's eigenfunctions on its own rows against control rows.

    Args:
        kernel: symmetric, over the task's rows, N rows of O outputs.
        cross: k(control rows, task's rows), shape (M O, N O), under the same head.
        which: see `Eigenfunctions.choose`; not more than there are.
        targets: what the coefficients c_r are of, shape (N, O), (N O), or (N, C) where O = 1.

    Raises:
        UsageError: an impossible choice, a kernel that is zero, no control rows.
        MismatchError: a cross kernel of another width or of other outputs, targets of another length.
        NonFiniteError: NaN or infinity in a kernel.

    Cost:
        All eigenpairs, about 9 (N O)^3 FLOPs.

    Example:
        >>> from tauspan.kernel import DenseKernel
        >>> import torch
        >>> support = DenseKernel(torch.diag(torch.tensor([4.0, 1.0], dtype=torch.float64)))
        >>> energy = local_energy(support, torch.tensor([[2.0, 0.0]]), which=1)
        >>> [round(one.value, 6) for one in (energy.on_support, energy.on_control, energy.ratio)]
        [1.0, 0.5, 0.5]
    """
    functions = Eigenfunctions.of(kernel)
    if not cross.shape[0]:
        raise UsageError("there are no control rows: give inputs of another task.")
    if cross.shape[0] % kernel.outputs:
        raise MismatchError(
            f"the kernel between control rows and the task's has {cross.shape[0]} rows, which is no multiple of the "
            f"kernel's {kernel.outputs} outputs per row: build both with the same outputs."
        )
    if targets is not None and kernel.outputs > 1:
        targets = vector_for(kernel, targets, "the target")
    chosen = functions.choose(which, targets)

    def summed(values: Tensor) -> Tensor:
        energy: Tensor = values[:, chosen].square().sum(1).view(-1, kernel.outputs).mean(1)
        return energy

    return LocalEnergy(chosen, summed(functions.support), summed(functions.at(cross)))
