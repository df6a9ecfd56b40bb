"""What people give wrongly to language models and objectives: each error names the thing, both values and a repair."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as T
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers import models as token_models
from torch import Tensor, nn

import tauspan as ts
from helpers import languages
from helpers.searches import random_vector
from tauspan.cli.main import main
from tauspan.core.errors import (
    ArgumentError,
    BaseMismatchError,
    DataError,
    MismatchError,
    ModelError,
    NonFiniteError,
    UsageError,
)
from tauspan.editing import Decoder
from tauspan.models import Head
from tauspan.models.extras import quiet
from tauspan.objectives import OwnLoss, objective_of
from tauspan.tasks import Task

TEXTS = ["cats sit on mats", "dogs run away", "it rains again"]
SETTINGS = ts.Settings("linear", lr=1e-3, epochs=1, batch_size=4)
NAN = float("nan")


class World:
    """A tied language model of 64 positions, read with and without `language`, and files."""

    def __init__(self, root: Path) -> None:
        self.root, self.home = root, languages.write(root / "model", "llama tied")
        self.model, self.plain = ts.load(self.home, language=24), ts.load(self.home)
        self.other = ts.load(nn.Linear(4, 3))
        self.tau = random_vector(self.model, 0, "linear") * 0.1
        self.write("rows.csv", "text,question\na b,c\nd e,f\ng h,i\nj k,l\n")
        self.write("classes.csv", "text,label\na,yes\nb,no\nc,yes\nd,no\n")
        task("texts", TEXTS).to_directory(root / "texts")

    @property
    def decoder(self) -> Decoder:
        return Decoder(self.model, {"t": self.tau})

    @property
    def editor(self) -> ts.Editor:
        return ts.Editor(self.model, {task("t", TEXTS): self.tau})

    def write(self, name: str, text: str) -> Path:
        (self.root / name).write_text(text)
        return self.root / name

    def copy(self, name: str) -> Path:
        return Path(shutil.copytree(self.home, self.root / name, dirs_exist_ok=True))

    def other_words(self) -> Path:
        """The model with a tokenizer of more words than it has."""
        folder = self.copy("words")
        words = {word: n for n, word in enumerate(["[UNK]", "<e>", *(f"w{n}" for n in range(600)), "cats"])}
        made = Tokenizer(token_models.WordLevel(words, unk_token="[UNK]"))
        made.pre_tokenizer = pre_tokenizers.Whitespace()
        T.PreTrainedTokenizerFast(
            tokenizer_object=made, eos_token="<e>", pad_token="<e>", unk_token="[UNK]"
        ).save_pretrained(folder)
        return folder

    def asked(self) -> Path:
        """A task of answers to prompts."""
        folder = self.root / "asked"
        if not folder.exists():
            task("asked", ["what is it? rain", "who runs? dogs"], [11, 9]).to_directory(folder)
        return folder

    def no_words(self) -> Path:
        """The model with a tokenizer that knows none of the words."""
        folder = self.copy("no words")
        made = Tokenizer(token_models.WordLevel({"[UNK]": 0, "<e>": 1, "w1": 2}, unk_token="[UNK]"))
        made.pre_tokenizer = pre_tokenizers.Whitespace()
        T.PreTrainedTokenizerFast(
            tokenizer_object=made, eos_token="<e>", pad_token="<e>", unk_token="[UNK]"
        ).save_pretrained(folder)
        return folder

    def reshaped(self) -> Path:
        """The configuration says other heads than the weights have."""
        folder = self.copy("reshaped")
        file = folder / "config.json"
        content = json.loads(file.read_text())
        file.write_text(json.dumps(content | {"intermediate_size": 2 * content["intermediate_size"]}))
        return folder

    def wordless(self) -> Path:
        folder = self.copy("wordless")
        for file in folder.glob("*token*"):
            file.unlink()
        return folder

    def broken(self) -> Path:
        """One weight is NaN."""
        folder = self.copy("broken")
        tensors = load_file(folder / "model.safetensors")
        tensors["model.layers.0.self_attn.q_proj.weight"][0, 0] = NAN
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        return folder

    def capped(self) -> Path:
        """Gemma 2 caps its logits."""
        sizes = {**languages._SIZES, "head_dim": 4, "final_logit_softcapping": 0.5}
        with torch.random.fork_rng(), quiet(T):
            T.Gemma2ForCausalLM(T.Gemma2Config(**sizes)).save_pretrained(self.root / "capped")
        languages.tokenizer().save_pretrained(self.root / "capped")
        return self.root / "capped"

    def cut_gguf(self) -> Path:
        """A GGUF file whose header promises more than is there."""
        file = self.root / "cut.gguf"
        file.write_bytes(b"GGUF" + (3).to_bytes(4, "little") + (200).to_bytes(8, "little") + b"abc")
        return file

    def adapter(self) -> Path:
        """LoRA of a base of other sizes."""
        folder = self.root / "adapter"
        folder.mkdir(exist_ok=True)
        config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
        (folder / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "x"}))
        place = "base_model.model.model.layers.0.self_attn.q_proj"
        parts = {f"{place}.lora_A.weight": torch.ones(2, 64), f"{place}.lora_B.weight": torch.ones(64, 2)}
        save_file(parts, folder / "adapter_model.safetensors")
        return folder


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("bad"))


def task(name: str, rows: Any, prompts: Any = None) -> Task:
    given: Any = (rows, prompts)
    return Task.from_tensors(name, [], objective="next-token", train=given, validation=given, test=given)


def numbers(targets: Any, objective: Any = "regression", name: str = "n") -> Task:
    given: Any = (torch.ones(3, 4), targets)
    return Task.from_tensors(name, ["a"], objective=objective, train=given, validation=given, test=given)


def classes(rows: Any) -> Task:
    given: Any = (rows, [0, 1, 0])
    return Task.from_tensors("c", ["a", "b"], train=given, validation=given, test=given)


def table(w: World, file: str, **options: Any) -> Task:
    return Task.from_files("n", w.root / file, **options)


def square(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).square()


def pitfall(outputs: Tensor, targets: Tensor) -> Tensor:
    """No number where a target is 9."""
    return (outputs - targets).square().sum(-1) / (targets[:, 0] != 9)


def late(objective: OwnLoss, head: Head | None = None) -> Task:
    """The fifth row's target is 9; it is not among the four rows of the first batch that a loss is tried on."""
    rows = (torch.ones(16, 4), torch.tensor([[9.0 if row == 4 else 1.0] for row in range(16)]))
    return Task.from_tensors(
        "late", ["u"], objective=objective, train=rows, validation=rows, test=rows, head=head
    )


