"""The profile of a merge counts each second once, under its own kind, and the merge is the same to the bit."""

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks import merge_inputs, merge_profile
from benchmarks.merge_stopwatch import KINDS, PLACES, Stopwatch, merged

from tauspan import store
from tauspan.merge import merge_files


def test_work_inside_other_work_counts_for_itself_alone() -> None:
    now = [0.0]
    watch = Stopwatch(lambda: now[0])

    def spend(seconds: float) -> None:
        now[0] += seconds

    def outer() -> None:
        spend(1.0)
        watch.timed("inner", spend)(5.0)
        spend(2.0)
        watch.timed("outer", spend)(10.0)

    watch.timed("outer", outer)()
    assert dict(watch.taken) == {"inner": 5.0, "outer": 13.0}
    with pytest.raises(TypeError):
        watch.timed("failed", spend)("no number")
    assert watch.taken["failed"] == 0.0
    other = threading.Thread(target=watch.timed("inner", spend), args=(1.0,))
    other.start()
    other.join()
    assert watch.taken["inner"] == 6.0


@pytest.mark.parametrize("method", ["task_arithmetic", "ties of each tensor", "ties of the whole model"])
def test_a_watched_merge_has_the_same_bits_and_leaves_nothing_behind(tmp_path: Path, method: str) -> None:
    files = [tmp_path / f"{name}.safetensors" for name in ("base", "one", "two")]
    base = torch.randn(300, 40, generator=torch.Generator().manual_seed(0))
    for seed, file in enumerate(files):
        near = base + 0.1 * seed * torch.randn(300, 40, generator=torch.Generator().manual_seed(seed))
        store.write_tensors(file, {"w": near.bfloat16()})
    recipe: Any = {"method": "ties", "base_model": str(files[0]), "models": [str(file) for file in files[1:]]}
    if not method.endswith("model"):  # mergekit's TIES looks at each tensor
        name = method.partition(" ")[0]
        each = {"weight": 0.5, **({"density": 0.5} if name == "ties" else {})}
        recipe = merge_inputs.recipe(tmp_path / "r.yaml", name, files, each)
    before = [getattr(place, name) for place, name, _ in PLACES]
    plain = merge_files(recipe, tmp_path / "plain", workers=1)
    taken = merged(recipe, tmp_path / "watched", 1)
    assert [getattr(place, name) for place, name, _ in PLACES] == before
    assert merge_files(recipe, tmp_path / "watched", workers=1, resume=True).digest == plain.digest
    assert set(taken) == set(KINDS) - {"starting", "other"}
    assert all(seconds > 0 for seconds in taken.values())


def test_shares_are_of_the_whole_process_and_the_largest_comes_first() -> None:
    runs = [
        {"reading": 1.0, "writing": 2.0, "other": 1.0, "whole": 4.0},
        {"reading": 1.0, "writing": 8.0, "whole": 10.0},
    ]
    rows = merge_profile.shares("ties", runs, "small")
    assert rows[0].note == "small"
    assert [row.what for row in rows[:3]] == [
        "ties: whole process, one thread", "ties: writing", "ties: writing, share",
    ]  # fmt: skip
    by = {row.what: row for row in rows}
    assert (by["ties: writing, share"].low, by["ties: writing, share"].high) == (0.5, 0.8)
    assert by["ties: other"].low == 0.0
    (row,) = merge_profile.saved("ties", runs, [{"whole": 2.0}, {"whole": 10.0}], 2)
    assert (row.what, row.low, row.high) == ("ties: time of 2 threads / one", 0.5, 1.0)
