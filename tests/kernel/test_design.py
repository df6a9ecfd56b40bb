"""Which rows to label: probabilities, marginals and weights against enumeration; weighted fits and growing ones."""

import json
import math
from collections import Counter
from itertools import combinations, product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import tauspan as ts
from helpers import zoo
from tauspan.core.errors import NonFiniteError, StoreError, UsageError
from tauspan.kernel import (
    DRAWS,
    DenseKernel,
    LowRankKernel,
    RidgeFit,
    TangentKernel,
    closed_form,
    design,
    eigenpairs,
    enough,
    solve_ridge,
)

seeds = st.integers(0, 10_000)
quick = settings(max_examples=25, deadline=None)


def wide(*shape, seed=0):
    return zoo.normal(*shape, seed=seed).double()


def basis(rows, count, seed=0):
    """Orthonormal columns: the eigenfunctions of a projection kernel."""
    return torch.linalg.qr(wide(rows, count, seed=seed)).Q


def semidefinite(rows, seed=0, rank=None):
    root = wide(rows, rank or rows, seed=seed)
    return root @ root.T


def drawn(method, vectors, count, times, seed=0):
    """Many draws, as sequences of rows."""
    generator = torch.Generator().manual_seed(seed)
    return [DRAWS[method](vectors, count, generator) for _ in range(times)]


# -- draws ------------------------------------------------------------------------------------------------------


def determinants(vectors):
    """P(S) of the projection process, by enumeration."""
    size = vectors.shape[1]
    chances = {}
    for rows in combinations(range(len(vectors)), size):
        chances[rows] = float(torch.linalg.det(vectors[list(rows)])) ** 2
    return chances


def test_a_projection_process_has_the_probabilities_and_marginals_of_enumeration():
    vectors, times = basis(5, 2), 600
    chances = determinants(vectors)
    assert sum(chances.values()) == pytest.approx(1.0)  # Cauchy-Binet
    marginals = [sum(p for rows, p in chances.items() if row in rows) for row in range(5)]
    assert marginals == pytest.approx(vectors.square().sum(1).tolist())  # the leverage scores
    found = Counter(tuple(sorted(rows)) for rows in drawn("dpp", vectors, 2, times))
    assert set(found) <= set(chances)
    for rows, chance in chances.items():
        assert found[rows] / times == pytest.approx(chance, abs=4 * math.sqrt(chance * (1 - chance) / times))


def test_volume_rescaled_draws_have_the_density_det_g_times_that_of_independent_ones():
    vectors, count, times = basis(3, 1, seed=1), 2, 600
    scores = vectors.square().sum(1) / vectors.shape[1]
    chances = {}
    for rows in product(range(3), repeat=count):
        some = vectors[list(rows)]
        gram = (some.T / scores[list(rows)]) @ some / count
        chances[rows] = float(torch.linalg.det(gram) * scores[list(rows)].prod())
    total = sum(chances.values())
    found = Counter(tuple(sorted(rows)) for rows in drawn("volume", vectors, count, times))
    for rows in {tuple(sorted(one)) for one in chances}:
        chance = sum(p for one, p in chances.items() if tuple(sorted(one)) == rows) / total
        assert found[rows] / times == pytest.approx(
            chance, abs=4 * math.sqrt(chance * (1 - chance) / times) + 1e-9
        )


def test_a_mixture_of_a_projection_process_and_independent_draws_is_volume_rescaled():
    """The identity by which volume-rescaled samples are drawn, for every sequence of three rows."""
    vectors, count = basis(4, 2, seed=2), 3
    scores = vectors.square().sum(1) / 2
    process = determinants(vectors)
    mixed, rescaled = [], []
    for rows in product(range(4), repeat=count):
        total = 0.0
        for inner in combinations(range(count), 2):
            (rest,) = set(range(count)) - set(inner)
            pair = tuple(sorted(rows[place] for place in inner))
            total += process.get(pair, 0.0) / 2 * float(scores[rows[rest]]) / 3  # 2 orders, 3 places
        some = vectors[list(rows)]
        gram = (some.T / scores[list(rows)]) @ some / count
        mixed.append(total)
        rescaled.append(float(torch.linalg.det(gram) * scores[list(rows)].prod()))
    assert sum(mixed) == pytest.approx(1.0)
    assert mixed == pytest.approx([one / sum(rescaled) for one in rescaled], abs=1e-12)


