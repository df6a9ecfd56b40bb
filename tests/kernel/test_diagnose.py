"""Diagnostics of the tangent kernel: against plain numpy, closed forms, and toys whose answer is known."""

import json
import math
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import subspace_angles
from torch import nn

from helpers import zoo
from helpers.program import make
from tauspan.cli.main import main
from tauspan.core.errors import (
    BaseMismatchError,
    DataError,
    MismatchError,
    ModelError,
    NonFiniteError,
    UsageError,
)
from tauspan.core.reading import Reading
from tauspan.editing.model.edit import load
from tauspan.kernel import DenseKernel, TangentKernel
from tauspan.kernel.diagnose import (
    Eigenfunctions,
    LocalEnergy,
    centred_alignment,
    cross_task_alignment,
    cumulative_power,
    diagnose,
    effective_ranks,
    kernel_change,
    kernel_distance,
    kernel_report,
    kernel_target_alignment,
    kernel_velocity,
    label_gradient_alignment,
    lazy_coefficient,
    linearity,
    local_energy,
    posthoc_gap,
    principal_angles,
)
from tauspan.kernel.solvers.eigenpairs import eigenpairs
from tauspan.kernel.solvers.regression import solve_ridge
from tauspan.models import Head, fingerprint_of
from tauspan.tangent import linearize
from tauspan.tasks import Task
from tauspan.vector import TaskVector

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def positive(rows, outputs=1, rank=None, seed=0):
    """A kernel of a given rank, in float64."""
    wide = zoo.normal(rows * outputs, rank or 3 * rows * outputs, seed=seed)
    return DenseKernel(wide @ wide.T, outputs)


# -- alignment -----------------------------------------------------------------------------------------------


def plain_alignment(matrix, y, centre=None):
    matrix, y = matrix.numpy(), y.numpy()
    if centre is not None:
        matrix, y = centre @ matrix @ centre, centre @ y
    target = y @ y.T
    return float((matrix * target).sum() / (np.linalg.norm(matrix) * np.linalg.norm(target)))


def test_alignment_is_the_cosine_of_two_matrices():
    kernel, y = positive(8), zoo.normal(8, 3, seed=4)
    h = np.eye(8) - 1 / 8
    found = kernel_target_alignment(kernel, y)
    assert found.value == pytest.approx(plain_alignment(kernel.matrix, y), abs=1e-12)
    assert (found.exact, found.standard_error) == (True, 0.0)
    centred = centred_alignment(kernel, y)
    assert centred.value == pytest.approx(plain_alignment(kernel.matrix, y, h), abs=1e-12)


def test_several_outputs_are_centred_each_over_the_rows():
    kernel, y = positive(5, outputs=2), zoo.normal(5, 2, seed=4)
    h = np.kron(np.eye(5) - 1 / 5, np.eye(2))
    expected = plain_alignment(kernel.matrix, y.flatten()[:, None], h)
    assert centred_alignment(kernel, y).value == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("measure", [kernel_target_alignment, centred_alignment])
def test_alignment_from_probes_knows_its_error(measure):
    kernel, y = positive(12, outputs=2), zoo.normal(12, 2, seed=4)
    exact = measure(kernel, y).value
    found = [measure(kernel, y, probes=64, seed=seed) for seed in range(20)]
    gaps = [(one.value - exact) / one.standard_error for one in found]
    assert all(one.estimator == "probes" and not one.exact for one in found)
    assert 0.4 < float(np.std(gaps)) < 2.0
    assert max(abs(one.value - exact) for one in found) < 0.1


@given(st.floats(0.1, 10), st.floats(-5, 5), st.integers(0, 99))
@settings(max_examples=20)
def test_label_gradient_alignment_ignores_scale_and_shift(scale, shift, seed):
    kernel, labels = positive(9, seed=seed), torch.arange(9) % 3
    moved = DenseKernel(scale * kernel.matrix + shift)
    assert label_gradient_alignment(moved, labels).value.value == pytest.approx(
        label_gradient_alignment(kernel, labels).value.value, abs=1e-9
    )


