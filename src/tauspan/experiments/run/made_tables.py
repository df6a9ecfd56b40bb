"""The tables of a comparison of ways: accuracies, differences in pairs of rows, rules, negation, cost."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from tauspan.core.report import Cell, Table
from tauspan.experiments.run.paired import bits, difference, note
from tauspan.experiments.run.spread import in_words, spread
from tauspan.tasks import Task

Found: TypeAlias = Mapping[str, Any]
Done: TypeAlias = Mapping[str, Sequence[Found]]


def tables(seeds: Sequence[int], tasks: Sequence[Task], done: Done, floor: float) -> list[Table]:
    """All tables; `done` has what each way gave, seed by seed."""
    words = in_words(seeds)
    if len(seeds) > 1:
        words += " of training, on the same rows"
    apart = {name: found for name, found in done.items() if "xi" in found[0]}
    intervals = note(seeds)
    made = [
        _accuracies(words, done),
        *_differences(f"{words}; {intervals}", tasks, done),
        _rules(words, apart),
    ]
    made += _between_rules(f"{words}; {intervals}", tasks, apart, done)
    return [*made, _negations(words, apart, floor), _choices(done)]


def _accuracies(words: str, done: Done) -> Table:
    rows = []
    for name, found in done.items():
        cells = [_means(one) for one in found]
        rows.append({
            "way": name, **spread(cells, _COLUMNS[:2]), **_cost(found), **spread(cells, _COLUMNS[2:]),
        })  # fmt: skip
    before = _mean(next(iter(done.values()))[0]["zero shot"]) or 0.0
    told = (
        f"{words}; test split, means over tasks; pre-trained {before:.3f}; single: a task's own vector at 1; sum at 1: "
        "all vectors, no search; seconds: to make the vectors of all tasks once, without what they need from other ways, "
        "the mean over the seeds but the first; MB: peak of the process, which may make several ways; norm.: over single "
        "of the same way; tuned: alpha chosen on validation; changed: share of test rows whose class differs between own "
        "vector and sum; drift: rms change of the logits by the other vectors over that by the own one; xi: mean "
        "disentanglement error over the grid's points in [0, 1]^2, of ordinary vectors on fewer rows"
    )
    return Table("Ways to make vectors, test accuracy and cost", rows, told)


_REFERENCES = ("standard", "linear", "linear-expand", "joint-standard", "joint-linear")
_COLUMNS = ("single", "sum at 1", "norm.", "tuned", "alpha", "changed", "drift", "xi")


def _cost(found: Sequence[Found]) -> dict[str, Cell]:
    """Seconds to make the vectors, of the seeds with which nothing was tried, and the peak of the process."""
    seconds = _mean([one["seconds"] for one in found[1:] or found]) or 0.0
    return {
        "seconds": round(seconds) if seconds >= 10 else round(seconds, 1),
        "MB": round(max(one["cost"].peak_mb for one in found)),
    }


def _means(found: Found) -> dict[str, Cell]:
    added = _rule(found, "sum")
    return {
        "single": _mean(_accuracy(found["bits"]["single"])), "sum at 1": added.pop("at 1"), **added,
        **{name: found.get(name) for name in ("changed", "drift", "xi")},
    }  # fmt: skip


def _differences(words: str, tasks: Sequence[Task], done: Done) -> list[Table]:
    """The sum at 1 of each way less that of a reference, in pairs of test rows."""
    references = [name for name in _REFERENCES if name in done]
    rows: list[dict[str, Cell]] = []
    for name, found in done.items():
        cells: dict[str, Cell] = {"way": name}
        for reference in references:
            if name != reference:
                cells[f"less {reference}"] = difference(
                    tasks, *([one["bits"]["sum"] for one in some] for some in (found, done[reference]))
                )
        if len(cells) > 1:
            rows.append(cells)
    told = f"{words}; mean accuracy of the sum at 1 less that of a reference"
    return [Table("Differences in pairs of test rows", rows, told)] if rows else []


def _between_rules(words: str, tasks: Sequence[Task], apart: Done, done: Done) -> list[Table]:
    """Each rule at 1 less the sum at 1 of the same vectors, and less joint training, in pairs of test rows."""
    joint = {name: done[name] for name in ("joint-standard", "joint-linear") if name in done}
    rows: list[dict[str, Cell]] = []
    for name, found in apart.items():
        for rule in found[0]["rules"]:
            if rule == "sum":
                continue
            cells: dict[str, Cell] = {"way": name, "rule": rule}
            for reference, other in {"the sum": found, **joint}.items():
                cells[f"less {reference}"] = difference(
                    tasks, [one["bits"][rule] for one in found], [one["bits"]["sum"] for one in other]
                )
            rows.append(cells)
    told = f"{words}; mean accuracy of a rule at 1 less that of the sum of the same vectors at 1, and of joint training"
    return [Table("Differences of rules in pairs of test rows", rows, told)] if rows else []


def _rules(words: str, done: Done) -> Table:
    rows: list[dict[str, Cell]] = []
    for name, found in done.items():
        for rule in found[0]["rules"]:
            cells = [_rule(one, rule) for one in found]
            rows.append({"way": name, "rule": rule, **spread(cells, ("at 1", "norm.", "tuned", "alpha"))})
    told = f"{words}; test split, means over tasks; rules with their default options; tuned: alpha chosen on validation"
    return Table("Rules that merge the vectors of each way, test accuracy", rows, told)


def _rule(found: Found, rule: str) -> dict[str, Cell]:
    at_one, single = _accuracy(found["bits"][rule]), _accuracy(found["bits"]["single"])
    tuned = found["rules"][rule]
    return {
        "at 1": _mean(at_one), "norm.": _mean([of / own for of, own in zip(at_one, single, strict=True) if own]),
        "tuned": _mean(tuned["tuned"]), "alpha": tuned["alpha"],
    }  # fmt: skip


def _negations(words: str, done: Done, floor: float) -> Table:
    rows: list[dict[str, Cell]] = []
    for name, found in done.items():
        reached = sum(
            one["target at floor"] <= one["chance"] and one["kept at floor"] >= floor
            for seed in found
            for one in seed["negated"]
        )
        cells: list[dict[str, Cell]] = [
            {column: _mean([one[column] for one in seed["negated"]]) for column in _NEGATED} for seed in found
        ]
        of = sum(len(seed["negated"]) for seed in found)
        rows.append({"way": name, **spread(cells, _NEGATED), "reached": f"{reached} of {of}"})
    told = (
        f"{words}; test split, means over targets; target, kept: with coefficient 1; control: mean of the other "
        f"tasks, kept: over the pre-trained model's; alpha, at floor: the coefficient of least target accuracy with kept "
        f">= {floor:g} on validation; reached: targets at or below chance with kept >= {floor:g} on test, of all targets "
        "and seeds"
    )
    return Table("Negation", rows, told)


_NEGATED = ("target", "kept", "alpha", "target at floor", "kept at floor")


def _choices(done: Done) -> Table:
    rows: list[dict[str, Cell]] = []
    for name, found in done.items():
        tried = ", ".join(f"{value} {scores['sum']:.3f}" for value, scores in found[0]["tried"].items())
        value = found[0]["value"]
        rows.append({
            "way": name, "value": "" if value is None else f"{value:g}", "tried": tried,
            "ratio": _mean([one["ratio"] for one in found if one["ratio"] is not None]) if found[0]["ratio"] else None,
        })  # fmt: skip
    told = (
        "value: chosen with the first seed, a learning rate by the validation accuracy of single vectors, a weight by "
        "that of their sum at 1; tried: the latter, for each; ratio: approximate over exact drift E |J tau|^2 of the "
        "finished vectors, in every regime"
    )
    return Table("Choices", rows, told)


def picture(made: Mapping[str, Sequence[Found]]) -> dict[str, Any]:
    """What each way's vectors do alone and added, with joint training and the pre-trained model as references."""
    first = next(iter(made.values()))
    seeds = "one seed" if len(first) == 1 else f"{len(first)} seeds"
    added = {name: [_over(one, "sum") for one in found] for name, found in made.items()}
    references = {name: _mean(values) for name, values in added.items() if "xi" not in made[name][0]}
    return {
        "kind": "ways", "group": "made", "title": f"Ways to make vectors that are added, {seeds}",
        "measure": "test accuracy, mean over tasks",
        "references": {**references, "pre-trained": _mean(first[0]["zero shot"])},
        "rows": {
            name: {"single": [_over(one, "single") for one in found], "sum": added[name]}
            for name, found in made.items()
            if name not in references
        },
    }  # fmt: skip


def _over(found: Found, which: str) -> float:
    """The mean accuracy over tasks."""
    return _mean(_accuracy(found["bits"][which])) or 0.0


def _accuracy(right: Sequence[str]) -> list[float]:
    return [float(bits(text).mean()) for text in right]


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
