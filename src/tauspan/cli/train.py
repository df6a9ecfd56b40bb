"""The verbs that train one vector, or all vectors of a recipe: their options, and what each does.

The library is imported only when a verb runs.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tauspan.cli import shared as commands
from tauspan.cli.fields import add_fields, read_fields
from tauspan.cli.shared import (
    Verb,
    add_device,
    add_language,
    assigned,
    drift_table,
    encoder_of,
    first,
    say,
    show,
    task_of,
)
from tauspan.core.errors import UsageError
from tauspan.core.reading import Reading
from tauspan.experiments.shipped import recipe_file, shipped
from tauspan.train.settings import Settings

CACHES = ("none", "auto", "features", "primal", "factors")

if TYPE_CHECKING:
    from tauspan.drift import Penalty
    from tauspan.models import Encoder
    from tauspan.tasks import Task
    from tauspan.train import Finetuned


def add(verbs: Any, verb: Verb) -> None:
    """Add the verbs to a parser; `verb(into, name, does, function)` makes the parser of each verb."""
    shown = verb(
        verbs,
        "demo",
        "fine-tune, add and negate four text tasks in a packaged encoder (minutes)",
        demo,
    )
    shown.add_argument("--out", default="out/demo", help="output folder")
    recipe = verb(verbs, "run", "carry out a recipe", run)
    recipe.add_argument(
        "recipe", nargs="?", help=f"a YAML file, or one that comes with the package: {', '.join(shipped())}"
    )
    recipe.add_argument("--out", help="output folder (default: out/RECIPE-NAME)")
    recipe.add_argument(
        "--workers", type=int, default=1, metavar="N",
        help="processes that fine-tune and measure at the same time",
    )  # fmt: skip
    recipe.add_argument(
        "--set", action="append", metavar="KEY=VALUE",
        help="another value for a key of the recipe, as in the file: finetune.epochs=2, rows.train=64, "
        "regimes=[linear]; repeatable (default: the recipe's)",
    )  # fmt: skip
    recipe.add_argument(
        "--plan",
        action="store_true",
        help="say what is done, what is left and how long its fine-tunings take; write nothing",
    )
    recipe.add_argument("--schema", action="store_true", help="print the JSON schema of recipes, for editors")
    tune = verb(verbs, "finetune", "fine-tune on one task and write the task vector", finetune)
    _add_finetune(tune)
    fitted = verb(
        verbs,
        "fit",
        "fit a task vector in the tangent space by a convex solver, to a gradient norm",
        fit,
    )
    _add_fit(fitted)
    shown.set_defaults(resumes=True, plan=False, set=None)
    recipe.set_defaults(resumes=lambda options: not options.plan)
    fitted.add_argument("--params", default="all", help=commands.PARAMS)
    add_fields(fitted, Reading, skip=("point",), defaults={"batch_size": 32})
    for made in (tune, fitted):
        made.add_argument(
            "--label", help="the vector's short name for tables and errors (default: the task's)"
        )
        add_language(made)
    for made in (shown, recipe, tune, fitted):
        add_device(made)


def _add_finetune(tune: argparse.ArgumentParser) -> None:
    tune.set_defaults(resumes=_begun)
    tune.add_argument("model", help=commands.MODEL)
    tune.add_argument("task", help=commands.TASK)
    tune.add_argument("out", nargs="?", help="folder for the vector, the log and checkpoints")
    add_fields(tune, Settings, skip=("seed", "engine", "check"))
    tune.add_argument(
        "--rows", type=int, metavar="N", help="train on at most so many rows (default: all of them)"
    )
    tune.add_argument(
        "--others", nargs="+", default=[], metavar="TASK",
        help="tasks whose rows the vector is to leave where they are; their labels are not read; with --factors, the "
        "tasks that these are of, whose rows then only measure how good the factors were (default: none)",
    )  # fmt: skip
    tune.add_argument(
        "--factors", nargs="+", default=[], metavar="FILE",
        help="drift factors of such tasks, from `tauspan factors make`, in place of their rows (default: none)",
    )  # fmt: skip
    tune.add_argument(
        "--weight",
        type=float,
        default=1.0,
        help="with --others or --factors: what their drift counts (default: 1)",
    )
    tune.add_argument(
        "--sparse", metavar="FILE:SHARE",
        help="train only that share of the entries that diagonal factors of the task say move outputs least, as "
        "TaLoS does (default: all entries)",
    )  # fmt: skip
    tune.add_argument(
        "--checkpoint-every", type=int, default=50, metavar="STEPS", help="steps between two checkpoints"
    )
    tune.add_argument(
        "--resume", action="store_true", help="continue from the checkpoint, or reuse the vector"
    )
    tune.add_argument(
        "--shard", action="store_true",
        help="under torchrun: every process keeps its part of each tensor, on its own GPU if there are any",
    )  # fmt: skip
    tune.add_argument(
        "--plan",
        action="store_true",
        help="say what it will take, whether that fits, and how long it lasts, from a few steps; write nothing",
    )
    tune.add_argument(
        "--memory", type=float, metavar="GB",
        help="with --plan: what a process may take (default: what its device has)",
    )  # fmt: skip


def _add_fit(fitted: argparse.ArgumentParser) -> None:
    fitted.add_argument("model", help=commands.MODEL)
    fitted.add_argument("task", help=commands.TASK)
    fitted.add_argument("out", help="the vector's file or folder")
    fitted.add_argument(
        "--solver", choices=("lbfgs", "newton-cg"), default="lbfgs",
        help="by gradients, or by exact products with the Hessian",
    )  # fmt: skip
    fitted.add_argument("--ridge", type=float, default=1e-3, help="pull to the base, above 0")
    fitted.add_argument("--tolerance", type=float, default=1e-4, help="the gradient norm to reach")
    fitted.add_argument(
        "--max-steps", type=int, default=200, metavar="N", help="end after so many iterations all the same"
    )
    fitted.add_argument(
        "--rows", type=int, metavar="N", help="fit at most so many rows (default: all of them)"
    )
    fitted.add_argument(
        "--cache", choices=CACHES, default="auto", help="what is kept of each batch across iterations"
    )


def _begun(options: argparse.Namespace) -> bool:
    """Whether an interrupted fine-tuning left a checkpoint, or a finished vector."""
    return not options.plan and options.out is not None and any(Path(options.out).glob("*.safetensors"))


def demo(options: argparse.Namespace) -> None:
    """Run the recipe `demo` that comes with the package."""
    _recipe(shipped()["demo"], Path(options.out), options)
    out = options.out
    say(
        f"Wrote {out}/report.json, report.md, addition.png, alpha-*.png, xi-*.png, and the vectors under {out}/vectors.\n"
        f"Open {out}/desk.html in a browser: a slider for each vector, and every accuracy follows.\n"
        f"Next: tauspan vector inspect {out}/vectors/linear-*-seed0\n"
        "      tauspan reproduce text7", options,
    )  # fmt: skip


def run(options: argparse.Namespace) -> None:
    """Run a recipe of the user's or one that comes with the package, or show its plan."""
    if options.schema:
        from tauspan.experiments.run.recipe import json_schema

        sys.stdout.write(json.dumps(json_schema(), indent=1) + "\n")
        return
    if options.recipe is None:
        raise UsageError(
            f"run needs a recipe: a YAML file, or one that comes with the package: {', '.join(shipped())}."
        )
    recipe = recipe_file(options.recipe)
    out = Path(options.out) if options.out else Path("out") / recipe.stem
    _recipe(recipe, out, options, options.workers)
    if options.plan:
        return
    say(f"Wrote {out}/report.json, {out}/report.md and the figures beside them.", options)


