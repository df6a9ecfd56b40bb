"""Another vocabulary, from files to files: `graft`, its plan, and vectors that `move` later."""

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from tauspan import store
from tauspan.core.arguments import checked
from tauspan.core.errors import BaseMismatchError, ModelError, StoreError, TauspanError, UsageError
from tauspan.core.notices import tell
from tauspan.core.report import Report
from tauspan.editing.model.edit_files import Base
from tauspan.merge.checks.origins import made_for
from tauspan.merge.data.statistics_file import Statistics, holds_statistics
from tauspan.merge.lora.adapters import AdapterSource
from tauspan.merge.sources.opening import adapter_folder
from tauspan.merge.sources.source import model_folder
from tauspan.merge.sources.vocabulary import Alignment, rows_of
from tauspan.merge.stream.plan import Plan
from tauspan.merge.stream.words import Words
from tauspan.surgery.carrying import (
    Surgery,
    carried_out,
    checked_base,
    open_model,
    plan_of,
    vector_file,
    vector_files,
    whole_vector,
)
from tauspan.surgery.checks import Kept, kept, renumber
from tauspan.surgery.embedding import embedding
from tauspan.surgery.options import Filling, Running
from tauspan.surgery.rowmap import RowMap
from tauspan.surgery.vectors import move_adapter, move_statistics, move_vector
from tauspan.surgery.views import Grafted, by_rows, whole
from tauspan.surgery.vocabularies import Vocabulary, open_vocabulary
from tauspan.surgery.ways import HOW, Embed, Pair, row_map
from tauspan.vector import TaskVector

