"""Numbers for checks: random ones, norms, and comparisons that allow for rounding."""

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from tauspan.core.params import Params
from tauspan.tangent.engine.maps import dense

# The largest relative difference that counts as rounding, by the narrowest dtype used. The one of float64 allows for
# models that compute a softmax in float32 whatever their dtype, as transformers' do.
_ROUNDING = {torch.float64: 1e-5, torch.float32: 2e-3, torch.float16: 5e-2, torch.bfloat16: 2e-1}
# A gradient below this share of the largest one (in root mean square) is rounding: that of a key's bias is exactly 0.
_NOISE = {torch.float64: 1e-8, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 3e-2}
_CANCELLED = 16  # units in the last place that may remain of a sum whose terms cancel
PERIOD = 262_147  # random numbers that are drawn once


@lru_cache(maxsize=1)
def _normal() -> Tensor:
    return torch.randn(PERIOD, generator=torch.Generator().manual_seed(0))


def random_like(tensor: Tensor, seed: int) -> Tensor:
    """Normal numbers of a tensor's shape and device, without drawing from torch's generators.

    They repeat after `PERIOD` entries, a prime number, so that large tensors take little time.
    """
    start, count = 1009 * seed % PERIOD, tensor.numel()
    dtype = tensor.dtype if tensor.is_floating_point() else torch.float64
    numbers = _normal().repeat(-(-(start + count) // PERIOD))[start : start + count]
    return numbers.view(tensor.shape).to(tensor.device, dtype)


def scales(value: Tensor, pulled: Params, within: torch.dtype = torch.float64) -> tuple[float, float]:
    """The relative difference that counts as rounding, and the root mean square below which a gradient is rounding.

    Args:
        value: the output.
        pulled: gradients by parameter.
        within: the narrowest dtype used inside the module, if it is known. Where float32 is used inside a float64
            module, gradients that cancel are as noisy as in float32 alone.
    """
    dtype = narrowest([value.dtype, *(g.dtype for g in pulled.values())])
    least = narrowest([dtype, within])
    tolerance = _ROUNDING[dtype if least == torch.float32 else least]
    return tolerance, _NOISE[least] * max((rms(g) for g in pulled.values()), default=0.0)


def wrong_gradient(found: Params, wanted: Params, tolerance: float, least: float) -> str | None:
    """Which tensor's gradient differs from the expected one, and by how much, in words; None if all agree.

    Args:
        found: J^T g by parameter, to be checked.
        wanted: J^T g by ordinary autograd.
        tolerance: the largest relative difference of a tensor.
        least: a difference whose root mean square is below this is rounding.
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
    """The root mean square that rounding leaves in a gradient of 0, as of a sum of terms that do not depend on theta."""
    length = math.hypot(*(norm(theta.detach()) for theta in parameters.values()))
    size = float(terms.detach().double().abs().sum())
    precision = float(torch.finfo(narrowest([terms.dtype])).eps)
    return _CANCELLED * precision * size / max(length, 1e-300)


def rounding(dtype: torch.dtype) -> float:
    """The largest relative difference that counts as rounding in this dtype, or in autocast's if that is narrower."""
    return _ROUNDING[narrowest([dtype])]


def noise(dtype: torch.dtype) -> float:
    """The share of the largest of several quantities below which a quantity is only rounding."""
    return _NOISE[narrowest([dtype])]


def narrowest(dtypes: Sequence[torch.dtype]) -> torch.dtype:
    """The least precise of the floating-point dtypes and, if autocast is on, its dtype."""
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
    """Whether two tensors differ anywhere by more than `tolerance` times the largest finite entry of `wanted`."""
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
