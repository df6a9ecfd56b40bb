"""Frozen heads: templates, probes, what is computed once, and what is refused."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from helpers import checkpoints, tiny
from helpers.runs import REGIMES, points, trained
from helpers.runs import encoder as points_encoder
from helpers.zoo import normal
from tauspan.cli import train
from tauspan.cli.shared import task_of
from tauspan.core.errors import BaseMismatchError, DataError, ModelError, NonFiniteError, UsageError
from tauspan.editing.evaluation import evaluate
from tauspan.models import Encoder, Head, fingerprint_of, load_model, save_model, select, trimmed
from tauspan.models.encoder import Inputs
from tauspan.tangent import linearize
from tauspan.tasks import Task, build_head, heads
from tauspan.tasks.probe import probe
from tauspan.train import Settings

PINNED = "acf019c52b583b1a84c40d9cb19f1847bab5e731736f22f2310553ca303c4fad"
homes = pytest.fixture(scope="module")(checkpoints.homes)


def pixels(count: int, seed: int = 0) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8))


def shown(**options: Any) -> Task:
    """Six images in two classes."""
    rows = (pixels(6), torch.tensor([0, 1, 0, 1, 1, 0]))
    made = Task.from_tensors("shown", ["ab", "cd"], train=rows, validation=rows, test=rows)
    return dataclasses.replace(made, **options)


# -- templates -----------------------------------------------------------------------------------------------


def counting_encoder(scale: float = 3.0) -> Encoder:
    """Features are the inputs; a text is embedded as its numbers of letters `a`, `b` and `c`, and one."""

    def tokens(texts: list[str], **_: Any) -> dict[str, Tensor]:
        return {"counts": torch.tensor([[*map(text.count, "abc"), 1] for text in texts]).double()}

    backbone = nn.Linear(4, 4).double()
    return Encoder(
        backbone, lambda _, batch: batch, Inputs(tokenizer=tokens), logit_scale=scale,
        label_features=lambda _, batch: batch["counts"],
    )  # fmt: skip


def counted(names: list[str], templates: list[str]) -> Task:
    rows = (normal(len(names), 4), torch.arange(len(names)))
    made = Task.from_tensors("counted", names, train=rows, validation=rows, test=rows)
    return dataclasses.replace(made, templates=templates)


def unit(vector: list[float]) -> list[float]:
    length = math.sqrt(sum(x * x for x in vector))
    return [x / length for x in vector]


def test_the_weight_of_a_class_is_the_unit_mean_of_its_unit_templates() -> None:
    """Class `aa` under two templates: (2, 0, 0, 1) / sqrt 5 and (2, 1, 2, 1) / sqrt 10; class `b` likewise."""
    head = build_head(counted(["aa", "b"], ["{}", "c b {} c"]), counting_encoder())
    means = [
        [(2 / 5**0.5 + 2 / 10**0.5) / 2, (0 + 1 / 10**0.5) / 2, (0 + 2 / 10**0.5) / 2, (1 / 5**0.5 + 1 / 10**0.5) / 2],
        [0, (1 / 2**0.5 + 2 / 9**0.5) / 2, (0 + 2 / 9**0.5) / 2, (1 / 2**0.5 + 1 / 9**0.5) / 2],
    ]  # fmt: skip
    expected = torch.tensor([unit(mean) for mean in means], dtype=torch.float64)
    torch.testing.assert_close(head.weight, expected, rtol=1e-14, atol=1e-14)
    assert (head.scale, head.normalize, head.bias) == (3.0, True, None)
    features = normal(5, 4, seed=8)
    cosines = [
        [sum(a * b for a, b in zip(unit(z), w, strict=True)) for w in expected.tolist()]
        for z in features.tolist()
    ]
    torch.testing.assert_close(
        head(features), 3 * torch.tensor(cosines, dtype=torch.float64), rtol=1e-13, atol=0
    )


def test_one_template_is_one_prompt_a_class() -> None:
    first = build_head(counted(["a", "bb"], ["c {}"]), counting_encoder())
    prompts = dataclasses.replace(counted(["a", "bb"], []), label_prompts=["c a", "c bb"])
    assert torch.equal(first.weight, build_head(prompts, counting_encoder()).weight)


def test_many_prompts_go_through_the_tower_in_parts() -> None:
    templates = ["{} " + "a" * count for count in range(100)]
    names = ["a", "b", "ab", "c"]
    whole = build_head(counted(names, templates), counting_encoder())
    for place, name in enumerate(names):
        alone = build_head(counted([name], templates), counting_encoder())
        torch.testing.assert_close(whole.weight[place : place + 1], alone.weight, rtol=1e-14, atol=0)


@torch.no_grad()
def test_clips_zero_shot_head_is_the_protocols(homes: dict[str, Path]) -> None:
    model = transformers.CLIPModel.from_pretrained(homes["clip"]).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(homes["clip"])
    task = shown(label_names=["red fox", "oak"], templates=["a {}", "the {} in b", "{}"])
    rows = []
    for name in task.label_names:
        one = []
        for template in task.templates:  # text by text, and so without padding
            batch = tokenizer([template.format(name)], return_tensors="pt")
            embedded = model.text_projection(model.text_model(**batch).pooler_output)[0]
            one.append(embedded / embedded.norm())
        mean = torch.stack(one).mean(0)
        rows.append(mean / mean.norm())
    encoder = load_model(homes["clip"])
    head = build_head(task, encoder)
    torch.testing.assert_close(head.weight, torch.stack(rows), rtol=1e-4, atol=1e-5)
    assert head.scale == pytest.approx(float(model.logit_scale.exp()))
    assert (head.normalize, head.bias) == (True, None)
    assert not list(head.parameters())


def test_prompts_are_embedded_in_eval_mode(homes: dict[str, Path]) -> None:
    task, encoder = shown(templates=["a {}", "b {}"]), load_model(homes["clip"])
    encoder.backbone.text_model.register_module("extra", nn.Dropout(0.9))
    found = []
    encoder.label_features = lambda model, batch: model.text_model.extra(  # type: ignore[assignment]
        torch.ones(len(batch["input_ids"]), 5)
    )
    for training in (False, True):
        encoder.heads.clear()
        found.append(build_head(task, encoder.train(training)).weight)
        assert encoder.backbone.text_model.extra.training is training
    assert torch.equal(found[0], found[1])


# -- which head ----------------------------------------------------------------------------------------------


def test_auto_takes_prompts_where_there_is_a_text_tower_and_prototypes_elsewhere(
    homes: dict[str, Path],
) -> None:
    for source, kind in (("prompts", "clip"), ("prototypes", "vit")):
        encoder = load_model(homes[kind])
        chosen = shown(templates=["a {}"], head_from=source)
        assert torch.equal(
            build_head(shown(templates=["a {}"]), encoder).weight, build_head(chosen, encoder).weight
        )


def test_prototypes_can_be_asked_for_although_there_are_prompts(homes: dict[str, Path]) -> None:
    encoder = load_model(homes["clip"])
    first = build_head(shown(templates=["a {}"], head_from="prototypes"), encoder)
    assert torch.equal(first.weight, build_head(shown(), encoder).weight)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "a template without a place": (
        {"templates": ["a {}", "a photo"]},
        r"template 'a photo' of task 'shown' has 0 places for a class name\. Write \{\} once",
    ),
    "a template with two": ({"templates": ["{} {}"]}, r"'\{\} \{\}' .* has 2 places"),
    "templates and prompts": (
        {"templates": ["{}"], "label_prompts": ["a", "b"]},
        r"task 'shown' has 1 templates and 2 label prompts.*Keep one",
    ),
    "prompts of another length": (
        {"label_prompts": ["a", "b", "c"]},
        r"task 'shown' has 2 classes and 3 label prompts\. Give one prompt a class",
    ),
    "an unknown source": ({"head_from": "probes"}, r"head_from='probes'\. Did you mean 'probe'"),
    "a head and a source": (
        {"head": Head(torch.eye(2)), "head_from": "probe"},
        r"has a head of its own and head_from='probe'\. Set head=None",
    ),
    "fewer names than labels": (
        {"label_names": ["ab"]},
        r"row 1: label 1 lies outside 0..0 \(1 classes\)\. Give one class name for every label value",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_together_is_refused(case: str) -> None:
    options, words = BAD[case]
    with pytest.raises(DataError, match=words):
        shown(**options)


def test_a_head_of_another_size_names_both_and_the_repair() -> None:
    task = shown(head=Head(torch.zeros(3, 4)))
    with pytest.raises(
        DataError, match=r"'shown' has 3 outputs, the task 2 classes\. Give it a row of weights"
    ):
        build_head(task, tiny.flat_encoder())


def test_prompts_that_are_not_there_are_refused(homes: dict[str, Path]) -> None:
    with pytest.raises(
        DataError, match=r"'shown' has head_from='prompts', and neither .* or choose head_from="
    ):
        build_head(shown(head_from="prompts"), load_model(homes["clip"]))
    with pytest.raises(ModelError, match=r"no text tower to embed prompts with: .*\"probe\""):
        build_head(shown(templates=["a {}"], head_from="prompts"), load_model(homes["vit"]))


@pytest.mark.parametrize("source", ["probe", "prototypes"])
def test_a_class_without_training_rows_is_refused(source: Any, homes: dict[str, Path]) -> None:
    task = shown(label_names=["ab", "cd", "ef"], head_from=source)
    words = r"class 'ef' of task 'shown' has no training row to .*; the other 2 classes share 6\. Add rows"
    with pytest.raises(DataError, match=words):
        build_head(task, load_model(homes["vit"]))


# -- the checksum --------------------------------------------------------------------------------------------


def test_the_checksum_of_a_task_with_the_defaults_is_what_it_always_was() -> None:
    rows = (["a", "b"], torch.tensor([0, 1]))
    made = Task.from_tensors(
        "t", ["x", "y"], label_prompts=["p", "q"], train=rows, validation=rows, test=rows
    )
    assert made.checksum() == PINNED


def test_templates_and_the_source_of_the_head_change_the_checksum() -> None:
    others = [
        shown(), shown(templates=["{}"]), shown(templates=["a {}"]), shown(templates=["a {}", "{}"]),
        shown(head_from="probe"), shown(head_from="prototypes"), shown(head_from="prompts"),
        shown(templates=["{}"], head_from="probe"), shown(label_prompts=["{}", "a"]),
    ]  # fmt: skip
    sums = {task.checksum() for task in others}
    assert len(sums) == len(others)


# -- linear probing ------------------------------------------------------------------------------------------


def blobs(rows: int = 60, width: int = 4, classes: int = 3) -> tuple[Tensor, Tensor]:
    labels = torch.arange(rows) % classes
    return normal(rows, width, seed=2) + 1.5 * normal(classes, width, seed=3)[labels], labels


def standardised(features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    middle = features.mean(0)
    spread = (features - middle).square().mean().sqrt()
    return (features - middle) / spread, middle, spread


def objective(units: Tensor, labels: Tensor, weight: Tensor, bias: Tensor, ridge: float) -> Tensor:
    return F.cross_entropy(units @ weight.T + bias, labels) + ridge / 2 * weight.square().sum()


def test_a_probe_stands_where_the_gradient_of_its_objective_vanishes() -> None:
    features, labels = blobs()
    found = probe(features, labels, 3, ridge=0.01)
    units, middle, spread = standardised(features)
    weight = (found.head.weight * spread).requires_grad_()
    bias = (found.head.bias + found.head.weight @ middle).detach().requires_grad_()
    loss = objective(units, labels, weight, bias, 0.01)
    gradient = torch.cat([part.flatten() for part in torch.autograd.grad(loss, [weight, bias])])
    assert float(gradient.norm()) <= 1e-6
    assert found.gradient_norm == pytest.approx(float(gradient.norm()), abs=1e-9)
    assert found.loss == pytest.approx(float(loss.detach()), rel=1e-12)
    assert float(bias.detach().sum()) == pytest.approx(0, abs=1e-9)
    assert (found.head.scale, found.head.normalize) == (1.0, False)
    assert not list(found.head.parameters())


def test_a_probe_is_the_minimum_that_torch_finds() -> None:
    features, labels = blobs()
    units, middle, spread = standardised(features)
    weight = torch.zeros(3, 4, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [weight, bias], max_iter=500, tolerance_grad=1e-12, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = objective(units, labels, weight, bias, 0.01)
        loss.backward()
        return loss

    optimiser.step(closure)
    found = probe(features, labels, 3, ridge=0.01, tolerance=1e-9).head
    expected = weight.detach() / spread
    torch.testing.assert_close(found.weight, expected, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(found.bias, bias.detach() - expected @ middle, rtol=1e-5, atol=1e-7)


def test_a_probe_does_not_depend_on_the_unit_or_origin_of_features() -> None:
    features, labels = blobs()
    moved = 1000 * features + 70
    first, second = probe(features, labels, 3), probe(moved, labels, 3)
    torch.testing.assert_close(second.head(moved), first.head(features), rtol=1e-5, atol=1e-4)


def test_a_probe_that_is_stopped_early_says_so(caplog: pytest.LogCaptureFixture) -> None:
    found = probe(*blobs(), 3, max_steps=2)
    assert found.steps == 2
    assert found.gradient_norm > 1e-6
    assert "after 2 steps, above tolerance 1e-06; allow more steps" in caplog.text


def test_features_that_are_not_finite_are_refused() -> None:
    features, labels = blobs()
    features[3, 1] = math.nan
    with pytest.raises(NonFiniteError, match="1 of 60 rows have a feature that is not finite"):
        probe(features, labels, 3)


@torch.no_grad()
def test_the_probe_of_a_task_is_fitted_to_the_features_of_its_training_rows() -> None:
    task, encoder = dataclasses.replace(points(90, head=False), head_from="probe"), points_encoder()
    rows = task.split("train")
    expected = probe(encoder(torch.stack(list(rows.inputs))), rows.labels, 3).head
    head = build_head(task, encoder)
    torch.testing.assert_close(head.weight, expected.weight, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(head.bias, expected.bias, rtol=1e-9, atol=1e-9)


def test_the_rows_of_a_probe_are_cut_as_asked(tmp_path: Path) -> None:
    encoder = load_model(tiny.save_bert(tmp_path, tiny.bert()))
    inputs = ["good film a dog", "bad code", "good dog code", "bad a"]
    rows = (inputs, torch.tensor([0, 1, 0, 1]))
    task = Task.from_tensors("t", ["x", "y"], train=rows, validation=rows, test=rows)
    asked = dataclasses.replace(task, head_from="probe", max_tokens=4)
    with torch.no_grad():
        features = encoder(encoder.encode(inputs, 2))
    expected = probe(features, rows[1], 2).head
    assert torch.equal(build_head(asked, encoder, max_tokens=2).weight, expected.weight)
    assert not torch.allclose(build_head(asked, encoder).weight, expected.weight)


# -- once ----------------------------------------------------------------------------------------------------


def counter(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> list[int]:
    """How often a function of a module is called, as the list's length."""
    calls: list[int] = []
    plain: Callable[..., Any] = getattr(owner, name)

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return plain(*args, **kwargs)

    monkeypatch.setattr(owner, name, counted)
    return calls


