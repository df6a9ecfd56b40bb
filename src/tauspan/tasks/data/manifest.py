"""Split manifests: hashes of a task's rows, to check that another day or another machine has the same rows."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tauspan import store
from tauspan.core.arguments import checked
from tauspan.core.errors import DataError, listed
from tauspan.tasks import SPLITS, Split, Task

FORMAT = "tauspan-manifest/1"
BLOCK = 256  # rows of one leaf of the hash tree


@checked
def manifest(task: Task) -> dict[str, Any]:
    """The manifest of a task: a description of its splits that JSON can hold, much smaller than the data.

    For each split it has the number of rows, the number of rows of each class, and a hash tree of two levels. A row is
    hashed with its label and content. Each leaf is the SHA-256 of the row hashes of a block of 256 rows, `root` is the
    SHA-256 of the leaves, and `rows_in_any_order` is the SHA-256 of the sorted row hashes. The content is a text in
    UTF-8, an image as it is encoded, or an array after its dtype and shape, so nothing is decoded. Cost: one pass over
    the encoded bytes.

    Example:
        >>> rows = Split(["a", "b"], torch.tensor([0, 1]))
        >>> manifest(Task("ab", ["x", "y"], {"train": rows, "validation": rows, "test": rows}))["splits"]["test"]["rows"]
        2
    """
    return {
        "format": FORMAT,
        "name": task.name,
        "source": task.source,
        "seed": task.extra.get("seed"),
        "validation": task.extra.get("validation"),
        "control_split": task.extra.get("control_split"),
        "label_names": list(task.label_names),
        "block": BLOCK,
        "splits": {split: _split(task.splits[split], len(task.label_names)) for split in SPLITS},
    }


@checked
def write_manifest(task: Task, path: str | Path) -> dict[str, Any]:
    """Write `manifest(task)` as JSON and return it."""
    made = manifest(task)
    store.write_json(path, made)
    return made


@checked
def check_manifest(task: Task, stored: Mapping[str, Any] | str | Path) -> None:
    """Raise unless a task has the rows of a stored manifest, in its order.

    The source of the rows may differ: a folder and the hub can hold the same rows.

    Raises:
        DataError: with what differs: class names, numbers of rows, rows per class, the order, or which rows.
        StoreError: the file is missing or no JSON.
    """
    where = str(stored) if isinstance(stored, str | Path) else "the manifest"
    known = store.read_json(Path(stored)) if isinstance(stored, str | Path) else stored
    _require_shape(known, where)
    made = manifest(task)
    found = []
    if known["name"] != made["name"]:
        found.append(f"it describes {known['name']!r}")
    if known["label_names"] != made["label_names"]:
        found.append(_names(known["label_names"], made["label_names"]))
    for split in SPLITS:
        found += [f"{split}: {text}" for text in _differences(known["splits"][split], made["splits"][split])]
    if found:
        hint = ""
        if known.get("seed") != made["seed"]:
            hint = f" Its validation split was drawn with seed {known.get('seed')}, this one with {made['seed']}."
        raise DataError(
            f"task {task.name!r} from {task.source} differs from {where}: {'; '.join(found)}.{hint}"
        )


def _split(rows: Split, classes: int) -> dict[str, Any]:
    hashes = [
        hashlib.sha256(f"{label}|".encode() + content).digest()
        for label, content in zip(rows.labels.tolist(), rows.contents(), strict=True)
    ]
    leaves = [_joined(hashes[begin : begin + BLOCK]) for begin in range(0, len(hashes), BLOCK)]
    return {
        "rows": len(hashes),
        "rows_per_class": torch.bincount(rows.labels, minlength=classes).tolist(),
        "root": _joined([leaf.encode() for leaf in leaves]),
        "rows_in_any_order": _joined(sorted(hashes)),
        "leaves": [leaf[:16] for leaf in leaves],
    }


def _joined(hashes: list[bytes]) -> str:
    return hashlib.sha256(b"".join(hashes)).hexdigest()


def _require_shape(known: Any, where: str) -> None:
    """Raise unless a manifest has the expected keys and types; it comes from a file, which may hold anything."""
    if not isinstance(known, Mapping) or known.get("format") != FORMAT:
        version = known.get("format") if isinstance(known, Mapping) else type(known).__name__
        raise DataError(f"{where} is no split manifest: its format is {version!r}, and {FORMAT!r} is read.")
    splits, names = known.get("splits"), known.get("label_names")
    fields = {"rows": int, "rows_per_class": list, "root": str, "rows_in_any_order": str, "leaves": list}
    whole = (
        isinstance(splits, Mapping)
        and isinstance(names, list)
        and isinstance(known.get("name"), str)
        and known.get("block") == BLOCK
        and all(
            isinstance(splits.get(split), Mapping)
            and all(isinstance(splits[split].get(name), kind) for name, kind in fields.items())
            for split in SPLITS
        )
    )
    if not whole:
        raise DataError(f"{where} is a damaged split manifest: write it again with `tauspan data manifest`.")


def _names(known: list[Any], made: list[str]) -> str:
    if len(known) != len(made):
        return f"it has {len(known)} classes, the task {len(made)}"
    place = next(place for place, (a, b) in enumerate(zip(known, made, strict=True)) if a != b)
    return f"its class {place} is {known[place]!r}, the task's {made[place]!r}"


def _differences(known: Mapping[str, Any], made: Mapping[str, Any]) -> list[str]:
    if known["root"] == made["root"]:
        return []
    if known["rows"] != made["rows"]:
        return [f"{made['rows']} rows, not {known['rows']}"]
    if known["rows_in_any_order"] == made["rows_in_any_order"]:
        return ["the same rows in another order"]
    found = []
    if known["rows_per_class"] != made["rows_per_class"]:
        found.append("other numbers of rows per class")
    pairs = zip(known["leaves"], made["leaves"], strict=False)
    blocks = [place for place, (a, b) in enumerate(pairs) if a != b]
    rows = (f"{BLOCK * place}..{min(BLOCK * (place + 1), made['rows']) - 1}" for place in blocks)
    return [*found, f"other content in rows {listed(rows)} ({len(blocks)} of {len(made['leaves'])} blocks)"]
