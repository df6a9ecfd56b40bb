"""`Reading` refuses what cannot be read."""

from typing import Any

import pytest
import torch

import tauspan as ts
from tauspan.core.errors import TauspanError
from tauspan.core.reading import Reading
from tauspan.kernel.diagnose import kernel_report
from tauspan.vector import TaskVector


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"batch_size": 0}, "batch_size=0: it must be a whole number, at least 1"),
        ({"batch_size": True}, "`batch_size` is True"),
        ({"batch_size": 2.5}, "`batch_size` is the number 2.5"),
        ({"max_tokens": 0}, "max_tokens=0"),
        ({"point": "logit"}, "Did you mean 'logits'"),
    ],
)
def test_impossible_readings_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(TauspanError, match=message):
        Reading(**given)


def test_a_point_that_nothing_reads_is_refused() -> None:
    Reading().require_no_point("fit")
    with pytest.raises(TauspanError, match="fit linearises encoder and head together"):
        Reading(point="encoder").require_no_point("fit")


def test_kernel_reports_take_no_point() -> None:
    encoder, rows = ts.load(torch.nn.Linear(4, 3)), (torch.eye(4), torch.tensor([0, 1, 0, 1]))
    tasks = [
        ts.Task.from_tensors(name, ["a", "b"], train=rows, validation=rows, test=rows) for name in ("s", "t")
    ]
    with pytest.raises(TauspanError, match="kernel_report linearises encoder and head together"):
        kernel_report(encoder, tasks, reading=Reading(point="encoder"))
    vector = TaskVector({"weight": torch.ones(3, 4), "bias": torch.ones(3)}, "b", "linear")
    with pytest.raises(TauspanError, match="diagnose linearises encoder and head together"):
        ts.diagnose(encoder, dict.fromkeys(tasks, vector), reading=Reading(point="logits"))
