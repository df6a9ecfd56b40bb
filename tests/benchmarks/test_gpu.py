"""The program for one GPU, at toy size on the CPU: it goes on from what is there, and a part that fails is left out."""

import json
from pathlib import Path

import pytest
from benchmarks import gpu

pytestmark = pytest.mark.slow
TOY = ["--toy", "--device", "cpu"]


def test_parts_are_run_once_and_stand_in_one_table(tmp_path: Path) -> None:
    names = ["steps-vit-b-32-bfloat16", "attention", "kernel", "merging", "nccl"]
    found = gpu.main([*TOY, "--out", str(tmp_path), "--only", *names])
    assert {file.stem for file in tmp_path.glob("*.json")} == {*names, "gpu"}
    assert {table.title for table in found.tables} == set(names)
    assert found.verdict.startswith(f"5 of {len(gpu.parts())} parts; missing: steps-vit-l-14-bfloat16, ")
    before = {name: (tmp_path / f"{name}.json").stat().st_mtime_ns for name in names}
    again = gpu.main([*TOY, "--out", str(tmp_path), "--only", *names])
    assert {name: (tmp_path / f"{name}.json").stat().st_mtime_ns for name in names} == before
    assert [table.rows for table in again.tables] == [table.rows for table in found.tables]
    rows = json.loads((tmp_path / "attention.json").read_text())["rows"]
    assert all(float(row["note"].split()[-1]) < 1e-5 for row in rows if row["note"])


@pytest.mark.long
def test_a_part_that_fails_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = tmp_path / "file"
    broken.touch()  # no folder can be made below it
    found = gpu.main([*TOY, "--out", str(broken / "below"), "--only", "nccl"])
    assert found.verdict.startswith("0 of ")
    assert "nccl is left out" in capsys.readouterr().out
