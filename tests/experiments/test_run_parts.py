"""What a recipe may ask for beyond the three regimes: references, controls, energies, drift, random weights."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

import tauspan as ts
from helpers import checkpoints
from helpers.imagesets import rows, write_folder
from helpers.program import task as write_task
from helpers.run_numbers import in_turn, numbers
from helpers.small_runs import TASKS, reused
from tauspan.core.errors import DataError, StoreError, UsageError
from tauspan.core.reading import Reading
from tauspan.core.report import Report
from tauspan.experiments import figures
from tauspan.experiments.run import Energies, Maps, Negation, Recipe, References, Training, jobs, run
from tauspan.kernel.diagnose import KernelSettings, task_energies, task_kernels
from tauspan.models import fingerprint_of, select
from tauspan.tasks import Task
from tauspan.tasks.data.suite import find_task
from tauspan.vector import TaskVector

pytestmark = pytest.mark.slow
CONTROL = "debian_section"
Done = tuple[Path, Recipe, Report]


@pytest.fixture(scope="module")
def done(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Done:
    """Everything at once, one seed."""
    whole = dataclasses.replace(
        recipe, seeds=(0,), regimes=("standard", "linear"),
        finetune=Training(batch_size=4, epochs_by_task={"email_spam": 3}, lr_standard=1e-2),
        parts=(
            Negation(("email_spam",), controls=(CONTROL,)), Energies(3, 6), References(("joint", "attention")),
            Maps((TASKS,), (0.0, 1.0), rows=4, drift=True),
        ),
    )  # fmt: skip
    out = tmp_path_factory.mktemp("parts") / "out"
    return (
        out,
        whole,
        run(whole, out),
    )


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """But for those of `done`, which is made before."""
    monkeypatch.setattr(figures, "draw", lambda *given: [])


def table(report: Report, title: str) -> list[dict[str, Any]]:
    return next(list(t.rows) for t in report.tables if t.title.partition(". ")[2].startswith(title))


def tasks(*names: str) -> list[Task]:
    return [find_task(name).subset(train=8, validation=8, test=8) for name in names]


def accuracy(model: Any, on: list[Task], *edit: Any) -> list[float]:
    found = (
        ts.evaluate(
            model,
            on,
            *edit,
            reading=Reading(max_tokens=8),
        )
        .report()
        .result["accuracy"]
    )
    return [found[task.name] for task in on]


def steps(folder: Path) -> list[int]:
    entries = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [entry["step"] for entry in entries if entry["split"] == "validation"]


def test_the_parts_stand_in_order_under_their_numbers(done: Done) -> None:
    assert [one.title for one in done[2].tables] == [
        "1. Addition, test accuracy", "2. Addition, differences between regimes", "3. References, test accuracy",
        "4. Negation, test accuracy", "5. Disentanglement error at equal alpha",
        "6. Disentanglement error at matched drift", "7. Drift", "8. Local energy", "9. Cost",
    ]  # fmt: skip


def test_every_part_has_its_pictures(done: Done) -> None:
    pair = "-".join(TASKS)
    wanted = {f"xi-{pair}.png", f"xi-drift-{pair}.png", *(f"energy-{task}.png" for task in TASKS)}
    found = {file.name: file.read_bytes() for file in done[0].glob("*.png")}
    assert wanted < set(found)
    assert all(content[:8] == b"\x89PNG\r\n\x1a\n" for content in found.values())


def test_a_task_may_have_epochs_of_its_own_and_joint_training_sees_as_many_rows(done: Done) -> None:
    vectors = done[0] / "vectors"
    assert steps(vectors / "linear-movie_sentiment-seed0") == [2]
    assert steps(vectors / "linear-email_spam-seed0") == [2, 4, 6]
    assert steps(vectors / "joint-standard-seed0") == [4, 8]  # 2 steps of one task, 6 of the other


def test_the_joint_reference_is_one_model_on_all_tasks(done: Done) -> None:
    out, whole, report = done
    model = ts.load(whole.model)
    vector = TaskVector.from_pretrained(out / "vectors" / "joint-standard-seed0")
    rows = [row for row in table(report, "References") if row["reference"] == "joint"]
    after, before = accuracy(model, tasks(*TASKS), vector), accuracy(model, tasks(*TASKS))
    assert [row["one model"] for row in rows[:2]] == after
    assert [row["zero shot"] for row in rows[:2]] == before
    addition = [row for row in table(report, "Addition") if row["regime"] == "standard"]
    assert [row["single"] for row in rows] == [row["single"] for row in addition]
    shares = [one / row["single"] for one, row in zip(after, addition[:2], strict=True)]
    assert [row["norm."] for row in rows] == pytest.approx([*shares, sum(shares) / 2])
    assert all(row["alpha 1"] is None for row in rows)
    assert report.result["references"]["joint"]["mean"]["one model"] == pytest.approx(sum(after) / 2)


def test_the_attention_reference_moves_attention_alone_and_is_added(done: Done) -> None:
    out, whole, report = done
    model: Any = ts.load(whole.model)
    folders = [out / "vectors" / f"attention-{name}-seed0" for name in TASKS]
    vectors = dict(zip(tasks(*TASKS), map(TaskVector.from_pretrained, folders), strict=True))
    for vector in vectors.values():
        assert set(vector.deltas) == set(select(model, "attention")) < set(select(model, "all"))
        assert vector.regime == "standard"
    alone = ts.add(
        model,
        vectors,
        "standard",
        grid=(0.0, 0.5, 1.0),
        reading=Reading(max_tokens=8),
    ).report()
    rows = [row for row in table(report, "References") if row["reference"] == "attention"]
    for row, wanted in zip(rows, alone.tables[0].rows, strict=True):
        assert (row["single"], row["one model"], row["norm."]) == (
            wanted["single"], wanted["added"], wanted["added norm."],
        )  # fmt: skip
    assert report.result["alpha"]["attention"] == [alone.result["alpha"]]


def test_controls_are_kept_and_never_trained(done: Done) -> None:
    out, whole, report = done
    assert not list((out / "vectors").glob(f"*{CONTROL}*"))
    model, on = ts.load(whole.model), tasks("email_spam", CONTROL)
    negation = next(one for one in report.tables if "Negation" in one.title)
    assert CONTROL in negation.note
    assert "8 validation and 8 test rows" in negation.note
    for regime in whole.regimes:
        before, _, at_one = (row for row in negation.rows if row["regime"] == regime)
        vector = TaskVector.from_pretrained(out / "vectors" / f"{regime}-email_spam-seed0")
        assert [before["target"], before["control"]] == accuracy(model, on)
        assert [at_one["target"], at_one["control"]] == accuracy(model, on, vector, -1.0)


def test_energies_are_those_of_the_kernel_from_both_starts(done: Done) -> None:
    _, whole, report = done
    model: Any = ts.load(whole.model)
    rows = table(report, "Local energy")
    settings = KernelSettings(rows=6, reading=Reading(32, max_tokens=8), seed=0)
    made = task_kernels(ts.reinitialised(model, 0), tasks(*TASKS), "all", settings)
    wanted = [one.facts() for one in task_energies(made, 3, lambda steps, note: None)]
    found = [row for row in rows if row["start"] == "random"]
    assert [row["ratio"] for row in found[:2]] == pytest.approx([one["ratio"] for one in wanted])
    assert [row["control"] for row in found[:2]] == pytest.approx([one["control"] for one in wanted])
    assert found[2]["task"] == "mean"
    assert found[2]["ratio"] == pytest.approx(sum(one["ratio"] for one in wanted) / 2)
    pretrained = [row for row in rows if row["start"] == "pre-trained"]
    assert [row["task"] for row in pretrained] == [*TASKS, "mean"]
    assert all(row["ratio"] != other["ratio"] for row, other in zip(pretrained, found, strict=True))


def test_regimes_are_compared_at_the_drift_of_the_first(done: Done) -> None:
    drift = done[2].result["disentanglement_drift"]
    assert drift["standard"]["unit"] == drift["standard"]["at alpha 1"] == drift["linear"]["unit"]
    assert drift["linear"]["at alpha 1"] != drift["linear"]["unit"]
    equal, matched = (table(done[2], f"Disentanglement error at {kind}") for kind in ("equal", "matched"))
    assert [row["regime"] for row in equal] == [row["regime"] for row in matched] == ["standard", "linear"]
    assert "axes" not in equal[0]


def test_everything_is_found_again(done: Done) -> None:
    out, whole, first = done
    again = run(whole, out)
    assert all(runs == count for runs, count in reused(again).values())
    assert again.result == first.result


@pytest.mark.slow
def test_a_random_start_has_weights_of_its_own_for_every_seed(recipe: Recipe, tmp_path: Path) -> None:
    start = dataclasses.replace(
        recipe,
        start="random",
        regimes=("standard",),
        head="probe",
        grid=(0.0, 1.0),
        parts=(Negation(("email_spam",)),),
    )
    report = run(start, tmp_path / "out")
    model: Any = ts.load(recipe.model)
    starts = [ts.reinitialised(model, seed) for seed in (0, 1)]
    bases = [fingerprint_of(one) for one in starts]
    folders = [tmp_path / "out" / "vectors" / f"standard-email_spam-seed{seed}" for seed in (0, 1)]
    assert [TaskVector.from_pretrained(folder).base for folder in folders] == bases
    assert report.title == "a small run, random initialisation"
    assert report.provenance["fingerprint"] == {"seed 0": bases[0], "seed 1": bases[1]}
    assert {row["model"] for row in report.tables[1].rows} == {"random", "negated", "alpha = 1"}
    probed = [dataclasses.replace(task, head_from="probe") for task in tasks(*TASKS)]
    per_seed = report.result["addition_by_seed"]["standard"]
    for place, one in enumerate(starts):  # and heads of their own, from where the recipe says
        assert [per_seed[name]["zero shot"][place] for name in TASKS] == accuracy(one, probed)


def test_two_tasks_of_one_name_are_refused(recipe: Recipe, tmp_path: Path) -> None:
    twin = write_task(tmp_path / "email_spam")
    changed = dataclasses.replace(recipe, tasks=("email_spam", str(twin)), parts=())
    with pytest.raises(UsageError, match="are both called 'email_spam'"):
        run(changed, tmp_path / "out")


@pytest.mark.slow
def test_a_task_directory_can_be_a_target_and_half_of_a_pair(recipe: Recipe, tmp_path: Path) -> None:
    own = str(write_task(tmp_path / "own"))
    changed = dataclasses.replace(
        recipe, tasks=("email_spam", own), regimes=("linear",), seeds=(0,),
        parts=(Negation((own,)), Maps(((own, "email_spam"),), (0.0, 1.0), rows=4)),
    )  # fmt: skip
    report = run(changed, tmp_path / "out")
    assert {row["target task"] for row in table(report, "Negation")} == {"own"}
    assert [row["pair"] for row in table(report, "Disentanglement")] == ["own + email_spam"]


def test_another_tokenizer_is_noticed_where_the_vector_knows_its_own(done: Done) -> None:
    out, whole, _ = done
    few = dataclasses.replace(whole, regimes=("standard",), parts=())
    file = out / "stages" / "finetune-standard-email_spam-seed0.json"
    whole_text = file.read_text()
    saved = json.loads(whole_text)
    try:
        saved["content"]["tokenizer"] = "0" * 64
        file.write_text(json.dumps(saved))
        with pytest.raises(StoreError, match="was made with another tokenizer"):
            run(few, out)
        del saved["content"]["tokenizer"]  # as the first version wrote it
        file.write_text(json.dumps(saved))
        assert reused(run(few, out))["standard", "fine-tune"] == (2, 2)
    finally:
        file.write_text(whole_text)


def test_other_controls_are_negated_against_anew(done: Done) -> None:
    out, whole, _ = done
    changed = dataclasses.replace(
        whole, regimes=("standard",), parts=(Negation(("email_spam",)),),
    )  # fmt: skip
    report = run(changed, out)
    assert reused(report)["standard", "negate"] == (1, 0)
    assert reused(report)["standard", "add"] == (1, 1)
    assert "control: mean of the other tasks" in report.tables[1].note


SET = """
name: {name}
title: {name} for a test
hub: {{id: org/{name}}}
sizes: {{train: 8, validation: 2, test: 3}}
download_gb: 0
source: this test
licence: none
class_count: 3
classes: [red fox, polka-dotted, sea]
templates: ["{{}}"]
{more}
"""


@pytest.mark.slow
def test_data_sets_of_the_catalog_are_read_from_a_folder_and_the_control_says_which_split_it_is(
    tmp_path: Path,
) -> None:
    root = tmp_path / "data"
    for name, more in (("mnist", ""), ("svhn", ""), ("imagenet", "control_split: test = what the test says")):
        for split in ("train", "test"):
            write_folder(root / name / split, rows(split))
        (root / name / "set.yaml").write_text(SET.format(name=name, more=more))
    asked = Recipe(
        str(checkpoints.write(tmp_path / "clip", "clip")), ("mnist", "svhn"), data=str(root), regimes=("linear",),
        finetune=Training(max_steps=1, batch_size=4), grid=(0.0, 1.0),
        parts=(Negation(("mnist",), controls=("imagenet",)),),
    )  # fmt: skip
    addition, negation, _ = run(asked, tmp_path / "out").tables
    assert [row["task"] for row in addition.rows] == ["mnist", "svhn", "mean"]
    words = "control: imagenet (imagenet for a test; test = what the test says; 2 validation and 9 test rows)"
    assert words in negation.note
    with pytest.raises(DataError, match="has no folder 'dtd'"):
        run(
            dataclasses.replace(asked, tasks=("mnist", "dtd")),
            tmp_path / "out",
        )
    with pytest.raises(DataError, match=r"no task 'svhm'.*Did you mean 'svhn'"):
        run(
            dataclasses.replace(asked, tasks=("mnist", "svhm")),
            tmp_path / "out",
        )


# -- over workers ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_workers_measure_all_that_a_recipe_can_ask_for(
    done: Done, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named: list[str] = []
    monkeypatch.setattr(jobs, "sweep", in_turn(named))
    report = run(done[1], tmp_path, workers=2)
    assert numbers(report) == numbers(done[2])
    stages_of = {file.stem for file in (tmp_path / "stages").glob("*.json")}
    assert set(named) == stages_of  # nothing was left for the run itself
    assert len(named) == len(set(named))
    assert {"disentangle-standard-seed0", "disentangle-linear-seed0", "energy-random-seed0"} < stages_of
