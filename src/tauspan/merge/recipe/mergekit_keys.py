"""The dialect of mergekit 0.1.5: its files' keys, and what its methods and parameters are among ours."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

from tauspan.core.errors import RecipeError, listed
from tauspan.core.schema import Document, shown
from tauspan.merge.engine.settings import Gradient, Setting, Steps
from tauspan.merge.methods.method import Value
from tauspan.merge.recipe.parts import setting

KeyPath = tuple[str | int, ...]
_OTHERS = {
    "experts": "mergekit-moe, which makes a mixture of experts of dense models. That is no merge of weights: it needs "
    "prompts and forward passes, and tauspan does not do it",
    "gate_mode": "mergekit-moe, which makes a mixture of experts of dense models. That is no merge of weights: it needs "
    "prompts and forward passes, and tauspan does not do it",
    "genome": "mergekit-evolve, which searches options by evaluating merges. Search with `tauspan.coefficients` instead",
    "layer_slices": "mergekit's bakllama, an older form. Write its slices as `slices` with `sources` of `model` and "
    "`layer_range`",
}
"""Keys that belong to other programs of mergekit, each with what that program is."""
_SIMILAR = 0.8  # from which a key that mergekit does not read is taken for a slip of one that it does


def _raw(value: Any, _: str) -> Any:
    return value


def reference(value: Any, place: str) -> str | None:
    """A model as text, of the mapping that mergekit writes too: `{model: {path: P, revision: R}, lora: ...}`."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, Mapping):
        path = value.get("path", value.get("model"))
        if isinstance(path, Mapping | str):
            revision = value.get("revision") if "path" in value else None
            text = f"{reference(path, place)}@{revision}" if revision else str(reference(path, place))
            lora = value.get("lora")
            return text if lora is None else f"{text}+{reference(lora, place)}"
    raise RecipeError(
        f"{place} is {shown(value)}, and must be a model: a text, or a mapping with `model` or `path`."
    )


def _source(value: Any, place: str) -> str:
    found = reference(value, place)
    if not found:
        raise RecipeError(f"{place} is {shown(value)}, and must be a model.")
    return found


def _layers(value: Any, place: str) -> tuple[int, ...]:
    numbers = value if isinstance(value, list) else []
    whole = [int(one) for one in numbers if isinstance(one, int | float) and float(one).is_integer()]
    if len(whole) != len(numbers) or len(numbers) != 2:
        raise RecipeError(f"{place} is {shown(value)}, and must be [FIRST, END].")
    return tuple(whole)


@dataclass(frozen=True)
class MergekitModel:
    """A model with its parameters."""

    model: str = field(metadata={"parse": _source})
    parameters: Mapping[str, Any] | None = field(default=None, metadata={"parse": _raw})


@dataclass(frozen=True)
class MergekitSource(MergekitModel):
    """A source of a slice."""

    layer_range: tuple[int, ...] = field(default=(), metadata={"parse": _layers})


@dataclass(frozen=True)
class MergekitSlice:
    """A slice of the output."""

    sources: tuple[MergekitSource, ...]
    base_model: str | None = field(default=None, metadata={"parse": reference})
    residual_weight: Any = field(default=None, metadata={"parse": _raw})
    parameters: Mapping[str, Any] | None = field(default=None, metadata={"parse": _raw})


@dataclass(frozen=True)
class MergekitModule:
    """One module of a model of several."""

    slices: tuple[MergekitSlice, ...] | None = None
    models: tuple[MergekitModel, ...] | None = None
    parameters: Mapping[str, Any] | None = field(default=None, metadata={"parse": _raw})


@dataclass(frozen=True)
class MergekitTokenizer:
    """The tokenizer."""

    source: str | None = field(default="union", metadata={"parse": reference})
    tokens: Mapping[str, Any] | None = field(default=None, metadata={"parse": _raw})
    pad_to_multiple_of: int | None = None


