"""Sweeps on a real Ray of this machine: results, failures, lost workers and interruptions are those of local workers."""

import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from helpers.clusters import CPUS, QUIET
from helpers.sweeps import WHERE, alive, jobs_of, quietly, until
from tauspan.core.errors import BaseMismatchError, MissingExtraError, TauspanError, UsageError
from tauspan.experiments.sweep import driver
from tauspan.experiments.sweep.cluster import Ray
from tauspan.experiments.sweep.executors import Submitted
from tauspan.experiments.sweep.results import Results


def test_without_ray_its_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"tauspan\[ray\]"):
        quietly(jobs_of("double", {"number": 1}), tmp_path, backend="ray")


def on_ray(jobs, folder, **options) -> dict[str, Any]:
    return quietly(jobs, folder, backend="ray", **options)


def kept(folder: Path) -> dict[str, Any]:
    """The files of results without what differs from run to run: how long each job took."""
    found = {file.name: json.loads(file.read_text()) for file in folder.glob("*.json")}
    return {name: {key: value for key, value in one.items() if key != "cost"} for name, one in found.items()}


@pytest.mark.slow
@QUIET
def test_results_and_their_files_are_those_of_local_workers(tmp_path, ray):
    jobs = jobs_of("shapes", {"a": (1, [2]), "b": {"c": None}}, {"text": "ä"})
    jobs += jobs_of("draw", **{f"seed{n}": {"seed": n, "size": 1000} for n in range(4)})
    there = on_ray(jobs, tmp_path / "ray", workers=CPUS)
    here = quietly(jobs, tmp_path / "here", threads=1)  # as with Ray: sums over threads round otherwise
    assert list(there.items()) == list(here.items())
    assert kept(tmp_path / "ray") == kept(tmp_path / "here")
    assert on_ray(jobs, tmp_path / "here") == quietly(jobs, tmp_path / "ray") == here  # read by either
    assert ray.is_initialized()  # what was there stays


@pytest.mark.slow
@QUIET
def test_what_failed_is_reported_beside_what_succeeded_and_both_have_files(tmp_path, ray):
    jobs = jobs_of("double", {"number": 1}) + jobs_of("fail", ours={"kind": "mismatch", "text": "base a"})
    jobs += jobs_of("fail", other={"kind": "zero"}, end={"kind": "system"}) + jobs_of(
        "double", last={"number": 4}
    )
    there = on_ray(jobs, tmp_path / "ray", errors="return")
    here = quietly(jobs, tmp_path / "here", errors="return")
    for found in (there, here):
        assert (found["j0"], found["last"]) == (2, 8)
    for name in ("ours", "other", "end"):
        assert type(there[name]) is type(here[name])
        said = [
            str(found[name]).replace(str(tmp_path / place), "")
            for found, place in ((there, "ray"), (here, "here"))
        ]
        assert said[0] == said[1]
        assert "Traceback" in (tmp_path / "ray" / "logs" / f"{name}.log").read_text()
    assert kept(tmp_path / "ray") == kept(tmp_path / "here")
    with pytest.raises(BaseMismatchError, match=r"^base a .*3 of 5 jobs failed.*2 results are in"):
        on_ray(jobs, tmp_path / "ray")  # again: those that failed alone


@pytest.mark.slow
@QUIET
def test_a_worker_that_dies_costs_an_attempt(tmp_path, place, ray):
    jobs = jobs_of("die_first", dies={"place": str(place), "deaths": 1}) + jobs_of("double", {"number": 1})
    assert on_ray(jobs, tmp_path) == {"dies": 1, "j0": 2}
    log = (tmp_path / "logs" / "dies.log").read_text()
    assert "attempt 1 of 3, worker Ray: the executor lost it: " in log
    assert "attempt 2" not in log
    never = jobs_of("die_first", never={"place": str(place), "deaths": 9})
    found = on_ray(never, tmp_path, attempts=2, errors="return")
    with pytest.raises(TauspanError, match="given up after attempt 2 of 2: the executor lost it"):
        raise found["never"]


@pytest.mark.slow
@QUIET
def test_an_interruption_keeps_what_is_done_ends_what_runs_and_is_resumed(tmp_path, place, ray, monkeypatch):
    done = jobs_of("count", *({"place": str(place), "name": f"n{n}"} for n in range(2)))
    # as many as there are workers, so that what comes after them has not begun
    long = jobs_of("wait_here", **{f"long{n}": {"place": str(place), "name": f"w{n}"} for n in range(CPUS)})
    rest = jobs_of("count", rest={"place": str(place), "name": "rest"})
    pids: list[int] = []

    class Interrupted(Submitted):
        def wait(self, seconds):
            pids[:] = [int(path.suffix[1:]) for path in place.glob("w*.[0-9]*")]
            if len(pids) == len(long) and all((tmp_path / f"j{n}.json").exists() for n in range(2)):
                raise KeyboardInterrupt
            return super().wait(seconds)

    with monkeypatch.context() as patch:
        made = lambda threads, device: Interrupted(partial(Ray, threads, device), None)  # noqa: E731
        patch.setitem(driver.BACKENDS, "ray", made)
        with pytest.raises(KeyboardInterrupt):
            on_ray([*done, *long, *rest], tmp_path, workers=len(long))
    until(lambda: not any(map(alive, pids)), "the end of what ran")
    assert sorted(path.name for path in tmp_path.glob("*.json")) == ["j0.json", "j1.json"]
    lock = Results(tmp_path).stages.lock(long[0].name)
    assert lock is not None  # it is free
    lock.close()
    assert on_ray([*done, *rest], tmp_path) == {"j0": "n0", "j1": "n1", "rest": "rest"}
    assert len(list(place.glob("n*.begun-*"))) == 2  # neither was done again


@pytest.mark.slow
@QUIET
def test_jobs_have_their_threads_and_device_and_more_than_a_node_has_is_refused(tmp_path, ray):
    found = on_ray(jobs_of("environment", two={}), tmp_path, threads=2, device="cpu")["two"]
    assert (found["threads"], found["device"]) == (["2", "2"], "cpu")
    assert found["pid"] != os.getpid()
    with pytest.raises(UsageError, match=f"threads=3.*{CPUS} CPUs.*threads={CPUS} or less"):
        on_ray(jobs_of("double", {"number": 1}), tmp_path, threads=3)
    assert ray.is_initialized()


@pytest.mark.slow
@QUIET
def test_a_ray_that_the_sweep_started_ends_with_it(tmp_path, monkeypatch):
    """Last: it needs that no cluster is there."""
    ray = pytest.importorskip("ray", reason="ray is not installed: the extra `real`")
    ray.shutdown()
    monkeypatch.setenv("PYTHONPATH", WHERE)
    assert on_ray(jobs_of("double", {"number": 1}), tmp_path) == {"j0": 2}
    assert not ray.is_initialized()
    with pytest.raises(UsageError, match="threads=9999"):
        on_ray(jobs_of("double", other={"number": 1}), tmp_path, threads=9999)
    assert not ray.is_initialized()
