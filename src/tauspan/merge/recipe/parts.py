"""What a merge's recipe is made of: models, slices of layers, and where rows of tokens come from."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tauspan.core.errors import RecipeError
from tauspan.merge.engine.settings import Setting
from tauspan.merge.recipe.spelling import setting, written


@dataclass(frozen=True)
class Input:
    """One model of a merge.

    Args:
        model: a safetensors file, a directory, a task vector, an adapter, `MODEL+ADAPTER`, or a hub id.
        parameters: options of this model alone.
        statistics: by need, the safetensors file that holds it, for example `{"fisher": "fisher.safetensors"}`.
    """

    model: str = field(metadata={"alone": True})
    parameters: Mapping[str, Setting] = field(default_factory=dict, metadata={"parse": setting})
    statistics: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Layers:
    """Layers `layer_range[0]` to `layer_range[1] - 1` of one model; all of them where there is no `layer_range`."""

    model: str
    layer_range: tuple[int, ...] | None = None
    parameters: Mapping[str, Setting] = field(default_factory=dict, metadata={"parse": setting})

    def __post_init__(self) -> None:
        if self.layer_range is not None and (
            len(self.layer_range) != 2 or not 0 <= self.layer_range[0] < self.layer_range[1]
        ):
            raise RecipeError(
                f"layer_range: {list(self.layer_range)} of {self.model!r}: it is [FIRST, END], the layers FIRST to "
                "END - 1, with 0 <= FIRST < END."
            )

    @property
    def count(self) -> int | None:
        """How many layers; None where that is only known from the model."""
        return None if self.layer_range is None else self.layer_range[1] - self.layer_range[0]


@dataclass(frozen=True)
class Slice:
    """Some layers of the output: equally many layers of each source, merged.

    Args:
        sources: the layers that are merged.
        parameters: options of this slice.
        base: where displacements start.
        stack: a part of the name of the stack that the layers belong to, for models with several; None for the only one,
            or that of the text.
    """

    sources: tuple[Layers, ...]
    parameters: Mapping[str, Setting] = field(default_factory=dict, metadata={"parse": setting})
    base: Layers | None = None
    stack: str | None = None

    def __post_init__(self) -> None:
        if not self.sources:
            raise RecipeError("a slice needs at least one source.")
        self.require_equal()

    def require_equal(self) -> None:
        """Raise `RecipeError` if its sources have unequally many layers."""
        every = (*self.sources, *([] if self.base is None else [self.base]))
        counts = [source.count for source in every if source.count is not None]
        if len(set(counts)) > 1:
            raise RecipeError(f"the sources of a slice have {counts} layers; they need equally many.")

    @property
    def count(self) -> int:
        """How many layers it has; 0 where no source says it."""
        return next((one.count for one in self.sources if one.count is not None), 0)


@dataclass(frozen=True)
class Token:
    """Where the row of one token comes from, in models that lack the token.

    Args:
        source: a model, as the recipe names it; `zero`, or None, for a row of zeros.
        token: another token of that model whose row is taken.
        token_id: the number of such a row.
        force: take it in models that have the token too.
    """

    source: str | None = field(default=None, metadata={"alone": True})
    token: str | None = None
    token_id: int | None = None
    force: bool = False

    def __post_init__(self) -> None:
        if self.token is not None and self.token_id is not None:
            raise RecipeError(f"token: {self.token!r} and token_id: {self.token_id}: give one of them.")


def written_model(one: Input) -> dict[str, Any]:
    """A model as a recipe's file spells it."""
    extras = {"parameters": written(one.parameters), "statistics": dict(one.statistics)}
    return {"model": one.model, **{key: value for key, value in extras.items() if value}}


def written_token(how: Token) -> dict[str, Any]:
    """A token's source as a recipe's file spells it."""
    return {key: value for key, value in vars(how).items() if value not in (None, False)}


def written_slice(part: Slice) -> dict[str, Any]:
    """A slice as a recipe's file spells it."""
    extras = {
        "parameters": written(part.parameters),
        "base": None if part.base is None else _layers(part.base),
        "stack": part.stack,
    }
    return {"sources": [_layers(one) for one in part.sources], **{k: v for k, v in extras.items() if v}}


def _layers(one: Layers) -> dict[str, Any]:
    own: dict[str, Any] = {} if one.layer_range is None else {"layer_range": list(one.layer_range)}
    own |= {"parameters": written(one.parameters)} if one.parameters else {}
    return {"model": one.model, **own}
