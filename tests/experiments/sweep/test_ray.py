"""Sweeps over Ray, of which a double has the few names that the backend uses."""

import signal
import sys
import types

import pytest

from helpers.sweeps import WHERE, jobs_of, quietly
from tauspan.core.errors import BaseMismatchError, MissingExtraError, UsageError


def test_without_ray_its_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"tauspan\[ray\]"):
        quietly(jobs_of("double", {"number": 1}), tmp_path, backend="ray")


class Double(types.ModuleType):
    """The few names of Ray that the backend uses: tasks run at once, or are lost."""

    def __init__(self, cpus, lost=()):
        super().__init__("ray")
        self.cpus, self.lost, self.said = cpus, list(lost), []
        self.exceptions = types.SimpleNamespace(RayError=type("RayError", (Exception,), {}))

    def is_initialized(self):
        return False

    def init(self, **options):
        self.said.append("init")

    def shutdown(self):
        self.said.append("shutdown")

    def nodes(self):
        return [
            {"Alive": True, "Resources": {"CPU": self.cpus}},
            {"Alive": False, "Resources": {"CPU": 99.0}},
        ]

    def remote(self, **options):
        self.said.append(
            (
                options["num_cpus"],
                options["num_gpus"],
                options["max_retries"],
                options["runtime_env"]["env_vars"]["OMP_NUM_THREADS"],
            )
        )
        return lambda function: types.SimpleNamespace(remote=lambda *given: (function, given))

    def wait(self, tasks, num_returns, timeout):
        return tasks[:1], tasks[1:]

    def get(self, task):
        if self.lost:
            raise self.exceptions.RayError(f"{self.lost.pop()}\nmore")
        function, given = task
        return function(*given)

    def cancel(self, task, force):
        self.said.append("cancel")


def test_ray_is_given_a_job_again_when_it_loses_it(tmp_path, monkeypatch):
    ray = Double(4.0, lost=["the node died"])
    monkeypatch.setitem(sys.modules, "ray", ray)
    jobs = jobs_of("double", {"number": 1}, {"number": 2})
    assert quietly(jobs, tmp_path, backend="ray", threads=2) == {"j0": 2, "j1": 4}
    assert ray.said == ["init", (2, 0, 0, "2"), "shutdown"]
    assert "worker ray: Ray lost it: the node died." in (tmp_path / "logs" / "j0.log").read_text()


def test_ray_jobs_that_no_node_could_run_are_refused(tmp_path, monkeypatch):
    ray = Double(4.0)
    monkeypatch.setitem(sys.modules, "ray", ray)
    with pytest.raises(UsageError, match=r"threads=8.*4 CPUs"):
        quietly(jobs_of("double", {"number": 1}), tmp_path, backend="ray", threads=8)
    assert ray.said == ["init", "shutdown"]


def test_ctrl_c_cancels_ray_tasks(tmp_path, monkeypatch):
    ray = Double(4.0)
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setattr(ray, "wait", lambda *given, **named: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        quietly(jobs_of("double", {"number": 1}, {"number": 1}), tmp_path, backend="ray")
    assert ray.said[2:] == ["cancel", "cancel", "shutdown"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::FutureWarning")  # Ray's own
def test_ray_itself(tmp_path, place, monkeypatch):
    ray = pytest.importorskip("ray", reason="the extra `ray` is not installed")
    monkeypatch.setenv("PYTHONPATH", WHERE)  # its workers look only where every node does
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        jobs = jobs_of("double", {"number": 1}, {"number": 2})
        jobs += jobs_of("die_first", dies={"place": str(place), "deaths": 1})
        assert quietly(jobs, tmp_path, backend="ray") == {"j0": 2, "j1": 4, "dies": 1}
        found = quietly(jobs_of("environment", two={}), tmp_path, backend="ray", threads=2)
        assert found["two"]["threads"] == ["2", "2"]
        with pytest.raises(BaseMismatchError, match="base a"):
            quietly(jobs_of("fail", bad={"kind": "mismatch", "text": "base a"}), tmp_path, backend="ray")
        with pytest.raises(UsageError, match="2 CPUs"):
            quietly(jobs_of("double", other={"number": 1}), tmp_path, backend="ray", threads=3)
        assert ray.is_initialized()  # a cluster that was there stays
    finally:
        ray.shutdown()
