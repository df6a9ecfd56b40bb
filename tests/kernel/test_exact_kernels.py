"""Kernels, caches and closed forms of modules whose rows could be mistaken are those of ordinary autograd's J."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import tauspan as ts
from helpers.kinds import MIXED, ROWS, X, kind, truth
from helpers.zoo import all_close, close
from tauspan.core.errors import MismatchError, ModelError, NonFiniteError, UsageError
from tauspan.models import restrict
from tauspan.tangent import linearize

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore::FutureWarning")


def entries(jacobian: Tensor) -> Tensor:
    return jacobian @ jacobian.T


@pytest.mark.thinned(10)
@pytest.mark.parametrize("name", ROWS)
def test_kernels_are_those_of_the_rows_of_j(name: str) -> None:
    j = truth(ROWS[name](), X).jacobian
    wanted, v = entries(j), torch.linspace(-1, 1, len(j), dtype=torch.float64)
    for backend, size in (("auto", 6), ("auto", 4), ("products", 4), ("contraction", 6)):
        kernel = ts.TangentKernel(ROWS[name](), X, backend=backend, batch_size=size)
        assert close(kernel.dense(), wanted), (backend, size)
    kernel = ts.TangentKernel(ROWS[name](), X, batch_size=4)
    assert close(kernel.diag(), wanted.diagonal())
    assert close(kernel.rows([3, len(j) - 1]), wanted[[3, len(j) - 1]])
    assert close(kernel.matvec(v), wanted @ v)
    assert close(kernel.push(kernel.pullback(v)), wanted @ v)
    assert close(ts.TangentKernel(ROWS[name](), X[:1]).dense(), entries(truth(ROWS[name](), X[:1]).jacobian))


@pytest.mark.parametrize("name", ROWS)
def test_layers_factors_alone_are_exact_or_refused_with_the_way_out(name: str) -> None:
    wanted = entries(truth(ROWS[name](), X).jacobian)
    try:
        found = ts.TangentKernel(ROWS[name](), X, backend="structured").dense()
    except ModelError as error:
        assert "backend='contraction'" in str(error)  # noqa: PT017 - which of the two is the model's affair
    else:
        assert close(found, wanted)


@pytest.mark.thinned(3)
@pytest.mark.parametrize("backend", ["auto", "contraction", "products"])
@pytest.mark.parametrize("name", MIXED)
def test_rows_that_depend_on_one_another_have_the_kernel_of_their_batch(name: str, backend: Any) -> None:
    wanted = entries(truth(MIXED[name](), X).jacobian)
    assert close(ts.TangentKernel(MIXED[name](), X, backend=backend).dense(), wanted)
    assert close(ts.TangentKernel(MIXED[name](), X, backend=backend).diag(), wanted.diagonal())
    with pytest.raises(UsageError, match=r"depend on one another.*batch_size=6"):
        ts.TangentKernel(MIXED[name](), X, backend=backend, batch_size=4)
    assert close(ts.TangentKernel(MIXED[name](), X, backend=backend, batch_size=6).dense(), wanted)
    if name != "contrastive":  # which has as many outputs as rows
        parts = [truth(MIXED[name](), rows).jacobian for rows in (X[:4], X[4:])]
        found = ts.TangentKernel(MIXED[name](), [X[:4], X[4:]], backend=backend).dense()
        assert close(found, entries(torch.cat(parts)))


class Longest(nn.Module):
    """Texts cut at the longest of their batch, and a mean with the padding."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.out = nn.Embedding(9, 3), nn.Linear(3, 2)

    def forward(self, ids: Tensor) -> Tensor:
        longest = int((ids > 0).sum(1).max())
        return self.out(self.words(ids[:, :longest]).mean(1).tanh())


