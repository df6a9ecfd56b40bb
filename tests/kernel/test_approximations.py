"""Approximations of kernels: held to dense matrices with known spectra, and their stated errors to measured ones."""

import math
from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from helpers import zoo
from tauspan.core.errors import MismatchError, ModelError, NonFiniteError, UsageError
from tauspan.kernel import DenseKernel, TangentKernel
from tauspan.kernel.approximate.lowrank import determinantal, nystrom, pivoted_cholesky
from tauspan.kernel.approximate.reduced import reduced
from tauspan.kernel.operator import projection
from tauspan.kernel.operator.projection import drawn, project
from tauspan.kernel.solvers.eigenpairs import eigenpairs
from tauspan.kernel.solvers.estimates import participation_rank, signs, squared_norm, trace
from tauspan.kernel.solvers.kernels import LowRankKernel
from tauspan.kernel.solvers.quadrature import effective_dimension, logdet


def with_spectrum(values, seed=0):
    """A kernel with these eigenvalues in a random basis."""
    values = torch.as_tensor(values, dtype=torch.float64)
    basis = torch.linalg.qr(zoo.normal(len(values), len(values), seed=seed)).Q
    matrix = basis * values @ basis.T
    return DenseKernel((matrix + matrix.T) / 2)


FALLING = 1.0 / torch.arange(1, 81, dtype=torch.float64) ** 2
spectra = st.lists(st.just(0.0) | st.floats(1e-9, 10.0), min_size=1, max_size=12)
seeds = st.integers(0, 10_000)
quick = settings(max_examples=25, deadline=None)


# -- traces and functions of the spectrum ----------------------------------------------------------------------------

ESTIMATES = {
    "trace": (trace, lambda v: v.sum()),
    "hutch++": (lambda k, **kw: trace(k, method="hutch++", **kw), lambda v: v.sum()),
    "squared norm": (squared_norm, lambda v: v.square().sum()),
    "participation rank": (participation_rank, lambda v: v.sum() ** 2 / v.square().sum()),
    "logdet": (lambda k, **kw: logdet(k, 0.01, steps=15, **kw), lambda v: (v + 0.01).log().sum()),
    "effective dimension": (
        lambda k, **kw: effective_dimension(k, 0.01, steps=15, **kw),
        lambda v: (v / (v + 0.01)).sum(),
    ),
}  # fmt: skip


@pytest.mark.thinned(2)
@pytest.mark.parametrize("name", ESTIMATES)
def test_standard_errors_are_those_of_the_estimates(name):
    estimate, true = ESTIMATES[name]
    kernel, expected = with_spectrum(FALLING), float(true(FALLING))
    found = [estimate(kernel, probes=24, seed=seed) for seed in range(40)]
    misses = torch.tensor([one.value - expected for one in found])
    stated = math.sqrt(sum(one.standard_error**2 for one in found) / len(found))
    assert not any(one.exact for one in found)
    assert 0.6 * stated < float(misses.square().mean().sqrt()) < 1.6 * stated
    assert abs(float(misses.mean())) < 4 * stated / math.sqrt(len(found)) + 0.02 * abs(expected)


@pytest.mark.parametrize("name", [name for name in ESTIMATES if name != "hutch++"])
def test_without_probes_the_value_is_exact(name):
    estimate, true = ESTIMATES[name]
    found = estimate(with_spectrum(FALLING), probes=None)
    assert found.exact
    assert found.standard_error == 0
    assert found.value == pytest.approx(float(true(FALLING)), rel=1e-10)


def test_hutch_plus_plus_pays_for_a_fast_falling_spectrum():
    kernel = with_spectrum(FALLING**2)
    assert trace(kernel, 30, method="hutch++").standard_error < 0.01 * trace(kernel, 30).standard_error


