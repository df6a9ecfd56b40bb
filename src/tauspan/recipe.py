"""`Recipe`: a whole experiment as strict YAML. An unknown key is an error that names the nearest one."""

import dataclasses
import itertools
import math
from pathlib import Path
from typing import Any, Literal

from tauspan.errors import RecipeError, listed, nearest
from tauspan.schema import Document


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
class Merging:
    """Which merging methods are compared, with their default options and an alpha each; see `tauspan.search.compare`.

    `regimes` None takes all of the recipe's, `grid` None the default one.
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
    merge: Merging = Merging()

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
        self._check_regimes("merge", self.merge.regimes)

    def _check_maps(self) -> None:
        maps = self.disentangle
        for name in (name for pair in maps.pairs for name in pair) if maps.pairs != "all" else ():
            if name not in self.tasks:
                raise RecipeError(
                    f"disentangle.pairs: {name!r} is not among the tasks. {nearest(name, self.tasks)}"
                )
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
