"""A training beside its lazy path as a sentence, tables, series and numbers."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from tauspan.core.report import Cell, Table
from tauspan.kernel.diagnose.departure import Departure
from tauspan.kernel.diagnose.rows import Findings
from tauspan.kernel.diagnose.walk import PathName, PathPoint, RowsName


def departure_in_words(leaves: Departure, predicted: Departure | None) -> str:
    """Until which step the tangent model carries, on the training rows; docs/verdicts.md has the rules."""
    if leaves.largest is None:
        return (
            f"Nothing moved: the outputs are those of the start at all points, to step {leaves.last}. `state_dict()` "
            "gives tensors that training goes on to change: keep copies, as a `Recorder` does."
        )
    share = f"{100 * leaves.tolerance:g} %"
    if leaves.step is None:
        words = (
            f"The net stays within {share} of its linearisation at all points, to step {leaves.last}: its error is at "
            f"most {leaves.largest:.3g} of |f - f_0|, and the training is lazy as far as these points show."
        )
    else:
        words = (
            f"The net leaves its linearisation at about step {leaves.step:.4g}: between the points at steps "
            f"{_between(leaves)} the error passes {share} of |f - f_0| on the training rows (95 % over rows: "
            f"{_interval(leaves)})."
        )
    if predicted is None:
        return words
    if predicted.step is None:
        return f"{words} It stays within {share} of the closed form of gradient descent too."
    return (
        f"{words} It leaves the path that its first kernel predicts at about step {predicted.step:.4g} (between "
        f"{_between(predicted)})."
    )


def _between(one: Departure) -> str:
    return "" if one.between is None else f"{one.between[0]} and {one.between[1]}"


def _interval(one: Departure) -> str:
    """The bootstrap's interval; where some draws do not leave, its open end."""
    low, high = (None if end is None else f"{end:.4g}" for end in one.interval)
    return f"{low or f'after {one.last}'} to {high or f'after {one.last}'}"


def trajectory_section(
    points: Sequence[PathPoint],
    departures: Mapping[tuple[PathName, RowsName], Departure],
    rows: tuple[int, int, int],
) -> Findings:
    """Losses of all paths, how far things moved, when each path is left, and one picture."""
    motion = [_motion(point) for point in points]
    left: list[dict[str, Cell]] = [
        {
            "path": path, "rows": on, "step": one.step, "after": one.between[0] if one.between else None,
            "by": one.between[1] if one.between else None, "low": one.interval[0], "high": one.interval[1],
            "draws": one.leaving, "largest": one.largest,
        }
        for (path, on), one in departures.items()
    ]  # fmt: skip
    tolerance = next(iter(departures.values())).tolerance
    about = "Mean losses; tangent: f_0 + J (theta_t - theta_0), the net to first order" + (
        "; predicted: gradient descent of the tangent model in closed form."
        if ("predicted", "train") in departures
        else "."
    )
    meant = (
        "moved: |theta_t - theta_0| / |theta_0|; error: |f_t - f_0 - J tau| / |f_t - f_0| on training rows; distance, "
        f"change and alignment of the tangent kernel of {rows[2]} training rows: 1 - cosine, |K_t - K_0| / |K_0|, and "
        "the cosine with the centred targets."
    )
    when = (
        f"The first step at which |f_t - g_t| / |f_t - f_0| passes {tolerance:g}, between two points (after, by); low "
        "and high: 95 % of the bootstrap over rows; draws: the share of them that leaves; largest: of all points."
    )
    losses = [
        Table(f"Losses of {count} {on} rows", [_losses(point, on) for point in points], about)
        for on, count in zip(points[0].scores, rows, strict=False)
    ]
    tables = [*losses, Table("Motion", motion, meant), Table("Leaving", left, when)]
    result = {"points": [_facts(point) for point in points], "departures": [
        {"path": path, "rows": on, **asdict(one)} for (path, on), one in departures.items()
    ]}  # fmt: skip
    return Findings(tables, [trajectory_series(points, departures)], result)


def trajectory_series(
    points: Sequence[PathPoint],
    departures: Mapping[tuple[PathName, RowsName], Departure],
    title: str = "",
) -> dict[str, Any]:
    """What a picture of a training shows: losses, errors, and the kernel's motion over the steps."""
    leaves = departures["tangent", "train"]
    return {
        "kind": "trajectory", "group": "trajectory", "title": title, "steps": [point.step for point in points],
        "losses": {
            f"{path}, {on}": [point.scores[on][path].loss for point in points]
            for on in points[0].scores for path in points[0].scores[on]
        },
        "errors": {
            f"{path}, {on}": [point.scores[on][path].apart for point in points] for path, on in departures
        },
        "kernel": {
            name: values
            for name, values in (
                ("alignment", [point.alignment for point in points]),
                ("relative change", [point.change for point in points]),
            )
            if values[0] is not None
        },
        "tolerance": leaves.tolerance, "between": None if leaves.between is None else list(leaves.between),
        "leaves": leaves.step,
    }  # fmt: skip


def _losses(point: PathPoint, on: RowsName) -> dict[str, Cell]:
    paths = point.scores[on]
    known = {path: score.accuracy for path, score in paths.items() if score.accuracy is not None}
    return {
        "step": point.step,
        **{path: score.loss for path, score in paths.items()},
        **{f"{path} accuracy": accuracy for path, accuracy in known.items()},
    }


def _motion(point: PathPoint) -> dict[str, Cell]:
    row: dict[str, Cell] = {
        "step": point.step, "moved": point.moved, "error": point.scores["train"]["tangent"].apart,
    }  # fmt: skip
    if point.distance is not None:
        row |= {"distance": point.distance, "change": point.change, "alignment": point.alignment}
    return row


def _facts(point: PathPoint) -> dict[str, Any]:
    scores = {
        on: {path: score._asdict() for path, score in paths.items()} for on, paths in point.scores.items()
    }
    return {
        "step": point.step, "moved": point.moved, "distance": point.distance, "change": point.change,
        "alignment": point.alignment, "scores": scores,
    }  # fmt: skip
