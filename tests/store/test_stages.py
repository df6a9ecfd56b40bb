"""The store of stages: once under a key, one process at a time, and taken over from another folder whole."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, make_dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tauspan.core.measure import Cost
from tauspan.core.records import LIVE
from tauspan.core.report import Report
from tauspan.core.results import Result
from tauspan.store.stages import DeadlineError, Stages


def test_a_stage_is_done_once_under_a_key(tmp_path: Path) -> None:
    calls: list[int] = []

    def work() -> dict[str, int]:
        calls.append(1)
        return {"n": len(calls)}

    for key, n, reused in (("a", 1, False), ("a", 1, True), ("b", 2, False), ("a", 3, False)):
        stage = Stages(tmp_path).do("linear", "count", "one", key, work)
        assert (stage.content, stage.reused) == ({"n": n}, reused)
    entry = json.loads((tmp_path / "one.json").read_text())
    assert set(entry) == {"key", "cost", "content", "warnings"}


def test_a_stage_without_the_file_that_it_makes_is_not_finished(tmp_path: Path) -> None:
    stages, made = Stages(tmp_path / "stages"), tmp_path / "vector"
    stages.do("", "make", "one", 0, lambda: {"n": made.write_text("v")}, made)
    assert stages.finished("one", 0, made)
    assert not stages.finished("one", 1, made)
    made.unlink()
    assert not stages.finished("one", 0, made)
    assert stages.exists("one")


def test_after_the_deadline_only_finished_stages_are_read(tmp_path: Path) -> None:
    Stages(tmp_path).do("", "count", "one", 0, lambda: {"n": 1})
    late = Stages(tmp_path, deadline=0.0)
    assert late.do("", "count", "one", 0, lambda: {"n": 2}).content == {"n": 1}
    with pytest.raises(DeadlineError, match="two"):
        late.do("", "count", "two", 0, lambda: {"n": 2})
    assert not late.exists("two")
    assert late.new == 0


def test_a_lock_is_held_by_one(tmp_path: Path) -> None:
    stages = Stages(tmp_path, "logs/.{}.lock")
    held = stages.lock("one")
    assert held is not None
    assert stages.lock_file("one") == tmp_path / "logs" / ".one.lock"
    assert stages.lock("one") is None
    held.close()
    again = stages.lock("one")
    assert again is not None
    again.close()


def test_a_finished_stage_is_taken_over_with_what_it_made(tmp_path: Path) -> None:
    trial, run = Stages(tmp_path / "trial" / "stages"), Stages(tmp_path / "run" / "stages")
    source, target = tmp_path / "trial" / "vector", tmp_path / "run" / "vectors" / "one"
    source.mkdir(parents=True)
    for name in ("log.jsonl", "vector.safetensors"):
        (source / name).write_text(name)
    trial.write("one", "key", {"n": 1}, Cost(2.0), ["a warning"])
    run.adopt(trial, "one", source, target)
    assert (target / "vector.safetensors").samefile(source / "vector.safetensors")
    assert {file.name for file in target.iterdir()} == {"log.jsonl", "vector.safetensors"}
    stage = run.do("", "fine-tune", "one", "key", lambda: {"n": 2}, target / "vector.safetensors")
    assert (stage.content, stage.cost.seconds, stage.warnings) == ({"n": 1}, 2.0, ("a warning",))


@dataclass(frozen=True, kw_only=True)
class Measured(Result):
    shares: Mapping[float, float]
    model: object = field(metadata=LIVE)

    def report(self) -> Report:
        return Report("r", [])


def test_a_result_comes_back_as_it_was(tmp_path: Path) -> None:
    made = Measured(shares={0.1: 1 / 3}, model=print, warnings=["one"])
    for _ in range(2):
        found = Stages(tmp_path).result(Measured, "", "add", "one", 0, lambda: made, model=print)
        assert found == made
    assert "print" not in (tmp_path / "one.json").read_text()


def test_a_result_that_was_kept_with_other_fields_is_made_again(tmp_path: Path) -> None:
    """Code that has changed since finds no fields missing, however deep they lie."""
    for names in (["x"], ["x", "y"]):
        inner = make_dataclass("Inner", [(name, float) for name in names], frozen=True)
        rows: Any = tuple[inner, ...]  # type: ignore[valid-type]
        kept: Any = make_dataclass("Kept", [("rows", rows)], bases=(Measured,), frozen=True, kw_only=True)
        made = partial(kept, shares={}, model=print, rows=(inner(*range(len(names))),))
        found = Stages(tmp_path).result(kept, "", "add", "one", 0, made, model=print)
        assert found.rows == made().rows
