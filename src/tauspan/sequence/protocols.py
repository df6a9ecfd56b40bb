"""The protocols of tasks one after another: each is a function of a `Course`, and a row of `PROTOCOLS`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from tauspan.editing.model.edit import apply
from tauspan.kernel.operator.unlearning import RidgeFit
from tauspan.kernel.solvers.kernels import DenseKernel
from tauspan.kernel.solvers.regression import choose_ridge
from tauspan.kernel.solvers.solution import cholesky
from tauspan.models import Encoder
from tauspan.sequence.course import Course, FeatureMap, Learned, bytes_of
from tauspan.sequence.gaussians import ClassGaussians
from tauspan.sequence.masking import masked_vectors
from tauspan.tasks import Task
from tauspan.train import finetune
from tauspan.vector import TaskVector


@dataclass(frozen=True)
class Protocol:
    """One protocol.

    Args:
        learn: does it.
        about: what it does, in a sentence.
        kernel: whether it solves with the kernel of the training rows.
    """

    learn: Callable[[Course], Learned]
    about: str
    kernel: bool = False


def _size(vector: TaskVector) -> int:
    return sum(delta.numel() * delta.element_size() for delta in vector.deltas.values())


def _rows(task: Task, places: list[int] | None = None, labels: bool = True) -> int:
    """The bytes of some training rows, with 8 for each label."""
    split = task.split("train")
    part = split if places is None else split.take(places)
    return bytes_of(list(part.inputs)) + 8 * len(part) * labels


def _finetuned(course: Course) -> Learned:
    base = course.encoder
    point, stages = base, list[TaskVector]()
    for task in course.tasks:
        step = finetune(point, task, course.settings).task_vector.rebased(base)
        stages.append(stages[-1] + step if stages else step)
        point = cast(Encoder, apply(base, stages[-1]))
    return Learned(stages, {"weights": _size(stages[-1])})


def _stepwise(course: Course, target: Callable[[Tensor, slice], Tensor], protocol: str) -> Learned:
    """Each task alone, from what is asked of it beside what the earlier ones did."""
    alpha, alphas = torch.zeros(course.union.shape[0], dtype=torch.float64), []
    for task in course.tasks:
        span = course.union.spans[task.name]
        wanted = course.wanted(task.name) - target(alpha, span)
        alpha = alpha.clone()
        alpha[span] = (
            DenseKernel(course.union.between(task.name, task.name)).solve(wanted, course.ridge).alpha
        )
        alphas.append(alpha)
    stages = course.vectors(alphas, protocol)
    return Learned(stages, {"weights": _size(stages[-1])})


def _sum(course: Course) -> Learned:
    return _stepwise(course, lambda alpha, span: torch.zeros(()), "sum")


def _sequential(course: Course) -> Learned:
    return _stepwise(course, lambda alpha, span: course.union.matvec(alpha)[span], "sequential")


def _superposed(course: Course) -> Learned:
    """The increment of a task: (D K D + ridge)^-1 on its rows and on kept rows of earlier tasks, which are to stay.

    With all rows kept it is the increment of the optimum of all tasks together.
    """
    union = course.union
    alpha, alphas = torch.zeros(union.shape[0], dtype=torch.float64), []
    weight, kept = torch.zeros_like(alpha), 0
    for number, task in enumerate(course.tasks):
        span = union.spans[task.name]
        wanted, own = torch.zeros_like(alpha), weight.clone()
        own[span] = 1.0
        wanted[span] = course.wanted(task.name) - union.matvec(alpha)[span]
        places = own.nonzero().flatten()
        root = own[places].sqrt()
        matrix = root[:, None] * union.dense()[places[:, None], places[None]] * root
        solved = torch.cholesky_solve((root * wanted[places])[:, None], cholesky(matrix, course.ridge))[:, 0]
        alpha = alpha.clone()
        alpha[places] += root * solved
        alphas.append(alpha)
        rows = len(task.split("train"))
        count = min(course.options.kept, rows)
        generator = torch.Generator().manual_seed(course.seed + number)
        chosen = torch.randperm(rows, generator=generator)[:count].sort().values.tolist()
        weight[span].view(rows, -1)[chosen] = rows / count  # a few rows stand for all
        kept += _rows(task, chosen, labels=False)
    stages = course.vectors(alphas, "superposed")
    return Learned(stages, {"weights": _size(stages[-1]), "rows": kept})


def _joint(course: Course) -> Learned:
    """All tasks so far together: the solved system grows by the rows of each."""
    union, alphas = course.union, []
    fit: RidgeFit | None = None
    for task in course.tasks:
        span, wanted = union.spans[task.name], course.wanted(task.name)
        own = union.between(task.name, task.name)
        if fit is None:
            fit = RidgeFit.of(DenseKernel(own), wanted, course.ridge)
        else:
            fit = fit.grown(union.dense()[span, : span.start], own, wanted)
        alpha = torch.zeros(union.shape[0], dtype=torch.float64)
        alpha[: span.stop] = fit.alpha
        alphas.append(alpha)
    stages = course.vectors(alphas, "joint")
    memory = {"weights": _size(stages[-1]), "rows": sum(map(_rows, course.tasks))}
    return Learned(stages, {**memory, "system": cast(RidgeFit, fit).bytes})


def _masked(course: Course) -> Learned:
    """A vector for each task on entries of its own; their sum."""
    made = masked_vectors(course)
    whole = [vector.dense(course.encoder) for vector in made.values()]
    stages, total = [], whole[0]
    for place, vector in enumerate(whole):
        if place:  # a tensor without an entry of a task is not in its vector
            total = total.filled_like(vector) + vector.filled_like(total)
        stages.append(total)
    entries = sum(delta.numel() for vector in made.values() for delta in vector.deltas.values())
    return Learned(stages, {"weights": sum(map(_size, made.values())), "places": 8 * entries})


def _kernel(
    course: Course, rows_of: Callable[[Task, Tensor, Tensor, int], tuple[Tensor, Tensor, int]]
) -> Learned:
    """One linear map of features for all tasks, from rows of features: a system that grows by a task.

    The kernel between rows of two tasks is <z, z'> W_t W_t'^T, of the map D at 0. Each row counts as N_c / m rows.
    """
    seen: list[tuple[Tensor, Tensor]] = []  # scaled features, and readouts
    fit: RidgeFit | None = None
    stages, kept = [], 0
    for number, task in enumerate(course.tasks):
        split = task.split("train")
        z, labels, size = rows_of(task, course.features(task, split), split.labels, course.seed + number)
        counts = torch.bincount(split.labels, minlength=len(task.label_names)) / torch.bincount(
            labels, minlength=len(task.label_names)
        ).clamp(min=1)
        root = counts[labels].double().sqrt()[:, None]
        weight, _ = course.readout(task)
        wanted, scaled = (root * course.asked(task, z, labels)).flatten(), root * z
        own = torch.kron(scaled @ scaled.T, weight @ weight.T)
        if fit is None:
            first = DenseKernel(own)
            ridge = (
                course.options.ridge or choose_ridge(first, wanted).ridge
            )  # of another kernel than the others
            fit = RidgeFit.of(first, wanted, ridge)
        else:
            across = [torch.kron(scaled @ old.T, weight @ head.T) for old, head in seen]
            fit = fit.grown(torch.cat(across, 1), own, wanted)
        seen.append((scaled, weight))
        alphas = torch.split(fit.alpha, [len(old) * len(head) for old, head in seen])
        parts = [
            head.T @ alpha.view(len(old), -1).T @ old for (old, head), alpha in zip(seen, alphas, strict=True)
        ]
        stages.append(FeatureMap(torch.stack(parts).sum(0)))
        kept += size
    matrix = stages[-1].matrix
    memory = {"weights": 8 * matrix.numel(), "rows": kept, "system": cast(RidgeFit, fit).bytes}
    return Learned(stages, memory)


def _pseudo(course: Course) -> Learned:
    def drawn(task: Task, z: Tensor, labels: Tensor, seed: int) -> tuple[Tensor, Tensor, int]:
        found = ClassGaussians.of(z, labels, len(task.label_names), course.options.covariance)
        return *found.draw(course.options.drawn, seed), found.bytes

    return _kernel(course, drawn)


def _stored(course: Course) -> Learned:
    def chosen(task: Task, z: Tensor, labels: Tensor, seed: int) -> tuple[Tensor, Tensor, int]:
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
        places = torch.cat(
            [order[labels[order] == label][: course.options.drawn] for label in range(len(task.label_names))]
        )
        return z[places], labels[places], 8 * (z[places].numel() + len(places))

    return _kernel(course, chosen)


PROTOCOLS: Mapping[str, Protocol] = {
    "finetuned": Protocol(_finetuned, "ordinary fine-tuning, each task from where the last one ended"),
    "sequential": Protocol(_sequential, "the same in the tangent space, each to its optimum", kernel=True),
    "sum": Protocol(_sum, "the sum of vectors that each start from the base", kernel=True),
    "superposed": Protocol(
        _superposed, "increments that leave kept rows of earlier tasks where they are", kernel=True
    ),
    "joint": Protocol(_joint, "the optimum of all tasks so far, whose rows are all kept", kernel=True),
    "masked": Protocol(_masked, "the sum of vectors on entries that no two tasks share"),
    "pseudo": Protocol(_pseudo, "one map of features, from rows drawn from class Gaussians"),
    "stored": Protocol(_stored, "one map of features, from as many stored rows"),
}
