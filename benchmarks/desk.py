"""How large pages of the desk are, and how long Python takes to make them; `--out` keeps the pages for a browser.

Two kinds: the four shipped tasks in the packaged encoder, and random numbers of a given shape, made by one layer whose
logits are any numbers that its vectors make them. Vectors are random: sizes do not depend on what they were trained for,
except where classes that win nowhere are left out. Texts are read to 24 tokens, which decides the seconds alone.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from benchmarks.search import directions
from rich.console import Console
from torch import nn

import tauspan as ts
from tauspan.core.report import Cell, Report, Table, provenance
from tauspan.editing import Desk
from tauspan.models import Encoder, Head, fingerprint_of, load_model
from tauspan.tasks import Task
from tauspan.vector import TaskVector

WIDTH = 64  # inputs of the layer
TASKS, ROWS, CLASSES = 8, 1000, 77
TOKENS = 24


@dataclass(frozen=True)
class Size:
    """One page.

    Args:
        page: what is on it.
        tasks: how many, each with a vector.
        rows: of each split and task, at most.
        classes: at most.
        bounds: of every coefficient.
        megabytes: of the file.
        seconds: from tasks and vectors to the page, passes included.
        within_rounding: the largest share of rows, at any choice, whose class the 16 bits could have changed.
        note: what the page says of itself.
    """

    page: str
    tasks: int
    rows: int
    classes: int
    bounds: str
    megabytes: float
    seconds: float
    within_rounding: float
    note: str

    def cells(self) -> dict[str, Cell]:
        """The row of the table."""
        return {
            "page": self.page, "tasks": self.tasks, "rows": self.rows, "classes": self.classes, "range": self.bounds,
            "MB": round(self.megabytes, 3), "seconds": round(self.seconds, 1),
            "within rounding": f"{self.within_rounding:.2%}",
        }  # fmt: skip


def layer_of_random_numbers(
    seed: int, tasks: int, rows: int, classes: int
) -> tuple[Encoder, dict[Task, TaskVector]]:
    """One layer with logits of size about 1, tasks of normal inputs labelled by it, and vectors a third as large."""
    draw = torch.Generator().manual_seed(seed)
    net = nn.Linear(WIDTH, classes, bias=False)
    with torch.no_grad():
        net.weight.copy_(torch.randn(classes, WIDTH, generator=draw) / WIDTH**0.5)
    encoder, head = Encoder(net), Head(torch.eye(classes))
    base = fingerprint_of(encoder)
    made = {}
    for place in range(tasks):
        x = torch.randn(3 * rows, WIDTH, generator=draw)
        tau = torch.randn(classes, WIDTH, generator=draw) / (3 * WIDTH**0.5)
        y = (x @ (net.weight.detach() + tau).T).argmax(-1)
        splits = {
            name: (x[i * rows :][:rows], y[i * rows :][:rows])
            for i, name in enumerate(("train", "validation", "test"))
        }
        names = [f"class {number}" for number in range(classes)]
        task = Task.from_tensors(f"random {place + 1}", names, head=head, labels="from_0", **splits)
        made[task] = TaskVector({"weight": tau}, base, "linear", task.name)
    return encoder, made


def suite_pages(rows: int) -> tuple[Encoder, dict[Task, TaskVector]]:
    """The four shipped tasks of the demo, with random vectors of the packaged encoder."""
    encoder = load_model("minilm")
    tasks = ts.suite(["movie_sentiment", "tweet_sentiment", "email_spam", "debian_section"])
    few = [task.subset(train=rows, validation=rows, test=rows) for task in tasks]
    return encoder, dict(zip(few, directions(encoder, len(few)), strict=True))


def measured(
    name: str,
    make: Callable[[], tuple[Encoder, dict[Task, TaskVector]]],
    bounds: tuple[float, float],
    out: Path | None,
) -> Size:
    """Make a page, and say how large it is."""
    encoder, vectors = make()
    began = time.perf_counter()
    page: Desk = ts.desk(encoder, vectors, range=bounds, reading=ts.Reading(max_tokens=TOKENS))
    seconds = time.perf_counter() - began
    if out is not None:
        page.save(out / f"{name}.html", overwrite=True)
    unsure = max(float(row["within rounding"] or 0) / float(row["rows"] or 1) for row in page.tasks)
    return Size(
        name, len(vectors), max(len(task.split("test")) for task in vectors),
        max(len(task.label_names) for task in vectors), f"{bounds[0]:g} to {bounds[1]:g}", page.size / 1e6, seconds,
        unsure, " ".join(page.notes),
    )  # fmt: skip


def sizes(out: Path | None, short: bool) -> list[Size]:
    """Every page of the benchmark; short ones have few rows and leave the packaged encoder out."""
    rows, classes = (20, 7) if short else (ROWS, CLASSES)

    def random(count: int) -> Callable[[], tuple[Encoder, dict[Task, TaskVector]]]:
        return lambda: layer_of_random_numbers(0, TASKS, count, classes)

    found = [] if short else [measured("suite", lambda: suite_pages(200), (-1.0, 1.0), out)]
    found.append(measured("random-small", random(rows // 4), (0.0, 1.0), out))
    found.append(measured("random", random(rows), (0.0, 1.0), out))
    found.append(measured("random-wide", random(rows // 2), (-1.0, 1.0), out))
    return found


def report(found: list[Size]) -> Report:
    """The table."""
    notes = "rows of each split; within rounding: the largest share of a split's rows, at any of the page's choices"
    table = Table("Pages of the desk", [size.cells() for size in found], notes)
    return Report(
        "Pages of the desk", [table], provenance(), result={"pages": [asdict(size) for size in found]}
    )


def main() -> None:
    """Print the table, and with --json write it."""
    given = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    given.add_argument("--out", type=Path, help="folder that keeps the pages")
    given.add_argument("--json", type=Path, help="file for the numbers")
    given.add_argument("--short", action="store_true", help="small pages of random numbers alone")
    options = given.parse_args()
    done = report(sizes(options.out, options.short))
    Console().print(done.renderable())
    if options.json:
        options.json.write_text(json.dumps(done.result, indent=1) + "\n")


if __name__ == "__main__":
    main()
