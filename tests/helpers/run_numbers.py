"""The numbers of a run, without times."""

from pathlib import Path
from typing import Any

from tauspan.core.report import Report
from tauspan.experiments.sweep import Job
from tauspan.experiments.sweep.worker import function_of


def numbers(report: Report) -> Any:
    return [(table.title, list(table.rows), table.note) for table in report.tables[:-1]], report.result


def in_turn(done: list[str]) -> Any:
    """A sweep without processes, the last job first."""

    def sweep(given: list[Job], folder: Path, workers: int, *more: Any, **options: Any) -> dict[str, Any]:
        done.extend(job.name for job in given)
        return {job.name: function_of(job.function)(**job.arguments) for job in reversed(given)}

    return sweep
