"""Does `outlook` say before training how far the tangent model will hold? Models, tasks, parameters and rates.

    python -m benchmarks.holds [--seeds 0 1 2] [--out results.json]

Each case is asked before training, then trained in the ordinary regime, and its vector is read in the tangent model on
test rows. `error` is |f(theta0 + tau) - f_lin(tau)| / |J tau|, `gap` the same over |f(theta0 + tau) - f(theta0)|, and
`advantage` the accuracy of the model less that of its linearisation at the same tau. Text: MiniLM, its first three
layers, and the same architecture without pre-training. Digits of scikit-learn: a perceptron, a convolutional net and a
small transformer, pre-trained on two other questions about the same digits. The calibration log(error) = a + b
log(expected) is fitted without the model of the case.
"""

import argparse
import copy
import itertools
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any, cast

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn
from transformers import ViTConfig, ViTModel

import tauspan as ts
from tauspan.core.report import Table
from tauspan.kernel.diagnose import linearity, outlook, posthoc_gap
from tauspan.kernel.operator.interference import rms
from tauspan.models import Classifier
from tauspan.models.fresh import reinitialised
from tauspan.tasks import build_head
from tauspan.train.convex import labelled

ROWS, TEST, BATCH, TOKENS = 320, 150, 16, 32
CARRIES = 0.1
TEXT = ("movie_sentiment", "email_spam", "debian_section")
Known = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Case:
    """A model, a task and the settings of a training."""

    model: str
    encoder: ts.Encoder
    task: ts.Task
    settings: ts.Settings

    @property
    def key(self) -> str:
        """What names the case in the file."""
        chosen = self.settings
        return f"{self.model}/{self.task.name}/{chosen.params}/{chosen.peak_lr:g}/{chosen.max_steps}"


def measured_case(case: Case, seed: int) -> Known:
    """What was expected before training, and what came out."""
    task = case.task.subset(train=ROWS, validation=20, test=TEST, seed=seed)
    before = outlook(case.encoder, [task], case.settings).tasks[0]
    vector = ts.finetune(case.encoder, task, case.settings).task_vector
    classifier = Classifier(case.encoder, build_head(task, case.encoder, max_tokens=TOKENS))
    parts = labelled(case.encoder, task.split("test"), TOKENS, 50)
    tangent = ts.linearize(classifier, params=case.settings.params)
    path = linearity(tangent, vector, [batch for batch, _ in parts], (1.0,))
    gap = posthoc_gap(path.start, path.tangent, path.moved[0], torch.cat([labels for _, labels in parts]))
    entries = sum(theta.numel() for theta in tangent.theta0().values())
    last = before.path
    bent = rms(last.moved[-1] - last.start - last.tangent) / rms(last.moved[-1] - last.start)
    return {
        "key": case.key, "seed": seed, "model": case.model, "task": task.name, "params": case.settings.params,
        "rate": case.settings.peak_lr, "steps": before.steps, "travel": before.travel,
        "length": before.travel * math.sqrt(entries), "agreement": before.agreement,
        "expected": before.expected, "expected gap": bent, "error": path.relative[0], "gap": gap.relative.value,
        "advantage": gap.advantage, "accuracy": gap.nonlinear, "agree": gap.agreement,
    }  # fmt: skip


# -- models and tasks ----------------------------------------------------------------------------------------


def text_cases(seed: int) -> Iterator[Case]:
    """MiniLM, cut, and without pre-training."""
    whole = ts.load("minilm")
    cut = copy.deepcopy(whole)
    blocks: Any = cut.backbone.encoder
    blocks.layer, cut.home = blocks.layer[:3], None  # its files have more layers
    encoders = {"minilm": whole, "minilm, 3 layers": cut, "minilm, untrained": reinitialised(whole, seed)}
    for name, encoder in encoders.items():
        tasks = TEXT if name == "minilm" else TEXT[:2]
        for task in ts.suite(tasks):
            for params in ("last:2", "all") if name == "minilm" else ("last:2",):
                for rate in (3e-5, 2e-4, 1e-3) if name == "minilm" else (5e-5, 5e-4):
                    yield Case(name, encoder, task, _settings(rate, 40, params, seed))


