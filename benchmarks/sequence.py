"""Tasks one after another on MiniLM: every protocol, or one claim of two protocols, over several orders.

    python -m benchmarks.sequence [--tasks email_spam ...] [--protocols sum joint ...] [--seeds 0 1 2] [--rows 32]
                                  [--test 100] [--params last:1] [--max-tokens 32] [--steps 40] [--kept 16] [--drawn 16]
                                  [--out out/sequence]
    python -m benchmarks.sequence --bytes [2 4 8 16 32 64] --rows 64
    python -m benchmarks.sequence --masks [0.05 0.1 0.2]

A seed is an order of the tasks, and decides what protocols draw. Printed are means and standard deviations over seeds of
average accuracy, accuracy right after each task, backward transfer, forgetting, and bytes that are kept. Finished seeds
are read from the folder.

`--bytes` asks whether rows drawn from class Gaussians are worth their memory (Derakhshani and others, arXiv:2112.13410:
equal accuracy at a tenth of it): so many drawn rows of each class against so many stored ones. The Gaussians keep the
same bytes for any number; diagonal ones as many as two stored rows of features. It also says what the stored rows take as
inputs, from which the frozen encoder makes their features again. Features are computed once.

`--masks` compares densities of masks, uniform or Erdos-Renyi-kernel, and the three ways to grow them (Yildirim and
others, arXiv:2308.14831), with the protocols that have no masks. Masks of T tasks share no entry, so a density above
1 / T is left out.
"""

import argparse
import itertools
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, get_args

import torch
from torch import nn

import tauspan as ts
from tauspan import store
from tauspan.core.measure import progress
from tauspan.core.report import Table, in_words
from tauspan.sequence import PROTOCOLS, Options, continual
from tauspan.sequence.course import bytes_of
from tauspan.sequence.options import Growth, Spread
from tauspan.tasks import build_head
from tauspan.tasks.features import features_of

Runs = Mapping[str, dict[str, Any]]  # by protocol
KINDS = ("average", "right after", "backward", "forgetting")
UNMASKED = ("finetuned", "sequential", "sum", "joint")


class Variant(NamedTuple):
    """Some protocols with some options; `name` is that of its files."""

    name: str
    protocols: Sequence[str]
    options: Options


def measured(
    given: argparse.Namespace, encoder: ts.Encoder, tasks: Sequence[ts.Task], variant: Variant, seed: int
) -> Runs:
    """The measures of each protocol with one order."""
    file = given.out / f"{variant.name}{seed}-{given.rows}-{given.params.replace(':', '')}.json"
    if file.exists():
        kept: Runs = json.loads(file.read_text())
        return kept
    settings = ts.Settings(
        "standard", seed=seed, epochs=1000, max_steps=given.steps, batch_size=16, max_tokens=given.max_tokens
    )
    found = continual(
        encoder, tasks, variant.protocols, variant.options, seed=seed, settings=settings,
        params=given.params, reading=ts.Reading(32, given.max_tokens),
    )  # fmt: skip
    runs = {
        name: {
            "average": run.average, "right after": run.learnt, "backward": run.backward or 0.0,
            "forgetting": run.forgetting or 0.0, "bytes": run.bytes, "memory": dict(run.memory),
            "rows": run.memory.get("rows", 0), "seconds": run.seconds,
        }
        for name, run in found.runs.items()
    }  # fmt: skip
    runs["pre-trained"] = {"average": statistics.mean(found.start), "bytes": 0, "rows": 0, "seconds": 0.0}
    store.write_json(file, runs)
    return runs


