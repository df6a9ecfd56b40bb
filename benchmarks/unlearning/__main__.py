"""`python -m benchmarks.unlearning`: what a model still knows of people it was made to forget, by every method.

Everything lies in OUT and is done once: call it again with more seeds and it goes on from there.
"""

import argparse
import dataclasses
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from benchmarks.rows import ROOT
from benchmarks.unlearning import Plan, study
from benchmarks.unlearning.study import QUESTIONS
from rich.console import Console

from tauspan.core.report import Report

# SmolLM2 knows English and no made-up people: it learns faster, and each pass costs 200 times as much
LARGE = {
    "params": "last:4", "seeds": (0,), "people": 30, "kept": 6, "epochs": 12, "rate": 3e-4, "forget_rate": 1e-4,
    "again": 5, "steps": 20, "english": 60, "known": 1, "mails": 100, "samples": 60,
}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> Report:
    """Carry the study out, or go on with it; print its tables."""
    given = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    torch.set_num_threads(given.threads)
    usual = Plan(**(LARGE if given.model == "smollm2" else {}))
    asked = {name: getattr(given, name) for name in _names() if getattr(given, name) is not None}
    plan = dataclasses.replace(usual, model=given.model, **asked)
    found = study(given.out or ROOT / "out" / f"unlearning-{Path(given.model).name}", plan, given.ask)
    Console().print(found.renderable())
    return found


def _names() -> list[str]:
    return [field.name for field in dataclasses.fields(Plan) if field.name != "model"]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.unlearning", description=__doc__, epilog=Plan.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument(
        "--model", default="small", help="small (made by the study), smollm2, or what tauspan.load takes"
    )
    for name in _names():
        usual = getattr(Plan(), name)
        option = f"--{name.replace('_', '-')}"
        if isinstance(usual, tuple):
            parser.add_argument(option, nargs="+", type=type(usual[0]), action=_Tuple)
        else:
            parser.add_argument(option, type=type(usual))
    parser.add_argument(
        "--ask", choices=QUESTIONS, default="people", help="forget people, or write less spam"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    return parser


class _Tuple(argparse.Action):
    """Several values, as `Plan` has them."""

    def __call__(self, parser, namespace, values, option=None):
        setattr(namespace, self.dest, tuple(values))


if __name__ == "__main__":
    main(sys.argv[1:])
