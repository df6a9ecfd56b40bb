"""Steps from caches: the primal state, the Jacobian factors, and the features below the last layer."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from benchmarks.baselines import PaperModel, ordinary
from benchmarks.rows import Row, Setting, row
from benchmarks.shapes import SHAPES, Shape
from benchmarks.timing import Spread, interleaved, once, ratio
from torch import Tensor

from tauspan.tangent import linearize

CLASSES = 4  # the Jacobian factors grow with the number of outputs


@dataclass(frozen=True)
class Built:
    """A step from a cache, and what the cache took."""

    step: Callable[[], None]
    seconds: float
    bytes: int


def caches(setting: Setting) -> list[Row]:
    """The rows of the first chosen shape, under a head with four outputs."""
    return _of(SHAPES[setting.names()[0]], setting)


def _of(shape: Shape, setting: Setting) -> list[Row]:
    rows = setting.batch or shape.batch
    batch = shape.inputs(rows).to(setting.device)
    gradient = torch.randn(rows, CLASSES, device=setting.device) / rows
    work = _uncached(shape, batch, gradient, setting)
    built = {
        kind: cached(shape, kind, params, batch, gradient, setting)
        for kind, params in (("primal", "all"), ("factors", "all"), ("features", "last:1"))
    }
    work |= {kind: one.step for kind, one in built.items()}
    taken = interleaved(work, setting.rounds, device=setting.device)

    def compared(kind: str, against: str, what: str, note: str = "") -> Row:
        goal = f"{kind} / {against}"
        return row(
            f"{shape.name}: {what} / {against}",
            ratio(taken, kind, against, setting.clock),
            setting,
            goal,
            note=note,
        )

    few = f"C = {CLASSES}, all parameters"
    found = [
        compared("primal", "ordinary", "step from the primal state"),
        compared("factors", "paper", "step from Jacobian factors", few),
        compared("factors", "ordinary", "step from Jacobian factors", few),
        compared("features", "full step", "last layer from cached features"),
    ]
    for kind, one in built.items():
        held = one.bytes / 2**20 / rows
        found += [
            row(f"{shape.name}: cache {kind}, memory a row", Spread(held, held, held), setting, unit="MiB"),
            row(
                f"{shape.name}: cache {kind}, time to build",
                Spread(*[one.seconds] * 3),
                setting,
                unit="s",
                note="once",
            ),
        ]
    return found


def _uncached(
    shape: Shape, batch: Tensor, gradient: Tensor, setting: Setting
) -> dict[str, Callable[[], None]]:
    plain, _ = ordinary(shape.classifier(CLASSES).to(setting.device))
    paper = PaperModel(shape.classifier(CLASSES, "eager").to(setting.device))
    full = linearize(shape.classifier(CLASSES).to(setting.device))
    return {
        "ordinary": _step(lambda: plain(batch), plain.parameters, gradient, setting),
        "paper": _step(lambda: paper(batch), paper.parameters, gradient, setting),
        "full step": _step(lambda: full(batch), full.parameters, gradient, setting),
    }


def _step(
    forward: Callable[[], Tensor], parameters: Callable[[], Any], gradient: Tensor, setting: Setting
) -> Callable[[], None]:
    run = setting.cast(forward)

    def step() -> None:
        for parameter in parameters():
            parameter.grad = None
        outputs = run()
        outputs.backward(gradient.to(outputs.dtype))  # type: ignore[no-untyped-call]

    return step


def cached(shape: Shape, kind: Any, params: str, batch: Tensor, gradient: Tensor, setting: Setting) -> Built:
    """A cache of one batch, built and timed."""
    tangent = linearize(shape.classifier(CLASSES).to(setting.device), params)
    with torch.no_grad():
        for tau in tangent.parameters():
            tau.normal_(std=1e-3)
    held: list[Any] = []
    sample = once(lambda: held.append(tangent.cache([batch], kind=kind)), setting.device)
    cache = held[0]
    step = _step(lambda: cache[0](), tangent.parameters, gradient, setting)
    return Built(step, getattr(sample, setting.clock), cache.bytes)
