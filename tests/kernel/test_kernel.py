"""The kernel operator: every backend against rows of J written out one by one, and the laws of J J^T."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy.sparse.linalg import eigsh
from torch import Tensor, nn

from helpers import zoo
from helpers.kernels import shared
from helpers.runs import script_environment
from tauspan.core.errors import MismatchError, ModelError, NonFiniteError, StoreError, UsageError
from tauspan.kernel import DenseKernel, TangentKernel
from tauspan.kernel.rows import contract, layers, tiles
from tauspan.kernel.rows.jacobian import Jacobian
from tauspan.kernel.rows.layers import pieces
from tauspan.kernel.rows.pieces import Lookup, Product, written
from tauspan.kernel.rows.selector import selector
from tauspan.kernel.rows.tiles import BACKENDS
from tauspan.kernel.solvers import base

OUTPUTS = ("all", "contrast", "sum", "trace", 1, ("signs", 3))


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


class Attending(nn.Module):
    """Attention of the first position over others: its query, key and value weights are parts of one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x[:, :1], x[:, 1:], 2 * x[:, 1:], need_weights=False)[0][:, 0]


SMALL, LARGE = ("mlp", "conv", "tied"), ("bert", "gpt2", "llama", "vit", "clip")


@pytest.mark.thinned(12)
@pytest.mark.parametrize("outputs", OUTPUTS, ids=str)
@pytest.mark.parametrize("name", SMALL)
def test_backends_agree(name, outputs):
    model, x = example(name)
    plain = TangentKernel(model, x, outputs=outputs, backend="contraction").dense()
    for backend in BACKENDS:
        found = TangentKernel(model, x, outputs=outputs, backend=backend, batch_size=2).dense()
        assert zoo.close(found, plain), backend


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name != "bert" else ()) for name in LARGE]
)
def test_backends_agree_on_transformers(name):
    model, x = example(name)
    plain = TangentKernel(model, x, backend="contraction")
    kernel = TangentKernel(model, x, backend="structured", batch_size=2)
    assert zoo.close(kernel.diag(), plain.dense().diagonal())
    for backend in BACKENDS:
        assert zoo.close(TangentKernel(model, x, backend=backend, batch_size=2).dense(), plain.dense()), (
            backend
        )
    vector = zoo.normal(plain.shape[0])
    assert zoo.close(TangentKernel(model, x).matvec(vector), plain.dense() @ vector)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_kernel_between_two_sets_of_rows(backend):
    model, x = example("mlp")
    whole = TangentKernel(model, x, backend="contraction").dense()
    part = TangentKernel(model, x[:2], x[1:], backend=backend, batch_size=3)
    assert part.shape == (6, 12)
    assert zoo.close(part.dense(), whole[:6, 3:])
    assert zoo.close(part.T.dense(), whole[3:, :6])


@pytest.mark.parametrize("params", ["last:1", "*bias", ["0.weight", "4.bias"]])
def test_chosen_parameters_alone_count(params):
    model, x = example("mlp")
    plain = TangentKernel(model, x, params=params, backend="contraction")
    assert zoo.close(TangentKernel(model, x, params=params).dense(), plain.dense())
    every = TangentKernel(model, x)
    rest = [name for name, _ in model.named_parameters() if name not in plain.tangent.tau]
    assert zoo.close(plain.dense() + TangentKernel(model, x, params=rest).dense(), every.dense())


@pytest.mark.parametrize(
    ("classes", "expected"),
    [(1, [1.0]), (2, [1, -1]), (3, [2, -4, 2]), (4, [1, -1, 1, -1])],
)
def test_a_contrast_is_centred_and_of_two_classes_the_margin(classes, expected):
    found = selector("contrast", 5, classes).weights
    wanted = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(found, (wanted / wanted.norm()).view(1, 1, classes))


