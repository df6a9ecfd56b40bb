"""How the vectors of a comparison are made: each way is a row of `WAYS`, and each penalty a row of `PENALTIES`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import torch

from tauspan.core.choices import Regime
from tauspan.core.reading import Reading
from tauspan.drift import (
    KINDS,
    Distilled,
    Exact,
    Factored,
    Factors,
    Orthogonal,
    Penalty,
    TauJp,
    factors,
    least_sensitive,
    merge_in_metric,
    merged,
)
from tauspan.editing import Editor
from tauspan.kernel import Ghosts, closed_form, superpose
from tauspan.merge import merge
from tauspan.models import Encoder, restrict
from tauspan.tasks import Task
from tauspan.train import Settings, finetune
from tauspan.vector import TaskVector

Vectors: TypeAlias = dict[Task, TaskVector]
_GHOSTS = 8  # rows of each task, in the ways that take few
_WEIGHT = 4.0  # of these ghosts
_SHARE = 0.1  # of the entries, in sparse vectors, as their authors choose
_SPACE = "lora:8"
_BATCH = 32


@dataclass(frozen=True, eq=False)
class Making:
    """What a way is given.

    Args:
        encoder: the pre-trained encoder.
        tasks: one vector is made for each.
        settings: of fine-tuning by regime and, where that is what is tried, learning rate; None takes the chosen rate.
        joint: the settings of one model for all tasks, with as many steps as all single ones have together.
        ridge: of closed forms; None chooses it by leave-one-out.
        others: the vectors of another way, at what was chosen for it.
        reference: rows of no task, for ghosts that are the same for all.
        curvature: the factors of a task, made once.
    """

    encoder: Encoder
    tasks: Sequence[Task]
    settings: Callable[[Regime, float | None], Settings]
    joint: Callable[[Regime, float | None], Settings]
    ridge: float | None
    others: Callable[[str], Vectors]
    reference: Sequence[str]
    curvature: dict[tuple[str, str], Factors]

    def factors(self, task: Task, kind: str) -> Factors:
        """The curvature factors of a task, made when they are first needed."""
        if (task.name, kind) not in self.curvature:
            chosen = self.settings("linear", None)
            made = factors(self.encoder, task, kind, params=chosen.params, reading=self.reading)
            self.curvature[task.name, kind] = made
        return self.curvature[task.name, kind]

    def merged(self, rule: str, vectors: Mapping[Task, TaskVector], seed: int) -> TaskVector:
        """One vector by a merging method; behind @, in the metric of factors of that kind."""
        method, _, kind = rule.partition("@")
        given = list(vectors.values())
        if not kind:
            return merge(given, method, seed=seed)
        return merge_in_metric(
            self.encoder, given, merged([self.factors(task, kind) for task in vectors]), method, seed=seed
        )

    @property
    def reading(self) -> Reading:
        """Where texts are cut."""
        return Reading(batch_size=_BATCH, max_tokens=self.settings("linear", None).max_tokens)


@dataclass(frozen=True)
class Way:
    """One way to make the vectors of all tasks.

    Args:
        regime: in which they are edited.
        make: the vectors, at what is tried (None: at what was chosen before, or where nothing is).
        tries: what is chosen on validation rows: learning rates by the accuracy of single vectors, weights by that of
            their sum at 1.
        values: the rates or weights to try; without any, the rates of the regime.
        needs: ways whose vectors or whose learning rate this one takes; the rate is that of the first which tries some in
            the same regime.
        together: whether there is one vector for all tasks.
        seeded: whether another seed gives other vectors of the same rows.
        referenced: whether it takes the reference rows.
    """

    regime: Regime
    make: Callable[[Making, float | None], Vectors]
    tries: Literal["rate", "weight", ""] = ""
    values: tuple[float, ...] = ()
    needs: tuple[str, ...] = ()
    together: bool = False
    seeded: bool = True
    referenced: bool = False

    def rate_from(self, regime: Regime) -> str | None:
        """The way whose learning rate this one takes in a regime."""
        return next(
            (name for name in self.needs if (WAYS[name].tries, WAYS[name].regime) == ("rate", regime)), None
        )


# -- fine-tuning -------------------------------------------------------------------------------------------------


def _finetuned(regime: Regime, space: str | None = None) -> Callable[[Making, float | None], Vectors]:
    def make(given: Making, rate: float | None) -> Vectors:
        settings = replace(given.settings(regime, rate), space=space)
        return {task: finetune(given.encoder, task, settings).task_vector for task in given.tasks}

    return make


def _sparse(regime: Regime) -> Callable[[Making, float | None], Vectors]:
    """Each vector moves in the entries that change its own task's outputs least (TaLoS)."""

    def make(given: Making, rate: float | None) -> Vectors:
        settings, vectors = replace(given.settings(regime, rate), params="all"), {}  # of what the masks leave
        for task in given.tasks:
            masks = least_sensitive(given.encoder, given.factors(task, "diagonal"), _SHARE)
            sparse = finetune(restrict(given.encoder, masks), task, settings).task_vector
            vectors[task] = sparse.dense(given.encoder)  # each task has a space of its own
        return filled(vectors)

    return make


