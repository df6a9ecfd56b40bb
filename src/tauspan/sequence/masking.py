"""Vectors on entries of their own: fitted in closed form, dropped and grown in rounds, never where another task is."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from tauspan.kernel.operator.closed_form import closed_form, loss_problem
from tauspan.models import restrict
from tauspan.sequence.course import Course
from tauspan.sequence.masks import Masks, densities, moved, picked, require_disjoint, united
from tauspan.tasks import Task
from tauspan.vector import TaskVector

_DROP = 0.3  # of a task's entries, in the first round
_DECAY = 0.9  # of the momentum


def masked_vectors(course: Course) -> dict[str, TaskVector]:
    """By task, a vector in the space of its entries alone; no two tasks share one."""
    taken: dict[str, Masks] = {}
    made: dict[str, TaskVector] = {}
    for number, task in enumerate(course.tasks):
        taken[task.name], made[task.name] = _fitted(course, task, united(list(taken.values())), number)
    require_disjoint(taken)
    return made


def _fitted(course: Course, task: Task, taken: Masks, number: int) -> tuple[Masks, TaskVector]:
    """The entries of one task and its vector.

    The score of an entry is |J^T (r - J tau)|, the loss's gradient there, which is exact in the tangent regime.
    """
    options, size = course.options, len(course.tasks)
    problem = loss_problem(course.encoder, task, params=course.params, reading=course.reading)
    kernel, wanted = problem.kernel, problem.residual().double().flatten()
    gradient = kernel.pullback(wanted)
    shapes = {name: tuple(one.shape) for name, one in gradient.items()}
    density = 1 / (2 * size) if options.density is None else options.density
    counts = densities(shapes, density, options.spread, most=1 / size)
    by_score, seed = options.growth != "random", course.seed * size + number
    masks = picked(counts, shapes, scores=_sizes(gradient) if by_score else None, taken=taken, seed=seed)
    momentum: Mapping[str, Tensor] = gradient
    theta0 = kernel.tangent.theta0()
    for turn in range(options.rounds + 1):
        small = restrict(course.encoder, masks)
        fitted = closed_form(small, task, ridge=options.ridge, reading=course.reading)
        if turn == options.rounds:
            break
        own = fitted.vector.dense(course.encoder).fitted(course.encoder).deltas
        deltas = {name: own.get(name, torch.zeros(shapes[name])).to(theta0[name]) for name in shapes}
        now = kernel.pullback(wanted - kernel.push(deltas))
        momentum = {name: _DECAY * momentum[name] + one for name, one in now.items()}
        score = _sizes(now if options.growth == "gradient" else momentum) if by_score else None
        share = _DROP / 2 * (1 + math.cos(math.pi * turn / options.rounds))
        masks = moved(masks, deltas, share, scores=score, taken=taken, seed=seed + turn + 1)
    return masks, fitted.vector


def _sizes(gradient: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: one.abs() for name, one in gradient.items()}
