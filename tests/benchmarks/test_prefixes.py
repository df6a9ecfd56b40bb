"""The table of benchmarks/prefixes.py: what each feature map stands for, over several seeds."""

import statistics

import pytest
from benchmarks.prefixes import errors, tables

MEAN, ELU, TAYLOR = "mean value", "ELU + 1", "Taylor 2"


def mean(scale: float, *, related: bool = True) -> dict[str, float]:
    found = [errors(scale, related=related, seed=seed) for seed in range(4)]
    return {name: statistics.mean(one[name] for one in found) for name in found[0]}


@pytest.mark.parametrize("scale", [0.3, 1.0, 2.0])
def test_elu_is_no_softmax_kernel(scale: float) -> None:
    """It does no better than one constant value in the place of attention, for any size of scores."""
    found = mean(scale)
    assert found[ELU] > 0.9 * found[MEAN] > 0.5


def test_second_order_is_for_small_scores() -> None:
    small, middle, large = (mean(scale)[TAYLOR] for scale in (0.3, 1.0, 2.0))
    assert small < 0.01
    assert 0.1 < middle < 0.6
    assert large > 0.9


def test_values_that_do_not_depend_on_their_keys_prove_nothing() -> None:
    found = mean(0.3, related=False)
    assert all(error < 0.05 for name, error in found.items() if name != "no prefix")
    assert found["no prefix"] > 0.9


def test_the_tables_have_a_row_for_each_scale() -> None:
    assert [[row["scale of q, k"] for row in table.rows] for table in tables()] == [[0.3, 1.0, 2.0]] * 2
