"""Does reading a task's own inputs make a start on which tasks disturb each other less?

Claim: Amos, Berant and Gupta, "Never Train from Scratch" (2024): a transformer that first predicts hidden tokens of a
task's own inputs then learns the labels far better, on ListOps among others. The tangent-space paper (arXiv 2305.12827)
says that disentanglement comes from pre-training. So: do the tasks' inputs alone give what pre-training gives?

Here, reduced: generated nested lists of at most 18 tokens, such as [ MAX 3 [ MIN 7 5 ] 1 ], and two tasks with inputs of
their own. `extremes` has MIN and MAX, `places` has FIRST and LAST; the answer is a digit. BERT of 2 layers, width 64,
from two starts: random, and self-pretrained on the inputs of both tasks without labels (`tauspan.self_pretrained`).

Before any label: the accuracy of a linear probe, which becomes the frozen head; the alignment of the tangent kernel with
the labels (KTA, and centred); the local energy of its eigenfunctions on the other task's rows over that on its own rows,
and over that on unseen own ones (0 where they live on the task alone). After equal training on labels: accuracy, and xi
at coefficients (1, 1), the share of rows whose class the other task's vector changes, summed over both tasks. Vectors
that do less have a smaller xi, so accuracies stand beside it.

    python examples/self_pretraining.py [--short] [--seeds N] [--share S] [--regimes standard linear]
"""

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import transformers
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel

import tauspan as ts
from tauspan import Table
from tauspan.editing import EditRegime
from tauspan.kernel.diagnose import KernelSettings, task_energies, task_kernels, task_spectrum

LENGTH, DIGITS = 20, "0123456789"
OPERATORS = {"extremes": ("MIN", "MAX"), "places": ("FIRST", "LAST")}


class Sizes(NamedTuple):
    """How much is read, trained and measured."""

    rows: int = 600  # training rows of each task
    tested: int = 200
    reading: int = 8  # epochs of self-pretraining
    epochs: int = 8  # of training on labels
    kernel: int = 40  # rows of each task's kernel


FULL, SHORT = Sizes(), Sizes(160, 8, 1, 1, 6)  # few enough rows lack a class, and a probe needs all


def nested(operators: Sequence[str], draw: torch.Generator, depth: int = 2) -> tuple[list[str], int]:
    """A list in words, and its value."""

    def below(most: int) -> int:
        return int(torch.randint(most, (), generator=draw))

    words, values = ["[", operators[below(2)]], []
    for _ in range(2 + below(depth)):
        if depth > 1 and below(4) == 0:
            inner, value = nested(operators, draw, depth - 1)
            words += inner
        else:
            value = below(10)
            words.append(DIGITS[value])
        values.append(value)
    chosen = {"MIN": min(values), "MAX": max(values), "FIRST": values[0], "LAST": values[-1]}
    return [*words, "]"], chosen[words[1]]


def task(name: str, sizes: Sizes, seed: int) -> ts.Task:
    """Different lists in all three splits, and the probe of the start as head."""
    draw = torch.Generator().manual_seed(2 * seed + list(OPERATORS).index(name))
    found: dict[str, int] = {}
    while len(found) < sizes.rows + 2 * sizes.tested:
        words, value = nested(OPERATORS[name], draw)
        found[" ".join(words)] = value
    texts, values = list(found), list(found.values())
    ends = [0, sizes.rows, sizes.rows + sizes.tested, len(texts)]
    splits = {
        split: (texts[begin:end], values[begin:end])
        for split, begin, end in zip(("train", "validation", "test"), ends, ends[1:], strict=False)
    }
    made = ts.Task.from_tensors(name, list(DIGITS), labels="from_0", **splits)
    return ts.Task(name, made.label_names, made.splits, max_tokens=LENGTH, head_from="probe")


