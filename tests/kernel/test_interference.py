"""Interference between tasks, joint solutions and unlearning: against products of Jacobians and refits."""

import pytest
import torch
from torch import nn

from helpers import zoo
from tauspan.core.errors import DataError, MismatchError, NonFiniteError, UsageError
from tauspan.kernel import DenseKernel, TangentKernel
from tauspan.kernel.operator.interference import Interference, PredictedAccuracy, interference
from tauspan.kernel.operator.joint import joint
from tauspan.kernel.operator.union import UnionKernel
from tauspan.kernel.operator.unlearning import RidgeFit
from tauspan.kernel.solvers.regression import solve_ridge
from tauspan.models import Classifier, Encoder, Head

ROWS = {"a": 5, "b": 4}
CLASSES = {"a": 2, "b": 3}


def kernels(dtype=torch.float64, **options):
    """Two tasks with heads of different sizes on one encoder."""
    torch.manual_seed(0)
    encoder = Encoder(nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 4)).to(dtype))
    return {
        name: TangentKernel(
            Classifier(encoder, Head(zoo.normal(CLASSES[name], 4, seed=place).to(dtype))),
            zoo.normal(ROWS[name], 3, seed=9 + place).to(dtype),
            **options,
        )
        for place, name in enumerate(ROWS)
    }


def residuals():
    return {name: zoo.normal(ROWS[name], CLASSES[name], seed=20 + place) for place, name in enumerate(ROWS)}


def written(kernel):
    """J as a matrix."""
    parts = [one for _, rows in kernel.left.dense_rows() for one in [rows]]
    names = sorted(parts[0])
    return torch.cat([torch.cat([part[name].flatten(2) for part in parts]) for name in names], 2).flatten(
        0, 1
    )


