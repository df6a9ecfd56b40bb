"""The methods and parameters of mergekit 0.1.5 as tauspan's, and its values as options."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

from tauspan.core.errors import RecipeError, listed
from tauspan.core.strict_yaml import spelled
from tauspan.merge.engine.settings import Gradient, Setting, Steps
from tauspan.merge.methods.method import Value
from tauspan.merge.recipe.parts import setting

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
    """Our name of the option that mergekit calls by this name; None if mergekit has no such option.

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

    mergekit takes the first entry that matches and ignores what it does not know; `notes` collects what was ignored.
    """
    if isinstance(value, list) and not value:
        return None
    made = setting(_reached(_known(_numbers(value, parameter), place, notes), place, notes), place)
    if isinstance(made, tuple):
        return tuple(replace(entry, value=converted(entry.value, parameter, place)) for entry in made)
    result: Value | Gradient | Steps = converted(made, parameter, place)
    return result


def _known(value: Any, place: str, notes: list[str]) -> Any:
    """The value without the keys of its entries that mergekit does not read."""
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
    """The entries up to the first that matches every tensor."""
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
    """The value with texts such as 1e-4 as numbers, and `yes` and 1 as booleans, which is how mergekit reads them."""
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
            raise RecipeError(f"{place} is {spelled(value)}, and must be true or false.")
        return parameter.texts[bool(value)] if parameter.texts else bool(value)
    if isinstance(value, Gradient):
        return value
    if not isinstance(value, int | float):
        raise RecipeError(f"{place} is {spelled(value)}, and must be a number.")
    try:
        return int(value) if parameter.kind is int else float(value)
    except (OverflowError, ValueError) as error:
        raise RecipeError(f"{place} is {spelled(value)}, and must be a number that float64 holds.") from error
