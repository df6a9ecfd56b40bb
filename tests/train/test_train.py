import copy
import dataclasses
import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from helpers.runs import (
    REGIMES,
    bert,
    deltas,
    encoder,
    expected,
    learning_rates,
    logged,
    network,
    points,
    texts,
    trained,
)
from helpers.tiny import raw, same_bits
from helpers.zoo import all_close
from tauspan.core.errors import ModelError, NonFiniteError, UsageError
from tauspan.core.measure import measured, progress, quiet
from tauspan.core.reading import Reading
from tauspan.editing.evaluation import evaluate
from tauspan.models import load_model
from tauspan.tasks import Split, permutation
from tauspan.train import Settings, finetune

BASIC = Settings("standard", seed=1, epochs=2, batch_size=8, lr=0.05)
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulated, the last batch uneven": {"batch_size": 3, "accumulation": 3},
    "one batch larger than the split": {"batch_size": 64, "epochs": 5},
    "decay toward the base": {"weight_decay": 2.0},
    "decay toward zero": {"weight_decay": 2.0, "decay_toward": "zero"},
    "smoothed labels": {"label_smoothing": 0.3},
    "clipped hard": {"clip": 1e-3},
    "never clipped": {"clip": 0.0},
    "ended early": {"max_steps": 4},
    "warm-up in steps": {"warmup": 3},
    "no warm-up": {"warmup": 0.0},
    "another order": {"seed": 7},
    "rates of their own, decay toward the base": {
        "lr_multipliers": {"0.*": 0.25, "2.weight": 3},
        "weight_decay": 2.0,
    },
    "rates of their own, decay toward zero": {
        "lr_multipliers": {"0.*": 0.25},
        "weight_decay": 2.0,
        "decay_toward": "zero",
    },
}


# -- the numbers ---------------------------------------------------------------------------------------------


@pytest.mark.thinned(4)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("regime", REGIMES)
def test_a_run_equals_the_loop_written_out_by_hand(regime: Any, case: str) -> None:
    settings = dataclasses.replace(BASIC, regime=regime, **CASES[case])
    assert all_close(deltas(trained(settings)), expected(points(), settings), 1e-10)


@pytest.mark.parametrize("regime", REGIMES)
def test_two_batches_of_eight_make_the_step_of_one_of_sixteen(regime: Any) -> None:
    whole = dataclasses.replace(BASIC, regime=regime, batch_size=16)
    halves = dataclasses.replace(whole, batch_size=8, accumulation=2)
    one, two = trained(whole), trained(halves)
    assert len(one.history) == len(two.history)
    assert all_close(deltas(two), deltas(one), 1e-10)


def test_the_learning_rate_rises_to_its_peak_and_falls_along_a_cosine() -> None:
    settings = Settings(lr=2.0, warmup=0.2)
    rates = [settings.lr_at(step, 10) for step in range(10)]
    assert rates[:3] == [1.0, 2.0, 2.0]
    assert rates[6] == pytest.approx(1.0)
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert 0 < rates[-1] < 0.1
    assert settings.lr_at(10, 10) == 0


def test_a_warm_up_longer_than_the_run_is_still_a_warm_up() -> None:
    settings = Settings(lr=1.0, warmup=8)
    assert [settings.lr_at(step, 2) for step in range(2)] == [1 / 8, 2 / 8]


def test_each_regime_has_a_learning_rate_of_its_own() -> None:
    assert [Settings("standard").peak_lr, Settings("linear").peak_lr] == [2e-4, 3e-4]


def test_the_last_batch_may_be_smaller_and_max_steps_ends_a_run() -> None:
    assert Settings(epochs=3, batch_size=4, accumulation=2).steps(17) == 9
    assert Settings(epochs=3, batch_size=4, max_steps=2).steps(17) == 2
    assert Settings(max_steps=99).steps(1) == 1


def test_only_the_chosen_parameters_move() -> None:
    run = trained(dataclasses.replace(BASIC, params="2.*"))
    assert list(deltas(run)) == ["2.weight", "2.bias"]
    assert run.task_vector.norm() > 0


