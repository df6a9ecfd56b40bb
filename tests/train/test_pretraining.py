"""Self-pretraining reads inputs and no labels, and gives a start of its own."""

from pathlib import Path

import pytest
import torch

import tauspan as ts
from helpers import languages
from tauspan.core.errors import BaseMismatchError, UsageError
from tauspan.models import fingerprint_of, state_of
from tauspan.tasks import SPLITS, Task

TEXTS = [f"{name} likes {thing}" for name in ("Ann", "Bob") for thing in ("tea", "jam", "pi")]


def task(flip: bool) -> Task:
    labels = torch.arange(len(TEXTS)) % 2
    return Task.from_tensors(
        "t", ["no", "yes"], **dict.fromkeys(SPLITS, (TEXTS, 1 - labels if flip else labels))
    )


def test_a_start_of_inputs_alone(tmp_path: Path) -> None:
    encoder = ts.load(languages.write(tmp_path / "model", "bert"))
    settings = ts.Settings("standard", seed=1, lr=3e-3, epochs=3, batch_size=3)
    start, other = (ts.self_pretrained(encoder, [task(flip)], 32, settings) for flip in (False, True))
    random = ts.reinitialised(encoder, 1)
    assert fingerprint_of(start) == fingerprint_of(other)  # labels do not count
    assert len({fingerprint_of(one) for one in (start, random, encoder)}) == 3
    # the same in steps: random weights and the vector that hidden tokens give
    texts = task(False).as_texts("masked-token(share=0.3)")
    vector = ts.finetune(ts.with_token_head(random, 32), texts, settings).task_vector
    wanted, found = state_of(ts.apply(random, vector)), state_of(start)
    for name, tensor in wanted.items():
        assert torch.equal(found[name], tensor), name
    assert start.origin is None
    assert not start.heads
    tau = ts.finetune(start, task(False), settings).task_vector  # a start like any other
    with pytest.raises(BaseMismatchError):
        ts.apply(random, tau)
    ts.save(start, tmp_path / "start")
    assert fingerprint_of(ts.load(tmp_path / "start")) == fingerprint_of(start)  # type: ignore[call-overload]
    with pytest.raises(UsageError, match=r"Settings\('standard'"):
        ts.self_pretrained(encoder, [task(False)], 32, ts.Settings("linear"))


def test_a_small_space_gives_a_whole_start(tmp_path: Path) -> None:
    encoder = ts.load(languages.write(tmp_path / "model", "bert"))
    settings = ts.Settings("standard", seed=1, lr=3e-3, epochs=1, batch_size=3, space="lora:2")
    start, random = ts.self_pretrained(encoder, [task(False)], 32, settings), ts.reinitialised(encoder, 1)
    assert state_of(start).keys() == state_of(random).keys()
    assert fingerprint_of(start) != fingerprint_of(random)
