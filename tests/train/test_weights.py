"""Weights of rows and of groups in training: the loop written out, equal weights bit by bit, a minimax that is known."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import tauspan as ts
from helpers.interrupting import interrupt
from helpers.runs import REGIMES, deltas, encoder, expected, logged, points, trained
from helpers.tiny import flat_encoder, same_bits
from helpers.zoo import all_close
from tauspan.core.errors import StoreError, UsageError
from tauspan.core.processes import World
from tauspan.models import Head
from tauspan.sequence import WorstGroup
from tauspan.train import Settings, loop
from tauspan.train.weights import Weighing

BASIC = Settings("standard", seed=1, epochs=3, batch_size=8, lr=0.05)
GROUPS = [range(9), range(9, 22), [0, 3, 8, 20]]  # of 22 rows; the last one overlaps the others
ROWS = [0.25 * (row % 5) for row in range(22)]


class Worst:
    """Exponentiated-gradient weights, written out row by row."""

    def __init__(self, groups: Any, rate: float) -> None:
        self.groups, self.rate, self.sums = [list(group) for group in groups], rate, [0.0] * len(groups)
        self.shares: list[list[float]] = []

    def __call__(self, rows: list[int], losses: Tensor) -> Tensor:
        powers = [math.exp(self.rate * total) for total in self.sums]
        shares = [power / sum(powers) for power in powers]
        self.shares.append(shares)
        pairs = list(zip(self.groups, shares, strict=True))
        counts = [sum(22 * share / len(group) for group, share in pairs if row in group) for row in rows]
        for place, group in enumerate(self.groups):
            own = [float(loss) for row, loss in zip(rows, losses, strict=True) if row in group]
            self.sums[place] += 22 / len(group) * sum(own) / len(rows)
        return torch.tensor(counts, dtype=torch.float64)


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("steps", [{}, {"batch_size": 3, "accumulation": 3}, {"batch_size": 64, "clip": 0.0}])
def test_weighted_rows_are_the_loop_written_out(regime: Any, steps: dict[str, Any]) -> None:
    settings = dataclasses.replace(BASIC, regime=regime, **steps)
    found = trained(settings, weights=ROWS)
    counts = torch.tensor(ROWS, dtype=torch.float64)
    all_close(deltas(found), expected(points(), settings, lambda rows, _: counts[rows]))
    assert found.task_vector.info["weights"]["kind"] == "rows"


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("rate", [0.0, 0.7])
@pytest.mark.parametrize("steps", [{}, {"batch_size": 3, "accumulation": 3}, {"batch_size": 64, "clip": 0.0}])
def test_the_worst_group_is_the_loop_written_out(regime: Any, rate: float, steps: dict[str, Any]) -> None:
    settings = dataclasses.replace(BASIC, regime=regime, **steps)
    by_hand = Worst(GROUPS, rate)
    found = trained(settings, weights=WorstGroup(GROUPS, rate))
    all_close(deltas(found), expected(points(), settings, by_hand))
    told = [entry["groups"]["weight"] for entry in found.history if entry["split"] == "train"]
    assert torch.allclose(torch.tensor(told), torch.tensor(by_hand.shares), rtol=1e-9, atol=0)
    assert found.task_vector.info["weights"]["rows"] == [9, 13, 4]


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize(
    "weights",
    [[1.0] * 22, torch.ones(22), WorstGroup([range(22)]), WorstGroup([range(11), range(11, 22)], 0)],
)
def test_equal_weights_change_no_bit(regime: Any, weights: Any) -> None:
    for cache in ("none", "auto") if regime == "linear" else ("none",):
        settings = dataclasses.replace(BASIC, regime=regime, cache=cache)
        plain, found = trained(settings), trained(settings, weights=weights)
        assert same_bits(deltas(found), deltas(plain))
        assert [{n: v for n, v in one.items() if n != "groups"} for one in found.history] == plain.history


@pytest.mark.parametrize("step", [1, 5])
def test_an_interrupted_run_goes_on_with_its_weights(step: int, monkeypatch: Any, tmp_path: Path) -> None:
    weights = WorstGroup(GROUPS, 0.7)
    with monkeypatch.context() as patch:
        interrupt(patch, loop.Run, "one_step", step)
        with pytest.raises(KeyboardInterrupt):
            trained(BASIC, out=tmp_path, checkpoint_every=2, weights=weights)
    with pytest.raises(StoreError, match="other settings"):
        trained(BASIC, out=tmp_path, resume=True, weights=WorstGroup(GROUPS, 0.6))
    whole, resumed = (
        trained(BASIC, weights=weights),
        trained(BASIC, out=tmp_path, resume=True, weights=weights),
    )
    assert same_bits(deltas(resumed), deltas(whole))
    assert logged(tmp_path) == resumed.history == whole.history
    with pytest.raises(StoreError, match="other settings"):
        trained(BASIC, out=tmp_path, resume=True)


def test_the_minimax_of_two_groups_is_reached() -> None:
    """f = theta for all rows; nine want 1 and one wants 2: the mean loss is least at 1.1, the larger one at 1.5."""
    x, y = torch.ones(10, 1), torch.tensor([[1.0]] * 9 + [[2.0]])
    task = ts.Task.from_tensors(
        "two", ["y"], objective="regression", train=(x, y), validation=(x, y), test=(x, y), head=Head(torch.ones(1, 1))
    )  # fmt: skip
    settings = Settings("standard", lr=0.02, epochs=150, batch_size=10, warmup=0.0)
    mean = ts.finetune(flat_encoder(), task, settings).task_vector.deltas["scale"]
    worst = ts.finetune(flat_encoder(), task, settings, weights=WorstGroup([range(9), [9]]))
    assert float(mean) == pytest.approx(0.1, abs=0.01)
    assert float(worst.task_vector.deltas["scale"]) == pytest.approx(0.5, abs=0.03)


def test_tasks_can_be_the_groups() -> None:
    first, second = points(), dataclasses.replace(points(13), name="fewer")
    settings = dataclasses.replace(BASIC, batch_size=64, epochs=1)
    run = ts.finetune(encoder(), [first, second], settings, weights=WorstGroup([range(22), range(22, 35)]))
    model = encoder()
    for task, found in zip((first, second), run.history[0]["groups"]["loss"], strict=True):
        rows = task.split("train")
        logits = task.head(model(model.encode(rows.inputs)))
        assert found == pytest.approx(float(F.cross_entropy(logits, rows.labels).detach()), rel=1e-12)


def test_the_losses_of_all_processes_count(monkeypatch: Any) -> None:
    monkeypatch.setattr(World, "sum", lambda self, tensors: [one.mul_(self.size) for one in tensors])
    seen = {}
    for size in (1, 2):
        weighing = Weighing(WorstGroup([range(4), [4, 5]]), [6])
        losses = torch.nn.Parameter(torch.zeros(3, 2))
        weighing.total((0, (0, 1, 5)), points().objective, losses, torch.zeros(3, dtype=torch.long))
        seen[size] = weighing.stepped(3 * size, World(0, size), torch.device("cpu"))
    assert seen[1] == seen[2]


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0] * 21, "21 weights for 22 training rows"),
        ([-1.0] + [1.0] * 21, "weights from -1 to 1"),
        ([math.nan] + [1.0] * 21, "each is 0 or more"),
        ([0.0] * 22, "not all are 0"),
        (WorstGroup([range(5), [22]]), "rows 0 to 22 of 22"),
        (WorstGroup([[-1]]), "rows -1 to -1 of 22"),
    ],
)
def test_weights_that_do_not_fit_are_refused(weights: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        trained(BASIC, weights=weights)


@pytest.mark.parametrize(
    ("groups", "rate", "message"),
    [
        ([], 0.1, "give one or more"),
        ([[0], []], 0.1, r"groups of \[1, 0\] rows"),
        ([[0, 0]], 0.1, "group 0 has a row twice"),
        ([[0]], -1.0, "rate=-1.0"),
    ],
)
def test_groups_that_are_none_are_refused(groups: Any, rate: float, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        WorstGroup(groups, rate)


def test_groups_may_be_arrays_and_no_masks() -> None:
    plain, arrays = (
        WorstGroup([range(9), [1, 20]]),
        WorstGroup([torch.arange(9), torch.tensor([1, 20]).numpy()]),
    )
    assert plain.groups == arrays.groups
    with pytest.raises(UsageError, match="has a row twice"):
        WorstGroup([torch.tensor([1, 1])])
    mask = torch.arange(22) < 9
    for one in (mask, mask.numpy()):
        with pytest.raises(UsageError, match="is a mask of 22 truth values"):
            WorstGroup([one])
    with pytest.raises(UsageError, match="a whole number is wanted"):
        WorstGroup([mask.tolist()])
    assert (
        WorstGroup([torch.as_tensor(mask).nonzero().flatten().tolist()]).groups == plain.groups[:1]
    )  # the repair
    with pytest.raises(UsageError, match="names rows by float"):
        WorstGroup([torch.tensor([0.0, 1.0])])