def test_label_gradient_alignment_of_labels_with_themselves_and_with_chance():
    labels = torch.randint(0, 2, (500,))
    same = torch.where(labels[:, None] == labels, 1.0, -1.0).double()
    assert label_gradient_alignment(DenseKernel(same), labels).value.value == pytest.approx(1.0, abs=1e-12)
    other = torch.randint(0, 2, (500,), generator=torch.Generator().manual_seed(7))
    assert abs(label_gradient_alignment(DenseKernel(same), other).value.value) < 0.05
    found = label_gradient_alignment(DenseKernel(torch.diag(torch.tensor([4.0, 1.0]))), torch.tensor([0, 1]))
    assert (found.mean, found.condition) == (1.25, 4.0)
    assert found.norm == pytest.approx(17**0.5)
    assert label_gradient_alignment(positive(4, rank=2), torch.arange(4)).condition == math.inf


def test_label_gradient_alignment_of_three_classes_is_the_plain_formula():
    kernel, labels = positive(9), np.arange(9) % 3
    same = np.where(labels[:, None] == labels, 1.0, -1.0)
    k, y = kernel.matrix.numpy() - kernel.matrix.numpy().mean(), same - same.mean()
    expected = (k * y).sum() / np.linalg.norm(k) / np.linalg.norm(y)
    found = label_gradient_alignment(kernel, torch.from_numpy(labels)).value.value
    assert found == pytest.approx(expected, abs=1e-12)


