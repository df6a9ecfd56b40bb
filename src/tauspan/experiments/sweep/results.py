"""The folder of a sweep: a result's file for each finished job, and its log, which is locked while the job is done."""

import json
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tauspan import __version__
from tauspan.core.errors import StoreError
from tauspan.core.schema import shown
from tauspan.experiments.sweep.job import Job
from tauspan.store import locked, read_json, write_json

FORMAT = "tauspan-sweep/1"


class Results:
    """What is finished in a folder: `NAME.json` for each job, and `logs/NAME.log`.

    Raises:
        StoreError: the folder cannot be written, or its file system knows no locks.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            self.log_folder.mkdir(parents=True, exist_ok=True)
            probe = tempfile.TemporaryDirectory(prefix=".lock", dir=folder)
            with probe, locked(Path(probe.name)) as free:
                known = free
        except OSError as error:
            raise StoreError(f"{folder} cannot hold results: {error}.") from error
        if not known:
            raise StoreError(
                f"the file system of {folder} knows no locks (flock), so two sweeps could do the same job at once. "
                "Choose a folder on another one."
            )

    @property
    def log_folder(self) -> Path:
        """Where the logs lie."""
        return self.folder / "logs"

    def file(self, job: Job) -> Path:
        """Where the job's result lies when it is finished."""
        return self.folder / f"{job.name}.json"

    def log(self, job: Job) -> Path:
        """What the job printed, and why it failed."""
        return self.log_folder / f"{job.name}.log"

    def find(self, job: Job) -> dict[str, Any] | None:
        """The content of the job's file; None if there is none yet.

        Raises:
            StoreError: the file is damaged, or holds what another function, other arguments or another version gave.
        """
        file = self.file(job)
        if not file.exists():
            return None
        try:
            content = read_json(file)
        except StoreError as error:
            raise StoreError(f"{error} Remove it, and the job is done again.") from error
        whole = isinstance(content, dict) and content.get("format") == FORMAT and "result" in content
        if not whole or not isinstance(content.get("seconds"), int | float):
            raise StoreError(
                f"{file} is not what a sweep writes ({shown(content)}). Remove it, and the job is done again."
            )
        for part, wanted in _key(job).items():
            found = content.get(part)
            if _text(found) != _text(wanted):
                raise StoreError(
                    f"{file} holds the result of another job of that name: its {part} is {shown(found)}, and now "
                    f"{shown(wanted)}. Name the job otherwise, choose another folder, or remove the file."
                )
        return dict(content)

    def write(self, job: Job, result: Any, **facts: Any) -> None:
        """Write a finished job's file, whole or not at all."""
        content = {"format": FORMAT, "job": job.name, **_key(job), **facts, "result": result}
        write_json(self.file(job), content, overwrite=False)

    def lock(self, job: Job) -> ExitStack | None:
        """The job's lock, which closing it frees, as the end of this process does; None while another sweep has it."""
        with ExitStack() as stack:
            self.log(job).touch()
            if stack.enter_context(locked(self.log(job))):
                return stack.pop_all()
        return None

    def note(self, job: Job, text: str) -> None:
        """Add a text to the job's log."""
        with self.log(job).open("a", encoding="utf-8") as file:
            file.write(text)


def _key(job: Job) -> dict[str, Any]:
    return {"function": job.function, "arguments": job.arguments, "version": __version__}


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)  # to Python, True is 1 and 1.0
