"""`Recipe`: a whole experiment as strict YAML. An unknown key is an error that names the nearest one."""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import yaml

from tauspan.core.errors import RecipeError, listed, nearest
from tauspan.core.schema import Document

HeadFrom: TypeAlias = Literal["auto", "prompts", "prototypes", "probe"]
Reference: TypeAlias = Literal["joint", "attention"]


def _refuse_twice(key: str, values: Sequence[str]) -> None:
    if len(set(values)) < len(values):
        raise RecipeError(f"{key}: {list(values)}: none may stand twice.")


@dataclasses.dataclass(frozen=True)
class Rows:
    """How many rows of each split are used; None takes all."""

    train: int | None = None
    validation: int | None = None
    test: int | None = None


@dataclasses.dataclass(frozen=True)
class Training:
    """How vectors are fine-tuned; the names are those of `tauspan.train.Settings`.

    `epochs_by_task` gives some tasks epochs of their own, by the names that stand in `tasks`.
    """

    params: str | tuple[str, ...] = "all"
    epochs: int = 1
    max_steps: int | None = None
    batch_size: int = 32
    accumulation: int = 1
    warmup: float = 0.1
    weight_decay: float = 0.0
    decay_toward: Literal["base", "zero"] = "base"
    clip: float = 1.0
    label_smoothing: float = 0.0
    lr_standard: float | None = None
    lr_linear: float | None = None
    augment: Literal["none", "crop"] = "none"
    epochs_by_task: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, epochs in self.epochs_by_task.items():
            if epochs < 1:
                raise RecipeError(f"finetune.epochs_by_task.{name}: {epochs}: it must be at least 1.")


@dataclasses.dataclass(frozen=True)
class Negation:
    """Which tasks are forgotten, and the share of control accuracy to keep.

    `controls` are tasks that are only kept, never trained on; where none are named, the recipe's other tasks are.
    """

    targets: tuple[str, ...] = ()
    floor: float = 0.95
    controls: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _refuse_twice("negate.controls", self.controls)
        if not 0 <= self.floor <= 1:
            raise RecipeError(f"negate.floor: {self.floor}: it is a share, between 0 and 1.")


@dataclasses.dataclass(frozen=True)
class Maps:
    """Which pairs of tasks get a map of the disentanglement error, with the first seed's vectors; see `disentanglement`.

    `regimes` None takes all of the recipe's, `grid` None the default one, `rows` None all test rows. `drift` also
    draws maps whose axes are the drift |J tau| / |f| of each vector alone instead of its coefficient, so that regimes
    are compared where they move the outputs equally far.
    """

    pairs: tuple[tuple[str, ...], ...] | Literal["all"] = ()
    grid: tuple[float, ...] | None = None
    regimes: tuple[Literal["standard", "posthoc", "linear"], ...] | None = None
    rows: int | None = None
    distance: Literal["argmax", "probabilities"] = "argmax"
    drift: bool = False

    def __post_init__(self) -> None:
        pairs = [] if self.pairs == "all" else [list(pair) for pair in self.pairs]
        for pair in pairs:
            if len(pair) != 2 or pair[0] == pair[1]:
                raise RecipeError(f"disentangle.pairs: {pair}: a pair is two different tasks.")
        if len(set(map(frozenset, pairs))) < len(pairs):
            raise RecipeError(f"disentangle.pairs: {pairs}: one pair stands twice.")
        if self.regimes is not None and not 0 < len(set(self.regimes)) == len(self.regimes):
            raise RecipeError(
                f"disentangle.regimes: {list(self.regimes)}: it needs at least one entry and none twice."
            )
        if self.grid is not None:
            rising = all(low < high for low, high in itertools.pairwise(self.grid))
            inside = any(0 <= alpha <= 1 for alpha in self.grid)
            if not (rising and inside and all(map(math.isfinite, self.grid))):
                raise RecipeError(
                    f"disentangle.grid: {list(self.grid)}: it needs finite coefficients in rising order, at least one "
                    "of them in [0, 1]."
                )
        if self.rows is not None and self.rows < 2:
            raise RecipeError(f"disentangle.rows: {self.rows}: a standard error needs at least two rows.")


@dataclasses.dataclass(frozen=True)
class Merging:
    """Which merging methods are compared, with their default options and an alpha each.

    See `tauspan.merge.data.compare`. `regimes` None takes all of the recipe's, `grid` None the default one.
    """

    methods: tuple[str, ...] = ()
    grid: tuple[float, ...] | None = None
    regimes: tuple[Literal["standard", "posthoc", "linear"], ...] | None = None

    def __post_init__(self) -> None:
        if len(set(self.methods)) < len(self.methods):
            raise RecipeError(f"merge.methods: {list(self.methods)}: one method stands twice.")
        if self.grid is not None and not (self.grid and all(map(math.isfinite, self.grid))):
            raise RecipeError(
                f"merge.grid: {list(self.grid)}: it needs at least one coefficient, all finite."
            )


@dataclasses.dataclass(frozen=True)
class Energies:
    """Local energy of each task's leading eigenfunctions, pre-trained and from random weights; see `local_energy`.

    `rows` of a task are drawn for each seed; `params` None takes those that are fine-tuned. `outputs` of the
    logits: a `"contrast"` or the `"sum"`, which cost as one output, or `"all"`.
    """

    eigenfunctions: int = 10
    rows: int = 64
    outputs: Literal["contrast", "sum", "all"] = "contrast"
    params: str | tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.eigenfunctions < 1:
            raise RecipeError(f"energy.eigenfunctions: {self.eigenfunctions}: it must be at least 1.")
        if self.rows < 2:
            raise RecipeError(f"energy.rows: {self.rows}: a kernel says something about 2 rows or more.")


