"""Peak memory of a step, each variant in a process of its own."""

import argparse
import json
import sys
from collections.abc import Callable

import torch
from benchmarks.rows import Row, Setting, row
from benchmarks.shapes import SHAPES
from benchmarks.steps import PLAIN, variant
from benchmarks.timing import growth, in_fresh_process, spread


def memory(setting: Setting) -> list[Row]:
    """The rows of all chosen shapes: growth of the peak during a step, gradients included."""
    rows = []
    for name in setting.names():
        taken: dict[str, list[float]] = {kind: [] for kind in PLAIN}
        for _ in range(1 if setting.short else max(3, setting.rounds // 2)):
            for kind in PLAIN:
                taken[kind].append(
                    in_fresh_process("benchmarks.memory", _arguments(kind, name, setting), setting.threads)
                )
        for kind in PLAIN:
            rows.append(
                row(f"{name}: extra peak memory of a step, {kind}", spread(taken[kind]), setting, unit="MiB")
            )
        for against in ("paper", "ordinary"):
            pairs = zip(taken["onepass"], taken[against], strict=True)
            found = spread([ours / theirs for ours, theirs in pairs])
            rows.append(row(f"{name}: extra peak memory / {against}", found, setting, f"memory / {against}"))
    return rows


def _arguments(kind: str, shape: str, setting: Setting) -> list[str]:
    given = ["--kind", kind, "--shape", shape, "--device", setting.device, "--threads", str(setting.threads)]
    given += ["--dtype", str(setting.dtype).removeprefix("torch.")]
    return given if setting.batch is None else [*given, "--batch", str(setting.batch)]


def step_growth(
    kind: str, shape: str, setting: Setting, measure: Callable[[Callable[[], object], str], float] = growth
) -> float:
    """MiB that the first full step of this process takes at its peak, after a step on one row."""
    one = variant(kind, SHAPES[shape], setting, rows=1)
    small = one.forward().detach()
    one.step(torch.randn_like(small))  # libraries are loaded and threads started
    del one
    full = variant(kind, SHAPES[shape], setting)
    rows = setting.batch or SHAPES[shape].batch
    gradient = torch.randn(rows, *small.shape[1:], device=small.device)
    return measure(lambda: full.step(gradient), setting.device)


def main(arguments: list[str]) -> None:
    """Measure one variant and write the number as JSON."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--kind", required=True)
    parser.add_argument("--shape", required=True, choices=SHAPES)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int)
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    setting = Setting(given.device, getattr(torch, given.dtype), given.threads, batch=given.batch)
    print(json.dumps(step_growth(given.kind, given.shape, setting)))


if __name__ == "__main__":
    main(sys.argv[1:])