def over_seeds(
    given: argparse.Namespace, encoder: ts.Encoder, tasks: Sequence[ts.Task], variants: Sequence[Variant]
) -> dict[str, list[Runs]]:
    """By variant, what was measured with each seed."""
    found: dict[str, list[Runs]] = {}
    with progress("sequences", len(given.seeds) * len(variants)) as advance:
        for variant, seed in itertools.product(variants, given.seeds):
            with ts.quiet():
                found.setdefault(variant.name, []).append(measured(given, encoder, tasks, variant, seed))
            advance(1, f"{variant.name}seed {seed}")
    return found


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation."""
    apart = f" ± {statistics.stdev(values):.3f}" if values[1:] else ""
    return f"{statistics.mean(values):.3f}{apart}"


# -- every protocol ------------------------------------------------------------------------------------------------


def protocols(runs: Sequence[Runs]) -> list[dict[str, Any]]:
    """A row for each protocol."""
    rows: list[dict[str, Any]] = []
    for name in runs[0]:
        cells: dict[str, Any] = {"protocol": name}
        for kind in KINDS:
            values = [run[name][kind] for run in runs if kind in run[name]]
            cells[kind] = statistics.mean(values) if values else None
            if kind == "average":
                cells["+-"] = statistics.stdev(values) if values[1:] else None
        cells["kept"] = in_words(int(runs[0][name]["bytes"]))
        cells["seconds"] = statistics.mean(run[name]["seconds"] for run in runs)
        rows.append(cells)
    return rows


# -- rows that are drawn, at equal bytes ----------------------------------------------------------------------------


def as_features(encoder: ts.Encoder, task: ts.Task, max_tokens: int) -> ts.Task:
    """The task with the encoder's features as its inputs, under the encoder's head: what `nn.Identity` then learns."""
    splits = {
        name: (features_of(encoder, split, task.tokens(max_tokens)), split.labels)
        for name, split in task.splits.items()
    }
    head = build_head(task, encoder, max_tokens=max_tokens)
    return ts.Task.from_tensors(task.name, list(task.label_names), head=head, **splits)


def at_equal_bytes(
    given: argparse.Namespace, encoder: ts.Encoder, tasks: Sequence[ts.Task]
) -> tuple[Table, dict[str, list[Runs]]]:
    """A row for each number of rows a class, and in the note how many stored ones it takes to be as good."""
    ready = [as_features(encoder, task, given.max_tokens) for task in tasks]
    variants = {
        count: Variant(f"drawn-{count}-", ("pseudo", "stored"), Options(drawn=count)) for count in given.bytes
    }
    found = over_seeds(given, ts.load(nn.Identity()), ready, list(variants.values()))
    mean_input = {  # bytes of a row as it is, with 8 for its label
        task.name: 8 + bytes_of(list(task.split("train").inputs)) / len(task.split("train")) for task in tasks
    }
    rows: list[dict[str, Any]] = []
    for count, variant in variants.items():
        runs = found[variant.name]
        pseudo, stored = ([run[name]["average"] for run in runs] for name in variant.protocols)
        inputs = sum(
            mean_input[task.name] * int(torch.bincount(task.split("train").labels).clamp(max=count).sum())
            for task in tasks
        )
        rows.append({
            "rows a class": count, "pseudo": spread(pseudo), "stored": spread(stored),
            "pseudo - stored": spread([a - b for a, b in zip(pseudo, stored, strict=True)]),
            "Gaussians": in_words(int(runs[0]["pseudo"]["rows"])),
            "stored rows": in_words(int(runs[0]["stored"]["rows"])), "as inputs": in_words(round(inputs)),
            "pre-trained": spread([run["pre-trained"]["average"] for run in runs]),
        })  # fmt: skip
    return Table("Drawn rows against stored ones", rows, _enough(found, variants)), found


def _enough(found: Mapping[str, list[Runs]], variants: Mapping[int, Variant]) -> str:
    """How many stored rows are as good as the best drawn ones, in bytes of the Gaussians."""

    def average(count: int, name: str) -> float:
        return statistics.mean(run[name]["average"] for run in found[variants[count].name])

    best = max(variants, key=lambda count: average(count, "pseudo"))
    kept = found[variants[best].name][0]["pseudo"]["rows"]
    for count in sorted(variants):
        if average(count, "stored") >= average(best, "pseudo"):
            ratio = found[variants[count].name][0]["stored"]["rows"] / kept
            return f"{count} stored rows a class are as good as {best} drawn ones, at {ratio:.2f} times their bytes."
    return f"No number of stored rows that was tried is as good as {best} drawn rows a class."


# -- masks ---------------------------------------------------------------------------------------------------------


def of_masks(
    given: argparse.Namespace, encoder: ts.Encoder, tasks: Sequence[ts.Task]
) -> tuple[Table, dict[str, list[Runs]]]:
    """A row for each density and way to grow, and for each protocol without masks."""
    densities = [one for one in given.masks if one * len(tasks) <= 1 + 1e-12]
    named = {
        (density, spread_, growth): Variant(
            f"masks-{density:g}-{spread_}-{growth}-", ["masked"],
            Options(kept=given.kept, density=density, spread=spread_, growth=growth),
        )
        for density, spread_, growth in itertools.product(densities, get_args(Spread), get_args(Growth))
    }  # fmt: skip
    plain = Variant(
        "unmasked-", [one for one in UNMASKED if one in given.protocols], Options(kept=given.kept)
    )
    found = over_seeds(given, encoder, tasks, [*named.values(), *([plain] if plain.protocols else [])])
    rows: list[dict[str, Any]] = []
    for density, growth in itertools.product(densities, get_args(Growth)):
        both = [found[named[density, spread_, growth].name] for spread_ in get_args(Spread)]
        uniform, thin = ([run["masked"]["average"] for run in runs] for runs in both)
        rows.append({
            "vectors": f"masked, {growth}", "density": density, "uniform": spread(uniform),
            "Erdos-Renyi-kernel": spread(thin),
            "difference": spread([b - a for a, b in zip(uniform, thin, strict=True)]),
            "kept": in_words(int(both[0][0]["masked"]["bytes"])),
        })  # fmt: skip
    for name in plain.protocols:
        runs = found[plain.name]
        values = spread([run[name]["average"] for run in runs])
        rows.append({"vectors": name, "uniform": values, "kept": in_words(int(runs[0][name]["bytes"]))})
    left = [f"{one:g}" for one in given.masks if one not in densities]
    note = f"Left out, above 1 / {len(tasks)}: {', '.join(left)}." if left else ""
    return Table("Masks: densities, where entries are, how they grow", rows, note), found


# -- all of it -----------------------------------------------------------------------------------------------------


def main(
    argv: Sequence[str] | None = None,
    encoder: ts.Encoder | None = None,
    tasks: Sequence[ts.Task] | None = None,
) -> list[dict[str, Any]]:
    """Measure and print; an encoder and tasks of one's own take the place of MiniLM and the suite."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--tasks", nargs="+")
    asked.add_argument("--protocols", nargs="+", default=list(PROTOCOLS))
    asked.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    asked.add_argument("--rows", type=int, default=32)
    asked.add_argument("--test", type=int, default=100)
    asked.add_argument("--params", default="last:1")
    asked.add_argument("--max-tokens", type=int, default=32)
    asked.add_argument("--steps", type=int, default=40)
    asked.add_argument("--kept", type=int, default=16)
    asked.add_argument("--drawn", type=int, default=16)
    asked.add_argument("--bytes", nargs="*", type=int, help="rows a class, for pseudo and stored")
    asked.add_argument("--masks", nargs="*", type=float, help="densities")
    asked.add_argument("--out", type=Path, default=Path("out/sequence"))
    given = asked.parse_args(argv)
    given.bytes = given.bytes if given.bytes or given.bytes is None else [2, 4, 8, 16, 32, 64]
    given.masks = given.masks if given.masks or given.masks is None else [0.05, 0.1, 0.2]
    if given.bytes and given.masks:
        asked.error("--bytes and --masks are two studies: ask for one")
    encoder = encoder or ts.load("minilm")
    tasks = tasks or [
        task.subset(train=given.rows, validation=32, test=given.test) for task in ts.suite(given.tasks)
    ]
    if given.bytes:
        table, found = at_equal_bytes(given, encoder, tasks)
    elif given.masks:
        table, found = of_masks(given, encoder, tasks)
    else:
        options = Options(kept=given.kept, drawn=given.drawn)
        found = over_seeds(given, encoder, tasks, [Variant("", given.protocols, options)])
        table = Table("Tasks one after another", protocols(found[""]))
    said = (
        f"{encoder.source}, {given.params}; {len(tasks)} tasks of {given.rows} training rows; accuracy on test; mean and "
        f"standard deviation over orders {', '.join(map(str, given.seeds))}."
    )
    sys.stdout.write(replace(table, note=f"{table.note} {said}".strip()).to_markdown() + "\n")
    rows = list(table.rows)
    store.write_json(given.out / "results.json", {"said": said, "rows": rows, "runs": found})
    return rows


if __name__ == "__main__":
    main()