def test_a_probe_is_fitted_once_for_both_regimes_and_the_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    task, encoder = dataclasses.replace(points(head=False), head_from="probe"), points_encoder()
    calls = counter(monkeypatch, heads, "probe")
    runs = [trained(Settings(regime, batch_size=8), task, encoder) for regime in ("standard", "linear")]
    evaluate(
        encoder,
        [task.subset(test=5)],
        runs[0].task_vector,
    ).report()
    assert len(calls) == 1
    build_head(task.subset(train=20), encoder)  # other rows
    build_head(task, encoder, max_tokens=3)  # cut elsewhere
    with torch.no_grad():
        next(encoder.parameters()).add_(1.0)
    build_head(task, encoder)  # other weights
    assert len(calls) == 4


def test_a_head_that_is_kept_is_handed_out_as_a_copy() -> None:
    task, encoder = dataclasses.replace(points(head=False), head_from="probe"), points_encoder()
    first = build_head(task, encoder)
    expected = first.weight.clone()
    first.weight.zero_()
    assert torch.equal(build_head(task, encoder).weight, expected)


def test_templates_are_embedded_once(monkeypatch: pytest.MonkeyPatch, homes: dict[str, Path]) -> None:
    encoder = load_model(homes["clip"])
    calls = counter(monkeypatch, Encoder, "embed_labels")
    first, again = (build_head(shown(templates=["a {}", "b {}"]), encoder) for _ in range(2))
    assert torch.equal(first.weight, again.weight)
    assert len(calls) == 1
    build_head(shown(templates=["b {}", "a {}"]), encoder)
    assert len(calls) == 2


