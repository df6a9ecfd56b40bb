"""Features as sums of concepts, and relative drift, against plain loops."""

import dataclasses
from collections.abc import Mapping, Sequence
from itertools import combinations, product
from statistics import fmean

import pytest
import torch
from torch import Tensor, nn

import tauspan as ts
from helpers.zoo import normal
from tauspan.core.errors import DataError, MismatchError, NonFiniteError, UsageError
from tauspan.kernel.diagnose import concept_factorisation, relative_drift
from tauspan.tasks.probe import probe

GRID = [(a, b, c) for a, b, c, _ in product("xyz", "pqrs", (0, 1), range(2))]
CONCEPTS: Mapping[str, Sequence[object]] = dict(zip("abc", zip(*GRID, strict=True), strict=True))


def turn(width: int, seed: int = 7) -> Tensor:
    return torch.linalg.qr(normal(width, width, seed=seed)).Q


def sum_of_parts(rows: Sequence[Sequence[object]], width: int = 9) -> Tensor:
    """Each value's own random vector, added up."""
    values = list(dict.fromkeys((place, value) for row in rows for place, value in enumerate(row)))
    parts = dict(zip(values, normal(len(values), width, seed=3), strict=True))
    return torch.stack([sum(parts[place, value] for place, value in enumerate(row)) for row in rows])  # type: ignore[arg-type, misc]


# -- concepts --------------------------------------------------------------------------------------------------


def plain_means(x: Tensor, labels: Sequence[object]) -> dict[object, Tensor]:
    return {
        value: torch.stack([row for row, one in zip(x, labels, strict=True) if one == value]).mean(0)
        for value in dict.fromkeys(labels)
    }


def plain_r2(x: Tensor, concepts: Mapping[str, Sequence[object]]) -> float:
    """1 - |X - sum of means|^2 / |X|^2, row by row: right where concepts are balanced."""
    x = x - x.mean(0)
    left = x.clone()
    for labels in concepts.values():
        means = plain_means(x, labels)
        left = left - torch.stack([means[value] for value in labels])
    return 1 - float(left.square().sum() / x.square().sum())


def plain_cosine(one: Sequence[Tensor], two: Sequence[Tensor]) -> float:
    return fmean(abs(float(a @ b / a.norm() / b.norm())) for a in one for b in two if a is not b)


def test_the_numbers_are_those_of_plain_loops() -> None:
    features = normal(len(GRID), 5, seed=1) @ normal(5, 5, seed=2) + sum_of_parts(GRID, 5)
    found = concept_factorisation(features, CONCEPTS)
    x = features - features.mean(0)
    assert found.r2 == pytest.approx(plain_r2(x, CONCEPTS), rel=1e-10)
    values, vectors = torch.linalg.eigh(x.T @ x)
    assert found.whitened == pytest.approx(plain_r2(x @ vectors / values.sqrt(), CONCEPTS), rel=1e-9)
    spans, means = {}, {name: list(plain_means(x, labels).values()) for name, labels in CONCEPTS.items()}
    for name, labels in CONCEPTS.items():
        known = list(dict.fromkeys(labels))
        spans[name] = probe(x, torch.tensor([known.index(one) for one in labels]), len(known)).head.weight.T
    whole = torch.cat([spans["a"], spans["c"]], 1)  # 2 + 1 of 5 directions
    two = {name: CONCEPTS[name] for name in "ac"}
    on_two = plain_r2(x @ whole @ torch.linalg.pinv(whole), two)
    assert concept_factorisation(features, two).on_probes == pytest.approx(on_two, rel=1e-6)
    for one in found.concepts:
        span, own = spans[one.concept], {one.concept: CONCEPTS[one.concept]}
        assert one.share == pytest.approx(plain_r2(x, own), rel=1e-9)
        assert one.read_out == pytest.approx(plain_r2(x @ span @ torch.linalg.pinv(span), own), rel=1e-6)
        assert one.within == pytest.approx(plain_cosine(means[one.concept], means[one.concept]), rel=1e-9)
    assert sum(one.share for one in found.concepts) == pytest.approx(found.r2, rel=1e-9)
    for a, b in combinations(CONCEPTS, 2):
        assert found.across[a, b] == pytest.approx(plain_cosine(means[a], means[b]), rel=1e-9)


@pytest.mark.parametrize("rows", [GRID, GRID[3:31]], ids=["balanced", "not balanced"])
def test_a_sum_of_parts_is_explained_whole(rows: Sequence[Sequence[object]]) -> None:
    concepts = dict(zip("abc", zip(*rows, strict=True), strict=True))
    found = concept_factorisation(sum_of_parts(rows), concepts)
    assert (found.r2, found.whitened, found.on_probes) == pytest.approx((1, 1, 1), abs=1e-9)


