"""What each verb of the program does; each imports what it needs when it runs."""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tauspan.errors import DataError, UsageError

if TYPE_CHECKING:
    from tauspan.models import Encoder
    from tauspan.report import Report
    from tauspan.tasks import Task
    from tauspan.train import Finetuned
    from tauspan.vector import TaskVector


def first() -> bool:
    """Whether this process speaks and writes: the only one, or the first of several under a launcher."""
    return os.environ.get("WORLD_SIZE", "1") == "1" or os.environ.get("RANK", "0") == "0"


def show(report: "Report", options: argparse.Namespace) -> None:
    """Print a report as the options ask: tables, JSON, or nothing."""
    if options.json:
        sys.stdout.write(report.to_json())
    elif not options.quiet:
        from rich.console import Console

        Console().print(report.renderable())


def say(text: str, options: argparse.Namespace) -> None:
    """A line for people on stdout, unless they asked for silence or for JSON."""
    if not options.quiet and not options.json:
        sys.stdout.write(text + "\n")


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
    show(carry_out(recipe, out, workers=workers, show_progress=not options.quiet), options)


def finetune(options: argparse.Namespace) -> None:
    """Train one vector."""
    from tauspan.train import Settings, train

    settings = Settings(
        regime=options.regime, seed=options.seed or 0, params=options.params, point=options.point,
        epochs=options.epochs, max_steps=options.max_steps, batch_size=options.batch_size,
        accumulation=options.accumulation, lr=options.lr, warmup=options.warmup, weight_decay=options.weight_decay,
        decay_toward=options.decay_toward, clip=options.clip, label_smoothing=options.label_smoothing,
        max_tokens=options.max_tokens, cache=options.cache, precision=options.precision,
    )  # fmt: skip
    task = _training(options)
    encoder = encoder_of(options.model)
    if options.device and not options.shard:
        from tauspan.processes import own_device

        try:
            encoder.to(own_device(options.device))
        except (RuntimeError, AssertionError) as error:  # torch raises both for a device that is not there
            raise UsageError(f"--device {options.device!r} cannot be used: {error}") from error
    done = train(
        encoder,
        task,
        settings,
        Path(options.out),
        options.checkpoint_every,
        options.resume,
        not options.quiet,
        shard=options.shard,
    )
    _trained(done, Path(options.out) / "vector.safetensors", options)


def fit(options: argparse.Namespace) -> None:
    """Fit one vector by a convex solver."""
    from tauspan import store, train
    from tauspan.vector import vector_file

    file = vector_file(options.out)
    store.require_free(file, False)
    done = train.fit(
        encoder_of(options.model), _training(options), options.solver, ridge=options.ridge, tolerance=options.tolerance,
        max_steps=options.max_steps, params=options.params, batch_size=options.batch_size,
        max_tokens=options.max_tokens, cache=options.cache, show_progress=not options.quiet,
    )  # fmt: skip
    done.task_vector.save_pretrained(file)
    _trained(done, file, options, **done.task_vector.info["solver"])


def _training(options: argparse.Namespace) -> "Task":
    """The task, with as many training rows as were asked for."""
    task = _task(options.task)
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


def encoder_of(source: str) -> "Encoder":
    """A pre-trained encoder by its source; raises `UsageError` for an edited tangent model."""
    from tauspan.edit import load
    from tauspan.models import Encoder

    model = load(source)
    if not isinstance(model, Encoder):
        raise UsageError(f"{source!r} is an edited tangent model; this verb starts from a pre-trained one.")
    return model


def _task(name: str) -> "Task":
    from tauspan.suite import find_task

    return find_task(name)


def _vectors(paths: list[str]) -> "list[TaskVector]":
    from tauspan.vector import TaskVector

    return [TaskVector.from_pretrained(path) for path in paths]


def _write(vector: "TaskVector", options: argparse.Namespace) -> None:
    file = vector.save_pretrained(options.out, overwrite=options.overwrite)
    if options.json:
        sys.stdout.write(json.dumps({"vector": str(file), "norm": vector.norm(), "base": vector.base}) + "\n")
    say(f"{vector}\nwrote {file}", options)


def vector_diff(options: argparse.Namespace) -> None:
    """The difference of two models."""
    from tauspan.vector import TaskVector

    _write(TaskVector.from_checkpoints(options.base, options.tuned, label=Path(options.tuned).name), options)


