"""The same recipe through Dask, Slurm and Ray of this machine, whose workers die: what a run in one process leaves."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest

from helpers.clusters import QUIET, backend_of
from helpers.dying_part import MARK, Dying
from helpers.program import contents
from helpers.run_numbers import numbers
from helpers.small_runs import reused
from helpers.sweeps import alive
from tauspan.core.report import Report
from tauspan.experiments import figures
from tauspan.experiments.run import Recipe, run

pytestmark = [pytest.mark.slow, QUIET]


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "draw", lambda *given: [])


@pytest.fixture(scope="module")
def small(recipe: Recipe) -> Recipe:
    return dataclasses.replace(recipe, regimes=("linear",), seeds=(0,), grid=(0.0, 1.0), parts=(Dying(),))


@pytest.fixture(scope="module")
def alone(small: Recipe, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    """A run in this process, which nothing kills."""
    out = tmp_path_factory.mktemp("alone")
    (out / MARK).touch()
    return out, run(small, out)


@pytest.mark.parametrize("kind", ["dask", "queue", pytest.param("ray", marks=pytest.mark.long)])
def test_a_recipe_on_a_cluster_leaves_what_a_run_in_one_process_leaves(
    small: Recipe, alone: tuple[Path, Report], tmp_path: Path, kind: str, request: Any
) -> None:
    backend = backend_of(request.getfixturevalue(kind))
    report = run(small, tmp_path, workers=2, backend=backend)
    assert contents(tmp_path / "vectors") == contents(alone[0] / "vectors")
    assert numbers(report) == numbers(alone[1])
    assert reused(report) == reused(alone[1])  # what the workers did was done by this run
    died = int((tmp_path / MARK).read_text())
    assert died != os.getpid()
    assert not alive(died)
