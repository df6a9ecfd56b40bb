"""`python -m benchmarks.bits`: hashes of what tauspan computes, to compare two versions of it to the last bit.

Vectors of both regimes, the reports of their additions without times, a kernel, and each merging method that needs no
data, in memory and from files. It uses public names alone, so that one file serves both versions.
"""

import hashlib
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import tauspan as ts

# parts of the names of entries that differ from run to run
_NO_BITS = (
    "seconds",
    "peak MB",
    "written",
    "versions",
    "tauspan",
    "time",
    "cost",
    "path",
    "base_id",
    "machine",
)


def tensors(found: Mapping[str, Tensor]) -> str:
    """A hash of named tensors: names, dtypes, shapes and bytes."""
    made = hashlib.sha256()
    for name in sorted(found):
        tensor = found[name].detach().cpu().contiguous()
        made.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        made.update(tensor.flatten().view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return made.hexdigest()[:16]


def plain(value: Any) -> Any:
    """A report without what differs from run to run."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items() if not any(word in key for word in _NO_BITS)}
    return [plain(item) for item in value] if isinstance(value, list) else value


def task(name: str, seed: int) -> ts.Task:
    """Two classes of points."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(60, 6, generator=generator)
    y = (x[:, seed] > 0).long()
    parts = {"train": slice(40), "validation": slice(40, 50), "test": slice(50, 60)}
    return ts.Task.from_tensors(
        name, ["no", "yes"], **{key: (x[part], y[part]) for key, part in parts.items()}
    )


def module() -> nn.Module:
    """A small net, the same each time."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.LayerNorm(16), nn.Linear(16, 8))


def hashes(folder: Path) -> Iterator[tuple[str, str]]:
    """What is hashed, and its hash."""
    encoder, tasks = ts.load(module()), [task("one", 0), task("two", 1), task("three", 2)]
    by_regime: dict[str, list[ts.TaskVector]] = {}
    for regime in ("standard", "linear"):
        made = [
            ts.finetune(encoder, one, ts.Settings(regime=regime, lr=1e-2, epochs=2, batch_size=8)).task_vector
            for one in tasks
        ]
        by_regime[regime] = made
        for one, vector in zip(tasks, made, strict=True):
            yield f"vector {one.name} {regime}", tensors(vector.deltas)
    for regime, vectors in by_regime.items():
        found = ts.add(
            encoder,
            dict(zip(tasks, vectors, strict=True)),
        ).report()
        yield (
            f"add {regime}",
            hashlib.sha256(json.dumps(plain(json.loads(found.to_json()))).encode()).hexdigest()[:16],
        )
    x = torch.randn(12, 6, generator=torch.Generator().manual_seed(7))
    yield "kernel", tensors({"K": ts.TangentKernel(module().double(), x.double()).dense()})
    yield from merged(by_regime["standard"], folder)


def merged(vectors: Sequence[ts.TaskVector], folder: Path) -> Iterator[tuple[str, str]]:
    """Each method, in memory and from files."""
    base = {name: p.detach() for name, p in module().named_parameters()}
    save_file(base, folder / "base.safetensors")
    for place, vector in enumerate(vectors):
        moved = {name: base[name] + vector.deltas[name] for name in base}
        save_file(moved, folder / f"m{place}.safetensors")
    files = [str(folder / f"m{place}.safetensors") for place in range(len(vectors))]
    for name in sorted(ts.METHODS):
        yield f"merge {name}", _first(lambda count, name=name: ts.merge(vectors[:count], name).deltas)

        def from_files(count: int, name: str = name) -> Mapping[str, Tensor]:
            out = folder / f"out-{name}-{count}"
            recipe = {"method": name, "base_model": str(folder / "base.safetensors"), "models": files[:count]}
            ts.merge_files(
                recipe,
                out,
            )
            return load_file(next(iter(sorted(out.rglob("*.safetensors")))))

        yield f"merge_files {name}", _first(from_files)


def _first(made: Callable[[int], Mapping[str, Tensor]]) -> str:
    """The hash of a merge of three models, or of as many as the method takes."""
    for count in (3, 2, 1):
        try:
            return f"{tensors(made(count))} {count}"
        except ts.TauspanError as error:
            found = f"refused: {type(error).__name__}"
    return found


def main() -> None:
    """Print a line for each hash."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        for what, found in hashes(Path(folder)):
            print(f"{found:24} {what}")


if __name__ == "__main__":
    sys.exit(main())
