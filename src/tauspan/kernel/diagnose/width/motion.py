"""`CoordinateCheck`: how features moved at several widths, with slopes in the width and the regime that they show."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from tauspan.core.errors import UsageError, listed, nearest
from tauspan.core.report import Cell, Report, Table
from tauspan.core.results import Result
from tauspan.kernel import Estimate

MARGIN = 0.25  # half the distance between the exponents 0 and 1/2 of the regimes
ERRORS = 2  # standard errors on either side of a slope
SeenRegime: TypeAlias = Literal["unstable", "trivial", "kernel", "feature learning", "unclear"]


def width_slope(widths: Sequence[int], values: Tensor) -> Estimate | None:
    """The slope of log values in log width by least squares: the mean over seeds, and its standard error.

    Args:
        widths: W numbers.
        values: shape (W, S), a column for each seed.

    Returns:
        None where a value is 0 or not finite; the standard error is None for one seed.

    Example:
        >>> width_slope([1, 4, 16], torch.tensor([[1.0], [2.0], [4.0]])).value
        0.5
    """
    if not bool((torch.isfinite(values) & (values > 0)).all()):
        return None
    slopes = np.polyfit(np.log(widths), np.log(values.double().numpy()), 1)[0]
    error = float(slopes.std(ddof=1) / math.sqrt(len(slopes))) if len(slopes) > 1 else None
    return Estimate(round(float(slopes.mean()), 12), False, "least squares in log width", error)


@dataclass(frozen=True, eq=False)
class LayerMotion:
    """Features of one layer on the probe rows: root mean squares over rows and units.

    Args:
        name: of the module; `"output"` is the whole net's.
        hidden: whether its units grow with the width.
        start: of h_0, shape (W, S): widths, seeds.
        moved: of h_t - h_0, shape (T, W, S), t = 1 ... T.
    """

    name: str
    hidden: bool
    start: Tensor
    moved: Tensor

    def __repr__(self) -> str:
        steps, widths, seeds = self.moved.shape
        return f"LayerMotion({self.name!r}, {steps} steps, {widths} widths, {seeds} seeds)"


@dataclass(frozen=True, kw_only=True)
class CoordinateCheck(Result):
    """What `coordinate_check` found.

    Args:
        widths: rising.
        layers: in the module's order, the output last.
    """

    widths: tuple[int, ...]
    layers: tuple[LayerMotion, ...]

    def __repr__(self) -> str:
        hidden = [one.name for one in self.layers if one.hidden]
        return (
            f"CoordinateCheck({self.regime}, widths {self.widths[0]} to {self.widths[-1]}, {listed(hidden)})"
        )

    @property
    def steps(self) -> int:
        """The number of steps, T."""
        return self.layers[0].moved.shape[0]

    @property
    def seeds(self) -> int:
        """The number of seeds, S."""
        return self.layers[0].moved.shape[2]

    def slope(self, layer: str, step: int | None = None) -> Estimate | None:
        """The slope of log RMS(h_t - h_0) in log width; None where a layer did not move or is not finite.

        Args:
            layer: its name.
            step: t; None is the last one, and 0 is the slope of h_0 itself.

        Raises:
            UsageError: a layer that was not measured, or a step that was not made.
        """
        known = {one.name: one for one in self.layers}
        last = self.steps if step is None else step
        if layer not in known:
            raise UsageError(f"no layer {layer!r} was measured. {nearest(layer, known)}")
        if not 0 <= last <= self.steps:
            raise UsageError(f"step={step}: {self.steps} were made; give 0 to {self.steps}.")
        one = known[layer]
        return width_slope(self.widths, one.moved[last - 1] if last else one.start)

    def interval(self, layer: str, step: int | None = None) -> tuple[float, float] | None:
        """The slope less and plus two standard errors; of one seed the slope twice. See `slope`.

        Args:
            layer: its name.
            step: t.
        """
        found = self.slope(layer, step)
        if found is None:
            return None
        half = ERRORS * (found.standard_error or 0.0)
        return found.value - half, found.value + half

    @property
    def regime(self) -> SeenRegime:
        """What the slopes at the last step show; docs/verdicts.md has the rules."""
        if self._broken() is not None:
            return "unstable"
        output = self.interval("output")
        hidden = [found for one in self.layers if one.hidden and (found := self.interval(one.name))]
        grown = [found for one in self.layers if one.hidden and (found := self.interval(one.name, 0))]
        every = [*hidden, *grown, *([output] if output else [])]
        if any(low > MARGIN for low, _ in every):
            return "unstable"
        if any(high > MARGIN for _, high in every):
            return "unclear"
        if output is None or output[1] < -MARGIN:
            return "trivial"
        if output[0] < -MARGIN:
            return "unclear"
        if any(low > -MARGIN for low, _ in hidden):
            return "feature learning"
        return "kernel" if all(high < -MARGIN for _, high in hidden) else "unclear"

    def _broken(self) -> tuple[str, int] | None:
        """The first layer and width at which features are not finite."""
        for one in self.layers:
            finite = torch.isfinite(torch.cat([one.start[None], one.moved])).all(2).all(0)
            if not bool(finite.all()):
                return one.name, self.widths[int(finite.int().argmin())]
        return None

    @property
    def verdict(self) -> str:
        """The regime in a sentence, with the slopes that say so."""
        steps = f"after {self.steps} step{'s' * (self.steps > 1)}"
        seeds = f"{self.seeds} seed{'s' * (self.seeds > 1)}, widths {self.widths[0]} to {self.widths[-1]}"
        broken = self._broken()
        if broken is not None:
            return f"Unstable: {broken[0]} is not finite {steps}, from width {broken[1]} on ({seeds})."
        hidden = [
            (found.value, one.name) for one in self.layers if one.hidden and (found := self.slope(one.name))
        ]
        output = self.slope("output")
        top = f"{max(hidden)[1]} as n^{max(hidden)[0]:.2f}" if hidden else "no hidden layer"
        moves = f"the output moves as n^{output.value:.2f}" if output else "the output does not move"
        said = {
            "unstable": "Unstable: wider nets blow up",
            "trivial": "Trivial: wider nets stop learning",
            "kernel": "Kernel regime: in wider nets features stop moving",
            "feature learning": "Feature learning: features move as much at every width",
            "unclear": "Unclear: the slopes fit several regimes; take more seeds or widths further apart",
        }[self.regime]
        return f"{said}; {steps} {moves}, and of the hidden layers {top} ({seeds})."

    def report(self) -> Report:
        """The verdict, a row for each layer, and a figure: movement against width."""
        rows = [self._row(one) for one in self.layers]
        note = (
            f"Root mean square of h_t - h_0 on the probe rows at t = {self.steps}, mean of {self.seeds} "
            f"seed{'s' * (self.seeds > 1)}; slope: of its logarithm in log n, least squares, ± standard error over "
            "seeds; start: the slope of h_0. Hidden: the layer has more units at larger widths."
        )
        series: list[dict[str, Any]] = [
            {
                "kind": "widths", "group": "coordinates", "title": one.name, "widths": list(self.widths),
                "values": _finite(one.moved[-1].mean(1)), "step": self.steps,
            }
            for one in self.layers
        ]  # fmt: skip
        facts = {
            "regime": self.regime,
            "widths": list(self.widths),
            "layers": [self._facts(one) for one in self.layers],
        }
        return Report(
            "Coordinate check", [Table("Movement of features", rows, note)], dict(self.provenance), series, facts,
            self.warnings, self.verdict,
        )  # fmt: skip

    def _row(self, one: LayerMotion) -> dict[str, Cell]:
        start, slope = self.slope(one.name, 0), self.slope(one.name)
        ends = zip(self.widths[:: len(self.widths) - 1], _finite(one.moved[-1, [0, -1]].mean(1)), strict=True)
        return {
            "layer": one.name, "hidden": one.hidden, "start": start.value if start else None, "slope": _spread(slope),
            **{f"at {width}": None if value is None else f"{value:.2g}" for width, value in ends},
        }  # fmt: skip

    def _facts(self, one: LayerMotion) -> dict[str, Any]:
        slopes = [self.slope(one.name, step) for step in range(self.steps + 1)]
        return {
            "layer": one.name, "hidden": one.hidden, "start": [_finite(line) for line in one.start],
            "moved": [[_finite(line) for line in step] for step in one.moved],
            "slopes": [found and found.value for found in slopes],
            "standard_errors": [found and found.standard_error for found in slopes],
        }  # fmt: skip


def _spread(found: Estimate | None) -> str | None:
    if found is None:
        return None
    return f"{found.value:.3f}" + ("" if found.standard_error is None else f" ± {found.standard_error:.3f}")


def _finite(values: Tensor) -> list[float | None]:
    return [value if math.isfinite(value) else None for value in values.tolist()]
