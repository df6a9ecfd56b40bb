"""What both surgeries share: a model seen through a map, streamed by the merge's stream, with vectors that move along."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from tauspan.core.errors import StoreError, UsageError, listed
from tauspan.core.notices import tell
from tauspan.core.report import Report
from tauspan.core.results import Result
from tauspan.editing.model.edit_files import Base
from tauspan.merge.recipe.parts import Input
from tauspan.merge.recipe.recipe import MergeRecipe
from tauspan.merge.sources.opening import open_source
from tauspan.merge.sources.source import Source
from tauspan.merge.stream import card, output
from tauspan.merge.stream.opened import Opened
from tauspan.merge.stream.plan import Plan
from tauspan.merge.stream.planning import plan_opened
from tauspan.merge.stream.result import MergeResult
from tauspan.merge.stream.stream import execute
from tauspan.merge.stream.target import finished, require_target
from tauspan.merge.stream.words import Words
from tauspan.store import Access
from tauspan.surgery.checks import Kept
from tauspan.surgery.options import Running
from tauspan.vector import TaskVector

VECTORS = "vectors"
"""The folder of a new model in which the vectors are that moved with it."""


@dataclass(frozen=True, kw_only=True)
class Surgery(Result):
    """What surgery on a checkpoint wrote.

    Args:
        out: the new model's directory.
        verdict: what holds of it.
        kept: of a graft, what the new vocabulary keeps; None for other layers.
        merge: what the stream wrote.
        vectors: the files of the vectors that moved with it.
    """

    out: Path
    verdict: str
    kept: Kept | None = None
    merge: MergeResult
    vectors: Sequence[Path] = ()

    def report(self) -> Report:
        """The verdict first, then what was kept."""
        own = self.merge.report()
        tables = [*([] if self.kept is None else [self.kept.table()]), *own.tables]
        numbers = {**own.result, **({} if self.kept is None else asdict(self.kept))}
        numbers["vectors"] = [str(file) for file in self.vectors]
        return Report(
            "surgery",
            tables,
            dict(self.merge.provenance),
            result=numbers,
            warnings=self.warnings,
            verdict=self.verdict,
        )


def open_model(model: str | Path, access: Access) -> Source:
    """A model's source; a displacement is refused.

    Raises:
        UsageError: a vector or an adapter.
    """
    source = open_source(model, access=access)
    if source.kind != "point":
        source.close()
        raise UsageError(
            f"{model} is a displacement, and surgery is done on models. Name the model it starts from, and move the "
            "vector with it: --vector."
        )
    return source


def plan_of(model: str | Path, view: Source, source: Source, words: Words, workers: int | None) -> Plan:
    """The plan of a merge of one model, seen through a map."""
    recipe = MergeRecipe("passthrough", (Input(str(model)),))
    opened = Opened(recipe, recipe.row(), recipe.settings(), None, (view,), {}, source, source, words)
    return plan_opened(opened, workers=workers)


def carried_out(
    plan: Plan,
    out: Path,
    running: Running,
    finish: Callable[[Path], list[str]],
    title: str,
    told: Kept | None = None,
) -> tuple[MergeResult, list[str]]:
    """Stream a plan into a directory with its card; what `finish` writes and says is part of it."""
    opened, said = plan.opened, list[str]()
    done = finished(out, opened, plan.block) if running.resume else None
    if done is not None:
        return done, said
    require_target(out, opened.sources, running.overwrite)
    for note in plan.warnings:
        tell(note)
    entries = {} if plan.layout is None else plan.layout.entries
    kinds = {entry.dtype for entry in entries.values() if entry.dtype.is_floating_point}
    verb = dict(opened.models[0].identity)["made by"]["verb"]

    def written(folder: Path, result: MergeResult) -> None:
        output.finish(folder, opened, kinds)
        said.extend(finish(folder))
        for note in said:
            tell(note)
        again = f"Made by `tauspan {verb}`; its options are below, under `made by`."
        complete = replace(result, warnings=(*result.warnings, *said))
        card.write(folder, opened, complete, plan.block, title, None if told is None else told.table(), again)

    return execute(plan, out, finish=written, resume=running.resume, overwrite=running.overwrite), said


def checked_base(model: str | Path, vectors: Sequence[str | Path]) -> Base:
    """The model as the base of vectors; each of them is checked before anything is written."""
    base, names = Base(str(model)), dict[str, str]()
    for place in vectors:
        whole_vector(base, place)
        name = vector_file(Path(), place).name
        if name in names:
            same = Path(names[name]).resolve() == Path(place).resolve()
            repair = "It is one vector: give it once." if same else "Rename one of the files."
            raise UsageError(f"the vectors {names[name]} and {place} would both be {name}. {repair}")
        names[name] = str(place)
    return base


def whole_vector(base: Base, given: TaskVector | str | Path) -> TaskVector:
    """A vector of the base, or its file, whole and under the names of the base's files."""
    vector = given if isinstance(given, TaskVector) else TaskVector.from_pretrained(given)
    info = vector.info if vector.space is None else {**vector.info, "space": vector.space.word}
    return replace(vector, deltas=base.deltas(vector), base=base.fingerprint, space=None, info=info)


def vector_files(out: Path, vectors: Sequence[str | Path]) -> tuple[Path, ...]:
    """The files of the vectors beside a new model; an error if it was finished before, without them."""
    files = tuple(vector_file(out, place) for place in vectors)
    missing = [str(file) for file in files if not file.is_file()]
    if missing:
        raise StoreError(
            f"{out} was finished before, without {listed(missing)}. Make it anew with its vectors: `overwrite` "
            "(--overwrite)."
        )
    return files


def vector_file(folder: Path, place: str | Path) -> Path:
    """Where a vector is written beside the new model: by the name of its file, or of its folder."""
    own = Path(place)
    return folder / VECTORS / f"{own.stem if own.suffix == '.safetensors' else own.name}.safetensors"
