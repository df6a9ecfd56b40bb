"""The study of unlearning: each measure against a plain reference, methods against their definitions, one tiny run."""

import dataclasses
import itertools
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from benchmarks.unlearning import Plan, mails, measures, methods, people, study
from benchmarks.unlearning.__main__ import LARGE
from benchmarks.unlearning.plan import OTHERS
from benchmarks.unlearning.texts import continued
from torch import Tensor

import tauspan as ts
from helpers import languages
from tauspan.core.errors import UsageError
from tauspan.tasks import Split, made_up_people
from tauspan.vector import TaskVector

ROWS = Split(["a cat sat", "two dogs ran off", "so it is."], torch.tensor([2, 4, 0]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return languages.write(tmp_path_factory.mktemp("language") / "llama", "llama")


@pytest.fixture(scope="module")
def encoder(folder: Path) -> Any:
    return ts.load(folder, language=32).double()


@pytest.fixture(scope="module")
def whole(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder).double().eval()


@pytest.fixture(scope="module")
def moved(encoder: Any) -> Any:
    """The model with other weights."""
    return ts.apply(encoder, normal_vector(encoder))


def normal_vector(encoder: Any, seed: int = 1) -> TaskVector:
    draw = torch.Generator().manual_seed(seed)
    known = {name: p for name, p in encoder.backbone.named_parameters() if "layers" in name}
    deltas = {
        name: 0.1 * torch.randn(p.shape, generator=draw, dtype=torch.float64) for name, p in known.items()
    }
    return TaskVector(deltas, ts.models.fingerprint_of(encoder), "standard", "moved")


# -- measures ------------------------------------------------------------------------------------------------


def plain_logits(model: Any, text: str) -> tuple[list[int], Tensor]:
    ids = languages.tokenizer()(text)["input_ids"]
    with torch.no_grad():
        return ids, model(torch.tensor([ids])).logits[0]


def test_losses_are_those_of_the_whole_model(encoder: Any, whole: Any) -> None:
    found = measures.losses(encoder, encoder, ROWS)
    for row, (text, prompt) in enumerate(zip(ROWS.inputs, ROWS.labels.tolist(), strict=True)):
        ids, logits = plain_logits(whole, text)
        chances = logits.log_softmax(-1)
        each = [float(-chances[place - 1, ids[place]]) for place in range(max(1, prompt), len(ids))]
        assert abs(float(found[row]) - sum(each) / len(each)) < 1e-10


def test_truth_ratio_by_hand() -> None:
    right = -torch.tensor([0.5, 0.25], dtype=torch.float64).log()
    wrong = -torch.tensor([[0.1, 0.3], [0.5, 0.5]], dtype=torch.float64).log()
    ratio = measures.truth_ratio(right, wrong)
    assert torch.allclose(ratio, torch.tensor([0.4, 2.0], dtype=torch.float64), atol=1e-12)
    assert torch.allclose(
        measures.told_apart(ratio), torch.tensor([0.6, 0.0], dtype=torch.float64), atol=1e-12
    )


@pytest.mark.parametrize(
    ("text", "reference", "recall"),
    [
        ("In Cairo.", "In Cairo.", 1.0),
        ("in CAIRO", "In Cairo.", 1.0),
        ("It was Cairo, of course", "In Cairo.", 0.5),
        ("", "In Cairo.", 0.0),
        ("Cairo in", "In Cairo.", 0.5),  # a subsequence keeps the order
        ("a x b y c", "a b c d", 0.75),
        ("the the the", "the cat", 0.5),  # a word of the reference is met once
    ],
)
def test_rouge_recall_by_hand(text: str, reference: str, recall: float) -> None:
    assert measures.rouge_recall(text, reference) == recall


def test_rouge_recall_is_the_longest_of_all_common_subsequences() -> None:
    words = ["a", "b", "a", "c"]
    for other in itertools.product("abcd", repeat=4):
        best = max(
            len(some)
            for size in range(5)
            for some in itertools.combinations(words, size)
            if some in set(itertools.combinations(other, size))
        )
        assert measures.rouge_recall(" ".join(other), " ".join(words)) == best / 4


def test_membership_is_the_area_under_the_curve() -> None:
    trained, unseen = torch.tensor([0.1, 0.5, 0.5]), torch.tensor([0.5, 0.9])
    by_hand = [(1 + 1) / 2, (0.5 + 1) / 2, (0.5 + 1) / 2]
    assert measures.membership(trained, unseen).tolist() == by_hand
    assert float(measures.membership(unseen, unseen).mean()) == 0.5
    assert float(measures.membership(unseen + 1, trained).mean()) == 0.0


def test_quality_is_high_for_equal_ratios_and_low_for_others() -> None:
    ratios = torch.linspace(0, 1, 40, dtype=torch.float64)
    assert measures.quality(ratios, ratios) == 1.0
    assert measures.quality(ratios, ratios + 0.6) < 1e-4


def test_distance_is_the_total_variation_of_next_tokens(encoder: Any, whole: Any, moved: Any) -> None:
    assert measures.distance(encoder, encoder, encoder, ROWS).tolist() == [0.0] * 3
    found = measures.distance(moved, encoder, encoder, ROWS)
    other = transformers.AutoModelForCausalLM.from_config(whole.config).double().eval()
    other.load_state_dict(whole.state_dict())
    other.model.load_state_dict(moved.backbone.state_dict())
    for row, (text, prompt) in enumerate(zip(ROWS.inputs, ROWS.labels.tolist(), strict=True)):
        ids, first = plain_logits(whole, text)
        _, second = plain_logits(other, text)
        apart = (first.softmax(-1) - second.softmax(-1)).abs().sum(-1) / 2
        places = range(max(1, prompt) - 1, len(ids) - 1)
        assert abs(float(found[row]) - float(apart[list(places)].mean())) < 1e-10
    assert 0 < float(found.mean()) < 1


def test_an_interval_is_about_its_mean_and_no_interval_where_nothing_varies() -> None:
    assert measures.interval([[0.5, 0.5], [0.5]]) == (0.5, 0.5, 0.5)
    mean, low, high = measures.interval([[0.0, 1.0] * 50])
    assert mean == 0.5
    error = 1.96 * 0.5 / math.sqrt(100)  # the normal interval of a mean of 100 flips
    assert abs(low - (0.5 - error)) < 0.02
    assert abs(high - (0.5 + error)) < 0.02
    assert measures.interval([[0.0, 1.0] * 50]) == (mean, low, high)
    _, low, high = measures.interval([[0.0] * 9, [1.0] * 9])  # seeds differ, people do not
    assert (low, high) == (0.0, 1.0)


# -- texts ---------------------------------------------------------------------------------------------------


def test_likeliest_texts_are_those_of_transformers(encoder: Any, whole: Any) -> None:
    words, prompts = languages.tokenizer(), ["a", "two dogs", "so it"]
    found = continued(encoder, encoder, prompts, 6)
    for prompt, text in zip(prompts, found, strict=True):
        ids = torch.tensor([words(prompt)["input_ids"]])
        wanted = whole.generate(ids, max_new_tokens=6, do_sample=False)[0, ids.shape[1] :]
        assert text == words.decode([one for one in wanted.tolist() if one != 256])


def test_drawn_texts_are_those_of_the_seed_and_end_at_the_stop(encoder: Any) -> None:
    one, again, other = (
        continued(encoder, encoder, ["a", "b"], 8, temperature=2.0, seed=n) for n in (0, 0, 1)
    )
    assert one == again != other
    first = one[0][0]
    assert continued(encoder, encoder, ["a", "b"], 8, temperature=2.0, seed=0, stop=first)[0] == first


def test_no_text_ends_before_its_least_tokens(folder: Path) -> None:
    model = ts.load(folder, language=32)
    assert model.language is not None
    ending = ts.models.Encoder(
        model.backbone, lambda module, batch: model.features(module, batch) * 0, model.inputs
    )  # whose logits are all the same: the end comes as any other token
    ending.language = model.language
    prompts = ["a"] * 64

    def lengths(least: int) -> list[int]:
        texts = continued(ending, ending, prompts, 30, temperature=1.0, seed=0, least=least)
        return [len(text) for text in texts]

    assert min(lengths(0)) < min(lengths(30))
    assert min(lengths(30)) > 0


def test_a_text_ends_at_the_model_s_most_tokens(encoder: Any) -> None:
    (text,) = continued(encoder, encoder, ["x" * 30], 8, temperature=5.0)
    assert len(text) <= 2  # 32 less those of the prompt, and bytes that make no character count as one


# -- methods -------------------------------------------------------------------------------------------------


def test_npo_is_its_formula_and_gradient_ascent_for_small_beta() -> None:
    reference, counts = torch.tensor([1.0, 2.0, 0.5]).double(), torch.tensor([3, 4, 2])
    found = torch.tensor([1.5, 1.0], dtype=torch.float64, requires_grad=True)
    value = methods.preference(reference, counts, 0.1)(found, (2, 1))
    terms = []
    for loss, row in zip(found.tolist(), (2, 1), strict=True):
        ratio = math.exp(-loss * counts[row]) / math.exp(-float(reference[row]) * counts[row])
        terms.append(2 / 0.1 * math.log(1 + ratio**0.1))
    assert abs(value.item() - sum(terms) / 2) < 1e-10
    (slope,) = torch.autograd.grad(methods.preference(reference, counts, 1e-7)(found, (2, 1)), found)
    assert torch.allclose(slope, -counts[[2, 1]].double() / 2, rtol=1e-5)  # of whole answers, their mean


def test_a_random_vector_has_the_norm_of_every_tensor(encoder: Any) -> None:
    vector = normal_vector(encoder)
    drawn = methods.random_vector(vector, 3)
    for name, delta in vector.deltas.items():
        assert torch.isclose(drawn.deltas[name].norm(), delta.norm(), rtol=1e-9)
        assert not torch.allclose(drawn.deltas[name], delta)
    assert torch.equal(methods.random_vector(vector, 3).deltas[name], drawn.deltas[name])


@pytest.mark.parametrize(("floor", "moves"), [(0.5, True), (1.0, False)])
def test_a_descent_keeps_the_floor_and_leaves_the_model_alone(
    folder: Path, floor: float, moves: bool
) -> None:
    model = ts.load(folder, language=32)
    forget, keep = (
        ts.Task.from_tensors(
            name,
            [],
            objective="next-token",
            train=(texts, None),
            validation=(texts, None),
            test=(texts, None),
        )
        for name, texts in (("forget", ["a cat", "a cow"]), ("keep", ["a cat", "a cup"]))
    )  # rows that share what they say: forgetting one costs the other
    before = {name: p.clone() for name, p in model.backbone.named_parameters()}
    plan = Plan(floor=floor, steps=8, every=1, batch_size=2, forget_rate=1e-2)
    found = methods.descended(model, methods.ascent, forget.split("train"), forget, keep, plan, 0, "up")

    def perplexity(of: Any, task: Any) -> float:
        return math.exp(float(measures.losses(of, model, task.split("validation")).mean()))

    assert (found.chosen != "step 0") == moves
    assert perplexity(found.model, keep) <= perplexity(model, keep) / floor * (1 + 1e-9)
    assert (perplexity(found.model, forget) > perplexity(model, forget)) == moves
    assert all(torch.equal(p, before[name]) for name, p in model.backbone.named_parameters())


# -- the study -----------------------------------------------------------------------------------------------

TINY = Plan(
    seeds=(0,), people=10, kept=2, epochs=1, again=1, steps=1, english=4, known=2, small_steps=1, width=16, layers=1,
    words=300, grid=(1.0,), tokens=64, mails=4, samples=4,
)  # fmt: skip


def test_a_plan_leaves_somebody_to_forget_and_somebody_to_keep() -> None:
    with pytest.raises(UsageError, match=r"people=3, forget=0\.1: 0 people are forgotten and 3 kept"):
        Plan(people=3)
    with pytest.raises(UsageError, match="seeds="):
        Plan(seeds=(1, 1))
    assert Plan(people=3, forget=0.5).forgotten == 2
    assert Plan(**LARGE).seeds == (0,)  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_tiny_study_measures_every_method_and_does_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = study(tmp_path, TINY)
    names = list(report.result["methods"])
    assert names == list(people.METHODS)
    for table in report.tables[:-1]:
        assert [row["method"] for row in table.rows] == names
    gold = report.result["methods"]["gold"]["0"]
    assert gold["forgotten"]["distance"] == [0.0]
    assert gold["quality"] == 1.0
    assert len(gold["kept"]["recall"]) == 2
    assert len(gold["english"]) == 4
    assert json.loads((tmp_path / "people.json").read_text())["result"] == report.result
    assert (tmp_path / "trade.png").is_file()

    monkeypatch.setattr(people.People, "numbers", _forbidden)
    again = study(tmp_path, TINY)
    assert again.result == report.result
    with pytest.raises(AssertionError, match="done anew"):
        study(tmp_path, dataclasses.replace(TINY, floor=0.9))


def _forbidden(world: Any, edited: Any) -> Any:
    raise AssertionError("done anew")


class Judge:
    """Calls every second text spam."""

    def predict(self, texts: list[str], task: str) -> list[Any]:
        assert task == "email_spam"
        return [SimpleNamespace(label=("ham", "spam")[place % 2]) for place in range(len(texts))]


@pytest.mark.slow
def test_a_tiny_study_of_mails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mails, "_judge", lambda: (Judge(), 0.9))
    report = study(tmp_path, TINY, "mails")
    assert list(report.result["methods"]) == list(mails.METHODS)
    for row in report.tables[0].rows:
        assert str(row["share of spam"]).startswith("0.50 [")
    for by_seed in report.result["methods"].values():
        assert (len(by_seed["0"]["unwanted"]), len(by_seed["0"]["wanted"])) == (2, 3)
    assert json.loads((tmp_path / "mails.json").read_text())["result"] == report.result


def test_a_question_that_nobody_knows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"ask='mail'.*mails"):
        study(tmp_path, TINY, "mail")


