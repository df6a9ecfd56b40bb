"""Whether models can be merged: everything that does not fit, reported before any tensor is written."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from tauspan.core.arguments import checked
from tauspan.core.errors import TauspanError, listed
from tauspan.core.report import Cell, Report, Table, provenance
from tauspan.core.results import Result
from tauspan.merge.checks.contents import compared
from tauspan.merge.checks.distances import Displacement, displacements, strangers
from tauspan.merge.checks.origins import (
    architecture,
    fingerprints,
    functions,
    made_for,
    spaces,
    tied,
    vectors,
)
from tauspan.merge.sources.opening import open_source
from tauspan.merge.sources.problems import LENIENT, Problem, about, lenient
from tauspan.merge.sources.respelt import respelt
from tauspan.merge.sources.source import EMBEDDINGS, Source, ranges, spelled_before
from tauspan.merge.sources.vocabulary import Aligned, tokenizers


@checked
def check(
    base: Source | None, models: Sequence[Source], *, allow: Sequence[str] = (), fingerprint: bool = False
) -> tuple[Problem, ...]:
    """Everything that keeps the models from being merged, errors first.

    Names, shapes, dtypes and ties are compared by headers, with the base or else with the first model; integer
    buffers up to 65,536 entries and some entries of the largest tensors by value; configurations and tokenizers where
    they are beside the weights.

    Args:
        base: theta0; None where weights are merged without one.
        models: weights or displacements.
        allow: kinds of errors that shall be warnings; see `problems.LENIENT`.
        fingerprint: also compute the base's fingerprint and compare it with the vectors' (reads all of the base).

    Returns:
        No problem, or some; `problems.require_none` raises them.

    Cost: no values beside small buffers and 2^14 entries of each model; with `fingerprint` one SHA-256 pass over the
    base, about 4 s per GB.

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
            if not isinstance(model, Aligned):  # whose rows are in one order already
                problems += tokenizers(reference, model)
    problems += vectors([model for model in models if model.kind == "delta"])
    problems += made_for(base, models)
    problems += tied(models)
    if base is not None and not any(problem.severity == "error" for problem in lenient(problems, allow)):
        problems += strangers(base, models)
    if fingerprint and base is not None:
        problems += fingerprints(base, models)
    return lenient(problems, allow)


@dataclass(frozen=True)
class ModelFacts:
    """What a model or a displacement holds, by its headers.

    Args:
        model: its label.
        path: the file or directory.
        kind: weights, or a displacement.
        files: how many files.
        tensors: how many tensors.
        parameters: entries of its floating-point tensors.
        nbytes: size of all tensors.
        dtypes: how many tensors have each dtype, the commonest first.
        tied: names that are not stored, because they are tied.
        vocabulary: rows of its input embeddings; None where none is known by its name.
    """

    model: str
    path: Path
    kind: str
    files: int
    tensors: int
    parameters: int
    nbytes: int
    dtypes: Mapping[str, int]
    tied: Sequence[str]
    vocabulary: int | None

    @staticmethod
    def of(source: Source) -> "ModelFacts":
        """The facts of an opened source."""
        stored = list(source.tensors.values())
        dtypes = Counter(str(tensor.dtype).removeprefix("torch.") for tensor in stored)
        rows = [tensor.shape[0] for tensor in stored if tensor.name.endswith(EMBEDDINGS) and tensor.shape]
        return ModelFacts(
            source.label, source.path, source.kind, len({tensor.file for tensor in stored}), len(stored),
            sum(t.shape.numel() for t in stored if t.dtype.is_floating_point), sum(tensor.nbytes for tensor in stored),
            dict(dtypes.most_common()), [name for name in source.aliases if spelled_before(name) is None],
            rows[0] if rows else None,
        )  # fmt: skip

    def row(self) -> dict[str, Cell]:
        """The facts as a row of a table."""
        dtypes = ", ".join(f"{dtype} ({count})" for dtype, count in self.dtypes.items())
        return {
            "model": self.model, "path": str(self.path), "kind": self.kind, "files": self.files,
            "tensors": self.tensors, "parameters": self.parameters, "bytes": self.nbytes, "dtypes": dtypes,
            "tied": ", ".join(self.tied), "vocabulary": self.vocabulary,
        }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Examination(Result):
    """The result of `doctor`: what models hold, and whether they can be merged.

    Args:
        models: what each holds.
        problems: what keeps them from being merged, and what is odd.
        displacements: how far each is from the base; empty unless values were read.
    """

    models: Sequence[ModelFacts] = ()
    problems: Sequence[Problem] = ()
    displacements: Sequence[Displacement] = ()

    def __repr__(self) -> str:
        return f"Examination({self.verdict})"

    @property
    def errors(self) -> Sequence[Problem]:
        """The problems that stop a merge."""
        return [problem for problem in self.problems if problem.severity == "error"]

    @property
    def verdict(self) -> str:
        """Whether the models can be merged, and what does not fit in which of them, in one line."""
        errors = len(self.errors)
        count = len(self.problems) - errors
        more = f", {_counted(count, 'warning')}" if count else ""
        if not errors:
            return f"These models can be merged: no errors{more}."
        kinds = sorted({problem.kind for problem in self.errors})
        where = {kind: dict.fromkeys(one.model for one in self.errors if one.kind == kind) for kind in kinds}
        unfit = "; ".join(f"{kind} in {listed(models)}" for kind, models in where.items())
        able = [kind for kind in kinds if kind in LENIENT]
        way = (
            f" They can with {' '.join(f'--allow {kind}' for kind in able)}."
            if len(able) == len(kinds)
            else ""
        )
        what = f"{_counted(errors, 'error')} ({unfit}){more}"
        return f"These models cannot be merged as they are: {what}.{way}"

    def report(self) -> Report:
        """The tables `models` and `problems` and, if displacements were measured, `displacements`."""
        tables = [Table("models", [one.row() for one in self.models])] if self.models else []
        if self.displacements:
            rows: list[dict[str, Cell]] = [
                {
                    "model": one.model, "displacement": None if one.relative is None else f"{one.relative:.2e}",
                    "cos base": one.base, **{f"cos {other}": cosine for other, cosine in one.others.items()},
                }
                for one in self.displacements
            ]  # fmt: skip
            note = "displacement: |tau| / |theta0|; cosines: of theta with theta0, and of tau with each model's tau."
            tables.append(Table("displacements", rows, note))
        shown = [_shown(problem) for problem in self.problems]
        tables.append(Table("problems", shown, "" if self.problems else "none"))
        counts = {"errors": len(self.errors), "warnings": len(self.problems) - len(self.errors)}
        result = {"verdict": self.verdict, **counts}
        return Report("tauspan doctor", tables, dict(self.provenance), result=result, verdict=self.verdict)


