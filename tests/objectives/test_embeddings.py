"""Pairs for embedding models: losses, gradients and curvatures are the formulas', written out in float64."""

import math

import pytest
import torch
from torch import Tensor

from tauspan.core.errors import DataError, UsageError
from tauspan.objectives import Contrastive, Objective, Similarity, objective_of, spelled

ROWS, SIZE, WIDTH = 3, 4, 3
COUNTS = torch.tensor([4, 2, 3])
TIGHT = {"rtol": 1e-10, "atol": 1e-12}


def embeddings(inputs: int, seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(ROWS, inputs * WIDTH, generator=draw, dtype=torch.float64)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return (a @ b) / (a.square().sum().sqrt() * b.square().sum().sqrt())


def info_nce(one: Contrastive, outputs: Tensor, counts: Tensor) -> Tensor:
    """The definition, pair by pair; what is after the last pair is not read."""
    found = []
    for row, count in zip(outputs, counts.tolist(), strict=True):
        pairs = row.view(SIZE, 2, WIDTH)[:count]
        table = [[cosine(a, b) / one.temperature for b in pairs[:, 1]] for a in pairs[:, 0]]
        ways = [table, [list(column) for column in zip(*table, strict=True)]] if one.symmetric else [table]
        terms = [
            torch.stack(line).exp().sum().log() - line[place]
            for way in ways
            for place, line in enumerate(way)
        ]
        found.append(torch.stack(terms).mean())
    return torch.stack(found)


def squared(one: Similarity, outputs: Tensor, targets: Tensor) -> Tensor:
    pairs = outputs.view(ROWS, 2, WIDTH)
    off = [cosine(a, b) - y / one.most for (a, b), y in zip(pairs, targets[:, 0], strict=True)]
    return torch.stack(off).square() / 2


SCORES = torch.tensor([[5.0], [0.0], [-2.5]], dtype=torch.float64)


@pytest.mark.parametrize(
    ("one", "inputs", "targets", "plain"),
    [
        (Contrastive(SIZE, 0.5), 2 * SIZE, COUNTS, info_nce),
        (Contrastive(SIZE, 0.2, symmetric=True), 2 * SIZE, COUNTS, info_nce),
        (Similarity(5.0), 2, SCORES, squared),
    ],
)
def test_losses_and_derivatives_are_those_of_the_formula(one, inputs, targets, plain) -> None:  # type: ignore[no-untyped-def]
    outputs = embeddings(inputs)
    along = torch.randn(2, *outputs.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    free = outputs.clone().requires_grad_()
    wanted = plain(one, free, targets)
    (slope,) = torch.autograd.grad(wanted.sum(), free, create_graph=True)
    torch.testing.assert_close(one.losses(outputs, targets), wanted.detach(), **TIGHT)
    torch.testing.assert_close(one.gradients(outputs, targets), slope.detach(), **TIGHT)
    for v, found in zip(along, one.curvature(outputs, targets, along), strict=True):
        (curved,) = torch.autograd.grad(slope, free, v, retain_graph=True)
        torch.testing.assert_close(found, curved, **TIGHT)
    weights = torch.tensor([1.0, 0.0, -2.0], dtype=torch.float64)
    mine = outputs.clone().requires_grad_()
    (one.losses(mine, targets) * weights).sum().backward()
    torch.testing.assert_close(mine.grad, slope.detach() * weights[:, None], **TIGHT)
    alone = torch.cat([one.losses(outputs[n : n + 1], targets[n : n + 1]) for n in range(ROWS)])
    torch.testing.assert_close(alone, wanted.detach(), **TIGHT)  # a row's loss is its own


def test_groups_are_batches_with_negatives_of_their_own() -> None:
    """Of whole groups the loss is the usual cross-entropy of a batch of pairs against its diagonal."""
    one, outputs = Contrastive(SIZE, 0.1), embeddings(2 * SIZE, 3)
    for row, found in zip(outputs, one.losses(outputs, torch.full((ROWS,), SIZE)), strict=True):
        units = torch.nn.functional.normalize(row.view(SIZE, 2, WIDTH), dim=-1)
        batch = units[:, 0] @ units[:, 1].T / 0.1
        torch.testing.assert_close(found, torch.nn.functional.cross_entropy(batch, torch.arange(SIZE)))


def test_padding_is_not_read() -> None:
    one, outputs = Contrastive(SIZE, 0.5), embeddings(2 * SIZE)
    other = outputs.clone().view(ROWS, SIZE, 2, WIDTH)
    other[1, 2:] = 7.0
    other = other.view_as(outputs)
    for ask in (one.losses, one.gradients, one.scores, one.predicted):
        torch.testing.assert_close(ask(outputs, COUNTS), ask(other, COUNTS))
    assert one.gradients(outputs, COUNTS).isfinite().all()


def test_scores_count_who_finds_its_own() -> None:
    eye = torch.eye(SIZE, dtype=torch.float64)
    one = Contrastive(SIZE)
    alike = torch.stack([eye, eye], 1).view(1, -1)
    shifted = torch.stack([eye, eye.roll(1, 0)], 1).view(1, -1)
    swapped = torch.stack([eye, eye[[1, 0, 2, 3]]], 1).view(1, -1)
    found = [float(one.scores(at, torch.tensor([SIZE]))) for at in (alike, shifted, swapped)]
    assert found == [1.0, 0.0, 0.5]
    assert one.losses(alike, torch.tensor([SIZE])) < one.losses(shifted, torch.tensor([SIZE]))


def test_the_metric_of_similarities_is_an_error_of_cosines() -> None:
    one, outputs = Similarity(5.0), embeddings(2)
    wanted = math.sqrt(2 * float(squared(one, outputs, SCORES).mean()))
    assert one.value(outputs, SCORES) == pytest.approx(wanted)
    assert not one.higher


@pytest.mark.parametrize("one", [Contrastive(SIZE), Similarity()])
def test_none_is_convex(one: Objective) -> None:
    inputs, targets = (2 * SIZE, COUNTS) if isinstance(one, Contrastive) else (2, SCORES / 5)
    outputs = embeddings(inputs)
    along = torch.randn(200, *outputs.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    bent = (one.curvature(outputs, targets, along) * along).sum(-1)
    assert bool((bent < -1e-3).any())
    assert not one.convex


@pytest.mark.parametrize("one", [Contrastive(SIZE), Similarity()])
def test_the_distance_is_that_of_embeddings(one: Objective) -> None:
    inputs, targets = (2 * SIZE, COUNTS) if isinstance(one, Contrastive) else (2, SCORES / 5)
    first, second = embeddings(inputs, 0), embeddings(inputs, 1)
    name, apart = one.distance()
    found = apart(one.predicted(first, targets), one.predicted(second, targets))
    wanted = []
    for n in range(ROWS):
        count = 2 * int(COUNTS[n]) if isinstance(one, Contrastive) else 2
        both = zip(first[n].view(-1, WIDTH)[:count], second[n].view(-1, WIDTH)[:count], strict=True)
        wanted.append(sum(1 - float(cosine(a, b)) for a, b in both) / count)
    assert name == "cosine"
    assert found.tolist() == pytest.approx(wanted)
    assert apart(one.predicted(first, targets), one.predicted(2 * first, targets)).abs().max() < 1e-12


def test_options_are_spelled_and_read() -> None:
    for one, text in {
        Contrastive(4, symmetric=True): "contrastive(size=4, symmetric=True)", Similarity(5): "similarity(most=5)",
    }.items():  # fmt: skip
        assert spelled(one) == text
        assert objective_of(text) == one


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("contrastive(size=1)", "at least 2 pairs"), ("contrastive(temperature=0)", "above 0"),
        ("similarity(most=-1)", "above 0"), ("similarity(least=1)", "no option 'least'"),
    ],
)  # fmt: skip
def test_impossible_options_are_told(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        objective_of(text)


@pytest.mark.parametrize(
    ("word", "targets", "said"),
    [
        ("contrastive", torch.zeros(2), "number of its pairs"),
        ("contrastive", torch.tensor([2, 9]), r"row 1: a group of 9 pairs, and one has 2 to 8: .*size=K"),
        ("similarity", torch.tensor([[4.0]]), r"row 0 has the similarity 4.*most=4"),
        ("similarity", torch.tensor([3]), "floating-point"),
    ],
)
def test_wrong_targets_are_named(word: str, targets: Tensor, said: str) -> None:
    with pytest.raises(DataError, match=said):
        objective_of(word).require(targets, 0, "train of task 't'")