def test_a_pure_interaction_is_not_explained() -> None:
    rows = list(product((-1, 1), (-1, 1), range(3)))
    features = torch.tensor([[a * b, 2 * a * b] for a, b, _ in rows]).double()
    concepts = {"a": [a for a, _, _ in rows], "b": [b for _, b, _ in rows]}
    found = concept_factorisation(features, concepts)
    assert (found.r2, found.whitened) == pytest.approx((0, 0), abs=1e-12)
    assert [one.directions for one in found.concepts] == [0, 0]
    assert found.mean_across is None
    assert found.on_probes is None
    assert "cosine" not in found.verdict


def test_rotation_scale_and_shift_change_nothing() -> None:
    features = normal(len(GRID), 6, seed=5) + sum_of_parts(GRID, 6)
    first, moved = (
        concept_factorisation(one, CONCEPTS) for one in (features, 3 * features @ turn(6) + normal(6, seed=9))
    )
    names = ("r2", "whitened", "on_probes", "mean_across", "mean_within")
    assert [getattr(first, name) for name in names] == pytest.approx(
        [getattr(moved, name) for name in names], rel=1e-6
    )
    assert [one.directions for one in first.concepts] == [one.directions for one in moved.concepts]


def test_orthogonal_parts_and_how_many_directions_they_have() -> None:
    eye = torch.eye(6).double()
    at = {"p": eye[0], "q": eye[1], "r": eye[2], "s": eye[3]}  # at equal angles: 3 directions
    line = {"x": -eye[4], "y": 0 * eye[4], "z": eye[4]}  # on a line: 1
    found = concept_factorisation(torch.stack([line[a] + at[b] + c * eye[5] for a, b, c in GRID]), CONCEPTS)
    assert [one.directions for one in found.concepts] == [1, 3, 1]
    assert found.mean_across == pytest.approx(0, abs=1e-12)
    assert [one.within for one in found.concepts] == pytest.approx([1, 1 / 3, 1])
    assert found.mean_within == pytest.approx(2 / 3)  # of two values it is always 1, and is left out


def test_rows_that_are_all_at_right_angles_have_the_r2_of_chance() -> None:
    rows = list(product("xyz", "pq", (0, 1)))
    found = concept_factorisation(
        torch.eye(12) @ turn(12).float(), dict(zip("abc", zip(*rows, strict=True), strict=True))
    )
    assert found.chance == 4 / 11
    assert (found.r2, found.whitened) == pytest.approx((4 / 11, 4 / 11), rel=1e-5)


def test_words_numbers_and_tensors_are_values_and_the_report_has_all() -> None:
    features = normal(len(GRID), 4, seed=0).float()
    given = {**CONCEPTS, "c": torch.tensor([c for _, _, c in GRID])}
    found = concept_factorisation(features, given)
    assert found.r2 == concept_factorisation(features, CONCEPTS).r2
    text = str(found)
    assert text.startswith("# Features as a sum of concepts\n\nOne part for each concept explains")
    assert "whitened" in text
    assert "directions" in text


def test_what_cannot_be_told_apart_is_refused() -> None:
    features = normal(len(GRID), 4, seed=0)
    with pytest.raises(MismatchError, match="concept 'a' has 2 labels, and there are 48 rows"):
        concept_factorisation(features, {"a": [0, 1]})
    with pytest.raises(UsageError, match="'a' has the same value in all rows"):
        concept_factorisation(features, {"a": [0] * len(GRID)})
    with pytest.raises(UsageError, match=r"a, again determine one another"):
        concept_factorisation(features, {"a": CONCEPTS["a"], "again": CONCEPTS["a"]})
    with pytest.raises(UsageError, match="3 free values of 1 concepts and 4 rows"):
        concept_factorisation(features[:4], {"a": range(4)})
    with pytest.raises(UsageError, match="all rows are alike"):
        concept_factorisation(torch.ones(len(GRID), 4), CONCEPTS)
    with pytest.raises(UsageError, match="0 concepts"):
        concept_factorisation(features, {})
    with pytest.raises(NonFiniteError, match="NaN in 1 of 48 rows"):
        concept_factorisation(features.index_fill(0, torch.tensor([3]), torch.nan), CONCEPTS)


# -- drift -----------------------------------------------------------------------------------------------------


def task() -> ts.Task:
    labels = torch.arange(6) % 2
    rows = {
        name: (normal(6, 4, seed=seed), labels) for seed, name in enumerate(("train", "validation", "test"))
    }
    return ts.Task.from_tensors("parity", ["even", "odd"], **rows)


def encoder(seed: int = 0) -> ts.Encoder:
    torch.manual_seed(seed)
    return ts.load(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double())


def cosines(model: nn.Module, anchors: Tensor) -> list[list[float]]:
    rows = torch.stack(list(task().split("test").inputs))
    with torch.no_grad():
        z, a = model(rows), model(anchors)
    return [[float(one @ two / one.norm() / two.norm()) for two in a] for one in z]