def test_alignment_says_what_it_cannot_compare():
    kernel = positive(4)
    for y, message in (
        (torch.ones(3), "4 rows of 1 outputs"), (torch.zeros(4), "targets are zero"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=message):
            kernel_target_alignment(kernel, y)
    with pytest.raises(UsageError, match="targets are zero"):
        centred_alignment(kernel, torch.zeros(4) + 0.0)
    with pytest.raises(UsageError, match="kernel is zero"):
        kernel_target_alignment(DenseKernel(torch.zeros(2, 2)), torch.ones(2))
    with pytest.raises(NonFiniteError, match="targets"):
        kernel_target_alignment(kernel, torch.full((4,), math.nan))
    with pytest.raises(UsageError, match="takes a kernel of one output"):
        label_gradient_alignment(positive(2, outputs=2), torch.tensor([0, 1]))
    with pytest.raises(UsageError, match="one class"):
        label_gradient_alignment(kernel, torch.zeros(4))
    with pytest.raises(UsageError, match="constant"):
        label_gradient_alignment(DenseKernel(torch.ones(2, 2)), torch.tensor([0, 1]))


# -- spectra -------------------------------------------------------------------------------------------------


def test_effective_ranks_of_known_eigenvalues():
    lam = torch.arange(1, 9, dtype=torch.float64) ** -1.5
    turn = torch.linalg.qr(zoo.normal(8, 8)).Q
    kernel = DenseKernel(turn @ torch.diag(lam) @ turn.T)
    found = effective_ranks(kernel, ridge=0.1)
    p = lam / lam.sum()
    for name, expected in (
        ("stable", lam.sum() / lam[0]), ("participation", lam.sum() ** 2 / (lam**2).sum()),
        ("entropy", (-(p * p.log()).sum()).exp()), ("dimension", (lam / (lam + 0.1)).sum()),
        ("condition", lam[0] / lam[-1]), ("decay", 1.5), ("lr_max", 2 / lam[0]),
    ):  # fmt: skip
        assert getattr(found, name).value == pytest.approx(float(expected), rel=1e-9), name
    assert effective_ranks(kernel).ridge == pytest.approx(float(lam.mean()))
    probed = effective_ranks(kernel, probes=200)
    assert probed.stable.value == pytest.approx(found.stable.value, rel=0.1)
    assert probed.lr_max.value == pytest.approx(found.lr_max.value, rel=1e-9)
    assert probed.stable.standard_error > 0
    assert probed.entropy is None
    assert effective_ranks(positive(4, rank=2)).condition.value == math.inf
    assert effective_ranks(positive(1)).decay is None
    with pytest.raises(UsageError, match="zero"):
        effective_ranks(DenseKernel(torch.zeros(2, 2)))
    with pytest.raises(UsageError, match="ridge=0"):
        effective_ranks(kernel, ridge=0.0)


def test_power_adds_up_and_orders_the_modes():
    kernel, y = positive(6), zoo.normal(6, 2, seed=3)
    power = cumulative_power(kernel, y)
    values, vectors = np.linalg.eigh(kernel.matrix.numpy())
    energy = ((vectors.T @ y.numpy()) ** 2).sum(1)[::-1]
    np.testing.assert_allclose(power.shares.numpy(), np.cumsum(energy) / energy.sum(), atol=1e-12)
    np.testing.assert_allclose(power.times.numpy(), 1 / values[::-1], rtol=1e-9)
    assert float(power.shares[-1]) == pytest.approx(1.0)
    assert float(power.shares[power.half - 1]) >= 0.5
    assert power.half == 1 or float(power.shares[power.half - 2]) < 0.5
    assert cumulative_power(positive(3, rank=1), torch.ones(3)).times[1:].tolist() == [math.inf] * 2
    with pytest.raises(UsageError, match="zero"):
        cumulative_power(kernel, torch.zeros(6))


# -- local energy --------------------------------------------------------------------------------------------


def test_eigenfunctions_extend_what_they_are_on_the_support():
    kernel = positive(7, outputs=2, rank=9)
    functions = Eigenfunctions.of(kernel)
    assert functions.support.shape == (14, 9)
    torch.testing.assert_close(functions.at(kernel.matrix), functions.support, rtol=1e-8, atol=1e-9)
    squares = functions.support.square().mean(0)
    torch.testing.assert_close(squares, torch.ones_like(squares))


def test_the_energy_of_all_eigenfunctions_is_constant():
    kernel = positive(7)
    found = local_energy(kernel, kernel.matrix[:2], which=7)
    torch.testing.assert_close(found.support, torch.full((7,), 7.0, dtype=torch.float64))
    torch.testing.assert_close(found.control, torch.full((2,), 7.0, dtype=torch.float64))
    assert found.ratio.value == pytest.approx(1.0)


def test_eigenfunctions_are_chosen_by_number_share_or_list():
    turn = torch.linalg.qr(zoo.normal(5, 5)).Q
    functions = Eigenfunctions.of(
        DenseKernel(turn @ torch.diag(torch.arange(5.0, 0.0, -1.0).double()) @ turn.T)
    )
    target = 3 * turn[:, 1] + 1 * turn[:, 4]
    assert functions.choose(2) == [0, 1]
    assert functions.choose(0.5, target) == [1]
    assert functions.choose(0.2, target) == [1, 4]
    assert functions.choose([4, 0]) == [4, 0]
    for which, message in (
        (0, "first 1 to 5"), (6, "first 1 to 5"), (True, "which=True"), (0.5, "needs targets"), ([5], "not 5"),
        ([1, 1], "each once"), ([], "name eigenfunctions"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=message):
            functions.choose(which)
    with pytest.raises(UsageError, match="targets are zero"):
        functions.choose(0.5, torch.zeros(5))
    with pytest.raises(MismatchError, match="5 rows"):
        functions.at(torch.ones(2, 4))
    with pytest.raises(MismatchError, match=r"targets of shape \(7,\), and the support has 5"):
        functions.choose(0.5, torch.ones(7))
    with pytest.raises(MismatchError, match="no multiple of the kernel's 2 outputs"):
        local_energy(DenseKernel(positive(4).matrix, 2), torch.ones(3, 4), which=1)
    with pytest.raises(UsageError, match="no control rows"):
        local_energy(positive(3), torch.ones(0, 3), which=1)
    with pytest.raises(UsageError, match="is zero"):
        Eigenfunctions.of(DenseKernel(torch.zeros(2, 2)))


class Gated(nn.Module):
    """Two networks; the sign of the first input says which one answers."""

    def __init__(self, inputs=64, width=256):
        super().__init__()
        self.one, self.two = (
            nn.Sequential(nn.Linear(inputs, width, bias=False), nn.ReLU(), nn.Linear(width, 1, bias=False))
            for _ in range(2)
        )

    def forward(self, x):
        first = (x[:, :1] > 0).to(x)
        return first * self.one(x) + (1 - first) * self.two(x)


def cap(side, rows=60, seed=0):
    """Points of the sphere about the first axis or its opposite."""
    x = 0.2 * zoo.normal(rows, 64, seed=seed)
    x[:, 0] = side
    return x / x.norm(dim=1, keepdim=True)


def test_two_caps_a_gated_network_keeps_to_its_own_and_a_shared_one_does_not():
    north, south, y = cap(1.0), cap(-1.0, seed=1), zoo.normal(60, seed=2)
    for net, apart in ((Gated().double(), True), (Gated().double().one, False)):
        kernel, cross = TangentKernel(net, north), TangentKernel(net, south, north).dense()
        found = local_energy(kernel, cross, which=20)
        assert found.on_support.value == pytest.approx(20.0)
        alpha = solve_ridge(kernel, y, 1e-3).alpha
        disturbance = float((cross @ alpha).norm() / (kernel.dense() @ alpha).norm())
        if apart:
            assert found.ratio.value == disturbance == 0.0
        else:
            assert 0.1 < found.ratio.value < 0.4
            assert 0.2 < disturbance < 0.8


def test_the_ratio_carries_the_spread_of_rows():
    energy = LocalEnergy([0], torch.tensor([1.0, 3.0]), torch.tensor([1.0, 1.0, 1.0]))
    assert energy.on_support.standard_error == pytest.approx(1.0)
    assert energy.ratio.value == 0.5
    assert energy.ratio.standard_error == pytest.approx(0.25)


# -- between tasks and between points ------------------------------------------------------------------------


def test_cross_alignment_and_angles_are_those_of_the_tangent_features():
    first, second = zoo.normal(5, 30, seed=1), zoo.normal(6, 30, seed=2)
    second[:, :4] *= 3
    first[:, :4] *= 3
    cross = first @ second.T
    own = [DenseKernel(one @ one.T) for one in (first, second)]
    value = cross_task_alignment(own[0].matrix, own[1].matrix, cross).value
    expected = cross.norm() / (own[0].matrix.norm() * own[1].matrix.norm()).sqrt()
    assert value == pytest.approx(float(expected))
    pairs = [eigenpairs(kernel, 3) for kernel in own]
    angles = principal_angles(*pairs, cross)
    features = [one.T @ found.vectors for one, found in zip((first, second), pairs, strict=True)]
    expected = np.sort(subspace_angles(*(one.numpy() for one in features)))
    np.testing.assert_allclose(angles.numpy(), expected, atol=1e-7)
    assert cross_task_alignment(own[0].matrix, own[1].matrix, 0 * cross).value == 0.0
    with pytest.raises(MismatchError, match="5 and 6"):
        principal_angles(*pairs, cross.T)
    with pytest.raises(MismatchError, match="5 and 6"):
        cross_task_alignment(own[0].matrix, own[1].matrix, cross.T)
    for call in (lambda: principal_angles(*pairs, math.nan * cross),
                 lambda: cross_task_alignment(math.nan * own[0].matrix, own[1].matrix, cross)):  # fmt: skip
        with pytest.raises(NonFiniteError, match="kernel"):
            call()
    with pytest.raises(UsageError, match="is zero"):
        cross_task_alignment(0 * own[0].matrix, own[1].matrix, cross)
    flat = positive(5, rank=2)
    with pytest.raises(UsageError, match="compare 2 or fewer"):
        principal_angles(eigenpairs(flat, 3), pairs[1], cross)


def test_a_kernel_that_only_grows_has_not_turned():
    kernel, other = positive(6), positive(6, seed=5)
    assert kernel_distance(kernel, DenseKernel(3 * kernel.matrix)).value == pytest.approx(0.0, abs=1e-12)
    assert kernel_change(kernel, DenseKernel(3 * kernel.matrix)).value == pytest.approx(2.0)
    a, b = kernel.matrix.numpy(), other.matrix.numpy()
    expected = 1 - (a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b)
    assert kernel_distance(kernel, other).value == pytest.approx(expected)
    assert kernel_velocity(kernel, other, 0.5).value == pytest.approx(2 * expected)
    found = [kernel_distance(kernel, other, probes=64, seed=seed) for seed in range(10)]
    assert all(abs(one.value - expected) < 5 * one.standard_error for one in found)
    with pytest.raises(MismatchError, match="two points"):
        kernel_distance(kernel, positive(5))
    with pytest.raises(UsageError, match="is zero"):
        kernel_distance(kernel, DenseKernel(0 * kernel.matrix))
    with pytest.raises(UsageError, match="first kernel is zero"):
        kernel_change(DenseKernel(0 * kernel.matrix), kernel)
    with pytest.raises(UsageError, match="time=0"):
        kernel_velocity(kernel, other, 0.0)


# -- lazy or rich --------------------------------------------------------------------------------------------


class Quadratic(nn.Module):
    """x (w + c w^2): along tau = 1 at w = 0 it is x (s + c s^2), so that q = c and the error is c s^2 x."""

    def __init__(self, curvature):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(1, dtype=torch.float64))
        self.curvature = curvature

    def forward(self, x):
        return x * (self.w + self.curvature * self.w**2)


def test_a_quadratic_model_has_known_curvature_slope_and_gap():
    x = zoo.normal(5, 1).abs()
    tangent = linearize(Quadratic(0.3))
    tau = {"w": torch.ones(1, dtype=torch.float64)}
    assert lazy_coefficient(tangent, tau, [x[:2], x[2:]]).value == pytest.approx(0.3, abs=1e-12)
    twice = lazy_coefficient(tangent, {"w": 2 * tau["w"]}, [x]).value
    assert twice == pytest.approx(0.6, abs=1e-12)
    path = linearity(tangent, tau, [x])
    assert path.slope == pytest.approx(2.0, abs=1e-9)
    assert path.relative == pytest.approx([0.3 * s for s in path.scales])
    assert linearity(linearize(Quadratic(0.0)), tau, [x]).slope is None


def test_the_error_of_a_network_grows_with_the_square_and_q_is_its_limit():
    net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2)).double()
    tangent, x = linearize(net), zoo.normal(6, 3)
    tau = {name: zoo.normal(*theta.shape, seed=3) for name, theta in tangent.theta0().items()}
    path = linearity(tangent, tau, [x[:4], x[4:]], scales=(1e-3, 2e-3))
    assert path.slope == pytest.approx(2.0, abs=0.01)
    assert path.relative[0] / 1e-3 == pytest.approx(lazy_coefficient(tangent, tau, [x]).value, rel=0.01)


