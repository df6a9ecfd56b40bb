"""Solvers of a kernel against dense refits, weight-space steps, scipy, and the conditions of a minimum."""

import logging
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from helpers import zoo
from helpers.architectures_of_space import QuantumCircuit
from tauspan.core.errors import DataError, NonFiniteError, UsageError
from tauspan.kernel import DenseKernel
from tauspan.kernel.approximate.lowrank import pivoted_cholesky
from tauspan.kernel.solvers.cg import solve_cg
from tauspan.kernel.solvers.flow import Modes
from tauspan.kernel.solvers.hinge import margins, one_vs_rest, solve_hinge
from tauspan.kernel.solvers.newton import solve_cross_entropy
from tauspan.kernel.solvers.regression import choose_ridge, leave_one_out, solve_ridge
from tauspan.kernel.solvers.subgradient import dual_steps, primal_steps


class Tangents(DenseKernel):
    """J J^T of a written-out J, whose one parameter is named w."""

    def __init__(self, wide, outputs=1):
        super().__init__(wide @ wide.T, outputs)
        self.wide = wide

    def pullback(self, alpha):
        return {"w": self.wide.T @ alpha}

    def push(self, tau):
        return self.wide @ tau["w"]


def tangents(rows=6, outputs=1, parameters=20, seed=0):
    return Tangents(zoo.normal(rows * outputs, parameters, seed=seed), outputs)


def two_layers(rows, width, inputs=10, seed=0):
    """J of a two-layer ReLU network in the NTK parametrisation, both layers, and labels of a noisy half-space."""
    x = zoo.normal(rows, inputs, seed=seed)
    weights, readout = zoo.normal(width, inputs, seed=seed + 1), zoo.normal(width, seed=seed + 2)
    before = x @ weights.T / inputs**0.5
    first = (readout * (before > 0))[:, :, None] * x[:, None] / (width * inputs) ** 0.5
    wide = torch.cat([first.flatten(1), before.clamp(min=0) / width**0.5], 1)
    noisy = x[:, 0] + 0.5 * zoo.normal(rows, seed=seed + 3)
    return Tangents(wide), torch.where(noisy > 0, 1.0, -1.0).double()


# -- ridge ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ridge", [0.0, 1e-3, 2.0])
def test_primal_and_dual_ridge_regression_give_one_tau(ridge):
    kernel, y = tangents(), zoo.normal(6, seed=1)
    solved = solve_ridge(kernel, y, ridge)
    dual = kernel.pullback(solved.alpha)["w"]
    wide = torch.cat([kernel.wide, ridge**0.5 * torch.eye(20, dtype=torch.float64)])
    primal = torch.linalg.lstsq(wide, torch.cat([y, torch.zeros(20).double()])[:, None], driver="gelsd")[0][
        :, 0
    ]
    assert float((dual - primal).norm() / primal.norm()) < 5e-13
    assert solved.exact
    assert solved.relative_residual < 1e-13


