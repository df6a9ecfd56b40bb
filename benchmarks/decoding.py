"""Decoding token by token: tangent models, dense and in the space of LoRA, against the ordinary model, all with a cache.

    python -m benchmarks.decoding [--model smollm2] [--tokens 24] [--rounds 5] [--out results.json]

Prints tokens per second and ratios, interleaved, with their spread; and how many bytes the caches of a token take.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from benchmarks.told import told
from torch import Tensor

import tauspan as ts
from tauspan.core.report import Table
from tauspan.editing import Decoder
from tauspan.models import Encoder, fingerprint_of

PROMPT = "The library was quiet, and the rain"
DIRECTIONS = (1, 2, 4)
LORA = "lora:8"


def vectors(encoder: Encoder, count: int) -> dict[str, ts.TaskVector]:
    """Vectors on everything that trains: whole tensors, or the small numbers of an encoder in a space."""
    draw, base = torch.Generator().manual_seed(0), fingerprint_of(encoder)
    moving = {name: p for name, p in encoder.backbone.named_parameters() if p.requires_grad}
    return {
        f"v{n}": ts.TaskVector(
            {name: 1e-4 * torch.randn(p.shape, generator=draw) for name, p in moving.items()},
            base,
            "linear",
            f"v{n}",
            space=encoder.space,
        )
        for n in range(count)
    }


class Ordinary:
    """Ordinary greedy decoding of the same backbone and table, with transformers' cache."""

    def __init__(self, encoder: Encoder) -> None:
        language = encoder.language
        assert language is not None  # noqa: S101 - it was loaded as one
        self.backbone, self.table, self.words = encoder.backbone, language.table, language.inputs.tokenizer

    @torch.no_grad()
    def __call__(self, tokens: int) -> float:
        """Seconds of so many tokens after the prompt."""
        cache = transformers.DynamicCache(config=self.backbone.config)
        ids: Tensor = self.words(PROMPT, return_tensors="pt")["input_ids"]
        state = self.backbone(input_ids=ids, past_key_values=cache, use_cache=True).last_hidden_state[0, -1]
        begun = time.perf_counter()
        for _ in range(tokens):
            ids = (self.table.weight @ state).argmax()[None, None]
            state = self.backbone(input_ids=ids, past_key_values=cache, use_cache=True).last_hidden_state[
                0, -1
            ]
        return time.perf_counter() - begun


class Tangent:
    """Greedy decoding in the tangent regime."""

    def __init__(self, encoder: Encoder, count: int, moving: Encoder) -> None:
        self.mix = {f"v{n}": 1.0 for n in range(count)}
        self.decoder = Decoder(encoder, vectors(moving, count))

    def __call__(self, tokens: int) -> float:
        """Seconds of so many tokens after the prompt."""
        with ts.computing(check="off"):
            text = self.decoder.text(PROMPT)
        begun = time.perf_counter()
        for _ in range(tokens):
            text.append(int(text.logits(self.mix).argmax()))
        return time.perf_counter() - begun


def measure(model: str, tokens: int, rounds: int) -> list[dict[str, Any]]:
    """A row for each way to decode: median rate, and its ratio to ordinary decoding of the same round, with the range."""
    encoder = ts.load(model, language=128)
    ways: dict[str, Any] = {"ordinary": Ordinary(encoder)}
    inside = ts.restrict(encoder, LORA)
    for n in DIRECTIONS:
        ways |= {
            f"tangent, {n} dense": Tangent(encoder, n, encoder),
            f"tangent, {n} {LORA}": Tangent(encoder, n, inside),
        }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds + 1):
        for name, way in ways.items():
            seconds[name].append(way(tokens))
    config: Any = encoder.backbone.config
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    own = 2 * 4 * config.num_hidden_layers * heads * width
    rows = []
    for name, found in seconds.items():
        found = found[1:]  # the first round warms up
        ratios = sorted(one / plain for one, plain in zip(found, seconds["ordinary"][1:], strict=True))
        count = 0 if name == "ordinary" else int(name.split()[1])
        rows.append({
            "decoding": name, "tokens/s": tokens / sorted(found)[len(found) // 2], "time ratio": ratios[len(ratios) // 2],
            "least": ratios[0], "most": ratios[-1], "cache, bytes a token": own * (1 + count),
        })  # fmt: skip
    return rows


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2", help="a model, as for tauspan.load (default: smollm2)")
    parser.add_argument("--tokens", type=int, default=24, help="tokens after the prompt (default: 24)")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds (default: 5)")
    parser.add_argument("--out", type=Path, help="write the rows as JSON too")
    options = parser.parse_args()
    rows = measure(options.model, options.tokens, options.rounds)
    note = f"{options.model}, float32, {torch.get_num_threads()} threads, torch {torch.__version__}; ratios of one round"
    told(Table("Decoding", rows, note), options.out)


if __name__ == "__main__":
    main()
