"""benchmarks/sequence.py on a tiny encoder: every protocol, drawn rows at their bytes, and masks."""

from typing import Any

import pytest
import torch
from benchmarks import sequence
from torch import nn

import tauspan as ts
from helpers import zoo
from tauspan.core.report import in_words
from tauspan.models import Encoder, Head
from tauspan.sequence import Options, continual

# the toys' labels are drawn at random, so that no row helps another and the largest ridge is chosen
pytestmark = pytest.mark.filterwarnings("ignore:leave-one-out chose ridge:RuntimeWarning")


def encoder() -> Encoder:
    torch.manual_seed(0)
    return Encoder(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double().eval())


def tasks() -> list[ts.Task]:
    made = []
    for seed, name in enumerate(("one", "two")):
        x, y = zoo.normal(60, 4, seed=seed).double(), torch.arange(60) % 2
        splits = {
            key: (x[start : start + 20], y[start : start + 20])
            for start, key in zip((0, 20, 40), ("train", "validation", "test"), strict=True)
        }
        head = Head(zoo.normal(2, 3, seed=seed + 9).double(), scale=2.0)
        made.append(ts.Task.from_tensors(name, ["a", "b"], head=head, **splits))
    return made


def study(out: Any, *options: str) -> list[dict[str, Any]]:
    with ts.computing(check="off"):
        given = ["--out", str(out), "--params", "all", "--seeds", "0", "1", *options]
        return sequence.main(given, encoder(), tasks())


def test_every_protocol_has_a_row(tmp_path, capsys) -> None:
    rows = study(tmp_path, "--protocols", "sum", "pseudo")
    assert [row["protocol"] for row in rows] == ["sum", "pseudo", "pre-trained"]
    assert len(list(tmp_path.glob("[01]-32-all.json"))) == 2
    assert study(tmp_path, "--protocols", "sum", "pseudo") == rows  # from the files
    assert "orders 0, 1." in capsys.readouterr().out


def test_gaussians_take_the_bytes_of_two_stored_rows(tmp_path, capsys) -> None:
    few, many = study(tmp_path, "--bytes", "2", "8")
    width, classes, task_count = 3, 2, 2
    kept = 8 * (2 * width + 1) * classes * task_count  # means, variances and counts
    assert few["Gaussians"] == many["Gaussians"] == in_words(kept)
    assert few["stored rows"] == in_words(8 * 2 * (width + 1) * classes * task_count)
    assert many["stored rows"] == in_words(8 * 8 * (width + 1) * classes * task_count)
    assert few["as inputs"] == in_words((8 * 4 + 8) * 2 * classes * task_count)
    assert "stored rows" in capsys.readouterr().out


def test_features_of_a_task_are_learnt_as_the_task_is() -> None:
    """`pseudo` and `stored` read features alone, so that computing them once changes nothing."""
    options, asked = Options(ridge=0.1, drawn=4), ["pseudo", "stored"]
    whole = continual(encoder(), tasks(), asked, options, reading=ts.Reading(32))
    ready = [sequence.as_features(encoder(), task, 32) for task in tasks()]
    once = continual(ts.load(nn.Identity()), ready, asked, options, reading=ts.Reading(32))
    for name in asked:
        assert whole.runs[name].accuracies == once.runs[name].accuracies
        assert whole.runs[name].memory == once.runs[name].memory


@pytest.mark.long
def test_masks_of_every_kind(tmp_path, capsys) -> None:
    rows = study(tmp_path, "--masks", "0.2", "0.7", "--protocols", "sum", "--seeds", "0")
    assert [row["vectors"] for row in rows] == [
        "masked, random",
        "masked, gradient",
        "masked, momentum",
        "sum",
    ]
    assert {row.get("density") for row in rows[:3]} == {0.2}
    assert "Left out, above 1 / 2: 0.7." in capsys.readouterr().out


def test_two_studies_at_once_are_refused(capsys) -> None:
    with pytest.raises(SystemExit):
        sequence.main(["--bytes", "--masks"])
    assert "ask for one" in capsys.readouterr().err