def vector_from_adapter(options: argparse.Namespace) -> None:
    """The displacement of a LoRA adapter."""
    from tauspan.merge.adapter_vector import adapter_vector
    from tauspan.store import Checkpoint

    tensors = options.base.endswith(".safetensors")
    base = Checkpoint(options.base).read() if tensors else options.base
    _write(adapter_vector(options.adapter, base, leave_out=options.leave_out or ()), options)


def vector_inspect(options: argparse.Namespace) -> None:
    """Provenance, tensors, cosines."""
    from tauspan.report import Report, Table, provenance
    from tauspan.vector import cosine_matrix

    vectors = _vectors(options.vectors)
    rows: list[dict[str, Any]] = []
    for path, vector in zip(options.vectors, vectors, strict=True):
        rows.append({"vector": path, "label": vector.label, "regime": vector.regime, "base": vector.base[:12],
                     "tensors": len(vector.deltas), "norm": vector.norm(),
                     "made from": vector.info.get("base_id", "")})  # fmt: skip
    tables = [Table("Task vectors", rows)]
    if options.tensors:
        tables += [vector.table() for vector in vectors]
    if len(vectors) > 1:
        matrix = cosine_matrix(vectors).tolist()
        tables.append(Table("Cosines", [
            {"": vector.label, **{other.label: float(c) for other, c in zip(vectors, line, strict=True)}}
            for vector, line in zip(vectors, matrix, strict=True)
        ]))  # fmt: skip
    show(
        Report("Task vectors", tables, provenance(), result={"info": [dict(v.info) for v in vectors]}),
        options,
    )


def vector_verify(options: argparse.Namespace) -> None:
    """Whole, finite, and of that base."""
    from tauspan.models import fingerprint_of

    vector = _vectors([options.vector])[0]
    if options.model:
        vector.require_base(fingerprint_of(encoder_of(options.model)))
    if options.json:
        sys.stdout.write(json.dumps({"ok": True, "base": vector.base, "checked_model": options.model}) + "\n")
    base = f"and starts from {options.model}" if options.model else f"(base {vector.base[:12]}, not checked)"
    say(f"{options.vector} is whole and finite {base}", options)


def vector_add(options: argparse.Namespace) -> None:
    """The sum."""
    first, *rest = _vectors(options.vectors)
    _write(sum(rest, first), options)


def vector_scale(options: argparse.Namespace) -> None:
    """A multiple."""
    _write(options.factor * _vectors([options.vector])[0], options)


def vector_negate(options: argparse.Namespace) -> None:
    """The opposite."""
    _write(-_vectors([options.vector])[0], options)


def vector_analogy(options: argparse.Namespace) -> None:
    """The analogy c + (b - a)."""
    a, b, c = _vectors([options.a, options.b, options.c])
    _write(c + (b - a), options)


def apply(options: argparse.Namespace) -> None:
    """Write an edited model."""
    from tauspan.edit import apply as edit
    from tauspan.edit import save
    from tauspan.store import require_free

    require_free(Path(options.out), options.overwrite)
    edited = edit(
        encoder_of(options.model), _vectors([options.vector])[0], options.scale, regime=options.regime
    )
    save(edited, options.out, overwrite=options.overwrite)
    if options.json:
        sys.stdout.write(json.dumps({"model": options.out, "scale": options.scale}) + "\n")
    say(f"wrote {options.out}", options)


def evaluate(options: argparse.Namespace) -> None:
    """Accuracy on tasks."""
    from tauspan.edit import load
    from tauspan.evaluate import evaluate as measure

    vector = _vectors([options.vector])[0] if options.vector else None
    tasks = [_limited(_task(name), options.rows) for name in options.tasks]
    show(measure(
        load(options.model), tasks, vector, options.scale, options.regime, options.split, point=options.point,
        batch_size=options.batch_size, max_tokens=options.max_tokens, show_progress=not options.quiet,
    ), options)  # fmt: skip


def _limited(task: "Task", rows: int | None) -> "Task":
    return task if rows is None else task.subset(train=rows, validation=rows, test=rows)


def _pair(text: str, rows: int | None) -> "tuple[Task, TaskVector]":
    name, equals, path = text.partition("=")
    if not equals:
        raise UsageError(f"{text!r} must be TASK=VECTOR, for example email_spam=out/spam/vector.safetensors.")
    return _limited(_task(name), rows), _vectors([path])[0]


def _grid(text: str) -> Any:
    if text in ("paper", "auto"):
        return text
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(
            f"--grid {text!r} is neither paper, auto nor a list of numbers such as 0,0.5,1."
        ) from None


