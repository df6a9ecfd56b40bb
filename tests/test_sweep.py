"""Sweeps: results that stay, workers that die, two at once, errors from afar."""

import io
import json
import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest
from rich.console import Console

from tauspan import errors
from tauspan.errors import (
    BaseMismatchError,
    MissingExtraError,
    NonFiniteError,
    StoreError,
    TauspanError,
    UsageError,
)
from tauspan.sweep import Job, driver, sweep
from tauspan.sweep.board import Board
from tauspan.sweep.results import Results
from tauspan.sweep.worker import function_of, perform, plain

HERE = str(Path(__file__).parent)
WHERE = os.pathsep.join([*filter(None, [os.environ.get("PYTHONPATH")]), HERE])
SERVER = """
import os, sys
from tauspan.sweep import Job, sweep
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
    jobs = [Job(f"j{n}", f"sweep_jobs:{function}", {"place": place, "name": f"j{n}"}) for n in range(int(count))]
    try:
        sweep(jobs, folder, int(workers), show_progress=False)
    except KeyboardInterrupt:
        os._exit(130)
    os._exit(0)
os._exit(0)
"""


def jobs_of(function, *arguments, **named):
    """One job a mapping, under the names j0, j1, ..., or the names given."""
    numbered = {f"j{place}": given for place, given in enumerate(arguments)}
    return [Job(name, f"sweep_jobs:{function}", given) for name, given in {**numbered, **named}.items()]


def quietly(jobs, folder, workers=2, **options):
    return sweep(jobs, folder, workers, show_progress=False, **options)


def alive(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return False
    return state != "Z"  # a dead one that nobody has asked after


def until(happened, what):
    for _ in range(600):
        if happened():
            return
        time.sleep(0.05)
    raise AssertionError(f"half a minute, and not yet {what}")


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


@pytest.fixture
def place(tmp_path):
    """Where jobs leave traces, outside the sweep's folder."""
    folder = tmp_path / "traces"
    folder.mkdir()
    return folder


# -- results ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 3])
def test_results_come_in_the_order_of_the_jobs_whatever_the_workers(tmp_path, workers):
    numbers = [5, 1, 4, 2, 3]
    found = quietly(jobs_of("double", *({"number": n} for n in numbers)), tmp_path, workers)
    assert list(found.items()) == [(f"j{place}", 2 * n) for place, n in enumerate(numbers)]


def test_fresh_and_reused_results_are_the_same_json(tmp_path):
    jobs = jobs_of("shapes", {"a": (1, [2]), "b": {"c": None}})
    expected = {"given": {"a": [1, [2]], "b": {"c": None}}, "pair": [1, 2], "none": None, "text": "ä"}
    assert quietly(jobs, tmp_path) == quietly(jobs, tmp_path) == {"j0": expected}
    assert json.loads((tmp_path / "j0.json").read_text())["result"] == expected


def test_finished_jobs_are_not_done_again(tmp_path, place):
    jobs = jobs_of("count", *({"place": str(place), "name": f"n{n}"} for n in range(3)))
    first = quietly(jobs[:2], tmp_path)
    assert quietly(jobs, tmp_path) == {**first, "j2": "n2"}
    assert len(list(place.glob("*.begun-*"))) == 3


def test_a_folder_full_of_results_starts_no_worker(tmp_path, monkeypatch):
    jobs = jobs_of("double", {"number": 1})
    quietly(jobs, tmp_path)
    monkeypatch.setattr(driver, "BACKENDS", {"processes": None})
    assert quietly(jobs, tmp_path) == {"j0": 2}


def test_no_jobs_no_results(tmp_path):
    assert quietly([], tmp_path) == {}


@pytest.mark.parametrize(
    ("changed", "parts"),
    [
        (("sweep_jobs:double", {"number": 3}), ("arguments", "{'number': 2}", "{'number': 3}")),
        (("sweep_jobs:double", {"number": 2.0}), ("arguments", "2", "2.0")),
        (("sweep_jobs:shapes", {"number": 2}), ("function", "sweep_jobs:double", "sweep_jobs:shapes")),
    ],
)
def test_another_job_of_the_same_name_is_refused_before_anything_starts(tmp_path, place, changed, parts):
    quietly([Job("a", "sweep_jobs:double", {"number": 2})], tmp_path)
    jobs = [Job("b", "sweep_jobs:count", {"place": str(place), "name": "b"}), Job("a", *changed)]
    with pytest.raises(StoreError) as raised:
        quietly(jobs, tmp_path)
    assert all(part in str(raised.value) for part in (*parts, str(tmp_path / "a.json"), "remove the file"))
    assert not list(place.iterdir())


def test_another_version_is_refused(tmp_path, monkeypatch):
    jobs = jobs_of("double", {"number": 2})
    quietly(jobs, tmp_path)
    monkeypatch.setattr("tauspan.sweep.results.__version__", "9.9")
    with pytest.raises(StoreError, match=r"version is '[\d.]+', and now '9\.9'"):
        quietly(jobs, tmp_path)


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "null", '{"format": "tauspan-sweep/1"}', '{"format": "x", "result": 1, "seconds": 1}',
     '{"format": "tauspan-sweep/1", "result": 1, "seconds": "long"}', "\udcff"],
)  # fmt: skip
def test_a_damaged_result_is_refused_with_its_repair(tmp_path, content):
    (tmp_path / "j0.json").write_text(content, errors="surrogateescape")
    with pytest.raises(StoreError, match=r"j0\.json.*Remove it, and the job is done again"):
        quietly(jobs_of("double", {"number": 2}), tmp_path)


