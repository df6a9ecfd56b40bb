"""Rows learnt inside the convex hull of old ones, by skip-gram with negative sampling on texts (after CW2V)."""

from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from tauspan.core.errors import UsageError
from tauspan.core.measure import progress
from tauspan.core.recording import recording

_WINDOW = 5
_NEGATIVES = 5
_BATCH = 1024


def learnt(
    table: Tensor,
    start: Mapping[int, Mapping[int, float]],
    copied: Mapping[int, int],
    coded: Sequence[Sequence[int]],
    before: Sequence[Sequence[int]],
    *,
    anchors: int,
    epochs: int,
    lr: float,
    seed: int,
) -> dict[int, dict[int, float]]:
    """Weights of new rows over old ones, softmax(a), with a learnt on pairs of neighbouring tokens.

    Minimises -log s(u.v) - sum_n log s(-u.v_n) over pairs of a window of 5 with 5 random other tokens n, s the sigmoid; u
    and v are rows of E' = P E, the same table on both sides, and only the a of new tokens move (Mundra et al. 2024,
    arXiv:2407.05841). There every row may use every old token, through a product of thin matrices; here a row uses its
    own parts and the `anchors` commonest old tokens, which keeps P sparse.

    Args:
        table: E, the old input table, shape (rows, d).
        start: the rows that learning starts from; at first the anchors hold a hundredth.
        copied: old ids of new tokens that are copied, which do not move.
        coded: the texts by the new tokenizer.
        before: the same texts by the old one, for the commonest old tokens.
        anchors: how many of them.
        epochs: passes over all pairs.
        lr: of Adam.
        seed: of the order and of the random tokens.

    Returns:
        The weights of each row of `start`; each is positive, and they sum to 1.

    Cost: for each pair 7 rows of anchors + parts old rows; the old table is not held twice.

    Example:
        >>> rows = learnt(torch.eye(3), {0: {0: 0.5, 1: 0.5}}, {1: 2}, [[0, 1, 0, 1]], [[0, 1]], anchors=0, epochs=1,
        ...     lr=0.1, seed=0)
        >>> abs(sum(rows[0].values()) - 1) < 1e-12
        True
    """
    if not start:
        return {}
    common = [number for number, _ in Counter(one for text in before for one in text).most_common(anchors)]
    order = {number: place for place, number in enumerate(start)}
    supports = [
        list(dict.fromkeys([*row, *(one for one in common if one not in row)])) for row in start.values()
    ]
    wide = max(map(len, supports))
    index = torch.tensor([one + [0] * (wide - len(one)) for one in supports])
    logits = torch.full((len(supports), wide), -torch.inf)
    for place, (row, support) in enumerate(zip(start.values(), supports, strict=True)):
        few = 0.01 / max(len(support) - len(row), 1)
        logits[place, : len(support)] = torch.tensor([row.get(one, few) for one in support]).log()
    free = torch.isfinite(logits)
    moving = torch.nn.Parameter(logits.masked_fill(~free, 0))
    optimiser, generator = torch.optim.Adam([moving], lr=lr), torch.Generator().manual_seed(seed)
    known = torch.tensor(sorted({*start, *copied}))

    def rows(numbers: Tensor) -> Tensor:
        """E' at some new tokens, shape (n, d)."""
        made = torch.stack([table[copied.get(int(one), 0)] for one in numbers]).float()
        at = [place for place, one in enumerate(numbers.tolist()) if one in order]
        if at:
            own = torch.tensor([order[int(numbers[place])] for place in at])
            weights = torch.softmax(moving[own].masked_fill(~free[own], -torch.inf), 1)
            mixed = torch.einsum("nk,nkd->nd", weights, table[index[own]].float())
            made = made.index_copy(0, torch.tensor(at), mixed)
        return made

    pairs = _pairs(coded, set(known.tolist()), set(start))
    if not len(pairs):
        seen = len(set(start) & {one for text in coded for one in text})
        raise UsageError(
            f"'cw2v' learns from new tokens beside others, and {seen} of {len(start)} new tokens are in the texts, none "
            "of them beside another token that is known. Give more texts of the kind that the model will read, or take a "
            "way that needs none: mean."
        )
    with recording(), progress("cw2v", epochs * len(pairs)) as advance:
        for _ in range(epochs):
            for some in torch.split(pairs[torch.randperm(len(pairs), generator=generator)], _BATCH):
                others = known[torch.randint(len(known), (len(some), _NEGATIVES), generator=generator)]
                numbers, back = torch.unique(torch.cat([some, others], 1), return_inverse=True)
                vectors = rows(numbers)[back]
                scores = torch.einsum("nd,nkd->nk", vectors[:, 0], vectors[:, 1:])
                signs = torch.ones_like(scores)
                signs[:, 1:] = -1
                loss = -torch.nn.functional.logsigmoid(signs * scores).sum(1).mean()
                optimiser.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                advance(len(some), f"loss {float(loss.detach()):.3f}")
    final = torch.softmax(moving.detach().double().masked_fill(~free, -torch.inf), 1)
    return {
        number: dict(zip(support, (own[: len(support)] / own[: len(support)].sum()).tolist(), strict=True))
        for number, support, own in zip(start, supports, final, strict=True)
    }


def _pairs(coded: Sequence[Sequence[int]], known: set[int], moving: set[int]) -> Tensor:
    """Tokens of a window in both orders, where one of the two moves, shape (n, 2)."""
    found = [
        (text[one], text[two])
        for text in coded
        for one in range(len(text))
        for two in range(max(one - _WINDOW, 0), min(one + _WINDOW + 1, len(text)))
        if one != two
        and text[one] in known
        and text[two] in known
        and (text[one] in moving or text[two] in moving)
    ]
    return torch.tensor(found, dtype=torch.int64).view(-1, 2)
