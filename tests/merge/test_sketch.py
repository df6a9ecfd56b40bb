"""Leading directions by a sketch: the certificate against whole decompositions, and merges that use it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from helpers.zoo import normal
from tauspan.core.errors import NonFiniteError, UsageError
from tauspan.merge import merge
from tauspan.merge.methods.sketch import captured_at_most, largest_outside, sketched
from tauspan.vector import TaskVector


def with_spectrum(rows: int, columns: int, power: float, seed: int = 0) -> Tensor:
    """A matrix with singular values i^-power."""
    least = min(rows, columns)
    u, v = (
        torch.linalg.qr(normal(size, least, seed=seed + place)).Q
        for place, size in enumerate((rows, columns))
    )
    return (u * torch.arange(1, least + 1).double() ** -power) @ v.mT


@settings(max_examples=25, deadline=None)
@given(
    st.integers(8, 40), st.integers(8, 40), st.integers(1, 4), st.integers(0, 4),
    st.sampled_from([0.0, 0.25, 0.5, 1.0, 2.0]), st.integers(0, 10**6),
)  # fmt: skip
def test_no_directions_hold_more_than_the_bound(
    rows: int, columns: int, count: int, more: int, power: float, seed: int
) -> None:
    matrix = with_spectrum(rows, columns, power, seed)
    u = torch.linalg.svd(matrix + 0.05 * normal(rows, columns, seed=seed + 5), full_matrices=False).U[
        :, : count + more
    ]
    best = float(torch.linalg.svdvals(matrix)[:count].square().sum())
    assert captured_at_most(matrix, u, count) >= best * (1 - 1e-10)
    projected = matrix - u @ (u.mT @ matrix)
    assert largest_outside(matrix, u) == pytest.approx(
        float(torch.linalg.svdvals(projected)[0]) ** 2, rel=1e-5, abs=1e-12
    )


@pytest.mark.parametrize("shape", [(90, 120), (120, 90)])
def test_a_sketch_is_the_decomposition_up_to_its_loss(shape: tuple[int, int]) -> None:
    matrix = with_spectrum(*shape, 1.0)
    u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
    found = sketched(matrix, 8, 1e-4)
    assert found is not None
    left, values, right = found
    assert float(values.square().sum()) >= (1 - 1e-4) * float(s[:8].square().sum())
    best = (u[:, :8] * s[:8]) @ vt[:8]
    assert torch.linalg.matrix_norm((left * values) @ right - best) < 0.02 * torch.linalg.matrix_norm(best)
    assert torch.allclose(left.mT @ left, torch.eye(8).double(), atol=1e-10)


def test_what_is_not_certified_or_not_worth_it_is_left_to_the_whole_decomposition() -> None:
    flat, steep = normal(120, 120, seed=1), with_spectrum(120, 120, 1.0)
    assert sketched(flat, 8, 1e-4) is None
    assert sketched(steep, 60, 1e-2) is None  # half of all directions
    assert sketched(steep, 0, 1e-2) is None
    assert sketched(steep * float("nan"), 8, 1e-2) is None


def test_sketches_are_the_same_each_time_and_leave_random_numbers_alone() -> None:
    matrix = with_spectrum(90, 120, 1.0)
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first = sketched(matrix, 8, 1e-3)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(6)
    again = sketched(matrix, 8, 1e-3)
    assert first is not None
    assert again is not None
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def vectors(power: float) -> list[TaskVector]:
    return [
        TaskVector(
            {"layer.0.weight": with_spectrum(96, 128, power, 10 * task).float()},
            "base",
            "standard",
            f"t{task}",
        )
        for task in range(8)
    ]


@pytest.mark.parametrize(
    ("method", "options"), [("tsv_m", {}), ("iso_cts", {"common": 0.2}), ("svd", {"rank": 12})]
)
def test_merges_with_a_loss_are_near_the_exact_ones(method: str, options: dict[str, float]) -> None:
    some = vectors(1.5)
    exact, fast = (
        merge(some, method, options={**options, "loss": loss}).deltas["layer.0.weight"]
        for loss in (0.0, 1e-4)
    )
    assert not torch.equal(exact, fast)
    assert float((exact - fast).norm() / exact.norm()) < 0.05


def test_a_flat_spectrum_gives_the_exact_merge_to_the_bit() -> None:
    some = vectors(0.0)
    exact, fast = (
        merge(some, "tsv_m", options={"loss": loss}).deltas["layer.0.weight"] for loss in (0.0, 1e-4)
    )
    assert torch.equal(exact, fast)


def test_impossible_losses_and_numbers_are_refused() -> None:
    with pytest.raises(UsageError, match="loss"):
        merge(vectors(1.0), "tsv_m", options={"loss": 0.7})
    broken = [TaskVector({"layer.0.weight": torch.full((96, 128), float("inf"))}, "base", "standard", "t")]
    with pytest.raises(NonFiniteError):
        merge(broken, "tsv_m", options={"loss": 0.01})
