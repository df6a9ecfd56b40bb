"""A stack of four blocks that counts its runs, and an editor of its last two."""

from collections import Counter

import torch
from torch import nn

import tauspan as ts
from helpers.zoo import normal
from tauspan.models import Encoder, Head

X = normal(10, 3)


RUNS = Counter()  # of each block, and of all its copies


class Block(nn.Module):
    def __init__(self, place):
        super().__init__()
        self.linear = nn.Linear(3, 3).double()
        self.place = place

    def forward(self, x):
        RUNS[self.place] += 1
        self.seen = x
        return x + self.linear(x).tanh()


class Net(nn.Module):
    """Four blocks; `reads` says what else the rest of the model reads."""

    def __init__(self, reads):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(3, 3).double()
        self.blocks = nn.ModuleList(map(Block, range(4)))
        self.gate = nn.Parameter(torch.zeros(1).double())
        self.reads = reads

    def forward(self, x):
        x = self.first(x)
        seen = []
        for block in self.blocks:
            x = block(x)
            seen.append(x)
        if self.reads == "all outputs":
            return sum(seen)
        if self.reads == "an output behind a gate":
            return x + self.gate * seen[0]
        if self.reads == "what a block keeps":
            return x + self.blocks[0].seen
        return x


def editor(reads="one output", moved=("blocks.2.linear.weight", "blocks.3.linear.bias"), rows=10):
    net = Net(reads)
    data = (X[:rows], torch.arange(rows) % 2)
    vectors = {}
    for seed, name in enumerate("ab"):
        deltas = {key: torch.zeros_like(one) for key, one in net.named_parameters()}
        deltas |= {key: normal(*deltas[key].shape, seed=seed + 5) for key in moved}
        task = ts.Task.from_tensors(
            name, ["u", "v"], train=data, validation=data, test=data, head=Head(normal(2, 3, seed=seed))
        )
        vectors[task] = ts.TaskVector(deltas, ts.models.fingerprint_of(net), "standard", name)
    return ts.Editor(Encoder(net), vectors, reading=ts.Reading(batch_size=5))
