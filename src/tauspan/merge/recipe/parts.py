"""The parts of a recipe and their values, as its files spell them."""

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tauspan.core.errors import RecipeError, UsageError, nearest
from tauspan.core.strict_yaml import spelled
from tauspan.merge.engine.plugins import names
from tauspan.merge.engine.settings import Filtered, Gradient, Setting, Settings, Steps
from tauspan.merge.methods import METHODS
from tauspan.merge.methods.method import Method, Value


def setting(value: Any, place: str) -> Setting:
    """A value; a list of values, which runs over the layers; or a list of `filter` and `value`."""
    if isinstance(value, list) and value and all(isinstance(entry, Mapping) for entry in value):
        entries = tuple(_filtered(entry, f"{place}[{index}]") for index, entry in enumerate(value))
        return _reachable(entries)
    if isinstance(value, Mapping):
        return (_filtered(value, place),)
    result: Value | Gradient | Steps = _plain(value, place)
    return result


def _reachable(entries: tuple[Filtered, ...]) -> tuple[Filtered, ...]:
    """The entries, of which the first that matches is used; an error if one follows an entry that matches everything."""
    for entry, later in itertools.pairwise(entries):
        if entry.pattern is None:
            raise RecipeError(
                f"{later.place} is never reached: the entry before it fits every tensor. Put it first, or give that "
                "entry a `filter`."
            )
    return entries


def _plain(value: Any, place: str) -> Any:
    if isinstance(value, list):
        if value and all(isinstance(entry, int | float) and type(entry) is not bool for entry in value):
            return Gradient(tuple(float(entry) for entry in value))
        if value and any(all(type(entry) is kind for entry in value) for kind in (bool, str)):
            return Steps(tuple(value))
        raise RecipeError(
            f"{place} is {spelled(value)}: a list holds numbers, or truths, from the first layer to the last, or entries "
            "with `filter` and `value`."
        )
    if value is None or isinstance(value, Mapping):
        raise RecipeError(
            f"{place} is {spelled(value)}, and needs a value; leave the key out for the default."
        )
    return value


def _filtered(entry: Mapping[str, Any], place: str) -> Filtered:
    known = ("filter", "value")
    for key in entry:
        if key not in known:
            raise RecipeError(f"{place}: unknown key {str(key)!r}. {nearest(str(key), known)}")
    if "value" not in entry:
        raise RecipeError(f"{place}: `value` is missing.")
    pattern = entry.get("filter")
    if pattern is not None and not isinstance(pattern, str):
        raise RecipeError(f"{place}.filter is {spelled(pattern)}, and must be a part of tensor names.")
    return Filtered(None if pattern == "*" else pattern, _plain(entry["value"], f"{place}.value"), place)


def written(parameters: Mapping[str, Setting]) -> dict[str, Any]:
    """Settings as a recipe's file spells them."""
    return {name: _written(value) for name, value in parameters.items()}


def _written(value: Setting) -> Any:
    if isinstance(value, tuple):
        return [{"filter": entry.pattern, "value": _written(entry.value)} for entry in value]
    return list(value.points) if isinstance(value, Gradient | Steps) else value


def completed(given: Mapping[str, Setting], defaults: Mapping[str, Setting]) -> dict[str, Setting]:
    """Settings that have a value for every tensor: the default where none is given or no filter matches."""
    done = dict(given)
    for name, default in defaults.items():
        before = done.get(name)
        if isinstance(before, tuple) and all(entry.pattern is not None for entry in before):
            done[name] = (*before, *chained(default))
        elif before is None:
            done[name] = default
    return done


def within(inner: Mapping[str, Setting], outer: Mapping[str, Setting]) -> dict[str, Setting]:
    """Settings of two scopes as one: the outer one is used if the inner one has none, or no filter of it matches."""
    return {**outer, **completed(inner, {name: outer[name] for name in inner if name in outer})}


