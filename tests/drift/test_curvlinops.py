"""Curvature factors against curvlinops, which makes them by hooks of its own: equal up to the scale of its loss."""

import pytest
import torch
from torch import nn

import tauspan as ts
from tauspan.drift import factors
from tauspan.models import Encoder, Head

pytestmark = pytest.mark.slow  # a library of the extra `real`


class Net(nn.Module):
    """Two layers that meet each row at several positions."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 5), nn.Linear(5, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.last(torch.tanh(self.first(x))).mean(1)
        return found


@pytest.mark.parametrize(
    ("kind", "operator", "shared"),
    [
        ("expand", "KFACLinearOperator", "expand"),
        ("reduce", "KFACLinearOperator", "reduce"),
        ("ekfac", "EKFACLinearOperator", "reduce"),
    ],
)
def test_the_blocks_of_weights_are_those_of_curvlinops(kind: str, operator: str, shared: str) -> None:
    curvlinops = pytest.importorskip("curvlinops")
    torch.manual_seed(0)
    net, out, x = Net().double(), nn.Linear(4, 2, bias=False).double(), torch.randn(7, 6, 3).double()
    rows = (x, torch.arange(7) % 2)
    head = Head(out.weight.detach())
    task = ts.Task.from_tensors("t", ["a", "b"], train=rows, validation=rows, test=rows, head=head)
    names = ["first.weight", "last.weight"]
    ours = factors(Encoder(net), task, kind=kind, params=names)
    theirs = getattr(curvlinops, operator)(
        nn.Sequential(net, out), nn.MSELoss(reduction="sum"), [net.first.weight, net.last.weight],
        [(x, torch.zeros(7, 2).double())], fisher_type="type-2", kfac_approx=shared,
    )  # fmt: skip
    tau = {"first.weight": torch.randn(5, 3).double(), "last.weight": torch.randn(4, 5).double()}
    for name, product in zip(names, theirs @ [tau[name] for name in names], strict=True):
        # their G is of a sum of squares over rows, 2 sum J^T J; ours is the mean of J^T J over rows
        assert float((tau[name] * product).sum()) == pytest.approx(
            2 * len(x) * float(ours.blocks[name].square(tau[name]))
        )
