"""Pairs of inputs that belong together as groups: each group is one row, with its other pairs as negatives."""

from collections.abc import Mapping, Sequence

import torch

from tauspan.core.errors import DataError
from tauspan.core.notices import tell
from tauspan.objectives import Contrastive, Objective
from tauspan.objectives.passages import Group
from tauspan.tasks.assembly import Gathered, told
from tauspan.tasks.shares import alike
from tauspan.tasks.split import Split, permutation

_ALONE = "that found no group of other texts"


def in_groups(
    splits: Mapping[str, Split], kind: Objective, seed: int, what: str
) -> tuple[dict[str, Split], dict[str, dict[str, int]]]:
    """The splits with their pairs in groups, and how many pairs found none; other objectives' splits as they are.

    Pairs that say which group they belong to stay together. The others are drawn: in an order by the seed each goes to
    the group that is being filled, or waits for the next one where an equal input is in this one already, which would
    be a negative that is none. So each split of N pairs has about N / size groups of nearly equal sizes.

    Args:
        splits: with a pair in each row.
        kind: the objective.
        seed: of the draw; the split's name is in it too.
        what: the task's name.

    Raises:
        DataError: a group that is larger than the objective's, or no group at all.
    """
    if not isinstance(kind, Contrastive):
        return dict(splits), {}
    made, left_out = {}, {}
    for split, rows in splits.items():
        if not rows.inputs or len(rows.inputs[0]) != 2:  # grouped already
            made[split] = rows
            continue
        where = f"{split} of task {what!r}"
        drawn = bool((rows.labels < 0).any())
        groups = _drawn(rows, kind.size, f"{seed}/{split}/groups") if drawn else _told(rows, kind.size, where)
        kept = [group for group in groups if len(group) > 1]
        if not kept:
            raise DataError(f"{where}: {len(rows)} pairs make no group of at least 2 with different texts.")
        alone = len(rows) - sum(map(len, kept))
        if alone:
            left_out[split] = {_ALONE: alone}
        items = [_group(rows, group, kind.size) for group in kept]
        made[split] = Split(items, torch.tensor([len(group) for group in kept]))
    if left_out:
        tell(f"task {what!r} leaves out {told(left_out)}.")
    return made, left_out


def whole_groups(made: Gathered, kind: Objective, what: str) -> Gathered:
    """Pairs that say which group they belong to as groups, before rows are held out; everything else as it is."""
    if not isinstance(kind, Contrastive) or any(
        bool((rows.labels < 0).any()) for rows in made.splits.values()
    ):
        return made
    splits, alone = in_groups(made.splits, kind, 0, what)
    return Gathered(made.names, splits, both(made.left_out, alone))


def both(
    first: Mapping[str, Mapping[str, int]], second: Mapping[str, Mapping[str, int]]
) -> dict[str, dict[str, int]]:
    """Two counts of what was left out of each split as one."""
    return {key: {**first.get(key, {}), **second.get(key, {})} for key in {**first, **second}}


def _group(rows: Split, group: Sequence[int], size: int) -> Group:
    """The inputs of some pairs as one row; a group that is too small is filled with its first pair."""
    padded = [*group, *[group[0]] * (size - len(group))]
    return Group(item for place in padded for item in rows.inputs[place])


def _told(rows: Split, size: int, where: str) -> list[list[int]]:
    """The pairs by the number of their group."""
    found: dict[int, list[int]] = {}
    for place, number in enumerate(rows.labels.tolist()):
        found.setdefault(number, []).append(place)
    largest = max(map(len, found.values()))
    if largest > size:
        raise DataError(
            f"{where}: a group has {largest} pairs, and the objective's groups at most {size}: "
            f'objective="contrastive(size={largest})".'
        )
    return list(found.values())


def _drawn(rows: Split, size: int, key: str) -> list[list[int]]:
    """Groups of at most `size` pairs without equal inputs."""
    keys = [{alike(item) for item in pair} for pair in rows.inputs]
    waiting = permutation(len(rows), key)
    count = -(-len(rows) // size)
    sizes = [len(rows) // count + (place < len(rows) % count) for place in range(count)]
    groups: list[list[int]] = []
    while waiting and len(groups) < 2 * count:  # the second half takes what equal inputs kept apart
        wanted = sizes[len(groups)] if len(groups) < count else size
        group: list[int] = []
        seen: set[bytes] = set()
        rest = iter(waiting)
        later: list[int] = []
        for place in rest:
            if seen & keys[place]:
                later.append(place)
                continue
            group.append(place)
            seen |= keys[place]
            if len(group) == wanted:
                break
        waiting = [*later, *rest]
        groups.append(group)
    return groups
