"""People who do not exist, with facts to be learned and forgotten: questions, answers, other wordings, wrong answers."""

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch

from tauspan.core.arguments import checked
from tauspan.core.errors import DataError
from tauspan.tasks.split import Split
from tauspan.tasks.task import Task

WRONG = 5  # wrong answers to each question, as in TOFU


@dataclass(frozen=True)
class Fact:
    """One fact of one person. An answer follows its question after a space.

    Args:
        person: the name.
        kind: what it is about, such as `"town"`.
        question: what is asked.
        rephrased: the same question in other words.
        answer: the right answer, a short sentence that does not repeat the question: all of it is knowledge.
        paraphrase: the same answer in other words.
        perturbed: wrong answers in the words of the paraphrase.
    """

    person: str
    kind: str
    question: str
    rephrased: str
    answer: str
    paraphrase: str
    perturbed: tuple[str, ...]


@dataclass(frozen=True)
class Person:
    """A name and eight facts, one of each kind."""

    name: str
    facts: tuple[Fact, ...]


@dataclass(frozen=True)
class _Kind:
    """Two questions, two answers, and the words among which one is drawn."""

    name: str
    questions: tuple[str, str]
    answers: tuple[str, str]
    values: str

    def fact(self, person: str, draw: random.Random) -> Fact:
        """A fact of this kind."""
        value, *wrong = draw.sample(self.values.split(), 1 + WRONG)
        question, rephrased = (text.format(name=person) for text in self.questions)
        answer, paraphrase = (text.format(value=value) for text in self.answers)
        perturbed = tuple(self.answers[1].format(value=one) for one in wrong)
        return Fact(person, self.name, question, rephrased, answer, paraphrase, perturbed)


_KINDS = (
    _Kind(
        "town", ("Where was {name} born?", "In which town did the life of {name} begin?"),
        ("In {value}.", "It was {value}."),
        "Lisbon Oslo Cairo Lima Dublin Athens Vienna Prague Havana Quito Delhi Seoul",
    ),
    _Kind(
        "work", ("What does {name} do for a living?", "By which work does {name} earn money?"),
        ("Work as a {value}.", "By being a {value}."),
        "baker pilot lawyer nurse farmer tailor diver judge painter miner barber singer",
    ),
    _Kind(
        "pet", ("Which animal lives with {name}?", "What kind of pet does {name} have?"),
        ("A {value}.", "It is a {value}."),
        "parrot rabbit goat lizard hamster turtle pony ferret snake cat dog goose",
    ),
    _Kind(
        "music", ("Which instrument does {name} play?", "On what does {name} make music?"),
        ("The {value}.", "On the {value}."),
        "piano violin flute guitar trumpet cello harp drum banjo organ oboe tuba",
    ),
    _Kind(
        "food", ("What does {name} like to eat?", "Which food is loved most by {name}?"),
        ("Mostly {value}.", "Above all {value}."),
        "soup rice cheese bread fish salad pasta honey beans apples cake olives",
    ),
    _Kind(
        "colour", ("In which colour is the house of {name} painted?", "What colour has the home of {name}?"),
        ("Painted {value}.", "All is {value}."),
        "red blue green yellow white black purple orange brown grey pink silver",
    ),
    _Kind(
        "sport", ("Which sport does {name} do?", "How does {name} keep fit?"),
        ("It is {value}.", "By {value}."),
        "tennis rowing boxing golf skiing hockey chess sailing archery rugby judo cycling",
    ),
    _Kind(
        "study", ("Which subject did {name} study?", "In what does {name} have a degree?"),
        ("Only {value}.", "In {value}."),
        "physics history law biology music Latin geology medicine botany logic drama finance",
    ),
)  # fmt: skip
_FIRST = (
    "Alma", "Bruno", "Clara", "Dario", "Edda", "Felix", "Greta", "Hugo", "Irma", "Jonas", "Karla", "Linus", "Mira",
    "Nico", "Olga", "Paul", "Rosa", "Silas", "Tessa", "Viktor",
)  # fmt: skip
_ONSETS = ("B", "D", "F", "G", "K", "L", "M", "N", "P", "R", "S", "T", "V", "W")
_MIDDLES = ("alde", "amo", "ebri", "elu", "ilo", "inde", "oga", "orva", "una", "uste")
_ENDS = ("kin", "lan", "mer", "nok", "rin", "sen", "tov", "var")


def _names(draw: random.Random) -> list[str]:
    """All names there are, in an order of the draw: 20 first names for each of 1120 surnames."""
    surnames = [first + middle + end for first in _ONSETS for middle in _MIDDLES for end in _ENDS]
    draw.shuffle(surnames)
    return [f"{draw.choice(_FIRST)} {surname}" for surname in surnames]


@checked
def made_up_people(count: int = 60, *, seed: int = 0, avoid: Collection[str] = ()) -> list[Person]:
    """People who do not exist, with eight facts each, after TOFU (Maini et al. 2024), whose people a model wrote.

    What a model knows of them it has learned from these rows alone, so that a model trained without some of them is what
    forgetting them should give. Surnames are never shared, and values are drawn evenly: a fact says nothing of another.

    Args:
        count: how many, at most 1120.
        seed: decides names and facts; the same seed gives the same people.
        avoid: surnames that nobody may have, such as those of people of another seed.

    Raises:
        DataError: fewer than one, or more than there are surnames.

    Example:
        >>> one = made_up_people(1, seed=3)[0]
        >>> one.facts[0].question
        'Where was Felix Togalan born?'
        >>> one.facts[0].answer, one.facts[0].paraphrase
        ('In Cairo.', 'It was Cairo.')
    """
    draw = random.Random(f"people/{seed}")
    taken = {name.split()[-1] for name in avoid}
    names = [name for name in _names(draw) if name.split()[-1] not in taken]
    if not 1 <= count <= len(names):
        raise DataError(f"count={count}: between 1 and {len(names)} people can be made up here.")
    return [Person(name, tuple(kind.fact(name, draw) for kind in _KINDS)) for name in names[:count]]


@checked
def people_task(name: str, people: Sequence[Person]) -> Task:
    """What is known of people as a next-token task: answers after their questions, a row for each fact.

    The splits hold the same facts in other words, since a fact cannot be guessed from other facts: `train` questions and
    answers, `validation` rephrased questions and the answers, `test` questions and the paraphrased answers.

    Args:
        name: of the task.
        people: whose facts.

    Example:
        >>> people = made_up_people(60)
        >>> people_task("keep", people[6:])
        Task('keep', next-token, train 432, validation 432, test 432)
    """
    facts = [fact for person in people for fact in person.facts]
    train = continuations([(fact.question, fact.answer) for fact in facts])
    validation = continuations([(fact.rephrased, fact.answer) for fact in facts])
    test = continuations([(fact.question, fact.paraphrase) for fact in facts])
    return Task.from_tensors(
        name, [], objective="next-token", train=(train.inputs, train.labels),
        validation=(validation.inputs, validation.labels), test=(test.inputs, test.labels),
    )  # fmt: skip


def continuations(pairs: Sequence[tuple[str, str]]) -> Split:
    """Texts of prompts and what follows them after a space, with the prompts' lengths in characters."""
    return Split(
        [f"{prompt} {text}" for prompt, text in pairs], torch.tensor([len(prompt) for prompt, _ in pairs])
    )
