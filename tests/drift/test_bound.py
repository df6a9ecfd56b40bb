"""The bound of drift: its formula with whole Jacobians, and that no row ever moves farther."""

import dataclasses

import pytest
import torch
from torch import nn
from torch.func import functional_call, jacrev, vmap

import tauspan as ts
from helpers import zoo
from helpers.drifting import encoder, task
from tauspan.core.errors import UsageError
from tauspan.drift import drift_bound
from tauspan.drift.bound import chosen_entries
from tauspan.kernel import DenseKernel
from tauspan.models import Encoder, Head


def jacobian(model, head, x):
    """J of the logits, shape (N C, parameters), with the names in rising order."""
    theta = {name: value.detach() for name, value in model.backbone.named_parameters()}

    def logits(at, row):
        return head(functional_call(model.backbone, at, (row[None],)))[0]

    parts = vmap(jacrev(logits), (None, 0))(theta, x)
    return torch.cat([parts[name].flatten(2) for name in sorted(theta)], 2).flatten(0, 1)


def test_with_all_rows_as_landmarks_it_is_the_formula():
    model, one = encoder(), task("a", rows=5)
    vector = 0.5 * ts.closed_form(model, task("b"), ridge=0.1).vector
    found = drift_bound(model, vector, one, 100, choose="random")
    x = torch.stack(list(one.split("train").inputs))
    rows = jacobian(model, one.head, x)
    tau = torch.cat([vector.deltas[name].flatten() for name in sorted(vector.deltas)])
    moved = (rows @ tau).view(5, -1).norm(dim=1)
    torch.testing.assert_close(found.actual, moved, rtol=1e-8, atol=1e-10)
    seen = torch.linalg.lstsq(rows @ rows.T, (rows @ tau)[:, None], driver="gelsd").solution[:, 0]
    rest = float((tau - rows.T @ seen).norm())
    assert found.rest == pytest.approx(rest, rel=1e-2, abs=1e-2 * float(tau.norm()))
    assert (
        float((found.bound / moved).max()) < 1.1
    )  # the rows are the landmarks: nothing is unknown but rounding
    assert found.violations == 0


@pytest.mark.parametrize("choose", ["pivoted", "random"])
@pytest.mark.parametrize("landmarks", [1, 4, 12])
def test_with_few_landmarks_it_is_the_formula_of_the_power_function(choose, landmarks):
    torch.manual_seed(1)
    model = Encoder(nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 4)).double())
    train, unseen = zoo.normal(10, 3, seed=1).double(), zoo.normal(7, 3, seed=2).double()
    head = Head(zoo.normal(2, 4).double())
    one = ts.Task.from_tensors(
        "one", ["0", "1"], train=(train, torch.arange(10) % 2), validation=(train, torch.arange(10) % 2),
        test=(unseen, torch.arange(7) % 2), head=head,
    )  # fmt: skip
    vector = 0.5 * ts.closed_form(model, one, ridge=0.1).vector
    found = drift_bound(model, vector, one, landmarks, choose=choose, seed=3)
    tau = torch.cat([vector.deltas[name].flatten() for name in sorted(vector.deltas)])
    rows, others = jacobian(model, head, unseen), jacobian(model, head, train)
    picked = others[chosen_entries(DenseKernel(others @ others.T), landmarks, choose, 3)]
    inverse = torch.linalg.pinv(picked @ picked.T, rtol=1e-9)
    beta = inverse @ (picked @ tau)
    rest = (tau - picked.T @ beta).norm()
    power = (rows - rows @ picked.T @ inverse @ picked).norm(dim=1)
    wanted = (rows @ (picked.T @ beta)).abs() + rest * power
    torch.testing.assert_close(found.bound, wanted.view(7, -1).norm(dim=1), rtol=2e-2, atol=2e-2)
    assert found.violations == 0
    assert found.looseness >= 1


@pytest.mark.slow
@pytest.mark.thinned(2)
@pytest.mark.parametrize("precision", [torch.float32, torch.float64])
def test_no_row_moves_farther_in_twenty_resamplings(precision):
    loose = []
    for seed in range(20):
        torch.manual_seed(seed)
        model = Encoder(nn.Sequential(nn.Linear(3, 6), nn.GELU(), nn.Linear(6, 4)).to(precision))
        x = zoo.normal(60, 3, seed=seed).to(precision)
        y = torch.arange(60) % 3
        one = ts.Task.from_tensors(
            "one", ["0", "1", "2"], train=(x[:20], y[:20]), validation=(x[:20], y[:20]), test=(x[20:], y[20:]),
            head=Head(zoo.normal(3, 4, seed=seed).to(precision)),
        )  # fmt: skip
        other = ts.Task.from_tensors(
            "other", ["0", "1"], train=(x[:8], y[:8] % 2), validation=(x[:8], y[:8] % 2), test=(x[:8], y[:8] % 2),
            head=Head(zoo.normal(2, 4, seed=seed + 1).to(precision)),
        )  # fmt: skip
        vector = ts.closed_form(model, other, ridge=0.1).vector
        found = drift_bound(model, vector, one, (1, 5, 30)[seed % 3], seed=seed)
        assert found.violations == 0
        loose.append(found.looseness)
    assert min(loose) >= 1


def test_more_landmarks_bound_more_tightly_and_the_report_says_how():
    model, one = encoder(), task("a", rows=12)
    vector = ts.superpose(model, [task("b"), one], ridge=0.1).vectors
    tau = next(iter(vector.values()))
    few, many = (drift_bound(model, tau, one, count) for count in (2, 20))
    assert float(many.bound.mean()) < float(few.bound.mean())
    row = many.report().tables[0].rows[0]
    assert row["violations"] == 0
    assert row["landmarks"] == many.landmarks


def test_what_cannot_be_bounded_is_refused():
    texts = ts.Task.from_tensors(
        "texts", [], objective="next-token", train=(["a"], None), validation=(["a"], None), test=(["a"], None)
    )
    vector = ts.closed_form(encoder(), task("a"), ridge=1.0).vector
    with pytest.raises(UsageError, match="no logits"):
        drift_bound(encoder(), vector, texts)
    with pytest.raises(UsageError, match="at least 1"):
        drift_bound(encoder(), vector, task("a"), 0)
    with pytest.raises(UsageError, match="drift_bound linearises encoder and head together"):
        drift_bound(encoder(), vector, task("a"), reading=ts.Reading(point="encoder"))


@pytest.mark.parametrize(
    ("bound", "moved", "loose", "shown"),
    [
        ([2.0, 4.0], [0.0, 0.0], float("inf"), None),
        ([0.0, 0.0], [0.0, 0.0], 1.0, 1.0),
        ([2.0, 4.0], [0.0, 2.0], 2.0, 2.0),
    ],
)
def test_rows_that_do_not_move_have_no_looseness(bound, moved, loose, shown):
    found = dataclasses.replace(
        drift_bound(encoder(), ts.closed_form(encoder(), task("b"), ridge=1.0).vector, task("a")),
        bound=torch.tensor(bound).double(), actual=torch.tensor(moved).double(),
    )  # fmt: skip
    assert found.looseness == loose
    assert found.report().tables[0].rows[0]["looseness"] == shown
