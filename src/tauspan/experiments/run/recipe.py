"""`Recipe`: a whole experiment as strict YAML. An unknown key is an error that names the nearest one."""

import dataclasses
import inspect
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar

from tauspan.core.choices import EditRegime, HeadFrom, Point, Regime
from tauspan.core.docstrings import documented
from tauspan.core.errors import RecipeError, UsageError, listed, nearest
from tauspan.core.json_schema import DRAFT, schema_of
from tauspan.core.schema import Document, visible
from tauspan.core.strict_yaml import dumped
from tauspan.experiments.run.addition import Addition
from tauspan.experiments.run.part import Part
from tauspan.experiments.run.parts import PARTS
from tauspan.experiments.run.vectors import Finetuning
from tauspan.train import Settings

P = TypeVar("P", bound=Part)
Plain: TypeAlias = dict[str, Any]
_HIDDEN = {"hidden": True}  # a field of `Settings` that `finetune` does not set


@dataclasses.dataclass(frozen=True)
class Rows:
    """At most how many rows of each split are used.

    Args:
        train: None takes all.
        validation: None takes all.
        test: None takes all.
        seed: by which they are drawn. The recipe's `seeds` are of vectors: all of them see the same rows.
    """

    train: int | None = None
    validation: int | None = None
    test: int | None = None
    seed: int = 0

    def fewer(self, rows: int) -> "Rows":
        """At most so many rows of each split."""
        train, validation, test = (min(rows, one or rows) for one in (self.train, self.validation, self.test))
        return Rows(train, validation, test, self.seed)


@dataclasses.dataclass(frozen=True)
class Training(Settings):
    """How vectors are fine-tuned: the fields of `tauspan.train.Settings`, with a learning rate for each regime.

    A recipe has `seeds`, `regimes`, `point` and `max_tokens` of its own, and a run takes engine and check from
    `tauspan.computing`. A cache is for linear vectors; the others are made without one.

    Args:
        lr_standard: peak learning rate of ordinary fine-tuning; None as for `Settings.lr`.
        lr_linear: peak learning rate in the tangent model.
        epochs_by_task: epochs of their own for some tasks, by their names in `tasks`.
    """

    regime: Regime = dataclasses.field(default="linear", metadata=_HIDDEN)
    seed: int = dataclasses.field(default=0, metadata=_HIDDEN)
    point: Point | None = dataclasses.field(default=None, metadata=_HIDDEN)
    lr: float | None = dataclasses.field(default=None, metadata=_HIDDEN)
    max_tokens: int | None = dataclasses.field(default=None, metadata=_HIDDEN)
    engine: Any = dataclasses.field(default=None, metadata=_HIDDEN)
    check: Any = dataclasses.field(default=None, metadata=_HIDDEN)
    lr_standard: float | None = None
    lr_linear: float | None = None
    epochs_by_task: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, epochs in self.epochs_by_task.items():
            if epochs < 1:
                raise RecipeError(f"finetune.epochs_by_task.{name}: {epochs}: it must be at least 1.")
        try:
            super().__post_init__()
            self.settings("standard", point=None, max_tokens=None)
            self.settings("linear", point=None, max_tokens=None)
        except UsageError as error:
            raise RecipeError(f"finetune.{error}") from error

    def settings(self, regime: Regime, **own: Any) -> Settings:
        """The settings of one vector; `own` are the fields that a recipe says elsewhere."""
        rate = self.lr_linear if regime == "linear" else self.lr_standard
        shared = {field.name: getattr(self, field.name) for field in dataclasses.fields(Settings)}
        if regime != "linear":
            shared["cache"] = "none"
        return Settings(**{**shared, "regime": regime, "lr": rate, **own})

    def at(self, regime: Regime, rate: float) -> "Training":
        """The same fine-tuning with another learning rate of one regime."""
        if regime == "linear":
            return dataclasses.replace(self, lr_linear=rate)
        return dataclasses.replace(self, lr_standard=rate)

    def for_tasks(self, tasks: Sequence[str]) -> "Training":
        """The same without the epochs of other tasks."""
        epochs = {name: count for name, count in self.epochs_by_task.items() if name in tasks}
        return dataclasses.replace(self, epochs_by_task=epochs)