class Anybody(nn.Module):
    """A second layer for all rows if any row asks for it."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(6, 2), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.one(x) + (self.two(x) if bool((x[:, 0] > 0).any()) else 0)


def lengths(*counts: int) -> Tensor:
    """Texts of so many words, filled up with 0."""
    ids = torch.randint(1, 9, (len(counts), 6), generator=torch.Generator().manual_seed(0))
    return ids.masked_fill(torch.arange(6) >= torch.tensor(counts)[:, None], 0)


@pytest.mark.parametrize("backend", ["auto", "contraction", "products"])
@pytest.mark.parametrize(
    ("made", "x"),
    [
        (Longest, lengths(1, 1, 2, 2, 3, 3, 4, 4)),  # whose last row is the same alone
        (Longest, lengths(2, 2, 2, 2, 1, 2, 4, 4)),  # rows agree in the first batch
        (Anybody, X.double()[X[:, 0].argsort()]),
    ],
)
def test_rows_that_depend_on_another_one_are_noticed_wherever_it_is(
    made: Any, x: Tensor, backend: Any
) -> None:
    torch.manual_seed(0)
    module = made().double()
    with pytest.raises(UsageError, match="depend on one another"):
        ts.TangentKernel(module, x, backend=backend, batch_size=4)
    wanted = entries(truth(module, x).jacobian)
    assert close(ts.TangentKernel(module, x, backend=backend, batch_size=len(x)).dense(), wanted)


@pytest.mark.parametrize("name", ["one expert for each row", "experts put back", "routed"])
def test_experts_without_rows_need_no_check(name: str) -> None:
    wanted = entries(truth(ROWS[name](), X).jacobian)
    assert close(ts.TangentKernel(ROWS[name](), X, batch_size=2, check="off").dense(), wanted)


def test_rows_that_mix_in_one_batch_alone_are_noticed_there() -> None:
    """An expert that takes three rows at most, and gives the others none: only full batches mix."""

    def crowded(s: Any, x: Tensor) -> Tensor:
        order = x[:, 0].argsort(descending=True)[:3]
        gate = torch.zeros(len(x), 1, dtype=x.dtype).index_fill(0, order, 1.0)
        mixed = s.a(x) if len(x) < 4 or bool((x[:, 1] < 9).all()) else s.a(x) - s.a(x).mean(0)
        return s.o(mixed.tanh() * gate) if bool((x[:, 1] < 9).all()) else s.o(mixed.tanh())

    full = torch.cat([X[:5], X[5:] + 9])
    wanted = entries(
        torch.cat(
            [
                truth(kind(lambda s, x: s.o(s.a(x).tanh())), X[:2]).jacobian,
                truth(kind(crowded), full).jacobian,
            ]
        )
    )
    module = kind(lambda s, x: s.o(s.a(x).tanh()) if len(x) < 4 else crowded(s, x))
    assert close(ts.TangentKernel(module, [X[:2], full]).dense(), wanted)


# -- rows in the middle of a later batch that depend on others -------------------------------------------------------


def capacity(s: Any, x: Tensor) -> Tensor:
    """An expert that takes one row, the first that asks for it; the others go without."""
    asking = x[:, :1] > 1
    return s.o(s.a(x).tanh()) + asking * (asking.cumsum(0) == 1) * s.o(s.w(x).tanh())


def repeats(s: Any, x: Tensor) -> Tensor:
    """A row that has been there before is left out."""
    before = torch.stack([(row == x[:n]).all(1).any() for n, row in enumerate(x)])
    return s.o(s.a(x).tanh()) * ~before[:, None]


def through(s: Any, x: Tensor) -> Tensor:
    """The mean of the rows that ask for it, for the gradient alone: no output shows it."""
    mean = (s.a(x) * (x[:, :1] > 1)).mean(0) * (x[:, :1] > 1)
    return s.o(s.w(x) + mean - mean.detach())


COUPLED: dict[str, Any] = {
    "the row before": lambda s, x: s.o(s.a(x) + (x[:, :1] > 1) * torch.cat([x[:1] * 0, s.a(x)[:-1].tanh()])),
    "capacity": capacity,
    "repeats": repeats,
    "straight through": through,
    "a gate of 0": lambda s, x: s.o(s.a(x) + (x[:, :1] > 1) * s.g * s.w(x).mean(0)),
}


def coupled(name: str) -> nn.Module:
    return kind(COUPLED[name], g=nn.Parameter(torch.zeros(1)))


def middle() -> Tensor:
    """Sixteen rows; 9, 10 and 11 are alike, and the only ones that depend on others."""
    x = torch.rand(16, 6, generator=torch.Generator().manual_seed(2)).double()
    x[9:12, 0], x[10] = 2.0, 0.0
    x[10], x[11] = x[9], x[9]
    return x


@pytest.mark.thinned(9)
@pytest.mark.parametrize("backend", ["auto", "contraction", "products", "structured"])
@pytest.mark.parametrize("name", COUPLED)
def test_rows_in_the_middle_of_a_later_batch_have_the_kernel_of_their_batch(name: str, backend: Any) -> None:
    x = middle()
    batches = [x[:8], x[8:]]
    wanted = entries(torch.cat([truth(coupled(name), rows).jacobian for rows in batches]))
    apart = entries(truth(coupled(name), x[:1]).jacobian)
    assert close(apart, wanted[:2, :2])
    kernel = lambda: ts.TangentKernel(coupled(name), batches, backend=backend)  # noqa: E731
    at = torch.tensor([20, 21, 24, 25])
    assert close(kernel().block([10, 12], [10, 12]), wanted[at[:, None], at])
    assert close(kernel().rows([20, 23, 26]), wanted[[20, 23, 26]])
    assert close(kernel().dense(), wanted)
    assert close(kernel().diag(), wanted.diagonal())
    right = ts.TangentKernel(coupled(name), x[:8], batches[1:], backend=backend)
    assert close(right.dense(), wanted[:16, 16:])
    alpha = kernel().solve(torch.ones(32), 1.0).alpha
    assert close(wanted @ alpha + alpha, torch.ones(32, dtype=torch.float64))


@pytest.mark.thinned(7)
@pytest.mark.parametrize("backend", ["auto", "products"])
@pytest.mark.parametrize("size", [8, 5, 4, 2])
@pytest.mark.parametrize("name", COUPLED)
def test_a_kernel_that_would_depend_on_the_batch_size_is_refused(name: str, size: int, backend: Any) -> None:
    with pytest.raises(UsageError, match=r"depend on one another.*batch_size=16.*list of batches"):
        ts.TangentKernel(coupled(name), middle(), backend=backend, batch_size=size)
    whole = ts.TangentKernel(coupled(name), middle(), backend=backend, batch_size=16)
    assert close(whole.dense(), entries(truth(coupled(name), middle()).jacobian))


# -- batches that take a parameter apart in different ways ------------------------------------------------------------

PARTED: dict[str, Any] = {
    "rows of a table": lambda s, x: s.o(x) + s.t[(x[:, 0] > 0).long()],
    "a slice of a table": lambda s, x: s.o(x) + s.t[int(x[0, 0] > 0)],
    "a slice of another length": lambda s, x: s.o(x) + s.t[: 1 + int(x[0, 0] > 0)].sum(0),
    "a slice of another order": lambda s, x: (
        F.linear(x[:, :2], s.t[:2] if bool(x[0, 0] > 0) else s.t[:2].T) * s.t[2]
    ),
}


@pytest.mark.thinned(9)
@pytest.mark.parametrize("backend", ["auto", "structured"])
@pytest.mark.parametrize("name", PARTED)
def test_batches_may_take_a_parameter_apart_in_different_ways(name: str, backend: Any) -> None:
    x = torch.randn(9, 6, generator=torch.Generator().manual_seed(1)).double()
    for size in (1, 4) if name == "rows of a table" else (1,):
        make = lambda: kind(PARTED[name], t=nn.Parameter(torch.arange(6.0).view(3, 2) + 1))  # noqa: E731
        batches = [x[low : low + size] for low in range(0, 9, size)]
        wanted = entries(torch.cat([truth(make(), rows).jacobian for rows in batches]))
        for check in ("auto", "off"):
            kernel = lambda **k: ts.TangentKernel(make(), batches, backend=backend, check=check, **k)  # noqa: B023, E731
            assert close(kernel().dense(), wanted)
            assert close(kernel(room=1).dense(), wanted)
            assert close(kernel().diag(), wanted.diagonal())
            assert close(kernel().rows([1, 16]), wanted[[1, 16]])
            assert close(kernel().block([0, 8], [1]), wanted[[0, 1, 16, 17], 2:4])
            right = ts.TangentKernel(make(), batches, batches[:2], backend=backend, check=check)
            assert close(right.dense(), wanted[:, : 4 * size])


@pytest.mark.thinned(3)
@pytest.mark.parametrize("kind_of_cache", ["factors", "primal"])
@pytest.mark.parametrize("name", [*ROWS, *MIXED])
def test_caches_give_autograds_tangents_and_gradients(name: str, kind_of_cache: Any) -> None:
    make = {**ROWS, **MIXED}[name]
    wanted, lin = truth(make(), X), linearize(make())
    try:
        cache = lin.cache([X], kind_of_cache)
    except ModelError as error:
        assert "cannot be cached" in str(error)  # noqa: PT017
        cache = lin.cache([X])  # auto takes another kind, exactly
    assert close(cache[0].cell.push(wanted.tau), wanted.tangent)
    assert all_close(cache[0].cell.pull(wanted.weights), wanted.pulled)


def test_a_cache_of_a_base_that_was_changed_past_autograd_is_refused() -> None:
    module = kind(lambda s, x: s.o(s.a(x).tanh()))
    cache = linearize(module).cache([X], "factors")
    cache[0]()
    module.a.weight.data.mul_(1.5)  # no version is counted
    with pytest.raises(ts.BaseMismatchError, match="changed since"):
        cache[0]()


# -- what the rows are given as --------------------------------------------------------------------------------------


class Two(nn.Module):
    """A module of two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(6, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.outer(self.inner(x).tanh() * mask[:, None])


MASK = (X[:, 0] > 0).double() + 0.5
BATCHES: dict[str, Any] = {
    "tuple": (X, MASK),
    "dict": {"x": X, "mask": MASK},
    "dict, other order": {"mask": MASK, "x": X},
    "list of tuples": [(X[:4], MASK[:4]), (X[4:], MASK[4:])],
    "list of dicts": [{"x": X[:4], "mask": MASK[:4]}, {"x": X[4:], "mask": MASK[4:]}],
    "data set": TensorDataset(X, MASK),
    "loader": DataLoader(TensorDataset(X, MASK), batch_size=4),
    "arrays": (X.numpy(), MASK.numpy()),
}


@pytest.mark.parametrize("name", BATCHES)
def test_rows_may_be_given_in_any_form_that_the_module_takes(name: str) -> None:
    net = Two().double()
    wanted = entries(truth(net, X, MASK).jacobian)
    assert close(ts.TangentKernel(net, BATCHES[name]).dense(), wanted)
    assert close(ts.TangentKernel(net, BATCHES[name], batch_size=4, backend="products").dense(), wanted)


def test_a_plain_module_of_one_input_takes_what_a_loader_gives_it() -> None:
    net = kind(lambda s, x: s.o(s.a(x)))
    wanted = ts.TangentKernel(net, X).dense()
    for rows in (TensorDataset(X), DataLoader(TensorDataset(X), batch_size=2), [X[:2], X[2:]], X.numpy()):
        assert close(ts.TangentKernel(net, rows).dense(), wanted)

    class Plain(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)

    labels = torch.zeros(6)
    with pytest.raises(MismatchError, match=r"holds 2 inputs.*takes 1.*labels"):
        ts.TangentKernel(Plain(6, 2).double(), DataLoader(TensorDataset(X, labels)))
    loader = DataLoader(TensorDataset(X, labels), batch_size=3)
    ts.TangentKernel(Plain(6, 2).double(), [batch[0] for batch in loader]).dense()


@pytest.mark.parametrize("rows", ["text", 3, [], torch.zeros(0, 6)])
def test_what_holds_no_rows_is_refused(rows: Any) -> None:
    with pytest.raises(UsageError, match=r"needs rows|is wanted"):
        ts.TangentKernel(nn.Linear(6, 2).double(), rows)


def test_outputs_that_are_no_vector_are_refused_with_the_way_to_one() -> None:
    class Flat(nn.Module):
        def __init__(self, shape: tuple[int, ...]) -> None:
            super().__init__()
            self.inner, self.shape = nn.Linear(6, 4), shape

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x).view(len(x), *self.shape) if self.shape else self.inner(x).sum(1)

    with pytest.raises(MismatchError, match=r"\(6, 2, 2\) for 6 rows.*flatten"):
        ts.TangentKernel(Flat((2, 2)).double(), X)
    with pytest.raises(MismatchError, match=r"\(6,\) for 6 rows.*unsqueeze"):
        ts.TangentKernel(Flat(()).double(), X)
    ts.TangentKernel(nn.Sequential(Flat((2, 2)), nn.Flatten()).double(), X).dense()
    ts.TangentKernel(nn.Sequential(Flat(()), nn.Unflatten(0, (-1, 1))).double(), X).dense()


