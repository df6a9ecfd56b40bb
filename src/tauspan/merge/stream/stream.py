"""The stream: a planned merge from files to files, block by block, in bounded memory, resumable after a kill."""

import hashlib
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tauspan import store
from tauspan.core.errors import MismatchError, NonFiniteError, StoreError, UsageError
from tauspan.core.measure import Cost, measured, progress
from tauspan.core.report import provenance
from tauspan.merge.engine.engine import Account
from tauspan.merge.stream.blocks import Merging
from tauspan.merge.stream.plan import Plan
from tauspan.merge.stream.planning import settled, stem_of
from tauspan.merge.stream.result import MergeResult, WrittenTensor
from tauspan.store import LOCK, Layout, Writer, full, is_full, locked

FILE = "journal.jsonl"
FORMAT = "tauspan-merge-journal/1"


class Journal:
    """A file of lines: first the key of the plan, then one line for each finished tensor.

    Lines are only added, after the tensors' data were flushed. A last line that a kill cut short does not count.
    """

    def __init__(self, file: Path, finished: Sequence[WrittenTensor]) -> None:
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

    def add(self, finished: Sequence[WrittenTensor]) -> None:
        """Write down tensors whose data were flushed."""
        self._append([asdict(one) for one in finished])

    def _append(self, lines: Sequence[dict[str, Any]]) -> None:
        with self.file.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
            file.flush()
            os.fsync(file.fileno())


def _whole_lines(file: Path) -> list[dict[str, Any]]:
    """The complete lines, as objects; what a kill left of the last one is cut off, in the file too."""
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


def _finished(line: dict[str, Any], file: Path) -> WrittenTensor:
    try:
        account = Account(**{**line["account"], "kept": tuple(line["account"]["kept"])})
        return WrittenTensor(str(line["name"]), str(line["digest"]), account)
    except (KeyError, TypeError) as error:
        raise _damaged(file, f"a line lacks {error}") from error


def _damaged(file: Path, why: str) -> StoreError:
    return StoreError(f"{file} is damaged ({why}). {over(file.parent)}")


def over(folder: Path) -> str:
    """The sentence that says how to start over."""
    return f"To start over, remove that folder: rm -r {folder}"


@dataclass(frozen=True)
class WorkFolder:
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
def working(out: Path, key: str, resume: bool) -> Iterator[WorkFolder]:
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
            yield WorkFolder(folder, result, Journal.read(file, key))
            return
        for left in folder.iterdir():  # of a run that was killed before its first byte, or after its last
            if left.name != LOCK:
                shutil.rmtree(left) if left.is_dir() else left.unlink()
        yield WorkFolder(folder, result, Journal.start(file, key))


FLUSH = 2.0  # seconds between flushes, and so the work that a kill can cost


