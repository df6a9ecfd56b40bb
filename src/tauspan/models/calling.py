"""Turn a batch (one tensor, a tuple of tensors, or a mapping) into the arguments of a module's forward."""

import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tauspan.core.errors import MismatchError
from tauspan.models.encoder import Classifier, Encoder


def inputs_of(module: nn.Module, batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The positional and keyword arguments with which a batch is passed to a module.

    A tuple or list holds positional inputs. A mapping holds keyword inputs where the forward has parameters of these
    names, and is one input otherwise, as for an `Encoder` and a `Classifier`. NumPy arrays become tensors.

    Raises:
        MismatchError: more inputs than the forward takes, for instance a batch with labels.

    Example:
        >>> inputs_of(nn.Linear(2, 1), torch.ones(1, 2))
        ((tensor([[1., 1.]]),), {})
    """
    batch = as_tensors(batch)
    if isinstance(batch, Mapping):
        by_name = not isinstance(module, Encoder | Classifier) and _has(module, batch)
        return ((), dict(batch)) if by_name else ((batch,), {})
    if not isinstance(batch, tuple | list):
        return (batch,), {}
    most = positional(module)
    if most is not None and len(batch) > most:
        raise MismatchError(
            f"a batch holds {len(batch)} inputs and the forward of {type(module).__name__} takes {most}. If the "
            "last of them are labels, leave them out: `[batch[0] for batch in loader]`."
        )
    return tuple(batch), {}


def positional(module: nn.Module) -> int | None:
    """The largest number of positional inputs that the forward takes; None for any number."""
    parameters = _parameters(module)
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return None
    return sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters)


def as_tensors(item: Any) -> Any:
    """A copy of a nested structure in which NumPy arrays are tensors and every mapping is a dict."""
    if isinstance(item, np.ndarray):
        return torch.from_numpy(item)
    if isinstance(item, Mapping):
        return {key: as_tensors(value) for key, value in item.items()}
    if isinstance(item, tuple | list) and not hasattr(item, "_fields"):
        return type(item)(as_tensors(part) for part in item)
    return item


def _has(module: nn.Module, batch: Mapping[Any, Any]) -> bool:
    parameters = _parameters(module)
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return True
    return batch.keys() <= {p.name for p in parameters if p.kind is not p.POSITIONAL_ONLY}


def _parameters(module: nn.Module) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(module.forward).parameters.values())
    except (TypeError, ValueError):  # a forward in C++
        return [inspect.Parameter("inputs", inspect.Parameter.VAR_POSITIONAL)]


def is_batch(module: nn.Module, item: Any) -> bool:
    """Whether a tuple is one batch of several inputs, not a sequence of batches."""
    if not isinstance(item, tuple) or not item:
        return False
    most = positional(module)
    whole = all(isinstance(part, Tensor) and part.ndim > 0 for part in item)
    return whole and len({len(part) for part in item}) == 1 and most is not None and 1 < len(item) <= most
