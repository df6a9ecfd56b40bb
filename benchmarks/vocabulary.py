"""Ways to fill the rows of a new vocabulary, compared on MiniLM: sentences, accuracy, and vectors that move with it.

    python -m benchmarks.vocabulary [--size 8000] [--how hybrid mean normal] [--tasks email_spam ...] [--seeds 0 1 2]
                                    [--rows 240] [--steps 40] [--regime standard] [--out out/vocabulary]

A WordPiece vocabulary is trained on the training texts of one task (`--words`, Debian's descriptions) and MiniLM is
grafted with it, by each way. Printed are, with means and standard deviations over seeds: the cosine between sentence
embeddings before and after; accuracy of the suite with heads from prompts; and of a vector for each task, trained on
MiniLM and moved through the same P, single and added accuracy and which share of the gain over zero shot is kept. Seeds
change what is drawn, learnt and trained. Heads are made from each encoder itself, as tauspan always does. What is made
is kept in the folder.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

import tauspan as ts
from tauspan import store
from tauspan.core.measure import progress
from tauspan.core.report import Table
from tauspan.editing.model.edit_files import Base
from tauspan.surgery import Filling, RowMap, Running, graft, move_vector
from tauspan.surgery.grafting import ROWS

WAYS = ("hybrid", "mean", "normal")
TOKENS, BATCH = 32, 16
GRID = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_RANDOM = ("normal", "cw2v")


def made_tokenizer(folder: Path, texts: Sequence[str], size: int) -> Path:
    """A lower-case WordPiece tokenizer, trained on texts, with the special tokens of BERT; kept in the folder."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    if not (folder / "tokenizer.json").exists():
        made = Tokenizer(models.WordPiece(unk_token=SPECIAL[1]))
        made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
        made.decoder = decoders.WordPiece()
        trainer = trainers.WordPieceTrainer(
            vocab_size=size, special_tokens=list(SPECIAL), show_progress=False
        )
        made.train_from_iterator(texts, trainer)
        made.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
        roles = {f"{one[1:-1].lower()}_token": one for one in SPECIAL}
        PreTrainedTokenizerFast(tokenizer_object=made, **roles).save_pretrained(folder)
    return folder


@dataclass(frozen=True, eq=False)
class Study:
    """One comparison: the tasks, what is trained on them, and where all of it is kept."""

    tasks: Sequence[ts.Task]
    tokenizer: Path
    texts: Sequence[str]
    settings: ts.Settings
    out: Path

    def vectors(self, seed: int) -> dict[ts.Task, ts.TaskVector]:
        """A vector for each task, trained on MiniLM."""
        encoder, settings = ts.load("minilm"), replace(self.settings, seed=seed)
        return {
            task: ts.finetune(
                encoder, task, settings, out=self.out / f"vectors-{seed}" / task.name, resume=True
            ).task_vector
            for task in self.tasks
        }

    def sentences(self, encoder: ts.Encoder) -> torch.Tensor:
        """Unit embeddings of the first test rows of every task, shape (rows, d)."""
        made = []
        with torch.no_grad():
            for task in self.tasks:
                rows = list(task.split("test").inputs)[:64]
                made.append(encoder(encoder.encode(rows, TOKENS)))
        return torch.nn.functional.normalize(torch.cat(made), dim=1)

    def row(self, how: Any, seed: int) -> dict[str, float]:
        """What one way gives with one seed; `minilm` is the model as it is."""
        file = self.out / "rows" / f"{how}-{seed}.json"
        if file.exists():
            kept: dict[str, float] = json.loads(file.read_text())
            return kept
        vectors, encoder, shares = self.vectors(seed), ts.load("minilm"), {}
        before = self.sentences(encoder)
        if how != "minilm":
            filling = Filling(how=how, seed=seed if how in _RANDOM else 0)
            folder = self.out / f"{how}-{filling.seed}"
            done = graft(
                "minilm", self.tokenizer, folder, filling, texts=self.texts, running=Running(resume=True)
            )
            rows, base = RowMap.load(folder / ROWS), Base(str(folder)).fingerprint
            vectors = {task: move_vector(tau, rows, base) for task, tau in vectors.items()}
            encoder = ts.load(str(folder))
            shares = {} if done.kept is None else {"copied": done.kept.copied / done.kept.rows}
        found = ts.add(encoder, vectors, grid=GRID, reading=ts.Reading(max_tokens=TOKENS))
        mean = {
            kind: statistics.mean(float(getattr(one, kind)) for one in found.tasks)
            for kind in ("zero_shot", "single", "added")
        }
        cosine = float((before * self.sentences(encoder)).sum(1).mean())
        store.write_json(file, {"cosine": cosine, **mean, **shares})
        return {"cosine": cosine, **mean, **shares}


