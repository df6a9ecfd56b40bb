"""The results of a sweep: a stage for each job, with a log, and a lock while the job is done."""

import json
import tempfile
from pathlib import Path
from typing import Any

from tauspan import __version__
from tauspan.core.errors import StoreError
from tauspan.core.measure import Cost
from tauspan.core.schema import shown
from tauspan.experiments.sweep.job import Job
from tauspan.store import locked, read_json
from tauspan.store.stages import Stages


class Results:
    """The finished jobs of a folder: `NAME.json` (see `Stages`) and `logs/NAME.log` for each job.

    Raises:
        StoreError: the folder cannot be written, or its file system has no locks.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.stages = Stages(folder, "logs/.{}.lock")
        try:
            (folder / "logs").mkdir(parents=True, exist_ok=True)
            probe = tempfile.TemporaryDirectory(prefix=".lock", dir=folder)
            with probe, locked(Path(probe.name)) as free:
                known = free
        except OSError as error:
            raise StoreError(f"{folder} cannot hold results: {error}.") from error
        if not known:
            raise StoreError(
                f"the file system of {folder} knows no locks, so two sweeps could do the same job at once. "
                "Choose a folder on another one."
            )

    def log(self, job: Job) -> Path:
        """The job's log file: what it printed, and why it failed."""
        return self.folder / "logs" / f"{job.name}.log"

    def find(self, job: Job) -> dict[str, Any] | None:
        """The content of the job's file; None if there is none yet.

        Raises:
            StoreError: the file is damaged, or holds what another function, other arguments or another version gave.
        """
        file = self.stages.file(job.name)
        if not file.exists():
            return None
        try:
            entry = read_json(file)
        except StoreError as error:
            raise StoreError(f"{error} Remove it, and the job is done again.") from error
        whole = isinstance(entry, dict) and isinstance(entry.get("job"), dict) and "content" in entry
        if not whole or not isinstance(entry.get("cost"), dict):
            raise StoreError(
                f"{file} is not what a sweep writes ({shown(entry)}). Remove it, and the job is done again."
            )
        for part, wanted in _key(job).items():
            found = entry["job"].get(part)
            if _text(found) != _text(wanted):
                raise StoreError(
                    f"{file} holds the result of another job of that name: its {part} is {shown(found)}, and now "
                    f"{shown(wanted)}. Name the job otherwise, choose another folder, or remove the file."
                )
        return dict(entry)

    def write(
        self, job: Job, result: Any, seconds: float, warnings: list[str] | None = None, attempt: int = 1
    ) -> None:
        """Write a finished job's file, whole or not at all."""
        key = _key(job)
        self.stages.write(
            job.name, key, result, Cost(seconds), warnings or [], overwrite=False, job=key, attempt=attempt
        )

    def note(self, job: Job, text: str) -> None:
        """Add a text to the job's log."""
        with self.log(job).open("a", encoding="utf-8") as file:
            file.write(text)


def _key(job: Job) -> dict[str, Any]:
    return {"function": job.function, "arguments": job.arguments, "version": __version__}


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)  # to Python, True is 1 and 1.0
