"""Batched weights: an ordinary model's last two blocks at several coefficients in one pass, against one after the other.

What lies below the edited blocks is shared either way, so both start from the states that enter them. The weights of all
coefficients are made before the clock runs. A batch of weights makes each product one of k matrices (`torch.func.vmap`).
"""

import itertools
from collections.abc import Callable, Mapping

import torch
from benchmarks.rows import Row, Setting, row
from benchmarks.shapes import SHAPES, normal
from benchmarks.timing import interleaved, ratio
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

ROWS, TOKENS, POINTS = (4, 32), 32, (2, 4)  # rows of a search that reads few of them, and of a whole batch
_STEP, _MOVED = 0.05, 0.002  # between neighbouring coefficients; the deviation of a vector's entries


class Blocks(nn.Module):
    """The last two blocks of a text model, from states to states."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(list(model.encoder.layer)[-2:])  # type: ignore[union-attr, arg-type]

    def forward(self, states: Tensor) -> Tensor:
        """The states after the last block."""
        for layer in self.layers:
            found = layer(states)
            states = found[0] if isinstance(found, tuple) else found
        return states


def batched(setting: Setting) -> list[Row]:
    """Time of all coefficients at once over one after the other, for a few rows and for a batch."""
    shape = SHAPES[setting.names()[0]]
    if shape.family != "bert":
        return []
    blocks = Blocks(shape.encoder().backbone).to(setting.device).requires_grad_(False)
    rows = []
    for count, points in itertools.product(ROWS, POINTS):
        states = normal((count, TOKENS, shape.width), count).to(setting.device)
        at_once, in_turn = ways(blocks, states, points)
        taken = interleaved({"once": at_once, "turn": in_turn}, setting.rounds, device=setting.device)
        first, second = at_once(), in_turn()
        note = f"relative distance {float((first - second).norm() / second.norm()):.1e}"
        what = f"{shape.name}, last two blocks, {count} rows: {points} coefficients at once / in turn"
        rows.append(row(what, ratio(taken, "once", "turn", setting.clock), setting, note=note))
    return rows


def ways(blocks: nn.Module, states: Tensor, points: int) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    """The states of so many neighbouring coefficients, shape (points, ...): by a batch of weights, and by one each."""
    theta = {name: value.detach() for name, value in blocks.named_parameters()}
    moved = {name: _MOVED * normal(tuple(value.shape), 1).to(value) for name, value in theta.items()}
    each = [
        {name: value + (0.5 + _STEP * place) * moved[name] for name, value in theta.items()}
        for place in range(points)
    ]
    stacked = {name: torch.stack([weights[name] for weights in each]) for name in theta}

    def run(weights: Mapping[str, Tensor]) -> Tensor:
        found: Tensor = functional_call(blocks, dict(weights), (states,))
        return found

    def at_once() -> Tensor:
        with (
            torch.no_grad(),
            sdpa_kernel(SDPBackend.MATH),
        ):  # fused attention has no rule for batches of weights
            found: Tensor = vmap(run)(stacked)
            return found

    def in_turn() -> Tensor:
        with torch.no_grad():
            return torch.stack([run(weights) for weights in each])

    return at_once, in_turn
