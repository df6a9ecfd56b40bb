"""Methods whose result is a linear combination with coefficients from the angles between the models.

Everything they know of the models is the Gram matrix G_st = <v_s, v_t>, measured in float64, block by block: lengths are
|v_t| = sqrt(G_tt), cosines G_st / |v_s||v_t|. The coefficients, T numbers in all, are computed from G, and
only then are the values read a second time. v_t are the models themselves, or displacements.

Two rules hold for all of them:

- **A zero vector** has no direction. Its cosine with every other vector is defined as 0.
- **Directions that cancel** (two opposite vectors, or a weighted sum of unit vectors of length 0) have no shortest arc
  between them. The result is then the plain weighted sum of the vectors, as on a straight line; for Model Stock, which
  asks how far the base is from their mean, it is the base.

Cost: one pass more over the inputs than a weighted sum, and T^2 multiplications per entry.

Example:
    >>> from tauspan import TaskVector
    >>> from tauspan.merge.engine.memory import merge
    >>> a = TaskVector({"w": torch.tensor([2.0, 0.0])}, "b", "standard", "a")
    >>> b = TaskVector({"w": torch.tensor([0.0, 2.0])}, "b", "standard", "b")
    >>> merge([a, b], "slerp", {"t": 1 / 3}).deltas["w"]
    tensor([1.7321, 1.0000])
"""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor

from tauspan.core.errors import UsageError
from tauspan.merge.methods.method import Block, Method, Option, Scope, Spec, added
from tauspan.merge.methods.sums import SCALE, WEIGHT

Rule: TypeAlias = Callable[[Tensor, Block], Tensor]
"""From Gram matrices, shape (..., T, T), and the options of a block to coefficients, shape (..., T)."""

_CHUNK = 1 << 14  # entries per model that are widened to float64 at once
_OPPOSITE = 1e-12  # 1 + cosine below which two vectors count as opposite: float64 cannot tell their plane
_CANCELLED = 1e-7  # length below which a sum of unit vectors counts as 0: the root of float64's rounding

ALONG = Option(
    "along",
    "tensor",
    "one vector: the tensor, a row or column of its (shape[0], rest) view, or a line of its last axis",
    choices=("tensor", "rows", "columns", "last_axis"),
)


