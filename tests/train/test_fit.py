"""Convex fitting in the tangent space: both solvers, every cache, one minimum with a certificate."""

import logging

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tauspan as ts
from tauspan.core.errors import UsageError
from tauspan.core.reading import Reading
from tauspan.models import Classifier, Encoder
from tauspan.tangent import linearize
from tauspan.tasks import Task, build_head
from tauspan.train.convex import fit


def problem() -> tuple[Encoder, Task]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        x = torch.randn(60, 4, dtype=torch.float64)
        y = (x[:, 0] + 0.3 * torch.randn(60, dtype=torch.float64) > 0).long()
        net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    task = Task.from_tensors(
        "sign", ["no", "yes"], train=(x[:40], y[:40]), validation=(x[40:], y[40:]), test=(x[40:], y[40:])
    )
    return ts.load(net), task


def jacobian(encoder: Encoder, task: Task) -> tuple[Tensor, Tensor, Tensor]:
    """f (N, C), J (N, C, P) and labels, written out."""
    classifier = Classifier(encoder, build_head(task, encoder))
    lin = linearize(classifier, engine="reference")
    rows = task.split("train")
    batch = encoder.encode(rows.inputs)
    sizes = [tau.numel() for tau in lin.tau.values()]
    columns = []
    for place in range(sum(sizes)):
        unit = torch.zeros(sum(sizes), dtype=torch.float64)
        unit[place] = 1
        parts = unit.split(sizes)
        vector = {n: p.view(t.shape) for (n, t), p in zip(lin.tau.items(), parts, strict=True)}
        value, tangent = lin.tangent(batch, vectors=[vector])
        columns.append(tangent[0])
    return value, torch.stack(columns, -1), rows.labels


@pytest.mark.thinned(8)
@pytest.mark.parametrize("solver", ["lbfgs", "newton-cg"])
@pytest.mark.parametrize("cache", ["none", "primal", "factors"])
def test_a_solver_ends_at_the_minimum_whatever_is_cached(solver: str, cache: str) -> None:
    encoder, task = problem()
    # strong Wolfe compares losses, so L-BFGS ends near the square root of the numbers' precision
    tolerance = {"lbfgs": 1e-7, "newton-cg": 2e-9}[solver]
    run = fit(
        encoder, task, solver, ridge=1e-2, tolerance=tolerance, reading=Reading(batch_size=16), cache=cache
    )
    value, wide, labels = jacobian(encoder, task)
    tau = torch.cat([delta.flatten() for delta in run.task_vector.deltas.values()]).requires_grad_()
    loss = F.cross_entropy(value + wide @ tau, labels) + 0.5e-2 * tau.square().sum()
    loss.backward()
    facts = run.task_vector.info["solver"]
    assert float(tau.grad.norm()) <= 2 * tolerance
    assert facts["converged"]
    assert facts["loss"] == pytest.approx(float(loss.detach()), rel=1e-10)
    assert facts["gradient_norm"] <= tolerance
    assert run.task_vector.regime == "linear"
    assert run.history[-1]["split"] == "validation"


@pytest.mark.parametrize("solver", ["lbfgs", "newton-cg"])
def test_weighted_rows_have_the_minimum_of_the_weighted_loss(solver: str) -> None:
    encoder, task = problem()
    weights = [0.5 * (row % 4) for row in range(40)]
    tolerance = {"lbfgs": 1e-7, "newton-cg": 2e-9}[solver]
    options = {"ridge": 1e-2, "tolerance": tolerance, "reading": Reading(batch_size=16)}
    run = fit(encoder, task, solver, weights=weights, **options)
    value, wide, labels = jacobian(encoder, task)
    tau = torch.cat([delta.flatten() for delta in run.task_vector.deltas.values()]).requires_grad_()
    losses = F.cross_entropy(value + wide @ tau, labels, reduction="none")
    ((torch.tensor(weights) * losses).mean() + 0.5e-2 * tau.square().sum()).backward()
    assert float(tau.grad.norm()) <= 2 * tolerance
    with pytest.raises(UsageError, match="39 weights for 40 training rows"):
        fit(encoder, task, weights=weights[1:])


def test_no_learning_rate_beats_the_fit_on_its_own_loss() -> None:
    encoder, task = problem()
    fitted = fit(encoder, task, ridge=1e-2, tolerance=1e-6)
    value, wide, labels = jacobian(encoder, task)

    def loss(vector: ts.TaskVector) -> float:
        tau = torch.cat([delta.flatten() for delta in vector.deltas.values()]).double()
        return float(F.cross_entropy(value + wide @ tau, labels) + 0.5e-2 * tau.square().sum())

    for lr in (1e-2, 1e-1, 1.0):
        trained = ts.finetune(encoder, task, ts.Settings("linear", lr=lr, epochs=5, batch_size=8))
        assert loss(fitted.task_vector) < loss(trained.task_vector)


def test_a_fit_that_runs_out_of_steps_says_so(caplog: pytest.LogCaptureFixture) -> None:
    encoder, task = problem()
    with caplog.at_level(logging.WARNING):
        run = fit(encoder, task, tolerance=1e-12, max_steps=2)
    assert not run.task_vector.info["solver"]["converged"]
    assert "above tolerance" in caplog.text


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"solver": "sgd"}, "lbfgs"),
        ({"ridge": 0.0}, "ridge=0.0: it must be above 0"),
        ({"tolerance": -1.0}, "tolerance=-1.0"),
        ({"max_steps": 0}, "max_steps=0"),
        ({"reading": Reading(point="encoder")}, "Leave `point` out"),
        ({"room": 1, "cache": "primal"}, "room="),
    ],
)
def test_impossible_settings_are_refused(option: dict[str, object], message: str) -> None:
    encoder, task = problem()
    with pytest.raises(UsageError, match=message):
        fit(encoder, task, **option)
