"""Vectors of small spaces where vectors go: training, fits, edits, coefficients, maps, kernels, decoding, the program."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tauspan as ts
from helpers import checkpoints, languages
from helpers.zoo import normal
from tauspan.cli.main import main
from tauspan.core.errors import StoreError, UsageError
from tauspan.core.reading import Reading
from tauspan.editing import Decoder
from tauspan.editing.model.directions import Directions
from tauspan.editing.model.kinds import edited_model
from tauspan.models import Encoder, Space, fingerprint_of
from tauspan.tasks import Task


def encoder() -> Encoder:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return Encoder(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5)).double())


def task(name: str, column: int) -> Task:
    x = normal(24, 4, seed=column + 3)
    rows: dict[str, Any] = dict.fromkeys(("train", "validation", "test"), (x, (x[:, column] > 0).long()))
    return Task.from_tensors(name, ["a", "b"], **rows)


TASKS = (task("first", 0), task("second", 1))
SETTINGS: dict[str, Any] = {"epochs": 2, "batch_size": 8, "lr": 0.05, "params": "*.weight"}


def trained(regime: Any, space: str = "lora:2") -> dict[Task, ts.TaskVector]:
    settings = ts.Settings(regime=regime, space=space, **SETTINGS)
    return {one: ts.finetune(encoder(), one, settings).task_vector for one in TASKS}


@pytest.mark.parametrize("space", ["lora:2", "singular:3"])
@pytest.mark.parametrize("regime", ["linear", "standard"])
def test_training_in_a_space_moves_the_small_numbers_alone_and_says_so(regime: Any, space: str) -> None:
    model = encoder()
    run = ts.finetune(model, TASKS[0], ts.Settings(regime=regime, space=space, **SETTINGS))
    tau = run.task_vector
    assert tau.space is not None
    assert tau.space.word == space
    assert tau.info["recipe"]["space"] == space
    assert set(tau.deltas) == {"0.weight_delta", "2.weight_delta"}
    assert tau.norm() > 0
    assert tau.base == fingerprint_of(model) == fingerprint_of(encoder())
    first = ts.evaluate(model, [TASKS[0]], split="train").mean
    last = ts.evaluate(model, [TASKS[0]], tau, split="train").mean
    assert first is not None
    assert last is not None
    assert last.loss < first.loss
    small = ts.restrict(model, space, "*.weight")  # the same by hand
    again = ts.finetune(small, TASKS[0], ts.Settings(regime=regime, **{**SETTINGS, "params": "all"}))
    assert all(torch.equal(again.task_vector.deltas[name], delta) for name, delta in tau.deltas.items())


def test_a_finished_run_is_reused_and_another_space_is_another_run(tmp_path: Path) -> None:
    settings = ts.Settings(space="lora:2", **SETTINGS)
    first = ts.finetune(encoder(), TASKS[0], settings, out=tmp_path / "run")
    again = ts.finetune(encoder(), TASKS[0], settings, out=tmp_path / "run", resume=True)
    assert again.reused
    assert (again.task_vector - first.task_vector).norm() == 0
    with pytest.raises(StoreError, match="other settings"):
        ts.finetune(
            encoder(), TASKS[0], ts.Settings(space="lora:3", **SETTINGS), out=tmp_path / "run", resume=True
        )
    assert "space" not in ts.Settings().as_dict()  # so that the keys of older runs stay


@pytest.mark.parametrize("regime", ["linear", "standard"])
def test_an_editor_answers_alike_for_small_and_whole_vectors(regime: Any) -> None:
    model, small = encoder(), trained(regime)
    whole = {one: tau.dense(model) for one, tau in small.items()}
    answers = []
    for vectors in (small, whole):
        editor = ts.Editor(model, vectors)
        reports = [
            editor.add().report(),
            editor.coefficients().report(),
            editor.maps(grid=(0.0, 0.5, 1.0)).report(),
        ]
        answers.append([cell for one in reports for row in one.tables[0].rows for cell in row.items()])
    for (name, found), (other, wanted) in zip(*answers, strict=True):
        assert name == other
        assert found == pytest.approx(wanted, abs=1e-9) if isinstance(wanted, float) else found == wanted


@pytest.mark.parametrize("regime", ["linear", "standard"])
def test_an_edit_has_ordinary_layers_and_the_same_logits_from_either_encoder(
    regime: Any, tmp_path: Path
) -> None:
    model = encoder()
    tau = trained(regime)[TASKS[0]]
    x = normal(3, 4, seed=9)
    wanted = ts.apply(model, tau.dense(model), 0.7)
    for one in (model, ts.restrict(model, "lora:2", "*.weight")):
        made = ts.apply(one, tau, 0.7)
        torch.testing.assert_close(made(x), wanted(x), rtol=1e-10, atol=1e-10)
        assert "delta" not in " ".join(name for name, _ in made.named_parameters())
    ts.save(ts.apply(model, tau), tmp_path / "edited")
    back = ts.load(tmp_path / "edited", module=Encoder(encoder().backbone))
    torch.testing.assert_close(back(x), ts.apply(model, tau)(x), rtol=1e-10, atol=1e-10)


def test_fits_and_closed_forms_find_the_minimum_of_the_space() -> None:
    """At the minimum the gradient J_B^T g + ridge delta is 0, and `fit` and the kernel's solution are one vector."""
    small = ts.restrict(encoder(), "lora:2", "*.weight")
    fitted = ts.fit(small, TASKS[0], ridge=0.1, tolerance=1e-9).task_vector
    solved = ts.closed_form(small, TASKS[0], "cross_entropy", ridge=0.1).vector
    assert fitted.space is not None
    assert solved.space is not None
    assert fitted.space.key == solved.space.key
    assert (fitted - solved).norm() < 1e-5 * fitted.norm()
    exact = ts.closed_form(small, TASKS[0], ridge=0.5)
    assert exact.solution.exact
    assert exact.vector.space is not None


