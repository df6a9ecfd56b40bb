"""Everything that is to be known of one GPU, in parts of at most two minutes that a later call goes on from.

    python -m benchmarks.gpu [--device cuda] [--out out/gpu] [--only PART ...] [--seconds 480] [--toy] [--list]

Weights and inputs are random, so nothing is loaded or downloaded. Each part writes `PART.json` when it is done; a part
whose file is there is not run again. One that fails or takes too long is told and left out, and the others go on in a
fresh process. After `--seconds` the program ends. At the end all parts that are there stand in one table, which
`gpu.md` and `gpu.json` hold. `--toy` takes tiny shapes, so that the whole program runs on a CPU in minutes: its figures
show that it works, not its speed, and have no goals beside them. Memory is what torch's allocator gives out.

A machine without this repository's environment needs `torch`, `transformers`, `numpy`, `scipy`, `safetensors`, `pyyaml`,
`rich` and `psutil`; `--list` prints the parts and these.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from benchmarks.gpu_parts import Asked, parts
from benchmarks.rows import ROOT, report, write
from benchmarks.rows import read as read_rows
from rich.console import Console

from tauspan.core.report import Report

NEEDS = ("torch", "transformers", "numpy", "scipy", "safetensors", "pyyaml", "rich", "psutil")
LIMIT = 120  # seconds of a part


def main(arguments: Sequence[str] | None = None) -> Report:
    """Run the parts that are missing, and show what is there."""
    given = _parser().parse_args(arguments)
    console, every = Console(), parts()
    if given.list:
        console.print("parts:", ", ".join(every))
        console.print("needs:", ", ".join(NEEDS))
    asked = Asked(given.device, given.toy)
    if given.parts:
        for name in given.parts:
            write(name, asked.rows(every[name]), asked.setting("vit-b-32"), given.out)
        return Report("parts", [])
    waiting = [name for name in given.only or every if not (given.out / f"{name}.json").exists()]
    end = time.monotonic() + given.seconds
    while waiting and not given.list and time.monotonic() < end:
        waiting = _sitting(waiting, given, end, console)
    return _whole(given.out, every, asked, console)


def _sitting(waiting: list[str], given: argparse.Namespace, end: float, console: Console) -> list[str]:
    """Run parts in one process until all are done, one fails or takes too long, or time is up; what is left to do."""
    words = [
        "--parts",
        *waiting,
        "--device",
        given.device,
        "--out",
        str(given.out),
        *(["--toy"] if given.toy else []),
    ]
    with tempfile.TemporaryFile("w+") as told:
        child = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.gpu", *words], cwd=ROOT, stdout=told, stderr=told
        )
        for place, name in enumerate(waiting):
            begun = time.monotonic()
            console.print(f"{name}, {end - begun:.0f} s left")
            while not (given.out / f"{name}.json").exists():
                now = time.monotonic()
                ended = child.poll() is not None
                if ended or now - begun > LIMIT or now > end:
                    child.kill()
                    child.wait()
                    if (given.out / f"{name}.json").exists():
                        break
                    told.seek(0)
                    why = (
                        told.read().strip().splitlines()[-1:] if ended else [f"more than {now - begun:.0f} s"]
                    )
                    console.print(f"{name} is left out: {' '.join(why)}", markup=False)
                    return waiting[place + 1 :]
                time.sleep(0.2)
        child.wait()
    return []


def _whole(folder: Path, every: Sequence[str] | dict[str, Any], asked: Asked, console: Console) -> Report:
    """One table of all parts that are there, on the screen and in files."""
    tables, facts = [], {}
    for name in every:
        file = folder / f"{name}.json"
        if file.exists():
            rows, facts[name] = read_rows(file)
            tables += report(name, rows, asked.setting("vit-b-32")).tables
    missing = [name for name in every if name not in facts]
    verdict = f"{len(facts)} of {len(list(every))} parts" + (
        f"; missing: {', '.join(missing)}" if missing else ""
    )
    title = f"tauspan on {asked.device}{', toy size' if asked.toy else ''}"
    found = Report(title, tables, facts, verdict=verdict)
    if facts:
        (folder / "gpu.md").write_text(found.to_markdown())
        (folder / "gpu.json").write_text(found.to_json())
    console.print(found.renderable())
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cuda", "cpu")
    )
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "gpu")
    parser.add_argument("--only", nargs="+", choices=parts())
    parser.add_argument("--seconds", type=float, default=480)
    parser.add_argument("--toy", action="store_true")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--parts", nargs="+", choices=parts(), help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    main()