def filled(vectors: Vectors) -> Vectors:
    """The vectors with zeros for the tensors that only others move."""
    every = {name: delta for vector in vectors.values() for name, delta in vector.deltas.items()}
    return {
        task: replace(
            vector,
            deltas={name: vector.deltas.get(name, torch.zeros_like(delta)) for name, delta in every.items()},
        )
        for task, vector in vectors.items()
    }


def _joint(regime: Regime) -> Callable[[Making, float | None], Vectors]:
    def make(given: Making, rate: float | None) -> Vectors:
        settings = replace(given.joint(regime, rate), cache="none")
        vector = finetune(given.encoder, given.tasks, settings).task_vector
        return dict.fromkeys(given.tasks, vector)

    return make


Penalised: TypeAlias = Callable[[Making, Regime, Sequence[Task], float], Penalty]


def _factored(kind: str, merge_them: bool = False) -> Penalised:
    def penalty(given: Making, regime: Regime, others: Sequence[Task], weight: float) -> Penalty:
        found = [given.factors(task, kind) for task in others]
        return Factored([merged(found)] if merge_them else found, weight, others)

    return penalty


def _kept(regime: Regime) -> int:
    """In the tangent regime what is kept makes a step cheap; in the ordinary one only the base's logits can be."""
    return 4 if regime == "linear" else 0


def _tau_jp(turn: bool) -> Penalised:
    """All other tasks in each step, or one in turn, as its authors' cheaper script does."""

    def penalty(given: Making, regime: Regime, others: Sequence[Task], weight: float) -> Penalty:
        return TauJp(others, weight, turn=turn, kept=_kept(regime))

    return penalty


_WEIGHTS: Mapping[str, tuple[float, ...]] = {
    "expand": (1.0, 10.0, 100.0),
    "diagonal": (3.0, 30.0, 300.0, 3000.0),
}

PENALTIES: dict[str, tuple[Penalised, tuple[float, ...]]] = {
    "exact": (
        lambda given, regime, others, weight: Exact(others, weight, kept=_kept(regime)), (0.001, 0.01, 0.1, 1.0),
    ),
    "tau-jp": (_tau_jp(turn=False), (0.03, 0.1, 0.3)),
    "tau-jp-turn": (_tau_jp(turn=True), (0.03, 0.1, 0.3)),
    **{kind: (_factored(kind), _WEIGHTS.get(kind, (0.003, 0.03, 0.3, 3.0))) for kind in KINDS},
    "expand-merged": (_factored("expand", merge_them=True), _WEIGHTS["expand"]),
    "orthogonal": (lambda given, regime, others, weight: Orthogonal(weight, scale=1e-4), (1e-2, 1.0, 100.0)),
}  # fmt: skip
"""By name, how a penalty is made and which weights are tried; drift's own are in units of exact drift."""


