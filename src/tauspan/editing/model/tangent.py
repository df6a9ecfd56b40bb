"""`TangentModel`: the first-order model, whose outputs at all coefficients follow from one pass."""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from tauspan.core.choices import Point
from tauspan.core.measure import progress
from tauspan.core.params import require_finite_rows
from tauspan.editing.model.edited import Coefs, EditedModel
from tauspan.editing.model.token_tables import Tables, moving_table
from tauspan.models import Classifier
from tauspan.models.language import Language
from tauspan.tangent import Linearized, linearize
from tauspan.tangent.contributions import Advance, Contributions, contributions
from tauspan.tasks import Task
from tauspan.vector import TaskVector


class TangentModel(EditedModel):
    """f(x; theta0) + sum_d a_d J(x) direction_d: one pass over a split gives every choice, as outputs are affine in it.

    Cost:
        One pass of as many tangents as a task needs directions; then a contraction for each choice.
    """

    regimes = ("linear", "posthoc")
    tangent = True

    @staticmethod
    def applied(module: nn.Module, vector: TaskVector, scale: float, point: Point) -> nn.Module:
        """A tangent model with this tau."""
        tau = vector * scale
        names = list(tau.fitted(module, tangent=True).deltas)
        tangent = linearize(module, names, point if isinstance(module, Classifier) else None)
        tangent.load_task_vector(tau)
        tangent.head_point, tangent.label = point, tau.label
        return tangent

    def _begin(self) -> None:
        self._passes: dict[tuple[Task, str], Contributions] = {}
        self._parts: dict[tuple[Task, str, tuple[str, ...]], Contributions] = {}
        # by the tensors that move: models of the same tensors share one check
        self._tangents: dict[tuple[str, ...], Linearized] = {}
        self._tables: Tables | None = None

    def _language(self, used: Coefs) -> Language | None:
        """With the tables of all directions beside one another, the same at any coefficients."""
        if self._tables is None and self.encoder.language is not None:
            vectors = {name: self.directions.partial(name) for name in self.directions.names}
            moved = {
                name: moving_table(vector, self.encoder, self.fingerprint) for name, vector in vectors.items()
            }
            self._tables = Tables.of(self.encoder.language, moved)
        return None if self._tables is None else self._tables.language

    def affine(self, task: Task) -> bool:
        """Unless a head that normalises follows the linearisation point."""
        return self.point == "logits" or not self.head(task).normalize

    def read(self, needs: Mapping[Task, Sequence[str]], split: str) -> None:
        """One pass for each task that has not been read in all the directions it needs."""
        missing = {task: names for task, names in needs.items() if not self._has(task, split, names)}
        if missing:
            with progress(f"tangents on {split}", sum(len(task.split(split)) for task in missing)) as advance:
                for task, names in missing.items():
                    self._passed(task, split, names, advance)

    def passed(self, task: Task, split: str) -> Contributions:
        """What the pass over a split gave, after `read`."""
        return self._passes[task, split]

    def _has(self, task: Task, split: str, names: Sequence[str]) -> bool:
        return (task, split) in self._passes and set(names) <= set(self._passes[task, split].names)

    def _passed(self, task: Task, split: str, names: Sequence[str], advance: Advance) -> None:
        every = self.directions.names
        wanted = every if self.ahead else names or every[:1]  # theta0 alone is read with some direction
        vectors = {name: self.fitted(self.directions.partial(name)) for name in wanted}
        tensors = tuple(vectors[wanted[0]].deltas)
        if tensors not in self._tangents:
            self._tangents[tensors] = linearize(self.encoder, list(tensors))
        tangent = self._tangents[tensors].under(self.head(task), self.point)
        info = {"task": task.name, "split": split, "regime": self.regime}
        rows, labels = self.batches(task, split), self.targets(task, split)
        found = contributions(
            tangent, vectors, rows, labels, info=info, objective=self.objective(task), advance=advance
        )
        tables = self._tables if task.objective.headless else None
        self._passes[task, split] = found if tables is None else tables.beside(found)
        self._parts = {key: part for key, part in self._parts.items() if key[:2] != (task, split)}

    def _logits(self, task: Task, split: str, used: Coefs, about: str, advance: Advance) -> Tensor:
        if not self._has(task, split, list(used)):
            before = self._passes[task, split].names if (task, split) in self._passes else ()
            self._passed(task, split, list(dict.fromkeys([*before, *used])), advance)
        passed = self._passes[task, split]
        if len(used) < len(passed.names) - 1:  # maps ask for few of many directions, at hundreds of points
            names = tuple(used)
            if (task, split, names) not in self._parts:
                groups = {name: [name] for name in names or passed.names[:1]}
                self._parts[task, split, names] = passed.summed(groups)
            passed = self._parts[task, split, names]
        logits = passed.logits([used.get(name, 0.0) for name in passed.names])
        require_finite_rows(logits, about)
        return logits
