"""Time and peak memory of `tauspan vocabulary graft`, against copying and merging the same file, in rounds.

    python -m benchmarks.graft [--rows 250000] [--width 384] [--rounds 5] [--clock cpu] [--work DIR] [--out FILE.json]

A synthetic checkpoint: a table of `--rows` rows and four layers. Half of the new tokens are old ones, half are cut into
parts (`--how mean`). Whole processes in turn, from the page cache to the disk of `--work`; the merge adds a copy of the
model to it. A graft starts Python, reads two vocabularies and cuts every new token, which the others do not; "stream" is
the part that reads and writes weights.
"""

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from benchmarks import merge_inputs
from benchmarks.merge_programs import Bench, watched
from torch import Tensor

from tauspan import store
from tauspan.core.measure import quiet
from tauspan.core.report import Table
from tauspan.merge.stream.stream import execute
from tauspan.surgery import Filling, planned_graft

LAYERS = 4


def _tokens(rows: int, half: int) -> dict[str, int]:
    """Words of letters: the first `half` are common to both vocabularies, the others say which one they are of."""
    alphabet = "abcdefghijklmnopqrstuvwxyz"
    words = list(alphabet) + [f"##{letter}" for letter in alphabet]
    number = 0
    while len(words) < rows:
        digits, text = number, ""
        for _ in range(5):
            digits, one = divmod(digits, 26)
            text += alphabet[one]
        words.append(text if len(words) < half else f"{text}{'xyz'[half % 3]}")
        number += 1
    return {word: place for place, word in enumerate(["[UNK]", *words][:rows])}


def made_tokenizer(folder: Path, rows: int, half: int) -> Path:
    """A WordPiece tokenizer of so many made-up words."""
    model = {
        "type": "WordPiece", "vocab": _tokens(rows, half), "unk_token": "[UNK]", "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100,
    }  # fmt: skip
    content = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
        "pre_tokenizer": {"type": "BertPreTokenizer"}, "post_processor": None, "decoder": None, "model": model,
    }  # fmt: skip
    store.write_json(folder / "tokenizer.json", content)
    return folder


def made_model(folder: Path, rows: int, width: int) -> Path:
    """A checkpoint with a table of so many rows, a bias over them, and a few layers; no model of any library."""
    kinds = {
        "model.embed_tokens.weight": (torch.float32, (rows, width)),
        "lm_head.bias": (torch.float32, (rows,)),
    }
    for layer in range(LAYERS):
        kinds[f"model.layers.{layer}.mlp.weight"] = (torch.float32, (4 * width, width))

    def values() -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(0)
        for dtype, shape in kinds.values():
            yield torch.randn(shape, generator=generator, dtype=dtype)

    folder.mkdir(parents=True, exist_ok=True)
    store.stream_tensors(folder / "model.safetensors", kinds, values(), {"format": "pt"})
    store.write_json(
        folder / "config.json", {"model_type": "synthetic", "vocab_size": rows, "num_hidden_layers": LAYERS}
    )
    return made_tokenizer(folder, rows, rows // 2)


def streamed(model: Path, tokenizer: Path, out: Path) -> float:
    """Seconds of the part of a graft that reads and writes weights."""
    with quiet(), planned_graft(model, tokenizer, Filling(how="mean")) as made:
        start = time.perf_counter()
        execute(made.plan, out)
        return time.perf_counter() - start


def measured(bench: Bench, model: Path, tokenizer: Path) -> dict[str, dict[str, float]]:
    """Seconds and peak anonymous memory of each program: medians over the rounds, and ratios to the copy."""
    graft = [sys.executable, "-m", "tauspan", "vocabulary", "graft", model, tokenizer]
    other = shutil.copytree(model, bench.work / "other")
    merge = merge_inputs.recipe(bench.work / "merge.yaml", "task_arithmetic", [model, other], {"weight": 1.0})
    found = bench.in_turn({
        "copy": bench.copying([model / "model.safetensors"]),
        "start": [sys.executable, "-c", "import tauspan.surgery.grafting"],
        "merge": bench.ours(merge),
        "graft": [*graft, "--how", "mean", "-o", bench.work / "out", "--quiet"],
    })  # fmt: skip
    rows = {
        name: {
            "seconds": statistics.median(one.seconds for one in runs),
            "GB": max(one.memory for one in runs),
        }
        for name, runs in found.items()
    }
    rows["stream"] = {"seconds": streamed(model, tokenizer, bench.work / "out")}
    for row in rows.values():
        row["times copy"] = row["seconds"] / rows["copy"]["seconds"]
    return rows


def main() -> None:
    """Make the files, measure in turn, print and write."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--rows", type=int, default=250_000)
    options.add_argument("--width", type=int, default=384)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    options.add_argument("--work", type=Path)
    options.add_argument("--out", type=Path)
    given = options.parse_args()
    with tempfile.TemporaryDirectory(dir=given.work) as folder:
        bench = Bench(Path(folder), None, given.rounds, clock=given.clock)
        model = made_model(Path(folder) / "model", given.rows, given.width)
        tokenizer = made_tokenizer(Path(folder) / "tokenizer", given.rows, given.rows // 2 + 1)
        watched(["cat", model / "model.safetensors"])  # into the page cache
        rows = measured(bench, model, tokenizer)
        size = (model / "model.safetensors").stat().st_size / 1e9
    title = f"Grafting {given.rows:,} rows of {given.width}, {size:.2f} GB, {given.rounds} rounds, {given.clock} seconds"
    sys.stdout.write(Table(title, [{"what": name, **row} for name, row in rows.items()]).to_markdown() + "\n")
    if given.out:
        store.write_json(given.out, {"title": title, "rows": rows})


if __name__ == "__main__":
    main()
