import dataclasses
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from helpers import runs
from helpers.launch import launched
from helpers.runs import KEY_BIASES, REGIMES, deltas, encoder, logged, points, trained
from helpers.zoo import normal
from tauspan import models, store
from tauspan.core import params
from tauspan.core.errors import MismatchError
from tauspan.core.processes import World, own_device, world
from tauspan.core.reading import Reading
from tauspan.editing.evaluation import evaluate
from tauspan.editing.model.outputs import outputs
from tauspan.models import Encoder
from tauspan.tangent import linearize
from tauspan.tangent.contributions import contributions
from tauspan.tasks import Task, build_head
from tauspan.tasks.batches import batches
from tauspan.train import Settings
from tauspan.vector import TaskVector

TEXTS = Settings("linear", seed=1, epochs=3, batch_size=5, accumulation=2, lr=1e-3, weight_decay=0.1)
POINTS = Settings("linear", seed=1, epochs=3, batch_size=3, accumulation=2, lr=0.02)  # 22 rows end in 3 + 1


def as_one_of_several(folder: Path) -> None:
    """What each process of a launch does for this file."""
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    for name, (settings, task, model) in shared(folder).items():
        run = trained(settings, task, model, out=folder / name, checkpoint_every=2)
        assert not dist.is_initialized(), "the group of a run ends with it"
        assert trained(settings, task, model, out=folder / name, resume=True).reused
        assert run.history
    for name, (settings, task, model) in differing(rank).items():
        with pytest.raises(MismatchError) as caught:
            trained(settings, task, model)
        (folder / f"{name}-{rank}.txt").write_text(str(caught.value))
    with world() as processes:
        store.write_tensors(folder / f"measured-{rank}.safetensors", measured())
        mixed = [torch.ones(2), torch.ones((), dtype=torch.float64), torch.full((1, 2), rank + 1.0)]
        processes.sum(mixed)
        assert [t.tolist() for t in mixed] == [[size, size], size, [[sum(range(1, size + 1))] * 2]]
        assert processes.gathered([rank] * rank) == [one for one in range(size) for _ in range(one)]
        with pytest.raises(MismatchError) as caught:
            measured(rows=4 * min(rank, 1) + 4)
        (folder / f"batches-{rank}.txt").write_text(str(caught.value))
    assert (own_device("cuda"), own_device("cuda:7"), own_device("cpu")) == (f"cuda:{rank}", "cuda:7", "cpu")


def measured(rows: int = 10) -> dict[str, Tensor]:
    """What evaluation and contributions find, in batches of four rows."""
    model, task = encoder(), points()
    names = models.named_unique(model.backbone)
    taus = {
        kind: TaskVector(
            {name: normal(*tensor.shape, seed=seed) for name, tensor in names.items()},
            models.fingerprint_of(model), kind, kind,
        )
        for seed, kind in enumerate(REGIMES, 1)
    }  # fmt: skip
    classifier = models.Classifier(model, build_head(task, model))
    prepared = batches(model, task.split("test").take(range(rows)), None, 4)
    found = contributions(linearize(classifier), taus, prepared, task.split("test").labels[:rows])
    tensors = {"value": found.value, "tangents": found.tangents, "outputs": outputs(classifier, prepared)}
    for edit, regime in (
        (None, None),
        ("standard", "standard"),
        ("standard", "posthoc"),
        ("linear", "linear"),
    ):
        vector = None if edit is None else taus[edit]
        report = evaluate(
            model,
            [task, task],
            vector,
            0.3,
            regime,
            reading=Reading(batch_size=4),
        ).report()  # type: ignore[arg-type]
        tensors[f"evaluated {regime}"] = torch.tensor(
            [report.result["mean"][key] for key in ("accuracy", "loss")]
        )
    return tensors


