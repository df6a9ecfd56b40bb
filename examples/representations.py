"""The geometry of representations: heads on relative features, features as sums of concepts, and drift of edits.

Claims, and what is tried of them here, reduced, each with its seeds:

1. Moschella and others (ICLR 2023): a head that reads cosines with anchors serves an encoder of another seed or width
   without training, one that reads features does not. Here: small nets on scikit-learn's digits, trained to classify or
   to reconstruct, and nets without any training as a control.
2. Uselis, Dittadi and Oh (2026): where probes generalise to combinations that were not seen, features are sums of one
   orthogonal part per concept. Here: sentences "the SUBJECT VERB the OBJECT" in two tenses, in MiniLM's layers and in
   those of the same architecture with random weights. Held out are 30 % of the sentences, or two pairs of verb and tense.
3. Relative drift says what an edit costs: here MiniLM with one or several vectors, against the accuracy that is lost.

    python examples/representations.py          # minutes
    python examples/representations.py --short  # seconds
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from statistics import fmean
from typing import Any, NamedTuple

import torch
from scipy.stats import spearmanr
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.nn import functional as F

import tauspan as ts
from tauspan import Table
from tauspan.kernel.diagnose import concept_factorisation, relative_drift
from tauspan.tasks import build_head, relative_head

Row = dict[str, Any]


def spread(values: Sequence[float | None]) -> str | None:
    """Mean and standard error; nothing where a value is missing."""
    if not values or None in values:
        return None
    found = torch.tensor(values, dtype=torch.float64)
    error = f" ± {float(found.std()) / len(found) ** 0.5:.3f}" if len(found) > 1 else ""
    return f"{float(found.mean()):.3f}{error}"


def rank_correlation(one: Sequence[float], two: Sequence[float]) -> float | None:
    """Spearman's; None where one of them does not vary."""
    return float(spearmanr(one, two).statistic) if len(set(one)) > 1 and len(set(two)) > 1 else None


def jackknife(one: Sequence[float], draws: Sequence[Sequence[float]]) -> str | None:
    """The rank correlation with the mean over draws, and its standard error from leaving out one draw at a time."""
    count = len(draws[0])
    whole = rank_correlation(one, [fmean(values) for values in draws])
    less = [
        rank_correlation(
            one, [fmean(value for place, value in enumerate(values) if place != out) for values in draws]
        )
        for out in range(count if count > 1 else 0)
    ]
    known = [value for value in less if value is not None]
    if whole is None or len(known) < len(less):
        return None
    middle = fmean(known) if known else 0.0
    error = ((count - 1) / count * sum((value - middle) ** 2 for value in known)) ** 0.5
    return f"{whole:.3f} ± {error:.3f}" if known else f"{whole:.3f}"


def show(title: str, rows: Sequence[Row], note: str) -> None:
    print(Table(title, rows, note).to_markdown(), "\n")


# -- 1. stitching --------------------------------------------------------------------------------------------------


def digits(seed: int) -> ts.Task:
    """1,000 training and 597 test rows, drawn by the seed."""
    x, y = (torch.tensor(part) for part in load_digits(return_X_y=True))
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    rows = [((x[some] / 16).float(), y[some]) for some in order.split([1000, 200, len(x) - 1200])]
    names = [str(number) for number in range(10)]
    made = ts.Task.from_tensors("digits", names, train=rows[0], validation=rows[1], test=rows[2])
    return replace(made, head_from="probe")


def net(task: ts.Task, width: int, seed: int, kind: str, steps: int) -> ts.Encoder:
    """A net with one hidden layer whose output of `width` numbers is what a head reads."""
    rows = task.split("train")
    x = torch.stack(list(rows.inputs))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        encoder = nn.Sequential(nn.Linear(64, 128), nn.Tanh(), nn.Linear(128, width))
        decoder = nn.Sequential(nn.Tanh(), nn.Linear(width, 10 if kind == "classifier" else 64))
        optimiser = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], 3e-3)
        for _ in range(0 if kind == "untrained" else steps):
            some = torch.randint(len(x), (128,))
            out = decoder(encoder(x[some]))
            loss = (
                F.cross_entropy(out, rows.labels[some]) if kind == "classifier" else F.mse_loss(out, x[some])
            )
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
    return ts.load(encoder.eval())


