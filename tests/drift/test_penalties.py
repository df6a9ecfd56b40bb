"""Penalties in the training loop: their value, that they are obeyed, and that an interrupted run goes on as if not."""

import dataclasses
import itertools
import signal
import subprocess
import sys

import pytest
import torch
from torch.func import functional_call

import tauspan as ts
from helpers import zoo
from helpers.drifting import WIDE, encoder, flat, one_penalty, settings, task
from helpers.runs import script_environment
from tauspan.core.errors import BaseMismatchError, MismatchError, NonFiniteError, StoreError, UsageError
from tauspan.drift import Exact, Factored, Orthogonal, Penalty, TauJp, exact_drift, factors, merged
from tauspan.models import Head
from tauspan.train.penalty import Training
from tauspan.train.trainee import trainee


def numbers(name, seed):
    x, y = zoo.normal(6, WIDE, seed=seed).double(), zoo.normal(6, 2, seed=seed + 9).double()
    return ts.Task.from_tensors(
        name, ["u", "v"], objective="regression", train=(x, y), validation=(x, y), test=(x, y),
        head=Head(zoo.normal(2, 4, seed=seed).double()),
    )  # fmt: skip


def every():
    """One of each penalty by its name."""
    other = [task("b"), task("c", rows=5, classes=3)]
    return {
        "exact": Exact(other, 0.5, rows=3),
        "exact, in turn": Exact(other, 0.5, rows=3, turn=True),
        "exact, kept": Exact(other, 0.5, rows=3, kept=2),
        "exact, by pivots": Exact(other, {"b": 0.5, "c": 2.0}, rows=2, kept=2, choose="pivoted"),
        "exact, of other inputs": Exact(
            other, 0.5, rows=2, inputs=list(zoo.normal(5, WIDE, seed=3).double())
        ),
        "tau-jp": TauJp(other, 0.5, rows=3),
        "factored": Factored([factors(encoder(), one) for one in other], 0.5, other),
        "orthogonal": Orthogonal(0.1, scale=0.01),
        "orthogonal, squared": Orthogonal(0.1, squared=True),
    }


@pytest.mark.parametrize("regime", ["linear", "standard"])
@pytest.mark.parametrize("name", list(every()))
def test_a_run_with_a_penalty_goes_on_bit_by_bit(name, regime, tmp_path):
    whole = ts.finetune(encoder(), task("a"), settings(regime), penalty=every()[name])
    plain = ts.finetune(encoder(), task("a"), settings(regime))
    assert not torch.equal(flat(whole.task_vector), flat(plain.task_vector))
    assert all("penalty" in one for one in whole.history if one["split"] == "train")
    stop = {"after": 3}

    def interrupt(entry):
        if entry["split"] == "train":
            stop["after"] -= 1
            if not stop["after"]:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ts.finetune(
            encoder(), task("a"), settings(regime), out=tmp_path / "run", checkpoint_every=1, on_log=interrupt,
            penalty=every()[name],
        )  # fmt: skip
    resumed = ts.finetune(
        encoder(), task("a"), settings(regime), out=tmp_path / "run", resume=True, penalty=every()[name]
    )
    assert torch.equal(flat(resumed.task_vector), flat(whole.task_vector))
    again = ts.finetune(
        encoder(), task("a"), settings(regime), out=tmp_path / "run", resume=True, penalty=every()[name]
    )
    assert again.reused
    with pytest.raises(StoreError, match="other settings"):
        ts.finetune(encoder(), task("a"), settings(regime), out=tmp_path / "run", resume=True)