# -- without the text tower ----------------------------------------------------------------------------------

TEMPLATES = ["a {}", "the {}"]


def small_and_whole(home: Path, task: Task) -> tuple[Encoder, Encoder]:
    encoder = load_model(home)
    build_head(task, encoder)
    return trimmed(encoder), encoder


def test_a_trimmed_clip_has_the_image_part_alone_under_its_own_names(homes: dict[str, Path]) -> None:
    small, whole = small_and_whole(homes["clip"], shown(templates=TEMPLATES))
    names = [name for name, _ in small.backbone.named_parameters()]
    assert names == list(select(whole)) == list(select(small))
    assert any(name.startswith("text_model.") for name, _ in whole.backbone.named_parameters())
    for name, tensor in small.backbone.named_parameters():
        assert tensor is whole.backbone.get_parameter(name)
    assert fingerprint_of(small) == fingerprint_of(whole)
    assert small.describe() == whole.describe()
    assert trimmed(small) is small


def test_nothing_is_trimmed_where_everything_is_needed(homes: dict[str, Path]) -> None:
    encoder = load_model(homes["bert"])
    assert trimmed(encoder) is encoder


@pytest.mark.parametrize("regime", REGIMES)
def test_vectors_made_with_and_without_the_text_tower_are_one(regime: Any, homes: dict[str, Path]) -> None:
    task = shown(templates=TEMPLATES)
    small, whole = small_and_whole(homes["clip"], task)
    settings = Settings(regime, batch_size=3, epochs=2, lr=1e-3)
    first, second = (trained(settings, task, encoder).task_vector for encoder in (small, whole))
    assert tiny.same_bits(dict(first.deltas), dict(second.deltas))
    assert (first.base, first.info["key"]) == (second.base, second.info["key"])
    found = [
        evaluate(
            encoder,
            [task],
            vector,
        )
        .report()
        .result["mean"]
        for encoder, vector in ((whole, first), (small, second))
    ]
    assert found[0] == found[1]


