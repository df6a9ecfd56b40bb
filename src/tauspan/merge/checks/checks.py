"""Whether models can be merged: everything that does not fit, found before any byte is moved."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from tauspan.core.arguments import checked
from tauspan.core.errors import TauspanError
from tauspan.core.report import Cell, Report, Table, provenance
from tauspan.merge.checks.contents import compared
from tauspan.merge.checks.origins import (
    architecture,
    displacements,
    fingerprints,
    functions,
    made_for,
    spaces,
    strangers,
    tied,
    vectors,
)
from tauspan.merge.sources.opening import open_source
from tauspan.merge.sources.problems import LENIENT, Problem, lenient
from tauspan.merge.sources.respelt import respelt
from tauspan.merge.sources.source import EMBEDDINGS, Source, spelled_before
from tauspan.merge.sources.vocabulary import Aligned, tokenizers

_BLOCK = 1 << 20  # entries looked at together


@checked
def check(
    base: Source | None,
    models: Sequence[Source],
    *,
    allow: Sequence[str] = (),
    fingerprint: bool = False,
) -> tuple[Problem, ...]:
    """Everything that keeps the models from being merged, errors first.

    Names, shapes, dtypes and ties are compared by headers, with the base or else with the first model; integer
    buffers up to 65,536 entries and some entries of the largest tensors by value; configurations and tokenizers where
    they lie beside the weights.

    Args:
        base: theta0; None where weights are merged without one.
        models: weights or displacements.
        allow: kinds of errors that shall be warnings; see `problems.LENIENT`.
        fingerprint: also compute the base's fingerprint and compare it with the vectors' (reads all of the base).

    Returns:
        No problem, or some; `problems.require_none` raises them.

    Cost: no values beside small buffers and 2^14 entries of each model; with `fingerprint` one SHA-256 pass over the
    base, about 4 s a GB.

    Example:
        >>> import tempfile
        >>> from tauspan.store import write_tensors
        >>> folder = Path(tempfile.mkdtemp())
        >>> write_tensors(folder / "a.safetensors", {"w": torch.ones(2)})
        >>> write_tensors(folder / "b.safetensors", {"w": torch.ones(3)})
        >>> a, b = (open_source(folder / name) for name in ("a.safetensors", "b.safetensors"))
        >>> [problem.kind for problem in check(a, [b])]
        ['shape']
    """
    problems: list[Problem] = []
    rest = list(models)
    reference = base if base is not None else rest.pop(0)
    problems += spaces(base, models)
    for model in rest:
        problems += compared(reference, model)
        if model.kind == "point":
            problems += architecture(reference, model)
            problems += functions(reference, model)
            if not isinstance(model, Aligned):  # its rows were brought into one order
                problems += tokenizers(reference, model)
    problems += vectors([model for model in models if model.kind == "delta"])
    problems += made_for(base, models)
    problems += tied(models)
    if base is not None and not any(problem.severity == "error" for problem in lenient(problems, allow)):
        problems += strangers(base, models)
    if fingerprint and base is not None:
        problems += fingerprints(base, models)
    return lenient(problems, allow)


@checked
def doctor(
    paths: Sequence[str | Path],
    base: str | Path | None = None,
    *,
    values: bool = False,
    allow: Sequence[str] = (),
) -> Report:
    """What the models hold and whether they can be merged, as tables; nothing is raised for what they hold.

    Args:
        paths: as for `open_source`.
        base: the pre-trained model.
        values: also look for NaN and infinity, compare fingerprints, and measure how far models are from the base
            (reads everything, twice).
        allow: kinds of errors that shall be warnings; see `problems.LENIENT`.

    Returns:
        Tables `models` and `problems`, with `values` and a base `displacements` too; `result` has the `verdict` in
        one line, and counts `errors` and `warnings`.

    Cost: opening and `check`; with `values` two reads of all files.
    """
    lenient((), allow)  # an unknown name is no problem of the models
    given = [*([base] if base is not None else []), *paths]
    sources: list[Source | None] = []
    problems: list[Problem] = []
    for path in given:
        sources.append(None)
        with _noted(problems, path):
            sources[-1] = open_source(path)
    opened = [source for source in sources if source is not None]
    theta0 = sources[0] if base is not None else None
    models = [source for source in sources[base is not None :] if source is not None]
    if models:
        models = [respelt(model, theta0 or models[0]) for model in models]
    if models:
        with _noted(problems, base or paths[0]):
            problems += check(theta0, models, allow=allow, fingerprint=values)
    for source in opened if values else []:
        with _noted(problems, source.path):
            problems += nonfinite(source)
    distances = []
    if values and theta0 is not None and models and not any(one.kind == "values" for one in problems):
        with _noted(problems, theta0.path):
            table, odd = displacements(theta0, models)
            known = {(one.kind, one.model) for one in problems}
            distances = [table]
            problems += [one for one in odd if (one.kind, one.model) not in known]
    counts = Counter(problem.severity for problem in problems)
    tables = [Table("models", [_row(source) for source in opened])] if opened else []
    tables += distances
    tables.append(Table("problems", [_shown(problem) for problem in problems], "" if problems else "none"))
    for source in opened:
        source.close()
    facts = provenance(inputs=[dict(source.identity) for source in opened], values=values)
    result = {"verdict": _verdict(problems), "errors": counts["error"], "warnings": counts["warning"]}
    return Report("tauspan doctor", tables, facts, result=result)


def _verdict(problems: Sequence[Problem]) -> str:
    """Whether the models can be merged, in one line."""
    errors = [problem for problem in problems if problem.severity == "error"]
    warnings = len(problems) - len(errors)
    more = f", {_counted(warnings, 'warning')}" if warnings else ""
    if not errors:
        return f"These models can be merged: no errors{more}."
    kinds = sorted({problem.kind for problem in errors})
    able = [kind for kind in kinds if kind in LENIENT]
    way = f" They can with {' '.join(f'--allow {kind}' for kind in able)}." if len(able) == len(kinds) else ""
    return f"These models cannot be merged as they are: {_counted(len(errors), 'error')} ({', '.join(kinds)}){more}.{way}"


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


@contextmanager
def _noted(problems: list[Problem], path: str | Path) -> Iterator[None]:
    """Make a problem of an error, so that the other models are looked at too."""
    try:
        yield
    except TauspanError as error:
        problems.append(Problem("error", "unreadable", None, str(path), Path(path), str(error)))


def nonfinite(source: Source) -> Iterator[Problem]:
    """Tensors with NaN or infinity; reads every floating-point value, in blocks.

    Infinities alone are a warning: masks hold them, and where all models hold the same they are kept.
    """
    for name, stored in source.tensors.items():
        if not stored.dtype.is_floating_point:
            continue
        size, bad, first, nans = stored.shape.numel(), 0, 0, 0
        for start in range(0, size, _BLOCK):
            block = source.read(name, start, min(start + _BLOCK, size))
            # torch has no isfinite for eight bits
            wrong = ~torch.isfinite(block.float() if block.dtype.itemsize == 1 else block)
            if bool(wrong.any()):
                first = first if bad else start + int(wrong.nonzero()[0])
                bad += int(wrong.sum())
                nans += int(torch.isnan(block.float()).sum())
        if bad:
            advice = (
                "The run it came from is broken: take an earlier checkpoint or train again."
                if nans
                else "They are infinities, as masks hold: a merge keeps them where all models have the same."
            )
            yield Problem(
                "error" if nans else "warning", "values", name, source.label, stored.file,
                f"tensor {name!r} of {stored.file} has {bad} of {size} values that are not finite, the first at entry "
                f"{first}. {advice}",
            )  # fmt: skip


def _row(source: Source) -> dict[str, Cell]:
    stored = list(source.tensors.values())
    dtypes = Counter(str(tensor.dtype).removeprefix("torch.") for tensor in stored)
    rows = [tensor.shape[0] for tensor in stored if tensor.name.endswith(EMBEDDINGS) and tensor.shape]
    return {
        "model": source.label,
        "path": str(source.path),
        "kind": source.kind,
        "files": len({tensor.file for tensor in stored}),
        "tensors": len(stored),
        "parameters": sum(t.shape.numel() for t in stored if t.dtype.is_floating_point),
        "bytes": sum(tensor.nbytes for tensor in stored),
        "dtypes": ", ".join(f"{dtype} ({count})" for dtype, count in dtypes.most_common()),
        "tied": ", ".join(name for name in source.aliases if spelled_before(name) is None),
        "vocabulary": rows[0] if rows else None,
    }


def _shown(problem: Problem) -> dict[str, Cell]:
    return {
        "severity": problem.severity,
        "kind": problem.kind,
        "model": problem.model,
        "tensor": problem.tensor,
        "file": str(problem.file) if problem.file else None,
        "message": problem.message,
    }