@pytest.mark.parametrize("method", DRAWS)
def test_the_weighted_gram_matrix_is_unbiased(method):
    vectors = basis(6, 2, seed=3)
    count = 2 if method == "dpp" else 3
    scores = vectors.square().sum(1)
    weights = torch.ones(6, dtype=torch.float64) if method == "uniform" else 2 / (6 * scores)
    phi = vectors * 6**0.5
    grams = torch.stack(
        [
            (phi[rows].T * weights[rows]) @ phi[rows] / count
            for rows in map(torch.tensor, drawn(method, vectors, count, 200))
        ]
    )
    spread = grams.std(0) / math.sqrt(len(grams))
    assert bool(((grams.mean(0) - torch.eye(2, dtype=torch.float64)).abs() <= 4.5 * spread + 1e-9).all())


@quick
@given(seeds, st.integers(1, 6), st.sampled_from(sorted(DRAWS)))
def test_a_design_has_different_rows_positive_weights_and_the_gram_matrix_of_both(seed, functions, method):
    kernel = DenseKernel(semidefinite(9, seed=seed))
    labels = functions if method == "dpp" else min(functions + seed % 4, 9)
    found = design(kernel, labels, method, functions=functions, seed=seed)
    assert list(found.chosen) == sorted(set(found.chosen))
    assert len(found.chosen) <= labels
    assert min(found.weights) > 0
    phi = eigenpairs(kernel, functions, seed=seed).vectors * 3  # orthonormal over the 9 rows of the pool
    gram = sum(
        w * torch.outer(phi[row], phi[row]) for row, w in zip(found.chosen, found.weights, strict=True)
    )
    assert torch.allclose(found.gram, gram / labels)
    assert found.least == pytest.approx(max(float(torch.linalg.eigvalsh(found.gram)[0]), 0.0))
    if len(found.chosen) < functions:
        assert math.isinf(found.condition)


def test_all_rows_of_the_pool_give_the_identity():
    found = design(DenseKernel(semidefinite(7)), 7, "uniform", functions=3)
    assert torch.allclose(found.gram, torch.eye(3, dtype=torch.float64))
    assert found.condition == pytest.approx(1.0)
    assert repr(found) == "Design(uniform, 7 of 7 rows for 3 functions, least eigenvalue 1, condition 1)"


def test_a_least_eigenvalue_is_asked_for_and_reached_or_refused():
    kernel = DenseKernel(semidefinite(30, seed=5))
    plain = [design(kernel, 12, "leverage", functions=4, seed=seed).least for seed in range(20)]
    good = [design(kernel, 12, "leverage", functions=4, least=0.3, seed=seed) for seed in range(20)]
    assert min(plain) < 0.3 <= min(one.least for one in good)
    assert max(one.tries for one in good) > 1
    with pytest.raises(
        UsageError, match=r"least=0.99: the best of 100 designs of 4 labels has 0\.\d+\. Take more"
    ):
        design(kernel, 4, "leverage", functions=4, least=0.99)


def test_a_function_of_the_span_is_found_exactly_from_few_labels():
    """Weighted least squares reproduces the span, which is what the certificate is about."""
    root = basis(40, 4) * torch.tensor([4.0, 3.0, 2.0, 1.0], dtype=torch.float64)
    kernel = LowRankKernel(root)
    truth = root @ wide(4, seed=9)
    found = design(kernel, 6, "volume", functions=4)
    rows = list(found.chosen)
    part = DenseKernel(kernel.dense()[rows][:, rows])
    alpha = solve_ridge(part, truth[rows], 1e-12, torch.tensor(found.weights)).alpha
    assert torch.allclose(kernel.dense()[:, rows] @ alpha, truth, atol=1e-6)


def test_determinantal_designs_are_better_conditioned_than_independent_ones():
    kernel = DenseKernel(semidefinite(60, seed=8))
    medians = {
        method: torch.tensor(
            [design(kernel, 16, method, functions=8, seed=s).least for s in range(12)]
        ).median()
        for method in ("leverage", "volume", "repeated-dpp")
    }
    assert medians["leverage"] < medians["volume"] < medians["repeated-dpp"]


def test_how_many_independent_draws_suffice():
    assert enough(10, 0.5, 0.1) == math.ceil(10 * math.log(200) / (1.5 * math.log(1.5) - 0.5))
    with pytest.raises(UsageError, match=r"functions=0, delta=0\.5"):
        enough(0)


def test_a_pool_without_labels_through_a_tangent_kernel():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 2)).double()
    kernel = TangentKernel(net, wide(25, 3), outputs="trace")
    kernel.dense()
    found = design(kernel, 8, "repeated-dpp", functions=4)
    assert found.pool == 25
    assert 0.5 < found.explained <= 1


