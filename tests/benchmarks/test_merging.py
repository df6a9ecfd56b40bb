"""The merge benchmark measures what it says: files, recipes, memory of processes, ratios. Never seconds."""

import json
import sys
from math import prod

import pytest
import torch
from benchmarks import merge_correctness, merge_inputs, merge_programs, merging
from benchmarks.merge_programs import Bench, Watched

from tauspan.core.report import Report, Table
from tauspan.merge import read_recipe
from tauspan.merge.sources.opening import open_source
from tauspan.store import Checkpoint


def test_twice_the_width_makes_four_times_the_entries():
    one, two = (
        sum(prod(shape) for shape in merge_inputs.shapes(width).values() if len(shape) > 1)
        for width in (1024, 2048)
    )
    assert one == pytest.approx(271e6, rel=0.01)
    assert two == 4 * one


def test_checkpoints_are_made_once_and_differ_a_little(tmp_path, monkeypatch):
    monkeypatch.setattr(merge_inputs, "_POOL", 1 << 16)
    files = merge_inputs.checkpoints(tmp_path, 64, 2)
    base, one, two = (Checkpoint(file).read() for file in files)
    assert {name: tuple(tensor.shape) for name, tensor in base.items()} == merge_inputs.shapes(64)
    name = "model.layers.3.mlp.up_proj.weight"
    moved = (one[name].float() - base[name].float()).std()
    assert base[name].dtype == torch.bfloat16
    assert moved == pytest.approx(merge_inputs._MOVED, rel=0.1)
    assert not torch.equal(one[name], two[name])
    before = [file.stat().st_mtime_ns for file in files]
    assert [file.stat().st_mtime_ns for file in merge_inputs.checkpoints(tmp_path, 64, 2)] == before


