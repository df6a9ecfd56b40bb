"""What is asked of classification is asked of the other objectives: training, solves, searches, maps, kernels, files."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tauspan as ts
from tauspan.core.errors import DataError, UsageError
from tauspan.editing import minimise
from tauspan.editing.maps.drift import Drift
from tauspan.kernel import closed_form
from tauspan.objectives import Objective, OwnLoss, Regression
from tauspan.tasks import Task, build_head

WORDS = ("regression", "multi-label")


def rows(word: str, seed: int, count: int = 40) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 4, generator=generator)
    y = torch.stack([x[:, 0] + 0.5 * x[:, 1], x[:, 2] * x[:, 3]], 1)
    return x, y if word == "regression" else (y > 0).float()


def task(word: str, name: str = "t", seed: int = 0, objective: Objective | None = None) -> Task:
    splits: dict[str, Any] = {
        split: rows(word, 10 * seed + place) for place, split in enumerate(("train", "validation", "test"))
    }
    return Task.from_tensors(name, ["sum", "product"], objective=objective or word, **splits)


def encoder() -> ts.Encoder:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ts.load(nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 6)))


SETTINGS = ts.Settings(lr=3e-3, epochs=8, batch_size=8)


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("regime", ["standard", "linear"])
def test_training_lowers_the_loss_and_the_metric_follows(word: str, regime: Any) -> None:
    model, of = encoder(), task(word)
    before = ts.evaluate(model, [of])
    run = ts.finetune(model, of, ts.Settings(lr=3e-3, epochs=8, batch_size=8, regime=regime))
    after = ts.evaluate(model, [of], run.task_vector)
    assert after.tasks[0].loss < before.tasks[0].loss
    metric = of.objective.metric
    last = [entry for entry in run.history if entry["split"] == "validation"][-1]
    valid = ts.evaluate(model, [of], run.task_vector, split="validation")
    assert last[metric] == pytest.approx(valid.metrics["t"], rel=1e-5)
    assert metric in str(after)
    if word == "regression":
        with pytest.raises(UsageError, match="RMSE"):
            after.accuracy  # noqa: B018 - the property raises


@pytest.mark.parametrize("word", WORDS)
def test_the_convex_fit_is_at_its_minimum(word: str) -> None:
    """Both solvers reach one loss, and the closed form of regression is the same vector."""
    model, of = encoder().double(), task(word)
    fits = {
        solver: ts.fit(model, of, solver=solver, ridge=0.1, tolerance=1e-7, max_steps=4000)
        for solver in ("lbfgs", "newton-cg")
    }  # type: ignore[arg-type]
    losses = [[e for e in fit.history if e["split"] == "train"][-1]["loss"] for fit in fits.values()]
    assert losses[0] == pytest.approx(losses[1], rel=1e-8)
    if word == "regression":  # the squared loss of closed forms is a sum over rows
        exact = closed_form(model, of, ridge=0.1 * 40)
        mine, wanted = exact.vector.deltas, fits["newton-cg"].task_vector.deltas
        for name in wanted:
            torch.testing.assert_close(mine[name], wanted[name], rtol=1e-5, atol=1e-7)
    else:
        with pytest.raises(UsageError, match="`fit`"):
            closed_form(model, of)


@pytest.fixture(scope="module", params=WORDS)
def edited(request: Any) -> tuple[ts.Encoder, dict[Task, ts.TaskVector]]:
    model = encoder()
    tasks = [task(request.param, name, seed) for seed, name in enumerate(("first", "second"))]
    settings = ts.Settings(lr=3e-3, epochs=4, batch_size=8, regime="linear")
    return model, {one: ts.finetune(model, one, settings).task_vector for one in tasks}


def test_every_question_is_answered(edited: tuple[ts.Encoder, dict[Task, ts.TaskVector]]) -> None:
    model, vectors = edited
    editor, first = ts.Editor(model, vectors), next(iter(vectors))
    added, solved = editor.add(), editor.coefficients(bootstrap=5)
    assert solved.certificate is not None
    assert solved.certificate <= 1e-8
    at = editor.evaluate(solved.coefficients, split="validation")
    assert solved.loss == pytest.approx(sum(one.loss for one in at.tasks) / 2, rel=1e-5)
    shared = editor.evaluate(added.alpha, split="validation")
    assert solved.loss <= sum(one.loss for one in shared.tasks) / 2 + 1e-7
    assert added.tasks[0].metric == first.objective.metric
    assert first.objective.metric in str(added)
    negated = editor.negate(first)
    assert negated.alpha >= 0
    assert first.objective.metric in str(negated)
    maps = editor.maps(grid=(0.0, 1.0))
    assert maps.distance == next(iter(first.objective.distances))
    assert editor.interference().drift["first"]["first"] > 0
    if first.objective.word == "regression":
        with pytest.raises(UsageError, match="negate"):
            editor.front(first)
    else:
        assert editor.front(first, prices=3, bootstrap=0).spots
    with pytest.raises(UsageError, match="coefficients"):
        editor.adamerging()
    with pytest.raises(UsageError, match="leave the task out"):
        editor.desk()


def test_coefficients_of_regression_are_least_squares(
    edited: tuple[ts.Encoder, dict[Task, ts.TaskVector]],
) -> None:
    model, vectors = edited
    if next(iter(vectors)).objective.word != "regression":
        pytest.skip("a squared loss has a closed form")
    editor = ts.Editor(model, vectors)
    found = editor.coefficients(bounds=None, bootstrap=0)
    design, wanted = [], []
    for one in vectors:
        base = logits(model, one)
        design.append(
            torch.stack(
                [logits(model, one, name, vectors) - base for name in ("first", "second")], -1
            ).flatten(0, 1)
        )
        wanted.append((one.split("validation").labels.double() - base).flatten())
    exact = torch.linalg.lstsq(torch.cat(design), torch.cat(wanted)[:, None]).solution.flatten()
    assert [found.coefficients[name] for name in ("first", "second")] == pytest.approx(
        exact.tolist(), rel=1e-4
    )


def logits(
    model: ts.Encoder, of: Task, name: str | None = None, vectors: dict[Task, ts.TaskVector] | None = None
) -> Tensor:
    """Outputs on validation of the pre-trained model, or of the tangent model at one vector."""
    head = build_head(of, model)
    x = torch.stack(list(of.split("validation").inputs))
    if name is None:
        with torch.no_grad():
            return head(model(x)).double()
    vector = next(vector for one, vector in (vectors or {}).items() if one.name == name)
    tangent = ts.apply(model, vector)
    with torch.no_grad():
        return tangent.under(head, "logits")(x).double()  # type: ignore[operator, union-attr]


def test_kernels_say_how_targets_lie(edited: tuple[ts.Encoder, dict[Task, ts.TaskVector]]) -> None:
    from tauspan.kernel.diagnose import diagnose, kernel_report

    model, vectors = edited
    found = kernel_report(model, list(vectors), rows=8, outputs="sum")
    assert 0 <= found.spectra[0].target_alignment.value <= 1
    assert found.spectra[0].label_alignment is None
    with pytest.raises(UsageError, match=r"Editor\.interference"):
        diagnose(model, vectors, rows=8)


def test_a_loss_of_ones_own_is_trained_and_solved() -> None:
    def absolute(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).square().add(1e-4).sqrt().sum(-1)

    model = encoder()
    own = OwnLoss(absolute, convex=True, metric="absolute error")
    tasks = [task("regression", name, seed, own) for seed, name in enumerate(("first", "second"))]
    vectors = {
        one: ts.finetune(
            model, one, ts.Settings(lr=3e-3, epochs=3, batch_size=8, regime="linear")
        ).task_vector
        for one in tasks
    }
    editor = ts.Editor(model, vectors)
    solved = editor.coefficients(bootstrap=0)
    assert solved.certificate is not None
    assert solved.certificate <= 1e-8
    with pytest.raises(UsageError, match="need a hold"):
        editor.coefficients(bounds=None, bootstrap=0)
    assert "absolute error" in str(editor.add())
    with pytest.raises(UsageError, match="not convex"):
        ts.fit(model, task("regression", "third", 3, OwnLoss(absolute)))


def test_tasks_of_several_objectives_are_added_and_not_averaged() -> None:
    model = encoder()
    tasks = [task("regression", "number"), task("multi-label", "labels", 1)]
    vectors = {one: ts.finetune(model, one, SETTINGS).task_vector for one in tasks}
    editor = ts.Editor(model, vectors)
    added = editor.add()
    assert added.mean.single is None
    assert added.mean.normalised is not None
    assert "RMSE" in str(added)
    assert editor.evaluate().mean is None
    for ask in (
        lambda: editor.coefficients(),
        lambda: editor.negate(tasks[0], [*tasks[1:], task("regression", "c", 4)]),
    ):
        with pytest.raises(UsageError, match="several units"):
            ask()


@pytest.mark.parametrize("word", WORDS)
def test_predictions_are_saved_with_their_meaning(word: str, tmp_path: Path) -> None:
    model, of = encoder(), task(word)
    head = build_head(of, model)
    x = torch.stack(list(of.split("test").inputs))
    found = model.predict(list(x[:3]))
    with torch.no_grad():
        wanted = head(model(x[:3])).double()
    if word == "regression":
        assert [list(one.values.values()) for one in found] == wanted.tolist()
        assert found[0].probabilities == {}
    else:
        assert [list(one.probabilities.values()) for one in found] == wanted.sigmoid().tolist()
        assert found[0].label == ", ".join(
            n for n, w in zip(of.label_names, wanted[0].tolist(), strict=True) if w > 0
        )


@pytest.mark.parametrize("word", WORDS)
def test_contributions_keep_their_objective(word: str, tmp_path: Path) -> None:
    from tauspan.tangent.contributions import Contributions

    value = torch.randn(6, 2)
    part = Contributions(
        value, torch.randn(1, 6, 2), rows(word, 1, 6)[1], ("a",), objective=task(word).objective
    )
    again = Contributions.from_file(part.save(tmp_path / "c.safetensors"))
    assert again.objective == part.objective
    assert minimise([again], ridge=0.1).coefficients == minimise([part], ridge=0.1).coefficients


def test_the_probe_of_regression_is_ridge_regression() -> None:
    model, of = encoder(), task("regression")
    head = build_head(of, model)
    with torch.no_grad():
        z = model(torch.stack(list(of.split("train").inputs))).double()
    y = of.split("train").labels.double()
    units = (z - z.mean(0)) / (z - z.mean(0)).square().mean().sqrt()
    # mean 1/2 |V u + c - y|^2 + 1e-3/2 |V|^2
    exact = torch.linalg.solve(
        units.T @ units / len(z) + 1e-3 * torch.eye(6).double(), units.T @ (y - y.mean(0)) / len(z)
    ).T
    with torch.no_grad():
        torch.testing.assert_close(
            head(z.float()).double(), units @ exact.T + y.mean(0), rtol=1e-4, atol=1e-4
        )


def test_outputs_of_a_model_need_no_head() -> None:
    from dataclasses import replace

    model = ts.load(nn.Linear(4, 2))
    of = replace(task("regression"), head_from="outputs")
    x = torch.stack(list(of.split("test").inputs))
    with torch.no_grad():
        error = (model(x) - of.split("test").labels).square().mean().sqrt()
    assert ts.evaluate(model, [of]).metrics["t"] == pytest.approx(float(error), rel=1e-6)


def test_drift_of_one_output_is_no_shift() -> None:
    moved = Drift("t", lambda a: torch.tensor([[2.0 + a]]), True, Regression())
    assert moved(1.0) == 0.5


# -- files ---------------------------------------------------------------------------------------------------


def table(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "rows.csv"
    file.write_text(text, encoding="utf-8")
    return file


def test_columns_of_numbers_are_a_task_and_a_directory(tmp_path: Path) -> None:
    lines = "".join(f"text {n},{n / 4},{n % 2}\n" for n in range(40))
    file = table(tmp_path, "text,score,flag\n" + lines)
    made = Task.from_files("t", file, label=["score", "flag"], objective="regression", shares=(0.6, 0.2, 0.2))
    assert made.label_names == ["score", "flag"]
    assert made.split("train").labels.shape == (24, 2)
    by_text = {t: y for s in made.splits.values() for t, y in zip(s.inputs, s.labels.tolist(), strict=True)}
    assert by_text["text 7"] == [1.75, 1.0]
    again = Task.from_directory(made.to_directory(tmp_path / "dir"))
    assert again.checksum() == made.checksum()
    assert again.objective == Regression()


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        ("", "without a label"),
        ("much", "is no number"),
        ("nan", "without a label"),
        ("inf", "a finite number is wanted"),
    ],
)
def test_bad_numbers_are_named_with_their_row(tmp_path: Path, cell: str, said: str) -> None:
    file = table(tmp_path, f"text,label\na,1\nb,{cell}\nc,3\nd,4\n")
    with pytest.raises(DataError, match=said) as caught:
        Task.from_files("t", file, objective="regression")
    assert "row 1" in str(caught.value)


def test_wrong_uses_say_what_instead(tmp_path: Path) -> None:
    x, y = rows("regression", 0)
    given: dict[str, Any] = {"train": (x, y), "validation": (x, y), "test": (x, y)}
    number: dict[str, Any] = {"objective": "regression"}
    smooth = ts.Settings(lr=1e-3, epochs=1, label_smoothing=0.1)
    for error, said, ask in (
        (UsageError, "multi-label", lambda: Task.from_files("t", "x.csv", label=["a", "b"])),
        (UsageError, "label names for", lambda: Task.from_files("t", "x.csv", label_names=["b", "c"], **number)),
        (DataError, "names of outputs", lambda: Task.from_tensors("t", ["a"], objective="regression", **given)),
        (UsageError, "what classes are", lambda: Task.from_tensors("t", ["a"], label_prompts=["x"], **number, **given)),
        (UsageError, "label_smoothing=0", lambda: ts.finetune(encoder(), task("regression"), smooth)),
    ):  # fmt: skip
        with pytest.raises(error, match=said):
            ask()


# -- found by somebody who tried to break it -------------------------------------------------------------------


def likelihood(outputs: Tensor, targets: Tensor) -> Tensor:
    return -(outputs - targets).square().sum(-1)


def square(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).square().sum(-1)


def test_metrics_that_may_be_negative_are_compared_by_differences() -> None:
    model = encoder()
    loose, strict = (
        OwnLoss(square, score=likelihood, metric="likelihood", higher=True, ratio=r) for r in (True, False)
    )
    for own in (loose, strict):
        tasks = [task("regression", name, seed, own) for seed, name in enumerate(("first", "second"))]
        vectors = {one: ts.finetune(model, one, SETTINGS).task_vector for one in tasks}
        editor = ts.Editor(model, vectors)
        if own is loose:
            with pytest.raises(UsageError, match="ratio=False"):
                editor.add()
            continue
        found = editor.add()
        curve = {alpha: row["first"] + row["second"] for alpha, row in found.curve.items()}
        assert found.alpha == min(curve, key=lambda alpha: (-curve[alpha], alpha))
        assert found.mean.normalised is None
        with pytest.raises(UsageError, match="may be negative"):
            editor.negate("first")


def test_an_own_loss_is_tried_where_nothing_is_recorded() -> None:
    x, y = rows("regression", 0)
    own = OwnLoss(square, convex=True)
    with torch.inference_mode():
        assert own.losses(x[:, :2].clone(), y).shape == (40,)
    assert ts.evaluate(encoder(), [task("regression", objective=OwnLoss(square))]).metrics["t"] > 0
    assert "0x" not in repr(own)

    def lost(outputs: Tensor, targets: Tensor) -> Tensor:
        raise KeyError("no such thing")

    with pytest.raises(UsageError, match="raised KeyError"):
        OwnLoss(lost).losses(x, y)


def test_own_targets_stay_as_they_are() -> None:
    def entropy(outputs: Tensor, targets: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(outputs, targets, reduction="none")

    x, _ = rows("regression", 0)
    y = torch.arange(40) % 2
    given: Any = (x, y)
    of = Task.from_tensors(
        "own", ["a", "b"], objective=OwnLoss(entropy), train=given, validation=given, test=given
    )
    assert of.split("train").labels.dtype == torch.long
    assert of.split("train").labels.shape == (40,)
    assert "loss" in repr(ts.finetune(encoder(), of, SETTINGS))


def test_odd_targets_are_told_or_kept() -> None:
    x, y = rows("regression", 0)
    for odd, said in ((y.to(torch.complex64), "real numbers"), (torch.tensor(1.0), "real numbers")):
        given: Any = (x, odd)
        with pytest.raises(DataError, match=said):
            Task.from_tensors("t", ["a", "b"], objective="regression", train=given)
    large: Any = (x, torch.full((40, 1), 16777217))
    exact = Task.from_tensors("t", ["a"], objective="regression", train=large, validation=large, test=large)
    assert int(exact.split("train").labels[0, 0]) == 16777217
    narrow: Any = (x, y.bfloat16())
    assert Task.from_tensors(
        "t", ["a", "b"], objective="regression", train=narrow, validation=narrow, test=narrow
    ).checksum()
    assert "RMSE" in repr(ts.finetune(encoder(), task("regression"), SETTINGS))
