"""Sweeps on executors: results, errors and files are those of tauspan's own workers, whatever takes the calls."""

import json
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from helpers.sweeps import WHERE, jobs_of, quietly
from tauspan.core.errors import BaseMismatchError, TauspanError, UsageError
from tauspan.core.notices import heard
from tauspan.experiments.sweep.results import Results

SPAWN = multiprocessing.get_context("spawn")
Factory = Callable[[Path], Any]


def threads(folder: Path) -> Any:
    return ThreadPoolExecutor(2)


def processes(folder: Path) -> Any:
    return ProcessPoolExecutor(2, mp_context=SPAWN)


def loky(folder: Path) -> Any:
    return pytest.importorskip("loky", reason="loky is not installed: the extra `real`").ProcessPoolExecutor(
        2
    )


def submitit(folder: Path) -> Any:
    library = pytest.importorskip("submitit", reason="submitit is not installed: the extra `real`")
    executor = library.AutoExecutor(folder / "submitit", cluster="local")
    executor.update_parameters(timeout_min=2)
    return executor


EVERY = [
    threads,
    *(pytest.param(one, marks=pytest.mark.slow) for one in (processes, loky, submitit)),
]


@pytest.fixture(autouse=True)
def where(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where processes that an executor starts find the jobs."""
    monkeypatch.setenv("PYTHONPATH", WHERE)


def kept(folder: Path) -> dict[str, Any]:
    found = {file.name: json.loads(file.read_text()) for file in folder.glob("*.json")}
    return {name: {key: value for key, value in one.items() if key != "cost"} for name, one in found.items()}


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", EVERY)
def test_results_errors_and_files_are_those_of_own_workers(tmp_path: Path, kind: Factory) -> None:
    jobs = jobs_of("shapes", {"a": (1, [2]), "b": {"c": None}}, {"text": "ä"}) + jobs_of(
        "warn", w={"text": "so"}
    )
    jobs += jobs_of("fail", ours={"kind": "mismatch", "text": "base a"}, other={"kind": "zero"})
    executor = kind(tmp_path)
    with heard() as there_heard:
        there = quietly(jobs, tmp_path / "there", backend=executor, errors="return")
    with heard() as here_heard:
        here = quietly(jobs, tmp_path / "here", errors="return")
    assert list(there) == list(here)
    assert [there[name] for name in ("j0", "j1", "w")] == [here[name] for name in ("j0", "j1", "w")]
    assert isinstance(there["ours"], BaseMismatchError)
    assert type(there["other"]) is TauspanError
    for name in ("ours", "other"):
        said = [
            str(found[name]).replace(str(tmp_path / place), "")
            for found, place in ((there, "there"), (here, "here"))
        ]
        assert said[0] == said[1]
        assert "Traceback" in (tmp_path / "there" / "logs" / f"{name}.log").read_text()
    assert kept(tmp_path / "there") == kept(tmp_path / "here")
    assert there_heard == here_heard == ["so"]
    again = quietly(jobs[:3], tmp_path / "here", backend=executor)  # what own workers did is read
    assert again == {name: here[name] for name in ("j0", "j1", "w")}
    if isinstance(executor, ThreadPoolExecutor | ProcessPoolExecutor):
        assert executor.submit(len, "abc").result() == 3  # it stays open
        executor.shutdown()


@pytest.mark.slow
@pytest.mark.parametrize("kind", [processes, loky, submitit])
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")
def test_jobs_in_processes_are_told_threads_and_device(tmp_path: Path, kind: Factory) -> None:
    executor = kind(tmp_path)
    found = quietly(jobs_of("environment", one={}), tmp_path, backend=executor, threads=2, device="cpu")[
        "one"
    ]
    assert (found["threads"], found["device"]) == (["2", "2"], "cpu")
    assert found["pid"] != os.getpid()


@pytest.mark.slow
def test_a_worker_that_dies_costs_an_attempt_where_another_executor_can_be_made(tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    jobs = jobs_of("die_first", dies={"place": str(place), "deaths": 1}) + jobs_of("double", {"number": 1})
    out = tmp_path / "out"
    made = partial(ProcessPoolExecutor, 1, mp_context=SPAWN)
    assert quietly(jobs, out, backend=made) == {"dies": 1, "j0": 2}
    assert (
        "worker ProcessPoolExecutor: the executor lost it: BrokenProcessPool"
        in (out / "logs" / "dies.log").read_text()
    )
    never = jobs_of("die_first", never={"place": str(place), "deaths": 9})
    with pytest.raises(TauspanError, match="given up after attempt 2 of 2"):
        quietly(never, out, backend=made, attempts=2)
    with ProcessPoolExecutor(1, mp_context=SPAWN) as executor:
        later = jobs_of("die_first", later={"place": str(place), "deaths": 99})
        with pytest.raises(TauspanError, match=r"takes no more jobs.*backend=lambda"):
            quietly(later, out, backend=executor)
    lock = Results(out).stages.lock("later")
    assert lock is not None  # it is free
    lock.close()


# -- threads of this process ---------------------------------------------------------------------------------


def test_threads_leave_the_environment_alone_and_refuse_to_change_it(tmp_path: Path) -> None:
    before = dict(os.environ)
    for given in ({"threads": 2}, {"device": "cpu"}):
        with pytest.raises(UsageError, match=r"job in a thread of this process"):
            quietly(jobs_of("double", {"number": 1}), tmp_path, backend=ThreadPoolExecutor, **given)
    assert quietly(jobs_of("double", {"number": 1}), tmp_path, backend=ThreadPoolExecutor) == {"j0": 2}
    assert dict(os.environ) == before


def test_warnings_that_overlap_leave_nothing_behind(tmp_path: Path) -> None:
    import warnings

    shown = warnings.showwarning
    jobs = jobs_of("warn", *({"text": f"text {n}"} for n in range(20)))
    quietly(jobs, tmp_path, workers=4, backend=partial(ThreadPoolExecutor, 4))
    assert warnings.showwarning is shown
    first, second = heard(), heard()  # they end in the order in which they began
    first.__enter__()
    found = second.__enter__()
    first.__exit__(None, None, None)
    assert warnings.showwarning is not shown
    second.__exit__(None, None, None)
    assert warnings.showwarning is shown
    assert found == []


# -- what is no executor, and what one does wrong ------------------------------------------------------------


def test_what_is_no_backend_is_refused_before_anything_starts(tmp_path: Path) -> None:
    jobs = jobs_of("double", {"number": 1})
    with pytest.raises(UsageError, match=r"backend=42 is no executor: give 'processes'"):
        quietly(jobs, tmp_path / "out", backend=42)
    with pytest.raises(UsageError, match=r"no backend 'proceses'. Did you mean 'processes'"):
        quietly(jobs, tmp_path / "out", backend="proceses")
    assert not (tmp_path / "out").exists()


class Odd:
    """What only looks like an executor: it gives something else, or is full."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.cancelled = 0

    def submit(self, function: Any, /, *arguments: Any) -> Any:
        answer = self.answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        future: Future[Any] = Future()
        if answer is not None:
            future.set_result(function(*arguments) if answer == "does" else answer)
        return future


def test_what_is_no_outcome_counts_as_lost(tmp_path: Path) -> None:
    assert quietly(jobs_of("double", {"number": 1}), tmp_path, backend=Odd(17, "does")) == {"j0": 2}
    assert "gave 17 in the place of its outcome" in (tmp_path / "logs" / "j0.log").read_text()


def test_an_interruption_cancels_what_has_not_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    futures: list[Future[Any]] = []

    class Full(Odd):
        def submit(self, function: Any, /, *arguments: Any) -> Any:
            futures.append(super().submit(function, *arguments))
            return futures[-1]

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tauspan.experiments.sweep.executors.concurrent.futures.wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        quietly(jobs_of("double", {"number": 1}, {"number": 2}), tmp_path, backend=Full(None, None))
    assert [future.cancelled() for future in futures] == [True, True]
    for name in ("j0", "j1"):
        lock = Results(tmp_path).stages.lock(name)
        assert lock is not None
        lock.close()


def test_the_module_loads_no_executor_library() -> None:
    code = "import sys, tauspan.experiments.sweep; sys.exit(any(n in sys.modules for n in ('ray', 'loky', 'submitit')))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
