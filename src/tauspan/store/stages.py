"""`Stages`: pieces of work whose results are kept in files, so that each is done once for all runs on a folder."""

import dataclasses
import hashlib
import json
import logging
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from tauspan import __version__
from tauspan.core.measure import Advance, Cost, measured, underway
from tauspan.core.notices import heard, once, tell
from tauspan.core.processes import world
from tauspan.core.records import layout, record, restored
from tauspan.core.report import Cell
from tauspan.core.results import Result
from tauspan.store.places import atomic, locked, write_json
from tauspan.store.reading import read_json

log = logging.getLogger(__name__)
Content: TypeAlias = dict[str, Any]
R = TypeVar("R", bound=Result)


class DeadlineError(Exception):
    """The result of a stage is not in its file, and the deadline for beginning its work has passed."""


@dataclasses.dataclass(frozen=True)
class Stage:
    """The result of one stage, what it cost, whether an earlier run had done it, and what it warned of."""

    content: Any
    cost: Cost
    reused: bool
    warnings: tuple[str, ...] = ()


class Stages:
    """The stages of one folder. The result of the stage `name` is in `NAME.json`, beside the key it was made under.

    Each stage has a lock, so that two runs on one folder share the work: one of them does a stage, the other waits
    for its file. The system frees the lock when the process ends.

    Args:
        folder: where the files are; it is made with the first stage.
        locks: the lock file of a stage, relative to the folder, with `{}` for the stage's name.
        deadline: a `time.monotonic()` after which no work begins.
    """

    def __init__(self, folder: Path, locks: str = ".locks/{}", deadline: float = math.inf) -> None:
        self.folder, self.deadline, self._locks = folder, deadline, locks
        self.warnings: tuple[str, ...] = ()  # of all stages that were asked for, reused ones too
        self.advance: Advance = lambda steps, note: None  # called once for each stage whose result is there
        self.by_workers: set[str] = set()  # the stages that worker processes of this run did
        self._done: dict[tuple[str, str], dict[str, Stage]] = {}

    # -- files and locks -------------------------------------------------------------------------------------

    def file(self, name: str) -> Path:
        """The file of a stage's result."""
        return self.folder / f"{name}.json"

    def lock_file(self, name: str) -> Path:
        """The file that is locked while the stage is done."""
        return self.folder / self._locks.format(name)

    def exists(self, name: str) -> bool:
        """Whether a stage was done, under any key."""
        return self.file(name).exists()

    def finished(self, name: str, key: Any, made: Path | None = None) -> bool:
        """Whether a stage was done under this key, and the file `made` that it leaves is there."""
        return self._saved(name, _digest(key), made) is not None

    def write(
        self, name: str, key: Any, content: Any, cost: Cost, warnings: list[str], *, overwrite: bool = True, **more: Any
    ) -> Stage:  # fmt: skip
        """Write the result of a finished stage to its file; `more` are further entries of that file."""
        entry = {"key": _digest(key), **more, "cost": dataclasses.asdict(cost), "content": content}
        write_json(self.file(name), {**entry, "warnings": list(warnings)}, overwrite=overwrite)
        return Stage(content, cost, False, tuple(warnings))

    def lock(self, name: str) -> ExitStack | None:
        """The lock of a stage, which closing it frees; None while another process holds it."""
        lock = self.lock_file(name)
        lock.parent.mkdir(parents=True, exist_ok=True)
        lock.touch()
        with ExitStack() as stack:
            return stack.pop_all() if stack.enter_context(locked(lock)) else None

    def adopt(self, other: "Stages", name: str, source: Path, target: Path) -> None:
        """Take over a stage that another folder has finished, with the folder `source` that it made, as `target`.

        Files are hard-linked where the file system can do that, else copied. `target` appears complete or not at all.
        """
        with atomic(target) as temporary:
            shutil.copytree(source, temporary, copy_function=_link)
        with atomic(self.file(name)) as temporary:
            _link(other.file(name), temporary)

    # -- doing stages ----------------------------------------------------------------------------------------

    def do(
        self, label: str, kind: str, name: str, key: Any, work: Callable[[], Content], made: Path | None = None
    ) -> Stage:  # fmt: skip
        """The result of a piece of work: from its file if it was done under this key, else the work is done now.

        Args:
            label: the regime or reference it belongs to, for `rows`.
            kind: what is done, for `rows`.
            name: the name of the stage and its file.
            key: all that decides the result.
            work: returns the result in values that JSON has.
            made: a file that the work leaves; without it the stage is not finished.

        Raises:
            DeadlineError: the work would have to begin after the deadline.
        """
        digest = _digest(key)
        with world() as processes, self._alone(name, processes.first):
            processes.wait()  # all processes look for the file while none can write it
            stage = self._saved(name, digest, made)
            if stage is None and time.monotonic() >= self.deadline:
                raise DeadlineError(name)
            if stage is None:
                log.info("%s", name)
                with heard() as warned, measured() as cost, underway(name):
                    content = work()
                stage = Stage(content, cost, False, tuple(warned))
                if processes.first:
                    self.write(name, key, content, cost, warned)
            processes.wait()
        return self._remembered(label, kind, name, stage)

    def result(
        self, of: type[R], label: str, kind: str, name: str, key: Any, work: Callable[[], R], **live: Any
    ) -> R:
        """As `do`, for work that returns a result of class `of`; `live` gives those of its fields that no file holds."""
        made = [of.__name__, layout(of), key]  # a record of another layout was kept by other code: made anew
        stage = self.do(label, kind, name, made, lambda: dict(record(work())))
        return restored(of, stage.content, **live)

    @property
    def new(self) -> int:
        """How many stages this run did itself."""
        return sum(not stage.reused for stages in self._done.values() for stage in stages.values())

    def rows(self) -> list[dict[str, Cell]]:
        """Time and memory of the stages, as rows of a table: one row for each label and kind."""
        found: list[dict[str, Cell]] = []
        labels = list(dict.fromkeys(label for label, _ in self._done))
        for label, kind in sorted(self._done, key=lambda both: labels.index(both[0])):
            stages = self._done[label, kind].values()
            found.append({
                "regime": label, "stage": kind, "runs": len(stages),
                "reused": sum(stage.reused for stage in stages),
                "seconds": round(sum(stage.cost.seconds for stage in stages), 1),
                "peak MB": round(max(stage.cost.peak_mb for stage in stages)),
            })  # fmt: skip
        return found

    def _remembered(self, label: str, kind: str, name: str, stage: Stage) -> Stage:
        """Count a stage for `rows`; the warnings of a stage that an earlier run did are given again."""
        known = self._done.setdefault((label, kind), {})
        by_workers = name in self.by_workers  # the sweep has given their warnings already
        if name not in known:
            for text in stage.warnings if stage.reused and not by_workers else ():
                if text not in self.warnings:
                    tell(text)
            self.warnings = once(self.warnings, stage.warnings)
            self.advance(1, "")
        return known.setdefault(name, dataclasses.replace(stage, reused=stage.reused and not by_workers))

    def _saved(self, name: str, digest: str, made: Path | None) -> Stage | None:
        if not self.exists(name) or (made is not None and not made.exists()):
            return None
        saved = read_json(self.file(name))
        if not isinstance(saved, dict) or saved.get("key") != digest:
            return None
        return Stage(saved["content"], Cost(**saved["cost"]), True, tuple(saved.get("warnings", ())))

    @contextmanager
    def _alone(self, name: str, first: bool) -> Iterator[None]:
        """Hold the lock of a stage; in a group of processes that work together only the first process takes it."""
        lock = self.lock(name) if first else ExitStack()
        if lock is not None:
            with lock:
                yield
            return
        log.info("%s: waiting for another run, which is doing it", name)
        with locked(self.lock_file(name), wait=True) as free:
            if not free:
                log.warning(
                    "%s has no file locks: two runs at once would do the same work twice", self.folder
                )
            yield


def _digest(key: Any) -> str:
    return hashlib.sha256(json.dumps([__version__, key], sort_keys=True, default=str).encode()).hexdigest()


def _link(source: str | Path, target: str | Path) -> None:
    """Make a hard link, or a copy where the file system cannot link."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