def digit_cases(seed: int) -> Iterator[Case]:
    """Three nets on digits, each pre-trained on the digit less 5 and its parity, then asked two other questions."""
    from sklearn.datasets import load_digits  # type: ignore[import-untyped]

    found = load_digits()
    order = np.random.default_rng(seed).permutation(len(found.target))
    images = torch.from_numpy(found.images[order] / 8 - 1).float()[:, None]
    digits = torch.from_numpy(found.target[order])
    first = _task("shape", images, torch.isin(digits, torch.tensor([0, 6, 8, 9])), slice(0, 800))
    second = _task("size", images, digits > 4, slice(0, 800))
    asked = [
        _task("parity", images, digits % 2 == 1, slice(800, None)),
        _task("prime", images, torch.isin(digits, torch.tensor([2, 3, 5, 7])), slice(800, None)),
    ]
    for name, build in NETS.items():
        torch.manual_seed(seed)
        encoder = ts.load(build())
        tuning = ts.Settings("standard", lr=2e-3, epochs=8, batch_size=32, seed=seed)
        vector = ts.finetune(encoder, [first, second], tuning).task_vector
        trained = cast("ts.Encoder", ts.apply(encoder, vector))
        for task in asked:
            for rate in (1e-5, 1e-4, 1e-3):
                yield Case(name, trained, task, _settings(rate, 40, "all", seed))


class Digits(nn.Module):
    """A small vision transformer of transformers, which reads pictures of 8 x 8."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = ViTModel(
            ViTConfig(
                image_size=8, patch_size=2, num_channels=1, hidden_size=64, num_hidden_layers=3,
                num_attention_heads=4, intermediate_size=128,
            ),
            add_pooling_layer=False,
        )  # fmt: skip

    def forward(self, pictures: Tensor) -> Tensor:
        """(N, 1, 8, 8) to (N, 64)."""
        states: Tensor = self.inner(pictures).last_hidden_state
        return states.mean(1)


NETS: dict[str, Callable[[], nn.Module]] = {
    "perceptron": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 64)
    ),
    "convolutional": lambda: nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.GELU(), nn.Conv2d(32, 64, 3, 2, 1), nn.GELU(), nn.Conv2d(64, 64, 3, 2, 1),
        nn.GELU(), nn.Flatten(), nn.Linear(256, 64),
    ),
    "transformer": Digits,
}  # fmt: skip


def _task(name: str, images: Tensor, yes: Tensor, where: slice) -> ts.Task:
    x, y = images[where], yes[where].long()
    cuts = {"train": slice(0, -200), "validation": slice(-200, -150), "test": slice(-150, None)}
    splits: dict[str, Any] = {split: (x[cut], y[cut]) for split, cut in cuts.items()}
    return ts.Task.from_tensors(name, ["no", "yes"], **splits)


def _settings(rate: float, steps: int, params: str, seed: int) -> ts.Settings:
    return ts.Settings(
        "standard", lr=rate, epochs=math.ceil(steps * BATCH / ROWS), max_steps=steps, params=params, batch_size=BATCH,
        max_tokens=TOKENS, seed=seed,
    )  # fmt: skip


# -- what came out -------------------------------------------------------------------------------------------


def correlations(found: Sequence[Known]) -> list[Known]:
    """Spearman's rank correlation of what was known before with what came out: the mean, least and most of a seed.

    Of the seeds with which all cases were measured.
    """
    cases = {one["key"] for one in found}
    every = dict.fromkeys(one["seed"] for one in found)
    seeds = [seed for seed in every if {one["key"] for one in found if one["seed"] == seed} == cases]
    rows = []
    for name in ("expected", "expected gap", "travel", "length", "agreement"):
        row: Known = {"known before": name}
        for target in ("error", "gap", "advantage"):
            each = [_rank([one for one in found if one["seed"] == seed], name, target) for seed in seeds]
            row[f"with {target}"] = f"{fmean(each):.2f} [{min(each):.2f}, {max(each):.2f}]"
        rows.append(row)
    return rows


def _rank(found: Sequence[Known], name: str, target: str) -> float:
    values = [abs(one[target]) for one in found]  # an advantage has a sign; its size is asked
    return float(spearmanr([one[name] for one in found], values).statistic)


def calibrated(found: Sequence[Known]) -> list[Known]:
    """For each model: how far off the error is that the other models' calibration gives, and how often it holds right."""
    rows = []
    for model, mine, others in _left_out(found):
        slope, shift = _line(others, "expected")
        guessed, plain = _guessed(mine, "expected", slope, shift), [one["expected"] for one in mine]
        rows.append({
            "model": model, "cases": len(mine), "b": slope, "factor, calibrated": _off(guessed, mine),
            "factor, as it is": _off(plain, mine), "held": sum(one["error"] <= CARRIES for one in mine),
            "right, calibrated": _right(guessed, mine), "right, as it is": _right(plain, mine),
        })  # fmt: skip
    return rows


