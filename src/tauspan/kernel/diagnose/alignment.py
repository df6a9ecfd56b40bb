"""How well a kernel fits labels, and how close two kernels or two tasks' tangent features are."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tauspan.core.errors import MismatchError, UsageError
from tauspan.kernel import EigenPairs, Estimate, Kernel
from tauspan.kernel.solvers.estimates import (
    at_least,
    exactly,
    finite,
    finite_entries,
    require_square,
    signs,
    standard_error,
    times,
)
from tauspan.kernel.solvers.solution import matrix_of, rounding_floor

_Map = Callable[[Tensor], Tensor]


def kernel_target_alignment(
    kernel: Kernel, targets: Tensor, probes: int | None = None, seed: int = 0
) -> Estimate:
    """The cosine <K, Y Y^T> / (|K| |Y Y^T|) in the Frobenius inner product (KTA); at most 1.

    Args:
        kernel: square, N rows of O outputs.
        targets: shape (N, O) or (N O), one number for each entry, so that Y is a column; or (N, C) where O = 1, for
            instance one-hot labels.
        probes: estimate |K| from so many products; None is exact and takes the matrix.
        seed: of the probes.

    Raises:
        UsageError: targets of another length, all zero, or a kernel that is zero.
        NonFiniteError: NaN or infinity in the kernel or the targets.

    Example:
        >>> from tauspan.kernel import DenseKernel
        >>> y = torch.tensor([1.0, -1.0, 1.0])
        >>> round(kernel_target_alignment(DenseKernel(torch.outer(y, y)), y).value, 6)
        1.0
    """
    return _aligned(kernel, targets, probes, seed, lambda values: values)


def centred_alignment(kernel: Kernel, targets: Tensor, probes: int | None = None, seed: int = 0) -> Estimate:
    """`kernel_target_alignment` of H K H and H Y (CKA), H = I - 1 1^T / N over the rows, for each output.

    Adding a constant to the targets, or one vector to all tangents, does not change it. Arguments and errors are those
    of `kernel_target_alignment`.

    Example:
        >>> from tauspan.kernel import DenseKernel
        >>> y = torch.tensor([1.0, -1.0, 1.0])
        >>> round(centred_alignment(DenseKernel(torch.outer(y, y) + 5), y + 3).value, 6)
        1.0
    """
    outputs = kernel.outputs

    def centre(values: Tensor) -> Tensor:
        shaped = values.view(-1, outputs, values.shape[1])
        return (shaped - shaped.mean(0, keepdim=True)).flatten(0, 1)

    return _aligned(kernel, targets, probes, seed, centre)


def _aligned(kernel: Kernel, targets: Tensor, probes: int | None, seed: int, centre: _Map) -> Estimate:
    n = require_square(kernel, "an alignment")
    y = finite(targets.detach().double().cpu(), "the targets")
    if y.numel() == n:
        y = y.reshape(n, 1)
    elif y.dim() != 2 or len(y) != n:
        raise UsageError(
            f"targets of shape {tuple(targets.shape)}: the kernel has {kernel.samples} rows of {kernel.outputs} outputs, "
            "so give a number for each, or several columns where it has one output."
        )
    y = centre(y)
    if probes is None:
        matrix = centre(centre(finite_entries(kernel)).T)
        inner, squared, spread = float((y * (matrix @ y)).sum()), float(matrix.square().sum()), 0.0
    else:
        z = signs(n, at_least(probes, 2), seed)
        inner = float((y * times(kernel, y)).sum())
        norms = centre(times(kernel, centre(z))).square().sum(0)
        squared, spread = float(norms.mean()), standard_error(norms)
    size = float((y.T @ y).norm())
    if not size or not squared:
        what = "targets are" if not size else "kernel is"
        raise UsageError(
            f"the {what} zero (after centring, if that was asked for): no direction to compare. Give rows of two "
            "classes at least."
        )
    value = inner / (size * math.sqrt(squared))
    if probes is None:
        return exactly(value)
    return Estimate(value, False, "probes", abs(value) * spread / (2 * squared))


@dataclass(frozen=True)
class LabelAlignment:
    """Label-gradient alignment with its companions.

    Args:
        value: LGA, between -1 and 1.
        mean: the mean entry of K.
        condition: lambda_max / lambda_min; infinite for a singular kernel.
        norm: |K|_F.
    """

    value: Estimate
    mean: float
    condition: float
    norm: float


def label_gradient_alignment(kernel: Kernel, labels: Tensor) -> LabelAlignment:
    """LGA = <K - mean K, Y - mean Y> / (norms), Y_ij = 1 for rows of one class and -1 for others; exact.

    As published, K is the kernel of the summed logits (`outputs="sum"`) and of weights only, without the classifier.
    Invariant under a K + b with a > 0.

    Args:
        kernel: square, with one output per row.
        labels: shape (N,).

    Raises:
        UsageError: several outputs, another number of labels, one class only, or a constant kernel.

    Example:
        >>> from tauspan.kernel import DenseKernel
        >>> labels = torch.tensor([0, 0, 1])
        >>> same = torch.where(labels[:, None] == labels, 1.0, -1.0)
        >>> round(label_gradient_alignment(DenseKernel(3 * same + 2), labels).value.value, 6)
        1.0
    """
    if kernel.outputs != 1 or labels.shape != (kernel.samples,):
        raise UsageError(
            f"label-gradient alignment of {kernel.samples} rows, {kernel.outputs} outputs each, with labels of shape "
            f"{tuple(labels.shape)}: it takes a kernel of one output (outputs='sum') and a label for each row."
        )
    matrix = matrix_of(kernel)
    same = torch.where(labels[:, None] == labels[None], 1.0, -1.0).double()
    moved, wanted = matrix - matrix.mean(), same - same.mean()
    sizes = float(moved.norm()), float(wanted.norm())
    if not wanted.any() or sizes[0] <= len(matrix) * torch.finfo(torch.float64).eps * float(matrix.norm()):
        what = "all rows have one class" if not wanted.any() else "the kernel is constant"
        raise UsageError(f"{what}: label-gradient alignment compares rows that differ. Give other rows.")
    value = float((moved * wanted).sum()) / (sizes[0] * sizes[1])
    eigenvalues = torch.linalg.eigvalsh(matrix)
    least = float(eigenvalues[0])
    floor = rounding_floor(eigenvalues)
    condition = float(eigenvalues[-1]) / least if least > floor else math.inf
    return LabelAlignment(exactly(value), float(matrix.mean()), condition, float(matrix.norm()))


# -- between tasks -----------------------------------------------------------------------------------------------


def cross_task_alignment(first: Tensor, second: Tensor, cross: Tensor) -> Estimate:
    """|K_st|_F / sqrt(|K_ss|_F |K_tt|_F): 0 where no tangent of one task meets one of the other; exact.

    Args:
        first: K_ss, shape (n, n).
        second: K_tt, shape (m, m).
        cross: K_st, shape (n, m).

    Raises:
        MismatchError: a cross kernel of another shape.
        UsageError: a kernel that is zero.
        NonFiniteError: NaN or infinity in a kernel.

    Example:
        >>> cross_task_alignment(torch.eye(2), torch.eye(2), torch.eye(2)).value
        1.0
    """
    _require_between(len(first), len(second), cross)
    for kernel in (first, second):
        finite(kernel, "the entries of a task's kernel")
    own = float(first.double().norm()) * float(second.double().norm())
    if not own:
        raise UsageError(
            "a task's kernel is zero: no parameter moves its outputs, so there is nothing to align."
        )
    return exactly(float(cross.double().norm()) / math.sqrt(own))


def principal_angles(first: EigenPairs, second: EigenPairs, cross: Tensor) -> Tensor:
    """Angles in radians, rising, between span{J_s^T u} and span{J_t^T v} of two tasks' leading eigenvectors.

    With orthonormal bases J^T u / sqrt(lam), their cosines are the singular values of
    Lam_s^(-1/2) U^T K_st V Lam_t^(-1/2). They are angles between tangent features, in parameter space.

    Args:
        first: eigenpairs of K_ss.
        second: eigenpairs of K_tt.
        cross: K_st.

    Raises:
        MismatchError: a cross kernel of another shape.
        UsageError: an eigenvalue that is 0 up to rounding, whose direction is not known.
        NonFiniteError: NaN or infinity in the cross kernel.

    Example:
        >>> from tauspan.kernel import DenseKernel
        >>> from tauspan.kernel.solvers.eigenpairs import eigenpairs
        >>> pairs = eigenpairs(DenseKernel(torch.eye(2, dtype=torch.float64)), 1)
        >>> principal_angles(pairs, pairs, torch.zeros(2, 2))
        tensor([1.5708], dtype=torch.float64)
    """
    _require_between(len(first.vectors), len(second.vectors), cross)
    for pairs in (first, second):
        floor = len(pairs.vectors) * torch.finfo(torch.float64).eps * float(pairs.values.max())
        if float(pairs.values.min()) <= floor:
            known = int((pairs.values > floor).sum())
            raise UsageError(
                f"{len(pairs.values)} eigenpairs of a kernel of rank {known}: compare {known} or fewer."
            )
    inner = first.vectors.T @ cross.double() @ second.vectors
    cosines = torch.linalg.svdvals(inner / first.values.sqrt()[:, None] / second.values.sqrt()[None])
    angles: Tensor = cosines.clamp(max=1).acos()
    return angles


def _require_between(rows: int, columns: int, cross: Tensor) -> None:
    finite(cross, "the entries of the kernel between the tasks")
    if cross.shape != (rows, columns):
        raise MismatchError(
            f"the kernel between the tasks has shape {tuple(cross.shape)}, and the tasks' own have {rows} and {columns} "
            "rows: build all from the same rows and outputs."
        )
