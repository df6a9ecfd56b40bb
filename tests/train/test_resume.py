import dataclasses
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.interrupting import interrupt
from helpers.runs import REGIMES, deltas, encoder, logged, network, points, script_environment, trained
from helpers.tiny import same_bits
from tauspan import store
from tauspan.core.errors import StoreError
from tauspan.models import Encoder
from tauspan.models.encoder import Inputs
from tauspan.tasks import Task
from tauspan.train import Settings, loop

LONG = Settings("standard", seed=1, epochs=20, batch_size=8, lr=0.02, weight_decay=0.1, clip=0.1)  # 60 steps
SHORT = dataclasses.replace(LONG, epochs=3)


def stopped_and_resumed(monkeypatch: Any, out: Path, settings: Settings, *where: Any, **options: Any) -> Any:
    """The run that an interrupt ended, taken up again."""
    with monkeypatch.context() as patch:
        interrupt(patch, *where, **options)
        with pytest.raises(KeyboardInterrupt):
            trained(settings, out=out, checkpoint_every=2)
    assert not (out / "vector.safetensors").exists()
    return trained(settings, out=out, resume=True)


def require_equal(run: Any, settings: Settings, out: Path) -> None:
    """The run gave what an uninterrupted one gives: every bit, the history and the log."""
    whole = trained(settings)
    assert same_bits(deltas(run), deltas(whole))
    assert run.history == whole.history
    assert logged(out) == whole.history
    assert sorted(file.name for file in out.iterdir()) == ["log.jsonl", "vector.safetensors"]


# -- interrupted by the user ---------------------------------------------------------------------------------


@pytest.mark.thinned(4)
@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("step", [0, 1, 5, 6])
def test_an_interrupted_run_continues_to_the_same_bits(
    regime: Any, step: int, monkeypatch: Any, tmp_path: Path
) -> None:
    settings = dataclasses.replace(SHORT, regime=regime)
    run = stopped_and_resumed(monkeypatch, tmp_path, settings, loop.Run, "one_step", step)
    require_equal(run, settings, tmp_path)


@pytest.mark.thinned(4)
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize(
    ("owner", "name", "call"),
    [
        (
            torch.optim.AdamW,
            "step",
            4,
        ),  # the parameters are decayed, and then moved, but the step is not counted
        (loop.Run, "_update", 4),
        (loop.Run, "note", 4),
        (loop.Run, "_backward", 4),
        (loop.Run, "validate", 0),
        (loop.Run, "validate", 2),  # the last: nothing is left to train
        (loop.Run, "save", 1),
    ],
)
def test_an_interrupt_anywhere_in_a_step_does_no_harm(
    owner: Any, name: str, call: int, after: bool, monkeypatch: Any, tmp_path: Path
) -> None:
    settings = dataclasses.replace(SHORT, regime="linear", decay_toward="zero")
    run = stopped_and_resumed(monkeypatch, tmp_path, settings, owner, name, call, after=after)
    require_equal(run, settings, tmp_path)


def test_a_run_may_be_interrupted_again_and_again(monkeypatch: Any, tmp_path: Path) -> None:
    for step in (1, 2, 3):
        with monkeypatch.context() as patch:
            interrupt(patch, loop.Run, "one_step", step)
            with pytest.raises(KeyboardInterrupt):
                trained(SHORT, out=tmp_path, resume=True)
    assert [entry["step"] for entry in logged(tmp_path) if entry["split"] == "train"] == [1, 2, 3, 4, 5, 6]
    require_equal(trained(SHORT, out=tmp_path, resume=True), SHORT, tmp_path)


def test_resuming_where_nothing_was_begun_begins(tmp_path: Path) -> None:
    require_equal(trained(SHORT, out=tmp_path / "new", resume=True), SHORT, tmp_path / "new")


# -- killed --------------------------------------------------------------------------------------------------

KILLED = """
import sys, time
from pathlib import Path
from helpers.runs import trained
from tauspan.train import Settings, loop
step = loop.Run.one_step
loop.Run.one_step = lambda *args: time.sleep(0.01) or step(*args)  # so that no kill comes too late
settings = Settings(sys.argv[1], seed=1, epochs=20, batch_size=8, lr=0.02, weight_decay=0.1, clip=0.1)
trained(settings, out=Path(sys.argv[2]), checkpoint_every=1, resume=True)
"""


def lines(folder: Path) -> int:
    return (folder / "log.jsonl").read_text().count("\n") if (folder / "log.jsonl").exists() else 0


def kill_after(entries: int, wait: float, regime: str, out: Path) -> None:
    """Run the script until it has logged so many entries more, and a moment longer; then kill -9."""
    begun = lines(out)
    process = subprocess.Popen([sys.executable, "-c", KILLED, regime, str(out)], env=script_environment())
    try:
        deadline = time.monotonic() + 120
        while lines(out) - begun < entries and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(wait)
        assert process.poll() is None, "the run ended, or failed, before it was killed"
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