@dataclass(frozen=True)
class MergekitFile:
    """The whole file."""

    merge_method: str
    models: tuple[MergekitModel, ...] | None = None
    slices: tuple[MergekitSlice, ...] | None = None
    modules: Mapping[str, MergekitModule] = field(default_factory=dict)
    base_model: str | None = field(default=None, metadata={"parse": reference})
    dtype: str | None = None
    out_dtype: str | None = None
    tokenizer_source: str | None = field(default=None, metadata={"parse": reference})
    tokenizer: MergekitTokenizer | None = None
    chat_template: str | None = None
    parameters: Mapping[str, Any] | None = field(default=None, metadata={"parse": _raw})
    allow: tuple[str, ...] = ()


_INSIDE: Mapping[str, type] = {
    "models": MergekitModel,
    "slices": MergekitSlice,
    "sources": MergekitSource,
    "modules": MergekitModule,
    "tokenizer": MergekitTokenizer,
}


def read_file(document: Document) -> tuple[MergekitFile, tuple[str, ...]]:
    """The file in a document, and what is to be said of keys that mergekit does not read.

    mergekit leaves out any key that it does not know; one that looks like a slip of the pen is an error here.

    Raises:
        RecipeError: the file is of another of mergekit's programs, or a key or value is wrong; with the line.
    """
    for key, program in _OTHERS.items():
        if key in document.plain:
            raise RecipeError(f"{document.place(key)}: {key!r} is a key of {program}.")
    notes: list[str] = []
    plain = _kept_keys(document.plain, MergekitFile, (), document, notes)
    return document.with_plain(plain).build(MergekitFile), tuple(notes)


def _kept_keys(value: Any, kind: type, path: KeyPath, document: Document, notes: list[str]) -> Any:
    """A mapping without the keys that its dataclass lacks, in the mappings and lists inside it too."""
    if not isinstance(value, Mapping):
        return value
    names = {one.name for one in fields(kind)} if is_dataclass(kind) else set()
    kept = {}
    for key, inner in value.items():
        if inner is None:
            continue
        if key not in names:
            notes += _unknown(str(key), sorted(names), path, document)
            continue
        below = _INSIDE.get(str(key))
        kept[key] = inner if below is None else _below(inner, below, (*path, str(key)), document, notes)
    return kept


def _below(value: Any, kind: type, path: KeyPath, document: Document, notes: list[str]) -> Any:
    if isinstance(value, list):
        return [_kept_keys(one, kind, (*path, at), document, notes) for at, one in enumerate(value)]
    if kind is MergekitModule and isinstance(value, Mapping):
        return {
            name: _kept_keys(one, kind, (*path, str(name)), document, notes) for name, one in value.items()
        }
    return _kept_keys(value, kind, path, document, notes)


def slip(key: str, names: Iterable[str]) -> str | None:
    """The known name that a key is probably a slip of; None if it is like none.

    Example:
        >>> slip("dtpye", ["dtype"]), slip("name", ["dtype"])
        ('dtype', None)
    """
    return next(iter(difflib.get_close_matches(key, list(names), 1, _SIMILAR)), None)


def _unknown(key: str, names: Sequence[str], path: KeyPath, document: Document) -> list[str]:
    """What is said of a key that mergekit does not read."""
    place = document.place(*path, key)
    near = slip(key, names)
    full = ".".join([*map(str, path), key])
    if near:
        raise RecipeError(f"{place}: unknown key {full!r}. Did you mean {near!r}?")
    more = " To take a revision, write MODEL@REVISION." if key == "revision" else ""
    more = " Seeds are given by `--seed`." if key in ("random_seed", "seed") else more
    return [f"{place}: mergekit 0.1.5 does not read {full!r}, and neither does this merge.{more}"]


Role: TypeAlias = Literal["origin", "first", "last", "none"]


@dataclass(frozen=True)
class MergekitParameter:
    """One parameter of a mergekit method.

    Args:
        ours: the option's name; None for one that changes no value.
        default: mergekit's; None where it has to be given.
        per_model: one number for each model.
        kind: what mergekit reads it as.
        texts: what false and true are called in ours; None where they keep their names.
    """

    ours: str | None
    default: Value
    per_model: bool = False
    kind: type = float
    texts: tuple[str, str] | None = None


