"""Causal language models: perplexities are transformers' own, one pass scores every mix, and edits stay language "
"models."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

import tauspan as ts
from helpers import languages
from helpers.searches import random_vector
from tauspan.core.errors import DataError, ModelError, UsageError
from tauspan.experiments.run import Recipe, run
from tauspan.kernel.diagnose import kernel_report
from tauspan.models.extras import quiet
from tauspan.objectives.passages import Passage
from tauspan.tangent import contributions as passes
from tauspan.tasks import Task

LENGTH = 24
REGIMES = ("standard", "linear")


def texts(seed: int, count: int = 12) -> list[str]:
    words = ["cats sit", "dogs run", "a bird flew", "the fish", "it rains", "we sing"]
    draw = torch.Generator().manual_seed(seed)
    return [" ".join(words[int(n)] for n in torch.randint(6, (2,), generator=draw)) for _ in range(count)]


def task(name: str, seed: int) -> Task:
    splits: dict[str, Any] = {
        split: (texts(10 * seed + place), None) for place, split in enumerate(("train", "validation", "test"))
    }
    return Task.from_tensors(name, [], objective="next-token", **splits)


@pytest.fixture(scope="module", params=languages.KINDS)
def home(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return languages.write(tmp_path_factory.mktemp("language") / "model", request.param)


def own_losses(folder: Path, rows: list[str], prompts: list[int]) -> Tensor:
    """The mean loss of each text as transformers computes it from labels."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    words = transformers.AutoTokenizer.from_pretrained(folder)
    found = []
    for text, prompt in zip(rows, prompts, strict=True):
        ids = words(text, return_tensors="pt", truncation=True, max_length=LENGTH)["input_ids"]
        labels = ids.clone()
        labels[:, : len(text[:prompt].encode())] = -100  # a token is a byte
        with torch.no_grad():
            found.append(model(input_ids=ids, labels=labels).loss.double())
    return torch.stack(found)


def test_perplexities_are_those_of_transformers(home: Path) -> None:
    encoder, of = ts.load(home, language=LENGTH), task("t", 1)
    rows = list(of.split("test").inputs)
    found = ts.evaluate(encoder, [of]).tasks[0]
    wanted = float(own_losses(home, rows, [0] * len(rows)).mean())
    assert found.loss == pytest.approx(wanted, rel=1e-5)
    assert found.value == pytest.approx(math.exp(wanted), rel=1e-5)
    assert found.metric == "perplexity"


def test_a_factor_on_logits_belongs_to_the_states(tmp_path: Path) -> None:
    folder, of = languages.write(tmp_path / "model", "granite"), task("t", 1)
    rows = list(of.split("test").inputs)
    found = ts.evaluate(ts.load(folder, language=LENGTH), [of]).tasks[0].loss
    assert found == pytest.approx(float(own_losses(folder, rows, [0] * len(rows)).mean()), rel=1e-5)


def test_prompts_do_not_count(home: Path) -> None:
    encoder = ts.load(home, language=LENGTH)
    rows, prompts = ["say: cats sit", "say it: we sing é"], [5, 8]
    given: Any = (rows, prompts)
    of = Task.from_tensors("t", [], objective="next-token", train=given, validation=given, test=given)
    found = ts.evaluate(encoder, [of]).tasks[0].loss
    assert found == pytest.approx(float(own_losses(home, rows, prompts).mean()), rel=1e-5)


@pytest.mark.parametrize("regime", REGIMES)
def test_training_lowers_perplexity_and_the_edit_is_a_language_model(
    home: Path, regime: Any, tmp_path: Path
) -> None:
    encoder, of = ts.load(home, language=LENGTH), task("t", 2)
    before = ts.evaluate(encoder, [of], split="train").tasks[0]
    run = ts.finetune(encoder, of, ts.Settings(regime, lr=3e-3, epochs=4, batch_size=4))
    after = ts.evaluate(encoder, [of], run.task_vector, split="train").tasks[0]
    assert after.value < before.value
    assert not any(
        "embed" in name or "wte" in name or "lm_head" in name for name in run.task_vector.deltas
    ) or (encoder.language is not None and encoder.language.tied is None)
    if regime == "standard":
        ts.save(ts.apply(encoder, run.task_vector), tmp_path / "edited")
        rows = list(of.split("train").inputs)
        wanted = float(own_losses(tmp_path / "edited", rows, [0] * len(rows)).mean())
        assert after.loss == pytest.approx(wanted, rel=1e-5)
        again = ts.evaluate(ts.load(tmp_path / "edited", language=LENGTH), [of], split="train")  # type: ignore[arg-type, call-overload]
        assert again.tasks[0].loss == pytest.approx(after.loss, rel=1e-6)


