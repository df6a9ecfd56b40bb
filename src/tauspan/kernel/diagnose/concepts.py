"""Are features a sum of one part for each concept, and do the parts of two concepts point in different directions?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from tauspan.core.arguments import checked
from tauspan.core.errors import DataError, MismatchError, UsageError, listed
from tauspan.core.params import require_finite_rows
from tauspan.core.report import Cell, Report, Table, provenance
from tauspan.core.results import Result, mean
from tauspan.tasks.probe import probe

_STEPS = 4  # of rounding in the features, which pass through many layers

ENERGY = 0.95


@dataclass(frozen=True)
class ConceptPart:
    """What the values of one concept do to features.

    Args:
        concept: its name.
        values: V, how many it has.
        share: R^2 of its means alone; where concepts are balanced the shares add up to R^2.
        directions: the number of singular values of its means that hold 95 % of their energy; at most V - 1.
        within: mean |cos| between the means of two of its values; 1 of two values, since their means are opposite.
        read_out: R^2 of its means alone, of features on the span of its own probe; None where that sees nothing.
    """

    concept: str
    values: int
    share: float
    directions: int
    within: float | None
    read_out: float | None


@dataclass(frozen=True, kw_only=True)
class ConceptFactorisation(Result):
    """How far features less their mean are a sum of one part for each concept.

    Args:
        rows_read: N.
        width: d.
        r2: 1 - |X - sum_c part_c|^2 / |X|^2.
        whitened: the same where all directions that features take have variance 1; it says nothing, and equals `chance`,
            where they take N - 1 directions.
        on_probes: the same of features projected on the span of the weights of all probes.
        chance: the R^2 that labels have on average that have nothing to do with the features.
        concepts: one for each.
        across: mean |cos| between means of two concepts, by pair.
    """

    rows_read: int
    width: int
    r2: float
    whitened: float
    on_probes: float | None
    chance: float
    concepts: Sequence[ConceptPart]
    across: Mapping[tuple[str, str], float | None] = field(repr=False)

    @property
    def mean_across(self) -> float | None:
        """The mean over pairs of concepts; None of one concept."""
        return mean(list(self.across.values()))

    @property
    def mean_within(self) -> float | None:
        """The mean over concepts of more than two values; None without one."""
        return mean([one.within for one in self.concepts if one.values > 2])

    @property
    def verdict(self) -> str:
        """How much of the features concepts add up to, and how far from orthogonal they are."""
        text = (
            f"One part for each concept explains {self.r2:.1%} of the features (chance: {self.chance:.1%})."
        )
        if self.mean_across is not None:
            text += f" The cosine of parts of two concepts is {self.mean_across:.2f} on average"
            text += "." if self.mean_within is None else f", {self.mean_within:.2f} within a concept."
        return text

    def report(self) -> Report:
        """R^2 of all concepts together, and a row for each concept."""
        whole: list[dict[str, Cell]] = [
            {"features": name, "R2": value}
            for name, value in (
                ("as they are", self.r2), ("whitened", self.whitened), ("on the probes' span", self.on_probes),
            )
        ]  # fmt: skip
        each: list[dict[str, Cell]] = [
            {
                "concept": one.concept, "values": one.values, "R2 alone": one.share, "R2 on its probe": one.read_out,
                "directions": one.directions, "|cos| within": one.within,
                "|cos| across": mean([value for pair, value in self.across.items() if one.concept in pair]),
            }
            for one in self.concepts
        ]  # fmt: skip
        note = f"{self.rows_read} rows, {self.width} features; by chance {self.chance:.3f}"
        title = "Features as a sum of concepts"
        return Report(
            title,
            [
                Table(title, whole, note),
                Table("Concepts", each, f"directions: of {ENERGY:.0%} of the energy"),
            ],
            dict(self.provenance),
            warnings=self.warnings,
            verdict=self.verdict,
        )


@checked
def concept_factorisation(
    features: Tensor, concepts: Mapping[str, Sequence[Any] | Tensor]
) -> ConceptFactorisation:
    """R^2 of the additive model x_n - mean = sum_c part_c(value of concept c in row n), and the angles of its parts.

    After Uselis, Dittadi and Oh (2026), who ask it of vision models: where concepts generalise to combinations that
    were not seen, features must be such sums, with orthogonal parts. Parts are fitted by least squares over all concepts
    at once. Where every pair of values is equally frequent they are the means of x - mean over the rows of each
    value, which is what the paper takes; elsewhere such means count twice what two concepts share. Directions,
    cosines, and the R^2 of one concept alone are of these means, as in the authors' code.

    Args:
        features: shape (N, d), of any layer.
        concepts: for each concept the value in each row: N words, or numbers, or a tensor of shape (N,).

    Raises:
        UsageError: no concept, a concept with one value, concepts that determine one another, as many free values as rows
            (a sum then fits anything), features that are all alike.
        MismatchError: labels of another length than the rows.
        NonFiniteError: NaN or infinity in a row.

    Cost:
        In float64: a singular value decomposition of the features, N d min(N, d), and a linear probe for each concept.

    Example:
        >>> pairs = [(a, b) for a in "xyz" for b in "pqr"]
        >>> part = {letter: torch.eye(6)[place] for place, letter in enumerate("xyzpqr")}
        >>> added = torch.stack([part[a] + part[b] for a, b in pairs])
        >>> found = concept_factorisation(added, {"first": [a for a, _ in pairs], "second": [b for _, b in pairs]})
        >>> round(found.r2, 6), round(found.chance, 6), round(abs(found.mean_across), 6), round(found.mean_within, 6)
        (1.0, 0.5, 0.0, 0.5)
    """
    if features.dim() != 2 or not concepts:
        raise UsageError(
            f"features of shape {tuple(features.shape)} and {len(concepts)} concepts: give (N, d), and at least one."
        )
    require_finite_rows(features, "the features")
    x = features.detach().double().cpu()
    x = x - x.mean(0)
    places = {name: _places(name, values, len(x)) for name, values in concepts.items()}
    left, values, _ = torch.linalg.svd(x, full_matrices=False)
    rounding = _rounding(features)
    # the largest singular value of so many independent roundings, and of float64's in the decomposition
    noise = rounding * sum(size**0.5 for size in x.shape)
    seen = values > max(noise, float(values[0]) * max(x.shape) * torch.finfo(torch.float64).eps)
    if not bool(seen.any()) or not float(values[0]):
        raise UsageError("the features of all rows are alike: there is nothing to explain.")
    units = x / x.square().mean().sqrt()
    dummies = {name: _dummies(found) for name, found in places.items()}
    basis = _basis(dummies)
    spans = {
        name: _rows_span(probe(units, found, int(found.max()) + 1).head.weight)
        for name, found in places.items()
    }
    alone = {name: torch.linalg.qr(one[:, 1:]).Q for name, one in dummies.items()}
    means = {name: _means(x, found, rounding) for name, found in places.items()}
    parts = [
        ConceptPart(
            name, len(means[name]), _explained(alone[name], x), _directions(means[name]),
            _cosine(means[name]), _explained_on(alone[name], x, spans[name]),
        )
        for name in places
    ]  # fmt: skip
    return ConceptFactorisation(
        rows_read=len(x), width=x.shape[1], r2=_explained(basis, x), whitened=_explained(basis, left[:, seen]),
        on_probes=_explained_on(basis, x, _rows_span(torch.cat([span.T for span in spans.values()]))),
        chance=basis.shape[1] / (len(x) - 1), concepts=parts,
        across={(a, b): _cosine(means[a], means[b]) for a, b in combinations(means, 2)},
        provenance=provenance(concepts=list(places)),
    )  # fmt: skip


def _places(name: str, values: Sequence[Any] | Tensor, rows: int) -> Tensor:
    """The number of the value in each row, in the order of first appearance, shape (N)."""
    listing = values.tolist() if hasattr(values, "tolist") else list(values)
    if any(isinstance(value, list) for value in listing):
        raise UsageError(
            f"concept {name!r} has a list of numbers for each row: give one value, such as `one_hot.argmax(1)`."
        )
    if any(value != value for value in listing):
        raise DataError(f"concept {name!r} has NaN among its values: leave these rows out.")
    if len(listing) != rows:
        raise MismatchError(
            f"concept {name!r} has {len(listing)} labels, and there are {rows} rows: give one for each."
        )
    known = {value: place for place, value in enumerate(dict.fromkeys(listing))}
    if len(known) < 2:
        raise UsageError(
            f"concept {name!r} has the same value in all rows: leave it out, or add rows with another one."
        )
    return torch.tensor([known[value] for value in listing])


def _dummies(places: Tensor) -> Tensor:
    """One column for each value, less its mean, shape (N, V)."""
    hot: Tensor = torch.nn.functional.one_hot(places).double()
    return hot - hot.mean(0)


def _basis(dummies: Mapping[str, Tensor]) -> Tensor:
    """An orthonormal basis of all sums of one part for each concept, shape (N, sum_c (V_c - 1))."""
    columns = torch.cat([one[:, 1:] for one in dummies.values()], 1)
    rows, free = columns.shape
    basis: Tensor
    basis, values, _ = torch.linalg.svd(columns, full_matrices=False)
    if free >= rows - 1:
        raise UsageError(
            f"{free} free values of {len(dummies)} concepts and {rows} rows: any features are such a sum. Give more rows."
        )
    if float(values[-1]) < float(values[0]) * rows * torch.finfo(torch.float64).eps:
        raise UsageError(
            f"the concepts {listed(dummies)} determine one another in these rows, so their parts cannot be told apart: "
            "give rows with other combinations, or leave a concept out."
        )
    return basis


def _rounding(features: Tensor) -> float:
    """What rounding may leave of an entry: some steps of the features' own precision at their mean size."""
    dtype = features.dtype if features.is_floating_point() else torch.float64
    return _STEPS * torch.finfo(dtype).eps * float(features.detach().double().square().mean().sqrt())


