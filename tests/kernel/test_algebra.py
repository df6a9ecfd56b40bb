"""What every kernel can do with its products and its diagonal alone, and sums, multiples and shifts of kernels."""

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import eigsh

from helpers import zoo
from tauspan import kernel as face
from tauspan.core.errors import MismatchError, UsageError
from tauspan.kernel import DenseKernel, Kernel, LowRankKernel, TangentKernel, UnionKernel, solve_cg
from tauspan.kernel.solvers import base


class Linear(Kernel):
    """x x^T, by the two methods that a kernel needs; two outputs per row."""

    outputs = 2

    def __init__(self, x):
        self.x = x

    @property
    def shape(self):
        return len(self.x), len(self.x)

    def matmat(self, vectors):
        return self.x @ (self.x.T @ vectors)

    def diag(self):
        return self.x.square().sum(1)


class Rectangular(Linear):
    """x y^T: no kernel of one set of rows, and K^T V is not defined."""

    def __init__(self, x, y):
        self.x, self.y = x, y

    @property
    def shape(self):
        return len(self.x), len(self.y)

    def matmat(self, vectors):
        return self.x @ (self.y.T @ vectors)


X, Y = zoo.normal(6, 4), zoo.normal(8, 4, seed=1)
TOY, CROSS = Linear(X), Rectangular(X, Y)
PLAIN = X @ X.T


def kernels():
    """One kernel of each class, square and rectangular, with its matrix."""
    example = zoo.mlp()
    model, x = example.model.double(), example.args[0].double()
    tangent, between = TangentKernel(model, x), TangentKernel(model, x, x[:2])
    union = UnionKernel({"a": TangentKernel(model, x[:2]), "b": TangentKernel(model, x[2:])})
    made = {
        "toy": TOY, "rectangular": CROSS, "dense": DenseKernel(PLAIN, 2), "leaning": DenseKernel(X @ Y[:6].T),
        "low rank": LowRankKernel(X), "tangent": tangent, "between": between, "union": union,
        "sum": 2 * TOY + DenseKernel(PLAIN, 2) / 4 - TOY.shifted(0.5), "transposed": CROSS.T,
    }  # fmt: skip
    made["combined"] = 3 * (CROSS - 2 * CROSS)
    return made


@pytest.mark.parametrize("name", kernels())
def test_products_rows_blocks_and_solvers_are_those_of_the_matrix(name):
    kernel = kernels()[name]
    v, w = zoo.normal(kernel.shape[1], 3, seed=5), zoo.normal(kernel.shape[0], 3, seed=6)
    some = kernel.rows([0, kernel.shape[0] - 1])
    block = kernel.block([1], [0, 1])
    product, back = kernel @ v, kernel.T @ w
    matrix = kernel.dense()
    assert matrix.shape == kernel.shape
    assert matrix.dtype == kernel.dtype == torch.float64
    assert zoo.close(product, matrix @ v)
    assert zoo.close(back, matrix.T @ w)
    assert zoo.close(kernel @ v[:, 0], matrix @ v[:, 0])
    assert zoo.close(kernel @ v.float(), matrix @ v.float().double())  # float32 widens
    assert zoo.close(some, matrix[[0, -1]])
    o = kernel.outputs
    assert zoo.close(block, matrix[o : 2 * o, : 2 * o])
    assert zoo.close(kernel.rows([1]), matrix[[1]])
    assert zoo.close(kernel.T.dense(), matrix.T)
    assert zoo.close(kernel.T.T.dense(), matrix)
    scipy = kernel.to_scipy()
    np.testing.assert_allclose(scipy @ v.numpy(), product.numpy(), atol=1e-10)
    np.testing.assert_allclose(scipy.T @ w[:, 0].numpy(), back[:, 0].numpy(), atol=1e-10)
    if kernel.shape[0] == kernel.shape[1]:
        assert zoo.close(kernel.diag(), matrix.diagonal())
        assert kernel.trace().value == pytest.approx(float(matrix.trace()))
    for wrong in (w[:-1], v[:, None], "v"):
        with pytest.raises(
            UsageError, match=rf"kernel of shape \({kernel.shape[0]}, {kernel.shape[1]}\).*give"
        ):
            kernel @ wrong


