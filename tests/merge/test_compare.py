"""Merging methods side by side: each row is what `add` and `evaluate` say of that method alone."""

import pytest

import tauspan as ts
from helpers.runs import encoder
from helpers.searches import cloud
from helpers.zoo import normal
from tauspan.core.errors import RecipeError, UsageError
from tauspan.editing.search import add
from tauspan.experiments.recipe import Recipe
from tauspan.merge import merge
from tauspan.merge.data.compare import compare
from tauspan.models import fingerprint_of, state_of

GRID = (0.0, 0.4, 1.0, 2.5)


def setting(regime):
    model = encoder()
    tasks = [cloud("one", 3), cloud("two", 8)]
    kind = "linear" if regime == "linear" else "standard"
    base = fingerprint_of(model)
    vectors = {}
    for seed, task in zip((10, 50), tasks, strict=True):
        shapes = {name: theta.shape for name, theta in state_of(model).items()}
        deltas = {
            name: normal(*shape, seed=seed + place).float()
            for place, (name, shape) in enumerate(shapes.items())
        }
        vectors[task] = ts.TaskVector(deltas, base, kind, task.name)
    return model, vectors


@pytest.mark.parametrize("regime", ["standard", "posthoc", "linear"])
def test_the_sum_is_what_add_finds(regime):
    model, vectors = setting(regime)
    methods = {"sum": ("task_arithmetic", {}), "largest": ("magmax", {})}
    found = compare(model, vectors, methods, regime, grid=GRID)
    alone = add(model, vectors, regime, grid=GRID)
    row = found.tables[0].rows[0]
    assert row["alpha"] == alone.result["alpha"]
    for column in ("zero shot", "single", "added", "added norm.", "alpha 1", "alpha 1 norm."):
        assert row[column] == pytest.approx(alone.result[column])


@pytest.mark.parametrize("regime", ["standard", "linear"])
def test_another_method_is_its_vector_evaluated(regime):
    model, vectors = setting(regime)
    found = compare(model, vectors, {"m": ("magmax", {})}, regime, grid=GRID)
    alpha = found.tables[0].rows[0]["alpha"]
    merged = merge(list(vectors.values()), "magmax")
    there = ts.evaluate(model, list(vectors), merged, alpha, regime)
    assert found.tables[1].rows[0] == {"method": "m", **there.result["accuracy"]}


def test_nothing_to_compare():
    model, vectors = setting("standard")
    with pytest.raises(UsageError, match="one method"):
        compare(model, vectors, {})


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ("methods: [ties, ties]", "stands twice"),
        ("grid: []", "at least one coefficient"),
        ("regimes: [linear]", "'linear'"),
    ],
)
def test_recipes_of_comparisons(keys, message):
    text = f"model: minilm\ntasks: [email_spam, debian_section]\nregimes: [standard]\nmerge: {{{keys}}}\n"
    with pytest.raises(RecipeError, match=message):
        Recipe.parse(text)
