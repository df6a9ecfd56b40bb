"""The protocol's table against the recipes, the catalog and the code itself."""

import math
from typing import Any

import pytest
import torch
from benchmarks.protocol import CONTROL, PROTOCOL, TASKS, validation_rows

from tauspan import editing
from tauspan.editing.search.grid import PAPER_GRID, points_of
from tauspan.experiments.reproduce import names, recipes
from tauspan.experiments.reproduce.experiment import Changes, experiment, variant
from tauspan.experiments.reproduce.presets import PRESETS
from tauspan.experiments.run import Negation
from tauspan.models import Encoder, Head, fingerprint_of
from tauspan.tasks import Split, Task
from tauspan.tasks.data import EIGHT, catalog
from tauspan.tasks.split import held_out
from tauspan.train import Settings, finetune
from tauspan.vector import TaskVector

IMAGES = [name for name in names() if name != "text7"]


def value(name: str) -> Any:
    return PROTOCOL[name].value


# -- recipes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", IMAGES)
def test_the_paper_variant_of_a_recipe_is_the_protocol(name: str) -> None:
    for recipe in recipes(name, "paper").values():
        tuned = recipe.finetune
        assert (tuned.lr_standard, tuned.lr_linear) == (value("learning rate"),) * 2
        assert (tuned.weight_decay, tuned.decay_toward) == (value("weight decay"), value("decay toward"))
        assert (tuned.batch_size, tuned.accumulation) == (value("batch size"), 1)
        assert (tuned.warmup, tuned.clip) == (value("warm-up"), value("clip"))
        assert (tuned.label_smoothing, tuned.params) == (value("label smoothing"), "all")
        assert tuned.augment == value("augmentation")
        assert (recipe.point, recipe.grid) == (value("point"), "paper")
        assert (recipe.part(Negation) or Negation()).floor == value("control kept")
        assert tuned.epochs_by_task == {task: TASKS[task].epochs for task in sorted(recipe.tasks)}
        assert tuned.max_steps is None
        assert recipe.rows.train is None
        large = recipes(name, "paper", Changes(model="ViT-L-14")).popitem()[1].finetune
        assert (large.batch_size, large.accumulation) == value("batch size, ViT-L/14")


@pytest.mark.parametrize("name", IMAGES)
def test_the_corrected_variant_differs_in_point_decay_and_rates_alone(name: str) -> None:
    paper, corrected = recipes(name, "paper"), recipes(name, "corrected")
    _, _, rates = variant(experiment(name), "corrected")
    assert rates is not None
    assert value("learning rate") in rates.standard
    assert value("learning rate") in rates.linear
    for part, recipe in corrected.items():
        assert (recipe.point, recipe.finetune.decay_toward) == ("logits", "base")
        other = recipe.as_dict()
        whole = paper[part].as_dict()
        other["finetune"]["decay_toward"], other["point"] = "zero", "encoder"
        for plain in (other, whole):
            plain.pop("references", None)
            plain.get("disentangle", {}).pop("drift", None)
        assert other == whole


def test_the_tables_name_the_eight_tasks_and_the_control() -> None:
    assert tuple(TASKS) == EIGHT
    for name in IMAGES:
        assert set(recipes(name)["pretrained" if name == "random-init" else "main"].tasks) <= set(TASKS)
    negation = recipes("negation")["main"]
    assert negation.part(Negation).targets == negation.tasks == tuple(TASKS)
    assert negation.part(Negation).controls == (CONTROL,) == (value("control"),)
    assert {len(recipes(name).popitem()[1].seeds) for name in names()} == {1, 3}
    assert recipes("text7").popitem()[1].seeds == (0, 1, 2)


def test_presets_are_pinned_to_a_commit() -> None:
    for preset in PRESETS.values():
        organisation, _, rest = preset.source.partition("/")
        assert organisation in ("openai", "google")
        assert len(rest.partition("@")[2]) == 40
        assert preset.batch_size * preset.accumulation == value("batch size")


# -- sizes and steps -----------------------------------------------------------------------------------------


def test_the_catalog_has_the_protocols_sizes_and_epochs() -> None:
    for name, sizes in TASKS.items():
        found = catalog()[name]
        assert (found.sizes.train, found.paper_epochs) == (sizes.train, sizes.epochs)
        assert len(found.templates) == sizes.templates
        if sizes.validation is not None:
            assert found.sizes.validation == sizes.validation
            assert validation_rows(sizes.train + sizes.validation) == sizes.validation
            assert found.splits.validation is None
        else:
            assert found.splits.validation is not None


def test_epochs_sizes_and_batch_make_the_steps_of_the_protocol() -> None:
    steps = [2030, 2052, 2028, 2068, 2150, 1995, 1960, 2136]
    assert [sizes.steps for sizes in TASKS.values()] == steps
    tuned = recipes("addition", "paper")["main"].finetune
    for (name, sizes), count in zip(TASKS.items(), steps, strict=True):
        settings = Settings(epochs=tuned.epochs_by_task[name], batch_size=tuned.batch_size)
        assert settings.steps(sizes.train) == count
    large = recipes("addition", "paper", Changes(model="ViT-L-14"))["main"].finetune
    both = Settings(epochs=35, batch_size=large.batch_size, accumulation=large.accumulation)
    assert both.steps(TASKS["cars"].train) == 2030


