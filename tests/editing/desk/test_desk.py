"""Every number of a page is that of the edited model; the page holds what it was given, whatever that is."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import tauspan as ts
from helpers import runs
from helpers.desk_page import Page
from helpers.disentangling import world
from helpers.searches import random_vector
from helpers.zoo import normal
from tauspan.core.errors import DataError, StoreError, UsageError
from tauspan.core.reading import Reading
from tauspan.editing.desk import page as pages
from tauspan.editing.desk.limits import Parts
from tauspan.editing.desk.page import as_script, as_texts, filled
from tauspan.editing.model import tangent as tangent_model
from tauspan.editing.model.directions import Directions
from tauspan.editing.model.kinds import edited_model
from tauspan.models import Encoder, Head
from tauspan.tasks import Split, Task
from tauspan.vector import TaskVector

SPLITS = ("validation", "test")


def many(classes: int, seed: int, normalize: bool = False, bias: bool = False, rows: int = 40) -> Task:
    """A task of points under a head of so many classes."""
    x = normal(3 * rows, 4, seed=seed).float()
    y = torch.arange(3 * rows) % classes
    parts: dict[str, Any] = {
        name: (x[place * rows :][:rows], y[place * rows :][:rows])
        for place, name in enumerate(("train", "validation", "test"))
    }
    biases = 0.5 * normal(classes, seed=seed + 2).float() if bias else None
    head = Head(normal(classes, 5, seed=seed + 1).float(), biases, scale=3.0, normalize=normalize)
    names = [f"class {place}" for place in range(classes)]
    return Task.from_tensors(f"many {classes} {seed}", names, head=head, labels="from_0", **parts)


def network() -> Encoder:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return Encoder(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5)))


def vectors_of(model: Encoder, tasks: list[Task], regime: str) -> dict[Task, TaskVector]:
    fits = "linear" if regime == "linear" else "standard"
    return {
        task: 0.3 * random_vector(model, 60 + 10 * place, fits).to(torch.float32)
        for place, task in enumerate(tasks)
    }


CASES: dict[str, tuple[list[Task], str, str, str]] = {
    "two classes": ([many(2, 1), many(2, 5)], "linear", "logits", "affine"),
    "two classes, posthoc": ([many(2, 1), many(3, 5)], "posthoc", "logits", "affine"),
    "77 classes": ([many(77, 1, rows=80), many(77, 5, rows=80)], "linear", "logits", "affine"),
    "encoder, plain head": ([many(3, 1), many(4, 5, bias=True)], "linear", "encoder", "affine"),
    "encoder, normalising head": ([many(3, 1, True, rows=20), many(5, 5, True, rows=20)], "linear", "encoder", "gram"),
    "encoder, normalising head with a bias": (
        [many(3, 1, True, True, 20), many(4, 5, True, True, 20)], "linear", "encoder", "gram",
    ),
    "logits, normalising head": ([many(3, 1, True), many(4, 5, True)], "linear", "logits", "affine"),
}  # fmt: skip


@pytest.mark.thinned(3)
@pytest.mark.parametrize(("name", "exact"), [
    pytest.param(name, exact, marks=pytest.mark.slow if exact and "encoder" in name else ())
    for name in CASES for exact in (False, True)
])  # fmt: skip
def test_every_number_is_the_edited_models(name: str, exact: bool) -> None:
    tasks, regime, point, kind = CASES[name]
    model = network()
    vectors = vectors_of(model, tasks, regime)
    reading = Reading(point=point)  # type: ignore[arg-type]
    page = Page.of(
        ts.desk(model, vectors, regime=regime, range=(-1, 1.5), exact=exact, reading=reading).html  # type: ignore[arg-type]
    )
    names = [task.name for task in tasks]
    oracle = edited_model(
        model,
        Directions.whole(dict(zip(names, vectors.values(), strict=True))),
        regime,
        reading,
        True,  # type: ignore[arg-type]
    )
    rng = np.random.default_rng(0)
    for at in [choice["coefficients"] for choice in page.data["choices"]] + rng.uniform(
        -1, 1.5, (4, 2)
    ).tolist():
        for task in tasks:
            assert page.task(task.name)["kind"] == kind
            for split in SPLITS:
                logits = oracle.logits(task, split, dict(zip(names, at, strict=True))).double()
                found = torch.tensor(
                    [[*row.values()] for row in page.logits(task.name, split, at)], dtype=torch.double
                )
                size = 1e-5 if exact else 3e-4  # of the largest number of a row
                if kind == "gram":
                    size *= 20  # the length may be much shorter than its parts
                shift = 0 if kind == "gram" else (logits - found).mean(-1, keepdim=True)
                assert torch.allclose(
                    found + shift, logits, rtol=0, atol=size * float(logits.abs().max()) * 4
                )
                predicted = torch.tensor(page.predicted(task.name, split, at))
                second = logits.sort(-1).values
                near = (second[:, -1] - second[:, -2]) < size * 4 * logits.abs().max()
                assert bool(((predicted == logits.argmax(-1)) | near).all())
                accuracy = oracle.metric(task, split, dict(zip(names, at, strict=True)))
                assert (
                    abs(page.accuracy(task.name, split, at) - accuracy) <= float(near.double().mean()) + 1e-12
                )


@pytest.mark.parametrize("name", ["two classes", "encoder, normalising head"])
def test_accuracies_and_their_intervals_are_the_models_own(name: str) -> None:
    tasks, regime, point, _ = CASES[name]
    model = network()
    vectors = vectors_of(model, tasks, regime)
    editor = ts.Editor(model, vectors, reading=Reading(point=point))  # type: ignore[arg-type]
    page = Page.of(editor.desk().html)
    for split in SPLITS:
        zero = editor.evaluate(0.0, split=split).accuracy  # type: ignore[arg-type]
        for task in tasks:
            part = page.task(task.name)["splits"][split]
            single = editor.evaluate({task.name: 1.0}, tasks=[task], split=split).accuracy[task.name]  # type: ignore[arg-type]
            assert part["zeroShot"]["value"] == pytest.approx(zero[task.name])
            assert part["single"]["value"] == pytest.approx(single)
            assert part["zeroShot"]["low"] < zero[task.name] < part["zeroShot"]["high"]
            assert page.labels(task.name, split).tolist() == task.split(split).labels.tolist()


def test_choices_are_the_answers_to_the_editors_questions() -> None:
    tasks, regime, _, _ = CASES["two classes"]
    model = network()
    vectors = vectors_of(model, tasks, regime)
    control = many(3, 9)
    editor = ts.Editor(model, vectors)
    made = editor.desk(range=(-1, 1), controls=[control])
    page = Page.of(made.html)
    found = {choice["name"]: choice for choice in page.data["choices"]}
    first, second = (task.name for task in tasks)
    assert list(found) == [
        "zero",
        "alpha = 1",
        "shared alpha",
        "solver's optimum",
        f"negate {first}",
        f"negate {second}",
    ]
    assert found["zero"]["coefficients"] == [0, 0]
    assert found["alpha = 1"]["coefficients"] == [1, 1]
    assert found["shared alpha"]["coefficients"] == [editor.add().alpha] * 2
    solved = editor.coefficients(bounds=(-1, 1), bootstrap=0).coefficients
    assert found["solver's optimum"]["coefficients"] == [solved[first], solved[second]]
    negated = editor.negate(first, [tasks[1], control])
    assert found[f"negate {first}"]["coefficients"] == [negated.coefficients[first], 0]
    drift = editor.interference(split="validation").drift
    assert page.data["interference"]["values"] == [
        [drift[rows][of] for rows in (first, second)] for of in (first, second)
    ]
    front = page.data["front"]
    assert (front["target"], front["controls"]) == (first, [second, control.name])
    least = min(point["target"] for point in front["points"])
    assert (
        least
        <= min(page.accuracy(first, "validation", point["coefficients"]) for point in front["points"]) + 0.05
    )
    held = page.task(control.name)
    assert (held["vector"], held["floor"], held["splits"]["test"]["single"]) == (None, 0.95, None)
    assert [note[:11] for note in made.notes] == ["The rows of"]
    assert [row["task"] for row in made.rows()] == [
        name for name in (first, second, control.name) for _ in SPLITS
    ]


def test_the_sampled_points_of_the_standard_regime_are_the_models_own() -> None:
    tasks = [many(2, 1), many(3, 5)]
    model = network()
    vectors = vectors_of(model, tasks, "standard")
    made = ts.desk(model, vectors, range=(-0.5, 1))
    page, editor = Page.of(made.html), ts.Editor(model, vectors)
    names = [task.name for task in tasks]
    grid = page.task(names[0])["splits"]["test"]["grid"]
    assert len(grid) == 21 + 2 + 2 * 10  # shared alphas, single vectors, their negatives
    for at in grid[::5]:
        for split in SPLITS:
            wanted = editor.evaluate(dict(zip(names, at, strict=True)), split=split).accuracy  # type: ignore[arg-type]
            assert {name: page.accuracy(name, split, at) for name in names} == pytest.approx(wanted)
    assert all(choice["coefficients"] in grid for choice in page.data["choices"])
    assert page.task(names[0])["kind"] == "sampled"
    assert page.data["front"] is None
    assert any("sampled points" in note for note in made.notes)


# -- passes --------------------------------------------------------------------------------------------------


def test_a_page_costs_one_pass_for_each_task_and_split(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, str]] = []
    plain = tangent_model.contributions

    def counted(*args: Any, **options: Any) -> Any:
        seen.append((options["info"]["task"], options["info"]["split"]))
        return plain(*args, **options)

    monkeypatch.setattr(tangent_model, "contributions", counted)
    model, vectors = world("linear")
    control = many(3, 9)
    editor = ts.Editor(model, vectors)
    editor.add()
    editor.desk(range=(-1, 1))
    once = [(task.name, split) for task in vectors for split in SPLITS]
    assert sorted(seen) == sorted(once)
    editor.desk(controls=[control])
    assert sorted(seen) == sorted([*once, *((control.name, split) for split in SPLITS)])


# -- size ----------------------------------------------------------------------------------------------------


def test_large_pages_drop_classes_that_win_nowhere_and_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    tasks, regime, _, _ = CASES["77 classes"]
    model = network()
    vectors = vectors_of(model, tasks, regime)
    whole = ts.desk(model, vectors)
    monkeypatch.setattr("tauspan.editing.desk.desk.LARGE", 1000)
    less = ts.desk(model, vectors)
    assert less.size < whole.size / 2
    assert any("classes that win somewhere between 0 and 1" in note for note in less.notes)
    before, after = Page.of(whole.html), Page.of(less.html)
    rng = np.random.default_rng(1)
    for at in rng.uniform(0, 1, (10, 2)).tolist():
        for task in tasks:
            assert after.predicted(task.name, "test", at) == before.predicted(task.name, "test", at)


def test_rows_are_drawn_as_a_subset_is() -> None:
    tasks, regime, _, _ = CASES["two classes"]
    model = network()
    vectors = vectors_of(model, tasks, regime)
    made = ts.desk(model, vectors, rows=7, seed=3)
    page, few = Page.of(made.html), tasks[0].subset(validation=7, test=7, seed=3)
    for split in SPLITS:
        assert page.labels(tasks[0].name, split).tolist() == few.split(split).labels.tolist()
    assert any("at most 7 rows of each split, drawn with seed 3" in note for note in made.notes)
    assert not any("at most" in note for note in ts.desk(model, vectors, rows=4000).notes)


def test_a_page_that_is_too_large_names_each_repair_and_each_repair_works(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tasks, regime, _, _ = CASES["77 classes"]
    model = network()
    vectors = vectors_of(model, tasks, regime)
    plain, blank = Parts.require_small, len(pages.template())
    monkeypatch.setattr(Parts, "require_small", lambda parts: plain(parts, blank + 90_000))
    with pytest.raises(UsageError) as caught:
        ts.desk(model, vectors, range=(-1, 2), exact=True)
    text = str(caught.value)
    rows = int(text.partition("--rows ")[2].partition(")")[0])
    assert 1 < rows < 80
    assert "range=(0.0, 1.0) (--range 0 1)" in text
    assert "exact=False (no --exact)" in text
    assert "--no-examples" not in text  # there are none
    assert ts.desk(model, vectors, range=(-1, 2), exact=True, rows=rows).size <= blank + 90_000
    monkeypatch.setattr("tauspan.editing.desk.desk.LARGE", 0)
    assert ts.desk(model, vectors, range=(0, 1)).size <= blank + 90_000
    monkeypatch.setattr(Parts, "require_small", lambda parts: plain(parts, blank + 20_000))
    with pytest.raises(UsageError, match="--range\\) is at its least already"):
        ts.desk(model, vectors, range=(0, 1))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"range": (0.1, 1)}, "begins at 0 or below"),
        ({"range": (0, 0.5)}, "ends at 1 or above"),
        ({"range": (0, float("nan"))}, "begins at 0"),
        ({"rows": 0}, "at least one row"),
        ({"rows": 2.5}, "rows"),
    ],
)
def test_what_does_not_fit_is_refused(options: Any, words: str) -> None:
    model, vectors = world("linear")
    with pytest.raises(UsageError, match=words):
        ts.desk(model, vectors, **options)


def test_a_control_of_a_tasks_name_is_refused() -> None:
    model, vectors = world("linear")
    first = next(iter(vectors))
    other = Task(first.name, first.label_names, first.splits, head=first.head)
    with pytest.raises(DataError, match="one name"):
        ts.desk(model, vectors, controls=[other])
    with pytest.raises(UsageError, match="at least one task"):
        ts.desk(model, {})


# -- files and frames ----------------------------------------------------------------------------------------


def test_a_page_is_saved_whole_and_never_over_another(tmp_path: Path) -> None:
    model, vectors = world("linear")
    made = ts.desk(model, vectors, tmp_path / "desk.html")
    assert (tmp_path / "desk.html").read_text("utf-8") == made.html
    assert (tmp_path / "desk.html").stat().st_size == made.size
    with pytest.raises(StoreError, match="already there"):
        ts.desk(model, vectors, tmp_path / "desk.html")
    with pytest.raises(StoreError, match="already there"):
        made.save(tmp_path / "desk.html")
    made.save(tmp_path / "desk.html", overwrite=True)
    assert [file.name for file in tmp_path.iterdir()] == ["desk.html"]


def test_the_same_page_is_the_same_bytes() -> None:
    model, vectors = world("linear")
    assert ts.desk(model, vectors).html == ts.desk(model, vectors).html


def test_a_notebook_shows_the_page_in_a_frame_that_can_run_scripts_and_nothing_else() -> None:
    model, vectors = world("linear")
    made = ts.desk(model, vectors)
    frame = made._repr_html_()
    assert frame.startswith('<iframe sandbox="allow-scripts" ')
    assert frame.count('"') == 6
    assert "<script" not in frame
    from html import unescape

    assert unescape(frame.partition('srcdoc="')[2].partition('"')[0]) == made.html
    assert "What the page holds" in str(made)


# -- hostile contents ----------------------------------------------------------------------------------------

HOSTILE = [
    "</script><script>alert(1)</script>", "<img src=x onerror=alert(1)>", "<!--", "]]>", "&lt;b&gt;", "\u2028\u2029",
    "\u202e\u2066gnihton\u2069", "NaN", "null", "__DESK_TEXTS__", "__DESK_NUMBERS__", "\\u003c/script\\u003e", "'\"`${1}",
    "\x00\x1b[2J\x7f", "\ud800 alone", "\U0001f600", "{items}", "a" * 1_000_000,
]  # fmt: skip


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> tuple[Encoder, Task]:
    """A model of texts, and a task whose name, classes and texts are hostile."""
    texts = [text for text in HOSTILE if text.isprintable() or "<" in text or "\u202e" in text]
    split = Split(texts, torch.arange(len(texts)))
    splits = dict.fromkeys(("train", "validation", "test"), split)
    head = Head(normal(len(texts), 8, seed=2).float())
    name = "</script><b>\u202eevil"
    return runs.bert(tmp_path_factory.mktemp("bert") / "model"), Task(
        name, texts, splits, max_tokens=8, head=head
    )


def test_hostile_names_classes_and_texts_come_back_as_they_are(hostile: tuple[Encoder, Task]) -> None:
    model, task = hostile
    tau = 0.01 * random_vector(model, 3, "linear").to(torch.float32)
    page = Page.of(ts.desk(model, {task: tau}).html)
    assert page.task(task.name)["classes"] == list(task.label_names)
    assert page.data["vectors"][0]["name"] == task.name
    shown = page.texts[task.name]["test"]
    assert [text for text in shown if len(text) < 300] == [
        text for text in task.label_names if len(text) < 300
    ]
    assert [len(text) for text in shown if text.startswith("aaa")] == [300]
    assert page.elements == Page.of(filled("t", {}, b"", "")).elements


def test_contents_cannot_leave_their_places() -> None:
    data = {"names": HOSTILE, "numbers": [float("nan"), float("inf"), 1.5]}
    texts = {"</script>": {"test": [text[:300] for text in HOSTILE]}}
    made = filled("</title><script>alert(1)</script> \u202e \ud800", data, b"\x00\x01", as_texts(texts))
    page = Page.of(made)
    assert made.isascii() or pages.template().isascii() is False
    assert page.data["names"] == HOSTILE
    assert page.data["numbers"] == [None, None, 1.5]
    assert page.texts == texts
    assert page.blob == b"\x00\x01"
    assert page.title == "</title><script>alert(1)</script> \u202e \ufffd"
    assert page.elements == Page.of(filled("t", {}, b"", "")).elements
    assert "alert(1)</script>" not in made


def test_a_script_element_holds_no_sign_of_markup() -> None:
    text = as_script({"<&>": HOSTILE})
    assert not set(text) & set("<>&\u2028\u2029")
    assert text.isascii()
    assert json.loads(text) == {"<&>": HOSTILE}


def test_a_template_without_its_places_is_refused() -> None:
    with pytest.raises(StoreError, match="each of"):
        filled("t", {}, b"", "", "<p>")
