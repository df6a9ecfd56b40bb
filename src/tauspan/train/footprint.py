"""What a training step holds: tensors that lie there from step to step, and a curve of one pass over its rows.

The curve is measured. The trainee's own code runs on two and on four rows of the task, and every operation's bytes are
scaled to the rows of a step (`tauspan.core.allocations`). Nothing as large as the parameters is made for that: copies and
tau are stand-ins, and a gradient is dropped, and counted, as soon as it is there.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tauspan.core.allocations import Allocations, Event, Phase, StandIns, scaled
from tauspan.models import Batch, Encoder, Head, eval_mode, named_unique
from tauspan.models.encoder import Bare
from tauspan.objectives import NextToken, Objective, Preference
from tauspan.tasks import Task
from tauspan.tasks.batches import encoded
from tauspan.tasks.reference import TaskTargets
from tauspan.train.loop import VALIDATED, trained
from tauspan.train.settings import Settings
from tauspan.train.trainee import Trainee, in_space, trainee

_SIZES = (2, 4)  # rows of the two passes
_LONGEST = 16  # texts with the most characters, among which the one with the most tokens is looked for


@dataclass(frozen=True)
class Footprint:
    """Bytes that training one task takes in one process.

    Args:
        model: the encoder's parameters and buffers, and the token table of a language model.
        copy: the copy that the standard regime trains; 0 in the tangent regime.
        tau: the displacement that the tangent regime trains; 0 in the standard one.
        gradient: of everything that trains.
        moments: the two of AdamW.
        anchor: the values to which decay pulls, where these are not the model's own tensors.
        step: the events of a forward and a backward pass.
        validation: the events of a pass over validation rows.
        whole: the model as it is loaded, before it is cut into shards; 0 where it is not.
        gathered: what is whole of a sharded model while a block runs; 0 where it is not.
        ending: the most that making the vector holds at the end.
        moved: how many numbers train.
        frozen: how many parameters do not.
        engine: what computes tangents; None in the standard regime.
    """

    model: int
    copy: int
    tau: int
    gradient: int
    moments: int
    anchor: int
    step: Sequence[Event]
    validation: Sequence[Event]
    whole: int
    gathered: int
    ending: int
    moved: int
    frozen: int
    engine: str | None


def footprint(
    encoder: Encoder, task: Task, settings: Settings, processes: int = 1, shard: bool = False
) -> Footprint:
    """Measure the footprint of fine-tuning on one task.

    Args:
        encoder: on the device where it will train; it is not changed.
        task: its longest texts stand for all rows.
        settings: of the run.
        processes: among which the rows of a batch are shared.
        shard: whether each process keeps its part of every tensor.

    Cost:
        Three training passes over two and four rows, and as many without gradients; where losses refer to the pre-trained
        model, one pass over each split, which the run then uses too.
    """
    moving, unchecked = in_space(encoder, dataclasses.replace(settings, check="off", cache="none"))
    with StandIns():  # type: ignore[no-untyped-call]
        what = trainee(moving, [_head(task, encoder, settings)], unchecked)
    trains = what.parameters
    gradient, linear = held(trains.values()), settings.regime == "linear"
    rows = min(settings.batch_size, len(task.split("train")))
    training = Passes(encoder, task, settings, what, "train", backward=not shard)
    step = training.events(math.ceil(rows / processes))
    rows = min(VALIDATED, math.ceil(len(task.split("validation")) / processes))
    validation = Passes(encoder, task, settings, what, "validation").events(rows)
    if not shard and processes > 1:  # gradients are exchanged in one piece
        step.append(Event("exchange", gradient, gradient))
    table = () if encoder.language is None else (encoder.language.table.weight,)
    pulled = linear and settings.decay_toward == "zero" and settings.weight_decay > 0
    moved = sum(tensor.numel() for tensor in trains.values())
    found = Footprint(
        model=held([*_tensors(encoder), *_tensors(moving), *table]),
        copy=0 if linear else held(_tensors(moving)),
        tau=gradient if linear else 0,
        gradient=gradient,
        moments=2 * gradient,
        anchor=gradient if pulled else 0,
        step=step,
        validation=validation,
        whole=0,
        gathered=0,
        ending=_ending(trains.values(), linear),
        moved=moved,
        frozen=sum(one.numel() for one in {id(p): p for p in moving.parameters()}.values()) - moved,
        engine=what.engine,
    )
    return _cut(found, encoder, trains, linear, processes) if shard else found


def _cut(
    whole: Footprint, encoder: Encoder, trains: Mapping[str, Tensor], linear: bool, processes: int
) -> Footprint:
    """The same in one of several processes that keep shards: FSDP2 cuts each tensor into equal parts.

    While a block runs, its tensors are whole, those of the one fetched ahead, and those outside all blocks; they arrive
    in a buffer, and gradients leave in another, behind which that of the block before may still be on its way.
    """
    from tauspan.train.cells import blocks  # FSDP takes seconds to import

    known = named_unique(encoder.backbone)
    sizes, moving = {n: held([t]) for n, t in known.items()}, {n: held([t]) for n, t in trains.items()}
    cells = [[name for name in known if name.startswith(prefix)] for prefix, _ in blocks(encoder.backbone)]
    inside = {name for cell in cells for name in cell}
    root = [name for name in known if name not in inside]

    def gathered(cell: Iterable[str]) -> int:
        return sum(sizes[name] + (moving.get(name, 0) if linear else 0) for name in cell)

    def returned(cell: Iterable[str]) -> int:
        return sum(moving.get(name, 0) for name in cell)

    largest, most = max(map(gathered, cells), default=0), max(map(returned, [*cells, root]))
    theta = sum(sizes.values())
    share = {name: -(-getattr(whole, name) // processes) for name in ("tau", "gradient", "moments", "anchor")}
    rest = whole.model - theta
    step = [Event(e.name, e.bytes, share["gradient"]) for e in whole.step]
    return dataclasses.replace(
        whole,
        model=rest + -(-theta // processes),
        copy=0 if linear else share["gradient"],
        step=step,
        whole=whole.model,
        ending=-(-whole.ending // processes) + 2 * max(sizes.values()),
        gathered=gathered(root) + 3 * largest + 3 * most,
        **share,
    )


def held(tensors: Iterable[Tensor]) -> int:
    """The bytes of tensors as they are when each has memory of its own; those that are one object count once."""
    return sum(
        one.numel() * one.element_size()
        for one in {one.data_ptr() or id(one): one for one in tensors}.values()
    )


def _ending(trains: Iterable[Tensor], linear: bool) -> int:
    """What `Trainee.task_vector` holds: copies of tau, or differences, each of them computed in float64."""
    most = made = 0
    for tensor in trains:
        here = tensor.device.type == "cpu"  # where the vector is
        work = 0 if linear else 3 * 8 * tensor.numel()
        made += max(tensor.element_size(), 4) * tensor.numel() if here else 0
        most = max(most, made, made - (4 * tensor.numel() if here else 0) + work)
    return most


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def _head(task: Task, encoder: Encoder, settings: Settings) -> Head:
    """A head of the shape that the task's own will have; building that may need every row."""
    if task.objective.headless:
        return Bare()
    if task.head is not None:
        return task.head
    row = task.split("train").take((0,))
    with eval_mode(encoder), torch.no_grad():
        width = encoder(encoded(encoder, row, task.objective, task.tokens(settings.max_tokens))).shape[-1]
    like = next(encoder.parameters())
    return Head(torch.zeros(len(task.label_names), width).to(like), scale=encoder.logit_scale)


