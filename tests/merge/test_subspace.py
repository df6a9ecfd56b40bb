"""KnOTS and WUDI against their authors' formulas in float64, at their limits, and in the whole model."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tauspan.core.errors import NonFiniteError, UsageError
from tauspan.merge import merge
from tauspan.merge.engine.engine import Engine
from tauspan.merge.engine.settings import Filtered, Settings
from tauspan.merge.methods.method import Block, Spec
from tauspan.merge.methods.subspace import KNOTS, WUDI
from tauspan.vector import TaskVector


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def low_rank(tasks, rows, columns, rank, seed=0):
    return draw(tasks, rows, rank, seed=seed) @ draw(tasks, rank, columns, seed=seed + 1)


def merged(method, values, **options):
    weights = options.pop("weight", [1.0] * len(values))
    options["weight"] = weights
    if "density" in options:
        options["density"] = (options["density"],) * len(values)
    chosen = {option.name: option.default for option in method.options} | options
    labels = tuple(f"t{number}" for number in range(len(values)))
    return method.combine(Block(values, None, "w", 0, values.shape[1:], chosen, labels), None)


def same(found, expected, tolerance=1e-9):
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def vectors(tasks):
    """One task vector for each mapping of tensors."""
    return [TaskVector(deltas, "base", "standard", f"t{number}") for number, deltas in enumerate(tasks)]


# -- KnOTS -------------------------------------------------------------------------------------------------------


def ties(flat, keep):
    """The authors' TIES of shape (T, n): trimmed to `keep` entries, elected, averaged."""
    limits = flat.abs().sort(descending=True).values[:, max(keep, 1) - 1]
    kept = torch.where(flat.abs() >= limits[:, None], flat, 0.0)
    sign = kept.sum(0).sign()
    chosen = torch.where(kept.sign() == sign, kept, 0.0)
    return chosen.sum(0) / (chosen != 0).sum(0).clamp(min=1)


def coordinates(values):
    """U, and U^T D_t = s V_t^T of shape (T, R, n)."""
    u, s, vt = torch.linalg.svd(torch.cat(list(values), 1), full_matrices=False)
    kept = s > 1e-9 * s[0]
    split = (s[:, None] * vt)[kept].reshape(int(kept.sum()), len(values), -1)
    return u[:, kept], split.transpose(0, 1)


def authors_knots(values, density):
    basis, split = coordinates(values)
    flat = split.reshape(len(values), -1)
    return basis @ ties(flat, int(flat.shape[1] * density)).view(split.shape[1:])


@pytest.mark.parametrize("values", [draw(3, 5, 7), draw(3, 7, 5), draw(2, 9, 3), low_rank(3, 8, 8, 2)])
@pytest.mark.parametrize("density", [0.2, 0.6, 1.0])
def test_knots_is_ties_in_the_basis_of_all_vectors(values, density):
    expected = authors_knots(values, density)
    same(merged(KNOTS, values, density=density, trim="tensor"), expected)
    same(merged(KNOTS, values, density=density, trim="tensor", scale=0.6), 0.6 * expected)
    single = merged(KNOTS, values.float(), density=density, trim="tensor")
    assert single.dtype == torch.float32
    if density == 1:  # below, float32 may trim other entries
        same(single.double(), expected, 1e-4)


def test_knots_trims_over_the_whole_model():
    large, small = draw(2, 4, 6, seed=1), 0.5 * draw(2, 5, 3, seed=2)
    bases, splits = zip(coordinates(large), coordinates(small), strict=True)
    flat = torch.cat([split.reshape(2, -1) for split in splits], 1)
    parts = ties(flat, int(0.3 * flat.shape[1])).split([splits[0][0].numel(), splits[1][0].numel()])
    expected = [
        basis @ part.view(split.shape[1:]) for basis, split, part in zip(bases, splits, parts, strict=True)
    ]
    tasks = vectors({"a": large[t], "bias": draw(4, seed=9), "b": small[t]} for t in range(2))
    found = merge(tasks, KNOTS, {"density": 0.3}).deltas
    same(found["a"], expected[0])
    same(found["b"], expected[1])
    assert not found["bias"].any()
    apart = merge(tasks, KNOTS, {"density": 0.3, "trim": "tensor"}).deltas
    same(apart["a"], authors_knots(large, 0.3))
    assert not torch.allclose(apart["a"], found["a"])


