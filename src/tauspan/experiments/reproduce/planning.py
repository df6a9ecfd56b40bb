"""What a reproduction will fetch, train and cost, before it starts; what exists already is not counted again."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path

from tauspan.core.arguments import checked
from tauspan.core.report import Cell, Report, Table, duration, in_words, provenance
from tauspan.editing.model.edit import load
from tauspan.experiments.reproduce.experiment import Changes, Experiment, Rates, experiment, recipes, variant
from tauspan.experiments.reproduce.presets import PRESETS
from tauspan.experiments.reproduce.rates import FOLDER, trials
from tauspan.experiments.reproduce.timing import StepTime, step_time
from tauspan.experiments.run import Addition, Recipe
from tauspan.experiments.run.vectors import Finetuning, finetunings
from tauspan.models import Encoder, core, named_unique, select
from tauspan.models.extras import require_extra
from tauspan.models.sources import PACKAGED
from tauspan.tasks.data import catalog
from tauspan.tasks.data.suite import NAMES, find_task
from tauspan.vector import FILE

_COPIES = 5  # theta0, the trained copy or tau, its gradient and AdamW's two moments
_FLOAT = 4  # bytes


@dataclasses.dataclass(frozen=True)
class Training:
    """A fine-tuning: its part, its steps, and whether its vector exists or will be linked from a trial."""

    part: str
    which: Finetuning
    steps: int
    done: bool
    linked: bool = False

    @property
    def left(self) -> bool:
        """Whether the vector still has to be trained."""
        return not (self.done or self.linked)


@dataclasses.dataclass(frozen=True)
class Fetch:
    """A model or data set that is needed.

    `here` says whether it is on this machine; None means that a library's cache may hold it.
    """

    what: str
    gb: float | None
    where: str
    here: bool | None


@dataclasses.dataclass(frozen=True)
class Plan:
    """A reproduction before it starts.

    Args:
        name: of the experiment.
        experiment: its file.
        variant: the variant's name.
        what: the variant's sentence.
        recipes: one for each part.
        rates: the learning rates validation chooses among, or None.
        out: the output folder.
        workers: fine-tunings, and then evaluations, at the same time.
        device: where everything is computed; None is the CPU.
        parameters: how many train; None where the model is not here and no preset.
        times: seconds of a step by regime; empty: not measured.
    """

    name: str
    experiment: Experiment
    variant: str
    what: str
    recipes: Mapping[str, Recipe]
    rates: Rates | None
    out: Path
    workers: int
    device: str | None
    parameters: int | None
    times: Mapping[str, StepTime]

    @property
    def model(self) -> str:
        """The model, as `tauspan.load` takes it."""
        return next(iter(self.recipes.values())).model

    def fetches(self) -> list[Fetch]:
        """The model and every data set that the recipes name."""
        found = [_model_fetch(self.model)]
        for recipe in self.recipes.values():
            found += [_data_fetch(name, recipe.data) for name in (*recipe.tasks, *recipe.controls)]
        return list(dict.fromkeys(found))

    def missing_gb(self) -> float:
        """What may have to be downloaded, in GB."""
        return sum(fetch.gb or 0.0 for fetch in self.fetches() if not fetch.here)

    def trainings(self) -> list[Training]:
        """Every fine-tuning, trials of learning rates first."""
        found: list[Training] = []
        for part, recipe in self.recipes.items():
            out = self.out / part
            tried = trials(recipe, self.rates, out / FOLDER) if self.rates else []
            for trial in tried:
                found += _trainings(f"{part}, learning rates", trial.recipe, trial.out, set())
            linked = {which for trial in tried for which in finetunings(trial.recipe)}
            found += _trainings(part, recipe, out, linked)
        return found

    def report(self) -> Report:
        """The plan as tables."""
        trainings = self.trainings()
        tables = [
            Table("To fetch", [_fetch_row(fetch) for fetch in self.fetches()]),
            Table("To train", list(_training_rows(trainings)), self._training_note(trainings)),
        ]
        costs = list(self._cost_rows(trainings))
        if costs:
            tables.append(
                Table("Cost", costs, "" if self.times else "times are not known: no step was timed here")
            )
        facts = provenance(variant=self.variant, recipes={p: r.as_dict() for p, r in self.recipes.items()})
        result = {
            "trainings": len(trainings), "done": sum(one.done for one in trainings),
            "steps_left": sum(one.steps for one in trainings if one.left), "download_gb": self.missing_gb(),
        }  # fmt: skip
        return Report(f"{self.experiment.title} ({self.variant}): plan", tables, facts, result=result)

    def _training_note(self, trainings: Sequence[Training]) -> str:
        if not trainings:
            return "nothing: the model is measured as it is"
        recipe = next(iter(self.recipes.values()))
        tuned = recipe.finetune
        note = (
            f"{self.variant}: {self.what}. AdamW, {tuned.batch_size} x {tuned.accumulation} rows a step, warm-up "
            f"{tuned.warmup:g}, cosine to 0, decay {tuned.weight_decay:g} toward {tuned.decay_toward}, clip "
            f"{tuned.clip:g}, augmentation {tuned.augment}, linearised at {recipe.point}; seeds "
            f"{', '.join(map(str, recipe.seeds))}; steps from the data sets' published sizes; joint: about as many "
            "steps as all single fine-tunings together"
        )
        if self.rates:
            note += (
                f". Learning rates tried: standard {_listed(self.rates.standard)}; linear "
                f"{_listed(self.rates.linear)}; the chosen rate's vectors are used again"
            )
        return note

    def _cost_rows(self, trainings: Sequence[Training]) -> Iterator[dict[str, Cell]]:
        left = [one for one in trainings if one.left]
        seconds = 0.0
        for regime, taken in self.times.items():
            seconds += taken.seconds * sum(one.steps for one in left if one.which.regime == regime)
            how = f"forward and backward of {taken.rows} rows here, scaled"
            yield {"what": f"one {regime} step", "value": f"{taken.seconds:.3g} s", "how known": how}
        if {one.which.regime for one in left} <= set(self.times) and left:
            workers = f"{self.workers} workers would share it" if self.workers > 1 else "one worker"
            how = f"{sum(one.steps for one in left)} steps; {workers}; without evaluations"
            yield {"what": "fine-tuning that is left", "value": duration(seconds), "how known": how}
        if self.parameters is None or not trainings:
            return
        size, files = self.parameters * _FLOAT, sum(not one.linked for one in trainings)
        yield {"what": "disk for vectors", "value": in_words(size * files),
               "how known": f"{files} x {in_words(size)}, float32"}  # fmt: skip
        yield {"what": "memory for parameters", "value": in_words(size * _COPIES),
               "how known": "theta0, what trains, gradient, two moments; a worker; activations on top"}  # fmt: skip
        for regime, taken in self.times.items():
            yield {"what": f"peak memory, {regime}", "value": in_words(int(taken.peak_mb * 2**20)),
                   "how known": f"this process at {taken.rows} rows, without the optimiser"}  # fmt: skip


@checked
def plan(
    name: str, variant_name: str | None = None, changes: Changes | None = None, out: str | Path | None = None, *,
    workers: int = 1, measure: bool = False, device: str | None = None,
) -> Plan:  # fmt: skip
    """Prepare a reproduction; nothing is fetched, trained or written.

    Args:
        name: of the experiment.
        variant_name: `"paper"`, `"corrected"`; None takes the experiment's default.
        changes: what differs from its file.
        out: the output folder; None takes `out/reproduce/NAME-VARIANT`.
        workers: fine-tunings, and then evaluations, at the same time.
        measure: load the model, if it is on this machine, and time a step of each regime for a few seconds.
        device: where everything is computed; see `tauspan.load`.
    """
    found = experiment(name)
    chosen = variant_name or found.default
    what, _, rates = variant(found, chosen)
    made = recipes(name, chosen, changes)
    first = next(iter(made.values()))
    here = _is_here(first.model)
    preset = next((one for one in PRESETS.values() if one.source == first.model), None)
    parameters, times = preset.parameters if preset else None, {}
    if here and (measure or preset is None):
        encoder = load(first.model, device)
        if isinstance(encoder, Encoder):
            known = named_unique(core(encoder)[0])
            parameters = sum(known[key].numel() for key in select(encoder, first.finetune.params))
            times = _times(encoder, first) if measure else {}
    folder = Path(out) if out else Path("out") / "reproduce" / f"{name}-{chosen}"
    return Plan(name, found, chosen, what, made, rates, folder, workers, device, parameters, times)


def preset_name(source: str) -> str | None:
    """The paper's name of a model, if it is one of the presets."""
    return next((name for name, preset in PRESETS.items() if preset.source == source), None)


