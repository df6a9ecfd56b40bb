"""A browser shows of pages that Python makes what a second reading of them says, at random settings."""

import json
from typing import Any

import numpy as np
import pytest
from torch import nn

import tauspan as ts
from helpers.desk_page import Page
from helpers.searches import random_vector
from helpers.zoo import normal
from tauspan.core.reading import Reading
from tauspan.models import Encoder, Head, load_model
from tauspan.tasks import Task

browsing = pytest.importorskip("benchmarks.desk_browser")
pytestmark = pytest.mark.slow
SETTINGS, SPLITS = 50, ("validation", "test")
PAGES: dict[str, tuple[int, bool, str, Any, dict[str, Any]]] = {
    "two classes": (2, False, "linear", "logits", {"range": (-1, 1)}),
    "77 classes": (77, False, "linear", "logits", {"exact": True}),
    "normalising head": (5, True, "linear", "encoder", {}),
    "standard": (3, False, "standard", "logits", {"range": (-0.5, 1)}),
}


def labelled(classes: int, seed: int, normalize: bool, model: Encoder) -> Task:
    """Points of which the model is right about half the time."""
    x, head = (
        normal(90, 4, seed=seed).float(),
        Head(normal(classes, 5, seed=seed + 1).float(), scale=3.0, normalize=normalize),
    )
    said = head(model(x)).argmax(-1)
    y = np.where(np.arange(90) % 2, said.numpy(), (said.numpy() + 1) % classes)
    splits: Any = {
        name: (x[30 * place :][:30], y[30 * place :][:30].tolist())
        for place, name in enumerate(("train", "validation", "test"))
    }
    names = [f"class {place}" for place in range(classes)]
    return Task.from_tensors(f"points {seed}", names, head=head, labels="from_0", **splits)


@pytest.mark.parametrize("name", PAGES)
def test_a_browser_shows_what_python_says(name: str, chromium: Any) -> None:
    from helpers.desk_shown import fragment, shown

    classes, normalize, regime, point, options = PAGES[name]
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5))
    model = load_model(net)
    tasks = [labelled(classes, seed, normalize, model) for seed in (1, 5)]
    vectors = {task: 0.3 * random_vector(model, 60 + 10 * place, regime) for place, task in enumerate(tasks)}
    html = ts.desk(model, vectors, reading=Reading(point=point), **options).html
    page = Page.of(html)
    low, high = page.data["range"]
    settings = np.random.default_rng(0).uniform(low, high, (SETTINGS, 2)).round(2).tolist()
    with browsing.opened(chromium, html) as window:
        for a in settings:
            for split in SPLITS:
                found = shown(window, fragment(a, split=split))["rows"]
                for place, task in enumerate(tasks):
                    assert float(found[str(place)]["now"][0]) == pytest.approx(
                        page.accuracy(task.name, split, a)
                    ), a
        assert window.complaints == []
        assert [
            request for request in window.requests if not request.startswith(("file:", "data:", "blob:"))
        ] == []
    assert json.dumps(page.data, allow_nan=False)
