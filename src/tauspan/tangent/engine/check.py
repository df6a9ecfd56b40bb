"""Is an engine right on this module and these inputs? Every answer that claims to be exact is checked where it is made.

The measure is ordinary autograd on the module itself, as anybody would call it: its output y, and G = J^T g for a random
g. An engine must give the same y, the same J^T g for each parameter tensor, and a J tau with <g, J tau> = <G, tau>. The
direction tau is scaled per tensor so that each tensor has an equal share in that sum: a wrong term in a small tensor
cannot hide behind a large one.
"""

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from tauspan.core.errors import ModelError, NonFiniteError, listed
from tauspan.core.params import Params
from tauspan.tangent.engine import backward
from tauspan.tangent.engine.call import Call, leaves
from tauspan.tangent.engine.engines import Engine
from tauspan.tangent.engine.maps import dense, dtypes_of, nodes_of
from tauspan.tangent.engine.table import moves

# The largest relative difference that counts as rounding, by the narrowest dtype that takes part. In float64 it leaves
# room for models that compute a softmax in float32 whatever their dtype, as transformers' do.
_ROUNDING = {torch.float64: 1e-5, torch.float32: 2e-3, torch.float16: 5e-2, torch.bfloat16: 2e-1}
# Gradients below this share of the largest (root mean square per entry) are rounding: a key's bias has exactly 0.
_NOISE = {torch.float64: 1e-8, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 3e-2}
_EXACT = 4  # units in the last place of the largest gradient to which each one is exact
_CANCELLED = 16  # units in the last place that a sum may leave of what cancels
_CALLS = 8  # of a module that draws random numbers and has given one answer so far
_PERIOD = 262_147  # random numbers that are drawn once


