"""Masks of entries: how dense each tensor is, which entries a task gets, and supports that never meet."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import TypeVar, get_args

import torch
from torch import Tensor

from tauspan.core.arguments import checked
from tauspan.core.errors import MismatchError, UsageError, listed, nearest
from tauspan.core.params import require_finite
from tauspan.sequence.options import Spread

Masks = dict[str, Tensor]
V = TypeVar("V")


@checked
def densities(
    shapes: Mapping[str, Sequence[int]], density: float, how: Spread = "uniform", *, most: float = 1.0
) -> dict[str, int]:
    """How many entries of each tensor a mask has.

    `"uniform"`: the same share of each tensor. `"erdos-renyi-kernel"`: a share eps sum(shape) / prod(shape), so that
    thin tensors are denser, with eps such that the total is right (Evci et al., "Rigging the Lottery", 2020). A share
    above `most` is cut there, and the others get what it leaves.

    Args:
        shapes: by tensor.
        density: the share of all entries.
        how: see above.
        most: the largest share of a tensor: 1 / T leaves room for T tasks that share no entry.

    Raises:
        UsageError: no tensor, an unknown word, a density outside (0, most], or one so small that no entry is left.

    Example:
        >>> densities({"wide": (10, 10), "thin": (10, 1)}, 0.2, "erdos-renyi-kernel")
        {'wide': 14, 'thin': 8}
    """
    if how not in get_args(Spread):
        raise UsageError(f"how={how!r}. {nearest(str(how), get_args(Spread))}")
    if not 0 < density <= most <= 1:
        raise UsageError(
            f"density={density} with most={most:g}: above 0, and at most the largest share of a tensor, which is 1 / T "
            "for T tasks whose masks share no entry, and 1 otherwise."
        )
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    raw = {
        name: sum(shapes[name]) / size if how != "uniform" and shapes[name] and size else 1.0
        for name, size in sizes.items()
    }
    capped: set[str] = set()
    while True:  # each turn cuts one tensor more, so it ends
        left = density * sum(sizes.values()) - sum(most * sizes[name] for name in capped)
        weight = sum(raw[name] * size for name, size in sizes.items() if name not in capped)
        shares = {name: most if name in capped else left * raw[name] / weight for name in sizes}
        over = {name for name, share in shares.items() if share > most * (1 + 1e-12)}
        if not over:
            break
        capped |= over
    counts = {
        name: min(round(share * sizes[name]), math.floor(most * sizes[name]))
        for name, share in shares.items()
    }
    if not any(counts.values()):
        raise UsageError(
            f"density={density} of {sum(sizes.values())} entries leaves none: take a larger one."
        )
    return counts


@checked
def picked(
    counts: Mapping[str, int],
    shapes: Mapping[str, Sequence[int]],
    *,
    scores: Mapping[str, Tensor] | None = None,
    taken: Mapping[str, Tensor] | None = None,
    seed: int = 0,
) -> Masks:
    """Masks with so many entries of each tensor, none of which is taken already.

    Args:
        counts: by tensor, as `densities` gives them; a tensor of which 0 are wanted is left out.
        shapes: by tensor.
        scores: the entries with the largest are picked, the first of equals; None picks at random, by seed and name.
        taken: masks of entries that others have.
        seed: of random picks.

    Raises:
        UsageError: fewer entries are free than wanted, a negative count, or masks that are not of booleans.
        MismatchError: a tensor that shapes or scores lack, or another shape.
        NonFiniteError: NaN or infinity in the scores.

    Example:
        >>> first = picked({"w": 2}, {"w": (2, 2)}, scores={"w": torch.tensor([[3.0, 1.0], [2.0, 0.0]])})
        >>> picked({"w": 2}, {"w": (2, 2)}, taken=first)["w"].tolist()
        [[False, True], [False, True]]
    """
    made: Masks = {}
    for name, count in counts.items():
        if not count:
            continue
        if count < 0:
            raise UsageError(f"{count} entries of {name!r} are wanted: give 0 or more.")
        shape = torch.Size(_own(shapes, name, "the shapes"))
        free = torch.ones(shape.numel(), dtype=torch.bool)
        if taken is not None and name in taken:
            free &= ~_mask(name, _fitting(taken, name, shape, "the masks that are taken")).flatten().cpu()
        if int(free.sum()) < count:
            raise UsageError(
                f"{count} entries of {name!r} are wanted and {int(free.sum())} of {shape.numel()} are free: take a "
                "smaller density, or fewer tasks."
            )
        if scores is None:
            score = _random(shape.numel(), f"{seed}/{name}")
        else:
            score = _fitting(scores, name, shape, "the scores").detach().flatten().cpu().double()
            require_finite({name: score}, "the scores")
        score = score.masked_fill(~free, -math.inf)
        mask = torch.zeros(shape.numel(), dtype=torch.bool)
        mask[score.argsort(descending=True, stable=True)[:count]] = True
        made[name] = mask.view(shape)
    return made


def _random(size: int, key: str) -> Tensor:
    """Numbers that depend on seed and name alone, in whatever order tensors come."""
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:7], "big")
    return torch.rand(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _own(several: Mapping[str, V], name: str, what: str) -> V:
    """What belongs to one tensor."""
    if name not in several:
        raise MismatchError(
            f"{what} lack {name!r}, which has a mask; they are of {listed(several) or 'no tensor'}. Give one for each "
            "tensor that has a mask."
        )
    return several[name]


def _fitting(several: Mapping[str, Tensor], name: str, shape: Sequence[int], what: str) -> Tensor:
    """The tensor of a name, which has the shape of the mask."""
    found = _own(several, name, what)
    if tuple(found.shape) != tuple(shape):
        raise MismatchError(
            f"{what} of {name!r} have the shape {tuple(found.shape)}, and the mask {tuple(shape)}: give one number for "
            "each entry of the tensor."
        )
    return found


def _mask(name: str, mask: Tensor) -> Tensor:
    """A mask, which is of booleans."""
    if mask.dtype != torch.bool:
        raise UsageError(
            f"the mask of {name!r} has the dtype {mask.dtype}, and a mask has torch.bool: compare, such as `mask > 0`."
        )
    return mask


def united(several: Sequence[Mapping[str, Tensor]]) -> Masks:
    """The entries of any of some masks.

    Raises:
        UsageError: a mask that is not of booleans.
        MismatchError: masks of one tensor with different shapes.
    """
    total: Masks = {}
    for masks in several:
        for name, mask in masks.items():
            if name in total:
                _fitting(masks, name, total[name].shape, "the masks")
            total[name] = total[name] | _mask(name, mask) if name in total else _mask(name, mask)
    return total


def require_disjoint(masks: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Raise unless no entry is in the masks of two tasks, so that a sum of their vectors holds each as it is.

    Args:
        masks: by task.

    Raises:
        MismatchError: two tasks share entries, or their masks of one tensor have different shapes.
        UsageError: a mask that is not of booleans.
    """
    names = list(masks)
    for place, first in enumerate(names):
        for second in names[place + 1 :]:
            both = []
            for name, mask in masks[first].items():
                if name in masks[second]:
                    other = _fitting(masks[second], name, mask.shape, f"the masks of {second!r}")
                    both += [name] if bool((_mask(name, mask) & _mask(name, other)).any()) else []
            if both:
                raise MismatchError(
                    f"{first!r} and {second!r} share entries of {listed(both)}: pick the second with taken=the first's."
                )


