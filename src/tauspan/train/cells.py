"""A model in shards: each of P processes keeps 1/P of every tensor, and a block's tensors are whole only while it runs.

FSDP2 (`torch.distributed.fsdp.fully_shard`) gathers tensors before a forward, frees them after it, gathers them again for
the backward and scatters the summed gradient. It is applied to *cells*: separate modules that hold the tensors of one
block, both theta0 and tau. The block itself is not wrapped. It uses the cell's tensors in its forward, so the caller's
model gets neither hooks nor another class, and both regimes work in the same way.

Between cells a dual tensor is passed as a plain `_Pair`, because FSDP applies autograd functions to activations, and the
tangent rules do not see those.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, Shard
from torch.func import functional_call
from torch.utils._pytree import tree_map, tree_map_only

from tauspan import models
from tauspan.core.choices import Regime
from tauspan.models import Batch, Encoder, Head
from tauspan.tangent.engine import onepass
from tauspan.tangent.engine.checkpointing import Shell, replaced
from tauspan.tangent.engine.dual import Dual, Trace
from tauspan.tangent.engine.reference import open_attention

SHARDED = (Shard(0),)


class _Pair(NamedTuple):
    """A dual tensor on its way into or out of a cell."""

    primal: Tensor
    tangents: tuple[Tensor, ...]
    shared: bool


@dataclass
class _Pass:
    """State shared by the cells in one forward pass; without a trace in the standard regime."""

    trace: Trace | None = None
    tracked: bool = False


class _Held(nn.Module):
    """Tensors by name; names may contain dots. FSDP cannot split a scalar, so it is stored with shape (1,)."""

    def __init__(self, tensors: Mapping[str, Tensor], trains: Collection[str]) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            rows = tensor.reshape(1) if tensor.ndim == 0 else tensor.contiguous()
            self._parameters[name] = nn.Parameter(rows, requires_grad=name in trains)

    def now(self) -> dict[str, Tensor]:
        """The whole tensors while FSDP has gathered them, else the parts of this process."""
        return {name: tensor for name, tensor in self._parameters.items() if tensor is not None}


class _Cell(nn.Module):
    """The tensors of one block, which are gathered together, and the block that uses them."""

    def __init__(
        self, block: nn.Module, theta: Mapping[str, Tensor], trains: Collection[str], linear: bool, run: _Pass
    ) -> None:
        super().__init__()
        moved = {name: tensor for name, tensor in theta.items() if name in trains}
        wide = {
            n: torch.zeros_like(t, dtype=torch.promote_types(t.dtype, torch.float32))
            for n, t in moved.items()
        }
        self.theta = _Held(theta, () if linear else trains)
        self.tau = _Held(wide if linear else {}, trains)
        self.shapes = {name: tensor.shape for name, tensor in theta.items()}
        self.run = run
        object.__setattr__(
            self, "borrower", Shell(block)
        )  # not a submodule: its parameters do not belong to the cell
        self.borrower: Shell

    def point(self) -> dict[str, Tensor]:
        """The parameters of the block's forward: theta, or theta0 with the direction tau."""
        theta, tau, run = self.theta.now(), self.tau.now(), self.run
        found = {name: tensor.view(self.shapes[name]) for name, tensor in theta.items()}
        if run.trace is not None:
            for name, delta in tau.items():
                found[name] = onepass.started(
                    found[name], delta.view(self.shapes[name]), run.trace, run.tracked
                )
        return found

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The block's forward; dual tensors enter and leave as pairs."""
        given, named = _unpacked((args, kwargs), self.run, shared=True)
        point = {f"block.{name}": tensor for name, tensor in self.point().items()}
        return _packed(functional_call(self.borrower, point, given, named))


