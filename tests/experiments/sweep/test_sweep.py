"""Sweeps: results that stay, errors from afar, the table."""

import errno
import io
import json

import pytest
from rich.console import Console

from helpers.sweeps import jobs_of, quietly
from tauspan.core import errors
from tauspan.core.errors import BaseMismatchError, NonFiniteError, StoreError, TauspanError, UsageError
from tauspan.core.measure import quiet
from tauspan.experiments.sweep import Job, driver, sweep
from tauspan.experiments.sweep.table import JobTable
from tauspan.experiments.sweep.worker import perform


@pytest.mark.parametrize("workers", [1, 3])
def test_results_come_in_the_order_of_the_jobs_whatever_the_workers(tmp_path, workers):
    numbers = [5, 1, 4, 2, 3]
    found = quietly(jobs_of("double", *({"number": n} for n in numbers)), tmp_path, workers)
    assert list(found.items()) == [(f"j{place}", 2 * n) for place, n in enumerate(numbers)]


def test_fresh_and_reused_results_are_the_same_json(tmp_path):
    jobs = jobs_of("shapes", {"a": (1, [2]), "b": {"c": None}})
    expected = {"given": {"a": [1, [2]], "b": {"c": None}}, "pair": [1, 2], "none": None, "text": "ä"}
    assert quietly(jobs, tmp_path) == quietly(jobs, tmp_path) == {"j0": expected}
    assert json.loads((tmp_path / "j0.json").read_text())["content"] == expected


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
        (("helpers.sweep_jobs:double", {"number": 3}), ("arguments", "{'number': 2}", "{'number': 3}")),
        (("helpers.sweep_jobs:double", {"number": 2.0}), ("arguments", "2", "2.0")),
        (
            ("helpers.sweep_jobs:shapes", {"number": 2}),
            ("function", "helpers.sweep_jobs:double", "helpers.sweep_jobs:shapes"),
        ),
    ],
)
def test_another_job_of_the_same_name_is_refused_before_anything_starts(tmp_path, place, changed, parts):
    quietly([Job("a", "helpers.sweep_jobs:double", {"number": 2})], tmp_path)
    jobs = [Job("b", "helpers.sweep_jobs:count", {"place": str(place), "name": "b"}), Job("a", *changed)]
    with pytest.raises(StoreError) as raised:
        quietly(jobs, tmp_path)
    assert all(part in str(raised.value) for part in (*parts, str(tmp_path / "a.json"), "remove the file"))
    assert not list(place.iterdir())


def test_another_version_is_refused(tmp_path, monkeypatch):
    jobs = jobs_of("double", {"number": 2})
    quietly(jobs, tmp_path)
    monkeypatch.setattr("tauspan.experiments.sweep.results.__version__", "9.9")
    with pytest.raises(StoreError, match=r"version is '[\d.]+', and now '9\.9'"):
        quietly(jobs, tmp_path)


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "null", '{"job": {}}', '{"job": 1, "content": 1, "cost": {}}',
     '{"job": {}, "content": 1, "cost": "long"}', "\udcff"],
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
    def refuses(lock, timeout):
        raise OSError(errno.ENOLCK, "no locks here")

    monkeypatch.setattr("tauspan.store.places.FileLock.acquire", refuses)
    with pytest.raises(StoreError, match=r"knows no locks, so"):
        quietly(jobs_of("double", {"number": 2}), tmp_path)


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


def test_the_first_of_several_errors_names_the_others_with_their_logs(tmp_path):
    jobs = jobs_of("fail", *({"kind": kind} for kind in ("mismatch", "zero", "narrower")))
    with pytest.raises(BaseMismatchError, match="3 of 3 jobs failed; the others: 'j1' ") as raised:
        quietly(jobs, tmp_path, workers=3)
    for name in ("j0", "j1", "j2"):
        assert str(tmp_path / "logs" / f"{name}.log") in str(raised.value)


def mixed():
    """Four jobs that succeed and three that fail, each in its own way."""
    good = jobs_of("double", **{f"good{n}": {"number": n} for n in range(4)})
    bad = jobs_of(
        "fail", **{f"bad{n}": {"kind": kind} for n, kind in enumerate(("mismatch", "zero", "system"))}
    )
    return [good[0], bad[0], good[1], good[2], bad[1], bad[2], good[3]]


