"""Masks of entries: densities, growth, and supports that never meet."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import tauspan as ts
from helpers import zoo
from tauspan.core.errors import MismatchError, NonFiniteError, UsageError
from tauspan.kernel import closed_form
from tauspan.sequence import densities, moved, picked, require_disjoint, united

quick = settings(max_examples=20, deadline=None)
SHAPES = {"wide": (20, 30), "thin": (20, 4), "bias": (20,), "kernel": (8, 3, 3, 3), "one": (1,)}
seeds = st.integers(0, 10_000)
shapes = st.dictionaries(
    st.sampled_from("abcdef"), st.lists(st.integers(1, 8), max_size=3).map(tuple), min_size=1, max_size=5
)


@quick
@given(shapes, st.floats(0.1, 1.0), st.sampled_from(["uniform", "erdos-renyi-kernel"]))
def test_counts_add_up_to_the_density(found, density, how):
    total = sum(math.prod(shape) for shape in found.values())
    if total * density < len(found):
        return
    counts = densities(found, density, how)
    assert abs(sum(counts.values()) - density * total) <= len(found) / 2 + 1e-9  # each is rounded
    assert all(0 <= counts[name] <= math.prod(shape) for name, shape in found.items())


def test_uniform_is_the_same_share_and_erdos_renyi_makes_thin_tensors_denser():
    plain = densities(SHAPES, 0.2)
    assert plain["wide"] == 120
    assert plain["thin"] == 16
    denser = densities(SHAPES, 0.2, "erdos-renyi-kernel")
    share = {name: count / math.prod(SHAPES[name]) for name, count in denser.items()}
    assert share["wide"] < 0.2 < share["thin"] < share["bias"] == 1.0
    ratio = (8 + 9) / 216 / (50 / 600)  # sum(shape) / prod(shape)
    assert share["kernel"] / share["wide"] == pytest.approx(ratio, rel=0.05)


def test_a_cap_leaves_room_for_others():
    counts = densities(SHAPES, 0.2, "erdos-renyi-kernel", most=0.25)
    assert all(count <= math.prod(SHAPES[name]) / 4 for name, count in counts.items())
    assert sum(counts.values()) == pytest.approx(0.2 * 917, abs=5)


@quick
@given(seeds, st.integers(2, 5), st.sampled_from(["uniform", "erdos-renyi-kernel"]), st.booleans())
def test_supports_of_tasks_are_disjoint_for_every_density_and_growth(seed, tasks, how, scored):
    counts = densities(SHAPES, 0.9 / tasks, how, most=1 / tasks)
    masks = {}
    for number in range(tasks):
        taken = united(list(masks.values()))
        scores = (
            {name: zoo.normal(*shape, seed=seed + number) for name, shape in SHAPES.items()}
            if scored
            else None
        )
        masks[f"t{number}"] = picked(counts, SHAPES, scores=scores, taken=taken, seed=seed + number)
        again = moved(masks[f"t{number}"], {n: zoo.normal(*s, seed=seed) for n, s in SHAPES.items()}, 0.4,
                      scores=scores, taken=taken, seed=seed)  # fmt: skip
        masks[f"t{number}"] = again
        assert {n: int(m.sum()) for n, m in again.items()} == {n: c for n, c in counts.items() if c}
    require_disjoint(masks)


def test_random_picks_depend_on_seed_and_name_alone():
    both = picked({"a": 5, "b": 5}, {"a": (20,), "b": (20,)}, seed=1)
    turned = picked({"b": 5, "a": 5}, {"b": (20,), "a": (20,)}, seed=1)
    assert all(torch.equal(both[name], turned[name]) for name in "ab")
    assert not torch.equal(both["a"], both["b"])
    assert not torch.equal(both["a"], picked({"a": 5}, {"a": (20,)}, seed=2)["a"])


def test_growth_drops_the_smallest_and_grows_the_best_free_entry():
    mask = {"w": torch.tensor([True, True, True, False, False, False])}
    deltas = {"w": torch.tensor([5.0, 0.1, 2.0, 0.0, 0.0, 0.0])}
    scores = {"w": torch.tensor([0.0, 0.0, 0.0, 1.0, 9.0, 5.0])}
    taken = {"w": torch.tensor([False, False, False, False, True, False])}
    assert moved(mask, deltas, 1 / 3, scores=scores, taken=taken)["w"].tolist() == [
        True,
        False,
        True,
        False,
        False,
        True,
    ]
    assert torch.equal(moved(mask, deltas, 0.0, scores=scores)["w"], mask["w"])


def test_what_does_not_fit_is_refused():
    for words, call in {
        "density=0.5 with most=0.25": lambda: densities(SHAPES, 0.5, most=0.25),
        "density=1e-05 of 917 entries leaves none": lambda: densities(SHAPES, 1e-5),
        "how='uniforn'. Did you mean 'uniform'?": lambda: densities(SHAPES, 0.5, "uniforn"),
        "3 entries of 'w' are wanted and 2 of 4 are free": lambda: picked(
            {"w": 3}, {"w": (4,)}, taken={"w": torch.tensor([True, True, False, False])}
        ),
        "share=1.5: from 0 to 1": lambda: moved({}, {}, 1.5),
    }.items():
        with pytest.raises(UsageError) as refused:
            call()
        assert words in str(refused.value)
    one = {"w": torch.tensor([True, False])}
    with pytest.raises(MismatchError, match="'a' and 'b' share entries of w: pick the second with taken="):
        require_disjoint({"a": one, "b": {"w": torch.tensor([True, True])}, "c": {"v": torch.tensor([True])}})


def test_masks_and_numbers_of_other_shapes_or_kinds_are_refused():
    shape, yes = {"w": (2, 2)}, torch.ones(2, 2, dtype=torch.bool)
    mask, nan = {"w": torch.tensor([True, False])}, torch.tensor([math.nan, 1.0])
    for kind, words, call in (
        (UsageError, "-3 entries of 'w' are wanted: give 0 or more", lambda: picked({"w": -3}, shape)),
        (MismatchError, "the shapes lack 'w', which has a mask; they are of v", lambda: picked({"w": 1}, {"v": (2,)})),
        (MismatchError, "the scores lack 'w', which has a mask; they are of no tensor",
         lambda: picked({"w": 1}, shape, scores={})),
        (MismatchError, "the scores of 'w' have the shape (3,), and the mask (2, 2)",
         lambda: picked({"w": 1}, shape, scores={"w": torch.ones(3)})),
        (NonFiniteError, "tensor 'w' of the scores has 1 of 4 values",
         lambda: picked({"w": 1}, shape, scores={"w": torch.tensor([[math.nan, 1.0], [2.0, 3.0]])})),
        (MismatchError, "that are taken of 'w' have the shape (4,), and the mask (2, 2)",
         lambda: picked({"w": 1}, shape, taken={"w": torch.ones(4, dtype=torch.bool)})),
        (UsageError, "the mask of 'w' has the dtype torch.float32, and a mask has torch.bool",
         lambda: picked({"w": 1}, shape, taken={"w": torch.ones(2, 2)})),
        (NonFiniteError, "tensor 'w' of the deltas has 1 of 2 values", lambda: moved(mask, {"w": nan}, 0.5)),
        (MismatchError, "the deltas lack 'w'", lambda: moved(mask, {}, 0.5)),
        (MismatchError, "the deltas of 'w' have the shape (3,), and the mask (2,)",
         lambda: moved(mask, {"w": torch.ones(3)}, 0.5)),
        (UsageError, "the mask of 'w' has the dtype torch.int64",
         lambda: moved({"w": torch.tensor([1, 0])}, {"w": torch.ones(2)}, 0.5)),
        (MismatchError, "the masks of 'w' have the shape (2, 2), and the mask (2,)", lambda: united([mask, {"w": yes}])),
        (UsageError, "the mask of 'w' has the dtype", lambda: united([{"w": torch.ones(2)}])),
        (MismatchError, "the masks of 'b' of 'w' have the shape (2, 2), and the mask (2,)",
         lambda: require_disjoint({"a": mask, "b": {"w": yes}})),
        (UsageError, "the mask of 'w' has the dtype", lambda: require_disjoint({"a": mask, "b": {"w": torch.ones(2)}})),
    ):  # fmt: skip
        with pytest.raises(kind) as refused:
            call()
        assert words in str(refused.value)
    repaired = torch.ones(2, 2) > 0  # "compare, such as `mask > 0`"
    with pytest.raises(UsageError, match="0 of 4 are free"):
        picked({"w": 1}, shape, taken={"w": repaired})


def test_sums_hold_each_vector_as_it_is_and_files_come_back(tmp_path):
    """Two tasks on entries of their own: the parts of the sum are the vectors, bit for bit, from sparse files too."""
    torch.manual_seed(0)
    encoder = ts.load(nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4)))
    x, found, taken = zoo.normal(12, 3).float(), {}, {}
    sizes = {name: tuple(one.shape) for name, one in encoder.backbone.named_parameters()}
    for place in range(2):
        y = torch.arange(12) % (place + 2)
        rows = dict.fromkeys(("train", "validation", "test"), (x, y))
        task = ts.Task.from_tensors(f"t{place}", [str(c) for c in range(place + 2)], **rows)
        masks = picked(densities(sizes, 0.3), sizes, taken=united(list(taken.values())), seed=place)
        tau = closed_form(ts.restrict(encoder, masks), task, ridge=0.1).vector
        file = tau.save_pretrained(tmp_path / f"{place}.safetensors")
        again = ts.TaskVector.from_pretrained(file).dense(encoder)
        assert all(torch.equal(again.deltas[name], one) for name, one in tau.dense(encoder).deltas.items())
        assert sum(one.numel() for one in tau.deltas.values()) == sum(
            int(mask.sum()) for mask in masks.values()
        )
        taken[task.name], found[task.name] = masks, again
    require_disjoint(taken)
    first, second = found.values()
    total = first.filled_like(second) + second.filled_like(first)
    for name, tau in found.items():
        for tensor, mask in taken[name].items():
            assert torch.equal(total.deltas[tensor][mask], tau.deltas[tensor][mask])
            assert float(tau.deltas[tensor][~mask].abs().sum()) == 0.0
