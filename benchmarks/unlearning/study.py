"""`study`: people are learned, some are forgotten by every method, and all is measured against training without them."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeAlias

from benchmarks.unlearning.methods import Edited, ascent, kept_on, negated, random_vector
from benchmarks.unlearning.plan import OTHERS, SMALL, Plan
from benchmarks.unlearning.small import make_small
from benchmarks.unlearning.tables import tables_of, trade
from benchmarks.unlearning.world import Numbers, World

import tauspan as ts
from tauspan import store
from tauspan.core.arguments import checked
from tauspan.core.report import Report, noted, provenance
from tauspan.models import Encoder, fingerprint_of
from tauspan.store.stages import Stages
from tauspan.tasks import made_up_people

Method: TypeAlias = Callable[[World], Edited]


def _negation(regime: str) -> Method:
    return lambda one: negated(one.learned, one.vector(regime), one.forget, one.guard, one.plan)


def _random(one: World) -> Edited:
    vector = random_vector(one.vector("standard"), one.seed)
    return negated(one.learned, vector, one.forget, one.guard, one.plan)


METHODS: Mapping[str, Method] = {
    "learned": lambda one: Edited(one.learned),
    "gold": lambda one: Edited(one.gold),
    "gold, other order": lambda one: Edited(one.gold_again),
    "gradient ascent": lambda one: one.descent("gradient ascent", ascent, one.forget),
    "NPO": World.preference,
    "kept people again": lambda one: one.descent("kept people again", kept_on, one.keep),
    "random vector": _random,
    "standard negation": _negation("standard"),
    "linear negation": _negation("linear"),
}


@noted
@checked
def study(out: str | Path, plan: Plan | None = None) -> Report:
    """What does a language model still know of people after it was made to forget them?

    A model learns eight facts of each of some people who do not exist (`tauspan.tasks.made_up_people`), by ordinary
    fine-tuning. Each method then makes it forget some of them. The gold standard is the same fine-tuning without these
    people; another gold standard, with the rows in another order, shows how far apart two honest models are.

    Every method chooses its strength by one rule: the most perplexity of the forgotten answers on validation (rephrased
    questions) while that of the kept ones is within the floor. Then, of forgotten and of kept people: probability of the
    answers, normalised by length; truth ratio; ROUGE-L recall of the greedy answers; the total variation to the gold
    standard. Of forgotten people also a membership test against people whom no model has seen, and TOFU's forget quality.
    And the perplexity of English texts.

    Args:
        out: the folder: models, vectors, stages, `report.json`, `report.md`, `trade.png`. Work found there is not done
            again.
        plan: what to cover; None takes the defaults of `Plan`.

    Returns:
        A `Report`; `report.result["methods"]` has each method's numbers by seed and person. The files are written after
        every seed.

    Cost:
        Per seed: three fine-tunings on all facts, two on the forgotten ones, three descents of `steps` steps with a pass
        over the validation rows every few, and for each method a pass over the facts with seven answers each.
    """
    return _Study(Path(out), Plan() if plan is None else plan).carry_out()


class _Study:
    """A study under way."""

    def __init__(self, out: Path, plan: Plan) -> None:
        self.out, self.plan, self.stages = out, plan, Stages(out / "stages")
        self.key = {name: value for name, value in dataclasses.asdict(plan).items() if name != "seeds"}
        self.found: dict[str, dict[int, Numbers]] = {}

    def carry_out(self) -> Report:
        """All seeds, one after the other; the files are written after each."""
        encoder = self.encoder()
        report = None
        for seed in self.plan.seeds:
            world = World(encoder, self.plan, seed, self.out / f"seed{seed}")
            for number, (name, method) in enumerate(METHODS.items()):
                work = functools.partial(self.measured, world, method)
                stage = self.stages.do(
                    name, "measured", f"seed{seed}-{number}", [self.key, seed, name, world.base], work
                )
                self.found.setdefault(name, {})[seed] = stage.content
            report = self.write(encoder)
        assert report is not None  # noqa: S101 - a plan has a seed
        return report

    def encoder(self) -> Encoder:
        """The model before it learns of the people."""
        if self.plan.model != SMALL:
            return ts.load(self.plan.model, language=self.plan.tokens)  # type: ignore[return-value]
        plan, folder = self.plan, self.out / "small"

        def work() -> Numbers:
            make_small(
                folder, made_up_people(plan.known, seed=OTHERS), steps=plan.small_steps, tokens=plan.tokens,
                width=plan.width, layers=plan.layers, words=plan.words, batch_size=24, seed=0,
            )  # fmt: skip
            return {}

        key = {
            name: self.key[name] for name in ("known", "small_steps", "width", "layers", "words", "tokens")
        }
        self.stages.do("small model", "trained", "small", key, work, folder / "config.json")
        return ts.load(folder, language=plan.tokens)  # type: ignore[return-value]

    def measured(self, world: World, method: Method) -> Numbers:
        """One method's numbers on one seed."""
        edited = method(world)
        return {"chosen": edited.chosen, **world.numbers(edited)}

    def write(self, encoder: Encoder) -> Report:
        """The report of all that is there, after its files were written."""
        facts = provenance(
            base=encoder.source, fingerprint=fingerprint_of(encoder), plan=dataclasses.asdict(self.plan)
        )
        tables = [*tables_of(self.found, self.plan), ts.Table("Cost", self.stages.rows(), "wall time")]
        result = {
            "methods": {name: {str(seed): one for seed, one in by.items()} for name, by in self.found.items()}
        }
        series = trade(self.found)
        report = Report("What is still known of forgotten people", tables, facts, series, result)  # fmt: skip
        store.write_text(self.out / "report.json", report.to_json())
        store.write_text(self.out / "report.md", report.to_markdown())
        return report
