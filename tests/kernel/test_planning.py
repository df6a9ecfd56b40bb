import dataclasses

import pytest
import torch

import tauspan as ts
from helpers.zoo import normal
from tauspan.core.errors import UsageError
from tauspan.kernel import TangentKernel
from tauspan.kernel.diagnose import KernelPlan, TaskPace, kernel_plan, kernel_report
from tauspan.kernel.rows.tiles import Tiles


def tasks(count: int = 3, rows: int = 12) -> list[ts.Task]:
    found = []
    for seed in range(count):
        x, y = normal(rows, 4, seed=seed).float(), torch.arange(rows) % 2
        split = (x, y)
        found.append(
            ts.Task.from_tensors(f"task{seed}", ["a", "b"], train=split, validation=split, test=split)
        )
    return found


def test_a_plan_counts_rows_pairs_and_bytes() -> None:
    encoder = ts.load(torch.nn.Linear(4, 3))
    found = kernel_plan(encoder, tasks(), rows=10, outputs="all", timed=3)
    assert [one.rows for one in found.tasks] == [10, 10, 10]
    assert found.matrix == 8 * (3 * 10 * 2) ** 2
    assert found.fits
    assert found.seconds == pytest.approx(found.prepared + found.own + found.between)
    assert min(found.prepared, found.own, found.between) > 0
    assert found.verdict.startswith("about ")
    assert "kernels of tasks" in found.report().to_markdown()


def test_time_grows_as_rows_and_pairs_of_rows() -> None:
    one = TaskPace("a", 100, 2, prepared=1.0, recorded=10.0, pair=0.01, held=1000)
    other = dataclasses.replace(one, task="b", rows=50, recorded=5.0, pair=0.04)
    plan = KernelPlan(tasks=[one, other], memory=10**9, timed=4)
    assert plan.own == pytest.approx(10 + 0.01 * 100 * 101 / 2 + 5 + 0.04 * 50 * 51 / 2)
    assert plan.between == pytest.approx(15 + 0.02 * 100 * 50)
    again = dataclasses.replace(plan, tasks=[one, other, dataclasses.replace(other, task="c")], memory=10**5)
    assert again.between == pytest.approx(
        2 * 20 + 2 * 0.02 * 100 * 50 + 0.04 * 50 * 50
    )  # recorded for each pair
    assert not again.fits
    assert "take fewer rows or outputs" in again.verdict
    assert KernelPlan(tasks=[one], memory=10**9, timed=4).between == 0


def test_what_cannot_be_timed_is_refused() -> None:
    encoder = ts.load(torch.nn.Linear(4, 3))
    with pytest.raises(UsageError, match="timed=1: a pace comes from 2 rows or more"):
        kernel_plan(encoder, tasks(1), timed=1)
    with pytest.raises(UsageError, match="Take 'auto'"):
        TangentKernel(torch.nn.Linear(4, 3), normal(4, 4, seed=0).float(), backend="products").pace()


def test_rows_of_a_task_are_recorded_once_for_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, recorded = ts.load(torch.nn.Linear(4, 3)), []
    real = Tiles._recorded
    monkeypatch.setattr(
        Tiles, "_recorded", lambda self, side, rows: recorded.append(len(rows)) or real(self, side, rows)
    )
    kernel_report(encoder, tasks(4), rows=12)
    whole = [count for count in recorded if count == 12]
    assert len(whole) == 2 * 4  # own kernels, and all pairs
