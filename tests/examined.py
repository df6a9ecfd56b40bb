"""What tauspan does with one model, held against ordinary autograd on the module itself."""

import time
import warnings
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import tauspan as ts
from tauspan.errors import TauspanError
from tauspan.linear import linearize
from tauspan.models.encoder import single_tensor

OUTPUTS = 2


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Reader(nn.Module):
    """A model whose outputs are two numbers a row: random weights of everything that it gives."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, **inputs: Any) -> Tensor:
        return read(single_tensor(self.model(**inputs)))


def read(output: Tensor) -> Tensor:
    flat = output.flatten(1)
    weights = drawn(flat.shape[1], OUTPUTS, seed=7).to(flat) / flat.shape[1] ** 0.5
    return flat @ weights


@dataclass
class Truth:
    value: Tensor
    rows: Tensor  # of J, (N O, P)
    tau: dict[str, Tensor]
    tangent: Tensor
    weights: Tensor
    pulled: dict[str, Tensor]


def truth(model: nn.Module, inputs: dict[str, Any]) -> Truth:
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad and p.is_floating_point()}
    value = read(single_tensor(model(**inputs)))
    rows = []
    for entry in value.flatten():
        found = torch.autograd.grad(entry, list(parameters.values()), retain_graph=True, allow_unused=True)
        rows.append(torch.cat([
            (torch.zeros_like(p) if g is None else g.to_dense()).flatten()
            for p, g in zip(parameters.values(), found, strict=True)]))
    jac = torch.stack(rows)
    tau = {n: drawn(*p.shape, seed=40 + k).to(p) for k, (n, p) in enumerate(parameters.items())}
    weights = drawn(*value.shape, seed=9).to(value)
    parts = torch.split(weights.flatten() @ jac, [p.numel() for p in parameters.values()])
    pulled = {n: part.view(p.shape) for (n, p), part in zip(parameters.items(), parts, strict=True)}
    tangent = (jac @ torch.cat([t.flatten() for t in tau.values()])).view(value.shape)
    return Truth(value.detach(), jac, tau, tangent, weights, pulled)


def gap(found: Tensor, wanted: Tensor) -> float:
    found, wanted = found.detach().double(), wanted.detach().double()
    return float((found - wanted).norm() / wanted.norm().clamp_min(1e-300)) if wanted.numel() else 0.0


def gradient_gap(found: dict[str, Tensor], wanted: dict[str, Tensor], floor: float = 1e-3) -> tuple[float, str]:
    rms = {n: float(g.double().square().mean().sqrt()) if g.numel() else 0.0 for n, g in wanted.items()}
    most = max(rms.values())
    worst = (0.0, "")
    for n, g in wanted.items():
        if not g.numel(): continue
        d = float((found[n].double() - g.double()).square().mean().sqrt())
        e = d / max(rms[n], floor * most, 1e-300)
        worst = max(worst, (e, n))
    return worst


@dataclass
class Outcome:
    what: str = ""
    error: float = 0.0
    note: str = ""


def attempt(go: Any) -> Outcome:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            what, error = go()
            out = Outcome(what, error)
        except TauspanError as e:
            out = Outcome("refused", 0.0, f"{type(e).__name__}: {e}")
        except Exception as e:
            import traceback; traceback.print_exc()
            out = Outcome("RAW", 0.0, f"{type(e).__name__}: {e}")
    told = [str(w.message) for w in caught if issubclass(w.category, RuntimeWarning)]
    if told and not out.note:
        out.note = " | ".join(dict.fromkeys(told))
    return out


def tangents(model: nn.Module, inputs: dict[str, Any], wanted: Truth, engine: Any) -> Any:
    def go():
        lin = linearize(model, engine=engine)
        assert set(lin.tau) == set(wanted.tau), set(lin.tau) ^ set(wanted.tau)
        with torch.no_grad():
            for key, tau in lin.tau.items():
                tau.copy_(wanted.tau[key])
        value, tangent = lin.tangent(**inputs)
        errors = [gap(read(value), wanted.value), gap(read(tangent), wanted.tangent)]
        found = torch.autograd.grad(read(tangent), list(lin.tau.values()), wanted.weights.to(tangent), allow_unused=True)
        pulled = {n: torch.zeros_like(t) if g is None else g for (n, t), g in zip(lin.tau.items(), found, strict=True)}
        ge = gradient_gap(pulled, wanted.pulled)
        both = lin.tangent(**inputs, vectors=[wanted.tau, {k: -t for k, t in wanted.tau.items()}])[1]
        errors += [gap(read(both[0]), wanted.tangent), gap(read(both[1]), -wanted.tangent)]
        return f"{lin.engine} {max(errors):.1e} {ge[0]:.1e} {ge[1]}", max(*errors, ge[0])
    return attempt(go)


def cached(model, inputs, wanted, kind):
    def go():
        lin = linearize(Reader(model))
        cache = lin.cache([inputs], kind)
        cell = cache[0].cell
        tau = {f"model.{n}": t for n, t in wanted.tau.items()}
        errors = [gap(cell.push(tau), wanted.tangent)]
        pulled = {n.removeprefix("model."): g for n, g in cell.pull(wanted.weights).items()}
        ge = gradient_gap(pulled, wanted.pulled)
        return f"{cache.kind} {errors[0]:.1e} {ge[0]:.1e} {ge[1]}", max(*errors, ge[0])
    return attempt(go)


def kernel(model, inputs, wanted, outputs):
    def go():
        k = ts.TangentKernel(Reader(model), inputs, outputs=outputs)
        w = torch.tensor([1.0, -1.0] if outputs == "contrast" else [1.0, 1.0], dtype=torch.float64) / 2**0.5
        rows = torch.einsum("o,nop->np", w, wanted.rows.view(-1, OUTPUTS, wanted.rows.shape[1]).double())
        want = rows @ rows.T
        e = gap(k.dense(), want)
        return f"{k._tiles.backend}{' together' if k.left.together else ''} {e:.1e}", e
    return attempt(go)