@dataclass(frozen=True)
class MergekitMethod:
    """One mergekit method.

    Args:
        ours: the name in `METHODS` where a base is given.
        parameters: by mergekit's name.
        role: of the base model: `origin` of displacements, merged as the `first` or the `last` model, or `none`.
        without: the name in `METHODS` where no base is given; None where mergekit needs one.
        fixed: options that make our method mergekit's variant.
        lone: it takes one model, whose own parameters are everyone's.
    """

    ours: str
    parameters: Mapping[str, MergekitParameter] = field(default_factory=dict)
    role: Role = "origin"
    without: str | None = None
    fixed: Mapping[str, Value] = field(default_factory=dict)
    lone: bool = False


_WEIGHT = {"weight": MergekitParameter("weight", None, per_model=True)}
_T = {"t": MergekitParameter("t", None)}
_ALONG = {  # together they choose one option, see `mergekit.along`
    "nuslerp_flatten": MergekitParameter("along", True, kind=bool),
    "nuslerp_row_wise": MergekitParameter("along", False, kind=bool),
}
_EPSILON = {"epsilon": MergekitParameter("epsilon", 1e-5)}
_RESCALE = ("none", "l1")
_MASK = {"int8_mask": MergekitParameter(None, False, kind=bool)}


def _sum(ours: str, normalize: bool, rescale: bool | None = None, **own: float) -> MergekitMethod:
    """A row of the task-arithmetic family: `own` are the defaults of its per-model parameters besides the weight."""
    parameters = {
        **_WEIGHT,
        **_MASK,
        "normalize": MergekitParameter("normalize", normalize, kind=bool),
        "lambda": MergekitParameter("scale", 1.0),
        # without a trim there is nothing to rescale, and no option for it
        "density": MergekitParameter("density" if own else None, 1.0, per_model=True),
        "rescale": MergekitParameter(
            None if rescale is None else "rescale", bool(rescale), kind=bool, texts=_RESCALE
        ),
    }
    return MergekitMethod(
        ours, parameters | {name: MergekitParameter(name, value, True) for name, value in own.items()}
    )


DIALECT: Mapping[str, MergekitMethod] = MappingProxyType(
    {
        "linear": MergekitMethod(
            "linear",
            {**_WEIGHT, "normalize": MergekitParameter("normalize", True, kind=bool)},
            role="last",
            without="linear",
        ),
        "task_arithmetic": _sum("task_arithmetic", False),
        "ties": _sum("ties_mergekit", True, False, density=1.0),
        "dare_linear": _sum("dare_linear", False, True, density=1.0),
        "dare_ties": _sum("dare_ties", False, True, density=1.0),
        "della": _sum("della", True, True, density=1.0, epsilon=0.15),
        "della_linear": _sum("della_linear", False, True, density=1.0, epsilon=0.15),
        "breadcrumbs": _sum("breadcrumbs", False, False, density=1.0, gamma=0.01),
        "breadcrumbs_ties": _sum("breadcrumbs_ties", False, False, density=1.0, gamma=0.01),
        "slerp": MergekitMethod("slerp", _T, role="first", fixed={"dot_threshold": 0.9995}),
        "nuslerp": MergekitMethod("nuslerp", {**_WEIGHT, **_ALONG}, without="nuslerp_point"),
        "multislerp": MergekitMethod(
            "multislerp",
            {
                **_WEIGHT,
                "normalize_weights": MergekitParameter("normalize", True, kind=bool),
                "eps": MergekitParameter(None, 1e-8),
            },
            without="multislerp_point",
        ),
        "karcher": MergekitMethod(
            "karcher",
            {"max_iter": MergekitParameter("max_iter", 10, kind=int), "tol": MergekitParameter("tol", 1e-5)},
            role="last",
            without="karcher",
        ),
        "nearswap": MergekitMethod("nearswap", _T),
        "arcee_fusion": MergekitMethod("arcee_fusion"),
        "model_stock": MergekitMethod(
            "model_stock",
            {"filter_wise": MergekitParameter("filter_wise", False, kind=bool)},
            fixed={"floor": 1e-6},
        ),
        "sce": MergekitMethod(
            "sce",
            {**_MASK, "select_topk": MergekitParameter("select_topk", 1.0)},
            fixed={"equal_below": 1e-6},
        ),
        "ram": MergekitMethod("ram", _EPSILON),
        "ramplus_tl": MergekitMethod(
            "ramplus_tl",
            {**_EPSILON, "r": MergekitParameter("r", 0.1), "alpha": MergekitParameter("alpha", 0.2)},
        ),
        "passthrough": MergekitMethod(
            "passthrough", {"scale": MergekitParameter("scale", 1.0, True)}, "last", "passthrough", lone=True
        ),
    }
)


