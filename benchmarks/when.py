"""`python -m benchmarks.when`: when does linear fine-tuning help task arithmetic? Real text tasks, real encoder.

Everything lies in OUT and is done once: call it again with more lengths or seeds and it goes on from there.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from benchmarks.rows import ROOT
from benchmarks.study import Plan, study
from benchmarks.study.plan import RATES
from rich.console import Console

import tauspan as ts
from tauspan.core.report import Report
from tauspan.models import Encoder

TASKS = ("email_spam", "movie_sentiment", "debian_section")


def main(arguments: Sequence[str] | None = None) -> Report:
    """Carry the study out, or go on with it; print its tables."""
    given = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    torch.set_num_threads(given.threads)
    encoder = ts.load(given.model)
    assert isinstance(encoder, Encoder)  # noqa: S101 - no edited model
    plan = Plan(
        lengths=tuple(given.lengths),
        rates={"standard": tuple(given.rates_standard), "linear": tuple(given.rates_linear)},
        tune_to=given.tune_to, regimes=tuple(given.regimes), points=tuple(given.points), seeds=tuple(given.seeds),
        rows=tuple(given.rows), validation=given.validation, test=given.test, params=given.params,
        batch_size=given.batch, max_tokens=given.max_tokens, map_rows=given.map_rows, grid=tuple(given.grid),
        pairs=None if given.pairs is None else tuple(_pair(text) for text in given.pairs), axis=tuple(given.axis),
    )  # fmt: skip
    found = study(encoder, ts.suite(given.tasks), given.out, plan, minutes=given.minutes)
    Console().print(found.renderable())
    return found


def _pair(text: str) -> tuple[str, str]:
    first, _, second = text.partition(",")
    return first, second


def _parser() -> argparse.ArgumentParser:
    usual = Plan()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.when", description=__doc__)
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--tasks", nargs="+", default=TASKS)
    parser.add_argument("--lengths", nargs="+", type=int, default=usual.lengths, help="optimiser steps")
    parser.add_argument("--rates-standard", nargs="+", type=float, default=RATES["standard"])
    parser.add_argument("--rates-linear", nargs="+", type=float, default=RATES["linear"])
    parser.add_argument(
        "--tune-to", type=int, default=usual.tune_to, help="longest length at which rates are tried"
    )
    parser.add_argument("--regimes", nargs="+", default=usual.regimes)
    parser.add_argument("--points", nargs="+", default=usual.points, help="logits, encoder")
    parser.add_argument("--seeds", nargs="+", type=int, default=usual.seeds)
    parser.add_argument("--rows", nargs="+", type=int, default=usual.rows, help="training rows")
    parser.add_argument("--validation", type=int, default=usual.validation)
    parser.add_argument("--test", type=int, default=usual.test)
    parser.add_argument("--map-rows", type=int, default=usual.map_rows, help="test rows behind xi")
    parser.add_argument(
        "--axis", nargs="+", type=float, default=usual.axis, help="coefficients of the maps of xi"
    )
    parser.add_argument("--grid", nargs="+", type=float, default=usual.grid, help="alphas to choose from")
    parser.add_argument(
        "--pairs", nargs="+", help="FIRST,SECOND pairs of tasks for xi; default: the first two"
    )
    parser.add_argument("--params", default=usual.params)
    parser.add_argument("--batch", type=int, default=usual.batch_size)
    parser.add_argument("--max-tokens", type=int, default=usual.max_tokens)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--minutes", type=float, help="begin nothing after so many; 0 only reports what is there"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "when")
    return parser


if __name__ == "__main__":
    main(sys.argv[1:])
