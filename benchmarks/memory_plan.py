"""What `tauspan.plan` predicts of the memory of fine-tunings against what their runs take, before and after.

    python -m benchmarks.memory_plan [--device cpu] [--only minilm] [--rows 8 32] [--out results.json]

Every case is planned, and then run for two steps. Prints both peaks and their ratio. On a GPU the truth is the
allocator's own count; that was not run.
"""

import argparse
import dataclasses
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from benchmarks.peaks import allocated
from benchmarks.told import told
from torch import Tensor, nn

import tauspan as ts
from tauspan.core.choices import REGIMES
from tauspan.core.report import Table, in_words
from tauspan.models.extras import quiet
from tauspan.train.footprint import held

Case = tuple[ts.Encoder, ts.Task]
OTHERS: tuple[dict[str, Any], ...] = (
    {}, {"accumulation": 2}, {"checkpointing": True}, {"precision": "bfloat16"}, {"params": "last:2"},
)  # fmt: skip


def first_state(model: nn.Module, batch: Any) -> Tensor:
    """The features of the models that are made here."""
    states: Tensor = model(batch).last_hidden_state[:, 0]
    return states


def made(model: nn.Module, rows: Tensor) -> Case:
    """A model of random weights with a task of random rows."""
    labels = torch.arange(len(rows)) % 2
    few = rows[:8], labels[:8]
    task = ts.Task.from_tensors("made", ["a", "b"], train=(rows, labels), validation=few, test=few)
    return ts.Encoder(model.eval(), first_state), task


def minilm() -> Case:
    """The shipped encoder on a shipped task."""
    encoder = ts.load("minilm")
    assert isinstance(encoder, ts.Encoder)  # noqa: S101 - no edited model
    return encoder, ts.suite(["movie_sentiment"])[0].subset(train=64, validation=16, test=16)


def vit() -> Case:
    """A vision transformer of six blocks."""
    sizes = {"hidden_size": 192, "num_hidden_layers": 6, "num_attention_heads": 3, "intermediate_size": 768}
    config = transformers.ViTConfig(**sizes, image_size=96, patch_size=16)
    return made(transformers.ViTModel(config, add_pooling_layer=False), torch.randn(64, 3, 96, 96))


def llama() -> Case:
    """A decoder of four blocks and a large vocabulary, read for features."""
    sizes = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 688}
    # checkpointed blocks run twice, which a cache of keys and values would notice
    model = transformers.LlamaModel(transformers.LlamaConfig(**sizes, vocab_size=8000, use_cache=False))
    return made(model, torch.randint(1, 8000, (64, 64)))


CASES: dict[str, Callable[[], Case]] = {"minilm": minilm, "vit": vit, "llama": llama}


def compared(encoder: ts.Encoder, task: ts.Task, settings: ts.Settings) -> dict[str, Any]:
    """One row: a plan and a run."""
    device = str(next(encoder.parameters()).device)
    own = held([*encoder.parameters(), *encoder.buffers()])
    plan = ts.plan(encoder, task, settings)
    ts.finetune(encoder, task, dataclasses.replace(settings, max_steps=1))  # what is made once
    real = own + allocated(lambda: ts.finetune(encoder, task, settings), device)
    return {"planned": plan.peak, "run": real, "ratio": plan.peak / real}


def measure(names: Sequence[str], rows: Sequence[int], device: str) -> list[dict[str, Any]]:
    """The rows of all cases."""
    found = []
    for name in names:
        with quiet(transformers), torch.random.fork_rng():
            torch.manual_seed(0)
            encoder, task = CASES[name]()
        encoder.to(device)
        for regime in REGIMES:
            tries = [(size, {}) for size in rows] + [(rows[-1], change) for change in OTHERS[1:]]
            for size, change in tries:
                settings = ts.Settings(regime, batch_size=size, epochs=2, max_steps=2, check="off", **change)
                what = ", ".join(f"{key}={value}" for key, value in change.items())
                facts = {"model": name, "regime": regime, "rows": size, "settings": what}
                found.append(facts | compared(encoder, task, settings))
                sys.stderr.write(f"{found[-1]}\n")
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", nargs="+", choices=CASES, default=list(CASES), help="these models (default: all)"
    )
    parser.add_argument("--rows", type=int, nargs="+", default=[8, 32], help="batch sizes (default: 8 32)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--out", type=Path, help="write the rows as JSON too")
    options = parser.parse_args(arguments)
    rows = measure(options.only, options.rows, options.device)
    note = f"peak of tensors, {options.device}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    shown = [one | {"planned": in_words(one["planned"]), "run": in_words(one["run"])} for one in rows]
    told(Table("Planned and run", shown, note), options.out, rows=rows)


if __name__ == "__main__":
    main()
