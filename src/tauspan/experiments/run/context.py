"""`RunContext`: what the parts of a run share: its encoder, its tasks, its vectors and its stages, each made once."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from tauspan.core.choices import EditRegime
from tauspan.core.errors import StoreError, UsageError
from tauspan.core.reading import Reading
from tauspan.editing import Editor
from tauspan.editing.model.edit import load
from tauspan.experiments.run.part import Evaluation
from tauspan.experiments.run.recipe import Recipe
from tauspan.experiments.run.vectors import Finetuning, VectorKind, finetunings, kind_of
from tauspan.models import Encoder, fingerprint_of, reinitialised
from tauspan.store.stages import Content, Stages
from tauspan.tasks import Task
from tauspan.tasks.data.suite import find_task
from tauspan.train import Settings, finetune
from tauspan.vector import FILE, TaskVector

_PROBE = "The quick brown fox's 21 naïve steps, re-tokenised!"


class Step(NamedTuple):
    """One stage of a run: its label and kind in the table of costs, whether its file is there, and how to do it."""

    label: str
    kind: str
    finished: Callable[[], bool]
    do: Callable[[], Any]


class RunContext:
    """What the parts of a run share. Encoders, tasks and vectors are loaded when they are asked for.

    Args:
        recipe: what to do.
        out: the output folder.
        device: where the encoder goes; see `load`.
        pretrained: the recipe's encoder, where it was loaded before.

    Raises:
        UsageError: the recipe's model is an edited one, or the device is not there.
    """

    def __init__(
        self, recipe: Recipe, out: Path, device: str | None = None, pretrained: Encoder | None = None
    ) -> None:
        loaded = pretrained or load(recipe.model, device, language=recipe.language)
        if not isinstance(loaded, Encoder):
            raise UsageError(
                f"{recipe.model!r} is an edited tangent model; a recipe starts from a pre-trained one."
            )
        self.recipe, self.out, self.device = recipe, out, device
        self.pretrained = loaded
        self.stages = Stages(out / "stages")
        self._tasks: dict[str, Task] = {}
        self._fewer: dict[tuple[Task, int | None], Task] = {}
        self._started: tuple[int, Encoder] | None = None
        self._bases: dict[int, str] = {}
        self._tokenizer = _tokenizer_digest(loaded)
        self._vectors: tuple[tuple[VectorKind, int], dict[Task, TaskVector]] | None = None
        self._editor: tuple[tuple[EditRegime, int], Editor] | None = None

    # -- where a run starts ----------------------------------------------------------------------------------

    def encoder(self, seed: int) -> Encoder:
        """The encoder from which a seed's vectors start: the pre-trained one, or one re-initialised with the seed."""
        if self.recipe.start == "pretrained":
            return self.pretrained
        if self._started is None or self._started[0] != seed:
            self._started = seed, reinitialised(self.pretrained, seed)
        return self._started[1]

    def base(self, seed: int) -> str:
        """The fingerprint of `encoder(seed)`."""
        place = seed if self.recipe.start == "random" else 0
        if place not in self._bases:
            self._bases[place] = fingerprint_of(self.encoder(seed))
        return self._bases[place]

    def task(self, name: str) -> Task:
        """A task or control by the recipe's name for it, with as many rows as the recipe says."""
        if name not in self._tasks:
            found = find_task(name, self.recipe.data).subset(**dataclasses.asdict(self.recipe.rows))
            if self.recipe.head != "auto":
                found = dataclasses.replace(found, head_from=self.recipe.head)
            for other, task in self._tasks.items():
                if task.name == found.name:
                    raise UsageError(
                        f"the tasks {other!r} and {name!r} are both called {found.name!r}; give each a name of its own."
                    )
            self._tasks[name] = found
        return self._tasks[name]

    @property
    def tasks(self) -> list[Task]:
        """The recipe's tasks, in its order."""
        return [self.task(name) for name in self.recipe.tasks]

    def tasks_of(self, which: Finetuning) -> list[Task]:
        """Those that a vector is made for."""
        return self.tasks if which.task is None else [self.task(which.task)]

    @property
    def metric(self) -> str:
        """What the tasks are measured by, in words."""
        return " and ".join(dict.fromkeys(task.objective.metric for task in self.tasks))

    @property
    def metrics(self) -> str:
        """The same for several numbers."""
        return "accuracies" if self.metric == "accuracy" else self.metric

    @property
    def metric_facts(self) -> dict[str, str]:
        """What a result says of the metric: nothing where it is accuracy."""
        return {} if self.metric == "accuracy" else {"metric": self.metric}

    @property
    def names(self) -> list[str]:
        """The names of the tasks, then `"mean"`: what the rows of a table are about."""
        return [*(task.name for task in self.tasks), "mean"]

    def fewer(self, task: Task, rows: int | None) -> Task:
        """A task with at most so many test rows; the same object whenever it is asked for."""
        if (task, rows) not in self._fewer:
            self._fewer[task, rows] = task.subset(test=rows)
        return self._fewer[task, rows]

    # -- vectors ---------------------------------------------------------------------------------------------

    def settings(self, which: Finetuning) -> Settings:
        """How a vector is made."""
        if which.task is not None:
            return self.recipe.settings(which)
        # one model sees about as many rows as all single fine-tunings together
        tuned, sizes = (
            self.recipe.finetune,
            {name: len(self.task(name).split("train")) for name in self.recipe.tasks},
        )
        passes = sum(tuned.epochs_by_task.get(name, tuned.epochs) * size for name, size in sizes.items())
        most = None if tuned.max_steps is None else tuned.max_steps * len(sizes)
        epochs = math.ceil(passes / sum(sizes.values()))
        return self.recipe.settings(which, epochs=epochs, max_steps=most)

    def folder(self, which: Finetuning) -> Path:
        """The folder of a vector."""
        name = None if which.task is None else self.task(which.task).name
        return self.out / "vectors" / which.folder(name)

    def key_of(self, which: Finetuning) -> str:
        """What decides a vector."""
        tasks = self.tasks_of(which)
        base = self.base(which.seed) + self.encoder(which.seed).describe()
        return self.settings(which).key(base, "".join(task.checksum() for task in tasks))

    def finished(self, which: Finetuning) -> bool:
        """Whether a vector is there."""
        folder = self.folder(which)
        return self.stages.finished(stage_of(folder), self.key_of(which), folder / FILE)

    def finetune(self, which: Finetuning) -> Path:
        """The folder of a vector, which is made now unless it is there.

        Raises:
            StoreError: the folder holds a vector made with other settings, another base, tokenizer or other data.
        """
        folder, settings = self.folder(which), self.settings(which)

        def work() -> Content:
            done = finetune(self.encoder(which.seed), self.tasks_of(which), settings, out=folder, resume=True)
            return {"history": list(done.history), "tokenizer": self._tokenizer}

        key, made = self.key_of(which), folder / FILE
        stage = self.stages.do(which.kind, "fine-tune", stage_of(folder), key, work, made)
        # the key does not know the tokenizer, and stages of the first version do not name it
        made_with = stage.content.get("tokenizer")
        if made_with is not None and made_with != self._tokenizer:
            raise StoreError(
                f"{folder} was made with another tokenizer ({made_with[:12]}) than {self.recipe.model!r} has now "
                f"({str(self._tokenizer)[:12]}). Choose another folder."
            )
        return folder

    def adopt(self, other: "RunContext", which: Finetuning) -> None:
        """Take a finished vector of another run over, unless there is one."""
        folder = self.folder(which)
        if not (folder / FILE).exists():
            self.stages.adopt(other.stages, stage_of(folder), other.folder(which), folder)

    def vectors(self, kind: VectorKind, seed: int) -> dict[Task, TaskVector]:
        """The vector of each task."""
        if self._vectors is None or self._vectors[0] != (kind, seed):
            found = {
                self.task(name): TaskVector.from_pretrained(self.finetune(Finetuning(kind, name, seed)))
                for name in self.recipe.tasks
            }
            self._vectors = (kind, seed), found  # the last ones only: they may be large
        return self._vectors[1]

    # -- stages ----------------------------------------------------------------------------------------------

    def steps(self) -> dict[str, Step]:
        """Every stage of the run by its name: vectors, then evaluations, those of one seed and regime together."""
        steps = {
            stage_of(self.folder(which)): Step(
                which.kind, "fine-tune", partial(self.finished, which), partial(self.finetune, which)
            )
            for which in finetunings(self.recipe)
        }
        regimes, seeds = self.recipe.regimes, self.recipe.seeds
        found = {which: part for part in self.recipe.parts if part.asked for which in part.evaluations(self)}

        def place(which: Evaluation) -> tuple[int, int]:
            known = next((regimes.index(word) for word in which.about if word in regimes), -1)
            return seeds.index(which.seed), known

        for which in sorted(found, key=place):
            exists, measure = (
                partial(self.stages.exists, which.name),
                partial(found[which].measure, self, which),
            )
            steps[which.name] = Step(which.about[-1], which.kind, exists, measure)
        return steps

    def editor(self, kind: VectorKind, regime: EditRegime, seed: int) -> Editor:
        """Where questions about one seed's vectors are asked.

        Where a part reads every vector on every task, one reading answers the questions of all parts; else each
        question reads what it needs, which is less.
        """
        shared = {which for part in self.recipe.parts if part.asked for which in part.reads_all(self)}
        if kind != kind_of(regime) or (regime, seed) not in shared:
            return Editor(
                self.encoder(seed), self.vectors(kind, seed), regime, reading=self.reading, ahead=False
            )
        if self._editor is None or self._editor[0] != (regime, seed):
            found = Editor(self.encoder(seed), self.vectors(kind, seed), regime, reading=self.reading)
            self._editor = (regime, seed), found
        return self._editor[1]

    # -- what the stages share -------------------------------------------------------------------------------

    def key(self, vectors: Mapping[Task, TaskVector], *more: Any) -> list[Any]:
        """What decides a stage that reads vectors: their own keys, other things, and their tasks' checksums."""
        made = [vector.info["key"] for vector in vectors.values()]
        return [made, *more, [task.checksum() for task in vectors]]

    def edited(self, seed: int, vectors: Mapping[Task, TaskVector]) -> dict[str, Any]:
        """What a chosen edit holds besides numbers: the encoder, and the vectors by name."""
        return {
            "encoder": self.encoder(seed),
            "vectors": {task.name: vector for task, vector in vectors.items()},
        }

    @property
    def reading(self) -> Reading:
        """How the model runs over the rows of tasks."""
        return Reading(max_tokens=self.recipe.max_tokens, point=self.recipe.point)

    def shared(self) -> dict[str, Any]:
        """What decides every search of a coefficient, besides vectors and regime."""
        return {"grid": self.recipe.grid, "point": self.recipe.point, "max_tokens": self.recipe.max_tokens}


def stage_of(folder: Path) -> str:
    """The stage that makes the vector of a folder."""
    return f"finetune-{folder.name}"


def _tokenizer_digest(encoder: Encoder) -> str | None:
    """A hash of a tokenizer's vocabulary and of what it makes of a sentence; None where there is no vocabulary."""
    tokenizer = encoder.inputs.tokenizer
    vocabulary = getattr(tokenizer, "get_vocab", None)
    if vocabulary is None:
        return None
    pieces: Sequence[int] = tokenizer([_PROBE])["input_ids"][0]
    return hashlib.sha256(json.dumps([sorted(vocabulary().items()), list(pieces)]).encode()).hexdigest()
