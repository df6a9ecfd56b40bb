"""`EditedModel`: f at theta0 and any coefficients of some directions; one class for each way to edit."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import partial
from typing import ClassVar, TypeAlias

import torch
from torch import Tensor, nn

from tauspan import models
from tauspan.core.choices import EditRegime, Point
from tauspan.core.errors import listed
from tauspan.core.measure import progress, underway
from tauspan.core.params import require_finite_rows
from tauspan.core.reading import Reading
from tauspan.editing.model.below import Below, of_rows
from tauspan.editing.model.directions import Directions, require_numbers
from tauspan.editing.model.outputs import Targets, outputs
from tauspan.editing.model.regime import point_of
from tauspan.editing.model.token_tables import Tables, moving_table
from tauspan.models import Classifier, Encoder, Head, Origin
from tauspan.models.intact import Intact
from tauspan.models.language import Language
from tauspan.objectives import Objective
from tauspan.tangent import Linearized, linearize
from tauspan.tangent.contributions import Advance, Contributions, contributions, silent
from tauspan.tasks import Task, build_head
from tauspan.tasks.batches import Batches, batches
from tauspan.tasks.reference import TaskTargets
from tauspan.vector import TaskVector, confined

Coefs = Mapping[str, float]  # by direction; a direction that is not named counts as 0


_Asked: TypeAlias = tuple[Task, str, tuple[tuple[str, float], ...]]


def _used(coefficients: Coefs) -> tuple[tuple[str, float], ...]:
    return tuple(sorted((name, value) for name, value in coefficients.items() if value))


class EditedModel(ABC):
    """The logits of f at theta0 + sum_d a_d direction_d on the rows of tasks, for any coefficients a.

    Every task is read under its frozen head, which comes from the pre-trained encoder. A regime is one final class:
    it says how logits follow from coefficients, and whether they are affine in them.

    Args:
        encoder: the pre-trained encoder at theta0; it is never changed.
        directions: task vectors by name, whole or cut into groups of tensors; without any, the model is f(x; theta0).
        regime: how the vectors edit.
        reading: batches, where texts are cut, and the linearisation point.
        ahead: read a split in all directions at once, so that later questions need no pass of their own.

    Raises:
        BaseMismatchError: a vector starts from another model.
        UsageError: vectors that were made at different linearisation points.
    """

    regimes: ClassVar[tuple[EditRegime, ...]]
    tangent: ClassVar[bool]  # the vectors move only parameters that J(x) tau depends on

    def __init__(
        self,
        encoder: Encoder,
        directions: Directions,
        regime: EditRegime,
        reading: Reading,
        ahead: bool = False,
    ) -> None:
        self.directions, self.regime, self.reading = directions, regime, reading
        self.encoder = confined(encoder, directions.vectors.values())
        self.ahead = ahead
        self.point = point_of(list(directions.vectors.values()), reading.point)
        self.fingerprint = models.fingerprint_of(encoder)
        for vector in directions.vectors.values():
            self.fitted(vector)
        self._heads: dict[Task, Head] = {}
        self._prepared: dict[tuple[Task, str], Batches] = {}
        self._targets: dict[tuple[Task, str], Tensor] = {}
        self._classes: dict[_Asked, Tensor] = {}
        self._scores: dict[_Asked, Tensor] = {}
        self._begin()

    # -- what regimes define ---------------------------------------------------------------------------------

    @abstractmethod
    def _begin(self) -> None:
        """Set up what the regime keeps between questions."""

    @abstractmethod
    def affine(self, task: Task) -> bool:
        """Whether the task's logits are affine in the coefficients."""

    @abstractmethod
    def _logits(self, task: Task, split: str, used: Coefs, about: str, advance: Advance) -> Tensor:
        """The logits, checked to be finite; `about` says in words whose they are."""

    @abstractmethod
    def _language(self, used: Coefs) -> Language | None:
        """What makes losses of the outputs of a language model at these coefficients."""

    @abstractmethod
    def read(self, needs: Mapping[Task, Sequence[str]], split: str) -> None:
        """Read a split ahead, in one pass for each task: which directions it needs."""

    @staticmethod
    @abstractmethod
    def applied(module: nn.Module, vector: TaskVector, scale: float, point: Point) -> nn.Module:
        """A module edited by scale * vector, for `tauspan.apply`; `module` is never changed."""

    # -- what all of them give -------------------------------------------------------------------------------

    def logits(self, task: Task, split: str, coefficients: Coefs, advance: Advance = silent) -> Tensor:
        """Logits (N, K) of one task on one split.

        Raises:
            UsageError: a coefficient is no finite number.
            NonFiniteError: a row's logits are NaN or infinite.
        """
        require_numbers(coefficients)
        used = {name: value for name, value in coefficients.items() if value}
        at = " + ".join(f"{value:g} x {name!r}" for name, value in used.items()) or "theta0"
        about = f"the logits of {task.name!r} on {split} at {at}"
        return self._logits(task, split, used, about, advance)

    def classes(self, task: Task, split: str, coefficients: Coefs) -> Tensor:
        """The class of the largest logit of each row, shape (N,); computed once for each choice of coefficients."""
        key = (task, split, _used(coefficients))
        if key not in self._classes:
            self._classes[key] = self.logits(task, split, dict(key[2])).argmax(-1).int()
        return self._classes[key]

    def scores(self, task: Task, split: str, coefficients: Coefs) -> Tensor:
        """What the task's metric is made of, for each row, shape (N,), float64: of classes, whether the row is right."""
        labels = self.targets(task, split)
        if task.classes:  # whose classes take a quarter of the memory
            return (self.classes(task, split, coefficients) == labels).double()
        key = (task, split, _used(coefficients))
        if key not in self._scores:
            at = dict(key[2])
            self._scores[key] = self.objective(task, at).scores(self.logits(task, split, at), labels)
        return self._scores[key]

    def metric(self, task: Task, split: str, coefficients: Coefs) -> float:
        """The metric of one task on one split: accuracy, where its rows have classes."""
        return task.objective.summary(float(self.scores(task, split, coefficients).mean()))

    def loss(self, task: Task, split: str, coefficients: Coefs, targets: Targets = "label") -> float:
        """Mean loss of one task on one split, to its targets or to those of a model that has forgotten, in float64."""
        logits, labels = self.logits(task, split, coefficients).double(), self.targets(task, split)
        if targets == "wrong":
            labels = task.objective.forgotten(labels, logits.shape[-1])
        return float(self.objective(task, coefficients).losses(logits, labels).mean())

    def objective(self, task: Task, coefficients: Coefs | None = None) -> Objective:
        """The task's objective, with what it reads of the model at these coefficients."""
        if not task.objective.headless:
            return task.objective
        return task.objective.bound(self._language(dict(_used(coefficients or {}))))

    def targets(self, task: Task, split: str) -> Tensor:
        """What the losses of a split's rows read."""
        if (task, split) not in self._targets:
            task.objective.bound(self.encoder.language)  # raises for a model that the objective cannot read
            self._targets[task, split] = TaskTargets(task, self.encoder, self.reading.max_tokens)(split)
        return self._targets[task, split]

    def head(self, task: Task) -> Head:
        """The task's frozen head."""
        if task not in self._heads:
            self._heads[task] = build_head(task, self.encoder, max_tokens=self.reading.max_tokens)
        return self._heads[task]

    def make_heads(self, tasks: Sequence[Task]) -> None:
        """Make the heads of these tasks now, and say so while it lasts."""
        with underway("heads"):
            for task in tasks:
                self.head(task)

    def fitted(self, vector: TaskVector) -> TaskVector:
        """A vector as the encoder takes it in this regime: under the names of its memory."""
        return vector.fitted(self.encoder, tangent=self.tangent, base=self.fingerprint)

    def batches(self, task: Task, split: str) -> Batches:
        """The split's batches, encoded once."""
        if (task, split) not in self._prepared:
            rows, tokens = task.split(split), task.tokens(self.reading.max_tokens)
            self._prepared[task, split] = batches(
                self.encoder, rows, tokens, self.reading.batch_size, task.objective
            )
        return self._prepared[task, split]