def test_a_kernel_of_your_own_needs_two_methods():
    found = TOY + 0.1
    y = zoo.normal(6)
    shifted = PLAIN + 0.1 * torch.eye(6, dtype=torch.float64)
    assert zoo.close(found.dense(), shifted)
    assert zoo.close(TOY.solve(y, 0.1).alpha, torch.linalg.solve(shifted, y))
    assert zoo.close(solve_cg(TOY, y, 0.1).alpha, torch.linalg.solve(shifted, y), 1e-8)
    assert TOY.logdet(0.1).value == pytest.approx(float(torch.logdet(shifted)))
    assert zoo.close(TOY.eigsh(2).values, torch.linalg.eigvalsh(PLAIN)[-2:].flip(0), 1e-8)
    assert zoo.close(torch.from_numpy(eigsh(TOY.to_scipy(), 2)[0]), torch.linalg.eigvalsh(PLAIN)[-2:], 1e-8)
    assert (TOY.samples, TOY.T) == (3, TOY)
    with pytest.raises(UsageError, match="Linear has no parameters"):
        TOY.pullback(y)
    with pytest.raises(UsageError, match="Linear has no parameters"):
        TOY.push({})
    with pytest.raises(TypeError, match="abstract"):
        Kernel()


def test_a_number_is_added_to_the_diagonal_alone():
    kernel, eye = DenseKernel(torch.ones(2, 2)), torch.eye(2, dtype=torch.float64)
    for found in (kernel + 1, 1 + kernel, kernel.shifted(1.0), kernel - -1.0):
        assert torch.equal(found.dense(), kernel.matrix + eye)
        assert torch.equal(found.diag(), torch.full((2,), 2.0, dtype=torch.float64))
        assert torch.equal(found.rows([1]), torch.tensor([[1.0, 2.0]], dtype=torch.float64))
        assert torch.equal(found @ torch.ones(2), torch.full((2,), 3.0, dtype=torch.float64))
    assert torch.equal((-(2 * (kernel + 1))).dense(), -2 * kernel.matrix - 2 * eye)


def test_what_does_not_add():
    with pytest.raises(MismatchError, match=r"\(6, 6\) and \(4, 4\)"):
        TOY + LowRankKernel(zoo.normal(4, 1))
    with pytest.raises(MismatchError, match="2 and 1 outputs"):
        TOY + LowRankKernel(X)
    with pytest.raises(UsageError, match=r"ridge=0.1 on a kernel of shape \(6, 8\)"):
        CROSS + 0.1
    for wrong in ("1", None, True, float("nan"), PLAIN):
        with pytest.raises(TypeError):
            TOY + wrong
        with pytest.raises(TypeError):
            TOY * wrong
    for call in (lambda: TOY.rows([6]), lambda: TOY.block([3], [0]), lambda: TOY.block([0], [-1])):
        with pytest.raises(UsageError, match=r"(row|column) -?\d of a kernel with"):
            call()


def test_a_matrix_that_does_not_fit_is_told_before_any_work(monkeypatch):
    monkeypatch.setattr(base, "free_memory", lambda: 100)
    with pytest.raises(UsageError, match="3 x 3 rows with 2 outputs each"):
        Linear(X).dense()


def test_a_low_rank_kernel_is_solved_by_its_root():
    kernel, y = LowRankKernel(X.float()), zoo.normal(6)
    assert zoo.close(kernel.solve(y, 0.3).alpha, DenseKernel(kernel.dense()).solve(y, 0.3).alpha)
    assert kernel.solve(y, 0.3).relative_residual < 1e-12
    with pytest.raises(UsageError, match="above 0"):
        kernel.solve(y)


def test_the_face_names_what_is_public():
    assert all(
        getattr(face, name).__doc__
        for name in face.__all__
        if name not in {"LOSSES", "Backend", "Outputs", "Rate"}
    )
    classes = [name for name in face.__all__ if name[0].isupper()]
    ordered = sorted(classes, key=lambda name: (not name.isupper(), name))
    assert face.__all__ == [*ordered, *sorted(set(face.__all__) - set(classes))]
