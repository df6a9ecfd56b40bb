"""A LoRA adapter as a task vector of its base."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from tauspan import params
from tauspan.errors import MismatchError, listed
from tauspan.merge.adapters import Adapter, read_adapter
from tauspan.models import load_model, state_of
from tauspan.params import Params
from tauspan.report import versions
from tauspan.vector import TaskVector


def adapter_vector(
    path: str | Path,
    base: nn.Module | Params | str | Path,
    *,
    label: str | None = None,
    leave_out: Sequence[str] = (),
    dtype: torch.dtype = torch.float32,
) -> TaskVector:
    """The displacement of an adapter as a task vector of its base; exact also for biases and `modules_to_save`.

    Products and differences are formed in float64 and rounded once to `dtype`. The names are the base's: a prefix that
    the adapter's model puts before all of them (`bert.`) is added or removed.

    Args:
        path: the adapter's directory.
        base: the model that the adapter was trained on.
        label: a short name; the directory's when None.
        leave_out: names of whole tensors, as the adapter spells them, that are not wanted, for example a head.
        dtype: of the vector.

    Returns:
        A `standard` vector over the tensors that the adapter changes.

    Raises:
        MismatchError: the adapter changes a tensor that the base lacks, or one of another shape.

    Example:
        >>> import tempfile
        >>> from tauspan.merge.adapters import save_adapter
        >>> from tauspan.merge.lowrank import LowRank, Term
        >>> low = LowRank({"bert.q.weight": (Term(torch.ones(1, 3), torch.ones(2, 1), 0.5),)})
        >>> path = save_adapter(low, Path(tempfile.mkdtemp()) / "one")
        >>> adapter_vector(path, {"q.weight": torch.zeros(2, 3)}).deltas["q.weight"][0]
        tensor([0.5000, 0.5000, 0.5000])
    """
    adapter = read_adapter(path, label=label)
    point = base if isinstance(base, Mapping) else state_of(load_model(base))
    whole = {name: tensor for name, tensor in adapter.replaced.items() if name not in leave_out}
    renamed = _renamed(list(dict.fromkeys([*adapter.low.terms, *whole])), point, adapter.path)
    deltas = {
        own: _moved(adapter, name, whole.get(name), point[own]).to(dtype) for name, own in renamed.items()
    }
    params.require_finite(deltas, str(adapter.path))
    info = {
        "base_id": str(base) if isinstance(base, str | Path) else type(base).__name__,
        "adapter": str(adapter.path),
        "versions": versions(),
    }
    return TaskVector(deltas, params.fingerprint(point), "standard", adapter.low.label, info)


def _moved(adapter: Adapter, name: str, whole: Tensor | None, theta0: Tensor) -> Tensor:
    """How far one tensor moves, in float64: the product, plus what a tensor stored whole differs by."""
    low = adapter.low.dense(name, torch.float64) if name in adapter.low.terms else None
    for given in (low, whole):
        if given is not None and given.shape != theta0.shape:
            turned = given.shape == theta0.shape[::-1]
            raise MismatchError(
                f"{adapter.path} changes {name!r} in the shape {tuple(given.shape)}, and the base has "
                f"{tuple(theta0.shape)}. Take the model that the adapter was trained on"
                + (", or correct fan_in_fan_out in its settings." if turned else ".")
            )
    moved = torch.zeros(theta0.shape, dtype=torch.float64) if low is None else low
    return moved if whole is None else moved + (whole.double() - theta0.detach().cpu().double())


def _renamed(names: Sequence[str], point: Params, path: Path) -> dict[str, str]:
    """Each name as the base spells it: the same, or with one prefix removed from all or put before all."""
    first = names[0] if names else ""
    changes = [("", "")]
    changes += [(first.removesuffix(own), "") for own in point if first.endswith("." + own)]
    changes += [("", own.removesuffix(first)) for own in point if own.endswith("." + first)]
    missing = {change: [name for name in names if _spelt(name, *change) not in point] for change in changes}
    fitting = [change for change, lacking in missing.items() if not lacking]
    if len(fitting) == 1 or ("", "") in fitting:
        return {name: _spelt(name, *fitting[0]) for name in names}
    least = min(missing.values(), key=len)
    raise MismatchError(
        f"{path} changes {listed(least or names)}, which the base {'lacks' if least else 'has several times'}. Take "
        "the model that the adapter was trained on, or put whole tensors that are not wanted into `leave_out`."
    )


def _spelt(name: str, removed: str, added: str) -> str:
    return added + name.removeprefix(removed) if name.startswith(removed) else ""
