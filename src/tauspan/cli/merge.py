"""The verbs that merge: their options, and what each does.

The library is imported only when a verb runs.
"""

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tauspan.cli.shared import Verb, assigned, say, show
from tauspan.core.errors import MismatchError, UsageError

if TYPE_CHECKING:
    from tauspan.core.report import Cell
    from tauspan.merge import Method
    from tauspan.merge.recipe.recipe import MergeRecipe


_SHARED = ("output", "rank", "rounding", "shard_size")  # keys of a recipe that mergekit's files do not have


def add(verbs: Any, verb: Verb) -> None:
    """Add the merging verbs to a parser; `verb(into, name, does, function)` makes the parser of each verb."""
    merged = _add_merge(verbs, verb)
    checked = verb(verbs, "doctor", "check whether models can be merged; exit code 4 if not", doctor)
    checked.add_argument("models", nargs="+", metavar="MODEL", help="directories, files or hub ids")
    checked.add_argument("--base", help="the pre-trained model (default: none)")
    _add_allow(checked)
    checked.add_argument(
        "--values",
        action="store_true",
        help="also look for NaN and infinity, and with --base measure displacements (reads everything)",
    )
    again = verb(
        verbs,
        "reproduce-card",
        "make a merge again from its card and compare it bit for bit",
        reproduce_card,
    )
    again.add_argument("card", help="a merged directory, or its README.md")
    again.add_argument("out", nargs="?", help="keep the new result there (default: it is thrown away)")
    again.add_argument(
        "-o", "--out", dest="named_out", metavar="OUT", help="the same (default: it is thrown away)"
    )
    for made in (merged, again):
        made.add_argument("--workers", type=int, metavar="N", help="threads (default: all processors)")
        made.add_argument(
            "--access",
            choices=("mmap", "pread"),
            default="pread",
            help="how files are read (default: %(default)s)",
        )
        made.add_argument(
            "--code",
            metavar="MODULE:FUNCTION",
            help="run this code of your own as the method, where the recipe names it (default: none)",
        )


def _add_allow(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--allow",
        action="append",
        default=[],
        metavar="NAME",
        help="let an error of the checks pass, by the name that it gives, and say so; repeatable (default: none)",
    )


def _add_merge(verbs: Any, verb: Verb) -> argparse.ArgumentParser:
    merged = verb(verbs, "merge", "merge models, vectors or adapters", merge)
    merged.usage = (
        "tauspan merge RECIPE OUT [options]\n"
        "       tauspan merge --method METHOD [--base BASE] MODEL ... -o OUT [--weight W ...] [--set OPTION=VALUE ...]"
    )
    merged.add_argument(
        "inputs", nargs="*", metavar="RECIPE OUT | MODEL",
        help="a YAML file, ours or mergekit's, and the output; or with --method the models",
    )  # fmt: skip
    merged.add_argument(
        "-o",
        "--out",
        help="the directory to write; for a vector a .safetensors file too (default: the second word)",
    )
    merged.add_argument(
        "--plan", action="store_true", help="say what would be read and written, move nothing"
    )
    merged.add_argument(
        "--resume",
        action="store_true",
        help="go on with a merge that was interrupted, or say that it is finished",
    )
    _add_allow(merged)
    merged.add_argument(
        "--overwrite",
        action="store_true",
        help="replace what an earlier merge wrote there; nothing else is replaced",
    )
    merged.add_argument("--schema", action="store_true", help="print the JSON schema of recipes, for editors")
    merged.add_argument(
        "--methods",
        action="store_true",
        help="list the methods with their options, those of installed packages too",
    )
    merged.set_defaults(resumes=_unfinished)
    short = merged.add_argument_group("without a recipe")
    short.add_argument(
        "--method", help="a name that --methods lists, or MODULE:FUNCTION with --code (default: the recipe's)"
    )
    short.add_argument(
        "--base", help="theta0, where displacements start: `base_model` of a recipe (default: none)"
    )
    short.add_argument(
        "--weight",
        action="append",
        type=float,
        metavar="W",
        help="of one model; as many as models, in their order (default: the method's)",
    )
    short.add_argument(
        "--set", action="append", metavar="OPTION=VALUE",
        help="an option of the method, its value as in a recipe: density=0.2, normalize=false (default: the method's)",
    )  # fmt: skip
    shared = merged.add_argument_group(
        "without a recipe, or with a file of mergekit's, which has no place for them"
    )
    shared.add_argument("--output", choices=("model", "vector", "adapter"), help="(default: model)")
    shared.add_argument(
        "--rank", type=int, help="the most that an adapter may have (default: the sum of its inputs')"
    )
    shared.add_argument(
        "--rounding", choices=("nearest", "stochastic"), help="to the output's dtype (default: nearest)"
    )
    shared.add_argument("--shard-size", metavar="SIZE", help="largest file of a model (default: 5GB)")
    return merged


