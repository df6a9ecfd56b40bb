"""Two sweeps at once, Ctrl-C, sudden death."""

import os
import signal
import subprocess
import sys

import pytest

from helpers.sweeps import WHERE, alive, jobs_of, quietly, until
from tauspan.experiments.sweep import driver
from tauspan.experiments.sweep.results import Results

SERVER = """
import os, sys
from tauspan.experiments.sweep import Job, sweep
for line in sys.stdin:
    word, *order = line.strip().split("|")
    if word == "end":
        print(os.waitstatus_to_exitcode(os.waitpid(int(order[0]), 0)[1]), flush=True)
        continue
    child = os.fork()
    if child:
        print(child, flush=True)
        continue
    place, folder, function, count, workers = order
    jobs = [Job(f"j{n}", f"helpers.sweep_jobs:{function}", {"place": place, "name": f"j{n}"}) for n in range(int(count))]
    try:
        sweep(jobs, folder, int(workers))
    except KeyboardInterrupt:
        os._exit(130)
    os._exit(0)
os._exit(0)
"""


class Programs:
    """Sweeps in processes of their own, forked by a program that has imported everything."""

    def __init__(self):
        self.server = subprocess.Popen(
            [sys.executable, "-c", SERVER], env={**os.environ, "PYTHONPATH": WHERE}, bufsize=1, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def _ask(self, *order):
        self.server.stdin.write("|".join(map(str, order)) + "\n")
        return int(self.server.stdout.readline())

    def begin(self, place, folder, function, count, workers):
        """The process id of a sweep over that many jobs."""
        return self._ask("begin", place, folder, function, count, workers)

    def end(self, program):
        """The exit code; less than 0 after a signal."""
        return self._ask("end", program)


@pytest.fixture(scope="module")
def programs():
    made = Programs()
    with made.server:
        yield made
        made.server.stdin.close()


def test_two_sweeps_on_one_folder_share_the_work(tmp_path, place, programs):
    begun = [programs.begin(place, tmp_path / "out", "meet", 12, 2) for _ in range(2)]
    assert [programs.end(program) for program in begun] == [0, 0]
    assert len(list(place.glob("*.begun-*"))) == 12  # each was begun once
    assert len(list((tmp_path / "out").glob("j*.json"))) == 12
    assert not [path for path in (tmp_path / "out").iterdir() if path.name.startswith(".")]


def test_a_job_of_another_sweep_is_waited_for(tmp_path, place):
    """The lock is held elsewhere; when it is freed the result is read, or, if there is none, made."""
    jobs = jobs_of("count", *({"place": str(place), "name": f"n{n}"} for n in range(3)))
    results = Results(tmp_path)
    held = [results.stages.lock(job.name) for job in jobs[:2]]
    assert all(held)
    assert results.stages.lock(jobs[0].name) is None

    class Watched(driver.Processes):
        def wait(self, seconds):
            if (tmp_path / "j2.json").exists() and not results.stages.file(jobs[0].name).exists():
                results.write(jobs[0], "theirs", seconds=0.0)  # the other sweep has finished one
                for lock in held:  # and died with the second
                    lock.close()
            return super().wait(seconds)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(driver.BACKENDS, "processes", Watched)
        assert quietly(jobs, tmp_path) == {"j0": "theirs", "j1": "n1", "j2": "n2"}
    assert sorted(path.name for path in place.iterdir() if "begun" not in path.name) == ["n1", "n2"]


@pytest.mark.parametrize("sudden", [False, True])
def test_no_worker_outlives_its_sweep(tmp_path, place, programs, sudden):
    program = programs.begin(place, tmp_path / "out", "wait_here", 3, 2)
    pids = lambda: [int(path.suffix[1:]) for path in place.glob("*.[0-9]*")]  # noqa: E731
    until(lambda: len(pids()) == 2, "two jobs begun")
    assert all(map(alive, pids()))
    os.kill(program, signal.SIGKILL if sudden else signal.SIGINT)
    assert programs.end(program) == (-signal.SIGKILL if sudden else 130)
    until(lambda: not any(map(alive, pids())), "the workers' end")
    assert len(pids()) == 2  # the third was not begun
    assert len(list(place.glob("*.half"))) == (2 if sudden else 0)  # an interrupted job could clean up
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["logs"]


def test_ctrl_c_keeps_what_is_finished(tmp_path, place, monkeypatch):
    class Interrupted(driver.Processes):
        def wait(self, seconds):
            if (tmp_path / "j0.json").exists():
                raise KeyboardInterrupt
            return super().wait(seconds)

    jobs = jobs_of("double", {"number": 1}) + jobs_of("wait_here", long={"place": str(place), "name": "w"})
    with monkeypatch.context() as patch:
        patch.setitem(driver.BACKENDS, "processes", Interrupted)
        with pytest.raises(KeyboardInterrupt):
            quietly(jobs, tmp_path)
    assert [path.name for path in tmp_path.glob("*.json")] == ["j0.json"]
    assert Results(tmp_path).stages.lock(jobs[1].name) is not None  # its lock is free
    assert quietly(jobs[:1], tmp_path) == {"j0": 2}
