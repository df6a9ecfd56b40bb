"""`plan`: what a fine-tuning will take, before anything is trained."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tauspan.core.allocations import Event
from tauspan.core.arguments import checked
from tauspan.core.errors import TauspanError, UsageError
from tauspan.core.launch import launch
from tauspan.core.measure import underway
from tauspan.core.records import record
from tauspan.core.report import Cell, Report, Table, duration, in_words, noted, provenance
from tauspan.core.results import Result
from tauspan.models import Encoder, blocks, core, fingerprint_of, named_unique
from tauspan.tangent.cache.room import free_memory
from tauspan.tasks import Task
from tauspan.train.finetuning import require_together
from tauspan.train.footprint import Footprint, footprint
from tauspan.train.loop import VALIDATED
from tauspan.train.settings import Settings
from tauspan.train.timing import Pace, pace

_ROOM = 0.9  # of the memory: the rest is for what is no tensor, and for gaps between tensors


@dataclass(frozen=True)
class Part:
    """Bytes of one kind in one process, and what they are."""

    part: str
    bytes: int
    what: str


@dataclass(frozen=True)
class Repair:
    """Another way to train, and the most that it would hold in one process.

    Args:
        changes: other values of `Settings`, or of `shard` and `processes`.
        peak: bytes.
        fits: whether it fits.
    """

    changes: Mapping[str, Any]
    peak: int
    fits: bool

    @property
    def words(self) -> str:
        """The change as it is written."""
        if "processes" in self.changes:
            return f"torchrun --nproc-per-node {self.changes['processes']} and shard=True"
        return ", ".join(f"{name}={value!r}" for name, value in self.changes.items())


@dataclass(frozen=True, kw_only=True)
class Plan(Result):
    """What a fine-tuning will take. All sizes are bytes of tensors in one process.

    Args:
        tasks: their names.
        settings: of the run.
        device: where it would train.
        processes: how many there are, and whether they keep shards.
        shard: whether each keeps its part of every tensor.
        engine: what computes tangents; None in the standard regime.
        moved: how many numbers train.
        frozen: how many parameters do not.
        training_rows: of all tasks.
        steps: optimiser steps.
        parts: what lies there from step to step.
        step: the most that a training step holds on top of that.
        validation: the most that a pass over validation rows holds on top of that.
        ending: the most that making the vector holds on top of that.
        peak: the most that is held at any time.
        memory: of the device, or as it was given.
        repairs: what would make it fit; none where it does.
        pace: how long it will take, if steps were timed.
    """

    tasks: Sequence[str]
    settings: Mapping[str, Any]
    device: str
    processes: int
    shard: bool
    engine: str | None
    moved: int
    frozen: int
    training_rows: int
    steps: int
    parts: Sequence[Part]
    step: int
    validation: int
    ending: int
    peak: int
    memory: int
    repairs: Sequence[Repair] = ()
    pace: Pace | None = None

    @property
    def fits(self) -> bool:
        """Whether the peak is at most nine tenths of the memory."""
        return within(self.peak, self.memory)

    @property
    def verdict(self) -> str:
        """The answer in one sentence."""
        each = " in each process" if self.processes > 1 else ""
        sizes = f"about {in_words(self.peak)} of {in_words(self.memory)}{each}"
        if not self.fits:
            return f"does not fit: {sizes}"
        return f"fits: {sizes}" + ("" if self.pace is None else f"; about {duration(self.pace.seconds)}")

    def report(self) -> Report:
        """The verdict, the bytes, the work, and what would make it fit."""
        how = "" if self.pace is None else (
            f"times from the first step, {self.pace.timed} more, and at most {VALIDATED} validation rows a task"
        )  # fmt: skip
        tables = [
            Table("Memory", list(self._sizes()), "of tensors, in each process"),
            Table("Work", list(self._work()), how),
        ]
        if not self.fits:
            rows: list[dict[str, Cell]] = [
                {"change": one.words, "peak": in_words(one.peak), "fits": "yes" if one.fits else "no"}
                for one in self.repairs
            ]
            tables.append(Table("What would make it fit", rows, "each change alone"))
        result = {"fits": self.fits, **record(self)}
        title = f"fine-tuning on {', '.join(self.tasks)}: plan"
        return Report(
            title,
            tables,
            dict(self.provenance),
            result=result,
            warnings=tuple(self.warnings),
            verdict=self.verdict,
        )

    def _sizes(self) -> Iterator[dict[str, Cell]]:
        sizes = {one.what: one.bytes for one in self.parts if one.bytes} | {
            "the most of a training step on top of that": self.step,
            "the most of a pass over validation": self.validation,
            "the most when the vector is made": self.ending,
            "the peak": self.peak,
        }
        for what, size in sizes.items():
            yield {"what": what, "size": in_words(size)}

    def _work(self) -> Iterator[dict[str, Cell]]:
        tuned = self.settings
        yield {"what": "numbers that train", "value": self.moved}
        yield {"what": "parameters that do not", "value": self.frozen}
        yield {"what": "training rows", "value": self.training_rows}
        yield {"what": "epochs", "value": tuned["epochs"]}
        yield {"what": "optimiser steps", "value": self.steps}
        yield {"what": "rows of a step", "value": tuned["batch_size"] * tuned["accumulation"]}
        if self.pace is not None:
            yield {"what": "until the first step has ended", "value": f"{self.pace.first:.3g} s"}
            yield {"what": "each further step", "value": f"{self.pace.step:.3g} s"}
            many = self.pace.validations
            what = (
                "the pass over validation rows"
                if many == 1
                else f"each of {many} passes over validation rows"
            )
            yield {"what": what, "value": f"{self.pace.validation:.3g} s"}


def within(peak: int, memory: int) -> bool:
    """Whether a peak fits."""
    return peak <= _ROOM * memory


@noted
@checked
def plan(
    encoder: Encoder,
    task: Task | Sequence[Task],
    settings: Settings = Settings(),
    *,
    shard: bool = False,
    processes: int | None = None,
    memory: int | None = None,
    timed: bool = False,
) -> Plan:
    """What `finetune` with the same arguments will take: parameters, bytes, steps, and whether it fits.

    Nothing is trained, unless `timed` asks for it, and nothing as large as the parameters is made. What a step holds is
    found from two passes over two and four of the task's rows, of which one is its longest text, and scaled to a whole
    batch operation by operation: the bytes of an operation are affine in the rows. So it says what the largest step of an
    epoch holds.

    Args:
        encoder: what `tauspan.load` returned, on the device where it will train.
        task: one task or several.
        settings: of the run.
        shard: with several processes, each keeps its part of every tensor.
        processes: how many there will be; None takes the launcher's, which is 1 without one.
        memory: bytes that a process may use; None takes what the device has.
        timed: where it fits, and one process trains: also run some steps for a few seconds, for `pace`.

    Returns:
        A `Plan`: `fits`, `verdict`, `peak`, `parts`, `repairs`; `report()` has them as tables.

    Raises:
        UsageError: an impossible setting, no task, two tasks of one name, or a cache, which is not planned.

    Cost:
        Six passes over at most four rows for each task; more where repairs are looked for. With `timed` at least three
        steps of the run.

    Example:
        >>> import torch, tauspan as ts
        >>> x, y = torch.eye(4).repeat(4, 1), torch.arange(4).repeat(4) % 2
        >>> task = ts.Task.from_tensors("parity", ["even", "odd"], train=(x, y), validation=(x, y), test=(x, y))
        >>> found = ts.plan(ts.load(torch.nn.Linear(4, 3)), task, memory=10**6)
        >>> found.moved, found.steps, found.fits
        (15, 1, True)
    """
    tasks = [task] if isinstance(task, Task) else list(task)
    require_together(tasks, settings)
    many = launch().size if processes is None else processes
    if many < 1:
        raise UsageError(f"processes={many}: it must be at least 1.")
    if memory is not None and memory < 1:
        raise UsageError(f"memory={memory}: it is a number of bytes, at least 1.")
    if settings.cache != "none":
        raise UsageError(
            f"cache={settings.cache!r} cannot be planned yet: plan the run without it, cache='none'."
        )
    with underway("plan"):
        found = _planned(encoder, tasks, settings, shard and many > 1, many, memory)
        repairs = () if found.fits else tuple(_repairs(encoder, tasks, settings, found))
    timing = timed and found.fits and many == 1
    return dataclasses.replace(
        found, repairs=repairs, pace=pace(encoder, tasks, settings) if timing else None
    )


def _planned(
    encoder: Encoder,
    tasks: Sequence[Task],
    settings: Settings,
    shard: bool,
    processes: int,
    memory: int | None,
) -> Plan:
    prints = [footprint(encoder, task, settings, processes, shard) for task in tasks]
    first = prints[0]
    parts = list(_parts(first))
    lasting = sum(part.bytes for part in parts)
    several = settings.accumulation > 1 or len(tasks) > 1
    step = first.gathered + max(_highest(one.step, one.gradient, several) for one in prints)
    validation = first.gathered + max(_highest(one.validation, 0, True) for one in prints)
    ending = first.ending
    rows = sum(len(task.split("train")) for task in tasks)
    device = next(encoder.parameters()).device
    return Plan(
        tasks=[task.name for task in tasks],
        settings=settings.as_dict(),
        device=str(device),
        processes=processes,
        shard=shard,
        engine=first.engine,
        moved=first.moved,
        frozen=first.frozen,
        training_rows=rows,
        steps=settings.steps(rows),
        parts=parts,
        step=step,
        validation=validation,
        ending=ending,
        peak=max(lasting + max(step, validation, ending), first.whole),
        memory=memory_of(device, first.model) if memory is None else memory,
        provenance=provenance(base=encoder.source, fingerprint=fingerprint_of(encoder)),
    )


def _parts(one: Footprint) -> Iterator[Part]:
    yield Part("model", one.model, "the model: parameters, buffers")
    yield Part("copy", one.copy, "its copy, which trains")
    yield Part("tau", one.tau, "tau, which trains")
    yield Part("moments", one.moments, "two moments of AdamW")
    yield Part("anchor", one.anchor, "what decay pulls to")


def _repairs(encoder: Encoder, tasks: Sequence[Task], settings: Settings, found: Plan) -> Iterator[Repair]:
    """Of each kind of change the mildest that fits, else the strongest, if it lowers the peak at all."""
    for kind in _changes(encoder, settings, found):
        tried: Repair | None = None
        for changes in kind:
            own = {name: value for name, value in changes.items() if name not in ("shard", "processes")}
            shard, processes = changes.get("shard", found.shard), changes.get("processes", found.processes)
            try:
                other = dataclasses.replace(settings, **own)
                peak = _planned(encoder, tasks, other, shard, processes, found.memory).peak
            except TauspanError:  # the model or the settings do not allow it
                break
            tried = Repair(changes, peak, within(peak, found.memory))
            if tried.fits:
                break
        if tried is not None and tried.peak < found.peak:
            yield tried


def _changes(encoder: Encoder, settings: Settings, found: Plan) -> Iterator[list[dict[str, Any]]]:
    """The changes of each kind, from the mildest on."""
    rows, passes = settings.batch_size, settings.accumulation
    smaller = [size for size in range(rows - 1, 0, -1) if rows % size == 0]
    yield [{"batch_size": size, "accumulation": passes * rows // size} for size in smaller]
    if not settings.checkpointing and not found.shard:
        yield [{"checkpointing": True}]
    if settings.precision != "bfloat16" and not found.shard:
        yield [{"precision": "bfloat16"}]
    if settings.params == "all" and settings.space is None:
        yield [{"params": f"last:{count}"} for count in halves(depth(encoder))]
    if settings.precision != "bfloat16" and not settings.checkpointing and settings.space is None:
        yield [{"shard": True, "processes": found.processes * times} for times in (2, 4, 8)]


def depth(encoder: Encoder) -> int:
    """How many blocks the longest stack has; 0 without one."""
    inner, _ = core(encoder)
    try:
        return len(blocks(inner, list(named_unique(inner)))[1])
    except UsageError:
        return 0


def halves(count: int) -> list[int]:
    """Half of a number, a quarter, and so on to 1.

    Example:
        >>> halves(12)
        [6, 3, 1]
    """
    return [count >> times for times in range(1, count.bit_length())]


def _highest(events: Sequence[Event], gradient: int, several: bool) -> int:
    """The most that a pass holds: with gradients of earlier passes, or with those of its own as they come."""
    return max((one.bytes + (gradient if several else one.kept) for one in events), default=0)


def memory_of(device: torch.device, held: int) -> int:
    """What tensors may take on a device, the `held` bytes included that lie there already."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free + torch.cuda.memory_reserved(device))
    return free_memory() + held
