"""`on_log`: each record of the log as it is written, once, in the process that writes; its errors are told."""

import json
from pathlib import Path
from typing import Any

import pytest

from helpers.runs import encoder, points
from helpers.tiny import same_bits
from tauspan.core.errors import ArgumentError, TauspanError
from tauspan.train import Settings, finetune

SETTINGS = Settings("standard", epochs=2, batch_size=8, lr=0.05)


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_each_record_is_passed_on_when_it_is_in_the_log(tmp_path: Path) -> None:
    seen, there = [], []

    def listen(record: dict[str, Any]) -> None:
        seen.append(record)
        there.append(lines(tmp_path / "run")[-1])

    run = finetune(encoder(), points(), SETTINGS, out=tmp_path / "run", on_log=listen)
    assert seen == there == list(run.history) == lines(tmp_path / "run")
    assert {record["split"] for record in seen} == {"train", "validation"}


def test_it_changes_nothing_even_where_it_changes_its_record() -> None:
    def spoil(record: dict[str, Any]) -> None:
        for key in list(record):
            record[key] = None

    plain, heard = (
        finetune(encoder(), points(), SETTINGS),
        finetune(encoder(), points(), SETTINGS, on_log=spoil),
    )
    assert same_bits(plain.task_vector.deltas, heard.task_vector.deltas)
    assert plain.history == heard.history


def test_an_error_of_it_is_named_and_the_run_goes_on_without_it(tmp_path: Path) -> None:
    def full(record: dict[str, Any]) -> None:
        if record["step"] == 3:
            raise ConnectionError("no server")

    options: dict[str, Any] = {"out": tmp_path / "run", "checkpoint_every": 2}
    with pytest.raises(
        TauspanError, match=r"on_log=.*full raised ConnectionError at step 3 of .*: no server"
    ) as info:
        finetune(encoder(), points(), SETTINGS, on_log=full, **options)
    assert isinstance(info.value.__cause__, ConnectionError)
    seen: list[dict[str, Any]] = []
    run = finetune(encoder(), points(), SETTINGS, on_log=seen.append, resume=True, **options)
    assert same_bits(run.task_vector.deltas, finetune(encoder(), points(), SETTINGS).task_vector.deltas)
    assert seen[0]["step"] == 3  # what the checkpoint holds is not passed on again
    assert lines(tmp_path / "run") == list(run.history)
    again: list[dict[str, Any]] = []
    assert finetune(encoder(), points(), SETTINGS, on_log=again.append, resume=True, **options).reused
    assert again == []


def test_what_cannot_be_called_is_refused() -> None:
    with pytest.raises(ArgumentError, match="on_log"):
        finetune(encoder(), points(), SETTINGS, on_log="wandb")  # type: ignore[arg-type]
