"""From the base model to the tuned sum of four tasks: tauspan's pipeline against the paper's."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from benchmarks.baselines import PaperModel
from benchmarks.rows import Row, Setting, row
from benchmarks.timing import once, spread
from torch import Tensor

import tauspan as ts
from tauspan.editing import PAPER_GRID
from tauspan.models import Classifier, Encoder
from tauspan.objectives import Classification
from tauspan.tangent import linearize
from tauspan.tangent.contributions import contributions
from tauspan.tasks import Task, build_head, permutation
from tauspan.tasks.batches import batches
from tauspan.train import finetune
from tauspan.train.settings import Settings

TASKS = ("movie_sentiment", "tweet_sentiment", "email_spam", "debian_section")
_EVALUATED = 64  # rows a forward pass of the validation


def pipeline(setting: Setting) -> list[Row]:
    """The rows: the ratio of times, and the difference of mean validation accuracy at the chosen coefficient."""
    train_rows, validation, epochs = (64, 32, 2) if setting.short else (256, 64, 4)
    tasks = [task.subset(train=train_rows, validation=validation, test=1) for task in ts.suite(TASKS)]
    fused, eager = ts.load("minilm"), ts.load("minilm")
    assert isinstance(fused, Encoder) and isinstance(eager, Encoder)  # noqa: S101, PT018 - no edited models
    eager.backbone.set_attn_implementation("eager")  # type: ignore[operator]
    fused, eager = fused.to(setting.device), eager.to(setting.device)
    settings = Settings(regime="linear", epochs=epochs, max_tokens=32)
    rounds = 1 if setting.short else min(setting.rounds, 2)
    found = compared(fused, eager, tasks, settings, setting, rounds)
    sizes = (
        f"{len(tasks)} tasks, {train_rows} training and {validation} validation rows each, {epochs} epochs"
    )
    return [replace(one, note=f"{sizes}; {one.note}") for one in found]


def compared(
    fused: Encoder, eager: Encoder, tasks: Sequence[Task], settings: Settings, setting: Setting, rounds: int
) -> list[Row]:
    """Both pipelines in turn.

    Accuracies count as equal when tauspan's mean is no lower than the paper's by more than one row of a task's
    validation split.
    """
    ratios, gaps, reached = [], [], {}
    for _ in range(rounds):
        taken = {}
        for name, run in (("paper", papers), ("tauspan", ours)):
            encoder = eager if name == "paper" else fused
            sample = once(lambda: reached.update({name: run(encoder, tasks, settings)}), setting.device)  # noqa: B023
            taken[name] = getattr(sample, setting.clock)
        ratios.append(taken["tauspan"] / taken["paper"])
        gaps.append(reached["tauspan"] - reached["paper"])
    note = f"mean validation accuracy {reached['tauspan']:.3f}, the paper's pipeline {reached['paper']:.3f}"
    least = -1 / min(len(task.split("validation")) for task in tasks)
    gap = spread(gaps)
    return [
        row("base model to tuned sum of 4 tasks / the paper's pipeline", spread(ratios), setting, "pipeline", note=note),
        Row("mean validation accuracy, tauspan - the paper's pipeline", gap.value, gap.low, gap.high, least, "fraction",
            True, f"goal: at most one validation row of a task below; {note}"),
    ]  # fmt: skip


def ours(encoder: Encoder, tasks: Sequence[Task], settings: Settings) -> float:
    """Fine-tune from the cheapest cache that fits, then one pass for all coefficients."""
    cached = replace(settings, cache="auto") if settings.epochs > 2 else settings
    vectors = {
        task: finetune(
            encoder,
            task,
            cached,
        ).task_vector
        for task in tasks
    }
    total = sum(list(vectors.values())[1:], next(iter(vectors.values())))
    scores: dict[Task, dict[float, float]] = {}
    single = {}
    for task, vector in vectors.items():
        rows = task.split("validation")
        tangent = linearize(_classifier(encoder, task, settings))
        prepared = batches(encoder, rows, settings.max_tokens, _EVALUATED)
        found = contributions(tangent, {"sum": total, "own": vector}, prepared, rows.labels)
        single[task] = Classification().value(found.logits([0.0, 1.0]), rows.labels)
        scores[task] = {
            alpha: Classification().value(found.logits([alpha, 0.0]), rows.labels) for alpha in PAPER_GRID
        }
    return _tuned(scores, single)


def papers(encoder: Encoder, tasks: Sequence[Task], settings: Settings) -> float:
    """Fine-tune by `PaperModel`, then evaluate the sum of the vectors at each of the 21 coefficients."""
    models = {task: PaperModel(_classifier(encoder, task, settings)) for task in tasks}
    vectors: dict[Task, list[Tensor]] = {}
    for task, model in models.items():
        _fine_tune(model, encoder, task, settings)
        pairs = zip(model.theta, model.theta0, strict=True)
        vectors[task] = [(theta - start).detach() for theta, start in pairs]
    total = [torch.stack(parts).sum(0) for parts in zip(*vectors.values(), strict=True)]
    scores: dict[Task, dict[float, float]] = {}
    single = {}
    for task, model in models.items():
        single[task] = _evaluated(model, encoder, task, vectors[task], settings)
        scores[task] = {
            alpha: _evaluated(model, encoder, task, [alpha * part for part in total], settings)
            for alpha in PAPER_GRID
        }
    return _tuned(scores, single)


def _classifier(encoder: Encoder, task: Task, settings: Settings) -> Classifier:
    return Classifier(encoder, build_head(task, encoder, max_tokens=settings.max_tokens))


def _fine_tune(model: PaperModel, encoder: Encoder, task: Task, settings: Settings) -> None:
    """The same rows, order, schedule and clipping as tauspan's loop, by default AdamW."""
    rows = task.split("train")
    total, size = settings.steps(len(rows)), settings.batch_size
    per_epoch = -(-len(rows) // size)
    optimiser = torch.optim.AdamW(model.theta, lr=settings.peak_lr, weight_decay=0.0)
    for step in range(total):
        epoch, place = divmod(step, per_epoch)
        order = permutation(len(rows), f"{settings.seed}/{epoch}")[place * size : (place + 1) * size]
        part = rows.take(order)
        logits = model(encoder.encode(part.inputs, settings.max_tokens))
        F.cross_entropy(logits, part.labels.to(logits.device)).backward()  # type: ignore[no-untyped-call]
        if settings.clip:
            torch.nn.utils.clip_grad_norm_(model.theta, settings.clip)
        optimiser.param_groups[0]["lr"] = settings.lr_at(step, total)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)


@torch.no_grad()
def _evaluated(
    model: PaperModel, encoder: Encoder, task: Task, deltas: Sequence[Tensor], settings: Settings
) -> float:
    """Validation accuracy of the tangent model at theta0 + delta."""
    for theta, start, delta in zip(model.theta, model.theta0, deltas, strict=True):
        theta.copy_(start + delta)
    rows = task.split("validation")
    right = 0
    for places, batch in batches(encoder, rows, settings.max_tokens, _EVALUATED):
        right += int((model(batch).argmax(-1).cpu() == rows.labels[places]).sum())
    return right / len(rows)


def _tuned(scores: Mapping[Task, Mapping[float, float]], single: Mapping[Task, float]) -> float:
    """Mean accuracy at the coefficient of the highest mean normalised accuracy, the paper's rule."""
    tasks = list(scores)
    normalised = {a: sum(scores[t][a] / (single[t] or 1.0) for t in tasks) for a in PAPER_GRID}
    best = min(PAPER_GRID, key=lambda alpha: (-normalised[alpha], alpha))
    return sum(scores[task][best] for task in tasks) / len(tasks)