def test_quadrature_lies_between_its_bounds():
    kernel = with_spectrum(FALLING)
    start = signs(80, 8, seed=3)
    values, vectors = torch.linalg.eigh(kernel.matrix)
    coefficients = (vectors.T @ start).square()
    bounds = []
    for function, made in (
        (logdet, (values + 1e-3).log()), (effective_dimension, values / (values + 1e-3)),
    ):  # fmt: skip
        exact = float((made[:, None] * coefficients).sum(0).mean())  # at these starts, whatever the trace
        for steps in (1, 5, 10, 20):
            found = function(kernel, 1e-3, 8, steps, seed=3)
            assert abs(found.value - exact) <= found.bound * (1 + 1e-6) + 1e-9
            bounds.append(found.bound)
    assert bounds[3] < 1e-2 * bounds[0]


@quick
@given(spectra, seeds)
def test_a_complete_quadrature_has_no_error_but_chance(values, seed):
    kernel = with_spectrum(values, seed)
    n = len(values)
    found = logdet(kernel, 0.5, probes=2, steps=50, seed=seed)
    drawn_at = signs(n, 2, seed)
    lam, vectors = torch.linalg.eigh(kernel.matrix)
    exact = float(((lam.clamp(min=0) + 0.5).log()[:, None] * (vectors.T @ drawn_at).square()).sum(0).mean())
    assert found.bound < 1e-6
    assert found.value == pytest.approx(exact, abs=1e-6)


def test_a_diagonal_kernel_is_known_from_any_two_probes():
    kernel = DenseKernel(torch.diag(FALLING))
    found = trace(kernel, 2)
    assert found.value == pytest.approx(float(FALLING.sum()), rel=1e-12)
    assert found.standard_error < 1e-12


# -- landmarks -------------------------------------------------------------------------------------------------------


