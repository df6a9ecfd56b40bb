"""A part of a run whose process is killed once; imported by workers too."""

import dataclasses
import os
import signal
from typing import Any, ClassVar

from tauspan.core.report import Table
from tauspan.experiments.run import Evaluation, Findings, Part
from tauspan.experiments.run.context import RunContext
from tauspan.experiments.run.vectors import kind_of

MARK = "died"  # in the run's folder, with the process that died


@dataclasses.dataclass(frozen=True)
class Dying(Part):
    """The norm of every vector, found by the second process that tries."""

    regimes: tuple[str, ...] = ("linear",)
    key: ClassVar[str] = "dying"

    def evaluations(self, run: RunContext) -> list[Evaluation]:
        return [Evaluation("dying", (regime,), seed) for regime in self.regimes for seed in run.recipe.seeds]

    def measure(self, run: RunContext, which: Evaluation) -> dict[str, float]:
        (regime,) = which.about
        vectors = run.vectors(kind_of(regime), which.seed)  # type: ignore[arg-type]

        def work() -> dict[str, float]:
            mark = run.out / MARK
            if not mark.exists():
                mark.write_text(str(os.getpid()))
                os.kill(os.getpid(), signal.SIGKILL)
            return {task.name: vector.norm() for task, vector in vectors.items()}

        key = run.key(vectors, regime, dataclasses.asdict(self))
        content: dict[str, float] = run.stages.do(regime, "dying", which.name, key, work).content
        return content

    def findings(self, run: RunContext) -> Findings:
        rows: list[dict[str, Any]] = [self.measure(run, which) for which in self.evaluations(run)]
        return Findings([Table("Norms", rows)])
