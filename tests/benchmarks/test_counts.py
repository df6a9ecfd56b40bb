"""Counts of products, operations, bytes and passes are those that are committed."""

import json

import pytest
import torch
from benchmarks import counts


@pytest.mark.slow
def test_nothing_has_grown() -> None:
    kept = json.loads(counts.KEPT.read_text())
    if kept["torch"].partition("+")[0] != torch.__version__.partition("+")[0]:
        pytest.skip(f"counted with torch {kept['torch']}, and this is {torch.__version__}")
    assert counts.grown(counts.counts(), kept["counts"]) == []


def test_growth_is_told() -> None:
    assert counts.grown({"a": 1000, "b": 2}, {"a": 1000, "b": 2}) == []
    assert counts.grown({"a": 1004}, {"a": 1000}) == []
    assert counts.grown({"a": 1006, "c": 1}, {"a": 1000, "b": 1}) == [
        "a: 1006 in the place of 1000", "b: in one of the two alone", "c: in one of the two alone",
    ]  # fmt: skip
    assert counts.grown({"a": 960}, {"a": 1000}) == []
    assert counts.grown({"a": 900}, {"a": 1000}) == [
        "a: fell from 1000 to 900; write the new count with --keep"
    ]