@quick
@given(spectra, seeds, st.integers(1, 9))
def test_pivoted_cholesky_lies_below_the_kernel(values, seed, block):
    kernel = with_spectrum(values, seed)
    rank = max(1, len(values) // 2)
    found = pivoted_cholesky(kernel, rank, seed, block=block)
    rest = kernel.matrix - found.kernel.dense()
    scale = float(kernel.matrix.trace())
    assert float(torch.linalg.eigvalsh(rest)[0]) >= -1e-10 * scale - 1e-300
    assert found.residual == pytest.approx(float(rest.trace()), abs=1e-10 * scale)
    best = float(torch.as_tensor(sorted(values)[: len(values) - rank], dtype=torch.float64).sum())
    assert found.residual >= best - 1e-10 * scale
    assert len(set(found.landmarks)) == len(found.landmarks) == found.kernel.rank <= rank
    if found.landmarks:  # the same approximation from its landmarks alone, where rounding lets it
        again = nystrom(kernel, found.landmarks)
        assert again.residual <= found.residual + 1e-6 * scale


@pytest.mark.parametrize("block", [1, 6])
def test_landmarks_have_the_distribution_of_the_residual(block):
    kernel = with_spectrum([3.0, 1.0, 0.5, 0.0], seed=2)
    matrix, d = kernel.matrix, kernel.matrix.diagonal()
    expected = {}
    for i in range(4):  # pairs in the order drawn
        left = d - matrix[:, i] ** 2 / matrix[i, i]
        expected |= {(i, j): float(d[i] / d.sum() * left[j] / left.sum()) for j in range(4) if j != i}
    draws = [pivoted_cholesky(kernel, 2, seed, block=block).landmarks for seed in range(500)]
    for pair, chance in expected.items():
        share = sum(found == pair for found in draws) / len(draws)
        assert abs(share - chance) < 4 * math.sqrt(chance / len(draws)) + 1e-3


def test_pivoted_cholesky_comes_close_to_the_best():
    kernel = with_spectrum(FALLING)
    best = float(FALLING[20:].sum())
    found = sum(pivoted_cholesky(kernel, 20, seed).residual for seed in range(10)) / 10
    assert best < found < 2.5 * best
    stopped = pivoted_cholesky(kernel, 80, tolerance=0.1)
    assert stopped.relative_residual <= 0.1
    assert stopped.kernel.rank < 30


def test_rank_and_copies_end_the_factor_early():
    rows = zoo.normal(6, 3)
    matrix = torch.cat([rows, rows]) @ torch.cat([rows, rows]).T
    found = pivoted_cholesky(DenseKernel(matrix), 12)
    assert found.kernel.rank == 3
    assert found.exact
    assert zoo.close(found.kernel.dense(), matrix)
    twice = nystrom(DenseKernel(matrix), [0, 6, 1, 7, 2])  # equal rows: K_SS is singular
    assert twice.kernel.rank == 3
    assert zoo.close(twice.kernel.dense(), matrix)


@pytest.mark.parametrize("seed", range(5))
def test_single_precision_leaves_no_more_than_its_rounding(seed):
    rows = zoo.normal(10, 4, seed=seed).repeat(3, 1)
    matrix = rows @ rows.T
    noisy = DenseKernel(matrix + 1e-7 * zoo.normal(30, 30, seed=seed + 9))
    found = pivoted_cholesky(noisy, 30, seed)
    assert float((found.kernel.dense() - matrix).norm()) < 1e-4 * float(matrix.norm())
    assert pivoted_cholesky(noisy, 30, seed, tolerance=1e-6).kernel.rank == 4
    pairs = eigenpairs(noisy, 4, seed=seed)
    assert torch.allclose(pairs.values, torch.linalg.eigvalsh(matrix).flip(0)[:4], rtol=1e-6)


def test_a_kernel_that_is_zero():
    kernel = DenseKernel(torch.zeros(4, 4, dtype=torch.float64))
    found = pivoted_cholesky(kernel, 2)
    assert (found.kernel.rank, found.residual, found.relative_residual, found.exact) == (0, 0, 0, True)
    b = zoo.normal(4)
    assert torch.equal(found.kernel.solve_columns(b, 2.0), b / 2)
    assert torch.equal(found.kernel.precondition(b, 2.0), b)
    assert nystrom(kernel, [1]).kernel.rank == 0
    pairs = eigenpairs(kernel, 2)
    assert pairs.values.abs().max() == 0
    assert trace(kernel, 4).value == 0
    assert logdet(kernel, 2.0, 4).value == pytest.approx(4 * math.log(2))
    assert effective_dimension(kernel, 2.0, 4).value == pytest.approx(0, abs=1e-12)
    with pytest.raises(UsageError, match="zero and has no participation rank"):
        participation_rank(kernel)
    with pytest.raises(UsageError, match="zero on these rows"):
        reduced(kernel)


def test_one_row():
    kernel = DenseKernel(torch.tensor([[4.0]], dtype=torch.float64))
    assert pivoted_cholesky(kernel, 1).kernel.root.item() == 2
    assert determinantal(kernel, 1) == (0,)
    assert eigenpairs(kernel, 1).values.item() == pytest.approx(4)
    assert trace(kernel, 6, method="hutch++").value == pytest.approx(4)
    assert logdet(kernel, 1.0).value == pytest.approx(math.log(5))
    assert participation_rank(kernel).value == pytest.approx(1)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["k-dpp", "leading"])
def test_determinantal_draws_have_their_probabilities(kind):
    kernel = with_spectrum([4.0, 2.0, 1.0, 0.3, 0.0], seed=5)
    of = kernel.matrix
    if kind == "leading":
        _, vectors = torch.linalg.eigh(of)
        of = vectors[:, -2:] @ vectors[:, -2:].T
    weights = {
        pair: float(torch.linalg.det(of[list(pair)][:, list(pair)])) for pair in combinations(range(5), 2)
    }
    draws = [tuple(sorted(determinantal(kernel, 2, seed, kind))) for seed in range(500)]
    for pair, weight in weights.items():
        chance = weight / sum(weights.values())
        assert abs(draws.count(pair) / len(draws) - chance) < 4 * math.sqrt(chance / len(draws)) + 1e-3


