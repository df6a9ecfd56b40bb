"""Tasks of pairs are trained, evaluated, added, negated, searched and mapped; what has no answer says so in a line."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

import tauspan as ts
from helpers import languages, tiny
from tauspan.core.errors import UsageError
from tauspan.kernel import closed_form
from tauspan.kernel.diagnose import diagnose, kernel_report
from tauspan.models import fingerprint_of
from tauspan.objectives import Contrastive
from tauspan.objectives.passages import Group
from tauspan.tasks import Task
from tauspan.tasks.reference import TaskTargets

LENGTH = 24
WORDS = ("good", "bad", "a", "film", "code", "dog")
Edited = tuple[ts.Encoder, dict[Task, ts.TaskVector]]


def preferences(seed: int, answers: tuple[str, str], count: int) -> Any:
    draw = torch.Generator().manual_seed(seed)
    asked = [f"q{int(n)}: " for n in torch.randint(1000, (count,), generator=draw)]
    return asked, [answers[0]] * count, [answers[1]] * count


def preference_task(name: str, seed: int, answers: tuple[str, str]) -> Task:
    splits = {
        split: preferences(10 * seed + place, answers, count)
        for place, (split, count) in enumerate({"train": 16, "validation": 6, "test": 6}.items())
    }
    return Task.from_tensors(name, [], objective="preference", **splits)


def sentences(seed: int, count: int) -> list[str]:
    places = torch.randperm(len(WORDS) ** 4, generator=torch.Generator().manual_seed(seed))[:count].tolist()
    return [" ".join(WORDS[place // 6**k % 6] for k in range(4)) for place in places]


def embedding_task(name: str, seed: int, word: str) -> Task:
    """Sentences to be found by their first words, or whose similarity is how many words they share."""
    splits: Any = {}
    for place, (split, count) in enumerate({"train": 24, "validation": 12, "test": 12}.items()):
        first = sentences(10 * seed + place, count)
        if word == "similarity":
            second = sentences(10 * seed + place + 5, count)
            pairs = zip(first, second, strict=True)
            splits[split] = first, second, [len(set(a.split()) & set(b.split())) / 4 for a, b in pairs]
        else:
            splits[split] = first, [" ".join(text.split()[: 2 + seed]) + " a" for text in first]
    return Task.from_tensors(
        name, [], objective="contrastive(size=4)" if word == "contrastive" else word, **splits
    )


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return languages.write(tmp_path_factory.mktemp("pairs") / "model", "llama")


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_bert(tmp_path_factory.mktemp("pairs") / "model", tiny.bert())


def made(word: str, decoder: Path, bert: Path) -> tuple[ts.Encoder, list[Task]]:
    if word == "preference":
        answers = (("yes", "no"), ("up", "down"))
        tasks = [preference_task(f"task {n}", n, one) for n, one in enumerate(answers)]
        return ts.load(decoder, language=LENGTH), tasks
    return ts.load(bert), [embedding_task(f"task {n}", n, word) for n in range(2)]


@pytest.fixture(scope="module", params=["preference", "contrastive", "similarity"])
def edited(request: Any, decoder: Path, bert: Path) -> Edited:
    model, tasks = made(request.param, decoder, bert)
    settings = ts.Settings("linear", lr=3e-3, epochs=4, batch_size=4)
    return model, {one: ts.finetune(model, one, settings).task_vector for one in tasks}


def test_log_probabilities_are_those_of_transformers(decoder: Path) -> None:
    """DPO's margin from two models of transformers: the edited one and the pre-trained one."""
    encoder = ts.load(decoder, language=LENGTH)
    of = preference_task("t", 3, ("yes, surely", "no"))
    vector = ts.finetune(encoder, of, ts.Settings("standard", lr=3e-3, epochs=1, batch_size=8)).task_vector
    edited = ts.apply(encoder, vector)
    models = [
        transformers.AutoModelForCausalLM.from_pretrained(decoder, dtype=torch.float32).eval()
        for _ in range(2)
    ]
    models[0].base_model.load_state_dict(edited.backbone.state_dict())
    words = transformers.AutoTokenizer.from_pretrained(decoder)

    def log_p(model: Any, text: str, prompt: int) -> float:
        ids = words(text, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            found = model(input_ids=ids).logits.double().log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None])
        return float(found[len(text[:prompt].encode()) - 1 :].sum())  # a token is a byte

    rows = of.split("test")
    margins = [
        sum(
            sign * (log_p(models[0], text, length) - log_p(models[1], text, length))
            for sign, text in zip((1, -1), pair, strict=True)
        )
        for pair, length in zip(rows.inputs, rows.labels.tolist(), strict=True)
    ]
    losses = [math.log1p(math.exp(-0.1 * margin)) for margin in margins]
    for model, at in ((encoder, vector), (edited, None)):  # an edited model refers to the one it was made of
        found = ts.evaluate(model, [of], at).tasks[0]
        assert found.loss == pytest.approx(sum(losses) / len(losses), rel=1e-5)
        assert found.value == sum(margin > 0 for margin in margins) / len(margins)


