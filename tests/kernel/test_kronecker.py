import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import tauspan as ts
from helpers.zoo import normal
from tauspan.core.errors import NonFiniteError, UsageError
from tauspan.kernel import (
    DenseKernel,
    KroneckerKernel,
    TangentKernel,
    choose_ridge,
    closed_form,
    kronecker,
    leave_one_out,
    solve_cg,
)
from tauspan.kernel.operator import losses


def gram(size: int, rank: int, seed: int) -> Tensor:
    root = normal(size, rank, seed=seed).double()
    return root @ root.T


def product(rows: int, outputs: int, seed: int = 0) -> KroneckerKernel:
    return KroneckerKernel(gram(rows, rows + 1, seed), gram(outputs, outputs, seed + 1))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(2, 6), st.integers(1, 4), st.integers(0, 99), st.floats(0.01, 10))
def test_everything_is_that_of_the_whole_matrix(rows: int, outputs: int, seed: int, ridge: float) -> None:
    kernel = product(rows, outputs, seed)
    whole = torch.kron(kernel.between_rows, kernel.between_outputs)
    vectors = normal(rows * outputs, 2, seed=seed).double()
    assert kernel.outputs == outputs
    assert kernel.samples == rows
    torch.testing.assert_close(kernel.dense(), whole)
    torch.testing.assert_close(kernel @ vectors, whole @ vectors)
    torch.testing.assert_close(kernel.diag(), whole.diagonal())
    torch.testing.assert_close(kernel.rows([1, 0]), whole[[1, 0]])
    torch.testing.assert_close(
        kernel.eigenvalues.sort().values, torch.linalg.eigvalsh(whole), rtol=1e-8, atol=1e-8
    )
    inverse = torch.linalg.inv(whole + ridge * torch.eye(len(whole)))
    solved = kernel.solve(vectors[:, 0], ridge)
    torch.testing.assert_close(solved.alpha, inverse @ vectors[:, 0])
    assert solved.exact
    assert solved.relative_residual is not None
    assert solved.relative_residual < 1e-10
    blocks = inverse.view(rows, outputs, rows, outputs).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    torch.testing.assert_close(kernel.left_out_blocks(ridge), blocks)


def test_leave_one_out_chooses_as_on_the_whole_matrix() -> None:
    kernel = product(7, 3)
    learnt = kernel @ normal(21, seed=5).double()
    residual = (learnt + 0.3 * learnt.std() * normal(21, seed=6).double()).view(7, 3)
    one = choose_ridge(kernel, residual)
    other = choose_ridge(DenseKernel(kernel.dense(), 3), residual)
    torch.testing.assert_close(torch.tensor(one.errors), torch.tensor(other.errors), rtol=1e-8, atol=0)
    assert one.ridge == pytest.approx(other.ridge)
    error = leave_one_out(DenseKernel(kernel.dense(), 3), residual, one.ridge).square().sum(1).mean()
    assert min(one.errors) == pytest.approx(float(error))


@pytest.mark.parametrize(
    ("rows", "outputs", "message"),
    [
        (torch.ones(2, 3), torch.eye(2), "the matrix between rows has the shape (2, 3): give a square one."),
        (torch.eye(2), torch.ones(2), "the matrix between outputs has the shape (2,)"),
        (torch.tensor([[1.0, 2.0], [0.0, 1.0]]), torch.eye(2), "between rows is not symmetric"),
        (torch.eye(2), -torch.eye(2), "the matrix between outputs has the eigenvalue -1"),
    ],
)
def test_matrices_that_make_no_kernel_are_refused(rows: Tensor, outputs: Tensor, message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        KroneckerKernel(rows, outputs)
    with pytest.raises(NonFiniteError):
        KroneckerKernel(torch.full((2, 2), torch.nan), torch.eye(2))


def test_of_a_linear_layer_the_product_is_exact() -> None:
    exact = TangentKernel(nn.Linear(3, 5).double(), normal(4, 3, seed=0).double())
    torch.testing.assert_close(kronecker(exact, rows=2).dense(), exact.dense())


def test_kernels_without_such_a_product_are_refused() -> None:
    net, x = nn.Linear(3, 4).double(), normal(4, 3, seed=0).double()
    for kernel in (
        TangentKernel(net, x, outputs="sum"),
        TangentKernel(net, x, outputs="trace"),
        TangentKernel(net, x, x[:2]),
        TangentKernel(nn.Linear(3, 1).double(), x),
    ):
        with pytest.raises(UsageError, match=r"build it without x2, with outputs='all'"):
            kronecker(kernel)
    with pytest.raises(UsageError, match="rows=0: the block of outputs is a mean over at least 1 row"):
        kronecker(TangentKernel(net, x), rows=0)


def many_classes(classes: int = 10, rows: int = 40) -> tuple[ts.Encoder, ts.Task]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 96), nn.Tanh(), nn.Linear(96, 64)).double()
    x, y = normal(rows, 6, seed=1).double(), torch.arange(rows) % classes
    names = [str(number) for number in range(classes)]
    split = (x, y)
    return ts.load(net), ts.Task.from_tensors("many", names, train=split, validation=split, test=split)


