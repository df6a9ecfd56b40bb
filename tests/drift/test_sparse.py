"""The least sensitive entries against autograd in float64, and training in them against a loop that masks gradients."""

import dataclasses

import pytest
import torch
from torch import nn

import tauspan as ts
from helpers import zoo
from tauspan.core.errors import BaseMismatchError, StoreError, UsageError
from tauspan.drift import factors, least_sensitive, merged
from tauspan.models import Encoder, Head

WIDE = 4


def encoder(seed=0):
    torch.manual_seed(seed)
    return Encoder(nn.Sequential(nn.Linear(WIDE, 5), nn.Tanh(), nn.Linear(5, WIDE)).double())


def task(name="a", rows=12):
    seed = ord(name)
    x = zoo.normal(rows, WIDE, seed=seed).double()
    x[:, 2] = 0  # an input that is never there, so some entries move nothing
    both = (x, torch.arange(rows) % 3)
    head = Head(zoo.normal(3, WIDE, seed=seed + 1).double())
    return ts.Task.from_tensors(name, ["0", "1", "2"], train=both, validation=both, test=both, head=head)


def diagonal(model, one):
    """E_x sum_c (d logit_c / d theta_i)^2, entry by entry, by ordinary autograd."""
    known = dict(model.backbone.named_parameters())
    total = {name: torch.zeros_like(value) for name, value in known.items()}
    inputs = one.split("train").inputs
    for x in inputs:
        for logit in one.head(model(x[None]))[0]:
            found = torch.autograd.grad(logit, list(known.values()), retain_graph=True)
            for name, grad in zip(known, found, strict=True):
                total[name] += grad.square() / len(inputs)
    return total


@pytest.mark.parametrize("share", [0.05, 0.3, 1.0])
def test_the_masks_hold_the_smallest_entries_of_the_diagonal(share):
    model, one = encoder(), task()
    masks = least_sensitive(model, factors(model, one, kind="diagonal"), share)
    exact = diagonal(model, one)
    flat = torch.cat([value.flatten() for value in exact.values()])
    count = round(share * int((flat > 1e-20).sum()))
    picked = torch.cat([
        masks.get(name, torch.zeros(value.shape, dtype=torch.bool)).flatten() for name, value in exact.items()
    ])  # fmt: skip
    assert int(picked.sum()) == count
    rest = flat[~picked & (flat > 1e-20)]
    assert not len(rest) or float(flat[picked].max()) <= float(rest.min()) * (1 + 1e-9)
    assert float(flat[picked].min()) > 1e-20  # nothing that cannot learn


def test_several_tasks_are_one_diagonal():
    model, one, two = encoder(), task("a"), task("b", 7)
    both = [factors(model, each, kind="diagonal") for each in (one, two)]
    masks = least_sensitive(model, merged(both), 0.4)
    exact = {name: (value + diagonal(model, two)[name]) / 2 for name, value in diagonal(model, one).items()}
    picked = torch.cat([exact[name][mask] for name, mask in masks.items()])
    left = torch.cat([
        exact[name][~masks.get(name, torch.zeros(value.shape, dtype=torch.bool)) & (value > 1e-20)]
        for name, value in exact.items()
    ])  # fmt: skip
    assert float(picked.max()) <= float(left.min()) * (1 + 1e-9)


@pytest.mark.parametrize("regime", ["standard", "linear"])
def test_training_moves_the_picked_entries_as_masked_gradients_would(regime):
    model, one = encoder(), task()
    masks = least_sensitive(model, factors(model, one, kind="diagonal"), 0.4)
    settings = ts.Settings(regime, lr=0.05, epochs=6, batch_size=12, clip=0.0)
    found = ts.finetune(ts.restrict(model, masks), one, settings).task_vector.dense(model)

    x, y = torch.stack(list(one.split("train").inputs)), one.split("train").labels
    base = {name: value.detach() for name, value in model.backbone.named_parameters()}
    tau = {name: torch.zeros_like(value, requires_grad=True) for name, value in base.items()}
    optimiser = torch.optim.AdamW(tau.values(), lr=0.05, weight_decay=0.0)

    def logits(point):
        return one.head(torch.func.functional_call(model.backbone, point, (x,)))

    for step in range(6):
        optimiser.param_groups[0]["lr"] = settings.lr_at(step, 6)
        if regime == "standard":
            out = logits({name: base[name] + tau[name] for name in base})
        else:
            flat, moved = torch.func.jvp(logits, (base,), (tau,))
            out = flat + moved
        nn.functional.cross_entropy(out, y).backward()
        for name, part in tau.items():
            part.grad *= masks.get(name, torch.zeros_like(part))
        optimiser.step()
        optimiser.zero_grad()
    for name, delta in found.deltas.items():
        torch.testing.assert_close(delta.double(), tau[name].detach(), rtol=1e-5, atol=1e-7)
        assert not delta[~masks[name]].any()


def test_vectors_of_other_masks_are_added_by_an_editor(tmp_path):
    model, tasks = encoder(), [task("a"), task("b", 7)]
    vectors = {}
    for one in tasks:
        small = ts.restrict(model, least_sensitive(model, factors(model, one, kind="diagonal"), 0.3))
        vectors[one] = ts.finetune(small, one, ts.Settings("linear", lr=0.05, max_steps=4)).task_vector
        vectors[one].save_pretrained(tmp_path / one.name)
    back = {one: ts.TaskVector.from_pretrained(tmp_path / one.name) for one in tasks}
    whole = {one: vector.dense(model) for one, vector in vectors.items()}
    first, second = (ts.Editor(model, some).add(grid=[0.5]) for some in (back, whole))
    assert [row.added for row in first.tasks] == [row.added for row in second.tasks]


def test_what_cannot_be_picked_is_refused():
    model, one = encoder(), task()
    with pytest.raises(UsageError, match="kind='diagonal'"):
        least_sensitive(model, factors(model, one, kind="reduce"))
    with pytest.raises(UsageError, match="share=0"):
        least_sensitive(model, factors(model, one, kind="diagonal"), 0)
    with pytest.raises(BaseMismatchError, match="another model"):
        least_sensitive(encoder(1), factors(model, one, kind="diagonal"))


def test_places_outside_of_the_tensor_are_refused(tmp_path):
    model, one = encoder(), task()
    small = ts.restrict(model, least_sensitive(model, factors(model, one, kind="diagonal"), 0.3))
    tau = ts.finetune(small, one, ts.Settings("linear", max_steps=1)).task_vector
    for change in (lambda t: t + 1000, lambda t: t.flip(0), lambda t: t.float(), lambda t: t - 1000):
        basis = next(iter(small.space.bases.values()))
        broken = dataclasses.replace(basis, factors=(change(basis.factors[0]),))
        space = dataclasses.replace(
            small.space, bases={**small.space.bases, next(iter(small.space.bases)): broken}
        )
        dataclasses.replace(tau, space=space).save_pretrained(tmp_path / "v", overwrite=True)
        with pytest.raises(StoreError, match="space that this version does not read"):
            ts.TaskVector.from_pretrained(tmp_path / "v")
