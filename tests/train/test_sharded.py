"""Fine-tuning in shards (FSDP2 on the CPU): the single process's vectors, a share of its memory, one file."""

import dataclasses
import gc
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from benchmarks.peaks import allocated
from torch import Tensor, nn

from helpers import languages, runs
from helpers.launch import launched
from helpers.runs import KEY_BIASES, REGIMES, deltas, encoder, logged, points, trained
from helpers.zoo import normal, stirred
from tauspan import store
from tauspan.core import params
from tauspan.core.errors import ModelError, NonFiniteError, UsageError
from tauspan.core.processes import world
from tauspan.editing import load
from tauspan.models import Encoder, Head, fingerprint_of
from tauspan.tasks import Task
from tauspan.train import Finetuned, Settings, checkpoint, finetune, plan
from tauspan.train.layout import laid_out
from tauspan.train.trainee import as_parameters
from tauspan.vector import FILE, TaskVector

WIDTH, BLOCKS = 128, 30
POINTS = Settings("linear", seed=1, epochs=3, batch_size=3, accumulation=2, lr=0.02)  # 22 rows end in 3 + 1
STACK = dataclasses.replace(POINTS, decay_toward="zero", weight_decay=0.1, max_steps=5)
TEXTS = Settings("linear", seed=1, epochs=2, batch_size=5, accumulation=2, lr=1e-3, weight_decay=0.1)
Run = tuple[Settings, Task, Encoder]


class Scaled(nn.Module):
    """A block with a number among its parameters, which cannot be cut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width, width)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor, *, shift: Tensor) -> Tensor:
        return x + torch.tanh(self.inner(x)) * self.scale + shift


class Stack(nn.Module):
    """Blocks between two layers that share their weight with nobody, and one that is shared with a block's neighbour."""

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.first = nn.Linear(4, width)
        self.blocks = nn.ModuleList(Scaled(width) for _ in range(count))
        self.tied = nn.ModuleList([nn.Linear(width, width, bias=False)])
        self.out = nn.Linear(width, width, bias=False)
        self.out.weight = self.tied[0].weight
        self.unused = nn.ModuleList([nn.Linear(width, 3)])
        self.register_buffer("factor", torch.tensor(0.5))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x) * self.factor
        for block in self.blocks:
            x = block(x, shift=x.mean(-1, keepdim=True))
        out: Tensor = self.out(torch.sin(self.tied[0](x)))
        return out


def stack(width: int = 5, count: int = 3) -> Encoder:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Encoder(stirred(Stack(width, count).double(), 0, 0.4))


def language(folder: Path, kind: str) -> Encoder:
    encoder = load(languages.write(folder, kind), language=24)
    assert isinstance(encoder, Encoder)
    return encoder.double()


def shared(folder: Path) -> dict[str, Run]:
    """The runs that are made whole by one process and in shards by several; an encoder serves several of them."""
    whose = os.environ.get("RANK", "alone")
    bert, (vision, pictures) = runs.bert(folder / f"bert-{whose}"), runs.clip(folder / f"clip-{whose}")
    llama, tied = (language(folder / f"{kind}-{whose}", kind) for kind in ("llama", "llama tied"))
    both: list[tuple[str, Settings, Task, Encoder]] = [
        ("mlp64", POINTS, points(), encoder()),
        ("bert", TEXTS, runs.texts(), bert),
        ("clip", dataclasses.replace(TEXTS, batch_size=4), pictures, vision),
        ("llama", TEXTS, languages.sums(), llama),
        ("tied", TEXTS, languages.sums(), tied),
        ("small", dataclasses.replace(TEXTS, space="lora:2", lr=1e-2), languages.sums(), llama),
        ("stack", STACK, points(), stack()),
    ]  # fmt: skip
    found = {
        f"{kind}-{regime}": (dataclasses.replace(settings, regime=regime), task, model)
        for kind, settings, task, model in both
        for regime in REGIMES
    }
    few = dataclasses.replace(POINTS, params=("blocks.1.*", "tied.*"), max_steps=4, point="encoder")
    found["some-linear"] = (few, points(), both[-1][3])
    return found


def jointly(regime: Any, **options: Any) -> Finetuned:
    """Two tasks at once, of which a process may have rows of one alone in a batch."""
    tasks = [points(), dataclasses.replace(points(9), name="fewer")]
    settings = dataclasses.replace(STACK, regime=regime, batch_size=5, max_steps=None)
    return finetune(stack(), tasks, settings, **options)


def stopped(settings: Settings, task: Task, model: Encoder, out: Path, **options: Any) -> None:
    """Leaves what a run leaves that was killed after four steps."""
    written, kept = checkpoint.save, out.with_suffix(".kept")
    first = os.environ.get("RANK", "0") == "0"

    def save(file: Path, *rest: Any) -> None:
        written(file, *rest)
        if first and json.loads(store.Checkpoint(file).metadata["tauspan"])["step"] == 4:
            shutil.copy(file, kept)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "save", save)
        trained(settings, task, model, out=out, checkpoint_every=2, **options)
    if first:
        (out / FILE).unlink()
        kept.rename(out / checkpoint.NAME)


