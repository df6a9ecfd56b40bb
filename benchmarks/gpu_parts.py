"""The parts of `python -m benchmarks.gpu`: what one GPU, or at toy size a CPU, is asked."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from benchmarks.kernel import one
from benchmarks.memory import step_growth
from benchmarks.peaks import allocated
from benchmarks.rows import Row, Setting, row
from benchmarks.search import directions
from benchmarks.search import search as searched
from benchmarks.shapes import SHAPES
from benchmarks.steps import PLAIN, steps, tuned
from benchmarks.timing import interleaved, once, ratio, seconds, spread
from torch import Tensor
from torch.func import jvp
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from tauspan.kernel import TangentKernel
from tauspan.merge import merge
from tauspan.tangent import linearize

BIG = ("vit-b-32", "vit-l-14", "decoder-1b")
TOYS = {"vit-b-32": "tiny-vision", "vit-l-14": "tiny-vision-deep", "decoder-1b": "tiny-decoder"}
LENGTHS = (128, 512, 2048, 8192)


@dataclass(frozen=True)
class Asked:
    """What a part is asked: the device, and whether everything is tiny."""

    device: str
    toy: bool

    def setting(self, shape: str, dtype: str = "float32", rounds: int = 5) -> Setting:
        """The setting of the other benchmarks."""
        name = TOYS[shape] if self.toy else shape
        return Setting(
            self.device, getattr(torch, dtype), rounds=1 if self.toy else rounds, shapes=(name,), short=True
        )  # fmt: skip

    def grown(self, work: Callable[[], object], device: str = "") -> float:
        """MiB that torch allocates during some work, above what lay there before: counted, on a CPU too."""
        return allocated(work, device or self.device) / 2**20

    def rows(self, part: Callable[["Asked"], list[Row]]) -> list[Row]:
        """The rows of a part; of a toy without goals, which are those of full size."""
        found = part(self)
        return [replace(one, goal=None) for one in found] if self.toy else found


def stepping(asked: Asked, shape: str, dtype: str) -> list[Row]:
    """Step, inference and memory: the one-pass engine, the paper's approach, ordinary training."""
    setting = asked.setting(shape, dtype)
    (name,) = setting.names()
    rows, peaks = steps(setting), {}
    for kind in PLAIN:
        peaks[kind] = step_growth(kind, name, setting, asked.grown)
        rows.append(one(f"{name}: extra peak memory of a step, {kind}", peaks[kind], "MiB"))
    for against in (
        () if asked.toy else ("paper", "ordinary")
    ):  # what a step holds of any size is most of a toy's
        share = peaks["onepass"] / peaks[against]
        rows.append(
            row(f"{name}: extra peak memory / {against}", spread([share]), setting, f"memory / {against}")
        )
    return rows


def compiled(asked: Asked) -> list[Row]:
    """The step under torch.compile, against the paper's approach, ordinary training and compiled ordinary training."""
    setting = asked.setting("vit-b-32")
    return tuned(SHAPES[setting.names()[0]], setting)


def attention(asked: Asked) -> list[Row]:
    """Attention and its tangent: our rule against torch's forward mode through the math kernel, by length."""
    rows = []
    for length in (8, 16) if asked.toy else LENGTHS:
        for dtype in ("float32",) if asked.toy or length > 4096 else ("float32", "bfloat16"):
            rows += _attention(asked, length, getattr(torch, dtype))
    return rows