# -- the kernel of several tasks -----------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["auto", "contraction", "products"])
def test_the_union_of_tasks_with_other_heads_is_j_j_transposed(backend):
    union = UnionKernel(kernels(backend=backend))
    wide = torch.cat([written(kernel) for kernel in kernels().values()])
    vector = zoo.normal(len(wide), seed=3)
    torch.testing.assert_close(union.matvec(vector), wide @ (wide.T @ vector), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(union.dense(), wide @ wide.T, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(union.matvec(vector), wide @ (wide.T @ vector), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(union.diag(), (wide * wide).sum(1), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(union.rows([11]), (wide @ wide.T)[[11]], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(union.push(union.pullback(vector)), union.matvec(vector))
    several = zoo.normal(len(wide), 9, seed=4)  # more than go through one pass
    torch.testing.assert_close(union.pushed(union.pulled(several)), (wide @ (wide.T @ several)).T)
    assert union.between("b", "a").shape == (12, 10)
    assert union.shape == (22, 22)


def test_tasks_at_different_points_have_no_common_kernel():
    one, other = kernels()["a"], TangentKernel(nn.Linear(3, 2).double(), zoo.normal(2, 3))
    with pytest.raises(MismatchError, match="the kernel of 'x'"):
        UnionKernel({"x": one, "y": other})
    moved = kernels()["b"]
    with torch.no_grad():
        next(moved.tangent.base.parameters()).add_(1.0)
    with pytest.raises(MismatchError, match="different points"):
        UnionKernel({"x": one, "y": moved})
    with pytest.raises(UsageError, match="trace"):
        UnionKernel(kernels(outputs="trace"))
    with pytest.raises(UsageError, match="at least one task"):
        UnionKernel({})


# -- interference --------------------------------------------------------------------------------------------


def test_the_change_on_another_task_is_the_cross_kernel_times_alpha():
    made, y = kernels(), residuals()
    alphas = {name: solve_ridge(made[name], y[name], 0.1).alpha for name in made}
    found = interference(made, {name: made[name].pullback(alphas[name]) for name in made})
    union = UnionKernel(made)
    for on in made:
        for by in made:
            expected = (union.between(on, by) @ alphas[by]).view(ROWS[on], -1)
            torch.testing.assert_close(found.changes[on, by], expected, rtol=1e-10, atol=1e-12)
    table = found.table()
    sizes = {pair: float(change.square().mean().sqrt()) for pair, change in found.changes.items()}
    assert float(table[1, 0]) == pytest.approx(sizes["b", "a"] / sizes["a", "a"], rel=1e-12)
    assert float(found.table("on")[1, 0]) == pytest.approx(sizes["b", "a"] / sizes["b", "b"], rel=1e-12)


class Gated(nn.Module):
    """Two networks; the sign of the first input says which one answers."""

    def __init__(self, width=16):
        super().__init__()
        self.one, self.two = (
            nn.Sequential(nn.Linear(3, width), nn.ReLU(), nn.Linear(width, 1)) for _ in range(2)
        )

    def forward(self, x):
        first = (x[:, :1] > 0).to(x)
        return first * self.one(x) + (1 - first) * self.two(x)


def test_disjoint_parameters_on_disjoint_inputs_do_not_interfere_at_all():
    x = zoo.normal(12, 3, seed=1)
    x = torch.cat([x[:, :1].abs() + 0.1, x[:, 1:]], 1)
    turned = x * torch.tensor([-1.0, 1.0, 1.0], dtype=x.dtype)
    net = Gated().double()
    made = {"right": TangentKernel(net, x), "left": TangentKernel(net, turned)}
    y = {name: zoo.normal(12, seed=5) for name in made}
    taus = {name: made[name].pullback(solve_ridge(made[name], y[name], 0.01).alpha) for name in made}
    assert torch.equal(interference(made, taus).table(), torch.eye(2, dtype=torch.float64))
    both = joint(made, y, 0.01)
    for name in made:  # nothing to correct: each task's own solution is its part of the joint one
        torch.testing.assert_close(both.together[name], both.alone[name], rtol=1e-9, atol=1e-12)


def test_predicted_accuracies_and_classes_by_hand():
    one = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    changes = {("a", "a"): 2 * one, ("a", "b"): torch.tensor([[0.0, 9.0], [0.0, 0.0]])}
    changes |= {("b", "a"): 0 * one, ("b", "b"): one}
    found = Interference(tasks=("a", "b"), changes=changes)
    start, labels = {"a": 0 * one, "b": 0 * one}, {"a": torch.tensor([0, 1]), "b": torch.tensor([0, 1])}
    first, second = found.accuracies(start, labels)
    assert first == PredictedAccuracy(
        "a", base=0.5, alone=1.0, with_other={"b": 0.5}, together=0.5, rows=2, changed={"b": (1, 0)}
    )
    assert second == PredictedAccuracy(
        "b", base=0.5, alone=1.0, with_other={"a": 1.0}, together=1.0, rows=2, changed={"a": (0, 0)}
    )
    rows = found.by_class(labels)
    assert [(row.on, row.label) for row in rows] == [("a", 0), ("a", 1), ("b", 0), ("b", 1)]
    assert rows[0].change == pytest.approx((81 / 2) ** 0.5)
    assert rows[0].over_own == pytest.approx((81 / 2) ** 0.5 / 2**0.5)
    assert [row.change for row in rows[1:]] == [0.0, 0.0, 0.0]
    still = Interference(tasks=("a", "b"), changes=dict.fromkeys(changes, 0 * one))
    assert {row.over_own for row in still.by_class(labels)} == {None}
    assert still.rows()[0] == {"on": "a", "a": None, "b": None}
    assert found.rows()[0] == {"on": "a", "a": 1.0, "b": pytest.approx(81**0.5 / 2 / 0.5**0.5)}
    with pytest.raises(DataError, match="2 rows and no labels"):
        found.by_class({"a": labels["a"]})
    with pytest.raises(DataError, match="2 rows and 1 labels"):
        found.accuracies(start, {**labels, "b": torch.tensor([0])})


def test_interference_says_what_it_lacks():
    made, y = kernels(), residuals()
    with pytest.raises(UsageError, match="at least two"):
        interference({"a": made["a"]}, {"a": made["a"].pullback(y["a"].flatten())})
    with pytest.raises(UsageError, match="name the same tasks"):
        joint(made, {"a": y["a"], "c": y["b"]}, 0.1)
    with pytest.raises(UsageError, match="b on a"):
        Interference(tasks=("a", "b"), changes={tuple(pair): y["a"] for pair in ("aa", "ba", "bb")})
    with pytest.raises(MismatchError, match="the vector of 'b'"):
        interference(made, {"a": made["a"].pullback(y["a"].flatten()), "b": {"w": torch.ones(1)}})
    with pytest.raises(UsageError, match="Known: by, on"):
        Interference(tasks=("a", "b"), changes={(on, by): y["a"] for on in "ab" for by in "ab"}).table(
            "columns"
        )
    with pytest.raises(NonFiniteError, match="residual of 'b', row 0"):
        joint(made, {"a": y["a"], "b": y["b"] * float("nan")}, 0.1)


# -- joint solutions -----------------------------------------------------------------------------------------


def test_the_block_solve_is_the_minimum_of_the_summed_losses():
    made, y, ridge = kernels(), residuals(), 0.2
    found = joint(made, y, ridge)
    wide = torch.cat([written(kernel) for kernel in kernels().values()])
    target = torch.cat([y[name].flatten() for name in made])
    eye = torch.eye(wide.shape[1], dtype=wide.dtype)
    tau = torch.linalg.solve(wide.T @ wide + ridge * eye, wide.T @ target)  # the primal, in weight space
    moved = torch.cat([found.changes["together", name].flatten() for name in made])
    torch.testing.assert_close(moved, wide @ tau, rtol=1e-9, atol=1e-11)
    total = sum(
        float(delta.square().sum()) for delta in UnionKernel(made).pullback(found.solution.alpha).values()
    )
    assert total == pytest.approx(float(tau.square().sum()), rel=1e-9)


def test_the_joint_solution_is_no_worse_than_the_sum_and_the_sum_is_that_of_the_own_vectors():
    made, y, ridge = kernels(), residuals(), 1e-3
    found = joint(made, y, ridge)
    taus = {name: made[name].pullback(found.alone[name]) for name in made}
    moved = interference(made, taus).changes
    for on in made:
        torch.testing.assert_close(found.changes["alone", on], moved[on, on], rtol=1e-9, atol=1e-11)
        added = sum(moved[on, by] for by in made)
        torch.testing.assert_close(found.changes["added", on], added, rtol=1e-9, atol=1e-11)
    start = {name: torch.zeros_like(y[name]) for name in made}
    labels = {name: y[name].argmax(1) for name in made}
    losses, accuracies = found.losses(), found.accuracies(start, labels)
    left = y["a"] - found.changes["added", "a"]
    assert losses["added", "a"] == pytest.approx(float(left.square().mean()))
    assert sum(losses["together", name] for name in y) < sum(losses["added", name] for name in y)
    assert all(accuracies["alone", name] == 1.0 for name in y)


# -- unlearning ----------------------------------------------------------------------------------------------


def refit(matrix, y, ridge, left, outputs):
    places = [sample * outputs + o for sample in left for o in range(outputs)]
    small = matrix[places][:, places] + ridge * torch.eye(len(places), dtype=matrix.dtype)
    alpha = torch.zeros(len(matrix), dtype=matrix.dtype)
    alpha[places] = torch.linalg.solve(small, y.flatten()[places])
    return alpha


@pytest.mark.parametrize("ridge", [0.0, 0.1])
def test_unlearning_rows_is_the_fit_without_them(ridge):
    kernel = kernels()["b"]
    y = residuals()["b"]
    fit = RidgeFit.of(kernel, y, ridge)
    torch.testing.assert_close(fit.alpha, refit(kernel.dense(), y, ridge, range(4), 3), rtol=1e-9, atol=1e-10)
    less = fit.without([2])
    least = less.without([0, 3])
    for one, left in ((less, [0, 1, 3]), (fit.without([2, 0]), [1, 3]), (least, [1])):
        expected = refit(kernel.dense(), y, ridge, left, 3)
        torch.testing.assert_close(one.alpha, expected, rtol=1e-9, atol=1e-10)
        assert one.samples == tuple(left)
    change = kernel.pullback(less.alpha - fit.alpha)
    before, after = kernel.pullback(fit.alpha), kernel.pullback(less.alpha)
    for name, delta in change.items():
        torch.testing.assert_close(before[name] + delta, after[name])


def test_unlearning_says_which_rows_it_cannot_forget():
    fit = RidgeFit.of(DenseKernel(2 * torch.eye(3, dtype=torch.float64)), torch.ones(3), 0.5)
    for rows, message in (
        ([], "at least one"), ([1, 1], "none twice"), ([3], "rows 3 are not"), ([-1], "rows -1 are not"),
        ([0, 1, 2], "all rows"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=message):
            fit.without(rows)
    with pytest.raises(UsageError, match="rows 1 are not in this fit, which has 2"):
        fit.without([1]).without([1])
    with pytest.raises(UsageError, match="ridge"):
        RidgeFit.of(DenseKernel(torch.eye(2)), torch.ones(2), -1.0)
    with pytest.raises(UsageError, match="singular"):
        RidgeFit.of(DenseKernel(torch.ones(2, 2, dtype=torch.float64)), torch.ones(2), 0.0)
