"""When a training leaves its linearisation: the first step at which a relative error passes a tolerance."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from tauspan.core.errors import MismatchError, UsageError
from tauspan.kernel.diagnose.verdict import CARRIES

_SHARE = 0.95  # of the bootstrap's draws that the interval holds
_TOGETHER = 100  # draws whose weights of rows are held at once


@dataclass(frozen=True)
class Departure:
    """The first step at which |f_t - g_t| / |f_t - f_0| passes a tolerance, f the net and g a lazy path of it.

    Args:
        step: where a power law between the two neighbouring points passes it (a straight line from the start); None if
            no point passes it.
        between: the neighbouring points, the last within the tolerance and the first beyond it. The points say no more
            than this interval; None if no point passes.
        interval: 95 % of the bootstrap's draws of the rows leave between these steps; an end is None where the draws
            there do not leave at any point.
        leaving: the share of the draws that leave at some point.
        largest: the largest ratio of all points; None if no output moved.
        last: the last step that was seen.
        tolerance: the ratio.
    """

    step: float | None
    between: tuple[int, int] | None
    interval: tuple[float | None, float | None]
    leaving: float
    largest: float | None
    last: int
    tolerance: float


def departure(
    steps: Sequence[int],
    errors: Tensor,
    sizes: Tensor,
    tolerance: float = CARRIES,
    *,
    draws: int = 1000,
    seed: int = 0,
) -> Departure:
    """When a ratio of norms over rows, sqrt(sum_n e_tn / sum_n s_tn), passes a tolerance for the first time.

    Args:
        steps: of the T points, rising; the first is the start, where nothing has moved and the ratio counts as 0.
        errors: e_tn = |f_t(x_n) - g_t(x_n)|^2, shape (T, N).
        sizes: s_tn = |f_t(x_n) - f_0(x_n)|^2, shape (T, N). A later point whose sizes are all 0 has no ratio, and is left
            out.
        tolerance: above 0.
        draws: of the bootstrap, which draws the N rows with replacement and keeps the points.
        seed: of the draws.

    Raises:
        MismatchError: shapes that do not fit the steps.
        UsageError: steps that do not rise, a tolerance that is not above 0, fewer than 2 draws.

    Cost:
        draws x T x N multiplications.

    Example:
        >>> sizes = torch.tensor([[0.0, 0.0], [1.0, 1.0], [1.0, 1.0]])
        >>> errors = torch.tensor([[0.0, 0.0], [0.0025, 0.0025], [0.04, 0.04]])
        >>> found = departure([0, 10, 40], errors, sizes)  # the ratio is 0.05 at step 10, 0.2 at step 40
        >>> round(found.step), found.between
        (20, (10, 40))
    """
    if errors.shape != sizes.shape or errors.dim() != 2 or len(errors) != len(steps) or not len(steps):
        raise MismatchError(
            f"errors of shape {tuple(errors.shape)} and sizes of shape {tuple(sizes.shape)} at {len(steps)} steps: both "
            "have a line for each step and a column for each row of data."
        )
    if any(low >= high for low, high in pairwise(steps)):
        raise UsageError(f"steps={list(steps)}: give them in rising order, each once.")
    if not 0 < tolerance < math.inf:
        raise UsageError(f"tolerance={tolerance}: a ratio above 0, such as {CARRIES}.")
    if draws < 2:
        raise UsageError(f"draws={draws}: a bootstrap takes 2 draws or more, such as 1000.")
    known = [0, *(place for place in range(1, len(steps)) if float(sizes[place].sum()) > 0)]
    at = torch.tensor([float(steps[place]) for place in known], dtype=torch.float64)
    e, s = errors[known].double().cpu(), sizes[known].double().cpu()
    own = _ratios(torch.ones(1, e.shape[1], dtype=torch.float64), e, s)
    crossed, place = _crossings(at, own, tolerance)
    generator, found = torch.Generator().manual_seed(seed), []
    for begin in range(0, draws, _TOGETHER):
        weights = _weights(min(_TOGETHER, draws - begin), e.shape[1], generator)
        found.append(_crossings(at, _ratios(weights, e, s), tolerance)[0])
    left = torch.cat(found).sort().values
    step = float(crossed)
    return Departure(
        step if math.isfinite(step) else None,
        (int(at[int(place) - 1]), int(at[int(place)])) if math.isfinite(step) else None,
        (_quantile(left, (1 - _SHARE) / 2), _quantile(left, (1 + _SHARE) / 2)),
        float(left.isfinite().double().mean()),
        float(own.max()) if len(known) > 1 else None,
        int(steps[-1]),
        tolerance,
    )


def _weights(draws: int, rows: int, generator: torch.Generator) -> Tensor:
    """How often each row is drawn, shape (draws, rows)."""
    drawn = torch.randint(rows, (draws, rows), generator=generator)
    ones = torch.ones(draws, rows, dtype=torch.float64)
    return torch.zeros(draws, rows, dtype=torch.float64).scatter_add_(1, drawn, ones)


def _ratios(weights: Tensor, errors: Tensor, sizes: Tensor) -> Tensor:
    """The ratio at each point for each draw, shape (draws, T); 0 at the start, and where no drawn row has moved."""
    above, below = weights @ errors.T, weights @ sizes.T
    ratios = torch.where(below > 0, above / below.clamp(min=torch.finfo(below.dtype).tiny), 0.0).sqrt()
    ratios[:, 0] = 0.0
    return ratios


def _crossings(steps: Tensor, ratios: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
    """The step of the first crossing of each draw, infinite where there is none, and the point behind it."""
    beyond = ratios > tolerance
    place = beyond.double().argmax(1)  # the first one; 0 where there is none
    some = beyond.any(1)
    behind = place.clamp(min=1)
    before = behind - 1
    if len(steps) == 1:
        return torch.full((len(ratios),), math.inf, dtype=torch.float64), place
    low, high = steps[before], steps[behind]
    r_low, r_high = ratios.gather(1, before[:, None])[:, 0], ratios.gather(1, behind[:, None])[:, 0]
    straight = low + (high - low) * (tolerance - r_low) / (r_high - r_low)
    tiny = torch.finfo(torch.float64).tiny
    part = (math.log(tolerance) - r_low.clamp(min=tiny).log()) / (r_high / r_low.clamp(min=tiny)).log()
    power = low.clamp(min=tiny) * (high / low.clamp(min=tiny)) ** part
    step = torch.where((low > 0) & (r_low > 0), power, straight)
    return torch.where(some, step, math.inf), behind


def _quantile(ordered: Tensor, share: float) -> float | None:
    """The step up to which a share of the draws has left; None where that many do not leave."""
    value = float(ordered[round(share * (len(ordered) - 1))])
    return value if math.isfinite(value) else None