@dataclass(frozen=True)
class Passes:
    """Passes over a few rows of one split that say what one over more rows holds."""

    encoder: Encoder
    task: Task
    settings: Settings
    what: Trainee
    split: Literal["train", "validation"]
    backward: bool = (
        True  # in shards gradients come block by block, and what a pass holds is most before they do
    )

    def events(self, rows: int) -> list[Event]:
        """The events of a pass over `rows` rows."""
        sizes = min(_SIZES[0], rows), min(_SIZES[1], rows)
        places = self._places(sizes[1])
        self._passed(places[: sizes[0]], rows)  # what happens at the first pass alone
        few, more = (self._passed(places[:size], rows) for size in sizes)
        return scaled(few, more, sizes, rows)

    def _passed(self, places: Sequence[int], rows: int) -> list[Phase]:
        hooks: list[RemovableHandle] = []
        with Allocations() as taken, torch.set_grad_enabled(self.split == "train"):
            for tensor in self.what.parameters.values():
                hooks.append(tensor.register_post_accumulate_grad_hook(dropping(taken)))  # type: ignore[no-untyped-call]
            taken.phase("batch")
            batch, targets = self._batch(places)
            taken.phase("forward")
            outputs = self.what(batch, 0)
            taken.phase("loss")
            objective = self._objective(len(places), rows)
            loss = objective.total(outputs, targets.to(outputs.device))
            if self.split == "train" and self.backward:
                taken.phase("backward")
                loss.backward()  # type: ignore[no-untyped-call]
            elif self.split == "validation":
                objective.scores(outputs, targets.to(outputs.device))
        for hook in hooks:
            hook.remove()
        phases: list[Phase] = taken.phases
        return phases

    def _objective(self, few: int, rows: int) -> Objective:
        """The task's objective; of a language model as many chunks of logits as the whole pass has."""
        smoothing = self.settings.label_smoothing if self.split == "train" else 0.0
        found = trained(self.task, smoothing).bound(self.encoder.language)
        words = found.words if isinstance(found, Preference) else found
        if not isinstance(words, NextToken):
            return found
        words = dataclasses.replace(words, logits=max(1, words.logits * few // rows))
        return dataclasses.replace(found, words=words) if isinstance(found, Preference) else words

    def _batch(self, places: Sequence[int]) -> tuple[Batch, Tensor]:
        tokens, rows = self.task.tokens(self.settings.max_tokens), self.task.split(self.split).take(places)
        batch = encoded(self.encoder, rows, self.task.objective, tokens)
        return batch, TaskTargets(self.task, self.encoder, self.settings.max_tokens)(self.split, places)

    def _places(self, count: int) -> list[int]:
        """Rows with the longest text first, and the shortest second, so that there is padding if any batch has some."""
        rows, of = self.task.split(self.split), self.task.objective
        inputs = rows.inputs
        if self.encoder.inputs.modality != "text":
            return [place % len(inputs) for place in range(count)]
        by_length = sorted(range(len(inputs)), key=lambda place: len(str(inputs[place])))
        tokens = self.task.tokens(self.settings.max_tokens)
        longest = max(
            by_length[-_LONGEST:],
            key=lambda place: _elements(encoded(self.encoder, rows.take([place]), of, tokens)),
        )
        return [longest, by_length[0], longest, longest][:count]


def _elements(batch: Batch) -> int:
    parts = [batch] if isinstance(batch, Tensor) else batch.values() if isinstance(batch, Mapping) else batch
    return sum(part.numel() for part in parts if isinstance(part, Tensor))


def dropping(taken: Allocations) -> Callable[[Tensor], None]:
    """A hook that drops a gradient once it is there, and counts it."""

    def drop(tensor: Tensor) -> None:
        if tensor.grad is not None:
            taken.keep(tensor.grad.numel() * tensor.grad.element_size())
            tensor.grad = None

    return drop