class OrdinaryModel(EditedModel):
    """f(x; theta0 + sum_d a_d direction_d): run anew at each choice, weights set in place on one working copy.

    Cost:
        One forward pass over the split for each choice of coefficients, through the blocks from the first edited one on
        once the first choice has run them all; see `Below`.
    """

    regimes = ("standard",)
    tangent = False

    @staticmethod
    def applied(module: nn.Module, vector: TaskVector, scale: float, point: Point) -> nn.Module:
        """A copy with other weights, of the same class."""
        own = vector.fitted(module)
        edited = models.working_copy(module)
        _tell_kept(edited)
        _set_weights(edited, module, own, scale)
        encoder, base = models.encoder_in(edited), models.encoder_in(module)
        if encoder is not None and base is not None:
            encoder.origin = Origin.of(base)
            encoder.edit = " + ".join(filter(None, [base.edit, f"{scale:g} {vector.label}"]))
            if encoder.home is not None:
                encoder.home = encoder.home.moved(own.deltas, scale)
            if encoder.language is not None:
                encoder.language = encoder.language.moved(own.deltas, scale)
        return edited

    def _begin(self) -> None:
        self._copy: Encoder | None = None
        self._at: Coefs | None = None
        self._below: Below | None = None

    def affine(self, task: Task) -> bool:
        """It is not known to be."""
        return False

    def read(self, needs: Mapping[Task, Sequence[str]], split: str) -> None:
        """Nothing can be read ahead."""

    def _logits(self, task: Task, split: str, used: Coefs, about: str, advance: Advance) -> Tensor:
        edited = self._edited(used)
        model, run = Classifier(edited, self.head(task)), None
        if self._below:
            run = partial(self._below, model)
        with models.eval_mode(edited), torch.inference_mode():
            return outputs(model, self.batches(task, split), advance, about, run)

    def classes_of(self, task: Task, split: str, coefficients: Coefs, rows: Tensor) -> Tensor:
        """The classes of some rows, shape (n,), where `rows` (N,) says which; the others are not computed."""
        edited = self._edited({name: value for name, value in coefficients.items() if value})
        model, found = Classifier(edited, self.head(task)), torch.zeros(len(rows), dtype=torch.int)
        run = self._below.part if self._below else of_rows
        wanted = set(rows.nonzero()[:, 0].tolist())
        with models.eval_mode(edited), torch.inference_mode(), Intact(model)():
            for places, batch in self.batches(task, split):
                inside = [at for at, place in enumerate(places) if place in wanted]
                if inside:
                    logits = run(model, batch, inside)
                    require_finite_rows(logits, f"the logits of {task.name!r} on {split}")
                    found[[places[at] for at in inside]] = logits.argmax(-1).int().cpu()
        return found[rows]

    def _language(self, used: Coefs) -> Language | None:
        """With the table of the edited model."""
        return self._edited(used).language

    def _moved(self) -> set[str]:
        """The parameters that some direction moves."""
        fitted = (self.fitted(self.directions.partial(name)) for name in self.directions.names)
        return {name for one in fitted for name, delta in one.deltas.items() if delta.any()}

    def _edited(self, used: Coefs) -> Encoder:
        if not self.directions.vectors:
            return self.encoder
        if self._copy is None:
            self._copy = models.working_copy(self.encoder).eval()
            if self.encoder.inputs.modality != "image":  # whose batches are made anew each time
                self._below = Below(self._copy, self._moved())
        if self._at != used:
            total = self.directions.combined(used)
            _set_weights(self._copy, self.encoder, self.fitted(total), 1.0)
            if self.encoder.language is not None:
                moved = moving_table(total, self.encoder, self.fingerprint)
                self._copy.language = self.encoder.language.moved(moved)
            self._at = dict(used)
        return self._copy


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