def gram(block: Block) -> Tensor:
    """Inner products of the models over a block, in float64.

    Returns:
        Shape (T, T) for vectors that are whole tensors, (vectors, T, T) otherwise. A block holds whole rows; columns are
        summed over blocks.
    """
    values, along = _lines(block), _along(block)
    if along == "tensor":
        pieces = torch.split(values.flatten(1), _CHUNK, dim=1)
        return added(_products("sn,tn->st", piece) for piece in pieces)
    step = max(_CHUNK // values.shape[-1], 1)
    if along != "columns":
        return torch.cat([_products("src,trc->rst", piece) for piece in torch.split(values, step, dim=1)])
    return added(_products("src,trc->cst", piece) for piece in torch.split(values, step, dim=1))


def _products(equation: str, values: Tensor) -> Tensor:
    wide = values.double()
    return torch.einsum(equation, wide, wide)


def _along(block: Block) -> str:
    """Along what the vectors of a tensor run, as the option `along` says; a tensor of one axis is one vector."""
    along: str = "last_axis" if block.options.get("filter_wise") else block.options.get("along", "tensor")
    return along if len(block.shape) > 1 else "tensor"


def _lines(block: Block) -> Tensor:
    """The values; for vectors along the last axis shape (T, lines, shape[-1])."""
    if _along(block) == "last_axis":
        return block.values.view(len(block.values), -1, block.shape[-1])
    return block.values


def _prepare(rule: Rule, scope: Scope) -> Tensor | None:
    """The coefficients of a tensor or of its columns; None if vectors are within rows, whose blocks suffice."""
    first = scope.first
    return rule(scope.total(gram), first) if _along(first) in ("tensor", "columns") else None


def _combine(rule: Rule, block: Block, ready: Tensor | None) -> Tensor:
    """Sum_t c_t v_t, with one c_t for each vector."""
    values = _lines(block)
    found = rule(gram(block), block) if ready is None else ready
    if found.dim() == 2:
        found = found.T[:, :, None] if ready is None else found.T[:, None, :]
    merged = added(factor * value for factor, value in zip(found.to(values), values, strict=True))
    return merged.view(block.values.shape[1:])


def _cosines(products: Tensor) -> tuple[Tensor, Tensor]:
    """Lengths, shape (..., T), and cosines, shape (..., T, T); 0 for zero vectors."""
    lengths = products.diagonal(dim1=-2, dim2=-1).sqrt()
    # divide by one length after the other: their product could overflow or vanish
    per = torch.where(lengths > 0, 1 / lengths, 0.0)
    return lengths, (products * per[..., :, None] * per[..., None, :]).clamp(-1, 1)


def _shares(block: Block) -> Tensor:
    """The weights divided by their sum, in float64."""
    weights = torch.tensor(block.options["weight"], dtype=torch.float64, device=block.values.device)
    return weights / weights.sum()


def _require_a_sum(spec: Spec, _: tuple[str, ...]) -> None:
    weights = spec.options["weight"]
    if spec.options.get("normalize", True) and abs(sum(weights)) <= 1e-9 * sum(map(abs, weights)):
        raise UsageError(
            f"the weights {weights} of the models sum to 0 at the tensor {spec.name!r}, and the method divides by their "
            "sum. Change a weight."
        )


def _arc(products: Tensor, t: float, threshold: float) -> Tensor:
    """Coefficients of spherical interpolation between two vectors."""
    cosine = _cosines(products)[1][..., 0, 1]
    angle = torch.arccos(cosine)
    # sin(s a) / sin(a) as s sinc(s a) / sinc(a): the same number, and its limit s at a = 0
    straight = torch.tensor([1 - t, t], dtype=products.dtype, device=products.device)
    arc = (
        straight * torch.sinc(straight * angle[..., None] / math.pi) / torch.sinc(angle[..., None] / math.pi)
    )
    flat = (1 + cosine <= _OPPOSITE) | (cosine.abs() > threshold)
    return torch.where(flat[..., None], straight, arc)


def slerp(products: Tensor, block: Block) -> Tensor:
    """Shoemake's spherical interpolation, of vectors as they are (not of unit vectors).

    (sin((1 - t) a) v_1 + sin(t a) v_2) / sin(a), with a the angle between v_1 and v_2. Both ends are exact, and vectors
    of equal length give that length. Parallel vectors (a = 0) give the formula's limit, (1 - t) v_1 + t v_2. Opposite
    ones (1 + cos a <= 1e-12) have no shortest arc and give the same straight line. A zero vector counts as orthogonal:
    cos(t pi / 2) v_1 where v_2 = 0. `dot_threshold` below 1 takes the straight line wherever |cos a| exceeds it.
    """
    return _arc(products, block.options["t"], block.options["dot_threshold"])


def nuslerp(products: Tensor, block: Block) -> Tensor:
    """Spherical interpolation at t = w_2 / (w_1 + w_2), of tensors, of their rows or of their columns.

    As `slerp`: see there for parallel, opposite and zero vectors.
    """
    return _arc(products, float(_shares(block)[1]), 1.0)


def multislerp(products: Tensor, block: Block) -> Tensor:
    """The weighted mean direction, at the weighted mean length.

    m = sum_t w_t v_t / |v_t|; the result is (sum_t w_t |v_t|) m / |m|. The published procedure projects the unit vectors
    u_t to the tangent space at m' = m / |m|, averages there and projects back. Its average is
    sum_t w_t (u_t - <u_t, m'> m') = m - |m| m' = 0 for any input, so this is what it computes. Weights are divided by
    their sum unless `normalize` is off. Zero vectors give no direction and shorten the mean length. Directions that
    cancel (|m| <= 1e-7 of the weights' sum) give sum_t w_t v_t.
    """
    if block.options["normalize"]:
        weights = _shares(block)
    else:
        weights = torch.tensor(block.options["weight"], dtype=torch.float64, device=products.device)
    lengths, cosines = _cosines(products)
    return _scaled(weights, weights, lengths, cosines)


def _scaled(direction: Tensor, weights: Tensor, lengths: Tensor, cosines: Tensor) -> Tensor:
    """Coefficients of the vector of mean length along sum_t d_t u_t; those of the weighted sum if that is 0."""
    length = float((direction @ cosines @ direction).clamp(min=0).sqrt())
    if length <= _CANCELLED * float(direction.abs().sum()):
        return weights
    per = torch.where(lengths > 0, 1 / lengths, 0.0)
    return direction * per * ((weights * lengths).sum() / length)


def karcher(products: Tensor, block: Block) -> Tensor:
    """The weighted Karcher mean of the directions on the unit sphere, at the weighted mean length.

    The point m of the sphere with sum_t w_t log_m(u_t) = 0, where log_m(u) = a (u - cos(a) m) / sin(a) and a is the angle
    between m and u; found by m <- exp_m(sum_t w_t log_m(u_t)) from the normalised mean until the step is at most `tol`
    radians. The iteration runs on the T coefficients and reads no tensor. Two vectors of equal length: `slerp` at
    t = w_2 / (w_1 + w_2). Zero vectors give no direction and shorten the mean length. Directions that cancel have no
    unique mean and give sum_t w_t v_t; a vector opposite to m on the way has no shortest arc to it and waits that step.
    """
    weights = _shares(block)
    lengths, cosines = _cosines(products)
    pulls = torch.where(lengths > 0, weights, 0.0)
    pulls = pulls / pulls.sum().clamp(min=torch.finfo(torch.float64).tiny)
    mean = pulls
    for _ in range(block.options["max_iter"]):
        size = (mean @ cosines @ mean).clamp(min=0).sqrt()
        if size <= _CANCELLED:
            return weights
        mean = mean / size
        near = (cosines @ mean).clamp(-1, 1)
        stretched = pulls / torch.sinc(torch.arccos(near) / math.pi)
        stretched = torch.where(1 + near <= _OPPOSITE, 0.0, stretched)
        step = stretched - (stretched * near).sum() * mean
        angle = float((step @ cosines @ step).clamp(min=0).sqrt())
        if angle <= block.options["tol"]:
            break
        mean = math.cos(angle) * mean + math.sin(angle) / angle * step
    return _scaled(mean, weights, lengths, cosines)


def model_stock(products: Tensor, block: Block) -> Tensor:
    """Interpolation between the base and the mean of T models, by the angle between their displacements.

    t = T c / (1 + (T - 1) c), with c the mean cosine over pairs, and the merged displacement is lambda t mean_t tau_t:
    the mean itself for equal displacements, the base for orthogonal ones, and t < 0 where they oppose each other. Zero
    vectors have cosine 0. Where 1 + (T - 1) c <= 1e-6, c is the lowest that T vectors can have, t has a pole and their
    unit vectors sum to 0: t = 0, the base. `floor` shrinks the cosine of pairs with |tau_s| |tau_t| below it.
    """
    count = products.shape[-1]
    lengths, cosines = _cosines(products)
    if block.options["floor"]:
        pairs = lengths[..., :, None] * lengths[..., None, :]
        cosines = cosines * (pairs / block.options["floor"]).clamp(max=1)
    own = cosines.diagonal(dim1=-2, dim2=-1).sum(-1)
    mean = (cosines.sum((-2, -1)) - own) / (count * (count - 1))
    below = 1 + (count - 1) * mean
    ratio = torch.where(below <= 1e-6, 0.0, count * mean / below)
    scale: float = block.options["scale"]
    return (scale * ratio / count)[..., None].expand(*ratio.shape, count)


SLERP = Method(
    "slerp",
    "Spherical linear interpolation",
    "Shoemake 1985, doi:10.1145/325334.325242",
    "(sin((1 - t) a) theta_1 + sin(t a) theta_2) / sin(a), a the angle between them",
    partial(_combine, slerp),
    partial(_prepare, slerp),
    space="point",
    options=(
        Option("t", 0.5, "place on the arc from the first model (0) to the second (1)"),
        Option("dot_threshold", 1.0, "straight line where the cosine exceeds it in size", low=0.0, high=1.0),
    ),
    fewest=2,
    most=2,
    temporaries=3,
)

NUSLERP = Method(
    "nuslerp",
    "Spherical interpolation of displacements",
    "Goddard et al. 2024, mergekit, arXiv:2403.13257",
    "slerp of tau_1 and tau_2 at t = w_2 / (w_1 + w_2), by tensor, row or column",
    partial(_combine, nuslerp),
    partial(_prepare, nuslerp),
    _require_a_sum,
    grain="row",
    options=(WEIGHT, ALONG),
    fewest=2,
    most=2,
    temporaries=4,
)

NUSLERP_POINT = replace(
    NUSLERP,
    name="nuslerp_point",
    title="Spherical interpolation of models, with weights",
    formula="slerp of theta_1 and theta_2 at t = w_2 / (w_1 + w_2), by tensor, row or column",
    space="point",
)

MULTISLERP = Method(
    "multislerp",
    "Mean direction of displacements",
    "Goddard et al. 2024, mergekit, arXiv:2403.13257",
    "(sum_t w_t |tau_t|) m / |m|, m = sum_t w_t tau_t / |tau_t|",
    partial(_combine, multislerp),
    partial(_prepare, multislerp),
    _require_a_sum,
    options=(WEIGHT, Option("normalize", True, "divide the weights by their sum")),
    temporaries=3,
)

MULTISLERP_POINT = replace(
    MULTISLERP,
    name="multislerp_point",
    title="Mean direction of models",
    formula="(sum_t w_t |theta_t|) m / |m|, m = sum_t w_t theta_t / |theta_t|",
    space="point",
)

KARCHER = Method(
    "karcher",
    "Karcher mean of directions",
    "Wang, Ye and Yin 2026, arXiv:2603.04972",
    "(sum_t w_t |theta_t|) m, m on the sphere with sum_t w_t log_m(theta_t / |theta_t|) = 0",
    partial(_combine, karcher),
    partial(_prepare, karcher),
    _require_a_sum,
    space="point",
    options=(
        replace(WEIGHT, low=0.0),
        Option("max_iter", 100, "most steps", low=1),
        Option("tol", 1e-7, "length of the last step, radians", low=0.0),
    ),
    temporaries=3,
)

MODEL_STOCK = Method(
    "model_stock",
    "Model Stock",
    "Jang, Yun and Han 2024, arXiv:2403.19522",
    "lambda t mean_t tau_t, t = T c / (1 + (T - 1) c), c the mean cosine of pairs",
    partial(_combine, model_stock),
    partial(_prepare, model_stock),
    grain="row",
    options=(
        Option(
            "filter_wise",
            False,
            "an angle for each line of the last axis, a matrix's row, not for the tensor",
        ),
        Option("floor", 0.0, "least product of lengths that a cosine is divided by", low=0.0),
        SCALE,
    ),
    fewest=2,
    temporaries=4,
)