# -- outputs that are no numbers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
@pytest.mark.parametrize("check", ["auto", "off"])
def test_a_row_without_a_finite_output_is_named_and_can_be_left_out(number: float, check: Any) -> None:
    x = X.clone()
    x[2, 0] = 9.0
    module = kind(lambda s, x: s.o(s.a(x)).masked_fill(x[:, :1] > 5, number))
    rest = [0, 1, 3, 4, 5]
    wanted = entries(truth(module, x[rest]).jacobian)
    for backend in ("auto", "contraction", "products", "structured"):
        for data in (x, [x[:2], x[2:]]):
            with pytest.raises(NonFiniteError, match=r"row 2 of the data.*leave it out"):
                ts.TangentKernel(module, data, backend=backend, check=check).dense()
            with pytest.raises(NonFiniteError, match="row 2 of the data"):
                ts.TangentKernel(module, data, backend=backend, check=check).diag()
        assert close(ts.TangentKernel(module, x[rest], backend=backend, check=check).dense(), wanted)


# -- closed forms ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in ROWS if "time first" in name or "query" in name])
def test_a_closed_form_moves_the_tangent_model_as_its_certificate_says(name: str) -> None:
    labels = torch.tensor([0, 1, 1, 0, 1, 0])
    data = {"train": (X, labels), "validation": (X, labels), "test": (X, labels)}
    task = ts.Task.from_tensors("toy", ["a", "b"], **data)
    fitted = ts.closed_form(ts.load(ROWS[name]()), task, ridge=0.1)
    kernel = fitted.kernel
    assert close(kernel.push(fitted.vector), kernel.dense() @ fitted.solution.alpha, 1e-5)
    plain = ts.closed_form(ts.load(ROWS[name]()), task, ridge=0.1, backend="contraction")
    assert all_close(fitted.vector.deltas, plain.vector.deltas, 1e-5)