def _recipe(file: Path, out: Path, options: argparse.Namespace, workers: int = 1) -> None:
    import dataclasses

    from tauspan.core.schema import Document
    from tauspan.experiments.run import plan
    from tauspan.experiments.run import run as carry_out
    from tauspan.experiments.run.recipe import Recipe

    given = assigned(options.set, "KEY=VALUE")
    if options.seed is not None and "seeds" in given:
        raise UsageError(f"--seed {options.seed} and --set seeds={given['seeds']}: give one of them.")
    document = Document.read(file)
    for key, value in given.items():
        document = document.with_value(key, value, f"--set {key}={value}")
    recipe = Recipe.of(document)
    if options.seed is not None:
        recipe = dataclasses.replace(recipe, seeds=(options.seed,))
    if options.plan:
        show(plan(recipe, out, device=options.device, timed=True), options)
        return
    show(carry_out(recipe, out, workers=workers, device=options.device), options)


def finetune(options: argparse.Namespace) -> None:
    """Fine-tune one vector on a task."""
    from tauspan.train import finetune as run

    if options.regime == "standard" and options.point:
        raise UsageError(
            f"--point {options.point} says where the tangent model is linearised, and --regime standard has none. Leave "
            "one of them out."
        )
    settings = read_fields(options, Settings, seed=options.seed or 0, engine=None, check=None)
    if options.shard and options.device:
        raise UsageError(
            f"--shard with --device {options.device}: the shards of each process lie on its own GPU, or on the CPU where "
            "there is none. Leave --device out."
        )
    if options.out is None and not options.plan:
        raise UsageError("finetune needs OUT, a folder for the vector: `tauspan finetune MODEL TASK OUT`.")
    if options.memory is not None and not options.plan:
        raise UsageError(f"--memory {options.memory:g} is for --plan: give both, or neither.")
    if options.plan and (options.others or options.factors or options.sparse):
        raise UsageError(
            "--plan knows neither penalties nor sparse training: leave --others, --factors and --sparse out. A penalty "
            "adds a pass over its rows."
        )
    task = _training(options)
    if options.plan:
        _plan(task, settings, options)
        return
    done = run(
        _encoder(options),
        task,
        settings,
        out=Path(options.out),
        checkpoint_every=options.checkpoint_every,
        resume=options.resume,
        shard=options.shard,
        penalty=_penalty(options),
    )
    if options.label is not None and first():
        named = done.task_vector.named(options.label)
        named.save_pretrained(Path(options.out) / "vector.safetensors", overwrite=True)
    _trained(done, Path(options.out) / "vector.safetensors", options)
    _lead(done, Path(options.out) / "vector.safetensors", options)


