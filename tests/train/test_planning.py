"""Plans of fine-tunings against what the allocator gives out when they are carried out."""

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as T
from benchmarks.peaks import allocated
from torch import Tensor, nn

import tauspan as ts
from helpers import checkpoints, languages, runs
from helpers.tiny import equal
from tauspan.cli.main import main
from tauspan.core.errors import UsageError
from tauspan.core.records import restored
from tauspan.models import fingerprint_of
from tauspan.models.extras import quiet
from tauspan.tasks.writing import write_directory
from tauspan.train import Plan

CLOSE = 0.2  # what a plan may be off by
_MID = {"hidden_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 384}


def cls(model: nn.Module, batch: Any) -> Tensor:
    """The first token's state."""
    states: Tensor = model(batch).last_hidden_state[:, 0]
    return states


def classified(encoder: ts.Encoder, inputs: Tensor, validation: int = 4) -> ts.Task:
    labels = torch.arange(len(inputs)) % 2
    few = inputs[:validation], labels[:validation]
    return ts.Task.from_tensors("made", ["a", "b"], train=(inputs, labels), validation=few, test=few)


def bert(rows: int, length: int = 48, **sizes: Any) -> tuple[ts.Encoder, ts.Task]:
    """A BERT of the shape of MiniLM, smaller, on rows of tokens."""
    with quiet(T):
        model = T.BertModel(T.BertConfig(**_MID | {"vocab_size": 500} | sizes))
    encoder = ts.Encoder(model.eval(), cls)
    return encoder, classified(encoder, torch.randint(1, 100, (rows, length)))


def vit(rows: int) -> tuple[ts.Encoder, ts.Task]:
    with quiet(T):
        model = T.ViTModel(T.ViTConfig(**_MID, image_size=32, patch_size=4), add_pooling_layer=False)
    encoder = ts.Encoder(model.eval(), cls)
    return encoder, classified(encoder, torch.randn(rows, 3, 32, 32))


def small(rows: int) -> tuple[ts.Encoder, ts.Task]:
    return bert(rows, 12, hidden_size=16, num_hidden_layers=2, intermediate_size=32)


def llama(rows: int, folder: Path) -> tuple[ts.Encoder, ts.Task]:
    encoder = ts.load(languages.write(folder / "llama", "llama"), language=40)
    texts = [("abc defg " * 5)[: 39 - 20 * (place == 0)] for place in range(rows)]
    prompts = torch.zeros(rows, dtype=torch.long)
    split = texts, prompts
    few = texts[:4], prompts[:4]
    task = ts.Task.from_tensors("texts", [], train=split, validation=few, test=few, objective="next-token")
    return encoder, task


def preferring(rows: int, folder: Path) -> tuple[ts.Encoder, ts.Task]:
    encoder = ts.load(languages.write(folder / "llama", "llama"), language=40)
    split: Any = (
        ["say "] * rows,
        [("abc defg " * 5)[: 35 - 20 * (place == 0)] for place in range(rows)],
        ["no"] * rows,
    )
    few: Any = tuple(part[:4] for part in split)
    task = ts.Task.from_tensors("pairs", [], train=split, validation=few, test=few, objective="preference")
    return encoder, task


MODELS: dict[str, Callable[[int, Path], tuple[ts.Encoder, ts.Task]]] = {
    "small": lambda rows, _: small(rows),
    "bert": lambda rows, _: bert(rows),
    "vit": lambda rows, _: vit(rows),
    "llama": llama,
    "preferences": preferring,
}


def truth(encoder: ts.Encoder, task: ts.Task, settings: ts.Settings) -> int:
    """Bytes at the highest moment of a real run, the model's own included."""
    table = encoder.language.table.weight if encoder.language else torch.zeros(0)
    tensors = [*encoder.parameters(), *encoder.buffers(), table]
    found = {t.data_ptr(): t.numel() * t.element_size() for t in tensors}
    ts.finetune(encoder, task, replace(settings, max_steps=1))  # what is made once
    return sum(found.values()) + allocated(lambda: ts.finetune(encoder, task, settings))


CASES = [
    pytest.param(kind, rows, marks=[pytest.mark.slow] if kind in ("bert", "vit", "preferences") else [])
    for kind in MODELS
    for rows in (1, 6, 24)
]


@pytest.mark.parametrize("regime", runs.REGIMES)
@pytest.mark.parametrize(("kind", "rows"), CASES)
def test_a_plan_is_close_to_what_a_run_takes(kind: str, rows: int, regime: Any, tmp_path: Path) -> None:
    encoder, task = MODELS[kind](max(rows, 6), tmp_path)
    settings = ts.Settings(regime, batch_size=rows, epochs=3, max_steps=3, check="off")
    plan, real = ts.plan(encoder, task, settings), truth(encoder, task, settings)
    assert plan.peak == pytest.approx(real, rel=CLOSE)


OTHERS: dict[str, dict[str, Any]] = {
    "accumulation": {"accumulation": 3},
    "the last block": {"params": "last:1"},
    "bfloat16": {"precision": "bfloat16"},
    "checkpointing": {"checkpointing": True},
    "a small space": {"space": "lora:4"},
    "decay to zero": {"decay_toward": "zero", "weight_decay": 0.1},
}


@pytest.mark.parametrize("regime", runs.REGIMES)
@pytest.mark.parametrize("name", OTHERS)
def test_settings_count(name: str, regime: Any) -> None:
    encoder, task = bert(24, 12, hidden_size=32, num_hidden_layers=3, intermediate_size=64, vocab_size=100)
    settings = ts.Settings(regime, batch_size=8, epochs=2, max_steps=2, check="off", **OTHERS[name])
    plan, real = ts.plan(encoder, task, settings), truth(encoder, task, settings)
    assert plan.peak == pytest.approx(real, rel=CLOSE)


@pytest.mark.parametrize("regime", runs.REGIMES)
def test_planning_makes_nothing_as_large_as_the_parameters_and_changes_nothing(regime: Any) -> None:
    encoder, task = bert(4, 4, hidden_size=64, vocab_size=4000, num_hidden_layers=1)
    before, modes = fingerprint_of(encoder), [p.requires_grad for p in encoder.parameters()]
    ts.plan(encoder, task, ts.Settings(regime))
    largest = 4 * 4000 * 64
    taken = allocated(lambda: ts.plan(encoder, task, ts.Settings(regime)))
    assert taken < 3 * largest, "one gradient at a time, and the fingerprint's own"
    assert fingerprint_of(encoder) == before
    assert [p.requires_grad for p in encoder.parameters()] == modes
    assert all(p.grad is None for p in encoder.parameters())


def test_numbers_and_steps_are_those_of_the_run() -> None:
    settings = ts.Settings("linear", batch_size=4, accumulation=2, epochs=3)
    plan = ts.plan(runs.encoder(), runs.points(), settings, memory=10**9)
    run = runs.trained(settings)
    assert plan.moved == sum(delta.numel() for delta in run.task_vector.deltas.values())
    assert plan.steps == max(entry["step"] for entry in run.history)
    assert (plan.moved, plan.frozen, plan.training_rows, plan.engine) == (65, 0, 22, "onepass")


def test_several_tasks_take_what_the_largest_takes() -> None:
    tasks = [runs.points(), replace(runs.points(9), name="fewer")]
    alone = ts.plan(runs.encoder(), tasks[0], ts.Settings(accumulation=2))
    joint = ts.plan(runs.encoder(), tasks, ts.Settings())
    assert (joint.peak, joint.tasks, joint.training_rows) == (alone.peak, ["points", "fewer"], 31)


def test_the_verdict_compares_with_the_memory() -> None:
    fits = ts.plan(runs.encoder(), runs.points(), memory=10**6)
    assert (fits.fits, fits.verdict) == (True, "fits: about 8.59 kB of 1 MB")
    assert ts.plan(runs.encoder(), runs.points()).memory > 10**8, "what the machine has"
    tight = ts.plan(runs.encoder(), runs.points(), memory=9000)
    assert (tight.fits, tight.verdict) == (False, "does not fit: about 8.59 kB of 9 kB")


@pytest.mark.thinned(2)
@pytest.mark.parametrize("regime", runs.REGIMES)
def test_what_would_make_it_fit_does(regime: Any) -> None:
    encoder, task = bert(24, 24, hidden_size=32, num_hidden_layers=4, intermediate_size=64, vocab_size=100)
    settings = ts.Settings(regime, batch_size=24, epochs=2, check="off")
    whole = ts.plan(encoder, task, settings)
    tight = ts.plan(encoder, task, settings, memory=round(whole.peak * 0.6 / 0.9))
    assert not tight.fits
    changes = {next(iter(one.changes)): one for one in tight.repairs}
    assert changes.keys() >= {"batch_size", "checkpointing", "params", "shard"}
    assert changes["batch_size"].fits
    for one in tight.repairs:
        own = dict(one.changes)
        options = {name: own.pop(name) for name in ("shard", "processes") if name in own}
        other = replace(settings, **own)
        assert ts.plan(encoder, task, other, memory=tight.memory, **options).peak == one.peak < whole.peak
        if not options:  # tests/train/test_sharded.py has processes
            assert truth(encoder, task, other) == pytest.approx(one.peak, rel=CLOSE)
        assert one.fits == (one.peak <= 0.9 * tight.memory)
    assert "| checkpointing=True |" in tight.report().to_markdown()


def test_where_nothing_helps_that_is_said() -> None:
    plan = ts.plan(runs.encoder(), runs.points(), ts.Settings(batch_size=1), memory=10)
    assert not any(one.fits for one in plan.repairs)
    assert "What would make it fit" in str(plan)


@pytest.mark.parametrize("regime", runs.REGIMES)
def test_checkpointing_trains_the_same_vector(regime: Any) -> None:
    encoder, task = small(6)
    settings = ts.Settings(regime, batch_size=3, epochs=2)
    plain = ts.finetune(encoder, task, settings).task_vector
    spared = ts.finetune(encoder, task, replace(settings, checkpointing=True)).task_vector
    assert equal(plain.deltas, spared.deltas)
    assert spared.info["key"] == plain.info["key"]
    assert spared.info["recipe"]["checkpointing"]
    assert "checkpointing" not in plain.info["recipe"]


def test_checkpointing_is_refused_where_it_cannot_be() -> None:
    with pytest.raises(UsageError, match=r"checkpointing=True with cache='primal'.*Leave one of them out"):
        ts.Settings(cache="primal", checkpointing=True)
    for regime in runs.REGIMES:
        with pytest.raises(UsageError, match=r"checkpointing=True needs a stack of blocks: .*Leave it out"):
            ts.finetune(flat(), runs.points(), ts.Settings(regime, checkpointing=True))  # type: ignore[arg-type]
        assert ts.finetune(flat(), runs.points(), ts.Settings(regime)).history  # type: ignore[arg-type]


def flat() -> ts.Encoder:
    """A model without blocks."""
    return ts.Encoder(nn.Linear(4, 5).double().eval())


def test_a_plan_is_a_result() -> None:
    plan = ts.plan(runs.encoder(), runs.points(), memory=10**6)
    again = restored(Plan, json.loads(plan.report().to_json())["result"])
    assert again == replace(plan, provenance=again.provenance, warnings=[], repairs=[])
    assert "the peak" in str(plan)


def test_the_command_line_plans(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder, task = checkpoints.write(tmp_path / "model", "bert"), tmp_path / "task"
    write_directory(runs.texts(), task, overwrite=False)
    line = ["finetune", str(folder), str(task), "--plan", "--memory", "2", "--json"]
    assert main(line) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["verdict"].startswith("fits: about ")
    assert found["result"]["memory"] == 2 * 10**9
    assert main(line[:3]) == 2
    assert "finetune needs OUT" in capsys.readouterr().err
    assert main([*line[:3], "out", "--memory", "2"]) == 2
    assert "--memory 2 is for --plan" in capsys.readouterr().err


def test_what_cannot_be_planned_is_said() -> None:
    with pytest.raises(UsageError, match="processes=0: it must be at least 1"):
        ts.plan(runs.encoder(), runs.points(), processes=0)
    with pytest.raises(UsageError, match=r"cache='primal' cannot be planned yet: .*cache='none'"):
        ts.plan(runs.encoder(), runs.points(), ts.Settings(cache="primal"))
    with pytest.raises(UsageError, match="no task"):
        ts.plan(runs.encoder(), [])


# -- time --------------------------------------------------------------------------------------------------------


def test_the_time_is_that_of_steps_of_the_run(monkeypatch):
    """A clock that goes on by itself: a second at each look."""
    clock = itertools.count()
    monkeypatch.setattr("tauspan.train.timing.time.perf_counter", lambda: float(next(clock)))
    x, y = torch.eye(4).repeat(50, 1), torch.arange(4).repeat(50) % 2
    rows = {"train": (x, y), "validation": (x, y), "test": (x, y)}
    task = ts.Task.from_tensors("parity", ["even", "odd"], **rows)
    encoder = ts.load(torch.nn.Linear(4, 3))
    before = [parameter.clone() for parameter in encoder.parameters()]
    settings = ts.Settings(lr=0.1, epochs=3, batch_size=8)
    found = ts.plan(encoder, task, settings, timed=True)
    assert found.pace is not None
    assert (found.pace.steps, found.pace.validations) == (75, 3)
    assert found.pace.step == 1.0
    assert found.pace.validation == 1.0 / (64 / 200)
    assert found.pace.seconds == found.pace.first + 74 + 3 * found.pace.validation
    assert found.verdict.endswith(f"; about {found.pace.seconds:.0f} seconds")
    assert "each further step" in found.report().to_markdown()
    assert all(map(torch.equal, before, encoder.parameters()))
    assert ts.plan(encoder, task, settings).pace is None
    assert ts.plan(encoder, task, settings, timed=True, memory=10).pace is None


def test_a_run_of_one_step_has_no_time_of_later_ones():
    x, y = torch.eye(4), torch.arange(4) % 2
    rows = {"train": (x, y), "validation": (x, y), "test": (x, y)}
    task = ts.Task.from_tensors("parity", ["even", "odd"], **rows)
    found = ts.plan(ts.load(torch.nn.Linear(4, 3)), task, timed=True).pace
    assert found is not None
    assert (found.steps, found.timed, found.step, found.validations) == (1, 0, 0.0, 1)
    assert found.first > 0