ROWS = "vocabulary/rows.safetensors"
"""Where a grafted model keeps P, with the fingerprint of the model it was made from."""


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
) -> Iterator[Graft]:
    """Everything about a graft besides writing it, with its files open; arguments and errors are those of `graft`."""
    filling, running = filling or Filling(), running or Running()
    source = open_model(model, running.access)
    try:
        folder, count = model_folder(source.path), rows_of(source)
        if count is None or folder is None:
            raise ModelError(
                f"{model} has no input table with a known name, or is a bare file without its tokenizer: a graft needs a "
                "model's directory with `embed_tokens`, `wte`, `word_embeddings` or the like."
            )
        tables = (
            name for name, one in source.tensors.items() if one.shape[:1] == (count,) and len(one.shape) > 1
        )
        named = next(tables, None)
        if named is None:
            raise ModelError(
                f"the input table of {model} has one dimension, ({count},), and a row for each token is wanted."
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
        plan = plan_of(model, view, source, words, running.workers)
        if not same:
            plan = replace(plan, warnings=(*plan.warnings, *_sparse(pair.new)))
        yield Graft(pair, view, plan, kept(pair, view))
    finally:
        source.close()


def _sparse(words: Vocabulary) -> list[str]:
    """A sentence where most ids of a tokenizer have no token, since the tables get a row for each id."""
    tokens, rows = len(words.named), len(words.pieces)
    if rows <= 2 * tokens:
        return []
    return [
        f"the tokenizer in {words.folder} has {tokens} tokens and ids up to {rows - 1}: the tables get {rows} rows, of "
        f"which {rows - tokens} have no token and are the mean of all. If that is not meant, number its tokens without "
        "gaps."
    ]


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

    Cost: one read and one write of the model, and a pass for its fingerprint, about 0.4 s for 100 MB; memory of a merge's
        blocks beside the map.

    Example:
        >>> import tempfile
        >>> done = graft("minilm", "minilm", Path(tempfile.mkdtemp()) / "same", Filling(how="mean"))
        >>> done.kept.copied, done.merge.loss
        (30522, 0.0)
    """
    running, out = running or Running(), Path(out)
    store.require_folder(out)
    with planned_graft(model, tokenizer, filling, embed=embed, texts=texts, running=running) as made:
        base = checked_base(model, vectors)

        def finish(folder: Path) -> list[str]:
            # a run that was killed while it finished may have left some of these
            replace(made.view.rows, base=base.fingerprint).save(folder / ROWS, overwrite=True)
            notes = [] if made.view.rows.is_identity else renumber(folder, made.pair.copied)
            fingerprint = Base(folder).fingerprint if vectors else ""
            for place in vectors:
                moved = move_vector(whole_vector(base, place), made.view.rows, fingerprint)
                moved.save_pretrained(vector_file(folder, place), overwrite=True)
            return notes

        title = f"{out.name}: the vocabulary of {Path(tokenizer).name}"
        merged, notes = carried_out(made.plan, out, running, finish, title, made.kept)
        files = vector_files(out, vectors)
        return Surgery(
            out=out, verdict=made.kept.verdict, kept=made.kept, merge=merged, vectors=files,
            warnings=(*merged.warnings, *notes), provenance=merged.provenance,
        )  # fmt: skip


@checked
def move(
    vector: str | Path, model: str | Path, grafted: str | Path, out: str | Path, *, overwrite: bool = False
) -> Path:
    """Write a task vector of `model` as one of the model that was grafted from it; an adapter stays an adapter.

    Statistics for merging move too; see `move_statistics`.

    A grafted model made by a version before this check does not know its base: a warning says so. An adapter names its
    base without a fingerprint: a directory that is still there is compared, another name gives a warning.

    Args:
        vector: a vector's file or folder, the directory of a PEFT adapter, or a file of statistics.
        model: what it starts from.
        grafted: what `graft` made of that model.
        out: the file, or for an adapter the directory, to write.
        overwrite: replace what is there.

    Raises:
        ModelError: there is no such model.
        StoreError: `grafted` keeps no map of rows.
        BaseMismatchError: what moves starts from another model, or `grafted` was made from another one.

    Cost: a pass over the model for its fingerprint, about 0.4 s for 100 MB, and one over the vector.
    """
    if not (Path(grafted) / ROWS).is_file():
        raise StoreError(
            f"{grafted} keeps no map of rows ({ROWS}), so it is no model that was grafted. Graft first, `tauspan "
            f"vocabulary graft {model} TOKENIZER -o OUT`, and name what that wrote."
        )
    rows = RowMap.load(Path(grafted) / ROWS)
    store.require_apart(out, [vector, model, grafted])
    place, base = Path(vector), Base(str(model))
    _require_made_from(rows, base, grafted)
    adapter = adapter_folder(place) if place.exists() else None
    if adapter is not None:
        _require_trained_on(adapter, base)
        return move_adapter(adapter, rows, out, base=str(grafted), overwrite=overwrite)
    new = Base(str(grafted)).fingerprint
    if holds_statistics(place):
        known = Statistics.from_file(place, base=base.fingerprint)
        return move_statistics(known, rows, new).save(out, overwrite=overwrite)
    given = TaskVector.from_pretrained(vector)
    if given.base == new and new != base.fingerprint:
        raise UsageError(
            f"{vector} starts from {grafted}, as what has moved does: there is nothing left to move."
        )
    moved = move_vector(whole_vector(base, given), rows, new)
    return moved.save_pretrained(out, overwrite=overwrite)


def _require_made_from(rows: RowMap, base: Base, grafted: str | Path) -> None:
    """Raise unless a map is of the base's rows; a warning where the map does not say."""
    if not rows.base:
        tell(
            f"{grafted} does not say which model it was grafted from, as those of earlier versions do not: it is "
            f"unverified that it was {base.source}. Graft that model again, and it is checked."
        )
    elif rows.base != base.fingerprint:
        raise BaseMismatchError(
            f"{grafted} was grafted from base {rows.base[:12]}, and {base.source} is {base.fingerprint[:12]}: the map is "
            f"of other rows. Name the model that it was grafted from, or graft {base.source}."
        )


def _require_trained_on(adapter: Path, base: Base) -> None:
    """Raise where an adapter names a directory that holds another model; a warning where the names alone differ."""
    source = AdapterSource(adapter)
    stated = source.adapter.config.content.get("base_model_name_or_path")
    if not isinstance(stated, str) or not stated:
        tell(f"the adapter {adapter} names no base: it is unverified that it was trained on {base.source}.")
    elif Path(stated).is_dir():
        try:
            own = Base(stated).fingerprint
        except TauspanError as error:
            tell(
                f"the adapter {adapter} was trained on {stated}, which cannot be read any more ({error}) It is "
                f"unverified that it was {base.source}."
            )
            return
        if own != base.fingerprint:
            raise BaseMismatchError(
                f"the adapter {adapter} was trained on {stated}, base {own[:12]}, and {base.source} is "
                f"{base.fingerprint[:12]}. Name {stated} and what was grafted from it, or correct "
                "`base_model_name_or_path` in its adapter_config.json."
            )
    else:
        with closing(open_model(base.source, "mmap")) as model:
            for problem in made_for(model, [source]):
                tell(problem.message)
