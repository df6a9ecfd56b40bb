"""Sweeps on real clusters of this machine, Dask's and Slurm's, with workers that die and come back."""

import os
from pathlib import Path
from typing import Any

import pytest

from helpers.clusters import QUIET, backend_of
from helpers.sweeps import jobs_of, quietly
from tauspan.core.errors import TauspanError

pytestmark = [pytest.mark.slow, QUIET]


@pytest.mark.parametrize("kind", ["dask", "queue"])
def test_results_and_errors_are_those_of_own_workers(tmp_path: Path, kind: str, request: Any) -> None:
    executor = backend_of(request.getfixturevalue(kind))
    jobs = jobs_of("shapes", {"a": (1, [2]), "b": {"c": None}}, {"text": "ä"})
    jobs += jobs_of("fail", ours={"kind": "mismatch", "text": "base a"}) + jobs_of("environment", where={})
    there = quietly(jobs, tmp_path / "there", backend=executor, errors="return", threads=1)
    here = quietly(jobs, tmp_path / "here", errors="return", threads=1)
    assert [there[name] for name in ("j0", "j1")] == [here[name] for name in ("j0", "j1")]
    assert type(there["ours"]) is type(here["ours"])
    assert there["where"]["threads"] == ["1", "1"]
    assert there["where"]["pid"] != os.getpid()


@pytest.mark.parametrize("kind", ["dask", "queue"])
def test_a_job_whose_worker_dies_is_done_by_another(tmp_path: Path, kind: str, request: Any) -> None:
    executor = backend_of(request.getfixturevalue(kind))
    place = tmp_path / "place"
    place.mkdir()
    jobs = jobs_of("die_first", dies={"place": str(place), "deaths": 1}) + jobs_of("double", {"number": 1})
    assert quietly(jobs, tmp_path / "out", backend=executor) == {"dies": 1, "j0": 2}
    assert len(list(place.iterdir())) == 1
    never = jobs_of("die_first", never={"place": str(place), "deaths": 99})
    with pytest.raises(TauspanError, match="given up after attempt 1 of 1"):
        quietly(never, tmp_path / "out", backend=executor, attempts=1)
    assert quietly(jobs_of("double", after={"number": 2}), tmp_path / "out", backend=executor) == {"after": 4}