def _means(x: Tensor, places: Tensor, rounding: float) -> Tensor:
    """The mean of the rows of each value, shape (V, d); one that is rounding alone is 0."""
    hot = torch.nn.functional.one_hot(places).double()
    counts = hot.sum(0)
    found: Tensor = (hot / counts).T @ x
    found[found.norm(dim=1) <= rounding * (x.shape[1] / counts).sqrt()] = 0
    return found


def _explained(basis: Tensor, x: Tensor) -> float:
    """|B^T X|^2 / |X|^2 of an orthonormal basis B."""
    return float((basis.T @ x).square().sum() / x.square().sum())


def _explained_on(basis: Tensor, x: Tensor, span: Tensor) -> float | None:
    return _explained(basis, x @ span) if span.shape[1] else None


def _rows_span(weight: Tensor) -> Tensor:
    """An orthonormal basis of the span of some rows, as columns, shape (d, r); weights of features of size 1."""
    _, values, right = torch.linalg.svd(weight, full_matrices=False)
    kept: Tensor = right[values > 1e-6].T  # what a probe finds in features that say nothing is its tolerance
    return kept


def _directions(means: Tensor) -> int:
    energy = torch.linalg.svdvals(means).square()
    return int((energy.cumsum(0) < ENERGY * energy.sum()).sum()) + 1 if float(energy[0]) else 0


def _cosine(one: Tensor, two: Tensor | None = None) -> float | None:
    """Mean |cos| between rows of two matrices, or between different rows of one; a row of zeros has no direction."""
    a, b = (
        torch.nn.functional.normalize(table[table.any(1)], dim=1)
        for table in (one, one if two is None else two)
    )
    cosines = (a @ b.T).abs()
    if two is not None:
        return float(cosines.mean()) if cosines.numel() else None
    count = len(cosines)
    return float((cosines.sum() - cosines.diagonal().sum()) / (count * (count - 1))) if count > 1 else None
