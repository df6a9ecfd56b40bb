"""Modules of the kinds on which a tangent engine can be wrong without a word, and what ordinary autograd says of them."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from helpers.zoo import normal

X = normal(6, 6, seed=11)
Forward = Callable[["Kind", Tensor], Any]


class Kind(nn.Module):
    """A few layers, and a forward that is given."""

    def __init__(self, forward: Forward, parts: dict[str, Any], seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.a, self.w, self.o = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 2)
            self.q = nn.Parameter(torch.randn(1, 6))
            for name, part in parts.items():
                setattr(self, name, part() if callable(part) and not isinstance(part, nn.Module) else part)
        self.given = forward

        self.register_buffer("made", None, persistent=False)

    def forward(self, *inputs: Any) -> Any:
        return self.given(self, *inputs)

    def table(self, rows: int) -> Tensor:
        """A table for so many rows, kept in a dict."""
        if rows not in self.kept:
            self.kept[rows] = self.q.exp().expand(rows, 6)
        return self.kept[rows]


def kind(forward: Forward, of: type[Kind] = Kind, **parts: Any) -> Kind:
    """In float64 eval mode; parts are made under the same seed each time."""
    return of(forward, parts).double().eval()


@dataclass(frozen=True)
class Truth:
    """f, J tau for a fixed tau, J^T g for a fixed g, and J itself, row by row of one batch."""

    value: Tensor
    tau: dict[str, Tensor]
    tangent: Tensor
    weights: Tensor
    pulled: dict[str, Tensor]
    jacobian: Tensor


def truth(module: nn.Module, *inputs: Any) -> Truth:
    """By one ordinary backward pass for each output, of a module that nobody has called before."""
    parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
    value = module(*inputs)
    rows = []
    for entry in value.flatten():
        found = torch.autograd.grad(entry, list(parameters.values()), retain_graph=True, allow_unused=True)
        rows.append(
            torch.cat([
                (torch.zeros_like(p) if g is None else g.to_dense()).flatten()
                for p, g in zip(parameters.values(), found, strict=True)
            ])
        )  # fmt: skip
    jacobian = torch.stack(rows)
    tau = {name: normal(1, *p.shape, seed=40 + n)[0].to(p) for n, (name, p) in enumerate(parameters.items())}
    weights = normal(*value.shape, seed=9).to(value)
    sizes = [p.numel() for p in parameters.values()]
    parts = torch.split(weights.flatten() @ jacobian, sizes)
    pulled = {name: part.view(p.shape) for (name, p), part in zip(parameters.items(), parts, strict=True)}
    tangent = (jacobian @ torch.cat([t.flatten() for t in tau.values()])).view(value.shape)
    return Truth(value.detach(), tau, tangent, weights, pulled, jacobian)


# -- modules that are reached, kept or changed in other ways than through their registry -----------------------------


class Shared(nn.Module):
    """One layer under three names."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.o = nn.Linear(6, 6), nn.Linear(6, 2)
        self.net, self.byname = nn.Sequential(self.a, nn.Tanh()), nn.ModuleDict({"x": self.a})

    def forward(self, x: Tensor) -> Tensor:
        return self.o(self.byname["x"](self.net(x)))


class SharedNorm(nn.Module):
    """A layer with buffers under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(6)
        self.net = nn.Sequential(self.norm, nn.Linear(6, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.norm(x))


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make().double().eval()


def itself(s: Kind, x: Tensor, same: Callable[[Tensor], Tensor]) -> Tensor:
    """What gives back the tensor that it got: writing into it changes that one too."""
    before = s.a(x)
    after = same(before)
    after += s.w(x)
    return s.o(before * after)


def in_dict() -> nn.Module:
    module = kind(lambda s, x: x @ s.places["deep"][0].T + s.a.bias)
    module.places = {"deep": [module.a.weight]}
    return module


def in_list() -> nn.Module:
    module = kind(lambda s, x: s.o(x @ s.places[0].T))
    module.places = [module.a.weight]
    return module


def in_closure() -> nn.Module:
    module = kind(lambda s, x: s.o(s.inner(x)))
    weight, bias = module.a.weight, module.a.bias
    module.inner = lambda x: F.linear(x, weight, bias).sin()
    return module


def as_view() -> nn.Module:
    """A view that was made when the module was, and shares the parameter's memory."""
    module = kind(lambda s, x: s.o(x @ s.view.T))
    module.view = module.a.weight.view(6, 6)
    return module