@dataclasses.dataclass(frozen=True)
class Recipe:
    r"""A whole experiment: fine-tune tasks in each regime, add them, and measure what its parts ask for.

    Args:
        model: what `tauspan.load` takes.
        tasks: shipped tasks, task directories, or data sets of `tauspan.tasks.data.catalog()`.
        title: of the report.
        regimes: which of the three; none if only parts are asked for that need no vectors, such as local energy.
        seeds: one vector for each task, regime and seed.
        rows: at most so many rows of each split.
        max_tokens: where texts are cut; None takes each task's own value.
        finetune: how vectors are made.
        point: where the tangent model is linearised.
        grid: coefficients of addition and negation.
        data: folder with one sub-folder for each data set of the catalog; None takes them from the hub.
        start: `"pretrained"`, or `"random"`: the vectors of a seed start from `reinitialised(encoder, seed)`.
        head: where every task's frozen head comes from; `"auto"` leaves it to the task.
        language: read the model as a language model, for tasks of texts of at most so many tokens.
        parts: what is measured, each a section of the file under its key: `References`, `Negation`, `Maps`, `Energies`,
            `Merging`, `Desk`, or a `Part` of your own. Addition is always one of them.

    Raises:
        RecipeError: an impossible value, with the nearest possible one where there is one.

    Example:
        >>> Recipe.parse("model: minilm\ntasks: [email_spam]\n").seeds
        (0,)
    """

    model: str
    tasks: tuple[str, ...]
    title: str = "tauspan run"
    regimes: tuple[EditRegime, ...] = ("standard", "posthoc", "linear")
    seeds: tuple[int, ...] = (0,)
    rows: Rows = Rows()
    max_tokens: int | None = None
    finetune: Training = Training()
    point: Point = "logits"
    grid: Literal["paper", "auto"] | tuple[float, ...] = "paper"
    data: str | None = None
    start: Literal["pretrained", "random"] = "pretrained"
    head: HeadFrom = "auto"
    language: int | None = None
    parts: tuple[Part, ...] = ()

    def __post_init__(self) -> None:
        kinds = list(dict.fromkeys([*PARTS, *map(type, self.parts)]))
        parts: dict[type[Part], Part] = {Addition: Addition(), **{type(part): part for part in self.parts}}
        object.__setattr__(self, "parts", tuple(parts[kind] for kind in kinds if kind in parts))
        vectorless = any(part.vectorless and part.asked for part in self.parts)
        for name in ("tasks", "regimes", "seeds"):
            values = getattr(self, name)
            empty = not values and (name != "regimes" or not vectorless)
            if empty or len(set(values)) != len(values):
                raise RecipeError(f"{name}: {list(values)}: it needs at least one entry and none twice.")
        self.require_tasks("finetune.epochs_by_task", self.finetune.epochs_by_task)
        if self.finetune.cache != "none" and "linear" not in self.regimes:
            raise RecipeError(
                f"finetune.cache: {self.finetune.cache!r}: only vectors of the regime linear have one."
            )
        for part in self.parts:
            if part.key and part.asked and not part.vectorless and not self.regimes:
                raise RecipeError(
                    f"regimes: []: {part.key} needs vectors. Name a regime, or leave {part.key} out."
                )
            part.check(self)

    # -- parts -----------------------------------------------------------------------------------------------

    def part(self, kind: type[P]) -> P | None:
        """The part of a class, if the recipe has it."""
        return next((part for part in self.parts if isinstance(part, kind)), None)

    def with_parts(self, *parts: Part) -> "Recipe":
        """The recipe with these parts, in place of those of the same classes."""
        return dataclasses.replace(self, parts=(*self.parts, *parts))

    @property
    def controls(self) -> tuple[str, ...]:
        """Tasks that are read and never trained on."""
        return tuple(dict.fromkeys(name for part in self.parts for name in part.controls))

    def require_tasks(self, key: str, names: Iterable[str]) -> None:
        """Raise `RecipeError` unless these are tasks of the recipe."""
        for name in names:
            if name not in self.tasks:
                raise RecipeError(f"{key}: {name!r} is not among the tasks. {nearest(name, self.tasks)}")

    def require_regimes(self, key: str, regimes: Iterable[str]) -> None:
        """Raise `RecipeError` unless these are regimes of the recipe."""
        for regime in regimes:
            if regime not in self.regimes:
                raise RecipeError(
                    f"{key}: {regime!r} is not among the recipe's regimes, {listed(self.regimes)}."
                )

    # -- other recipes ---------------------------------------------------------------------------------------

    def alone(self, regime: Regime, rate: float, tasks: Sequence[str]) -> "Recipe":
        """The recipe that only fine-tunes some tasks, with the first seed, in one regime at a learning rate."""
        return dataclasses.replace(
            self, tasks=tuple(tasks), regimes=(regime,), seeds=self.seeds[:1], parts=(),
            finetune=dataclasses.replace(
                self.finetune.for_tasks(tasks).at(regime, rate),
                cache=self.finetune.cache if regime == "linear" else "none",
            ),
        )  # fmt: skip

    def settings(self, which: Finetuning, **changes: Any) -> Settings:
        """How a vector is fine-tuned; `changes` are other fields."""
        if which.kind == "attention":
            changes["params"] = "attention"
        if which.task is not None:
            changes["epochs"] = self.finetune.epochs_by_task.get(which.task, self.finetune.epochs)
        point = self.point if which.regime == "linear" else None
        return self.finetune.settings(
            which.regime, seed=which.seed, point=point, max_tokens=self.max_tokens, **changes
        )

    # -- files -----------------------------------------------------------------------------------------------

    @staticmethod
    def read(path: str | Path, parts: Sequence[type[Part]] = PARTS) -> "Recipe":
        """The recipe in a YAML file."""
        return _built(Document.read(path), parts)

    @staticmethod
    def of(document: Document, parts: Sequence[type[Part]] = PARTS) -> "Recipe":
        """The recipe in a document, which `Document.with_value` may have changed."""
        return _built(document, parts)

    @staticmethod
    def parse(text: str, where: str = "recipe", parts: Sequence[type[Part]] = PARTS) -> "Recipe":
        """The recipe in a YAML text; errors name `where`, the line and the key. `parts` are those that it may have."""
        return _built(Document(text, where), parts)

    def as_dict(self) -> Plain:
        """Plain values: the recipe's own keys, then a section for each part that has one."""
        plain = {field.name: getattr(self, field.name) for field in _own_fields()}
        tuned = {field.name: getattr(self.finetune, field.name) for field in visible(Training)}
        sections = {part.key: part.section() for part in self.parts if part.key}
        return {**plain, "rows": dataclasses.asdict(self.rows), "finetune": tuned, **sections}

    def to_yaml(self) -> str:
        """A text that `parse` reads back as this recipe."""
        return dumped(_listed(self.as_dict()))


