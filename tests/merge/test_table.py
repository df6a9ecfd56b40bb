"""Every row of `METHODS`: documented, usable with its defaults on both kinds of vector, the same for any blocks."""

import re
from functools import partial

import pytest
import torch

from helpers.blocks import drawn
from tauspan.core.params import fingerprint
from tauspan.merge.engine import memory
from tauspan.merge.engine.engine import Engine
from tauspan.merge.engine.memory import merge
from tauspan.merge.methods import _ROWS, METHODS
from tauspan.vector import TaskVector

CHOSEN = {"svd": {"rank": 2}}  # options without a default
SHAPES = {"h.0.w": (6, 5), "h.1.w": (4, 7), "h.1.b": (9,), "scale": ()}


def statistics_for(need, seed):
    """Positive numbers of the shapes that a need has: like the tensors, or one Gram matrix of the inputs each."""
    if need == "gram":
        inputs = {name: drawn(20, shape[1], seed=seed) for name, shape in SHAPES.items() if len(shape) == 2}
        return {name: rows.T @ rows for name, rows in inputs.items()}
    return {name: drawn(*shape, seed=seed).square() for name, shape in SHAPES.items()}


def done(method, regime):
    """The method's merge of as many vectors as it takes, two if it can."""
    base = {name: drawn(*shape, seed=50) for name, shape in SHAPES.items()}
    count = min(max(2, method.fewest), method.most or 2)
    vectors = [
        TaskVector(
            {name: 0.1 * drawn(*shape, seed=seed) for name, shape in SHAPES.items()},
            fingerprint(base),
            regime,
            f"task {seed}",
        )
        for seed in range(count)
    ]
    statistics = {
        need: [statistics_for(need, seed) for seed in range(count)] for need in method.needs if need != "base"
    }
    return merge(vectors, method, CHOSEN.get(method.name), base=base, statistics=statistics)


def test_names_are_unique():
    assert len(METHODS) == len(_ROWS)
    assert list(METHODS) == [row.name for row in _ROWS]


@pytest.mark.parametrize("method", _ROWS, ids=lambda row: row.name)
def test_rows_say_what_they_are(method):
    assert re.fullmatch(r"[a-z][a-z0-9_]*", method.name)
    assert method.title
    assert method.formula
    assert re.search(r"(19|20)\d\d", method.paper), "a paper has a year"
    assert method.temporaries >= 1
    assert method.fewest >= 1
    names = [option.name for option in method.options]
    assert len(set(names)) == len(names)
    for option in method.options:
        assert option.doc, option.name
        assert option.require(option.default, method.name) == option.default


@pytest.mark.parametrize("method", _ROWS, ids=lambda row: row.name)
def test_rows_merge_both_kinds_of_vector(method):
    standard, linear = done(method, "standard"), done(method, "linear")
    assert (standard.regime, linear.regime) == ("standard", "linear")
    for name, shape in SHAPES.items():
        assert standard.deltas[name].shape == shape
        assert standard.deltas[name].dtype == torch.float64
        assert torch.equal(standard.deltas[name], linear.deltas[name]), name
    assert any(bool(delta.any()) for delta in standard.deltas.values())


@pytest.mark.thinned(3)
@pytest.mark.parametrize("method", _ROWS, ids=lambda row: row.name)
def test_blocks_do_not_show(method, monkeypatch):
    whole = done(method, "standard")
    for size in (1, 7, 16):
        monkeypatch.setattr(memory, "Engine", partial(Engine, size=size))
        cut = done(method, "standard")
        for name, delta in whole.deltas.items():
            torch.testing.assert_close(cut.deltas[name], delta, rtol=1e-10, atol=1e-12)