def before(folder: Path) -> None:
    """What one process does before a launch: it leaves an unfinished run."""
    stopped(dataclasses.replace(STACK, regime="linear"), points(), stack(), folder / "resumed")


def as_one_of_several(folder: Path) -> None:
    """What each process of a launch does for this file."""
    rank, folder = os.environ["RANK"], folder / "shards"
    every = shared(folder)
    for name, (settings, task, model) in every.items():
        before, out = fingerprint_of(model), folder / name
        run = trained(settings, task, model, out=out, checkpoint_every=2, shard=True)
        assert fingerprint_of(model) == before, f"{name}: the encoder is whole again"
        if name.startswith("tied"):
            assert model.language is not None
            table = model.backbone.get_parameter(model.language.tied or "")
            assert table.data_ptr() == model.language.table.weight.data_ptr(), "held once"
        assert trained(settings, task, model, out=out, resume=True).reused
        if name == "mlp64-linear":
            alone = trained(settings, task, model, shard=True)
            assert params.norm({n: d - deltas(run)[n] for n, d in deltas(alone).items()}) == 0
    for regime in REGIMES:
        jointly(regime, out=folder / f"joint-{regime}", shard=True)
    settings, task, model = every["stack-linear"]
    resumed = trained(settings, task, model, out=folder.parent / "resumed", resume=True, shard=True)
    assert len(resumed.history) == len(logged(folder.parent / "resumed"))
    settings, task, model = every["stack-standard"]
    stopped(settings, task, model, folder / "stopped", shard=True)
    (folder / f"memory-{rank}.json").write_text(json.dumps({regime: memory(regime) for regime in REGIMES}))
    (folder / f"errors-{rank}.json").write_text(json.dumps(errors()))


# -- memory ------------------------------------------------------------------------------------------------------


def lying() -> int:
    """Bytes of all tensors that Python holds, each piece of memory once."""
    gc.collect()
    found = {}
    for item in gc.get_objects():
        if (
            issubclass(type(item), Tensor)
            and type(item) in (Tensor, nn.Parameter)
            and item.device.type == "cpu"
        ):
            memory = item.untyped_storage()
            found[memory.data_ptr()] = memory.nbytes()
    return sum(found.values())


def memory(regime: str) -> dict[str, int]:
    """In bytes: one block, all parameters, and what lies there between steps and, above that, in a step."""
    x, labels = normal(2, 4, seed=3).float(), torch.tensor([0, 1])
    head, others = Head(normal(3, WIDTH, seed=5).float()), lying()
    model = Encoder(Stack(WIDTH, BLOCKS))
    inner = model.backbone
    sizes = {"block": weight(inner.get_submodule("blocks.0")), "model": weight(inner)}
    split = x, labels
    task = Task.from_tensors("two", ["a", "b", "c"], head=head, train=split, validation=split, test=split)
    sizes["plan"] = plan(model, task, Settings(regime), shard=True).peak  # type: ignore[arg-type]
    with (
        world() as processes,
        laid_out(model, [head], Settings(regime), processes, True) as (trainee, layout),  # type: ignore[arg-type]
    ):
        optimiser = torch.optim.AdamW(as_parameters(trainee.parameters), fused=True)

        def step() -> None:
            F.cross_entropy(trainee(x), labels, reduction="sum").backward()  # type: ignore[no-untyped-call]
            layout.exchange(trainee.parameters, torch.zeros(()))
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)

        step()
        return sizes | {"between": lying() - others, "above": min(allocated(step) for _ in range(3))}


def weight(module: nn.Module) -> int:
    """Bytes of its parameters."""
    return sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())


