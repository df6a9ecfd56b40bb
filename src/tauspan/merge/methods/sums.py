"""Weighted sums: of displacements, of models, and of models weighted by what is known of their data."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tauspan.core.errors import MismatchError, UsageError
from tauspan.merge.methods.method import Block, Method, Option, Scope, Spec

WEIGHT = Option("weight", 1.0, "w_t, the factor of model t", per_model=True)
SCALE = Option("scale", 1.0, "lambda, the factor of the merged displacement")
NORMALIZE = Option("normalize", False, "divide by the sum of the weights")

_TINY = 1e-8  # a sum of weights below this divides nothing


def weighted(block: Block, values: Tensor) -> Tensor:
    """Sum_t w_t v_t, one model after the other, so that no cut into blocks changes a bit.

    Products are rounded before they are added (no fused multiply-add): opposite terms cancel to exactly 0.
    """
    total: Tensor | None = None
    for weight, value in zip(block.options["weight"], values, strict=True):
        term = value if weight == 1 else value * weight
        if total is None:
            total = term.clone() if term is value else term
        else:
            total += term
    assert total is not None  # noqa: S101 - a method takes at least one model
    return total


def summed(block: Block, values: Tensor) -> Tensor:
    """Lambda sum_t w_t v_t, divided by sum_t w_t where the method's `normalize` is set."""
    total = weighted(block, values)
    weight: float = sum(block.options["weight"])
    if block.options["normalize"] and abs(weight) >= _TINY:
        total /= weight
    scale: float = block.options["scale"]
    return total if scale == 1 else total.mul_(scale)


def task_arithmetic(block: Block, _: Any) -> Tensor:
    """Lambda sum_t w_t tau_t."""
    return summed(block, block.values)


def linear(block: Block, _: Any) -> Tensor:
    """Sum_t w_t theta_t / sum_t w_t."""
    total = weighted(block, block.values)
    return total / sum(block.options["weight"]) if block.options["normalize"] else total


def _require_a_sum(spec: Spec, _: tuple[str, ...]) -> None:
    weight: float = sum(spec.options["weight"])
    if spec.options["normalize"] and abs(weight) < _TINY:
        raise UsageError(
            f"the weights of 'linear' are {spec.options['weight']} for {spec.name!r}; their sum {weight:g} cannot "
            "normalise a mean. Choose weights with another sum, or `normalize: false` for the plain sum."
        )


def lines(block: Block, _: Any) -> Tensor:
    """(alpha + beta depth) sum_t w_t tau_t; tensors outside the layers have depth 0."""
    alpha, beta = block.options["alpha"], block.options["beta"]
    alpha = 1 / len(block.models) if alpha is None else alpha
    beta = 1 - alpha if beta is None else beta
    factor: float = alpha + beta * (block.depth or 0.0)
    return weighted(block, block.values).mul_(factor)


def passthrough(block: Block, _: Any) -> Tensor:
    """Scale theta_1."""
    scale: float = block.options["scale"]
    return scale * block.values[0]


LINEAR = Method(
    "linear",
    "Weighted mean of models",
    "Wortsman et al. 2022, arXiv:2203.05482",
    "sum_t w_t theta_t / sum_t w_t",
    linear,
    require=_require_a_sum,
    space="point",
    options=(WEIGHT, Option("normalize", True, "divide by the sum of the weights")),
)

TASK_ARITHMETIC = Method(
    "task_arithmetic",
    "Task arithmetic",
    "Ilharco et al. 2023, arXiv:2212.04089",
    "lambda sum_t w_t tau_t",
    task_arithmetic,
    options=(WEIGHT, SCALE, NORMALIZE),
)

LINES = Method(
    "lines",
    "LiNeS: scaling that grows with depth",
    "Wang et al. 2024, arXiv:2410.17146",
    "(alpha + beta depth) sum_t w_t tau_t, depth from 0 in the first layer to 1 in the last",
    lines,
    options=(
        WEIGHT,
        Option("alpha", None, "factor of the first layer and of tensors outside the layers; unset: 1 / T"),
        Option("beta", None, "what the last layer's factor is above alpha; unset: 1 - alpha"),
    ),
)

PASSTHROUGH = Method(
    "passthrough",
    "One model as it is",
    "mergekit, Goddard et al. 2024, arXiv:2403.13257",
    "scale theta_1",
    passthrough,
    space="point",
    options=(Option("scale", 1.0, "factor of the tensor"),),
    most=1,
)


SHARE = Option("weight", 1.0, "w_t >= 0, the share of model t relative to the others", per_model=True, low=0)


def _mean(block: Block, importance: Callable[[int], Tensor]) -> Tensor:
    """sum_t i_t x_t / sum_t i_t; the mean by `weight` where nothing is important to any model.

    One model at a time, so that the memory does not grow with their number.
    """
    shares = block.weights()
    models = range(len(shares))
    total = torch.zeros_like(block.values[0])
    for t in models:
        total += importance(t)
    known, mean = total > 0, torch.zeros_like(total)
    total = torch.where(known, total, shares.sum())
    for t in models:
        mean += torch.where(known, importance(t), shares[t]) / total * block.values[t]
    return mean


def _require_a_share(spec: Spec, _: tuple[str, ...]) -> None:
    if not sum(spec.options["weight"]) > 0:
        raise UsageError(f"all weights of {spec.name!r} are 0: give at least one model a weight above 0.")


def _require(block: Block, need: str, found: Tensor, wanted: tuple[int, ...]) -> None:
    if tuple(found.shape) != wanted:
        raise MismatchError(
            f"the {need} statistics of {block.name!r} have shape {tuple(found.shape)} over the models, and {wanted} is "
            "wanted: they were gathered from another architecture. Gather them anew."
        )


