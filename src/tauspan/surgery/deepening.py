"""Another depth, from files to files: `change_depth` and its plan."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tauspan import store
from tauspan.core.arguments import checked
from tauspan.core.errors import ModelError
from tauspan.editing.model.edit_files import Base
from tauspan.merge.recipe.towers import Towers
from tauspan.merge.sources.source import config_of, model_folder
from tauspan.merge.stream.depths import count_layers
from tauspan.merge.stream.plan import Plan
from tauspan.merge.stream.words import Words
from tauspan.models import folders
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
from tauspan.surgery.depth import LayerMap
from tauspan.surgery.options import Running
from tauspan.surgery.views import Deepened


@contextmanager
def planned_depth(
    model: str | Path, words: str, *, stack: str | None = None, running: Running | None = None
) -> Iterator[tuple[Plan, Deepened, Towers]]:
    """The plan of other layers, with the model open; arguments and errors are those of `change_depth`."""
    running = running or Running()
    source = open_model(model, running.access)
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
        yield plan_of(model, view, source, Words(folder, {}), running.workers), view, towers
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
        base, layers = checked_base(model, vectors), view.layers

        def finish(folder: Path) -> list[str]:
            notes = _count_layers(folder, towers, view)
            fingerprint = Base(folder).fingerprint if vectors else ""
            for place in vectors:
                layers.vector(whole_vector(base, place), fingerprint, view.stack).save_pretrained(
                    vector_file(folder, place), overwrite=True
                )
            return notes

        kind = "each an old one, bit for bit" if layers.copies else "weighted sums of the old ones"
        verdict = f"{len(layers.rows)} layers of {layers.depth} under {view.stack}, {kind}."
        merged, said = carried_out(plan, out, running, finish, f"{out.name}: {words} of {Path(model).name}")
        files = vector_files(out, vectors)
        return Surgery(
            out=out,
            verdict=verdict,
            merge=merged,
            vectors=files,
            warnings=(*merged.warnings, *said),
            provenance=merged.provenance,
        )


def _count_layers(folder: Path, towers: Towers, view: Deepened) -> list[str]:
    """Write the new number of layers, and what is said of each, into the configuration; what it could not follow."""
    file = folders.main_folder(folder) / "config.json"
    if not file.is_file():
        return []
    content = store.read_json(file)
    old = [row[0][0] for row in view.layers.rows]
    notes = count_layers(content, towers.keys(view.stack, content), old, view.layers.depth, file.name)
    store.write_json(file, content)
    return notes