@dataclass(frozen=True)
class Measure:
    """What ordinary autograd says of one call.

    Args:
        call: the module at its inputs.
        value: y.
        weights: g, random and of y's shape.
        pulled: G = J^T g by parameter; zeros where autograd does not reach one.
        reached: the parameters that autograd reaches.
        strangers: tensors that it reaches and that are neither trainable parameters nor inputs.
        tolerance: what counts as rounding.
        noise: below this root mean square a gradient is rounding.
        least: what rounding leaves of gradients that are exactly 0 (of an output that is constant, say).
        largest: the largest root mean square of a gradient.
        precision: that of the narrowest dtype that the module goes through on its way to y.
        draws: whether the module drew random numbers.
    """

    call: Call
    value: Tensor
    weights: Tensor
    pulled: Mapping[str, Tensor]
    reached: frozenset[str]
    strangers: tuple[Tensor, ...]
    tolerance: float
    noise: float
    least: float
    largest: float
    precision: float
    draws: bool

    @staticmethod
    def of(call: Call) -> "Measure":
        """Run the module once as it is, forward and backward.

        Raises:
            NonFiniteError: the output holds NaN or infinity.
            ModelError: a graph of an earlier call is still part of it, the module writes to its own parameters, or its
                backward raises.
        """
        before, versions = _random_state(), _versions(call.module)
        graph = backward.Graph(call)
        _require_unwritten(call.module, versions)
        draws = not all(map(torch.equal, before, _random_state()))
        value = graph.value.detach()
        require_finite_rows(value, call.module)
        weights = random_like(value, 1)
        nodes = nodes_of(graph.value)
        strangers, within = tuple(_strangers(nodes, call)), narrowest(list(dtypes_of(nodes)))
        try:
            found = graph.gradients(weights)
        except RuntimeError as error:
            if "second time" not in str(error):
                raise
            raise _keeps(call.module) from error
        reached = frozenset(name for name, g in found.items() if g is not None)
        pulled = {
            n: torch.zeros_like(call.parameters[n]) if g is None else g.detach() for n, g in found.items()
        }
        tolerance, noise = scales(value, pulled, within)
        least = vanishing(value * weights, call.parameters)
        largest = max((rms(g) for g in pulled.values()), default=0.0)
        return Measure(
            call, value, weights, pulled, reached, strangers, tolerance, max(noise, least), least, largest,
            float(torch.finfo(within).eps), draws,
        )  # fmt: skip

    def direction(self) -> dict[str, Tensor]:
        """Tau with <G_p, tau_p> of about 1 for each tensor p, half of it along G_p and half random.

        Where G_p is rounding (of a key's bias, say), tau_p is as long as for the largest gradient: a J tau_p that is not
        0 shows, and rounding does not. Entries that autograd reaches and gives a gradient of 0 are left at 0: those
        of an embedding's padding row have one by convention, though f depends on them.
        """
        found = {}
        for number, (name, g) in enumerate(self.pulled.items()):
            wide = torch.promote_types(g.dtype, torch.float32)
            if name not in self.reached:
                found[name] = random_like(g, number).to(wide)
                continue
            root, length = math.sqrt(g.numel()), norm(g)
            if length <= self.least * root:
                found[name] = torch.zeros_like(g, dtype=wide)
                continue
            length = length if length > self.noise * root else max(self.largest, self.noise) * root
            found[name] = g.to(wide) / length**2
            if g.numel() <= _PERIOD:  # of a large tensor G's direction is as good as any, and takes less time
                noise = random_like(g, number).to(wide).mul_(g != 0)
                found[name].add_(noise, alpha=1 / (norm(noise) * length))
        return found

    def fault(self, value: Tensor, tangent: Tensor, tau: Params, pulled: Params) -> str | None:
        """What is wrong with an engine's f, J tau and J^T g; None if nothing is."""
        if value.shape != self.value.shape or far(value, self.value, self.tolerance):
            return "its output differs from the module's own"
        wrong = wrong_gradient(pulled, self.pulled, self.tolerance, self.noise)
        if wrong:
            return wrong
        shares = [inner(g, tau[name]) for name, g in self.pulled.items()]
        found = inner(tangent, self.weights)
        scale = max(math.hypot(*shares), 1.0 if any(shares) else 0.0)
        miss = abs(found - sum(shares))
        if scale == 0.0:
            return (
                None
                if not bool(tangent.any())
                else "it has a tangent where ordinary autograd has no gradient"
            )
        if not miss <= self.tolerance * scale * max(len(shares), 1) ** 0.5 + self._rounding(tau):
            return f"its J tau is wrong: <g, J tau> is {found:.6g} and ordinary autograd's <J^T g, tau> {sum(shares):.6g}"
        return None

    def _rounding(self, tau: Params) -> float:
        """What rounding makes of <G, tau>: each gradient is as exact as the largest one, whatever its own size."""
        lengths = (norm(tau[name]) * math.sqrt(g.numel()) for name, g in self.pulled.items())
        return _EXACT * self.precision * self.largest * math.hypot(*lengths)


def verify(engine: Engine, measure: Measure, theta0: Params) -> str | None:
    """What is wrong with an engine on one call; None if nothing is.

    Cost:
        A training step of the engine on that call.
    """
    tau = {name: delta.requires_grad_() for name, delta in measure.direction().items()}
    try:
        with torch.enable_grad():
            value, tangent = engine.jvp(measure.call, theta0, tau)
            pulled = _pulled(tangent, tau, measure.weights)
    except (torch.OutOfMemoryError, NonFiniteError):
        raise
    except Exception as error:  # whatever it is, the engine cannot do this module, which ran a moment ago
        return reason(error)
    return measure.fault(value, tangent.detach(), {n: t.detach() for n, t in tau.items()}, pulled)


def _pulled(tangent: Tensor, tau: Mapping[str, Tensor], weights: Tensor) -> dict[str, Tensor]:
    if not tangent.requires_grad:
        return {name: torch.zeros_like(delta) for name, delta in tau.items()}
    found = torch.autograd.grad(tangent, list(tau.values()), weights.to(tangent.dtype), allow_unused=True)
    return {n: torch.zeros_like(t) if g is None else g for (n, t), g in zip(tau.items(), found, strict=True)}


