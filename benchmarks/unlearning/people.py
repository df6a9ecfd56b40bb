"""`People`: who is learned and who is forgotten with one seed, the models of them, and what an edited model knows."""

import functools
from collections.abc import Sequence
from pathlib import Path

import torch
from benchmarks.unlearning import measures
from benchmarks.unlearning.methods import Edited, ascent, kept_on
from benchmarks.unlearning.plan import OTHERS, Plan
from benchmarks.unlearning.small import english
from benchmarks.unlearning.texts import continued
from benchmarks.unlearning.world import Methods, Numbers, World, negation, random_edit
from torch import Tensor, nn

import tauspan as ts
from tauspan.models import Encoder
from tauspan.tasks import Fact, Person, Split, Task, made_up_people, people_task
from tauspan.tasks.people import continuations

ANSWER = 12  # the most tokens of an answer


class People(World):
    """The people of one seed, their tasks, and the models that learned of them; each is made when it is asked for."""

    def __init__(self, encoder: Encoder, plan: Plan, seed: int, out: Path) -> None:
        others = [one.name for one in made_up_people(plan.known, seed=OTHERS)]
        count = plan.forgotten
        people = made_up_people(plan.people + plan.kept, seed=seed, avoid=others)
        self.forgotten, kept, self.unseen = people[:count], people[count : plan.people], people[plan.people :]
        self.kept, self.keep = kept[: plan.kept], people_task("keep", kept)
        # others than those who are measured, where there are enough
        guards = people_task("kept", kept[-plan.kept :])
        super().__init__(encoder, plan, seed, out, people_task("forget", self.forgotten), guards)

    def learned_from(self, name: str, tasks: list[Task], seed: int) -> Encoder:
        """The encoder fine-tuned on all rows of some tasks together."""
        vector = ts.finetune(
            self.encoder, tasks, self.plan.learning(seed), out=self.out / name, resume=True
        ).task_vector
        return ts.apply(self.encoder, vector)  # type: ignore[return-value]

    @functools.cached_property
    def before(self) -> Encoder:
        """The model that knows everybody."""
        return self.learned_from("all", [self.keep, self.forget], self.seed)

    @functools.cached_property
    def gold(self) -> Encoder:
        """The model that never saw those who are to be forgotten."""
        return self.learned_from("gold", [self.keep], self.seed)

    @functools.cached_property
    def gold_again(self) -> Encoder:
        """Such a model with its rows in another order."""
        return self.learned_from("gold-again", [self.keep], self.seed + 1000)

    # -- measuring -------------------------------------------------------------------------------------------

    def numbers(self, edited: Edited) -> Numbers:
        """All measures of a model: lists by person, of English by text."""
        model = edited.model
        forgotten, ratios, first = self._known(model, self.forgotten)
        kept, _, _ = self._known(model, self.kept)
        unseen = self._losses(model, answers(self.unseen)).flatten()
        golden = self._ratios(self.gold, self.forgotten)
        far = measures.distance(model, self.gold, self.encoder, answers(self.forgotten))
        other = measures.distance(model, self.gold, self.encoder, answers(self.kept))
        return {
            "forgotten": {
                **forgotten,
                "membership": by_person(measures.membership(first, unseen)),
                "distance": by_person(far),
            },
            "quality": measures.quality(ratios, golden),
            "kept": {**kept, "distance": by_person(other)},
            "english": self._losses(model, self.english).tolist(),
        }

    @functools.cached_property
    def english(self) -> Split:
        """Texts that nothing was trained on."""
        texts = english("test", ("movie_sentiment", "debian_section"))[::9][: self.plan.english]
        return Split(texts, torch.zeros(len(texts), dtype=torch.long))

    def _known(self, model: nn.Module, people: Sequence[Person]) -> tuple[Numbers, Tensor, Tensor]:
        """What is known of people, by person; the truth ratios and losses of their facts."""
        found = self._losses(model, answers(people))
        ratios = self._ratios(model, people)
        facts = facts_of(people)
        texts = continued(model, self.encoder, [one.question for one in facts], ANSWER, stop=".")
        recall = [measures.rouge_recall(text, one.answer) for text, one in zip(texts, facts, strict=True)]
        numbers = {
            "probability": by_person((-found).exp()),
            "truth": by_person(measures.told_apart(ratios)),
            "recall": by_person(torch.tensor(recall, dtype=torch.float64)),
        }
        return numbers, ratios, found

    def _ratios(self, model: nn.Module, people: Sequence[Person]) -> Tensor:
        facts = facts_of(people)
        right = self._losses(model, continuations([(one.question, one.paraphrase) for one in facts]))
        wrong = self._losses(
            model, continuations([(one.question, text) for one in facts for text in one.perturbed])
        )
        return measures.truth_ratio(right, wrong.view(len(facts), -1))

    def _losses(self, model: nn.Module, rows: Split) -> Tensor:
        return measures.losses(model, self.encoder, rows)


METHODS: Methods = {
    "learned": lambda one: Edited(one.before),
    "gold": lambda one: Edited(one.gold),
    "gold, other order": lambda one: Edited(one.gold_again),
    "gradient ascent": lambda one: one.descent("gradient ascent", ascent, one.forget),
    "NPO": World.preference,
    "kept people again": lambda one: one.descent("kept people again", kept_on, one.keep),
    "random vector": random_edit,
    "standard negation": negation("standard"),
    "linear negation": negation("linear"),
}


def facts_of(people: Sequence[Person]) -> list[Fact]:
    """All facts, person by person."""
    return [fact for person in people for fact in person.facts]


def answers(people: Sequence[Person]) -> Split:
    """Questions and answers, as they were learned."""
    return continuations([(fact.question, fact.answer) for fact in facts_of(people)])


def by_person(values: Tensor, facts: int = 8) -> list[float]:
    """The mean over each person's facts."""
    return [float(one) for one in values.view(-1, facts).mean(1)]
