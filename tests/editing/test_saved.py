"""A saved edited model gives the numbers of the unsaved one: heads, points, bases that moved, modules of one's own."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import nn

from helpers import checkpoints, program
from tauspan.cli import main as cli
from tauspan.core.errors import BaseMismatchError, MismatchError, ModelError, NonFiniteError, UsageError
from tauspan.core.reading import Reading
from tauspan.editing import add
from tauspan.editing.evaluation import evaluate
from tauspan.editing.model.edit import apply, load, save
from tauspan.editing.model.edit_files import apply_files
from tauspan.merge import merge_files
from tauspan.models import Classifier, Encoder, Head
from tauspan.models.extras import quiet
from tauspan.tangent import Linearized, linearize
from tauspan.tasks import Task, build_head
from tauspan.tasks.unlabelled import rows_of
from tauspan.train import Settings, finetune
from tauspan.vector import TaskVector

TEXTS = ["a b c", "x y z", "b a", "z x"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.write(tmp_path_factory.mktemp("models") / "bert", "bert")


@pytest.fixture(scope="module")
def letters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return program.task(tmp_path_factory.mktemp("tasks") / "letters")


@pytest.fixture(scope="module")
def task(letters: Path) -> Task:
    return Task.from_directory(letters)


def far(home: Path, regime: Any, point: str | None = None) -> TaskVector:
    """A vector long enough that a head made anew, or another point, gives other numbers."""
    tau = 20 * program.vector_of(home, seed=3, regime=regime)
    return tau if point is None else tau.at_point(point)  # type: ignore[arg-type]


def numbers(report: Any) -> tuple[float, float]:
    row = report.tables[0].rows[0]
    return row["accuracy"], row["loss"]


def run(*arguments: Any) -> int:
    return cli.main([str(one) for one in arguments])


EDITS = [("standard", None), ("posthoc", None), ("linear", "encoder"), ("linear", "logits")]


# -- the same numbers ------------------------------------------------------------------------------------------


@pytest.mark.thinned(3)
@pytest.mark.parametrize(("regime", "point"), EDITS)
@pytest.mark.parametrize("head_from", ["prototypes", "probe"])
def test_apply_evaluate_save_and_load_agree(
    home: Path, task: Task, regime: Any, point: Any, head_from: Any, tmp_path: Path
) -> None:
    import dataclasses

    task = dataclasses.replace(task, head_from=head_from)
    base: Any = load(home)
    tau = far(home, "linear" if regime == "linear" else "standard", point)
    wanted = numbers(evaluate(base, [task], tau, 0.7, regime).report())
    edited: Any = apply(base, tau, 0.7, regime=regime)
    assert numbers(evaluate(edited, [task]).report()) == pytest.approx(wanted, rel=1e-5)
    save(edited, tmp_path / "out")
    for kept in (True, False):  # with the heads that were saved, and with heads made from the base
        if not kept:
            shutil.rmtree(tmp_path / "out" / "heads")
        again: Any = load(tmp_path / "out")
        report = evaluate(again, [task]).report()
        assert numbers(report) == pytest.approx(wanted, rel=1e-5)
        assert "pre-trained" not in report.tables[0].title


@pytest.mark.thinned(4)
@pytest.mark.parametrize(("regime", "point"), EDITS)
def test_the_command_line_gives_the_same_numbers(
    home: Path,
    letters: Path,
    task: Task,
    regime: Any,
    point: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tau = far(home, "linear" if regime == "linear" else "standard", point)
    file = tau.save_pretrained(tmp_path / "tau.safetensors")
    words = ["--scale", 0.7, "--regime", regime]
    assert run("apply", home, file, tmp_path / "out", *words, "--task", letters, "-q") == 0
    found = []
    for more in ([home, letters, "--vector", file, *words], [tmp_path / "out", letters]):
        capsys.readouterr()
        assert run("evaluate", *more, "--json") == 0
        report = json.loads(capsys.readouterr().out)
        found.append(report["tables"][0]["rows"][0])
    assert found[0]["loss"] == pytest.approx(found[1]["loss"], abs=1e-6)
    assert found[0]["accuracy"] == found[1]["accuracy"]
    assert found[0]["loss"] == pytest.approx(
        numbers(evaluate(load(home), [task], tau, 0.7, regime).report())[1], abs=1e-6
    )


def test_heads_made_anew_from_the_edited_encoder_would_be_others(home: Path, task: Task) -> None:
    base: Any = load(home)
    edited: Any = apply(base, far(home, "standard"))
    kept = build_head(task, edited)
    edited.origin = None
    assert torch.equal(kept.weight, build_head(task, base).weight)
    assert not torch.allclose(kept.weight, build_head(task, edited).weight, atol=1e-3)


def test_an_edit_of_an_edited_model_keeps_the_heads_of_the_first(
    home: Path, task: Task, tmp_path: Path
) -> None:
    base: Any = load(home)
    once: Any = apply(base, far(home, "standard"), 0.5)
    more = far(home, "standard").rebased(once)
    twice: Any = apply(once, more, 0.25)
    wanted = numbers(evaluate(twice, [task]).report())
    save(once, tmp_path / "once")
    more.save_pretrained(tmp_path / "more.safetensors")
    assert (
        run(
            "apply",
            tmp_path / "once",
            tmp_path / "more.safetensors",
            "-o",
            tmp_path / "twice",
            "--scale",
            0.25,
            "-q",
        )
        == 0
    )
    again: Any = load(tmp_path / "twice")
    assert numbers(evaluate(again, [task]).report()) == pytest.approx(wanted, rel=1e-5)
    assert again.edit.count("+") == 1


def test_a_merged_model_keeps_the_heads_of_its_base(home: Path, task: Task, tmp_path: Path) -> None:
    tau = far(home, "standard")
    file = tau.save_pretrained(tmp_path / "tau.safetensors")
    recipe = {
        "method": "task_arithmetic",
        "base_model": str(home),
        "models": [{"model": str(file)}],
        "parameters": {"scale": 0.7},
    }
    merge_files(
        recipe,
        tmp_path / "merged",
    )
    wanted = numbers(evaluate(load(home), [task], tau, 0.7).report())
    assert numbers(evaluate(load(tmp_path / "merged"), [task]).report()) == pytest.approx(wanted, abs=1e-5)


@pytest.mark.thinned(2)
@pytest.mark.parametrize("regime", ["standard", "posthoc"])
def test_the_base_is_found_from_another_folder_and_named_when_it_moved(
    home: Path, task: Task, regime: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(home, tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    edited: Any = apply(load("base"), far(home, "standard"), regime=regime)
    wanted = numbers(evaluate(edited, [task]).report())
    save(edited, "out")
    shutil.rmtree("out/heads")
    (tmp_path / "away").mkdir()
    monkeypatch.chdir(tmp_path / "away")
    assert numbers(evaluate(load(tmp_path / "out"), [task]).report()) == pytest.approx(wanted, rel=1e-5)
    (tmp_path / "base").rename(tmp_path / "moved")
    with pytest.raises((ModelError, BaseMismatchError), match=r"base=DIR") as caught:
        evaluate(load(tmp_path / "out"), [task]).report()
    assert "'base'" in str(caught.value)
    found = load(tmp_path / "out", base=tmp_path / "moved")  # the repair
    assert numbers(evaluate(found, [task]).report()) == pytest.approx(wanted, rel=1e-5)
    (tmp_path / "both").mkdir()
    for name in ("out", "moved"):
        shutil.move(tmp_path / name, tmp_path / "both" / ("base" if name == "moved" else name))
    monkeypatch.chdir(tmp_path / "both")  # as it was given
    assert numbers(evaluate(load("out"), [task]).report()) == pytest.approx(wanted, rel=1e-5)


# -- points ----------------------------------------------------------------------------------------------------


def normalising(home: Path, task: Task) -> tuple[Any, TaskVector]:
    """An encoder under a head that normalises, and a vector fine-tuned at the logits."""
    base: Any = load(home)
    done = finetune(base, task, Settings("linear", lr=0.3, epochs=2, batch_size=4))
    return base, done.task_vector


def test_a_tangent_encoder_puts_a_head_on_at_the_point_of_its_vector(home: Path, task: Task) -> None:
    base, tau = normalising(home, task)
    assert tau.info["point"] == "logits"
    head, batch = build_head(task, base), base.encode(TEXTS)
    assert head.normalize
    edited: Any = apply(base, tau)
    logits = linearize(Classifier(base, head), list(tau.deltas), "logits")
    logits.load_task_vector(tau)
    assert torch.equal(edited.under(head)(batch), logits(batch))
    assert not torch.allclose(edited.under(head)(batch), head(edited(batch)), atol=1e-4)  # another function
    classifier: Any = apply(Classifier(base, head), tau)
    assert torch.equal(classifier(batch), logits(batch))
    other: Any = apply(Classifier(base, head), tau.at_point("encoder"))
    assert torch.allclose(other(batch), head(edited(batch)), atol=1e-6)
    assert edited.task_vector().info["point"] == "logits"


def test_searches_take_the_vectors_point_and_refuse_two(home: Path, task: Task) -> None:
    base, tau = normalising(home, task)
    for point in ("encoder", "logits"):
        asked = add(
            base,
            {task: tau},
            reading=Reading(point=point),
        ).report()  # type: ignore[arg-type]
        own = add(
            base,
            {task: tau.at_point(point)},
        ).report()  # type: ignore[arg-type]
        assert asked.result["alpha"] == own.result["alpha"]
        assert asked.tables[0].rows == own.tables[0].rows
    with pytest.raises(MismatchError, match=r"linearisation point 'logits'.*'encoder'.*at_point"):
        tau + tau.at_point("encoder")
    assert (tau + tau.at_point("logits")).info["point"] == "logits"  # the repair


def test_a_merge_of_vectors_keeps_their_point_and_refuses_two(home: Path, tmp_path: Path) -> None:
    files = {
        point: far(home, "linear", point).named(point).save_pretrained(tmp_path / f"{point}.safetensors")
        for point in ("encoder", "logits")
    }
    recipe = {"method": "task_arithmetic", "models": [str(files["encoder"])] * 2, "output": "vector"}
    merge_files(
        recipe,
        tmp_path / "one.safetensors",
    )
    assert TaskVector.from_pretrained(tmp_path / "one.safetensors").info["point"] == "encoder"
    with pytest.raises(MismatchError, match="the point of"):
        merge_files(
            {**recipe, "models": [str(f) for f in files.values()]},
            tmp_path / "two.safetensors",
        )


# -- modules of one's own --------------------------------------------------------------------------------------


class Net(nn.Module):
    """With tied weights, and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
        self.second.weight = self.first.weight
        self.register_buffer("shift", torch.zeros(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.tanh(self.first(x))) + self.shift


@pytest.mark.parametrize("regime", ["standard", "posthoc", "linear"])
@pytest.mark.parametrize("wrapped", [True, False])
def test_a_module_of_ones_own_is_loaded_again_given_the_module(
    tmp_path: Path, regime: Any, wrapped: bool
) -> None:
    torch.manual_seed(0)
    net = Net().eval()
    given = Encoder(net) if wrapped else net
    deltas = {"first.weight": torch.randn(4, 4)}
    tau = TaskVector.from_checkpoints(net, net)
    tau = TaskVector(deltas, tau.base, "linear" if regime == "linear" else "standard")
    edited = apply(given, tau, 0.5, regime=regime)
    x = torch.randn(3, 4)
    save(edited, tmp_path / "out")
    with pytest.raises((ModelError, BaseMismatchError), match="module="):
        load(tmp_path / "out")
    before = net.first.weight.clone()
    again = load(tmp_path / "out", module=given)
    assert torch.equal(again(x), edited(x))
    assert torch.equal(net.first.weight, before)
    with pytest.raises((ModelError, BaseMismatchError)):
        load(tmp_path / "out", module=nn.Linear(4, 3))


# -- predictions -----------------------------------------------------------------------------------------------


@pytest.mark.thinned(2)
@pytest.mark.parametrize(("regime", "point"), EDITS)
def test_predictions_are_those_of_the_evaluated_model(
    home: Path, task: Task, regime: Any, point: Any, tmp_path: Path
) -> None:
    base: Any = load(home)
    head = build_head(task, base)
    edited: Any = apply(base, far(home, "linear" if regime == "linear" else "standard", point), regime=regime)
    save(edited, tmp_path / "out")
    batch = base.encode(TEXTS)
    logits = edited.under(head)(batch) if isinstance(edited, Linearized) else head(edited(batch))
    wanted = logits.detach().double().softmax(-1)
    for model in (edited, load(tmp_path / "out")):
        found = model.predict(TEXTS)
        assert [one.label for one in found] == [task.label_names[k] for k in wanted.argmax(-1)]
        shares = torch.tensor([[one.probabilities[name] for name in task.label_names] for one in found])
        assert torch.allclose(shares.double(), wanted, atol=1e-6)
        assert all(one.probability == max(one.probabilities.values()) for one in found)


def test_several_heads_must_be_named_and_none_is_told(home: Path, task: Task, tmp_path: Path) -> None:
    import dataclasses

    base: Any = load(home)
    with pytest.raises(UsageError, match="has no head"):
        base.predict(TEXTS)
    for name in ("one", "two/2"):
        build_head(dataclasses.replace(task, name=name), base)
    save(base, tmp_path / "out")
    again: Any = load(tmp_path / "out")
    with pytest.raises(UsageError, match=r"heads of 2 tasks \(one, two/2\)"):
        again.predict(TEXTS)
    assert again.predict(TEXTS, "two/2")[0].label in task.label_names
    with pytest.raises(UsageError, match="Did you mean 'one'"):
        again.predict(TEXTS, "ones")


def test_a_classifiers_own_head_is_saved(home: Path, tmp_path: Path) -> None:
    base: Any = load(home)
    head = Head(torch.randn(3, 8), torch.ones(3), scale=2.0, normalize=True)
    save(Classifier(base, head), tmp_path / "out")
    again: Any = load(tmp_path / "out")
    kept = again.frozen["head"].head
    assert torch.equal(kept.weight, head.weight)
    assert torch.equal(kept.bias, head.bias)
    assert (kept.scale, kept.normalize) == (2.0, True)
    assert again.predict(TEXTS)[0].label in ("0", "1", "2")


def test_logits_that_are_no_numbers_are_an_error_with_the_row(home: Path) -> None:
    base: Any = load(home)
    build = Head(torch.full((2, 8), float("nan")))
    from tauspan.models import Frozen

    base.frozen["broken"] = Frozen("broken", ("a", "b"), build)
    with pytest.raises(NonFiniteError, match="row 0"):
        base.predict(TEXTS)


def test_rows_come_from_text_tables_lines_and_folders(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    (tmp_path / "a.txt").write_text("\ufeffone\n\ntwo\n")
    (tmp_path / "a.csv").write_text('id,words\n1,"one, with a comma"\n2,two\n')
    (tmp_path / "a.tsv").write_text("words\tid\none\t1\n")
    (tmp_path / "a.jsonl").write_text('{"words": "one"}\n"two"\n\n')
    for name in ("b/2.png", "1.jpg", ".hidden/3.png", "__MACOSX/4.png"):
        (tmp_path / "pictures" / name).parent.mkdir(parents=True, exist_ok=True)
        image.new("RGB", (4, 4)).save(tmp_path / "pictures" / name)
    assert rows_of(tmp_path / "a.txt") == (["1", "3"], ["one", "two"])
    assert rows_of(tmp_path / "a.csv", "words") == (["1", "2"], ["one, with a comma", "two"])
    assert rows_of(tmp_path / "a.tsv", "words")[1] == ["one"]
    assert rows_of(tmp_path / "a.jsonl", "words") == (["1", "2"], ["one", "two"])
    names, pictures = rows_of(tmp_path / "pictures")
    assert (names, len(pictures)) == (["1.jpg", "b/2.png"], 2)
    for path, said in (("a.csv", "no column 'text'"), ("none.txt", "is not there"), ("a", "is not there")):
        with pytest.raises(Exception, match=said):
            rows_of(tmp_path / path)
    (tmp_path / "a.pdf").write_text("x")
    (tmp_path / "empty.txt").write_text("\n")
    for path, said in (("a.pdf", "is not read"), ("empty.txt", "no row")):
        with pytest.raises(Exception, match=said):
            rows_of(tmp_path / path)


def test_predict_on_the_command_line(
    home: Path, letters: Path, task: Task, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tau = far(home, "linear", "logits")
    file = tau.save_pretrained(tmp_path / "tau.safetensors")
    assert run("apply", home, file, tmp_path / "out", "--task", letters, "-q") == 0
    (tmp_path / "rows.txt").write_text("\n".join(TEXTS))
    found = []
    for words in (
        [tmp_path / "out"],
        [tmp_path / "out", "--task", task.name],
        [home, "--task", letters, "--vector", file],
    ):
        capsys.readouterr()
        assert run("predict", words[0], tmp_path / "rows.txt", *words[1:], "--json") == 0
        found.append(json.loads(capsys.readouterr().out)["result"]["rows"])
    for rows in found[1:]:
        for one, other in zip(rows, found[0], strict=True):
            assert one["label"] == other["label"]
            assert one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-6)
    assert run("predict", home, tmp_path / "rows.txt") == 2
    assert "--task TASK" in capsys.readouterr().err


# -- a newcomer's way --------------------------------------------------------------------------------------------


def test_from_finetune_to_a_model_that_transformers_loads_by_the_command_line_alone(
    home: Path, letters: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("finetune", home, letters, tmp_path / "tau", "--max-steps", 2) == 0
    said = capsys.readouterr().out
    assert "--regime standard --allow regime" in said
    assert "tangent model" in said
    vector = tmp_path / "tau" / "vector.safetensors"
    assert run("apply", home, vector, tmp_path / "out", "--regime", "standard") == 2  # names the way out
    assert "--allow regime" in capsys.readouterr().err
    assert run("apply", home, vector, tmp_path / "out", "--regime", "standard", "--allow", "regime") == 0
    assert "another function" in capsys.readouterr().err  # told, also with a vector that was allowed
    with quiet(transformers):
        model, info = transformers.AutoModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values())
    tau = TaskVector.from_pretrained(vector)
    was = load_file(home / "model.safetensors")
    for name, tensor in model.state_dict().items():
        assert torch.allclose(tensor, was[name] + tau.deltas.get(name, torch.zeros(())), atol=1e-6)
    assert (
        "a linear vector in the standard regime"
        in json.loads((tmp_path / "out" / "tauspan.json").read_text())["edit"]
    )


def test_apply_says_what_a_narrow_dtype_took(home: Path, tmp_path: Path) -> None:
    tau = program.vector_of(home)
    assert apply_files(home, tau, tmp_path / "wide") == []
    notes = apply_files(home, tau, tmp_path / "narrow", dtype="bfloat16")
    assert [note.partition(" took ")[0] for note in notes] == ["storing in bfloat16"]
    assert json.loads((tmp_path / "narrow" / "config.json").read_text())["dtype"] == "bfloat16"
    assert load_file(tmp_path / "narrow" / "model.safetensors")["pooler.dense.weight"].dtype == torch.bfloat16
    assert apply_files(home, tau, tmp_path / "same", dtype="base") == []


def test_weights_are_written_in_shards_where_they_are_large(tmp_path: Path) -> None:
    from tauspan.store import Checkpoint, stream_shards

    tensors = {f"t{place}": torch.full((10, 10), float(place)) for place in range(5)}
    kinds = {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}
    stream_shards(tmp_path, kinds, tensors.values(), largest=900)
    assert len(list(tmp_path.glob("model-*-of-00003.safetensors"))) == 3
    read = Checkpoint(tmp_path).read()
    assert list(read) == list(tensors)
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())


@pytest.mark.filterwarnings("always:.* tensors of a head that .* lacks")
def test_a_head_of_a_tuned_model_goes_onto_the_edited_base(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a Trainer leaves: a base without a head, and a checkpoint folder of the class with one."""
    from helpers import families

    config = transformers.BertConfig(**families._BERT, num_labels=3)
    torch.manual_seed(0)
    with quiet(transformers):
        transformers.BertModel(config).save_pretrained(tmp_path / "base")
        tuned = transformers.BertForSequenceClassification(config)
        tuned.save_pretrained(tmp_path / "trainer" / "checkpoint-54")
    folder = tmp_path / "trainer" / "checkpoint-54"
    assert run("vector", "diff", tmp_path / "base", folder, "-o", tmp_path / "v.safetensors") == 0
    told = capsys.readouterr().err
    assert "classifier.bias, classifier.weight" in told
    tau = TaskVector.from_pretrained(tmp_path / "v.safetensors")
    assert tau.label == "trainer/checkpoint-54"
    assert tau.info["beyond"] == {"base": [], "tuned": ["classifier.bias", "classifier.weight"]}
    assert all(not name.startswith("bert.") for name in tau.deltas)
    option = told.partition("--head-from ")[2].partition("`")[0]
    assert (
        run(
            "apply",
            tmp_path / "base",
            tmp_path / "v.safetensors",
            tmp_path / "out",
            "--head-from",
            option,
            "-q",
        )
        == 0
    )
    found, wanted = (families.state(one) for one in (tmp_path / "out", folder))
    assert found.keys() == wanted.keys()
    assert all(torch.allclose(tensor, wanted[name], atol=1e-6) for name, tensor in found.items())


@pytest.mark.filterwarnings("always:.* tensors of a head that .* lacks")
@pytest.mark.parametrize("kind", ["BertForSequenceClassification", "BertForTokenClassification"])
def test_heads_of_other_numbers_of_labels_stay_where_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    from helpers import families

    made = getattr(transformers, kind)
    with quiet(transformers):
        for place, labels in (("base", 3), ("tuned", 5)):
            torch.manual_seed(labels)
            made(transformers.BertConfig(**families._BERT, num_labels=labels)).save_pretrained(
                tmp_path / place
            )
    base, tuned, file = tmp_path / "base", tmp_path / "tuned", tmp_path / "v.safetensors"
    assert run("vector", "diff", base, tuned, "-o", file) == 0
    told = capsys.readouterr().err
    assert told.count("has in another shape (classifier.bias, classifier.weight)") == 2
    assert run("apply", base, file, tmp_path / "same", "-q") == 0
    assert run("apply", base, file, tmp_path / "other", "--head-from", tuned, "-q") == 0
    same, other, first, last = (
        families.state(one) for one in (tmp_path / "same", tmp_path / "other", base, tuned)
    )
    assert torch.equal(same["classifier.weight"], first["classifier.weight"])
    assert all(torch.allclose(tensor, last[name], atol=1e-6) for name, tensor in other.items())


def test_cosines_are_told_apart_by_place(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = (program.vector_of(home, seed).named("checkpoint") for seed in (0, 5))
    files = [v.save_pretrained(tmp_path / f"{k}.safetensors") for k, v in enumerate((one, two, one))]
    assert run("vector", "inspect", *files, "--json") == 0
    table = json.loads(capsys.readouterr().out)["tables"][1]["rows"]
    assert [row[""] for row in table] == ["1: checkpoint", "2: checkpoint", "3: checkpoint"]
    for place, row in enumerate(table, 1):
        assert row[str(place)] == pytest.approx(1)
    assert table[0]["3"] == pytest.approx(1)
    assert table[0]["2"] == pytest.approx(one.dot(two) / one.norm() / two.norm())


def test_labels_are_set_and_say_something(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(home, tmp_path / "run" / "checkpoint-12")
    for place, (more, label) in enumerate((([], "run/checkpoint-12"), (["--label", "mine"], "mine"))):
        out = tmp_path / f"{place}.safetensors"
        assert run("vector", "diff", home, tmp_path / "run" / "checkpoint-12", "-o", out, *more, "-q") == 0
        assert TaskVector.from_pretrained(out).label == label
    assert run("vector", "negate", out, "-o", tmp_path / "n.safetensors", "--label", "minus", "-q") == 0
    assert TaskVector.from_pretrained(tmp_path / "n.safetensors").label == "minus"


def test_help_stays_light_and_names_the_new_options() -> None:
    words = [
        sys.executable,
        "-c",
        "import sys; from tauspan.cli.main import parser; parser(); print('torch' in sys.modules)",
    ]
    done = subprocess.run(words, capture_output=True, text=True, env=os.environ)
    assert done.stdout.strip() == "False", done.stderr


@pytest.mark.thinned(3)
@pytest.mark.parametrize("regime", ["linear", "posthoc", "standard"])
def test_an_edit_never_replaces_what_it_is_made_from(
    home: Path, letters: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], regime: str
) -> None:
    base, tau = shutil.copytree(home, tmp_path / "all" / "base"), tmp_path / "all" / "tau"
    program.vector_of(base, seed=3, regime="linear" if regime == "linear" else "standard").save_pretrained(
        tau
    )
    task = shutil.copytree(letters, tmp_path / "all" / "task")
    before = program.contents(tmp_path / "all")
    for out in (base, tau, task, tmp_path / "all"):
        words = ("--regime", regime, "--task", task, "--overwrite")
        assert run("apply", base, tau, out, *words) == 2
        assert "Choose another output" in capsys.readouterr().err
    tuned = apply(load(base), TaskVector.from_pretrained(tau), regime=regime)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="is the input"):
        save(tuned, base, overwrite=True)
    assert program.contents(tmp_path / "all") == before
    save(tuned, tmp_path / "out")
    save(tuned, tmp_path / "out", overwrite=True)
    save(load(tmp_path / "out"), tmp_path / "out", overwrite=True)
    assert run("evaluate", tmp_path / "out", task, "--quiet") == 0


def test_a_vector_never_replaces_the_models_that_it_is_made_of(home: Path, tmp_path: Path) -> None:
    base = shutil.copytree(home, tmp_path / "base") / "model.safetensors"
    tuned = shutil.copy(base, tmp_path / "tuned.safetensors")
    before = program.contents(tmp_path)
    for out in (base, tuned):
        assert run("vector", "diff", base, tuned, "-o", out, "--overwrite") == 2
    assert program.contents(tmp_path) == before
    tau = tmp_path / "tau.safetensors"
    assert run("vector", "diff", base, tuned, "-o", tau, "--quiet") == 0
    assert run("vector", "scale", tau, 2, "-o", tau, "--overwrite", "--quiet") == 0  # it can be scaled back


def test_an_option_that_nothing_would_read_is_refused(
    home: Path, letters: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for regime in ("linear", "standard"):
        program.vector_of(home, seed=3, regime=regime).save_pretrained(tmp_path / regime)
    assert run("apply", home, tmp_path / "linear", tmp_path / "tangent", "--task", letters) == 0
    (tmp_path / "rows.txt").write_text("a b c\n")
    out, rows, tangent = tmp_path / "out", tmp_path / "rows.txt", tmp_path / "tangent"
    standard, linear = ("--vector", tmp_path / "standard"), tmp_path / "linear"
    refused: list[tuple[str, tuple[Any, ...]]] = [
        ("--scale", ("evaluate", home, letters, "--scale", 2)),
        ("--regime", ("evaluate", home, letters, "--regime", "posthoc")),
        ("--point", ("predict", home, rows, "--task", letters, "--point", "encoder")),
        ("--scale", ("predict", tangent, rows, "--scale", 2)),
        ("--point", ("evaluate", home, letters, *standard, "--point", "encoder")),
        ("--point", ("predict", home, rows, "--task", letters, *standard, "--point", "encoder")),
        ("--point", ("apply", home, tmp_path / "standard", out, "--point", "encoder")),
        ("--point", ("finetune", home, letters, out, "--regime", "standard", "--point", "encoder")),
        ("--vector", ("evaluate", tangent, letters, "--vector", linear)),
        ("--head-from", ("apply", home, linear, out, "--head-from", home)),
        ("--out-dtype", ("apply", home, linear, out, "--out-dtype", "float16")),
        ("a directory", ("apply", home, linear, tmp_path / "out.safetensors")),
    ]
    for said, words in refused:
        assert run(*words) == 2, words
        assert said in capsys.readouterr().err, words
    assert not out.exists()
    assert not out.with_suffix(".safetensors").exists()
    for words in (
        ("evaluate", tangent, letters, "--scale", 2, "--point", "encoder"),
        ("evaluate", home, letters, *standard, "--scale", 2, "--regime", "posthoc", "--point", "encoder"),
        ("predict", home, rows, "--task", letters, *standard, "--scale", 2),
    ):
        assert run(*words, "--quiet") == 0, words


def test_a_saved_model_has_the_files_of_its_loader_and_no_link_out_of_its_folder(tmp_path: Path) -> None:
    model = checkpoints.write(tmp_path / "model", "bert")
    (tmp_path / "secret").write_text("{}")
    (model / "special_tokens_map.json").unlink(missing_ok=True)
    (model / "special_tokens_map.json").symlink_to(tmp_path / "secret")
    for clutter in ("runs/notes.txt", "data.json"):
        (model / clutter).parent.mkdir(exist_ok=True)
        (model / clutter).write_text("{}")
    save(load(model), tmp_path / "saved")
    names = {str(file.relative_to(tmp_path / "saved")) for file in (tmp_path / "saved").rglob("*")}
    assert "tokenizer.json" in names
    assert not names & {"special_tokens_map.json", "runs", "runs/notes.txt", "data.json"}
