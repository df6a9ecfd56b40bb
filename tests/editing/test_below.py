"""Blocks below the first edited one run once for each batch, and only where nothing but their last output is read."""

import pytest
import torch

import tauspan as ts
from helpers import languages
from helpers.stacks import RUNS, X, editor
from tauspan.editing.model import below, ordinary


def logits(asked, a, b):
    """Of the first task, by an edited copy."""
    task, other = asked.vectors
    total = a * asked.vectors[task] + b * asked.vectors[other]
    return task.head(ts.apply(asked.encoder, total)(X))


CHOICES = [(0.0, 0.0), (0.5, 0.0), (1.0, -1.0), (0.25, 2.0), (3.0, 1.0), (0.5, 0.5)]


def asked_all(asked):
    """How often the first and the last block ran for all choices, whose logits are right to the bit."""
    model = asked._models.whole(list(asked.vectors))
    task, _ = asked.vectors
    RUNS.clear()
    found = [model.logits(task, "test", {"a": a, "b": b}) for a, b in CHOICES]
    runs = RUNS[0], RUNS[3]
    for (a, b), one in zip(CHOICES, found, strict=True):
        assert torch.equal(one, logits(asked, a, b)), (a, b)
    return runs


def test_the_blocks_below_run_once_for_each_batch():
    first, last = asked_all(editor())
    # two batches; one look at what is read, and three runs that are compared
    assert first == 2 + 1 + below._CHECKS
    assert last == 2 * len(CHOICES) + 1 + below._CHECKS


@pytest.mark.parametrize(("room", "again"), [(2**26, False), (0, True)])
def test_a_choice_is_run_once_as_long_as_there_is_room_for_its_outputs(monkeypatch, room, again):
    monkeypatch.setattr(ordinary, "_ROOM", room)
    asked = editor()
    first = asked.evaluate({"a": 1.0}).accuracy
    RUNS.clear()
    assert asked.evaluate({"a": 1.0}).accuracy == first
    assert bool(RUNS[3]) == again


@pytest.mark.parametrize("reads", ["all outputs", "an output behind a gate", "what a block keeps"])
def test_where_more_is_read_the_model_runs_whole(reads):
    moved = ("blocks.2.linear.weight", "gate")
    asked_all(editor(reads, moved))


@pytest.mark.parametrize("moved", ["first.weight", "blocks.0.linear.weight", "blocks.1.linear.bias"])
def test_where_the_blocks_below_are_edited_they_run(moved):
    asked_all(editor(moved=(moved, "blocks.3.linear.weight")))


def test_without_room_nothing_is_kept(monkeypatch):
    monkeypatch.setattr(below, "free_memory", lambda: 0)
    first, last = asked_all(editor())
    assert first == last == 2 * len(CHOICES) + 1


def test_the_search_chooses_the_same(monkeypatch):
    found = editor().add()
    monkeypatch.setattr(below, "below", lambda *_: [])
    assert editor().add().curve == found.curve


@pytest.mark.parametrize(
    "kind",
    ["llama", pytest.param("gpt2", marks=pytest.mark.slow), pytest.param("gemma3", marks=pytest.mark.slow)],
)
def test_language_models_answer_the_same(tmp_path, kind, monkeypatch):
    folder = languages.write(tmp_path / "model", kind)
    encoder = ts.load(folder, language=32)
    task = languages.sums(12)
    settings = ts.Settings(params="last:1", lr=0.05, epochs=2)
    vector = ts.finetune(encoder, task, settings).task_vector
    asked = ts.Editor(encoder, {task: vector})
    found = [asked.evaluate(alpha).tasks[0].value for alpha in (0.0, 0.5, 1.0, 2.0, 4.0)]
    monkeypatch.setattr(below, "below", lambda *_: [])
    whole = ts.Editor(encoder, {task: vector})
    assert found == [whole.evaluate(alpha).tasks[0].value for alpha in (0.0, 0.5, 1.0, 2.0, 4.0)]
