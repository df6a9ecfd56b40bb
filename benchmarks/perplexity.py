"""Ways to fill a new vocabulary, by the perplexity of a language model that is not trained afterwards.

    python -m benchmarks.perplexity [--model smollm2] [--size 8000] [--how hybrid mean normal] [--texts 200]
                                    [--seeds 0 1 2] [--out out/perplexity]

TokenAdapt (Sharthak and others, arXiv:2505.09738) is reported to have at most half the perplexity of means of parts.
Here a tokenizer of `--size` tokens, with the pipeline of the model's own, is trained on Debian's descriptions, on
another random half of them for each seed. The model is grafted with it by each way, and both read other texts. Printed
are the perplexities for each word, the ratio new over old, and that ratio over the one of `mean`: means over seeds, with
the least and the most; the file has 95 % intervals over texts. MiniLM gives the vectors of texts for `hybrid`. What is
made is kept in the folder.
"""

import argparse
import json
import random
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tauspan as ts
from tauspan import store
from tauspan.core.measure import progress
from tauspan.core.report import Table
from tauspan.surgery import Filling, Running, compare, graft

WAYS = ("hybrid", "mean", "normal")
KINDS = ("debian_section", "movie_sentiment")  # of the texts that are read: the tokenizer's kind, and another


def saved(model: str, out: Path) -> Path:
    """The model as a directory with its tokenizer."""
    if not (out / "config.json").exists():
        ts.save(ts.load(model, language=64), out)
    return out


def tokenizer(model: Path, size: int, texts: Sequence[str], out: Path) -> Path:
    """One of the same kind as the model's, trained on texts."""
    from transformers import AutoTokenizer

    if not (out / "tokenizer.json").exists():
        AutoTokenizer.from_pretrained(model).train_new_from_iterator(texts, size).save_pretrained(out)
    return out


def measured(
    model: Path, cut: Path, how: Any, seed: int, texts: Mapping[str, Sequence[str]], out: Path
) -> dict[str, Any]:
    """Perplexities and ratios on each kind of texts, of one way with one tokenizer."""
    file = out / f"{how}-{seed}.json"
    if file.exists():
        kept: dict[str, Any] = json.loads(file.read_text())
        return kept
    folder = out / f"{how}-{seed}"
    embed = "minilm" if how in ("local", "global", "hybrid") else None
    graft(model, cut, folder, Filling(how=how, seed=seed), embed=embed, running=Running(resume=True))
    found = {}
    for kind, some in texts.items():
        read = compare(model, folder, some)
        found[kind] = {
            "perplexity": read.perplexity, "ratio": read.ratio, "interval": read.interval, "texts": read.texts,
        }  # fmt: skip
    store.write_json(file, found)
    return found


def table(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """A row for each kind of texts and way."""
    rows = []
    for kind in KINDS:
        for how, runs in found.items():
            ratios = [run[kind]["ratio"] for run in runs]
            cells: dict[str, Any] = {
                "texts": kind, "how": how, "perplexity": statistics.mean(run[kind]["perplexity"][1] for run in runs),
                "ratio": statistics.mean(ratios), "least": min(ratios), "most": max(ratios),
            }  # fmt: skip
            if "mean" in found:
                over = [one / run[kind]["ratio"] for one, run in zip(ratios, found["mean"], strict=True)]
                cells |= {"over mean": statistics.mean(over), "its least": min(over), "its most": max(over)}
            rows.append(cells)
    return rows


def main() -> None:
    """Make, read and print."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--model", default="smollm2")
    asked.add_argument("--size", type=int, default=8000)
    asked.add_argument("--how", nargs="+", default=list(WAYS))
    asked.add_argument("--texts", type=int, default=200, help="of each kind")
    asked.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    asked.add_argument("--out", type=Path, default=Path("out/perplexity"))
    given = asked.parse_args()
    out = given.out / f"{given.model}-{given.size}-{given.texts}"
    suite = {task.name: task for task in ts.suite(KINDS)}
    texts = {
        name: [str(one) for one in task.split("test").inputs][: given.texts] for name, task in suite.items()
    }
    known = [str(one) for one in suite[KINDS[0]].split("train").inputs]
    found: dict[str, list[dict[str, Any]]] = {how: [] for how in given.how}
    with progress("perplexity", len(given.how) * len(given.seeds)) as advance, ts.quiet():
        model = saved(given.model, out / "model")
        for seed in given.seeds:
            half = random.Random(seed).sample(known, len(known) // 2)
            cut = tokenizer(model, given.size, half, out / f"tokenizer-{seed}")
            for how in given.how:
                found[how].append(measured(model, cut, how, seed, texts, out))
                advance(1, f"{how}, seed {seed}")
    before = {kind: next(iter(found.values()))[0][kind]["perplexity"][0] for kind in KINDS}
    said = (
        f"{given.model} with {given.size} tokens trained on {KINDS[0]}; perplexity for each word, before: "
        f"{', '.join(f'{value:.4g} on {kind}' for kind, value in before.items())}; seeds "
        f"{', '.join(map(str, given.seeds))}: tokenizers of other halves of the texts"
    )
    rows = table(found)
    sys.stdout.write(Table("Perplexity after a graft", rows, said).to_markdown() + "\n")
    store.write_json(out / "results.json", {"said": said, "rows": rows, "runs": found})


if __name__ == "__main__":
    main()
