"""`Task`: inputs with targets in three splits, from cards, files, tensors or the hub."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from tauspan.core.arguments import checked
from tauspan.core.choices import HeadFrom
from tauspan.core.errors import DataError, UsageError, nearest
from tauspan.models import Head
from tauspan.objectives import Chat, Classification, Objective, objective_of
from tauspan.tasks.assembly import Gathered, gathered, told
from tauspan.tasks.grouping import both, in_groups, whole_groups
from tauspan.tasks.hub import hub_rows
from tauspan.tasks.labels import Meaning
from tauspan.tasks.numbers import tensor_targets
from tauspan.tasks.pairs import given_pairs
from tauspan.tasks.readers import TableOptions, by_split, read_rows, require_apart
from tauspan.tasks.rows import Rows, tensor_rows
from tauspan.tasks.shares import require_shares, shared_out
from tauspan.tasks.split import SPLITS, Split, completed, permutation
from tauspan.tasks.tables import Dialect, Quotes
from tauspan.tasks.targets import read_targets, require_no_classes
from tauspan.tasks.texts import text_rows
from tauspan.tasks.valid import content_hash, read_card, require_valid
from tauspan.tasks.writing import write_directory


@dataclass(frozen=True, eq=False)
class Task:
    """Rows to learn from and to measure on: name, outputs, splits, objective, and what its frozen head is built from.

    Args:
        name: short and unique among the tasks of a run.
        label_names: the K classes; a label is an index into them. Of other objectives, the names of the outputs.
        splits: `train`, `validation` and `test`.
        label_prompts: one sentence per class for a zero-shot head; empty where there is no text.
        max_tokens: where texts are cut; None leaves it to the tokenizer.
        head: a frozen head of your own, used instead of a built one.
        source: where the rows came from, for provenance.
        templates: prompts with `{}` where a class name goes in, such as `"a photo of a {}."`; each class's weight is
            the mean over them. Instead of `label_prompts`.
        head_from: what the head is built from: `"prompts"`, `"prototypes"`, `"probe"`, or `"auto"`; see
            `tauspan.tasks.build_head`.
        head_rows: training rows for prototypes and probes, where they are not those of `train`: of a subset, whose head
            is otherwise made from its own rows.
        objective: the loss and the metric, and what targets are; see `tauspan.objectives`.

    Example:
        >>> import torch
        >>> rows = Split(["a", "b"], torch.tensor([0, 1]))
        >>> Task("ab", ["x", "y"], {"train": rows, "validation": rows, "test": rows})
        Task('ab', 2 classes, train 2, validation 2, test 2)
    """

    name: str
    label_names: Sequence[str]
    splits: Mapping[str, Split]
    label_prompts: Sequence[str] = ()
    max_tokens: int | None = None
    head: Head | None = None
    source: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)
    templates: Sequence[str] = ()
    head_from: HeadFrom = "auto"
    head_rows: Split | None = None
    objective: Objective = Classification()

    def __post_init__(self) -> None:
        require_valid(self)

    def __repr__(self) -> str:
        sizes = ", ".join(f"{split} {len(self.splits[split])}" for split in SPLITS)
        out = self.extra.get("left_out")
        count = len(self.label_names)
        kind = (
            f"{count} classes"
            if self.classes
            else self.objective.word
            if self.objective.headless
            else f"{self.objective.word} of {count} {'output' if count == 1 else 'outputs'}"
        )
        return f"Task({self.name!r}, {kind}, {sizes}{f'; left out: {told(out)}' if out else ''})"

    @property
    def classes(self) -> bool:
        """Whether each row has one class."""
        return isinstance(self.objective, Classification)

    def split(self, name: str) -> Split:
        """The rows of one split."""
        if name not in self.splits:
            raise DataError(f"task {self.name!r} has no split {name!r}. {nearest(name, self.splits)}")
        return self.splits[name]

    def tokens(self, asked: int | None) -> int | None:
        """The number of tokens at which this task's texts are cut: `asked`, or the task's own value if that is None."""
        return self.max_tokens if asked is None else asked

    @checked
    def subset(
        self,
        *,
        train: int | None = None,
        validation: int | None = None,
        test: int | None = None,
        seed: int = 0,
    ) -> "Task":
        """At most the given number of rows of each split, by a permutation that depends on seed and split name.

        Prototypes and probes of the subset are made from its own training rows. `dataclasses.replace(subset,
        head_rows=task.split("train"))` keeps the head of the whole task.
        """
        wanted = {"train": train, "validation": validation, "test": test}
        for split, count in wanted.items():
            if count is not None and count < 1:
                raise DataError(f"{split}={count}: a subset of task {self.name!r} needs at least one row.")
        splits = {
            name: _sampled(rows, wanted.get(name), f"{seed}/{name}") for name, rows in self.splits.items()
        }
        return replace(self, splits=splits)

    @checked
    def as_texts(self, objective: str | Objective = "masked-token") -> "Task":
        """The same texts without their labels, for a language model.

        Args:
            objective: of texts, such as `"next-token"` or `"masked-token(share=0.3)"`.

        Raises:
            DataError: rows that are no texts.

        Example:
            >>> rows = (["a film", "a book"], [1, 0])
            >>> Task.from_tensors("ab", ["x", "y"], train=rows, validation=rows, test=rows).as_texts()
            Task('ab', masked-token, train 2, validation 2, test 2)
        """
        kind = objective_of(objective)
        if not kind.headless or kind.columns or isinstance(kind, Chat):
            raise UsageError(
                f"as_texts makes plain texts, and {kind.word} reads other rows: take 'next-token' or 'masked-token'."
            )
        if isinstance(self.objective, Chat):
            raise UsageError(
                f"the rows of {self.name!r} are conversations, which a model's own template makes texts of: take the "
                "task as it is."
            )
        splits: Any = {name: (list(rows.inputs), None) for name, rows in self.splits.items()}
        made = Task.from_tensors(self.name, [], objective=objective, **splits)
        return replace(made, max_tokens=self.max_tokens, source=self.source)

    def checksum(self) -> str:
        """A hash of everything that training and evaluation read from this task; computed once, since rows are fixed."""
        return self._checksum

    @cached_property
    def _checksum(self) -> str:
        return content_hash(self)

    # -- readers ---------------------------------------------------------------------------------------------

    @staticmethod
    @checked
    def from_directory(path: str | Path) -> "Task":
        """A directory with `card.json` (names, prompts, files, SHA-256 sums) and csv(.gz), parquet or npz files.

        Raises:
            DataError: a checksum differs, a column is missing, a label is outside its range.
        """
        card, files = read_card(Path(path))
        names, kind = card["label_names"], objective_of(card.get("objective", "classification"))
        classes, chat = isinstance(kind, Classification), isinstance(kind, Chat)

        def read(text: str, column: str) -> dict[str, list[Rows]]:
            reading = TableOptions(text, column, messages=chat)
            return {split: read_rows(file, reading) for split, file in files.items()}

        usual = ["label"] if classes or kind.columns else names
        rows = read_targets(
            read, kind, usual, names,
            prompt="prompt" if kind.headless and not kind.columns and not chat else None,
            pairs={key: key for key in kind.columns} or None, labels=card.get("labels", "auto"), what=card["name"],
        )  # fmt: skip
        splits, _ = in_groups(rows.splits, kind, 0, card["name"])
        about = {
            key: card[key] for key in ("seed", "test", "validation") if isinstance(card.get(key), str | int)
        }
        return Task(
            card["name"], rows.names, splits, card.get("label_prompts", ()),
            card.get("suggested_max_tokens"), source=card.get("source", str(path)), extra=about, objective=kind,
        )  # fmt: skip

    @staticmethod
    @checked
    def from_files(
        name: str,
        train: str | Path,
        test: str | Path | None = None,
        validation: str | Path | None = None,
        *,
        split: str | None = None,
        label_names: Sequence[Any] | None = None,
        label_prompts: Sequence[str] = (),
        text: str | None = None,
        label: str | Sequence[str] = "label",
        prompt: str | None = None,
        columns: Mapping[str, str | None] | None = None,
        labels: Meaning = "auto",
        objective: str | Objective = "classification",
        clean: bool = False,
        encoding: str | None = None,
        delimiter: str | None = None,
        quotes: Quotes = "doubled",
        max_tokens: int | None = None,
        seed: int = 0,
        shares: Sequence[float] | None = None,
        like: "Sequence[Task]" = (),
    ) -> "Task":
        """CSV, TSV, JSON, JSON Lines, parquet or npz files (text ones also as .gz), or folders of images by class.

        A folder of tables is one split in several files. `docs/formats.md` describes the formats. Labels mean the same
        in all of them (`tauspan.tasks.labels.places`): 1, 1.0 and "1" are the same label. Without `label_names` the
        classes are the sorted labels of the training rows; with `label_names` a label is a class name, or a class index
        that counts from 0.

        Without `validation`, min(10 %, 5000) of the training rows are held out for it, drawn with the seed, as in the
        paper. Without `test` and `split`, 20 % of the rows of `train` are held out for testing first, drawn in the same
        way. With `shares` all rows of one file are divided into the three splits instead: alike in each class, and equal
        texts (apart from case, punctuation and white space) never in two splits.

        Args:
            name: the task's name.
            train: a file or folder.
            test: a file or folder.
            validation: a file or folder.
            split: instead of `test` and `validation`, the column of `train` that says train, validation (val, valid,
                dev) or test of each row.
            label_names: the classes, in order.
            label_prompts: one sentence for each class.
            text: the column of texts, or of images in parquet files; None takes `messages` of chats, which are lists of
                objects with role and content, and else `text`.
            label: the column of labels. Of objectives without classes, the column of each output's numbers, or several.
            prompt: of `"next-token"` tasks, the column of prompts, which go before the texts and do not count; of
                `"chat"` tasks, the column of the user's questions, to which the texts are the answers.
            labels: `"names"`, `"from_0"` or `"from_1"` where `"auto"` says that it cannot tell.
            columns: of tasks of pairs, the columns by what they hold, where they have other names than these:
                `prompt`, `chosen` and `rejected` of `"preference"`, `anchor`, `positive` and perhaps `group` of
                `"contrastive"`, `sentence1`, `sentence2` and `score` of `"similarity"`. None: there is no such column.
            objective: `"classification"`, `"multi-label"`, `"regression"`, `"next-token"`, `"chat"`, `"masked-token"`,
                `"preference"`, `"contrastive"`, `"similarity"`, with options such as `"preference(beta=0.5)"`; or one of
                your own. See `tauspan.objectives`.
            clean: drop rows without text or label, and spaces around labels; a warning counts them, and
                `Task.extra["left_out"]` keeps the counts.
            encoding: of a file of lines; None takes a byte order mark's, else UTF-8.
            delimiter: of CSV; None takes that of comma, semicolon, tab and bar which the first line has.
            quotes: `"doubled"`, `"escaped"` (by a backslash) or `"none"`.
            max_tokens: where texts are cut.
            seed: of the rows that are held out, or divided.
            shares: of train, validation and test, such as (0.7, 0.1, 0.2), instead of `test`, `validation` and `split`;
                a warning names classes that have too few rows to be in every split.
            like: with `shares`: other tasks, such as of another column of the same file; a row that one of them has goes
                to the split that it has there, so that no task is tested on what another was trained on.

        Raises:
            UsageError: `shares` that are none, or beside other splits.
            DataError: with the file and the row or line: a missing column, a row without text or label, a label that
                is no class, a damaged file.
        """
        if shares is not None:
            require_shares(shares)
            if test is not None or validation is not None or split is not None:
                raise UsageError(
                    f"task {name!r}: shares={list(shares)} divide the rows of {train}, and another argument says which "
                    "rows are tested: give shares, or test, validation or split."
                )
        elif like:
            raise UsageError(f"task {name!r}: like= tells shares where rows go: give shares too.")
        kind, dialect = objective_of(objective), Dialect(encoding, delimiter, quotes)
        require_no_classes(label_prompts, labels, kind)
        files = {"train": Path(train)}
        files |= {
            key: Path(file) for key, file in (("validation", validation), ("test", test)) if file is not None
        }
        require_apart(name, files, split)

        def read(inputs: str, column: str) -> dict[str, list[Rows]]:
            reading = TableOptions(inputs, column, split, dialect, chat and prompt is None)
            if split:
                return by_split(files["train"], reading)
            return {s: read_rows(f, reading) for s, f in files.items()}

        chat = isinstance(kind, Chat)
        title = text or ("messages" if chat and prompt is None else "text")
        named = [label] if isinstance(label, str) else list(label)
        made = read_targets(
            read, kind, named, label_names, text=title, prompt=prompt, pairs=columns, labels=labels, clean=clean,
            what=name,
        )  # fmt: skip
        made = whole_groups(made, kind, name)
        if shares is not None:
            others = [task.splits for task in like]
            divided = shared_out(
                made.splits["train"],
                shares,
                seed,
                made.names if isinstance(kind, Classification) else None,
                name,
                others,
            )
            return _made(name, made, divided, label_prompts, max_tokens, str(train), kind)
        return _task(name, made, label_prompts, max_tokens, str(train), seed, kind, test=split is None)

    @staticmethod
    @checked
    def from_hub(
        source: str,
        *,
        name: str | None = None,
        text: str = "text",
        label: str | Sequence[str] = "label",
        prompt: str | None = None,
        columns: Mapping[str, str | None] | None = None,
        objective: str | Objective = "classification",
        config: str | None = None,
        revision: str | None = None,
        train: str = "train",
        test: str = "test",
        validation: str | None = None,
        label_names: Sequence[Any] | None = None,
        labels: Meaning = "auto",
        clean: bool = False,
        label_prompts: Sequence[str] = (),
        max_tokens: int | None = None,
        seed: int = 0,
    ) -> "Task":
        """A data set by hub id or local directory, through the `datasets` library; no remote code is run.

        The directory may also be one that `save_to_disk` wrote: a `DatasetDict` gives its splits, a `Dataset` gives only
        `train`.

        `train`, `test` and `validation` are the names of its splits. Without `validation`, the split of that name is
        used if there is one and it has no other role; else rows of train are held out. Where the labels of the test
        split are hidden, `test="validation"` uses the validation split instead. `label`, `prompt`, `columns`,
        `objective`, `labels`, `clean` and `seed` are as in `from_files`. Images stay encoded until they are accessed.

        Raises:
            DataError: the data set cannot be loaded, a split or column is missing, a row has no text or label.
        """
        splits = {"train": train, "test": test, "validation": validation}
        name, kind = name or source.rstrip("/").split("/")[-1], objective_of(objective)
        require_no_classes(label_prompts, labels, kind)
        named = [label] if isinstance(label, str) else list(label)
        made = read_targets(
            lambda inputs, column: hub_rows(source, inputs, column, config, revision, splits), kind, named, label_names,
            text=text, prompt=prompt, pairs=columns, labels=labels, clean=clean, what=name,
        )  # fmt: skip
        made = whole_groups(made, kind, name)
        return _task(name, made, label_prompts, max_tokens, source, seed, kind, test=False)

    @staticmethod
    @checked
    def from_tensors(
        name: str, label_names: Sequence[Any], *, label_prompts: Sequence[str] = (), head: Head | None = None,
        labels: Meaning = "auto", objective: str | Objective = "classification", clean: bool = False, seed: int = 0,
        **splits: tuple[Sequence[Any] | Tensor | None, ...],
    ) -> "Task":  # fmt: skip
        """Splits given as `train=(inputs, labels), validation=..., test=...`.

        Labels are an integer tensor or array, or a list of numbers or names. `labels` and `clean` are as in
        `from_files`. Of objectives without classes, `label_names` are the names of the outputs, and the second of each
        pair holds a number for each of them, shape (N, O); of `"next-token"`, how many characters of each text are a
        prompt, or None; the inputs of `"chat"` are lists of messages. Of pairs a split is a list for each of the columns
        that `from_files` names, such as `train=(anchors, positives)`. Without `validation` or `test`, rows of train are
        held out as in `from_files`.

        Example:
            >>> rows = (["a", "b"], [1, 0])
            >>> Task.from_tensors("ab", ["x", "y"], train=rows, validation=rows, test=(["c"], [1]))
            Task('ab', 2 classes, train 2, validation 2, test 1)
        """
        unknown = next((key for key in splits if key not in SPLITS), None)
        if unknown is not None:
            raise DataError(f"task {name!r} is given a split {unknown!r}. {nearest(unknown, SPLITS)}")
        kind = objective_of(objective)
        require_no_classes(label_prompts, labels, kind)
        if isinstance(kind, Classification):
            rows = {key: [tensor_rows(name, key, given)] for key, given in splits.items()}
            made = gathered(rows, list(label_names), labels, clean, what=name)
        elif kind.columns:
            made = whole_groups(given_pairs(name, splits, kind, clean), kind, name)
        elif kind.headless:
            made = Gathered(
                list(label_names),
                {key: text_rows(name, key, given, isinstance(kind, Chat)) for key, given in splits.items()},
                {},
            )
        else:
            targets = {key: tensor_targets(name, key, given, kind) for key, given in splits.items()}
            made = Gathered([str(one) for one in label_names], targets, {})
        return replace(_task(name, made, label_prompts, None, "tensors", seed, kind, test=True), head=head)

    def to_directory(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write a task of texts as a directory that `from_directory` reads: `card.json` with checksums, CSV files.

        Raises:
            DataError: the inputs are no texts, or the task has a head of its own.
            StoreError: the directory is there already or cannot be written; nothing is left behind.
        """
        return write_directory(self, Path(path), overwrite)


def _task(
    name: str, made: Gathered, prompts: Sequence[str], tokens: int | None, source: str, seed: int,
    objective: Objective, test: bool,
) -> Task:  # fmt: skip
    """The task made of gathered rows, with what it lacks held out."""
    return _made(name, made, completed(made.splits, seed, test), prompts, tokens, source, objective)


def _made(
    name: str, made: Gathered, divided: tuple[dict[str, Split], dict[str, Any]], prompts: Sequence[str],
    tokens: int | None, source: str, objective: Objective,
) -> Task:  # fmt: skip
    """The task of these splits; its `extra` says how they were made and what was left out."""
    splits, extra = divided
    splits, alone = in_groups(splits, objective, extra["seed"], name)
    left_out = both(made.left_out, alone)
    if left_out:
        extra["left_out"] = left_out
    return Task(name, made.names, splits, prompts, tokens, source=source, extra=extra, objective=objective)


def _sampled(rows: Split, count: int | None, key: str) -> Split:
    if count is None or count >= len(rows):
        return rows
    return rows.take(sorted(permutation(len(rows), key)[:count]))
