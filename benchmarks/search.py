"""Everything linear in one pass: the coefficient search and the disentanglement map against evaluating each point."""

from collections.abc import Mapping, Sequence

import torch
from benchmarks.rows import Row, Setting, row
from benchmarks.shapes import SHAPES, Shape
from benchmarks.timing import once, spread
from torch import Tensor

from tauspan.core.reading import Reading
from tauspan.editing import PAPER_GRID, disentanglement
from tauspan.models import Classifier, Encoder, Head, fingerprint_of
from tauspan.objectives import Classification
from tauspan.tangent import Linearized, linearize
from tauspan.tangent.contributions import contributions
from tauspan.tasks import Task
from tauspan.vector import TaskVector

CLASSES, VECTORS = 4, 8
AXIS = tuple(round(-1.8 + 0.2 * step, 1) for step in range(20))
POINTS = ((-1.8, 0.6), (1.0, 1.0))  # of the map, evaluated one by one


def search(setting: Setting) -> list[Row]:
    """The rows of the first chosen shape."""
    shape = SHAPES[setting.names()[0]]
    rounds = 1 if setting.short else min(setting.rounds, 3)
    return [*_coefficients(shape, setting, rounds), *_map(shape, setting, rounds)]


def directions(module: torch.nn.Module, count: int) -> list[TaskVector]:
    """Random vectors that move the outputs about as far as f itself."""
    base = fingerprint_of(module)
    tangent = linearize(module)
    made = []
    for seed in range(count):
        generator = torch.Generator().manual_seed(seed)
        deltas = {
            name: 0.05 * theta.abs().mean().cpu() * torch.randn(theta.shape, generator=generator)
            for name, theta in tangent.theta0().items()
        }
        made.append(TaskVector(deltas, base, "linear", f"tau{seed}"))
    return made


# -- coefficients ------------------------------------------------------------------------------------------------


def _coefficients(shape: Shape, setting: Setting, rounds: int) -> list[Row]:
    size = setting.batch or shape.batch
    rows = size if setting.short else 4 * size
    model = shape.classifier(CLASSES).to(setting.device)
    tangent = linearize(model)
    inputs = shape.inputs(rows).to(setting.device)
    prepared = [(list(range(at, at + size)), inputs[at : at + size]) for at in range(0, rows, size)]
    vectors = directions(model, VECTORS)
    total = sum(vectors[1:], vectors[0])
    labels = _labels(tangent, total, inputs, size)
    ratios: dict[str, list[float]] = {"shared": [], "each": []}
    same = True
    for _ in range(rounds):
        chosen: dict[str, float] = {}

        def shared() -> None:
            found = contributions(tangent, {"sum": total}, prepared, labels)
            chosen["fast"] = best({a: Classification().value(found.logits([a]), labels) for a in PAPER_GRID})  # noqa: B023

        def each() -> None:
            taus = {vector.label: vector for vector in vectors}
            found = contributions(tangent, taus, prepared, labels)
            found_at = {a: Classification().value(found.logits([a] * VECTORS), labels) for a in PAPER_GRID}
            chosen["each"] = best(found_at)  # noqa: B023

        def one_by_one() -> None:
            scores = {}
            for alpha in PAPER_GRID:
                tangent.load_task_vector(total * alpha, check_base=False)
                with torch.no_grad():
                    logits = torch.cat([tangent(batch).cpu() for _, batch in prepared])
                scores[alpha] = Classification().value(logits, labels)
            chosen["slow"] = best(scores)  # noqa: B023

        fast, both, slow = (
            getattr(once(run, setting.device), setting.clock) for run in (shared, each, one_by_one)
        )
        ratios["shared"].append(slow / fast)
        ratios["each"].append(slow / both)
        same = same and len(set(chosen.values())) == 1
    law = f"{rows} rows; same choice: {'yes' if same else 'NO'}"
    what = f"{shape.name}: 21 coefficients over {VECTORS} vectors against 21 evaluations"
    return [
        row(f"{what}, one shared coefficient", spread(ratios["shared"]), setting, "coefficient search",
            "times faster", f"{law}; the sum of the vectors is one direction"),
        row(f"{what}, a coefficient for each", spread(ratios["each"]), setting, "", "times faster",
            f"{law}; eight directions, good for any coefficients of each"),
    ]  # fmt: skip