def _passes(options: argparse.Namespace) -> dict[str, Any]:
    return {"point": options.point, "batch_size": options.batch_size, "max_tokens": options.max_tokens,
            "show_progress": not options.quiet}  # fmt: skip


def _search(options: argparse.Namespace) -> dict[str, Any]:
    return {"grid": _grid(options.grid), **_passes(options)}


def _solver(options: argparse.Namespace) -> dict[str, Any]:
    most = {} if options.max_evaluations is None else {"max_evaluations": options.max_evaluations}
    return {"per": options.per, "ridge": options.ridge, "bootstrap": options.bootstrap, "seed": options.seed or 0,
            **most, **_passes(options)}  # fmt: skip


def pairs_of(texts: list[str], rows: int | None) -> "dict[Task, TaskVector]":
    """Tasks with their vectors from TASK=VECTOR, with at most so many rows of each split."""
    pairs = dict(_pair(text, rows) for text in texts)
    if len({task.name for task in pairs}) < len(pairs):
        raise DataError("a task stands twice among the pairs; give each task one vector.")
    return pairs


def edit_add(options: argparse.Namespace) -> None:
    """Addition with one coefficient."""
    from tauspan.search import add

    pairs = pairs_of(options.pairs, options.rows)
    write_report(add(encoder_of(options.model), pairs, options.regime, **_search(options)), options)


def _target(options: argparse.Namespace) -> "tuple[Task, TaskVector, list[Task]]":
    """The task to forget, its vector, and the controls."""
    task, vector = _pair(options.pair, options.rows)
    controls = [_limited(_task(name), options.rows) for name in options.controls]
    if task.name in {control.name for control in controls}:
        raise UsageError(f"{task.name!r} is the target and cannot be its own control.")
    return task, vector, controls


def edit_negate(options: argparse.Namespace) -> None:
    """Negation under a control floor."""
    from tauspan.search import negate

    task, vector, controls = _target(options)
    found = negate(
        encoder_of(options.model), task, vector, controls, options.floor, options.regime, **_search(options)
    )
    write_report(found, options)


def edit_solve(options: argparse.Namespace) -> None:
    """Coefficients of least loss."""
    from tauspan.search import coefficients

    _require_free(options)
    pairs, bounds = (
        pairs_of(options.pairs, options.rows),
        None if options.unbounded else tuple(options.bounds),
    )
    found = coefficients(
        encoder_of(options.model), pairs, options.regime, bounds=bounds, l1=options.l1, **_solver(options)
    )
    _combined(found, pairs, options)


def edit_front(options: argparse.Namespace) -> None:
    """Forgetting against keeping."""
    from tauspan.search import front

    _require_free(options)
    task, vector, controls = _target(options)
    found = front(
        encoder_of(options.model), task, vector, controls, options.floor, options.regime,
        bounds=tuple(options.bounds), prices=options.prices, **_solver(options),
    )  # fmt: skip
    _combined(found, {task: vector}, options)


def _require_free(options: argparse.Namespace) -> None:
    """Refuse a vector file that is already there before any work."""
    if options.vector:
        from tauspan.store import require_free
        from tauspan.vector import vector_file

        require_free(vector_file(options.vector), False)


def _combined(report: "Report", vectors: "dict[Task, TaskVector]", options: argparse.Namespace) -> None:
    """Write the vector at the chosen coefficients, if one is wanted, and the report."""
    if options.vector and first():
        from tauspan.search import combine

        combine(vectors, report.result["coefficients"], report.result["groups"]).save_pretrained(
            options.vector
        )
    write_report(report, options)


def disentangle(options: argparse.Namespace) -> None:
    """Maps of the disentanglement error."""
    from tauspan.disentangle import GRID, disentanglement

    grid = GRID if options.grid is None else _grid(options.grid)
    found = disentanglement(
        encoder_of(options.model), pairs_of(options.pairs, options.rows), options.regime, grid=grid,
        box=tuple(options.box), distance=options.distance, split=options.split, **_passes(options),
    )  # fmt: skip
    write_report(found, options)


def write_report(report: "Report", options: argparse.Namespace) -> None:
    """Show a report, and with --out write it with its figures."""
    if options.out and first():
        from tauspan import store
        from tauspan.figures import draw

        folder = Path(options.out)
        store.write_text(folder / "report.json", report.to_json())
        store.write_text(folder / "report.md", report.to_markdown())
        draw(report, folder)
    show(report, options)
