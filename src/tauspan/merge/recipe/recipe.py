"""`MergeRecipe`: which models are merged, how and into what."""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from tauspan.core.errors import RecipeError, StoreError, UsageError, listed, nearest
from tauspan.core.strict_yaml import dumped
from tauspan.merge.engine.plugins import named as named_method
from tauspan.merge.engine.settings import Setting, Settings
from tauspan.merge.methods.method import Method
from tauspan.merge.recipe import parts as fields
from tauspan.merge.recipe.parts import (
    Input,
    Layers,
    Slice,
    Token,
    completed,
    setting,
    written,
    written_model,
    written_slice,
    written_token,
)
from tauspan.merge.sources.opening import halves
from tauspan.merge.sources.problems import LENIENT

BASE = "base"  # as `tokenizer_source`: the base's, or else the first model's
UNION = "union"  # the base's with all tokens that it lacks and another model has


@dataclass(frozen=True)
class MergeRecipe:
    r"""A merge: every decision besides the values of the tensors.

    Args:
        method: a name of `METHODS`, a name that an installed package gives, or
            `module:function` for a method of the user's own (see `own`).
        models: what is merged, in order.
        base_model: theta0, where displacements start.
        parameters: options for all models, under the method's names: a number, a list of numbers over the layers, or
            a list of `filter` and `value`, of which the first that fits holds.
        dtype: of the arithmetic, `float32` by default.
        out_dtype: of the result; None keeps the base's, tensor by tensor.
        output: a model, a task-vector file or an adapter.
        rank: of the adapter; None where the method keeps the ranks of adapters. What an SVD leaves out is reported.
        rounding: to `out_dtype`: nearest, or stochastic with masks keyed by seed and tensor.
        seed: of random masks and rounding.
        shard_size: largest file of the result, such as `5GB`.
        tokenizer_source: whose tokenizer the result has: a model, `base`, or `union`, which adds to the base's what it
            lacks; embeddings of other vocabularies are aligned with it by token. None copies the base's files, or
            the first model's, and is an error where vocabularies differ.
        tokens: by token, where its row comes from; tokens that the tokenizer lacks are added to it.
        pad_to_multiple_of: rows of the embeddings; the further ones are the mean of all.
        chat_template: of the result: `auto` (the commonest of the models'), `chatml`, `llama3`, `mistral`, `alpaca`,
            `exaone`, or the template itself; None leaves the tokenizer's.
        slices: instead of `models`: the output's layers, slice by slice.
        allow: names of `problems.LENIENT`, what the checks may let pass.
        own: the method itself where `method` is `module:function`; no file can set it.
        notes: what is to be warned of when it is carried out: what a mergekit file says and mergekit does not read.
        loose: whether filters may fit nothing, as in mergekit's files.
        places: for each key, its line in the file that was read, for errors that only the inputs show.

    Raises:
        RecipeError: it does not fit together.

    Example:
        >>> MergeRecipe("task_arithmetic", (Input("tuned"),), "base").as_dict()["models"]
        [{'model': 'tuned'}]
    """

    method: str = field(metadata={"parse": fields.method})
    models: tuple[Input, ...] = ()
    base_model: str | None = None
    parameters: Mapping[str, Setting] = field(default_factory=dict, metadata={"parse": setting})
    dtype: Literal["float32", "float64"] = field(default="float32", metadata={"parse": fields.arithmetic})
    out_dtype: Literal["float64", "float32", "float16", "bfloat16"] | None = field(
        default=None, metadata={"parse": fields.result}
    )
    output: Literal["model", "vector", "adapter"] = "model"
    rank: int | None = None
    rounding: Literal["nearest", "stochastic"] = "nearest"
    seed: int = 0
    shard_size: str = field(default="5GB", metadata={"parse": fields.size_text})
    tokenizer_source: str | None = None
    tokens: Mapping[str, Token] = field(default_factory=dict)
    pad_to_multiple_of: int | None = None
    chat_template: str | None = None
    slices: tuple[Slice, ...] = ()
    allow: tuple[str, ...] = ()
    own: Method | None = field(default=None, compare=False, metadata={"hidden": True})
    notes: tuple[str, ...] = field(default=(), compare=False, repr=False, metadata={"hidden": True})
    loose: bool = field(default=False, compare=False, repr=False, metadata={"hidden": True})
    places: Mapping[str, str] = field(
        default_factory=dict, compare=False, repr=False, metadata={"hidden": True}
    )

    def __post_init__(self) -> None:
        if bool(self.models) == bool(self.slices):
            raise RecipeError("exactly one of `models` and `slices` is needed, with at least one entry.")
        if len({part.base is None for part in self.slices}) > 1:
            raise RecipeError("some slices have a `base` and some have none; give all of them one.")
        if self.rank is not None and self.output != "adapter":
            raise RecipeError(
                f"rank: {self.rank}: it belongs to `output: adapter`, and output is {self.output!r}."
            )
        if self.rank is not None and self.rank < 1:
            raise RecipeError(f"rank: {self.rank}: an adapter's rank is at least 1.")
        if self.output == "adapter" and (self.out_dtype is not None or self.rounding != "nearest"):
            raise RecipeError(
                f"out_dtype: {self.out_dtype!r} and rounding: {self.rounding!r} with `output: adapter`: its factors keep "
                "the dtype of the adapters' (float32 where an SVD made them). Leave both out."
            )
        if self.slices and self.output != "model":
            raise RecipeError(f"output: {self.output!r}: a merge of slices makes a model.")
        for name in self.allow:
            if name not in LENIENT:
                raise RecipeError(f"allow: {name!r}: no such leniency. {nearest(name, LENIENT)}")
        fields.require_plain(self.dtype, self.out_dtype)
        fields.size(self.shard_size)
        if ":" not in self.method or self.own is not None:
            self.row()

    def place(self, *keys: str) -> str:
        """The place in the recipe's file of the first of these keys that it has, to begin a message; else empty."""
        return next((f"{self.places[key]}: " for key in keys if key in self.places), "")

    def row(self) -> Method:
        """The method: the user's own, a row of `METHODS`, or an installed package's."""
        if self.own is not None:
            return self.own
        if ":" in self.method:
            raise RecipeError(
                f"the method {self.method!r} is code of your own, which a recipe alone may not run. Allow it with "
                f"`--code {self.method}`, or pass the function in Python."
            )
        try:
            return named_method(fields.method(self.method, "recipe"))
        except RecipeError:
            raise
        except UsageError as error:
            raise RecipeError(f"recipe: {error}") from error

    def settings(self) -> Settings:
        """The options, tensor by tensor; a merge of slices has its own, `slices.Sliced`."""
        return Settings(
            self.row(), len(self.models), self.parameters, [one.parameters for one in self.models]
        )

    def scopes(self) -> Iterator[tuple[tuple[str | int, ...], Mapping[str, Setting]]]:
        """Every place that holds options, as a path of keys, with its options: common, of a model, slice or source."""
        yield ("parameters",), self.parameters
        for index, one in enumerate(self.models):
            yield ("models", index, "parameters"), one.parameters
        for number, part in enumerate(self.slices):
            yield ("slices", number, "parameters"), part.parameters
            for index, source in enumerate(part.sources):
                yield ("slices", number, "sources", index, "parameters"), source.parameters

    def require_fitting(self, names: Collection[str]) -> list[str]:
        """Raise for a filter that matches none of the tensors' names, and so would have no effect.

        mergekit does not check this: for its files a note is returned and nothing is raised.
        """
        notes = []
        for path, parameters in self.scopes():
            for name, value in parameters.items():
                for entry in value if isinstance(value, tuple) else ():
                    if entry.pattern is not None and not any(entry.pattern in one for one in names):
                        place = entry.place or ".".join(map(str, (*path, name)))
                        message = (
                            f"{place}: the filter {entry.pattern!r} fits no tensor. A filter is a part of names such as "
                            f"{listed(map(repr, names), 3)}."
                        )
                        if not self.loose:
                            raise RecipeError(message)
                        notes.append(f"{message} Its value holds nowhere.")
        return notes

    def with_method(self, own: Method) -> "MergeRecipe":
        """The same recipe, run by a method that is not in the table.

        Raises:
            RecipeError: the recipe names a row of the table, so its card would tell another method than ran.
        """
        if ":" not in self.method:
            raise RecipeError(
                f"the recipe's method is {self.method!r}, a name of the table, and {own.name!r} shall run. Write "
                "`method: module:function`, where your code stands."
            )
        return replace(self, own=own)

    def resolved(self) -> "MergeRecipe":
        """The same recipe with every option written out, so that it does not change when defaults do."""
        defaults = {
            option.name: option.default for option in self.row().options if option.default is not None
        }
        return replace(self, parameters=completed(self.parameters, defaults))

    def as_dict(self) -> dict[str, Any]:
        """The complete recipe as plain values: a key that the file leaves out has its default."""
        return {
            "method": self.method, "base_model": self.base_model,
            "models": [written_model(one) for one in self.models],
            "slices": [written_slice(part) for part in self.slices],
            "parameters": written(self.parameters), "dtype": self.dtype, "out_dtype": self.out_dtype,
            "output": self.output, "rank": self.rank, "rounding": self.rounding, "seed": self.seed,
            "shard_size": self.shard_size, "tokenizer_source": self.tokenizer_source,
            "tokens": {token: written_token(how) for token, how in self.tokens.items()},
            "pad_to_multiple_of": self.pad_to_multiple_of, "chat_template": self.chat_template, "allow": list(self.allow),
        }  # fmt: skip

    def to_yaml(self) -> str:
        """A YAML text that reads back as this recipe."""
        return dumped(self.as_dict())