KILLED = """
import os, signal, sys
import tauspan as ts
from helpers.drifting import encoder, one_penalty, settings, task

regime, name, out = sys.argv[1:]

def kill(entry):
    if entry["split"] == "train" and entry["step"] >= 3:
        os.kill(os.getpid(), signal.SIGKILL)

ts.finetune(encoder(), task("a"), settings(regime), out=out, checkpoint_every=1, on_log=kill, penalty=one_penalty(name))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("regime", "name"), [("linear", "exact"), ("standard", "factored"), ("standard", "distilled")]
)
def test_a_run_with_a_penalty_that_was_killed_goes_on_bit_by_bit(regime, name, tmp_path):
    call = [sys.executable, "-c", KILLED, regime, name, str(tmp_path / "run")]
    ended = subprocess.run(call, env=script_environment(), check=False, timeout=300)
    assert ended.returncode == -signal.SIGKILL
    assert not (tmp_path / "run" / "vector.safetensors").exists()
    resumed, whole = (
        ts.finetune(encoder(), task("a"), settings(regime), penalty=one_penalty(name), **more)
        for more in ({"out": tmp_path / "run", "resume": True}, {})
    )
    assert torch.equal(flat(resumed.task_vector), flat(whole.task_vector))


GENERIC = list(zoo.normal(7, WIDE, seed=77).double())


@pytest.mark.parametrize(
    ("ghosts", "options"),
    [
        (ts.Ghosts(0.7), {}),
        (ts.Ghosts({"second": 0.7, "third": 0.2}), {}),
        (ts.Ghosts({"third": 0.3}), {}),
        (ts.Ghosts(0.7, rows=2, choose="pivoted"), {"rows": 2, "choose": "pivoted"}),
        (ts.Ghosts({"second": 3.0}, rows=2, choose="pivoted", seed=5), {"rows": 2, "choose": "pivoted", "kept": 1}),
        (ts.Ghosts(0.7, inputs=GENERIC), {"rows": 7, "inputs": GENERIC}),
    ],
)  # fmt: skip
def test_exact_drift_beside_the_squared_loss_is_what_superpose_minimises(ghosts, options):
    """At the closed form the gradient of mean l(f_t) + 1/2 sum_s w_s E |J_s tau|^2 is that of the ridge alone."""
    first, others, model = numbers("first", 1), [numbers("second", 2), numbers("third", 3)], encoder()
    ridge, chosen = 0.4, settings(seed=ghosts.seed)
    tau = next(iter(ts.superpose(model, [first], ghosts, ridge, controls=others).vectors.values()))
    what = trainee(model, [first.head], chosen)
    with torch.no_grad():
        for name, parameter in what.parameters.items():
            parameter.copy_(tau.deltas[name])
    rows, share = (
        first.split("train"),
        len(others) * factor(first),
    )  # a mean over others, of the loss's own scale
    weight = {one.name: share * ghosts.weight_of(one.name) for one in others}
    if not isinstance(ghosts.weight, dict):
        weight = share * ghosts.weight
    term = Exact(others, weight, **{"rows": 6, **options}).begun(
        Training(model, model, what, chosen, [first], 1)
    )
    loss = first.objective.total(what(torch.stack(list(rows.inputs))), rows.labels) / len(rows)
    (loss + term(0)).backward()
    for name, parameter in what.parameters.items():
        wanted = -factor(first) * ridge / len(rows) * tau.deltas[name]
        torch.testing.assert_close(parameter.grad, wanted, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("squared", [False, True])
def test_orthogonality_is_a_distance_of_singular_values(squared):
    """|dW^T dW - c I|^2 over the smaller side is sum (s_i^2 - c)^2."""
    chosen, model = settings("linear"), encoder()
    what = trainee(model, [task("a").head], chosen)
    with torch.no_grad():
        for place, parameter in enumerate(what.parameters.values()):
            parameter += 0.3 * zoo.normal(*parameter.shape, seed=place).double()
    term = Orthogonal(0.7, scale=0.04, squared=squared).begun(
        Training(model, model, what, chosen, [task("a")], 1)
    )
    squares = [
        float((torch.linalg.svdvals(one.detach()).square() - 0.04).square().sum())
        for one in what.parameters.values()
        if one.dim() == 2
    ]
    values = squares if squared else [square**0.5 for square in squares]
    assert float(term(0).detach()) == pytest.approx(0.7 * sum(values) / len(values), rel=1e-10)


def factor(one):
    """What the loss of regression is beside 1/2 |f - y|^2."""
    found = one.objective.total(torch.tensor([[2.0, 0.0]]), torch.zeros(1, 2))
    return float(found) / 2.0


@pytest.mark.parametrize("kept", [0, 1])
@pytest.mark.parametrize("regime", ["linear", "standard"])
def test_the_value_is_the_formula(regime, kept):
    """On all rows: weight / 2 E |change|^2, and weight E |change|, the change by ordinary calls of the model."""
    other, third, model = task("b"), task("c", rows=5, classes=3), encoder()
    chosen = settings(regime)
    what = trainee(model, [task("a").head], chosen)
    with torch.no_grad():
        for place, parameter in enumerate(what.parameters.values()):
            parameter += 0.1 * zoo.normal(*parameter.shape, seed=place).double()
    run = Training(model, model, what, chosen, [task("a")], 1)
    moved = {name: delta.detach() for name, delta in run.tau().items()}
    theta = dict(model.backbone.named_parameters())

    def logits(at, one):
        features = functional_call(model.backbone, at, (torch.stack(list(one.split("train").inputs)),))
        return one.head(features)

    squares, norms = [], []
    for one in (other, third):
        at = {name: value.detach() for name, value in theta.items()}
        if regime == "linear":
            _, change = torch.func.jvp(lambda given, one=one: logits(given, one), (at,), (moved,))
        else:
            change = logits({name: value + moved[name] for name, value in at.items()}, one) - logits(at, one)
        squares.append(change.square().sum(1).mean())
        norms.append(change.square().sum(1).sqrt().mean())
    for kind, wanted in ((Exact, 0.15 * sum(squares) / 2), (TauJp, 0.3 * sum(norms) / 2)):
        found = kind([other, third], 0.3, rows=8, kept=kept).begun(run)(0)
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)
    turns = Exact([other, third], 0.3, rows=8, turn=True, kept=kept).begun(run)
    for step in range(3):
        torch.testing.assert_close(turns(step), 0.15 * squares[step % 2], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", list(every()))
def test_a_cache_of_the_own_rows_gives_the_same_vector(name):
    cached, plain = (
        ts.finetune(encoder(), task("a"), settings(cache=cache, epochs=1), penalty=every()[name]).task_vector
        for cache in ("factors", "none")
    )
    torch.testing.assert_close(flat(cached), flat(plain), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["exact", "exact, in turn", "exact, kept", "tau-jp", "factored"])
def test_a_large_weight_leaves_the_others_where_they_are(name):
    mild, strong = (
        ts.finetune(encoder(), task("a"), settings(epochs=30), penalty=scaled(every()[name], weight))
        for weight in (0.0, 50.0)
    )
    drift = [sum(run.task_vector.info["penalty"]["drift"].values()) for run in (mild, strong)]
    assert drift[1] < 0.3 * drift[0]


def scaled(penalty, weight):
    return dataclasses.replace(penalty, weight=weight)


@pytest.mark.parametrize(
    "options", [{}, {"regime": "standard", "lr": 0.1}, {"point": "encoder"}, {"space": "lora:1"}]
)
def test_the_ratio_is_approximate_over_exact_drift_in_every_regime(options):
    """Over E |J tau|^2, also where the outputs move by something else."""
    pair, plain = [task("b"), task("c", rows=5, classes=3)], encoder()
    model = ts.restrict(plain, "lora:1") if "space" in options else plain
    found = [factors(model, one) for one in pair]
    run = ts.finetune(plain, task("a"), settings(**options), penalty=Factored(found, 0.1, pair))
    info, moved = run.task_vector.info["penalty"], run.task_vector.fitted(model, tangent=True)
    for one, of in zip(pair, found, strict=True):
        exact = exact_drift(model, {"a": run.task_vector}, [one])[one.name]["a"]
        assert info["ratio"][one.name] == pytest.approx(float(of.drift(moved.deltas)) / exact, rel=1e-6)
        if options.get("regime") == "standard":
            assert info["tangent"][one.name] == pytest.approx(exact, rel=1e-6)
            assert abs(info["drift"][one.name] / exact - 1) > 1e-3
    if not options:
        assert info["drift"] == {one.name: pytest.approx(exact_drift(model, {"a": run.task_vector}, [one])[one.name]["a"])
                                 for one in pair}  # fmt: skip
    assert ("tangent" in info) is (options.get("regime") == "standard" or "point" in options)
    alone = ts.finetune(plain, task("a"), settings(**options), penalty=Factored(found, 0.1))
    assert "ratio" not in alone.task_vector.info["penalty"]


def test_the_ratio_of_merged_factors_is_over_the_mean_of_their_tasks():
    model, three = encoder(), [task("b"), task("c", rows=5, classes=3), task("d")]
    b, c, d = (factors(model, one) for one in three)
    sets = [merged([b, c]), d]
    run = ts.finetune(model, task("a"), settings(), penalty=Factored(sets, 0.1, three[::-1]))
    exact = {one.name: exact_drift(model, {"a": run.task_vector}, [one])[one.name]["a"] for one in three}
    tau = run.task_vector.deltas
    assert run.task_vector.info["penalty"]["ratio"] == {
        "b, c": pytest.approx(float(sets[0].drift(tau)) / (exact["b"] + exact["c"]) * 2),
        "d": pytest.approx(float(d.drift(tau)) / exact["d"]),
    }
    alone = ts.finetune(model, task("a"), settings(), penalty=Factored(sets[:1], 0.1, three[:2]))
    assert list(alone.task_vector.info["penalty"]["ratio"]) == ["b, c"]
    with pytest.raises(UsageError, match="factors of 2 tasks and 1 other"):
        Factored(sets[:1], 0.1, three[:1])
    with pytest.raises(UsageError, match="0 sets of factors are of the other task 'd'"):
        ts.finetune(model, task("a"), settings(), penalty=Factored(sets[:1], 0.1, three[1:]))


@pytest.mark.parametrize("kind", ["reduce", "ekfac", "diagonal"])
def test_each_task_counts_as_much_whether_merged_or_not(kind):
    """Written out: weight / 2 (2 G_ab + G_c) / 3, with G_ab the mean of two; of diagonals that is the mean of all."""
    model = encoder()
    a, b, c = (factors(model, task(name), kind) for name in "abc")
    what = trainee(model, [task("d").head], settings())
    with torch.no_grad():
        for place, parameter in enumerate(what.parameters.values()):
            parameter += 0.1 * zoo.normal(*parameter.shape, seed=place).double()
    run = Training(model, model, what, settings(), [task("d")], 1)
    pair = merged([a, b])
    found = Factored([pair, c], 0.4).begun(run)(0)
    tau = run.tau()
    torch.testing.assert_close(found, 0.2 * (2 * pair.drift(tau) + c.drift(tau)) / 3)
    if kind == "diagonal":
        torch.testing.assert_close(found, Factored([a, b, c], 0.4).begun(run)(0))
    assert Factored([pair, c]).facts()["counts"] == [2, 1]
    assert "counts" not in Factored([a, b, c]).facts()


def test_other_tasks_are_matched_with_their_factors_by_name():
    model, pair = encoder(), [task("b"), task("c", rows=5, classes=3)]
    both = [factors(model, one) for one in pair]
    there, back = (
        ts.finetune(model, task("a"), settings(), penalty=Factored(both, 0.1, others)).task_vector.info[
            "penalty"
        ]["ratio"]
        for others in (pair, pair[::-1])
    )
    assert there == back


def test_a_penalty_of_your_own():
    class Short(Penalty):
        def facts(self):
            return {"kind": "Short"}

        def begun(self, run):
            return lambda step: sum(delta.square().sum() for delta in run.tau().values()) * 10

    own, plain = (
        ts.finetune(encoder(), task("a"), settings(epochs=20), penalty=one) for one in (Short(), None)
    )
    assert own.task_vector.norm() < 0.5 * plain.task_vector.norm()
    assert own.task_vector.info["penalty"] == {"kind": "Short"}

    class Endless(Short):
        def begun(self, run):
            return lambda step: sum(delta.sum() for delta in run.tau().values()) * float("inf")

    with pytest.raises(NonFiniteError, match="the penalty is"):
        ts.finetune(encoder(), task("a"), settings(), penalty=Endless())


def test_several_tasks_and_small_spaces_take_penalties_too():
    other = [task("b")]
    together = ts.finetune(encoder(), [task("a"), task("c")], settings(), penalty=Exact(other, 0.1))
    assert together.task_vector.info["penalty"]["kind"] == "Exact"
    small = ts.finetune(encoder(), task("a"), settings(space="lora:1"), penalty=Exact(other, 0.1, rows=4))
    assert small.task_vector.space is not None


def test_what_cannot_be_is_refused_with_a_repair():
    model, other = encoder(), task("b")
    found, thin = factors(model, other), factors(ts.restrict(model, "lora:1"), other)
    texts = ts.Task.from_tensors(
        "texts", [], objective="next-token", train=(["a"], None), validation=(["a"], None), test=(["a"], None)
    )
    moved = encoder()
    with torch.no_grad():
        next(moved.parameters()).add_(1.0)

    def run(penalty, one=model, **options):
        return ts.finetune(one, task("a"), settings(**options), penalty=penalty)

    for error, told, ask in [
        (UsageError, "no other task", lambda: run(Exact([]))),
        (UsageError, "no logits", lambda: run(Exact([texts]))),
        (UsageError, "0 or more", lambda: Exact([other], -1.0)),
        (UsageError, "at least 1 row", lambda: TauJp([other], rows=0)),
        (UsageError, "weight of 'b' is -1", lambda: Exact([other], {"b": -1.0})),
        (UsageError, "Did you mean 'b'", lambda: run(Exact([other], {"bb": 1.0}))),
        (UsageError, "Did you mean 'pivoted'", lambda: Exact([other], choose="pivot")),
        (UsageError, "inputs are empty", lambda: Exact([other], inputs=[])),
        (UsageError, "0 or more", lambda: Factored([found], float("nan"))),
        (UsageError, r"factors\(encoder, task\)", lambda: Factored([])),
        (UsageError, "give the tasks of each", lambda: Factored([found], others=[other, other])),
        (
            UsageError,
            "0 sets of factors are of the other task 'c'",
            lambda: run(Factored([found], others=[task("c")])),
        ),
        (UsageError, "the task 'b' is in 2 of", lambda: Factored([found, found])),
        (
            UsageError,
            "2 of 2 other tasks are called 'b'",
            lambda: run(Factored([found, factors(model, task("c"))], others=[other, other])),
        ),
        (UsageError, "2 of 2 other tasks are called 'b'", lambda: run(Exact([other, other]))),
        (MismatchError, r"restrict\(encoder, 'lora:2'\)", lambda: run(Factored([found]), space="lora:2")),
        (MismatchError, r"restrict\(encoder, 'lora:2'\)", lambda: run(Factored([thin]), space="lora:2")),
        (BaseMismatchError, "compute them anew", lambda: run(Factored([found]), moved)),
        (MismatchError, "same `params`", lambda: run(Factored([found]), params=["0.weight"])),
        (UsageError, "0 or more", lambda: Orthogonal(-1.0)),
        (UsageError, "matrix", lambda: run(Orthogonal(), params=["0.bias"])),
        (UsageError, "shard=True", lambda: ts.finetune(model, task("a"), shard=True, penalty=Orthogonal())),
    ]:
        with pytest.raises(error, match=told):
            ask()


def test_a_task_that_is_trained_on_cannot_stay(tmp_path):
    """By its name or by its rows, alone or beside others, with rows and with factors, before anything is written."""
    model, a, b = encoder(), task("a"), task("b")
    alias = dataclasses.replace(a, name="alias")
    same_name = dataclasses.replace(b, name="a")
    for told, on, penalty in [
        ("Exact: 'a' is trained on", a, Exact([a], 10.0)),
        ("Exact: 'a' is trained on", a, Exact([b, a], 10.0)),
        ("Exact: 'a' is trained on", [a, b], Exact([a])),
        ("TauJp: 'a' is trained on", a, TauJp([a.subset(train=4)])),
        ("Exact: 'alias' has the training rows and labels of 'a'", a, Exact([alias])),
        ("Exact: 'a' is trained on", a, Exact([same_name])),
        ("Factored: 'a' is trained on", a, Factored([factors(model, a)])),
        ("Factored: 'a' is trained on", a, Factored([merged([factors(model, a), factors(model, b)])])),
        ("Factored: 'alias' has the training rows", [b, a], Factored([factors(model, alias)])),
    ]:
        with pytest.raises(UsageError, match=told):
            ts.finetune(model, on, settings(), penalty=penalty, out=tmp_path / "run")
        assert not (tmp_path / "run").exists()
    relabelled = ts.Task.from_tensors(
        "relabelled", ["0", "1"], head=a.head,
        **{split: (torch.stack(list(a.split(split).inputs)), 1 - a.split(split).labels) for split in a.splits},
    )  # fmt: skip
    ts.finetune(model, a, settings(max_steps=1), penalty=Exact([relabelled]))  # other labels: another task
    ts.finetune(model, same_name, settings(max_steps=1), penalty=Exact([dataclasses.replace(a, name="b")]))


def test_keys_differ_by_everything_that_decides_the_vector():
    other, third = task("b"), task("c")
    model = encoder()
    many = [
        None, Exact([other]), Exact([third]), Exact([other], 0.5), Exact([other], rows=3), Exact([other], turn=True),
        Exact([other], kept=2), Exact([other], {"b": 0.5}), Exact([other], choose="pivoted"),
        Exact([other], inputs=GENERIC), Exact([other], inputs=GENERIC[1:]), TauJp([other], 1.0),
        Factored([factors(model, other)]), Factored([factors(model, third)]),
        Factored([factors(model, other, "expand")]), Orthogonal(), Orthogonal(squared=True),
    ]  # fmt: skip
    quick = settings(epochs=1, max_steps=1)
    keys = [ts.finetune(model, task("a"), quick, penalty=one).task_vector.info["key"] for one in many]
    for left, right in itertools.combinations(keys, 2):
        assert left != right