def _times(encoder: Encoder, recipe: Recipe) -> dict[str, StepTime]:
    """The time of a step for each regime that is trained."""
    needed = {which.regime: which for which in Addition().finetunings(recipe)}
    return {
        regime: step_time(encoder, recipe.settings(needed[regime])) for regime in sorted(needed, reverse=True)
    }


# -- what is there -----------------------------------------------------------------------------------------------


def _is_here(source: str) -> bool:
    """Whether a model needs no download."""
    if source in PACKAGED or Path(source).is_dir():
        return True
    hub = require_extra("huggingface_hub", "transformers", f"the hub id {source!r}")
    name, _, revision = source.partition("@")
    try:
        return hub.try_to_load_from_cache(name, "config.json", revision=revision or None) is not None
    except ValueError:  # not a hub id either; loading the model raises the error
        return False


def _model_fetch(source: str) -> Fetch:
    name = preset_name(source)
    gb = PRESETS[name].download_gb if name else None
    return Fetch(f"model {name or source}", gb, source, _is_here(source))


def _data_fetch(name: str, root: str | None) -> Fetch:
    if name in NAMES:
        return Fetch(name, 0.0, "shipped", True)
    known = catalog()[name]
    if root is not None:
        return Fetch(name, known.download_gb, f"{root}/{name}", (Path(root) / name).is_dir())
    return Fetch(name, known.download_gb, f"hub: {known.hub.id}", None)


