"""Main effects over subsets of vectors, against a least-squares fit that is written out."""

from itertools import product
from typing import Any

import pytest
import torch

import tauspan as ts
from helpers.runs import encoder
from helpers.searches import cloud, random_vector
from tauspan.core.errors import UsageError
from tauspan.editing.maps.factorisation import Factorisation


def editor(regime: Any, count: int = 3) -> ts.Editor:
    model, fits = encoder(), "linear" if regime == "linear" else "standard"
    tasks = [cloud(f"task{seed}", 10 * seed) for seed in range(count)]
    vectors = {task: random_vector(model, 40 + 10 * i, fits) for i, task in enumerate(tasks)}
    return ts.Editor(model, vectors, regime)


def by_least_squares(of: ts.Editor, task: ts.Task, scale: float, split: str) -> float:
    """R^2 of a fit of outputs by indicators of the vectors, row by row and output by output."""
    names = [one.name for one in of.vectors]
    model = of._models.whole(list(of.vectors))
    model.read(dict.fromkeys(of.vectors, names), split)
    design = torch.tensor(list(product((0.0, 1.0), repeat=len(names)))).double()
    z = torch.stack(
        [
            model.logits(task, split, {name: scale for name, on in zip(names, line, strict=True) if on})
            .double()
            .flatten()
            for line in design.tolist()
        ]
    )
    z = z.view(len(design), -1, len(task.label_names))
    z = (z - z.mean(-1, keepdim=True)).flatten(1)
    x = torch.cat([torch.ones(len(design), 1).double(), design], 1)
    left = z - x @ torch.linalg.lstsq(x, z).solution
    return 1 - float(left.square().sum() / (z - z.mean(0)).square().sum())


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_it_is_the_fit_of_indicators(scale: float) -> None:
    of = editor("standard")
    found = of.factorise(scale=scale, split="validation")
    for one, task in zip(found.effects, of.vectors, strict=True):
        assert one.r2 is not None
        assert one.r2 == pytest.approx(by_least_squares(of, task, scale, "validation"), abs=1e-10)
        assert 0 < one.r2 < 1
    assert found.r2 == pytest.approx(sum(one.r2 or 0 for one in found.effects) / 3)


@pytest.mark.parametrize("regime", ["posthoc", "linear"])
def test_affine_regimes_add_exactly(regime: Any) -> None:
    found = editor(regime).factorise()
    assert all(one.r2 == pytest.approx(1, abs=1e-9) for one in found.effects)
    assert "explain 100.0%" in found.verdict


def test_effects_of_an_affine_regime_are_the_tangents() -> None:
    of = editor("linear")
    found = of.factorise(scale=2.0, split="test")
    names = [task.name for task in of.vectors]
    model = of._models.whole(list(of.vectors))
    for one, task in zip(found.effects, of.vectors, strict=True):
        base = model.logits(task, "test", {})
        moved = {name: (model.logits(task, "test", {name: 2.0}) - base).double() for name in names}
        moved = {name: part - part.mean(-1, keepdim=True) for name, part in moved.items()}
        for name in names:
            assert one.size[name] == pytest.approx(float(moved[name].square().mean().sqrt()), rel=1e-6)
        squares = {name: float(part.square().sum()) for name, part in moved.items()}
        assert one.own == pytest.approx(squares[task.name] / sum(squares.values()), rel=1e-6)
        (first, second), cosine = next(iter(one.cosines.items()))
        expected = torch.cosine_similarity(moved[first].flatten(), moved[second].flatten(), 0)
        assert cosine == pytest.approx(float(expected), abs=1e-6)


def test_vectors_that_do_nothing_have_no_effects_and_are_said() -> None:
    of = editor("standard", 2)
    with pytest.raises(UsageError, match=r"no vector moves the outputs of any task at coefficient 0"):
        of.factorise(scale=0.0)
    alone = ts.Editor(of.encoder, dict([next(iter(of.vectors.items()))]), "standard")
    with pytest.raises(UsageError, match=r"1 vectors: effects over all subsets are measured of 2 to 12"):
        alone.factorise()


@pytest.mark.parametrize("regime", ["standard", "linear"])
def test_a_group_is_what_an_editor_of_its_vectors_alone_says(regime: Any) -> None:
    of = editor(regime, 4)
    group = list(of.vectors)[1:3]
    alone = ts.Editor(of.encoder, {task: of.vectors[task] for task in group}, regime).factorise()
    found = of.factorise(tasks=group)
    for one, other in zip(found.effects, alone.effects, strict=True):
        assert one.task == other.task
        assert one.r2 == pytest.approx(other.r2, abs=1e-12)
        assert one.own == pytest.approx(other.own, rel=1e-9)
        assert one.size == pytest.approx(other.size, rel=1e-9)
    with pytest.raises(UsageError, match="there is no vector of the task 'other'"):
        of.factorise(tasks=[group[0], cloud("other", 5)])


def test_a_report_has_a_row_for_each_task() -> None:
    found = editor("standard").factorise()
    assert isinstance(found, Factorisation)
    assert [row["rows of"] for row in found.rows()] == [one.task for one in found.effects]
    assert "over all 8 subsets" in found.report().to_markdown()