@pytest.mark.parametrize("read", ["texts", "features"])
def test_transformers_finds_every_key_of_an_edit_and_no_other(home: Path, read: str, tmp_path: Path) -> None:
    encoder: Any = ts.load(home, language=LENGTH) if read == "texts" else ts.load(home)
    tau = random_vector(encoder, 0, "standard") * 0.1  # the embedding's rows too
    ts.save(ts.apply(encoder, tau, 0.5), tmp_path / "edited")
    kind: Any = transformers.AutoModelForCausalLM
    with quiet(transformers):
        model, info = kind.from_pretrained(tmp_path / "edited", output_loading_info=True)
        base = kind.from_pretrained(home, dtype=torch.float32)
    assert not any(info.values()), info
    inside, outside = (dict(one.base_model.named_parameters()) for one in (model, base))
    for name, theta in inside.items():
        torch.testing.assert_close(theta, outside[name] + 0.5 * tau.deltas[name].float())
    tied = [one.get_output_embeddings().weight is one.get_input_embeddings().weight for one in (model, base)]
    assert tied[0] is tied[1]
    if not tied[0]:
        assert torch.equal(model.lm_head.weight, base.lm_head.weight)


def test_features_below_the_last_block_are_cached(home: Path) -> None:
    """The cache of features gives the same vector; looking for what a module keeps is no run of it that counts."""
    found = []
    for cache in ("none", "features"):
        encoder = ts.load(home, language=LENGTH)
        settings = ts.Settings("linear", params="last:1", lr=3e-3, epochs=2, batch_size=4, cache=cache)  # type: ignore[arg-type]
        found.append(ts.finetune(encoder, task("t", 3), settings).task_vector)
    # with a cache the steps of later epochs come in another order of batches, not with other rows
    assert found[0].deltas.keys() == found[1].deltas.keys()
    assert float(ts.cosine_matrix(found)[0, 1]) > 0.9


def test_one_pass_scores_every_mix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Coefficients, additions and evaluations read each task's texts once a split, and the optimum has a certificate."""
    encoder = ts.load(languages.write(tmp_path / "model", "llama tied"), language=LENGTH)
    tasks = [task("first", 1), task("second", 2)]
    settings = ts.Settings("linear", lr=3e-3, epochs=2, batch_size=4)
    vectors = {of: ts.finetune(encoder, of, settings).task_vector for of in tasks}
    read: list[str] = []
    whole = passes.contributions

    def counting(*args: Any, **kwargs: Any) -> Any:
        read.append("{task} {split}".format(**kwargs["info"]))
        return whole(*args, **kwargs)

    monkeypatch.setattr("tauspan.editing.model.tangent.contributions", counting)
    editor = ts.Editor(encoder, vectors)
    solved = editor.coefficients(bootstrap=3)
    added = editor.add()
    negated = editor.negate("first")
    mixes = [
        editor.evaluate({"first": a, "second": b}, split="validation")
        for a in (0.0, 0.3, 1.0)
        for b in (0.2, 0.9)
    ]
    assert sorted(read) == sorted(set(read))
    assert len(read) == 4
    assert solved.certificate is not None
    assert solved.certificate <= 1e-8
    assert solved.loss <= min(sum(one.loss for one in mix.tasks) / 2 for mix in mixes) + 1e-7
    assert "perplexity" in str(added)
    assert "perplexity" in str(negated)
    assert negated.negated.target >= negated.pretrained.target


def test_words_make_a_classifier(home: Path) -> None:
    encoder, plain = ts.load(home, language=LENGTH), ts.load(home)
    language = encoder.language
    assert language is not None
    head = language.head(["n", "y"])
    rows: Any = (texts(7), [0, 1] * 6)
    of = Task.from_tensors("words", ["no", "yes"], head=head, train=rows, validation=rows, test=rows)
    model = transformers.AutoModelForCausalLM.from_pretrained(home, dtype=torch.float32).eval()
    words = language.inputs.tokenizer
    ids = [int(words(word, add_special_tokens=False)["input_ids"][0]) for word in ("n", "y")]
    with torch.no_grad():
        wanted = [model(**words(text, return_tensors="pt")).logits[0, -1, ids] for text in rows[0]]
    right = [int(logits.argmax()) == label for logits, label in zip(wanted, rows[1], strict=True)]
    assert ts.evaluate(plain, [of]).accuracy["words"] == pytest.approx(sum(right) / len(right))  # type: ignore[arg-type]
    for bad, said in ((["no", "y"], "2 tokens"), (["y", "y"], "same token")):
        with pytest.raises(DataError, match=said):
            language.head(bad)