def _attention(asked: Asked, length: int, dtype: torch.dtype) -> list[Row]:
    heads, width = (2, 4) if asked.toy else (16, 64)
    draw = torch.Generator().manual_seed(0)
    shape = (1, heads, length, width)
    parts = [torch.randn(shape, generator=draw).to(asked.device, dtype) for _ in range(6)]
    primals, tangents = tuple(parts[:3]), tuple(parts[3:])

    class Attended(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v = (torch.nn.Parameter(part) for part in primals)

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = F.scaled_dot_product_attention(self.q + x, self.k, self.v)
            return found

    tangent, nothing = linearize(Attended()), torch.zeros((), device=asked.device, dtype=dtype)
    moved = dict(zip(("q", "k", "v"), tangents, strict=True))

    def ours() -> Any:
        return tangent.tangent(nothing, vectors=[moved])

    def theirs() -> Any:
        with sdpa_kernel(SDPBackend.MATH):
            return jvp(F.scaled_dot_product_attention, primals, tangents)

    first, second = ours(), theirs()
    apart = float((first[1][0].double() - second[1].double()).norm() / second[1].double().norm())
    note = f"relative distance {apart:.1e}"
    setting = asked.setting("vit-b-32")
    taken = interleaved({"ours": ours, "math": theirs}, setting.rounds, device=asked.device)
    what = f"attention of {length} tokens, {str(dtype).removeprefix('torch.')}"
    memory = asked.grown(ours) / asked.grown(theirs)
    return [
        row(f"{what}: tangent / math kernel", ratio(taken, "ours", "math"), setting, note=note),
        one(f"{what}: extra peak memory / math kernel", memory, "ratio"),
    ]


def kernel(asked: Asked) -> list[Row]:
    """The tangent kernel of 2,000 rows of a vision transformer with one output."""
    setting = asked.setting("vit-b-32")
    shape, rows = SHAPES[setting.names()[0]], 6 if asked.toy else 2000
    model = shape.classifier(1).to(asked.device)
    inputs, found = shape.inputs(rows).to(asked.device), {}
    made = TangentKernel(model, list(inputs.split(64)))
    spent = once(lambda: found.update(dense=made.dense()), asked.device)
    mean = float(found["dense"].diagonal().mean())
    return [
        one(
            f"{shape.name}: kernel of {rows} rows, all parameters",
            spent.wall,
            "s",
            f"mean diagonal {mean:.4g}",
        )
    ]


def maps(asked: Asked) -> list[Row]:
    """The coefficient search and a map of xi against evaluating each point."""
    return searched(asked.setting("vit-b-32"))


def merging(asked: Asked) -> list[Row]:
    """Merging in memory: vectors on the device against the same on the CPU."""
    setting = asked.setting("vit-b-32", rounds=3)
    shape = SHAPES[setting.names()[0]]
    vectors = directions(shape.encoder(), 2 if asked.toy else 4)
    there = [
        replace(one, deltas={name: delta.to(asked.device) for name, delta in one.deltas.items()})
        for one in vectors
    ]
    rows = []
    for method in ("task_arithmetic", "ties"):
        work: dict[str, Callable[[], object]] = {
            "device": lambda method=method: merge(there, method), "cpu": lambda method=method: merge(vectors, method),
        }  # fmt: skip
        taken = interleaved(work, setting.rounds, device=asked.device)
        what = f"{shape.name}: {method} of {len(vectors)}"
        rows += [
            row(f"{what} on {asked.device}", seconds(taken, "device"), setting, unit="s"),
            row(f"{what}: {asked.device} / cpu", ratio(taken, "device", "cpu"), setting),
        ]
    return rows


def exchange(asked: Asked) -> list[Row]:
    """Gradients of several GPUs summed by NCCL; nothing where there is one."""
    count = torch.cuda.device_count() if asked.device == "cuda" else 0
    if count < 2:
        return [one("GPUs for an exchange by NCCL", float(count), "count", "two are needed")]
    size = 2**26
    tensors = [torch.ones(size, device=f"cuda:{place}") for place in range(count)]
    spent = [once(lambda: torch.cuda.nccl.all_reduce(tensors), "cuda").wall for _ in range(4)][1:]  # type: ignore[no-untyped-call]
    return [one(f"NCCL: sum of {4 * size / 2**20:.0f} MiB over {count} GPUs", min(spent), "s")]


def parts() -> dict[str, Callable[[Asked], list[Row]]]:
    """All parts by name, those first that others wait for."""

    def of(shape: str, dtype: str) -> Callable[[Asked], list[Row]]:
        return lambda asked: stepping(asked, shape, dtype)

    steps_of = {
        f"steps-{shape}-{dtype}": of(shape, dtype) for dtype in ("bfloat16", "float32") for shape in BIG
    }
    others = {
        "attention": attention, "kernel": kernel, "maps": maps, "merging": merging, "compiled": compiled,
        "nccl": exchange,
    }  # fmt: skip
    return {**steps_of, **others}
