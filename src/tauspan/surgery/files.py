"""Surgery from files to files: `graft` (another vocabulary) and `change_depth` (other layers), streamed like a merge."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tauspan import store
from tauspan.core.arguments import checked
from tauspan.core.errors import ModelError, UsageError
from tauspan.core.notices import tell
from tauspan.core.report import Report
from tauspan.core.results import Result
from tauspan.editing.model.edit_files import Base
from tauspan.merge.engine.engine import BLOCK
from tauspan.merge.recipe.parts import Input
from tauspan.merge.recipe.recipe import MergeRecipe
from tauspan.merge.recipe.towers import Towers
from tauspan.merge.sources.opening import adapter_folder, open_source
from tauspan.merge.sources.source import Source, config_of, model_folder
from tauspan.merge.sources.vocabulary import Alignment, rows_of
from tauspan.merge.stream import card, output
from tauspan.merge.stream.opened import Opened
from tauspan.merge.stream.plan import Plan, plan_opened
from tauspan.merge.stream.result import MergeResult
from tauspan.merge.stream.stream import execute
from tauspan.merge.stream.target import finished, require_target
from tauspan.merge.stream.words import Words
from tauspan.models import folders
from tauspan.store import Access
from tauspan.surgery.checks import Kept, kept, renumber
from tauspan.surgery.depth import LayerMap
from tauspan.surgery.embedding import embedding
from tauspan.surgery.options import Filling, Running
from tauspan.surgery.rowmap import RowMap
from tauspan.surgery.vectors import move_adapter, move_vector
from tauspan.surgery.views import Deepened, Grafted, by_rows, whole
from tauspan.surgery.vocabularies import open_vocabulary
from tauspan.surgery.ways import HOW, Embed, Pair, row_map
from tauspan.vector import TaskVector

ROWS = "vocabulary/rows.safetensors"
"""Where a grafted model keeps P."""
_VECTORS = "vectors"


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


# -- vocabulary ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Graft:
    """A graft that was prepared: P, the model seen through it, and the plan of its stream."""

    pair: Pair
    view: Grafted
    plan: Plan
    kept: Kept

    def report(self) -> Report:
        """The plan as tables, with the verdict first."""
        planned = self.plan.report()
        tables = [self.kept.table(), *planned.tables]
        result = {**planned.result, **asdict(self.kept)}
        return replace(planned, title="graft plan", tables=tables, result=result, verdict=self.kept.verdict)


@contextmanager
def planned_graft(
    model: str | Path,
    tokenizer: str | Path,
    filling: Filling | None = None,
    *,
    embed: Embed | str | Path | None = None,
    texts: Sequence[str] = (),
    running: Running | None = None,
    block: int = BLOCK,
) -> Iterator[Graft]:
    """Everything about a graft besides writing it, with its files open; arguments and errors are those of `graft`."""
    filling, running = filling or Filling(), running or Running()
    source = _model(model, running.access)
    try:
        folder, count = model_folder(source.path), rows_of(source)
        if count is None or folder is None:
            raise ModelError(
                f"{model} has no input table with a known name, or is a bare file without its tokenizer: a graft needs a "
                "model's directory with `embed_tokens`, `wte`, `word_embeddings` or the like."
            )
        named = next(
            name for name, one in source.tensors.items() if one.shape[:1] == (count,) and len(one.shape) > 1
        )
        function = embedding(embed, folder) if "embed" in HOW[filling.how].needs else None
        table = by_rows(whole(source, named), count)
        pair = Pair(open_vocabulary(folder), open_vocabulary(tokenizer), filling, table, function, texts)
        rows = row_map(pair)
        facts = {
            "verb": "vocabulary graft", "tokenizer": str(tokenizer), "tokenizer_sha256": pair.new.digest,
            "rows_sha256": rows.digest, "options": asdict(filling),
        }  # fmt: skip
        spread = filling.spread if HOW[filling.how].drawn and not rows.is_identity else None
        view = Grafted(source, rows, facts, spread, filling.seed)
        same = rows.is_identity
        alignment = (
            None if same else Alignment(pair.new.ids, rows.rows, lambda *_: pair.new.ids, (view,), False)
        )
        words = Words(pair.new.folder, {}, alignment)
        plan = _plan(model, view, source, words, running.workers, block)
        yield Graft(pair, view, plan, kept(pair, view))
    finally:
        source.close()


@checked
def graft(
    model: str | Path,
    tokenizer: str | Path,
    out: str | Path,
    filling: Filling | None = None,
    *,
    embed: Embed | str | Path | None = None,
    texts: Sequence[str] = (),
    vectors: Sequence[str | Path] = (),
    running: Running | None = None,
) -> Surgery:
    """Write a model with another tokenizer: E' = P E and b' = P b for its tables and biases, all else bit for bit.

    P is row-stochastic: tokens that both tokenizers have are copied, the others are means of old rows, by `filling.how`
    of `HOW`. The result is streamed and appears when it is whole; P is kept in it, as `vocabulary/rows.safetensors`.

    Args:
        model: a directory, `"minilm"` or a hub id.
        tokenizer: the directory of a tokenizer or of a model, or a `tokenizer.json`.
        out: the directory to write.
        filling: how rows are filled; None takes `Filling()`, which is hybrid.
        embed: a function of texts, or an encoder that gives one; None takes the model itself where it embeds sentences.
        texts: of the kind that the model will read, for `cw2v` and for tokens a word.
        vectors: task vectors of the model, which are written to `out/vectors` for the new one.
        running: resume, overwrite, threads and access.

    Returns:
        What was kept, with a verdict, and what the stream wrote.

    Raises:
        ModelError: no tokenizer.json, or no table with a known name.
        UsageError: a way that needs an embedding or texts that are not there.
        MismatchError: the tokenizer is not the model's.
        BaseMismatchError: a vector starts from another model.
        StoreError: `out` is taken, the disk is full, or an unfinished graft is there.

    Cost: one read and one write of the model; memory of a merge's blocks beside the map.

    Example:
        >>> import tempfile
        >>> done = graft("minilm", "minilm", Path(tempfile.mkdtemp()) / "same", Filling(how="mean"))
        >>> done.kept.copied, done.merge.loss
        (30522, 0.0)
    """
    running, out = running or Running(), Path(out)
    store.require_folder(out)
    with planned_graft(model, tokenizer, filling, embed=embed, texts=texts, running=running) as made:
        base = _checked(model, vectors)

        def finish(folder: Path) -> list[str]:
            made.view.rows.save(folder / ROWS)
            notes = [] if made.view.rows.is_identity else renumber(folder, made.pair.copied)
            fingerprint = Base(folder).fingerprint if vectors else ""
            for place in vectors:
                moved = move_vector(_whole(base, place), made.view.rows, fingerprint)
                moved.save_pretrained(_vector_file(folder, place))
            return notes

        title = f"{out.name}: the vocabulary of {Path(tokenizer).name}"
        merged, notes = _carried_out(made.plan, out, running, finish, title, made.kept)
        files = tuple(_vector_file(out, place) for place in vectors)
        return Surgery(
            out=out, verdict=made.kept.verdict, kept=made.kept, merge=merged, vectors=files,
            warnings=(*merged.warnings, *notes), provenance=merged.provenance,
        )  # fmt: skip


@checked
def move(
    vector: str | Path, model: str | Path, grafted: str | Path, out: str | Path, *, overwrite: bool = False
) -> Path:
    """Write a task vector of `model` as one of the model that was grafted from it; an adapter stays an adapter.

    Args:
        vector: a vector's file or folder, or the directory of a PEFT adapter.
        model: what it starts from.
        grafted: what `graft` made of that model.
        out: the file, or for an adapter the directory, to write.
        overwrite: replace what is there.

    Raises:
        StoreError: `grafted` keeps no map of rows.
        BaseMismatchError: the vector starts from another model.
    """
    rows = RowMap.load(Path(grafted) / ROWS)
    store.require_apart(out, [vector, model, grafted])
    place = Path(vector)
    adapter = adapter_folder(place) if place.exists() else None
    if adapter is not None:
        return move_adapter(adapter, rows, out, base=str(grafted), overwrite=overwrite)
    moved = move_vector(_whole(Base(str(model)), vector), rows, Base(str(grafted)).fingerprint)
    return moved.save_pretrained(out, overwrite=overwrite)


# -- depth -----------------------------------------------------------------------------------------------------


@contextmanager
def planned_depth(
    model: str | Path, words: str, *, stack: str | None = None, running: Running | None = None
) -> Iterator[tuple[Plan, Deepened, Towers]]:
    """The plan of other layers, with the model open; arguments and errors are those of `change_depth`."""
    running = running or Running()
    source = _model(model, running.access)
    try:
        towers = Towers.of(source)
        prefix = towers.named(stack)
        layers = LayerMap.parse(words, towers.stacks.get(prefix, 0))
        view = Deepened(source, layers, prefix, {"verb": "layers", "map": words, "stack": prefix})
        if config_of(source.path) and not towers.keys(prefix, config_of(source.path)):
            raise ModelError(
                f"config.json of {model} does not say how many layers {prefix!r} has ({layers.depth}), so their new "
                "number cannot be written. Add `num_hidden_layers` to it."
            )
        folder = model_folder(source.path)
        yield _plan(model, view, source, Words(folder, {}), running.workers, BLOCK), view, towers
    finally:
        source.close()


@checked
def change_depth(
    model: str | Path,
    words: str,
    out: str | Path,
    *,
    stack: str | None = None,
    vectors: Sequence[str | Path] = (),
    running: Running | None = None,
) -> Surgery:
    """Write a model with other layers: layer l is sum_m D[l, m] of the old ones, tensor by tensor; widths stay.

    Args:
        model: a directory, `"minilm"` or a hub id.
        words: D, as `LayerMap.parse` reads it: `first:L`, `stages:N,N,...`, `interpolate:L` or `linear:L`.
        out: the directory to write.
        stack: a part of the name of the layers, where the model has several stacks.
        vectors: task vectors of the model, which are written to `out/vectors` for the new one.
        running: resume, overwrite, threads and access.

    Raises:
        UsageError: other words, or a map that does not fit the number of layers.
        ModelError: no stack of layers, or a configuration that does not count them.
        MismatchError: layers of different kinds that would be mixed.
        StoreError: as `graft`.

    Cost: one read and one write of the model, in blocks.

    Example:
        >>> import tempfile
        >>> done = change_depth("minilm", "first:2", Path(tempfile.mkdtemp()) / "short")
        >>> done.verdict
        '2 layers of 6 under encoder.layer., each an old one, bit for bit.'
    """
    running, out = running or Running(), Path(out)
    store.require_folder(out)
    with planned_depth(model, words, stack=stack, running=running) as (plan, view, towers):
        base, layers = _checked(model, vectors), view.layers

        def finish(folder: Path) -> list[str]:
            _count_layers(folder, towers, view)
            fingerprint = Base(folder).fingerprint if vectors else ""
            for place in vectors:
                layers.vector(_whole(base, place), fingerprint, view.stack).save_pretrained(
                    _vector_file(folder, place)
                )
            return []

        kind = "each an old one, bit for bit" if layers.copies else "weighted sums of the old ones"
        verdict = f"{len(layers.rows)} layers of {layers.depth} under {view.stack}, {kind}."
        merged, _ = _carried_out(plan, out, running, finish, f"{out.name}: {words} of {Path(model).name}")
        files = tuple(_vector_file(out, place) for place in vectors)
        return Surgery(
            out=out,
            verdict=verdict,
            merge=merged,
            vectors=files,
            warnings=merged.warnings,
            provenance=merged.provenance,
        )


def _count_layers(folder: Path, towers: Towers, view: Deepened) -> None:
    """Write the new number of layers, and the kind of each, into the configuration."""
    file = folders.main_folder(folder) / "config.json"
    if not file.is_file():
        return
    content = store.read_json(file)
    for *above, key in towers.keys(view.stack, content):
        inner: dict[str, Any] = content
        for step in above:
            inner = inner[step]
        inner[key] = len(view.layers.rows)
        kinds = inner.get("layer_types")
        if isinstance(kinds, list) and len(kinds) == view.layers.depth:
            inner["layer_types"] = [kinds[row[0][0]] for row in view.layers.rows]
    store.write_json(file, content)


# -- both ------------------------------------------------------------------------------------------------------


def _model(model: str | Path, access: Access) -> Source:
    source = open_source(model, access=access)
    if source.kind != "point":
        source.close()
        raise UsageError(
            f"{model} is a displacement, and surgery is done on models. Name the model it starts from, and move the "
            "vector with it: --vector."
        )
    return source


def _plan(
    model: str | Path, view: Source, source: Source, words: Words, workers: int | None, block: int
) -> Plan:
    """The plan of a merge of one model, seen through a map."""
    recipe = MergeRecipe("passthrough", (Input(str(model)),))
    opened = Opened(recipe, recipe.row(), recipe.settings(), None, (view,), {}, source, source, words)
    return plan_opened(opened, block, workers)


def _carried_out(
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


def _checked(model: str | Path, vectors: Sequence[str | Path]) -> Base:
    """The model as the base of vectors; each of them is checked before anything is written."""
    base, names = Base(str(model)), dict[str, str]()
    for place in vectors:
        _whole(base, place)
        name = _vector_file(Path(), place).name
        if names.setdefault(name, str(place)) != str(place):
            raise UsageError(
                f"the vectors {names[name]} and {place} would both be {name}. Rename one of the files."
            )
    return base


def _whole(base: Base, place: str | Path) -> TaskVector:
    """A vector of the base, whole and under the names of its files."""
    vector = TaskVector.from_pretrained(place)
    info = vector.info if vector.space is None else {**vector.info, "space": vector.space.word}
    return replace(vector, deltas=base.deltas(vector), space=None, info=info)


def _vector_file(folder: Path, place: str | Path) -> Path:
    """Where a vector is written beside the new model: by the name of its file, or of its folder."""
    own = Path(place)
    return folder / _VECTORS / f"{own.stem if own.suffix == '.safetensors' else own.name}.safetensors"
