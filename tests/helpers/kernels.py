"""Kernels that one process and two must compute alike; imports little, because processes start with it."""

import torch
from torch import Tensor, nn

from tauspan.kernel import TangentKernel


class Tied(nn.Module):
    """A table that is read at the start and multiplied with at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 4)
        self.mix = nn.Linear(4, 4)

    def forward(self, ids: Tensor) -> Tensor:
        return (torch.tanh(self.mix(self.table(ids))) @ self.table.weight.T).mean(1)


def shared(folder=None) -> dict[str, TangentKernel]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(3, 5), nn.GELU(), nn.Linear(5, 2)).double()
        tied, x, ids = Tied().double(), torch.randn(11, 3).double(), torch.randint(0, 7, (9, 3))
    return {
        "rows": TangentKernel(net, x, batch_size=2, folder=folder),
        "sides": TangentKernel(net, x[:7], x, outputs="sum"),
        "tied": TangentKernel(tied, ids, outputs="trace"),
        "products": TangentKernel(net, x, outputs=1, backend="products"),
    }