@pytest.mark.thinned(3)
@pytest.mark.parametrize("outputs", ["all", "contrast", "sum", 2, ("signs", 0)], ids=str)
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
    model, x = example("mlp")
    for outputs in OUTPUTS:
        kernel = TangentKernel(model, x, outputs=outputs)
        vectors = zoo.normal(kernel.shape[1], 3)
        found, single = kernel.matmat(vectors), kernel.matvec(vectors[:, 0])
        assert kernel._matrix is None
        assert zoo.close(found, kernel.dense() @ vectors)
        assert zoo.close(single, found[:, 0])


@pytest.mark.parametrize("name", ["mlp", "bert", "gpt2", "tied"])
def test_recorded_passes_give_the_same_products(name):
    model, x = example(name)
    kernel = TangentKernel(model, x, outputs="contrast" if name == "bert" else "all", batch_size=4)
    recorded = kernel.recorded()
    assert recorded is not kernel
    assert recorded.left.tapes
    vectors = zoo.normal(kernel.shape[1], 2)
    assert zoo.close(recorded.matmat(vectors), kernel.matmat(vectors))
    assert kernel._matrix is None
    kernel.dense()
    assert kernel.recorded() is kernel


def test_products_of_a_module_without_a_recorded_pass_run_it_anew():
    class Written(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(3, 2)

        def forward(self, x):
            out = torch.zeros(len(x), 2, dtype=x.dtype)
            out[:] = self.inner(x)  # one pass cannot carry this
            return out

    with pytest.warns(RuntimeWarning, match="cannot be carried through in one pass"):
        kernel = TangentKernel(Written().double(), zoo.normal(5, 3))
    assert kernel.recorded() is kernel


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


def test_parts_of_a_fused_weight_stay_factors():
    model, x = zoo.stirred(Attending()), zoo.normal(4, 5, 4)
    kernel = TangentKernel(model, x)
    found = pieces(kernel.left, [0], x[:1], {})
    fused = [piece for name, piece in found.items() if name.startswith("attention.in_proj_weight#")]
    assert [type(piece) for piece in fused] == [Product] * 3
    assert zoo.close(kernel.dense(), TangentKernel(model, x, backend="contraction").dense())


class Halves(nn.Module):
    """A weight whose halves are met by different operations, one of which has no factors."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(zoo.normal(6, 4))

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.weight.chunk(2)
        return torch.tanh(nn.functional.linear(x, first)) * torch.einsum("na,ba->nb", x, second)


def test_a_weight_in_two_ways_keeps_its_cross_terms():
    model, x = Halves(), zoo.normal(5, 4)
    plain = TangentKernel(model, x, backend="contraction").dense()
    assert zoo.close(TangentKernel(model, x, backend="structured", batch_size=2).dense(), plain)


def test_layers_with_positions_first_are_not_taken_for_rows(monkeypatch):
    """Attention turns (N, T) into (T, N): with T = N nothing but the numbers tells."""
    model, x = zoo.stirred(Attending()), zoo.normal(4, 5, 4)
    plain = TangentKernel(model, x, backend="contraction").dense()
    for rows in (2, 4):
        assert zoo.close(TangentKernel(model, x, batch_size=rows, backend="structured").dense(), plain)
    monkeypatch.setattr(layers, "_SMALL", 0)  # as for large layers, which go row by row and stay factors
    for rows in (2, 4):
        kernel = TangentKernel(model, x, batch_size=rows, backend="structured")
        with pytest.raises(ModelError, match="row"):
            pieces(kernel.left, list(range(rows)), x[:rows], {})
        assert zoo.close(kernel.dense(), plain)


# -- contractions ------------------------------------------------------------------------------------------------


def factors(n, inner, t, a, b, seed):
    return Product(zoo.normal(n, t, a, seed=seed), zoo.normal(n, inner, t, b, seed=seed + 1))


@pytest.mark.parametrize("rule", [contract._by_matrices, contract._by_positions, contract._add])
@pytest.mark.parametrize("chunk", [8, 1 << 20])
def test_contractions_agree_with_written_out_rows(rule, chunk, monkeypatch):
    monkeypatch.setattr(contract, "CHUNK", chunk)
    monkeypatch.setattr(contract, "PAIRS", chunk)
    monkeypatch.setattr(contract, "_STRIP", 2)
    left = [factors(3, 2, 3, 4, 6, seed=0), factors(2, 2, 3, 4, 6, seed=3)]
    right = [factors(3, 2, 2, 4, 6, seed=5)]
    x, y = (torch.cat([written(piece).flatten(0, 1) for piece in side]) for side in (left, right))
    total = torch.ones(12, 8, dtype=torch.float64)  # a part of a larger matrix, and added to what is there
    rule(total[1:11, 1:7], left, right)
    assert zoo.close(total[1:11, 1:7], x @ y.T + 1)
    own = torch.zeros(10, 10, dtype=torch.float64)
    rule(own, left, left)
    assert zoo.close(own.triu(), (x @ x.T).triu())
    assert zoo.close(contract.squares({"w": left}).flatten(), (x @ x.T).diagonal())


@pytest.mark.parametrize("shape", [(3, 5), (3, 0), (1, 1)])
def test_products_in_float32_are_the_ordinary_ones(shape, monkeypatch):
    monkeypatch.setattr(contract, "_LARGE", 1)
    x, y = torch.randn(shape), torch.randn(4, shape[1])
    assert torch.allclose(contract._times(x, y), x @ y.T, rtol=1e-5, atol=1e-6)


def test_lookups_add_up_where_a_row_looks_twice():
    places = torch.tensor([[0, 3, 3], [3, 1, 0]])
    left = Lookup(places, zoo.normal(2, 2, 3, 4), 5)
    right = Lookup(torch.tensor([[3], [0], [4]]), zoo.normal(3, 2, 1, 4, seed=3), 5)
    x, y = (written(piece).flatten(0, 1) for piece in (left, right))
    assert zoo.close(contract.product({"w": [left]}, {"w": [right]}, False), x @ y.T)
    assert zoo.close(contract.squares({"w": [left]}).flatten(), x.square().sum(1))


# -- tiles, files, processes -------------------------------------------------------------------------------------


def counted(monkeypatch):
    """The rows that are recorded from here on."""
    rows = []
    monkeypatch.setattr(
        tiles, "pieces", lambda side, places, *rest: rows.append(places) or pieces(side, places, *rest)
    )
    return rows


def test_rows_are_recorded_once_where_they_fit(monkeypatch):
    model, x = example("mlp")
    rows = counted(monkeypatch)
    TangentKernel(model, x, batch_size=2).dense()
    assert rows == [[0, 1], [0, 1], [2, 3], [4]]  # two rows first, to see how large they are


@pytest.mark.thinned(3)
@pytest.mark.parametrize(("name", "room"), [("mlp", 1), ("mlp", 5_000), ("bert", 20_000)])
def test_little_room_changes_nothing(name, room):
    model, x = example(name)
    kernel = TangentKernel(model, x, room=room, batch_size=2)
    found = kernel.rows([1]), kernel.dense()
    whole = TangentKernel(model, x).dense()
    assert zoo.close(found[0], whole[[1]], 1e-12)
    assert zoo.close(found[1], whole, 1e-12)


def test_a_second_run_takes_up_finished_blocks(tmp_path, monkeypatch):
    model, x = example("mlp")
    made = TangentKernel(model, x, folder=tmp_path).dense()
    files = sorted(tmp_path.rglob("block-*.safetensors"))
    assert len(files) == 6  # 5 rows in 3 stretches, one half
    files[0].unlink()
    rows = counted(monkeypatch)
    again = TangentKernel(model, x, folder=tmp_path, batch_size=3, room=1)
    assert torch.equal(again.dense(), made)
    assert rows == [[0, 1], [0, 1]]  # the first block alone
    assert sorted(tmp_path.rglob("block-*.safetensors")) == files


@pytest.mark.parametrize(
    "change",
    [{"x": zoo.normal(5, 4, seed=2)}, {"outputs": "sum"}, {"params": "last:1"}, {"backend": "products"}],
    ids=lambda change: next(iter(change)),
)
def test_another_kernel_has_files_of_its_own(change, tmp_path):
    model, x = example("mlp")
    TangentKernel(model, x, folder=tmp_path).dense()
    other = {"x": x} | change
    found = TangentKernel(model, **other, folder=tmp_path).dense()
    assert zoo.close(found, TangentKernel(model, **other, batch_size=2).dense(), 1e-12)
    assert len(list(tmp_path.glob("*/layout.json"))) == 2
    with torch.no_grad():
        model[0].weight[0, 0] += 1
    TangentKernel(model, x, folder=tmp_path).dense()
    assert len(list(tmp_path.glob("*/layout.json"))) == 3


@pytest.mark.parametrize("name", ["block-0-0.safetensors", "layout.json"])
def test_damaged_files_are_refused(name, tmp_path):
    model, x = example("mlp")
    kernels = [TangentKernel(model, x, folder=tmp_path) for _ in range(3)]
    kernels[0].dense()
    file = next(tmp_path.rglob(name))
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(StoreError, match=name):
        kernels[1].dense()
    if name.startswith("block"):
        save_file({"block": torch.zeros(2, 2)}, file)
    else:
        file.write_text(whole.decode().replace("2,", "-2,"))
    with pytest.raises(StoreError, match=name):
        kernels[2].dense()


TWO = """
import os, sys
from pathlib import Path
from safetensors.torch import save_file
from helpers.kernels import shared
from tauspan.core.errors import MismatchError
from tauspan.core.processes import world
rank, folder = os.environ["RANK"], Path(sys.argv[1])
with world() as processes:
    found = {name: kernel.dense(processes) for name, kernel in shared(folder).items()}
save_file(found, folder / f"{rank}.safetensors")
kernel = shared()["rows"]
kernel.left.batches[0][0, 0] += float(rank)
try:
    with world() as processes:
        kernel.dense(processes)
except MismatchError as error:
    (folder / f"{rank}.txt").write_text(str(error))
"""


@pytest.mark.slow
def test_two_processes_share_the_blocks(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", TWO, str(tmp_path)], env=script_environment() | address | {"RANK": rank}
        )
        for rank in "01"
    ]
    assert [one.wait(240) for one in started] == [0, 0]
    matrices = [load_file(tmp_path / f"{rank}.safetensors") for rank in range(2)]
    for name, kernel in shared().items():
        assert torch.equal(matrices[0][name], matrices[1][name])
        assert zoo.close(matrices[0][name], kernel.dense(), 1e-12), name
    assert (tmp_path / "0.txt").read_text() == (tmp_path / "1.txt").read_text()
    assert "disagree about x (" in (tmp_path / "1.txt").read_text()


MEMORY = """
import json, torch
from benchmarks.timing import growth
from torch import nn
from tauspan.kernel import TangentKernel
torch.manual_seed(0)
net = nn.Sequential(nn.Linear(64, 512), nn.Tanh(), nn.Linear(512, 512), nn.Tanh(), nn.Linear(512, 2))
x = torch.randn(2000, 64)
TangentKernel(net, x[:4]).dense()
kernel = TangentKernel(net, x, room=ROOM)
print(json.dumps([growth(lambda: kernel.dense()), 8 * kernel.shape[0] ** 2 / 2**20]))
"""


@pytest.mark.thinned(3)
@pytest.mark.slow
@pytest.mark.parametrize("room", [8, 32, 128])
def test_a_kernel_of_2000_rows_stays_within_its_memory(room):
    script = MEMORY.replace("ROOM", str(room * 2**20))
    root = str(Path(__file__).parents[2])
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    grown, matrix = json.loads(done.stdout)
    assert matrix < grown < 1.5 * (matrix + 1.25 * room)


# -- the matrix as a whole ---------------------------------------------------------------------------------------


def test_the_whole_matrix_is_solved_with():
    model, x = example("mlp")
    kernel = TangentKernel(model, x)
    matrix, y = kernel.dense(), zoo.normal(15)
    shifted = matrix + 0.5 * torch.eye(15, dtype=torch.float64)
    assert zoo.close(shifted @ kernel.solve(y, 0.5).alpha, y)
    assert kernel.logdet(0.5).value == pytest.approx(float(torch.logdet(shifted)))
    assert kernel.trace().value == pytest.approx(float(matrix.trace()))
    assert kernel.trace().exact
    found = kernel.eigsh(2)
    assert zoo.close(matrix @ found.vectors, found.vectors * found.values, 1e-6)
    assert zoo.close(found.values, torch.linalg.eigvalsh(matrix)[-2:].flip(0), 1e-9)


def test_what_has_no_solution():
    model, x = example("mlp")
    kernel = TangentKernel(model, torch.cat([x, x[:1]]), outputs="sum")  # a row is there twice
    with pytest.raises(UsageError, match="twice"):
        kernel.solve(torch.ones(6))
    with pytest.raises(UsageError, match="ridge=-1"):
        kernel.solve(torch.ones(6), -1.0)
    with pytest.raises(NonFiniteError, match="nan"):
        kernel.solve(torch.full((6,), float("nan")), 1.0)
    with pytest.raises(UsageError, match="15"):
        TangentKernel(model, x, x[:2]).solve(torch.ones(15), 1.0)
    with pytest.raises(UsageError):
        kernel.eigsh(7)
    assert kernel.solve(torch.ones(6), 1e-3).alpha.isfinite().all()


def test_nan_in_the_weights_is_named():
    model, x = example("mlp")
    with torch.no_grad():
        model[2].weight[0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match=r"every row.*2\.weight"):
        TangentKernel(model, x).dense()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (torch.ones(2, 9), r"does not take the data, whose first batch is \(2, 9\) torch.float32"),
        (torch.ones(2, 4, dtype=torch.int64), r"\(2, 4\) torch.int64"),
    ],
)
def test_rows_that_the_model_does_not_take_are_named(rows, message):
    with pytest.raises(MismatchError, match=message):
        TangentKernel(torch.nn.Linear(4, 3), rows)


def test_more_outputs_than_memory_is_told_before_any_work(monkeypatch):
    model, x = example("mlp")
    kernel = TangentKernel(model, x)
    monkeypatch.setattr(base, "free_memory", lambda: 1000)
    with pytest.raises(UsageError, match=r"5 x 5 rows with 3 outputs each.*outputs='sum'.*matmat"):
        kernel.dense()


def test_nothing_chosen_is_an_empty_block():
    model, x = example("mlp")
    for backend in BACKENDS:
        kernel = TangentKernel(model, x, backend=backend)
        assert kernel.block([], [1]).shape == (0, 3)
        assert kernel.block([1], []).shape == (3, 0)
        assert kernel.rows([]).shape == (0, 15)


def test_scipy_solves_with_it():
    model, x = example("mlp")
    kernel = TangentKernel(model, x)
    values, _ = eigsh(kernel.to_scipy(), 3)
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
        ({"outputs": ("signs", "a")}, UsageError, "whole number as seed"),
        ({"outputs": True}, UsageError, "`outputs` is True"),
        ({"outputs": torch.ones(2, 3)}, UsageError, r"\(5, 3\)"),
        ({"outputs": torch.full((5, 3), float("inf"))}, NonFiniteError, "loss"),
        ({"backend": "contraktion"}, UsageError, "'contraction'"),
        ({"batch_size": 0}, UsageError, "at least 1"),
        ({"room": 0}, UsageError, "room=0"),
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
    with pytest.raises(UsageError, match="row 5 of a kernel with rows 0 to 4"):
        kernel.block([5], [0])
    with pytest.raises(UsageError, match="column -1 of"):
        kernel.block([0], [-1])
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


def test_the_check_of_a_kernel_writes_out_each_row_once(monkeypatch):
    seen, plain = [], Jacobian.plain_row

    def counted(self, *asked):
        seen.append(asked)
        return plain(self, *asked)

    monkeypatch.setattr(Jacobian, "plain_row", counted)
    net = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    TangentKernel(net, zoo.normal(6, 3)).dense()
    assert 2 <= len(seen) == len(set(seen)) <= 3
