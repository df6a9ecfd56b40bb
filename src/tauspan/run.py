"""`run`: a recipe from data to report, stage by stage; a finished stage is reused, never done twice."""

import dataclasses
import hashlib
import json
import logging
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tauspan import __version__, figures, search, store
from tauspan.disentangle import GRID, disentanglement
from tauspan.edit import EditRegime, load
from tauspan.errors import UsageError
from tauspan.measure import Cost, measured
from tauspan.models import Encoder, fingerprint_of
from tauspan.recipe import Recipe
from tauspan.report import Cell, Report, Table, provenance
from tauspan.suite import find_task
from tauspan.tasks import Task
from tauspan.train import Settings, train
from tauspan.vector import FILE, Regime, TaskVector

log = logging.getLogger(__name__)
_ADDITION = ("zero shot", "single", "added", "added norm.", "alpha 1", "alpha 1 norm.")


@dataclasses.dataclass(frozen=True)
class _Stage:
    """What one stage found and cost, and whether it was done before."""

    content: dict[str, Any]
    cost: Cost
    reused: bool


def run(recipe: Recipe, out: str | Path, *, show_progress: bool = True) -> Report:
    """Carry a recipe out and write `report.json`, `report.md` and figures into `out`.

    Vectors and stage results found in `out` are reused if their keys (settings, base fingerprint, data
    checksums) are the same. A vector made with other settings is an error, never overwritten; evaluations and
    the report are made anew.

    Args:
        recipe: what to do.
        out: the output folder.
        show_progress: bars on a terminal.

    Returns:
        Tables: addition per regime and task, negation and disentanglement error where the recipe asks for them,
        and what each stage took.
    """
    out = Path(out)
    encoder = load(recipe.model)
    if not isinstance(encoder, Encoder):
        raise UsageError(
            f"{recipe.model!r} is an edited tangent model; a recipe starts from a pre-trained one."
        )
    workshop = _Workshop(recipe, out, encoder, show_progress)
    report = workshop.report()
    store.write_text(out / "report.json", report.to_json())
    store.write_text(out / "report.md", report.to_markdown())
    for path in figures.draw(report, out):
        log.info("wrote %s", path)
    return report


