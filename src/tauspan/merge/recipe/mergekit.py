"""mergekit's own YAML, read as it is; what cannot be carried over is an error that names its line."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tauspan.core.errors import RecipeError, nearest
from tauspan.core.schema import Document
from tauspan.core.strict_yaml import spelled
from tauspan.merge.engine.settings import Setting
from tauspan.merge.methods import METHODS
from tauspan.merge.methods.method import Value
from tauspan.merge.recipe import mergekit_keys as theirs
from tauspan.merge.recipe.mergekit_methods import DIALECT, MergekitMethod, as_setting, converted, total
from tauspan.merge.recipe.parts import (
    RESULT,
    Input,
    Layers,
    Slice,
    Token,
    canonical,
    completed,
    require_option,
    within,
)
from tauspan.merge.recipe.recipe import BASE, UNION, MergeRecipe

_DEFAULT = "default"  # mergekit's name of the module of a model that has one


def translated(document: Document) -> MergeRecipe:
    """The recipe that a mergekit file describes.

    Arithmetic is in float32 (float64 where the file says so) and rounded once, to `out_dtype` or `dtype`; mergekit
    computes in `dtype`. The key `allow` is ours.

    Raises:
        RecipeError: it is no mergekit file, or asks for what is not supported; with the line.
    """
    file, notes = theirs.read_file(document)
    if file.merge_method not in DIALECT:
        raise RecipeError(
            f"{document.place('merge_method')}: no mergekit method {file.merge_method!r}. "
            f"{nearest(file.merge_method, DIALECT)}"
        )
    if sum(bool(one) for one in (file.models, file.slices, file.modules)) != 1:
        raise RecipeError(f"{document.where}: exactly one of `models`, `slices` and `modules` is needed.")
    reader = _Reader(document, file, DIALECT[file.merge_method], [*notes])
    try:
        return reader.recipe()
    except RecipeError as error:
        raise error if document.where in str(error) else RecipeError(f"{document.where}: {error}") from error


@dataclass(frozen=True)
class _Reader:
    """Translates one mergekit file into a recipe; `notes` collects the warnings."""

    document: Document
    file: theirs.MergekitFile
    row: MergekitMethod
    notes: list[str]

    def recipe(self) -> MergeRecipe:
        file, row = self.file, self.row
        common = self._options(file.parameters, "parameters")
        models: tuple[Input, ...] = self._models()
        slices = self._slices()
        if row.lone and len(models) == 1:
            common = within(models[0].parameters, common)
            models = (Input(models[0].model),)
        whole = bool(models) or not slices
        based = file.base_model is not None if whole else any(part.base for part in slices)
        method: str | None = row.ours if based or row.role in ("first", "last") else row.without
        if method is None:
            raise RecipeError(f"the method {file.merge_method!r} needs `base_model`.")
        base: str | None = file.base_model
        parameters = self._complete(common, models, slices)
        if whole and not models:  # the base alone: nothing is added to it
            method, base, parameters = "passthrough", None, {}
            models = (Input(str(file.base_model)),)
        wide: Any = "float64" if self._dtype("dtype") == "float64" else "float32"
        return MergeRecipe(
            method=method, models=models, slices=slices, base_model=base, parameters=parameters, dtype=wide,
            out_dtype=self._dtype("out_dtype") or self._dtype("dtype"), chat_template=file.chat_template or None,
            allow=file.allow, **self._words(), notes=tuple(self.notes), loose=True,
        )  # fmt: skip

    def _dtype(self, key: str) -> Any:
        name = getattr(self.file, key)
        plain = None if name is None else canonical(name)
        if plain is not None and plain not in RESULT:
            raise RecipeError(f"{self.document.place(key)}: {key} is {name!r}. {nearest(plain, RESULT)}")
        return plain

    def _words(self) -> dict[str, Any]:
        """The tokenizer, the sources of its tokens, and padding."""
        file = self.file
        source, tokens, pad = file.tokenizer_source, {}, None
        if file.tokenizer is not None:
            if source is not None:
                raise RecipeError(
                    f"{self.document.place('tokenizer')}: `tokenizer` and `tokenizer_source` stand both; keep one."
                )
            source, pad = file.tokenizer.source, file.tokenizer.pad_to_multiple_of
            tokens = {
                str(token): self._token(how, f"{self.document.place('tokenizer', 'tokens', token)}: {token}")
                for token, how in (file.tokenizer.tokens or {}).items()
            }
        if source == "base":
            source = file.base_model or BASE
        return {
            "tokenizer_source": UNION if source == "union" else source,
            "tokens": tokens,
            "pad_to_multiple_of": pad or None,
        }

    @staticmethod
    def _token(how: Any, place: str) -> Token:
        """Where a token's row comes from: a model, `{kind: model_token, ...}`, `{kind: zero}`."""
        if not isinstance(how, Mapping):
            raise RecipeError(
                f"{place} is {spelled(how)}, and needs keys below it: `source`, and perhaps `force`."
            )
        source, force = how.get("source"), bool(how.get("force", False))
        if isinstance(source, Mapping) and source.get("kind") == "zero":
            return Token("zero", force=force)
        if isinstance(source, Mapping) and source.get("kind") == "model_token":
            named = [source.get("token"), source.get("token_id")]
            if named.count(None) != 1:
                raise RecipeError(f"{place}: a model_token needs `model` and one of `token` and `token_id`.")
            return Token(theirs.reference(source.get("model"), place), named[0], named[1], force)
        if source is None:
            raise RecipeError(f"{place}: `source` is missing: a model, or a mapping with `kind`.")
        return Token(theirs.reference(source, place), force=force)

    # -- models --------------------------------------------------------------------------------------------------

    def _models(self) -> tuple[Input, ...]:
        given, path = self.file.models, ["models"]
        modules = self.file.modules
        outer: Mapping[str, Setting] = {}
        if list(modules) == [_DEFAULT] and modules[_DEFAULT].models:
            given, path = modules[_DEFAULT].models, ["modules", _DEFAULT, "models"]
            outer = self._options(modules[_DEFAULT].parameters, "modules", _DEFAULT, "parameters")
        inputs = [
            Input(one.model, self._options(one.parameters, *path, index, "parameters", single=True))
            for index, one in enumerate(given or ())
        ]
        if outer:
            self._refuse_shared(outer, "modules", _DEFAULT)
            inputs = [replace(one, parameters=within(one.parameters, outer)) for one in inputs]
        if not inputs:
            return ()
        return tuple(self._roles(inputs, Input))

    def _refuse_shared(self, outer: Mapping[str, Setting], *path: str) -> None:
        """Raise for a parameter of a module that is not per model: a recipe can hold it for the whole file only."""
        for name in outer:
            option = next(one for one in METHODS[self.row.ours].options if one.name == name)
            if not option.per_model:
                raise RecipeError(
                    f"{self.document.place(*path, 'parameters')}: {name!r} is for all models: write it among the "
                    "file's own `parameters`."
                )

    def _roles(self, inputs: list[Any], make: Any) -> list[Any]:
        """The models in the order of our methods: the base left out, first or last."""
        base, role = self.file.base_model, self.row.role
        if base is None:
            if role == "first":
                raise RecipeError(f"the method {self.file.merge_method!r} needs `base_model`.")
            return inputs
        others = [one for one in inputs if one.model != base]
        if role == "origin":
            return others
        own = [one for one in inputs if one.model == base] or [make(base)]
        if role == "first":
            return [*own, *others]
        return inputs if len(others) < len(inputs) else [*others, *own]

    # -- slices --------------------------------------------------------------------------------------------------

    def _slices(self) -> tuple[Slice, ...]:
        file = self.file
        made = [self._slice(part, None, {}, "slices", index) for index, part in enumerate(file.slices or ())]
        for name, module in file.modules.items():
            if bool(module.models) == bool(module.slices):
                raise RecipeError(
                    f"{self.document.place('modules', name)}: exactly one of `models` and `slices` is needed."
                )
            if list(file.modules) == [_DEFAULT] and module.models:
                continue  # it is the whole model: see `_models`
            stack = None if name == _DEFAULT else name
            outer = self._options(module.parameters, "modules", name, "parameters")
            for index, part in enumerate(module.slices or ()):
                made.append(self._slice(part, stack, outer, "modules", name, "slices", index))
            if module.models:
                made.append(self._whole(module.models, stack, outer, "modules", name, "models"))
        return tuple(made)

    def _whole(
        self,
        models: Sequence[theirs.MergekitModel],
        stack: str | None,
        outer: Mapping[str, Setting],
        *path: str | int,
    ) -> Slice:
        """All layers of a module, of some models."""
        sources = [
            Layers(one.model, None, self._options(one.parameters, *path, index, "parameters", single=True))
            for index, one in enumerate(models)
        ]
        base = self.file.base_model
        origin = Layers(base) if self.row.role == "origin" and base is not None else None
        return Slice(tuple(self._roles(sources, Layers)), dict(outer), origin, stack)

    def _slice(
        self, part: theirs.MergekitSlice, stack: str | None, outer: Mapping[str, Setting], *path: str | int
    ) -> Slice:
        if part.residual_weight is not None:
            self.notes.append(
                f"{self.document.place(*path, 'residual_weight')}: mergekit 0.1.5 knows `residual_weight` and does "
                "nothing with it, and neither does this merge."
            )
        base, role = part.base_model or self.file.base_model, self.row.role
        sources = [
            Layers(
                one.model,
                self._range(one, *path, "sources", index),
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
        common = within(self._options(part.parameters, *path, "parameters"), outer)
        if role == "origin":
            origin = replace(own[0], parameters={}) if own else None
            return Slice(tuple(others) or tuple(own), common, origin, stack)
        if self.row.lone and len(sources) == 1:
            inner = within(sources[0].parameters, common)
            return Slice((replace(sources[0], parameters={}),), inner, None, stack)
        return Slice(tuple(own + others if role == "first" else sources), common, None, stack)

    def _range(self, source: theirs.MergekitSource, *path: str | int) -> tuple[int, ...]:
        if not source.layer_range:
            raise RecipeError(f"{self.document.place(*path)}: `layer_range` is missing.")
        return source.layer_range

    # -- parameters ----------------------------------------------------------------------------------------------

    def _options(self, given: Any, *path: str | int, single: bool = False) -> dict[str, Setting]:
        """Settings under our names; those that mergekit does not read are left out with a warning."""
        if given is not None and not isinstance(given, Mapping):
            raise RecipeError(
                f"{self.document.place(*path)}: parameters needs keys below it, not {spelled(given)}."
            )
        found: dict[str, Setting] = {}
        for name, value in (given or {}).items():
            place = self.document.place(*path, name)
            parameter = self.row.parameters.get(name)
            if parameter is None or (single and not parameter.per_model):
                self._unread(str(name), place, parameter is not None)
                continue
            made = as_setting(value, parameter, f"{place}: {name}", self.notes)
            if made is None:
                continue
            if parameter.ours == "along":
                found |= self._along(given or {}, made, place)
            elif parameter.ours is not None:
                method = METHODS[self.row.ours]
                require_option(method, parameter.ours, made, single and not self.row.lone, place)
                found[parameter.ours] = made
        return found

    def _unread(self, name: str, place: str, shared: bool) -> None:
        """Note that mergekit does not read a parameter at this place; a misspelt name is an error."""
        known = {one for row in DIALECT.values() for one in row.parameters}
        if name not in known and theirs.slip(name, known):
            raise RecipeError(f"{place}: no mergekit method has a parameter {name!r}. {nearest(name, known)}")
        why = "for all models, and stands at one" if shared else "read by other methods"
        why = why if name in known else "a parameter of no method"
        note = f"{name} is {why}: mergekit leaves it out here, and so does this merge."
        if not any(one.endswith(note) for one in self.notes):  # once, however many models have it
            self.notes.append(f"{place}: {note}")

    @staticmethod
    def _along(given: Mapping[str, Any], made: Setting, place: str) -> dict[str, Setting]:
        """Nuslerp's two switches as one option; mergekit's `row_wise` runs along the first axis."""
        if not isinstance(made, bool):
            raise RecipeError(f"{place}: this parameter is one truth value here, without filters.")
        if given.get("nuslerp_flatten", True):
            return {"along": "tensor"}
        return {"along": "columns" if given.get("nuslerp_row_wise", False) else "last_axis"}

    def _complete(
        self, common: dict[str, Setting], models: Sequence[Input], slices: Sequence[Slice]
    ) -> dict[str, Setting]:
        """The common settings with mergekit's defaults; a parameter without one has to be given for every tensor."""
        named = [(name, one) for name, one in self.row.parameters.items() if one.ours not in (None, "along")]
        fixed: Mapping[str, Value] = self.row.fixed
        given: dict[str, Setting] = {**fixed, **common}
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