def test_determinantal_landmarks_beat_uniform_ones():
    x = torch.cat([torch.zeros(60, 1), torch.linspace(0, 3, 20)[:, None]]).double()  # most rows are equal
    kernel = DenseKernel(torch.exp(-(x - x.T).square()) + 1e-9 * torch.eye(80, dtype=torch.float64))

    def residual(choose):
        return sum(nystrom(kernel, choose(seed)).relative_residual for seed in range(10)) / 10

    uniform = residual(
        lambda seed: torch.randperm(80, generator=torch.Generator().manual_seed(seed))[:5].tolist()
    )
    for kind in ("k-dpp", "leading"):
        assert residual(lambda seed, kind=kind: determinantal(kernel, 5, seed, kind)) < 0.2 * uniform


# -- factors and eigenpairs ------------------------------------------------------------------------------------------


@quick
@given(st.integers(1, 8), st.integers(0, 8), seeds, st.floats(1e-3, 10))
def test_a_factor_solves_as_its_matrix_does(n, r, seed, ridge):
    factor = LowRankKernel(zoo.normal(n, r, seed=seed))
    dense = factor.root @ factor.root.T
    moved = dense + ridge * torch.eye(n, dtype=torch.float64)
    right = zoo.normal(n, 3, seed=seed + 1)
    assert zoo.close(factor.solve_columns(right, ridge), torch.linalg.solve(moved, right), 1e-8)
    alpha = torch.linalg.solve(moved, right[:, 0])
    assert zoo.close(factor.solve_columns(right[:, 0], ridge), alpha, 1e-8)
    assert zoo.close(factor.solve(right[:, 0], ridge).alpha, alpha, 1e-8)
    assert zoo.close(factor.matmat(right), dense @ right)
    assert zoo.close(factor.rows([n - 1, 0]), dense[[n - 1, 0]])
    assert zoo.close(factor.diag(), dense.diagonal())


def test_the_preconditioner_flattens_the_spectrum():
    kernel, ridge = with_spectrum(FALLING), 1e-4
    moved = kernel.matrix + ridge * torch.eye(80, dtype=torch.float64)
    best = eigenpairs(kernel, 20).kernel.precondition(moved, ridge)
    values = torch.linalg.eigvals(best).real
    assert float(values.max()) == pytest.approx(
        float(FALLING[19] + ridge), rel=1e-6
    )  # the space of the factor
    assert float(values.min()) == pytest.approx(float(FALLING[79] + ridge), rel=1e-6)
    some = torch.linalg.eigvals(pivoted_cholesky(kernel, 20).kernel.precondition(moved, ridge)).real
    assert float(some.max() / some.min()) < 0.05 * float(torch.linalg.cond(moved))


