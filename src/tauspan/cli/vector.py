"""The verbs of single vectors: their options, and what each does.

The library is imported only when a verb runs.
"""

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tauspan.cli import shared as commands
from tauspan.cli.shared import Verb, add_rows, drift_table, encoder_of, mixed, say, show, task_of, vector_of
from tauspan.core.choices import TRANSPORTS
from tauspan.core.reading import Reading

if TYPE_CHECKING:
    from tauspan.core.report import Table
    from tauspan.vector import TaskVector


def add(verbs: Any, verb: Verb) -> None:
    """Add the verbs to a parser; `verb(into, name, does, function)` makes the parser of each verb."""
    vector = verbs.add_parser("vector", help="make, inspect and combine task vectors").add_subparsers(
        dest="action", required=True, metavar="ACTION"
    )
    between = verb(vector, "diff", "OUT = TUNED - BASE, from models or safetensors files", diff)
    between.add_argument("base", help="what was fine-tuned: a model or a safetensors file")
    between.add_argument("tuned", help="what came of it, of the same kind")
    lora = verb(vector, "from-adapter", "OUT = what a LoRA adapter adds to BASE", from_adapter)
    lora.add_argument(
        "base", help="minilm, a directory, a hub id, a safetensors file or the index of its shards"
    )
    lora.add_argument("adapter", help="a directory that PEFT wrote, or its file")
    lora.add_argument(
        "--leave-out",
        action="append",
        metavar="NAME",
        help="a tensor stored whole, or a module of such, that is not wanted: classifier, score, lm_head ... "
        "(default: none)",
    )
    seen = verb(
        vector,
        "inspect",
        "show a vector's provenance and tensors; cosines of several",
        inspect,
    )
    seen.add_argument("vectors", nargs="+", help="files or folders of vectors")
    seen.add_argument("--tensors", action="store_true", help="also a row for each tensor")
    checked = verb(vector, "verify", "check that a file is whole, finite and starts from a model", verify)
    checked.add_argument("vector", help="a vector's file or folder")
    checked.add_argument("model", nargs="?", help="what it must start from; left out: not checked")
    summed = verb(vector, "add", "OUT = the sum of vectors", total)
    summed.add_argument("vectors", nargs="+", help="files or folders of vectors")
    times = verb(vector, "scale", "OUT = FACTOR * VECTOR", scale)
    times.add_argument("vector", help="a vector's file or folder")
    times.add_argument("factor", type=float, help="what it is multiplied by")
    minus = verb(vector, "negate", "OUT = -VECTOR", negate)
    minus.add_argument("vector", help="a vector's file or folder")
    like = verb(vector, "analogy", "OUT = C + (B - A): A is to B as C is to OUT", analogy)
    for name in ("a", "b", "c"):
        like.add_argument(name, help="a vector's file or folder")
    whole = verb(vector, "dense", "OUT = VECTOR of a small space, as whole tensors of BASE", dense)
    whole.add_argument("base", help="minilm, a directory or a hub id: what the vector starts from")
    whole.add_argument("vector", help="a vector's file or folder")
    thin = verb(
        vector, "to-adapter", "write a VECTOR of a small space as an adapter that PEFT loads", to_adapter
    )
    thin.add_argument("base", help="minilm, a directory or a hub id: what the vector starts from")
    thin.add_argument("vector", help="a vector's file or folder")
    thin.add_argument("-o", "--out", required=True, help="the directory to write")
    thin.add_argument("--overwrite", action="store_true", help="replace a directory that is there")
    moved = verb(
        vector,
        "transport",
        "OUT = VECTOR of OLD for another base NEW, if it does there what it did",
        transport,
    )
    moved.add_argument(
        "base", metavar="OLD", help="minilm, a directory or a hub id: what the vector starts from"
    )
    moved.add_argument("against", metavar="NEW", help="the other base, of the same architecture")
    moved.add_argument("vector", help="a vector's file or folder")
    moved.add_argument("task", help=commands.TASK)
    moved.add_argument(
        "--method",
        choices=TRANSPORTS,
        default="procrustes",
        help="how it is made",
    )
    moved.add_argument(
        "--least",
        type=float,
        default=0.5,
        help="the cosine of J tau on both bases from which on it carries over",
    )
    add_rows(moved)
    for made in (between, lora, summed, times, minus, like, whole, moved):
        made.add_argument("--label", help="a short name for tables and errors (default: from the inputs)")
        made.add_argument("-o", "--out", required=True, help="the vector file to write")
        made.add_argument("--overwrite", action="store_true", help="replace a file that is there")


def place_label(path: str) -> str:
    """A label for a file or folder: its name, after the folder's name if its own says little, as `best` does."""
    place = Path(path)
    own = place.stem if place.suffix == ".safetensors" else place.name
    says_little = re.fullmatch(
        r"checkpoint-\d+|model|vector|adapter_model|adapter|best|last|final|step.?\d+", own
    )
    return f"{place.parent.name}/{own}" if says_little and place.parent.name else own


def _write(vector: "TaskVector", options: argparse.Namespace, *models: str) -> None:
    """Write a vector; raise an error if that would overwrite a model that the vector is made from."""
    from tauspan.store import require_apart
    from tauspan.vector import vector_file

    require_apart(vector_file(options.out), models)
    vector = vector if options.label is None else vector.named(options.label)
    file = vector.save_pretrained(options.out, overwrite=options.overwrite)
    if options.json:
        sys.stdout.write(json.dumps({"vector": str(file), "norm": vector.norm(), "base": vector.base}) + "\n")
    say(f"{vector}\nwrote {file}", options)


