"""People who do not exist: the same seed the same rows, no person in two groups, other wordings of the same facts."""

import hashlib
import json
from dataclasses import astuple

import pytest

from tauspan.core.errors import DataError
from tauspan.tasks import made_up_people, people_task

PINNED = "2cec43345a2cd0c1a58a2c8af93e5e49f9374c88b79c14e3bf68532d617e3235"


def digest(people: object) -> str:
    return hashlib.sha256(json.dumps([astuple(one) for one in people]).encode()).hexdigest()  # type: ignore[attr-defined]


def test_the_rows_of_a_seed_never_change() -> None:
    assert digest(made_up_people()) == PINNED
    assert digest(made_up_people(seed=1)) != PINNED


def test_more_people_begin_with_the_same_ones() -> None:
    assert [one.name for one in made_up_people(9)][:4] == [one.name for one in made_up_people(4)]


def test_no_two_people_share_a_surname_also_not_those_of_another_seed() -> None:
    first = made_up_people(200)
    others = made_up_people(60, seed=1, avoid=[one.name for one in first])
    surnames = [one.name.split()[-1] for one in (*first, *others)]
    assert len(set(surnames)) == 260


def test_each_person_has_each_fact_once_and_wrong_answers_are_wrong() -> None:
    for person in made_up_people(30, seed=2):
        assert len({fact.kind for fact in person.facts}) == len(person.facts) == 8
        for fact in person.facts:
            assert person.name in fact.question
            assert person.name in fact.rephrased
            assert len({fact.paraphrase, *fact.perturbed}) == 6
            assert all(text.count(".") == 1 and text.endswith(".") for text in (fact.answer, *fact.perturbed))
            (value,) = set(fact.answer.rstrip(".").split()) & set(fact.paraphrase.rstrip(".").split()) - {
                "In", "It", "is", "a", "The", "By",
            }  # fmt: skip
            assert all(value not in wrong.rstrip(".").split() for wrong in fact.perturbed)


def test_a_task_has_every_fact_in_each_split_in_its_own_words() -> None:
    people = made_up_people(10)
    forget, keep = people_task("forget", people[:1]), people_task("keep", people[1:])
    facts = people[0].facts
    for split, texts in {
        "train": [f"{one.question} {one.answer}" for one in facts],
        "validation": [f"{one.rephrased} {one.answer}" for one in facts],
        "test": [f"{one.question} {one.paraphrase}" for one in facts],
    }.items():
        rows = forget.split(split)
        assert list(rows.inputs) == texts
        prompts = [text[:length] for text, length in zip(rows.inputs, rows.labels.tolist(), strict=True)]
        assert all(prompt.endswith("?") for prompt in prompts)
        assert not set(rows.inputs) & set(keep.split(split).inputs)
    assert not any(people[0].name in text for text in keep.split("train").inputs)


def test_more_people_than_surnames_are_refused() -> None:
    with pytest.raises(DataError, match="count=1121: between 1 and 1120 people can be made up here"):
        made_up_people(1121)
    assert len(made_up_people(1120)) == 1120
