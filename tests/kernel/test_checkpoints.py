"""Checkpoints of a fine-tuning in folders, as transformers' Trainer writes them, beside the pre-trained encoder."""

import json

import pytest
import torch
import transformers

from helpers import runs
from tauspan import models
from tauspan.cli.main import main
from tauspan.core.errors import ModelError, StoreError, UsageError
from tauspan.kernel.diagnose import checkpoint_trajectory
from tauspan.models import Classifier
from tauspan.tasks import build_head
from tauspan.train.convex import labelled

STEPS = {5: 0.01, 40: 0.3}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A base and checkpoints of a classifier, whose head moves too, with names that sort in another order."""
    folder = tmp_path_factory.mktemp("trained")
    encoder = runs.bert(folder / "base")
    for step, scale in STEPS.items():
        with torch.random.fork_rng():
            torch.manual_seed(0)  # one direction, and one head
            model = transformers.AutoModelForSequenceClassification.from_pretrained(folder / "base")
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(scale * torch.randn(parameter.shape))
        model.save_pretrained(folder / "out" / f"checkpoint-{step}")
    return encoder, runs.texts(), folder


@pytest.mark.slow
def test_checkpoints_are_followed_in_the_order_of_their_steps(trained):
    encoder, task, folder = trained
    found = checkpoint_trajectory(encoder, task, [folder / "out"], rows=4)
    assert [point.step for point in found.points] == [0, 5, 40]
    errors = [point.scores["train"]["tangent"].apart for point in found.points]
    assert errors[0] is None
    assert errors[1] < errors[2]
    assert set(found.departures) == {("tangent", "train"), ("tangent", "test")}
    (warned,) = found.warnings  # once
    assert warned.startswith("the checkpoints' own head (classifier.bias, classifier.weight) is left out")
    # by hand: the last one's own backbone under the pre-trained model's head
    model = transformers.AutoModel.from_pretrained(folder / "out" / "checkpoint-40")
    moved = models.load_model(folder / "base")
    moved.backbone.load_state_dict(model.state_dict(), strict=False)
    head = build_head(task, encoder)
    drawn = task.subset(train=4, seed=0)
    parts = labelled(encoder, drawn.split("train"), task.tokens(None), 32)
    with torch.no_grad():
        losses = [
            torch.nn.functional.cross_entropy(Classifier(moved, head)(batch), labels, reduction="none")
            for batch, labels in parts
        ]
    assert found.points[-1].scores["train"]["net"].loss == pytest.approx(
        float(torch.cat(losses).mean()), rel=1e-5
    )


@pytest.mark.slow
def test_folders_may_be_named_in_any_order(trained):
    encoder, task, folder = trained
    whole = checkpoint_trajectory(encoder, task, [folder / "out"], rows=4)
    some = [folder / "out" / name for name in ("checkpoint-40", "checkpoint-5")]
    again = checkpoint_trajectory(encoder, task, some, rows=4)
    assert [point.scores for point in again.points] == [point.scores for point in whole.points]


def test_what_is_no_sequence_of_checkpoints_is_refused(trained, tmp_path):
    encoder, task, folder = trained
    one = folder / "out" / "checkpoint-5"
    with pytest.raises(StoreError, match="holds no checkpoints"):
        checkpoint_trajectory(encoder, task, [tmp_path])
    with pytest.raises(UsageError, match="no checkpoints"):
        checkpoint_trajectory(encoder, task, [])
    with pytest.raises(UsageError, match="does not say its step"):
        checkpoint_trajectory(encoder, task, [one, tmp_path / "last"])
    with pytest.raises(UsageError, match="is step 5 and"):
        checkpoint_trajectory(encoder, task, [one, tmp_path / "epoch-5"])
    with pytest.raises(UsageError, match="the model itself is step 0"):
        checkpoint_trajectory(encoder, task, [one, tmp_path / "checkpoint-0"])
    with pytest.raises(ModelError, match=r"tauspan\.load"):
        checkpoint_trajectory(runs.encoder(), runs.points(), [one])


@pytest.mark.slow
def test_the_verb_writes_a_report(trained, tmp_path, capsys):
    _, task, folder = trained
    task.to_directory(tmp_path / "task")
    words = ["trajectory", str(folder / "base"), str(tmp_path / "task"), str(folder / "out"), "--rows", "6"]
    assert main([*words, "--tolerance", "0.2", "--out", str(tmp_path / "found"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["result"]["departures"][0]["tolerance"] == 0.2
    assert told["provenance"]["task"] == "texts"
    assert (tmp_path / "found" / "trajectory.png").is_file()
    assert (tmp_path / "found" / "report.md").read_text().startswith("# Trajectory")
