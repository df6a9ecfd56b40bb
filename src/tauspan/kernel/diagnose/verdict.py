"""What diagnostics say in a sentence or two, never stronger than their numbers; docs/verdicts.md has the rules."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tauspan.core.errors import listed
from tauspan.kernel.diagnose.kernels import TaskPairs, TaskSpectrum
from tauspan.kernel.diagnose.lazy import Linearity
from tauspan.kernel.diagnose.vectors import TaskInterference, TaskPath

LEVEL = 0.05  # the chance that one of all pairs is called disturbed though none is
CARRIES = 0.1  # the relative error up to which the tangent model is said to carry
_NAMED = 3  # pairs that a sentence names


@dataclass(frozen=True)
class Disturbed:
    """What one task's vector does to another task's predictions, beside the own vector, at coefficients of 1.

    Args:
        on: the task of the rows.
        by: the task of the vector.
        before: accuracy of the tangent model with the own vector.
        after: with both vectors.
        rows: N.
        lost: rows that were right and are wrong with both.
        gained: the reverse.
        moved: root mean square of the change by the other vector over that by the own one; None where that is 0.
        chance: the probability of so many lost among the changed rows if either way is as likely (one-sided sign test).
        beyond_chance: whether `chance` passes Holm's test over all pairs at a level of 5 %.
    """

    on: str
    by: str
    before: float
    after: float
    rows: int
    lost: int
    gained: int
    moved: float | None
    chance: float
    beyond_chance: bool


def disturbances(found: TaskInterference) -> list[Disturbed]:
    """Every ordered pair of tasks, the largest predicted loss of accuracy first.

    Args:
        found: changes and predicted accuracies of all pairs.
    """
    table, names = found.between.table("on"), list(found.between.tasks)
    pairs = []
    for one in found.accuracies:
        for by, after in one.with_other.items():
            lost, gained = one.changed[by]
            moved = float(table[names.index(one.on), names.index(by)])
            known = moved if math.isfinite(moved) else None
            chance = sign_test(lost, gained)
            pairs.append(
                Disturbed(one.on, by, one.alone, after, one.rows, lost, gained, known, chance, False)
            )
    passed = holm([pair.chance for pair in pairs])
    judged = [
        Disturbed(**{**vars(pair), "beyond_chance": ok}) for pair, ok in zip(pairs, passed, strict=True)
    ]
    return sorted(judged, key=lambda pair: pair.after - pair.before)


def sign_test(lost: int, gained: int) -> float:
    """P(X >= lost) for X binomial of lost + gained trials with probability 1/2.

    Example:
        >>> sign_test(6, 0), sign_test(1, 1), sign_test(0, 0)
        (0.015625, 0.75, 1.0)
    """
    count = lost + gained
    ways = sum(math.comb(count, more) for more in range(lost, count + 1))
    return float(ways / 2**count)


def holm(chances: Sequence[float], level: float = LEVEL) -> list[bool]:
    """Which of several tests pass when the chance that any of them passes wrongly is to be at most `level`.

    Example:
        >>> holm([0.03, 0.001, 0.04])
        [False, True, False]
        >>> holm([0.03, 0.03])
        [False, False]
    """
    order = sorted(range(len(chances)), key=lambda place: chances[place])
    passed = [False] * len(chances)
    for rank, place in enumerate(order):
        if chances[place] > level / (len(chances) - rank):
            break
        passed[place] = True
    return passed


def disturbance_in_words(found: TaskInterference) -> str:
    """Which tasks disturb each other, and by how much."""
    pairs = disturbances(found)
    beyond = [pair for pair in pairs if pair.beyond_chance]
    worst = (beyond or pairs)[0]
    size = "" if worst.moved is None else (
        f" Its vector moves the logits there {worst.moved:.2f} times as far as {worst.on}'s own."
    )  # fmt: skip
    if not beyond:
        words = (
            f"On these rows no task disturbs another beyond chance ({_counted(len(pairs), 'ordered pair')}"
        )
        if worst.after >= worst.before:
            return f"{words}; the tangent model predicts no loss of accuracy)."
        return f"{words}): the largest predicted loss is of {_loss(worst)}.{size}"
    named = "; ".join(map(_loss, beyond[:_NAMED]))
    more = f"; and {_counted(len(beyond) - _NAMED, 'more pair')}" if len(beyond) > _NAMED else ""
    words = f"By the tangent model, {_counted(len(beyond), 'ordered pair')} of {len(pairs)} "
    disturb = "is disturbed" if len(beyond) == 1 else "are disturbed"
    return f"{words}{disturb} beyond chance: {named}{more}.{size if len(beyond) == 1 else ''}"


def _loss(pair: Disturbed) -> str:
    return (
        f"{pair.on} by {pair.by}'s vector, accuracy {pair.before:.3f} to {pair.after:.3f} ({pair.lost} of {pair.rows} "
        f"rows lost, {pair.gained} gained)"
    )


def reach_in_words(paths: Sequence[TaskPath]) -> str:
    """How far along the vectors the tangent model carries."""
    whole = {one.task: one.path.relative[one.path.scales.index(1.0)] for one in paths}
    errors = {task: error for task, error in whole.items() if error is not None and math.isfinite(error)}
    if not errors:
        return "How far the tangent model carries is not known: the vectors move no logits to first order."
    worst = max(errors, key=lambda task: errors[task])
    if all(error <= CARRIES for error in errors.values()) and all(reach_of(one.path) == 1 for one in paths):
        return (
            f"The tangent model carries along the whole vectors: at s = 1 its error is at most {errors[worst]:.3f} of "
            f"|J tau| ({worst})."
        )
    reaches = {one.task: reach_of(one.path) for one in paths}
    far: dict[float, list[str]] = {}
    for task, reach in sorted(reaches.items(), key=lambda pair: -(pair[1] or 0)):
        far.setdefault(reach or 0, []).append(task)
    until = "; ".join(
        f"{'at no tested s' if not reach else f'up to s = {reach:g}'} for {listed(tasks)}"
        for reach, tasks in far.items()
    )
    return (
        f"The tangent model stays within {100 * CARRIES:g} % of |s J tau| {until}; at the whole vector its error is "
        f"{_range(list(errors.values()))} of |J tau| (largest: {worst})."
    )


def reach_of(path: Linearity) -> float | None:
    """The largest tested s up to 1 such that no tested s up to it has an error above `CARRIES`; None if there is none."""
    reach = None
    for s, error in zip(path.scales, path.relative, strict=True):
        if s > 1 or error is None or not error <= CARRIES:
            break
        reach = s
    return reach


def _range(values: Sequence[float]) -> str:
    low, high = f"{min(values):.3f}", f"{max(values):.3f}"
    return low if low == high else f"{low} to {high}"


def kernels_in_words(spectra: Sequence[TaskSpectrum], pairs: TaskPairs | None) -> str:
    """What kernels say before any training: which tasks' features are alike, and where the labels lie."""
    halves = [
        f"{one.task} in the first {one.power.half} of {len(one.power.values)}"
        for one in sorted(spectra, key=lambda one: one.power.half / len(one.power.values))
    ]
    ends = halves if len(halves) < 3 else [halves[0], halves[-1]]
    words = f"Half of the labels lies, of {'; of '.join(ends)} eigenvectors of the task's kernel."
    if pairs is None:
        return words
    names, table = pairs.tasks, pairs.alignment.tolist()
    found = [(table[i][j], names[j], names[i]) for i in range(len(names)) for j in range(i)]
    (most, first, second), (least, third, fourth) = max(found), min(found)
    alike = (
        f"The tangent features of {first} and {second} are the most alike (cross-task alignment {most:.3f}"
    )
    others = f"), those of {third} and {fourth} the least ({least:.3f})" if len(found) > 1 else ")"
    scale = "0 is no common direction: there one vector could not move the other task's outputs"
    return f"{alike}{others}; {scale}. {words} Whether vectors do disturb is what `diagnose` measures."


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
