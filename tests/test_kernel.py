"""The kernel operator: every backend against rows of J written out one by one, and the laws of J J^T."""

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import eigsh
from torch import Tensor, nn

import zoo
from tauspan.errors import MismatchError, NonFiniteError, UsageError
from tauspan.kernel import DenseKernel, TangentKernel
from tauspan.kernel.tiles import BACKENDS

OUTPUTS = ("all", "sum", "trace", 1, ("signs", 3))


class Pooled(nn.Module):
    """The mean over positions of a model's outputs."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, ids: Tensor) -> Tensor:
        return self.inner(ids).mean(1)


def example(name):
    found = getattr(zoo, name)()
    if name == "tied":
        return Pooled(found.model), found.args[0]
    return found.model, found.args[0] if found.args else dict(found.kwargs)


MODELS = ("mlp", "conv", "tied", "bert", "gpt2", "llama", "vit", "clip")


@pytest.mark.parametrize("outputs", OUTPUTS, ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_backends_agree(name, outputs):
    model, x = example(name)
    plain = TangentKernel(model, x, outputs=outputs, backend="contraction").dense()
    for backend in BACKENDS:
        found = TangentKernel(model, x, outputs=outputs, backend=backend, batch_size=2).dense()
        assert zoo.close(found, plain), backend


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_kernel_between_two_sets_of_rows(backend):
    model, x = example("mlp")
    whole = TangentKernel(model, x, backend="contraction").dense()
    part = TangentKernel(model, x[:2], x[1:], backend=backend, batch_size=3)
    assert part.shape == (6, 12)
    assert zoo.close(part.dense(), whole[:6, 3:])
    assert zoo.close(part.transposed().dense(), whole[3:, :6])


@pytest.mark.parametrize("params", ["last:1", "*bias", ["0.weight", "4.bias"]])
def test_chosen_parameters_alone_count(params):
    model, x = example("mlp")
    plain = TangentKernel(model, x, params=params, backend="contraction")
    assert zoo.close(TangentKernel(model, x, params=params).dense(), plain.dense())
    every = TangentKernel(model, x)
    rest = [name for name, _ in model.named_parameters() if name not in plain.tangent.tau]
    assert zoo.close(plain.dense() + TangentKernel(model, x, params=rest).dense(), every.dense())


@pytest.mark.parametrize("outputs", ["all", "sum", 2, ("signs", 0)], ids=str)
def test_push_and_pullback_are_adjoint_and_make_the_kernel(outputs):
    model, x = example("bert")
    kernel = TangentKernel(model, x, outputs=outputs, batch_size=2)
    alpha = zoo.normal(kernel.shape[0], seed=4)
    tau = zoo.direction(kernel.tangent)
    pulled = kernel.pullback(alpha)
    left = sum(float((tau[name] * pulled[name]).sum()) for name in tau)
    assert left == pytest.approx(float(kernel.push(tau) @ alpha), rel=1e-12)
    assert zoo.close(kernel.push(pulled), kernel.dense() @ alpha)


def test_products_need_no_matrix():
    model, x = example("conv")
    for outputs in OUTPUTS:
        kernel = TangentKernel(model, x, outputs=outputs)
        vectors = zoo.normal(kernel.shape[1], 3)
        found, single = kernel.matmat(vectors), kernel.matvec(vectors[:, 0])
        assert kernel._matrix is None
        assert zoo.close(found, kernel.dense() @ vectors)
        assert zoo.close(single, found[:, 0])


def test_rows_blocks_and_diagonal_are_parts_of_the_matrix():
    model, x = example("gpt2")
    kernel = TangentKernel(model, x, batch_size=2)
    whole = TangentKernel(model, x, backend="contraction").dense()
    assert zoo.close(kernel.rows([9, 0, 9]), whole[[9, 0, 9]])
    assert zoo.close(kernel.diag(), whole.diagonal())
    found = kernel.block([2, 0], [1])
    assert zoo.close(found, whole.view(3, 8, 3, 8)[[2, 0]][:, :, [1]].reshape(16, 8))


def test_symmetric_and_positive_semi_definite():
    model, x = example("vit")
    matrix = TangentKernel(model, x).dense()
    assert torch.equal(matrix, matrix.T)
    assert float(torch.linalg.eigvalsh(matrix)[0]) > -1e-12 * float(matrix.trace())


def test_batches_do_not_change_the_numbers():
    model, x = example("bert")
    kernels = [TangentKernel(model, x, batch_size=size).dense() for size in (1, 2, 3)]
    apart = [{key: value[[row]] for key, value in x.items()} for row in range(3)]
    kernels.append(TangentKernel(model, apart).dense())
    for other in kernels[1:]:
        assert zoo.close(other, kernels[0], 1e-12)


def test_a_linear_model_has_the_gram_matrix_of_its_inputs():
    x = zoo.normal(4, 3)
    kernel = TangentKernel(nn.Linear(3, 2, bias=False).double(), x)
    assert zoo.close(kernel.dense(), torch.kron(x @ x.T, torch.eye(2, dtype=torch.float64)))


def test_forgotten_cross_terms_would_show():
    model, ids = example("tied")
    whole = TangentKernel(model, ids).dense()
    # the two uses of the table as if they were two tables
    untied = Pooled(zoo.Tied(tied=False)).double().eval()
    untied.inner.load_state_dict(model.inner.state_dict())
    assert not zoo.close(TangentKernel(untied, ids).dense(), whole, 1e-3)


def test_scipy_solves_with_it():
    model, x = example("mlp")
    kernel = TangentKernel(model, x)
    values, _ = eigsh(kernel.linear_operator(), 3)
    assert np.allclose(np.sort(values), torch.linalg.eigvalsh(kernel.dense())[-3:].numpy())


def test_float32_models_accumulate_in_float64():
    model, x = example("mlp")
    exact = TangentKernel(model, x).dense()
    found = TangentKernel(model.float(), x.float()).dense()
    assert found.dtype == torch.float64
    assert zoo.close(found, exact, 1e-5)


def test_one_row_and_one_output():
    model, x = example("mlp")
    kernel = TangentKernel(model, x[:1], outputs=0)
    assert kernel.shape == (1, 1)
    assert float(kernel.dense()) == pytest.approx(float(kernel.diag()))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": torch.empty(0, 4)}, UsageError, "needs rows"),
        ({"x": torch.full((2, 4), float("nan"))}, NonFiniteError, "batch 0"),
        ({"outputs": 3}, UsageError, "outputs 0 to 2"),
        ({"outputs": "sun"}, UsageError, "'sum'"),
        ({"outputs": ("sign", 1)}, UsageError, "'signs', seed"),
        ({"outputs": torch.ones(2, 3)}, UsageError, r"\(5, 3\)"),
        ({"outputs": torch.full((5, 3), float("inf"))}, NonFiniteError, "loss"),
        ({"backend": "contraktion"}, UsageError, "'contraction'"),
        ({"batch_size": 0}, UsageError, "at least 1"),
        ({"params": "nothing.*"}, UsageError, "nothing"),
    ],
    ids=str,
)
def test_what_cannot_be(change, error, message):
    model, x = example("mlp")
    with pytest.raises(error, match=message):
        TangentKernel(model, **{"x": x, **change})


def test_calls_that_do_not_fit():
    model, x = example("mlp")
    kernel = TangentKernel(model, x)
    with pytest.raises(UsageError, match="15 rows"):
        kernel.pullback(torch.ones(4))
    with pytest.raises(UsageError, match=r"give \(15, k\)"):
        kernel.matvec(torch.ones(4))
    with pytest.raises(UsageError, match="rows 0 to 14"):
        kernel.rows([15])
    with pytest.raises(UsageError, match="symmetric"):
        TangentKernel(model, x, x[:2]).diag()
    with pytest.raises(UsageError, match="trace kernel"):
        TangentKernel(model, x, outputs="trace").pullback(torch.ones(5))
    with pytest.raises(MismatchError, match="one vector"):
        TangentKernel(nn.Conv1d(4, 2, 1).double(), x[:, :, None])


def test_a_matrix_as_a_kernel():
    kernel = DenseKernel(torch.arange(16.0).view(4, 4), outputs=2)
    assert kernel.samples == 2
    assert torch.equal(kernel.rows([1]), kernel.dense()[[1]])
    assert torch.equal(kernel.matmat(torch.eye(4)), kernel.dense())
    with pytest.raises(UsageError, match="multiples"):
        DenseKernel(torch.ones(3, 4), 2)
    with pytest.raises(UsageError, match="no parameters"):
        kernel.pullback(torch.ones(4))
    with pytest.raises(UsageError, match="no parameters"):
        kernel.push({})