class Remembering(Kind):
    """A method whose results Python itself keeps."""

    @lru_cache(maxsize=4)  # noqa: B019 - the kind of module that is meant
    def table(self, rows: int) -> Tensor:
        return self.q.exp().expand(rows, 6)


def memo(how: str) -> Callable[[], nn.Module]:
    """A tensor made from a parameter at the first call and kept: LeViT's attention biases."""

    class Box:
        value: Tensor | None = None

    def forward(s: Kind, x: Tensor) -> Tensor:
        if how == "dict":
            s.kept.setdefault(str(x.device), None)
            if s.kept[str(x.device)] is None:
                s.kept[str(x.device)] = s.q.exp()
            made = s.kept[str(x.device)]
        elif how == "entry":
            if "k" not in s.kept:
                s.kept["k"] = s.q.exp()
            made = s.kept["k"]
        elif how == "list":
            if not s.kept:
                s.kept.append(s.q.exp())
            made = s.kept[0]
        elif how == "hasattr":
            if not hasattr(s, "here"):
                s.here = s.q.exp()
            made = s.here
        elif how in ("by shape", "by method"):
            made = s.table(len(x))
        elif how == "tuple":
            if s.kept is None:
                s.kept = (s.q.exp(), s.q.sin())
            made = s.kept[0] * s.kept[1]
        elif how == "deque":
            if not s.kept:
                s.kept.append(s.q.exp())
            made = s.kept[0]
        elif how == "buffer":
            if s.made is None:
                s.made = s.q.exp()
            made = s.made
        elif how == "object":
            if s.kept.value is None:
                s.kept.value = s.q.exp()
            made = s.kept.value
        else:
            if s.kept is None:
                s.kept = s.q.exp()
            made = s.kept
        return s.o((s.a(x) + made).tanh())

    starts: dict[str, Any] = {
        "dict": dict,
        "entry": dict,
        "by shape": dict,
        "list": list,
        "deque": deque,
        "object": Box,
    }
    return lambda: kind(
        forward, of=Remembering if how == "by method" else Kind, kept=starts.get(how, lambda: None)
    )


class Straight(torch.autograd.Function):
    """Rounding with a gradient of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


class Once(torch.autograd.Function):
    """A product whose backward cannot be derived again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return x @ weight

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        return gradient @ weight.T, x.T @ gradient


class Outside(torch.autograd.Function):
    """A sine by NumPy, whose backward leaves the graph."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.from_numpy(np.sin(x.detach().numpy()))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return torch.from_numpy(gradient.detach().numpy() * np.cos(ctx.saved_tensors[0].detach().numpy()))


def written_into(s: Kind, x: Tensor) -> Tensor:
    h = s.a(x)
    h[:, 0] += 3 * h[:, 1].clone()
    return s.o(F.glu(torch.cat([h, h], 1)) * F.hardsigmoid(h))


def buffered(s: Kind, x: Tensor) -> Tensor:
    z = x.clone()
    z[:, 0] = s.a(x)[:, 0]
    return s.o(s.a(z))


def forces(s: Kind, x: Tensor) -> Tensor:
    """The gradient of an energy in the inputs."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        return torch.autograd.grad(s.o(s.a(x).tanh()).sum(), x, create_graph=True)[0]


def without_graph(s: Kind, x: Tensor) -> Tensor:
    with torch.no_grad():
        gate = s.a(x).softmax(-1)
    return s.o(gate * s.a(x))


def packed(s: Kind, x: Tensor) -> Tensor:
    lengths = torch.tensor([3, 1, 2, 3, 1, 2])[: len(x)]
    rows = nn.utils.rnn.pack_padded_sequence(
        s.a(x).view(-1, 3, 2), lengths, batch_first=True, enforce_sorted=False
    )
    return s.o(s.r(rows)[1][0][-1].repeat(1, 2))


def sampled(s: Kind, x: Tensor) -> Tensor:
    grid = F.affine_grid(s.a(x).view(-1, 2, 3), [len(x), 1, 2, 3], align_corners=False)
    return s.o(F.grid_sample(x.view(-1, 1, 2, 3), grid, align_corners=False).flatten(1))


