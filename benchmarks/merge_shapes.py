"""`python -m benchmarks.merge_shapes --mergekit PYTHON`: every shape of tests/merge/shapes in tauspan and in mergekit.

The shapes are mergekit's own examples, with small models in their places, and further forms that its files have. A table
says for each whether tauspan runs it or refuses it and by what name, whether mergekit runs it, and how far the
results are
apart: the largest difference over all entries, over the largest displacement from the base (in 16 bits in units of
the last place). Rows of embeddings are compared token by token.
"""

import argparse
import contextlib
import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from benchmarks.rows import ROOT, device_name
from benchmarks.shape_models import make
from rich.console import Console
from torch import Tensor

from tauspan.core.errors import TauspanError
from tauspan.core.report import Cell, Report, Table, provenance
from tauspan.merge import read_recipe
from tauspan.merge.recipe.recipe import MergeRecipe
from tauspan.merge.stream.files import merge_files
from tauspan.store import Checkpoint

SHAPES = ROOT / "tests" / "merge" / "shapes"
_ALLOW = {"example_bio": ("config",)}  # what has to be let pass by name
_WHY = {
    "example_arcee_fusion": "the divergence of nearly equal rows cancels in mergekit's arithmetic, and entries near the "
    "threshold are decided otherwise",
    "slices_uneven": "after the layers mergekit takes only as many sources of the last slice as the first one has",
    "ties_sixteen": "both keep as many entries; of equal magnitudes mergekit keeps those that an unstable sort "
    "leaves first",
}
"""What explains a difference that double precision does not remove."""
_EXACT = 1e-5  # of the largest displacement: what float32 sums in another order can differ by
_PLACES = 1.01  # units of the last place: sixteen bits, rounded once here and several times there


@dataclass(frozen=True)
class Ours:
    """What tauspan made of a shape: an output, or the words of a refusal; and what it warned of."""

    out: Path | None
    refused: str = ""
    warned: tuple[str, ...] = ()


def run(name: str, file: Path, out: Path) -> Ours:
    """One shape, in the folder of the models."""
    given: MergeRecipe | Path = file
    allow = _ALLOW.get(name.removesuffix("-double"))
    try:
        if allow is not None:
            given = replace(read_recipe(file), allow=allow)
        report = merge_files(
            given,
            out,
        )
    except TauspanError as error:
        return Ours(None, str(error))
    return Ours(out, warned=tuple(report.warnings))


def _twin(text: str) -> str:
    """The same shape in double precision, where both programs compute alike."""
    lines = [line for line in text.splitlines() if not line.startswith(("dtype:", "out_dtype:"))]
    return "\n".join([*lines, "dtype: float64"]) + "\n"


def compared(work: Path, mine: Path, theirs: Path, told: Mapping[str, Any]) -> tuple[float, str, str]:
    """The largest difference, its unit, and what else differs."""
    ours, other = Checkpoint(mine).read(), Checkpoint(theirs).read()
    base = Checkpoint(work / "models" / "base").read()
    first, second = (told.get(side, {}).get("tokens", {}) for side in ("ours", "theirs"))
    words = [token for token in second if token in first]
    worst, unit, said = 0.0, "of it", []
    for tensor, value in other.items():
        if tensor not in ours:
            said.append(f"{tensor} is in mergekit's alone")
            continue
        a, b = ours[tensor], value
        if first != second and words and a.shape[0] == len(first) and b.shape[0] == len(second):
            a = a[torch.tensor([first[word] for word in words])]
            b = b[torch.tensor([second[word] for word in words])]
        if a.shape != b.shape:
            said.append(f"{tensor} has shape {tuple(a.shape)} and {tuple(b.shape)}")
            continue
        if value.dtype in (torch.bfloat16, torch.float16) and ours[tensor].dtype == value.dtype:
            unit = "last place"
            worst = max(worst, _places(a, b))
        else:
            moved = _moved(a, base.get(tensor))
            worst = max(worst, float((a.double() - b.double()).abs().max()) / moved if a.numel() else 0.0)
    for key in ("layers", "rows", "chat"):
        pair = [told.get(side, {}).get(key) for side in ("ours", "theirs")]
        if pair[0] != pair[1] and None not in pair:
            said.append(f"{key}: {pair[0]!r} and {pair[1]!r}")
    if set(first) != set(second):
        said.append(f"tokens: {len(first)} and {len(second)}")
    more = len(set(ours) - set(other))
    said += [f"{more} tensors are in ours alone"] if more else []
    return worst, unit, "; ".join(said)


def _moved(value: Tensor, base: Tensor | None) -> float:
    if base is None or base.shape != value.shape:
        return float(value.double().abs().max()) or 1.0
    return float((value.double() - base.double()).abs().max()) or float(value.double().abs().max()) or 1.0


def _places(a: Tensor, b: Tensor) -> float:
    """The largest difference in units of the last place of the larger value."""
    wide = torch.maximum(a.abs(), b.abs()).double().clamp(min=float(torch.finfo(a.dtype).tiny))
    unit = torch.finfo(a.dtype).eps * torch.exp2(wide.log2().floor())
    return float(((a.double() - b.double()).abs() / unit).max()) if a.numel() else 0.0


