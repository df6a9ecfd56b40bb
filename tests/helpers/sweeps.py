"""What the tests of the sweep share: jobs, quiet sweeps, patience."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tauspan.experiments.sweep import Job, sweep

# where workers find sweep_jobs
WHERE = os.pathsep.join([*filter(None, [os.environ.get("PYTHONPATH")]), str(Path(__file__).parents[1])])


def jobs_of(function: str, *arguments: Mapping[str, Any], **named: Mapping[str, Any]) -> list[Job]:
    """One job a mapping, under the names j0, j1, ..., or the names given."""
    numbered = {f"j{place}": given for place, given in enumerate(arguments)}
    return [
        Job(name, f"helpers.sweep_jobs:{function}", given) for name, given in {**numbered, **named}.items()
    ]


def quietly(jobs: Sequence[Job], folder: Path, workers: int = 2, **options: Any) -> dict[str, Any]:
    return sweep(jobs, folder, workers, **options)


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return False
    return state != "Z"  # a dead one that nobody has asked after


def until(happened: Callable[[], Any], what: str) -> None:
    for _ in range(600):
        if happened():
            return
        time.sleep(0.05)
    raise AssertionError(f"half a minute, and not yet {what}")
