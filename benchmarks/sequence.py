"""Tasks one after another on MiniLM: every protocol, several orders.

    python -m benchmarks.sequence [--tasks email_spam ...] [--protocols sum joint ...] [--seeds 0 1 2] [--rows 64]
                                  [--test 200] [--params last:1] [--max-tokens 32] [--steps 40] [--kept 16] [--drawn 16]
                                  [--out out/sequence]

A seed is an order of the tasks, and decides what protocols draw. Printed are means and standard deviations over seeds of
average accuracy, accuracy right after each task, forgetting, and bytes that are kept. Finished seeds are read from the
folder.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import tauspan as ts
from tauspan import store
from tauspan.core.measure import progress
from tauspan.core.report import Table, in_words
from tauspan.sequence import PROTOCOLS, Options, continual


def measured(given: argparse.Namespace, tasks: list[ts.Task], seed: int) -> dict[str, dict[str, float]]:
    """The measures of each protocol with one order."""
    file = given.out / f"{seed}-{given.rows}-{given.params.replace(':', '')}.json"
    if file.exists():
        kept: dict[str, dict[str, float]] = json.loads(file.read_text())
        return kept
    settings = ts.Settings(
        "standard", seed=seed, epochs=1000, max_steps=given.steps, batch_size=16, max_tokens=given.max_tokens
    )
    found = continual(
        ts.load("minilm"), tasks, given.protocols, Options(kept=given.kept, drawn=given.drawn), seed=seed,
        settings=settings, params=given.params, reading=ts.Reading(32, given.max_tokens),
    )  # fmt: skip
    runs = {
        name: {
            "average": run.average, "right after": run.learnt, "forgetting": run.forgetting or 0.0,
            "bytes": run.bytes, "seconds": run.seconds,
        }
        for name, run in found.runs.items()
    }  # fmt: skip
    runs["pre-trained"] = {"average": statistics.mean(found.start), "bytes": 0, "seconds": 0.0}
    store.write_json(file, runs)
    return runs


def main() -> None:
    """Measure and print."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--tasks", nargs="+")
    asked.add_argument("--protocols", nargs="+", default=list(PROTOCOLS))
    asked.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    asked.add_argument("--rows", type=int, default=64)
    asked.add_argument("--test", type=int, default=200)
    asked.add_argument("--params", default="last:1")
    asked.add_argument("--max-tokens", type=int, default=32)
    asked.add_argument("--steps", type=int, default=40)
    asked.add_argument("--kept", type=int, default=16)
    asked.add_argument("--drawn", type=int, default=16)
    asked.add_argument("--out", type=Path, default=Path("out/sequence"))
    given = asked.parse_args()
    tasks = [task.subset(train=given.rows, validation=32, test=given.test) for task in ts.suite(given.tasks)]
    runs = []
    with progress("sequences", len(given.seeds)) as advance:
        for seed in given.seeds:
            with ts.quiet():
                runs.append(measured(given, tasks, seed))
            advance(1, f"seed {seed}")
    rows: list[dict[str, Any]] = []
    for name in runs[0]:
        cells: dict[str, Any] = {"protocol": name}
        for kind in ("average", "right after", "forgetting"):
            values = [run[name][kind] for run in runs if kind in run[name]]
            cells[kind] = statistics.mean(values) if values else None
            if kind == "average":
                cells["+-"] = statistics.stdev(values) if values[1:] else None
        cells["kept"] = in_words(int(runs[0][name]["bytes"]))
        cells["seconds"] = statistics.mean(run[name]["seconds"] for run in runs)
        rows.append(cells)
    said = (
        f"MiniLM, {given.params}; {len(tasks)} tasks of {given.rows} training rows; accuracy on test; mean and standard "
        f"deviation over orders {', '.join(map(str, given.seeds))}."
    )
    sys.stdout.write(Table("Tasks one after another", rows, said).to_markdown() + "\n")
    store.write_json(given.out / "results.json", {"said": said, "rows": rows, "runs": runs})


if __name__ == "__main__":
    main()
