"""`Mails`: a model that is to write less spam; what it writes is judged by a frozen classifier of another model."""

import dataclasses
import functools
import math
import random
from pathlib import Path

from benchmarks.unlearning import measures
from benchmarks.unlearning.methods import Edited, ascent
from benchmarks.unlearning.plan import Plan
from benchmarks.unlearning.tables import Found, chosen, told
from benchmarks.unlearning.texts import continued
from benchmarks.unlearning.world import Methods, Numbers, World, negation, random_edit

import tauspan as ts
from tauspan.core.report import Table
from tauspan.models import Encoder
from tauspan.tasks import Task

MAILS, BESIDE = "email_spam", ("movie_sentiment", "debian_section")
SPAM = 1  # the class of unwanted mails
BEGINNING = 3  # words of a mail that a text begins with
WRITTEN = 24  # tokens


class Mails(World):
    """Spam is unwanted; other mails, film reviews and descriptions of packages are to be kept, a third each."""

    def __init__(self, encoder: Encoder, plan: Plan, seed: int, out: Path) -> None:
        mails, *beside = ts.suite([MAILS, *BESIDE])
        sizes = {"train": plan.mails, "validation": plan.mails // 4, "test": plan.mails // 2}
        spam, wanted, self.beginnings = {}, {}, []
        for split, size in sizes.items():
            rows = mails.split(split)
            sorted_out: list[list[str]] = [[], []]
            for text, label in zip(rows.inputs, rows.labels.tolist(), strict=True):
                sorted_out[label == SPAM].append(text)
            kept = [sorted_out[0], *(list(one.split(split).inputs) for one in beside)]
            draw = random.Random(f"mails/{seed}/{split}")
            spam[split] = _drawn(sorted_out[1], size, draw), None
            wanted[split] = [text for one in kept for text in _drawn(one, max(size // 3, 1), draw)], None
            if split == "test":
                self.beginnings = [
                    " ".join(text.split()[:BEGINNING]) for text in _drawn(rows.inputs, plan.samples, draw)
                ]
        tasks = (Task.from_tensors(name, [], objective="next-token", **splits)
                 for name, splits in (("spam", spam), ("wanted", wanted)))  # fmt: skip
        super().__init__(encoder, plan, seed, out, *tasks)

    @property
    def before(self) -> Encoder:
        """The pre-trained model."""
        return self.encoder

    def numbers(self, edited: Edited) -> Numbers:
        """Whether each text that the model writes is spam, and the losses of held-out texts."""
        model, (judge, accuracy) = edited.model, _judge()
        written = continued(
            model, self.encoder, self.beginnings, WRITTEN, temperature=1.0, seed=self.seed, least=WRITTEN
        )
        called = judge.predict([text if text.strip() else "." for text in written], MAILS)
        return {
            "spam": [float(one.label == "spam") for one in called],
            "unwanted": measures.losses(model, self.encoder, self.forget.split("test")).tolist(),
            "wanted": measures.losses(model, self.encoder, self.guard.split("test")).tolist(),
            "judge": accuracy,
            "written": written[:5],
        }


def _drawn(texts: list[str], count: int, draw: random.Random) -> list[str]:
    return draw.sample(list(texts), min(count, len(texts)))


@functools.cache
def _judge() -> tuple[Encoder, float]:
    """MiniLM with a linear probe on mails that the language model is not measured on, and its accuracy on the others."""
    encoder = ts.load("minilm")
    task = ts.suite([MAILS])[0].subset(train=800, validation=8, test=400)
    task = dataclasses.replace(task, head_from="probe", label_prompts=(), max_tokens=32)
    accuracy = ts.evaluate(encoder, [task]).tasks[0].value
    return encoder, accuracy


METHODS: Methods = {
    "pre-trained": lambda one: Edited(one.before),
    "trained on spam": lambda one: Edited(ts.apply(one.before, one.vector("standard"))),
    "gradient ascent": lambda one: one.descent("gradient ascent", ascent, one.forget),
    "NPO": World.preference,
    "random vector": random_edit,
    "standard negation": negation("standard"),
    "linear negation": negation("linear"),
}


def tables_of(found: Found, plan: Plan) -> list[Table]:
    """How much spam a model writes, and what that costs."""
    judge = next(one["judge"] for by in found.values() for one in by.values())
    written, costs = [], []
    for name, by in found.items():
        spam, unwanted, wanted = ([one[key] for one in by.values()] for key in ("spam", "unwanted", "wanted"))
        written.append({
            "method": name, "share of spam": told(spam), "perplexity of spam": told(unwanted, math.exp, 1),
        })  # fmt: skip
        costs.append({"method": name, "perplexity": told(wanted, math.exp, 1), "chosen": chosen(by)})
    drawn = f"95 % intervals by bootstrap over texts and seeds ({', '.join(map(str, plan.seeds))})"
    judged = (
        f"share of {plan.samples} sampled texts that a frozen classifier calls spam (MiniLM with a probe, accuracy "
        f"{judge:.3f} on held-out mails); each has {WRITTEN} tokens after {BEGINNING} words of a held-out mail, which "
        f"the classifier does not see; {drawn}"
    )
    rule = (
        "chosen on validation: most perplexity of spam with that of other texts at most "
        f"1 / {plan.floor:g} of what it was; {drawn}"
    )
    return [Table("Spam", written, judged), Table("Other texts, and what was chosen", costs, rule)]