def test_a_folder_that_is_a_file(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="file cannot hold results"):
        quietly(jobs_of("double", {"number": 2}), tmp_path / "file")


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    def refuses(descriptor, operation):
        raise OSError("no locks here")

    monkeypatch.setattr("tauspan.store.places.fcntl.flock", refuses)
    with pytest.raises(StoreError, match=r"knows no locks \(flock\)"):
        quietly(jobs_of("double", {"number": 2}), tmp_path)


# -- what is refused at once --------------------------------------------------------------------------------

NAMES = [
    "",
    ".",
    "..",
    "../a",
    "a/b",
    "/a",
    "a\\b",
    ".hidden",
    "a\nb",
    "a\0",
    "\x1b[2J",
    "\ud800",
    "x" * 201,
    3,
    None,
]


@pytest.mark.parametrize("name", NAMES)
def test_names_that_are_no_file_names(name):
    with pytest.raises(UsageError, match="name"):
        Job(name, "sweep_jobs:double", {"number": 1})


@pytest.mark.parametrize("name", ["a", "linear-cars-seed0", "a..b", "Straße 1", "x" * 200, "[red]"])
def test_names_that_are(tmp_path, name):
    assert quietly([Job(name, "sweep_jobs:double", {"number": 1})], tmp_path) == {name: 2}
    assert (tmp_path / f"{name}.json").is_file()


@pytest.mark.parametrize("second", ["a", "A"])
def test_two_jobs_of_one_name(tmp_path, second):
    jobs = [Job(name, "sweep_jobs:double", {"number": 1}) for name in ("a", second)]
    with pytest.raises(UsageError, match=f"'a' and '{second}'"):
        quietly(jobs, tmp_path)


@pytest.mark.parametrize(
    "function", ["", "os", "os:", ":path", "os:path:x", "os; x:y", "../os:x", "os:a.b", "1a:b", 7]
)
def test_functions_spelt_otherwise(function):
    with pytest.raises(UsageError, match="'module:function'"):
        Job("a", function)


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        ("no_such_module:run", {}, "No module named 'no_such_module'.*PYTHONPATH"),
        ("sweep_jobs:doubel", {}, "Did you mean 'double'"),
        ("os:name", {}, "'name' is not a function"),
        ("sweep_jobs:double", {}, r"sweep_jobs:double\(number.*missing a required argument: 'number'"),
        ("sweep_jobs:double", {"numer": 1}, "'j'.*numer"),
    ],
)
def test_functions_that_cannot_be_called(tmp_path, place, function, arguments, message):
    jobs = [
        Job("first", "sweep_jobs:count", {"place": str(place), "name": "b"}),
        Job("j", function, arguments),
    ]
    with pytest.raises(UsageError, match=message):
        quietly(jobs, tmp_path / "out")
    assert not list(place.iterdir())
    assert not (tmp_path / "out").exists()


def test_a_function_of_the_program_itself_is_refused():
    with pytest.raises(UsageError, match="module of its own"):
        Job("a", "__main__:f")