def named(recipe: MergeRecipe) -> list[str]:
    """The models that a recipe names, each once: the base first."""
    layers = [one for part in recipe.slices for one in (*part.sources, part.base) if one is not None]
    names = [recipe.base_model, *(one.model for one in recipe.models), *(one.model for one in layers)]
    return list(dict.fromkeys(name for name in names if name is not None))


def renamed(recipe: MergeRecipe, name: Callable[[str], str]) -> MergeRecipe:
    """The same recipe with every model, tokenizer and file of statistics under another name."""

    def layers(one: Layers) -> Layers:
        return replace(one, model=name(one.model))

    models = tuple(
        replace(one, model=name(one.model), statistics={n: name(file) for n, file in one.statistics.items()})
        for one in recipe.models
    )
    slices = tuple(
        replace(
            part,
            sources=tuple(map(layers, part.sources)),
            base=None if part.base is None else layers(part.base),
        )
        for part in recipe.slices
    )
    words, base = recipe.tokenizer_source, recipe.base_model
    return replace(
        recipe,
        models=models,
        slices=slices,
        base_model=None if base is None else name(base),
        tokenizer_source=words if words in (None, UNION, BASE) else name(str(words)),
        tokens={token: replace(how, source=_token(how, name)) for token, how in recipe.tokens.items()},
    )