def execute(
    plan: Plan,
    out: str | Path,
    *,
    finish: Callable[[Path, MergeResult], None] | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> MergeResult:
    """Carry out a plan: read each input once (more often where the method measures first), write the output once.

    The result is made in the folder `.NAME.merging` beside `out` and gets its name when it is complete. Its bytes
    depend on the plan alone: not on workers, order, access or kills in between. An entry whose merged displacement
    equals that of a model takes that model's stored value, and an entry that does not move takes the base's. Where both
    apply, the base's is taken, so that zeros keep its sign.

    Args:
        plan: from `plan`.
        out: a directory; for a vector, and for a plan of a single file, a `.safetensors` file too.
        finish: adds files to the result (configuration, card) before it gets its name; called with the result's path
            and the report.
        resume: go on with what a killed run of the same plan left.
        overwrite: replace what is at `out`.

    Returns:
        What rounding kept, and digests: of a tensor, SHA-256 over the SHA-256 of its blocks, in order.

    Raises:
        NonFiniteError: NaN or infinity in an input, or beyond the output dtype's range.
        MismatchError: an integer tensor differs between models.
        StoreError: `out` is taken, the disk is full, or an unfinished merge is there.
    """
    out = Path(out)
    if out.suffix == ".safetensors" and plan.recipe.output == "model" and not plan.single:
        raise UsageError(f"{out} names a file, and this plan makes a directory: leave out the suffix.")
    layout = plan.layout
    if layout is None:
        raise UsageError("the plan is an adapter's, which is made at once: `merge_files` writes it.")
    store.require_free(out, overwrite)
    with _told(layout, out), working(out, plan.key, resume) as work:
        try:
            with measured() as cost:
                finished = _written(settled(plan), work)
            result = _result(plan, out, finished, cost, len(work.journal.finished))
            if finish is not None:
                finish(work.result, result)
            store.publish(work.result, out, overwrite=overwrite)
        except (OSError, NonFiniteError, MismatchError, UsageError) as error:
            # a file that cannot be read now may be read later; anything else needs other inputs, and their tensors anew
            if is_full(error) or not isinstance(error, OSError):
                work.clear()
            raise
        work.clear()
    return result


@contextmanager
def _told(layout: Layout, out: Path) -> Iterator[None]:
    """Turn the system's errors inside the block into a `StoreError` that names the output."""
    try:
        yield
    except OSError as error:
        if is_full(error):
            raise full(out.parent, layout.nbytes, error) from error
        if isinstance(error, StoreError):
            raise
        raise StoreError(f"{out} could not be written: {error}.") from error


def _written(plan: Plan, work: WorkFolder) -> list[WrittenTensor]:
    """Write all tensors; the journal's and the new ones, in the output's order."""
    single, layout = work.result.suffix == ".safetensors", plan.layout
    assert layout is not None  # noqa: S101 - an adapter has no stream
    layout = layout.renamed(work.result.name) if single else layout
    writer = Writer(work.folder if single else work.result, layout)
    known = {one.name: one for one in work.journal.finished}
    try:
        writer.reopen() if known else writer.create()
        left = [name for name in layout.entries if name not in known]
        pending: list[WrittenTensor] = []
        flushed = time.monotonic()
        with progress("merge", len(layout.entries)) as advance:
            advance(len(known), "")
            for one in Merging(plan, writer).run(left):
                known[one.name] = one
                pending.append(one)
                advance(1, "")
                if time.monotonic() - flushed > FLUSH:
                    writer.flush()
                    work.journal.add(pending)
                    pending, flushed = [], time.monotonic()
        writer.flush()
        work.journal.add(pending)
    finally:
        writer.close()
    if layout.index is not None:
        text = json.dumps(layout.index, indent=2, sort_keys=True) + "\n"
        (work.result / (stem_of(plan.opened) + store.INDEX_SUFFIX)).write_text(text, encoding="utf-8")
    return [known[name] for name in layout.entries]


def _result(
    plan: Plan, out: Path, finished: Sequence[WrittenTensor], cost: Cost, resumed: int
) -> MergeResult:
    total = sum((one.account for one in finished), Account())
    displaced = plan.opened.base is not None or plan.opened.reference.kind == "delta"
    return MergeResult(
        out=out, method=plan.method.name, digest=digest(finished), tensors=finished, resumed=resumed,
        nbytes=None if plan.layout is None else plan.layout.nbytes, bytes_read=plan.bytes_read, seconds=cost.seconds,
        kept=_kept(plan, total), warnings=plan.warnings,
        provenance=provenance(plan=plan.key, block=plan.block, workers=plan.workers, **plan.facts),
        norm=total.norm, loss=total.loss, changed=total.changed if displaced else None,
        swallowed=total.swallowed_share if displaced else None,
    )  # fmt: skip


def _kept(plan: Plan, total: Account) -> dict[str, float]:
    """For a sparse method, the share of each model's entries that it kept."""
    entries: Counter[int] = Counter()
    for spec in plan.specs:
        for place in spec.of(range(len(plan.opened.models))):
            entries[place] += spec.shape.numel()
    return {
        plan.opened.labels[place]: count / entries[place]
        for place, count in enumerate(total.kept)
        if entries[place]
    }


def digest(finished: Sequence[WrittenTensor]) -> str:
    """SHA-256 over the tensors' names and digests, in the output's order."""
    whole = hashlib.sha256()
    for one in finished:
        whole.update(f"{one.name} {one.digest}\n".encode())
    return whole.hexdigest()
