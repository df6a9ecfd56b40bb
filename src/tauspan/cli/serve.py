"""The verb that serves a run on this machine: its options, and what it does.

The library is imported only when a verb runs.
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tauspan.cli.shared import Verb
from tauspan.core.errors import UsageError

if TYPE_CHECKING:
    from tauspan.experiments.run.context import RunContext


def add(verbs: Any, verb: Verb) -> None:
    """Add the verb to a parser; `verb(into, name, does, function)` makes the parser of each verb."""
    made = verb(
        verbs,
        "serve",
        "serve a run on this machine: mixes of any regime evaluated live, its progress watched",
        serve,
    )
    made.add_argument("run", metavar="RUN", help="the folder of a run")
    made.add_argument(
        "--recipe", metavar="FILE", help="the recipe of a run in progress (default: that of the run's report)"
    )
    made.add_argument("--port", type=int, default=0, metavar="N", help="of 127.0.0.1 (default: a free one)")
    made.add_argument(
        "--write", action="store_true", help="let the page write mixes, into mixes/ in the run's folder"
    )
    made.add_argument("--device", help="where the model computes, such as cuda (default: the CPU)")


def serve(options: argparse.Namespace) -> None:
    """Serve a run until it is interrupted."""
    from tauspan.serve.app import serve as served
    from tauspan.serve.mixer import Mixer

    def ready(address: str) -> None:
        sys.stdout.write(f"{address}\nOpen this address; it holds a secret. Ctrl-C ends the server.\n")
        sys.stdout.flush()

    served(Mixer(_run(options), options.write), options.port, ready)


def _run(options: argparse.Namespace) -> "RunContext":
    from tauspan.experiments.run.context import RunContext
    from tauspan.experiments.run.finished import finished_run, is_run
    from tauspan.experiments.run.recipe import Recipe

    folder = Path(options.run)
    if options.recipe is not None:
        if not folder.is_dir():
            raise UsageError(f"{folder} is no folder: give the one that `tauspan run` writes into.")
        return RunContext(Recipe.read(options.recipe), folder, options.device)
    if not is_run(folder):
        raise UsageError(
            f"{folder} is no finished run: give the folder that `tauspan run` wrote, or of a run in progress its recipe "
            "too: --recipe FILE."
        )
    return finished_run(folder, options.device)
