"""A guard that needs no clock: products, operations, bytes and passes, counted and compared with committed numbers.

    python -m benchmarks.counts [--keep]

Seconds differ from machine to machine; counts do not. The program prints each count beside the committed one
(`benchmarks/results/counts.json`) and ends with 1 if one has grown by more than half a percent. `--keep` writes the
counts in the place of the committed ones: do so when a growth is wanted, and say why in the commit.
"""

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from benchmarks.rows import ROOT
from benchmarks.search import directions
from benchmarks.shapes import Shape
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

import tauspan as ts
from tauspan.core.allocations import Allocations
from tauspan.core.report import Table
from tauspan.kernel import TangentKernel
from tauspan.merge import merge_files
from tauspan.models import Encoder
from tauspan.tangent import linearize

KEPT = ROOT / "benchmarks" / "results" / "counts.json"
GROWTH = 1.005
FALL = 1.05  # a larger fall is to be kept, or it could grow back unseen
SHAPES = (
    Shape("text", "bert", 3, 32, 4, 128, batch=8, length=16, other=50),
    Shape("vision", "clip", 3, 32, 4, 128, batch=4, length=32, other=8),
    Shape("decoder", "llama", 3, 32, 4, 96, batch=4, length=24, other=50, groups=2),
)


def counts() -> dict[str, int]:
    """Every count by what it is of."""
    torch.manual_seed(0)
    found: dict[str, int] = {}
    for shape in SHAPES:
        found |= {f"{shape.name}: {what}": value for what, value in _of_shape(shape).items()}
    return {**found, **_passes(), **_last_block(), **_merging()}


# -- one model ---------------------------------------------------------------------------------------------------


def _of_shape(shape: Shape) -> dict[str, int]:
    """A step, inference with four tangents, and a kernel."""
    model, batch = shape.classifier(), shape.inputs()
    tangent, ordinary = linearize(model), shape.classifier().requires_grad_(True)
    vectors = [dict(one.deltas) for one in directions(model, 4)]
    return {
        **_counted("tangent step", lambda: tangent(batch).sum().backward()),
        **_counted("ordinary step", lambda: ordinary(batch).sum().backward()),
        **_counted("four tangents", lambda: tangent.tangent(batch, vectors=vectors)),
        **_counted("kernel", lambda: TangentKernel(model, [batch]).dense()),
    }


def _counted(what: str, work: Callable[[], Any]) -> dict[str, int]:
    """The counts of some work, with its name."""
    return {f"{what}, {kind}": value for kind, value in counted(work).items()}


def counted(work: Callable[[], Any]) -> dict[str, int]:
    """Products (two for each multiplication and addition), operations, and the most bytes of tensors at once."""

    def product(_: torch.Size, a: torch.Size, b: torch.Size, **__: object) -> int:
        return 2 * math.prod(a) * b[-1]

    def attention(q: torch.Size, k: torch.Size, v: torch.Size, *_: object, **__: object) -> int:
        return int(sdpa_flop_count(q, k, v))

    def of_attention(
        g: torch.Size, q: torch.Size, k: torch.Size, v: torch.Size, *_: object, **__: object
    ) -> int:
        return int(sdpa_backward_flop_count(g, q, k, v))

    aten = torch.ops.aten
    unknown = {  # to the counter
        aten.addmm_: product, aten.baddbmm_: product,
        aten._scaled_dot_product_flash_attention_for_cpu: attention,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: of_attention,
    }  # fmt: skip
    for _ in range(2):  # the second time, after checks that are made once
        with FlopCounterMode(display=False, custom_mapping=unknown) as products:
            work()
    for _ in range(2):
        with Allocations() as taken:
            work()
    events = [event for phase in taken.phases for event in phase.events]
    return {
        "FLOPs": int(products.get_total_flops()), "operations": len(events),
        "bytes at most": max(event.bytes for event in events),
    }  # fmt: skip


# -- questions ---------------------------------------------------------------------------------------------------


class _Net(nn.Module):
    """A net that counts its forward passes and their rows, copies of it included."""

    passes = rows = 0

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        type(self).passes += 1
        type(self).rows += len(x)
        found: Tensor = self.last(torch.tanh(self.first(x)))
        return found