def _token(how: Token, name: Callable[[str], str]) -> str | None:
    return how.source if how.source in (None, "zero") else name(str(how.source))


def places(recipe: MergeRecipe) -> dict[str, str]:
    """By the path as the recipe gives it, the absolute path of each input in local files."""
    found: dict[str, str] = {}

    def noted(name: str) -> str:
        found.update((part, str(Path(part).absolute())) for part in _parts(name) if Path(part).exists())
        return name

    renamed(recipe, noted)
    return found


def relocated(recipe: MergeRecipe, places: Mapping[str, str], card: Path) -> MergeRecipe:
    """The same recipe with each local input at its absolute path or, if it is not there, at the path as given.

    Args:
        recipe: a card's.
        places: as `places` gave them when the card was written.
        card: named by errors.

    Raises:
        StoreError: an input is at neither; the hub is not asked for what was a local file.
    """

    def found(part: str) -> str:
        if part not in places:
            return part
        for place in (places[part], part):
            if Path(place).exists():
                return place
        raise StoreError(
            f"the input {part!r} of {card} is neither at {places[part]} nor at {Path(part).absolute()}. Put it back at "
            "one of them, or change its path in the card's recipe."
        )

    return renamed(recipe, lambda name: "+".join(map(found, _parts(name))))


def _parts(name: str) -> Iterator[str]:
    """The name itself, or the model and the adapter of `MODEL+ADAPTER`, as `open_source` splits it."""
    model, adapter = halves(name)
    if adapter is None:
        yield name
    else:
        yield from _parts(model)
        yield adapter