def stitched(kind: str, seed: int, steps: int) -> Mapping[str, float]:
    """Test accuracy of heads fitted on a net of 32 features, on it and on others."""
    task = digits(seed)
    first, other, wide = (
        net(task, width, 10 * seed + number, kind, steps) for number, width in enumerate((32, 32, 48))
    )
    untrained = net(task, 32, 10 * seed + 3, "untrained", 0)
    absolute, shared = build_head(task, first), relative_head(task, first, seed=seed)

    def right(encoder: ts.Encoder, head: Any) -> float:
        return ts.evaluate(encoder, [replace(task, head=head, head_from="auto")]).accuracy["digits"]

    return {
        "absolute, own net": right(first, absolute), "absolute, other seed": right(other, absolute),
        "its own probe, other seed": right(other, build_head(task, other)),
        "relative, own net": right(first, shared.on(first)), "relative, other seed": right(other, shared.on(other)),
        "relative, 48 features": right(wide, shared.on(wide)),
        "relative, untrained net": right(untrained, shared.on(untrained)),
    }  # fmt: skip


def stitching(seeds: int, steps: int) -> list[Row]:
    """A row for each head and net."""
    kinds = {
        kind: [stitched(kind, seed, steps) for seed in range(seeds)] for kind in ("classifier", "autoencoder")
    }
    heads = list(kinds["classifier"][0])
    return [
        {"head": head, **{kind: spread([one[head] for one in found]) for kind, found in kinds.items()}}
        for head in heads
    ]


# -- 2. concepts ---------------------------------------------------------------------------------------------------

SUBJECTS = ("doctor", "farmer", "teacher", "soldier", "singer", "lawyer")
VERBS = ("helps helped", "sees saw", "calls called", "knows knew", "follows followed", "leaves left")
OBJECTS = ("king", "child", "nurse", "driver", "artist", "thief")
COMBINATIONS = list(product(SUBJECTS, range(len(VERBS)), OBJECTS, (0, 1)))
CONCEPTS = dict(zip(("subject", "verb", "object", "tense"), zip(*COMBINATIONS, strict=True), strict=True))


def layers(encoder: ts.Encoder) -> list[Tensor]:
    """The mean state over tokens of each sentence, for the embeddings and for each layer."""
    batch: Any = encoder.encode([f"the {a} {VERBS[b].split()[t]} the {c}" for a, b, c, t in COMBINATIONS])
    with torch.no_grad():
        states = encoder.backbone(**batch, output_hidden_states=True).hidden_states
    mask = batch["attention_mask"][..., None].float()
    return [(one * mask).sum(1) / mask.sum(1) for one in states]


def held_out(kind: str, seed: int) -> Tensor:
    """Which sentences no probe sees."""
    generator = torch.Generator().manual_seed(seed)
    if kind == "sentences":
        return torch.rand(len(COMBINATIONS), generator=generator) < 0.3
    present, past = torch.randperm(len(VERBS), generator=generator)[:2].tolist()
    return torch.tensor([(b, t) in ((present, 0), (past, 1)) for _, b, _, t in COMBINATIONS])


def probed(z: Tensor, concept: str, out: Tensor) -> float:
    """Accuracy of a linear probe on the rows that it did not see."""
    wide, labels = z.double(), CONCEPTS[concept]
    x = ((wide - wide.mean(0)) / wide.var(0).mean().sqrt()).numpy()
    seen, unseen = (some.nonzero().flatten().tolist() for some in (~out, out))
    # at the usual tolerance what it says of a verb's other tense still changes with every step
    fitted = LogisticRegression(max_iter=5000, tol=1e-6).fit(x[seen], [labels[row] for row in seen])
    return float(fitted.score(x[unseen], [labels[row] for row in unseen]))


def unseen_accuracy(z: Tensor, seeds: int) -> dict[str, list[float]]:
    """Accuracy by seed: the mean over concepts for sentences that were held out, and two concepts for pairs."""
    found: dict[str, list[float]] = {"sentences": [], "verb": [], "tense": []}
    for seed in range(seeds):
        some, pairs = held_out("sentences", seed), held_out("pairs", seed)
        found["sentences"].append(fmean(probed(z, one, some) for one in CONCEPTS))
        for one in ("verb", "tense"):
            found[one].append(probed(z, one, pairs))
    return found


def concepts(twins: int, seeds: int) -> tuple[list[Row], list[Row]]:
    """A row for each model and layer, and rank correlations of R^2 with accuracy, over MiniLM's layers and over all."""
    base = ts.load("minilm")
    models = {"MiniLM": base} | {f"random {seed}": ts.reinitialised(base, seed) for seed in range(twins)}
    rows, points = [], []
    for name, model in models.items():
        for number, z in enumerate(layers(model)):
            found, right = concept_factorisation(z, CONCEPTS), unseen_accuracy(z, seeds)
            points.append((name, found, right))
            rows.append(
                {
                    "model": name, "layer": number, "R2": found.r2, "whitened": found.whitened,
                    "on probes": found.on_probes, "across": found.mean_across,
                    **{kind: spread(values) for kind, values in right.items()},
                }
            )  # fmt: skip
    correlations = []
    for measure, kind in product(("r2", "on_probes"), points[0][2]):
        row: Row = {"R2": "on probes" if measure == "on_probes" else "as it is", "accuracy": kind}
        for where in ("MiniLM's layers", "all"):
            some = [(one, right) for name, one, right in points if where == "all" or name == "MiniLM"]
            row[where] = jackknife(
                [getattr(one, measure) for one, _ in some], [right[kind] for _, right in some]
            )
        correlations.append(row)
    return rows, correlations


