"""`study`: what is forgotten by every method, with every seed, and what is left of it; each piece of work once."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path

from benchmarks.unlearning import mails, people
from benchmarks.unlearning.methods import Edited
from benchmarks.unlearning.plan import OTHERS, SMALL, Plan
from benchmarks.unlearning.small import make_small
from benchmarks.unlearning.tables import PICTURES, Found, tables_of, trade
from benchmarks.unlearning.world import Methods, Numbers, World

import tauspan as ts
from tauspan import store
from tauspan.core.arguments import checked
from tauspan.core.errors import UsageError, nearest
from tauspan.core.report import Report, Table, noted, provenance
from tauspan.experiments.figures import Series, draw
from tauspan.models import Encoder, fingerprint_of
from tauspan.store.stages import Stages
from tauspan.tasks import made_up_people


@dataclasses.dataclass(frozen=True)
class Question:
    """What a study asks.

    Args:
        title: of its report.
        world: makes what is forgotten and kept with a seed.
        methods: by name.
        tables: from each method's numbers by seed.
        series: for pictures.
    """

    title: str
    world: Callable[[Encoder, Plan, int, Path], World]
    methods: Methods
    tables: Callable[[Found, Plan], list[Table]]
    series: Callable[[Found], list[Series]] = lambda found: []


QUESTIONS: Mapping[str, Question] = {
    "people": Question(
        "What is still known of forgotten people", people.People, people.METHODS, tables_of, trade
    ),
    "mails": Question("How much spam is still written", mails.Mails, mails.METHODS, mails.tables_of),
}


@noted
@checked
def study(out: str | Path, plan: Plan | None = None, ask: str = "people") -> Report:
    """What does a language model still know, or write, after it was made to forget it?

    `"people"`: a model learns eight facts of each of some people who do not exist (`tauspan.tasks.made_up_people`), by
    ordinary fine-tuning. Each method then makes it forget some of them. The gold standard is the same fine-tuning without
    these people; another gold standard, with the rows in another order, shows how far apart two honest models are.
    Measured of forgotten and of kept people: probability of the answers, normalised by length; truth ratio; ROUGE-L
    recall of the greedy answers; the total variation to the gold standard. Of forgotten people also a membership test
    against people whom no model has seen, and TOFU's forget quality. And the perplexity of English texts.

    `"mails"`: a model is to write less spam. Vectors come from spam mails; measured are the share of sampled texts that a
    frozen classifier calls spam, and the perplexity of other texts.

    Every method chooses its strength by one rule, on validation rows: the most perplexity of what is to be forgotten
    while that of what is to be kept is within the floor.

    Args:
        out: the folder: models, vectors, stages, and of each question its report as JSON and Markdown, and a picture of
            the first. Work found there is not done again.
        plan: what to cover; None takes the defaults of `Plan`.
        ask: `"people"` or `"mails"`.

    Returns:
        A `Report`; `report.result["methods"]` has each method's numbers by seed and person. The files are written after
        every seed.

    Raises:
        UsageError: an unknown question.

    Cost:
        Per seed: three fine-tunings on all facts, two on the forgotten ones, three descents of `steps` steps with a pass
        over the validation rows every few, and for each method a pass over the facts with seven answers each.
    """
    if ask not in QUESTIONS:
        raise UsageError(f"ask={ask!r}. {nearest(ask, QUESTIONS)}")
    return _Study(Path(out), Plan() if plan is None else plan, ask).carry_out()


class _Study:
    """A study under way."""

    def __init__(self, out: Path, plan: Plan, ask: str) -> None:
        self.out, self.plan, self.ask, self.stages = out, plan, ask, Stages(out / "stages")
        self.question = QUESTIONS[ask]
        self.key = {name: value for name, value in dataclasses.asdict(plan).items() if name != "seeds"}
        self.found: dict[str, dict[int, Numbers]] = {}

    def carry_out(self) -> Report:
        """All seeds, one after the other; the files are written after each."""
        encoder = self.encoder()
        report = None
        for seed in self.plan.seeds:
            world = self.question.world(encoder, self.plan, seed, self.out / f"{self.ask}{seed}")
            for number, (name, method) in enumerate(self.question.methods.items()):
                work = functools.partial(self.measured, world, method)
                stage = self.stages.do(
                    name, "measured", f"{self.ask}{seed}-{number}", [self.key, seed, name, world.base], work
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

    def measured(self, world: World, method: Callable[[World], Edited]) -> Numbers:
        """One method's numbers on one seed."""
        edited = method(world)
        return {"chosen": edited.chosen, **world.numbers(edited)}

    def write(self, encoder: Encoder) -> Report:
        """The report of all that is there, after its files were written."""
        facts = provenance(
            base=encoder.source, fingerprint=fingerprint_of(encoder), plan=dataclasses.asdict(self.plan)
        )
        tables = [
            *self.question.tables(self.found, self.plan),
            Table("Cost", self.stages.rows(), "wall time"),
        ]
        result = {
            "methods": {name: {str(seed): one for seed, one in by.items()} for name, by in self.found.items()}
        }
        report = Report(self.question.title, tables, facts, self.question.series(self.found), result)
        store.write_text(self.out / f"{self.ask}.json", report.to_json())
        store.write_text(self.out / f"{self.ask}.md", report.to_markdown())
        draw(report, self.out, PICTURES, ("png",))
        return report