def test_lazy_diagnostics_say_what_they_need():
    tangent, x = linearize(Quadratic(1.0)), torch.ones(2, 1, dtype=torch.float64)
    tau = {"w": torch.ones(1)}
    with pytest.raises(UsageError, match="no rows"):
        lazy_coefficient(tangent, tau, [])
    with pytest.raises(UsageError, match="J tau is 0"):
        lazy_coefficient(tangent, {"w": torch.zeros(1)}, [x])
    with pytest.raises(MismatchError, match="lacks 1"):
        linearity(tangent, {"v": torch.ones(1)}, [x])
    with pytest.raises(NonFiniteError, match="'w'"):
        linearity(tangent, {"w": torch.full((1,), math.nan)}, [x])
    for scales in ((), (0.0, 1.0), (1.0, 0.5)):
        with pytest.raises(UsageError, match="rising"):
            linearity(tangent, tau, [x], scales)
    with pytest.raises(NonFiniteError, match=r"theta0 \+ 1e\+200 tau"):
        linearity(tangent, tau, [x], [1e200])
    with pytest.raises(ModelError, match="linearity"):
        lazy_coefficient(linearize(Once()), tau, [x])


class _Plain(torch.autograd.Function):
    """Without a forward-mode rule."""

    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, gradient):
        return gradient * 2


