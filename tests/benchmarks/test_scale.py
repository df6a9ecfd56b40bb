"""Approximations of large kernels at toy size: what they state, and what products with the kernel show."""

import pytest
import torch
from benchmarks import scale

from tauspan.kernel import DenseKernel


def test_the_shown_error_is_the_frobenius_norm_of_the_difference() -> None:
    draw = torch.Generator().manual_seed(0)
    wide, narrow = (torch.randn(12, width, generator=draw, dtype=torch.float64) for width in (30, 5))
    true, near = wide @ wide.T, narrow @ narrow.T
    expected = float((near - true).norm() / true.norm())
    assert scale.shown(DenseKernel(true), DenseKernel(near), 4000) == pytest.approx(expected, rel=0.05)


@pytest.mark.slow
def test_both_approximations_state_their_error() -> None:
    landmarks = scale.measured("landmarks", 40, 2, 8)
    assert list(landmarks)[-1] == "residual"
    assert 0 < landmarks["residual"] < 1
    features = scale.measured("features", 40, 2, 400)
    assert features["stated error"] == pytest.approx(features["shown error"], rel=0.3)
    assert features["factor MB"] == 8 * 40 * 2 * 400 / 2**20
    few = scale.measured("features", 40, 2, 25)
    assert few["stated error"] == pytest.approx(4 * features["stated error"], rel=1e-6)  # as 1 / sqrt(q)


def test_contributions_keep_a_number_for_each_vector_row_and_output() -> None:
    found = scale.measured("contributions", 40, 3, 4)
    assert found["kept MB"] == 4 * 4 * 40 * 3 / 2**20
    assert found["vectors"] == 4
    editor = scale.editor_of(torch.nn.Linear(32, 3), 40, 3, 4)
    assert sum(len(task.split("validation")) for task in editor.vectors) == 40


def test_powers_are_slopes_over_a_doubling() -> None:
    first, second = scale.with_powers(
        [
            {"rows": 10, "CPU s": 1.0, "peak MB": 3.0},
            {"rows": 20, "CPU s": 4.0, "peak MB": 6.0},
        ]
    )
    assert "power of CPU s" not in first
    assert second["power of CPU s"] == pytest.approx(2)
    assert second["power of peak MB"] == pytest.approx(1)