def test_what_all_vectors_share_is_not_made_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """The editor's model and the decoder go on with small numbers, so that tangents cost as little."""
    small = trained("linear")
    monkeypatch.setattr(Space, "dense", lambda *_: pytest.fail("it was made whole"))
    editor = ts.Editor(encoder(), small)
    assert 0 <= editor.add().alpha <= 1


def test_decoding_with_small_vectors_is_that_with_whole_ones(tmp_path: Path) -> None:
    for kind in ("llama", "gpt2"):
        model = ts.load(languages.write(tmp_path / kind, kind), language=48).double()
        inside = ts.restrict(model, "lora:2")
        assert inside.space is not None
        shapes = {name: inside.space.bases[name.removesuffix("_delta")].small for name in inside.space.small}
        small = {
            f"v{seed}": ts.TaskVector(
                {name: 0.3 * normal(*shape, seed=seed + place) for place, (name, shape) in enumerate(shapes.items())},
                fingerprint_of(model), "linear", f"v{seed}", space=inside.space,
            )
            for seed in (1, 50)
        }  # fmt: skip
        whole = {name: tau.dense(model) for name, tau in small.items()}
        mix = {"v1": 1.0, "v50": -0.5}
        one, other = Decoder(model, small), Decoder(model, whole)
        assert set(one._taus[0]) == set(inside.space.small)
        texts = [one.text("the cat"), other.text("the cat")]
        for token in b" sat":
            found, wanted = (text.logits(mix) for text in texts)
            torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10 * float(wanted.abs().max()))
            for text in texts:
                text.append(token)
        mixed = Decoder(model, {"v1": small["v1"], "v50": whole["v50"]}).text("the cat")
        torch.testing.assert_close(
            mixed.logits(mix), other.text("the cat").logits(mix), rtol=1e-10, atol=1e-9
        )


# -- the program ---------------------------------------------------------------------------------------------


def test_the_program_trains_applies_and_writes_small_vectors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = checkpoints.write(tmp_path / "bert", "bert")
    data = tmp_path / "rows.csv"
    rows = [f"{('bad', 'good')[n % 2]} {'abcdefgh'[n % 8]},{n % 2}" for n in range(48)]
    data.write_text("\n".join(["text,label", *rows, ""]))
    assert main(["data", "make", str(data), "-o", str(tmp_path / "task"), "--quiet"]) == 0
    run = ["finetune", str(base), str(tmp_path / "task"), str(tmp_path / "run"), "--space", "lora:2", "--params",
           "*.query.weight", "--max-steps", "2", "--quiet", "--regime", "standard"]  # fmt: skip
    assert main(run) == 0
    tau = ts.TaskVector.from_pretrained(tmp_path / "run")
    assert tau.space is not None
    assert all(name.endswith("query.weight_delta") for name in tau.deltas)
    assert (
        main(["vector", "dense", str(base), str(tmp_path / "run"), "-o", str(tmp_path / "whole"), "--quiet"])
        == 0
    )
    whole = ts.TaskVector.from_pretrained(tmp_path / "whole")
    assert whole.space is None
    assert main(["vector", "verify", str(tmp_path / "run"), str(base), "--quiet"]) == 0
    for source, out in (("run", "a"), ("whole", "b")):
        assert main(["apply", str(base), str(tmp_path / source), str(tmp_path / out), "--quiet"]) == 0
    one, two = (ts.load(tmp_path / out).backbone.state_dict() for out in ("a", "b"))
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())
    assert (
        main(
            ["vector", "to-adapter", str(base), str(tmp_path / "run"), "-o", str(tmp_path / "ad"), "--quiet"]
        )
        == 0
    )
    back = ts.adapter_vector(tmp_path / "ad", str(base))
    for name, delta in back.deltas.items():
        torch.testing.assert_close(delta, whole.deltas[name], rtol=1e-6, atol=1e-9)
    capsys.readouterr()
    assert (
        main(
            [
                "merge",
                str(tmp_path / "run"),
                str(tmp_path / "run"),
                "-o",
                str(tmp_path / "m"),
                "--method",
                "linear",
            ]
        )
        != 0
    )
    assert "tauspan vector dense BASE" in capsys.readouterr().err


def test_an_adapter_of_whole_tensors_is_refused() -> None:
    model = encoder()
    own = ts.restrict(model, {"0.weight": torch.eye(24)[:2].view(2, 6, 4)})
    tau = ts.closed_form(own, TASKS[0], ridge=1.0).vector
    from tauspan.merge import save_as_adapter

    with pytest.raises(UsageError, match=r"vector.dense\(encoder\)"):
        save_as_adapter(tau, model, "nowhere")
    with pytest.raises(UsageError, match="Settings"):
        save_as_adapter(tau.dense(model), model, "nowhere")


def test_a_reading_point_holds_for_small_vectors_too() -> None:
    model = encoder()
    small = trained("linear")[TASKS[0]]
    found = []
    for tau in (small, small.dense(model)):
        moved = edited_model(model, Directions.whole({"v": tau}), "linear", Reading())
        found.append(moved.logits(TASKS[0], "test", {"v": 1.0}))
    torch.testing.assert_close(found[0], found[1], rtol=1e-10, atol=1e-10)
