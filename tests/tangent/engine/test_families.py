"""A tiny model of every family through every verb, against autograd: right, or refused with a sentence of ours.

docs/families.md is the table of what comes of it; `python -m benchmarks.families` writes it.
"""

import pytest

pytest.importorskip("transformers")

from benchmarks.families.examine import examine
from benchmarks.families.examples import FAMILIES, make
from benchmarks.families.others import OPEN_CLIP, TIMM, of_open_clip, of_timm

from helpers import zoo

# torch says so once a process, of a model that has such a layer
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")

FEW = (
    "albert",
    "mixtral",
    "t5",
    "convnext",
    "bloom",
)  # tied, routed, two towers, convolutions, a Function of its own


def require_none_fails(example):
    found = examine(example)
    assert not [str(outcome) for outcome in found if outcome.fails]
    assert any(outcome.state == "right" for outcome in found)


@pytest.mark.thinned(6)
@pytest.mark.parametrize("family", FEW)
def test_a_few_families(family):
    require_none_fails(make(family))


OTHERS = [family for family in FAMILIES if family not in FEW]
FIFTH = [family for family in OTHERS[::5] if family not in ("sam3", "lfm2_vl")]  # a minute or more each


@pytest.mark.slow
@pytest.mark.parametrize("family", FIFTH)
def test_every_fifth_family(family):
    require_none_fails(make(family))


@pytest.mark.long
@pytest.mark.parametrize("family", [family for family in OTHERS if family not in FIFTH])
def test_all_other_families(family):
    require_none_fails(make(family))


@pytest.mark.thinned(3)
@pytest.mark.slow
@pytest.mark.parametrize("name", TIMM)
def test_timm(name):
    zoo.importable("timm")
    require_none_fails(of_timm(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", OPEN_CLIP)
def test_open_clip(name):
    zoo.importable("open_clip")
    require_none_fails(of_open_clip(name))