RIDGE = 1e4


def test_steps_do_not_grow_with_the_outputs() -> None:
    steps, x = [], normal(12, 6, seed=1).double()
    for outputs in (5, 20):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(6, 96), nn.Tanh(), nn.Linear(96, outputs)).double()
        kernel = TangentKernel(net, x)
        ridge = 1e-3 * float(kernel.diag().mean())
        residual = normal(12 * outputs, seed=2).double()
        plain = solve_cg(kernel, residual, ridge, tolerance=1e-6)
        near = solve_cg(kernel, residual, ridge, kronecker(kernel), tolerance=1e-6)
        assert near.iterations < 0.7 * plain.iterations
        torch.testing.assert_close(
            near.alpha, plain.alpha, rtol=1e-3, atol=1e-3 * float(plain.alpha.abs().max())
        )
        steps.append(near.iterations)
    assert max(steps) <= 1.6 * min(steps)


def test_products_reach_what_the_matrix_gives() -> None:
    encoder, task = many_classes()
    matrix = closed_form(encoder, task, ridge=RIDGE, by="matrix")
    products = closed_form(encoder, task, ridge=RIDGE, by="products", tolerance=1e-10)
    assert matrix.solution.exact
    assert not products.solution.exact
    assert not products.kernel.formed
    gap = (matrix.vector - products.vector).norm()
    assert gap <= 1e-8 * matrix.vector.norm()
    bound = products.solution.error_bound
    assert bound is not None
    assert gap <= bound + 1e-12


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products are tried from 200 rows x classes."""
    monkeypatch.setattr(losses, "_SIZE", 200)


@pytest.mark.usefixtures("small")
def test_the_usual_way_depends_on_rows_and_classes() -> None:
    encoder, task = many_classes(10, 19)
    assert closed_form(encoder, task, ridge=RIDGE).solution.exact
    encoder, task = many_classes(7, 30)
    assert closed_form(encoder, task, ridge=RIDGE).solution.exact
    encoder, task = many_classes(10, 20)
    found = closed_form(encoder, task, ridge=RIDGE)
    assert not found.solution.exact
    assert found.solution.converged
    exact = closed_form(encoder, task, ridge=RIDGE, by="matrix")
    assert (exact.vector - found.vector).norm() <= 1e-2 * exact.vector.norm()
    with pytest.raises(UsageError, match=r"by='product'.*Did you mean 'products'"):
        closed_form(encoder, task, by="product")  # type: ignore[arg-type]


def test_the_ridge_is_chosen_on_the_product() -> None:
    encoder, task = many_classes(8, 32)
    found = closed_form(encoder, task, by="products")
    facts = found.vector.info["solver"]["leave_one_out"]
    assert facts["kernel"] == "Kronecker product"
    assert found.choice is not None
    assert found.solution.ridge == found.choice.ridge


@pytest.mark.usefixtures("small")
def test_where_products_take_too_many_steps_the_matrix_is_computed(caplog: pytest.LogCaptureFixture) -> None:
    encoder, task = many_classes(10, 20)
    caplog.set_level("INFO", "tauspan")
    found = closed_form(encoder, task, ridge=1e-6)
    assert found.solution.exact
    assert found.solution.solver == "ridge by Cholesky"
    assert "products were not enough after 40 steps, so the whole kernel is computed" in caplog.text
