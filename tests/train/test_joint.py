"""Joint fine-tuning: one task is the ordinary run, several share a step, interrupted runs go on."""

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from helpers.interrupting import interrupt
from helpers.runs import REGIMES, deltas, encoder, learning_rates, logged, network, points, trained
from helpers.tiny import same_bits
from helpers.zoo import all_close, normal
from tauspan.core.errors import DataError, StoreError, UsageError
from tauspan.core.params import Params
from tauspan.core.processes import World
from tauspan.editing.evaluation import evaluate
from tauspan.models import Encoder, Head
from tauspan.tasks import Task, permutation
from tauspan.train import Finetuned, Settings, finetune, loop
from tauspan.train.rows import TrainingRows

BASIC = Settings("standard", seed=1, epochs=3, batch_size=8, lr=0.05)


def signs(rows: int = 14) -> Task:
    """Points in two classes, under a head that normalises: another size than `points` in every respect."""
    x = normal(rows + 12, 4, seed=11)
    y = (x[:, 2] > 0).long()
    parts = {"validation": slice(7), "test": slice(7, 12), "train": slice(12, None)}
    splits: dict[str, Any] = {name: (x[part], y[part]) for name, part in parts.items()}
    head = Head(normal(2, 5, seed=12), scale=2.0, normalize=True)
    return Task.from_tensors("signs", ["down", "up"], head=head, **splits)


def joint(settings: Settings, tasks: Any = None, **options: Any) -> Finetuned:
    return finetune(encoder(), tasks or [points(), signs()], settings, **options)


# -- the numbers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("case", [{}, {"batch_size": 3, "accumulation": 3, "weight_decay": 0.3}])
def test_one_task_is_the_ordinary_run_bit_for_bit(regime: Any, case: dict[str, Any], tmp_path: Path) -> None:
    settings = dataclasses.replace(BASIC, regime=regime, **case)
    one, plain = (
        joint(settings, [points()], out=tmp_path / "joint"),
        trained(settings, out=tmp_path / "plain"),
    )
    assert same_bits(deltas(one), deltas(plain))
    assert one.history == plain.history == logged(tmp_path / "joint")
    assert one.task_vector.info == plain.task_vector.info
    assert one.task_vector.label == plain.task_vector.label


def logits(net: nn.Module, theta: Params, x: Tensor, task: Task) -> Tensor:
    features, head = functional_call(net, dict(theta), (x,)), task.head
    assert head is not None
    unit = F.normalize(features, dim=-1) if head.normalize else features
    return head.scale * unit @ head.weight.T + (0 if head.bias is None else head.bias)


def by_hand(tasks: list[Task], settings: Settings) -> dict[str, Tensor]:
    """Adam on the mean loss over rows drawn from all tasks as one numbered list."""
    net = network()
    theta0 = {name: tensor.detach() for name, tensor in net.named_parameters()}
    rows = [
        (task, x, int(y))
        for task in tasks
        for x, y in zip(task.split("train").inputs, task.split("train").labels, strict=True)
    ]
    size = settings.batch_size * settings.accumulation
    orders = [permutation(len(rows), f"{settings.seed}/{epoch}") for epoch in range(settings.epochs)]
    batches = [order[begin : begin + size] for order in orders for begin in range(0, len(rows), size)]
    tau = {name: torch.zeros_like(tensor) for name, tensor in theta0.items()}
    mean, square = ({name: torch.zeros_like(t) for name, t in tau.items()} for _ in range(2))

    def outputs(now: Params, task: Task, x: Tensor) -> Tensor:
        if settings.regime == "standard":
            return logits(net, {name: theta0[name] + now[name] for name in now}, x, task)
        value, slope = torch.func.jvp(lambda theta: logits(net, theta, x, task), (theta0,), (dict(now),))
        return value + slope

    for step, (batch, lr) in enumerate(zip(batches, learning_rates(settings, len(batches)), strict=True), 1):
        now = {name: tensor.clone().requires_grad_() for name, tensor in tau.items()}
        losses = []
        for task in tasks:
            own = [(x, y) for other, x, y in (rows[place] for place in batch) if other is task]
            if own:
                x, y = torch.stack([x for x, _ in own]), torch.tensor([y for _, y in own])
                losses.append(F.cross_entropy(outputs(now, task, x), y, reduction="sum") / len(batch))
        gradients = torch.autograd.grad(torch.stack(losses).sum(), list(now.values()))
        norm = torch.stack([g.norm() for g in gradients]).norm()
        for name, gradient in zip(now, gradients, strict=True):
            g = gradient * min(1.0, settings.clip / float(norm))
            mean[name] = 0.9 * mean[name] + 0.1 * g
            square[name] = 0.999 * square[name] + 0.001 * g * g
            moved = (mean[name] / (1 - 0.9**step)) / ((square[name] / (1 - 0.999**step)).sqrt() + 1e-8)
            tau[name] = tau[name] - lr * moved
    return tau


@pytest.mark.thinned(2)
@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("case", [{}, {"batch_size": 5, "accumulation": 2}])
def test_two_tasks_equal_the_loop_written_out_by_hand(regime: Any, case: dict[str, Any]) -> None:
    settings = dataclasses.replace(BASIC, regime=regime, **case)
    assert all_close(deltas(joint(settings)), by_hand([points(), signs()], settings), 1e-10)