@pytest.mark.thinned(2)
@pytest.mark.slow
@pytest.mark.parametrize(("regime", "kills"), [("standard", 2), ("linear", 3)])
def test_a_run_that_was_killed_continues_to_the_same_bits(regime: Any, kills: int, tmp_path: Path) -> None:
    draw, out = random.Random(kills), tmp_path / "run"
    for _ in range(kills):
        kill_after(draw.randint(1, 12), draw.uniform(0, 0.02), regime, out)
        assert not (out / "vector.safetensors").exists()
        if (out / "checkpoint.safetensors").exists():
            store.Checkpoint(out / "checkpoint.safetensors").read()  # whole, whenever the kill came
    settings = dataclasses.replace(LONG, regime=regime)
    trained(settings, out=out, resume=True)
    trained(settings, out=tmp_path / "whole")
    first, second = (store.Checkpoint(path / "vector.safetensors") for path in (out, tmp_path / "whole"))
    assert same_bits(first.read(), second.read())
    assert logged(out) == logged(tmp_path / "whole")
    assert not (out / "checkpoint.safetensors").exists()


# -- what is reused, and what is refused ---------------------------------------------------------------------


def leave_unfinished(monkeypatch: Any, out: Path) -> None:
    with monkeypatch.context() as patch:
        interrupt(patch, loop.Run, "one_step", 3)
        with pytest.raises(KeyboardInterrupt):
            trained(SHORT, out=out)


OTHERS: dict[str, tuple[Settings, Task | None, Encoder | None]] = {
    "settings": (dataclasses.replace(SHORT, lr=0.03), None, None),
    "seed": (dataclasses.replace(SHORT, seed=2), None, None),
    "regime": (dataclasses.replace(SHORT, regime="linear"), None, None),
    "base": (SHORT, None, encoder(1)),
    "data": (SHORT, points(23), None),
    "head": (SHORT, points(head=False), None),
    "pooling": (SHORT, None, Encoder(network(), lambda net, batch: net(batch))),
    "logit scale": (SHORT, None, Encoder(network(), logit_scale=10.0)),
    "images": (SHORT, None, Encoder(network(), inputs=Inputs("image"))),
}


@pytest.mark.parametrize("other", OTHERS)
def test_a_checkpoint_of_another_run_is_refused_and_kept(
    other: str, monkeypatch: Any, tmp_path: Path
) -> None:
    leave_unfinished(monkeypatch, tmp_path)
    settings, task, model = OTHERS[other]
    before = (tmp_path / "log.jsonl").read_text()
    with pytest.raises(StoreError, match="other settings, another base or other data"):
        trained(settings, task, model, out=tmp_path, resume=True)
    assert (tmp_path / "log.jsonl").read_text() == before
    require_equal(trained(SHORT, out=tmp_path, resume=True), SHORT, tmp_path)


def test_a_damaged_checkpoint_is_refused(monkeypatch: Any, tmp_path: Path) -> None:
    leave_unfinished(monkeypatch, tmp_path)
    file = tmp_path / "checkpoint.safetensors"
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(StoreError, match="cut short or damaged"):
        trained(SHORT, out=tmp_path, resume=True)
    store.write_tensors(file, {"parameter/0.weight": torch.ones(1)}, {"tauspan": "{}"})
    with pytest.raises(StoreError, match="not a checkpoint of this version"):
        trained(SHORT, out=tmp_path, resume=True)


def test_an_unfinished_run_is_not_begun_anew_without_being_told(monkeypatch: Any, tmp_path: Path) -> None:
    leave_unfinished(monkeypatch, tmp_path)
    with pytest.raises(StoreError, match=r"unfinished run\..*Continue it with resume"):
        trained(SHORT, out=tmp_path)


def test_a_finished_run_is_reused_only_when_asked(monkeypatch: Any, tmp_path: Path) -> None:
    first = trained(SHORT, out=tmp_path)
    written = (tmp_path / "vector.safetensors").stat().st_mtime_ns
    interrupt(monkeypatch, loop.Run, "one_step", 0)  # not a step is made
    again = trained(SHORT, out=tmp_path, resume=True)
    assert (first.reused, again.reused) == (False, True)
    assert same_bits(deltas(first), deltas(again))
    assert again.history == first.history
    with pytest.raises(StoreError, match="already there"):
        trained(SHORT, out=tmp_path)
    assert (tmp_path / "vector.safetensors").stat().st_mtime_ns == written


@pytest.mark.parametrize("other", OTHERS)
def test_a_finished_run_of_another_kind_is_not_reused(other: str, tmp_path: Path) -> None:
    trained(SHORT, out=tmp_path)
    settings, task, model = OTHERS[other]
    with pytest.raises(StoreError, match="other settings, another base or other data"):
        trained(settings, task, model, out=tmp_path, resume=True)
