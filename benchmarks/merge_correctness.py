"""Every merging method that mergekit or PEFT has too, on small float32 models: largest difference, and why."""

import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
import yaml
from benchmarks import merge_inputs
from torch import Tensor

import tauspan as ts
from tauspan.core.report import Cell, Table
from tauspan.merge import merge, read_recipe
from tauspan.merge.lora.adapters import AdapterSource, combine_adapters
from tauspan.merge.stream.adapter_vector import adapter_vector
from tauspan.merge.stream.files import merge_files
from tauspan.store import Checkpoint

_ROUNDING = 8 * 2**-23  # of the largest value: what float32 sums in another order can differ by
_WEIGHTS = (0.5, 0.3, 0.4)
_SUM = (0.7, -0.4)  # of two adapters


@dataclass(frozen=True)
class Case:
    """One method of mergekit.

    Args:
        method: by its name there.
        common, each: parameters of the merge, and of every model.
        models: how many besides the base.
        weighted: give every model its own weight.
        base: whether a base is named.
        why: what explains a difference beyond rounding.
    """

    method: str
    common: Mapping[str, float] = field(default_factory=dict)
    each: Mapping[str, float] = field(default_factory=dict)
    models: int = 3
    weighted: bool = True
    base: bool = True
    why: str = ""

    @property
    def settings(self) -> str:
        """The parameters, for the table."""
        given = {**self.each, **self.common}
        return ", ".join(f"{key} {value:g}" for key, value in given.items())


_SAME_MASKS = {"density": 1.0}  # masks of two programs are never the same: at density 1 both keep everything
_EQUAL = (
    "of entries with one magnitude at the threshold mergekit keeps as many as fit, in the order of an unstable sort; "
    "ours treats them alike"
)
CASES = (
    Case("linear", base=False),
    Case("task_arithmetic", {"lambda": 0.8}),
    Case("ties", each={"density": 0.5}),
    Case("ties", {"lambda": 0.8}, {"density": 0.2}),
    Case("dare_linear", each=_SAME_MASKS),
    Case("dare_ties", each=_SAME_MASKS),
    Case("della", each={**_SAME_MASKS, "epsilon": 0.1}),
    Case("della_linear", each={**_SAME_MASKS, "epsilon": 0.1}),
    Case("breadcrumbs", each={"density": 0.5, "gamma": 0.1}, why=_EQUAL),
    Case("breadcrumbs_ties", each={"density": 0.5, "gamma": 0.1}, why=_EQUAL),
    Case("sce", {"select_topk": 0.5}, weighted=False),
    Case("slerp", {"t": 0.3}, models=1, weighted=False),
    Case("nuslerp", models=2),
    Case("multislerp"),
    Case("karcher", weighted=False, base=False),
    Case("nearswap", {"t": 0.001}, models=1, weighted=False),
    Case(
        "arcee_fusion",
        models=1,
        weighted=False,
        why="the divergence of nearly equal rows cancels in mergekit's float32; ours is formed in float64, and entries "
        "near the threshold are decided otherwise",
    ),
    Case("model_stock", weighted=False),
    Case("ram", weighted=False),
    Case("ramplus_tl", weighted=False),
    Case("passthrough", models=1, weighted=False, base=False),
)


def correctness(work: Path, mergekit: Path | None) -> Table:
    """The table: largest difference over all entries, relative to the largest displacement of the other result.

    Raises:
        RuntimeError: no environment was named, or it fails.
    """
    if mergekit is None:
        raise RuntimeError(
            "--correctness compares with mergekit and PEFT: name their environment, --mergekit PYTHON."
        )
    folder = work / "correctness"
    (folder / "adapters").mkdir(parents=True, exist_ok=True)
    base, deltas, files = _models(folder)
    recipes = {f"{place}-{case.method}": (case, _recipe(case, files)) for place, case in enumerate(CASES)}
    for name, (_, content) in recipes.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    failed = _asked(mergekit, folder, list(recipes))
    rows = []
    for name, (case, _) in recipes.items():
        if name in failed:
            rows.append(_shown(f"{case.method}", "mergekit", case.settings, None, failed[name]))
            continue
        recipe = read_recipe(folder / f"{name}.yaml")
        merge_files(
            recipe,
            folder / f"ours-{name}",
            overwrite=True,
        )
        mine, theirs = (
            Checkpoint(folder / f"ours-{name}").read(),
            Checkpoint(folder / f"theirs-{name}").read(),
        )
        rows.append(_shown(case.method, "mergekit", case.settings, _difference(mine, theirs, base), case.why))
    rows += _functions(folder, deltas)
    rows += _adapters(folder / "adapters")
    note = "difference: the largest over all entries, over the largest displacement from the base; float32"
    return Table("correctness", rows, note)


def _models(folder: Path) -> tuple[dict[str, Tensor], list[dict[str, Tensor]], list[Path]]:
    """A base, displacements, and files of base and models."""
    shapes = {f"layers.{layer}.w": (48, 32) for layer in range(2)} | {
        "embed.weight": (40, 32),
        "norm.weight": (32,),
    }
    draw = torch.Generator().manual_seed(0)  # float32 throughout: rounded numbers would tie at thresholds
    points = [{name: 0.02 * torch.randn(shape, generator=draw) for name, shape in shapes.items()}]
    base = points[0]
    for _ in range(3):
        moved = {name: 0.002 * torch.randn(shape, generator=draw) for name, shape in shapes.items()}
        points.append({name: base[name] + moved[name] for name in base})
    files = [folder / f"model{place}.safetensors" for place in range(4)]
    for file, point in zip(files, points, strict=True):
        merge_inputs.write(file, point)
    deltas = [{name: point[name] - base[name] for name in base} for point in points[1:]]
    for place, delta in enumerate(deltas):
        merge_inputs.write(folder / f"delta{place}.safetensors", delta)
    return base, deltas, files