@pytest.mark.parametrize("workers", [1, 3])
def test_what_succeeded_comes_back_beside_what_failed(tmp_path, workers):
    jobs = mixed()
    found = quietly(jobs, tmp_path, workers, errors="return")
    assert list(found) == [job.name for job in jobs]
    errors = {name: result for name, result in found.items() if isinstance(result, TauspanError)}
    assert {name: type(error) for name, error in errors.items()} == {
        "bad0": BaseMismatchError, "bad1": TauspanError, "bad2": TauspanError
    }  # fmt: skip
    assert all(f"logs/{name}.log" in str(error) for name, error in errors.items())
    assert [found[f"good{n}"] for n in range(4)] == [0, 2, 4, 6]


def test_what_succeeded_is_named_by_what_is_raised(tmp_path):
    with pytest.raises(BaseMismatchError, match=r"3 of 7 jobs failed.*4 results are in .*errors='return'"):
        quietly(mixed(), tmp_path, 2)
    again = quietly([job for job in mixed() if job.name.startswith("good")], tmp_path)
    assert list(again.values()) == [0, 2, 4, 6]


def test_a_job_given_up_comes_back_as_its_error_too(tmp_path, place):
    jobs = [*jobs_of("die_first", {"place": str(place), "deaths": 9}), *jobs_of("double", good={"number": 1})]
    found = quietly(jobs, tmp_path, errors="return", attempts=1)
    assert "was given up" in str(found["j0"])
    assert found["good"] == 2


def test_an_unknown_way_with_errors_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"errors='retrun'\. Did you mean 'return'"):
        quietly(mixed(), tmp_path, errors="retrun")


def test_what_a_job_warns_of_is_said_here_and_kept(tmp_path, caplog):
    assert quietly(jobs_of("warn", {"text": "a layer\nwas left out"}), tmp_path) == {"j0": 1}
    assert caplog.messages == ["a layer was left out"]
    assert json.loads((tmp_path / "j0.json").read_text())["warnings"] == ["a layer was left out"]
    assert "a layer\nwas left out" in (tmp_path / "logs" / "j0.log").read_text()


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
    job = Job("a", "helpers.sweep_jobs:double", {"number": 1})
    for name in ("nearest", "difflib", "__name__", "ValueError", None):
        made = driver._rebuilt(job, {"type": name, "text": "t", "line": "the line"}, tmp_path)
        assert type(made) is TauspanError
        assert "the line" in str(made)
    for name, kind in vars(errors).items():
        if isinstance(kind, type) and issubclass(kind, TauspanError):
            assert type(driver._rebuilt(job, {"type": name, "text": "t", "line": ""}, tmp_path)) is kind


def test_text_that_no_file_can_hold_is_escaped():
    outcome = perform("helpers.sweep_jobs:fail", {"kind": "zero", "text": "a\ud800"})
    assert outcome["error"]["text"] == "a\\ud800"


# -- the table ----------------------------------------------------------------------------------------------


def drawn(board, console):
    with console.capture() as caught:
        console.print(board.render())
    return [line.rstrip() for line in caught.get().splitlines()]


def watched(names, height=24, width=80):
    console = Console(file=io.StringIO(), width=width, height=height, force_terminal=True, color_system=None)
    with quiet(False):
        return JobTable(names, console), console


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
    monkeypatch.setattr("tauspan.experiments.sweep.table.Console", lambda stderr: console)
    monkeypatch.setattr("tauspan.experiments.sweep.table.on_terminal", lambda: True)
    with quiet(False):
        sweep(jobs_of("double", {"number": 1}), tmp_path)
    assert "1 jobs: 1 done" in console.file.getvalue()


def test_without_a_terminal_there_are_lines_in_the_log(tmp_path, caplog, capsys):
    caplog.set_level("INFO", "tauspan.experiments.sweep")
    jobs = jobs_of("double", {"number": 1})
    sweep(jobs, tmp_path)
    sweep(jobs, tmp_path)
    lines = [record.getMessage() for record in caplog.records]
    assert lines[0].startswith("j0: running (")
    assert lines[1].startswith("j0: done (")
    assert lines[2].startswith("j0: reused, ")
    assert capsys.readouterr() == ("", "")