def diff(options: argparse.Namespace) -> None:
    """Write the difference of two models as a vector."""
    from tauspan.vector import TaskVector

    label = options.label or place_label(options.tuned)
    vector = TaskVector.from_checkpoints(options.base, options.tuned, label=label)
    _write(vector, options, options.base, options.tuned)


def from_adapter(options: argparse.Namespace) -> None:
    """Write the displacement of a LoRA adapter as a vector."""
    from tauspan.merge.stream.adapter_vector import adapter_vector

    label = options.label or place_label(options.adapter)
    vector = adapter_vector(options.adapter, options.base, label=label, leave_out=options.leave_out or ())
    _write(vector, options, options.base, options.adapter)


def dense(options: argparse.Namespace) -> None:
    """Write a vector of a small space as whole tensors."""
    from tauspan.models import load_model

    whole = vector_of(options.vector).dense(load_model(options.base))
    _write(whole, options, options.base, options.vector)


def to_adapter(options: argparse.Namespace) -> None:
    """Write a vector of a small space as an adapter."""
    from tauspan.merge.lora.spaces import save_as_adapter
    from tauspan.models import load_model
    from tauspan.store import require_apart

    require_apart(options.out, [options.base, options.vector])
    vector = vector_of(options.vector)
    path = save_as_adapter(vector, load_model(options.base), options.out, overwrite=options.overwrite)
    if options.json:
        sys.stdout.write(json.dumps({"adapter": str(path), "base": vector.base}) + "\n")
    say(f"{vector}\nwrote {path}", options)


def inspect(options: argparse.Namespace) -> None:
    """Show provenance and tensors of vectors, and the cosines between several."""
    from tauspan.core.report import Report, Table, provenance
    from tauspan.vector import cosine_matrix

    vectors = [vector_of(path) for path in options.vectors]
    rows: list[dict[str, Any]] = []
    for path, vector in zip(options.vectors, vectors, strict=True):
        rows.append({"vector": path, "label": mixed(vector), "regime": vector.regime, "base": vector.base[:12],
                     "tensors": len(vector.deltas), "norm": vector.norm(),
                     "made from": vector.info.get("base_id", "")})  # fmt: skip
    tables = [Table("Task vectors", rows)]
    moved = drift_table(list(zip(options.vectors, vectors, strict=True)))
    if moved is not None:
        tables.append(moved)
    if options.tensors:
        tables += [vector.table() for vector in vectors]
    if len(vectors) > 1:
        tables.append(_cosines(vectors, cosine_matrix(vectors).tolist()))
    show(
        Report("Task vectors", tables, provenance(), result={"info": [dict(v.info) for v in vectors]}),
        options,
    )


def _cosines(vectors: "Sequence[TaskVector]", matrix: Sequence[Sequence[float]]) -> "Table":
    """The cosines, with one row and one column per vector, which are numbered because labels may repeat."""
    from tauspan.core.report import Table

    heads = [f"{place}" for place in range(1, len(vectors) + 1)]
    rows: list[dict[str, Any]] = [
        {"": f"{head}: {vector.label}", **dict(zip(heads, line, strict=True))}
        for head, vector, line in zip(heads, vectors, matrix, strict=True)
    ]
    return Table("Cosines", rows, "columns: the vectors by their numbers")


def verify(options: argparse.Namespace) -> None:
    """Check that a vector's file is whole and finite and, if a model is named, that the vector starts from it."""
    from tauspan.editing.model.edit_files import Base

    vector = vector_of(options.vector)
    if options.model:
        Base(options.model).deltas(vector)
    if options.json:
        sys.stdout.write(json.dumps({"ok": True, "base": vector.base, "checked_model": options.model}) + "\n")
    base = f"and starts from {options.model}" if options.model else f"(base {vector.base[:12]}, not checked)"
    say(f"{options.vector} is whole and finite {base}", options)


def total(options: argparse.Namespace) -> None:
    """Write the sum of vectors."""
    first, *rest = map(vector_of, options.vectors)
    _write(sum(rest, first), options)


def scale(options: argparse.Namespace) -> None:
    """Write a multiple of a vector."""
    _write(options.factor * vector_of(options.vector), options)


def negate(options: argparse.Namespace) -> None:
    """Write the negative of a vector."""
    _write(-vector_of(options.vector), options)


def transport(options: argparse.Namespace) -> None:
    """Write the vector for another base, or say that it does not carry over."""
    from tauspan.editing import transport as transported
    from tauspan.store import require_free
    from tauspan.vector import vector_file

    require_free(vector_file(options.out), options.overwrite)
    old, new = (encoder_of(argparse.Namespace(model=model)) for model in (options.base, options.against))
    found = transported(
        vector_of(options.vector), old, new, task_of(options.task, options.rows), options.method, least=options.least,
        reading=Reading(max_tokens=options.max_tokens),
    )  # fmt: skip
    _write(found.vector, options, options.base, options.against)
    say(found.verdict, options)


def analogy(options: argparse.Namespace) -> None:
    """Write the analogy c + (b - a)."""
    a, b, c = map(vector_of, (options.a, options.b, options.c))
    _write(c + (b - a), options)