def best(scores: Mapping[float, float]) -> float:
    """The coefficient of the highest accuracy; ties go to the smallest."""
    return min(scores, key=lambda alpha: (-scores[alpha], alpha))


def _labels(tangent: Linearized, total: TaskVector, inputs: Tensor, size: int) -> Tensor:
    """The classes that the model predicts in the middle of the grid, so that there is a best coefficient to find."""
    parts = [tangent.tangent(batch, vectors=[total]) for batch in inputs.split(size)]
    return torch.cat([(value + 0.5 * moved[0]).argmax(-1).cpu() for value, moved in parts])


# -- the map -----------------------------------------------------------------------------------------------------


def _map(shape: Shape, setting: Setting, rounds: int) -> list[Row]:
    size = setting.batch or shape.batch
    rows = size if setting.short else 2 * size
    encoder = shape.encoder().to(setting.device)
    tasks = [_task(shape, place, rows) for place in range(2)]
    vectors = directions(encoder, 2)
    pair = dict(zip(tasks, vectors, strict=True))
    ratios, gaps = [], []
    for _ in range(rounds):
        kept: list[object] = []

        def whole() -> None:
            found = disentanglement(
                encoder,
                pair,
                grid=AXIS,
                reading=Reading(batch_size=size),
                split="test",
            ).report()
            kept.append(found.series[0]["xi"])  # noqa: B023

        def points() -> None:
            kept.append([_point(encoder, tasks, vectors, at, size) for at in POINTS])  # noqa: B023

        fast = getattr(once(whole, setting.device), setting.clock)
        slow = getattr(once(points, setting.device), setting.clock)
        # A point evaluates two mixtures and two single models; the whole grid needs 400 x 2 and 20 x 2 of them.
        ratios.append(slow / len(POINTS) / 4 * (2 * len(AXIS) ** 2 + 2 * len(AXIS)) / fast)
        gaps.append(_gap(*kept))
    note = (
        f"{rows} rows a task; {len(POINTS)} of 400 points evaluated and their time scaled up; there xi differs by at "
        f"most {max(gaps):g}"
    )
    return [row(f"{shape.name}: 20 x 20 map of a pair against evaluating every point", spread(ratios), setting,
                "xi map", "times faster", note)]  # fmt: skip


def _task(shape: Shape, place: int, rows: int) -> Task:
    inputs, labels = shape.inputs(rows, seed=place), torch.arange(rows) % CLASSES
    head = Head(torch.randn(CLASSES, shape.width, generator=torch.Generator().manual_seed(place)))
    names = [f"class {k}" for k in range(CLASSES)]
    splits = dict.fromkeys(("train", "validation", "test"), (inputs, labels))
    return Task.from_tensors(f"task{place}", names, head=head, **splits)


def _point(
    encoder: Encoder, tasks: Sequence[Task], vectors: Sequence[TaskVector], at: tuple[float, float], size: int
) -> float:
    """Xi at one point by evaluating the tangent model at each set of coefficients."""
    total = 0.0
    for place, task in enumerate(tasks):
        assert task.head is not None  # noqa: S101 - made above
        tangent = linearize(Classifier(encoder, task.head))
        edits = (at[place] * vectors[place], at[0] * vectors[0] + at[1] * vectors[1])
        classes = []
        for edit in edits:
            tangent.load_task_vector(edit, check_base=False)
            inputs = encoder.encode(task.split("test").inputs)
            assert isinstance(inputs, Tensor)  # noqa: S101 - the task holds tensors
            with torch.no_grad():
                classes.append(torch.cat([tangent(batch).argmax(-1).cpu() for batch in inputs.split(size)]))
        total += float((classes[0] != classes[1]).double().mean())
    return total


def _gap(xi: object, found: object) -> float:
    places = [[AXIS.index(a) for a in at] for at in POINTS]
    return max(abs(xi[i][j] - value) for (i, j), value in zip(places, found, strict=True))  # type: ignore[index, call-overload]