def shared(folder: Path) -> dict[str, tuple[Settings, Task, Encoder]]:
    """The runs that are made by one process and by two."""
    whose = os.environ.get("RANK", "alone")
    texts, bert = runs.texts(), runs.bert(folder / f"bert-{whose}")
    wide = runs.bert(folder / f"wide-{whose}").double()
    clip, pictures = runs.clip(folder / f"clip-{whose}")
    return {
        f"{kind}-{regime}": (dataclasses.replace(settings, regime=regime), task, model)
        for kind, settings, task, model in (
            ("bert32", TEXTS, texts, bert), ("bert64", TEXTS, texts, wide),
            ("clip32", TEXTS, pictures, clip), ("mlp64", POINTS, points(), encoder()),
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


@pytest.fixture(
    scope="module", params=[pytest.param(2, marks=pytest.mark.slow), pytest.param(4, marks=pytest.mark.long)]
)
def together(request: Any, tmp_path_factory: Any) -> tuple[Path, int]:
    """A folder with what several processes made, and their number."""
    return launched(tmp_path_factory.getbasetemp(), request.param), request.param


@pytest.fixture(scope="module")
def alone(tmp_path_factory: Any) -> dict[str, tuple[Settings, Task, Encoder]]:
    """The same runs for one process."""
    return shared(tmp_path_factory.mktemp("alone"))


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("kind", ["bert32", "bert64", "clip32", "mlp32", "mlp64"])
def test_several_processes_learn_what_one_learns(
    kind: str, regime: str, together: tuple[Path, int], alone: dict[str, tuple[Settings, Task, Encoder]]
) -> None:
    settings, task, model = alone[f"{kind}-{regime}"]
    one = trained(settings, task, model)
    several = store.Checkpoint(together[0] / f"{kind}-{regime}" / "vector.safetensors").read()
    gaps = {name: delta - several[name] for name, delta in deltas(one).items()}
    if kind in ("bert32", "clip32"):
        # softmax does not see these; their gradient is rounding noise, and Adam makes whole steps of noise
        unseen = {name: gaps.pop(name) for name in list(gaps) if name.endswith(KEY_BIASES)}
        assert params.norm(unseen) <= 2e-2 * one.task_vector.norm()
    assert params.norm(gaps) <= (1e-5 if kind.endswith("32") else 1e-11) * one.task_vector.norm()
    history = logged(together[0] / f"{kind}-{regime}")
    assert [entry["loss"] for entry in history] == pytest.approx([e["loss"] for e in one.history], rel=1e-5)


@pytest.mark.parametrize("kind", ["bert", "clip"])
def test_the_gradient_of_key_biases_is_zero(kind: str, tmp_path: Path) -> None:
    """What float32 processes differ in by more than 1e-5 is no part of the vector: exactly, it does not move."""
    model, task = {"bert": lambda: (runs.bert(tmp_path), runs.texts()), "clip": lambda: runs.clip(tmp_path)}[
        kind
    ]()
    classifier = models.Classifier(model, build_head(task, model)).double()
    rows = task.split("train")
    batch = model.encode(rows.inputs)
    logits = classifier(batch.double() if isinstance(batch, Tensor) else batch)
    torch.nn.functional.cross_entropy(logits, rows.labels).backward()  # type: ignore[no-untyped-call]
    found = {n: p.grad for n, p in model.backbone.named_parameters() if p.grad is not None}
    unseen = {name: gradient for name, gradient in found.items() if name.endswith(KEY_BIASES)}
    assert unseen
    assert params.norm(unseen) <= 1e-14 * params.norm(found)


def test_several_processes_measure_what_one_measures(together: tuple[Path, int]) -> None:
    folder, size = together
    alone = measured()
    for rank in range(size):
        found = store.Checkpoint(folder / f"measured-{rank}.safetensors").read()
        for name, tensor in alone.items():
            torch.testing.assert_close(found[name], tensor, rtol=1e-12, atol=1e-13)


def test_processes_with_other_batches_all_say_so(together: tuple[Path, int]) -> None:
    said = {(together[0] / f"batches-{rank}.txt").read_text() for rank in range(together[1])}
    assert len(said) == 1
    assert "disagree about the number of batches (1 in process 0, 2 in process 1)" in said.pop()


DISAGREE = r"the \d processes of one run disagree about "
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
def test_processes_that_disagree_all_say_so_alike(what: str, words: str, together: tuple[Path, int]) -> None:
    said = [(together[0] / f"{what}-{rank}.txt").read_text() for rank in range(together[1])]
    assert len(set(said)) == 1
    assert re.fullmatch(
        DISAGREE + words + r"\. Start all of them with the same settings, model and data\.", said[0]
    )


def test_without_a_launcher_there_is_one_process() -> None:
    tensor = torch.ones(2)
    with world() as alone:
        alone.sum([tensor])
        alone.wait()
        alone.require_same({"seed": "1"})
        assert alone.gathered(["x"]) == ["x"]
    assert (alone, alone.first) == (World(0, 1), True)
    assert tensor.tolist() == [1, 1]