def test_mails_are_divided_by_class_and_no_text_is_in_two_splits(encoder: Any, tmp_path: Path) -> None:
    world = mails.Mails(encoder, TINY, 0, tmp_path)
    spam = {
        text
        for split in ("train", "validation", "test")
        for text, label in zip(
            *(getattr(ts.suite(["email_spam"])[0].split(split), part) for part in ("inputs", "labels")),
            strict=True,
        )
        if int(label) == mails.SPAM
    }
    seen: list[str] = []
    for task, unwanted in ((world.forget, True), (world.guard, False)):
        for split in ("train", "validation", "test"):
            texts = list(task.split(split).inputs)
            assert all((text in spam) == unwanted for text in texts)
            seen += texts
    assert len(set(seen)) == len(seen)
    assert all(len(text.split()) <= mails.BEGINNING for text in world.beginnings)


def test_people_who_are_measured_guard_no_choice(encoder: Any, tmp_path: Path) -> None:
    world = people.People(encoder, TINY, 0, tmp_path)
    measured = {one.name for one in world.kept}
    groups = [measured, {one.name for one in world.forgotten}, {one.name for one in world.unseen}]
    assert sum(map(len, groups)) == len(set.union(*groups))
    assert not any(name in text for name in measured for text in world.guard.split("validation").inputs)
    trained = list(world.keep.split("train").inputs)
    assert not any(name in text for name in set.union(*groups[1:]) for text in trained)
    known = {one.name.split()[-1] for one in made_up_people(TINY.known, seed=OTHERS)}
    assert not known & {name.split()[-1] for name in set.union(*groups)}