def _own_fields() -> list["dataclasses.Field[Any]"]:
    return [field for field in dataclasses.fields(Recipe) if field.name != "parts"]


def _sections(kinds: Sequence[type[Part]]) -> dict[str, type[Part]]:
    """The parts that have a section in a file, by its key."""
    return {kind.key: kind for kind in kinds if kind.key}


def _whole(kinds: Sequence[type[Part]]) -> Any:
    """A file as one dataclass: the recipe's own fields, and a field for the section of each part."""
    hints = typing.get_type_hints(Recipe)
    own: list[Any] = [
        (field.name, hints[field.name], dataclasses.field(default=field.default)) for field in _own_fields()
    ]
    own += [
        (key, kind.hint() | None, dataclasses.field(default=None)) for key, kind in _sections(kinds).items()
    ]
    return dataclasses.make_dataclass("Recipe", own, frozen=True)


def _built(document: Document, kinds: Sequence[type[Part]]) -> Recipe:
    """A recipe from a document."""
    made: Any = document.build(_whole(kinds))
    values = {field.name: getattr(made, field.name) for field in _own_fields()}
    sections = _sections(kinds)
    present = {key: getattr(made, key) for key in sections}
    try:
        parts = tuple(sections[key].of(value) for key, value in present.items() if value is not None)
        return Recipe(**values, parts=parts)
    except RecipeError as error:
        raise RecipeError(document.told(error)) from error


def json_schema(parts: Sequence[type[Part]] = PARTS) -> Plain:
    """The JSON schema of a recipe's file, draft 2020-12, with a section for each of `parts`.

    Example:
        >>> json_schema()["required"]
        ['model', 'tasks']
    """
    made = schema_of(_whole(parts))
    told = documented(Recipe) | {key: _first_line(kind) for key, kind in _sections(parts).items()}
    for name, entry in made["properties"].items():
        entry["description"] = told[name]
    return {"$schema": DRAFT, "title": "tauspan recipe", **made}


def _first_line(kind: type[Part]) -> str:
    return (inspect.getdoc(kind) or "").partition("\n")[0]


def _listed(value: Any) -> Any:
    """Plain values as YAML writes them: tuples become lists."""
    if isinstance(value, Mapping):
        return {key: _listed(item) for key, item in value.items()}
    return [_listed(item) for item in value] if isinstance(value, list | tuple) else value