def architecture(folder: Path) -> ts.Encoder:
    """A small BERT and its tokenizer as a directory; its weights are not used."""
    operators = [one for pair in OPERATORS.values() for one in pair]
    words = ["[PAD]", "[MASK]", "[UNK]", "[", "]", *DIGITS, *operators]
    made = Tokenizer(WordLevel({word: place for place, word in enumerate(words)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="[PAD]", mask_token="[MASK]", unk_token="[UNK]"
    )
    config = transformers.BertConfig(
        vocab_size=len(words), hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=256,
        max_position_embeddings=LENGTH, pad_token_id=0,
    )  # fmt: skip
    transformers.BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return ts.load(folder)


def hidden_loss(start: ts.Encoder, tasks: Sequence[ts.Task], objective: str) -> float:
    """The mean loss of hidden tokens of unseen rows, in nats."""
    scores = ts.evaluate(ts.with_token_head(start, LENGTH), [one.as_texts(objective) for one in tasks]).tasks
    return sum(one.loss for one in scores) / len(scores)


def measured(
    start: ts.Encoder, tasks: Sequence[ts.Task], sizes: Sizes, regimes: Sequence[EditRegime], seed: int
) -> dict[str, float]:
    """What a start is before labels, and after; means over both tasks."""
    found: dict[str, list[float]] = {}
    kernels = task_kernels(start, tasks, "all", KernelSettings(rows=sizes.kernel, seed=seed))
    for one in kernels:
        spectrum = task_spectrum(one)
        found.setdefault("KTA", []).append(spectrum.target_alignment.value)
        if spectrum.centred_alignment is not None:
            found.setdefault("centred", []).append(spectrum.centred_alignment.value)
    for energy in task_energies(kernels, min(10, sizes.kernel // 2), lambda steps, note: None):
        facts = energy.facts()
        found.setdefault("energy, other / own", []).append(facts["ratio"])
        found.setdefault("energy, other / unseen own", []).append(facts["control"] / facts["held_out"])
    found["probe"] = [one.value for one in ts.evaluate(start, tasks).tasks]
    for regime in regimes:
        settings = ts.Settings(regime, seed=seed, lr=1e-3, epochs=sizes.epochs, batch_size=50)
        vectors = {one: ts.finetune(start, one, settings).task_vector for one in tasks}
        found[regime] = [ts.evaluate(start, [one], vectors[one]).tasks[0].value for one in tasks]
        (pair,) = ts.disentanglement(start, vectors, grid=(0.0, 1.0)).pairs
        found[f"xi, {regime}"] = [float(pair.means["at (1, 1)"] or 0.0)]
    return {name: sum(values) / len(values) for name, values in found.items()}


def spread(values: Sequence[float]) -> str:
    """Mean and standard error."""
    found = torch.tensor(values, dtype=torch.float64)
    error = f" ± {float(found.std()) / len(found) ** 0.5:.3f}" if len(found) > 1 else ""
    return f"{float(found.mean()):.3f}{error}"


def main(
    sizes: Sizes = FULL, seeds: int = 3, share: float = 0.3, regimes: Sequence[EditRegime] = ("standard",)
) -> dict[str, list[dict[str, float]]]:
    """What was measured of each start, a dictionary for each seed; prints a row for each measure."""
    begun, objective = time.process_time(), f"masked-token(share={share})"
    found: dict[str, list[dict[str, float]]] = {"random": [], "self-pretrained": []}
    with tempfile.TemporaryDirectory() as folder:
        encoder = architecture(Path(folder))
        for seed in range(seeds):
            tasks = [task(name, sizes, seed) for name in OPERATORS]
            reading = ts.Settings("standard", seed=seed, lr=1e-3, epochs=sizes.reading, batch_size=50)
            starts = {
                "random": ts.reinitialised(encoder, seed),
                "self-pretrained": ts.self_pretrained(encoder, tasks, LENGTH, reading, objective),
            }
            for name, start in starts.items():
                loss = {"hidden tokens, nats": hidden_loss(start, tasks, objective)}
                found[name].append(loss | measured(start, tasks, sizes, regimes, seed))
    table = [
        {
            "measure": what,
            **{name: spread([one[what] for one in each]) for name, each in found.items()},
            "difference": spread([b[what] - a[what] for a, b in zip(*found.values(), strict=True)]),
        }
        for what in found["random"][0]
    ]
    told = f"mean and standard error of {seeds} seeds (weights, rows, order)" if seeds > 1 else "one seed"
    note = f"{told}; {sizes}; share hidden {share:g}; {time.process_time() - begun:.0f} s of one core."
    print(Table("Two starts of a small transformer on nested lists", table, note).to_markdown())
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--short", action="store_true", help="one seed, 24 rows")
    parser.add_argument("--seeds", type=int, default=3, help="of weights, rows and order (3)")
    parser.add_argument("--share", type=float, default=0.3, help="of the tokens that are hidden (0.3)")
    parser.add_argument("--regimes", nargs="+", default=["standard"], help="of training on labels (standard)")
    asked = parser.parse_args()
    main(SHORT if asked.short else FULL, 1 if asked.short else asked.seeds, asked.share, asked.regimes)
