"""The journal of a merge: which tensors are finished, in a folder beside the output, so that a killed merge goes on."""

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tauspan.core.errors import StoreError
from tauspan.merge.engine.account import Account
from tauspan.store import locked

FILE = "journal.jsonl"
FORMAT = "tauspan-merge-journal/1"


@dataclass(frozen=True)
class Finished:
    """One tensor whose bytes lie on the disk."""

    name: str
    digest: str
    account: Account


class Journal:
    """A file of lines: what is merged first, then a line for each finished tensor.

    Lines are only added, after the tensors' data were flushed. A last line that a kill cut short does not count.
    """

    def __init__(self, file: Path, finished: Sequence[Finished]) -> None:
        self.file = file
        self.finished = tuple(finished)

    @staticmethod
    def start(file: Path, key: str) -> "Journal":
        """A new journal of the plan with that key."""
        journal = Journal(file, ())
        journal._append([{"format": FORMAT, "plan": key}])
        return journal

    @staticmethod
    def read(file: Path, key: str) -> "Journal":
        """The journal of an earlier run of the same plan.

        Raises:
            StoreError: of another plan, or damaged.
        """
        lines = _whole_lines(file)
        head = lines[0] if lines else {}
        if head.get("format") != FORMAT or head.get("plan") != key:
            raise StoreError(
                f"{file.parent} holds an unfinished merge of another plan ({str(head.get('plan'))[:12]}, and this one is "
                f"{key[:12]}): the recipe, an input, the block size or the version changed. {over(file.parent)}"
            )
        return Journal(file, [_finished(line, file) for line in lines[1:]])

    def add(self, finished: Sequence[Finished]) -> None:
        """Write down tensors whose data were flushed."""
        self._append([asdict(one) for one in finished])

    def _append(self, lines: Sequence[dict[str, Any]]) -> None:
        with self.file.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
            file.flush()
            os.fsync(file.fileno())


def _whole_lines(file: Path) -> list[dict[str, Any]]:
    """The lines that end and are objects; what a kill left of the last one is cut off, in the file too."""
    content = file.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        os.truncate(file, len(whole))
    try:
        lines = [json.loads(line) for line in whole.splitlines()]
    except ValueError as error:
        raise _damaged(file, str(error)) from error
    if not all(isinstance(line, dict) for line in lines):
        raise _damaged(file, "a line is not an object")
    return lines


def _finished(line: dict[str, Any], file: Path) -> Finished:
    try:
        account = Account(**{**line["account"], "kept": tuple(line["account"]["kept"])})
        return Finished(str(line["name"]), str(line["digest"]), account)
    except (KeyError, TypeError) as error:
        raise _damaged(file, f"a line lacks {error}") from error


def _damaged(file: Path, why: str) -> StoreError:
    return StoreError(f"{file} is damaged ({why}). {over(file.parent)}")


def over(folder: Path) -> str:
    """How to start over."""
    return f"To start over, remove that folder: rm -r {folder}"


@dataclass(frozen=True)
class Desk:
    """Where a merge works: a locked folder with the journal, and the result under its own name."""

    folder: Path
    result: Path
    journal: Journal

    def clear(self) -> None:
        """Remove everything."""
        shutil.rmtree(self.folder, ignore_errors=True)


def work_folder(out: Path) -> Path:
    """Where a merge into `out` works until it is whole."""
    return out.parent / f".{out.name}.merging"


@contextmanager
def desk(out: Path, key: str, resume: bool) -> Iterator[Desk]:
    """The work folder of a merge into `out`, new or, with `resume`, as an earlier run left it.

    Raises:
        StoreError: another process works there; there is an unfinished merge and `resume` is false; with `resume`,
            the merge there is another one.
    """
    folder = work_folder(out)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder) as free:
        if not free:
            raise StoreError(
                f"another process is merging into {out}: it works in {folder}. Wait until it ends."
            )
        file = folder / FILE
        result = folder / out.name
        begun = file.is_file() and bool(_whole_lines(file)) and result.exists()
        if begun and not resume:
            raise StoreError(
                f"{folder} holds an unfinished merge into {out}. Continue it with `resume` (--resume). {over(folder)}"
            )
        if begun:
            yield Desk(folder, result, Journal.read(file, key))
            return
        for left in folder.iterdir():  # of a run that was killed before its first byte, or after its last
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        yield Desk(folder, result, Journal.start(file, key))
