"""The program `tauspan`. Nothing heavy is imported until a verb runs, so that `--help` is instant.

Exit codes: 0 done; 1 unexpected; 2 usage or recipe; 3 model; 4 tensors or base do not fit; 5 file; 6 data;
7 not finite; 8 missing package; 130 interrupted.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext, redirect_stdout
from io import StringIO
from typing import Any

from tauspan import __version__
from tauspan.cli import completion as verbs_completion
from tauspan.cli import data as verbs_data
from tauspan.cli import desk as verbs_desk
from tauspan.cli import edit as verbs_edit
from tauspan.cli import factors as verbs_factors
from tauspan.cli import kernel as verbs_kernel
from tauspan.cli import merge as verbs_merge
from tauspan.cli import models as verbs_models
from tauspan.cli import reproduce as verbs_reproduce
from tauspan.cli import sequence as verbs_sequence
from tauspan.cli import serve as verbs_serve
from tauspan.cli import shared as commands
from tauspan.cli import surgery as verbs_surgery
from tauspan.cli import together as verbs_together
from tauspan.cli import train as verbs_train
from tauspan.cli import vector as verbs_vector
from tauspan.cli.parsing import Parser
from tauspan.core import notices
from tauspan.core.computing import computing
from tauspan.core.errors import TauspanError
from tauspan.core.measure import quiet, underway

FAMILIES: tuple[Callable[..., None], ...] = (
    verbs_train.add, verbs_vector.add, verbs_models.add, verbs_edit.add, verbs_desk.add, verbs_data.add,
    verbs_kernel.add, verbs_together.add, verbs_sequence.add, verbs_factors.add, verbs_merge.add, verbs_surgery.add,
    verbs_reproduce.add, verbs_serve.add, verbs_completion.add,
)  # fmt: skip
_EXITS = (
    "exit codes: 0 done, 2 usage, 3 model, 4 tensors do not fit, 5 file, 6 data, 7 not finite, "
    "8 missing package, 130 interrupted"
)


def _common() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "-v",
        "--verbose",
        action="store_true",
        help="say what is being done, and what other libraries warn of",
    )
    common.add_argument("-q", "--quiet", action="store_true", help="no progress, no tables; warnings stay")
    common.add_argument("--json", action="store_true", help="print the result as JSON on stdout")
    common.add_argument("--seed", type=int, default=None, metavar="N", help="seed (default: 0)")
    return common


def parser(families: Sequence[Callable[..., None]] = FAMILIES) -> argparse.ArgumentParser:
    """The parser of the whole command line, to which each family adds its verbs."""
    common = _common()
    top = Parser(prog="tauspan", epilog=_EXITS,
                  description="Edit a pre-trained model by adding, negating and scaling task vectors.")  # fmt: skip
    top.add_argument("--version", action="version", version=f"tauspan {__version__}")
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(
        into: Any, name: str, does: str, function: Callable[[argparse.Namespace], None]
    ) -> argparse.ArgumentParser:
        made: argparse.ArgumentParser = into.add_parser(
            name, help=does, description=does, parents=[common], epilog=_EXITS
        )
        made.set_defaults(function=function)
        return made

    for family in families:
        family(verbs, verb)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program and return its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    options = parser().parse_args(words)
    speaks = commands.first()
    silence = nullcontext() if speaks else redirect_stdout(StringIO())
    try:
        with (
            silence,
            computing(getattr(options, "engine", None), getattr(options, "check", None)),
            notices.program(options.verbose),
            quiet(options.quiet or not speaks),
            underway(_named(options)),
        ):
            options.function(options)
    except KeyboardInterrupt:
        sys.stderr.write(commands.interrupted(words, options))
        return 130
    except TauspanError as error:
        sys.stderr.write(f"tauspan: {error}\n")
        return error.exit_code
    except BrokenPipeError:
        sys.stderr.close()  # the program that read the pipe has ended
        return 0
    return 0


def _named(options: argparse.Namespace) -> str:
    """The program's name and the verb, with its action if it has one."""
    return " ".join(filter(None, ("tauspan", options.verb, getattr(options, "action", None))))


if __name__ == "__main__":
    sys.exit(main())
