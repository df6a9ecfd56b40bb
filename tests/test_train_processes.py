import dataclasses
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import runs
from runs import REGIMES, deltas, encoder, logged, points, script_environment, trained
from tauspan import params, store
from tauspan.models import Encoder
from tauspan.processes import World, world
from tauspan.tasks import Task
from tauspan.train import Settings

TEXTS = Settings("linear", seed=1, epochs=3, batch_size=5, accumulation=2, lr=1e-3, weight_decay=0.1)
POINTS = Settings("linear", seed=1, epochs=3, batch_size=3, accumulation=2, lr=0.02)  # 22 rows end in 3 + 1
TWO = """
import os, sys
from pathlib import Path
import torch
import torch.distributed as dist
import runs, test_train_processes as here
from tauspan.errors import MismatchError
from tauspan.processes import world
assert os.environ["WORLD_SIZE"] == "2"
for name, (settings, task, model) in here.shared(Path(sys.argv[1])).items():
    out = Path(sys.argv[1]) / name
    run = runs.trained(settings, task, model, out=out, checkpoint_every=2)
    assert not dist.is_initialized(), "the group of a run ends with it"
    assert runs.trained(settings, task, model, out=out, resume=True).reused
for name, (settings, task, model) in here.differing(int(os.environ["RANK"])).items():
    said = Path(sys.argv[1]) / f"{name}-{os.environ['RANK']}.txt"
    try:
        runs.trained(settings, task, model)
        said.write_text("nothing")
    except MismatchError as error:
        said.write_text(str(error))
with world() as processes:
    mixed = [torch.ones(2), torch.ones((), dtype=torch.float64), torch.full((1, 2), processes.rank + 1.0)]
    processes.sum(mixed)
    assert [t.tolist() for t in mixed] == [[2, 2], 2, [[3, 3]]]
"""


def shared(folder: Path) -> dict[str, tuple[Settings, Task, Encoder]]:
    """The runs that are made by one process and by two."""
    texts, bert = runs.texts(), runs.bert(folder / f"bert-{os.environ.get('RANK', 'alone')}")
    wide = runs.bert(folder / f"wide-{os.environ.get('RANK', 'alone')}").double()
    return {
        f"{kind}-{regime}": (dataclasses.replace(settings, regime=regime), task, model)
        for kind, settings, task, model in (
            ("bert32", TEXTS, texts, bert), ("bert64", TEXTS, texts, wide),
            ("mlp64", POINTS, points(), encoder()),
            ("mlp32", POINTS, points(dtype=torch.float32), encoder().float()),
        )
        for regime in REGIMES
    }  # fmt: skip


def differing(rank: int) -> dict[str, tuple[Settings, Task, Encoder]]:
    """Runs that one process was given otherwise than the other."""
    return {
        "base": (POINTS, points(), encoder(rank)),
        "data": (POINTS, points(22 + rank), encoder()),
        "encoder": (POINTS, points(), Encoder(runs.network(), logit_scale=20.0 + rank)),
        "settings": (dataclasses.replace(POINTS, lr=0.25 * (rank + 1)), points(), encoder()),
        "several": (dataclasses.replace(POINTS, seed=rank), points(22 + rank), encoder()),
    }


@pytest.fixture(scope="module")
def together(tmp_path_factory: Any) -> Path:
    """A folder with the vectors that two processes made."""
    folder: Path = tmp_path_factory.mktemp("two")
    (folder / "script.py").write_text(TWO)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", port]
    command = [sys.executable, *launcher, str(folder / "script.py"), str(folder)]
    done = subprocess.run(command, env=script_environment(), capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("kind", ["bert32", "bert64", "mlp32", "mlp64"])
def test_two_processes_learn_what_one_learns(kind: str, regime: str, together: Path, tmp_path: Path) -> None:
    settings, task, model = shared(tmp_path)[f"{kind}-{regime}"]
    one = trained(settings, task, model)
    two = store.Checkpoint(together / f"{kind}-{regime}" / "vector.safetensors").read()
    gaps = {name: delta - two[name] for name, delta in deltas(one).items()}
    if kind == "bert32":
        # softmax does not see these; their gradient is rounding noise, and Adam makes whole steps of noise
        unseen = {name: gaps.pop(name) for name in list(gaps) if name.endswith("key.bias")}
        assert params.norm(unseen) <= 1e-2 * one.task_vector.norm()
    assert params.norm(gaps) <= (1e-5 if kind.endswith("32") else 1e-11) * one.task_vector.norm()
    history = logged(together / f"{kind}-{regime}")
    assert [entry["loss"] for entry in history] == pytest.approx([e["loss"] for e in one.history], rel=1e-5)


DISAGREE = r"the 2 processes of one run disagree about "
VALUES = r"\([0-9a-f]{12} in process 0, [0-9a-f]{12} in process 1\)"


@pytest.mark.parametrize(
    ("what", "words"),
    {
        "base": f"the base's fingerprint {VALUES}",
        "data": f"the task's checksum {VALUES}",
        "encoder": r"the encoder \(\S+\|20\.0\|'tensor' in process 0, \S+\|21\.0\|'tensor' in process 1\)",
        "settings": r"lr \(0\.25 in process 0, 0\.5 in process 1\)",
        "several": rf"seed \(0 in process 0, 1 in process 1\); the task's checksum {VALUES}",
    }.items(),
)
def test_processes_that_disagree_all_say_so_alike(what: str, words: str, together: Path) -> None:
    said = [(together / f"{what}-{rank}.txt").read_text() for rank in range(2)]
    assert said[0] == said[1]
    assert re.fullmatch(
        DISAGREE + words + r"\. Start all of them with the same settings, model and data\.", said[0]
    )


def test_without_a_launcher_there_is_one_process() -> None:
    tensor = torch.ones(2)
    with world() as alone:
        alone.sum([tensor])
        alone.wait()
        alone.require_same({"seed": "1"})
    assert (alone, alone.first) == (World(0, 1), True)
    assert tensor.tolist() == [1, 1]
