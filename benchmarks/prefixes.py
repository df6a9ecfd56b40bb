"""Prefixes of attention: which feature map stands for a real prefix.

    python -m benchmarks.prefixes [--out results.json]

Prints the error of a head's output when a prefix of 2,048 tokens becomes (Z, kappa), for three sizes of its scores.
Trained prefixes are a row of `benchmarks.small_spaces`.
"""

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor

from tauspan.core.report import Table
from tauspan.prefix import FeatureMap

SIZE, OWN, PREFIX = 16, 32, 2048
SCALES = (0.3, 1.0, 2.0)
MAPS = {
    "ELU + 1": FeatureMap("elu"),
    "Taylor 2": FeatureMap("taylor"),
    "positive, r = 256": FeatureMap("positive", 256),
}


def errors(scale: float, *, related: bool = True, seed: int = 0) -> dict[str, float]:
    """|out - exact| / |exact| of one head, by the way the prefix is stood for.

    Args:
        scale: of queries and keys, which are normal; scores are q.k / 4.
        related: values that depend on their keys; else they are normal about 1, and any map looks right.
        seed: of all numbers.
    """
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    query, key, value = scale * normal(OWN, SIZE), scale * normal(OWN, SIZE), normal(OWN, SIZE)
    first = scale * normal(PREFIX, SIZE)
    mixed, about = normal(SIZE, SIZE) / SIZE**0.5, normal(PREFIX, SIZE) + 1
    last = torch.tanh(2 * first @ mixed / scale) if related else about
    own, before = ((query @ keys.T / SIZE**0.5).exp() for keys in (key, first))
    exact = (own @ value + before @ last) / (own.sum(1) + before.sum(1)).unsqueeze(1)
    found = {"no prefix": own @ value / own.sum(1, keepdim=True), "mean value": last.mean(0).expand(OWN, -1)}
    for name, features in MAPS.items():
        phi_q, phi_k = features(query / SIZE**0.25), features(first / SIZE**0.25)
        whole = own.sum(1) + phi_q @ phi_k.sum(0)
        found[name] = (own @ value + phi_q @ (phi_k.T @ last)) / whole.unsqueeze(1)
    return {name: float((one - exact).norm() / exact.norm()) for name, one in found.items()}


def tables() -> list[Table]:
    """The errors with values that depend on their keys, and with values that do not."""
    note = f"d = {SIZE}, {OWN} own tokens, {PREFIX:,} of the prefix, float64, seed 0; relative errors of the output"
    return [
        Table(
            f"A prefix as (Z, kappa), {words}",
            [{"scale of q, k": scale, **errors(scale, related=related)} for scale in SCALES],
            note,
        )
        for words, related in (("values that depend on keys", True), ("values that do not", False))
    ]


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="write the tables as JSON too")
    options = parser.parse_args()
    shown = tables()
    for table in shown:
        print(table.to_markdown(), end="\n\n")
    if options.out:
        content = [{"title": one.title, "rows": one.rows, "note": one.note} for one in shown]
        options.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