def test_a_recipe_of_texts_runs(tmp_path: Path) -> None:
    folder = languages.write(tmp_path / "model", "llama tied")
    names = [task(name, seed).to_directory(tmp_path / name) for seed, name in enumerate(("first", "second"))]
    recipe = Recipe.parse(
        f"model: {folder}\ntasks: [{names[0]}, {names[1]}]\nregimes: [standard, linear]\nlanguage: {LENGTH}\n"
        "finetune: {lr_standard: 1e-3, lr_linear: 1e-3, epochs: 1, batch_size: 4}\ngrid: [0, 0.5, 1]\n"
    )
    report = run(recipe, tmp_path / "out")
    assert "perplexity" in report.to_markdown()


def test_what_cannot_be_said_of_a_language_model_is_told(tmp_path: Path) -> None:
    folder = languages.write(tmp_path / "model", "gpt2")
    encoder, of = ts.load(folder, language=LENGTH), task("t", 1)
    vector = ts.finetune(encoder, of, ts.Settings("linear", lr=1e-3, epochs=1, batch_size=4)).task_vector
    long: Any = (["x" * 40] * 3, [30] * 3)
    capped = languages.write(tmp_path / "capped", "gemma2")
    asked = Task.from_tensors("t", [], objective="next-token", train=long, validation=long, test=long)
    cases: list[tuple[Any, str, Any]] = [
        (UsageError, "language=L", lambda: ts.evaluate(ts.load(folder), [of])),
        (DataError, "nothing is left to predict", lambda: ts.evaluate(encoder, [asked])),
        (DataError, "one text", lambda: Task.from_tensors("t", [], objective="next-token", train=("abc", None))),
        (UsageError, "next-token", lambda: ts.closed_form(encoder, of)),
        (UsageError, "its metric at any coefficients", lambda: ts.Editor(encoder, {of: vector}).interference()),
        (UsageError, "next-token", lambda: kernel_report(encoder, [of])),
        (UsageError, "leave the task out", lambda: ts.Editor(encoder, {of: vector}).desk()),
        (ModelError, "it caps them", lambda: ts.load(capped, language=LENGTH)),
        (UsageError, "positions for 64", lambda: ts.load(folder, language=65)),
        (UsageError, "at least 2", lambda: ts.load(folder, language=1)),
        (ModelError, "saved with its head", lambda: ts.load("minilm", language=8)),
    ]  # fmt: skip
    for error, said, ask in cases:
        with pytest.raises(error, match=said):
            ask()


def test_tables_of_texts_and_of_prompts_are_tasks(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(f'{{"question": "add {n}: ", "answer": "{n + 1}."}}\n' for n in range(20)))
    of = Task.from_files(
        "sums", file, text="answer", prompt="question", objective="next-token", shares=(0.6, 0.2, 0.2)
    )
    row = of.split("train").inputs[0]
    assert row.startswith("add ")
    assert row.endswith(".")
    assert of.split("train").labels[0] == len(row.split(": ")[0]) + 2
    again = Task.from_directory(of.to_directory(tmp_path / "dir"))
    assert again.checksum() == of.checksum()
    plain = tmp_path / "plain.csv"
    plain.write_text("text\n" + "".join(f"line {n}\n" for n in range(10)))
    assert int(Task.from_files("lines", plain, objective="next-token").split("test").labels.sum()) == 0


def ended(folder: Path) -> Path:
    """The same model with a tokenizer that puts an end after every text."""
    from tokenizers.processors import TemplateProcessing

    words = languages.tokenizer()
    words.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"$A {languages.END}", special_tokens=[(languages.END, 256)]
    )
    words.save_pretrained(folder)
    return folder


def test_an_end_that_the_tokenizer_adds_counts_whatever_else_is_in_the_batch(tmp_path: Path) -> None:
    encoder = ts.load(ended(languages.write(tmp_path / "model", "llama")), language=LENGTH)

    def loss(*pairs: tuple[str, int]) -> float:
        given: Any = ([text for text, _ in pairs], [prompt for _, prompt in pairs])
        of = Task.from_tensors("t", [], objective="next-token", train=given, validation=given, test=given)
        return ts.evaluate(encoder, [of]).tasks[0].loss

    first, second = ("abc def", 0), ("xyz uvw", 3)
    assert loss(first, second) == pytest.approx((loss(first) + loss(second)) / 2, rel=1e-6)
    language = encoder.language
    assert language is not None
    targets = language.targets([Passage.after("xyz uvw", 3)], None)
    assert targets[0, :7].tolist()[-1] == 256  # " uvw" and the end
    assert (
        language.begun("ab")[1].tolist()
        == language.inputs.tokenizer("ab", add_special_tokens=False)["input_ids"]
    )
    for bad in ("yes", [], [3, 4]):
        with pytest.raises(DataError, match="at least two texts"):
            language.head(bad)  # type: ignore[arg-type]
