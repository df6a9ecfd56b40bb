"""How far work is: lines where no terminal is, a bar below a notebook's cell, silence where it was asked for."""

import logging
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from helpers.runs import encoder, points
from helpers.sweeps import jobs_of, quietly, until
from tauspan.core import measure
from tauspan.core.measure import Work, in_hours, progress, quiet, underway
from tauspan.experiments.sweep.table import JobTable
from tauspan.store.stages import Stages
from tauspan.train import Settings, finetune
from tauspan.train.loop import Run


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Lines come at once instead of after seconds."""
    monkeypatch.setattr(measure, "SILENCE", 0.01)
    with quiet(False):
        yield


def wait_for(capfd: pytest.CaptureFixture[str], *words: str) -> str:
    """Wait, with patience, for a line with all the words."""
    seen: list[str] = []

    def told() -> bool:
        seen.extend(capfd.readouterr().err.splitlines())
        return any(all(word in line for word in words) for line in seen)

    until(told, f"a line with {words}; so far {seen}")
    return next(line for line in seen if all(word in line for word in words))


def test_a_line_says_what_is_done_how_far_and_since_when(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    around, work = Work("tauspan demo"), Work("email_spam (linear)", 16)
    assert measure._line([around, work], 103.0) == "[0:00:03] tauspan demo; email_spam (linear): 0 of 16"
    work.advance(0, "")
    now = 140.0
    work.advance(4, "loss 0.612")
    line = measure._line([around, work], 140.0)
    assert line == "[0:00:40] tauspan demo; email_spam (linear): 4 of 16, loss 0.612, about 0:02:00 left"


def test_what_an_earlier_run_did_does_not_count_as_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    work = Work("resumed", 100)
    work.advance(90, "")  # from the checkpoint
    assert work.left(10.0) is None
    now = 10.0
    work.advance(1, "")
    assert work.left(10.0) == 90.0


@pytest.mark.parametrize(
    ("seconds", "words"), [(0, "0:00:00"), (59.9, "0:00:59"), (3723, "1:02:03"), (90000, "25:00:00")]
)
def test_hours(seconds: float, words: str) -> None:
    assert in_hours(seconds) == words


def test_the_silence_is_shorter_than_twenty_seconds() -> None:
    assert measure.SILENCE < 20


def test_work_that_does_not_advance_is_told_of(impatient: None, capfd: pytest.CaptureFixture[str]) -> None:
    with progress("one long step", 3):
        assert wait_for(capfd, "one long step: 0 of 3").startswith("[0:00:")


def test_the_innermost_work_is_told_with_what_is_around_it(
    impatient: None, capfd: pytest.CaptureFixture[str]
) -> None:
    with (
        underway("tauspan run"),
        underway("stages", total=19) as stage,
        progress("add", 21) as advance,
    ):
        stage(4, "")
        advance(7, "alpha 0.3")
        wait_for(capfd, "tauspan run; stages: 4 of 19; add: 7 of 21, alpha 0.3")


def test_nothing_is_told_after_the_end(impatient: None, capfd: pytest.CaptureFixture[str]) -> None:
    before = threading.active_count()
    with progress("first", 1):
        wait_for(capfd, "first: 0 of 1")
    until(lambda: threading.active_count() <= before, "the end of the thread")
    capfd.readouterr()
    time.sleep(0.05)
    assert capfd.readouterr() == ("", "")
    with progress("second", 1):
        wait_for(capfd, "second: 0 of 1")


@pytest.mark.parametrize("begin", [lambda: progress("x", 1, False), lambda: underway("x", False)])
def test_quiet_work_says_nothing(
    begin: Callable[[], Any], impatient: None, capfd: pytest.CaptureFixture[str]
) -> None:
    with begin() as advance:
        advance(1, "")
        time.sleep(0.05)
    assert capfd.readouterr() == ("", "")


def test_where_logging_shows_info_the_lines_go_to_the_log(
    impatient: None, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.INFO, "tauspan")
    with progress("logged", 2):
        until(lambda: any("logged: 0 of 2" in text for text in caplog.messages), "a record")
    assert capfd.readouterr().err == ""


def test_a_reader_that_went_away_does_not_stop_the_work(
    impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Gone:
        tries = 0

        def isatty(self) -> bool:
            return False

        def write(self, text: str) -> None:
            self.tries += 1
            raise BrokenPipeError

    gone = Gone()
    monkeypatch.setattr(sys, "stderr", gone)
    with progress("unread", 1):
        until(lambda: gone.tries > 1, "two tries")


def test_a_fine_tuning_is_told_of(
    impatient: None, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Run.one_step

    def slow(self: Run, epoch: int, place: int) -> float:
        if self.step == 1:
            wait_for(capfd, "points (linear): 1 of 3, loss ")
        return whole(self, epoch, place)

    monkeypatch.setattr(Run, "one_step", slow)
    finetune(encoder(), points(), Settings(epochs=1, batch_size=8, lr=0.01))


def test_a_stage_and_a_sweep_are_told_of(
    impatient: None, capfd: pytest.CaptureFixture[str], tmp_path: Any
) -> None:
    Stages(tmp_path).do("linear", "x", "a-stage", 1, lambda: {"seen": wait_for(capfd, "a-stage")})
    with JobTable(["a", "b", "c"]) as board:
        board.set("a", "running", "1")
        wait_for(capfd, "jobs: 0 of 3, running: a")
        board.set("a", "done", "1")
        board.set("b", "failed", "1")
        wait_for(capfd, "jobs: 2 of 3, 1 failed")


def test_a_worker_tells_its_own_log(tmp_path: Any) -> None:
    """A job's work is told of as any other, and its stderr is its log."""
    quietly(jobs_of("long_work", {"words": "in a worker"}), tmp_path)
    assert "in a worker: 1 of 2" in (tmp_path / "logs" / "j0.log").read_text()


# -- notebooks -----------------------------------------------------------------------------------------------


class Handle:
    def __init__(self, shown: list[str]) -> None:
        self.shown = shown

    def update(self, what: Any) -> None:
        self.shown.append(repr(what))
        assert "<progress value=" in what._repr_html_()


def test_a_notebook_shows_a_bar_below_the_cell(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    shown: list[str] = []

    def display(what: Any, display_id: bool) -> Handle:
        assert display_id
        shown.append(repr(what))
        return Handle(shown)

    kernel = types.SimpleNamespace(kernel=object())
    notebook = types.SimpleNamespace(
        get_ipython=lambda: kernel, display=types.SimpleNamespace(display=display)
    )
    monkeypatch.setitem(sys.modules, "IPython", notebook)  # type: ignore[arg-type]
    with quiet(False), progress("tangents <on> test", 4) as advance:
        advance(1, "")
        advance(3, "alpha 1")
    assert shown[0] == "[0:00:00] tangents <on> test: 0 of 4"
    assert "tangents <on> test: 4 of 4, alpha 1" in shown[-1]
    shown.clear()
    with quiet(), progress("quiet", 4) as advance:
        advance(1, "")
    assert shown == []
    assert capfd.readouterr() == ("", "")


def test_a_terminal_of_ipython_is_no_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: types.SimpleNamespace())
    )  # type: ignore[arg-type]
    assert not measure.in_notebook()
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: None))  # type: ignore[arg-type]
    assert not measure.in_notebook()
