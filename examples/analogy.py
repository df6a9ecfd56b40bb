"""Sentiment of films without a label of films: an analogy with texts alone.

Claim: Ilharco and others, "Editing Models with Task Arithmetic" (ICLR 2023, arXiv 2212.04089), section 5: with labels in
a source domain S and unlabelled texts in S and in the target domain T,

    tau_T,labels ~ tau_S,labels + a (tau_T,texts - tau_S,texts),

and T5 models made in this way do better on T than those of the source's labels alone.

Here, reduced: MiniLM, film reviews and tweets of the shipped tasks, the last two blocks, 160 rows a vector read once, 16
tokens. The texts' vectors predict hidden tokens, under a frozen head that is tied to the embeddings (`with_token_head`)
and begins at the frequencies of the tokens in both domains. Accuracy on the target's test rows, in both directions, of:
the source's vector; the analogy at a = 1, at a chosen on validation rows of the target (0 is among the choices), and at
a = -1, which should hurt if the step means the domain; the target's own vector; and vectors of k labelled rows of the
target. The rows that choose a are labelled too: a fair comparison is with k of their number.

    python examples/analogy.py [--short | --large] [--seeds N] [--regime linear]
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch

import tauspan as ts
from tauspan import Table
from tauspan.editing import EditRegime

TOKENS, PARAMS = 16, "last:2"
DOMAINS = {"films": "movie_sentiment", "tweets": "tweet_sentiment"}
STEPS = (0.0, 0.25, 0.5, 1.0, 2.0)  # the choices for a
READING = ts.Reading(batch_size=32, max_tokens=TOKENS)


class Sizes(NamedTuple):
    """Rows of each kind."""

    rows: int = 160  # of each vector
    chosen: int = 60  # validation rows, which choose a
    tested: int = 150
    few: tuple[int, ...] = (8, 32, 100)


FULL, SHORT, LARGE = Sizes(), Sizes(8, 8, 8, (2, 4)), Sizes(1200, 100, 420, (32, 100, 320))


def tuned(
    encoder: ts.Encoder, task: ts.Task, regime: EditRegime, seed: int, epochs: int = 1
) -> ts.TaskVector:
    """The vector of a task."""
    settings = ts.Settings(
        regime, params=PARAMS, seed=seed, lr=2e-4, epochs=epochs, batch_size=8, max_tokens=TOKENS
    )
    return ts.finetune(encoder, task, settings).task_vector


def direction(
    encoder: ts.Encoder, target: ts.Task, vectors: dict[str, ts.TaskVector]
) -> tuple[dict[str, float], float]:
    """Accuracies on the target's test rows, and the chosen coefficient."""
    editor = ts.Editor(
        encoder, {replace(target, name=name): tau for name, tau in vectors.items()}, reading=READING
    )

    def accuracy(split: str, **mix: float) -> float:
        return editor.evaluate(mix, tasks=[target], split=split).tasks[0].value

    tried = {a: accuracy("validation", source=1.0, step=a) for a in STEPS}
    chosen = max(tried, key=lambda a: (tried[a], -a))  # of equal ones the smallest step
    found = {
        "pre-trained": accuracy("test"),
        "source's vector": accuracy("test", source=1.0),
        "analogy, a = 1": accuracy("test", source=1.0, step=1.0),
        "analogy, a chosen": accuracy("test", source=1.0, step=chosen),
        "analogy, a = -1": accuracy("test", source=1.0, step=-1.0),
    }
    rest = [name for name in vectors if name not in ("source", "step")]
    return found | {name: accuracy("test", **{name: 1.0}) for name in rest}, chosen


def one_seed(
    encoder: ts.Encoder, sizes: Sizes, regime: EditRegime, seed: int
) -> dict[str, tuple[dict[str, float], float]]:
    """Both directions with vectors of one draw of rows."""
    tasks, unread = {}, {}
    for name, task in zip(DOMAINS, ts.suite(list(DOMAINS.values())), strict=True):
        tasks[name] = task.subset(train=sizes.rows, validation=sizes.chosen, test=sizes.tested, seed=seed)
        apart = task.subset(train=sizes.rows, validation=8, test=8, seed=seed + 1000)  # another draw
        unread[name] = apart.as_texts()
    texts = [text for task in unread.values() for text in task.split("train").inputs]
    reader = ts.with_token_head(encoder, TOKENS, texts)
    read = {name: tuned(reader, task, regime, seed) for name, task in unread.items()}
    own = {name: tuned(encoder, task, regime, seed) for name, task in tasks.items()}
    found = {}
    for target, source in zip(DOMAINS, reversed(DOMAINS), strict=True):
        vectors = {
            "source": own[source],
            "step": read[target] - read[source],
            f"own, {sizes.rows} rows": own[target],
        }
        for k in sizes.few:
            some = tasks[target].subset(train=k, validation=8, test=8, seed=seed)
            vectors[f"own, {k} rows"] = tuned(encoder, some, regime, seed, epochs=max(2, 96 // k))
        found[f"{source} to {target}"] = direction(encoder, tasks[target], vectors)
    return found


def spread(values: Sequence[float]) -> str:
    """Mean and standard error."""
    found = torch.tensor(values, dtype=torch.float64)
    error = f" ± {float(found.std()) / len(found) ** 0.5:.3f}" if len(found) > 1 else ""
    return f"{float(found.mean()):.3f}{error}"


def main(
    sizes: Sizes = FULL, seeds: int = 3, regime: EditRegime = "standard"
) -> dict[str, list[dict[str, float]]]:
    """Accuracies by direction and seed; prints a table for each direction."""
    begun, encoder = time.process_time(), ts.load("minilm")
    done = [one_seed(encoder, sizes, regime, seed) for seed in range(seeds)]
    for way in done[0]:
        accuracies, chosen = [one[way][0] for one in done], [one[way][1] for one in done]
        table = [
            {
                "model": name,
                "accuracy": spread([one[name] for one in accuracies]),
                "less the source's": spread([one[name] - one["source's vector"] for one in accuracies]),
            }
            for name in accuracies[0]
        ]
        note = f"a was chosen as {', '.join(f'{a:g}' for a in chosen)} on {sizes.chosen} validation rows."
        print(Table(f"From {way}, {regime}", table, note).to_markdown(), end="\n\n")
    told = f"Mean and standard error of {seeds} seeds of rows and order" if seeds > 1 else "One seed"
    print(f"{told}; {sizes}; {time.process_time() - begun:.0f} s of one core.")
    return {way: [one[way][0] for one in done] for way in done[0]}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--short", action="store_true", help="one seed, 8 rows")
    size.add_argument("--large", action="store_true", help="1,200 rows a vector, 420 test rows")
    parser.add_argument("--seeds", type=int, default=3, help="of rows and order (3)")
    parser.add_argument("--regime", choices=("standard", "linear"), default="standard")
    asked = parser.parse_args()
    sizes = SHORT if asked.short else LARGE if asked.large else FULL
    main(sizes, 1 if asked.short else asked.seeds, asked.regime)
