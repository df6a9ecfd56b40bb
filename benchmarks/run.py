"""`python -m benchmarks.run`: measure, print tables, write `out/bench/*.json`."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from benchmarks.batched import batched
from benchmarks.caches import caches
from benchmarks.check import check
from benchmarks.convex import convex
from benchmarks.images import images
from benchmarks.memory import memory
from benchmarks.pipeline import pipeline
from benchmarks.rows import ROOT, Row, Setting, device_name, read, report, write
from benchmarks.search import search
from benchmarks.shapes import SHAPES
from benchmarks.spectral import spectral
from benchmarks.steps import steps
from rich.console import Console

from tauspan.core.report import Report

BENCHMARKS: dict[str, Callable[[Setting], list[Row]]] = {
    "steps": steps,
    "memory": memory,
    "check": check,
    "caches": caches,
    "search": search,
    "batched": batched,
    "convex": convex,
    "pipeline": pipeline,
    "spectral": spectral,
    "images": images,
}
_GPU = ("steps", "memory")  # what has goals there


def main(arguments: Sequence[str] | None = None) -> list[Report]:
    """Measure what was asked for; the exit code does not depend on the numbers."""
    given = _parser().parse_args(arguments)
    setting = Setting(
        given.device, getattr(torch, given.dtype), given.threads, 1 if given.short else given.rounds, given.clock,
        None if given.shapes is None else tuple(given.shapes), given.short, given.batch,
    )  # fmt: skip
    if setting.short and setting.shapes is None and setting.device == "cpu":
        setting = Setting(**{**vars(setting), "shapes": ("minilm",)})
    torch.set_num_threads(setting.threads)
    console = Console()
    chosen = given.only or (_GPU if setting.device == "cuda" else tuple(BENCHMARKS))
    found = []
    for name in chosen:
        rows = BENCHMARKS[name](setting)
        write(name, rows, setting, given.out)
        made = report(name, rows, setting)
        console.print(made.renderable())
        found.append(made)
    if given.keep:
        console.print(f"kept {keep(given.out, setting, ROOT / 'benchmarks' / 'results')}")
    return found


def keep(measured: Path, setting: Setting, folder: Path) -> Path:
    """All tables that lie in `measured`, as `<folder>/<device>.md` and beside it as JSON: one benchmark can be redone."""
    dtype = str(setting.dtype).removeprefix("torch.")
    name = "-".join([*device_name(setting.device).lower().split(), dtype])
    name = "".join(sign for sign in name if sign.isalnum() or sign in "-.")
    tables, facts = [], {}
    for one in BENCHMARKS:
        file = measured / f"{one}.json"
        if file.exists():
            rows, facts[one] = read(file)
            tables += report(one, rows, setting).tables
    whole = Report(f"Benchmarks on {device_name(setting.device)}, {dtype}", tables, facts)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(whole.to_json())
    file = folder / f"{name}.md"
    file.write_text(whole.to_markdown())
    return file


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=BENCHMARKS, help="these benchmarks; default: all")
    parser.add_argument(
        "--short", action="store_true", help="one round, one shape, nothing compiled: minutes"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32", help="autocast; tau is float32"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: for a busy machine")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES)
    parser.add_argument("--batch", type=int, help="rows in place of the shape's own")
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "bench")
    parser.add_argument(
        "--keep", action="store_true", help="gather what lies in OUT in benchmarks/results/<device>.md"
    )
    return parser


if __name__ == "__main__":
    main(sys.argv[1:])