WRONG = {
    "labels=0 of a pool of 5 rows: choose 1 to 5.": {"labels": 0},
    "labels=6 of a pool of 5 rows: choose 1 to 5.": {"labels": 6},
    "method='dp'. Did you mean 'dpp'?": {"method": "dp"},
    "functions=4 from 3 labels: choose 1 to 3.": {"functions": 4},
    "functions=2 with method='dpp'": {"functions": 2, "method": "dpp"},
    "functions=3: the kernel has rank 2. Take functions=2 or fewer.": {"functions": 3},
    "least=1.0: from 0 to below 1": {"least": 1.0},
}


@pytest.mark.parametrize("words", WRONG)
def test_what_cannot_be_designed_is_refused(words):
    with pytest.raises(UsageError) as refused:
        design(DenseKernel(semidefinite(5, rank=2)), **{"labels": 3, **WRONG[words]})
    assert words in str(refused.value)


def test_kernels_of_several_outputs_and_broken_ones_are_refused():
    with pytest.raises(UsageError, match=r"has 2 outputs for each row.*outputs='trace'"):
        design(DenseKernel(semidefinite(6), outputs=2), 2)
    with pytest.raises(NonFiniteError):
        design(DenseKernel(torch.full((3, 3), math.nan, dtype=torch.float64)), 2)


def test_rows_are_written_once_as_a_table_or_a_report(tmp_path):
    found = design(DenseKernel(semidefinite(6)), 4)
    table = found.save(tmp_path / "rows.csv").read_text().splitlines()
    assert table[0] == "row,weight"
    assert [int(line.partition(",")[0]) for line in table[1:]] == list(found.chosen)
    assert [float(line.partition(",")[2]) for line in table[1:]] == list(found.weights)
    kept = json.loads(found.save(tmp_path / "rows.json").read_text())
    assert kept["result"]["rows"] == list(found.chosen)
    assert kept["verdict"] == found.verdict
    with pytest.raises(StoreError, match=r"rows\.csv"):
        found.save(tmp_path / "rows.csv")
    with pytest.raises(UsageError, match=r"rows\.txt: rows are written as \.csv or \.json"):
        found.save(tmp_path / "rows.txt")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.csv", "rows.json"]


def test_the_verdict_says_when_a_function_is_undetermined():
    found = design(DenseKernel(torch.eye(4, dtype=torch.float64)), 4, "leverage", functions=4, seed=1)
    assert len(found.chosen) < 4
    assert "undetermined: take more labels" in found.verdict
    assert found.report().tables[0].rows[0]["condition"] is None


# -- weighted fits ----------------------------------------------------------------------------------------------


@quick
@given(seeds)
def test_a_weighted_fit_is_that_of_repeated_rows(seed):
    matrix, r = semidefinite(4, seed=seed), wide(4, seed=seed + 1)
    weights = torch.tensor([1.0, 2.0, 1.0, 3.0])
    places = torch.tensor([0, 1, 1, 2, 3, 3, 3])
    weighted = solve_ridge(DenseKernel(matrix), r, 0.5, weights)
    repeated = solve_ridge(DenseKernel(matrix[places][:, places]), r[places], 0.5)
    summed = torch.zeros(4, dtype=torch.float64).index_add_(0, places, repeated.alpha)
    assert torch.allclose(weighted.alpha, summed, atol=1e-9)


def toy(rows=12, classes=3):
    torch.manual_seed(1)
    encoder = ts.load(nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4)).double())
    x, y = wide(rows, 3), torch.arange(rows) % classes
    names = [str(place) for place in range(classes)]
    return encoder, ts.Task.from_tensors("toy", names, train=(x, y), validation=(x, y), test=(x, y))


def test_a_closed_form_takes_the_weights_of_a_design():
    encoder, task = toy()
    ones = closed_form(encoder, task, ridge=0.1, weights=[1.0] * 12)
    plain = closed_form(encoder, task, ridge=0.1)
    for name, delta in plain.vector.deltas.items():
        assert torch.allclose(ones.vector.deltas[name], delta, atol=1e-6)
    heavy = closed_form(encoder, task, ridge=0.1, weights=torch.tensor([1e4] + [1.0] * 11))
    missed = [one.kernel.matvec(one.solution.alpha)[:3] for one in (heavy, plain)]
    wanted = heavy.kernel.matvec(closed_form(encoder, task, ridge=1e-9).solution.alpha)[:3]
    assert float((missed[0] - wanted).norm()) < 0.1 * float((missed[1] - wanted).norm())
    with pytest.warns(
        RuntimeWarning, match="no row helps to predict another"
    ):  # the labels are drawn at random
        chosen = closed_form(encoder, task, weights=[0.5] * 12)
    with pytest.warns(RuntimeWarning, match="no row helps to predict another"):
        same = closed_form(encoder, task, ridge="loo")
    assert chosen.choice is not None
    assert same.choice is not None
    assert chosen.choice.ridge == pytest.approx(same.choice.ridge / 2)  # scaling the loss scales the ridge
    assert chosen.solution.solver == "weighted ridge by Cholesky"


