"""The program `tauspan`. Nothing heavy is imported until a verb runs, so that `--help` is instant.

Exit codes: 0 done; 1 unexpected; 2 usage or recipe; 3 model; 4 tensors or base do not fit; 5 file; 6 data;
7 not finite; 8 missing package; 130 interrupted.
"""

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext, redirect_stdout
from io import StringIO
from typing import Any

from tauspan import __version__, commands, verbs_data, verbs_kernel, verbs_merge, verbs_reproduce
from tauspan.errors import TauspanError

REGIMES = ("standard", "posthoc", "linear")
_EXITS = (
    "exit codes: 0 done, 2 usage, 3 model, 4 tensors do not fit, 5 file, 6 data, 7 not finite, "
    "8 missing package, 130 interrupted"
)


class _Parser(argparse.ArgumentParser):
    """Long options are never abbreviated: a script keeps its meaning when options are added."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)


def _common() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("-v", "--verbose", action="store_true", help="say what is being done")
    common.add_argument("-q", "--quiet", action="store_true", help="no progress bars, no tables")
    common.add_argument("--json", action="store_true", help="print the result as JSON on stdout")
    common.add_argument("--seed", type=int, default=None, metavar="N", help="seed (default 0)")
    return common


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    common = _common()
    top = _Parser(prog="tauspan", epilog=_EXITS,
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

    demo = verb(
        verbs,
        "demo",
        "fine-tune, add and negate four text tasks in a packaged encoder (minutes)",
        commands.demo,
    )
    demo.add_argument("--out", default="out/demo", help="output folder (default %(default)s)")

    run = verb(verbs, "run", "carry out a recipe", commands.run)
    run.add_argument("recipe", help="a YAML file; see recipes/")
    run.add_argument("--out", help="output folder (default out/RECIPE-NAME)")
    run.add_argument(
        "--workers", type=int, default=1, help="processes that fine-tune at the same time (default 1)"
    )

    tune = verb(verbs, "finetune", "fine-tune on one task and write the task vector", commands.finetune)
    tune.add_argument("model", help="minilm, a directory or a hub id")
    tune.add_argument("task", help="a shipped task, or a directory with card.json")
    tune.add_argument("out", help="folder for the vector, the log and checkpoints")
    tune.add_argument(
        "--regime", choices=("standard", "linear"), default="linear", help="(default %(default)s)"
    )
    tune.add_argument(
        "--params", default="all", help="all, attention, last:K or a pattern (default %(default)s)"
    )
    tune.add_argument("--point", choices=("encoder", "logits"), help="where the tangent model is linearised")
    tune.add_argument("--epochs", type=int, default=1)
    tune.add_argument("--max-steps", type=int)
    tune.add_argument("--batch-size", type=int, default=32)
    tune.add_argument("--accumulation", type=int, default=1)
    tune.add_argument("--lr", type=float, help="peak learning rate (default 2e-4 standard, 3e-4 linear)")
    tune.add_argument(
        "--warmup", type=float, default=0.1, help="share or number of steps (default %(default)s)"
    )
    tune.add_argument("--weight-decay", type=float, default=0.0)
    tune.add_argument("--decay-toward", choices=("base", "zero"), default="base")
    tune.add_argument("--clip", type=float, default=1.0)
    tune.add_argument("--label-smoothing", type=float, default=0.0)
    tune.add_argument("--max-tokens", type=int)
    tune.add_argument("--rows", type=int, help="train on at most so many rows")
    tune.add_argument("--checkpoint-every", type=int, default=50, metavar="STEPS")
    tune.add_argument(
        "--resume", action="store_true", help="continue from the checkpoint, or reuse the vector"
    )
    tune.add_argument(
        "--shard", action="store_true",
        help="under torchrun: every process keeps its part of each tensor, on its own GPU if there are any",
    )  # fmt: skip
    tune.add_argument("--device", default=None, help="cpu, cuda, cuda:1 ... (default: where the model is)")

    tune.add_argument(
        "--cache",
        choices=("none", "auto", "features", "primal", "factors"),
        default="none",
        help="what the tangent model keeps across epochs (default %(default)s)",
    )
    tune.add_argument("--precision", choices=("float32", "tf32", "bfloat16"), default="float32")

    fitted = verb(
        verbs,
        "fit",
        "fit a task vector in the tangent space by a convex solver, to a gradient norm",
        commands.fit,
    )
    fitted.add_argument("model", help="minilm, a directory or a hub id")
    fitted.add_argument("task", help="a shipped task, or a directory with card.json")
    fitted.add_argument("out", help="the vector's file or folder")
    fitted.add_argument(
        "--solver", choices=("lbfgs", "newton-cg"), default="lbfgs", help="(default %(default)s)"
    )
    fitted.add_argument("--ridge", type=float, default=1e-3, help="pull to the base (default %(default)s)")
    fitted.add_argument(
        "--tolerance", type=float, default=1e-4, help="of the gradient norm (default %(default)s)"
    )
    fitted.add_argument("--max-steps", type=int, default=200)
    fitted.add_argument(
        "--params", default="all", help="all, attention, last:K or a pattern (default %(default)s)"
    )
    fitted.add_argument("--batch-size", type=int, default=32)
    fitted.add_argument("--max-tokens", type=int)
    fitted.add_argument("--rows", type=int, help="fit at most so many rows")
    fitted.add_argument(
        "--cache",
        choices=("none", "auto", "features", "primal", "factors"),
        default="auto",
        help="(default %(default)s)",
    )

    vector = verbs.add_parser("vector", help="make, inspect and combine task vectors").add_subparsers(
        dest="action", required=True, metavar="ACTION"
    )
    diff = verb(vector, "diff", "OUT = TUNED - BASE, from models or safetensors files", commands.vector_diff)
    diff.add_argument("base")
    diff.add_argument("tuned")
    lora = verb(
        vector, "from-adapter", "OUT = what a LoRA adapter adds to BASE", commands.vector_from_adapter
    )
    lora.add_argument("base", help="minilm, a directory, a hub id or a safetensors file")
    lora.add_argument("adapter")
    lora.add_argument(
        "--leave-out",
        action="append",
        metavar="NAME",
        help="a tensor stored whole that is not wanted (a head)",
    )
    inspect = verb(
        vector,
        "inspect",
        "show a vector's provenance and tensors; cosines of several",
        commands.vector_inspect,
    )
    inspect.add_argument("vectors", nargs="+")
    inspect.add_argument("--tensors", action="store_true", help="one row a tensor")
    verify = verb(
        vector, "verify", "check that a file is whole, finite and starts from a model", commands.vector_verify
    )
    verify.add_argument("vector")
    verify.add_argument("model", nargs="?")
    plus = verb(vector, "add", "OUT = the sum of vectors", commands.vector_add)
    plus.add_argument("vectors", nargs="+")
    times = verb(vector, "scale", "OUT = FACTOR * VECTOR", commands.vector_scale)
    times.add_argument("vector")
    times.add_argument("factor", type=float)
    minus = verb(vector, "negate", "OUT = -VECTOR", commands.vector_negate)
    minus.add_argument("vector")
    like = verb(vector, "analogy", "OUT = C + (B - A): A is to B as C is to OUT", commands.vector_analogy)
    for name in ("a", "b", "c"):
        like.add_argument(name)
    for made in (diff, lora, plus, times, minus, like):
        made.add_argument("-o", "--out", required=True, help="the vector file to write")
        made.add_argument("--overwrite", action="store_true")

    use = verb(verbs, "apply", "write MODEL + SCALE * VECTOR as a model", commands.apply)
    use.add_argument("model")
    use.add_argument("vector")
    use.add_argument("out")
    use.add_argument("--scale", type=float, default=1.0)
    use.add_argument("--regime", choices=REGIMES)
    use.add_argument("--overwrite", action="store_true")

    score = verb(verbs, "evaluate", "accuracy of a model, edited or not, on tasks", commands.evaluate)
    score.add_argument("model")
    score.add_argument("tasks", nargs="+")
    score.add_argument("--vector")
    score.add_argument("--scale", type=float, default=1.0)
    score.add_argument("--regime", choices=REGIMES)
    score.add_argument("--split", choices=("train", "validation", "test"), default="test")

    edit = verbs.add_parser(
        "edit", help="choose coefficients on validation: add, negate, solve, front"
    ).add_subparsers(dest="action", required=True, metavar="ACTION")
    added = verb(edit, "add", "one model for all tasks: theta0 + alpha * sum of vectors", commands.edit_add)
    added.add_argument("model")
    added.add_argument("pairs", nargs="+", metavar="TASK=VECTOR")
    negated = verb(
        edit, "negate", "forget a task, keep the controls: theta0 - alpha * vector", commands.edit_negate
    )
    negated.add_argument("model")
    negated.add_argument("pair", metavar="TASK=VECTOR")
    negated.add_argument("controls", nargs="+", metavar="CONTROL")
    solved = verb(
        edit,
        "solve",
        "one model for all tasks, a coefficient a vector or a layer, by least loss",
        commands.edit_solve,
    )
    solved.add_argument("model")
    solved.add_argument("pairs", nargs="+", metavar="TASK=VECTOR")
    solved.add_argument(
        "--per", choices=("shared", "task", "layer"), default="task", help="(default %(default)s)"
    )
    solved.add_argument("--l1", type=float, default=0.0, help="pull of single coefficients to exactly 0")
    solved.add_argument("--unbounded", action="store_true", help="no bounds")
    traded = verb(
        edit,
        "front",
        "forgetting against keeping: every trade, and the best above the floor",
        commands.edit_front,
    )
    traded.add_argument("model")
    traded.add_argument("pair", metavar="TASK=VECTOR")
    traded.add_argument("controls", nargs="+", metavar="CONTROL")
    traded.add_argument("--per", choices=("shared", "layer"), default="layer", help="(default %(default)s)")
    traded.add_argument("--prices", type=int, default=25, help="points of the front (default %(default)s)")
    for made in (negated, traded):
        made.add_argument(
            "--floor",
            type=float,
            default=0.95,
            help="share of control accuracy to keep (default %(default)s)",
        )
    for made in (solved, traded):
        made.add_argument(
            "--bounds", nargs=2, type=float, default=(0.0, 1.0), metavar=("LO", "HI"), help="(default 0 1)"
        )
        made.add_argument("--ridge", type=float, default=0.0, help="pull of all coefficients to 0")
        made.add_argument(
            "--bootstrap",
            type=int,
            default=200,
            metavar="N",
            help="resamples behind each interval (default %(default)s)",
        )
        made.add_argument(
            "--max-evaluations",
            type=int,
            metavar="N",
            help="of the standard regime (default 100, or 30 a price)",
        )
        made.add_argument("--vector", metavar="FILE", help="write the combined vector there")
    mapped = verb(
        verbs,
        "disentangle",
        "how much the vectors of two tasks disturb each other, on a grid of coefficients",
        commands.disentangle,
    )
    mapped.add_argument("model")
    mapped.add_argument("pairs", nargs="+", metavar="TASK=VECTOR")
    mapped.add_argument("--grid", help="coefficients such as --grid=-1,0,1 (default: 21 from -2 to 2)")
    mapped.add_argument(
        "--box",
        nargs=2,
        type=float,
        default=(0.0, 1.0),
        metavar=("LO", "HI"),
        help="the coefficients used for editing, for the mean (default 0 1)",
    )
    mapped.add_argument(
        "--distance", choices=("argmax", "probabilities"), default="argmax", help="(default %(default)s)"
    )
    mapped.add_argument("--split", choices=("train", "validation", "test"), default="test")
    for made in (added, negated, solved, traded, mapped):
        made.add_argument("--regime", choices=REGIMES)
        made.add_argument("--out", help="folder for report.json, report.md and figures")
    for made in (added, negated):
        made.add_argument(
            "--grid",
            default="paper",
            help="paper, auto, or coefficients such as 0,0.5,1 (default %(default)s)",
        )
    for made in (score, added, negated, solved, traded, mapped):
        made.add_argument("--rows", type=int, help="use at most so many rows of each split")
        made.add_argument("--max-tokens", type=int)
        made.add_argument("--point", choices=("encoder", "logits"))
        made.add_argument("--batch-size", type=int, default=64)
    verbs_data.add(verbs, verb)
    verbs_kernel.add(verbs, verb)
    verbs_merge.add(verbs, verb)
    verbs_reproduce.add(verbs, verb)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program and return its exit code."""
    options = parser().parse_args(arguments)
    level = logging.INFO if options.verbose else logging.WARNING
    logging.basicConfig(level=level, format="%(message)s", stream=sys.stderr)
    silence = nullcontext() if commands.first() else redirect_stdout(StringIO())
    try:
        with silence:
            options.function(options)
    except KeyboardInterrupt:
        sys.stderr.write(
            "tauspan: interrupted; what was finished is kept, and a run with an output folder can resume.\n"
        )
        return 130
    except TauspanError as error:
        sys.stderr.write(f"tauspan: {error}\n")
        return error.exit_code
    except BrokenPipeError:
        sys.stderr.close()  # the reader of a pipe went away; there is nobody to tell
        return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
