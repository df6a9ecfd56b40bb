"""The page's side of the desk: a second reading of its numbers, written from the format alone."""

import base64
import gzip
import json
from collections.abc import Sequence
from dataclasses import dataclass
from html.parser import HTMLParser
from typing import Any

import numpy as np


class _Parts(HTMLParser):
    """The contents of a page's elements, as a browser finds them."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.texts: dict[str, list[str]] = {}
        self.elements: list[str] = []
        self._in: str | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)
        self._in = dict(attrs).get("id") or tag

    def handle_endtag(self, tag: str) -> None:
        self._in = None

    def handle_data(self, data: str) -> None:
        if self._in is not None:
            self.texts.setdefault(self._in, []).append(data)


@dataclass
class Page:
    """A page's data and numbers."""

    title: str
    data: dict[str, Any]
    blob: bytes
    texts: dict[str, dict[str, list[str]]]
    elements: list[str]

    @staticmethod
    def of(html: str) -> "Page":
        parts = _Parts()
        parts.feed(html)
        found = {name: "".join(pieces) for name, pieces in parts.texts.items()}
        packed = found.get("desk-texts", "")
        texts = json.loads(gzip.decompress(base64.b64decode(packed))) if packed else {}
        data = json.loads(found["desk-data"], parse_constant=_refused)
        return Page(
            found["title"], data, base64.b64decode(found.get("desk-numbers", "")), texts, parts.elements
        )

    def task(self, name: str) -> dict[str, Any]:
        return next(task for task in self.data["tasks"] if task["name"] == name)

    def array(self, offset: int, kind: str, count: int) -> np.ndarray[Any, Any]:
        assert offset % 8 == 0
        return np.frombuffer(self.blob, kind, count, offset)

    def labels(self, name: str, split: str) -> np.ndarray[Any, Any]:
        part = self.task(name)["splits"][split]
        return self.array(part["labels"], "<u2", part["rows"])

    def logits(self, name: str, split: str, at: Sequence[float]) -> list[dict[int, float]]:
        """Of each row: what decides between its classes, by class."""
        task = self.task(name)
        part, terms = task["splits"][split], [1.0, *at]
        rows, width = part["rows"], len(terms)
        exact = self.data["exact"]
        if part["kept"] is None:
            starts = np.arange(rows + 1) * len(task["classes"])
            classes = np.tile(np.arange(len(task["classes"])), rows)
        else:
            starts = self.array(part["kept"]["starts"], "<u4", rows + 1)
            classes = self.array(part["kept"]["classes"], "<u2", int(starts[-1]))
        numbers = self.array(part["numbers"], "<f4" if exact else "<i2", width * int(starts[-1])).astype(
            float
        )
        scales = np.ones(rows) if exact else self.array(part["scales"], "<f4", rows).astype(float)
        found = []
        for n in range(rows):
            of = classes[starts[n] : starts[n + 1]]
            mine = numbers[width * starts[n] : width * starts[n + 1]].reshape(width, len(of)) * scales[n]
            sums = np.array(terms) @ mine
            if task["kind"] == "gram":
                sums = self._divided(part, n, np.array(terms), sums)
            found.append(dict(zip(map(int, of), map(float, sums), strict=True)))
        return found

    def _divided(self, part: Any, n: int, terms: Any, sums: Any) -> Any:
        width = len(terms)
        size = width * (width + 1) // 2
        upper = self.array(part["gram"] + 0, "<f4", size * part["rows"]).reshape(-1, size)[n].astype(float)
        whole = np.zeros((width, width))
        whole[np.triu_indices(width)] = upper
        whole = whole + np.triu(whole, 1).T
        length = max(float(np.sqrt(max(terms @ whole @ terms, 0.0))), 1e-12)
        bias = 0.0 if part["bias"] is None else self.array(part["bias"], "<f4", len(sums)).astype(float)
        return part["logitScale"] * sums / length + bias

    def predicted(self, name: str, split: str, at: Sequence[float]) -> list[int]:
        task = self.task(name)
        part = task["splits"][split]
        if task["kind"] == "sampled":
            points = np.array(part["grid"])
            nearest = int(((points - np.array(at)) ** 2).sum(1).argmin())
            rows = part["rows"]
            return [
                int(c)
                for c in self.array(part["numbers"], "<u2", rows * len(points))[nearest * rows :][:rows]
            ]
        return [max(row, key=lambda c: (row[c], -c)) for row in self.logits(name, split, at)]

    def accuracy(self, name: str, split: str, at: Sequence[float]) -> float:
        return float(np.mean(np.array(self.predicted(name, split, at)) == self.labels(name, split)))


def _refused(word: str) -> Any:
    raise AssertionError(f"JSON has no {word}")