def _passes() -> dict[str, int]:
    """Forward passes, and their rows, of a search for one coefficient of three vectors; a split is one batch."""
    x = torch.randn(12, 4, generator=torch.Generator().manual_seed(1))
    splits = dict.fromkeys(("train", "validation", "test"), (x, torch.arange(12) % 2))
    tasks = [ts.Task.from_tensors(name, ["no", "yes"], **splits) for name in "abc"]
    found: dict[str, int] = {}
    for regime, guided in (("standard", False), ("standard", "tangent"), ("standard", "curved"), ("standard", "checked"),
                           ("standard", "rows"), ("linear", False)):  # fmt: skip
        torch.manual_seed(0)
        encoder = Encoder(_Net())
        settings = ts.Settings(regime, lr=0.05, epochs=3, max_steps=3)  # type: ignore[arg-type]
        vectors = {task: ts.finetune(encoder, task, settings).task_vector for task in tasks}
        editor = ts.Editor(encoder, vectors)
        _Net.passes = _Net.rows = 0
        editor.add(guided=guided)  # type: ignore[arg-type]
        what = f"add, {regime}{f', guided: {guided}' if guided else ''}"
        found[f"{what}: forward passes"] = _Net.passes
        if guided in (False, "rows"):  # the others read whole batches
            found[f"{what}: rows x points"] = _Net.rows
    return found


def _last_block() -> dict[str, int]:
    """The search for one coefficient of vectors that move the last of four layers, which runs the others once."""
    x = torch.randn(64, 32, generator=torch.Generator().manual_seed(2))
    splits = dict.fromkeys(("train", "validation", "test"), (x, torch.arange(64) % 2))
    tasks = [ts.Task.from_tensors(name, ["no", "yes"], **splits) for name in "ab"]
    torch.manual_seed(0)
    encoder = Encoder(nn.Sequential(*(nn.Linear(32, 32) for _ in range(4))))
    settings = ts.Settings("standard", lr=0.05, params="last:1", max_steps=3)
    editor = ts.Editor(encoder, {task: ts.finetune(encoder, task, settings).task_vector for task in tasks})
    with FlopCounterMode(display=False) as products:
        editor.add()
    return {"add, standard, last of four layers: FLOPs": int(products.get_total_flops())}


# -- files -------------------------------------------------------------------------------------------------------


def _merging() -> dict[str, int]:
    """Bytes that a merge of three files reads and writes."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        root, draw = Path(folder), torch.Generator().manual_seed(0)
        base = {f"w{k}": torch.randn(128, 128, generator=draw) for k in range(4)}
        for name in ("base", "one", "two"):
            near = {key: theta + 0.1 * torch.randn(128, 128, generator=draw) for key, theta in base.items()}
            save_file(base if name == "base" else near, root / f"{name}.safetensors")
        for method in ("task_arithmetic", "ties"):
            recipe = {
                "method": method, "base_model": str(root / "base.safetensors"),
                "models": [str(root / "one.safetensors"), str(root / "two.safetensors")],
            }  # fmt: skip
            done = merge_files(recipe, root / f"{method}.safetensors")
            found[f"{method}: bytes read"] = done.bytes_read or 0
            found[f"{method}: bytes written"] = done.nbytes or 0
    return found


# -- the comparison ----------------------------------------------------------------------------------------------


def grown(found: dict[str, int], kept: dict[str, int]) -> list[str]:
    """What has grown, is new, or is gone, and what has fallen so far that it could grow back unseen, in words."""
    both = {name: (value, kept[name]) for name, value in found.items() if name in kept}
    said = [
        f"{name}: {now} in the place of {then}" for name, (now, then) in both.items() if now > GROWTH * then
    ]
    said += [
        f"{name}: fell from {then} to {now}; write the new count with --keep"
        for name, (now, then) in both.items()
        if now * FALL < then
    ]
    return said + [f"{name}: in one of the two alone" for name in sorted(found.keys() ^ kept.keys())]


def main(arguments: list[str] | None = None) -> int:
    """Count, print, and compare or keep."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--keep", action="store_true", help="write the counts in the place of the committed ones"
    )
    given = parser.parse_args(arguments)
    with ts.quiet():
        found = counts()
    kept = json.loads(KEPT.read_text())["counts"] if KEPT.exists() else {}
    rows = [{"what": name, "now": value, "committed": kept.get(name)} for name, value in found.items()]
    print(Table("Counts", rows, f"torch {torch.__version__}").to_markdown())
    if given.keep:
        KEPT.write_text(json.dumps({"torch": torch.__version__, "counts": found}, indent=1) + "\n")
        return 0
    worse = grown(found, kept)
    for line in worse:
        print(line)
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
