"""`python -m benchmarks.kernel_suite`: what the tangent kernel says about the suite, beside what then happens.

Questions on the shipped tasks and the packaged encoder, answered with tables, a JSON and a picture:

1. Is a closed-form task vector as good as a fine-tuned one, and what does each cost?
2. Does interference that is known before merging, K_t't alpha_t, predict the accuracy that a task loses when another
   task's vector is added? Measured in the tangent model and in the ordinary one, over all pairs.
3. Do the kernel's eigenfunctions live on their own task's inputs, and more so after pre-training?
4. How do vectors that are added compare with one block solve for all tasks, and with joint training?
5. Is forgetting rows by a downdate the same as solving without them, and what does it cost?
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from benchmarks.kernel_union import TOKENS, Row, mean, of_forgetting, of_solutions
from rich.console import Console
from scipy.stats import pearsonr, spearmanr
from torch import Tensor

import tauspan as ts
from tauspan import store
from tauspan.core.measure import measured
from tauspan.core.reading import Reading
from tauspan.core.report import Report, Table, provenance
from tauspan.editing.model.outputs import outputs
from tauspan.experiments.figures import REGIMES
from tauspan.kernel import closed_form
from tauspan.kernel.diagnose import KernelOutputs, KernelSettings, task_energies, task_kernels
from tauspan.models import Classifier, Encoder
from tauspan.objectives import Classification
from tauspan.tangent import linearize
from tauspan.tangent.contributions import contributions
from tauspan.tasks import Task, build_head
from tauspan.tasks.batches import batches
from tauspan.tasks.data.suite import suite

THREE = ("email_spam", "movie_sentiment", "debian_section")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="python -m benchmarks.kernel_suite", description=__doc__)
    made.add_argument("--rows", type=int, default=128, help="training rows a task")
    made.add_argument("--test", type=int, default=200, help="test rows a task")
    made.add_argument(
        "--joint-rows", type=int, default=64, help="training rows a task where all are solved at once"
    )
    made.add_argument("--energy-rows", type=int, default=32, help="training rows a task for local energy")
    made.add_argument("--params", default="last:2", help="parameters that move")
    made.add_argument("--epochs", type=int, default=5, help="of the fine-tuned vectors")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument(
        "--only", choices=tuple(QUESTIONS), nargs="+", default=tuple(QUESTIONS), help="some questions"
    )
    made.add_argument("--threads", type=int, default=2)
    made.add_argument("--out", type=Path, default=Path("out/kernel-suite"))
    return made


def beside_finetuning(encoder: Encoder, tasks: Sequence[Task], options: argparse.Namespace) -> list[Row]:
    """Question 1: test accuracy and seconds of closed forms and of AdamW in the tangent space."""
    rows: list[Row] = []
    for task in tasks:
        rows.append(
            {"task": task.name, "how": "zero shot", "accuracy": mean(encoder, [task], None), "seconds": None}
        )
        for loss in ("squared", "cross_entropy", "hinge"):
            fitted = closed_form(
                encoder, task, loss, params=options.params, reading=Reading(max_tokens=TOKENS)
            )  # type: ignore[arg-type]
            reached = mean(encoder, [task], fitted.vector)
            rows.append({"task": task.name, "how": f"closed form, {loss}", "accuracy": reached,
                         "seconds": fitted.cost.seconds})  # fmt: skip
        settings = ts.Settings(
            "linear", options.seed, options.params, epochs=options.epochs, lr=3e-4, max_tokens=TOKENS
        )
        run = ts.finetune(encoder, task, settings)
        rows.append({"task": task.name, "how": f"AdamW, {options.epochs} epochs",
                     "accuracy": mean(encoder, [task], run.task_vector), "seconds": run.cost.seconds})  # fmt: skip
    return rows


def of_pairs(encoder: Encoder, tasks: Sequence[Task], options: argparse.Namespace) -> list[Row]:
    """Question 2: a row a pair: interference predicted on training rows, accuracy lost on test rows."""
    vectors = {
        task.name: closed_form(
            encoder, task, params=options.params, reading=Reading(max_tokens=TOKENS)
        ).vector
        for task in tasks
    }
    rows: list[Row] = []
    for on in tasks:
        head = build_head(on, encoder, max_tokens=TOKENS)
        tangent = linearize(Classifier(encoder, head), list(vectors[on.name].deltas))

        def moved(split: str, on: Task = on, tangent: Any = tangent) -> Any:
            prepared = batches(encoder, on.split(split), TOKENS, 64)
            return contributions(tangent, vectors, prepared, on.split(split).labels)

        seen, unseen = moved("train"), moved("test")
        place = {name: number for number, name in enumerate(seen.names)}
        own = _rms(seen.tangents[place[on.name]])
        before = Classification().value(unseen.logits(_at(place, on.name)), unseen.labels)
        ordinary = _ordinary(encoder, on, vectors[on.name])
        for by in tasks:
            if by is on:
                continue
            both = Classification().value(unseen.logits(_at(place, on.name, by.name)), unseen.labels)
            together = (vectors[on.name] + vectors[by.name]).as_regime("standard")
            rows.append({
                "on": on.name, "by": by.name, "predicted": _rms(seen.tangents[place[by.name]]) / own,
                "lost, tangent": before - both, "lost, ordinary": ordinary - _ordinary(encoder, on, together),
            })  # fmt: skip
    return rows


def _rms(values: Tensor) -> float:
    """Root mean square of logit changes, without the shift of all logits that decides nothing."""
    centred = values.double() - values.double().mean(-1, keepdim=True)
    return float(centred.square().mean().sqrt())


def _at(place: dict[str, int], *names: str) -> list[float]:
    return [float(name in names) for name in place]


def _ordinary(encoder: Encoder, task: Task, vector: ts.TaskVector) -> float:
    edited = ts.apply(encoder, vector.as_regime("standard"), 1.0, regime="standard")
    head = build_head(task, encoder, max_tokens=TOKENS)
    prepared = batches(encoder, task.split("test"), TOKENS, 64)
    with torch.inference_mode():
        return Classification().value(outputs(Classifier(edited, head), prepared), task.split("test").labels)  # type: ignore[arg-type]


def correlations(rows: Sequence[Row]) -> list[Row]:
    """Pearson and Spearman correlations of predicted interference with lost accuracy, with p-values."""
    predicted = [float(row["predicted"] or 0) for row in rows]
    found: list[Row] = []
    for column in ("lost, tangent", "lost, ordinary"):
        lost = [float(row[column] or 0) for row in rows]
        linear, ranks = pearsonr(predicted, lost), spearmanr(predicted, lost)
        found.append({"accuracy": column, "pairs": len(rows), "Pearson": float(linear.statistic),
                      "p (Pearson)": float(linear.pvalue), "Spearman": float(ranks.statistic),
                      "p (Spearman)": float(ranks.pvalue)})  # fmt: skip
    return found


def energies(encoder: Encoder, tasks: Sequence[Task], options: argparse.Namespace) -> list[Row]:
    """Question 3: local energy of leading eigenfunctions of all logits, pre-trained and from random weights."""
    rows: list[Row] = []
    models = {"pre-trained": encoder, "random": ts.reinitialised(encoder, seed=options.seed)}
    for start, model in models.items():
        for logits in get_args(KernelOutputs):
            settings = KernelSettings(
                options.energy_rows, outputs=logits, reading=Reading(32, max_tokens=TOKENS)
            )
            made = task_kernels(model, tasks, options.params, settings)
            for one in task_energies(made, 10, lambda steps, note: None):
                means = {"support": one.own.on_support, "held out": one.held_out.on_control,
                         "control": one.own.on_control, "ratio": one.own.ratio}  # fmt: skip
                shown = {
                    name: f"{mean.value:.3f} ± {mean.standard_error:.3f}" for name, mean in means.items()
                }
                rows.append({"start": start, "logits": logits, "task": one.task,
                             "first": len(one.own.chosen), **shown})  # fmt: skip
    return rows


def picture(rows: Sequence[Row], path: Path) -> None:
    """Predicted interference against lost accuracy, the tangent model and the ordinary one side by side."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.3, 3.9), layout="constrained")
    predicted = np.array([row["predicted"] for row in rows], dtype=float)
    for axes, column, title, regime in zip(
        figure.subplots(1, 2, sharey=True), ("lost, tangent", "lost, ordinary"), ("tangent model", "ordinary model"),
        ("linear", "standard"), strict=True,
    ):  # fmt: skip
        lost = np.array([row[column] for row in rows], dtype=float)
        found = pearsonr(predicted, lost)
        axes.scatter(predicted, lost, s=22, color=REGIMES[regime])
        axes.axhline(0, color="#8C8C8C", lw=0.8)
        axes.set_title(
            f"{title}: r = {found.statistic:.2f}, p = {found.pvalue:.2f}, {len(rows)} pairs", fontsize=9
        )
        axes.set_xlabel("predicted interference (change over own change)", fontsize=9)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("test accuracy lost", fontsize=9)
    with store.atomic(path) as temporary:
        figure.savefig(temporary, format="png", dpi=200)


