"""Stages: pieces of work whose results lie in files, so that each is done once, however many runs ask for it."""

import dataclasses
import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

from tauspan import __version__, store
from tauspan.core.measure import Advance, Cost, measured, underway
from tauspan.core.notices import heard, once, tell
from tauspan.core.processes import world
from tauspan.core.report import Cell, Report

log = logging.getLogger(__name__)
Content: TypeAlias = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Stage:
    """What one stage found and cost, whether it was done before, and what it warned of."""

    content: Content
    cost: Cost
    reused: bool
    warnings: tuple[str, ...] = ()


class Stages:
    """The stages of one output folder: the result of `name` lies in `NAME.json` under its key.

    A lock a stage lets two runs on one folder share the work: what one of them does, the other waits for and reuses.

    Args:
        folder: where the files lie; made with the first stage.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.warnings: tuple[str, ...] = ()  # of all stages, those of reused ones too
        self.advance: Advance = lambda steps, note: None  # one step with each stage that is there
        self.fresh: set[str] = set()  # what this run's own workers did
        self._done: dict[tuple[str, str], dict[str, Stage]] = {}

    def finished(self, name: str, key: Any, made: Path | None = None) -> bool:
        """Whether a stage was done under this key, and the file it `made` is there."""
        return self._saved(name, _digest(key), made) is not None

    def exists(self, name: str) -> bool:
        """Whether a stage was done, under whatever key."""
        return (self.folder / f"{name}.json").exists()

    def do(
        self, label: str, kind: str, name: str, key: Any, work: Callable[[], Content], made: Path | None = None
    ) -> Stage:  # fmt: skip
        """Do a piece of work once.

        Args:
            label: the regime or reference it belongs to, for `rows`.
            kind: what is done, for `rows`.
            name: the file's.
            key: all that decides the result.
            work: gives the result as plain values.
            made: a file that the work leaves; without it the stage is not finished.
        """
        digest = _digest(key)
        with world() as processes, self._alone(name, processes.first):
            processes.wait()  # all of them look for the file while none can write it
            saved = self._saved(name, digest, made)
            if saved is None:
                log.info("%s", name)
                saved = self._worked(name, digest, work, processes.first)
            processes.wait()
        return self._noted(label, kind, name, saved)

    def _worked(self, name: str, digest: str, work: Callable[[], Content], first: bool) -> Stage:
        """Do a stage's work and write its file."""
        with heard() as warned, measured() as cost, underway(name):
            content = work()
        entry = {"key": digest, "cost": dataclasses.asdict(cost), "content": content, "warnings": warned}
        if first:
            store.write_json(self.folder / f"{name}.json", entry)
        return Stage(content, cost, False, tuple(warned))

    def _noted(self, label: str, kind: str, name: str, stage: Stage) -> Stage:
        """Remember a stage that is there; what it warned of in an earlier run is said again."""
        known = self._done.setdefault((label, kind), {})
        if name not in known:
            earlier = (
                stage.reused and name not in self.fresh
            )  # the sweep told what this run's workers warned of
            for text in stage.warnings if earlier else ():
                if text not in self.warnings:
                    tell(text)
            self.warnings = once(self.warnings, stage.warnings)
            self.advance(1, "")
        if name in self.fresh:
            stage = dataclasses.replace(stage, reused=False)
        return known.setdefault(name, stage)

    def report(
        self, label: str, kind: str, name: str, key: Any, work: Callable[[], Report]
    ) -> Report:  # fmt: skip
        """`do` for work that gives a report."""
        stage = self.do(label, kind, name, key, lambda: dict(json.loads(work().to_json())))
        return Report.from_json(json.dumps(stage.content))

    def rows(self) -> list[dict[str, Cell]]:
        """What the stages took, one row a label and kind."""
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

    def _saved(self, name: str, digest: str, made: Path | None) -> Stage | None:
        file = self.folder / f"{name}.json"
        if not file.exists() or (made is not None and not made.exists()):
            return None
        saved = store.read_json(file)
        if not isinstance(saved, Mapping) or saved.get("key") != digest:
            return None
        return Stage(saved["content"], Cost(**saved["cost"]), True, tuple(saved.get("warnings", ())))

    @contextmanager
    def _alone(self, name: str, first: bool) -> Iterator[None]:
        """Hold the stage's lock, which the system frees when the process dies; one process of a group does."""
        if not first:
            yield
            return
        lock = self.folder / ".locks" / name
        lock.parent.mkdir(parents=True, exist_ok=True)
        lock.touch()
        with store.locked(lock) as free:
            if free:
                yield
                return
        log.info("%s: another run is at it; waiting for it", name)
        with store.locked(lock, wait=True) as free:
            if not free:
                log.warning("%s knows no locks: two runs at once would do the same work twice", self.folder)
            yield


def _digest(key: Any) -> str:
    return hashlib.sha256(json.dumps([__version__, key], sort_keys=True, default=str).encode()).hexdigest()
