"""The step, inference and the optimiser: tauspan's engine against the paper's approach and ordinary fine-tuning."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from benchmarks.baselines import PaperModel, ordinary
from benchmarks.rows import Row, Setting, row
from benchmarks.shapes import SHAPES, Shape
from benchmarks.timing import interleaved, once, ratio, seconds
from torch import Tensor, nn

from tauspan.tangent import linearize

PLAIN = ("ordinary", "paper", "onepass")


@dataclass(frozen=True)
class Variant:
    """One way to compute a model on a batch, and what trains in it."""

    forward: Callable[[], Tensor]
    parameters: list[Tensor]
    optimiser: torch.optim.Optimizer

    def step(self, gradient: Tensor) -> None:
        """Forward, and backward from a given gradient of the outputs; fresh gradients each time."""
        for parameter in self.parameters:
            parameter.grad = None
        outputs = self.forward()
        outputs.backward(gradient.to(outputs.dtype))  # type: ignore[no-untyped-call]

    def inference(self) -> None:
        """Forward without a graph."""
        with torch.no_grad():
            self.forward()


def variant(kind: str, shape: Shape, setting: Setting, rows: int | None = None) -> Variant:
    """One of the ways on the same weights and inputs.

    Args:
        kind: `"ordinary"`, `"paper"`, or an engine of `linearize`; with `"compiled "` in front, the first and the last
            under `torch.compile`.
        shape: the model.
        setting: device and dtype.
        rows: of the batch; None takes the setting's, or the shape's own.
    """
    module = shape.encoder("eager" if kind == "paper" else "sdpa").to(setting.device)
    batch = shape.inputs(rows or setting.batch).to(setting.device)
    built = torch.compile if kind.startswith("compiled ") else _as_it_is
    kind = kind.removeprefix("compiled ")
    if kind == "ordinary":
        plain, optimiser = ordinary(module)
        called = built(plain)
        return Variant(setting.cast(lambda: called(batch)), list(plain.parameters()), optimiser)
    if kind == "paper":
        paper = PaperModel(module)
        return Variant(setting.cast(lambda: paper(batch)), list(paper.theta), paper.optimiser())
    engine: Any = kind
    tangent = linearize(module, engine=engine)
    with torch.no_grad():
        for tau in tangent.parameters():
            tau.normal_(std=1e-3)  # zeros might be cheaper than numbers
    made = built(tangent)
    fused = torch.optim.AdamW(tangent.parameters(), lr=1e-3, fused=True)
    return Variant(setting.cast(lambda: made(batch)), list(tangent.parameters()), fused)


def _as_it_is(module: nn.Module) -> Callable[..., Any]:
    return module


def steps(setting: Setting) -> list[Row]:
    """The rows of all chosen shapes."""
    return [one for name in setting.names() for one in _of(SHAPES[name], setting)]


def tuned(shape: Shape, setting: Setting) -> list[Row]:
    """The rows of the compiled step of one shape."""
    variants = {kind: variant(kind, shape, setting) for kind in ("ordinary", "paper")}
    gradient = torch.randn_like(variants["ordinary"].forward().detach())
    return _tuned(
        shape, {kind: _stepping(one, gradient) for kind, one in variants.items()}, gradient, setting
    )


def _of(shape: Shape, setting: Setting) -> list[Row]:
    variants = {kind: variant(kind, shape, setting) for kind in PLAIN}
    gradient = torch.randn_like(variants["ordinary"].forward().detach())
    clock, rows = setting.clock, []

    work = {kind: _stepping(one, gradient) for kind, one in variants.items()}
    taken = interleaved(work, setting.rounds, device=setting.device)
    for kind in PLAIN:
        rows.append(row(f"{shape.name}: step, {kind}", seconds(taken, kind, clock), setting, unit="s"))
    for against in ("paper", "ordinary"):
        found = ratio(taken, "onepass", against, clock)
        rows.append(row(f"{shape.name}: tangent step / {against}", found, setting, f"step / {against}"))

    passes = {kind: one.inference for kind, one in variants.items()}
    taken = interleaved(passes, setting.rounds, device=setting.device)
    for against in ("paper", "ordinary"):
        found = ratio(taken, "onepass", against, clock)
        goal = f"inference / {against}"
        rows.append(row(f"{shape.name}: tangent inference / {against}", found, setting, goal))

    rows.append(_optimisers(shape, variants, setting))
    return rows if setting.short else rows + _tuned(shape, work, gradient, setting)


def _stepping(one: Variant, gradient: Tensor) -> Callable[[], None]:
    return lambda: one.step(gradient)


def _optimisers(shape: Shape, variants: dict[str, Variant], setting: Setting) -> Row:
    """Fused AdamW on tau against default AdamW on theta; the gradients of the last step are there."""
    for one in variants.values():
        for parameter in one.parameters:
            parameter.grad = torch.full_like(parameter, 1e-3)
    work = {kind: variants[kind].optimiser.step for kind in ("paper", "onepass")}
    taken = interleaved(work, setting.rounds, device=setting.device)
    found = ratio(taken, "onepass", "paper", setting.clock)
    return row(f"{shape.name}: optimiser step / default AdamW", found, setting, "optimiser")


def _tuned(
    shape: Shape, work: dict[str, Callable[[], None]], gradient: Tensor, setting: Setting
) -> list[Row]:
    """The step under `torch.compile`, beside ordinary training with and without it."""
    stepping, first = {}, {}
    for kind in ("compiled onepass", "compiled ordinary"):
        stepping[kind] = _stepping(variant(kind, shape, setting), gradient)
        first[kind] = once(stepping[kind], setting.device).wall
    note = f"first step {first['compiled onepass']:.0f} s, ordinary {first['compiled ordinary']:.0f} s"
    taken = interleaved({**work, **stepping}, setting.rounds, device=setting.device)
    rows = []
    for against in ("paper", "ordinary", "compiled ordinary"):
        found = ratio(taken, "compiled onepass", against, setting.clock)
        rows.append(
            row(f"{shape.name}: compiled step / {against}", found, setting, f"tuned / {against}", note=note)
        )
    return rows