def test_the_share_counts_the_directions_that_are_there():
    values = low_rank(2, 10, 10, 1)
    tasks = vectors({"w": value} for value in values)
    same(merge(tasks, KNOTS, {"density": 0.5}).deltas["w"], authors_knots(values, 0.5))


def test_one_vector_and_equal_vectors_are_themselves_at_density_one():
    value = draw(6, 4)
    same(merged(KNOTS, value[None], density=1.0, trim="tensor"), value)
    same(merged(KNOTS, value.expand(3, 6, 4), density=1.0, trim="tensor"), value)
    same(
        merge(vectors([{"w": value}] * 2), KNOTS, {"density": 1.0, "weight": [1.0, 3.0]}).deltas["w"],
        2 * value,
    )


def test_opposite_vectors_and_zeros_merge_to_zero():
    value = draw(6, 4)
    assert not merged(KNOTS, torch.stack([value, -value]), density=1.0, trim="tensor").any()
    assert not merged(KNOTS, torch.zeros(2, 3, 4), density=0.2, trim="tensor").any()


@given(order=st.permutations(range(4)), seed=st.integers(0, 1000))
def test_the_order_of_tasks_does_not_matter_to_knots(order, seed):
    values = draw(4, 6, 7, seed=seed)
    options = {"density": 0.5, "trim": "tensor"}
    same(merged(KNOTS, values[list(order)], **options), merged(KNOTS, values, **options))


def test_knots_trims_over_one_thing():
    tasks = vectors([{"a": draw(3, 3), "b": draw(3, 3)}])
    mixed = Settings(KNOTS, 1, {"trim": (Filtered("a", "model"), Filtered(None, "tensor"))})
    specs = [Spec(name, torch.Size([3, 3]), mixed.at(name, None)) for name in "ab"]
    with pytest.raises(UsageError, match="'trim' is 'model' for 'a' and 'tensor' for 'b'"):
        Engine(KNOTS, specs, lambda *_: None).measure()
    with pytest.raises(UsageError, match="'trim'"):
        merge(tasks, KNOTS, {"trim": "rows"})


def test_density_zero_keeps_nothing():
    assert not merged(KNOTS, draw(2, 3, 3), density=0.0, trim="tensor").any()
    assert not merge(vectors([{"w": draw(3, 3)}]), KNOTS, {"density": 0.0}).deltas["w"].any()


# -- WUDI --------------------------------------------------------------------------------------------------------


def objective(merged_values, values):
    """The authors' loss."""
    norms = values.flatten(1).square().sum(1)
    products = (merged_values - values) @ values.mT
    return (products.square() / norms.view(-1, 1, 1)).sum()


def authors_wudi(values, steps, lr):
    found = torch.nn.Parameter(values.sum(0))
    optimiser = torch.optim.Adam([found], lr=lr)
    for _ in range(steps):
        optimiser.zero_grad()
        objective(found, values).backward()
        optimiser.step()
    return found.detach()


RANKS = [draw(3, 5, 7), draw(3, 7, 5), draw(2, 3, 9), low_rank(3, 8, 8, 2)]


@pytest.mark.parametrize("values", RANKS)
def test_the_steps_are_the_authors(values):
    values = 1e-3 * values
    same(merged(WUDI, values, steps=30), authors_wudi(values, 30, 1e-5), 1e-12)
    assert objective(merged(WUDI, values), values) < objective(values.sum(0), values)
    same(merged(WUDI, values, steps=0, weight=[2.0] * len(values)), 2 * values.sum(0))