def merge(options: argparse.Namespace) -> None:
    """Run the merges of a recipe or of the command line, or show what they would do."""
    if options.schema:
        from tauspan.merge.recipe.reading import json_schema

        sys.stdout.write(json.dumps(json_schema(), indent=1) + "\n")
        return
    if options.methods:
        _list_methods(options)
        return
    _require_workers(options)
    merges = [_short(options)] if options.method is not None else _read(options)
    for recipe, out in merges:
        if options.plan and _waits(recipe, [place for _, place in merges]):
            say(f"{out}: planned when the merges that it reads are there", options)
            continue
        recipe = _with_code(recipe, options)
        if options.seed is not None:
            recipe = dataclasses.replace(recipe, seed=options.seed)
        allow = dict.fromkeys((*recipe.allow, *options.allow))
        _merge_one(dataclasses.replace(recipe, allow=tuple(allow)), out, options)


def _waits(recipe: "MergeRecipe", others: list[str]) -> bool:
    """Whether a merge reads the result of another merge that has not run yet."""
    from tauspan.merge.recipe.recipe import named

    return any(one.partition("+")[0] in others and not Path(one).exists() for one in named(recipe))


def _merge_one(recipe: "MergeRecipe", out: str, options: argparse.Namespace) -> None:
    """Run one merge, or show what it would do."""
    from tauspan.core.notices import tell
    from tauspan.merge import merge_files
    from tauspan.merge.stream.planning import planned

    if options.plan:
        with planned(recipe, access=options.access, workers=options.workers) as plan:
            for note in plan.warnings:
                tell(note)
            show(plan.report(), options)
        return
    result = merge_files(
        recipe, out, resume=options.resume, overwrite=options.overwrite, workers=options.workers,
        access=options.access, )  # fmt: skip
    report = result.report()
    if result.finished:
        show(report if options.json else dataclasses.replace(report, tables=[]), options)
        say(f"{out} is finished already: nothing was left to do", options)
        return
    show(report, options)
    say(f"wrote {out}, digest {str(result.digest)[:12]}", options)


def _unfinished(options: argparse.Namespace) -> bool:
    """Whether an interrupted merge left files with which `--resume` can continue."""
    from tauspan.merge.stream.stream import work_folder

    given = [*(options.inputs if options.method is None else ()), options.out]
    out = next((one for one in reversed(given) if one is not None), None)
    return out is not None and work_folder(Path(out)).is_dir()


def _list_methods(options: argparse.Namespace) -> None:
    """Print the name, the title and the options of each merging method."""
    from tauspan.core.notices import tell
    from tauspan.core.report import Report, Table
    from tauspan.merge.engine.plugins import installed, origin
    from tauspan.merge.methods import METHODS

    rows = [_method_row(name, method) for name, method in METHODS.items()]
    for entry, method in installed():
        if isinstance(method, UsageError):
            tell(str(method))
        else:
            rows.append(_method_row(entry.name, method) | {"title": f"{method.title}; from {origin(entry)}"})
    show(Report("merging methods", [Table("methods", rows, "More of each: docs/methods.md.")]), options)


def _method_row(name: str, method: "Method") -> "dict[str, Cell]":
    options = ", ".join(option.name for option in method.options)
    return {"name": name, "title": method.title, "options": options}


