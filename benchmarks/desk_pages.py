"""Pages of the mixing desk with made-up numbers, for the browser's tests, its benchmark and its screenshots.

Numbers are laid out as the page reads them, and what they mean is computed here in float64 by numpy, in one line each.
"""

import base64
import gzip
import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta

Array = NDArray[Any]
Kind = Literal["affine", "gram", "sampled"]
TEMPLATE = Path(__file__).parents[1] / "src/tauspan/editing/desk/page.html"


@dataclass
class Blob:
    """Arrays one after the other, each at a multiple of eight bytes."""

    parts: list[bytes] = field(default_factory=list)
    size: int = 0

    def add(self, values: Array) -> int:
        """Append an array; gives its offset."""
        raw, place = np.ascontiguousarray(values).tobytes(), self.size
        self.parts.append(raw + bytes(-len(raw) % 8))
        self.size += len(self.parts[-1])
        return place


@dataclass(frozen=True)
class MadeSplit:
    """Rows of one split.

    Args:
        values: contributions of f at theta0 and of each vector, shape (N, K + 1, C), as stored.
        labels: shape (N,).
        scales: of int16 rows, shape (N,); None for float32.
        features: z_k of a normalising head, shape (N, K + 1, D).
        bias: of that head, shape (C,).
        scale: of that head's logits.
    """

    values: Array
    labels: Array
    scales: Array | None = None
    features: Array | None = None
    bias: Array | None = None
    scale: float = 1.0

    def logits(self, a: Sequence[float]) -> Array:
        """Outputs at coefficients, up to what changes no order; shape (N, C), float64."""
        weights = np.array([1.0, *a])
        summed = np.zeros((len(self.labels), self.values.shape[2]))
        for weight, part in zip(weights, np.moveaxis(self.values, 1, 0), strict=True):
            summed += weight * part
        if self.scales is not None:
            summed *= self.scales[:, None].astype(np.float64)
        if self.bias is not None and self.features is not None:
            length = np.linalg.norm(np.einsum("k,nkd->nd", weights, self.features), axis=1)
            summed += self.bias * length[:, None] / self.scale
        return summed

    def predicted(self, a: Sequence[float]) -> Array:
        """Classes at coefficients, shape (N,)."""
        return self.logits(a).argmax(1)

    def correct(self, a: Sequence[float]) -> int:
        """Rows that are right."""
        return int((self.predicted(a) == self.labels).sum())


@dataclass(frozen=True)
class MadeTask:
    """One task with its splits."""

    name: str
    classes: list[str]
    vector: int | None
    kind: Kind
    splits: dict[str, MadeSplit]
    floor: float | None = None


@dataclass(frozen=True)
class Made:
    """A page and what is in it."""

    html: str
    desk: dict[str, Any]
    tasks: list[MadeTask]
    texts: dict[str, dict[str, list[str]]]


def interval(correct: int, rows: int) -> dict[str, float]:
    """A share with its exact interval at 95 % (Clopper and Pearson)."""
    low = 0.0 if correct == 0 else float(beta.ppf(0.025, correct, rows - correct + 1))
    high = 1.0 if correct == rows else float(beta.ppf(0.975, correct + 1, rows - correct))
    return {"value": correct / rows, "low": low, "high": high}


def rows_of(
    generator: np.random.Generator,
    rows: int,
    classes: int,
    vectors: int,
    own: int | None,
    *,
    exact: bool = False,
    head: bool = False,
) -> MadeSplit:
    """Rows whose own vector helps and whose other vectors disturb a little."""
    labels = generator.integers(0, classes, rows)
    right = np.eye(classes)[labels]
    spread = 0.9 + 0.25 * np.log(classes)
    values = generator.normal(0, 1, (rows, vectors + 1, classes)) * 0.45
    values[:, 0] = 0.9 * spread * right + generator.normal(0, 1, (rows, classes))
    if own is not None:
        values[:, own + 1] += 2.2 * right * generator.gamma(2, 0.5, (rows, 1))
    if head:
        return _normalised(generator, values, labels)
    values -= values.mean(2, keepdims=True)
    if exact:
        return MadeSplit(values.astype(np.float32), labels)
    return MadeSplit(*_packed(values, labels))


def _packed(values: Array, labels: Array) -> tuple[Array, Array, Array]:
    scales = (np.abs(values).max((1, 2)) / 32767).astype(np.float32)
    return np.round(values / scales[:, None, None]).astype(np.int16), labels, scales


def _normalised(generator: np.random.Generator, logits: Array, labels: Array) -> MadeSplit:
    """Features whose products with a head are the logits, so that accuracies look like a trained model's."""
    classes, size = logits.shape[2], logits.shape[2] + 5
    head = generator.normal(0, 1, (classes, size))
    features = logits @ np.linalg.pinv(head).T + 0.1
    packed, labels, scales = _packed(features @ head.T, labels)
    return MadeSplit(
        packed, labels, scales, features, generator.normal(0, 0.05, classes).astype(np.float32), 10.0
    )