def test_the_text_tower_neither_trains_nor_has_moments(
    homes: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, held = load_model(homes["clip"]), []
    made = torch.optim.AdamW

    class Watched(made):  # type: ignore[misc, valid-type]
        def __init__(self, params: Any, **options: Any) -> None:
            held.append(sum(p.numel() for group in params for p in group["params"]))
            super().__init__(params, **options)

    monkeypatch.setattr(torch.optim, "AdamW", Watched)
    before = {name: tensor.clone() for name, tensor in whole.backbone.named_parameters()}
    for regime in ("standard", "linear"):
        vector = trained(Settings(regime, batch_size=3), shown(templates=TEMPLATES), whole).task_vector
        assert all(name.startswith(("vision_model.", "visual_projection.")) for name in vector.deltas)
    vision = sum(whole.backbone.get_parameter(name).numel() for name in select(whole))
    assert held == [vision, vision]
    assert all(torch.equal(tensor, before[name]) for name, tensor in whole.backbone.named_parameters())


def test_a_head_that_was_not_built_before_trimming_is_an_error(homes: dict[str, Path]) -> None:
    small, _ = small_and_whole(homes["clip"], shown(templates=TEMPLATES))
    with pytest.raises(
        ModelError, match=r"was trimmed and has no text tower any more.*`build_head` for every task"
    ):
        build_head(shown(templates=["other {}"]), small)


def test_a_trimmed_encoder_is_not_saved_as_a_model(homes: dict[str, Path], tmp_path: Path) -> None:
    small, _ = small_and_whole(homes["clip"], shown(templates=TEMPLATES))
    with pytest.raises(
        UsageError, match=r"was trimmed to vision_model\., visual_projection\., which is no whole model"
    ):
        save_model(small, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_trimmed_encoder_that_was_changed_is_another_point(homes: dict[str, Path]) -> None:
    task = shown(templates=TEMPLATES)
    small, whole = small_and_whole(homes["clip"], task)
    vector = trained(Settings("linear", batch_size=3), task, whole).task_vector
    tangent = linearize(small)
    tangent.load_task_vector(vector)
    with torch.no_grad():
        small.backbone.visual_projection.weight.add_(1.0)
    with pytest.raises(BaseMismatchError):
        tangent.load_task_vector(vector)


@pytest.mark.parametrize("source", ["probe", "prototypes"])
def test_fewer_rows_on_the_command_line_are_read_under_the_same_head(
    source: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else vectors made with `--rows 4` would be evaluated under another head than they were trained with."""
    x = normal(40, 4, seed=3).float()
    rows = (x, (x[:, 0] > 0).long())
    whole = Task.from_tensors("points", ["a", "b"], train=rows, validation=rows, test=rows)
    whole = dataclasses.replace(whole, head_from=source)
    monkeypatch.setattr("tauspan.tasks.data.suite.find_task", lambda name: whole)
    net = load_model(nn.Linear(4, 3))
    head = build_head(whole, net)
    for count in (6, 13):
        fewer = task_of("points", count)
        assert [len(fewer.split(split)) for split in ("train", "validation", "test")] == [count] * 3
        assert torch.equal(build_head(fewer, net).weight, head.weight)
        assert not torch.equal(build_head(whole.subset(train=count), net).weight, head.weight)
        assert fewer.checksum() != whole.subset(train=count, validation=count, test=count).checksum()
        trained_on = train._training(SimpleNamespace(task="points", rows=count, seed=0))
        assert torch.equal(build_head(trained_on, net).weight, head.weight)