def test_drift_is_that_of_plain_loops() -> None:
    first, second = encoder(0), encoder(1)
    anchors = task().split("train").take([0, 2, 3])
    found = relative_drift(first, second, task(), anchors=anchors)
    r, moved = (cosines(one, torch.stack(list(anchors.inputs))) for one in (first, second))
    by_row = [fmean(abs(a - b) for a, b in zip(*pair, strict=True)) for pair in zip(r, moved, strict=True)]
    assert found.by_row.tolist() == pytest.approx(by_row, rel=1e-10)
    apart = fmean(abs(a - b) for one, two in combinations(r, 2) for a, b in zip(one, two, strict=True))
    assert found.apart == pytest.approx(apart, rel=1e-10)
    assert found.share.value == pytest.approx(fmean(by_row) / apart)
    assert found.share.standard_error == pytest.approx(float(torch.tensor(by_row).std()) / 6**0.5 / apart)
    assert "a row of parity moves by" in str(found)
    assert repr(found).startswith("RelativeDrift('parity': ")


def test_a_rotation_a_factor_and_more_features_are_no_drift() -> None:
    first, wide = encoder(), encoder()
    turned = turn(8)[:, :3]  # three features among eight, at right angles
    last = wide.backbone[2]  # type: ignore[index]
    with torch.no_grad():
        last.weight = nn.Parameter(5 * turned @ last.weight)
        last.bias = nn.Parameter(5 * turned @ last.bias)
    assert relative_drift(first, wide, task()).drift.value < 1e-12


def test_a_tangent_edit_drifts_as_its_features() -> None:
    base, other = encoder(0), encoder(1)
    vector = ts.TaskVector.from_checkpoints(base, other)
    edited = ts.apply(base, vector, 0.3, regime="posthoc")
    found = relative_drift(base, edited, task(), anchors=6)
    anchors = torch.stack(list(task().split("train").inputs))
    r, moved = torch.tensor(cosines(base, anchors)), torch.tensor(cosines(edited, anchors))
    assert found.drift.value == pytest.approx(float((r - moved).abs().mean()), rel=1e-5)
    head = ts.Head(torch.eye(3).double())
    with pytest.raises(UsageError, match="the tangent model is of Classifier"):
        relative_drift(base, ts.linearize(ts.Classifier(base, head)), task())


def test_rows_that_are_alike_and_too_few_are_refused() -> None:
    flat = ts.load(nn.Linear(4, 1).double())
    flat.backbone.weight.data.zero_()
    with pytest.raises(UsageError, match="cannot tell them apart"):
        relative_drift(flat, encoder(), task())
    with pytest.raises(UsageError, match="anchors=1: at least 2"):
        relative_drift(encoder(), encoder(1), task(), anchors=1)
    with pytest.raises(UsageError, match="1 anchors and 6 rows"):
        relative_drift(encoder(), encoder(1), task(), anchors=task().split("train").take([0]))
    with pytest.raises(UsageError, match="relative_drift linearises"):
        relative_drift(encoder(), encoder(1), task(), reading=ts.Reading(point="encoder"))
    assert dataclasses.is_dataclass(relative_drift(encoder(), encoder(1), task()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_few_digits_leave_the_figures_where_they_are(dtype: torch.dtype) -> None:
    rows = [(a, b) for a, b in product(range(4), range(5))] * 15
    concepts = dict(zip("ab", zip(*rows, strict=True), strict=True))
    exact = (
        sum_of_parts(rows, 64) + 0.3 * normal(len(rows), 64, seed=5) + 2
    )  # a common part, which rounding goes by
    found, wanted = (concept_factorisation(x, concepts) for x in (exact.to(dtype), exact.double()))
    assert found.whitened == pytest.approx(wanted.whitened, rel=0.05)
    assert found.r2 == pytest.approx(wanted.r2, rel=0.01)
    assert [one.directions for one in found.concepts] == [one.directions for one in wanted.concepts]


def test_a_sum_of_parts_in_half_precision_is_seen_to_be_one() -> None:
    rows = [(a, b) for a, b in product(range(4), range(5))] * 3
    concepts = dict(zip("ab", zip(*rows, strict=True), strict=True))
    assert concept_factorisation(sum_of_parts(rows, 64).half(), concepts).whitened > 0.99


def test_labels_that_are_no_single_values_are_refused() -> None:
    x = normal(4, 3)
    with pytest.raises(UsageError, match=r"one_hot.argmax\(1\)"):
        concept_factorisation(x, {"a": torch.eye(4)})
    with pytest.raises(DataError, match="has NaN"):
        concept_factorisation(x, {"a": torch.tensor([0.0, 1.0, torch.nan, 1.0])})
