"""What tauspan does with one model, held against ordinary autograd on the module itself.

The oracle is every row of J by reverse mode, of a copy in float64 where the model runs in it. Gradients are compared for
each parameter tensor; one that is below a thousandth of the largest (a hundredth in float32) is compared with that.
"""

import copy
import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from benchmarks.families.examples import Example, anew
from benchmarks.families.inputs import drawn
from safetensors.torch import load_file
from torch import Tensor, nn

import tauspan as ts
from tauspan.core.errors import TauspanError
from tauspan.models.encoder import single_tensor
from tauspan.tangent import linearize

OUTPUTS = 2
# The largest relative difference, by the narrowest dtype that the model goes through: many compute a softmax or a norm
# in float32 whatever their own.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 3e-5, torch.bfloat16: 5e-2}
_REMADE = 1e-5  # difference of outputs that buffers leave which no file holds: they are made anew, in float32 or float64
_SINGLE = 1e-3  # where the oracle is float32 itself
_SCALE = 0.01  # of a displacement that is applied

State = Literal["right", "refused", "wrong", "raw error"]


@dataclass(frozen=True)
class Outcome:
    """What came of one verb.

    Args:
        verb: what was asked.
        state: `"right"`, `"refused"` (with tauspan's own error), `"wrong"` or `"raw error"` (of another library).
        path: how the answer was made.
        error: the largest relative difference from the oracle.
        said: the error, or the warnings of a run that was right.
    """

    verb: str
    state: State
    path: str = ""
    error: float = 0.0
    said: str = ""

    @property
    def fails(self) -> bool:
        """Whether this must not be."""
        return self.state in ("wrong", "raw error")

    def __str__(self) -> str:
        return f"{self.verb}: {self.state} {self.path} {self.error:.1e} {self.said}".rstrip()


class Reader(nn.Module):
    """A model whose outputs are two numbers a row: the same random weights of everything that it gives for a row."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, **inputs: Any) -> Tensor:
        """The two numbers, (N, 2)."""
        return read(single_tensor(self.model(**inputs)))


def read(output: Tensor) -> Tensor:
    """Two numbers a row of an output (N, ...)."""
    flat = output.flatten(1)
    weights = drawn(flat.shape[1], OUTPUTS, seed=7).to(flat) / flat.shape[1] ** 0.5
    return flat @ weights


@dataclass(frozen=True)
class Truth:
    """What autograd says of a `Reader`.

    Args:
        value: f, (N, 2).
        rows: J, (2 N, P).
        tau: a random displacement by name; 0 in an embedding's padding row, which autograd leaves out by convention
            though f depends on it.
        tangent: J tau.
        weights: g, of f's shape.
        pulled: J^T g by name.
        tolerance: what counts as rounding in this model.
    """

    value: Tensor
    rows: Tensor
    tau: Mapping[str, Tensor]
    tangent: Tensor
    weights: Tensor
    pulled: Mapping[str, Tensor]
    tolerance: float

    @property
    def floor(self) -> float:
        """The share of the largest gradient below which others are its rounding, as a key's bias is."""
        return 1e-3 if self.tolerance < TOLERANCE[torch.float32] else 1e-2

    @staticmethod
    def of(example: Example) -> "Truth":
        """From a copy in float64 where there is one."""
        model = copy.deepcopy(example.model if example.oracle is None else example.oracle)
        parameters = {n: p for n, p in model.named_parameters() if p.requires_grad and p.is_floating_point()}
        value = read(single_tensor(model(**example.given(example.oracle is not None))))
        tolerance = TOLERANCE[torch.float32 if example.single else narrowest(value)]
        if example.oracle is None:  # both sides are rounded, and a bias that cancels is nothing but that
            tolerance = _SINGLE
        jacobian = torch.stack([
            _row(entry, list(parameters.values())) for entry in value.flatten()
        ])  # fmt: skip
        tau = {n: drawn(*p.shape, seed=40 + k).to(p) for k, (n, p) in enumerate(parameters.items())}
        for name, row in _padding(model):
            if name in tau:
                tau[name][row] = 0
        weights = drawn(*value.shape, seed=9).to(value).double()
        parts = torch.split(weights.flatten() @ jacobian, [p.numel() for p in parameters.values()])
        pulled = {n: part.view(p.shape) for (n, p), part in zip(parameters.items(), parts, strict=True)}
        tangent = (jacobian @ torch.cat([t.flatten().double() for t in tau.values()])).view(value.shape)
        return Truth(value.detach(), jacobian, tau, tangent, weights, pulled, tolerance)


def _row(entry: Tensor, parameters: list[Tensor]) -> Tensor:
    found = torch.autograd.grad(entry, parameters, retain_graph=True, allow_unused=True)
    dense = [
        torch.zeros_like(p) if g is None else g.to_dense() for p, g in zip(parameters, found, strict=True)
    ]
    return torch.cat([g.flatten() for g in dense]).double()  # long sums of float32 would round