def reason(error: Exception) -> str:
    """An error in one line."""
    text = str(error).strip().partition("\n")[0].rstrip(".")
    return text if text else type(error).__name__


# -- the module itself ---------------------------------------------------------------------------------------------


class RandomError(ModelError):
    """A module that is no function of its inputs."""


def require_function(call: Call, value: Tensor) -> None:
    """Raise unless the module gives the same output again; it is asked more often if it draws random numbers.

    Raises:
        RandomError: two calls in eval mode differ; it names the innermost layer that gave two answers to one question.
    """
    for _ in range(_CALLS):
        before = _random_state()
        with torch.no_grad():
            again = call.again()
        if again.shape != value.shape or far(again, value, 1e-4):
            raise RandomError(
                f"{_random_layer(call)} gives another output when it is called again with the same inputs in eval mode, "
                "so f(x) is no function of x. Use layers that are deterministic in eval mode (`F.dropout` needs "
                "`training=self.training`), or pass the random numbers as an input."
            )
        if all(map(torch.equal, before, _random_state())):
            return


def _random_state() -> list[Tensor]:
    """The state of torch's generators, and of those of Python and NumPy as a hash."""
    others = [hash(random.getstate()), hash(np.random.get_state()[1].tobytes())]  # type: ignore[index]
    states = [torch.get_rng_state(), torch.tensor(others)]
    return [*states, torch.cuda.get_rng_state()] if torch.cuda.is_initialized() else states  # type: ignore[no-untyped-call]


def require_unchanged(call: Call, value: Tensor) -> None:
    """Raise if the module, after an engine has run it, does not give the output that it gave before.

    Raises:
        RandomError: it gives another output each time.
        ModelError: something of the engine's pass has remained where `Intact` does not look.
    """
    found: Any = None
    try:
        with torch.no_grad():
            found = call.again()
        same = type(found) in (type(value), nn.Parameter) and not far(found, value, 1e-4)
    except Exception:  # a tensor of ours that was kept makes the module fail in any way
        same = False
    if not same:
        if type(found) is type(value):
            with torch.no_grad():
                first = call.plain()
            require_function(call, first)
        raise _keeps(call.module)


def _keeps(module: nn.Module) -> ModelError:
    return ModelError(
        f"{type(module).__name__} keeps a tensor that it made from its parameters between calls, in a place outside its "
        "modules (a global, a class attribute, a cache of a function), so that later calls do not depend on them "
        "as they should. Keep it on the module itself, or make it anew in each call and empty that place."
    )


def _versions(module: nn.Module) -> dict[str, int]:
    """How often each parameter was written to."""
    return {name: parameter._version for name, parameter in module.named_parameters()}


def _require_unwritten(module: nn.Module, before: Mapping[str, int]) -> None:
    """Raise if a call has written to the module's own parameters."""
    written = [name for name, version in _versions(module).items() if version != before.get(name)]
    if written:
        raise ModelError(
            f"{type(module).__name__} writes to its own parameters when it is called ({listed(written)}), as layers do "
            "that set themselves from the first batch, and has now done so with rows of this one. Load it anew and "
            "call it once on a whole batch (`module(x)`); it can be linearised then, if it writes no more."
        )


def _strangers(nodes: Sequence[Any], call: Call) -> Iterator[Tensor]:
    """The leaves of a graph that are no trainable parameters and no inputs."""
    known = {id(tensor) for tensor in (*call.parameters.values(), *leaves((call.args, call.kwargs)))}
    found = (getattr(node, "variable", None) for node in nodes)
    return (leaf for leaf in found if leaf is not None and id(leaf) not in known)


