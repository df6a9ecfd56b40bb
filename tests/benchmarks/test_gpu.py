"""The program for one GPU, at toy size on the CPU: it goes on from what is there, and a part that fails is left out."""

import json
from pathlib import Path
from typing import Any

import pytest
from benchmarks import gpu

pytestmark = pytest.mark.slow
TOY = ["--toy", "--device", "cpu", "--seconds", "1000"]


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "LIMIT", 1000)  # a machine with other work to do is slow and not wrong


EVERY = [name for name in gpu.parts() if name != "compiled"]
SOME = [
    "steps-vit-b-32-bfloat16",
    "steps-decoder-1b-float32",
    "attention",
    "kernel",
    "maps",
    "merging",
    "nccl",
]


@pytest.mark.parametrize("names", [SOME, pytest.param(EVERY, marks=pytest.mark.long)], ids=["some", "every"])
def test_parts_are_run_once_and_stand_in_one_table(tmp_path: Path, names: list[str]) -> None:
    found = gpu.main([*TOY, "--out", str(tmp_path), "--only", *names])
    assert {file.stem for file in tmp_path.glob("*.json")} == {*names, "gpu"}
    assert [table.title for table in found.tables] == names
    missing = ", ".join(name for name in gpu.parts() if name not in names)
    assert found.verdict == f"{len(names)} of {len(gpu.parts())} parts; missing: {missing}"
    check(tmp_path, *names)
    before = {name: (tmp_path / f"{name}.json").stat().st_mtime_ns for name in names}
    again = gpu.main([*TOY, "--out", str(tmp_path), "--only", *names])
    assert {name: (tmp_path / f"{name}.json").stat().st_mtime_ns for name in names} == before
    assert [table.rows for table in again.tables] == [table.rows for table in found.tables]
    apart = [row["note"] for row in rows_of(tmp_path, "attention") if row["note"]]
    assert all(float(note.split()[-1]) < 1e-5 for note in apart)


def rows_of(folder: Path, part: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((folder / f"{part}.json").read_text())["rows"]
    return rows


def check(folder: Path, *parts: str) -> None:
    """Rows of one part have names of their own, no goal of full size, and of memory only what is counted."""
    shapes = set()
    for part in parts:
        rows = rows_of(folder, part)
        assert len({row["what"] for row in rows}) == len(rows)
        assert all(row["goal"] is None and row["met"] is None for row in rows)
        assert all(row["value"] > 0 for row in rows if "memory of a step" in row["what"])
        assert all(0.1 < row["value"] < 10 for row in rows if "memory /" in row["what"])
        if part.startswith("steps"):
            shapes |= {row["what"].partition(":")[0] for row in rows}
    known = {"tiny-vision", "tiny-vision-deep", "tiny-decoder"}
    assert shapes == known if set(EVERY) <= set(parts) else shapes <= known


@pytest.mark.long  # the compiler takes minutes beside other work
def test_the_compiled_part_runs(tmp_path: Path) -> None:
    found = gpu.main([*TOY, "--out", str(tmp_path), "--only", "compiled"])
    assert [table.title for table in found.tables] == ["compiled"]
    check(tmp_path, "compiled")


@pytest.mark.long
def test_a_part_that_fails_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = tmp_path / "file"
    broken.touch()  # no folder can be made below it
    found = gpu.main([*TOY, "--out", str(broken / "below"), "--only", "nccl"])
    assert found.verdict.startswith("0 of ")
    assert "nccl is left out" in capsys.readouterr().out
