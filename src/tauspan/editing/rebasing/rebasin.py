"""Re-basin by weight matching: the order of a base's hidden units in which its weights are nearest to another base's.

Ainsworth, Hayase and Srinivasa, "Git Re-Basin" (arXiv 2209.04836), section 3.2.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from tauspan import models
from tauspan.core.errors import UsageError
from tauspan.models import Batch, Encoder
from tauspan.models.at import At

_MOST_PRODUCERS = 3  # queries, keys and values
_FEW = 64
_LEFT = 1e-3  # of the effect of reordering the consumer alone, what reordering all may leave


@dataclass(frozen=True)
class Units:
    """Hidden units that may change places without a change of f: dimensions of tensors that follow their order.

    Args:
        places: names of parameters, with the dimension along which the units lie.
        count: how many units: neurons, attention heads, or groups of query heads that share a key and a value; along its
            dimension a tensor has as many entries for each.
    """

    places: tuple[tuple[str, int], ...]
    count: int

    def rows(self, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Each tensor with a row for each unit, shape (count, ...)."""
        for name, dim in self.places:
            if name in tensors:
                yield name, tensors[name].movedim(dim, 0).reshape(self.count, -1)

    def reordered(self, tensors: Mapping[str, Tensor], order: Tensor) -> dict[str, Tensor]:
        """The tensors with unit `order[j]` at place j."""
        found = dict(tensors)
        for name, dim in self.places:
            if name in found:
                rows = found[name].movedim(dim, 0)
                blocks = rows.reshape(self.count, -1, *rows.shape[1:])[order.to(rows.device)]
                found[name] = blocks.flatten(0, 1).movedim(0, dim)
        return found


def rebased(deltas: Mapping[str, Tensor], old: Encoder, new: Encoder, batch: Batch) -> dict[str, Tensor]:
    """Deltas of the old base with its hidden units in the order in which its weights are nearest to the new base's.

    For one group of units, with the others fixed, that order is a linear assignment; groups take turns until none
    changes, and each turn brings the weights nearer. Which units may move together is seen on a batch, and not read from
    the architecture.

    Args:
        deltas: of the old base, by the names of its memory.
        old: the old base.
        new: another base with the same tensors.
        batch: a few rows, on which f must not change when units change places.

    Raises:
        UsageError: no hidden units of the old base can change places.

    Cost:
        A few forward passes of the batch for each linear layer, then for each turn an assignment of O(units^3).
    """
    groups = hidden_units(old, batch)
    if not groups:
        raise UsageError(
            "method='rebasin': no hidden units of linear layers can change places. Take 'procrustes'."
        )
    mine, theirs = (
        {name: value.detach().cpu().double() for name, value in one.backbone.named_parameters()}
        for one in (old, new)
    )
    moved, changed = dict(deltas), True
    while changed:
        changed = False
        for units in groups:
            alike = sum(
                (a @ b.T for (_, a), (_, b) in zip(units.rows(mine), units.rows(theirs), strict=True)),
                torch.zeros(units.count, units.count, dtype=torch.float64),
            )
            whose, place = (
                torch.from_numpy(one) for one in linear_sum_assignment(alike.numpy(), maximize=True)
            )
            order = whose[place.argsort()]
            gain = alike[order, torch.arange(units.count)].sum() - alike.diagonal().sum()
            if gain > 1e-9 * alike.abs().max():  # of orders that are as near, the one there is
                mine, moved, changed = units.reordered(mine, order), units.reordered(moved, order), True
    return moved