def _read(options: argparse.Namespace) -> "list[tuple[MergeRecipe, str]]":
    """The recipes in a file, each with its output."""
    from tauspan.merge.recipe.reading import Series

    for name in ("base", "weight", "set"):
        if getattr(options, name) is not None:
            raise UsageError(f"--{name} belongs to --method; with a recipe, write it there.")
    recipe, *rest = options.inputs or [None]
    outs = [*rest, *([] if options.out is None else [options.out])]
    if recipe is None or len(outs) > 1 or not (outs or options.plan):
        raise UsageError(
            "merge needs a recipe and an output: tauspan merge RECIPE OUT; or tauspan merge --method METHOD MODEL ... "
            "-o OUT."
        )
    series, out = Series.read(recipe), outs[0] if outs else ""
    placed = series.placed(Path(out or "out"))
    if len(series.merges) == 1:
        return [(_given(one, options), out) for one in series.merges.values()]
    return [(_given(one, options) if place == Path(out) else one, str(place)) for place, one in placed]


def _given(recipe: "MergeRecipe", options: argparse.Namespace) -> "MergeRecipe":
    """The recipe with the options that a mergekit file cannot hold; for a recipe of tauspan's they are an error."""
    found = {name: getattr(options, name) for name in _SHARED if getattr(options, name) is not None}
    if found and not recipe.loose:
        name = next(iter(found)).replace("_", "-")
        raise UsageError(
            f"--{name} belongs to --method, or to a file of mergekit's; with a recipe, write it there."
        )
    return dataclasses.replace(recipe, **found)


def _short(options: argparse.Namespace) -> "tuple[MergeRecipe, str]":
    """The recipe and the output that the options of `--method` describe."""
    from tauspan.merge.recipe.parts import Input
    from tauspan.merge.recipe.recipe import MergeRecipe

    models, weights = options.inputs, options.weight
    if not models or (options.out is None and not options.plan):
        raise UsageError(
            "merge --method needs models and an output: tauspan merge --method METHOD MODEL ... -o OUT."
        )
    if weights is not None and len(weights) != len(models):
        raise UsageError(
            f"{len(weights)} --weight for {len(models)} models: give each its own, in their order."
        )
    own: list[dict[str, Any]] = [{}] * len(models) if weights is None else [{"weight": w} for w in weights]
    inputs = tuple(Input(model, given) for model, given in zip(models, own, strict=True))
    made = MergeRecipe(
        options.method, inputs, options.base, _settings(options.set or []),
        **{name: getattr(options, name) for name in _SHARED if getattr(options, name) is not None},
    )  # fmt: skip
    if made.own is None and ":" not in made.method:
        made.settings()  # raises for options that the method does not have, before any file is opened
    return made, options.out or ""


def _settings(given: list[str]) -> dict[str, Any]:
    """The options given with `--set`; values are parsed as in a recipe."""
    from tauspan.core.schema import value_of
    from tauspan.merge.recipe.parts import setting

    return {
        name: setting(value_of(value, f"--set {name}={value}"), f"--set {name}")
        for name, value in assigned(given, "OPTION=VALUE").items()
    }


def doctor(options: argparse.Namespace) -> None:
    """Report what models hold and whether they can be merged; raise `MismatchError` if they cannot."""
    from tauspan.merge.checks.checks import doctor as examine

    found = examine(options.models, options.base, values=options.values, allow=options.allow)
    say(found.verdict, options)
    report = found.report()
    *shown, _ = report.tables  # the problems' messages are whole sentences, and a table would cut them
    for problem in found.problems:
        say(f"{problem.severity}: {problem.message}", options)
    show(report if options.json else dataclasses.replace(report, tables=shown, verdict=""), options)
    if found.errors:
        raise MismatchError(found.verdict)


def reproduce_card(options: argparse.Namespace) -> None:
    """Make a merge again from its card."""
    _require_workers(options)
    from tauspan.merge.stream.reproduce import reproduce

    own = _imported(options.code) if options.code else None
    if options.out is not None and options.named_out is not None:
        raise UsageError(f"two outputs: {options.out} and -o {options.named_out}. Give one.")
    result = reproduce(
        options.card, options.out or options.named_out, own=own, workers=options.workers, access=options.access,
        )  # fmt: skip
    if options.json:
        show(result.report(), options)
    say(f"the same bits: digest {str(result.digest)[:12]}", options)


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
    from tauspan.merge.engine.own import imported

    return imported(name, Path.cwd())