class Halved(nn.Module):
    """Writes into its input, which others see: the tangent cannot be carried along."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        x.mul_(0.5)
        return self.layer(x)  # type: ignore[no-any-return]


def errors() -> dict[str, str]:
    """What every process says alike of runs that cannot be made in shards."""
    torch.manual_seed(0)
    writes = Encoder(nn.Sequential(nn.Linear(4, 5), Halved()).double())
    tries = {
        "cache": (dataclasses.replace(POINTS, cache="primal"), encoder(), UsageError),
        "bfloat16": (dataclasses.replace(POINTS, precision="bfloat16"), encoder(), UsageError),
        "writes": (POINTS, writes, ModelError),
        "diverges": (dataclasses.replace(POINTS, regime="standard", lr=1e300), encoder(), NonFiniteError),
    }
    said = {}
    for name, (settings, model, kind) in tries.items():
        with pytest.raises(kind) as caught:
            trained(settings, points(), model, shard=True)
        said[name] = str(caught.value)
    return said


# -- what the tests see ------------------------------------------------------------------------------------------


@pytest.fixture(
    scope="module", params=[pytest.param(2, marks=pytest.mark.slow), pytest.param(4, marks=pytest.mark.long)]
)
def together(request: Any, tmp_path_factory: Any) -> tuple[Path, int]:
    """A folder with what several processes made in shards, and their number."""
    return launched(tmp_path_factory.getbasetemp(), request.param) / "shards", request.param


@pytest.fixture(scope="module")
def alone(tmp_path_factory: Any) -> dict[str, Run]:
    """The same runs for one process."""
    return shared(tmp_path_factory.mktemp("alone"))


NAMES = [
    *(
        f"{kind}-{regime}"
        for kind in ("mlp64", "bert", "clip", "llama", "tied", "small", "stack")
        for regime in REGIMES
    ),
    "some-linear",
]


@pytest.mark.parametrize("name", NAMES)
def test_shards_learn_what_one_process_learns(
    name: str, together: tuple[Path, int], alone: dict[str, Run]
) -> None:
    settings, task, model = alone[name]
    one = trained(settings, task, model)
    many = TaskVector.from_pretrained(together[0] / name)
    gaps = {tensor: delta - many.deltas[tensor] for tensor, delta in deltas(one).items()}
    if name.startswith(("bert", "clip")):
        gaps = {tensor: gap for tensor, gap in gaps.items() if not tensor.endswith(KEY_BIASES)}
    wide = name.startswith(("mlp64", "llama", "tied", "small", "stack", "some"))
    assert params.norm(gaps) <= (1e-11 if wide else 1e-5) * one.task_vector.norm()
    assert many.info["key"] == one.task_vector.info["key"], "the key knows nothing of shards"
    assert (many.base, many.regime, many.label) == (one.task_vector.base, one.task_vector.regime, task.name)
    losses = [entry["loss"] for entry in logged(together[0] / name)]
    assert losses == pytest.approx([entry["loss"] for entry in one.history], rel=1e-5)


@pytest.mark.parametrize("regime", REGIMES)
def test_shards_learn_several_tasks_as_one_process_does(regime: str, together: tuple[Path, int]) -> None:
    one, many = jointly(regime).task_vector, TaskVector.from_pretrained(together[0] / f"joint-{regime}")
    assert params.norm({n: delta - many.deltas[n] for n, delta in one.deltas.items()}) <= 1e-11 * one.norm()


def test_a_run_goes_on_in_shards_where_one_process_stopped(together: tuple[Path, int]) -> None:
    resumed = TaskVector.from_pretrained(together[0].parent / "resumed")
    whole = TaskVector.from_pretrained(together[0] / "stack-linear")
    gaps = {name: delta - whole.deltas[name] for name, delta in resumed.deltas.items()}
    assert params.norm(gaps) <= 1e-11 * whole.norm()


def test_one_process_goes_on_where_shards_stopped(
    together: tuple[Path, int], alone: dict[str, Run], tmp_path: Path
) -> None:
    settings, task, model = alone["stack-standard"]
    out = tmp_path / "out"
    out.mkdir()
    shutil.copy(together[0] / "stopped" / checkpoint.NAME, out)
    resumed = trained(settings, task, model, out=out, resume=True).task_vector
    whole = TaskVector.from_pretrained(together[0] / "stack-standard")
    assert params.norm({n: d - whole.deltas[n] for n, d in resumed.deltas.items()}) <= 1e-11 * whole.norm()


@pytest.mark.parametrize("regime", REGIMES)
def test_a_process_holds_its_share_and_a_few_blocks(regime: str, together: tuple[Path, int]) -> None:
    folder, processes = together
    for rank in range(processes):
        size = json.loads((folder / f"memory-{rank}.json").read_text())[regime]
        share = size["model"] / processes
        # theta0, theta or tau, and two moments; in a step the gradient too, and of a few blocks at a time (this one, the
        # one that FSDP fetches ahead, the rest of the model) theta0, tau, their gradient and what they are sent in
        assert 3.9 * share <= size["between"] <= 4.2 * share
        assert size["plan"] == pytest.approx(size["between"] + size["above"], rel=0.2)
        # (about ten blocks; gloo's threads let go of some late on a busy machine; all at once would be two models)
        assert size["above"] <= share + 0.8 * size["model"]


def test_what_cannot_be_sharded_is_said(together: tuple[Path, int]) -> None:
    folder, processes = together
    said = [json.loads((folder / f"errors-{rank}.json").read_text()) for rank in range(processes)]
    assert all(one == said[0] for one in said)
    assert "what a cache keeps is not sharded" in said[0]["cache"]
    assert "keeps a copy of every weight until the backward" in said[0]["bfloat16"]
    assert "mul_ writes into a tensor that others may see" in said[0]["writes"]
    assert "Lower the learning rate" in said[0]["diverges"]


def test_one_process_has_nothing_to_share() -> None:
    whole, alone = trained(POINTS), trained(POINTS, shard=True)
    assert all(torch.equal(delta, deltas(alone)[name]) for name, delta in deltas(whole).items())


def test_what_is_gathered_apart() -> None:
    from tauspan.train.cells import blocks

    assert [prefix for prefix, _ in blocks(Stack(3, 2))] == ["blocks.0.", "blocks.1.", "unused.0."]
