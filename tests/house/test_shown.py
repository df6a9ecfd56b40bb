"""A session shows a line of each result, a notebook Markdown of reports, tables and runs; no tensor is printed."""

from typing import Any

import pytest
import torch
from torch import nn

import tauspan as ts
from tauspan.core.results import Result
from tauspan.kernel import DenseKernel, eigenpairs, solve_ridge
from tauspan.kernel.diagnose import Eigenfunctions, cumulative_power, local_energy
from tauspan.train import Finetuned

LONGER = (
    "Report",
    "Addition",
    "Maps",
    "SolvedCoefficients",
    "Evaluation",
)  # their numbers or titles are named


def made() -> tuple[Any, dict[ts.Task, ts.TaskVector], dict[str, Finetuned]]:
    """A small net, two tasks, and a fine-tuning of each."""
    torch.manual_seed(0)
    encoder = ts.load(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double())
    x, runs, vectors = torch.eye(4, dtype=torch.float64), {}, {}
    for name, labels in (("parity", [0, 1, 0, 1]), ("half", [0, 0, 1, 1])):
        rows = dict.fromkeys(("train", "validation", "test"), (x, torch.tensor(labels)))
        task = ts.Task.from_tensors(name, ["no", "yes"], **rows)
        runs[name] = ts.finetune(encoder, task, ts.Settings(epochs=2, lr=0.1, regime="linear"))
        vectors[task] = runs[name].task_vector
    return encoder, vectors, runs


@pytest.fixture(scope="module")
def shown() -> dict[str, Any]:
    encoder, vectors, runs = made()
    found = ts.diagnose(encoder, vectors)
    editor = ts.Editor(encoder, vectors)
    kernel = DenseKernel(torch.eye(4, dtype=torch.float64))
    cross = torch.ones(2, 4, dtype=torch.float64)
    task = next(iter(vectors))
    return {
        "Diagnosis": found, "Interference": found.interference.between, "TaskInterference": found.interference,
        "TaskSpectrum": found.spectra[0], "TaskPairs": found.pairs, "TaskPath": found.paths[0],
        "Linearity": found.paths[0].path, "Report": found.report(), "Table": found.report().tables[0],
        "Addition": editor.add(), "Maps": editor.maps(grid=[0.0, 1.0]),
        "SolvedCoefficients": editor.coefficients(),
        "Evaluation": ts.evaluate(encoder, list(vectors)), "Editor": editor, "Task": task, "Split": task.split("train"),
        "Finetuned": runs["half"], "Linearized": ts.linearize(encoder), "EigenPairs": eigenpairs(kernel, 2),
        "Eigenfunctions": Eigenfunctions.of(kernel), "LocalEnergy": local_energy(kernel, cross, 2),
        "CumulativePower": cumulative_power(kernel, torch.ones(4)),
        "DualSolution": solve_ridge(kernel, torch.ones(4), 1.0),
        "TaskVector": vectors[task], "Encoder": encoder,
    }  # fmt: skip


def test_each_is_shown_in_a_short_line_without_tensors(shown: dict[str, Any]) -> None:
    for name, one in shown.items():
        line = repr(one)
        assert line.startswith(f"{name}("), line
        assert "tensor(" not in line
        assert "\n" not in line
        assert len(line) <= (800 if name in LONGER else 200), line


def test_reports_tables_results_and_runs_are_markdown_in_a_notebook(shown: dict[str, Any]) -> None:
    rich = {
        name: one
        for name, one in shown.items()
        if isinstance(one, Result) or name in ("Report", "Table", "Finetuned")
    }
    assert len(rich) > 6
    for one in rich.values():
        assert "\n|---|" in one._repr_markdown_()


def test_a_run_shows_its_validations(shown: dict[str, Any]) -> None:
    text = shown["Finetuned"]._repr_markdown_()
    assert text.startswith("`Finetuned('half', ")
    assert "| step | loss | accuracy |" in text
    assert "nothing" not in Finetuned(shown["TaskVector"], [])._repr_markdown_()
