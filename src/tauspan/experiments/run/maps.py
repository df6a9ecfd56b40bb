"""Maps of the disentanglement error, with the first seed's vectors."""

from collections.abc import Mapping
from typing import Any, cast

from tauspan.core.choices import EditRegime
from tauspan.core.report import Cell, Report, Table
from tauspan.editing import disentanglement
from tauspan.editing.maps.asked import GRID
from tauspan.experiments.run.courses import course_of
from tauspan.experiments.run.workshop import Evaluation, Workshop
from tauspan.kernel.diagnose.rows import Findings


def maps(shop: Workshop) -> Findings:
    """The error of every pair and regime that the recipe asks for; nothing where it asks for none.

    At matched drift every regime has the units of the first one, so that they move the outputs equally far.
    """
    asked = shop.recipe.disentangle
    if not asked.pairs:
        return Findings([], [], {})
    first, *others = regimes_of(shop)
    done = [_map(shop, first, asked.drift)]
    units = _units(done[0])
    done += [_map(shop, regime, units) for regime in others]
    series = [entry for one in done for entry in one.series]
    result = {"disentanglement": {one.result["regime"]: one.result["pairs"] for one in done}}
    if asked.drift:
        result["disentanglement_drift"] = {one.result["regime"]: one.result["drift"] for one in done}
    return Findings(_tables(shop, done, first), series, result)


def regimes_of(shop: Workshop) -> tuple[EditRegime, ...]:
    """The regimes that are mapped; none where no pair is asked for."""
    asked = shop.recipe.disentangle
    return asked.regimes or shop.recipe.regimes if asked.pairs else ()


def mapped(shop: Workshop, which: Evaluation) -> Report:
    """The maps of one regime, in the units of the first one's, which are made before if they are not there."""
    regime, first = cast(EditRegime, which.about[0]), regimes_of(shop)[0]
    asked = shop.recipe.disentangle.drift
    return _map(shop, regime, _units(_map(shop, first, asked)) if asked and regime != first else asked)


def _units(first: Report) -> bool | Mapping[str, float]:
    drift: Mapping[str, Any] | None = first.result.get("drift")
    return False if drift is None else cast(Mapping[str, float], drift["unit"])


def _tables(shop: Workshop, done: list[Report], first: EditRegime) -> list[Table]:
    seed, title = f"seed {shop.recipe.seeds[0]}", "Disentanglement error"
    rows = [row for one in done for row in one.tables[0].rows]
    note = f"{seed}; {done[0].tables[0].note}"
    if not shop.recipe.disentangle.drift:
        return [Table(title, rows, note)]
    units = f"axes: multiples of each task's unit, the drift that the {first} vectors have at alpha 1"
    drifts: list[dict[str, Cell]] = [
        {"regime": one.result["regime"], **row} for one in done for row in one.tables[1].rows
    ]
    return [
        Table(f"{title} at equal alpha", _with_axes(rows, "equal alpha"), note),
        Table(f"{title} at matched drift", _with_axes(rows, "matched drift"), f"{note}; {units}"),
        Table("Drift", drifts, f"{seed}; {done[0].tables[1].note}"),
    ]


def _with_axes(rows: list[dict[str, Cell]], axes: str) -> list[dict[str, Cell]]:
    return [
        {name: cell for name, cell in row.items() if name != "axes"} for row in rows if row["axes"] == axes
    ]


def _map(shop: Workshop, regime: EditRegime, drift: bool | Mapping[str, float]) -> Report:
    asked, seed = shop.recipe.disentangle, shop.recipe.seeds[0]
    pairs = None
    if asked.pairs != "all":
        pairs = [(shop.task(first).name, shop.task(second).name) for first, second in asked.pairs]
    shared: dict[str, Any] = {"distance": asked.distance, "grid": asked.grid or GRID}
    if drift:  # the keys of maps without it are those of the first version
        shared["drift"] = drift
    vectors = {
        shop.fewer(task, asked.rows): vector for task, vector in shop.vectors(course_of(regime), seed).items()
    }

    def work() -> Report:
        return disentanglement(
            shop.encoder(seed), vectors, regime, pairs=pairs, reading=shop.reading, **shared
        ).report()

    key = shop.key(
        vectors, regime, pairs, {"point": shop.recipe.point, "max_tokens": shop.recipe.max_tokens, **shared}
    )
    which = Evaluation("disentangle", (regime,), seed)
    return shop.stages.report(regime, "disentangle", which.name, key, work)
