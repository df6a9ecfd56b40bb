"""What `outlook` expects before training: against plain loops, and on models whose answer is known."""

import dataclasses
import math

import pytest
import torch
from torch import nn

import tauspan as ts
from helpers.zoo import normal
from tauspan.core.errors import UsageError
from tauspan.kernel.diagnose import outlook
from tauspan.models import Classifier
from tauspan.tasks import build_head

SETTINGS = ts.Settings("standard", lr=0.02, max_steps=6, batch_size=4, warmup=0.0)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.Linear(4, 6, dtype=torch.float64)
        self.outer = nn.Linear(6, 5, dtype=torch.float64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.outer(torch.tanh(self.inner(x)))
        return found


def task(name: str = "rows", rows: int = 12) -> ts.Task:
    x, y = normal(rows, 4, seed=3), torch.arange(rows) % 2
    return ts.Task.from_tensors(name, ["a", "b"], train=(x, y), validation=(x, y), test=(x, y))


def test_it_is_what_plain_loops_give() -> None:
    encoder, asked = ts.load(Net()), task()
    (found,) = outlook(encoder, [asked], SETTINGS, rows=12).tasks
    model = Classifier(encoder, build_head(asked, encoder))
    parameters = {name: p for name, p in model.named_parameters() if "head" not in name}
    rows = asked.subset(seed=SETTINGS.seed, train=12).split("train")
    gradients = []
    for begin in range(0, 12, 4):
        part = rows.take(list(range(begin, begin + 4)))
        loss = nn.functional.cross_entropy(model(torch.stack(list(part.inputs))), part.labels)
        gradients.append(torch.autograd.grad(loss, list(parameters.values())))
    travel = 0.02 * sum((1 + math.cos(math.pi * share)) / 2 for share in (0, 1 / 3, 2 / 3))
    steps, total = SETTINGS.steps(12), sum(SETTINGS.lr_at(at, 3) for at in range(3))
    assert found.steps == steps == 3
    assert found.travel == pytest.approx(total)
    assert total == pytest.approx(travel)
    tau = {}
    for place, name in enumerate(parameters):
        each = torch.stack([one[place] for one in gradients])
        tau[name] = -total * each.mean(0) / each.square().mean(0).sqrt()

    def f(values: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.func.functional_call(model, values, (torch.stack(list(rows.inputs)),))  # type: ignore[no-any-return]

    start = {name: p.detach() for name, p in parameters.items()}
    value, moved = torch.func.jvp(f, (start,), (tau,))
    true = f({name: start[name] + tau[name] for name in start})
    assert found.expected == pytest.approx(float((true - value - moved).norm() / moved.norm()), rel=1e-6)
    agreement = torch.cat([(one / total).abs().flatten() for one in tau.values()]).mean()
    assert found.agreement == pytest.approx(float(agreement), rel=1e-6)


def test_a_model_that_is_linear_in_its_parameters_is_expected_to_hold() -> None:
    x, y = normal(12, 4, seed=3), normal(12, 2, seed=4)
    split = (x, y)
    numbers = ts.Task.from_tensors(
        "numbers", ["u", "v"], objective="regression", train=split, validation=split, test=split
    )
    encoder = ts.load(nn.Linear(4, 5, dtype=torch.float64))
    found = outlook(encoder, [numbers], SETTINGS)
    assert found.tasks[0].expected < 1e-12
    assert found.tasks[0].holds_until == 1
    assert found.verdict.startswith("The tangent model is expected to hold through the whole training")


def test_the_expected_error_grows_with_the_rate_and_the_verdict_says_so() -> None:
    encoder, asked = ts.load(Net()), [task("first"), task("second")]
    errors = []
    for rate in (1e-4, 1e-3, 1e-2, 1e-1):
        found = outlook(
            encoder, asked, ts.Settings("standard", lr=rate, max_steps=10, epochs=4, batch_size=4)
        )
        errors.append(found.tasks[0].expected)
    assert errors == sorted(errors)
    assert errors[1] / errors[0] == pytest.approx(
        10, rel=0.05
    )  # the first term that is left out is the second
    assert "leave the tangent model for first, second" in found.verdict
    assert f"At the sum of all vectors it is about {found.added:.2g}. Vectors that are added" in found.verdict
    report = found.report()
    assert "expected error" in report.to_markdown()
    assert report.series[0]["kind"] == "linearity"


def test_one_batch_agrees_with_itself() -> None:
    (found,) = outlook(ts.load(Net()), [task()], ts.Settings("standard", batch_size=64)).tasks
    assert found.agreement == pytest.approx(1)


def test_small_spaces_and_selections_move_what_they_move() -> None:
    encoder, asked = ts.load(Net()), [task()]
    some = ts.Settings("standard", lr=0.02, max_steps=6, batch_size=4, params=["outer.*"])
    whole, part = (outlook(encoder, asked, one).tasks[0].expected for one in (SETTINGS, some))
    assert whole != part
    small = ts.Settings("standard", lr=0.02, max_steps=6, batch_size=4, space="singular:2")
    assert 0 < outlook(encoder, asked, small).tasks[0].expected < float("inf")


def test_what_says_nothing_is_refused() -> None:
    encoder, asked = ts.load(Net()), task()
    with pytest.raises(UsageError, match="give at least one, and none twice"):
        outlook(encoder, [asked, asked], SETTINGS)
    with pytest.raises(UsageError, match="rows=1: a mean over gradients takes 2 rows or more"):
        outlook(encoder, [asked], SETTINGS, rows=1)

    class Deaf(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * 0 + x.sum(1, keepdim=True)

    with pytest.raises(UsageError, match="no gradient of 'rows' reaches the parameters 'all' on these rows"):
        outlook(ts.load(Deaf()), [asked], SETTINGS)


def test_the_sum_bends_as_its_vectors_together() -> None:
    """Twice the same task: the sum is twice the vector."""
    encoder, rate = ts.load(Net()), 1e-3
    one = outlook(encoder, [task("first"), task("second")], ts.Settings("standard", lr=rate, max_steps=3))
    twice = outlook(encoder, [task("first")], ts.Settings("standard", lr=2 * rate, max_steps=3))
    assert one.added == pytest.approx(twice.tasks[0].expected, rel=1e-4)
    assert twice.added is None


def test_a_step_of_several_batches_is_one_of_a_larger_batch() -> None:
    encoder, asked = ts.load(Net()), task()
    large = dataclasses.replace(SETTINGS, batch_size=4)
    small = dataclasses.replace(SETTINGS, batch_size=2, accumulation=2)
    (one,), (other,) = (outlook(encoder, [asked], each, rows=12).tasks for each in (large, small))
    assert other.agreement == pytest.approx(one.agreement, rel=1e-10)
    assert other.expected == pytest.approx(one.expected, rel=1e-10)


def test_smoothed_labels_are_what_is_trained_on() -> None:
    encoder, asked = ts.load(Net()), task()
    plain, smooth = (
        outlook(encoder, [asked], dataclasses.replace(SETTINGS, label_smoothing=each), rows=12).tasks[0]
        for each in (0.0, 0.8)
    )
    assert abs(plain.agreement - smooth.agreement) > 1e-4