def stored(task: MadeTask, split: MadeSplit, blob: Blob, grid: Sequence[Sequence[float]]) -> dict[str, Any]:
    """The split's entry in the page's JSON; its numbers go into the blob."""
    rows, parts, _ = split.values.shape
    none = [0.0] * (parts - 1)
    single = None if task.vector is None else [float(k == task.vector) for k in range(parts - 1)]
    entry: dict[str, Any] = {
        "rows": rows,
        "labels": blob.add(split.labels.astype(np.uint16)),
        "zeroShot": interval(split.correct(none), rows),
        "single": None if single is None else interval(split.correct(single), rows),
        "kept": None,
        "scales": None if split.scales is None else blob.add(split.scales),
    }
    if task.kind == "sampled":
        predicted = np.stack([split.predicted(point) for point in grid])
        return entry | {"numbers": blob.add(predicted.astype(np.uint16)), "grid": grid, "scales": None}
    entry["numbers"] = blob.add(split.values)
    if split.features is not None:
        gram = np.einsum("nkd,nld->nkl", split.features, split.features)
        entry["gram"] = blob.add(gram[:, *np.triu_indices(parts)].astype(np.float32))
        entry["logitScale"] = split.scale
        entry["bias"] = None if split.bias is None else blob.add(split.bias)
    return entry


def copies(names: Sequence[str]) -> dict[str, Any]:
    """Templates of what can be copied."""
    return {
        "command": {
            "text": "tauspan apply all-MiniLM-L6-v2 {items} -o edited  # {split}",
            "item": "{name}=vectors/{name}.safetensors:{value}",
            "join": " ",
            "names": list(names),
        },
        "recipe": {
            "text": "# {split}\nbase: all-MiniLM-L6-v2\nvectors:\n{items}\n",
            "item": "  {name}: {value}",
            "join": "\n",
            "names": [json.dumps(name) for name in names],
        },
        "python": {
            "text": 'model = ts.load("all-MiniLM-L6-v2")\nedited = ts.apply(model, {items})  # {split}\n',
            "item": "{value} * vectors[{name}]",
            "join": " + ",
            "names": [repr(name) for name in names],
        },
    }


def page(
    tasks: Sequence[MadeTask],
    names: Sequence[str],
    *,
    texts: Mapping[str, Mapping[str, Sequence[str]]] | None = None,
    title: str = "A desk",
    limits: tuple[float, float] = (0.0, 1.0),
    exact: bool = False,
    grid: Sequence[Sequence[float]] = (),
    more: Mapping[str, Any] | None = None,
) -> Made:
    """The template with made-up contents in its places.

    Args:
        tasks: whose rows the page has.
        names: of the vectors.
        texts: of the rows, by task and split.
        title: of the page.
        limits: of the sliders.
        exact: whether numbers are float32.
        grid: the sampled points, for tasks of that kind.
        more: keys of the JSON that replace those made here.
    """
    blob, count = Blob(), len(names)
    entries = [
        {
            "name": task.name,
            "classes": task.classes,
            "vector": task.vector,
            "kind": task.kind,
            "floor": task.floor,
            "splits": {
                split: stored(task, task.splits[split], blob, grid) if split in task.splits else None
                for split in ("validation", "test")
            },
        }
        for task in tasks
    ]
    desk = {
        "format": "tauspan desk 1",
        "title": title,
        "model": "all-MiniLM-L6-v2",
        "regime": "standard" if grid else "linear",
        "point": "encoder" if any(task.kind == "gram" for task in tasks) else "logits",
        "version": "0.1.0",
        "exact": exact,
        "range": list(limits),
        "step": 0.01,
        "vectors": [{"name": name, "norm": 1.5, "file": None} for name in names],
        "tasks": entries,
        "choices": [
            {"name": "zero", "split": None, "coefficients": [0.0] * count, "note": "the pre-trained model"},
            {
                "name": "alpha = 1",
                "split": None,
                "coefficients": [1.0] * count,
                "note": "every vector as it was trained",
            },
        ],
        "interference": None,
        "front": None,
        "copy": copies(names),
        "notes": [],
    } | dict(more or {})
    contents = {task: dict(splits) for task, splits in (texts or {}).items()}
    return Made(_filled(desk, b"".join(blob.parts), contents), desk, list(tasks), contents)  # type: ignore[arg-type]


def _filled(desk: Mapping[str, Any], blob: bytes, texts: Mapping[str, Any]) -> str:
    data = json.dumps(desk, allow_nan=False)
    for character in "<>&":
        data = data.replace(character, f"\\u{ord(character):04x}")
    packed = base64.b64encode(gzip.compress(json.dumps(texts).encode(), mtime=0)).decode() if texts else ""
    places = {
        "__DESK_TITLE__": html.escape(str(desk["title"])),
        "__DESK_DATA__": data,
        "__DESK_NUMBERS__": base64.b64encode(blob).decode(),
        "__DESK_TEXTS__": packed,
    }
    head, *rest = TEMPLATE.read_text(encoding="utf-8").split("__DESK_")
    parts = [head]
    for piece in rest:
        name, after = piece.split("__", 1)
        parts += [places[f"__DESK_{name}__"], after]
    return "".join(parts)


def large() -> Made:
    """Eight tasks of 1,000 rows and 77 classes with eight vectors: the size that the page's goals are set for."""
    generator = np.random.default_rng(0)
    names = [f"task {k + 1}" for k in range(8)]
    classes = [f"class {c}" for c in range(77)]
    tasks = [
        MadeTask(name, classes, k, "affine", {"validation": rows_of(generator, 1000, 77, 8, k)}, floor=0.95)
        for k, name in enumerate(names)
    ]
    return page(tasks, names, title="Eight tasks of 77 classes")