def _padding(model: nn.Module) -> list[tuple[str, int]]:
    known = {id(p): name for name, p in model.named_parameters()}
    layers = [
        m for m in model.modules() if getattr(m, "padding_idx", None) is not None and hasattr(m, "weight")
    ]
    return [(known[id(m.weight)], m.padding_idx) for m in layers if id(m.weight) in known]


def narrowest(value: Tensor) -> torch.dtype:
    """The least precise dtype in a tensor's graph."""
    stack, seen, found = [value.grad_fn], set(), {value.dtype}
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        found |= {meta.dtype for meta in getattr(node, "_input_metadata", ())}
        stack += [after for after, _ in node.next_functions]
    return max((dtype for dtype in found if dtype in TOLERANCE), key=lambda dtype: torch.finfo(dtype).eps)


def gap(found: Tensor, wanted: Tensor) -> float:
    """The relative difference of two tensors."""
    found, wanted = found.detach().double(), wanted.detach().double()
    if found.shape != wanted.shape:
        return float("inf")
    return float((found - wanted).norm() / wanted.norm().clamp_min(1e-300)) if wanted.numel() else 0.0


def gradient_gap(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], floor: float) -> float:
    """The largest relative difference of a parameter's gradient; below a share of the largest one, of that share."""
    sizes = {name: _rms(g) for name, g in wanted.items()}
    most = max(sizes.values(), default=0.0)
    return max(
        (
            _rms(found[name].double() - g.double()) / max(sizes[name], floor * most, 1e-300)
            for name, g in wanted.items()
        ),
        default=0.0,
    )


def _rms(tensor: Tensor) -> float:
    return float(tensor.double().square().mean().sqrt()) if tensor.numel() else 0.0