@settings(deadline=None, max_examples=25)
@given(rows=st.integers(2, 6), outputs=st.integers(1, 3), seed=st.integers(0, 99), scale=st.floats(-4, 2))
def test_left_out_residuals_are_those_of_refits_without_the_row(rows, outputs, seed, scale):
    kernel, y, ridge = tangents(rows, outputs, 8, seed), zoo.normal(rows, outputs, seed=seed + 1), 10.0**scale
    found = leave_one_out(kernel, y, ridge)
    for row in range(rows):
        kept = [place for place in range(rows * outputs) if place // outputs != row]
        refit = solve_ridge(Tangents(kernel.wide[kept], outputs), y.flatten()[kept], ridge)
        tau = kernel.wide[kept].T @ refit.alpha
        left = y[row] - kernel.wide[row * outputs : (row + 1) * outputs] @ tau
        assert torch.allclose(found[row], left, rtol=1e-7, atol=1e-8)
    chosen = choose_ridge(kernel, y, [ridge])
    assert chosen.errors[0] == pytest.approx(float(found.square().sum(1).mean()), rel=1e-7)


def test_outputs_of_a_row_are_left_out_together():
    kernel, y = tangents(3, 2, 8), zoo.normal(3, 2, seed=1)
    inverse = torch.linalg.inv(kernel.dense() + 0.1 * torch.eye(6, dtype=torch.float64))
    apart = (inverse @ y.flatten()) / inverse.diagonal()
    assert not torch.allclose(leave_one_out(kernel, y, 0.1).flatten(), apart, rtol=1e-3)


def test_the_chosen_ridge_has_the_least_error():
    kernel, _ = two_layers(30, 64)
    y = kernel.wide @ zoo.normal(kernel.wide.shape[1], seed=5) + 0.5 * zoo.normal(30, seed=6)
    choice = choose_ridge(kernel, y)
    assert choice.errors[list(choice.grid).index(choice.ridge)] == min(choice.errors)
    assert not choice.at_edge
    for ridge, error in zip(choice.grid[::4], choice.errors[::4], strict=True):
        assert error == pytest.approx(float(leave_one_out(kernel, y, ridge).square().mean()), rel=1e-6)


def test_equal_errors_choose_the_shorter_vector():
    zero = torch.zeros(4, dtype=torch.float64)
    with pytest.warns(RuntimeWarning, match="ridge 3, an end of its grid .1 to 3, 3 values"):
        choice = choose_ridge(tangents(4), zero, [3.0, 1.0, 2.0])
    assert (choice.ridge, choice.at_edge, list(choice.grid)) == (3.0, True, [1.0, 2.0, 3.0])


def test_the_usual_grid_goes_on_where_the_least_error_lies_beyond_it():
    """Labels that five features give want the least ridge there is."""
    kernel = tangents(30, 1, 5)
    y = kernel.wide @ zoo.normal(5, seed=2)
    choice = choose_ridge(kernel, y)
    assert len(choice.grid) > 17
    assert list(choice.grid) == sorted(choice.grid)
    assert choice.errors[list(choice.grid).index(choice.ridge)] == min(choice.errors) < 1e-16
    assert choice.ridge < 1e-6 * float(kernel.dense().diagonal().mean())
    given = list(choice.grid)[1:4]
    with pytest.warns(RuntimeWarning, match="an end of its grid"):
        assert choose_ridge(kernel, y, given).at_edge


def test_where_no_row_helps_another_the_largest_ridge_is_chosen_and_that_is_said():
    kernel, y = DenseKernel(torch.ones(100, 100).double()), torch.tensor([1.0, -1.0]).double().repeat(50)
    with pytest.warns(RuntimeWarning, match="no row helps to predict another"):
        choice = choose_ridge(kernel, y)
    assert choice.at_edge
    assert choice.ridge == max(choice.grid) >= 10 * 100


def test_one_column_in_other_units_does_not_hide_the_least_error():
    """Its eigenvalue alone sets the mean; the ridge that the others need is ten decades below."""
    x = zoo.normal(60, 5)
    for factor, least in ((1e3, 1e-6), (1e6, None)):
        scaled = x * torch.tensor([1.0, 1.0, 1.0, 1.0, factor])
        kernel, y = DenseKernel(scaled @ scaled.T), x @ torch.tensor([1.0, -2.0, 1.0, 0.5, 0.0]).double()
        if least is None:
            with pytest.warns(
                RuntimeWarning, match="too far apart for float64.*one scale, or give a grid .* such as"
            ):
                choice = choose_ridge(kernel, y)
        else:
            choice = choose_ridge(kernel, y)
        assert min(choice.errors) < (least or 1e-1)
        assert choice.ridge < 1e-6 * float(kernel.dense().diagonal().mean())


def test_a_singular_system_names_the_duplicates_the_eigenvalue_and_the_repair():
    wide = zoo.normal(4, 9)
    wide[3] = wide[1]
    kernel, y = Tangents(wide), zoo.normal(4, seed=1)
    for solve in (solve_ridge, leave_one_out):
        with pytest.raises(UsageError, match=r"(?s)Give a ridge.*smallest eigenvalue.*Rows 1 and 3 have the"):
            solve(kernel, y, 0.0)
    found = solve_ridge(kernel, y, 1e-6)
    assert found.alpha[1] - found.alpha[3] == pytest.approx(float(y[1] - y[3]) / 1e-6, rel=1e-6)
    with pytest.raises(UsageError, match="singular") as caught:
        solve_ridge(tangents(5, 1, 3), zoo.normal(5), 0.0)  # more rows than parameters, none twice
    assert "have the same" not in str(caught.value)


def test_one_row():
    kernel = tangents(1)
    assert float(solve_ridge(kernel, torch.ones(1), 0.0).alpha) == pytest.approx(1 / float(kernel.dense()))
    for call in (
        lambda: leave_one_out(kernel, torch.ones(1), 1.0),
        lambda: choose_ridge(kernel, torch.ones(1)),
    ):
        with pytest.raises(UsageError, match="needs 2 rows"):
            call()


def test_ridge_regression_refuses_what_it_cannot_solve():
    kernel, y = tangents(3, 2), zoo.normal(6)
    for ridge in (-1.0, math.nan, math.inf):
        with pytest.raises(UsageError, match="ridge="):
            solve_ridge(kernel, y, ridge)
    with pytest.raises(UsageError, match="3 rows of 2 outputs"):
        solve_ridge(kernel, y[:3], 1.0)
    with pytest.raises(NonFiniteError, match="row 1: nan"):
        solve_ridge(kernel, torch.where(torch.arange(6) == 3, math.nan, y), 1.0)
    broken = kernel.dense().clone()
    broken[5] = math.inf
    with pytest.raises(NonFiniteError, match="row 2 of the data"):
        solve_ridge(DenseKernel(broken, 2), y, 1.0)
    with pytest.raises(UsageError, match="square kernel"):
        solve_ridge(DenseKernel(zoo.normal(3, 4)), y[:3], 1.0)
    with pytest.raises(UsageError, match="not symmetric"):
        solve_ridge(DenseKernel(zoo.normal(3, 3)), y[:3], 1.0)
    with pytest.raises(UsageError, match="grid of ridges is empty"):
        choose_ridge(kernel, y, [])
    with pytest.raises(UsageError, match="above 0"):
        choose_ridge(kernel, y, [0.0, 1.0])


def test_too_many_rows_for_a_matrix_are_refused_before_it_is_made():
    class Wide(DenseKernel):
        shape = (20_001, 20_001)

        def dense(self):
            raise AssertionError

    kernel = Wide(torch.zeros(1, 1))
    with pytest.raises(UsageError, match="20001 rows x outputs is solved as a matrix up to 20000"):
        solve_ridge(kernel, torch.zeros(20_001), 1.0)


# -- gradient flow -------------------------------------------------------------------------------------------


def descended(kernel, y, steps, lr):
    tau = torch.zeros(kernel.wide.shape[1], dtype=torch.float64)
    for _ in range(steps):
        tau -= lr * kernel.wide.T @ (kernel.wide @ tau - y)
    return tau


def test_weight_space_steps_are_those_of_the_eigenpairs():
    kernel, y = tangents(), zoo.normal(6, seed=1)
    modes = Modes.of(kernel)
    lr = 0.5 * modes.lr_max
    assert modes.exact
    for steps in (0, 1, 500):
        tau, alpha = descended(kernel, y, steps, lr), modes.descent(y, steps, lr)
        assert float((kernel.pullback(alpha)["w"] - tau).norm()) <= 1e-10 * max(float(tau.norm()), 1.0)
        left = 0.5 * float((kernel.wide @ tau - y).square().sum())
        assert modes.descent_loss(y, steps, lr) == pytest.approx(left, rel=1e-9, abs=1e-24)


def test_long_descent_ends_at_the_closed_form():
    kernel, y = tangents(6, 1, 40), zoo.normal(6, seed=1)
    modes = Modes.of(kernel)
    for ridge in (0.0, 0.3):
        moved = Modes(modes.values + ridge, modes.vectors)  # descent of the loss with its ridge
        tau = kernel.pullback(moved.descent(y, 100_000, 0.9 * moved.lr_max))["w"]
        closed = kernel.pullback(solve_ridge(kernel, y, ridge).alpha)["w"]
        assert float((tau - closed).norm() / closed.norm()) < 1e-6


def test_small_steps_follow_the_flow():
    kernel, y = tangents(), zoo.normal(6, seed=1)
    modes = Modes.of(kernel)
    lr = 1e-6 * modes.lr_max
    steps = 300_000
    flow = modes.flow(y, lr * steps)
    assert torch.allclose(modes.descent(y, steps, lr), flow, rtol=1e-5)
    assert modes.descent_loss(y, steps, lr) == pytest.approx(modes.flow_loss(y, lr * steps), rel=1e-5)
    left = 0.5 * float((kernel.dense() @ flow - y).square().sum())
    assert modes.flow_loss(y, lr * steps) == pytest.approx(left, rel=1e-9)


def test_the_ends_of_the_path():
    kernel, y = tangents(), zoo.normal(6, seed=1)
    modes = Modes.of(kernel)
    assert not modes.flow(y, 0.0).any()
    assert torch.allclose(modes.flow(y, math.inf), solve_ridge(kernel, y, 0.0).alpha, rtol=1e-9)
    assert torch.allclose(modes.ridge(y, 0.3), solve_ridge(kernel, y, 0.3).alpha, rtol=1e-9)
    assert modes.flow_loss(y, 0.0) == pytest.approx(0.5 * float(y.square().sum()))


def test_a_singular_kernel_leaves_what_it_cannot_see():
    kernel, y = tangents(5, 1, 3), zoo.normal(5, seed=1)
    modes = Modes.of(kernel)
    shortest = torch.linalg.pinv(kernel.wide) @ y
    assert torch.allclose(kernel.pullback(modes.flow(y, math.inf))["w"], shortest, rtol=1e-9)
    left = 0.5 * float((kernel.wide @ shortest - y).square().sum())
    assert modes.flow_loss(y, math.inf) == pytest.approx(left)
    some = Modes(modes.values[-2:], modes.vectors[:, -2:])
    assert not some.exact
    assert some.flow_loss(y, math.inf) >= left - 1e-12


def test_a_ridge_that_is_no_number_is_refused():
    for ridge in (None, True, "1"):
        with pytest.raises(UsageError, match=rf"`ridge` is .*{ridge}"):
            solve_ridge(tangents(), zoo.normal(6), ridge)


def test_a_solution_of_another_kernel_has_no_margins_here():
    kernel, signs = DenseKernel(torch.eye(3).double()), torch.tensor([1.0, -1.0, 1.0])
    other = solve_hinge(DenseKernel(torch.eye(2).double()), signs[:2], 0.1)
    with pytest.raises(UsageError, match=r"the solution of shape \(2,\): the kernel has 3 rows"):
        margins(kernel, other, signs)


def test_impossible_paths_are_refused():
    modes, y = Modes.of(tangents()), zoo.normal(6)
    with pytest.raises(UsageError, match="lr_max"):
        modes.descent(y, 3, modes.lr_max)
    with pytest.raises(UsageError, match="steps=-1"):
        modes.descent_loss(y, -1, 0.1)
    for call in (modes.flow, modes.flow_loss):
        with pytest.raises(UsageError, match="time=-1"):
            call(y, -1)
    with pytest.raises(UsageError, match="ridge=0"):
        modes.ridge(y, 0)
    with pytest.raises(UsageError, match="5 residuals"):
        modes.flow(y[:5], 1.0)
    for call in (modes.flow, modes.ridge):
        with pytest.raises(NonFiniteError, match="residuals"):
            call(y * math.nan, 1.0)
    with pytest.raises(UsageError, match="needs a column"):
        Modes(torch.ones(3), torch.eye(2))
    assert Modes.of(DenseKernel(torch.zeros(2, 2))).lr_max == math.inf


# -- cross-entropy -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ridge", [1e-5, 1e-2, 10.0])
def test_newton_ends_where_the_gradient_in_tau_does(ridge):
    kernel, start = tangents(8, 3, 15), 3 * zoo.normal(8, 3, seed=2)
    labels = torch.arange(8) % 3
    found = solve_cross_entropy(kernel, labels, ridge, start)
    tau = kernel.pullback(found.alpha)["w"].requires_grad_()
    logits = start + (kernel.wide @ tau).view(8, 3)
    loss = F.cross_entropy(logits, labels) + 0.5 * ridge * tau.square().sum()
    loss.backward()
    assert found.converged
    assert float(tau.grad.norm()) < 1e-9
    assert found.gradient_norm <= 1e-10
    assert found.loss == pytest.approx(float(loss.detach()), rel=1e-12)


def test_newton_says_when_it_has_not_ended(caplog):
    kernel, labels = tangents(8, 3, 30), torch.arange(8) % 3
    with caplog.at_level(logging.WARNING):
        found = solve_cross_entropy(kernel, labels, 1e-6, max_steps=2)
    assert (found.converged, found.iterations) == (False, 2)
    assert "above tolerance" in caplog.text
    exact = solve_cross_entropy(kernel, labels, 1e-6)
    apart = kernel.pullback(found.alpha - exact.alpha)["w"].norm()
    assert float(apart) <= found.error_bound


def test_newton_survives_duplicates_and_one_row():
    wide = zoo.normal(4, 9)
    kernel = Tangents(torch.cat([wide, wide]), 2)
    found = solve_cross_entropy(kernel, torch.tensor([0, 1, 0, 1]), 1e-3)
    assert found.converged
    assert torch.allclose(found.alpha[:4], found.alpha[4:])
    assert solve_cross_entropy(tangents(1, 2), torch.tensor([1]), 0.1).converged


def test_newton_refuses_labels_that_do_not_fit():
    kernel = tangents(3, 2)
    good = torch.tensor([0, 1, 0])
    with pytest.raises(DataError, match=r"row 1: label 2 lies outside 0\.\.1"):
        solve_cross_entropy(kernel, torch.tensor([0, 2, 0]), 0.1)
    for labels in (good[:2], good.double()):
        with pytest.raises(DataError, match="kernel has 3 rows"):
            solve_cross_entropy(kernel, labels, 0.1)
    with pytest.raises(UsageError, match="ridge=0"):
        solve_cross_entropy(kernel, good, 0.0)
    with pytest.raises(UsageError, match="an output for each class"):
        solve_cross_entropy(tangents(3), good, 0.1)
    with pytest.raises(NonFiniteError, match="f0, row 0: nan"):
        solve_cross_entropy(kernel, good, 0.1, torch.full((3, 2), math.nan))
    with pytest.raises(UsageError, match="max_steps=0"):
        solve_cross_entropy(kernel, good, 0.1, max_steps=0)
    with pytest.raises(UsageError, match="tolerance=0"):
        solve_cross_entropy(kernel, good, 0.1, tolerance=0)


# -- hinge ---------------------------------------------------------------------------------------------------


def test_primal_and_dual_steps_are_the_same_steps():
    kernel, signs = two_layers(40, 512)
    alpha = dual_steps(kernel, signs, 1e-2, 5000, 0.5)
    tau = primal_steps(kernel, signs, 1e-2, 5000, 0.5)["w"]
    assert float((kernel.wide @ tau - kernel.matvec(alpha)).abs().max()) < 1e-13
    assert float((tau - kernel.wide.T @ alpha).abs().max()) < 2e-14


def objective(kernel, signs, ridge, tau, start=0.0):
    short = (1 - signs * (start + kernel.wide @ tau)).clamp(min=0)
    return float(short.sum() / kernel.samples + 0.5 * ridge * tau.square().sum())


def test_falling_steps_approach_the_optimum_and_constant_ones_stay_off():
    kernel, signs = two_layers(40, 64)
    ridge = 1e-2
    best = kernel.wide.T @ solve_hinge(kernel, signs, ridge).alpha

    def off(steps, lr):
        return float(
            (kernel.wide.T @ dual_steps(kernel, signs, ridge, steps, lr) - best).norm() / best.norm()
        )

    falling = [off(steps, "1/(ridge t)") for steps in (200, 1000, 5000)]
    assert falling[0] > falling[1] > falling[2]
    assert falling[2] < 1e-2
    assert off(2000, 0.5) > falling[2]


@pytest.mark.slow
def test_two_hundred_thousand_falling_steps_reach_the_optimum():
    kernel, signs = two_layers(40, 512)
    best = kernel.matvec(solve_hinge(kernel, signs, 1e-2).alpha)
    found = kernel.matvec(dual_steps(kernel, signs, 1e-2, 200_000, "1/(ridge t)"))
    assert float((found - best).abs().max()) < 4e-5


@pytest.mark.parametrize("ridge", [1e-4, 1e-2, 1.0])
@pytest.mark.parametrize("outputs", [1, 3])
def test_the_optimum_is_scipys(ridge, outputs):
    kernel, start = tangents(10, outputs, 12, seed=3), zoo.normal(10 * outputs, seed=4)
    signs = torch.where(zoo.normal(10 * outputs, seed=5) > 0, 1.0, -1.0).double()
    if outputs > 1:
        signs = one_vs_rest(torch.arange(10) % 3, 3).flatten()
    found = solve_hinge(kernel, signs, ridge, start)
    matrix, linear = signs[:, None] * kernel.dense() * signs, 1 - signs * start
    top = 1 / (10 * ridge)
    oracle = minimize(
        lambda b: float(0.5 * b @ matrix.numpy() @ b - linear.numpy() @ b),
        torch.zeros(len(signs)).double().numpy(),
        jac=lambda b: matrix.numpy() @ b - linear.numpy(),
        bounds=[(0, top)] * len(signs),
        method="L-BFGS-B",
        options={"ftol": 1e-15, "gtol": 1e-10, "maxiter": 20_000, "maxfun": 100_000},
    )
    theirs = kernel.wide.T @ (signs * torch.from_numpy(oracle.x))
    ours = kernel.wide.T @ found.alpha
    assert found.converged
    assert (
        objective(kernel, signs, ridge, ours, start) <= objective(kernel, signs, ridge, theirs, start) + 1e-10
    )
    assert float((ours - theirs).norm()) <= 1e-4 * float(ours.norm())
    assert found.loss == pytest.approx(objective(kernel, signs, ridge, ours, start), rel=1e-12)


@settings(deadline=None, max_examples=40)
@given(
    rows=st.integers(1, 8), parameters=st.integers(1, 12), seed=st.integers(0, 999), scale=st.floats(-5, 2)
)
@example(
    rows=7, parameters=3, seed=505, scale=-5.0
)  # rows that are free at the minimum depend on one another
def test_the_optimum_meets_its_conditions(rows, parameters, seed, scale):
    wide = zoo.normal(rows, parameters, seed=seed)
    kernel = Tangents(torch.cat([wide, wide[:1]]))  # a row is there twice
    signs = torch.where(zoo.normal(rows + 1, seed=seed + 1) > 0, 1.0, -1.0).double()
    ridge = 10.0**scale
    found = solve_hinge(kernel, signs, ridge, tolerance=1e-9)
    assert found.converged
    scaled = signs * found.alpha * (rows + 1) * ridge
    assert float(scaled.min()) >= 0
    assert float(scaled.max()) <= 1 + 1e-12


def test_support_margin_and_bounds():
    kernel, signs = two_layers(40, 512)
    solved = solve_hinge(kernel, signs, 1e-3, tolerance=1e-14)
    found = margins(kernel, solved, signs)
    tau = kernel.wide.T @ solved.alpha
    assert found.margin == pytest.approx(1 / float(tau.norm()))
    beyond = (found.values > 1 + 1e-5).nonzero().flatten().tolist()
    assert beyond
    assert not set(beyond) & set(found.support.tolist())
    inside = set(range(40)) - set(beyond)
    assert set(found.support.tolist()) == inside
    assert set(found.bounded.tolist()) <= inside
    assert torch.allclose(found.values, signs * (kernel.wide @ tau))
    # the bounds are attained: the worst displacement of a row lies along its own tangent, and the row's along tau
    row = int(found.values.argmin())
    own = kernel.wide[row]
    worst = -signs[row] * own / own.norm()
    for share, sign in ((0.999, 1), (1.001, -1)):
        moved = tau + share * found.edits[row] * worst
        assert float(torch.sign(signs[row] * (own @ moved))) == sign
        shifted = own - share * found.distances[row] * signs[row] * tau / tau.norm()
        assert float(torch.sign(signs[row] * (shifted @ tau))) == sign
    assert found.safe_edit == pytest.approx(float(found.edits[found.values > 0].min()))
    noise = zoo.normal(len(tau), seed=9)
    edited = kernel.wide @ (tau + 0.999 * found.safe_edit * noise / noise.norm())
    assert bool(((signs * edited > 0) | (found.values <= 0)).all())


def test_nothing_to_do_where_every_margin_is_met():
    kernel, signs = tangents(3), torch.ones(3)
    solved = solve_hinge(kernel, signs, 0.1, torch.full((3,), 2.0))
    found = margins(kernel, solved, signs, torch.full((3,), 2.0))
    assert (found.norm, found.margin, len(found.support)) == (0.0, math.inf, 0)
    assert found.values.tolist() == [2, 2, 2]


def test_hinge_refuses_what_it_cannot_fit(caplog):
    kernel, signs = tangents(3, 2), torch.tensor([1.0, -1, 1, -1, 1, 0])
    with pytest.raises(DataError, match="row 2: sign 0"):
        solve_hinge(kernel, signs, 0.1)
    signs[5] = 1
    for lr, said in ((20.0, "2/ridge"), (0.0, "2/ridge"), ("1/t", "a number, or")):
        with pytest.raises(UsageError, match=said):
            dual_steps(kernel, signs, 0.1, 3, lr)
    with pytest.raises(UsageError, match="steps=-1"):
        primal_steps(kernel, signs, 0.1, -1, 0.1)
    with pytest.raises(UsageError, match="ridge=0"):
        solve_hinge(kernel, signs, 0.0)
    with caplog.at_level(logging.WARNING):
        assert not solve_hinge(kernel, signs, 1e-4, max_steps=1).converged
    assert "duality gap" in caplog.text


# -- conjugate gradients -------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [None, 0, 10, 60])
def test_conjugate_gradients_end_where_cholesky_does(rank):
    kernel, _ = two_layers(60, 256)
    y = zoo.normal(60, seed=7)
    factor = None if rank is None else pivoted_cholesky(kernel, rank).kernel if rank else None
    found = solve_cg(kernel, y, 1e-3, factor, tolerance=1e-12)
    exact = solve_ridge(kernel, y, 1e-3)
    assert found.converged
    assert not found.exact
    assert torch.allclose(found.alpha, exact.alpha, rtol=1e-8, atol=1e-9 * float(exact.alpha.abs().max()))
    apart = kernel.wide.T @ (found.alpha - exact.alpha)
    assert float(apart.norm()) <= found.error_bound + 1e-12


def test_a_factor_saves_steps():
    kernel, _ = two_layers(60, 256)
    y = zoo.normal(60, seed=7)
    plain = solve_cg(kernel, y, 1e-4, tolerance=1e-8)
    helped = solve_cg(kernel, y, 1e-4, pivoted_cholesky(kernel, 60).kernel, tolerance=1e-8)
    assert helped.iterations < plain.iterations / 3


def test_conjugate_gradients_say_when_they_have_not_ended(caplog):
    kernel, _ = two_layers(60, 256)
    with caplog.at_level(logging.WARNING):
        found = solve_cg(kernel, zoo.normal(60, seed=7), 1e-4, max_steps=2)
    assert not found.converged
    assert found.relative_residual > 1e-10
    assert "allow more steps" in caplog.text
    with pytest.raises(UsageError, match="ridge=0"):
        solve_cg(kernel, zoo.normal(60), 0.0)
    with pytest.raises(UsageError, match="right side of 60 rows for a kernel of 6"):
        solve_cg(kernel, zoo.normal(60), 1.0, pivoted_cholesky(tangents(), 2).kernel)
    with pytest.raises(NonFiniteError, match="products with the kernel"):
        solve_cg(DenseKernel(torch.full((2, 2), math.nan).double()), torch.ones(2), 1.0)
    assert not solve_cg(kernel, torch.zeros(60), 1.0).alpha.any()


# -- kernels of another origin -------------------------------------------------------------------------------------


def test_a_quantum_kernel_goes_into_the_solvers():
    """K = |<phi(x)|phi(x')>|^2 = <rho(x), rho(x')>, rho = phi phi^dagger: as real numbers, 32 features of each row."""
    x = zoo.normal(24, 2)
    signs = (x[:, 0] * x[:, 1]).sign()
    torch.manual_seed(0)
    with torch.no_grad():
        phi = QuantumCircuit().double().state(x).flatten(1)
    overlaps = (phi.conj() @ phi.T).abs().square()
    rho = torch.view_as_real(phi[:, :, None] * phi[:, None].conj()).flatten(1)
    assert torch.allclose(overlaps, rho @ rho.T, atol=1e-14)
    assert torch.allclose(overlaps.diagonal(), torch.ones(24).double())
    (train, new), ridge = (slice(16), slice(16, 24)), 0.05
    kernel, rho_train, s = DenseKernel(overlaps[train, train]), rho[train], signs[train]

    alpha = solve_ridge(kernel, s, ridge).alpha
    tau = torch.linalg.solve(rho_train.T @ rho_train + ridge * torch.eye(32).double(), rho_train.T @ s)
    assert torch.allclose(overlaps[new, train] @ alpha, rho[new] @ tau, atol=1e-10)

    found = solve_hinge(kernel, s, ridge)
    tau = rho_train.T @ found.alpha

    def loss(tau):
        return float((1 - s * (rho_train @ tau)).clamp(min=0).mean() + ridge / 2 * tau.square().sum())

    assert loss(tau) == pytest.approx(found.loss, rel=1e-9)
    for step in zoo.normal(20, 32, seed=2):  # the loss is strongly convex: no other place has less
        assert loss(tau + 1e-3 * step) > loss(tau)
    assert torch.allclose(overlaps[new, train] @ found.alpha, rho[new] @ tau, atol=1e-12)
