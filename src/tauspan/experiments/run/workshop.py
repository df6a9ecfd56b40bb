"""`Workshop`: a recipe under way: its encoder, its tasks, and its vectors, each made once."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

from tauspan.core.errors import StoreError, UsageError
from tauspan.core.reading import Reading
from tauspan.editing.model.edit import load
from tauspan.experiments.recipe import Recipe
from tauspan.experiments.run.courses import Course, Finetuning
from tauspan.experiments.run.stages import Content, Stages
from tauspan.models import Encoder, fingerprint_of, reinitialised
from tauspan.tasks import Task
from tauspan.tasks.data.suite import find_task
from tauspan.train import Settings, finetune
from tauspan.vector import FILE, TaskVector

Kind: TypeAlias = Literal["add", "evaluate", "negate", "disentangle", "energy", "merge"]
_PROBE = "The quick brown fox's 21 naïve steps, re-tokenised!"


class Evaluation(NamedTuple):
    """One stage that measures: its kind, what it is about (a regime, or a task and a regime), and a seed."""

    kind: Kind
    about: tuple[str, ...]
    seed: int

    @property
    def name(self) -> str:
        """The stage's name."""
        return "-".join([self.kind, *self.about, f"seed{self.seed}"])


class Workshop:
    """A recipe under way. Encoders, tasks and vectors are loaded when they are asked for.

    Args:
        recipe: what to do.
        out: the output folder.
        device: where the encoder goes; see `load`.

    Raises:
        UsageError: the recipe's model is an edited one, or the device is not there.
    """

    def __init__(self, recipe: Recipe, out: Path, device: str | None = None) -> None:
        loaded = load(recipe.model, device)
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
        self._vectors: tuple[tuple[Course, int], dict[Task, TaskVector]] | None = None

    # -- where a run starts ----------------------------------------------------------------------------------

    def encoder(self, seed: int) -> Encoder:
        """What the vectors of a seed start from: the pre-trained encoder, or a re-initialised one of that seed."""
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

    def fewer(self, task: Task, rows: int | None) -> Task:
        """A task with at most so many test rows; the same object whenever it is asked for."""
        if (task, rows) not in self._fewer:
            self._fewer[task, rows] = task.subset(test=rows)
        return self._fewer[task, rows]

    # -- vectors ---------------------------------------------------------------------------------------------

    def settings(self, which: Finetuning) -> Settings:
        """How a vector is made."""
        training = dataclasses.asdict(self.recipe.finetune)
        rates = {"standard": training.pop("lr_standard"), "linear": training.pop("lr_linear")}
        by_task = training.pop("epochs_by_task")
        if which.task is not None:
            training["epochs"] = by_task.get(which.task, training["epochs"])
        else:
            training |= self._together(by_task, training)
        if which.course == "attention":
            training["params"] = "attention"
        regime: Literal["standard", "linear"] = "linear" if which.course == "linear" else "standard"
        point = self.recipe.point if regime == "linear" else None
        return Settings(
            regime=regime, seed=which.seed, lr=rates[regime], point=point, max_tokens=self.recipe.max_tokens,
            **training,
        )  # fmt: skip

    def _together(self, by_task: Mapping[str, int], training: Mapping[str, Any]) -> dict[str, Any]:
        """Epochs and steps over all tasks' rows that make up those of the single fine-tunings together."""
        sizes = {name: len(self.task(name).split("train")) for name in self.recipe.tasks}
        passes = sum(by_task.get(name, training["epochs"]) * size for name, size in sizes.items())
        most = training["max_steps"]
        return {
            "epochs": math.ceil(passes / sum(sizes.values())),
            "max_steps": None if most is None else most * len(sizes),
        }

    def folder(self, which: Finetuning) -> Path:
        """Where a vector lies."""
        name = "standard" if which.task is None else self.task(which.task).name
        return self.out / "vectors" / f"{which.course}-{name}-seed{which.seed}"

    def key_of(self, which: Finetuning) -> str:
        """What decides a vector."""
        tasks = self.tasks if which.task is None else [self.task(which.task)]
        base = self.base(which.seed) + self.encoder(which.seed).describe()
        return self.settings(which).key(base, "".join(task.checksum() for task in tasks))

    def finished(self, which: Finetuning) -> bool:
        """Whether a vector is there."""
        folder = self.folder(which)
        return self.stages.finished(_name(folder), self.key_of(which), folder / FILE)

    def finetune(self, which: Finetuning) -> Path:
        """Make a vector, or find it, and return its folder.

        Raises:
            StoreError: the folder holds a vector made with other settings, another base, tokenizer or other data.
        """
        folder, settings = self.folder(which), self.settings(which)

        def work() -> Content:
            encoder = self.encoder(which.seed)
            if which.task is None:
                done = finetune(
                    encoder,
                    self.tasks,
                    settings,
                    out=folder,
                    resume=True,
                )
            else:
                done = finetune(
                    encoder,
                    self.task(which.task),
                    settings,
                    out=folder,
                    resume=True,
                )
            return {"history": list(done.history), "tokenizer": self._tokenizer}

        stage = self.stages.do(
            which.course, "fine-tune", _name(folder), self.key_of(which), work, folder / FILE
        )
        # the key does not know the tokenizer, and stages of the first version do not name it
        made_with = stage.content.get("tokenizer")
        if made_with is not None and made_with != self._tokenizer:
            raise StoreError(
                f"{folder} was made with another tokenizer ({made_with[:12]}) than {self.recipe.model!r} has now "
                f"({str(self._tokenizer)[:12]}). Choose another folder."
            )
        return folder

    def vectors(self, course: Course, seed: int) -> dict[Task, TaskVector]:
        """One vector per task, made now or found."""
        if self._vectors is None or self._vectors[0] != (course, seed):
            found = {
                self.task(name): TaskVector.from_pretrained(self.finetune(Finetuning(course, name, seed)))
                for name in self.recipe.tasks
            }
            self._vectors = (course, seed), found  # the last ones only: they may be large
        return self._vectors[1]

    # -- what the stages share -------------------------------------------------------------------------------

    def key(self, vectors: Mapping[Task, TaskVector], *more: Any) -> list[Any]:
        """What decides a stage that reads vectors: their own keys, other things, and their tasks' checksums."""
        made = [vector.info["key"] for vector in vectors.values()]
        return [made, *more, [task.checksum() for task in vectors]]

    @property
    def reading(self) -> Reading:
        """How the rows of tasks are read."""
        return Reading(max_tokens=self.recipe.max_tokens, point=self.recipe.point)

    def shared(self) -> dict[str, Any]:
        """What decides every search of a coefficient, besides vectors and regime."""
        return {"grid": self.recipe.grid, "point": self.recipe.point, "max_tokens": self.recipe.max_tokens}


def _name(folder: Path) -> str:
    return f"finetune-{folder.name}"


def _tokenizer_digest(encoder: Encoder) -> str | None:
    """A hash of a tokenizer's vocabulary and of what it makes of a sentence; None where there is no vocabulary."""
    tokenizer = encoder.inputs.tokenizer
    vocabulary = getattr(tokenizer, "get_vocab", None)
    if vocabulary is None:
        return None
    pieces: Sequence[int] = tokenizer([_PROBE])["input_ids"][0]
    return hashlib.sha256(json.dumps([sorted(vocabulary().items()), list(pieces)]).encode()).hexdigest()