def _penalised(regime: Regime, name: str) -> Callable[[Making, float | None], Vectors]:
    def make(given: Making, weight: float | None) -> Vectors:
        settings, (penalty, _) = given.settings(regime, None), PENALTIES[name]
        vectors = {}
        for task in given.tasks:
            others = [other for other in given.tasks if other is not task]
            term = penalty(given, regime, others, weight or 0.0)
            vectors[task] = finetune(given.encoder, task, settings, penalty=term).task_vector
        return vectors

    return make


def _distilled(space: str | None = None) -> Callable[[Making, float | None], Vectors]:
    def make(given: Making, weight: float | None) -> Vectors:
        teachers, settings = given.others("linear"), replace(given.settings("standard", None), space=space)
        return {
            task: finetune(
                given.encoder, task, settings, penalty=Distilled(teachers[task], weight or 0.0)
            ).task_vector
            for task in given.tasks
        }

    return make


# -- closed forms ------------------------------------------------------------------------------------------------


def _closed(given: Making, tried: float | None) -> Vectors:
    params, ridge = given.settings("linear", None).params, given.ridge
    return {
        task: closed_form(
            given.encoder, task, ridge="loo" if ridge is None else ridge, params=params, reading=given.reading
        ).vector
        for task in given.tasks
    }


def _superposed(ghosts: Ghosts, referenced: bool = False) -> Callable[[Making, float | None], Vectors]:
    def make(given: Making, tried: float | None) -> Vectors:
        asked = replace(ghosts, inputs=given.reference) if referenced else ghosts
        found = superpose(
            given.encoder, given.tasks, asked, "loo" if given.ridge is None else given.ridge,
            params=given.settings("linear", None).params, reading=given.reading,
        )  # fmt: skip
        return dict(found.vectors)

    return make


def _untangled(regime: Regime) -> Callable[[Making, float | None], Vectors]:
    def make(given: Making, tried: float | None) -> Vectors:
        editor = Editor(given.encoder, given.others(regime), regime, reading=given.reading)
        return dict(editor.untangle().vectors)

    return make


_REGIMES: tuple[Regime, ...] = ("standard", "linear")

_TEACHER: tuple[float, ...] = (0.003, 0.03, 0.3, 3.0)
_SPARSE: Mapping[Regime, tuple[float, ...]] = {"standard": (1e-3, 3e-3, 1e-2), "linear": (3e-3, 1e-2, 3e-2)}

WAYS: Mapping[str, Way] = {
    **{regime: Way(regime, _finetuned(regime), "rate") for regime in _REGIMES},
    **{
        f"{regime}-{name}": Way(regime, _penalised(regime, name), "weight", weights, (regime,))
        for regime in _REGIMES
        for name, (_, weights) in PENALTIES.items()
    },
    "standard-delta": Way("standard", _distilled(), "weight", _TEACHER, ("standard", "linear")),
    **{f"{regime}-sparse": Way(regime, _sparse(regime), "rate", _SPARSE[regime]) for regime in _REGIMES},
    "standard-lora": Way("standard", _finetuned("standard", _SPACE), "rate", (5e-4, 1e-3, 2e-3)),
    "standard-delta-lora": Way(
        "standard", _distilled(_SPACE), "weight", _TEACHER, ("standard-lora", "linear")
    ),
    **{f"{regime}-untangled": Way(regime, _untangled(regime), needs=(regime,)) for regime in _REGIMES},
    "closed-form": Way("linear", _closed, seeded=False),
    "superposed": Way("linear", _superposed(Ghosts()), seeded=False),
    f"superposed-{_GHOSTS}": Way("linear", _superposed(Ghosts(_WEIGHT, _GHOSTS)), seeded=False),
    f"superposed-{_GHOSTS}-pivoted": Way(
        "linear", _superposed(Ghosts(_WEIGHT, _GHOSTS, "pivoted")), seeded=False
    ),
    "superposed-reference": Way(
        "linear", _superposed(Ghosts(_WEIGHT), referenced=True), seeded=False, referenced=True
    ),
    **{f"joint-{regime}": Way(regime, _joint(regime), "rate", together=True) for regime in _REGIMES},
}  # fmt: skip
"""By name, every way to make vectors that a recipe can compare."""