def of_finetuning(encoder: Encoder, tasks: Sequence[Task], options: argparse.Namespace) -> list[Table]:
    """Question 1 as a table."""
    few = [task for task in tasks if task.name in THREE]
    rows = beside_finetuning(encoder, few, options)
    return [Table("1. Closed forms beside fine-tuning, tangent model", rows, _setting(options))]


def of_interference(encoder: Encoder, tasks: Sequence[Task], options: argparse.Namespace) -> list[Table]:
    """Question 2 as tables and a picture."""
    pairs = of_pairs(encoder, tasks, options)
    picture(pairs, options.out / "interference.png")
    note = "predicted on training rows by closed-form vectors; lost on test rows"
    return [
        Table("2. Interference known before, accuracy lost after: all pairs", correlations(pairs), _setting(options)),
        Table("3. The pairs", pairs, note),
    ]  # fmt: skip


def of_energy(encoder: Encoder, tasks: Sequence[Task], options: argparse.Namespace) -> list[Table]:
    """Question 3 as a table."""
    rows = energies(encoder, tasks, options)
    return [
        Table(
            "4. Local energy of the ten leading eigenfunctions",
            rows,
            f"{options.energy_rows} training rows a task",
        )
    ]


def _setting(options: argparse.Namespace) -> str:
    return f"{options.rows} training rows, {options.test} test rows, {options.params}, seed {options.seed}"


QUESTIONS = {
    "finetuning": of_finetuning,
    "interference": of_interference,
    "energy": of_energy,
    "solutions": of_solutions,
    "forgetting": of_forgetting,
}


def main(arguments: Sequence[str]) -> None:
    """Run, print, write."""
    options = parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    encoder = ts.load("minilm")
    tasks = [
        task.subset(train=options.rows, validation=64, test=options.test, seed=options.seed)
        for task in suite()
    ]
    tables = []
    with measured() as cost:
        for name in options.only:
            tables += QUESTIONS[name](encoder, tasks, options)
    chosen = {key: str(value) for key, value in vars(options).items() if key != "out"}
    facts = provenance(base=encoder.source, options=chosen, seconds=cost.seconds)
    report = Report("The tangent kernel on the suite", tables, facts)
    name = "report" if len(options.only) == len(QUESTIONS) else "-".join(options.only)
    store.write_text(options.out / f"{name}.json", report.to_json())
    store.write_text(options.out / f"{name}.md", report.to_markdown())
    Console().print(report.renderable())


if __name__ == "__main__":
    main(sys.argv[1:])
