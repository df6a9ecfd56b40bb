"""`Recipe`: a whole experiment as strict YAML. An unknown key is an error that names the nearest one."""

import dataclasses
import itertools
import math
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from tauspan.errors import RecipeError, listed, nearest

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Rows:
    """How many rows of each split are used; None takes all."""

    train: int | None = None
    validation: int | None = None
    test: int | None = None


@dataclasses.dataclass(frozen=True)
class Training:
    """How vectors are fine-tuned; the names are those of `tauspan.train.Settings`."""

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


@dataclasses.dataclass(frozen=True)
class Negation:
    """Which tasks are forgotten, and the share of control accuracy to keep; the other tasks are the controls."""

    targets: tuple[str, ...] = ()
    floor: float = 0.95


@dataclasses.dataclass(frozen=True)
class Maps:
    """Which pairs of tasks get a map of the disentanglement error, with the first seed's vectors; see `disentanglement`.

    `regimes` None takes all of the recipe's, `grid` None the default one, `rows` None all test rows.
    """

    pairs: tuple[tuple[str, ...], ...] | Literal["all"] = ()
    grid: tuple[float, ...] | None = None
    regimes: tuple[Literal["standard", "posthoc", "linear"], ...] | None = None
    rows: int | None = None
    distance: Literal["argmax", "probabilities"] = "argmax"

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
class Recipe:
    r"""A whole experiment: fine-tune tasks in each regime, add them, negate some, for every seed.

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

    def __post_init__(self) -> None:
        for name in ("tasks", "regimes", "seeds"):
            values = getattr(self, name)
            if not values or len(set(values)) != len(values):
                raise RecipeError(f"{name}: {list(values)}: it needs at least one entry and none twice.")
        for target in self.negate.targets:
            if target not in self.tasks:
                raise RecipeError(
                    f"negate.targets: {target!r} is not among the tasks. {nearest(target, self.tasks)}"
                )
        if not 0 <= self.negate.floor <= 1:
            raise RecipeError(f"negate.floor: {self.negate.floor}: it is a share, between 0 and 1.")
        if self.negate.targets and len(self.tasks) < 2:
            raise RecipeError("negate.targets: negation needs at least one other task as its control.")
        self._check_maps()

    def _check_maps(self) -> None:
        maps = self.disentangle
        for name in (name for pair in maps.pairs for name in pair) if maps.pairs != "all" else ():
            if name not in self.tasks:
                raise RecipeError(
                    f"disentangle.pairs: {name!r} is not among the tasks. {nearest(name, self.tasks)}"
                )
        if maps.pairs == "all" and len(self.tasks) < 2:
            raise RecipeError("disentangle.pairs: all: a pair needs at least two tasks.")
        for regime in maps.regimes or ():
            if regime not in self.regimes:
                raise RecipeError(
                    f"disentangle.regimes: {regime!r} is not among the recipe's regimes, {listed(self.regimes)}."
                )

    @staticmethod
    def read(path: str | Path) -> "Recipe":
        """The recipe in a YAML file."""
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"the recipe {path} cannot be read: {error}") from error
        return Recipe.parse(text, str(path))

    @staticmethod
    def parse(text: str, where: str = "recipe") -> "Recipe":
        """The recipe in a YAML text; errors name `where`, the line and the key."""
        try:
            node = yaml.compose(text, Loader=yaml.SafeLoader)
            plain = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise RecipeError(f"{where} is not YAML: {error}") from error
        if not isinstance(plain, Mapping):
            raise RecipeError(f"{where} holds {type(plain).__name__}, not a mapping of keys to values.")
        try:
            return _build(Recipe, plain, node, where, "")
        except RecipeError as error:
            raise error if where in str(error) else RecipeError(f"{where}: {error}") from error

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return dataclasses.asdict(self)


def _build(kind: type[T], plain: Mapping[str, Any], node: Any, where: str, path: str) -> T:
    """A frozen dataclass from a mapping, every key and value checked against its annotation."""
    hints = typing.get_type_hints(kind)
    known = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    nodes: dict[str, tuple[int, Any]] = {}
    for key, inner in node.value:
        line = key.start_mark.line + 1
        if key.value in nodes:
            raise RecipeError(
                f"{where}, line {line}: the key {path + str(key.value)!r} stands twice, first in line "
                f"{nodes[key.value][0]}."
            )
        nodes[key.value] = (line, inner)
    values: dict[str, Any] = {}
    for key, value in plain.items():
        line, inner = nodes.get(str(key), (1, None))
        place = f"{where}, line {line}"
        if key not in known:
            raise RecipeError(f"{place}: unknown key {path + str(key)!r}. {nearest(str(key), known)}")
        hint = hints[key]
        if dataclasses.is_dataclass(hint):
            if not isinstance(value, Mapping):
                raise RecipeError(f"{place}: {path}{key} needs keys below it, not {value!r}.")
            values[key] = _build(typing.cast(type, hint), value, inner, where, f"{path}{key}.")
        else:
            values[key] = _value(hint, value, f"{place}: {path}{key}")
    for name, field in known.items():
        if name not in values and field.default is dataclasses.MISSING:
            raise RecipeError(f"{where}: {path}{name} is missing.")
    return kind(**values)


def _value(hint: Any, value: Any, place: str) -> Any:
    """A YAML value as its annotation says, or a `RecipeError`."""
    for option in (
        typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    ):
        origin, args = typing.get_origin(option), typing.get_args(option)
        if origin is Literal and value in args and not isinstance(value, list):
            return value
        if origin is tuple and isinstance(value, list):
            return tuple(_value(args[0], item, f"{place}[{index}]") for index, item in enumerate(value))
        if option is type(None) and value is None:
            return None
        if option is float and isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        if isinstance(option, type) and option is not float and type(value) is option:
            return value
    wanted = str(hint).replace("typing.", "").replace("<class '", "").replace("'>", "")
    hint_text = " (YAML reads 1e-4 as text: write 1.0e-4)" if isinstance(value, str) and "e" in value else ""
    raise RecipeError(f"{place} is {value!r}, and must be {wanted}{hint_text}.")