@pytest.mark.parametrize("rows", [100, 8144, 50_000, 60_000, 73_257])
def test_validation_is_a_tenth_of_train_and_at_most_5000(rows: int) -> None:
    made = held_out(Split(range(rows), torch.zeros(rows, dtype=torch.long)))
    assert len(made["validation"]) == validation_rows(rows) == min(rows // 10, 5000)
    assert len(made["train"]) == rows - validation_rows(rows)


def test_the_rate_warms_up_for_500_steps_and_ends_at_zero() -> None:
    settings = Settings(lr=value("learning rate"), warmup=value("warm-up"))
    rates = [settings.lr_at(step, 2030) for step in range(2030)]
    assert max(rates) == rates[499] == value("learning rate")
    assert rates[0] == pytest.approx(value("learning rate") / 500)
    assert rates[500 + 765] == pytest.approx(rates[499] / 2, rel=1e-3)
    assert rates[-1] < 1e-3 * rates[499]


# -- metrics -------------------------------------------------------------------------------------------------


def test_the_grid_has_21_points_from_0_to_1() -> None:
    assert PAPER_GRID == points_of("paper") == value("grid")
    assert len(PAPER_GRID) == 21
    assert (PAPER_GRID[0], PAPER_GRID[1], PAPER_GRID[-1]) == (0.0, 0.05, 1.0)


def line_task(name: str, place: int) -> Task:
    """Twenty rows on one axis of the plane; the head reads that axis, and class 1 lies right of 1."""
    rows = torch.zeros(20, 2)
    rows[:, place] = torch.linspace(0.05, 2, 20)
    labels = (rows[:, place] > 1).long()
    weight = torch.zeros(2, 2)
    weight[1, place] = 1.0
    head = Head(weight, torch.tensor([0.0, -0.2]))
    parts = dict.fromkeys(("train", "validation", "test"), (rows, labels))
    return Task.from_tensors(name, ["low", "high"], head=head, **parts)


def test_accuracy_is_normalised_by_the_single_task_accuracy_of_the_same_regime() -> None:
    class Scaled(torch.nn.Module):
        """exp(s) x, so that the ordinary and the tangent model differ."""

        def __init__(self) -> None:
            super().__init__()
            self.s = torch.nn.Parameter(torch.zeros(2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.s.exp() * x

    encoder = Encoder(Scaled())
    tasks = [line_task("first", 0), line_task("second", 1)]
    base = fingerprint_of(encoder)
    made = [TaskVector({"s": torch.tensor(delta)}, base, "standard") for delta in ([-1.6, 2.0], [2.0, -1.6])]
    vectors = dict(zip(tasks, made, strict=True))
    found = {
        regime: editing.add(
            encoder,
            vectors,
            regime,
        )
        .report()
        .tables[0]
        .rows
        for regime in ("standard", "posthoc")
    }
    singles = {regime: [row["single"] for row in rows[:2]] for regime, rows in found.items()}
    assert singles["standard"] != singles["posthoc"]
    for rows in found.values():
        for row in rows[:2]:
            assert row["added norm."] == pytest.approx(row["added"] / row["single"])
            assert row["alpha 1 norm."] == pytest.approx(row["alpha 1"] / row["single"])
        assert rows[2]["added norm."] == pytest.approx(sum(row["added norm."] for row in rows[:2]) / 2)


def test_negation_keeps_95_percent_of_the_control() -> None:
    encoder = Encoder(torch.nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        encoder.backbone.weight.copy_(torch.eye(2))
    target, control = line_task("target", 0), line_task("control", 1)
    # the vector hurts the control too, a little more at each step
    vector = TaskVector(
        {"weight": torch.tensor([[1.0, 0.0], [0.0, 0.9]])}, fingerprint_of(encoder), "standard"
    )
    found = editing.negate(
        encoder,
        target,
        vector,
        [control],
    ).report()
    curve = {point["alpha"]: point for point in found.series[0]["points"]}
    least = value("control kept") * curve[0.0]["control"]
    allowed = [alpha for alpha, point in curve.items() if point["control"] >= least]
    assert len(curve) == 21
    assert len(allowed) < 21
    assert found.result["alpha"] == min(allowed, key=lambda alpha: (curve[alpha]["target"], alpha))


def test_decay_pulls_the_weights_toward_zero_in_both_regimes() -> None:
    net = torch.nn.Linear(2, 2)
    encoder, task = Encoder(net), line_task("one", 0)
    shared: dict[str, Any] = {
        "lr": 1e-9, "warmup": 0, "weight_decay": 1e6, "decay_toward": value("decay toward"), "batch_size": 20
    }  # fmt: skip
    for regime in ("standard", "linear"):
        settings = Settings(regime, point="encoder" if regime == "linear" else None, **shared)
        tau = finetune(
            encoder,
            task,
            settings,
        ).task_vector.deltas
        for (
            name,
            theta,
        ) in net.named_parameters():  # one step: tau = - lr * decay * theta0, but for Adam's own 1e-9
            assert torch.allclose(tau[name], -1e-3 * theta.detach(), atol=1e-6)
    assert math.isclose(1e-9 * 1e6, 1e-3)