def jagged(s: Kind, x: Tensor) -> Tensor:
    rows = torch.nested.as_nested_tensor([s.a(x[:1]), s.a(x[1:])], layout=torch.jagged)
    return s.o(torch.cat(list(rows.tanh().unbind())))


def logged(s: Kind, x: Tensor) -> Tensor:
    y = s.o(s.a(x))
    s.log.append(y.mean().item())
    return y / (float(y.abs().max()) + 1)


MEMOS = (
    "attribute", "dict", "entry", "list", "hasattr", "object", "tuple", "deque", "buffer", "by shape", "by method"
)  # fmt: skip
MODULES: dict[str, Callable[[], nn.Module]] = {
    "layer under several names": lambda: seeded(Shared),
    "buffers under several names": lambda: seeded(SharedNorm),
    "parameter in a list": in_list,
    "parameter in a dict": in_dict,
    "parameter in a closure": in_closure,
    "view of a parameter": as_view,
    **{f"memo, {how}": memo(how) for how in MEMOS},
    "weight_norm, old": lambda: kind(lambda s, x: s.o(s.n(x).tanh()), n=lambda: nn.utils.weight_norm(nn.Linear(6, 6))),
    "weight_norm, new": lambda: kind(
        lambda s, x: s.o(s.n(x).tanh()), n=lambda: nn.utils.parametrizations.weight_norm(nn.Linear(6, 6))
    ),
    "spectral_norm": lambda: kind(
        lambda s, x: s.o(s.n(x).tanh()), n=lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(6, 6))
    ),
    "orthogonal": lambda: kind(
        lambda s, x: s.o(s.n(x).tanh()), n=lambda: nn.utils.parametrizations.orthogonal(nn.Linear(6, 6))
    ),
    "EmbeddingBag": lambda: kind(
        lambda s, x: s.o(s.e((x.abs() * 3).long(), per_sample_weights=s.a(x)).tanh()),
        e=lambda: nn.EmbeddingBag(20, 6, mode="sum"),
    ),
    "cdist": lambda: kind(lambda s, x: s.o((-torch.cdist(s.a(x), s.w.weight)).exp())),
    "grid_sample": lambda: kind(sampled),
    "sparse product": lambda: kind(lambda s, x: torch.sparse.mm(s.s, s.o(s.a(x))), s=torch.eye(6).double().to_sparse()),
    "packed sequence": lambda: kind(packed, r=lambda: nn.LSTM(2, 3, batch_first=True)),
    "jagged": lambda: kind(jagged),
    "function, straight through": lambda: kind(lambda s, x: s.o(Straight.apply(s.a(x) * 3) / 3)),
    "function, derived once": lambda: kind(lambda s, x: s.o(Once.apply(s.a(x), s.w.weight).tanh())),
    "function, outside the graph": lambda: kind(lambda s, x: s.o(Outside.apply(s.a(x)))),
    "checkpoint, re-entrant": lambda: kind(lambda s, x: s.o(checkpoint(s.w, s.a(x), use_reentrant=True).tanh())),
    "checkpoint": lambda: kind(lambda s, x: s.o(checkpoint(s.w, s.a(x), use_reentrant=False).tanh())),
    "dropout that does nothing": lambda: kind(lambda s, x: F.dropout(s.o(s.a(x).tanh()), 0.5, s.training)),
    "the tensor itself, written into": lambda: kind(lambda s, x: itself(s, x, lambda y: y.to(torch.float64))),
    "dropout's own input, written into": lambda: kind(lambda s, x: itself(s, x, lambda y: F.dropout(y, 0.5, s.training))),
    "fused attention of positions": lambda: kind(
        lambda s, x: s.o(F.scaled_dot_product_attention(*[s.a(x[:, None] * x[..., None]).tanh()] * 3).mean(1))
    ),
    "in-place": lambda: kind(written_into),
    "into a buffer": lambda: kind(buffered),
    "derivative inside": lambda: kind(forces),
    "jvp inside": lambda: kind(lambda s, x: s.o(torch.func.jvp(s.a, (x,), (x * 2,))[1].tanh())),
    "vmap inside": lambda: kind(lambda s, x: s.o(torch.func.vmap(lambda row: s.a(row).tanh())(x))),
    "no_grad inside": lambda: kind(without_graph),
    "a number read": lambda: kind(logged, log=list),
    "scripted": lambda: torch.jit.script(seeded(lambda: nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 2)))),
    "hook requires grad": lambda: hooked(),
    "softmax without an axis": lambda: kind(lambda s, x: F.softmax(s.o(s.a(x)), None, _stacklevel=5).log()),
    "scalar and empty parameters": lambda: kind(
        lambda s, x: s.o(s.a(x)) * s.t.exp() + s.e.sum(),
        t=lambda: nn.Parameter(torch.tensor(0.3)), e=lambda: nn.Parameter(torch.zeros(0, 3)),
    ),
    "complex between": lambda: kind(lambda s, x: s.o(torch.fft.fft(s.a(x)).abs().log1p())),
    "parameter's data": lambda: kind(lambda s, x: s.o(s.a(x)) / s.o.weight.data.norm() + s.a.weight.detach().sum()),
}  # fmt: skip


