"""Task vectors in closed form: what the losses say, the same minimum as fitting and descent, and clear errors."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import tauspan as ts
from tauspan.core.errors import BaseMismatchError, DataError, MismatchError, NonFiniteError, UsageError
from tauspan.core.reading import Reading
from tauspan.kernel import TangentKernel
from tauspan.kernel.operator import losses
from tauspan.kernel.operator.closed_form import closed_form, logits_at_base, task_vector
from tauspan.kernel.solvers.flow import Modes
from tauspan.models import Classifier, Encoder, Head
from tauspan.tasks import Task, build_head


def problem(classes=3, rows=24, width=6, dtype=torch.float64):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        x = torch.randn(rows + 20, 4, dtype=dtype)
        y = (
            (x[:, 0] * 1.5 + 0.2 * torch.randn(rows + 20, dtype=dtype))
            .add(classes / 2)
            .long()
            .clamp(0, classes - 1)
        )
        net = nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 5)).to(dtype)
    y[:classes] = torch.arange(classes)
    held = (x[rows:], y[rows:])
    names = [f"c{number}" for number in range(classes)]
    return ts.load(net), Task.from_tensors(
        "bins", names, train=(x[:rows], y[:rows]), validation=held, test=held
    )


def rows_of_jacobian(encoder, task, params="all"):
    """f0 (N, C), J (N C, P) and labels, written out."""
    classifier = Classifier(encoder, build_head(task, encoder))
    rows = task.split("train")
    kernel = TangentKernel(classifier, encoder.encode(rows.inputs), params=params)
    ((_, found),) = kernel.left.dense_rows()
    wide = torch.cat([part.flatten(2) for part in found.values()], 2).flatten(0, 1)
    return logits_at_base(kernel), wide, rows.labels


def flat(vector):
    return torch.cat([delta.flatten() for delta in vector.deltas.values()]).double()


def centred_targets(start, labels, gap=20.0):
    classes = start.shape[1]
    return start.mean(1, keepdim=True) + gap * (F.one_hot(labels, classes).double() - 1 / classes)


def test_the_squared_loss_is_at_its_minimum():
    encoder, task = problem()
    fitted = closed_form(encoder, task, ridge=0.1)
    start, wide, labels = rows_of_jacobian(encoder, task)
    tau = flat(fitted.vector).requires_grad_()
    loss = 0.5 * (start.flatten() + wide @ tau - centred_targets(start, labels).flatten()).square().sum()
    loss = loss + 0.05 * tau.square().sum()
    loss.backward()
    first = wide.T @ (start - centred_targets(start, labels)).flatten()
    assert float(tau.grad.norm()) < 1e-10 * float(first.norm())
    assert fitted.vector.regime == "linear"
    facts = fitted.vector.info["solver"]
    assert (facts["objective"], facts["rows"], facts["ridge"], facts["gap"]) == ("squared", 24, 0.1, 20.0)
    assert facts["exact"]
    assert facts["relative_residual"] < 1e-10
    assert fitted.vector.info["task"] == "bins"


def test_gradient_descent_of_the_tangent_model_ends_there():
    encoder, task = problem(width=12)
    fitted = closed_form(encoder, task, ridge=2.0)
    kernel, labels = fitted.kernel, task.split("train").labels
    start = logits_at_base(kernel)
    y = centred_targets(start, labels)
    modes = Modes.of(kernel)
    moved = Modes(modes.values + 2.0, modes.vectors)  # descent of the loss with its ridge
    lr = 0.9 * moved.lr_max
    tangent = ts.linearize(kernel.tangent.base)
    batch = encoder.encode(task.split("train").inputs)
    for _ in range(60):  # in the weights, through the engine and autograd
        tangent.zero_grad()
        norms = sum(tau.square().sum() for tau in tangent.parameters())
        (0.5 * (tangent(batch) - y).square().sum() + norms).backward()
        with torch.no_grad():
            for tau in tangent.parameters():
                tau -= lr * tau.grad

    def after(steps):
        return flat(task_vector(kernel, moved.descent(y - start, steps, lr), "descent", {}))

    walked = flat(tangent.task_vector())
    assert float((after(60) - walked).norm()) < 1e-10 * float(walked.norm())
    assert float((after(100_000) - flat(fitted.vector)).norm()) < 1e-6 * float(walked.norm())


@pytest.mark.parametrize("params", ["all", "last:1"])
def test_cross_entropy_is_the_minimum_that_fitting_finds(params):
    encoder, task = problem()
    solved = closed_form(encoder, task, "cross_entropy", 1e-2, params=params, tolerance=1e-10)
    fitted = ts.fit(
        encoder,
        task,
        "newton-cg",
        ridge=1e-2,
        tolerance=2e-9,
        params=params,
    )
    ours, theirs = flat(solved.vector), flat(fitted.task_vector)
    assert float((ours - theirs).norm()) < 1e-6  # gradient norm over ridge
    facts = solved.vector.info["solver"]
    assert facts["objective"] == "cross_entropy"
    assert facts["loss"] == pytest.approx(fitted.task_vector.info["solver"]["loss"], rel=1e-9)
    assert facts["gradient_norm"] <= 1e-10


def test_default_ridges():
    encoder, task = problem()
    assert closed_form(encoder, task, "cross_entropy").solution.ridge == 1e-3
    assert closed_form(encoder, task, "hinge").solution.ridge == 1e-3
    chosen = closed_form(encoder, task)
    assert chosen.choice.ridge == chosen.solution.ridge
    told = chosen.vector.info["solver"]["leave_one_out"]
    assert told["grid"][told["errors"].index(min(told["errors"]))] == chosen.solution.ridge
    with pytest.warns(
        RuntimeWarning, match=r"leave-one-out chose ridge 2, an end of its grid \(0.5 to 2, 3 values\)"
    ):
        assert closed_form(encoder, task, ridge="loo", grid=[0.5, 1.0, 2.0]).solution.ridge == 2.0


def hinge_loss(tau, start, wide, labels, ridge):
    logits = start + (wide @ tau).view(start.shape)
    if logits.shape[1] == 2:
        short = (1 - (2 * labels - 1) * (logits[:, 1] - logits[:, 0])).clamp(min=0)
    else:
        signs = 2 * F.one_hot(labels, logits.shape[1]) - 1
        short = (1 - signs * (logits - logits.mean(1, keepdim=True))).clamp(min=0)
    return float(short.sum() / len(start) + 0.5 * ridge * tau.square().sum())


@pytest.mark.parametrize("classes", [2, 3])
def test_the_hinge_loss_is_at_its_minimum(classes):
    encoder, task = problem(classes)
    fitted = closed_form(encoder, task, "hinge", 1e-2, tolerance=1e-13)
    start, wide, labels = rows_of_jacobian(encoder, task)
    tau = flat(fitted.vector)
    least = hinge_loss(tau, start, wide, labels, 1e-2)
    facts = fitted.vector.info["solver"]
    assert facts["name"] == "hinge by interior point"
    assert least == pytest.approx(float(fitted.solution.loss), rel=1e-9)
    generator = torch.Generator().manual_seed(0)
    for size in (1e-3, 1e-2, 0.1):
        for _ in range(20):
            step = size * torch.randn(len(tau), generator=generator, dtype=torch.float64)
            assert hinge_loss(tau + step, start, wide, labels, 1e-2) > least
    assert fitted.margins.norm == pytest.approx(float(tau.norm()), rel=1e-9)
    assert facts["support"] == len(fitted.margins.support)
    pulled = fitted.kernel.pullback(fitted.solution.alpha)
    assert torch.allclose(torch.cat([part.flatten() for part in pulled.values()]), tau)


@pytest.mark.thinned(3)
@pytest.mark.parametrize("loss", ["squared", "cross_entropy", "hinge"])
@pytest.mark.parametrize("classes", [2, 3])
def test_batches_and_backends_do_not_change_the_vector(loss, classes):
    encoder, task = problem(classes, rows=16)
    first = flat(closed_form(encoder, task, loss, 0.1, tolerance=1e-12).vector)
    others = ({"reading": Reading(batch_size=11)}, {"backend": "contraction"})
    for options in others:
        other = flat(closed_form(encoder, task, loss, 0.1, tolerance=1e-12, **options).vector)
        assert float((other - first).norm()) <= 1e-5 * float(first.norm())


def test_a_vector_is_an_ordinary_one():
    encoder, task = problem(dtype=torch.float32)
    fitted = closed_form(encoder, task)
    assert {delta.dtype for delta in fitted.vector.deltas.values()} == {torch.float32}
    before = ts.evaluate(encoder, [task], split="train").report().tables[0].rows[0]["accuracy"]
    after = ts.evaluate(encoder, [task], fitted.vector, split="train").report().tables[0].rows[0]["accuracy"]
    assert after > before
    assert float((fitted.vector + -fitted.vector).norm()) == 0
    other = ts.load(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5)))
    with pytest.raises(BaseMismatchError):
        ts.evaluate(other, [task], fitted.vector).report()
    assert not any(tau.any() for tau in fitted.kernel.tangent.tau.values())


def test_a_classifier_of_ones_own():
    encoder, task = problem()
    head = Head(torch.eye(3, 5, dtype=torch.float64), scale=2.0)
    fitted = closed_form(Classifier(encoder, head), task, ridge=0.1)
    assert fitted.vector.info["solver"]["gap"] == 2.0
    with pytest.raises(MismatchError, match="5 outputs and the task 'bins' 3 classes"):
        closed_form(Classifier(encoder, Head(torch.eye(5, dtype=torch.float64))), task)


def test_a_kernel_too_large_for_a_matrix_is_solved_by_products(monkeypatch):
    encoder, task = problem(rows=16)
    exact = closed_form(encoder, task, ridge=0.1)
    monkeypatch.setattr(losses, "DENSE", 10)
    fitted = closed_form(encoder, task, ridge=0.1, tolerance=1e-11)
    assert fitted.solution.solver == "ridge by conjugate gradients"
    assert not fitted.solution.exact
    assert float((flat(fitted.vector) - flat(exact.vector)).norm()) < 1e-8 * float(flat(exact.vector).norm())


def test_one_row():
    encoder, task = problem()
    head = build_head(task, encoder)
    single = Task.from_tensors(
        "one", task.label_names, head=head,
        **{split: (task.split(split).inputs[:1], task.split(split).labels[:1]) for split in task.splits},
    )  # fmt: skip
    fitted = closed_form(encoder, single, ridge=0.1)
    assert (fitted.kernel.shape, fitted.solution.converged) == ((3, 3), True)
    assert closed_form(encoder, single, "cross_entropy").solution.converged
    assert closed_form(encoder, single, "hinge").solution.converged
    with pytest.raises(UsageError, match="leave-one-out needs 2 rows"):
        closed_form(encoder, single)


def test_what_cannot_be_fitted_is_refused():
    encoder, task = problem()
    for loss, options, said in (
        ("hing", {}, "Did you mean 'hinge'"),
        ("hinge", {"ridge": "loo"}, "'loo' chooses for the squared loss"),
        ("squared", {"ridge": "best"}, "ridge='best'"),
        ("squared", {"ridge": -1.0}, "ridge=-1"),
        ("cross_entropy", {"ridge": 0.0}, "ridge=0"),
        ("hinge", {"ridge": 0.0}, "ridge=0"),
        ("squared", {"gap": 0.0}, "gap=0"),
        ("squared", {"gap": math.nan}, "gap=nan"),
        ("squared", {"params": "nothing"}, "nothing"),
    ):
        with pytest.raises(UsageError, match=said):
            closed_form(encoder, task, loss, **options)
    rows = task.split("train")
    same = Task.from_tensors(
        "same", task.label_names, head=build_head(task, encoder),
        **{split: ([rows.inputs[0]] * 2, rows.labels[:2]) for split in task.splits},
    )  # fmt: skip
    with pytest.raises(UsageError, match="Rows 0 and 1 have the same tangents"):
        closed_form(encoder, same, ridge=0.0)
    lone = Task.from_tensors(
        "lone", ["only"], **{split: (rows.inputs, torch.zeros_like(rows.labels)) for split in task.splits}
    )
    with pytest.raises(DataError, match="one class"):
        closed_form(encoder, lone)


def test_nan_is_refused_wherever_it_is():
    encoder, task = problem()
    rows = task.split("train")
    bad = [row.clone() for row in rows.inputs]
    bad[23][0] = math.nan
    broken = Task.from_tensors(
        "bad", task.label_names, head=build_head(task, encoder),
        **dict.fromkeys(task.splits, (bad, rows.labels)),
    )  # fmt: skip
    with pytest.raises(NonFiniteError, match="NaN"):
        closed_form(encoder, broken)
    head = build_head(task, encoder)
    with torch.no_grad():
        encoder.backbone[2].bias[0] = math.nan
    with pytest.raises(NonFiniteError):
        closed_form(Classifier(encoder, head), task)


def test_encoders_are_left_as_they_were():
    encoder, task = problem()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    closed_form(encoder, task, ridge=1.0)
    assert isinstance(encoder, Encoder)
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
