"""Random modules: whatever they are made of, every answer is that of ordinary autograd, or a refusal."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import tauspan as ts
from helpers.kinds import truth
from helpers.zoo import all_close, close, normal
from tauspan.core.errors import TauspanError
from tauspan.tangent import linearize

ROWS, WIDTH = 4, 4
X = normal(ROWS, WIDTH, seed=5)
Step = tuple[str, int, int, int]


class Program(nn.Module):
    """Steps over a list of tensors, each of shape (N, 4); the last one, through a linear layer, is the output."""

    def __init__(self, steps: list[Step]) -> None:
        super().__init__()
        self.steps = steps
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.layers = nn.ModuleList([nn.Linear(WIDTH, WIDTH) for _ in range(3)])
            self.again = nn.ModuleList([self.layers[0]])  # the first under a second name
            self.norm, self.out = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 2)
            self.vectors = nn.ParameterList([nn.Parameter(0.5 * torch.randn(WIDTH)) for _ in range(3)])
            self.scale = nn.Parameter(torch.tensor(0.7))
            self.table = nn.Embedding(5, WIDTH, padding_idx=0)
        self.hidden = [self.layers[1].weight]
        self.double()
        self.hidden = [self.layers[1].weight]

    def forward(self, x: Tensor) -> Tensor:
        tensors = [x, self.layers[2](x).tanh()]
        for name, i, j, k in self.steps:
            a, b = tensors[i % len(tensors)], tensors[j % len(tensors)]
            tensors.append(STEPS[name](self, a, b, k))
        return self.out(torch.tanh(tensors[-1] + 0.1 * tensors[-2]))


def permutation(count: int, k: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(k))


def by_order(m: Program, a: Tensor, b: Tensor, k: int) -> Tensor:
    """Rows sorted, changed, and put back."""
    order = b.detach()[:, k % WIDTH].argsort()
    return m.layers[k % 3](a[order])[order.argsort()].tanh()


def in_place(m: Program, a: Tensor, b: Tensor, k: int) -> Tensor:
    c = a * 1.5
    c[:, k % WIDTH] += b[:, (k + 1) % WIDTH]
    c.clamp_(-3, 3)
    return c


def through_view(m: Program, a: Tensor, b: Tensor, k: int) -> Tensor:
    """Written through a view of its own memory."""
    c = a + b
    c.view(-1, 2).mul_(0.9)
    return c


def routed(m: Program, a: Tensor, b: Tensor, k: int) -> Tensor:
    chosen = b.detach()[:, 0] > 0
    out = torch.zeros_like(a)
    for place, layer in ((chosen, m.layers[0]), (~chosen, m.layers[k % 3])):
        rows = place.nonzero()[:, 0]
        out = out.index_add(0, rows, layer(a[rows]))
    return out


def attended(m: Program, a: Tensor, b: Tensor, k: int) -> Tensor:
    q, v = a.view(len(a), 2, 2), b.view(len(b), 2, 2)
    query = m.vectors[k % 3].view(1, 2, 2).expand(len(a), -1, -1) if k % 2 else q
    return F.scaled_dot_product_attention(query, q, v).flatten(1)


def expanded(m: Program, a: Tensor, b: Tensor, k: int) -> Tensor:
    """A layer on a parameter that is expanded to the rows."""
    return a * m.layers[k % 3](m.vectors[k % 3].expand(len(a), -1)).sigmoid()


def alone(m: Program, a: Tensor, b: Tensor, k: int) -> Tensor:
    """A layer on parameters alone, with as many rows as the batch has."""
    table = m.layers[k % 3](torch.stack([*m.vectors, m.vectors[0]])).tanh()
    return a @ table


def turned(m: Program, a: Tensor, b: Tensor, k: int) -> Tensor:
    """Time first: the rows are the second axis."""
    return m.layers[k % 3](torch.stack([a, b]))[k % 2].tanh()


def convolved(m: Program, a: Tensor, b: Tensor, k: int) -> Tensor:
    return F.conv1d(a[:, None], m.layers[k % 3].weight[:1, None, :3], padding=1)[:, 0]


def looked_up(m: Program, a: Tensor, b: Tensor, k: int) -> Tensor:
    """Never the padding row, which has a derivative and no gradient."""
    return a + m.table((b.detach().abs() * 2).long().clamp(1, 4)).mean(1)


STEPS: dict[str, Callable[[Program, Tensor, Tensor, int], Tensor]] = {
    "linear": lambda m, a, b, k: m.layers[k % 3](a),
    "shared": lambda m, a, b, k: m.again[0](a),
    "hidden": lambda m, a, b, k: F.linear(a, m.hidden[0]),
    "norm": lambda m, a, b, k: m.norm(a + 0.1 * b),
    "add": lambda m, a, b, k: a - b,
    "multiply": lambda m, a, b, k: a * b.tanh(),
    "divide": lambda m, a, b, k: a / (1 + b.square()),
    "activation": lambda m, a, b, k: (F.gelu, F.silu, torch.sin, F.softplus, torch.sigmoid, F.mish)[k % 6](a),
    "softmax": lambda m, a, b, k: torch.softmax(a, k % 2 - 1 if k % 2 else 1),
    "flipped columns": lambda m, a, b, k: a.flip(1),
    "transposed": lambda m, a, b, k: a.view(len(a), 2, 2).transpose(1, 2).reshape(len(a), 4),
    "chunks": lambda m, a, b, k: torch.cat(a.chunk(2, 1)[::-1], 1),
    "columns": lambda m, a, b, k: a[:, permutation(WIDTH, k)],
    "rows permuted": lambda m, a, b, k: m.layers[k % 3](a[permutation(len(a), k)])[permutation(len(a), k).argsort()],
    "rows sorted": by_order,
    "repeated": lambda m, a, b, k: m.layers[k % 3](a.repeat(2, 1)).view(2, len(a), 4).mean(0),
    "interleaved": lambda m, a, b, k: m.layers[k % 3](a.repeat_interleave(2, 0)).view(len(a), 2, 4).sum(1),
    "scaled": lambda m, a, b, k: a * m.scale.exp(),
    "vector": lambda m, a, b, k: a + m.vectors[k % 3],
    "one plus": lambda m, a, b, k: F.normalize(a + 2, dim=1) * (1 + m.vectors[k % 3]),
    "normed weight": lambda m, a, b, k: a @ F.normalize(m.layers[k % 3].weight, dim=0),
    "low rank": lambda m, a, b, k: a @ (m.layers[0].weight[:, :2] @ m.layers[k % 3].weight[:2]),
    "outer": lambda m, a, b, k: torch.einsum("ni,nj,j->ni", a, b.tanh(), m.vectors[k % 3]),
    "where": lambda m, a, b, k: torch.where(b > 0, a, a * m.scale),
    "constant": lambda m, a, b, k: a * b.detach().sigmoid(),
    "no_grad": lambda m, a, b, k: a + without_graph(m, b, k),
    "written": in_place,
    "through a view": through_view,
    "routed": routed,
    "attention": attended,
    "expanded": expanded,
    "alone": alone,
    "time first": turned,
    "convolution": convolved,
    "looked up": looked_up,
    "maximum": lambda m, a, b, k: torch.maximum(a, b) + a.amax(1, keepdim=True),
    "cumulative": lambda m, a, b, k: a.cumsum(1) / 2,
    "batch mean": lambda m, a, b, k: a - 0.3 * m.layers[k % 3](b).mean(0),
    "roll": lambda m, a, b, k: a + 0.2 * m.layers[k % 3](b).roll(1, 0),
}  # fmt: skip
MIXING = {"batch mean", "roll"}


def without_graph(m: Program, b: Tensor, k: int) -> Tensor:
    with torch.no_grad():
        return m.layers[k % 3](b).tanh()


def programs(length: int, mixing: bool) -> st.SearchStrategy[list[Step]]:
    names = sorted(set(STEPS) if mixing else set(STEPS) - MIXING)
    number = st.integers(0, 11)
    return st.lists(
        st.tuples(st.sampled_from(names), number, number, number), min_size=length // 2, max_size=length
    )


def compare(steps: list[Step]) -> None:
    """Tangents, gradients, kernel and cache are the oracle's; a refusal is an error of the library."""
    wanted = truth(Program(steps), X)
    if not bool(torch.isfinite(wanted.jacobian).all()):
        return
    module = Program(steps)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compare_tangents(module, wanted)
        k = wanted.jacobian @ wanted.jacobian.T
        for backend in ("auto", "contraction"):
            assert close(ts.TangentKernel(module, X, backend=backend).dense(), k, 1e-8), backend
        try:
            cell: Any = linearize(module).cache([X])[0].cell
        except TauspanError:
            cell = linearize(module).cache([X], "none")[0].cell
        assert close(cell.push(wanted.tau), wanted.tangent, 1e-8)
        assert all_close(cell.pull(wanted.weights), wanted.pulled, 1e-8)
    with torch.no_grad():
        assert torch.equal(module(X), Program(steps)(X))
    assert all(type(p) is nn.Parameter and p.grad is None for p in module.parameters())


