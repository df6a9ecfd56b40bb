"""A method's options for each tensor: one number, a gradient over the layers, or the first filter that matches."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from tauspan.core.errors import UsageError, nearest
from tauspan.merge.methods.method import Method, Option, Value

_LAYER = re.compile(r"(?:^|\.)(\d+)\.")


@dataclass(frozen=True)
class Gradient:
    """A number that changes from the first layer to the last: `points`, with linear interpolation between them."""

    points: tuple[float, ...]

    def at(self, depth: float | None) -> float:
        """The number at a depth in [0, 1]; tensors outside the layers have the first point's."""
        place = (depth or 0.0) * (len(self.points) - 1)
        low = min(int(place), len(self.points) - 2) if len(self.points) > 1 else 0
        high = min(low + 1, len(self.points) - 1)
        return self.points[low] + (place - low) * (self.points[high] - self.points[low])


@dataclass(frozen=True)
class Steps:
    """A boolean or a text for each part of the layers, from the first to the last, without interpolation."""

    points: tuple["Value", ...]

    def at(self, depth: float | None) -> "Value":
        """The value at a depth in [0, 1]; tensors outside the layers have the first one."""
        return self.points[int((depth or 0.0) * (len(self.points) - 1))]


@dataclass(frozen=True)
class Filtered:
    """A value for the tensors whose name contains `pattern`; None matches all. `place` is its place in a file."""

    pattern: str | None
    value: "Value | Gradient | Steps"
    place: str = field(default="", compare=False, repr=False)


Setting: TypeAlias = Value | Gradient | Steps | tuple[Filtered, ...]


def value_at(setting: Setting, name: str, depth: float | None) -> Value:
    """The value of a setting for one tensor; None if no filter matches."""
    if isinstance(setting, tuple):
        fitting = (entry.value for entry in setting if entry.pattern is None or entry.pattern in name)
        return value_at(next(fitting, None), name, depth)
    return setting.at(depth) if isinstance(setting, Gradient | Steps) else setting


def stacks(names: Iterable[str]) -> dict[str, set[int]]:
    """The numbered stacks of a model, nested ones too: the prefix before the number, and the numbers.

    Example:
        >>> stacks(["emb", "h.0.w", "h.1.w"])
        {'h.': {0, 1}}
    """
    found: dict[str, set[int]] = {}
    for name in names:
        for layer in _LAYER.finditer(name):
            found.setdefault(name[: layer.start(1)], set()).add(int(layer[1]))
    return found


def outermost(numbered: Mapping[str, set[int]]) -> list[str]:
    """The stacks that are not inside a layer of another stack.

    Experts inside layers are left out. Layers inside a wrapper with the number 0 are kept, because a wrapper with one
    number is no stack.

    Example:
        >>> outermost({"h.": {0, 1}, "h.0.experts.": {0, 1, 2}, "h.1.experts.": {0, 1, 2}})
        ['h.']
    """
    return [
        prefix
        for prefix in numbered
        if not any(len(numbered[prefix[: layer.start(1)]]) > 1 for layer in _LAYER.finditer(prefix))
    ]


def depths(names: Iterable[str]) -> dict[str, float | None]:
    """The depth of each tensor's layer, from 0 to 1, in its own outermost numbered stack; None outside of all.

    A model of images and text has two stacks, and a depth in each. A stack of one layer counts only where there is no
    longer one; its layer has depth 1, as in mergekit.

    Example:
        >>> depths(["emb", "h.0.w", "h.1.w", "h.2.w"])
        {'emb': None, 'h.0.w': 0.0, 'h.1.w': 0.5, 'h.2.w': 1.0}
        >>> depths(["text.0.w", "text.1.w", "image.0.w", "image.2.w"])
        {'text.0.w': 0.0, 'text.1.w': 1.0, 'image.0.w': 0.0, 'image.2.w': 1.0}
    """
    names = list(names)
    numbered = stacks(names)
    outer = outermost(numbered)
    several = [stack for stack in outer if len(numbered[stack]) > 1] or sorted(outer, key=len)[-1:]
    result: dict[str, float | None] = dict.fromkeys(names)
    for stack in several:
        last = max(numbered[stack])
        for name in names:
            layer = re.match(re.escape(stack) + r"(\d+)\.", name)
            if layer:
                result[name] = int(layer[1]) / last if last else 1.0
    return result


@dataclass(frozen=True)
class Settings:
    """All options of a merge: `common` for all models; `each` for single models, which take precedence.

    Raises:
        UsageError: an unknown option, or a value outside its range; at once, not when a tensor needs it.
    """

    method: Method
    models: int
    common: Mapping[str, Setting] = field(default_factory=dict)
    each: Sequence[Mapping[str, Setting]] = ()

    def __post_init__(self) -> None:
        known = {option.name: option for option in self.method.options}
        for given in (self.common, *self.each):
            for name, setting in given.items():
                if name not in known:
                    raise UsageError(
                        f"the method {self.method.name!r} has no option {name!r}. {nearest(name, known)}"
                    )
                for value in _values(setting):
                    known[name].require(value, self.method.name)
        for number, given in enumerate(self.each):
            for name in given:
                if not known[name].per_model:
                    raise UsageError(
                        f"option {name!r} of {self.method.name!r} is one for all models and stands at model {number}. "
                        "Move it to the common options."
                    )

    @staticmethod
    def of(method: Method, options: Mapping[str, Any], models: int) -> "Settings":
        """Options as a call gives them: a list has one number for each model."""
        common: dict[str, Setting] = {}
        each: list[dict[str, Setting]] = [{} for _ in range(models)]
        for name, value in options.items():
            if isinstance(value, Sequence) and not isinstance(value, str):
                if len(value) != models:
                    raise UsageError(
                        f"option {name!r} of {method.name!r} has {len(value)} numbers for {models} models."
                    )
                for own, number in zip(each, value, strict=True):
                    own[name] = number
            else:
                common[name] = value
        return Settings(method, models, common, each)

    def at(self, name: str, depth: float | None) -> dict[str, Any]:
        """The options as they hold for one tensor."""
        return {option.name: self._one(option, name, depth) for option in self.method.options}

    def count(self, name: str) -> int:
        """How many models take part in the merge of a tensor: all of them."""
        return self.models

    def _one(self, option: Option, name: str, depth: float | None) -> Any:
        common = self._given(self.common, option, name, depth)
        if not option.per_model:
            return common
        owns = [self._given(own, option, name, depth, common) for own in self.each]
        return tuple(owns or [common] * self.models)

    def _given(
        self,
        given: Mapping[str, Setting],
        option: Option,
        name: str,
        depth: float | None,
        other: Value = None,
    ) -> Value:
        value = value_at(given.get(option.name), name, depth)
        if value is None:
            value = option.default if other is None else other
        checked: Value = option.require(value, self.method.name)
        return checked


def _values(setting: Setting) -> Iterable[Value]:
    """Every number that a setting can become."""
    if isinstance(setting, tuple):
        for entry in setting:
            yield from _values(entry.value)
    elif isinstance(setting, Gradient | Steps):
        yield from setting.points
    else:
        yield setting
