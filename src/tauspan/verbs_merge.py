"""The verbs that merge: their options, and what each does; the library is imported when one runs."""

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from tauspan.commands import say, show
from tauspan.errors import MismatchError, UsageError

if TYPE_CHECKING:
    from tauspan.merge import Method
    from tauspan.merge.recipe import MergeRecipe

Verb: TypeAlias = Callable[..., argparse.ArgumentParser]


def add(verbs: Any, verb: Verb) -> None:
    """Add the merging verbs to a parser; `verb(into, name, does, function)` makes one."""
    merged = verb(verbs, "merge", "merge models, vectors or adapters as a recipe says", merge)
    merged.add_argument("recipe", nargs="?", help="a YAML file: ours, or mergekit's")
    merged.add_argument("out", nargs="?", help="the directory to write; for a vector a .safetensors file too")
    merged.add_argument(
        "--plan", action="store_true", help="say what would be read and written, move nothing"
    )
    merged.add_argument("--resume", action="store_true", help="go on with a merge that was interrupted")
    merged.add_argument("--overwrite", action="store_true")
    merged.add_argument("--schema", action="store_true", help="print the JSON schema of recipes, for editors")
    checked = verb(verbs, "doctor", "check whether models can be merged; exit code 4 if not", doctor)
    checked.add_argument("models", nargs="+", metavar="MODEL")
    checked.add_argument("--base", help="the pre-trained model")
    checked.add_argument(
        "--values", action="store_true", help="also look for NaN and infinity (reads everything)"
    )
    again = verb(
        verbs,
        "reproduce-card",
        "make a merge again from its card and compare it bit for bit",
        reproduce_card,
    )
    again.add_argument("card", help="a merged directory, or its README.md")
    again.add_argument("out", nargs="?", help="keep the new result there")
    for made in (merged, again):
        made.add_argument("--workers", type=int, metavar="N", help="threads (default: all processors)")
        made.add_argument(
            "--access",
            choices=("mmap", "pread"),
            default="mmap",
            help="how files are read (default %(default)s)",
        )
        made.add_argument(
            "--code",
            metavar="MODULE:FUNCTION",
            help="run this code of your own as the method, where the recipe names it",
        )


def merge(options: argparse.Namespace) -> None:
    """Merge, or say what would be done."""
    if options.schema:
        from tauspan.merge.json_schema import json_schema

        sys.stdout.write(json.dumps(json_schema(), indent=1) + "\n")
        return
    if options.recipe is None or (options.out is None and not options.plan):
        raise UsageError("merge needs a recipe and an output: tauspan merge RECIPE OUT.")
    _require_workers(options)
    from tauspan.merge.files import merge_files, planned
    from tauspan.merge.recipe import MergeRecipe

    recipe = _with_code(MergeRecipe.read(options.recipe), options)
    if options.seed is not None:
        recipe = dataclasses.replace(recipe, seed=options.seed)
    if options.plan:
        with planned(recipe, access=options.access, workers=options.workers) as (_, plan):
            show(plan.report(), options)
        return
    report = merge_files(
        recipe, options.out, resume=options.resume, overwrite=options.overwrite, workers=options.workers,
        access=options.access, show_progress=not options.quiet,
    )  # fmt: skip
    show(report, options)
    say(f"wrote {options.out}, digest {report.result['digest'][:12]}", options)


def doctor(options: argparse.Namespace) -> None:
    """Check before merging."""
    from tauspan.merge.checks import doctor as examine

    report = examine(options.models, options.base, values=options.values)
    *shown, problems = report.tables  # the problems' messages are whole sentences, and a table would cut them
    show(report if options.json else dataclasses.replace(report, tables=shown), options)
    for row in problems.rows:
        say(f"{row['severity']}: {row['message']}", options)
    errors = report.result["errors"]
    if errors:
        raise MismatchError(f"{errors} errors: these models cannot be merged as they are.")
    say(f"no errors, {report.result['warnings']} warnings", options)


def reproduce_card(options: argparse.Namespace) -> None:
    """Make a merge again from its card."""
    _require_workers(options)
    from tauspan.merge.reproduce import reproduce

    own = _imported(options.code) if options.code else None
    report = reproduce(
        options.card, options.out, own=own, workers=options.workers, access=options.access,
        show_progress=not options.quiet,
    )  # fmt: skip
    if options.json:
        show(report, options)
    say(f"the same bits: digest {report.result['digest'][:12]}", options)


def _require_workers(options: argparse.Namespace) -> None:
    if options.workers is not None and options.workers < 1:
        raise UsageError(f"--workers {options.workers}: at least one thread is needed.")


def _with_code(recipe: "MergeRecipe", options: argparse.Namespace) -> "MergeRecipe":
    """The recipe with the user's own method, if both it and the command line name it."""
    if options.code is None:
        return recipe
    if options.code != recipe.method:
        raise UsageError(
            f"--code {options.code}: the recipe's method is {recipe.method!r}, and no such code runs."
        )
    return recipe.with_method(_imported(options.code))


def _imported(name: str) -> "Method":
    from tauspan.merge.own import imported

    return imported(name, Path.cwd())