class Once(Quadratic):
    def __init__(self):
        super().__init__(1.0)

    def forward(self, x):
        return _Plain.apply(super().forward(x))


def test_the_gap_between_a_model_and_its_linearisation_by_hand():
    start = torch.zeros(2, 2)
    moved = torch.tensor([[0.0, 2.0], [2.0, 0.0]])
    linear = torch.tensor([[0.0, 2.0], [0.0, 2.0]])
    gap = posthoc_gap(start, linear, moved, torch.tensor([1, 0]))
    assert (gap.agreement, gap.nonlinear, gap.linear, gap.advantage) == (0.5, 1.0, 0.5, 0.5)
    assert gap.relative.value == pytest.approx(1.0)
    with pytest.raises(DataError, match="2 rows"):
        posthoc_gap(start, linear, moved, torch.tensor([1]))
    with pytest.raises(UsageError, match="equal outputs"):
        posthoc_gap(start, linear, start, torch.tensor([1, 0]))


# -- reports -------------------------------------------------------------------------------------------------


def problem(classes=2):
    """An encoder, two tasks on disjoint inputs, and a vector for each."""
    torch.manual_seed(1)
    encoder = load(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double())
    base = fingerprint_of(encoder)
    vectors = {}
    for place, name in enumerate(("first", "second")):
        x = zoo.normal(10, 4, seed=place)
        rows = (x, torch.arange(10) % classes)
        task = Task.from_tensors(
            name, [f"c{label}" for label in range(classes)], head=Head(zoo.normal(classes, 3, seed=7)),
            **dict.fromkeys(("train", "validation", "test"), rows),
        )  # fmt: skip
        deltas = {
            of: 0.1 * zoo.normal(*theta.shape, seed=20 + place)
            for of, theta in encoder.backbone.named_parameters()
        }
        vectors[task] = TaskVector(deltas, base, "standard", name)
    return encoder, vectors