def test_a_factor_cache_takes_layers_that_compute_in_float32_inside_a_float64_model() -> None:
    """Gemma's norm: one plus a weight, in float32."""

    def make() -> nn.Module:
        return kind(lambda s, x: s.o((s.a(x).float() * (1 + s.q[0].float())).to(x.dtype).tanh()))

    wanted, lin = truth(make(), X), linearize(make())
    cell = lin.cache([X], "factors")[0].cell
    assert close(cell.push(wanted.tau), wanted.tangent, 1e-5)
    assert all_close(cell.pull(wanted.weights), wanted.pulled, 1e-5)


class Spread(nn.Module):
    """Tokens, an embedding, a convolution and linear layers with and without bias."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(9, 6)
        self.first, self.last = nn.Linear(6, 5), nn.Linear(5, 3, bias=False)
        self.pixels = nn.Conv2d(1, 2, 3)

    def forward(self, ids: Tensor) -> Tensor:
        seen = torch.tanh(self.first(self.table(ids)))
        drawn = self.pixels(seen.unsqueeze(1)).flatten(2).mean(2)
        return self.last(seen.mean(1)) + F.pad(drawn, (0, 1))


@pytest.mark.parametrize("space", ["lora:2", "singular:2", "masks"])
@pytest.mark.parametrize("backend", ["auto", "structured"])
def test_a_kernel_in_a_small_space_is_that_of_its_own_rows(space: str, backend: Any) -> None:
    module, ids = Spread().double(), torch.randint(0, 9, (7, 5), generator=torch.Generator().manual_seed(1))
    masks = {name: torch.arange(p.numel()).view(p.shape) % 3 == 0 for name, p in module.named_parameters()}
    small = restrict(ts.load(module.eval()), masks if space == "masks" else space)
    wanted = entries(truth(small, ids).jacobian)
    for size in (7, 3):
        kernel = ts.TangentKernel(small, ids, backend=backend, batch_size=size)
        assert close(kernel.dense(), wanted), size
