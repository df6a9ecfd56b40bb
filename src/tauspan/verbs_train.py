"""The verbs that train, one vector or a recipe's: their options and what each does; the library is imported in them."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tauspan.commands import Verb, add_device, encoder_of, first, say, show, task_of
from tauspan.errors import UsageError

if TYPE_CHECKING:
    from tauspan.tasks import Task
    from tauspan.train import Finetuned


def add(verbs: Any, verb: Verb) -> None:
    """Add the verbs to a parser; `verb(into, name, does, function)` makes one."""
    shown = verb(
        verbs,
        "demo",
        "fine-tune, add and negate four text tasks in a packaged encoder (minutes)",
        demo,
    )
    shown.add_argument("--out", default="out/demo", help="output folder (default %(default)s)")

    recipe = verb(verbs, "run", "carry out a recipe", run)
    recipe.add_argument("recipe", help="a YAML file; see recipes/")
    recipe.add_argument("--out", help="output folder (default out/RECIPE-NAME)")
    recipe.add_argument(
        "--workers",
        type=int,
        default=1,
        help="processes that fine-tune and measure at the same time (default 1)",
    )

    tune = verb(verbs, "finetune", "fine-tune on one task and write the task vector", finetune)
    tune.add_argument("model", help="minilm, a directory or a hub id")
    tune.add_argument("task", help="a shipped task, or a directory with card.json")
    tune.add_argument("out", help="folder for the vector, the log and checkpoints")
    tune.add_argument(
        "--regime",
        choices=("standard", "linear"),
        default="linear",
        help="linear: a vector of the tangent model, where tasks disturb each other less; `apply` makes a model of it "
        "that tauspan loads. standard: ordinary fine-tuning; `apply` makes a model that transformers loads too "
        "(default %(default)s)",
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
    tune.add_argument(
        "--cache",
        choices=("none", "auto", "features", "primal", "factors"),
        default="none",
        help="what the tangent model keeps across epochs (default %(default)s)",
    )
    tune.add_argument("--precision", choices=("float32", "tf32", "bfloat16"), default="float32")
    tune.add_argument(
        "--augment", choices=("none", "crop"), default="none", help="train on random parts of images"
    )

    fitted = verb(
        verbs,
        "fit",
        "fit a task vector in the tangent space by a convex solver, to a gradient norm",
        fit,
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
    for made in (tune, fitted):
        made.add_argument(
            "--label", help="the vector's short name for tables and errors (default: the task's)"
        )
    for made in (shown, recipe, tune, fitted):
        add_device(made)


def demo(options: argparse.Namespace) -> None:
    """The packaged recipe."""
    _recipe(Path(__file__).parent / "demo.yaml", Path(options.out), options)
    out = options.out
    say(
        f"Wrote {out}/report.json, report.md, addition.png, alpha-*.png, xi-*.png, and the vectors under {out}/vectors.\n"
        f"Next: tauspan vector inspect {out}/vectors/linear-*-seed0\n"
        "      tauspan run recipes/text7.yaml", options,
    )  # fmt: skip


def run(options: argparse.Namespace) -> None:
    """A recipe of the user's."""
    recipe = Path(options.recipe)
    out = Path(options.out) if options.out else Path("out") / recipe.stem
    _recipe(recipe, out, options, options.workers)
    say(f"Wrote {out}/report.json, {out}/report.md and the figures beside them.", options)


def _recipe(file: Path, out: Path, options: argparse.Namespace, workers: int = 1) -> None:
    import dataclasses

    from tauspan.recipe import Recipe
    from tauspan.run import run as carry_out

    recipe = Recipe.read(file)
    if options.seed is not None:
        recipe = dataclasses.replace(recipe, seeds=(options.seed,))
    show(
        carry_out(recipe, out, workers=workers, device=options.device, show_progress=not options.quiet),
        options,
    )


def finetune(options: argparse.Namespace) -> None:
    """Train one vector."""
    from tauspan.train import Settings, train

    settings = Settings(
        regime=options.regime, seed=options.seed or 0, params=options.params, point=options.point,
        epochs=options.epochs, max_steps=options.max_steps, batch_size=options.batch_size,
        accumulation=options.accumulation, lr=options.lr, warmup=options.warmup, weight_decay=options.weight_decay,
        decay_toward=options.decay_toward, clip=options.clip, label_smoothing=options.label_smoothing,
        max_tokens=options.max_tokens, cache=options.cache, precision=options.precision,
        augment=options.augment,
    )  # fmt: skip
    if options.shard and options.device:
        raise UsageError(
            f"--shard with --device {options.device}: the shards of each process lie on its own GPU, or on the CPU where "
            "there is none. Leave --device out."
        )
    task = _training(options)
    done = train(
        encoder_of(options),
        task,
        settings,
        Path(options.out),
        options.checkpoint_every,
        options.resume,
        not options.quiet,
        shard=options.shard,
    )
    if options.label is not None and first():
        named = done.task_vector.named(options.label)
        named.save_pretrained(Path(options.out) / "vector.safetensors", overwrite=True)
    _trained(done, Path(options.out) / "vector.safetensors", options)
    _lead(done, Path(options.out) / "vector.safetensors", options)


def _lead(done: "Finetuned", file: Path, options: argparse.Namespace) -> None:
    """Say what the vector is for."""
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
        max_steps=options.max_steps, params=options.params, batch_size=options.batch_size,
        max_tokens=options.max_tokens, cache=options.cache, show_progress=not options.quiet,
    )  # fmt: skip
    vector = done.task_vector if options.label is None else done.task_vector.named(options.label)
    vector.save_pretrained(file)
    _trained(done, file, options, **done.task_vector.info["solver"])
    _lead(done, file, options)


def _training(options: argparse.Namespace) -> "Task":
    """The task, with as many training rows as were asked for."""
    task = task_of(options.task)
    return task if options.rows is None else task.subset(train=options.rows, seed=options.seed or 0)


def _trained(done: "Finetuned", file: Path, options: argparse.Namespace, **more: Any) -> None:
    """Say what a finished run made."""
    checked = [entry for entry in done.history if entry["split"] == "validation"]
    last = checked[-1] if checked else {}
    facts = {"vector": str(file), "reused": done.reused, **last, **more,
             "seconds": done.cost.seconds, "peak_mb": done.cost.peak_mb}  # fmt: skip
    if options.json:
        sys.stdout.write(json.dumps(facts) + "\n")
    ended = f", gradient norm {more['gradient_norm']:.1e} after {more['steps']} steps" if more else ""
    say(
        f"{done.task_vector}\n{file}: validation accuracy {last.get('accuracy', float('nan')):.3f}{ended}, "
        f"{done.cost.seconds:.1f} s, peak {done.cost.peak_mb:.0f} MB{', reused' if done.reused else ''}",
        options,
    )