# -- 3. drift ------------------------------------------------------------------------------------------------------

TASKS = ("email_spam", "tweet_sentiment", "news_recreation")
READING = ts.Reading(batch_size=32, max_tokens=16)


class Point(NamedTuple):
    """An edit, measured on a task: coefficient and number of vectors, whether its own is among them, and what it does."""

    edit: str
    own: bool
    drift: float
    share: float
    lost: float


def edited(seed: int, steps: int, rows: int) -> list[Point]:
    """Vectors of three tasks alone and added: accuracy that is lost against the own vector, else against zero shot."""
    base = ts.load("minilm")
    tasks = [one.subset(train=8 * steps, validation=8, test=rows, seed=seed) for one in ts.suite(TASKS)]
    settings = ts.Settings(
        "standard", params="last:2", lr=2e-4, epochs=1, batch_size=8, max_tokens=16, seed=seed
    )
    vectors = {task.name: ts.finetune(base, task, settings).task_vector for task in tasks}
    best = ts.evaluate(base, tasks, reading=READING).accuracy
    before, points = dict(best), []
    together = sum(vectors.values())
    edits = [("one", name, vector) for name, vector in vectors.items()]
    edits += [(f"sum x {scale}", "", scale * together) for scale in (1, 2, 4)]
    for edit, name, vector in edits:
        model = ts.apply(base, vector)
        accuracy = ts.evaluate(model, tasks, reading=READING).accuracy
        best |= {name: accuracy[name]} if name else {}
        against = before if name else best
        for task in tasks:
            if task.name == name:  # its accuracy is what sums are compared with
                continue
            found = relative_drift(base, model, task, anchors=24, seed=seed, reading=READING)
            lost = against[task.name] - accuracy[task.name]
            points.append(Point(edit, not name, found.drift.value, found.share.value, lost))
    return points


def drifts(seeds: int, steps: int, rows: int) -> tuple[list[Row], list[Row]]:
    """A row for each edit, and rank correlations of drift with accuracy lost, over edits and tasks of a seed."""
    runs = [edited(seed, steps, rows) for seed in range(seeds)]
    table = [
        {
            "edit": edit, "measured on": "the other tasks" if edit == "one" else "the three tasks",
            **{
                what: spread([fmean(getattr(one, what) for one in run if one.edit == edit) for run in runs])
                for what in ("drift", "share", "lost")
            },
        }
        for edit in dict.fromkeys(one.edit for one in runs[0])
    ]  # fmt: skip
    correlations = []
    for measure in ("drift", "share"):
        row: Row = {"lost with": measure}
        for where, own in (("sums, own tasks", True), ("one vector, other tasks", False)):
            row[where] = spread(
                [
                    rank_correlation(
                        [getattr(one, measure) for one in run if one.own == own],
                        [one.lost for one in run if one.own == own],
                    )
                    for run in runs
                ]
            )
        correlations.append(row)
    return table, correlations


# -- all of it -----------------------------------------------------------------------------------------------------


class Found(NamedTuple):
    """What `main` found."""

    stitching: list[Row]
    concepts: list[Row]
    correlations: list[Row]
    drifts: list[Row]
    lost: list[Row]


def main(short: bool = False) -> Found:
    seeds = 1 if short else 3
    said = f"{seeds} seed{'s' if seeds > 1 else ''}: mean{' ± standard error' if seeds > 1 else ''}"
    heads = stitching(seeds, steps=100 if short else 300)
    show("A head on another net", heads, f"Test accuracy on digits, 100 anchors; chance 0.100. {said}.")
    rows, correlations = concepts(twins=1 if short else 3, seeds=1 if short else 4)
    note = (
        f"{len(COMBINATIONS)} sentences; across: mean |cos| of parts of two concepts. Then accuracy on held-out "
        f"sentences, and of verb and tense on held-out pairs of both; {1 if short else 4} draws."
    )
    show("Features as sums of concepts", rows, note)
    show(
        "Rank correlation of R2 with accuracy",
        correlations,
        "With the mean over draws, ± jackknife standard error over them; empty where accuracy does not vary.",
    )
    table, lost = drifts(seeds, steps=2 if short else 20, rows=10 if short else 60)
    show("Relative drift of MiniLM", table, f"share: of the distance of two rows; lost: accuracy. {said}.")
    show("Rank correlation of drift with accuracy lost", lost, "Over edits and tasks, for each seed.")
    return Found(heads, rows, correlations, table, lost)


if __name__ == "__main__":
    main("--short" in sys.argv[1:])
