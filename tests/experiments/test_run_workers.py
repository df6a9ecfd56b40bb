"""A run over several workers, two runs on one folder, a run that is killed: always the same vectors and numbers."""

import dataclasses
import multiprocessing
import random
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.program import contents
from helpers.run_numbers import in_turn, numbers
from helpers.runs import script_environment
from helpers.small_runs import TASKS, reused
from tauspan.core.errors import RecipeError, StoreError, UsageError
from tauspan.core.report import Report
from tauspan.experiments import figures
from tauspan.experiments.run import Merging, Negation, Recipe, References, Training, jobs, run
from tauspan.store.stages import Stages


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "draw", lambda *given: [])


@pytest.fixture(scope="module")
def small(recipe: Recipe) -> Recipe:
    return dataclasses.replace(
        recipe, regimes=("linear",), seeds=(0,),
        finetune=Training(max_steps=2, batch_size=4),
        parts=(Negation(("email_spam",)), References(("joint",)), Merging(("task_arithmetic",), (0.5, 1.0))),
    )  # fmt: skip


@pytest.fixture(scope="module")
def alone(small: Recipe, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    """A run that nothing disturbs."""
    out = tmp_path_factory.mktemp("alone")
    return out, run(small, out)


def vectors(out: Path) -> dict[str, str]:
    return {name: sha for name, sha in contents(out / "vectors").items() if name.endswith(".safetensors")}


# -- workers -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_jobs_leave_what_a_run_in_one_process_leaves(
    small: Recipe, alone: tuple[Path, Report], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    monkeypatch.setattr(jobs, "sweep", in_turn(done))
    report = run(small, tmp_path, workers=2)
    vectors_of = [
        f"finetune-{name}-seed0" for name in (*(f"linear-{task}" for task in TASKS), "joint-standard")
    ]
    measured = ["evaluate-joint", "add-linear", "negate-email_spam-linear", "merge-linear"]
    assert done == [*vectors_of, *(f"{name}-seed0" for name in measured)]
    assert vectors(tmp_path) == vectors(alone[0])
    assert numbers(report) == numbers(alone[1])
    assert reused(report) == reused(alone[1])  # what the workers did was done by this run
    (tmp_path / "vectors" / "linear-email_spam-seed0" / "vector.safetensors").unlink()
    assert reused(run(small, tmp_path, workers=2))["linear", "fine-tune"] == (2, 1)
    assert done[7:] == ["finetune-linear-email_spam-seed0"]
    (tmp_path / "stages" / "merge-linear-seed0.json").unlink()
    assert reused(run(small, tmp_path, workers=2))["linear", "merge"] == (1, 0)
    assert done[8:] == ["merge-linear-seed0"]


@pytest.mark.slow
def test_a_stage_of_another_key_is_measured_anew_without_workers(
    small: Recipe, alone: tuple[Path, Report], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(alone[0], tmp_path, dirs_exist_ok=True)
    monkeypatch.setattr(jobs, "sweep", lambda *given, **options: pytest.fail("nothing is left to do"))
    other = run(
        dataclasses.replace(small, grid=(0.0, 0.25)),
        tmp_path,
        workers=2,
    )
    assert (reused(other)["linear", "fine-tune"], reused(other)["linear", "add"]) == ((2, 2), (1, 0))


@pytest.mark.slow
def test_a_finished_vector_is_no_job(
    small: Recipe, alone: tuple[Path, Report], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "sweep", lambda *given, **options: pytest.fail("nothing is left to do"))
    assert numbers(run(small, alone[0], workers=3)) == numbers(alone[1])


@pytest.mark.thinned(2)
@pytest.mark.slow
@pytest.mark.parametrize("workers", [2, 3])
def test_vectors_are_the_same_bits_however_many_workers_there_are(
    small: Recipe, alone: tuple[Path, Report], tmp_path: Path, workers: int
) -> None:
    report = run(small, tmp_path, workers=workers)
    assert vectors(tmp_path) == vectors(alone[0])
    assert numbers(report) == numbers(alone[1])


@pytest.mark.slow
def test_an_executor_of_yours_carries_the_stages_out(
    small: Recipe, alone: tuple[Path, Report], tmp_path: Path
) -> None:
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as executor:
        report = run(small, tmp_path, workers=2, backend=executor)
    assert vectors(tmp_path) == vectors(alone[0])
    assert numbers(report) == numbers(alone[1])
    assert reused(report) == reused(alone[1])


@pytest.mark.slow
def test_what_a_worker_raises_ends_the_run_as_it_would_without_workers(
    small: Recipe, alone: tuple[Path, Report]
) -> None:
    changed = dataclasses.replace(small, finetune=Training(max_steps=1, batch_size=4))
    with pytest.raises(StoreError, match="other settings, another base or other data"):
        run(changed, alone[0], workers=2)


def test_workers_are_counted(small: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="workers=0: it must be at least 1"):
        run(small, tmp_path, workers=0)
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(UsageError, match="workers=2 in one of 4 processes"):
        run(small, tmp_path, workers=2)
    assert not list(tmp_path.iterdir())


def test_a_recipe_goes_to_a_worker_as_text(small: Recipe) -> None:
    rates = Training(lr_standard=1e-5, warmup=500.0, epochs_by_task={"email_spam": 3})
    whole = dataclasses.replace(small, finetune=rates, data="a folder", title="naïve: 'yes' #1")
    assert Recipe.parse(whole.to_yaml()) == whole
    with pytest.raises(RecipeError, match="epochs_by_task"):
        Recipe.parse(whole.to_yaml().replace("email_spam: 3", "email_spam: three"))


# -- kills and neighbours ------------------------------------------------------------------------------------

SCRIPT = """
import os, signal, sys, traceback
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from tauspan import store
from tauspan.experiments import figures
from tauspan.store import places
from tauspan.experiments.run import Recipe
from tauspan.experiments.run import run

figures.draw = lambda *given: []
recipe, folder, points = Recipe.read(sys.argv[1]), Path(sys.argv[2]), [int(word) for word in sys.argv[3:]]


def child(name, point):
    '''A process that runs the recipe, killed at a write if there is a point.'''
    if process := os.fork():
        return process
    try:
        publish, left = places.publish, [point]

        def counted(*given, **options):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            publish(*given, **options)

        places.publish = counted
        report = run(recipe, folder / name)
        store.write_text(folder / f"{name}-{os.getpid()}.json", report.to_json())
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


for point in points:
    print(os.waitstatus_to_exitcode(os.waitpid(child("killed", point), 0)[1]))
both = [] if points else [child("shared", 0), child("shared", 0)]
for one in both:
    print(os.waitstatus_to_exitcode(os.waitpid(one, 0)[1]))
"""


def scripted(asked: Recipe, folder: Path, *points: int) -> list[str]:
    """How the script's processes ended."""
    (folder / "recipe.yaml").write_text(asked.to_yaml())
    command = [sys.executable, "-c", SCRIPT, str(folder / "recipe.yaml"), str(folder), *map(str, points)]
    threads = str(torch.get_num_threads())  # sums over another number of threads have other last bits
    environment = {**script_environment(), "OMP_NUM_THREADS": threads}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.thinned(2)
@pytest.mark.slow
@pytest.mark.parametrize("kills", [1, 4])
def test_a_run_that_is_killed_at_any_write_goes_on_to_the_same(
    small: Recipe, alone: tuple[Path, Report], tmp_path: Path, kills: int
) -> None:
    points = [random.Random(kills).randint(2, 9)] if kills == 1 else [1, 2, 3, 5]
    assert scripted(small, tmp_path, *points) == ["-9"] * kills
    after = run(small, tmp_path / "killed")
    assert any(count for _, count in reused(after).values())
    assert numbers(after) == numbers(alone[1])
    assert vectors(tmp_path / "killed") == vectors(alone[0])


@pytest.mark.slow
def test_two_runs_at_once_share_the_work(small: Recipe, alone: tuple[Path, Report], tmp_path: Path) -> None:
    assert scripted(small, tmp_path) == ["0", "0"]
    first, second = (Report.from_json(file.read_text()) for file in tmp_path.glob("shared-*.json"))
    assert numbers(first) == numbers(second) == numbers(alone[1])
    assert vectors(tmp_path / "shared") == vectors(alone[0])
    for stage, (count, found) in reused(first).items():
        assert found + reused(second)[stage][1] == count  # each stage was done by one of them


def test_a_lock_that_cannot_be_had_at_once_is_waited_for(tmp_path: Path) -> None:
    begun, ended = threading.Event(), threading.Event()

    def work() -> dict[str, Any]:
        begun.set()
        ended.wait(60)
        return {"who": "other"}

    def other() -> None:
        Stages(tmp_path).do("", "work", "one", 0, work)

    holder = threading.Thread(target=other)
    holder.start()
    assert begun.wait(60)
    threading.Timer(0.2, ended.set).start()
    stage = Stages(tmp_path).do("", "work", "one", 0, lambda: {"who": "this"})
    assert (stage.content, stage.reused) == ({"who": "other"}, True)
    holder.join()