@checked
def moved(
    masks: Mapping[str, Tensor],
    deltas: Mapping[str, Tensor],
    share: float,
    *,
    scores: Mapping[str, Tensor] | None = None,
    taken: Mapping[str, Tensor] | None = None,
    seed: int = 0,
) -> Masks:
    """The masks without the share of their entries where |delta| is smallest, with as many others in their place.

    Args:
        masks: that are changed.
        deltas: what was learnt, by tensor.
        share: of each tensor's entries that are dropped.
        scores: of all entries: those with the largest are grown; None grows at random.
        taken: entries that others have.
        seed: of random growth.

    Raises:
        UsageError: a share outside [0, 1], too few free entries, or a mask that is not of booleans.
        MismatchError: a tensor that deltas or scores lack, or another shape.
        NonFiniteError: NaN or infinity in deltas or scores.

    Example:
        >>> mask, learnt = {"w": torch.tensor([True, True, False])}, {"w": torch.tensor([3.0, 1.0, 0.0])}
        >>> moved(mask, learnt, 0.5, scores={"w": torch.tensor([0.0, 1.0, 2.0])})["w"].tolist()
        [True, False, True]
    """
    if not 0 <= share <= 1:
        raise UsageError(f"share={share}: from 0 to 1.")
    made: Masks = {}
    for name, mask in masks.items():
        delta = _fitting(deltas, name, mask.shape, "the deltas").detach().double().cpu()
        require_finite({name: delta}, "the deltas")
        size = delta.abs().masked_fill(~_mask(name, mask).cpu(), -1.0)
        kept = int(mask.sum()) - round(share * int(mask.sum()))
        stay = picked({name: kept}, {name: mask.shape}, scores={name: size})
        count = {name: int(mask.sum()) - kept}
        room = united([taken or {}, stay])
        fresh = picked(count, {name: mask.shape}, scores=scores, taken=room, seed=seed)
        made |= united([stay, fresh])
    return made