def levels(found: Sequence[Known]) -> list[Known]:
    """The calibrations by what was known before, each from the other models alone, over all cases."""
    rows = []
    for name in ("expected", "travel", "length"):
        guessed, cases = list[float](), list[Known]()
        for _, mine, others in _left_out(found):
            guessed += _guessed(mine, name, *_line(others, name))
            cases += mine
        rows.append({
            "known before": name, "cases": len(cases), "factor, calibrated": _off(guessed, cases),
            "right, calibrated": _right(guessed, cases),
        })  # fmt: skip
    return rows


def _left_out(found: Sequence[Known]) -> Iterator[tuple[str, list[Known], list[Known]]]:
    """Each model with its own cases and those of the others."""
    for model in dict.fromkeys(one["model"] for one in found):
        mine = [one for one in found if one["model"] == model]
        yield model, mine, [one for one in found if one["model"] != model]


def _line(found: Sequence[Known], name: str) -> tuple[float, float]:
    """The slope b and the shift a of log(error) = a + b log(known), by least squares."""
    known, errors = ([math.log(one[key]) for one in found] for key in (name, "error"))
    slope, shift = np.polyfit(known, errors, 1)
    return float(slope), float(shift)


def _guessed(found: Sequence[Known], name: str, slope: float, shift: float) -> list[float]:
    return [math.exp(shift + slope * math.log(one[name])) for one in found]


def _off(guessed: Sequence[float], found: Sequence[Known]) -> float:
    """The median factor between what was expected and what came out, at least 1."""
    return math.exp(
        median(abs(math.log(one["error"] / guess)) for guess, one in zip(guessed, found, strict=True))
    )


def _right(guessed: Sequence[float], found: Sequence[Known]) -> int:
    return sum(
        (guess <= CARRIES) == (one["error"] <= CARRIES) for guess, one in zip(guessed, found, strict=True)
    )


def means(found: Sequence[Known]) -> list[Known]:
    """A row for each case: means over seeds."""
    rows = []
    for key in dict.fromkeys(one["key"] for one in found):
        some = [one for one in found if one["key"] == key]
        known = {name: some[0][name] for name in ("model", "task", "params")} | {
            "rate": f"{some[0]['rate']:g}"
        }
        shown = ("expected", "error", "expected gap", "gap", "advantage", "accuracy", "agree")
        rows.append({**known, **{name: fmean(one[name] for one in some) for name in shown}})
    return rows


def main(argv: list[str] | None = None) -> None:
    """Ask, train and compare all cases; print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--seeds",
        type=int,
        nargs="*",
        default=[0, 1, 2],
        help="of rows, orders and the digits' nets; none: only the tables of what OUT holds",
    )
    parser.add_argument("--only", choices=("text", "digits"), help="one kind of cases; default: both")
    parser.add_argument("--out", type=Path, help="JSON, written as it goes; what it holds is not made again")
    options = parser.parse_args(argv)
    found: list[Known] = json.loads(options.out.read_text()) if options.out and options.out.exists() else []
    known = {(one["key"], one["seed"]) for one in found}
    kinds = {"text": text_cases, "digits": digit_cases}
    with ts.quiet():
        for seed, (kind, cases) in itertools.product(options.seeds, kinds.items()):
            if options.only not in (None, kind):
                continue
            for case in cases(seed):
                if (case.key, seed) in known:
                    continue
                found.append(measured_case(case, seed))
                if options.out:
                    options.out.write_text(f"{json.dumps(found, indent=1)}\n", encoding="utf-8")
    text = "\n\n".join(table.to_markdown() for table in tables(found))
    print(text)
    if options.out:
        options.out.with_suffix(".md").write_text(f"{text}\n", encoding="utf-8")


def tables(found: Sequence[Known]) -> list[Table]:
    """The cases, the ranks over all of them and over those of digits, and the levels."""
    digits = [one for one in found if not one["model"].startswith("minilm")]
    seeds = f"{len({one['seed'] for one in found})} seeds of digits"
    note = "Spearman's rank correlation; seeds with which all cases were measured"
    return [
        Table("Cases", means(found), f"means over seeds, {seeds}"),
        Table("What was known before, and what came out", correlations(found), note),
        Table("The same over the cases of digits", correlations(digits), note),
        Table("Without the model of the case", calibrated(found), f"held: an error up to {CARRIES}"),
        Table("Without the model of the case, by what was known before", levels(found)),
    ]


if __name__ == "__main__":
    main()
