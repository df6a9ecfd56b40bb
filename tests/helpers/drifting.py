"""A small network in float64 with tasks of a few rows, for penalties of drift."""

import torch
from torch import nn

import tauspan as ts
from helpers import zoo
from tauspan.drift import Distilled, Exact, Factored, factors
from tauspan.models import Encoder, Head

WIDE = 3


def encoder():
    torch.manual_seed(0)
    return Encoder(nn.Sequential(nn.Linear(WIDE, 6), nn.Tanh(), nn.Linear(6, 4)).double())


def task(name, rows=8, classes=2):
    seed = ord(name)
    x = zoo.normal(rows, WIDE, seed=seed).double()
    y = torch.arange(rows) % classes
    head = Head(zoo.normal(classes, 4, seed=seed + 1).double())
    labels = [str(place) for place in range(classes)]
    return ts.Task.from_tensors(name, labels, train=(x, y), validation=(x, y), test=(x, y), head=head)


def settings(regime="linear", **options):
    return ts.Settings(regime, **{"lr": 0.02, "epochs": 3, "batch_size": 4, **options})


def flat(vector):
    return torch.cat([vector.deltas[name].flatten() for name in sorted(vector.deltas)])


def one_penalty(name):
    """One of each kind: of exact drift, by factors, and to a teacher."""
    other = task("b")
    if name == "exact":
        return Exact([other], 0.5, rows=3)
    if name == "factored":
        return Factored([factors(encoder(), other)], 0.5, [other])
    return Distilled(0.3 * ts.closed_form(encoder(), task("a"), ridge=0.1).vector, 0.5)
