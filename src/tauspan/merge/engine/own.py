"""A user's own method: a plain function, in Python or named `module:function`."""

import functools
import hashlib
import importlib
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from tauspan.core.arguments import checked
from tauspan.core.errors import UsageError, nearest
from tauspan.merge.methods.method import Block, Method, Option


@checked
def own_method(function: Callable[..., Tensor] | Method, name: str | None = None) -> Method:
    """A method made of a plain function over one tensor of all models.

    Args:
        function: `function(values, base, *, option=default, ...)`. `values` has shape (T, *shape): the models'
            displacements, float32 or float64; `base` is theta0, shape `shape`, or None. It returns the merged
            displacement, shape `shape`. Keyword-only arguments are the options, with their defaults; a default that is
            a tuple of one number makes an option of one number per model, which arrives as a tuple of T. A `Method` is
            taken as it is.
        name: in tables and cards; the function's own by default.

    A package that is installed gives methods by name, to `merge`, recipes and `tauspan merge --methods`, with entry
    points of the group `tauspan.methods`: `[project.entry-points."tauspan.methods"]` and below it
    `median = "its_package.rules:median"` in its pyproject.toml. Such a function is imported when its method is asked for.

    Raises:
        UsageError: the function does not have that shape.

    Example:
        >>> import torch
        >>> def median(values, base, *, scale=1.0):
        ...     return scale * values.median(0).values
        >>> method = own_method(median)
        >>> method.name, [option.name for option in method.options]
        ('median', ['scale'])
    """
    if isinstance(function, Method):
        return function
    called = str(name or getattr(function, "__name__", "own"))
    parameters = _parameters(function, called)
    options = tuple(_option(called, one) for one in parameters)

    @functools.wraps(function)  # so that the function's own source is found: `source_hash`
    def combine(block: Block, _: Any) -> Tensor:
        chosen: Mapping[str, Any] = {option.name: block.options[option.name] for option in options}
        merged = function(block.values, block.base, **chosen)
        if not isinstance(merged, Tensor):
            raise UsageError(
                f"the method {called!r} returned {type(merged).__name__}, and must return a tensor."
            )
        return merged

    title = str(inspect.getdoc(function) or called).splitlines()[0].rstrip(".")
    return Method(called, title, "the user's own", f"{called}(tau_1, ..., tau_T)", combine, grain="tensor",
                  options=options, temporaries=4)  # fmt: skip


def imported(name: str, folder: Path | None = None) -> Method:
    """The method that `module:function` names; importing a module runs its code.

    Args:
        name: as a recipe writes it.
        folder: searched first, besides where Python looks; None for nowhere else.

    Raises:
        UsageError: no such module or function.
    """
    module, colon, attribute = name.partition(":")
    if not (colon and module and attribute):
        raise UsageError(f"{name!r} names no function: write module:function.")
    path = list(sys.path)
    try:
        sys.path[:0] = [] if folder is None else [str(folder)]
        found = importlib.import_module(module)
    except Exception as error:  # whatever the user's module raises while it runs
        raise UsageError(
            f"the module {module!r} cannot be imported: {type(error).__name__}: {error}."
        ) from error
    finally:
        sys.path[:] = path
    function = getattr(found, attribute, None)
    if not callable(function) and not isinstance(function, Method):
        raise UsageError(
            f"the module {module!r} has no function {attribute!r}. {nearest(attribute, dir(found))}"
        )
    return own_method(function, name)


def source_hash(method: Method) -> str | None:
    """SHA-256 of the source of a method's own functions; None where it cannot be read (an interactive session).

    What these functions call, and the values they close over, are not part of it.
    """
    functions = [one for one in (method.combine, method.prepare) if one is not None]
    try:
        sources = [
            inspect.getsource(one.func if isinstance(one, functools.partial) else one) for one in functions
        ]
    except (OSError, TypeError):
        return None
    return hashlib.sha256("\n".join(sources).encode()).hexdigest()


def _parameters(function: Callable[..., Any], called: str) -> list[inspect.Parameter]:
    """The keyword-only parameters, which follow the two parameters (values, base)."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"the method {called!r} has no signature to read its options from: {error}."
        ) from error
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    if len(parameters) < 2 or any(one.kind not in kinds for one in parameters[:2]):
        raise UsageError(f"the method {called!r} must start with two arguments: (values, base, *, options).")
    wrong = [one.name for one in parameters[2:] if one.kind is not inspect.Parameter.KEYWORD_ONLY]
    if wrong:
        raise UsageError(
            f"the method {called!r} has the argument {wrong[0]!r} before `*`: options are keyword-only, "
            f"`def {called.rpartition(':')[2]}(values, base, *, {wrong[0]}=...)`."
        )
    return parameters[2:]


def _option(called: str, parameter: inspect.Parameter) -> Option:
    default = parameter.default
    per_model = isinstance(default, tuple) and len(default) == 1
    value = default[0] if per_model else default
    if not isinstance(value, bool | int | float):
        raise UsageError(
            f"the option {parameter.name!r} of {called!r} needs a default: a number, true or false, or a tuple of "
            "one number for one number a model."
        )
    return Option(parameter.name, value, f"of {called}", per_model=per_model)
