"""Methods that are weighted sums: of displacements, or of the models themselves."""

from typing import Any

from torch import Tensor

from tauspan.merge.method import Block, Method, Option

WEIGHT = Option("weight", 1.0, "w_t, the factor of model t", per_model=True)
SCALE = Option("scale", 1.0, "lambda, the factor of the merged displacement")


def task_arithmetic(block: Block, _: Any) -> Tensor:
    """Lambda sum_t w_t tau_t."""
    scale: float = block.options["scale"]
    return scale * (block.weights() * block.values).sum(0)


TASK_ARITHMETIC = Method(
    "task_arithmetic",
    "Task arithmetic",
    "Ilharco et al. 2023, arXiv:2212.04089",
    "lambda sum_t w_t tau_t",
    task_arithmetic,
    options=(WEIGHT, SCALE),
)