@dataclasses.dataclass(frozen=True)
class Recipe:
    r"""A whole experiment: fine-tune tasks in each regime, add them, negate some, for every seed.

    Args:
        model: what `tauspan.load` takes.
        tasks: shipped tasks, task directories, or data sets of `tauspan.tasks.data.catalog()`.
        title: of the report.
        regimes: which of the three; none where only local energy is asked for, which needs no vectors.
        seeds: one vector per task, regime and seed.
        rows: at most so many rows of each split.
        max_tokens: where texts are cut; None takes each task's own value.
        finetune: how vectors are made.
        point: where the tangent model is linearised.
        grid: coefficients of addition and negation.
        negate: what is forgotten, and what is kept meanwhile.
        disentangle: maps of the disentanglement error.
        merge: merging methods side by side.
        data: folder with one sub-folder per data set of the catalog; None takes them from the hub.
        start: `"pretrained"`, or `"random"`: the vectors of a seed start from `reinitialised(encoder, seed)`.
        references: `"joint"`, one ordinary model trained on all tasks together; `"attention"`, ordinary fine-tuning of
            the attention projections alone, then added.
        energy: local energy, pre-trained against random weights; None leaves it out.
        head: where every task's frozen head comes from; `"auto"` leaves it to the task.

    Raises:
        RecipeError: an impossible value, with the nearest possible one where there is one.

    Example:
        >>> Recipe.parse("model: minilm\ntasks: [email_spam]\n").seeds
        (0,)
    """

    model: str
    tasks: tuple[str, ...]
    title: str = "tauspan run"
    regimes: tuple[Literal["standard", "posthoc", "linear"], ...] = ("standard", "posthoc", "linear")
    seeds: tuple[int, ...] = (0,)
    rows: Rows = Rows()
    max_tokens: int | None = None
    finetune: Training = Training()
    point: Literal["encoder", "logits"] = "logits"
    grid: Literal["paper", "auto"] | tuple[float, ...] = "paper"
    negate: Negation = Negation()
    disentangle: Maps = Maps()
    merge: Merging = Merging()
    data: str | None = None
    start: Literal["pretrained", "random"] = "pretrained"
    references: tuple[Reference, ...] = ()
    energy: Energies | None = None
    head: HeadFrom = "auto"

    def __post_init__(self) -> None:
        for name in ("tasks", "regimes", "seeds"):
            values = getattr(self, name)
            empty = not values and (name != "regimes" or self.energy is None)
            if empty or len(set(values)) != len(values):
                raise RecipeError(f"{name}: {list(values)}: it needs at least one entry and none twice.")
        self._check_vectorless()
        _refuse_twice("references", self.references)
        self._check_tasks("finetune.epochs_by_task", self.finetune.epochs_by_task)
        self._check_negation()
        self._check_maps()
        self._check_regimes("merge", self.merge.regimes)
        if self.energy is not None and len(self.tasks) < 2:
            raise RecipeError("energy: local energy needs at least one other task as its control.")

    def _check_vectorless(self) -> None:
        asked = {
            "negate": self.negate.targets, "disentangle": self.disentangle.pairs, "merge": self.merge.methods,
            "references": self.references,
        }  # fmt: skip
        for key, needs in asked.items():
            if needs and not self.regimes:
                raise RecipeError(f"regimes: []: {key} needs vectors. Name a regime, or leave {key} out.")

    def _check_tasks(self, key: str, names: Iterable[str]) -> None:
        for name in names:
            if name not in self.tasks:
                raise RecipeError(f"{key}: {name!r} is not among the tasks. {nearest(name, self.tasks)}")

    def _check_negation(self) -> None:
        self._check_tasks("negate.targets", self.negate.targets)
        for name in self.negate.controls:
            if name in self.tasks:
                raise RecipeError(
                    f"negate.controls: {name!r} is among the tasks, and a control is never trained on: leave it out of "
                    "one of them."
                )
        if self.negate.targets and not self.negate.controls and len(self.tasks) < 2:
            raise RecipeError(
                "negate.targets: negation needs at least one other task as its control, or negate.controls."
            )

    def _check_maps(self) -> None:
        maps = self.disentangle
        if maps.pairs != "all":
            self._check_tasks("disentangle.pairs", itertools.chain.from_iterable(maps.pairs))
        if maps.pairs == "all" and len(self.tasks) < 2:
            raise RecipeError("disentangle.pairs: all: a pair needs at least two tasks.")
        self._check_regimes("disentangle", maps.regimes)

    def _check_regimes(self, key: str, regimes: tuple[str, ...] | None) -> None:
        for regime in regimes or ():
            if regime not in self.regimes:
                raise RecipeError(
                    f"{key}.regimes: {regime!r} is not among the recipe's regimes, {listed(self.regimes)}."
                )

    @staticmethod
    def read(path: str | Path) -> "Recipe":
        """The recipe in a YAML file."""
        return Document.read(path).build(Recipe)

    @staticmethod
    def parse(text: str, where: str = "recipe") -> "Recipe":
        """The recipe in a YAML text; errors name `where`, the line and the key."""
        return Document(text, where).build(Recipe)

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return dataclasses.asdict(self)

    def to_yaml(self) -> str:
        """A text that `parse` reads back as this recipe."""
        return str(yaml.safe_dump(self.as_dict(), sort_keys=False))