def table(found: Mapping[str, Sequence[Mapping[str, float]]]) -> list[dict[str, Any]]:
    """A row for each way: means over seeds, sample standard deviations, and shares of MiniLM's gains."""
    rows = []
    for how, runs in found.items():
        cells: dict[str, Any] = {"how": how}
        for kind in ("cosine", "zero_shot", "single", "added"):
            values = [run[kind] for run in runs]
            cells[kind] = statistics.mean(values)
            cells[f"{kind} +-"] = statistics.stdev(values) if values[1:] else None
        for kind in ("single", "added"):
            gains = [
                (run[kind] - run["zero_shot"]) / (own[kind] - own["zero_shot"])
                for run, own in zip(runs, found["minilm"], strict=True)
                if own[kind] != own["zero_shot"]
            ]
            cells[f"gain kept, {kind}"] = statistics.mean(gains) if gains else None
            cells[f"{kind} kept +-"] = statistics.stdev(gains) if gains[1:] else None
        rows.append(cells)
    return rows


def main() -> None:
    """Make, measure and print."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--size", type=int, default=8000)
    asked.add_argument("--how", nargs="+", default=list(WAYS))
    asked.add_argument("--tasks", nargs="+")
    asked.add_argument(
        "--words", default="debian_section", help="the task whose texts the tokenizer is trained on"
    )
    asked.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    asked.add_argument("--rows", type=int, default=240)
    asked.add_argument("--steps", type=int, default=40)
    asked.add_argument("--regime", choices=("standard", "linear"), default="standard")
    asked.add_argument("--out", type=Path, default=Path("out/vocabulary"))
    given = asked.parse_args()
    tasks = [
        task.subset(train=given.rows, validation=given.rows // 4, test=given.rows // 2)
        for task in ts.suite(given.tasks)
    ]
    texts = [str(text) for text in ts.suite([given.words])[0].split("train").inputs]
    out = given.out / f"{given.size}-{given.words}-{given.rows}-{given.steps}-{given.regime}"
    tokenizer = made_tokenizer(out / "tokenizer", texts, given.size)
    settings = ts.Settings(
        given.regime, epochs=1000, max_steps=given.steps, batch_size=BATCH, max_tokens=TOKENS
    )
    study = Study(tasks, tokenizer, texts, settings, out)
    found: dict[str, list[dict[str, float]]] = {}
    with progress("vocabulary", (len(given.how) + 1) * len(given.seeds)) as advance:
        for how in ("minilm", *given.how):
            found[how] = []
            for seed in given.seeds:
                with ts.quiet():
                    found[how].append(study.row(how, seed))
                advance(1, f"{how}, seed {seed}")
    said = (
        f"MiniLM with a WordPiece vocabulary of {given.size} trained on {given.words}; test accuracy, mean over "
        f"{', '.join(task.name for task in tasks)}; seeds {', '.join(map(str, given.seeds))}; "
        f"{given.steps} {given.regime} steps of {BATCH} "
        "rows; gain kept: accuracy over zero shot, as a share of MiniLM's own with the same seed"
    )
    rows = table(found)
    sys.stdout.write(Table("Ways to fill a vocabulary", rows, said).to_markdown() + "\n")
    store.write_json(out / "results.json", {"said": said, "rows": rows, "runs": found})


if __name__ == "__main__":
    main()
