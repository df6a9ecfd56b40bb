"""Named tensors: the only place where two mappings of them meet.

`Params` is any mapping from a module's own parameter names to tensors. Nothing here knows about files,
models or tasks; everything matches by name, never by position, and refuses to guess.
"""

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from tauspan.core.errors import MismatchError, NonFiniteError, listed

Params: TypeAlias = Mapping[str, Tensor]
_PIECE = 1 << 20  # the number of entries that a fingerprint converts at once


def require_same(first: Params, second: Params, first_name: str, second_name: str) -> None:
    """Raise `MismatchError` unless both hold the same names with the same shapes."""
    missing = [name for name in first if name not in second]
    extra = [name for name in second if name not in first]
    if missing or extra:
        parts = []
        if missing:
            parts.append(f"{second_name} lacks {len(missing)} of {first_name}'s tensors ({listed(missing)})")
        if extra:
            parts.append(f"{second_name} has {len(extra)} that {first_name} lacks ({listed(extra)})")
        raise MismatchError("; ".join(parts) + ". Tensors are matched by name: choose the same parameters.")
    for name, tensor in first.items():
        if tensor.shape != second[name].shape:
            raise MismatchError(
                f"tensor {name!r} has shape {tuple(tensor.shape)} in {first_name} and "
                f"{tuple(second[name].shape)} in {second_name}. Both must come from the same architecture."
            )


def zip_strict(
    first: Params, second: Params, first_name: str, second_name: str
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield `(name, first[name], second[name])` after `require_same`."""
    require_same(first, second, first_name, second_name)
    for name, tensor in first.items():
        yield name, tensor, second[name]


def require_finite(params: Params, what: str) -> None:
    """Raise `NonFiniteError` naming the first tensor that holds NaN or infinity."""
    for name, tensor in params.items():
        if not tensor.is_floating_point():
            continue
        bad = tensor.numel() - int(torch.isfinite(tensor).sum())
        if bad:
            kind = "NaN" if bool(torch.isnan(tensor).any()) else "infinite"
            raise NonFiniteError(
                f"tensor {name!r} of {what} has {bad} of {tensor.numel()} values that are not finite ({kind}). "
                "The run or file it came from is broken: re-create it, with a lower learning rate if it diverged."
            )


def require_finite_rows(values: Tensor, what: str, axis: int = 0) -> None:
    """Raise `NonFiniteError` naming the rows that hold NaN or infinity, so that no class is read from them.

    Args:
        values: numbers with one slice for each row.
        what: the values, in words, such as "the logits of 'email_spam' on test".
        axis: the axis of the rows.
    """
    places = broken_rows(values, axis)
    if places:
        kind = "NaN" if bool(values.isnan().any()) else "infinity"
        raise NonFiniteError(
            f"{what}: {kind} in {len(places)} of {values.shape[axis]} rows ({listed(map(str, places))}, from 0 on). Look "
            "at what these rows hold (an empty text, a value out of range), and at the weights: `tauspan doctor MODEL "
            "--values` names a tensor that is not finite. A large coefficient or 16 bits can overflow too."
        )


def broken_rows(values: Tensor, axis: int = 0) -> list[int]:
    """The indices along an axis whose slices hold NaN or infinity."""
    if bool(torch.isfinite(values).all()):
        return []
    wrong = ~torch.isfinite(values).movedim(axis, 0).reshape(values.shape[axis], -1)
    places: list[int] = wrong.any(1).nonzero().flatten().tolist()
    return places


def combine(terms: Sequence[tuple[float, Params]], labels: Sequence[str]) -> dict[str, Tensor]:
    """The linear combination sum_i c_i P_i, computed in the terms' own dtype.

    Args:
        terms: pairs of a coefficient and a mapping; all mappings hold the same names and shapes.
        labels: what to call each mapping in an error.

    Returns:
        New tensors; the inputs are never changed.
    """
    (scale, head), *rest = terms
    total = {name: tensor * scale for name, tensor in head.items()}
    for (scale, params), label in zip(rest, labels[1:], strict=True):
        for name, into, tensor in zip_strict(total, params, labels[0], label):
            total[name] = into + tensor * scale
    return total


def moved(tensor: Tensor, delta: Tensor, scale: float) -> Tensor:
    """theta0 + scale * tau of one tensor, summed in float32 or wider and not rounded further."""
    wide = torch.promote_types(tensor.dtype, torch.float32)
    return tensor.detach().to(wide) + delta.to(device=tensor.device, dtype=wide) * scale


def dot(first: Params, second: Params, first_name: str = "first", second_name: str = "second") -> float:
    """The inner product <a, b> over all tensors, accumulated in float64."""
    pairs = zip_strict(first, second, first_name, second_name)
    return sum((float(torch.dot(a.double().flatten(), b.double().flatten())) for _, a, b in pairs), 0.0)


def norm(params: Params) -> float:
    """The Euclidean norm over all tensors, accumulated in float64."""
    squares = (float(torch.linalg.vector_norm(t, dtype=torch.float64)) ** 2 for t in params.values())
    return math.sqrt(sum(squares))


def _pieces(tensor: Tensor) -> Iterator[Tensor]:
    flat = tensor.detach().reshape(-1)
    for start in range(0, len(flat), _PIECE):
        yield flat[start : start + _PIECE]


def _canonical(tensor: Tensor) -> torch.dtype:
    """The values in float32 if that holds them exactly, else in float64, so that equal values have equal fingerprints."""
    wide = tensor.dtype == torch.float64
    exact = not wide or all(torch.equal(piece.float().double(), piece) for piece in _pieces(tensor))
    return torch.float32 if exact else torch.float64


def fingerprint(params: Params) -> str:
    """A content hash of the floating-point tensors: names, shapes and values, not dtypes or order.

    A bfloat16 checkpoint and its float32 copy are the same point in weight space and share a fingerprint.
    Cost: one SHA-256 pass, about 0.4 s for 100 MB.

    Example:
        >>> a = {"w": torch.ones(2)}
        >>> fingerprint(a) == fingerprint({"w": torch.ones(2, dtype=torch.bfloat16)})
        True
    """
    digest = hashlib.sha256()
    for name in sorted(params):
        tensor = params[name]
        if tensor.is_floating_point():
            dtype = _canonical(tensor)
            digest.update(f"{name}|{tuple(tensor.shape)}|".encode())
            for piece in _pieces(tensor):
                digest.update(piece.to(device="cpu", dtype=dtype).contiguous().numpy().data)
    return digest.hexdigest()
