"""On modules of each kind that could be silently wrong, f, J tau and J^T g are autograd's own, or it is refused."""

import contextlib
import copy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tauspan as ts
from helpers.kinds import MODULES, RANDOM, Kind, X, kind, truth
from helpers.zoo import all_close, close, normal
from tauspan.core.errors import ModelError, NonFiniteError, UsageError
from tauspan.tangent import linearize

pytestmark = pytest.mark.filterwarnings(
    "ignore::RuntimeWarning", "ignore::FutureWarning", "ignore::UserWarning"
)


# torch does not give gradients of a re-entrant checkpoint for some tensors alone
ORACLE = {"checkpoint, re-entrant": "checkpoint"}


def state(module: nn.Module) -> list[Any]:
    """Everything that a pass must leave as it is, by identity."""
    kept = [[(key, id(value)) for key, value in vars(part).items()] for part in module.modules()]
    return [*kept, [(id(p), p.requires_grad, p.grad) for p in module.parameters()]]


def compare(module: nn.Module, name: str, engine: Any = None, digits: float = 1e-8) -> None:
    wanted = truth(MODULES[ORACLE.get(name, name)](), X)
    before = state(module)
    lin = linearize(module, engine=engine)
    with torch.no_grad():
        for key, tau in lin.tau.items():
            tau.copy_(wanted.tau[key])
    for _ in range(2):  # what the first pass leaves, the second would meet
        value, tangent = lin.tangent(X)
        assert close(value, wanted.value, digits)
        assert close(tangent, wanted.tangent, digits)
        found = torch.autograd.grad(tangent, list(lin.tau.values()), wanted.weights, allow_unused=True)
        pulled = {
            key: torch.zeros_like(tau) if g is None else g
            for (key, tau), g in zip(lin.tau.items(), found, strict=True)
        }
        assert all_close(pulled, wanted.pulled, digits)
    twice = [wanted.tau, {key: 2 * tau for key, tau in wanted.tau.items()}]
    together = lin.tangent(X, vectors=twice)[1]
    assert close(together, torch.stack([wanted.tangent, 2 * wanted.tangent]), digits)
    assert state(module) == before
    with torch.no_grad():
        again = module(X)
    assert type(again) is Tensor
    assert close(again, wanted.value, digits)


@pytest.mark.parametrize("name", MODULES)
def test_tangents_are_autograds_and_the_module_stays_as_it_is(name: str) -> None:
    compare(MODULES[name](), name)


@pytest.mark.thinned(3)
@pytest.mark.parametrize("engine", ["reference", "backward"])
@pytest.mark.parametrize("name", MODULES)
def test_the_other_engines_and_what_follows_them(name: str, engine: str) -> None:
    compare(MODULES[name](), name, engine)


@pytest.mark.parametrize("grad", [True, False], ids=["with a graph", "without"])
@pytest.mark.parametrize(
    "name", [name for name in MODULES if name.startswith("memo") or "weight_norm" in name]
)
def test_a_module_that_was_called_before_has_the_same_tangents(name: str, grad: bool) -> None:
    module = MODULES[name]()
    with torch.set_grad_enabled(grad):
        module(X)
    compare(module, name)


@pytest.mark.parametrize("grad", [True, False], ids=["with a graph", "without"])
@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith("memo")])
def test_a_module_that_is_called_meanwhile_has_the_same_tangents(name: str, grad: bool) -> None:
    wanted, module = truth(MODULES[name](), X), MODULES[name]()
    lin, kernel = linearize(module), ts.TangentKernel(module, X)
    alpha = wanted.weights.flatten()
    for rows in (X, X[:3], X):
        assert close(lin.tangent(X, vectors=[wanted.tau])[1][0], wanted.tangent)
        assert close(kernel.matvec(alpha), wanted.jacobian @ (wanted.jacobian.T @ alpha))
        with torch.set_grad_enabled(grad):
            module(rows)
    assert close(lin.cache([X])[0].cell.push(wanted.tau), wanted.tangent)


def gathering(s: Kind, x: Tensor) -> Tensor:
    h = s.a(x).tanh()
    with torch.no_grad():
        s.seen += len(h)
        s.mean.mul_(0.9).add_(h.mean(0), alpha=0.1)
    return s.o(h)


def refreshed(s: Kind, x: Tensor) -> Tensor:
    s.mean.copy_(s.q.detach()[0].exp())
    return s.o(s.a(x) * s.mean * s.q)