def compare_tangents(module: nn.Module, wanted: Any) -> None:
    lin = linearize(module)
    with torch.no_grad():
        for key, tau in lin.tau.items():
            tau.copy_(wanted.tau[key])
    value, tangent = lin.tangent(X)
    found = torch.autograd.grad(tangent, list(lin.tau.values()), wanted.weights, allow_unused=True)
    pulled = {
        key: torch.zeros_like(tau) if g is None else g
        for (key, tau), g in zip(lin.tau.items(), found, strict=True)
    }
    assert close(value, wanted.value, 1e-8)
    assert close(tangent, wanted.tangent, 1e-8)
    assert all_close(pulled, wanted.pulled, 1e-8)


@pytest.mark.thinned(8)
@pytest.mark.parametrize("name", STEPS)
def test_each_step_by_itself(name: str) -> None:
    compare([(name, 1, 0, 1), (name, 2, 1, 2)])


@settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(programs(12, mixing=False))
def test_short_programs(steps: list[Step]) -> None:
    compare(steps)


@pytest.mark.slow
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(programs(30, mixing=False))
def test_programs_whose_rows_are_their_own(steps: list[Step]) -> None:
    compare(steps)


@pytest.mark.slow
@settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(programs(30, mixing=True))
def test_programs_whose_rows_may_mix(steps: list[Step]) -> None:
    compare(steps)


@pytest.mark.long
@pytest.mark.timeout(3600)
@settings(max_examples=600, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.booleans().flatmap(lambda mixing: programs(30, mixing=mixing)))
def test_many_programs(steps: list[Step]) -> None:
    compare(steps)