@pytest.mark.parametrize("outputs", ["contrast", "sum", "all"])
def test_the_report_holds_what_the_single_diagnostics_say(outputs):
    encoder, vectors = problem()
    found = diagnose(encoder, vectors, rows=6, outputs=outputs, which=3)
    report = found.report()
    result = json.loads(report.to_json())["result"]
    names = ["first", "second"]
    assert [one.task for one in found.spectra] == [row["task"] for row in result["spectrum"]] == names
    assert [list(one.own.chosen) for one in found.energies] == [[0, 1, 2]] * 2
    assert [row["chosen"] for row in result["energy"]] == [[0, 1, 2]] * 2
    assert [one.own.on_support.value for one in found.energies] == pytest.approx([3.0, 3.0])
    assert [round(one.path.slope, 1) for one in found.paths] == [2.0, 2.0]
    assert found.interference.between.table().diagonal().tolist() == [1.0, 1.0]
    assert [line[place] for place, line in enumerate(result["interference"])] == [1.0, 1.0]
    assert all(0 < one.distance.value < 1 for one in found.paths)
    assert [one.label_alignment is not None for one in found.spectra] == [outputs != "all"] * 2
    assert [{"LGA"} <= set(row) for row in result["alignment"]] == [outputs != "all"] * 2
    assert {one["kind"] for one in report.series} == {"spectrum", "heat", "energy", "linearity"}
    assert report.provenance["drawn"] == {"first": 6, "second": 6}
    task, vector = next(iter(vectors.items()))
    drawn = task.subset(train=6).split("train").inputs
    tangent = linearize(encoder, point="encoder")
    q = found.paths[0].curvature.value
    x = torch.stack(list(drawn))
    head = task.head.weight
    direct = lazy_coefficient(linearize(nn.Sequential(encoder.backbone, Linear(head))), named(vector), [x])
    assert q == pytest.approx(direct.value, rel=1e-9)
    away = torch.stack(list(list(vectors)[1].subset(train=6).split("train").inputs))
    model = nn.Sequential(encoder.backbone, Linear(head))
    kernel, cross = (TangentKernel(model, *sides, outputs=outputs) for sides in ((x,), (away, x)))
    energy = local_energy(kernel, cross.dense(), 3)
    own = found.energies[0].own
    assert own.on_control.value == pytest.approx(energy.on_control.value, rel=1e-8)
    assert own.ratio.value == pytest.approx(energy.ratio.value, rel=1e-8)
    assert tangent.point == "encoder"