@pytest.mark.parametrize("forward", [gathering, refreshed])
def test_buffers_that_a_pass_writes_to_are_given_back_as_they_were(forward: Any) -> None:
    def make() -> Kind:
        module = kind(forward)
        module.register_buffer("mean", torch.zeros(6, dtype=torch.float64))
        module.register_buffer("seen", torch.tensor(0))
        return module

    wanted, module = truth(make(), X), make()
    before = copy.deepcopy(module.state_dict())
    lin = linearize(module)
    for _ in range(2):
        assert close(lin.tangent(X, vectors=[wanted.tau])[1][0], wanted.tangent)
    assert close(ts.TangentKernel(module, X).dense(), wanted.jacobian @ wanted.jacobian.T)
    assert lin.cache([X])
    assert all(torch.equal(found, before[name]) for name, found in module.state_dict().items())
    module(X)
    assert not torch.equal(module.mean, before["mean"])  # the user's own calls still write


def test_a_layer_that_sets_its_parameters_from_the_first_batch_is_refused_until_it_has() -> None:
    def forward(s: Kind, x: Tensor) -> Tensor:
        if not s.begun:
            with torch.no_grad():
                s.q.copy_(1 / x.std(0))
            s.begun = True
        return s.o(x * s.q)

    with pytest.raises(ModelError, match=r"writes to its own parameters.*\(q\).*module\(x\)"):
        linearize(kind(forward, begun=False))(X)
    module = kind(forward, begun=False)
    module(X)
    wanted = truth(module, X)
    assert close(linearize(module).tangent(X, vectors=[wanted.tau])[1][0], wanted.tangent)


@pytest.mark.parametrize("where", ["global", "class"])
def test_kernels_of_a_module_that_keeps_tensors_elsewhere_are_right_or_refused(where: str) -> None:
    class Elsewhere(Kind):
        table: dict[str, Tensor] = {}  # noqa: RUF012 - the kind of module that is meant

    memory = Elsewhere.table if where == "class" else _MEMORY

    def forward(s: Kind, x: Tensor) -> Tensor:
        kept = s.table if where == "class" else _MEMORY
        if "k" not in kept:
            kept["k"] = s.q.exp()
        return s.o((s.a(x) + kept["k"]).tanh())

    wanted = truth(kind(forward, of=Elsewhere), X).jacobian
    memory.clear()
    try:
        found = ts.TangentKernel(kind(forward, of=Elsewhere), X).dense()
    except ModelError as error:
        assert "keeps a tensor" in str(error)  # noqa: PT017
    else:
        assert close(found, wanted @ wanted.T)
    memory.clear()


_MEMORY: dict[str, Tensor] = {}


def test_a_float32_lstm_on_the_cpu_has_tangents() -> None:
    """Its kernel has no forward mode; that of float64 has."""

    def recurrent(s: Kind, x: Tensor) -> Tensor:
        return s.o(s.r(x.view(len(x), 3, 2))[0][:, -1].repeat(1, 2))

    module = kind(recurrent, r=lambda: nn.LSTM(2, 3, batch_first=True))
    wanted = truth(module, X)
    lin = linearize(copy.deepcopy(module).float())
    with torch.no_grad():
        for key, tau in lin.tau.items():
            tau.copy_(wanted.tau[key])
    assert close(lin.tangent(X.float())[1].double(), wanted.tangent, 1e-4)


def attention_in_float32(s: Kind, x: Tensor) -> Tensor:
    """A softmax and a norm in float32 inside float64, and a key's bias, whose gradient is 0 but for rounding."""
    rows = s.a(x).view(-1, 2, 3)
    scores = rows @ s.k(rows).mT
    mixed = scores.float().softmax(-1).to(rows.dtype) @ rows
    wide = mixed.flatten(1).float()
    return s.o((wide * wide.square().mean(-1, keepdim=True).rsqrt()).to(x.dtype) * s.q)


@pytest.mark.parametrize("engine", ["onepass", "reference", "backward"])
def test_float32_inside_float64_is_rounding_and_no_fault(engine: Any) -> None:
    module = kind(attention_in_float32, k=lambda: nn.Linear(3, 3))
    wanted = truth(copy.deepcopy(module), X)
    lin = linearize(module, engine=engine)
    with torch.no_grad():
        for key, tau in lin.tau.items():
            tau.copy_(wanted.tau[key])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tangent = lin.tangent(X)[1]
    assert lin.engine == engine
    assert close(tangent, wanted.tangent, 1e-5)
    for cache in ("factors", "primal") if engine == "onepass" else ():
        assert close(lin.cache([X], cache)[0].tangent()[1], wanted.tangent, 1e-5)