class _Workshop:
    """A recipe under way."""

    def __init__(self, recipe: Recipe, out: Path, encoder: Encoder, show: bool) -> None:
        self.recipe, self.out, self.encoder, self.show = recipe, out, encoder, show
        rows = dataclasses.asdict(recipe.rows)
        self.tasks = [find_task(name).subset(**rows) for name in recipe.tasks]
        self.base = fingerprint_of(encoder)
        self.costs: dict[tuple[str, str], list[_Stage]] = {}
        self._vectors: dict[tuple[Regime, int], dict[Task, TaskVector]] = {}

    def _settings(self, regime: Regime, seed: int) -> Settings:
        training = dataclasses.asdict(self.recipe.finetune)
        rates = {"standard": training.pop("lr_standard"), "linear": training.pop("lr_linear")}
        point = self.recipe.point if regime == "linear" else None
        return Settings(
            regime=regime,
            seed=seed,
            lr=rates[regime],
            point=point,
            max_tokens=self.recipe.max_tokens,
            **training,
        )

    def _stage(
        self,
        regime: str,
        kind: str,
        name: str,
        key: Any,
        work: Callable[[], dict[str, Any]],
        made: Path | None = None,
    ) -> _Stage:
        """Do a piece of work once: its result lies in `stages/NAME.json` under its key, beside the file it `made`."""
        file = self.out / "stages" / f"{name}.json"
        digest = hashlib.sha256(
            json.dumps([__version__, key], sort_keys=True, default=str).encode()
        ).hexdigest()
        if file.exists() and (made is None or made.exists()):
            saved = store.read_json(file)
            if saved.get("key") == digest:
                stage = _Stage(saved["content"], Cost(**saved["cost"]), True)
                self.costs.setdefault((regime, kind), []).append(stage)
                return stage
        log.info("%s", name)
        with measured() as cost:
            content = work()
        store.write_json(file, {"key": digest, "cost": dataclasses.asdict(cost), "content": content})
        stage = _Stage(content, cost, False)
        self.costs.setdefault((regime, kind), []).append(stage)
        return stage

    def vectors(self, regime: Regime, seed: int) -> dict[Task, TaskVector]:
        """One vector per task, trained now or found; posthoc shares the standard ones."""
        if (regime, seed) in self._vectors:
            return self._vectors[regime, seed]
        settings = self._settings(regime, seed)
        found = {}
        for task in self.tasks:
            folder = self.out / "vectors" / f"{regime}-{task.name}-seed{seed}"

            def work(task: Task = task, folder: Path = folder) -> dict[str, Any]:
                done = train(self.encoder, task, settings, folder, resume=True, show_progress=self.show)
                return {"history": list(done.history)}

            key = settings.key(self.base + self.encoder.describe(), task.checksum())
            self._stage(regime, "fine-tune", f"finetune-{folder.name}", key, work, folder / FILE)
            found[task] = TaskVector.from_pretrained(folder)
        self._vectors[regime, seed] = found
        return found

    def _shared(self) -> dict[str, Any]:
        return {"grid": self.recipe.grid, "point": self.recipe.point, "max_tokens": self.recipe.max_tokens}

    def seed(self, regime: EditRegime, seed: int) -> tuple[Report, list[Report]]:
        """Addition and negations of one regime and seed."""
        vectors = self.vectors("linear" if regime == "linear" else "standard", seed)
        made = [vector.info["key"] for vector in vectors.values()]
        key = [made, regime, self._shared(), [task.checksum() for task in self.tasks]]

        def add() -> dict[str, Any]:
            report = search.add(self.encoder, vectors, regime, show_progress=self.show, **self._shared())
            return dict(json.loads(report.to_json()))

        added = self._stage(regime, "add", f"add-{regime}-seed{seed}", key, add)
        negated = []
        for target in [task for task in self.tasks if task.name in self.recipe.negate.targets]:
            controls = [task for task in self.tasks if task is not target]

            def negate(target: Task = target, controls: Sequence[Task] = controls) -> dict[str, Any]:
                report = search.negate(
                    self.encoder, target, vectors[target], controls, self.recipe.negate.floor, regime,
                    show_progress=self.show, **self._shared(),
                )  # fmt: skip
                return dict(json.loads(report.to_json()))

            name = f"negate-{target.name}-{regime}-seed{seed}"
            negated.append(
                self._stage(regime, "negate", name, [*key, self.recipe.negate.floor, target.name], negate)
            )
        return _restored(added), [_restored(stage) for stage in negated]

    def maps(self) -> list[Report]:
        """The disentanglement error of the first seed's vectors, one report a regime."""
        maps = self.recipe.disentangle
        if not maps.pairs:
            return []
        seed = self.recipe.seeds[0]
        pairs = None if maps.pairs == "all" else [(first, second) for first, second in maps.pairs]
        shared: dict[str, Any] = {
            "point": self.recipe.point, "max_tokens": self.recipe.max_tokens,
            "distance": maps.distance, "grid": maps.grid or GRID,
        }  # fmt: skip
        found = []
        for regime in maps.regimes or self.recipe.regimes:
            vectors = {
                task.subset(test=maps.rows): vector
                for task, vector in self.vectors("linear" if regime == "linear" else "standard", seed).items()
            }
            made = [vector.info["key"] for vector in vectors.values()]
            key = [made, regime, pairs, shared, [task.checksum() for task in vectors]]

            def draw(
                regime: EditRegime = regime, vectors: dict[Task, TaskVector] = vectors
            ) -> dict[str, Any]:
                report = disentanglement(
                    self.encoder, vectors, regime, pairs=pairs, show_progress=self.show, **shared
                )
                return dict(json.loads(report.to_json()))

            stage = self._stage(regime, "disentangle", f"disentangle-{regime}-seed{seed}", key, draw)
            found.append(_restored(stage))
        return found

    def merging(self, regime: EditRegime, seed: int) -> Report:
        """The merging methods side by side, for one regime and seed."""
        vectors = self.vectors("linear" if regime == "linear" else "standard", seed)
        shared: dict[str, Any] = {
            **self._shared(),
            "grid": self.recipe.merge.grid or search.WIDE_GRID,
            "seed": seed,
        }
        methods: search.Methods = {name: (name, {}) for name in self.recipe.merge.methods}
        made = [vector.info["key"] for vector in vectors.values()]
        key = [made, regime, shared, list(methods), [task.checksum() for task in self.tasks]]

        def work() -> dict[str, Any]:
            report = search.compare(self.encoder, vectors, methods, regime, show_progress=self.show, **shared)
            return dict(json.loads(report.to_json()))

        return _restored(self._stage(regime, "merge", f"merge-{regime}-seed{seed}", key, work))

    def merging_rows(self) -> list[dict[str, Cell]]:
        """One row a regime and method, over all seeds."""
        rows: list[dict[str, Cell]] = []
        for regime in self.recipe.merge.regimes or self.recipe.regimes if self.recipe.merge.methods else ():
            done = [self.merging(regime, seed).tables[0].rows for seed in self.recipe.seeds]
            for place, method in enumerate(self.recipe.merge.methods):
                columns = _spread([found[place] for found in done], ("alpha", *_ADDITION[1:]))
                rows.append({"regime": regime, "method": method, **columns})
        return rows

    def report(self) -> Report:
        """Everything the recipe asks for, a table for each part."""
        addition: list[dict[str, Cell]] = []
        negation: list[dict[str, Cell]] = []
        series: list[dict[str, Any]] = []
        means: dict[str, Any] = {}
        alphas: dict[str, list[float]] = {}
        for regime in self.recipe.regimes:
            done = [self.seed(regime, seed) for seed in self.recipe.seeds]
            alphas[regime] = [added.result["alpha"] for added, _ in done]
            means[regime] = {}
            for index, name in enumerate([*self.recipe.tasks, "mean"]):
                per_seed = [added.tables[0].rows[index] for added, _ in done]
                addition.append({"regime": regime, "task": name, **_spread(per_seed, _ADDITION)})
                means[regime][name] = {
                    c: statistics.fmean(float(row[c] or 0) for row in per_seed) for c in _ADDITION
                }
            for index, target in enumerate(self._targets()):
                runs = [negated[index].tables[0].rows for _, negated in done]
                for place, label in enumerate(("pre-trained", "negated", "alpha = 1")):
                    columns = _spread(
                        [rows[place] for rows in runs], ("alpha", "target", "control", "control kept")
                    )
                    negation.append({"regime": regime, "target task": target, "model": label, **columns})
            first_added, first_negated = done[0]
            series += [{**entry, "group": "alpha-addition"} for entry in first_added.series]
            for target, one in zip(self._targets(), first_negated, strict=True):
                series += [{**entry, "group": f"alpha-negation-{target}"} for entry in one.series]
        seeds = self.recipe.seeds
        spread = (
            f"{len(seeds)} seeds, mean ± standard deviation"
            if len(seeds) > 1
            else f"one seed ({seeds[0]}): no spread is known"
        )
        chosen = "; ".join(f"{r} {', '.join(f'{a:g}' for a in values)}" for r, values in alphas.items())
        tables = [
            Table("1. Addition, test accuracy", addition, f"{spread}; alpha chosen on validation: {chosen}")
        ]
        if negation:
            floor = self.recipe.negate.floor
            tables.append(
                Table(
                    "2. Negation, test accuracy",
                    negation,
                    f"{spread}; control kept >= {floor:g} on validation",
                )
            )
        maps = self.maps()
        if maps:
            rows = [row for one in maps for row in one.tables[0].rows]
            note = f"seed {seeds[0]}; {maps[0].tables[0].note}"
            tables.append(Table(f"{len(tables) + 1}. Disentanglement error", rows, note))
            series += [entry for one in maps for entry in one.series]
        merged = self.merging_rows()
        if merged:
            note = (
                f"{spread}; means over tasks, methods with their default options, alpha chosen on validation"
            )
            tables.append(Table(f"{len(tables) + 1}. Merging, test accuracy", merged, note))
        tables.append(
            Table(f"{len(tables) + 1}. Cost", self._cost_rows(), "peak memory is the whole process's")
        )
        facts = provenance(recipe=self.recipe.as_dict(), base=self.encoder.source, fingerprint=self.base)
        result = {"alpha": alphas, "addition": means, "seeds": spread}
        if maps:
            result["disentanglement"] = {one.result["regime"]: one.result["pairs"] for one in maps}
        return Report(self.recipe.title, tables, facts, series, result)

    def _targets(self) -> list[str]:
        return [name for name in self.recipe.tasks if name in self.recipe.negate.targets]

    def _cost_rows(self) -> list[dict[str, Cell]]:
        rows: list[dict[str, Cell]] = []
        for (regime, kind), stages in self.costs.items():
            fresh = [stage for stage in stages if not stage.reused]
            rows.append({
                "regime": regime, "stage": kind, "runs": len(stages), "reused": len(stages) - len(fresh),
                "seconds": round(sum(stage.cost.seconds for stage in stages), 1),
                "peak MB": round(max(stage.cost.peak_mb for stage in stages)),
            })  # fmt: skip
        return rows


def _restored(stage: _Stage) -> Report:
    return Report.from_json(json.dumps(stage.content))


def _spread(rows: Sequence[dict[str, Cell]], columns: Sequence[str]) -> dict[str, Cell]:
    """Each column's value, or its mean and sample standard deviation over the seeds."""
    cells: dict[str, Cell] = {}
    for column in columns:
        values = [float(row[column] or 0) for row in rows]
        mean = statistics.fmean(values)
        cells[column] = mean if len(values) == 1 else f"{mean:.3f} ± {statistics.stdev(values):.3f}"
    return cells
