"""What tauspan does with any encoder, it does with one that has a prefix: training, kernels, searches, files."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import tauspan as ts
from helpers import runs
from helpers.zoo import all_close
from tauspan.core.errors import BaseMismatchError, MismatchError, StoreError, UsageError
from tauspan.models import Classifier, Encoder, fingerprint_of, trimmed
from tauspan.tasks import build_head

Tasks = tuple[ts.Task, ts.Task]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "bert"
    runs.bert(folder)
    return folder


@pytest.fixture(scope="module")
def base(home: Path) -> Encoder:
    return ts.load(home)  # type: ignore[return-value]


@pytest.fixture(scope="module")
def encoder(base: Encoder) -> Encoder:
    return ts.with_prefix(base)


@pytest.fixture(scope="module")
def tasks() -> Tasks:
    first = runs.texts()
    splits: dict[str, Any] = {
        name: (
            first.split(name).inputs,
            torch.tensor([int(len(text) > 5) for text in first.split(name).inputs]),
        )
        for name in ("train", "validation", "test")
    }
    return first, ts.Task.from_tensors("lengths", ["short", "long"], **splits)


def trained(encoder: Encoder, task: ts.Task, regime: Any, **more: Any) -> ts.TaskVector:
    settings = ts.Settings(regime=regime, lr=0.3, max_steps=4, batch_size=10, epochs=4, **more)
    return ts.finetune(encoder, task, settings).task_vector


@pytest.fixture(scope="module")
def vectors(encoder: Encoder, tasks: Tasks) -> dict[str, ts.TaskVector]:
    return {
        f"{regime} {task.name}": trained(encoder, task, regime)
        for regime in ("standard", "linear")
        for task in tasks
    }


@pytest.mark.parametrize("regime", ["standard", "linear"])
def test_training_moves_the_prefix_alone_and_says_what_it_is(
    encoder: Encoder, vectors: dict[str, ts.TaskVector], regime: str
) -> None:
    vector = vectors[f"{regime} texts"]
    assert {name.partition(".prefix_elu.")[2] for name in vector.deltas} == {"z", "kappa"}
    assert all(bool(delta.any()) for delta in vector.deltas.values())
    assert vector.info["prefix"] == {"phi": "elu"}
    assert vector.base == fingerprint_of(encoder)
    assert not any(p.any() for name, p in encoder.named_parameters() if "prefix" in name)


def test_the_head_and_the_zero_shot_numbers_are_those_of_the_base(
    base: Encoder, encoder: Encoder, tasks: Tasks
) -> None:
    assert torch.equal(build_head(tasks[0], base).weight, build_head(tasks[0], encoder).weight)
    first, second = (ts.evaluate(one, list(tasks)).report().tables[0].rows for one in (base, encoder))
    assert first == second


@pytest.mark.parametrize("regime", ["standard", "linear", "posthoc"])
def test_an_editor_adds_negates_and_maps(
    encoder: Encoder, tasks: Tasks, vectors: dict[str, ts.TaskVector], regime: Any
) -> None:
    whose = "linear" if regime == "linear" else "standard"
    own = {task: vectors[f"{whose} {task.name}"] for task in tasks}
    editor = ts.Editor(encoder, own, regime)
    added = editor.add(grid=(0.0, 0.5, 1.0))
    edited = added.apply()
    rows = tasks[0].split("test").inputs
    with torch.no_grad():
        assert bool(torch.isfinite(edited(encoder.encode(rows))).all())
    solved = editor.coefficients(per="layer", bootstrap=0)
    assert solved.vector.info["prefix"] == {"phi": "elu"}
    assert editor.negate(tasks[0], grid=(0.0, 1.0)).vector.deltas.keys() == own[tasks[0]].deltas.keys()
    assert editor.interference(split="test").report().tables
    assert editor.maps(grid=(0.0, 1.0)).report().tables


def test_the_kernel_is_that_of_the_prefix(encoder: Encoder, tasks: Tasks) -> None:
    task = tasks[0].subset(train=5)
    head = build_head(task, encoder)
    classifier = Classifier(encoder, head)
    rows = encoder.encode(task.split("train").inputs)
    moving = {name: p for name, p in encoder.named_parameters() if p.requires_grad}
    found = ts.TangentKernel(classifier, rows).dense()
    jacobian = torch.stack([
        torch.cat([g.flatten() for g in torch.autograd.grad(out, list(moving.values()), retain_graph=True)])
        for out in classifier(rows).flatten()
    ])  # fmt: skip
    wanted = jacobian.double() @ jacobian.double().T
    apart = (found.double().reshape(wanted.shape) - wanted).abs().max()
    assert float(apart / wanted.abs().max()) < 1e-5


def test_convex_fits_agree(encoder: Encoder, tasks: Tasks) -> None:
    fitted = ts.fit(encoder, tasks[0], ridge=0.1, tolerance=1e-5)
    solved = ts.closed_form(encoder, tasks[0], "cross_entropy", 0.1)
    assert fitted.task_vector.info["solver"]["converged"]
    assert all_close(fitted.task_vector.deltas, solved.vector.deltas, 1e-3)


def test_interference_is_a_product_of_kernels(encoder: Encoder, tasks: Tasks) -> None:
    solved = {task.name: ts.closed_form(encoder, task.subset(train=6), ridge=0.1) for task in tasks}
    kernels = {name: one.kernel for name, one in solved.items()}
    found = ts.interference(kernels, {name: one.vector for name, one in solved.items()})
    assert bool(torch.isfinite(found.table()).all())


def test_files_say_what_they_need(
    base: Encoder, encoder: Encoder, vectors: dict[str, ts.TaskVector], tmp_path: Path
) -> None:
    file = vectors["standard texts"].save_pretrained(tmp_path / "tau.safetensors")
    again = ts.TaskVector.from_pretrained(file)
    assert again.info["prefix"] == {"phi": "elu"}
    for other, words in (
        (base, "tauspan.with_prefix(ENCODER, 'elu')"),
        (ts.with_prefix(base, "taylor"), "tauspan.with_prefix(ENCODER, 'elu')"),
    ):
        with pytest.raises(MismatchError, match=re.escape(words)):
            ts.apply(other, again)
    repaired = eval(words.replace("tauspan", "ts").replace("ENCODER", "base"))
    edited, wanted = ts.apply(repaired, again), ts.apply(encoder, again)
    batch = encoder.encode(["a b", "c"])
    with torch.no_grad():
        assert torch.equal(edited(batch), wanted(batch))
        assert not torch.equal(edited(batch), encoder(batch))


def test_random_features_are_told_apart(base: Encoder, tasks: Tasks) -> None:
    first, second = (ts.with_prefix(base, "positive", features=6, seed=seed) for seed in (0, 1))
    vector = trained(first, tasks[0], "linear")
    assert vector.info["prefix"] == {"phi": "positive", "features": 6, "seed": 0}
    with pytest.raises(MismatchError, match=r"with_prefix\(ENCODER, 'positive', features=6, seed=0\)"):
        ts.apply(second, vector)
    with pytest.raises(MismatchError, match="lacks"):
        vector + trained(second, tasks[0], "linear")


def test_another_base_is_refused(base: Encoder, vectors: dict[str, ts.TaskVector]) -> None:
    other = ts.with_prefix(ts.reinitialised(base, seed=5))
    with pytest.raises(BaseMismatchError):
        ts.apply(other, vectors["standard texts"])


def test_an_edited_encoder_drawn_anew_has_no_prefix(
    base: Encoder, encoder: Encoder, vectors: dict[str, ts.TaskVector]
) -> None:
    edited = ts.apply(encoder, vectors["standard texts"])
    assert isinstance(edited, Encoder)
    assert fingerprint_of(edited) != fingerprint_of(base)
    made = ts.reinitialised(edited, seed=5)
    assert fingerprint_of(made) == fingerprint_of(ts.reinitialised(base, seed=5))


@pytest.mark.parametrize("regime", ["standard", "linear"])
def test_an_edited_encoder_is_no_directory_and_the_error_says_what_to_do(
    base: Encoder, encoder: Encoder, vectors: dict[str, ts.TaskVector], regime: str, tmp_path: Path
) -> None:
    vector = vectors[f"{regime} texts"]
    edited = ts.apply(encoder, vector)
    with pytest.raises(UsageError, match="no directory of its library holds") as error:
        ts.save(edited, tmp_path / "edited")
    assert not (tmp_path / "edited").exists()
    file = vector.save_pretrained(tmp_path / "tau.safetensors")
    call = re.search(r"`(tauspan\.apply\(.*\))`", str(error.value))
    assert call is not None
    words = call[1].replace("tauspan", "ts").replace("ENCODER", "base").replace("FILE", "file")
    again = eval(words, {"ts": ts, "base": base, "file": file})
    batch = encoder.encode(["a b", "c"])
    with torch.no_grad():
        assert torch.equal(again(batch), edited(batch))


def test_a_run_is_not_taken_for_one_with_another_feature_map(
    base: Encoder, encoder: Encoder, tasks: Tasks, tmp_path: Path
) -> None:
    settings = ts.Settings(max_steps=1)
    first = ts.finetune(encoder, tasks[0], settings, out=tmp_path / "run")
    again = ts.finetune(ts.with_prefix(base), tasks[0], settings, out=tmp_path / "run", resume=True)
    assert again.reused
    assert all_close(again.task_vector.deltas, first.task_vector.deltas, 0.0)
    with pytest.raises(StoreError, match="made with other settings"):
        ts.finetune(ts.with_prefix(base, "taylor"), tasks[0], settings, out=tmp_path / "run", resume=True)


def test_a_trimmed_encoder_keeps_its_prefix(tmp_path: Path) -> None:
    clip, task = runs.clip(tmp_path / "clip")
    encoder = ts.with_prefix(clip)
    small = trimmed(encoder)
    assert fingerprint_of(small) == fingerprint_of(encoder) == fingerprint_of(clip)
    assert fingerprint_of(ts.with_prefix(trimmed(clip))) == fingerprint_of(clip)
    vector = trained(small, task, "linear")
    assert all(name.startswith("vision_model.") for name in vector.deltas)
    ts.apply(encoder, vector)