def test_a_sequence_to_sequence_model_has_preferences_too(tmp_path: Path) -> None:
    """The prompt is the source; margins are those of transformers' own losses."""
    encoder = ts.load(languages.write(tmp_path / "model", "t5"), language=LENGTH)
    of, draw = preference_task("t", 8, ("yes, surely", "no")), torch.Generator().manual_seed(0)
    names = [name for name, _ in encoder.backbone.named_parameters() if name.endswith("wo.weight")]
    sizes = {name: encoder.backbone.get_parameter(name).shape for name in names}
    deltas = {name: 0.1 * torch.randn(size, generator=draw) for name, size in sizes.items()}
    vector = ts.TaskVector(deltas, fingerprint_of(encoder), "standard", "t")
    models = [
        transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "model", dtype=torch.float32).eval()
        for _ in range(2)
    ]
    with torch.no_grad():
        for name, delta in deltas.items():
            models[0].get_parameter(name).add_(delta)
    words = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")

    def log_p(model: Any, source: str, target: str) -> float:
        labels = words(text_target=target, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            found = model(**words(source, return_tensors="pt", return_token_type_ids=False), labels=labels)
        return -float(found.loss) * labels.shape[1]

    losses = []
    for pair, length in zip(of.split("test").inputs, of.split("test").labels.tolist(), strict=True):
        rises = [
            log_p(models[0], text[:length], text[length:]) - log_p(models[1], text[:length], text[length:])
            for text in pair
        ]
        losses.append(math.log1p(math.exp(-0.1 * (rises[0] - rises[1]))))
    found = ts.evaluate(encoder, [of], vector).tasks[0]
    assert found.loss == pytest.approx(sum(losses) / len(losses), rel=1e-4)
    assert abs(found.loss - math.log(2)) > 1e-3


def test_the_pre_trained_model_prefers_nothing(decoder: Path) -> None:
    encoder, of = ts.load(decoder, language=LENGTH), preference_task("t", 4, ("yes", "no"))
    for size in (1, 4):
        found = ts.evaluate(encoder, [of], reading=ts.Reading(batch_size=size)).tasks[0]
        assert found.value == 0.5
        assert found.loss == pytest.approx(math.log(2), rel=1e-6)


def test_the_reference_is_computed_once(decoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, of = ts.load(decoder, language=LENGTH), preference_task("t", 5, ("yes", "no"))
    targets = TaskTargets(of, encoder, None)
    whole = targets("train")
    assert torch.equal(targets("train", [3, 1]), whole[[3, 1]])
    monkeypatch.setattr(TaskTargets, "_asked", None)
    assert torch.equal(TaskTargets(of, encoder, None)("train"), whole)
    assert len(encoder.references) == 1


def test_a_directory_refers_to_the_model_it_was_made_of(decoder: Path, tmp_path: Path) -> None:
    encoder, of = ts.load(decoder, language=LENGTH), preference_task("t", 6, ("yes", "no"))
    vector = ts.finetune(encoder, of, ts.Settings("standard", lr=3e-3, epochs=1, batch_size=8)).task_vector
    wanted = ts.evaluate(encoder, [of], vector).tasks[0]
    ts.save(ts.apply(encoder, vector), tmp_path / "edited")
    del encoder
    found = ts.evaluate(ts.load(tmp_path / "edited", language=LENGTH), [of]).tasks[0]
    assert found.loss == pytest.approx(wanted.loss, rel=1e-6)
    assert found.value == wanted.value


@pytest.mark.parametrize("word", ["preference", "contrastive", "similarity"])
@pytest.mark.parametrize("regime", ["standard", "linear"])
def test_training_lowers_the_loss(word: str, regime: Any, decoder: Path, bert: Path) -> None:
    model, (of, _) = made(word, decoder, bert)
    before = ts.evaluate(model, [of], split="train").tasks[0]
    settings = ts.Settings(lr=3e-3, epochs=4, batch_size=4, regime=regime)
    run = ts.finetune(model, of, settings)
    after = ts.evaluate(model, [of], run.task_vector, split="train").tasks[0]
    assert after.loss < before.loss
    last = [entry for entry in run.history if entry["split"] == "validation"][-1]
    valid = ts.evaluate(model, [of], run.task_vector, split="validation").tasks[0]
    assert last["loss"] == pytest.approx(valid.loss, rel=1e-4)
    assert last[of.objective.metric] == pytest.approx(valid.value, rel=1e-4)


def test_every_question_is_answered(edited: Edited) -> None:
    model, vectors = edited
    editor, first = ts.Editor(model, vectors), next(iter(vectors))
    metric = first.objective.metric
    added, solved = editor.add(), editor.coefficients(bootstrap=5)
    assert added.tasks[0].metric == metric
    assert solved.certificate is not None
    assert solved.certificate <= 1e-8
    assert "nothing shows that no lower one exists" in " ".join(str(solved).split())
    at = editor.evaluate(solved.coefficients, split="validation")
    shared = editor.evaluate(added.alpha, split="validation")
    assert solved.loss == pytest.approx(sum(one.loss for one in at.tasks) / 2, rel=1e-5)
    assert solved.loss <= sum(one.loss for one in shared.tasks) / 2 + 1e-7
    assert metric in str(editor.negate(first, floor=0.5))
    maps = editor.maps(grid=(0.0, 0.5, 1.0))
    assert maps.distance == next(iter(first.objective.distances))
    assert maps.pairs[0].xi[0][0] == 0.0
    if first.objective.embeds:
        assert editor.interference().drift["task 0"]["task 0"] > 0


def test_what_has_no_answer_says_so_in_a_line(edited: Edited) -> None:
    model, vectors = edited
    editor, first = ts.Editor(model, vectors), next(iter(vectors))
    asked: dict[str, Callable[[], object]] = {
        "negate": lambda: editor.front(first), "coefficients": editor.adamerging, "leave the task out": editor.desk,
        "fine-tune in the linear regime": lambda: ts.fit(model, first),
        "take `finetune` in the linear regime": lambda: closed_form(model, first),
        "a task of classes or numbers": lambda: kernel_report(model, list(vectors), rows=4),
        r"Editor\.interference|Editor\.evaluate": lambda: diagnose(model, vectors, rows=4),
    }  # fmt: skip
    if not first.objective.embeds:
        asked["gives its metric at any"] = editor.interference
    for said, ask in asked.items():
        with pytest.raises(UsageError, match=said):
            ask()


@pytest.mark.long
def test_a_long_descent_in_the_tangent_regime_lowers_the_loss(bert: Path, decoder: Path) -> None:
    for word in ("preference", "contrastive", "similarity"):
        model, (of, _) = made(word, decoder, bert)
        settings = ts.Settings("linear", lr=3e-3, epochs=40, batch_size=len(of.split("train")))
        run = ts.finetune(model, of, settings)
        losses = [entry["loss"] for entry in run.history if entry["split"] == "train"]
        assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("cache", ["primal", "factors"])
def test_caches_keep_groups_apart(cache: Any, bert: Path) -> None:
    model, of = ts.load(bert), embedding_task("t", 0, "contrastive")
    settings = ts.Settings("linear", lr=3e-3, epochs=2, batch_size=len(of.split("train")))
    plain, cached = (
        ts.finetune(model, of, dataclasses.replace(settings, cache=kind)).task_vector
        for kind in ("none", cache)
    )
    for name, delta in plain.deltas.items():
        torch.testing.assert_close(cached.deltas[name], delta, rtol=1e-3, atol=1e-5)


def test_a_language_model_has_no_embeddings_to_compare(decoder: Path) -> None:
    with pytest.raises(UsageError, match="without `language`"):
        ts.evaluate(ts.load(decoder, language=LENGTH), [embedding_task("t", 0, "similarity")])
    with pytest.raises(UsageError, match="language=L"):
        ts.evaluate(ts.load(decoder), [preference_task("t", 0, ("yes", "no"))])


def test_pairs_of_tensors_and_images_are_read_too() -> None:
    """In-group negatives of a module of one's own are a batch's."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    model, x = ts.load(module), torch.randn(12, 4)
    y = x + 0.1 * torch.randn(12, 4)
    rows: Any = (x, y, [n // 4 for n in range(12)])
    objective = Contrastive(4, 0.2)
    of = Task.from_tensors("t", [], objective=objective, train=rows, validation=rows, test=rows)
    wanted = [
        nn.functional.cross_entropy(cosines(module(x[at]), module(y[at])) / 0.2, torch.arange(4))
        for at in torch.arange(12).view(3, 4)
    ]
    assert ts.evaluate(model, [of]).tasks[0].loss == pytest.approx(
        float(torch.stack(wanted).mean().detach()), rel=1e-5
    )
    assert model(model.encode([Group([x[0], x[1]])])).shape == (1, 6)


def cosines(first: Tensor, second: Tensor) -> Tensor:
    return nn.functional.normalize(first, dim=-1) @ nn.functional.normalize(second, dim=-1).T


def test_a_vector_that_moves_the_token_table_moves_margins(tmp_path: Path) -> None:
    """To first order the tangent model's loss is the ordinary one's, the table's part included."""
    encoder = ts.load(languages.write(tmp_path / "model", "llama tied"), language=LENGTH).double()
    of = preference_task("t", 7, ("yes", "no"))
    table = encoder.language.tied if encoder.language is not None else None
    assert table is not None
    draw = torch.Generator().manual_seed(0)
    size = encoder.backbone.get_parameter(table).shape
    deltas = {table: 1e-2 * torch.randn(size, generator=draw, dtype=torch.float64)}
    vector = ts.TaskVector(deltas, fingerprint_of(encoder), "standard", "t")
    slopes = {
        regime: (ts.evaluate(encoder, [of], vector, 1e-2, regime=regime).tasks[0].loss - math.log(2)) / 1e-2
        for regime in ("standard", "posthoc")
    }
    assert abs(slopes["standard"]) > 1e-4
    assert slopes["posthoc"] == pytest.approx(slopes["standard"], rel=1e-2)