def chained(setting: Setting) -> tuple[Filtered, ...]:
    """A setting as a list of filters."""
    return setting if isinstance(setting, tuple) else (Filtered(None, setting),)


def require_option(method: Method, name: str, value: Setting, single: bool, place: str) -> None:
    """Raise, naming the place: for an option that the method lacks or that is not per model, or for a bad value."""
    one = {name: value}
    try:
        Settings(method, 1, {} if single else one, [one] if single else ())
    except UsageError as error:
        raise RecipeError(f"{place}: {error}") from error


ARITHMETIC = ("float32", "float64")
RESULT = ("float64", "float32", "float16", "bfloat16")
_SHORT = {"bf16": "bfloat16", "fp16": "float16", "half": "float16", "fp32": "float32", "float": "float32"}
_SHORT |= {"fp64": "float64", "double": "float64"}
_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "TIB": 1 << 40}
_UNITS |= {"K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "B": 10**9}  # B is mergekit's, of billion
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]+)\s*")


def method(name: Any, place: str) -> str:
    """The name of a method, of `METHODS` or of an installed package; or `module:function` for one of the user's own."""
    if not isinstance(name, str) or (":" not in name and name not in METHODS and name not in names()):
        raise RecipeError(f"{place}: no merging method {name!r}. {nearest(str(name), names())}")
    return name


def canonical(dtype: str) -> str:
    """The name that torch gives a dtype that people spell in several ways.

    Example:
        >>> canonical("bf16"), canonical("torch.float16"), canonical("int7")
        ('bfloat16', 'float16', 'int7')
    """
    plain = dtype.removeprefix("torch.")
    return _SHORT.get(plain, plain)


def arithmetic(name: Any, place: str) -> str:
    """The dtype of the arithmetic, by its plain name."""
    plain = canonical(str(name))
    if plain in ARITHMETIC:
        return plain
    hint = nearest(plain, ARITHMETIC)
    if plain in RESULT:
        hint = (
            f"It is the arithmetic's: float32 or float64. For the result's dtype write `out_dtype: {plain}`."
        )
    raise RecipeError(f"{place} is {name!r}. {hint}")


def result(name: Any, place: str) -> str | None:
    """The dtype of the result, by its plain name; None for the base's."""
    plain = None if name is None else canonical(str(name))
    if plain is not None and plain not in RESULT:
        raise RecipeError(f"{place} is {name!r}. {nearest(plain, RESULT)}")
    return plain


def require_plain(dtype: str, out_dtype: str | None) -> None:
    """Raise unless both dtypes, given in Python, have their plain names."""
    for key, given, plain in (
        ("dtype", dtype, arithmetic(dtype, "dtype")),
        ("out_dtype", out_dtype, result(out_dtype, "out_dtype")),
    ):
        if given != plain:
            raise RecipeError(f"{key} is {given!r}: write {plain!r}.")


def size_text(text: Any, place: str) -> str:
    """The text of a size, such as `5GB`."""
    if not isinstance(text, str):
        raise RecipeError(f"{place} is {text!r}: write a text such as 5GB.")
    size(text, place)
    return text


def size(text: str, place: str = "shard_size") -> int:
    """Bytes of a size such as `5GB` (in powers of 1000), `2GiB` (of 1024) or mergekit's `5B`, billions of bytes.

    Example:
        >>> size("5GB"), size("5B"), size("1.5 MiB")
        (5000000000, 5000000000, 1572864)
    """
    found = _SIZE.fullmatch(text)
    unit = _UNITS.get(found[2].upper()) if found else None
    nbytes = int(float(found[1]) * unit) if found and unit else 0
    if not nbytes:
        raise RecipeError(
            f"{place} is {text!r}: it is a number with KB, MB, GB or TB, or KiB, MiB, GiB or TiB, for example 5GB."
        )
    return nbytes


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
        """Raise `RecipeError` if its sources have different numbers of layers."""
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