@pytest.mark.parametrize("regime", REGIMES)
def test_a_parameter_that_the_features_do_not_depend_on_stays(regime: Any) -> None:
    class Spare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()
            self.spare = nn.Parameter(torch.ones(2, dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

    settings = dataclasses.replace(BASIC, regime=regime, weight_decay=1.0)
    found = deltas(trained(settings, model=load_model(Spare().eval())))
    assert torch.equal(found.pop("spare"), torch.zeros(2, dtype=torch.float64))
    plain = deltas(trained(settings))
    assert all_close({name.removeprefix("net."): delta for name, delta in found.items()}, plain)


# -- what is reported ----------------------------------------------------------------------------------------


def test_the_history_has_every_step_and_a_validation_after_each_epoch_and_at_the_end() -> None:
    run = trained(dataclasses.replace(BASIC, max_steps=5, clip=0.01))
    kinds = [(entry["split"], entry["step"]) for entry in run.history]
    steps = [("train", step) for step in range(1, 6)]
    assert kinds == [*steps[:3], ("validation", 3), *steps[3:], ("validation", 5)]
    entries = [entry for entry in run.history if entry["split"] == "train"]
    assert [entry["lr"] for entry in entries] == pytest.approx(learning_rates(BASIC, 5))
    assert all(entry["gradient_norm"] > 0.01 for entry in entries)  # measured before it is clipped


def test_the_last_validation_is_that_of_the_edited_model() -> None:
    task, run = points(), trained(BASIC)
    rows = task.split("validation")
    theta = {name: p + deltas(run)[name] for name, p in network().named_parameters()}
    assert task.head is not None
    logits = task.head(functional_call(network(), theta, (torch.stack(list(rows.inputs)),))).detach()
    right = float((logits.argmax(-1) == rows.labels).float().mean())
    assert run.history[-1]["loss"] == pytest.approx(float(F.cross_entropy(logits, rows.labels)), rel=1e-6)
    assert run.history[-1]["accuracy"] == pytest.approx(right)


def test_training_lowers_the_loss() -> None:
    for regime in REGIMES:
        losses = [e["loss"] for e in trained(dataclasses.replace(BASIC, regime=regime, epochs=8)).history]
        assert losses[-1] < 0.7 * losses[0]


def test_the_log_is_the_history_and_only_the_vector_lies_beside_it(tmp_path: Any) -> None:
    run = trained(BASIC, out=tmp_path / "run", checkpoint_every=1)
    assert logged(tmp_path / "run") == run.history
    assert sorted(file.name for file in (tmp_path / "run").iterdir()) == ["log.jsonl", "vector.safetensors"]


def test_the_vector_tells_where_it_came_from() -> None:
    model, settings = encoder(), dataclasses.replace(BASIC, regime="linear", lr=None, seed=5)
    info = trained(settings, model=model).task_vector.info
    assert info["recipe"] == settings.as_dict()
    assert info["recipe"]["lr"] == 3e-4
    assert (info["task"], info["seed"], info["point"]) == ("points", 5, "logits")
    assert len(info["key"]) == 64
    assert {"base_id", "versions"} <= info.keys()


@pytest.mark.parametrize("status", ["/proc/self/status", "/dev/null", "/no/such/file"])
def test_the_cost_of_a_run_is_measured_on_any_system(status: str, monkeypatch: Any) -> None:
    monkeypatch.setattr("tauspan.core.measure._STATUS", Path(status))
    cost = trained(BASIC).cost
    assert cost.seconds > 0
    assert cost.peak_mb > 1


def test_a_block_that_fails_is_measured_too() -> None:
    with pytest.raises(KeyError), measured() as cost:  # noqa: PT012 - the block is the thing tested
        torch.ones(10).sum()
        raise KeyError
    assert cost.peak_mb > 1


def test_no_bar_is_drawn_where_nobody_watches(capfd: Any) -> None:
    with quiet(False), progress("work", 3) as advance:
        advance(1, "note")
    assert capfd.readouterr() == ("", "")


# -- the same again ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("regime", REGIMES)
def test_a_seed_decides_every_bit_whatever_the_global_generator(regime: Any) -> None:
    settings = dataclasses.replace(BASIC, regime=regime)
    first = deltas(trained(settings))
    torch.manual_seed(99)
    assert same_bits(first, deltas(trained(settings)))
    assert not same_bits(first, deltas(trained(dataclasses.replace(settings, seed=2))))


@pytest.mark.parametrize("regime", REGIMES)
def test_a_run_records_under_no_grad_and_says_where_it_cannot(regime: Any) -> None:
    settings = dataclasses.replace(BASIC, regime=regime)
    with torch.no_grad():
        found = deltas(trained(settings))
    assert same_bits(found, deltas(trained(settings)))
    with torch.inference_mode(), pytest.raises(UsageError, match=r"take torch.no_grad\(\) in its place"):
        trained(settings, model=encoder())


@pytest.mark.parametrize("regime", REGIMES)
def test_the_encoder_is_never_changed(regime: Any) -> None:
    model = encoder()
    weight, bias = model.backbone[0].weight, model.backbone[0].bias
    bias.requires_grad_(False)
    weight.grad = torch.ones_like(weight)
    before = [(name, p, raw(p), p.requires_grad) for name, p in model.named_parameters()]
    trained(dataclasses.replace(BASIC, regime=regime, weight_decay=1.0), model=model)
    assert [(name, p, raw(p), p.requires_grad) for name, p in model.named_parameters()] == before
    assert torch.equal(weight.grad, torch.ones_like(weight))
    assert all(p.grad is None for p in model.parameters() if p is not weight)
    assert not any(module.training for module in model.modules())


def test_prototypes_are_cut_where_the_runs_texts_are(tmp_path: Path) -> None:
    """What stands behind the cut of the run changes nothing, neither in the rows nor in the head."""
    model, task = bert(tmp_path), texts()
    longer = {name: Split([f"{text} a b c" for text in rows.inputs], rows.labels)
              for name, rows in task.splits.items()}  # fmt: skip
    settings = dataclasses.replace(BASIC, epochs=1, max_tokens=3)
    first, second = (
        trained(settings, one, model) for one in (task, dataclasses.replace(task, splits=longer))
    )
    assert first.history == second.history
    reports = [
        evaluate(
            model,
            [dataclasses.replace(task, splits=splits)],
            reading=Reading(max_tokens=3),
        ).report()
        for splits in (task.splits, longer)
    ]
    assert reports[0].tables == reports[1].tables


@pytest.mark.parametrize(("max_steps", "steps"), [(None, 15), (4, 4), (99, 15)])
def test_steps_end_with_the_epochs_or_where_told(max_steps: int | None, steps: int) -> None:
    settings = dataclasses.replace(BASIC, epochs=5, batch_size=4, accumulation=2, max_steps=max_steps)
    assert settings.steps(22) == steps
    assert type(settings.steps(22)) is int


# -- what is refused -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("regime", REGIMES)
def test_a_loss_that_is_not_finite_names_the_step(regime: Any, tmp_path: Any) -> None:
    task = points()
    rows = task.split("train")
    place = permutation(len(rows), "1/0")[17]  # in the third batch of eight
    inputs = list(rows.inputs)
    inputs[place] = torch.full_like(inputs[place], math.nan)
    broken = dataclasses.replace(task, splits={**task.splits, "train": Split(inputs, rows.labels)})
    with pytest.raises(NonFiniteError, match=r"step 2 of 'points': loss nan.*Lower the learning rate"):
        trained(dataclasses.replace(BASIC, regime=regime), broken, out=tmp_path)
    assert not (tmp_path / "vector.safetensors").exists()


def test_a_learning_rate_that_diverges_is_an_error() -> None:
    with pytest.raises(NonFiniteError, match="step"):
        trained(dataclasses.replace(BASIC, lr=1e308, clip=0.0, warmup=0.0))


IMPOSSIBLE: dict[tuple[str, ...], tuple[Any, ...]] = {
    ("epochs", "batch_size", "accumulation"): (0, -1, 1.5, None),
    ("max_steps", "max_tokens"): (0, -3, 1.5),
    ("weight_decay", "clip", "warmup"): (-1, math.nan, math.inf),
    ("label_smoothing",): (-0.1, 1.0, math.nan),
    ("lr",): (0.0, -1e-3, math.nan, math.inf),
    ("decay_toward",): (None, "theta0"),
    ("cache",): (None, "factor"),
    ("precision",): (None, "fp16"),
}


@pytest.mark.parametrize(("names", "values"), IMPOSSIBLE.items())
def test_an_impossible_value_is_refused(names: tuple[str, ...], values: tuple[Any, ...]) -> None:
    for name, value in itertools.product(names, values):
        with pytest.raises(UsageError, match=f"{name}={value!r}"):
            Settings(**{name: value})


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"regime": "posthoc"}, "posthoc reads a standard vector in the tangent model; it is not trained"),
        ({"regime": "liner"}, "Did you mean 'linear'"),
        ({"decay_toward": "bse"}, "Did you mean 'base'"),
        ({"point": "logit"}, "Did you mean 'logits'"),
    ],
)
def test_a_wrong_word_is_answered_with_a_hint(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Settings(**setting)


def test_rates_of_no_parameter_are_refused_and_a_conflict_is_repaired() -> None:
    with pytest.raises(
        UsageError, match=r"lr_multipliers\['0.\*'\]=0: it must be above 0.*left out of `params`"
    ):
        Settings(lr_multipliers={"0.*": 0})
    with pytest.raises(UsageError, match=r"lr_multipliers=0.5: give a mapping.*such as \{'\*.bias': 2.0\}"):
        Settings(lr_multipliers=0.5)  # type: ignore[arg-type]
    assert Settings(lr_multipliers={"*.bias": 2.0}).multiplier("0.bias") == 2
    with pytest.raises(UsageError, match=r"no parameter matches '0.weigth'. Did you mean '0.weight'"):
        trained(dataclasses.replace(BASIC, lr_multipliers={"0.weigth": 2.0}))
    both = {"0.*": 0.5, "*.weight": 2.0}
    with pytest.raises(UsageError, match=r"'0.\*', '\*.weight' all fit '0.weight', with different numbers"):
        trained(dataclasses.replace(BASIC, lr_multipliers=both))
    repaired = Settings(lr_multipliers={**both, "0.weight": 3.0})
    assert [repaired.multiplier(name) for name in ("0.weight", "0.bias", "2.weight", "2.bias")] == [
        3,
        0.5,
        2,
        1,
    ]


@pytest.mark.parametrize("regime", REGIMES)
def test_multipliers_of_one_change_nothing(regime: Any) -> None:
    settings = dataclasses.replace(BASIC, regime=regime, weight_decay=0.5)
    plain = trained(settings).task_vector.deltas
    ones = trained(dataclasses.replace(settings, lr_multipliers={"*": 1.0})).task_vector.deltas
    assert same_bits(plain, ones)
    empty = dataclasses.replace(settings, lr_multipliers={})
    assert empty == settings
    assert empty.as_dict() == settings.as_dict()
    assert "lr_multipliers" not in settings.as_dict()  # so that the keys of older runs stay
    assert hash(dataclasses.replace(settings, lr_multipliers={"*": 2.0}))


@pytest.mark.parametrize("cache", ["auto", "primal", "factors"])
def test_a_cache_changes_nothing_in_the_first_epoch(cache: Any, tmp_path: Path) -> None:
    settings = dataclasses.replace(BASIC, regime="linear", epochs=1, accumulation=2, batch_size=3)
    plain = trained(settings).task_vector.deltas
    kept = trained(dataclasses.replace(settings, cache=cache)).task_vector.deltas
    assert all_close(kept, plain)
    mapped = finetune(
        encoder(), points(), dataclasses.replace(settings, cache=cache),
        cache_folder=tmp_path, )  # fmt: skip
    assert all_close(mapped.task_vector.deltas, plain)
    assert list(tmp_path.iterdir()) == []


def test_later_epochs_see_the_same_batches_in_another_order() -> None:
    settings = dataclasses.replace(BASIC, regime="linear", epochs=3, batch_size=3)
    by_kind = [
        trained(dataclasses.replace(settings, cache=kind)).task_vector for kind in ("primal", "factors")
    ]
    assert all_close(by_kind[0].deltas, by_kind[1].deltas)
    assert not all_close(by_kind[0].deltas, trained(settings).task_vector.deltas, 1e-3)


def test_ordinary_fine_tuning_has_nothing_to_keep() -> None:
    with pytest.raises(UsageError, match="moves theta"):
        Settings("standard", cache="primal")


@pytest.mark.parametrize("regime", REGIMES)
def test_bfloat16_products_leave_the_vector_in_float32_and_close(regime: Any) -> None:
    model = load_model(network().float())
    task = points()
    task = dataclasses.replace(
        task,
        head=copy.deepcopy(task.head).float(),
        splits={n: Split([x.float() for x in part.inputs], part.labels) for n, part in task.splits.items()},
    )
    settings = dataclasses.replace(BASIC, regime=regime)
    exact = trained(settings, task, model=model).task_vector
    rough = trained(dataclasses.replace(settings, precision="bfloat16"), task, model=model).task_vector
    tf32 = trained(dataclasses.replace(settings, precision="tf32"), task, model=model).task_vector
    assert {delta.dtype for delta in rough.deltas.values()} == {torch.float32}
    gap = (rough - exact).norm() / exact.norm()
    assert 0 < gap < 0.1
    assert (tf32 - exact).norm() <= 1e-2 * exact.norm()
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.parametrize("every", [0, -1])
def test_a_checkpoint_every_zero_steps_is_refused(every: int, tmp_path: Any) -> None:
    with pytest.raises(UsageError, match=f"checkpoint_every={every}"):
        trained(BASIC, out=tmp_path, checkpoint_every=every)


def test_a_choice_that_picks_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="weigth"):
        trained(dataclasses.replace(BASIC, params="0.weigth"))


@pytest.mark.parametrize("regime", REGIMES)
def test_active_dropout_is_refused(regime: Any) -> None:
    model = load_model(nn.Sequential(nn.Linear(4, 5), nn.Dropout(0.5)).double().train())
    with pytest.raises(ModelError, match="eval"):
        trained(dataclasses.replace(BASIC, regime=regime), model=model)
