"""Methods that are weighted sums: of displacements, or of the models themselves."""

from typing import Any

from torch import Tensor

from tauspan.core.errors import UsageError
from tauspan.merge.methods.method import Block, Method, Option
from tauspan.merge.methods.scope import Spec

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