# -- verbs -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Asked:
    """One model and what is true of it."""

    example: Example
    truth: Truth

    @property
    def model(self) -> nn.Module:
        """As it is given to tauspan."""
        return self.example.model

    @property
    def inputs(self) -> dict[str, Any]:
        """In its dtype."""
        return self.example.given(not self.example.single)

    def tangents(self, engine: str) -> tuple[str, float]:
        """`linearize`: f, J tau, J^T g, and several directions at once, with some engine first."""
        lin = linearize(self.model, engine=engine)  # type: ignore[arg-type]
        with torch.no_grad():
            for name, tau in lin.tau.items():
                tau.copy_(self.truth.tau[name])
        value, tangent = lin.tangent(**self.inputs)
        found = torch.autograd.grad(
            read(tangent), list(lin.tau.values()), self.truth.weights.to(tangent), allow_unused=True
        )
        pulled = {
            n: torch.zeros_like(t) if g is None else g
            for (n, t), g in zip(lin.tau.items(), found, strict=True)
        }
        opposite = {name: -tau for name, tau in lin.tau.items()}
        several = lin.tangent(**self.inputs, vectors=[lin.tau, opposite])[1]
        errors = [
            gap(read(value), self.truth.value),
            gap(read(tangent), self.truth.tangent),
            gap(read(several[0]), self.truth.tangent),
            gap(read(several[1]), -self.truth.tangent),
            gradient_gap(pulled, self.truth.pulled, self.truth.floor),
        ]
        missing = set(lin.tau) ^ set(self.truth.tau)
        return lin.engine, float("inf") if missing else max(errors)

    def cached(self, kind: Literal["factors", "primal"]) -> tuple[str, float]:
        """`Linearized.cache`: J tau and J^T g."""
        lin = linearize(Reader(self.model))
        cache = lin.cache([self.inputs], kind)
        with torch.no_grad():
            for name, tau in lin.tau.items():
                tau.copy_(self.truth.tau[name.removeprefix("model.")])
        value, tangent = cache[0].tangent()
        found = torch.autograd.grad(
            tangent, list(lin.tau.values()), self.truth.weights.to(tangent), allow_unused=True
        )
        pulled = {
            n.removeprefix("model."): torch.zeros_like(t) if g is None else g
            for (n, t), g in zip(lin.tau.items(), found, strict=True)
        }
        errors = gap(value, self.truth.value), gap(tangent, self.truth.tangent)
        return kind, max(*errors, gradient_gap(pulled, self.truth.pulled, self.truth.floor))

    def kernel(self) -> tuple[str, float]:
        """`TangentKernel`: K of the difference of the two outputs."""
        found = ts.TangentKernel(Reader(self.model), self.inputs, outputs="contrast")
        weights = torch.tensor([1.0, -1.0], dtype=torch.float64) / OUTPUTS**0.5
        rows = torch.einsum("o,nop->np", weights, self.truth.rows.unflatten(0, (-1, OUTPUTS)))
        error = gap(found.dense(), rows @ rows.T)
        path = "rows written out" if found._tiles.backend == "contraction" else "layers' factors"
        return path + (" of the whole batch" if found.left.together else ""), error

    def edited(self) -> tuple[str, float]:
        """`apply`: theta0 + tau as an ordinary model, f + J tau as a tangent model; theta0 as it was."""
        before = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        ordinary, tangent = self._edits()
        wanted = anew(self.model)
        with torch.no_grad():
            for name, p in wanted.named_parameters():
                if name in self.truth.tau:
                    p += _SCALE * self.truth.tau[name].to(p)
            f_lin = self.truth.value + _SCALE * self.truth.tangent
            errors = [gap(_output(ordinary, self.inputs), _output(wanted, self.inputs))]
            errors.append(gap(read(_output(tangent, self.inputs)), f_lin))
        errors += [
            0.0 if torch.equal(p, before[n]) else float("inf") for n, p in self.model.named_parameters()
        ]
        return "", max(errors)

    def saved(self) -> tuple[str, float]:
        """`save`, read back: the tensors that the model's own library writes, under its names, and the output."""
        edited: Any = self._edits()[0]
        with tempfile.TemporaryDirectory() as place, torch.no_grad():
            ours, theirs = Path(place) / "ours", Path(place) / "theirs"
            ts.save(edited, ours)
            again, path = self.example.read_back(ours)
            if hasattr(edited, "save_pretrained"):
                edited.save_pretrained(theirs)
                same = _equal(_tensors_in(ours), _tensors_in(theirs))
                edited = self.example.read_back(theirs)[
                    0
                ]  # it may make some anew, as a padding's row of zeros
            else:
                same = True
            first, second = _output(edited, self.inputs), _output(edited, self.inputs)
            random = not torch.equal(first, second)  # which has no output to compare
            same &= random or gap(_output(again, self.inputs), first) < _REMADE
            return path, _state_gap(again, edited) if same else float("inf")

    def loaded(self) -> tuple[str, float]:
        """`load` of what `save` wrote, ordinary and tangent, into the module (tokenizers and processors are not made)."""
        ordinary, tangent = self._edits()
        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            ts.save(ordinary, Path(folder) / "ordinary")
            ts.save(tangent, Path(folder) / "tangent")
            first = ts.load(Path(folder) / "ordinary", module=anew(self.model))
            second = ts.load(Path(folder) / "tangent", module=anew(self.model))
            errors = [_state_gap(first.backbone, ordinary), _state_gap(second, tangent)]
            errors.append(gap(second(self.inputs), _output(tangent, self.inputs)))
        return "", max(errors)

    def _edits(self) -> tuple[nn.Module, nn.Module]:
        """The model edited by a small tau, as an ordinary and as a tangent one."""
        lin = linearize(self.model)
        with torch.no_grad():
            for name, tau in lin.tau.items():
                tau.copy_(self.truth.tau[name])
        vector = lin.task_vector()
        return (
            ts.apply(self.model, vector.as_regime("standard"), _SCALE),
            ts.apply(self.model, vector, _SCALE),
        )


def _output(module: nn.Module, inputs: Mapping[str, Any]) -> Tensor:
    return single_tensor(module(**inputs))


def _tensors_in(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder's safetensors files."""
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def _equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n].to(one[n].dtype)) for n in one)


def _state_gap(found: nn.Module, wanted: nn.Module) -> float:
    return 0.0 if _equal(found.state_dict(), wanted.state_dict()) else float("inf")


VERBS: dict[str, Callable[[Asked], tuple[str, float]]] = {
    "one pass": lambda asked: asked.tangents("onepass"),
    "reference": lambda asked: asked.tangents("reference"),
    "factors": lambda asked: asked.cached("factors"),
    "primal": lambda asked: asked.cached("primal"),
    "kernel": Asked.kernel,
    "apply": Asked.edited,
    "save": Asked.saved,
    "load": Asked.loaded,
}


def examine(example: Example, verbs: tuple[str, ...] = tuple(VERBS)) -> list[Outcome]:
    """What came of each verb."""
    asked = Asked(example, Truth.of(example))
    return [_outcome(verb, asked) for verb in verbs]


def _outcome(verb: str, asked: Asked) -> Outcome:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            path, error = VERBS[verb](asked)
        except TauspanError as refusal:
            return Outcome(verb, "refused", said=f"{type(refusal).__name__}: {refusal}")
        except Exception as error:  # what any other library raises is what this looks for
            return Outcome(verb, "raw error", said=f"{type(error).__name__}: {error}")
    told = " | ".join(dict.fromkeys(str(one.message) for one in caught if one.category is RuntimeWarning))
    state: State = "right" if error <= asked.truth.tolerance else "wrong"
    return Outcome(verb, state, path, error, told)