def _recipe(case: Case, files: list[Path]) -> dict[str, object]:
    models = []
    for file, weight in zip(files[1 : case.models + 1], _WEIGHTS, strict=False):
        each = {**case.each, **({"weight": weight} if case.weighted else {})}
        models.append({"model": str(file), **({"parameters": each} if each else {})})
    made: dict[str, object] = {"merge_method": case.method, "models": models, "dtype": "float32"}
    if case.base:
        made["base_model"] = str(files[0])
    return {**made, "parameters": dict(case.common)} if case.common else made


def _asked(mergekit: Path, folder: Path, names: list[str]) -> dict[str, str]:
    """Let the other programs run; what failed, by name."""
    merges = [
        {"name": name, "recipe": str(folder / f"{name}.yaml"), "out": str(folder / f"theirs-{name}")}
        for name in names
    ]
    common = {
        "deltas": [str(folder / f"delta{place}.safetensors") for place in range(3)],
        "weights": _WEIGHTS,
    }
    functions = [
        {**common, **job, "out": str(folder / f"peft-{place}.safetensors")} for place, job in enumerate(_PEFT)
    ]
    jobs = folder / "jobs.json"
    jobs.write_text(
        json.dumps(
            {"merges": merges, "functions": functions, "adapters": str(folder / "adapters"), "weights": _SUM}
        )
    )
    command = [str(mergekit), str(Path(__file__).with_name("merge_oracle.py")), str(jobs)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    failed: dict[str, str] = json.loads(jobs.with_suffix(".failed.json").read_text())
    return failed


_PEFT: tuple[dict[str, object], ...] = (
    {"function": "task_arithmetic"},
    {"function": "ties", "density": 0.5},
    {"function": "ties", "density": 0.2, "majority_sign_method": "frequency"},
)
_OURS = (
    ("task_arithmetic", {}),
    ("ties_peft", {"density": 0.5}),
    ("ties_peft", {"density": 0.2, "majority": "frequency"}),
)


def _functions(folder: Path, deltas: list[dict[str, Tensor]]) -> list[dict[str, Cell]]:
    """PEFT's functions on displacements."""
    vectors = [
        ts.TaskVector(delta, "0" * 64, "standard", f"model{place}") for place, delta in enumerate(deltas)
    ]
    rows = []
    for place, (method, options) in enumerate(_OURS):
        made = merge(vectors, method, {**options, "weight": list(_WEIGHTS)})
        theirs = Checkpoint(folder / f"peft-{place}.safetensors").read()
        shown = ", ".join(f"{key} {value}" for key, value in options.items())
        rows.append(_shown(method, "PEFT", shown, _difference(made.deltas, theirs, None)))
    return rows


def _adapters(folder: Path) -> list[dict[str, Cell]]:
    """Adapters: one on its base, and weighted sums of two."""
    base = Checkpoint(folder / "base.safetensors").read()
    floats = {name: tensor for name, tensor in base.items() if tensor.is_floating_point()}
    rows = []
    for kind in ("one", "rslora", "pattern", "bias"):
        point = adapter_vector(folder / kind, floats).apply(floats)
        theirs = Checkpoint(folder / f"{kind}.safetensors").read()
        rows.append(
            _shown(f"adapter, {kind}", "PEFT merge_and_unload", "", _difference(point, theirs, floats))
        )
    pair = [AdapterSource(folder / name) for name in ("one", "two")]
    for kind, rank, why in (
        ("cat", None, ""),
        ("svd", 3, ""),
        ("linear", None, "PEFT adds A and B apart, which is not the sum of the products; ours is exact"),
    ):
        low = combine_adapters(pair, _SUM, rank)
        point = {n: t + low.dense(n) if n in low.terms else t for n, t in floats.items()}
        theirs = Checkpoint(folder / f"sum-{kind}.safetensors").read()
        settings = f"weights {_SUM[0]:g}, {_SUM[1]:g}" + (f", rank {rank}" if rank else "")
        against = f"PEFT combination_type {kind}"
        rows.append(_shown("sum of adapters", against, settings, _difference(point, theirs, floats), why))
    return rows


def _difference(
    mine: Mapping[str, Tensor], theirs: Mapping[str, Tensor], base: Mapping[str, Tensor] | None
) -> tuple[float, float]:
    """The largest difference, over the largest displacement of `theirs`, and over its largest value."""
    names = [name for name in theirs if name in mine]
    assert names  # noqa: S101 - nothing in common means the benchmark is wrong
    moved = max(
        float((theirs[n].double() - (0 if base is None else base[n].double())).abs().max()) for n in names
    )
    apart = max(float((mine[n].double() - theirs[n].double()).abs().max()) for n in names)
    largest = max(float(theirs[n].double().abs().max()) for n in names)
    tiny = torch.finfo(torch.float64).tiny
    return apart / max(moved, tiny), apart / max(largest, tiny)


def _shown(
    method: str, against: str, settings: str, difference: tuple[float, float] | None, why: str = ""
) -> dict[str, Cell]:
    rounding = difference is not None and difference[1] < _ROUNDING
    cell: Cell = "failed" if difference is None else f"{difference[0]:.1e}"
    return {
        "method": method, "against": against, "settings": settings, "difference": cell,
        "explanation": "rounding of float32" if rounding else why or "not explained",
    }  # fmt: skip