@quick
@given(spectra, seeds, st.integers(0, 3), st.integers(0, 4))
def test_residuals_say_how_far_eigenvalues_are(values, seed, oversampling, iterations):
    kernel = with_spectrum(values, seed)
    rank = max(1, len(values) // 2)
    found = eigenpairs(kernel, rank, oversampling=oversampling, iterations=iterations, seed=seed)
    true = torch.linalg.eigvalsh(kernel.matrix)
    assert zoo.close(found.vectors.T @ found.vectors, torch.eye(rank, dtype=torch.float64))
    measured = (kernel.matrix @ found.vectors - found.vectors * found.values).norm(dim=0)
    assert torch.allclose(found.residuals, measured, atol=1e-12 * (1 + max(values)))
    nearest = (found.values[:, None] - true[None]).abs().amin(1)
    assert bool((nearest <= found.residuals + 1e-10 * (1 + max(values))).all())
    assert bool((found.values <= true.flip(0)[:rank] + 1e-10 * (1 + max(values))).all())  # from below
    assert found.products <= min(len(values), (rank + oversampling) * (iterations + 1))


def test_eigenpairs_converge():
    kernel = with_spectrum(FALLING)
    found = eigenpairs(kernel, 5)
    assert not found.exact
    assert found.products < 80
    assert torch.allclose(found.values, FALLING[:5], rtol=1e-12)
    assert float(found.residuals.max()) <= 1e-9
    few, more = (eigenpairs(kernel, 5, oversampling=0, iterations=steps).residuals.max() for steps in (0, 4))
    assert more < 0.05 * few
    everything = eigenpairs(kernel, 80)
    assert everything.exact
    assert torch.allclose(everything.values, FALLING, atol=1e-12)
    assert zoo.close(everything.kernel.dense(), kernel.matrix)


def test_a_rank_below_the_number_of_pairs():
    kernel = with_spectrum([2.0, 1.0] + [0.0] * 10)
    found = eigenpairs(kernel, 4, oversampling=0)
    assert torch.allclose(found.values, torch.tensor([2.0, 1.0, 0.0, 0.0]).double(), atol=1e-12)
    assert found.products < 12
    # a space that is complete is not searched further, whatever accuracy is asked
    found = eigenpairs(kernel, 2, oversampling=0, iterations=20, tolerance=0.0)
    assert found.products <= 4
    assert torch.allclose(found.values, torch.tensor([2.0, 1.0]).double(), rtol=1e-12)


def test_a_tangent_kernel_needs_no_matrix():
    model, x = zoo.mlp().model, zoo.mlp().args[0]
    kernel, dense = TangentKernel(model, x), TangentKernel(model, x).dense()
    values = torch.linalg.eigvalsh(dense).flip(0)
    assert torch.allclose(eigenpairs(kernel, 3).values, values[:3], rtol=1e-10)
    exact = participation_rank(DenseKernel(dense), None).value
    found = participation_rank(kernel, 400)
    assert abs(found.value - exact) < 4 * found.standard_error
    landmarks = determinantal(kernel, 4, kind="leading")
    assert nystrom(kernel, landmarks).residual < float(dense.trace())
    assert kernel._matrix is None
    assert zoo.close(pivoted_cholesky(kernel, 15).kernel.dense(), dense, 1e-8)


# -- projections -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("q", [128, 512, 2048])
def test_projections_err_as_their_formula_says(q):
    net = zoo.stirred(nn.Sequential(nn.Linear(16, 128), nn.Tanh(), nn.Linear(128, 4)))
    kernel = TangentKernel(net, zoo.normal(10, 16))
    dense = kernel.dense()
    errors, stated = [], []
    for seed in range(8):
        found = project(kernel, q, seed=seed, probes=None)
        errors.append(float((found.kernel.dense() - dense).norm() / dense.norm()))
        stated.append(found.error.value)
    assert len(set(stated)) == 1
    assert sum(errors) / len(errors) == pytest.approx(stated[0], rel=0.15)


@pytest.mark.thinned(5)
@pytest.mark.parametrize("outputs", ["all", "sum", 1], ids=str)
@pytest.mark.parametrize("name", ["mlp", "conv", "bert", "gpt2"])
def test_backends_and_batches_draw_the_same_signs(name, outputs):
    example = getattr(zoo, name)()
    x = example.args[0] if example.args else dict(example.kwargs)
    found = [
        project(TangentKernel(example.model, x, outputs=outputs, **how), 70, seed=4, probes=4).kernel.root
        for how in ({"backend": "contraction"}, {}, {"batch_size": 2})
    ]
    for other in found[1:]:
        assert zoo.close(other, found[0])


class Parted(nn.Module):
    """A weight that is used in parts where a batch has several rows."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(zoo.normal(8, 60))

    def forward(self, x):
        if len(x) == 1:
            return x @ self.weight.T
        upper, lower = self.weight.chunk(2)
        return torch.cat([nn.functional.linear(x, upper), nn.functional.linear(x, lower)], 1)


def test_parts_of_a_weight_have_signs_of_their_own():
    x = zoo.normal(6, 60)
    kernel = TangentKernel(Parted(), x)
    sketches = [project(kernel, 400, seed=seed, probes=None) for seed in range(5)]
    errors = [float((one.kernel.dense() - kernel.dense()).norm() / kernel.dense().norm()) for one in sketches]
    assert sum(errors) / 5 == pytest.approx(sketches[0].error.value, rel=0.25)
    for dimension in (1.5, 0):
        with pytest.raises(UsageError, match=f"dimension={dimension}"):
            project(kernel, dimension)
    with pytest.raises(ModelError, match="contraction"):
        project(TangentKernel(Parted(), [x[:2], x[2:3]]), 20, probes=4)
    project(TangentKernel(Parted(), [x[:2], x[2:3]], backend="contraction"), 20, probes=4)


@pytest.mark.parametrize("name", ["conv", "gpt2"])
def test_cuts_of_a_parameter_do_not_show(name, monkeypatch):
    example = getattr(zoo, name)()
    x = example.args[0] if example.args else dict(example.kwargs)
    whole = project(TangentKernel(example.model, x), 70, probes=4).kernel.root
    monkeypatch.setattr(projection, "_CHUNK", 3000)
    assert zoo.close(project(TangentKernel(example.model, x), 70, probes=4).kernel.root, whole)


def test_the_sketch_is_j_times_signs():
    model, x = zoo.mlp().model, zoo.mlp().args[0]
    kernel = TangentKernel(model, x)
    names = sorted(kernel.tangent.theta0())
    rows = torch.cat([kernel.pullback(unit)[n].flatten() for unit in torch.eye(15) for n in names]).view(
        15, -1
    )
    matrix = torch.cat([drawn(7, n, 0, kernel.tangent.theta0()[n].numel(), 20) for n in names]).double()
    assert zoo.close(project(kernel, 20, seed=7).kernel.root, rows @ matrix / math.sqrt(20))


def test_signs_belong_to_entries():
    whole = drawn(1, "w", 0, 400, 300)
    assert set(whole.unique().tolist()) == {-1, 1}
    assert torch.equal(drawn(1, "w", 37, 100, 300), whole[37:137])
    for other in (drawn(2, "w", 0, 400, 300), drawn(1, "v", 0, 400, 300)):
        assert abs(float((whole.double() * other).mean())) < 4 / math.sqrt(whole.numel())
    off = (whole.double().T @ whole.double()).fill_diagonal_(0) / math.sqrt(400)
    assert float(off.square().mean()) == pytest.approx(
        1, rel=0.1
    )  # columns are as independent as chance has it
    assert abs(float(whole.double().mean())) < 4 / math.sqrt(whole.numel())


def test_eps_chooses_the_dimension():
    net = zoo.stirred(nn.Sequential(nn.Linear(16, 96), nn.Tanh(), nn.Linear(96, 1)))
    kernel = TangentKernel(net, zoo.normal(6, 16))
    found = project(kernel, eps=0.1, probes=64)
    assert found.error.value <= 0.1
    assert found.dimension == math.ceil((found.participation.value + 1) / 0.01)
    assert found.error.standard_error > 0
    assert not found.exact
    error = float((found.kernel.dense() - kernel.dense()).norm() / kernel.dense().norm())
    assert error < 0.25
    other = project(TangentKernel(net, zoo.normal(3, 16, seed=2)), found.dimension)
    between = TangentKernel(net, zoo.normal(6, 16), zoo.normal(3, 16, seed=2)).dense()
    assert float((found.against(other) - between).norm() / between.norm()) < 0.4


# -- kernels with one output -----------------------------------------------------------------------------------------


class Wide(nn.Module):
    """One hidden layer in NTK parametrisation."""

    def __init__(self, width: int, outputs: int = 10) -> None:
        super().__init__()
        self.first = nn.Parameter(zoo.normal(width, 10, seed=width))
        self.second = nn.Parameter(zoo.normal(outputs, width, seed=width + 1))

    def forward(self, x):
        hidden = torch.relu(x @ self.first.T / math.sqrt(10))
        return hidden @ self.second.T * math.sqrt(2 / len(self.first))


def test_reduced_kernels_close_up_with_width():
    x = zoo.normal(12, 10)
    found = [reduced(TangentKernel(Wide(width), x)) for width in (64, 256, 1024)]
    for kind in ("sum", "trace"):
        distances = [getattr(one, kind).value for one in found]
        slope = math.log(distances[2] / distances[0]) / math.log(1024 / 64)
        assert -0.6 < slope < -0.4, distances
    assert all(one.trace.value < one.sum.value for one in found)


def test_reduced_distances_are_those_of_the_kernels_themselves():
    model, x = zoo.mlp().model, zoo.mlp().args[0]
    full = TangentKernel(model, x).dense()
    found = reduced(TangentKernel(model, x, x[1:]))
    full = full[:, 3:]
    for kind in ("sum", "trace"):
        small = TangentKernel(model, x, x[1:], outputs=kind).dense()
        gap = full - torch.kron(small, torch.eye(3, dtype=torch.float64))
        assert getattr(found, kind).value == pytest.approx(float(gap.norm() / full.norm()), rel=1e-9)
        assert getattr(found, kind).exact


def test_reduced_distances_from_some_rows():
    base = zoo.normal(120, 5, seed=3)
    kernel = DenseKernel(base @ base.T, outputs=3)
    exact = reduced(kernel)
    found = [reduced(kernel, rows=12, seed=seed) for seed in range(60)]
    misses = torch.tensor([one.trace.value - exact.trace.value for one in found])
    stated = math.sqrt(sum(one.trace.standard_error**2 for one in found) / len(found))
    assert 0.6 * stated < float(misses.square().mean().sqrt()) < 1.5 * stated
    assert not found[0].trace.exact
    every = reduced(kernel, rows=40)
    assert every.sum.value == pytest.approx(exact.sum.value)
    assert every.sum.standard_error == 0


def test_reduced_distances_as_a_report():
    text = reduced(DenseKernel(torch.eye(4, dtype=torch.float64), outputs=2)).report().to_markdown()
    assert "| trace | 0" in text
    assert "2 outputs, from 2 rows" in text


# -- what cannot be --------------------------------------------------------------------------------------------------

SQUARE = with_spectrum([2.0, 1.0, 0.0])
WIDE = DenseKernel(torch.ones(2, 3, dtype=torch.float64))
NAN = DenseKernel(torch.full((3, 3), float("nan"), dtype=torch.float64))
LEANING = DenseKernel(
    torch.eye(6, dtype=torch.float64) + zoo.normal(6, 6).triu(1) - zoo.normal(6, 6).triu(1).T
)
NEGATIVE = DenseKernel(torch.diag(torch.tensor([1.0, -1.0], dtype=torch.float64)))
INDEFINITE = DenseKernel(torch.tensor([[1.0, 2.0], [2.0, 1.0]], dtype=torch.float64))


@pytest.mark.parametrize("kernel", [WIDE, NAN], ids=["not square", "NaN"])
@pytest.mark.parametrize(
    "call",
    [
        trace,
        lambda k: trace(k, None),
        participation_rank,
        lambda k: participation_rank(k, None),
        lambda k: logdet(k, 1.0),
        lambda k: logdet(k, 1.0, None),
        lambda k: effective_dimension(k, 1.0),
        lambda k: effective_dimension(k, 1.0, None),
        lambda k: pivoted_cholesky(k, 1),
        lambda k: nystrom(k, [0]),
        lambda k: determinantal(k, 1),
        lambda k: determinantal(k, 1, kind="leading"),
        lambda k: eigenpairs(k, 1),
    ],
)
def test_kernels_that_cannot_be_taken(kernel, call):
    error, message = (UsageError, r"square.*\(2, 3\)") if kernel is WIDE else (NonFiniteError, "NaN")
    with pytest.raises(error, match=message):
        call(kernel)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: trace(SQUARE, 1), "at least 2"),
        (lambda: trace(SQUARE, 5, method="hutch++"), "at least 6"),
        (lambda: trace(SQUARE, method="hutchinsen"), "'hutchinson'"),
        (lambda: trace(LEANING, 6, method="hutch++"), "not symmetric"),
        (lambda: logdet(SQUARE, 0.0), "above 0"),
        (lambda: logdet(SQUARE, 0.0, None), "singular"),
        (lambda: logdet(SQUARE, -1.0, None), "ridge=-1"),
        (lambda: logdet(SQUARE, 1.0, steps=0), "steps=0"),
        (lambda: logdet(LEANING, 1.0), "not symmetric"),
        (lambda: logdet(NEGATIVE, 2.0), "not positive semi-definite"),
        (lambda: effective_dimension(SQUARE, 0.0, None), "above 0"),
        (lambda: effective_dimension(NEGATIVE, 2.0, None), "not positive semi-definite"),
        (lambda: pivoted_cholesky(SQUARE, 4), "rank=4 .* 3 rows"),
        (lambda: pivoted_cholesky(SQUARE, 0), "rank=0"),
        (lambda: pivoted_cholesky(SQUARE, 1, tolerance=-1), "tolerance=-1"),
        (lambda: pivoted_cholesky(NEGATIVE, 1), "its diagonal goes down to -1"),
        (lambda: pivoted_cholesky(INDEFINITE, 2), "K - L L"),
        (lambda: pivoted_cholesky(LEANING, 6), "not symmetric"),
        (lambda: nystrom(INDEFINITE, [0]), "K - L L"),
        (lambda: nystrom(LEANING, [0, 1]), "not symmetric"),
        (lambda: nystrom(SQUARE, []), "0 to 2"),
        (lambda: nystrom(SQUARE, [1, 1]), "each once"),
        (lambda: nystrom(SQUARE, [3]), "0 to 2"),
        (lambda: determinantal(SQUARE, 3), "rank 2"),
        (lambda: determinantal(SQUARE, 3, kind="leading"), "rank 2"),
        (lambda: determinantal(SQUARE, 1, kind="kdpp"), "'k-dpp'"),
        (lambda: eigenpairs(SQUARE, 4), "rank=4"),
        (lambda: eigenpairs(LEANING, 1), "not symmetric"),
        (lambda: eigenpairs(SQUARE, 1, iterations=-1), "iterations=-1"),
        (lambda: LowRankKernel(torch.ones(3)), "matrix"),
        (lambda: LowRankKernel(torch.ones(3, 1)).solve(torch.ones(3), 0.0), "above 0"),
        (lambda: LowRankKernel(torch.ones(3, 1)).solve(torch.ones(2), 1.0), "has 3 rows"),
        (lambda: reduced(SQUARE, rows=1), "rows=1"),
        (lambda: reduced(SQUARE, rows=4), "rows=4 of a kernel with 3"),
    ],
)  # fmt: skip
def test_what_cannot_be(call, message):
    with pytest.raises(UsageError, match=message):
        call()


def test_projections_that_cannot_be():
    model, x = zoo.mlp().model, zoo.mlp().args[0]
    kernel = TangentKernel(model, x)
    for change, message in (
        ({}, "give one"),
        ({"dimension": 3, "eps": 0.1}, "give one"),
        ({"eps": 0.0}, "eps=0"),
        ({"eps": float("nan")}, "eps=nan"),
        ({"dimension": 0}, "dimension=0"),
        ({"eps": 1e-3}, "for eps=0.001.*83 parameters"),
    ):
        with pytest.raises(UsageError, match=message):
            project(kernel, **change)
    with pytest.raises(UsageError, match="trace kernel"):
        project(TangentKernel(model, x, outputs="trace"), 3)
    with pytest.raises(UsageError, match="square"):
        project(TangentKernel(model, x, x[:2]), 3)
    with pytest.raises(MismatchError, match="seeds 0 and 1"):
        project(kernel, 3).against(project(kernel, 3, seed=1))
    broken = zoo.mlp().model
    broken[0].weight.data[0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match="NaN"):
        project(TangentKernel(broken, x), 3)