def hidden_units(encoder: Encoder, batch: Batch) -> list[Units]:
    """The groups of hidden units of linear layers whose order f does not depend on, as seen on a batch.

    A group is what one linear layer reads: of the layers called before it that give as many outputs, the last one, two or
    three are tried (a gated layer has two, attention three), as single units and as attention heads. Where query heads
    share keys and values, those give fewer outputs, and a head of theirs moves with all its query heads, whose order
    among themselves stays.
    """
    calls = _calls(encoder, batch)
    config = getattr(encoder.backbone, "config", None)
    heads, shared = (
        getattr(config, name, None) or 1 for name in ("num_attention_heads", "num_key_value_heads")
    )
    before = _features(encoder, batch, {})
    found = []
    for at, (name, layer) in enumerate(calls):
        if not isinstance(layer, nn.Linear):
            continue
        width = layer.in_features
        counts = dict.fromkeys(one for one in (width, heads, shared) if one > 1 and width % one == 0)
        consumer, alone = f"{name}.weight".lstrip("."), dict[tuple[int, int], float]()
        candidates = (
            _units(calls, producers, at, width, count)
            for producers in _producers(calls, at, width, width * shared // heads)
            for count in counts
            if all(_outputs(calls[place][1]) % count == 0 for place in producers)
        )
        free = (units for units in candidates if _free(encoder, batch, before, units, consumer, alone))
        found += list(islice(free, 1))
    return found


def _outputs(module: nn.Module) -> int:
    return int(getattr(module, "out_features", 0))


def _producers(
    calls: Sequence[tuple[str, nn.Module]], consumer: int, width: int, fewer: int
) -> Iterator[list[int]]:
    """What may feed a layer: the last one, two and three layers with its width, then the last three of either width."""
    wide = [place for place in range(consumer) if _outputs(calls[place][1]) == width]
    yield from (wide[-count:] for count in range(1, min(len(wide), _MOST_PRODUCERS) + 1))
    either = [place for place in range(consumer) if _outputs(calls[place][1]) in (width, fewer)]
    if fewer != width and len(either) >= _MOST_PRODUCERS:
        yield either[-_MOST_PRODUCERS:]


def _units(
    calls: Sequence[tuple[str, nn.Module]], producers: Sequence[int], consumer: int, width: int, count: int
) -> Units:
    """What follows the units' order: outputs of the producers, tensors of layers between, inputs of the consumer."""
    between = [
        place for place in range(producers[0] + 1, consumer)
        if not isinstance(calls[place][1], nn.Linear)
        and all(tensor.shape == (width,) for tensor in calls[place][1].parameters(recurse=False))
    ]  # fmt: skip
    named = [
        (f"{calls[place][0]}.{part}".lstrip("."), 0)
        for place in (*producers, *between)
        for part, _ in calls[place][1].named_parameters(recurse=False)
    ]
    return Units((*named, (f"{calls[consumer][0]}.weight".lstrip("."), 1)), count)


def _orders(count: int) -> list[Tensor]:
    """Two orders of which all others are made: units that take turns only within groups do not stay free under both.

    Few units: all moved on by one, and the first two exchanged, whose products are all orders. Many: the former and a
    random one, since what two units do is lost in rounding.
    """
    places = torch.arange(count)
    if count > _FEW:
        return [torch.randperm(count, generator=torch.Generator().manual_seed(0)), places.roll(1)]
    return [places.roll(1), torch.cat([places[:2].flip(0), places[2:]])]


def _free(
    encoder: Encoder,
    batch: Batch,
    before: Tensor,
    units: Units,
    consumer: str,
    alone: dict[tuple[int, int], float],
) -> bool:
    """Whether f stays where it is when the units change places, measured by what it does when the consumer's alone do.

    `alone` keeps the latter by the number of units and the order, for all candidates of one consumer.
    """
    own = {name: value.detach() for name, value in encoder.backbone.named_parameters()}
    own = {name: own[name] for name, _ in units.places if name in own}
    if consumer not in own or len(own) < len(dict(units.places)):
        return False  # a tied tensor, which is under another name

    def moved(tensors: dict[str, Tensor], order: Tensor) -> float:
        return float((_features(encoder, batch, units.reordered(tensors, order)) - before).norm())

    for place, order in enumerate(_orders(units.count)):
        if (units.count, place) not in alone:
            alone[units.count, place] = moved({consumer: own[consumer]}, order)
        effect = alone[units.count, place]
        if not effect or moved(own, order) > _LEFT * effect:
            return False
    return True


@torch.no_grad()
def _features(encoder: Encoder, batch: Batch, point: Mapping[str, Tensor]) -> Tensor:
    """The features at theta0 but for the tensors of `point`."""
    with models.eval_mode(encoder), At(encoder.backbone, point):
        features: Tensor = encoder(batch)
    return features.double()


def _calls(encoder: Encoder, batch: Batch) -> list[tuple[str, nn.Module]]:
    """Modules with parameters of their own, in the order of their calls."""
    found: list[tuple[str, nn.Module]] = []
    own = {
        name: lambda module, given, output, name=name: found.append((name, module))
        for name, module in encoder.backbone.named_modules()
        if any(True for _ in module.parameters(recurse=False))
    }
    run_hooked(encoder, batch, own)
    return found


@torch.no_grad()
def run_hooked(encoder: Encoder, batch: Batch, hooks: Mapping[str, Callable[..., None]]) -> None:
    """One forward pass in eval mode, with a forward hook on each named module; no hook stays."""
    known = dict(encoder.backbone.named_modules())
    handles = [known[name].register_forward_hook(hook) for name, hook in hooks.items()]
    try:
        with models.eval_mode(encoder):
            encoder(batch)
    finally:
        for handle in handles:
            handle.remove()