@pytest.mark.parametrize("name", RANDOM)
def test_a_module_that_is_no_function_of_its_inputs_is_refused(name: str) -> None:
    with pytest.raises(ModelError, match=r"gives another output when it is called again.*deterministic"):
        linearize(RANDOM[name]())(X)
    with pytest.raises(ModelError, match=r"gives another output when it is called again.*deterministic"):
        ts.TangentKernel(RANDOM[name](), X, outputs="sum").dense()


def test_the_layer_that_is_random_is_named() -> None:
    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.rand(())

    with pytest.raises(ModelError, match=r"'inner\.0' \(Noisy\) gives another output"):
        linearize(kind(lambda s, x: s.o(s.inner(s.a(x))), inner=lambda: nn.Sequential(Noisy())))(X)


@pytest.mark.parametrize("name", RANDOM)
def test_checks_use_up_nobodys_random_numbers(name: str) -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    linearize(kind(lambda s, x: s.o(s.a(x)) + 0 * torch.rand(())))(X[:1])
    linearize(kind(lambda s, x: s.o(s.a(x))))(X)
    torch.manual_seed(0)
    assert torch.equal(torch.rand(3), expected)


# -- what the user left frozen, and what cannot be carried -----------------------------------------------------------


def test_all_means_all_that_the_user_left_trainable() -> None:
    net = kind(lambda s, x: s.o(s.a(x)))
    net.a.requires_grad_(False)
    assert set(linearize(net).tau) == {"q", "w.weight", "w.bias", "o.weight", "o.bias"}
    assert set(linearize(net, "a.*").tau) == {"a.weight", "a.bias"}  # what is named moves, frozen or not
    assert [p.requires_grad for p in net.a.parameters()] == [False, False]


def test_a_frozen_model_has_nothing_to_move_and_the_message_says_what_to_do() -> None:
    net = kind(lambda s, x: s.o(s.a(x))).requires_grad_(False)
    with pytest.warns(RuntimeWarning, match=r"nothing to move.*requires_grad_\(True\).*params='\*'"):
        lin = linearize(net)
    assert not lin.tau
    assert torch.equal(lin(X), net(X))
    with pytest.warns(RuntimeWarning), pytest.raises(UsageError, match="params='\\*'"):
        ts.TangentKernel(net, X)
    assert len(linearize(net, "*").tau) == 7
    assert len(linearize(net.requires_grad_(True)).tau) == 7


