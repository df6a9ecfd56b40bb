"""Merging in the metric of the function, against the formula with whole matrices."""

import pytest
import torch

import tauspan as ts
from helpers.drifting import encoder, flat, task
from tauspan.core.errors import BaseMismatchError, UsageError
from tauspan.drift import factors, merge_in_metric, merged
from tauspan.merge import merge


def given():
    model, tasks = encoder(), [task("a"), task("b"), task("c", rows=5, classes=3)]
    vectors = [ts.closed_form(model, one, ridge=0.5).vector for one in tasks]
    return model, vectors, merged([factors(model, one) for one in tasks])


def root(matrix, damping):
    values, vectors = torch.linalg.eigh(matrix)
    values = values / values.mean() + damping
    return vectors @ torch.diag(values.sqrt()) @ vectors.T


@pytest.mark.parametrize("damping", [1e-2, 1.0])
def test_isotropic_merging_flattens_what_the_matrix_does(damping):
    model, vectors, curvature = given()
    found = merge_in_metric(model, vectors, curvature, "iso_c", damping=damping)
    for name in ("0.weight", "2.weight"):
        block = curvature.blocks[name]
        left, right = root(block.outputs.double(), damping), root(block.inputs.double(), damping)
        inside = left @ sum(one.deltas[name].double() for one in vectors) @ right
        u, s, vt = torch.linalg.svd(inside, full_matrices=False)
        wanted = torch.linalg.inv(left) @ (u * s.mean()) @ vt @ torch.linalg.inv(right)
        torch.testing.assert_close(found.deltas[name].double(), wanted, rtol=1e-4, atol=1e-5)


def test_a_rule_that_is_linear_does_not_see_the_metric():
    model, vectors, curvature = given()
    found = merge_in_metric(model, vectors, curvature, "task_arithmetic")
    torch.testing.assert_close(
        flat(found).double(), flat(merge(vectors, "task_arithmetic")).double(), rtol=1e-5, atol=1e-6
    )


def test_with_much_damping_it_is_the_rule_itself():
    model, vectors, curvature = given()
    found = merge_in_metric(model, vectors, curvature, "tsv_m", damping=1e9)
    torch.testing.assert_close(
        flat(found).double(), flat(merge(vectors, "tsv_m")).double(), rtol=1e-4, atol=1e-5
    )


def test_what_cannot_be_is_refused_with_a_repair():
    model, vectors, curvature = given()
    moved = encoder()
    with torch.no_grad():
        next(moved.parameters()).add_(1.0)
    for error, told, ask in [
        (UsageError, "above 0", lambda: merge_in_metric(model, vectors, curvature, damping=0.0)),
        (
            UsageError,
            "'expand' and 'reduce'",
            lambda: merge_in_metric(model, vectors, factors(model, task("a"), "diagonal")),
        ),
        (
            BaseMismatchError,
            "are of the model",
            lambda: merge_in_metric(model, vectors, factors(moved, task("a"))),
        ),
    ]:
        with pytest.raises(error, match=told):
            ask()