def _trainings(part: str, recipe: Recipe, out: Path, linked: Set[Finetuning]) -> list[Training]:
    """A recipe's fine-tunings; the vectors of those in `linked` come from the trials of learning rates."""
    steps = {name: _steps(recipe, name) for name in recipe.tasks}
    found = []
    for which in finetunings(recipe):
        own = sum(steps.values()) if which.task is None else steps[which.task]
        here = (out / "vectors" / which.folder(which.task) / FILE).is_file()
        found.append(Training(part, which, own, here, which in linked))
    return found


def _steps(recipe: Recipe, name: str) -> int:
    """The number of optimiser steps of fine-tuning on one task."""
    most = recipe.rows.train
    rows = len(find_task(name).split("train")) if name in NAMES else catalog()[name].sizes.train
    return recipe.settings(Finetuning("standard", name, 0)).steps(rows if most is None else min(most, rows))


# -- as rows -----------------------------------------------------------------------------------------------------


def _fetch_row(fetch: Fetch) -> dict[str, Cell]:
    here = {True: "here", False: "to be fetched", None: "fetched unless cached"}[fetch.here]
    return {"what": fetch.what, "GB": fetch.gb, "from": fetch.where, "state": here}


def _training_rows(trainings: Sequence[Training]) -> Iterator[dict[str, Cell]]:
    for part, kind in dict.fromkeys((one.part, one.which.kind) for one in trainings):
        here = [one for one in trainings if (one.part, one.which.kind) == (part, kind)]
        each = sorted(one.steps for one in here)
        yield {
            "part": part, "fine-tuning": kind, "number": len(here), "done": sum(one.done for one in here),
            "from trials": sum(one.linked and not one.done for one in here),
            "steps each": f"{each[0]}" if each[0] == each[-1] else f"{each[0]} to {each[-1]}",
            "steps left": sum(one.steps for one in here if one.left),
        }  # fmt: skip


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)