class Linear(nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.register_buffer("weight", weight)

    def forward(self, x):
        return x @ self.weight.T


def named(vector):
    return {f"0.{name}": delta for name, delta in vector.deltas.items()}


def test_one_task_has_a_kernel_but_no_interference():
    encoder, vectors = problem(classes=3)
    task = next(iter(vectors))
    found = kernel_report(encoder, [task], rows=5)
    assert ([one.rows for one in found.spectra], found.pairs, found.interference) == ([5], None, None)
    assert [table.title for table in found.report().tables] == ["Spectrum", "Alignment with the labels"]
    assert found.rows() == found.report().tables[0].rows
    for made, message in (
        (lambda: diagnose(encoder, {task: vectors[task]}), "at least two"),
        (lambda: diagnose(encoder, {}), "at least two"),
        (lambda: kernel_report(encoder, []), "at least one"),
        (lambda: kernel_report(encoder, [task, task]), "none twice"),
        (lambda: kernel_report(encoder, [task], rows=1), "rows=1"),
        (lambda: kernel_report(encoder, [task], outputs="trace"), "outputs='trace'"),
        (lambda: kernel_report(encoder, [task], split="tests"), "Did you mean 'test'"),
        (lambda: kernel_report(encoder, [task], reading=Reading(batch_size=0)), "batch_size=0"),
        (
            lambda: kernel_report(
                encoder,
                list(vectors),
                angles=0,
            ),
            "angles=0",
        ),
        (
            lambda: diagnose(
                encoder,
                vectors,
                which=0,
            ),
            "which=0",
        ),
    ):
        with pytest.raises(UsageError, match=message):
            made()


def test_vectors_must_start_from_the_model_and_hold_the_same_tensors():
    encoder, vectors = problem()
    (first, one), (second, other) = vectors.items()
    elsewhere = TaskVector(other.deltas, "b" * 64, "standard", "elsewhere")
    with pytest.raises(BaseMismatchError):
        diagnose(encoder, {first: one, second: elsewhere})
    fewer = TaskVector(dict(list(other.deltas.items())[1:]), other.base, "standard", "fewer")
    with pytest.raises(MismatchError, match="4 and 3"):
        diagnose(encoder, {first: one, second: fewer})
    none = TaskVector({}, other.base, "standard", "none")
    with pytest.raises(UsageError, match="holds no tensor"):
        diagnose(encoder, {first: none, second: none})


def test_a_row_that_is_not_finite_is_named():
    encoder, vectors = problem()
    task = next(iter(vectors))
    with torch.no_grad():
        encoder.backbone[0].weight[0, 0] = math.nan
    with pytest.raises(NonFiniteError):
        kernel_report(
            encoder,
            [task],
        )


@pytest.mark.slow
def test_the_example_of_label_gradient_alignment_runs(capsys):
    example = runpy.run_path(str(EXAMPLES / "label_gradient_alignment.py"))
    spaces = {"two widths": [example["Shape"](2, 1), example["Shape"](32, 1)]}
    found, (own, moved, chance) = example["main"](spaces, seeds=2, epochs=4)
    table = found["two widths"].rows
    assert [row["width"] for row in table] == [2, 32]
    assert own == pytest.approx(1.0, abs=1e-12)
    assert moved < 1e-12
    assert abs(chance) < 0.05
    assert table[1]["test accuracy"] > table[0]["test accuracy"]
    assert table[1]["LGA at random weights"] != table[1]["LGA after 2 epochs"]
    assert "Rank correlation" in capsys.readouterr().out


def test_nets_that_are_trained_at_once_are_trained_as_if_alone():
    example = runpy.run_path(str(EXAMPLES / "label_gradient_alignment.py"))
    shape, seen = example["Shape"](4, 2, "tanh", True), example["rows"](128, 0)
    together = [example["net"](shape, seed) for seed in (0, 1)]
    alone = example["net"](shape, 1)
    example["train"](together, seen, 2, 3)
    example["train"]([alone], seen, 2, 3)
    for mine, its in zip(together[1].parameters(), alone.parameters(), strict=True):
        assert torch.allclose(mine, its, atol=1e-5)


@pytest.mark.long
def test_label_gradient_alignment_ranks_operations_better_after_two_epochs(capsys):
    example = runpy.run_path(str(EXAMPLES / "label_gradient_alignment.py"))
    found, _ = example["main"]({"operations": example["SPACES"]["operations"]})
    assert found["operations"].after - found["operations"].before > 2 * found["operations"].error


# -- the program ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_verbs_write_reports_and_figures(tmp_path, capsys):
    world = make(tmp_path / "world")
    model, task, other, vector = (world[name] for name in ("model", "one", "two", "vector"))
    assert main(["kernel", model, task, other, "--rows", "6", "--json"]) == 0
    assert {"spectrum", "cross_task_alignment"} <= set(json.loads(capsys.readouterr().out)["result"])
    folder = tmp_path / "diagnose"
    line = [
        "diagnose",
        model,
        f"{task}={vector}",
        f"{other}={vector}",
        "--rows",
        "6",
        "--json",
        "--eigenfunctions",
    ]
    assert main([*line, "0.5", "--out", str(folder)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {"energy", "interference", "lazy", "posthoc_gap"} <= set(found["result"])
    assert {file.stem for file in folder.glob("*.png")} == {
        "spectrum", "alignment", "energy", "linearity", "interference",
    }  # fmt: skip
    assert main([*line, "some"]) == 2
    assert main(["diagnose", model, f"{task}={vector}"]) == 2
    assert "at least two" in capsys.readouterr().err