@pytest.mark.parametrize("regime", REGIMES)
def test_one_vector_lowers_the_loss_of_both_tasks(regime: Any) -> None:
    tasks = [points(40), signs(40)]
    run = joint(dataclasses.replace(BASIC, regime=regime, epochs=5), tasks)
    vector = run.task_vector
    assert (vector.label, vector.regime, vector.info["tasks"]) == ("joint", regime, ["points", "signs"])
    for task in tasks:
        before, after = (
            evaluate(
                encoder(),
                [task],
                edit,
                split="train",
            )
            .report()
            .tables[0]
            .rows[0]["loss"]
            for edit in (None, vector)
        )
        assert after < 0.8 * before


def test_the_history_holds_every_tasks_validation_and_their_means() -> None:
    tasks = [points(), signs()]
    run = joint(BASIC, tasks)
    last = run.history[-1]
    assert list(last["tasks"]) == ["points", "signs"]
    for key in ("loss", "accuracy"):
        assert last[key] == pytest.approx(sum(one[key] for one in last["tasks"].values()) / 2)
    for task in tasks:
        report = evaluate(
            encoder(),
            [task],
            run.task_vector,
            split="validation",
        ).report()
        for key in ("loss", "accuracy"):
            assert last["tasks"][task.name][key] == pytest.approx(report.tables[0].rows[0][key])


# -- steps ---------------------------------------------------------------------------------------------------


def test_an_epoch_has_every_row_of_every_task_once() -> None:
    tasks, settings = (
        [points(22), signs(14), points(9)],
        dataclasses.replace(BASIC, batch_size=4, accumulation=2),
    )
    rows = TrainingRows(tasks, settings, World())
    assert (rows.size, rows.per_epoch) == (45, 6)
    steps = [rows.step(1, place) for place in range(6)]
    assert [size for _, size in steps] == [8, 8, 8, 8, 8, 5]
    assert all(sum(len(places) for _, places in parts) == size for parts, size in steps)
    seen = sorted((task, place) for parts, _ in steps for task, places in parts for place in places)
    assert seen == [(task, place) for task, size in enumerate((22, 14, 9)) for place in range(size)]
    assert settings.steps(rows.size) == 18


def test_processes_share_the_rows_of_every_step() -> None:
    tasks, settings = [points(22), signs(14)], dataclasses.replace(BASIC, batch_size=5, accumulation=2)
    alone, pair = (
        TrainingRows(tasks, settings, World()),
        [TrainingRows(tasks, settings, World(rank, 2)) for rank in range(2)],
    )
    for epoch, place in itertools.product(range(2), range(alone.per_epoch)):
        whole, size = alone.step(epoch, place)
        shares = [rows.step(epoch, place) for rows in pair]
        assert [found for _, found in shares] == [size, size]
        parts = [part for share, _ in shares for part in share]
        assert sorted((t, p) for t, places in parts for p in places) == sorted(
            (t, p) for t, places in whole for p in places
        )


# -- interrupted ---------------------------------------------------------------------------------------------


@pytest.mark.thinned(9)
@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize(
    ("name", "call"), [("one_step", 3), ("_backward", 9), ("_validated", 3), ("save", 1)]
)
def test_an_interrupted_run_continues_to_the_same_bits(
    regime: Any, name: str, call: int, monkeypatch: Any, tmp_path: Path
) -> None:
    settings = dataclasses.replace(BASIC, regime=regime)
    with monkeypatch.context() as patch:
        interrupt(patch, loop.Run, name, call)
        with pytest.raises(KeyboardInterrupt):
            joint(settings, out=tmp_path, checkpoint_every=2)
    run, whole = joint(settings, out=tmp_path, resume=True), joint(settings)
    assert same_bits(deltas(run), deltas(whole))
    assert run.history == whole.history == logged(tmp_path)
    again = joint(settings, out=tmp_path, resume=True)
    assert again.reused
    assert same_bits(deltas(again), deltas(whole))


@pytest.mark.parametrize("tasks", [[signs(), points()], [points()], [points(), signs(15)]])
def test_a_run_of_other_tasks_is_not_taken_for_this_one(tasks: list[Task], tmp_path: Path) -> None:
    joint(BASIC, out=tmp_path)
    with pytest.raises(StoreError, match="other settings, another base or other data"):
        joint(BASIC, tasks, out=tmp_path, resume=True)


# -- refused -------------------------------------------------------------------------------------------------


def test_what_cannot_be_trained_jointly_is_refused() -> None:
    with pytest.raises(UsageError, match="has no task: give at least one"):
        finetune(encoder(), [], BASIC)
    with pytest.raises(UsageError, match="several tasks are named points: give each a name"):
        joint(BASIC, [points(), signs(), points(9)])
    kept = dataclasses.replace(BASIC, regime="linear", cache="primal")
    with pytest.raises(UsageError, match=r"cache='primal': nothing is kept of the batches of 2 tasks\. Set"):
        joint(kept)
    assert joint(kept, [points()]).task_vector.label == "points"


def test_a_task_whose_head_does_not_fit_is_refused_by_name() -> None:
    wrong = dataclasses.replace(signs(), head=Head(torch.zeros(3, 5)))
    with pytest.raises(DataError, match="the head of task 'signs' has 3 outputs, the task 2 classes"):
        joint(BASIC, [points(), wrong])


def test_an_encoder_is_left_as_it_was() -> None:
    model: Encoder = encoder()
    before = {name: tensor.clone() for name, tensor in model.named_parameters()}
    for regime in REGIMES:
        settings = dataclasses.replace(BASIC, regime=regime, epochs=1)
        finetune(
            model,
            [points(), signs()],
            settings,
        )
    assert same_bits(dict(model.named_parameters()), before)
