"""DELTA against a loop that is written out, in float64; what it promises; and that an interrupted run goes on."""

import itertools
import random

import pytest
import torch
from torch import nn
from torch.func import functional_call, jvp

import tauspan as ts
from helpers.drifting import encoder, flat, settings, task
from tauspan.core.errors import BaseMismatchError, UsageError
from tauspan.drift import Distilled, Factored, Orthogonal, factors
from tauspan.models import Encoder
from tauspan.train.penalty import Training


def teacher(model=None, scale=0.3):
    """A vector of the tangent model that moves the features well."""
    solved = ts.closed_form(model or encoder(), task("a"), ridge=0.1).vector
    return scale * solved


def inputs(one):
    return torch.stack(list(one.split("train").inputs))


def by_hand(model, one, tau, weight, growth, reach, epochs, seed=0, lr=0.02):
    """AdamW on l(f(theta0 + a tau)) + weight |z - z_L|^2, with batches of all rows, no schedule but the cosine's own."""
    theta0 = {name: value.detach() for name, value in model.backbone.named_parameters()}
    own = {name: value.clone().requires_grad_() for name, value in theta0.items()}
    x, y = inputs(one), one.split("train").labels

    def features(at):
        return functional_call(model.backbone, at, (x,))

    base, moved = jvp(features, (theta0,), (tau.deltas,))
    optimiser = torch.optim.AdamW(list(own.values()), lr=lr, weight_decay=0.0)
    run = settings("standard", epochs=epochs, batch_size=len(x))
    for step in range(epochs):
        share = (step / epochs) ** growth
        draw = random.Random(f"{seed}/{step}/reach")
        a = draw.uniform(1 - (1 - reach[0]) * share, 1 + (reach[1] - 1) * share)
        z = features({name: theta0[name] + a * (own[name] - theta0[name]) for name in own})
        loss = nn.functional.cross_entropy(one.head(z), y)
        loss = loss + weight * (z - base - a * moved).square().sum(1).mean()
        optimiser.zero_grad()
        loss.backward()
        norm = torch.cat([value.grad.flatten() for value in own.values()]).norm()
        for value in own.values():
            value.grad *= min(1.0, 1.0 / float(norm))
        optimiser.param_groups[0]["lr"] = run.lr_at(step, epochs)
        optimiser.step()
    return {name: (own[name] - theta0[name]).detach() for name in own}


@pytest.mark.parametrize(
    ("weight", "growth", "reach"), [(1.0, 0.5, (0.5, 2.0)), (20.0, 2.0, (0.0, 1.0)), (0.0, 1.0, (1.0, 1.0))]
)
def test_the_vector_is_that_of_the_loop_that_is_written_out(weight, growth, reach):
    model, one, tau = encoder(), task("a"), teacher()
    penalty = Distilled(tau, weight, reach, growth)
    run = ts.finetune(model, one, settings("standard", epochs=12, batch_size=8), penalty=penalty)
    wanted = by_hand(model, one, tau, weight, growth, reach, 12)
    for name, delta in run.task_vector.deltas.items():
        torch.testing.assert_close(delta, wanted[name], rtol=1e-6, atol=1e-9)


def test_without_a_distance_at_one_it_is_ordinary_fine_tuning():
    penalty = Distilled(teacher(), 0.0, (1.0, 1.0))
    own = ts.finetune(encoder(), task("a"), settings("standard"), penalty=penalty).task_vector
    plain = ts.finetune(encoder(), task("a"), settings("standard")).task_vector
    torch.testing.assert_close(flat(own), flat(plain), rtol=1e-9, atol=1e-12)


def test_an_affine_model_reaches_its_teacher():
    """Where f is affine in theta the tangent model is the model, so the distance can be 0 at all coefficients."""
    torch.manual_seed(0)
    model = Encoder(nn.Linear(3, 4).double())
    tau = teacher(model, 1.0)
    penalty = Distilled(tau, 1e4, growth=0.1)
    run = ts.finetune(model, task("a"), settings("standard", epochs=400, lr=0.02), penalty=penalty)
    assert max(run.task_vector.info["penalty"]["apart"].values()) < 1e-4


def test_the_student_follows_the_tangent_model_more_closely_than_ordinary_fine_tuning():
    tau = teacher()
    near, far = (
        ts.finetune(
            encoder(), task("a"), settings("standard", epochs=100), penalty=Distilled(tau, weight, (0.5, 2.0))
        ).task_vector.info["penalty"]["apart"]
        for weight in (100.0, 0.0)
    )
    for reach, value in near.items():
        assert value < 0.3 * far[reach]