MODELS: tuple[type[EditedModel], ...] = (OrdinaryModel, TangentModel)


def model_kind(regime: EditRegime) -> type[EditedModel]:
    """The class that edits in a regime."""
    (kind,) = (kind for kind in MODELS if regime in kind.regimes)
    return kind


def edited_model(
    encoder: Encoder,
    directions: Directions,
    regime: EditRegime,
    reading: Reading = Reading(),
    ahead: bool = False,
) -> EditedModel:
    """The edited model of a regime; see `EditedModel`."""
    return model_kind(regime)(encoder, directions, regime, reading, ahead)


def _tell_kept(edited: nn.Module) -> None:
    inner, _ = models.core(edited)
    kept = models.kept_outside(inner)
    if kept:
        warnings.warn(
            f"{type(inner).__name__} keeps tensors outside its parameters and buffers ({listed(kept)}), and the edited "
            "copy keeps the same. If an earlier call has made them from weights, they are those of the old "
            "weights: edit a module that nobody has called yet, or empty these places in the copy.",
            RuntimeWarning,
            stacklevel=5,
        )


def _set_weights(edited: nn.Module, base: nn.Module, vector: TaskVector, scale: float) -> None:
    """Set a copy's weights to theta0 + scale * tau in place; `base` is only read, and the vector is fitted to it."""
    origin = models.state_of(base)
    for name, tensor in models.state_of(edited).items():
        if name in vector.deltas:
            tensor.copy_(vector.moved(name, origin[name], scale))
