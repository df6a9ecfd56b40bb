"""The rank of a start: singular values of its matrices, and where a task's gradient lies among their singular vectors."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tauspan import models
from tauspan.core import params as named
from tauspan.core.arguments import checked
from tauspan.core.errors import MismatchError, UsageError
from tauspan.core.params import Params
from tauspan.core.report import Cell, Report, Table, provenance
from tauspan.core.results import Result
from tauspan.kernel.diagnose.rows import KernelSettings, task_kernels
from tauspan.kernel.diagnose.spectra import entropy_rank
from tauspan.models import Encoder
from tauspan.tasks import Task


@dataclass(frozen=True)
class Alignment:
    """The share of a gradient's squared norm in the leading singular spaces of a matrix W of shape (m, n).

    With W = U S V^T and G the gradient, left is |U_k^T G|^2 / |G|^2 and right |G V_k|^2 / |G|^2. A gradient that has
    nothing to do with W has k/m and k/n on average.

    Args:
        count: k, at most the rank of W.
        left: the share in the k leading left singular vectors.
        right: in the right ones.
        left_by_chance: k/m.
        right_by_chance: k/n.
    """

    count: int
    left: float
    right: float
    left_by_chance: float
    right_by_chance: float


@dataclass(frozen=True)
class MatrixRank:
    """How many singular values s_1 >= s_2 >= ... of a matrix count.

    Args:
        name: the parameter's.
        shape: (m, n); of a convolution (outputs, the rest).
        entropy: exp(-sum p log p), p = s^2 / sum s^2; as `effective_ranks` of the kernel W W^T.
        stable: sum s^2 / s_1^2 = |W|_F^2 / |W|_2^2; as `effective_ranks` of W W^T.
        frobenius: |W|_F.
        spectral: |W|_2 = s_1.
        alignment: of the gradient with the leading singular vectors; None without a gradient.
    """

    name: str
    shape: tuple[int, int]
    entropy: float
    stable: float
    frobenius: float
    spectral: float
    alignment: Alignment | None = None


@dataclass(frozen=True, kw_only=True)
class StartRanks(Result):
    """The ranks of each matrix, in the module's order.

    Args:
        matrices: at least one.
    """

    matrices: tuple[MatrixRank, ...]

    def __repr__(self) -> str:
        return f"StartRanks({len(self.matrices)} matrices)"

    @property
    def verdict(self) -> str:
        """The most and the least concentrated matrix, and the strongest alignment."""
        shares = {one.name: one.entropy / min(one.shape) for one in self.matrices}
        low, high = min(shares, key=lambda name: shares[name]), max(shares, key=lambda name: shares[name])
        text = (
            f"Entropy ranks from {shares[low]:.0%} of the full rank ({low}) to {shares[high]:.0%} ({high})."
        )
        times = {
            one.name: math.sqrt(one.alignment.left / one.alignment.left_by_chance
                                * one.alignment.right / one.alignment.right_by_chance)
            for one in self.matrices if one.alignment
        }  # fmt: skip
        if times:
            most = max(times, key=lambda name: times[name])
            text += (
                f" The gradient lies in the leading singular vectors {times[most]:.3g} times as much as by chance in "
                f"{most}, and {min(times.values()):.3g} to {times[most]:.3g} times over all."
            )
        return text

    def report(self) -> Report:
        """The verdict, and a row for each matrix."""
        rows: list[dict[str, Cell]] = []
        for one in self.matrices:
            row: dict[str, Cell] = {
                "matrix": one.name, "shape": f"{one.shape[0]} x {one.shape[1]}", "entropy": round(one.entropy, 1),
                "stable": round(one.stable, 1),
            }  # fmt: skip
            if one.alignment:
                found = one.alignment
                row |= {
                    "k": found.count, "left": f"{found.left:.3f} of {found.left_by_chance:.3f}",
                    "right": f"{found.right:.3f} of {found.right_by_chance:.3f}",
                }  # fmt: skip
            rows.append(row)
        note = (
            "Entropy: exp(-sum p log p), p = s^2 / sum s^2. Stable: |W|_F^2 / |W|_2^2. Left and right: share of the "
            "gradient's squared norm in the k leading singular vectors, of what chance gives."
        )
        result: dict[str, Any] = {"matrices": [_plain(one) for one in self.matrices]}
        return Report(
            "Ranks of the start", [Table("Matrices", rows, note)], dict(self.provenance), result=result,
            warnings=self.warnings, verdict=self.verdict,
        )  # fmt: skip


def _plain(one: MatrixRank) -> dict[str, Any]:
    return {**vars(one), "shape": list(one.shape), "alignment": one.alignment and vars(one.alignment)}


@checked
def start_ranks(
    module: nn.Module, params: str | Sequence[str] = "all", *, gradient: Params | None = None, top: int = 8
) -> StartRanks:
    """Entropy and stable rank of each matrix of theta0, and how a gradient lies to its leading singular vectors.

    Liu and others, "How connectivity structure shapes rich and lazy learning in neural circuits" (ICLR 2024), find that
    recurrent nets which start at a low rank leave the lazy regime further than those of full rank, unless the leading
    singular vectors already fit the task.

    Args:
        module: a plain module, an `Encoder` or a `Classifier`.
        params: of which parameters, as for `linearize`; those with two axes or more, and more than one row and column.
        gradient: named tensors, such as `task_gradient` gives or a task vector's deltas; it may lack some of the
            matrices.
        top: k; less where a matrix has a smaller rank.

    Raises:
        UsageError: no matrix among the parameters, a matrix that is zero, k below 1.
        MismatchError: a gradient of another shape, or of none of the matrices.
        NonFiniteError: NaN or infinity in a matrix or the gradient.

    Cost:
        A singular value decomposition of each matrix in float64, about 20 m n min(m, n) FLOPs.

    Example:
        >>> layer = nn.Linear(3, 2, bias=False)
        >>> with torch.no_grad():
        ...     _ = layer.weight.copy_(torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]]))
        >>> (one,) = start_ranks(layer, gradient={"weight": torch.ones(2, 3)}, top=1).matrices
        >>> one.stable, round(one.entropy, 3), round(one.alignment.left, 3), one.alignment.left_by_chance
        (1.25, 1.649, 0.5, 0.5)
    """
    if top < 1:
        raise UsageError(f"top={top}: at least one singular vector.")
    chosen = dict(matrices_of(module, params))
    if gradient is not None:
        _require_gradient(chosen, gradient)
    matrices = tuple(
        _rank(name, matrix, None if gradient is None else gradient.get(name), top)
        for name, matrix in chosen.items()
    )
    return StartRanks(matrices=matrices, provenance=provenance(params=params, top=top))


def matrices_of(module: nn.Module, params: str | Sequence[str]) -> Iterator[tuple[str, Tensor]]:
    """The parameters with more than one row and column, by name."""
    known, found = models.named_unique(models.core(module)[0]), False
    for name in models.select(module, params):
        tensor = known[name]
        if tensor.dim() > 1 and len(tensor) > 1 and tensor[0].numel() > 1:
            found = True
            named.require_finite({name: tensor}, type(module).__name__)
            if not tensor.any():
                raise UsageError(
                    f"{name!r} is zero and has no rank: leave it out by naming the others (`params=[...]`)."
                )
            yield name, tensor
    if not found:
        raise UsageError(
            f"params={params!r} picks no matrix of {type(module).__name__}: a rank needs more than one row and column."
        )


def _require_gradient(matrices: Mapping[str, Tensor], gradient: Params) -> None:
    named.require_finite(gradient, "the gradient")
    if not set(matrices) & set(gradient):
        raise MismatchError(
            f"the gradient holds none of the matrices: it has {next(iter(gradient), 'nothing')!r}, and they begin with "
            f"{next(iter(matrices))!r}. Give it under the module's own names, as `task_gradient` does."
        )
    for name in set(matrices) & set(gradient):
        if gradient[name].shape != matrices[name].shape:
            raise MismatchError(
                f"the gradient of {name!r} has shape {tuple(gradient[name].shape)}, and the matrix "
                f"{tuple(matrices[name].shape)}: give that of this module."
            )


def flat(tensor: Tensor) -> Tensor:
    """A parameter as a matrix in float64: its first axis, and all others."""
    return tensor.detach().double().cpu().flatten(1)


def _rank(name: str, matrix: Tensor, gradient: Tensor | None, top: int) -> MatrixRank:
    whole = flat(matrix)
    left, values, right = torch.linalg.svd(whole, full_matrices=False)
    squares = values.square()
    total, largest = float(squares.sum()), float(squares[0])
    found = None
    if gradient is not None and bool(gradient.any()):
        # the vectors of singular values that are 0 up to rounding are arbitrary
        seen = values > values[0] * max(whole.shape) * torch.finfo(matrix.dtype).eps
        found = _alignment(left, right, flat(gradient), min(top, int(seen.sum())))
    return MatrixRank(
        name, (whole.shape[0], whole.shape[1]), entropy_rank(squares), total / largest, math.sqrt(total),
        float(values[0]), found,
    )  # fmt: skip


def _alignment(left: Tensor, right: Tensor, gradient: Tensor, count: int) -> Alignment:
    whole, (rows, columns) = float(gradient.square().sum()), gradient.shape
    lefts = float((left[:, :count].T @ gradient).square().sum()) / whole
    rights = float((gradient @ right[:count].T).square().sum()) / whole
    return Alignment(count, lefts, rights, count / rows, count / columns)


@checked
def task_gradient(
    encoder: Encoder,
    task: Task,
    params: str | Sequence[str] = "all",
    settings: KernelSettings | None = None,
) -> dict[str, Tensor]:
    """The gradient at theta0 of the task's loss, summed over some rows, J^T dL/df, under the names of a task vector.

    Args:
        encoder: the pre-trained model.
        task: of classes or numbers, under its frozen head.
        params: the parameters, as for `linearize`.
        settings: which rows; their number, split and seed; None takes the defaults. `outputs` does not count.

    Raises:
        UsageError, DataError: as of `diagnose`.

    Cost:
        A forward and a backward pass over the rows, beside the checks of `TangentKernel`.

    Example:
        >>> import tauspan as ts
        >>> (task,) = ts.suite(["email_spam"])
        >>> some = KernelSettings(rows=4, reading=ts.Reading(batch_size=4, max_tokens=8))
        >>> found = task_gradient(ts.load("minilm"), task, "last:1", some)
        >>> tuple(found["encoder.layer.5.attention.self.query.weight"].shape)
        (384, 384)
    """
    (one,) = task_kernels(encoder, [task], params, settings or KernelSettings())
    kernel = one.kernel.of_outputs("all")
    with torch.no_grad():
        outputs = torch.cat([one.classifier(batch) for batch in one.batches])
    return kernel.pullback(task.objective.gradients(outputs, one.labels).flatten())