def fisher_norms(scope: Scope) -> Tensor | None:
    """The Euclidean norm of each model's Fisher information over all tensors, shape (T,); None if not asked for."""
    first = scope.first
    if not first.options["normalize"]:
        return None

    def squares(block: Block) -> Tensor:
        found = block.statistics.get("fisher")
        if found is None:
            return torch.zeros(len(block.models), dtype=torch.float64, device=block.values.device)
        return found.double().flatten(1).square().sum(1)

    norms = scope.total(squares).sqrt()
    for model, norm in zip(first.models, norms.tolist(), strict=True):
        if not norm > 0:
            raise UsageError(
                f"the Fisher information of {model!r} is 0 everywhere, so it cannot be normalised: gather it from more "
                "rows, or set normalize=false."
            )
    return norms


def fisher(block: Block, norms: Tensor | None) -> Tensor:
    """The mean of the models by w_t max(F_t, floor) / |F_t|, entry by entry."""
    known = block.statistics.get("fisher")
    if known is None:
        return _mean(block, block.weights().__getitem__)
    _require(block, "Fisher", known, tuple(block.values.shape))
    floor, only_first = block.options["floor"], block.options["floored"] == "first"
    shares = block.weights() if norms is None else block.weights() / norms.to(known).view(-1, 1)

    def importance(t: int) -> Tensor:
        return shares[t] * known[t].clamp(min=0 if only_first and t else floor)

    return _mean(block, importance)


def shrunk(gram: Tensor, alpha: float) -> Tensor:
    """Gram matrices, shape (..., c, c), with everything off the diagonal times alpha."""
    return gram * alpha + torch.diag_embed(gram.diagonal(dim1=-2, dim2=-1) * (1 - alpha))


def regmean(block: Block, _: Any) -> Tensor:
    """M + (sum_t (W_t - M) G_t) (sum_t G_t)^-1, M the mean of the W_t: the formula's W, better conditioned.

    What no model's inputs reach stays the mean.
    """
    shares = block.weights()
    mean = _mean(block, shares.__getitem__)
    gram = block.statistics.get("gram")
    if gram is None:
        return mean
    columns = block.shape[-1] if len(block.shape) == 2 else 0
    _require(block, "Gram", gram, (len(block.models), columns, columns))
    alpha: float = block.options["alpha"]
    rest = torch.zeros_like(mean, dtype=torch.float64)
    total = torch.zeros_like(gram[0], dtype=torch.float64)
    for share, weight, products in zip(shares.double(), block.values, gram, strict=True):
        weighed = share.squeeze() * shrunk(products.double(), alpha)
        rest += (weight - mean).double() @ weighed
        total += weighed
    return mean + _divided(rest, total, alpha, torch.finfo(gram.dtype).eps, block.name).to(mean)


def _divided(rest: Tensor, total: Tensor, alpha: float, precision: float, name: str) -> Tensor:
    """The product rest total^-1, total known to `precision`; with alpha 1 the pseudo-inverse, as it may be singular."""
    if alpha == 1:
        values, vectors = torch.linalg.eigh(total)
        kept = values > values.max() * len(values) * precision
        inverse = torch.where(kept, 1 / torch.where(kept, values, 1.0), 0.0)
        solved: Tensor = (rest @ vectors * inverse) @ vectors.T
        return solved
    sizes = total.diagonal().clamp(min=0).sqrt()
    dead = sizes == 0  # inputs that are always 0
    sizes = torch.where(dead, 1.0, sizes)
    scaled = total / torch.outer(sizes, sizes) + torch.diag(dead.to(total))
    factor, failed = torch.linalg.cholesky_ex(scaled)  # a unit diagonal and alpha < 1 keep eigenvalues off 0
    if int(failed):
        raise MismatchError(
            f"the Gram matrices of {name!r} are not positive semi-definite: the statistics are damaged. Gather them "
            "anew."
        )
    return torch.cholesky_solve((rest / sizes).T, factor).T / sizes


FISHER = Method(
    "fisher",
    "Fisher-weighted averaging",
    "Matena and Raffel 2022, arXiv:2111.09832",
    "sum_t w_t F_t theta_t / sum_t w_t F_t, entry by entry; F_t the diagonal of the Fisher information",
    fisher,
    prepare=fisher_norms,
    require=_require_a_share,
    over="model",
    space="point",
    needs=("fisher",),
    options=(
        SHARE,
        Option("floor", 1e-6, "the least Fisher information of an entry, >= 0", low=0),
        Option(
            "floored", "all", "whose entries have the floor: of all models, or of the first, a target that wins "
            "where nobody knows better (the authors')", choices=("all", "first"),
        ),
        Option("normalize", True, "divide each model's Fisher information by its norm"),
    ),
    temporaries=6,
)  # fmt: skip

REGMEAN = Method(
    "regmean",
    "Regression mean",
    "Jin et al. 2023, arXiv:2212.09849",
    "W = (sum_t w_t W_t G_t) (sum_t w_t G_t)^-1, G_t = X_t^T X_t of the layer's inputs, off the diagonal times alpha",
    regmean,
    require=_require_a_share,
    grain="tensor",
    space="point",
    needs=("gram",),
    options=(
        SHARE,
        Option("alpha", 0.9, "the factor of what stands off the diagonal, from 0 to 1", low=0, high=1),
    ),
    temporaries=48,  # six float64 Gram matrices of a layer four times as wide as it is high
)