@pytest.mark.parametrize("name", ["alone", "with factors", "in a small space"])
def test_a_run_with_a_teacher_goes_on_bit_by_bit(name, tmp_path):
    other = task("b")
    space = {"space": "lora:1"} if name == "in a small space" else {}
    penalty = Distilled(
        teacher(), 0.5, penalty=Factored([factors(encoder(), other)], 0.5, [other]) if name == "with factors" else None
    )  # fmt: skip
    whole = ts.finetune(encoder(), task("a"), settings("standard", **space), penalty=penalty)
    stop = {"after": 3}

    def interrupt(entry):
        if entry["split"] == "train":
            stop["after"] -= 1
            if not stop["after"]:
                raise KeyboardInterrupt

    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        ts.finetune(
            encoder(), task("a"), settings("standard", **space), out=folder, checkpoint_every=1, on_log=interrupt,
            penalty=penalty,
        )  # fmt: skip
    resumed = ts.finetune(
        encoder(), task("a"), settings("standard", **space), out=folder, resume=True, penalty=penalty
    )
    assert torch.equal(flat(resumed.task_vector), flat(whole.task_vector))
    assert resumed.task_vector.info["penalty"] == whole.task_vector.info["penalty"]
    if name == "with factors":
        assert set(whole.task_vector.info["penalty"]) >= {"apart", "ratio", "drift"}


def test_several_tasks_are_taught_together():
    penalty = Distilled(teacher(), 0.5)
    run = ts.finetune(encoder(), [task("a"), task("c", rows=5)], settings("standard"), penalty=penalty)
    assert run.task_vector.label == "joint"


def test_a_teacher_of_another_task_or_regime_is_told(caplog):
    with pytest.raises(UsageError, match=r"of the regime 'standard'.*as_regime\('linear'\)"):
        Distilled(teacher().as_regime("standard"))
    quick = settings("standard", max_steps=1)
    ordinary = ts.finetune(encoder(), task("a"), quick).task_vector
    ts.finetune(encoder(), task("a"), quick, penalty=Distilled(ordinary.as_regime("linear")))
    together = ts.finetune(encoder(), [task("a"), task("c")], settings(max_steps=1)).task_vector
    for on in (task("a"), [task("a"), task("c")]):
        ts.finetune(encoder(), on, quick, penalty=Distilled(together))
    assert not caplog.records
    ts.finetune(encoder(), task("b"), quick, penalty=Distilled(teacher()))
    ts.finetune(encoder(), [task("a"), task("c")], quick, penalty=Distilled(teacher()))
    told = [record.getMessage() for record in caplog.records]
    assert ["was made for a, and b is trained" in told[0], "was made for a, and c is trained" in told[1]] == [
        True,
        True,
    ]


def test_keys_differ_by_everything_that_decides_the_vector():
    many = [
        Distilled(teacher()), Distilled(teacher(), 2.0), Distilled(teacher(), reach=(0.5, 1.5)),
        Distilled(teacher(), growth=1.0), Distilled(2 * teacher()), Distilled(teacher(), penalty=Orthogonal()),
    ]  # fmt: skip
    quick = settings("standard", epochs=1, max_steps=1)
    keys = [ts.finetune(encoder(), task("a"), quick, penalty=one).task_vector.info["key"] for one in many]
    for left, right in itertools.combinations(keys, 2):
        assert left != right


def test_what_cannot_be_is_refused_with_a_repair(tmp_path):
    moved = encoder()
    with torch.no_grad():
        next(moved.parameters()).add_(1.0)
    texts = ts.Task.from_tensors(
        "texts", [], objective="next-token", train=(["a"], None), validation=(["a"], None), test=(["a"], None)
    )

    def begun(one, **options):
        return Distilled(teacher()).guide(Training(encoder(), encoder(), None, settings(**options), [one], 1))

    def run(penalty, one=None, what=None, **options):
        options = {"regime": "standard", **options}
        return ts.finetune(
            one or encoder(), what or task("a"), settings(**options), penalty=penalty, out=tmp_path / "x"
        )

    for error, told, ask in [
        (UsageError, "0 or more", lambda: Distilled(teacher(), -1.0)),
        (UsageError, "has 1 in it", lambda: Distilled(teacher(), reach=(1.5, 2.0))),
        (UsageError, "has one teacher", lambda: Distilled(teacher(), penalty=Distilled(teacher()))),
        (UsageError, "above 0", lambda: Distilled(teacher(), growth=0.0)),
        (UsageError, "regime='standard'", lambda: run(Distilled(teacher()), regime="linear")),
        (BaseMismatchError, "another|base", lambda: run(Distilled(teacher()), moved)),
        (UsageError, "checkpointing=True", lambda: begun(task("a"), regime="standard", checkpointing=True)),
        (UsageError, "augment='crop'", lambda: begun(task("a"), regime="standard", augment="crop")),
        (UsageError, "texts has no frozen head", lambda: begun(texts, regime="standard")),
    ]:
        with pytest.raises(error, match=told):
            ask()
        assert not (tmp_path / "x").exists()