def hooked() -> nn.Module:
    module = kind(lambda s, x: s.o(s.a(x)))
    module.a.register_forward_hook(lambda m, i, o: o.requires_grad_(True))
    return module


# -- modules whose rows a kernel may mistake -------------------------------------------------------------------------


def attending(s: Kind, x: Tensor) -> Tensor:
    keys = s.a(x).view(len(x), 3, 2)
    query = s.w(s.q).view(1, 3, 2).expand(len(x), -1, -1)
    return s.o(F.scaled_dot_product_attention(query, keys, keys).flatten(1))


def prefixed(s: Kind, x: Tensor) -> Tensor:
    """A network on parameters alone, whose leading size is that of the batch."""
    prefix = s.w(s.q.expand(6, -1)).tanh()
    return s.o((s.a(x)[:, None] * prefix).sum(1).tanh())


def hypernetwork(s: Kind, x: Tensor) -> Tensor:
    return s.o(F.linear(x, s.w(s.q.view(6, 1).expand(6, 6))).tanh())


def time_first(s: Kind, x: Tensor) -> Tensor:
    return s.o(s.r(x.view(len(x), -1, s.r.input_size).transpose(0, 1))[0][-1].repeat(1, 2))


def sorted_rows(s: Kind, x: Tensor) -> Tensor:
    order = x[:, 0].argsort()
    return s.o(s.a(x[order]).tanh())[order.argsort()]


def permuted(s: Kind, x: Tensor) -> Tensor:
    """The first row stays where it is."""
    order = torch.tensor([0, 2, 1, 3, 5, 4]) if len(x) == 6 else torch.arange(len(x))
    return s.o(s.a(x[order]).tanh())[order.argsort()]


def routed(s: Kind, x: Tensor) -> Tensor:
    weight, chosen = s.o(x).softmax(-1).max(-1)
    out = torch.zeros_like(x)
    for number, expert in enumerate((s.a, s.w)):
        rows = (chosen == number).nonzero()[:, 0]
        out = out.index_add(0, rows, expert(x[rows]).tanh() * weight[rows, None])
    return s.o(out)


def one_expert(s: Kind, x: Tensor) -> Tensor:
    """Each row by one expert; in some batches an expert has no row."""
    return torch.stack([s.o((s.a, s.w)[int(row[0] > 0)](row).tanh()) for row in x])


def put_back(s: Kind, x: Tensor) -> Tensor:
    """The experts' rows one after the other, then in their own order again."""
    first = x[:, 0] > 0
    order = torch.cat([torch.where(first)[0], torch.where(~first)[0]])
    made = [expert(x[rows]) for expert, rows in ((s.a, first), (s.w, ~first)) if rows.any()]
    return torch.cat(made)[order.argsort()]


def biased(s: Kind, x: Tensor) -> Tensor:
    table = s.o(s.w(torch.eye(6, dtype=x.dtype)).tanh())
    return s.o((s.a(x).view(len(x), 2, 3) * table.view(1, 2, 6)[:, :, :3]).flatten(1))