def test_headers_without_data_are_whole_and_take_no_room(tmp_path):
    models = merge_inputs.headers(tmp_path, 6 * 10**10, 2)
    files = [file for model in models for file in model.glob("*.safetensors")]
    assert sum(file.stat().st_size for file in files) == pytest.approx(6 * 10**10, rel=0.1)
    assert sum(file.stat().st_blocks * 512 for file in files) < 10**6
    source = open_source(models[0])
    index = json.loads((models[0] / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(stored.nbytes for stored in source.tensors.values())
    assert source.kind == "point"


def test_sharded_models_have_about_the_size_that_was_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(merge_inputs, "_POOL", 1 << 10)
    made = {}
    monkeypatch.setattr(merge_inputs, "write", lambda file, tensors: made.update({file: None}))
    monkeypatch.setattr(merge_inputs, "values", lambda part, model: iter([("w", torch.ones(1))]))
    directories = merge_inputs.sharded(tmp_path, 3 * 10**9, 1)
    index = json.loads((directories[1] / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == pytest.approx(3 * 10**9, rel=0.15)
    assert {directories[1] / file for file in index["weight_map"].values()} <= set(made)
    merge_inputs.sharded(tmp_path, 3 * 10**9, 1)


def test_recipes_are_read_by_ours(tmp_path):
    files = [tmp_path / "base.safetensors", tmp_path / "one.safetensors"]
    methods = Bench(tmp_path, None, 1, densities=(0.2, 0.75)).methods()
    assert list(methods) == ["task_arithmetic", "ties, density 0.2", "ties, density 0.75"]
    for method, each in methods.values():
        recipe = read_recipe(merge_inputs.recipe(tmp_path / "r.yaml", method, files, each))
        assert recipe.base_model == str(files[0])
        assert [one.model for one in recipe.models] == [str(files[1])]


def test_the_memory_of_a_process_and_its_children_is_seen():
    grows = "import time; x = bytearray(80_000_000); time.sleep(0.3)"
    child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {grows!r}], check=True)"
    small = merge_programs.watched([sys.executable, "-c", "import time; time.sleep(0.1)"])
    assert 0 < small.memory < 0.05
    assert merge_programs.watched([sys.executable, "-c", child]).memory > 0.08
    assert merge_programs.anonymous(2**30) == 0
    sleeps = [sys.executable, "-c", "import time; time.sleep(0.5)"]
    assert merge_programs.watched(sleeps).seconds > merge_programs.watched(sleeps, "cpu").seconds
    with pytest.raises(RuntimeError, match="no luck"):
        merge_programs.watched([sys.executable, "-c", "raise SystemExit('no luck')"])


def test_ratios_are_formed_round_by_round_and_the_right_way_up():
    taken = {
        "ours, task_arithmetic": [Watched(2.0, 0.25), Watched(4.0, 0.3), Watched(3.0, 0.75)],
        "mergekit, task_arithmetic": [Watched(8.0, 1.0), Watched(8.0, 1.0), Watched(3.0, 1.0)],
        "cp, as many bytes": [Watched(1.0, 0.0), Watched(4.0, 0.0), Watched(4.5, 0.0)],
    }
    ratio, copies = merging._ratios(taken)[0], merging._copies(taken)[0]
    assert (ratio.value, ratio.low, ratio.high, ratio.goal, ratio.met) == (0.5, 0.25, 1.0, 0.4, False)
    assert (copies.value, copies.low, copies.high, copies.goal, copies.met) == (1.0, 0.5, 1.5, 0.7, True)
    memory = merging._memory(taken, "base + 4")
    assert [(row.value, row.goal, row.met) for row in memory] == [(0.3, 0.5, True), (1.0, None, None)]
    assert {row.unit for row in merging._times(taken)} == {"s"}


def test_plans_of_many_models_have_rows_and_only_merges_a_ratio():
    taken = {
        "cat and cp": [Watched(2.0, 0.0), Watched(4.0, 0.0)],
        "plan, ties, density 0.5": [Watched(1.0, 0.1), Watched(5.0, 0.1)],
        "ours, ties, density 0.5": [Watched(4.0, 0.9), Watched(10.0, 1.2)],
    }
    seconds, plan, whole, ratio = merging._many(taken, "20 GB")
    assert (seconds.what, seconds.value, seconds.goal) == ("cat and cp, ten models", 3.0, None)
    assert (plan.value, plan.goal, plan.met, plan.unit) == (3.0, 3.0, True, "s")
    assert (whole.value, whole.goal) == (7.0, None)
    assert (ratio.value, ratio.low, ratio.high, ratio.goal, ratio.note) == (2.25, 2.0, 2.5, 2.5, "20 GB")
    (memory,) = merging._memory(taken, "ten models", merging.GOALS["many, memory"])
    assert (memory.value, memory.goal, memory.met) == (1.05, 1.0, False)


def test_a_part_that_is_kept_leaves_the_rows_of_other_parts(tmp_path):
    def measured(value, *parts):
        tables = [Table(part, [{"what": part, "value": value}]) for part in parts]
        return Report("merging", tables, {part: {"commit": f"c{value}"} for part in parts})

    merging.keep(measured(1, "planning", "speed"), tmp_path)
    file = merging.keep(measured(2, "planning", "correctness"), tmp_path)
    found = Report.from_json(file.read_text())
    assert [(table.title, table.rows[0]["value"]) for table in found.tables] == [
        ("speed", 1), ("planning", 2), ("correctness", 2),
    ]  # fmt: skip
    assert found.provenance == {part: {"commit": f"c{value}"} for part, value in
                                (("speed", 1), ("planning", 2), ("correctness", 2))}  # fmt: skip
    shown = file.with_suffix(".md").read_text()
    assert "| speed | 1 |" in shown
    assert "| planning | 2 |" in shown


def test_a_difference_is_relative_to_the_largest_displacement():
    base, theirs = {"w": torch.tensor([1.0, 1.0])}, {"w": torch.tensor([3.0, 1.0])}
    mine = {"w": torch.tensor([3.0, 1.5])}
    assert merge_correctness._difference(mine, theirs, base) == (0.25, 0.5 / 3)
    assert merge_correctness._difference(theirs, theirs, None) == (0.0, 0.0)
    rows = [
        merge_correctness._shown("m", "x", "", size, "other masks") for size in (None, (1, 1e-7), (1, 1e-5))
    ]
    assert [row["explanation"] for row in rows] == ["other masks", "rounding of float32", "other masks"]
    with pytest.raises(RuntimeError, match="--mergekit"):
        merge_correctness.correctness(None, None)