def _encoder(options: argparse.Namespace) -> "Encoder":
    """The model, in its least sensitive entries alone if that was asked for."""
    encoder = encoder_of(options)
    if options.sparse is None:
        return encoder
    from tauspan.drift import Factors, least_sensitive
    from tauspan.models import restrict

    file, _, share = options.sparse.rpartition(":")
    try:
        part = float(share)
    except ValueError:
        raise UsageError(
            f"--sparse {options.sparse!r}: a file of diagonal factors and a share, such as task.safetensors:0.1"
        ) from None
    return restrict(encoder, least_sensitive(encoder, Factors.load(file), part))


def _penalty(options: argparse.Namespace) -> "Penalty | None":
    """The penalty on drift that was asked for."""
    from tauspan.drift import Exact, Factored, Factors

    others = [task_of(name) for name in options.others]
    if options.factors:
        loaded = [Factors.load(path) for path in options.factors]
        return Factored(loaded, options.weight, others)
    return Exact(others, options.weight) if others else None


def _plan(task: "Task", settings: Settings, options: argparse.Namespace) -> None:
    from tauspan.train import plan

    memory = None if options.memory is None else round(options.memory * 10**9)
    found = plan(
        encoder_of(options), task, settings, shard=options.shard, memory=memory, timed=memory is None
    )
    if first():
        show(found.report(), options)


def _lead(done: "Finetuned", file: Path, options: argparse.Namespace) -> None:
    """Print the command that applies the vector, and what that command writes."""
    out = f"tauspan apply {options.model} {file} OUT --task {options.task}"
    if done.task_vector.regime == "standard":
        say(f"Next: {out}\n      writes a model that transformers loads.", options)
    else:
        say(
            f"Next: {out}\n      writes a tangent model, which tauspan evaluates, predicts with and loads. For a model "
            "that transformers loads, fine-tune with --regime standard,\n      or add --regime standard --allow regime, "
            "which is another function than the one that was trained: evaluate it.", options,
        )  # fmt: skip


def fit(options: argparse.Namespace) -> None:
    """Fit one vector by a convex solver."""
    from tauspan import store, train
    from tauspan.vector import vector_file

    file = vector_file(options.out)
    store.require_free(file, False)
    done = train.fit(
        encoder_of(options), _training(options), options.solver, ridge=options.ridge, tolerance=options.tolerance,
        max_steps=options.max_steps, params=options.params,
        reading=Reading(options.batch_size, options.max_tokens),
        cache=options.cache, )  # fmt: skip
    vector = done.task_vector if options.label is None else done.task_vector.named(options.label)
    vector.save_pretrained(file)
    _trained(done, file, options, **done.task_vector.info["solver"])
    _lead(done, file, options)


def _training(options: argparse.Namespace) -> "Task":
    """The task, with as many training rows as were asked for."""
    task = task_of(options.task)
    rows, seed = options.rows, options.seed or 0
    return task if rows is None else commands.fewer(task.subset(train=rows, seed=seed), task)


def _trained(done: "Finetuned", file: Path, options: argparse.Namespace, **more: Any) -> None:
    """Print what a finished run made: the file, its metric on validation and its cost, and drift if it was measured."""
    from tauspan.core.report import Report
    from tauspan.train.finetuning import validated

    checked = [entry for entry in done.history if entry["split"] == "validation"]
    last = checked[-1] if checked else {}
    facts = {"vector": str(file), "reused": done.reused, **last, **more,
             "seconds": done.cost.seconds, "peak_mb": done.cost.peak_mb}  # fmt: skip
    penalty = done.task_vector.info.get("penalty", {})
    facts |= {key: penalty[key] for key in ("drift", "tangent", "ratio") if key in penalty}
    if options.json:
        sys.stdout.write(json.dumps(facts) + "\n")
    ended = f", gradient norm {more['gradient_norm']:.1e} after {more['steps']} steps" if more else ""
    say(
        f"{done.task_vector}\n{file}: {f'validation {validated(checked[-1])}' if checked else 'no validation'}{ended}, "
        f"{done.cost.seconds:.1f} s, peak {done.cost.peak_mb:.0f} MB{', reused' if done.reused else ''}",
        options,
    )
    moved = drift_table([(done.task_vector.label, done.task_vector)])
    if moved is not None and not options.json:
        show(Report("", [moved], {}), options)
