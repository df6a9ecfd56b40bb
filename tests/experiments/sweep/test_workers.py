"""Sweeps: workers, and what becomes of a job when its worker dies."""

import json
import os
import signal

import pytest

from helpers.sweeps import alive, jobs_of, quietly, until
from tauspan.core.errors import TauspanError
from tauspan.experiments.sweep import driver


@pytest.mark.parametrize("how", ["kill", "exit"])
def test_the_job_of_a_worker_that_died_is_taken_again(tmp_path, place, how):
    jobs = jobs_of("die_first", {"place": str(place), "deaths": 2, "how": how}) + jobs_of(
        "double", other={"number": 1}
    )
    assert quietly(jobs, tmp_path) == {"j0": 2, "other": 2}
    assert len(set(place.iterdir())) == 2  # each time another process
    assert json.loads((tmp_path / "j0.json").read_text())["attempt"] == 3


def test_a_job_that_kills_all_its_workers_is_named_and_the_others_are_done(tmp_path, place):
    jobs = jobs_of("die_first", {"place": str(place), "deaths": 9}) + jobs_of("double", other={"number": 1})
    with pytest.raises(TauspanError, match=r"'j0'.*after attempt 2 of 2.*SIGKILL.*memory.*logs/j0\.log"):
        quietly(jobs, tmp_path, attempts=2)
    assert len(list(place.iterdir())) == 2
    assert (tmp_path / "other.json").is_file()
    assert "attempt 2 of 2" in (tmp_path / "logs" / "j0.log").read_text()
    with pytest.raises(TauspanError, match="after attempt 1 of 1"):  # and it is not forgotten, nor half done
        quietly(jobs, tmp_path, attempts=1)


def test_a_dead_worker_is_noticed_though_its_child_lives_and_the_child_is_ended(tmp_path, place):
    found = quietly(jobs_of("die_and_leave_a_child", {"place": str(place)}), tmp_path)
    assert not (place / "outlived").exists()  # it was not waited for
    until(lambda: not alive(int(found["j0"])), "the child's end")


def test_what_a_job_prints_goes_to_its_log_and_disturbs_nothing(tmp_path):
    jobs = jobs_of("chatter", {"words": "one"}, {"words": "two"})
    assert quietly(jobs, tmp_path, workers=1) == {"j0": "one", "j1": "two"}
    for name, words in (("j0", "one"), ("j1", "two")):
        lines = (tmp_path / "logs" / f"{name}.log").read_text().splitlines()
        assert sorted(lines) == sorted([words, f"raw {words}", f"child {words}"])


def test_a_job_that_writes_into_the_workers_connection_costs_an_attempt(tmp_path):
    with pytest.raises(TauspanError, match=r"'j0'.*after attempt 1 of 1"):
        quietly(jobs_of("scribble", {}), tmp_path, attempts=1)


def test_workers_have_their_threads_no_torch_and_no_terminal(tmp_path):
    found = quietly(jobs_of("environment", {}, {}), tmp_path, workers=1, threads=3)
    assert [one["threads"] for one in found.values()] == [["3", "3"]] * 2
    assert [one["torch"] for one in found.values()] == [False, False]
    assert [one["stdin"] for one in found.values()] == ["", ""]
    assert found["j0"]["pid"] == found["j1"]["pid"]  # kept from job to job


def test_cores_are_shared_among_the_workers(tmp_path, monkeypatch):
    monkeypatch.setattr(driver, "_cores", lambda: 8)
    found = {
        n: quietly(jobs_of("environment", {}), tmp_path / str(n), n)["j0"]["threads"][0] for n in (1, 3, 9)
    }
    assert found == {1: "8", 3: "2", 9: "1"}


@pytest.mark.parametrize(
    ("device", "visible", "seen"),
    [
        ("cuda", "4,GPU-b", ["4", "4", "GPU-b"]),
        ("cuda", "", ["", "", ""]),
        ("cpu", "4,GPU-b", ["4,GPU-b"] * 3),
    ],
)
def test_each_worker_of_cuda_sees_one_gpu(tmp_path, place, monkeypatch, device, visible, seen):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    given = [{"place": str(place), "name": f"j{number}", "workers": 3} for number in range(3)]
    found = quietly(jobs_of("devices", *given), tmp_path / "out", workers=3, threads=1, device=device)
    assert sorted(found.values()) == [[device, one] for one in seen]


def test_the_gpus_of_this_machine_are_counted_where_no_variable_lists_them(monkeypatch):
    import torch

    from tauspan.experiments.sweep.pool import visible_gpus

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert visible_gpus() == ["0", "1"]


@pytest.mark.slow
def test_torch_follows(tmp_path):
    assert quietly(jobs_of("torch_threads", {}), tmp_path, threads=1) == {"j0": 1}


def test_a_worker_that_dies_between_two_jobs_is_replaced(tmp_path):
    from tauspan.experiments.sweep.pool import Processes

    first, second = jobs_of("double", {"number": 1}, {"number": 2})
    pool, log = Processes(1), tmp_path / "log"
    found, pids = [], []
    for job in (first, second):
        pids.append(pool.start(job, log))
        until(lambda: found.extend(pool.wait(0.1).values()) or len(found) == len(pids), "an answer")
        os.kill(int(pids[-1]), signal.SIGKILL)
        until(lambda: pool._idle[0].process.poll() is not None, "its end")  # as the pool itself sees it
    pool.close()
    assert [outcome["result"] for outcome in found] == [2, 4]
    assert len(set(pids)) == 2
