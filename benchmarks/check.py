"""What it costs that answers are checked: in training steps, and as a share of kernels and caches."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from benchmarks.rows import Row, Setting, row
from benchmarks.shapes import SHAPES, Shape
from benchmarks.timing import Sample, Spread, interleaved, ratio, spread
from torch import Tensor, nn

from tauspan.core.computing import Check
from tauspan.kernel import TangentKernel
from tauspan.tangent import Linearized, linearize

CLASSES = 4
EPOCH = 200  # steps of a small epoch, for the share
CHECKS: tuple[Check, ...] = ("auto", "off")


class _Headed(nn.Module):
    """The shape's encoder under a small head, as tasks have it."""

    def __init__(self, encoder: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head

    def forward(self, batch: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.head(self.encoder(batch))
        return logits


def check(setting: Setting) -> list[Row]:
    """The rows of all chosen shapes."""
    return [one for name in setting.names() for one in _of(SHAPES[name], setting)]


def _of(shape: Shape, setting: Setting) -> list[Row]:
    encoder = shape.encoder("sdpa").to(setting.device)
    batch = shape.inputs(setting.batch or shape.batch).to(setting.device)
    with torch.no_grad():
        width = encoder(batch[:1]).shape[-1]
    model = _Headed(encoder, nn.Linear(width, CLASSES).to(setting.device)).eval()
    return [*_training(shape, model, batch, setting), *_rest(shape, model, batch, setting)]


def _training(shape: Shape, model: nn.Module, batch: Tensor, setting: Setting) -> list[Row]:
    """The first step of a run, with the check and without; and a step of it later."""
    trained = linearize(model, check="off")
    work: dict[str, Callable[[], object]] = {
        **{kind: partial(_first, model, kind, batch) for kind in CHECKS},
        "later": lambda: _step(trained, batch),
    }
    taken = interleaved(work, setting.rounds, device=setting.device)
    cost = _extra(taken["auto"], taken["off"], taken["later"], setting)
    percent = Spread(*(100 * value / EPOCH for value in (cost.value, cost.low, cost.high)))
    return [
        row(f"{shape.name}: check of a run", cost, setting, "check / step", unit="steps"),
        row(
            f"{shape.name}: check of a run, share of an epoch of {EPOCH} steps",
            percent,
            setting,
            "check / epoch",
            "%",
        ),
    ]


def _rest(shape: Shape, model: nn.Module, batch: Tensor, setting: Setting) -> list[Row]:
    """A kernel of the batch, and factor caches of two batches, with the check and without."""
    rows = []
    made: dict[str, Callable[[nn.Module, Tensor, Check], object]] = {
        "kernel": _kernel,
        "factor cache": _cache,
    }
    for name, make in made.items():
        work: dict[str, Callable[[], object]] = {kind: partial(make, model, batch, kind) for kind in CHECKS}
        taken = interleaved(work, setting.rounds, device=setting.device)
        rows.append(
            row(
                f"{shape.name}: {name}, checked / unchecked",
                ratio(taken, "auto", "off", setting.clock),
                setting,
            )
        )
    return rows


def _kernel(model: nn.Module, batch: Tensor, kind: Check) -> Tensor:
    return TangentKernel(model, batch, outputs="sum", check=kind).dense()


def _cache(model: nn.Module, batch: Tensor, kind: Check) -> object:
    return linearize(model, check=kind).cache([batch, batch], "factors")


def _first(model: nn.Module, kind: Check, batch: Tensor) -> None:
    _step(linearize(model, check=kind), batch)


def _step(tangent: Linearized, batch: Tensor) -> None:
    for tau in tangent.parameters():
        tau.grad = None
    tangent(batch).square().sum().backward()


def _extra(
    checked: Sequence[Sample], unchecked: Sequence[Sample], step: Sequence[Sample], setting: Setting
) -> Spread:
    """How many steps the check takes, round by round."""
    rounds = zip(checked, unchecked, step, strict=True)
    clock = setting.clock
    return spread([(getattr(a, clock) - getattr(b, clock)) / getattr(c, clock) for a, b, c in rounds])
