"""Merging in the metric of the function, against the formula with whole matrices."""

import dataclasses

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


@pytest.mark.parametrize(
    "method", ["tsv_m", "iso_c", "iso_cts", "ties", "dare_ties", "breadcrumbs", "slerp", "magmax"]
)
@pytest.mark.parametrize("kind", ["expand", "reduce"])
def test_every_rule_merges_what_the_root_of_the_whole_matrix_makes_of_a_vector(method, kind):
    """The root of B (x) A of a layer, as one matrix on all entries, in the place of two small ones."""
    model, vectors, _ = given()
    vectors = vectors[:2] if method == "slerp" else vectors
    curvature = factors(model, task("a"), kind)
    damping, roots = 0.1, {}
    for name in ("0.weight", "2.weight"):
        block = curvature.blocks[name]
        a, b = (
            one / torch.linalg.eigvalsh(one).mean() + damping * torch.eye(len(one), dtype=torch.float64)
            for one in (block.inputs.double(), block.outputs.double())
        )
        values, basis = torch.linalg.eigh(torch.kron(b, a))  # entries of dW row by row
        roots[name] = (basis * values.sqrt()) @ basis.T, (basis / values.sqrt()) @ basis.T

    def mapped(vector, which):
        deltas = {name: delta.double() for name, delta in vector.deltas.items()}
        for name, pair in roots.items():
            deltas[name] = (pair[which] @ deltas[name].flatten()).view_as(deltas[name])
        return dataclasses.replace(vector, deltas=deltas)

    found = merge_in_metric(model, vectors, curvature, method, damping=damping, seed=3)
    wanted = mapped(merge([mapped(one, 0) for one in vectors], method, seed=3), 1)
    for name, delta in wanted.deltas.items():
        torch.testing.assert_close(found.deltas[name].double(), delta, rtol=1e-4, atol=1e-5)


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