def shapes(work: Path, mergekit: Path | None) -> tuple[Table, dict[str, Any]]:
    """Every shape in both programs; those that differ once more in double precision."""
    make(work / "models")
    files = {file.stem: file for file in sorted(SHAPES.glob("*.yml"))}
    rows = _both(work, files, mergekit)
    apart = [name for name, row in rows.items() if row["equal"] == "no"]
    (work / "double").mkdir(exist_ok=True)
    twins = {f"{name}-double": work / "double" / f"{name}.yml" for name in apart}
    for name, twin in zip(apart, twins.values(), strict=True):
        twin.write_text(_twin(files[name].read_text()))
    for name, again in zip(apart, _both(work, twins, mergekit).values() if twins else (), strict=True):
        said = f"in double precision {again['difference']}" if again["difference"] else again["note"]
        why = _WHY.get(name, "mergekit computes in the file's dtype" if again["equal"] == "yes" else "")
        rows[name]["equal"] = "in double precision" if again["equal"] == "yes" else "no"
        rows[name]["note"] = "; ".join(str(part) for part in (said, why, rows[name]["note"]) if part)
    counts = {
        "shapes": len(rows),
        "run": sum(row["tauspan"] == "runs" for row in rows.values()),
        "refused by name": sum(row["tauspan"] == "refuses" for row in rows.values()),
        "mergekit runs": sum(row["mergekit"] == "runs" for row in rows.values()),
        "equal": sum(row["equal"] in ("yes", "in double precision") for row in rows.values()),
    }
    note = (
        "difference: the largest over all entries, over the largest displacement; in 16 bits in last places"
    )
    return Table("shapes", list(rows.values()), note), counts


def _both(work: Path, files: Mapping[str, Path], mergekit: Path | None) -> dict[str, dict[str, Cell]]:
    with inside(work / "models"):
        ours = {name: run(name, file, work / "ours" / name) for name, file in files.items()}
    told = _asked(work, files, mergekit) if mergekit is not None else {}
    return {name: _row(name, ours[name], work, told.get(name)) for name in files}


def _row(name: str, ours: Ours, work: Path, told: Mapping[str, Any] | None) -> dict[str, Cell]:
    row: dict[str, Cell] = {
        "shape": name, "tauspan": "runs" if ours.out else "refuses", "mergekit": None, "difference": None, "equal": None,
        "note": ours.refused.replace(str(SHAPES) + "/", "")[:160],
    }  # fmt: skip
    if told is None:
        return row
    row["mergekit"] = "fails" if "failed" in told else "runs"
    if "failed" in told:
        row["note"] = str(row["note"] or told["failed"])[:160]
    elif ours.out is not None:
        worst, unit, said = compared(work, ours.out, work / "theirs" / name, told)
        close = worst <= (_PLACES if unit == "last place" else _EXACT)
        row |= {
            "difference": f"{worst:.1e} {unit}".removesuffix(" of it"),
            "equal": "yes" if close else "no",
            "note": said,
        }
    return row


def _asked(work: Path, files: Mapping[str, Path], mergekit: Path) -> dict[str, Any]:
    jobs = work / "jobs.json"
    jobs.write_text(json.dumps([
        {
            "name": name, "file": str(file), "ours": str(work / "ours" / name), "theirs": str(work / "theirs" / name),
        }
        for name, file in files.items()
    ]))  # fmt: skip
    command = [str(mergekit), str(Path(__file__).with_name("shape_oracle.py")), str(jobs)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=work / "models")
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(jobs.with_suffix(".found.json").read_text())
    return found


@contextlib.contextmanager
def inside(folder: Path) -> Iterator[None]:
    """Work in a folder, without the warnings that the report holds."""
    before, log = Path.cwd(), logging.getLogger("tauspan.merge")
    level = log.level
    os.chdir(folder)
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        os.chdir(before)
        log.setLevel(level)


def main(arguments: Sequence[str] | None = None) -> Report:
    """Run all shapes; the exit code does not depend on the outcome."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.merge_shapes", description=__doc__)
    parser.add_argument("--mergekit", type=Path, metavar="PYTHON", help="of an environment with mergekit")
    parser.add_argument("--work", type=Path, help="folder of models and results; default: a temporary one")
    parser.add_argument(
        "--keep", action="store_true", help="write benchmarks/results/shapes-<device>.md and .json"
    )
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        work = (given.work or Path(temporary)).resolve()
        table, counts = shapes(work, given.mergekit)
    made = Report("shapes of mergekit files", [table], provenance(**counts), result=counts)
    Console(width=200).print(made.renderable())
    if given.keep:
        name = "".join(
            sign for sign in device_name("cpu").lower().replace(" ", "-") if sign.isalnum() or sign in "-."
        )
        kept = ROOT / "benchmarks" / "results" / f"shapes-{name}"
        kept.with_suffix(".md").write_text(made.to_markdown())
        kept.with_suffix(".json").write_text(made.to_json())
    return made


if __name__ == "__main__":
    main(sys.argv[1:])