def pairs(first: list[str], second: list[str], third: Any = None, objective: str = "preference") -> Task:
    rows = (None, first, second) if third is None else (first, second, third)
    return Task.from_tensors("p", [], objective=objective, train=rows, validation=rows, test=rows)


def mixed(w: World) -> Any:
    tasks = [numbers([1.0, 2.0, 3.0]), numbers(torch.ones(3, 1), "multi-label", "labels")]
    tau = random_vector(w.other, 0, "linear")
    return ts.coefficients(w.other, dict.fromkeys(tasks, tau))


Case = tuple[type[Exception], str, Callable[[World], Any]]
CASES: dict[str, Case] = {
    # texts
    "an empty text": (
        DataError,
        r"row 0: nothing follows .*take the row out",
        lambda w: task("t", ["", "a b"]),
    ),
    "a text of one token": (
        DataError,
        r"'x'.* 1 tokens .*take the row out",
        lambda w: ts.evaluate(w.model, [task("t", ["x", "a b"])]),
    ),
    "a prompt longer than the context": (
        DataError,
        r"24 tokens of at most 24.* 60 characters\. Allow more",
        lambda w: ts.evaluate(w.model, [task("t", ["x" * 60 + " yes"], [60])]),
    ),
    "a prompt that is the whole text": (
        DataError,
        r"nothing follows its prompt of 13 .*shorten the prompt",
        lambda w: task("t", TEXTS, [0, 13, 0]),
    ),
    "a prompt of less than nothing": (
        DataError,
        "a prompt of -1 characters",
        lambda w: task("t", TEXTS, [-1, 0, 0]),
    ),
    "prompts that are no whole numbers": (
        DataError,
        "whole numbers of characters",
        lambda w: task("t", TEXTS, [1.5, 0, 0]),
    ),
    "fewer prompts than texts": (DataError, r"3 texts .* \(1,\): give one", lambda w: task("t", TEXTS, [1])),
    "numbers for texts": (DataError, "give a list of texts", lambda w: task("t", torch.ones(3, 4))),
    "no text at all": (DataError, "no rows in its train split", lambda w: task("t", [])),
    "a column of prompts that is not there": (
        DataError,
        "no column 'ask'; it has text, question",
        lambda w: table(w, "rows.csv", prompt="ask", objective="next-token"),
    ),
    "labels of texts": (
        UsageError,
        r"label=\['question'\].*prompt= \(--prompt\)",
        lambda w: table(w, "rows.csv", label="question", objective="next-token"),
    ),
    "a prompt of classes": (
        UsageError,
        r"prompt='question' is for tasks of texts",
        lambda w: table(w, "rows.csv", prompt="question", label="text"),
    ),
    # numbers and losses
    "a target that is NaN": (
        DataError,
        r"row 1 has a target that is NaN.*Take the row out",
        lambda w: numbers([1.0, NAN, 2.0]),
    ),
    "a target that is infinite": (
        DataError,
        r"row 2 has a target .*infinite",
        lambda w: numbers([1.0, 2.0, float("inf")]),
    ),
    "targets of another width": (
        DataError,
        "2 targets, and the task 1 names",
        lambda w: numbers(torch.ones(3, 2)),
    ),
    "targets that are words": (
        DataError,
        r"no numbers .*: give a tensor",
        lambda w: numbers(["a", "b", "c"]),
    ),
    "regression of class names": (
        DataError,
        r"'yes' is no number.*\"classification\"",
        lambda w: table(w, "classes.csv", objective="regression"),
    ),
    "a label of two": (DataError, r"\[2\.0\].*between 0", lambda w: numbers([2.0, 0.0, 1.0], "multi-label")),
    "an objective that there is not": (
        UsageError,
        "'regresion'. Did you mean 'regression'",
        lambda w: numbers([1.0] * 3, "regresion"),
    ),
    "an own loss of each output": (
        UsageError,
        r"shape \(3, 3\) for 3 rows: return the loss of each row",
        lambda w: ts.finetune(w.other, numbers([1.0] * 3, OwnLoss(square)), SETTINGS),
    ),
    "an own loss that is a word": (
        UsageError,
        "function='huber' .*no function: give",
        lambda w: OwnLoss("huber"),
    ),  # type: ignore[arg-type]
    "several objectives in one mean": (UsageError, "several units", mixed),
    # models
    "one token": (UsageError, "language=1.*at least 2", lambda w: ts.load(w.home, language=1)),
    "more tokens than positions": (
        UsageError,
        "language=65, .*64 tokens: say language=64",
        lambda w: ts.load(w.home, language=65),
    ),
    "a word for a number of tokens": (ArgumentError, r"int\('x'\)", lambda w: ts.load(w.home, language="x")),  # type: ignore[call-overload]
    "a tokenizer of another model": (
        ModelError,
        r"603 tokens, gives the token 602, and the model knows 257.*belong",
        lambda w: ts.evaluate(ts.load(w.other_words(), language=24), [task("t", ["w1 w598 cats"])]),
    ),
    "a directory without tokenizer": (
        ModelError,
        r"no usable tokenizer.*such as tokenizer\.json",
        lambda w: ts.load(w.wordless(), language=24),
    ),
    "weights that are NaN": (
        NonFiniteError,
        r"NaN or infinity on a sample.*doctor",
        lambda w: ts.load(w.broken(), language=24),
    ),
    "logits with a cap": (ModelError, "it caps them", lambda w: ts.load(w.capped(), language=24)),
    "a GGUF file cut short": (
        ModelError,
        r"cut\.gguf.*get the file again",
        lambda w: ts.load(w.cut_gguf(), language=24),
    ),
    "an adapter of another base": (
        MismatchError,
        r"\(64, 64\), and the base has \(16, 16\)",
        lambda w: ts.adapter_vector(w.adapter(), w.home),
    ),
    "texts on a model of features": (
        UsageError,
        r"language=L",
        lambda w: ts.finetune(w.plain, task("t", TEXTS), SETTINGS),
    ),
    "classes on a model of texts": (
        UsageError,
        r"language=24.*without `language`",
        lambda w: ts.evaluate(w.model, [classes(TEXTS)]),
    ),
    "numbers on a model of texts": (
        UsageError,
        r"regression.*without `language`",
        lambda w: ts.finetune(w.model, numbers([1.0] * 3), SETTINGS),
    ),
    "tensors on a model of texts": (
        UsageError,
        "without `language`",
        lambda w: ts.evaluate(w.model, [classes(torch.ones(3, 4))]),
    ),
    "smoothed labels of texts": (
        UsageError,
        "set label_smoothing=0",
        lambda w: ts.finetune(
            w.model, task("t", TEXTS), ts.Settings("linear", lr=1e-3, epochs=1, label_smoothing=0.1)
        ),
    ),
    "a text and its prompt in one column": (
        UsageError,
        "are one column.*or leave prompt=",
        lambda w: table(w, "rows.csv", prompt="text", objective="next-token"),
    ),
    "a pair of equal texts": (
        DataError,
        "row 1 is a row whose chosen and rejected texts are the same.*clean=True",
        lambda w: pairs(["a", "b", "c"], ["d", "b", "e"]),
    ),
    "half a seed": (
        UsageError,
        r"seed=1\.5: a whole number",
        lambda w: objective_of("masked-token(seed=1.5)"),
    ),
    "an option that is NaN": (UsageError, "a finite number", lambda w: objective_of("preference(beta=nan)")),
    "an option of none": (
        UsageError,
        "has no options: write 'next-token'",
        lambda w: objective_of("next-token(beta=1)"),
    ),
    "a score above the most": (
        DataError,
        r"similarity 7, and the most is 5.*similarity\(most=7\)",
        lambda w: pairs(["a", "b", "c"], ["d", "e", "f"], [1.0, 7.0, 2.0], "similarity(most=5)"),
    ),
    "a loss that is NaN for one row": (
        NonFiniteError,
        "loss pitfall of the training rows 4 of 'late' is not finite, though.*look at their targets",
        lambda w: ts.finetune(
            w.other, late(OwnLoss(pitfall), Head(torch.ones(1, 3))), ts.Settings("linear", batch_size=16)
        ),
    ),
    "a head for a loss that is NaN for one row": (
        NonFiniteError,
        "loss pitfall of the training rows 4 has a slope.*look at their targets",
        lambda w: ts.finetune(w.other, late(OwnLoss(pitfall)), SETTINGS),
    ),
    "a plan for no memory": (
        UsageError,
        "memory=-1: it is a number of bytes",
        lambda w: ts.plan(w.model, task("t", TEXTS), SETTINGS, memory=-1),
    ),
    "a run that diverges": (
        NonFiniteError,
        r"perplexity of 't' on validation rows is inf.*Lower the learning rate, 1e\+20",
        lambda w: ts.finetune(w.model, task("t", TEXTS), ts.Settings("linear", lr=1e20, epochs=2)),
    ),
    "a tokenizer that knows no word": (
        ModelError,
        r"tokens of these rows are the tokenizer's '\[UNK\]'.*Put the tokenizer's files",
        lambda w: ts.evaluate(ts.load(w.no_words(), language=24), [task("t", TEXTS)]),
    ),
    "the configuration of another model": (
        ModelError,
        r"has shape \(.*\) in the files, and config\.json makes it \(.*belongs to the weights",
        lambda w: ts.load(w.reshaped(), language=24),
    ),
    "a basis that is not orthonormal": (
        UsageError,
        r"is not orthonormal.*off by.*torch\.linalg\.qr",
        lambda w: ts.restrict(w.other, {"weight": torch.ones(2, 3, 4)}),
    ),
    "a basis of whole numbers": (
        UsageError,
        r"dtype torch\.int64.*basis\.float\(\)",
        lambda w: ts.restrict(w.other, {"weight": torch.ones(2, 3, 4).long()}),
    ),
    "a pair of directions that is not orthonormal": (
        UsageError,
        "is not orthonormal.*svd",
        lambda w: ts.restrict(w.other, {"weight": (torch.ones(3, 2), torch.ones(2, 4))}),
    ),
    # coefficients and decoding
    "a coefficient that is NaN": (
        UsageError,
        "'t' is nan: a finite number",
        lambda w: w.editor.evaluate({"t": NAN}),
    ),
    "a scale that is NaN": (
        UsageError,
        "nan: a finite number",
        lambda w: ts.evaluate(w.model, [task("t", TEXTS)], w.tau, NAN),
    ),
    "an edit that is NaN": (
        UsageError,
        "nan: a finite number",
        lambda w: ts.apply(w.model, w.tau.as_regime("standard"), NAN),
    ),
    "a coefficient of no vector": (
        UsageError,
        "no vector 'u'. Known: t",
        lambda w: w.editor.evaluate({"u": 1.0}),
    ),
    "a vector of another model": (
        BaseMismatchError,
        "starts from base 000.*re-label",
        lambda w: Decoder(w.model, {"t": w.tau.rebased("0" * 64)}),
    ),
    "no token to be made": (
        UsageError,
        "tokens=0: ask for at least 1",
        lambda w: w.decoder.generate("a", {}, tokens=0),
    ),
    "a temperature below zero": (
        UsageError,
        "temperature=-1.0: a finite number",
        lambda w: w.decoder.generate("a", {}, temperature=-1.0),
    ),
    "a temperature without end": (
        UsageError,
        "temperature=inf: a finite number",
        lambda w: w.decoder.generate("a", {}, temperature=float("inf")),
    ),
    "a mix that is NaN": (
        UsageError,
        "'t' is nan: a finite number",
        lambda w: w.decoder.generate("a", {"t": NAN}, tokens=2),
    ),
    "a mix that overflows": (
        NonFiniteError,
        r"1e\+308.*smaller coefficients",
        lambda w: w.decoder.generate("a", {"t": 1e308}, tokens=2),
    ),
    "a token that is a letter": (
        ArgumentError,
        "`token` is the text 'b'",
        lambda w: w.decoder.text("a").append("b"),
    ),  # type: ignore[arg-type]
    "a class of several tokens": (
        DataError,
        r"'yes' is 3 tokens.*shorter word",
        lambda w: w.model.language.head(["yes", "n"]),
    ),  # type: ignore[union-attr]
}