ROWS: dict[str, Callable[[], nn.Module]] = {
    "learned query": lambda: kind(lambda s, x: s.o((s.w(s.q.expand(len(x), -1)) * s.a(x)).tanh())),
    "learned query, attention": lambda: kind(attending),
    "prefix": lambda: kind(prefixed),
    "hypernetwork": lambda: kind(hypernetwork),
    "bias table": lambda: kind(biased),
    "time first, GRU": lambda: kind(time_first, r=lambda: nn.GRU(2, 3)),
    "time first, as many steps as rows": lambda: kind(time_first, r=lambda: nn.GRU(1, 3)),
    "time first, LSTM": lambda: kind(time_first, r=lambda: nn.LSTM(2, 3)),
    "sorted": lambda: kind(sorted_rows),
    "permuted": lambda: kind(permuted),
    "flipped": lambda: kind(lambda s, x: s.o(s.a(x.flip(0)).tanh()).flip(0)),
    "routed": lambda: kind(routed),
    "one expert for each row": lambda: kind(one_expert),
    "experts put back": lambda: kind(put_back),
    "repeated": lambda: kind(lambda s, x: s.o(s.a(x.repeat(2, 1)).tanh()).view(2, len(x), 2).sum(0)),
    "interleaved": lambda: kind(lambda s, x: s.o(s.a(x.repeat_interleave(2, 0)).tanh()).view(-1, 2, 2).sum(1)),
    "scalar parameter": lambda: kind(
        lambda s, x: s.o(s.a(x)) * s.t.exp() + s.t, t=lambda: nn.Parameter(torch.tensor(0.3))
    ),
    "empty parameter": lambda: kind(lambda s, x: s.o(s.a(x)) + s.e.sum(), e=lambda: nn.Parameter(torch.zeros(0))),
    "cosine classifier": lambda: kind(lambda s, x: s.a(x) @ F.normalize(s.w.weight, dim=1).T),
    "weight_norm": MODULES["weight_norm, new"],
    "low rank": lambda: kind(lambda s, x: s.o(F.linear(x, s.a.weight + s.w.weight[:, :2] @ s.w.weight[:2]).tanh())),
    "layer of one vector": lambda: kind(lambda s, x: s.o((s.a(x) + s.w(x.new_ones(6))).tanh())),
    "head of one vector": lambda: kind(lambda s, x: s.o(s.a(x).tanh()) + s.o(x.new_ones(6))),
    "one plus a weight": lambda: kind(lambda s, x: s.o(F.rms_norm(s.a(x), (6,)) * (1 + s.q[0]))),
    "tied": lambda: kind(lambda s, x: s.o(F.linear(s.a(F.linear(x, s.w.weight)).tanh(), s.w.weight.T))),
    "in-place": MODULES["in-place"],
    "function": MODULES["function, straight through"],
    "view of a parameter": as_view,
}  # fmt: skip

MIXED: dict[str, Callable[[], nn.Module]] = {
    "batch mean": lambda: kind(lambda s, x: s.o((s.a(x) - s.a(x).mean(0)).tanh())),
    "batch statistics": lambda: kind(lambda s, x: s.o(F.batch_norm(s.a(x), None, None, training=True).tanh())),
    "contrastive": lambda: kind(lambda s, x: F.normalize(s.a(x), dim=1) @ F.normalize(s.w(x), dim=1).T),
    "next row": lambda: kind(lambda s, x: s.o(s.a(x).tanh() + 0.5 * s.a(x).tanh().roll(1, 0))),
}  # fmt: skip

RANDOM: dict[str, Callable[[], nn.Module]] = {
    "dropout": lambda: kind(lambda s, x: F.dropout(s.o(s.a(x)), 0.5)),
    "gumbel": lambda: kind(lambda s, x: F.gumbel_softmax(s.o(s.a(x)))),
    "noise": lambda: kind(lambda s, x: s.o(s.a(x)) + 0.1 * torch.randn(2)),
    "rarely": lambda: kind(lambda s, x: s.o(s.a(x)) * (torch.rand(()) > 0.3)),
    "NumPy": lambda: kind(lambda s, x: s.o(s.a(x)) * float(np.random.rand())),
    "counting": lambda: kind(counted, n=lambda: torch.zeros(1)),
    "counting in a buffer": lambda: counting(),
}  # fmt: skip


def counting() -> nn.Module:
    module = kind(counted)
    module.register_buffer("n", torch.zeros(1))
    return module


def counted(s: Kind, x: Tensor) -> Tensor:
    s.n += 1
    return s.o(s.a(x)) * s.n
