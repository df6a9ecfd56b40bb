"""What a model with another vocabulary makes of texts, beside the one it came from: `compare`."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tauspan import models, store
from tauspan.core.arguments import checked
from tauspan.core.errors import DataError, UsageError
from tauspan.core.measure import progress
from tauspan.core.report import Cell, Report, Table, provenance
from tauspan.core.results import Result
from tauspan.editing.search.bootstrap import DRAWS, Interval, bracketed, quotient_interval
from tauspan.models import Classifier, Encoder, folders, load_model
from tauspan.models.encoder import positions
from tauspan.models.sources import model_directory
from tauspan.objectives import objective_of
from tauspan.objectives.tokens import IGNORED
from tauspan.tasks import Split, Task, build_head
from tauspan.tasks.batches import batches
from tauspan.tasks.features import features_of

_GENERATES = re.compile(r"(CausalLM|LMHeadModel)$")


@dataclass(frozen=True, kw_only=True)
class Readings(Result):
    """How two models read the same texts.

    Args:
        texts: that were read whole by both.
        words: in them, between blanks.
        tokens: into which each tokenizer cuts them, the old model first; without special tokens.
        perplexity: of language models exp(-log p(texts) / words), the old model first; None of others.
        cosine: of other models the mean cosine between their features of a text; None of language models.
        interval: the 95 % interval of the ratio of perplexities or of the mean cosine, by resampling texts.
    """

    texts: int
    words: int
    tokens: tuple[int, int]
    perplexity: tuple[float, float] | None
    cosine: float | None
    interval: Interval

    @property
    def ratio(self) -> float | None:
        """The new model's perplexity for each word over the old one's; 1 is as good."""
        return None if self.perplexity is None else self.perplexity[1] / self.perplexity[0]

    @property
    def verdict(self) -> str:
        """What came out, in a sentence or two."""
        before, after = (one / max(self.words, 1) for one in self.tokens)
        cut = f" A word takes {after:.2f} tokens instead of {before:.2f}."
        if self.perplexity is None:
            return (
                f"The features of {self.texts} texts have a mean cosine of {self.cosine:.3f} {bracketed(self.interval)} "
                f"to what they were.{cut}"
            )
        old, new = self.perplexity
        return (
            f"Perplexity for each word is {new:.4g} instead of {old:.4g}: {self.ratio:.3g} times as much "
            f"{bracketed(self.interval)}.{cut}"
        )

    def report(self) -> Report:
        """The verdict and the numbers."""
        told: dict[str, tuple[Cell, Cell]] = {"tokens": self.tokens}
        if self.perplexity is not None:
            told["perplexity for each word"] = self.perplexity
        rows: list[dict[str, Cell]] = [
            {"what": what, "before": old, "after": new} for what, (old, new) in told.items()
        ]
        if self.cosine is not None:
            rows.append({"what": "mean cosine of features", "before": None, "after": self.cosine})
        else:
            rows.append({"what": "ratio", "before": None, "after": self.ratio})
        rows.append({"what": "95 % interval", "before": None, "after": bracketed(self.interval)})
        note = (
            f"{self.texts} texts of {self.words} words; perplexity: exp(-log p / words), first tokens excepted; "
            "interval: of the line above, by resampling texts"
        )
        return Report(
            "vocabulary comparison", [Table("texts", rows, note)], dict(self.provenance), verdict=self.verdict
        )


@checked
def compare(
    model: str | Path,
    other: str | Path,
    texts: Sequence[str],
    *,
    max_tokens: int = 256,
    batch_size: int = 16,
) -> Readings:
    """How a grafted model reads texts beside the model that it came from, or any two models that read texts.

    Perplexities of two tokenizers are not comparable for each token, since a token is another piece of text. So the
    log-probability of the same texts is taken for each word: exp(-log p / words). Of models that do not generate, the
    cosine between their features of a text is taken. A text that one of the models would cut is left out, and of language
    models one that has a single token in either vocabulary. The first token of a text is not predicted, and its words are
    counted all the same, so texts should be long.

    Args:
        model: the old model: a directory or a hub id.
        other: the new one.
        texts: of the kind that the models will read.
        max_tokens: texts with as many tokens in either vocabulary are left out, or with as many as a model has positions.
        batch_size: texts that are read at once.

    Raises:
        DataError: no text, or none of a length that can be read.
        UsageError: one of the models generates and the other does not, or a batch of no text.

    Cost: a forward pass over the texts by each model.

    Example:
        >>> found = compare("minilm", "minilm", ["a film that moves", "rain all day"])
        >>> round(found.cosine, 4), found.ratio
        (1.0, None)
    """
    if not texts:
        raise DataError(
            f"there is no text to compare {model} and {other} on: give at least one, of the kind that they will read."
        )
    if batch_size < 1:
        raise UsageError(f"batch_size={batch_size}: at least one text has to be read at once.")
    sides = [_opened(one, max_tokens) for one in (model, other)]
    encoders, lengths = [encoder for encoder, _ in sides], [length for _, length in sides if length]
    if len(lengths) == 1:
        generates, not_ = (model, other) if sides[0][1] else (other, model)
        raise UsageError(f"{generates} generates texts and {not_} does not: compare models of one kind.")
    limits = [encoder.inputs.limit or positions(encoder.backbone) for encoder in encoders]
    max_tokens = min([max_tokens, *lengths, *(limit for limit in limits if limit)])
    counts = [_lengths(encoder, texts) for encoder in encoders]
    least = 2 if lengths else 1
    kept = [
        place
        for place, both in enumerate(zip(*counts, strict=True))
        if min(both) >= least and max(both) < max_tokens
    ]
    each = torch.tensor([len(texts[place].split()) for place in kept])
    words = int(each.sum())
    if not words:
        raise DataError(
            f"none of {len(texts)} texts has a word, {least} tokens or more and fewer than {max_tokens}: give others, or "
            "a larger max_tokens (--max-tokens)."
        )
    some = [texts[place] for place in kept]
    old, new = (sum(_lengths(encoder, some, add_special_tokens=False)) for encoder in encoders)
    if lengths:
        first, second = (_log_losses(encoder, some, max_tokens, batch_size) for encoder in encoders)
        low, high = quotient_interval(second - first, each, DRAWS)
        return Readings(
            texts=len(some), words=words, tokens=(old, new), perplexity=(_exp(first, words), _exp(second, words)),
            cosine=None, interval=(math.exp(low), math.exp(high)), provenance=provenance(),
        )  # fmt: skip
    before, after = (
        features_of(encoder, _rows(some), max_tokens, batch_size).double() for encoder in encoders
    )
    cosines = torch.nn.functional.cosine_similarity(before, after)
    return Readings(
        texts=len(some), words=words, tokens=(old, new), perplexity=None, cosine=float(cosines.mean()),
        interval=quotient_interval(cosines, torch.ones(len(some)), DRAWS), provenance=provenance(),
    )  # fmt: skip


def _opened(name: str | Path, max_tokens: int) -> tuple[Encoder, int | None]:
    """A model, and for a language model the most tokens that it reads."""
    folder = model_directory(str(name))
    file = folders.main_folder(folder) / "config.json"
    config = store.read_json(file) if file.is_file() else {}
    if not any(_GENERATES.search(str(kind)) for kind in config.get("architectures") or ()):
        return load_model(folder), None
    most = config.get("max_position_embeddings", config.get("n_positions"))
    length = min(max_tokens, most) if isinstance(most, int) and most > 1 else max_tokens
    return load_model(folder, language=length), length


def _lengths(encoder: Encoder, texts: Sequence[str], **options: bool) -> list[int]:
    return [len(one) for one in encoder.inputs.tokenizer(list(texts), **options)["input_ids"]]


def _rows(texts: Sequence[str]) -> Split:
    """Texts without labels."""
    return Split(list(texts), torch.zeros(len(texts), dtype=torch.long))


def _exp(losses: Tensor, words: int) -> float:
    return math.exp(float(losses.sum()) / words)


def _log_losses(encoder: Encoder, texts: Sequence[str], max_tokens: int, batch_size: int) -> Tensor:
    """-log p of each text in nats, but for its first token, shape (texts,)."""
    rows = _rows(texts)
    task = Task("texts", [], dict.fromkeys(("train", "validation", "test"), rows),
                objective=objective_of("next-token"))  # fmt: skip
    head = build_head(task, encoder, max_tokens=max_tokens)
    classifier, objective = Classifier(encoder, head), task.objective.bound(encoder.language)
    total = torch.zeros(len(texts), dtype=torch.float64)
    with torch.no_grad(), models.eval_mode(classifier), progress("reading", len(texts)) as advance:
        for places, batch in batches(encoder, rows, max_tokens, batch_size, objective):
            some = rows.take(places)
            targets = objective.targets(some.inputs, some.labels, encoder.language, max_tokens)
            sizes = (targets != IGNORED).sum(1)
            losses = objective.losses(classifier(batch), targets).double().cpu()
            total[places] = losses * sizes.cpu()
            advance(len(places), "")
    return total