def spelled_here(name: str) -> str | None:
    """What an option is called here that mergekit calls by this name; None if mergekit has no such option.

    Example:
        >>> spelled_here("lambda"), spelled_here("no_such")
        ('scale', None)
    """
    every = (row.parameters[name].ours for row in DIALECT.values() if name in row.parameters)
    return next((ours for ours in every if ours is not None), None)


def total(given: Setting) -> bool:
    """Whether a setting has a value for every tensor."""
    if isinstance(given, tuple):
        return any(entry.pattern is None for entry in given)
    return given is not None


def as_setting(value: Any, parameter: MergekitParameter, place: str, notes: list[str]) -> Setting:
    """A value of mergekit's file as a setting of ours; None for an empty list, which says nothing.

    mergekit takes the first entry that fits and leaves out what it does not know; `notes` collects what that is.
    """
    if isinstance(value, list) and not value:
        return None
    made = setting(_reached(_known(_numbers(value, parameter), place, notes), place, notes), place)
    if isinstance(made, tuple):
        return tuple(replace(entry, value=converted(entry.value, parameter, place)) for entry in made)
    result: Value | Gradient | Steps = converted(made, parameter, place)
    return result


def _known(value: Any, place: str, notes: list[str]) -> Any:
    """Entries without keys that mergekit does not read."""
    if isinstance(value, list):
        return [_known(item, place, notes) for item in value]
    if not isinstance(value, Mapping):
        return value
    others = [str(key) for key in value if key not in ("filter", "value")]
    if others:
        notes.append(
            f"{place}: mergekit 0.1.5 does not read {listed(map(repr, others))} of an entry, and neither does this."
        )
    return {key: item for key, item in value.items() if key in ("filter", "value")}


def _reached(value: Any, place: str, notes: list[str]) -> Any:
    """Entries up to the first that fits every tensor."""
    if not isinstance(value, list) or not all(isinstance(item, Mapping) for item in value):
        return value
    ends = [at for at, item in enumerate(value) if item.get("filter") in (None, "*")]
    if ends and ends[0] < len(value) - 1:
        count = len(value) - 1 - ends[0]
        notes.append(
            f"{place}: entry {ends[0]} fits every tensor, so mergekit does not reach the {count} after it, and "
            "neither does this merge."
        )
        return value[: ends[0] + 1]
    return value


def _numbers(value: Any, parameter: MergekitParameter) -> Any:
    """The same with texts such as 1e-4 as numbers, and `yes` and 1 as truths, which is how mergekit reads them."""
    if isinstance(value, Mapping):
        return {key: _numbers(item, parameter) if key == "value" else item for key, item in value.items()}
    if isinstance(value, list):
        return [_numbers(item, parameter) for item in value]
    if parameter.kind is bool:
        return _TRUTHS.get(str(value).lower(), value)
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


_TRUTHS = dict.fromkeys(("true", "t", "yes", "y", "on", "1", "1.0"), True)
_TRUTHS |= dict.fromkeys(("false", "f", "no", "n", "off", "0", "0.0"), False)


def converted(value: Any, parameter: MergekitParameter, place: str) -> Any:
    """A value as mergekit's type for it, then as ours."""
    if parameter.kind is bool:
        if isinstance(value, Steps):
            return Steps(tuple(converted(point, parameter, place) for point in value.points))
        if isinstance(value, Gradient) or value not in (0, 1):
            raise RecipeError(f"{place} is {shown(value)}, and must be true or false.")
        return parameter.texts[bool(value)] if parameter.texts else bool(value)
    if isinstance(value, Gradient):
        return value
    if not isinstance(value, int | float):
        raise RecipeError(f"{place} is {shown(value)}, and must be a number.")
    try:
        return int(value) if parameter.kind is int else float(value)
    except (OverflowError, ValueError) as error:
        raise RecipeError(f"{place} is {shown(value)}, and must be a number that float64 holds.") from error