def test_complex_parameters_are_refused_by_name_and_the_others_can_be_named() -> None:
    net = kind(lambda s, x: s.o((torch.fft.fft(s.a(x)) * s.f).real))
    net.f = nn.Parameter(torch.ones(6, dtype=torch.complex128))
    with pytest.raises(ModelError, match=r"f of Kind is complex.*params="):
        linearize(net)
    lin = linearize(net, ["a.*", "o.*"])
    assert set(lin.tau) == {"a.weight", "a.bias", "o.weight", "o.bias"}
    lin(X)

    class Only(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.f = nn.Parameter(torch.ones(2, dtype=torch.complex64))

    with pytest.raises(ModelError, match="view_as_complex"):
        linearize(Only())


def test_a_parameter_that_is_not_registered_is_a_constant_and_that_is_told() -> None:
    net = kind(lambda s, x: s.o(s.a(x)) * s.loose[0])
    net.loose = [nn.Parameter(torch.ones(2, dtype=torch.float64))]
    with pytest.warns(RuntimeWarning, match="1 tensors that require a gradient.*ParameterList"):
        linearize(net)(X).sum().backward()
    assert net.loose[0].grad is None
    net.loose = nn.ParameterList(net.loose)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "loose.0" in linearize(net).tau


def test_lazy_and_meta_parameters_are_refused_with_what_to_do() -> None:
    lazy = nn.Sequential(nn.LazyLinear(2))
    with pytest.raises(ModelError, match=r"'0.weight'.*lazy layer.*Call the module once"):
        linearize(lazy)
    lazy(X.float())
    linearize(lazy)(X.float())
    with pytest.raises(ModelError, match=r"'weight'.*meta device"):
        linearize(nn.Linear(2, 1, device="meta"))
    with torch.inference_mode():
        made = nn.Linear(2, 1)
    with pytest.raises(ModelError, match="inference_mode"):
        linearize(made)


def test_nan_in_an_output_names_the_row_and_the_weight() -> None:
    net = kind(lambda s, x: s.o(s.a(x)))
    rows = X.clone()
    rows[3, 0] = float("nan")
    with pytest.raises(NonFiniteError, match="row 3 of the batch; no weight does"):
        linearize(net)(rows[[0, 1, 2, 3]])
    with torch.no_grad():
        net.a.weight[0, 0] = float("inf")
    with pytest.raises(NonFiniteError, match=r"every row.*'a.weight' holds it already"):
        linearize(net)(X)


class Trained(torch.autograd.Function):
    """Its backward wants training mode, as that of reversible layers in transformers' Reformer does."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.sin()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        raise AssertionError("use `model.train()` first")


def test_a_module_without_a_backward_in_eval_mode_is_refused_with_what_it_says() -> None:
    net = kind(lambda s, x: s.o(Trained.apply(s.a(x))))
    for go in (lambda: linearize(net)(X), lambda: ts.TangentKernel(net, X, outputs="sum").dense()):
        with pytest.raises(
            ModelError, match=r"no gradient of Kind in eval mode: use `model.train\(\)` first"
        ):
            go()


def test_errors_of_the_module_itself_are_its_own() -> None:
    lin = linearize(kind(lambda s, x: s.o(s.a(x))))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        lin(X[:, :3])
    lin(X)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        lin(X[:, :3])


def test_a_memo_outside_the_modules_is_carried_or_refused_and_never_ours() -> None:
    memory: dict[str, Tensor] = {}

    def forward(s: Kind, x: Tensor) -> Tensor:
        if "k" not in memory:
            memory["k"] = s.q.exp()
        return s.o((s.a(x) + memory["k"]).tanh())

    lin = linearize(kind(forward))
    with contextlib.suppress(ModelError):
        lin(X)
    assert all(type(kept) is Tensor for kept in memory.values())


def test_every_function_computes_in_the_way_that_the_block_says() -> None:
    net = kind(lambda s, x: s.o(s.a(x)))
    with ts.computing(engine="backward", check="off"):
        lin = linearize(net)
        assert (lin.engine, lin.check) == ("backward", "off")
        assert ts.TangentKernel(net, X).check == "off"
        with ts.computing(check="auto"):
            assert (linearize(net).engine, linearize(net).check) == ("backward", "auto")
    assert (linearize(net).engine, linearize(net).check) == ("onepass", "auto")
    with (
        pytest.raises(UsageError, match=r"engine='onepas'. Did you mean 'onepass'"),
        ts.computing(engine="onepas"),
    ):
        pass


def test_a_compiled_layer_runs_as_it_is_written() -> None:
    net = kind(lambda s, x: s.o(s.a(x).tanh()))
    wanted = linearize(net).tangent(X, vectors=[{n: normal(*p.shape) for n, p in net.named_parameters()}])
    net.a.compile(backend="eager")
    found = linearize(net).tangent(X, vectors=[{n: normal(*p.shape) for n, p in net.named_parameters()}])
    assert all(map(torch.equal, found, wanted))


def test_inference_mode_has_no_derivatives_and_the_repair_works() -> None:
    net, x = nn.Linear(3, 2).double(), normal(4, 3)
    wanted = ts.TangentKernel(net, x).dense()
    for call in (lambda: linearize(net).tangent(x), lambda: ts.TangentKernel(net, x).dense()):
        with torch.inference_mode(), pytest.raises(UsageError, match=r"take torch.no_grad\(\) in its place"):
            call()
    with torch.no_grad():
        assert torch.equal(ts.TangentKernel(net, x).dense(), wanted)
    lin = linearize(net)
    lin(x)
    with torch.inference_mode():  # a model that was checked before goes on
        assert torch.equal(lin(x), net(x))


class Raw(nn.Module):
    """A matrix that no layer holds."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(normal(6, 2, seed=3))

    def forward(self, x: Tensor) -> Tensor:
        return (x @ self.w).softmax(-1)


def test_kernels_in_small_spaces_do_not_depend_on_no_grad() -> None:
    small = ts.restrict(ts.load(Raw()), {"w": torch.arange(12).view(6, 2) < 7}).backbone
    x = normal(4, 6)
    wanted = ts.TangentKernel(small, x).dense()
    with torch.no_grad():
        assert torch.equal(ts.TangentKernel(small, x).dense(), wanted)