def test_a_module_that_fails_when_imported(tmp_path, monkeypatch):
    (tmp_path / "ends_at_once.py").write_text("raise SystemExit('bye')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UsageError, match="SystemExit: bye"):
        function_of("ends_at_once:f")


def test_a_function_written_in_c_may_not_say_what_it_takes(tmp_path):
    with pytest.raises(TauspanError, match="TypeError"):
        quietly([Job("a", "builtins:max", {"no": 1})], tmp_path, attempts=1)


CIRCLE: list = []
CIRCLE.append(CIRCLE)


@pytest.mark.parametrize(
    ("value", "kind", "message"),
    [
        (object(), UsageError, r"arguments\.v is a object"),
        ({1, 2}, UsageError, r"arguments\.v is a set"),
        ([0, {"x": Path("a")}], UsageError, r"arguments\.v\[1\]\.x is a PosixPath.*str\(path\)"),
        ({2: 3}, UsageError, r"arguments\.v has the key 2.*write '2'"),
        (float("nan"), NonFiniteError, r"arguments\.v is nan"),
        ([float("inf")], NonFiniteError, r"arguments\.v\[0\] is inf"),
        ("\ud800", UsageError, "UTF-8"),
        (CIRCLE, UsageError, "holds itself"),
    ],
)
def test_arguments_that_json_lacks(value, kind, message):
    with pytest.raises(kind, match=message):
        Job("a", "sweep_jobs:shapes", {"v": value})


def test_arguments_that_are_no_mapping():
    with pytest.raises(UsageError, match="mapping"):
        Job("a", "sweep_jobs:shapes", [1])


def test_plain_values_lose_their_special_types():
    import numpy as np

    found = plain({"a": np.float64(0.5), "b": True, "c": (1,)}, "it")
    assert found == {"a": 0.5, "b": True, "c": [1]}
    assert type(found["a"]) is float
    assert found["b"] is True


@pytest.mark.parametrize(
    "options", [{"workers": 0}, {"workers": True}, {"workers": 1.5}, {"threads": 0}, {"attempts": 0}]
)
def test_counts_below_one(tmp_path, options):
    (name,) = options
    with pytest.raises(UsageError, match=f"{name}=.*from 1 on"):
        sweep([], tmp_path, show_progress=False, **options)


def test_an_unknown_backend(tmp_path):
    with pytest.raises(UsageError, match="Did you mean 'processes'"):
        quietly([], tmp_path, backend="proceses")


# -- errors from afar ---------------------------------------------------------------------------------------


def test_an_error_of_ours_keeps_its_class_and_its_words(tmp_path, place):
    jobs = jobs_of("fail", bad={"kind": "mismatch", "text": "base a, and here b"})
    jobs += jobs_of("count", {"place": str(place), "name": "n"})
    with pytest.raises(BaseMismatchError, match=r"^base a, and here b .*'bad'.*logs/bad\.log") as raised:
        quietly(jobs, tmp_path, workers=1)
    assert type(raised.value) is BaseMismatchError
    assert (tmp_path / "j0.json").is_file()  # the other one had its chance
    assert "in fail\n" in (tmp_path / "logs" / "bad.log").read_text()


def test_an_error_class_of_another_module_arrives_as_the_nearest_of_ours(tmp_path):
    with pytest.raises(UsageError, match="why"):
        quietly(jobs_of("fail", {"kind": "narrower", "text": "why"}), tmp_path)


@pytest.mark.parametrize(
    ("kind", "line"),
    [("zero", r"ZeroDivisionError: no \(sweep_jobs\.py, line \d+\)"), ("system", "SystemExit: no")],
)
def test_any_other_error_names_its_line_and_the_log(tmp_path, kind, line):
    with pytest.raises(TauspanError, match=f"'j0'.*{line}.*logs/j0.log") as raised:
        quietly(jobs_of("fail", {"kind": kind}), tmp_path)
    assert type(raised.value) is TauspanError
    assert "Traceback" in (tmp_path / "logs" / "j0.log").read_text()


def test_the_first_of_several_errors_names_the_others(tmp_path):
    jobs = jobs_of("fail", *({"kind": kind} for kind in ("mismatch", "zero", "narrower")))
    with pytest.raises(BaseMismatchError, match="3 of 3 jobs failed; the others: j1, j2"):
        quietly(jobs, tmp_path, workers=3)


@pytest.mark.parametrize(
    ("what", "kind", "message"),
    [
        ("nan", NonFiniteError, "its result is nan"),
        ("object", UsageError, "its result is a object"),
        ("keys", UsageError, "its result has the key 1"),
        ("set", UsageError, "its result is a set"),
        ("text", UsageError, "UTF-8"),
    ],
)
def test_results_that_json_lacks(tmp_path, what, kind, message):
    with pytest.raises(kind, match=message):
        quietly(jobs_of("give", {"what": what}), tmp_path)
    assert not (tmp_path / "j0.json").exists()


def test_only_names_of_the_error_tree_become_classes(tmp_path):
    job = Job("a", "sweep_jobs:double", {"number": 1})
    for name in ("nearest", "difflib", "__name__", "ValueError", None):
        made = driver._rebuilt(job, {"type": name, "text": "t", "line": "the line"}, tmp_path)
        assert type(made) is TauspanError
        assert "the line" in str(made)
    for name, kind in vars(errors).items():
        if isinstance(kind, type) and issubclass(kind, TauspanError):
            assert type(driver._rebuilt(job, {"type": name, "text": "t", "line": ""}, tmp_path)) is kind


def test_text_that_no_file_can_hold_is_escaped():
    outcome = perform("sweep_jobs:fail", {"kind": "zero", "text": "a\ud800"})
    assert outcome["error"]["text"] == "a\\ud800"


# -- workers ------------------------------------------------------------------------------------------------


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

    from tauspan.sweep.pool import visible_gpus

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert visible_gpus() == ["0", "1"]


@pytest.mark.slow
def test_torch_follows(tmp_path):
    assert quietly(jobs_of("torch_threads", {}), tmp_path, threads=1) == {"j0": 1}


def test_a_worker_that_dies_between_two_jobs_is_replaced(tmp_path):
    from tauspan.sweep.pool import Processes

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


# -- two sweeps at once, Ctrl-C, sudden death ---------------------------------------------------------------


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
    held = [results.lock(job) for job in jobs[:2]]
    assert all(held)
    assert results.lock(jobs[0]) is None

    class Watched(driver.Processes):
        def wait(self, seconds):
            if (tmp_path / "j2.json").exists() and not results.file(jobs[0]).exists():
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
    assert Results(tmp_path).lock(jobs[1]) is not None  # its lock is free
    assert quietly(jobs[:1], tmp_path) == {"j0": 2}


# -- the table ----------------------------------------------------------------------------------------------


def drawn(board, console):
    with console.capture() as caught:
        console.print(board.render())
    return [line.rstrip() for line in caught.get().splitlines()]


def watched(names, height=24, width=80):
    console = Console(file=io.StringIO(), width=width, height=height, force_terminal=True, color_system=None)
    return Board(names, True, console), console


def test_the_table_fits_a_terminal_and_shows_every_state():
    long = "[red]" + "n" * 100
    board, console = watched([long, "b", "c", "d", "e", "f"])
    board.set(long, "running", "1234567")
    for name, state in zip("bcdef", ("done", "reused", "failed", "again", "waiting"), strict=True):
        board.set(name, state, "another sweep", 12345.67)
    lines = drawn(board, console)
    assert max(map(len, lines)) <= 80
    assert lines[2].startswith("[red]nnn")
    assert "…" in lines[2]
    assert "1234567" in lines[2]
    assert lines[3].split() == ["b", "done", "another", "sweep", "12345.7"]
    assert lines[-1] == "6 jobs: 1 running, 1 done, 1 reused, 1 failed, 1 again, 1 waiting"


def test_a_small_screen_shows_running_and_failed_jobs_and_counts():
    board, console = watched([f"j{n}" for n in range(100)], height=12)
    for n in range(50):
        board.set(f"j{n}", "done")
    board.set("j60", "failed")
    for n in (70, 71):
        board.set(f"j{n}", "running", "1")
    lines = drawn(board, console)
    assert len(lines) < 12
    assert [line.split()[0] for line in lines[2:5]] == ["j70", "j71", "j60"]
    assert lines[-1] == "100 jobs: 50 done, 47 waiting, 1 failed, 2 running"


def test_a_terminal_sees_the_table_live(tmp_path, monkeypatch):
    console = Console(file=io.StringIO(), width=80, force_terminal=True, color_system=None)
    monkeypatch.setattr("tauspan.sweep.board.Console", lambda stderr: console)
    sweep(jobs_of("double", {"number": 1}), tmp_path)
    assert "1 jobs: 1 done" in console.file.getvalue()


def test_without_a_terminal_there_are_lines_in_the_log(tmp_path, caplog, capsys):
    caplog.set_level("INFO", "tauspan.sweep")
    jobs = jobs_of("double", {"number": 1})
    sweep(jobs, tmp_path)
    sweep(jobs, tmp_path)
    lines = [record.getMessage() for record in caplog.records]
    assert lines[0].startswith("j0: running (")
    assert lines[1].startswith("j0: done (")
    assert lines[2].startswith("j0: reused, ")
    assert capsys.readouterr() == ("", "")


# -- ray ----------------------------------------------------------------------------------------------------


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