def test_weights_that_do_not_fit_are_refused():
    encoder, task = toy()
    for words, options in {
        "11 weights for 12 rows": {"weights": [1.0] * 11},
        "the weight of row 2 is 0.0: it must be above 0": {"weights": [1.0, 1.0, 0.0] * 4},
        "weights with loss='hinge'": {"weights": [1.0] * 12, "loss": "hinge"},
        "by='products' with weights": {"weights": [1.0] * 12, "by": "products"},
    }.items():
        with pytest.raises(UsageError) as refused:
            closed_form(encoder, task, **{"ridge": 0.1, **options})
        assert words in str(refused.value)


# -- fits that grow ---------------------------------------------------------------------------------------------


def block(matrix, old, new):
    return matrix[new][:, old], matrix[new][:, new]


@quick
@given(seeds, st.lists(st.integers(1, 4), min_size=2, max_size=4), st.floats(1e-5, 10.0))
def test_growing_task_by_task_equals_solving_anew(seed, sizes, ridge):
    total = sum(sizes)
    matrix, r = semidefinite(total, seed=seed), wide(total, seed=seed + 1)
    fit = RidgeFit.of(DenseKernel(matrix[: sizes[0], : sizes[0]]), r[: sizes[0]], ridge)
    done = sizes[0]
    for size in sizes[1:]:
        new = list(range(done, done + size))
        fit = fit.grown(*block(matrix, list(range(done)), new), r[new])
        done += size
    anew = RidgeFit.of(DenseKernel(matrix), r, ridge)
    assert float((fit.alpha - anew.alpha).abs().max()) <= 1e-10 * max(1.0, float(anew.alpha.abs().max()))
    system = matrix + ridge * torch.eye(total, dtype=torch.float64)
    assert float((system @ fit.alpha - r).abs().max()) <= 1e-10 * max(1.0, float(anew.alpha.abs().max()))
    assert float((system @ fit.inverse).sub(torch.eye(total)).abs().max()) <= 1e-10 * max(1.0, 1 / ridge)
    assert fit.bytes == 8 * (total**2 + total) == anew.bytes


def test_rows_leave_and_arrive_in_any_order():
    matrix, r = semidefinite(8, seed=4), wide(8, seed=5)
    fit = RidgeFit.of(DenseKernel(matrix[:6, :6], outputs=2), r[:6], 0.3).without([1])
    fit = fit.grown(*block(matrix, [0, 1, 4, 5], [6, 7]), r[6:])  # rows 0 and 2, then row 3
    assert fit.samples == (0, 2, 3)
    kept = [0, 1, 4, 5, 6, 7]
    anew = RidgeFit.of(DenseKernel(matrix[kept][:, kept], outputs=2), r[kept], 0.3)
    assert torch.allclose(fit.remaining, anew.remaining, atol=1e-10)
    again = fit.without([3])
    assert torch.allclose(
        again.remaining,
        RidgeFit.of(DenseKernel(matrix[:6, :6], outputs=2), r[:6], 0.3).without([1]).remaining,
        atol=1e-10,
    )


def test_blocks_that_do_not_fit_are_refused():
    matrix = semidefinite(4)
    fit = RidgeFit.of(DenseKernel(matrix[:2, :2], outputs=2), torch.ones(2), 0.1)
    with pytest.raises(UsageError, match=r"give \(d, 2\), \(d, d\) and d of them, d a multiple of 2"):
        fit.grown(matrix[2:3, :2], matrix[2:3, 2:3], torch.ones(1))
    with pytest.raises(UsageError, match=r"blocks of shape \(2, 1\)"):
        fit.grown(matrix[2:, :1], matrix[2:, 2:], torch.ones(2))
    with pytest.raises(UsageError, match=r"not symmetric: entry \(0, 1\) is 2 and \(1, 0\) 0"):
        fit.grown(matrix[2:, :2], torch.tensor([[1.0, 2.0], [0.0, 1.0]]), torch.ones(2))
    with pytest.raises(NonFiniteError, match="their residual"):
        fit.grown(matrix[2:, :2], matrix[2:, 2:], torch.tensor([1.0, math.nan]))
    sure = RidgeFit.of(DenseKernel(torch.eye(2, dtype=torch.float64)), torch.ones(2), 0.0)
    with pytest.raises(UsageError, match="singular to working precision"):
        sure.grown(torch.eye(2, dtype=torch.float64)[:1], torch.ones(1, 1), torch.ones(1))