class _Root(_Cell):
    """The tensors outside all blocks, and the forward of the whole model from a batch to logits."""

    def __init__(self, encoder: Encoder, cells: Mapping[nn.Module, _Cell], *rest: Any) -> None:
        super().__init__(encoder, *rest)
        self.cells = nn.ModuleList(cells.values())

    def forward(self, batch: Batch, head: Head, at_logits: bool) -> Tensor:
        """Logits of shape (N, K)."""
        point = {f"block.{name}": tensor for name, tensor in self.point().items()}
        out: Tensor = functional_call(self.borrower, point, (batch,))
        if self.run.trace is None or at_logits:
            out = head(out)
        if self.run.trace is None:
            return (
                out.clone() if out._is_view() else out
            )  # FSDP warns of views, as states of a language model are
        value, tangent = onepass.parted(out, self.run.tracked)
        return value + tangent if at_logits else head(value + tangent)


class Shards:
    """An encoder whose parameters are in shards until `restore` puts them back.

    Args:
        encoder: its parameters are replaced by placeholders of the same shape without memory.
        trains: the names of the parameters that train.
        regime: `"linear"` keeps a tau beside each theta0 that trains; in `"standard"` theta itself trains.
        mesh: the processes.

    Attributes:
        shapes: the shape of each whole parameter, by name.
        theta: the shards of each parameter, by name.
        trained: the shards that train (of theta or tau), by name.
    """

    def __init__(self, encoder: Encoder, trains: Collection[str], regime: Regime, mesh: DeviceMesh) -> None:
        self.encoder, self.mesh, self._linear = encoder, mesh, regime == "linear"
        self._run, self._told = _Pass(), set[str]()
        self._known = models.named_unique(encoder.backbone)
        self._homes = {name: tensor.device for name, tensor in self._known.items()}
        self._buffers = {buffer: buffer.device for buffer in encoder.buffers()}
        self.device = torch.device(mesh.device_type, torch.cuda.current_device()) if mesh.device_type == "cuda" \
            else torch.device(mesh.device_type)  # fmt: skip
        self.shapes = {name: tensor.shape for name, tensor in self._known.items()}
        self.theta: dict[str, Tensor] = {}
        self.trained: dict[str, Tensor] = {}
        for buffer in self._buffers:
            buffer.data = buffer.data.to(self.device)
        self._cells: dict[nn.Module, _Cell] = {}
        left = set(self._known)
        for prefix, block in blocks(encoder.backbone):
            names = {name.removeprefix(prefix): name for name in self._known if name.startswith(prefix)}
            self._cells[block] = self._cut(block, names, trains)
            left -= set(names.values())
        rest = {f"backbone.{name}": name for name in self._known if name in left}
        self._root = self._cut(encoder, rest, trains)

    def _cut(self, block: nn.Module, names: Mapping[str, str], trains: Collection[str]) -> _Cell:
        """Make the cell of a block and shard it; the block's own parameters become placeholders."""
        theta = {short: self._known[name].detach().to(self.device) for short, name in names.items()}
        moving = {short for short, name in names.items() if name in trains}
        facts = (theta, moving, self._linear, self._run)
        cell = _Root(block, self._cells, *facts) if isinstance(block, Encoder) else _Cell(block, *facts)
        made: FSDPModule = fully_shard(cell, mesh=self.mesh, reshard_after_forward=True)
        made.set_gradient_divide_factor(1.0)  # sums, not means: the loop divides by the global batch
        made.set_force_sum_reduction_for_comms(True)  # gloo has no other reduction
        moved = cell.tau if self._linear else cell.theta
        for short, name in names.items():
            whole = self._known[name]
            whole.data = _stand_in(whole, self.device)
            self.theta[name] = cell.theta.now()[short]
            if short in moving:
                self.trained[name] = moved.now()[short]
        return cell

    def __call__(self, batch: Batch, head: Head, at_logits: bool) -> Tensor:
        """Logits of shape (N, K); in the linear regime those of the model linearised at the logits or at the features."""
        through = {block: _through(cell, self._run) for block, cell in self._cells.items()}
        with models.eval_mode(self.encoder), open_attention(), replaced(through):
            if not self._linear:
                out: Tensor = self._root(batch, head, at_logits)
                return out
            self._run.trace, self._run.tracked = Trace(self.encoder, told=self._told), torch.is_grad_enabled()
            try:
                with torch.enable_grad():  # the rules need it; `tracked` says if the caller does
                    logits: Tensor = self._root(batch, head, at_logits)
                return logits
            finally:
                self._run.trace = None

    @torch.no_grad()
    def restore(self, parts: Mapping[str, Tensor]) -> None:
        """Gather the parameters one after the other and put them back into the encoder; every process calls this.

        Args:
            parts: this process's parts of the trained parameters, with their values before training.
        """
        for name, shards in self.theta.items():
            part = held(shards)
            if name in parts:
                part.copy_(parts[name])
            self._known[name].data = self._again(name, self.whole(name, part).to(self._homes[name]))
        for buffer, home in self._buffers.items():
            buffer.data = buffer.data.to(home)

    def _again(self, name: str, whole: Tensor) -> Tensor:
        """The tensor itself, or the token table of a language model where it is that: it did not move."""
        language = self.encoder.language
        return language.table.weight if language is not None and language.tied == name else whole

    @torch.no_grad()
    def whole(self, name: str, part: Tensor) -> Tensor:
        """The whole tensor from the parts of all processes, on this process's device; every process calls this."""
        shape = self.shapes[name] or torch.Size([1])
        stride = torch.empty(shape, device="meta").stride()
        spread = DTensor.from_local(part, self.mesh, SHARDED, run_check=False, shape=shape, stride=stride)
        return spread.full_tensor().view(self.shapes[name])

    def part(self, whole: Tensor) -> Tensor:
        """This process's part of a whole tensor."""
        rows = whole.reshape(1) if whole.ndim == 0 else whole
        size, rank = -(-len(rows) // self.mesh.size()), self.mesh.get_local_rank()
        return rows[size * rank : size * (rank + 1)]


def blocks(inner: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules that are gathered separately (blocks of outermost stacks, and embeddings), by their name prefixes.

    A module that shares a parameter with another module is not among them, since both need its tensors.
    """
    places: dict[int, list[str]] = {}
    for name, tensor in inner.named_parameters(remove_duplicate=False):
        places.setdefault(id(tensor), []).append(name)
    for prefix, block in _candidates(inner, ""):
        own = list(block.parameters())
        if own and all(name.startswith(prefix) for tensor in own for name in places[id(tensor)]):
            yield prefix, block


def _candidates(module: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Module]]:
    for name, child in module.named_children():
        inside = f"{prefix}{name}."
        if isinstance(module, nn.ModuleList | nn.Sequential) or isinstance(child, nn.Embedding):
            yield inside, child
        else:
            yield from _candidates(child, inside)


def held(shards: Tensor | None) -> Tensor:
    """This process's part of a sharded tensor, in the memory from which FSDP gathers."""
    assert isinstance(shards, DTensor)  # noqa: S101 - FSDP made it
    part: Tensor = shards.to_local()
    return part.detach()


def _stand_in(tensor: Tensor, device: torch.device) -> Tensor:
    """A placeholder: a tensor of the same shape with one NaN in memory, so that reading it by mistake is noticed."""
    fill = torch.nan if tensor.is_floating_point() else 0
    return torch.full((), fill, dtype=tensor.dtype, device=device).expand(tensor.shape)


def _packed(item: Any) -> Any:
    return tree_map_only(Dual, lambda dual: _Pair(dual.primal, dual.tangents, dual.shared), item)


def _unpacked(item: Any, run: _Pass, shared: bool = False) -> Any:
    """Dual tensors from pairs; inside a block they are views of the caller's tensors."""
    if run.trace is None:
        return item
    trace = run.trace

    def dual(leaf: Any) -> Any:
        return (
            Dual(leaf.primal, leaf.tangents, trace, shared or leaf.shared)
            if isinstance(leaf, _Pair)
            else leaf
        )

    return tree_map(dual, item, is_leaf=lambda leaf: isinstance(leaf, _Pair))


def _through(cell: _Cell, run: _Pass) -> Callable[..., Any]:
    """A replacement for a block's forward, which runs the block's cell."""

    def forward(*args: Any, **kwargs: Any) -> Any:
        given, named = _packed((args, kwargs))
        return _unpacked(cell(*given, **named), run)

    return forward