def _random_layer(call: Call) -> str:
    """The first submodule to finish whose inputs were the same twice and whose outputs were not."""
    names = {layer: name for name, layer in call.module.named_modules()}
    first = _seen(call)
    for _ in range(_CALLS):
        for (layer, given, made), (other, again, differing) in zip(first, _seen(call), strict=False):
            if layer is not other:
                break
            if _equal(given, again) and not _equal(made, differing):
                return f"{names[layer]!r} ({type(layer).__name__})" if names[layer] else type(layer).__name__
    return type(call.module).__name__


_Seen: TypeAlias = tuple[nn.Module, list[Tensor], list[Tensor]]


def _seen(call: Call) -> list[_Seen]:
    """Each submodule with its inputs and outputs, in the order in which they finish."""
    seen: list[_Seen] = []
    with _watching(call.module, lambda *item: seen.append(item)), torch.no_grad():
        call.plain()
    return seen


@contextmanager
def _watching(module: nn.Module, note: Callable[[nn.Module, Any, Any], None]) -> Iterator[None]:
    hooks = [
        layer.register_forward_hook(
            lambda layer, args, kwargs, out: note(layer, _frozen((args, kwargs)), _frozen(out)),
            with_kwargs=True,
        )
        for layer in module.modules()
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _frozen(item: Any) -> list[Tensor]:
    """Copies of the tensors, since the module may go on to change them."""
    if isinstance(item, Tensor):
        return [item.detach().clone()]
    if isinstance(item, Mapping):
        return [tensor for part in item.values() for tensor in _frozen(part)]
    if isinstance(item, Sequence) and not isinstance(item, str):
        return [tensor for part in item for tensor in _frozen(part)]
    return []


def _equal(first: list[Tensor], second: list[Tensor]) -> bool:
    return len(first) == len(second) and all(
        a.shape == b.shape and not far(a, b, 1e-6) for a, b in zip(first, second, strict=True)
    )


def require_finite_rows(value: Tensor, module: nn.Module, places: Sequence[int] | None = None) -> None:
    """Raise if an output is NaN or infinite.

    Args:
        value: outputs, one row each.
        module: for the message.
        places: where the rows are in the user's data, if not in this batch alone.

    Raises:
        NonFiniteError: it names the rows, and a parameter or buffer that holds such a number.
    """
    bad = ~torch.isfinite(value.detach())
    if not bool(bad.any()):
        return
    rows = bad.reshape(len(bad), -1).any(1).nonzero().flatten().tolist() if value.ndim > 0 else []
    every = len(rows) == len(bad) > 1 if value.ndim else False
    if places is not None:
        rows = [places[row] for row in rows]
    if every:
        where = " in every row"
    else:
        where = f" in row {rows[0]}" if rows else ""
        where += f" and {len(rows) - 1} more" if rows[1:] else ""
    named = (*module.named_parameters(), *module.named_buffers())
    broken = next((n for n, t in named if moves(t) and not bool(torch.isfinite(t).all())), None)
    cause = (
        f"{broken!r} holds it already: load the weights again"
        if broken
        else "no weight does, so look at that row's inputs (an empty text has a mean over no tokens), or leave it out"
    )
    whole = "batch" if places is None else "data"
    raise NonFiniteError(
        f"the output of {type(module).__name__} holds NaN or infinity{where} of the {whole}; {cause}."
    )


# -- numbers -------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _normal() -> Tensor:
    return torch.randn(_PERIOD, generator=torch.Generator().manual_seed(0))


def random_like(tensor: Tensor, seed: int) -> Tensor:
    """Normal numbers that use up nobody's random numbers; they repeat after a prime number of entries, which is fast."""
    start, count = 1009 * seed % _PERIOD, tensor.numel()
    dtype = tensor.dtype if tensor.is_floating_point() else torch.float64
    found = _normal().repeat(-(-(start + count) // _PERIOD))[start : start + count]
    return found.view(tensor.shape).to(tensor.device, dtype)


def scales(value: Tensor, pulled: Params, within: torch.dtype = torch.float64) -> tuple[float, float]:
    """The relative difference that counts as rounding, and the root mean square below which a gradient does.

    Args:
        value: the output.
        pulled: gradients by parameter.
        within: the narrowest dtype that the module goes through, where it is known. float32 inside float64 leaves
            gradients that cancel as noisy as it would alone.
    """
    dtype = narrowest([value.dtype, *(g.dtype for g in pulled.values())])
    least = narrowest([dtype, within])
    tolerance = _ROUNDING[dtype if least == torch.float32 else least]
    return tolerance, _NOISE[least] * max((rms(g) for g in pulled.values()), default=0.0)


def wrong_gradient(found: Params, wanted: Params, tolerance: float, least: float) -> str | None:
    """Which tensor's gradient is not the wanted one, and by how much; None if all are.

    Args:
        found: J^T g by parameter.
        wanted: ordinary autograd's.
        tolerance: the largest relative difference of a tensor.
        least: below this root mean square a difference is rounding.
    """
    for name, gradient in wanted.items():
        if torch.equal(found[name], gradient):
            continue
        difference = rms(dense(found[name]).to(gradient) - gradient)
        if not difference <= max(least, tolerance * rms(gradient)):
            share = difference / max(rms(gradient), least, 1e-300)
            return f"its gradient of {name!r} differs from ordinary autograd's by {share:.2g} of its length"
    return None


def vanishing(terms: Tensor, parameters: Params) -> float:
    """The size per entry of a gradient that is 0 but for rounding: of a sum of terms that do not depend on theta, say."""
    length = math.hypot(*(norm(theta.detach()) for theta in parameters.values()))
    size = float(terms.detach().double().abs().sum())
    precision = float(torch.finfo(narrowest([terms.dtype])).eps)
    return _CANCELLED * precision * size / max(length, 1e-300)


def rounding(dtype: torch.dtype) -> float:
    """The largest relative difference of two ways to compute a number that is still rounding, autocast included."""
    return _ROUNDING[narrowest([dtype])]


def noise(dtype: torch.dtype) -> float:
    """The share of the largest of several quantities below which one is nothing but rounding."""
    return _NOISE[narrowest([dtype])]


def narrowest(dtypes: Sequence[torch.dtype]) -> torch.dtype:
    """The least precise floating-point dtype that takes part, autocast's included."""
    cast = [torch.get_autocast_dtype(kind) for kind in ("cpu", "cuda") if torch.is_autocast_enabled(kind)]
    known = [dtype for dtype in (*dtypes, *cast) if dtype in _ROUNDING]
    return max(known, key=lambda dtype: torch.finfo(dtype).eps, default=torch.float64)


def norm(tensor: Tensor) -> float:
    """The Euclidean norm, in float32 or wider."""
    return float(torch.linalg.vector_norm(tensor, dtype=torch.promote_types(tensor.dtype, torch.float32)))


def rms(tensor: Tensor) -> float:
    """The root mean square of the entries; 0 if there are none."""
    return norm(tensor) / math.sqrt(tensor.numel()) if tensor.numel() else 0.0


def inner(first: Tensor, second: Tensor) -> float:
    """The inner product, in float32 or wider."""
    wide = torch.promote_types(torch.promote_types(first.dtype, second.dtype), torch.float32)
    return float(torch.dot(first.detach().to(wide).flatten(), second.detach().to(wide).flatten()))


def far(found: Tensor, wanted: Tensor, tolerance: float) -> bool:
    """Whether two tensors differ by more than a share of the largest entry."""
    if not wanted.numel():
        return False
    first, second = found.detach().double(), wanted.detach().double()
    if torch.equal(first, second):
        return False
    scale = (
        second[torch.isfinite(second)].abs().max()
        if bool(torch.isfinite(second).any())
        else second.new_zeros(())
    )
    same = (first == second) | (first.isnan() & second.isnan())
    gap = torch.where(same, 0.0, first - second).abs().max()
    return not bool(gap <= tolerance * scale)