@pytest.mark.parametrize("values", RANKS)
def test_the_exact_minimum_has_no_gradient_and_no_better_neighbour(values):
    found = merged(WUDI, values, solver="exact").requires_grad_()
    lowest = objective(found, values)
    (gradient,) = torch.autograd.grad(lowest, found)
    start = values.sum(0).requires_grad_()
    (scale,) = torch.autograd.grad(objective(start, values), start)
    assert gradient.norm() < 1e-9 * scale.norm()
    for seed in range(20):
        for size in (1e-3, 1e-1, 1.0):
            assert objective(found + size * draw(*found.shape, seed=seed), values) >= lowest * (1 - 1e-12)


def test_the_exact_minimum_is_the_least_norm_solution_and_the_nearest_to_the_sum():
    values = low_rank(2, 6, 12, 2)
    norms = values.flatten(1).norm(dim=1).view(-1, 1, 1)
    stacked = (values / norms).reshape(-1, 12)
    targets = torch.cat([value @ value.mT / norm for value, norm in zip(values, norms, strict=True)])
    expected = (torch.linalg.pinv(stacked) @ targets).mT
    same(merged(WUDI, values, solver="exact"), expected, 1e-8)
    total = values.sum(0)
    change = (torch.linalg.pinv(stacked) @ (targets - stacked @ total.mT)).mT
    same(total + change, expected, 1e-8)
    same(merged(WUDI, values.float(), solver="exact").double(), expected, 1e-4)


def test_the_steps_come_to_the_exact_minimum():
    values = draw(2, 4, 3)
    exact = merged(WUDI, values, solver="exact")
    near = (merged(WUDI, values, steps=3000, lr=3e-3) - exact).norm()
    assert near < 1e-4 * exact.norm()


@pytest.mark.parametrize("solver", ["adam", "exact"])
def test_wudi_of_one_vector_and_of_vectors_on_different_inputs_is_their_sum(solver):
    value = draw(5, 5)
    same(merged(WUDI, value[None], solver=solver), value)
    values = torch.zeros(2, 4, 6, dtype=torch.float64)
    values[0, :, :3], values[1, :, 3:] = draw(4, 3), draw(4, 3, seed=1)
    same(merged(WUDI, values, solver=solver), values.sum(0))


def test_the_exact_minimum_of_equal_vectors_is_the_vector():
    value = draw(5, 4)
    same(merged(WUDI, value.expand(3, 5, 4), solver="exact"), value)


@pytest.mark.parametrize("solver", ["adam", "exact"])
def test_a_task_that_did_not_move_has_no_say(solver):
    values = torch.stack([draw(4, 5), draw(4, 5, seed=1), torch.zeros(4, 5, dtype=torch.float64)])
    same(merged(WUDI, values, solver=solver), merged(WUDI, values[:2], solver=solver))
    assert not merged(WUDI, torch.zeros(2, 3, 4), solver=solver).any()


@pytest.mark.parametrize("solver", ["adam", "exact"])
@given(order=st.permutations(range(4)), seed=st.integers(0, 1000))
def test_the_order_of_tasks_does_not_matter_to_wudi(solver, order, seed):
    values = draw(4, 6, 5, seed=seed)
    options = {"solver": solver, "steps": 3}
    same(merged(WUDI, values[list(order)], **options), merged(WUDI, values, **options), 1e-6)


# -- both --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [KNOTS, WUDI], ids=lambda method: method.name)
def test_other_tensors_stay_at_the_base_as_in_the_authors_code(method):
    bias, kernel = draw(2, 5), draw(2, 4, 3, 2, 2)
    assert not merged(method, bias).any()
    assert not merged(method, kernel).any()
    same(merged(method, bias, others="sum", weight=[1.0, 2.0]), bias[0] + 2 * bias[1])
    flat = merged(method, kernel.view(2, 4, 12), density=0.2, trim="tensor").view(4, 3, 2, 2)
    same(merged(method, kernel, matrices="flattened", density=0.2, trim="tensor"), flat)


@pytest.mark.parametrize(
    ("method", "options"), [(KNOTS, {"density": 0.2, "trim": "tensor"}), (WUDI, {"solver": "exact"})]
)
def test_a_spectrum_that_does_not_converge_names_the_tensor(method, options):
    values = torch.full((1, 3, 3), float("nan"))
    with pytest.raises(NonFiniteError, match="spectrum of 'w' does not converge"):
        merged(method, values, **options)