def needs_its_library(case: str) -> None:
    """Skip what only an optional library reads; `make test` installs none of them."""
    if case == "a GGUF file cut short":
        pytest.importorskip("gguf")


@pytest.mark.parametrize("case", CASES)
def test_each_is_told_with_its_repair(case: str, world: World) -> None:
    error, words, ask = CASES[case]
    needs_its_library(case)
    with pytest.raises(error, match=words):
        ask(world)


LINES: dict[str, tuple[str, str]] = {
    "one token": ("evaluate {model} {texts} --language 1", "at least 2"),
    "more tokens than positions": ("evaluate {model} {texts} --language 65", "say language=64"),
    "texts on a model of features": ("evaluate {model} {texts}", "language=L"),
    "a GGUF file cut short": ("evaluate {cut} {texts} --language 24", "get the file again"),
    "no such column": (
        "data make {rows} --prompt ask --objective next-token --shares 0.6 0.2 0.2 -o {out}",
        "no column 'ask'",
    ),
    "labels of texts": (
        "data make {rows} --label question --objective next-token --shares 0.6 0.2 0.2 -o {out}",
        "no labels",
    ),
    "words as numbers": (
        "data make {classes} --objective regression --shares 0.6 0.2 0.2 -o {out}",
        "is no number",
    ),
    "an adapter of another base": ("vector from-adapter {model} {adapter} -o {out}", "(16, 16)"),
    "a scale that is NaN": ("evaluate {model} {texts} --language 24 --vector {tau} --scale nan", "finite"),
    "a plan for no memory": ("finetune {model} {texts} {out} --language 24 --plan --memory -1", "number of bytes"),
    "too few tokens for the prompt": ("finetune {model} {asked} {out} --language 2", "Allow more tokens"),
}  # fmt: skip


@pytest.mark.parametrize("case", LINES)
def test_the_program_says_the_same_without_a_traceback(
    case: str, world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line, words = LINES[case]
    needs_its_library(case)
    tau = world.root / "tau.safetensors"
    if not tau.exists():
        world.tau.save_pretrained(tau)
    places = {
        "model": world.home, "texts": world.root / "texts", "cut": world.cut_gguf(), "tau": tau,
        "rows": world.root / "rows.csv", "classes": world.root / "classes.csv", "adapter": world.adapter(),
        "out": tmp_path / "out", "asked": world.asked(),
    }  # fmt: skip
    assert main([part.format(**places) for part in line.split()]) in (2, 3, 4, 5, 6)
    shown = capsys.readouterr()
    assert words in shown.err
    assert "Traceback" not in shown.err
    assert not [file for file in tmp_path.rglob("*") if file.is_file()]
