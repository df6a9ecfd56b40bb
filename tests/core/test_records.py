"""A result in a file is the result: nested dataclasses, mappings by number, tuples, unions and fields left out."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from tauspan.core.records import LIVE, record, restored


@dataclass(frozen=True)
class Row:
    task: str
    accuracy: float | None
    at: tuple[float, float] = (0.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class Found:
    rows: Sequence[Row]
    best: Row | None
    curve: Mapping[float, Mapping[str, float]]
    coefficients: Mapping[str, float | Mapping[str, float]]
    pairs: tuple[tuple[str, str], ...] = ()
    axes: tuple[Sequence[float | None], Sequence[float | None]] | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    model: Any = field(metadata=LIVE)


@pytest.mark.parametrize("best", [None, Row("b", 0.5, (0.5, 2.0))])
@pytest.mark.parametrize("axes", [None, ([0.1, None], [1.0])])
def test_through_json(best: Row | None, axes: Any) -> None:
    made = Found(
        rows=[Row("a", 1 / 3), Row("b", None)],
        best=best,
        curve={0.1: {"a": 0.25}, 1e-300: {}},
        coefficients={"a": 0.5, "b": {"layer.0": 1.0}},
        pairs=(("a", "b"), ("b", "a")),
        axes=axes,
        facts={"seeds": [0, 1], "nested": {"x": None}},
        model=print,
    )
    plain = json.loads(json.dumps(record(made)))
    assert "model" not in plain
    assert restored(Found, plain, model=print) == made


def test_every_bit_of_a_number() -> None:
    made = Row("a", 0.1 + 0.2, (5e-324, 1.7976931348623157e308))
    assert restored(Row, json.loads(json.dumps(record(made)))) == made


def test_a_lost_field_is_told() -> None:
    with pytest.raises(KeyError, match="accuracy"):
        restored(Row, {"task": "a"})
