"""`Course`: what all protocols share of some tasks in an order, and what a protocol returns."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tauspan.core.reading import Reading
from tauspan.kernel.operator.closed_form import loss_problem, require_certified, task_vectors
from tauspan.kernel.operator.losses import LossProblem, squared_residual
from tauspan.kernel.operator.union import UnionKernel
from tauspan.kernel.solvers.regression import choose_ridge
from tauspan.models import Encoder, Head
from tauspan.sequence.options import Options
from tauspan.tangent.contributions import in_order
from tauspan.tasks import Split, Task, build_head
from tauspan.tasks.batches import batches
from tauspan.train import Settings
from tauspan.vector import TaskVector


@dataclass(frozen=True, eq=False)
class FeatureMap:
    """A model that moves features alone, f(x) = head_t((1 + D) z(x)) with one D for all tasks: last-layer tangents.

    Args:
        matrix: D, shape (d, d), float64.
    """

    matrix: Tensor


@dataclass(frozen=True)
class Learned:
    """What a protocol made.

    Args:
        stages: the model after each task, all of one kind: a vector of the base, or a map of features.
        memory: bytes that are kept after the last task beside the pre-trained model, by what they are.
    """

    stages: Sequence[TaskVector] | Sequence[FeatureMap]
    memory: Mapping[str, int]


@dataclass(frozen=True, eq=False)
class Course:
    """Tasks in the order in which they are learnt, with what closed forms read of them, computed once.

    Args:
        encoder: the pre-trained one.
        tasks: in their order.
        options: of the protocols.
        settings: of fine-tuning.
        params: which parameters move.
        reading: batches and cuts.
        seed: of whatever is drawn.
    """

    encoder: Encoder
    tasks: Sequence[Task]
    options: Options
    settings: Settings
    params: str | Sequence[str]
    reading: Reading
    seed: int

    @cached_property
    def _problems(self) -> dict[str, LossProblem]:
        return {
            task.name: loss_problem(self.encoder, task, params=self.params, reading=self.reading)
            for task in self.tasks
        }

    @cached_property
    def union(self) -> UnionKernel:
        """The kernel of the training rows of all tasks; the matrix is computed here."""
        union = UnionKernel({name: problem.kernel for name, problem in self._problems.items()})
        union.dense()
        return union

    def wanted(self, name: str) -> Tensor:
        """r_t: what the squared loss asks of the task's outputs, shape (N C)."""
        return self._problems[name].residual().double().flatten()

    @cached_property
    def ridge(self) -> float:
        """The ridge of all closed forms."""
        if self.options.ridge is not None:
            return self.options.ridge
        first = self.tasks[0].name
        return choose_ridge(self.union.own(first), self.wanted(first)).ridge

    def vectors(self, alphas: Sequence[Tensor], protocol: str) -> list[TaskVector]:
        """J^T alpha for the alpha after each task; the last is compared with K alpha."""
        seen = [[task.name for task in self.tasks[: number + 1]] for number in range(len(alphas))]
        named = [(protocol, {"tasks": names, "protocol": protocol}) for names in seen]
        made = task_vectors(self.union, alphas, named)
        if self.union.check != "off":
            require_certified(self.union, alphas[-1:], made[-1:])
        return made

    def head(self, task: Task) -> Head:
        """The task's frozen head."""
        return build_head(task, self.encoder, max_tokens=self.reading.max_tokens)

    @torch.no_grad()
    def features(self, task: Task, split: Split) -> Tensor:
        """What the head's linear map reads, shape (N, d), float64: features, of unit length if the head makes them so."""
        cut = task.tokens(self.reading.max_tokens)
        parts = [
            (places, self.encoder(batch).double().cpu())
            for places, batch in batches(self.encoder, split, cut, self.reading.batch_size, task.objective)
        ]
        found = in_order(parts, 0)
        return torch.nn.functional.normalize(found, dim=1) if self.head(task).normalize else found

    def readout(self, task: Task) -> tuple[Tensor, Tensor]:
        """The weight with its factor, shape (C, d), and the bias, shape (C,), of the task's head."""
        head = self.head(task)
        weight = head.scale * head.weight.double().cpu()
        return weight, torch.zeros(len(weight)).double() if head.bias is None else head.bias.double().cpu()

    def asked(self, task: Task, features: Tensor, labels: Tensor) -> Tensor:
        """What the squared loss asks of the logits of some features, shape (N, C)."""
        weight, bias = self.readout(task)
        return squared_residual(features @ weight.T + bias, labels, self.head(task).scale)


def bytes_of(rows: Sequence[Any]) -> int:
    """The bytes of some inputs as they are: of texts in UTF-8, of tensors and images in their own dtype."""
    total = 0
    for row in rows:
        if isinstance(row, str):
            total += len(row.encode())
        elif isinstance(row, Tensor):
            total += row.numel() * row.element_size()
        else:
            total += np.asarray(row).nbytes
    return total
