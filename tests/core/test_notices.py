"""Warnings of ours: printed by the program in a line, heard for reports, kept over stages and workers."""

import json
import logging
import warnings
from pathlib import Path
from typing import Any

import pytest

from tauspan.core.notices import heard, once, program, tell
from tauspan.core.report import WARNINGS, Report, Table, noted
from tauspan.store.stages import Stages

LOG = logging.getLogger("tauspan.somewhere")


def ours(text: str) -> None:
    """A Python warning as a module of the package raises it; `stacklevel` points at its caller, as there."""
    code = compile("def raised():\n    warnings.warn(text, RuntimeWarning, stacklevel=3)", "ours.py", "exec")
    space: dict[str, Any] = {"__name__": "tauspan.tangent.somewhere", "warnings": warnings, "text": text}
    exec(code, space)
    space["raised"]()


@pytest.mark.filterwarnings("always::RuntimeWarning")
def test_records_and_python_warnings_of_ours_are_heard_once_each_and_others_are_not() -> None:
    with warnings.catch_warnings(record=True) as shown, heard() as outer, heard() as inner:
        warnings.simplefilter("always")
        LOG.warning("the %s was\nlet pass", "pooler")
        LOG.info("not a warning")
        ours("falls back")
        ours("falls back")
        warnings.warn("somebody else's", RuntimeWarning, stacklevel=1)
        logging.getLogger("transformers").warning("theirs")
        tell("told")
    assert inner == outer == ["the pooler was let pass", "falls back", "told"]
    assert [str(one.message) for one in shown] == [
        "falls back",
        "falls back",
        "somebody else's",
    ]  # all are still shown
    with heard() as later:
        pass
    assert later == []


def test_hearing_ends_with_an_error_too() -> None:
    before = list(logging.getLogger("tauspan").handlers), warnings.showwarning
    with pytest.raises(KeyError), heard():
        raise KeyError
    assert (list(logging.getLogger("tauspan").handlers), warnings.showwarning) == before


@pytest.mark.parametrize("verbose", [False, True])
def test_the_program_prints_ours_in_a_line_and_others_only_when_asked(
    verbose: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    with warnings.catch_warnings(record=True) as others, program(verbose):
        warnings.simplefilter("always")
        ours("falls\nback")
        LOG.warning("let pass")
        LOG.info("being done")
        warnings.warn("somebody else's", FutureWarning, stacklevel=1)
        logging.getLogger("transformers.models").warning("chatter")
    told = capsys.readouterr().err.splitlines()
    assert told[:2] == ["tauspan: warning: falls back", "tauspan: warning: let pass"]
    assert ("being done" in told) is verbose
    assert len(others) == verbose


@pytest.mark.parametrize("verbose", [False, True])
def test_verbose_is_about_the_loggers_of_tauspan_alone(verbose: bool) -> None:
    others = logging.getLogger("transformers.models"), logging.getLogger("another")
    before = logging.getLogger().level, logging.getLogger("tauspan").level
    with program(verbose):
        assert LOG.isEnabledFor(logging.INFO) is verbose
        assert LOG.isEnabledFor(logging.WARNING)
        assert not any(one.isEnabledFor(logging.INFO) for one in others)
        assert all(one.level == logging.NOTSET for one in others)
        assert not verbose or logging.getLogger().level == before[0]
    assert (logging.getLogger().level, logging.getLogger("tauspan").level) == before


def test_once_keeps_the_order() -> None:
    assert once(["b", "a"], ("a", "c")) == ("b", "a", "c")


# -- in reports ----------------------------------------------------------------------------------------------


@noted
def measured(text: str | None) -> Report:
    if text:
        LOG.warning("%s", text)
    return Report("r", [Table("t", [{"a": 1}])], warnings=("known",))


def test_a_report_has_what_its_work_warned_of_in_every_form() -> None:
    report = measured("the head was left out")
    assert report.warnings == ("known", "the head was left out")
    assert json.loads(report.to_json())["warnings"] == ["known", "the head was left out"]
    assert f"## {WARNINGS}\n\n- known\n- the head was left out\n" in report.to_markdown()
    assert Report.from_json(report.to_json()).warnings == report.warnings
    assert WARNINGS not in Report("quiet", []).to_markdown()
    old = json.loads(Report("old", []).to_json())
    del old["warnings"]  # as earlier versions wrote them
    assert Report.from_json(json.dumps(old)).warnings == ()


def test_a_stage_keeps_its_warnings_for_later_runs(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def work() -> dict[str, Any]:
        LOG.warning("a layer was left out")
        return {"n": 1}

    for reused in (False, True):
        caplog.clear()
        stages = Stages(tmp_path)
        for _ in range(2):
            assert stages.do("linear", "add", "add-linear", "key", work).reused is reused
        assert stages.warnings == ("a layer was left out",)
        assert caplog.messages.count("a layer was left out") == 1  # said by each run, once
