"""mergekit's own YAML, read as it is; what cannot be carried over is an error that names its line."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tauspan.errors import RecipeError, nearest
from tauspan.merge.dialect import DIALECT, Row, as_setting, converted, total
from tauspan.merge.fields import RESULT, canonical
from tauspan.merge.recipe import UNION, Input, Layers, MergeRecipe, Slice
from tauspan.merge.settings import Setting
from tauspan.merge.spelling import completed, require_option, within
from tauspan.merge.table import METHODS
from tauspan.schema import Document, shown

_LOG = logging.getLogger(__name__)
_RAW: Mapping[str, Any] = {"parse": lambda value, place: value}
_UNSUPPORTED = {
    "modules": "merges of models with several modules are not carried over: write a recipe with `method` and `models`, "
    "which merges all tensors of any model",
    "chat_template": "the chat template is copied from the tokenizer's source; change it in the result",
}


@dataclass(frozen=True)
class _Source:
    """A source of a slice, as mergekit writes it."""

    model: str
    layer_range: tuple[int, ...]
    parameters: Mapping[str, Any] | None = field(default=None, metadata=_RAW)


@dataclass(frozen=True)
class _Model:
    """A model, as mergekit writes it."""

    model: str
    parameters: Mapping[str, Any] | None = field(default=None, metadata=_RAW)


@dataclass(frozen=True)
class _Slice:
    """A slice of the output, as mergekit writes it."""

    sources: tuple[_Source, ...]
    base_model: str | None = None
    residual_weight: float | None = None
    parameters: Mapping[str, Any] | None = field(default=None, metadata=_RAW)


@dataclass(frozen=True)
class _Tokenizer:
    """The tokenizer, as mergekit writes it."""

    source: str | None = None
    tokens: Mapping[str, Any] | None = field(default=None, metadata=_RAW)
    pad_to_multiple_of: int | None = None


@dataclass(frozen=True)
class _File:
    """The whole file, as mergekit writes it."""

    merge_method: str
    models: tuple[_Model, ...] | None = None
    slices: tuple[_Slice, ...] | None = None
    base_model: str | None = None
    dtype: str | None = None
    out_dtype: str | None = None
    tokenizer_source: str | None = None
    tokenizer: _Tokenizer | None = None
    parameters: Mapping[str, Any] | None = field(default=None, metadata=_RAW)
    modules: Any = field(default=None, metadata=_RAW)
    chat_template: str | None = None


def translated(document: Document) -> MergeRecipe:
    """The recipe that a mergekit file stands for.

    Arithmetic is in float32 (float64 where the file says so) and rounded once, to `out_dtype` or `dtype`; mergekit
    computes in `dtype`.

    Raises:
        RecipeError: it is no mergekit file, or asks for what is not supported; with the line.
    """
    file = document.build(_File)
    for key, why in _UNSUPPORTED.items():
        if getattr(file, key) is not None:
            raise RecipeError(f"{document.place(key)}: `{key}` of mergekit is not supported: {why}.")
    if file.merge_method not in DIALECT:
        raise RecipeError(
            f"{document.place('merge_method')}: no mergekit method {file.merge_method!r}. "
            f"{nearest(file.merge_method, DIALECT)}"
        )
    if (file.models is None) == (file.slices is None):
        raise RecipeError(f"{document.where}: exactly one of `models` and `slices` is needed.")
    reader = _Reader(document, file, DIALECT[file.merge_method], set())
    try:
        return reader.recipe()
    except RecipeError as error:
        raise error if document.where in str(error) else RecipeError(f"{document.where}: {error}") from error


@dataclass(frozen=True)
class _Reader:
    """One file on its way to a recipe."""

    document: Document
    file: _File
    row: Row
    left_out: set[str]  # parameters that were warned of

    def recipe(self) -> MergeRecipe:
        file, row = self.file, self.row
        wide: Any = "float64" if self._dtype("dtype") == "float64" else "float32"
        common = self._options(file.parameters, "parameters")
        models, slices = self._models(), self._slices()
        if self.row.lone and len(models) == 1:
            common = within(models[0].parameters, common)
            models = (Input(models[0].model),)
        based = file.base_model is not None if file.models else any(part.base for part in slices)
        method = row.ours if based or row.role in ("first", "last") else row.without
        if method is None:
            raise RecipeError(f"the method {file.merge_method!r} needs `base_model`.")
        return MergeRecipe(
            method=method, models=models, slices=slices, base_model=file.base_model,
            parameters=self._complete(common, models, slices), dtype=wide,
            out_dtype=self._dtype("out_dtype") or self._dtype("dtype"), tokenizer_source=self._tokenizer(),
        )  # fmt: skip

    def _dtype(self, key: str) -> Any:
        name = getattr(self.file, key)
        plain = None if name is None else canonical(name)
        if plain is not None and plain not in RESULT:
            raise RecipeError(f"{self.document.place(key)}: {key} is {name!r}. {nearest(plain, RESULT)}")
        return plain

    def _tokenizer(self) -> str | None:
        file, key = self.file, "tokenizer_source"
        source = file.tokenizer_source
        if file.tokenizer is not None:
            for key in ("tokens", "pad_to_multiple_of"):
                if getattr(file.tokenizer, key) is not None:
                    raise RecipeError(
                        f"{self.document.place('tokenizer', key)}: `tokenizer.{key}` of mergekit is not supported: a "
                        "merge keeps the vocabulary of its models. Change tokens before or after it."
                    )
            if source is not None:
                raise RecipeError(
                    f"{self.document.place('tokenizer')}: `tokenizer` and `tokenizer_source` stand both; keep one."
                )
            source, key = file.tokenizer.source, "tokenizer"
        if source == "base":
            if file.base_model is None:
                raise RecipeError(f"{self.document.place(key)}: {key}: base: there is no `base_model`.")
            return file.base_model
        return UNION if source == "union" else source

    def _models(self) -> tuple[Input, ...]:
        base, role = self.file.base_model, self.row.role
        inputs = []
        for index, one in enumerate(self.file.models or ()):
            parameters = self._options(one.parameters, "models", index, "parameters", single=True)
            inputs.append(Input(one.model, parameters))
        if base is None or not inputs:
            if role == "first" and inputs:
                raise RecipeError(f"the method {self.file.merge_method!r} needs `base_model`.")
            return tuple(inputs)
        others = [one for one in inputs if one.model != base]
        if role == "origin":
            return tuple(others)
        own = [one for one in inputs if one.model == base] or [Input(base)]
        if role == "first":
            return (*own, *others)
        return tuple(inputs) if len(others) < len(inputs) else (*others, *own)

    def _slices(self) -> tuple[Slice, ...]:
        return tuple(self._slice(index, part) for index, part in enumerate(self.file.slices or ()))

    def _slice(self, number: int, part: _Slice) -> Slice:
        path = ("slices", number)
        if part.residual_weight is not None:
            raise RecipeError(
                f"{self.document.place(*path, 'residual_weight')}: `residual_weight` of mergekit is not supported."
            )
        base, role = part.base_model or self.file.base_model, self.row.role
        sources = [
            Layers(
                one.model,
                one.layer_range,
                self._options(one.parameters, *path, "sources", index, "parameters", single=True),
            )
            for index, one in enumerate(part.sources)
        ]
        own = [one for one in sources if one.model == base]
        others = [one for one in sources if one.model != base]
        if role in ("origin", "first") and not own and self.row.without is None:
            raise RecipeError(
                f"{self.document.place(*path)}: the method {self.file.merge_method!r} needs `base_model` among the "
                f"sources of the slice; it is {base!r}."
            )
        common = self._options(part.parameters, *path, "parameters")
        if role == "origin":
            origin = replace(own[0], parameters={}) if own else None
            return Slice(tuple(others), common, origin)
        if self.row.lone and len(sources) == 1:
            return Slice((replace(sources[0], parameters={}),), within(sources[0].parameters, common))
        return Slice(tuple(own + others if role == "first" else sources), common)

    def _options(self, given: Any, *path: str | int, single: bool = False) -> dict[str, Setting]:
        """Settings under our names; those that mergekit does not read are left out with a warning."""
        if given is not None and not isinstance(given, Mapping):
            raise RecipeError(
                f"{self.document.place(*path)}: parameters needs keys below it, not {shown(given)}."
            )
        found: dict[str, Setting] = {}
        for name, value in (given or {}).items():
            place = self.document.place(*path, name)
            parameter = self.row.parameters.get(name)
            if parameter is None or (single and not parameter.per_model):
                self._require_known(str(name), place)
                self._warn(str(name), place, parameter is not None)
                continue
            made = as_setting(value, parameter, f"{place}: {name}")
            if parameter.ours == "along":
                found |= self._along(given or {}, made, place)
            elif parameter.ours is not None:
                method = METHODS[self.row.ours]
                require_option(method, parameter.ours, made, single and not self.row.lone, place)
                found[parameter.ours] = made
        return found

    def _warn(self, name: str, place: str, shared: bool) -> None:
        """Say once that mergekit does not read a parameter where it stands."""
        if name not in self.left_out:
            self.left_out.add(name)
            why = "for all models, and stands at one" if shared else "read by other methods"
            _LOG.warning(
                "%s: %s is %s: mergekit leaves it out here, and so does this merge.", place, name, why
            )

    @staticmethod
    def _along(given: Mapping[str, Any], made: Setting, place: str) -> dict[str, Setting]:
        """Nuslerp's two switches as one option; mergekit's `row_wise` runs along the first axis."""
        if not isinstance(made, bool):
            raise RecipeError(f"{place}: this parameter is one truth value here, without filters.")
        if given.get("nuslerp_flatten", True):
            return {"along": "tensor"}
        return {"along": "columns" if given.get("nuslerp_row_wise", False) else "last_axis"}

    @staticmethod
    def _require_known(name: str, place: str) -> None:
        known = {name for row in DIALECT.values() for name in row.parameters}
        if name not in known:
            raise RecipeError(f"{place}: no mergekit method has a parameter {name!r}. {nearest(name, known)}")

    def _complete(
        self, common: dict[str, Setting], models: Sequence[Input], slices: Sequence[Slice]
    ) -> dict[str, Setting]:
        """The common settings with mergekit's defaults; a parameter without one has to be given for every tensor."""
        named = [(name, one) for name, one in self.row.parameters.items() if one.ours not in (None, "along")]
        given: dict[str, Setting] = {**self.row.fixed, **common}
        defaults: dict[str, Setting] = {}
        for name, parameter in named:
            if parameter.default is not None:
                defaults[str(parameter.ours)] = converted(parameter.default, parameter, name)
            elif not total(given.get(str(parameter.ours))):
                self._require_given(name, str(parameter.ours), models, slices)
        return completed(given, defaults)

    def _require_given(self, name: str, ours: str, models: Sequence[Input], slices: Sequence[Slice]) -> None:
        scopes = [(one.model, [one.parameters]) for one in models]
        scopes += [(one.model, [one.parameters, part.parameters]) for part in slices for one in part.sources]
        for model, given in scopes:
            if not any(total(parameters.get(ours)) for parameters in given):
                raise RecipeError(
                    f"{self.document.place('parameters')}: mergekit's {self.file.merge_method!r} needs `{name}` for "
                    f"every tensor, and {model!r} has none, or filters that leave some out. Give it, or end its list "
                    "with an entry without `filter`."
                )