@checked
def doctor(
    paths: Sequence[str | Path],
    base: str | Path | None = None,
    *,
    values: bool = False,
    allow: Sequence[str] = (),
) -> Examination:
    """Examine what models hold and whether they can be merged; problems are returned and not raised.

    Args:
        paths: as for `open_source`.
        base: the pre-trained model.
        values: also look for NaN and infinity, compare fingerprints, and measure how far models are from the base
            (reads everything, twice).
        allow: kinds of errors that shall be warnings; see `problems.LENIENT`.

    Cost: opening and `check`; with `values` two reads of all files.
    """
    lenient((), allow)  # raises for unknown names, before any model is opened
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
        with _noted(problems, base or paths[0]):
            problems += check(theta0, models, allow=allow, fingerprint=values)
    for source in opened if values else []:
        with _noted(problems, source.path):
            problems += nonfinite(source)
    distances: list[Displacement] = []
    if values and theta0 is not None and models and not any(one.kind == "values" for one in problems):
        with _noted(problems, theta0.path):
            distances, odd = displacements(theta0, models)
            known = {(one.kind, one.model) for one in problems}
            problems += [one for one in odd if (one.kind, one.model) not in known]
    facts = provenance(inputs=[dict(source.identity) for source in opened], values=values)
    examined = [ModelFacts.of(source) for source in opened]
    for source in opened:
        source.close()
    return Examination(models=examined, problems=problems, displacements=distances, provenance=facts)


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


@contextmanager
def _noted(problems: list[Problem], path: str | Path) -> Iterator[None]:
    """Turn an error into a problem, so that the other models are examined too."""
    try:
        yield
    except TauspanError as error:
        problems.append(Problem("error", "unreadable", None, str(path), Path(path), str(error)))


def nonfinite(source: Source) -> Iterator[Problem]:
    """Tensors with NaN or infinity; reads every floating-point value, in blocks.

    Infinities without NaN are a warning only: masks hold them, and an infinity that all models share is kept.
    """
    for name, stored in source.tensors.items():
        if not stored.dtype.is_floating_point:
            continue
        size, bad, first, nans = stored.shape.numel(), 0, 0, 0
        for start, stop in ranges(size):
            block = source.read(name, start, stop)
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
            yield about(
                source, "values",
                f"tensor {name!r} of {stored.file} has {bad} of {size} values that are not finite, the first at entry "
                f"{first}. {advice}",
                severity="error" if nans else "warning", tensor=name, file=stored.file,
            )  # fmt: skip


def _shown(problem: Problem) -> dict[str, Cell]:
    return {
        "severity": problem.severity,
        "kind": problem.kind,
        "model": problem.model,
        "tensor": problem.tensor,
        "file": str(problem.file) if problem.file else None,
        "message": problem.message,
    }
