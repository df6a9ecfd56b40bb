"""Vectors that move a language model's token table: full fine-tunings of tied models, in every regime, in float64."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.func import functional_call, jvp

import tauspan as ts
from helpers import languages
from helpers.zoo import normal
from tauspan.core.errors import UsageError
from tauspan.editing import Decoder
from tauspan.models import fingerprint_of
from tauspan.models.extras import quiet
from tauspan.objectives.tokens import IGNORED
from tauspan.tasks import Task

LENGTH = 16
# Llama's norms compute in float32 whatever the model's dtype
KINDS = {"gpt2": 1e-10, "phi": 1e-10, "llama tied": 1e-6, "llama": 1e-6}
MIXES: tuple[dict[str, float], ...] = (
    {},
    {"first": 1.0},
    {"second": -0.5},
    {"first": 0.3, "second": 0.8},
)


def task(name: str, seed: int) -> Task:
    words = ["cats sit", "dogs run", "a bird", "it rains"]

    def rows(place: int) -> Any:
        draw = torch.Generator().manual_seed(10 * seed + place)
        return [
            " ".join(words[int(n)] for n in torch.randint(4, (2,), generator=draw)) for _ in range(3)
        ], None

    splits = {split: rows(place) for place, split in enumerate(("train", "validation", "test"))}
    return Task.from_tensors(name, [], objective="next-token", **splits)


@pytest.fixture(scope="module", params=KINDS)
def home(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return languages.write(tmp_path_factory.mktemp(request.param) / "model", request.param)


@pytest.fixture(scope="module")
def near(home: Path) -> float:
    """How near losses must be, relative."""
    folder = home.parent.name  # the kind and a number: a worker may make the folder more than once
    return next(limit for kind, limit in KINDS.items() if folder.startswith(kind))


@pytest.fixture(scope="module")
def full(home: Path) -> nn.Module:
    """The whole model as transformers has it, in float64."""
    with quiet(transformers):
        found: Any = transformers.AutoModelForCausalLM.from_pretrained(home, dtype=torch.float32)
    for theta in found.parameters():
        theta.requires_grad_(False)
    return found.double().eval()  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def encoder(home: Path) -> ts.Encoder:
    return ts.load(home, language=LENGTH).double()


def vector(full: nn.Module, encoder: ts.Encoder, seed: int, regime: Any) -> ts.TaskVector:
    """A displacement of every parameter of the whole model, as of a full fine-tuning."""
    deltas = {
        name: 0.1 * normal(*theta.shape, seed=100 * seed + place)
        for place, (name, theta) in enumerate(full.named_parameters())
    }
    return ts.TaskVector(deltas, fingerprint_of(encoder), regime, f"v{seed}")


def vectors(full: nn.Module, encoder: ts.Encoder, regime: Any) -> dict[Task, ts.TaskVector]:
    return {
        task(name, seed): vector(full, encoder, seed, regime)
        for seed, name in enumerate(("first", "second"), 1)
    }


def logits(
    full: nn.Module, ids: Tensor, taus: list[ts.TaskVector], scales: list[float], regime: str
) -> Tensor:
    """The oracle: the whole model at theta0 + sum a tau, or its whole derivative, one text at a time."""
    theta = dict(full.named_parameters())
    tau = {name: sum(a * one.deltas[name] for a, one in zip(scales, taus, strict=True)) for name in theta}

    def run(point: dict[str, Tensor]) -> Tensor:
        found: Tensor = functional_call(full, point, (), {"input_ids": ids, "use_cache": False}).logits
        return found

    if regime == "standard":
        return run({name: theta[name] + tau[name] for name in theta})
    value, moved = jvp(run, (theta,), (tau,))
    return value + moved


def loss(
    full: nn.Module, encoder: ts.Encoder, of: Task, split: str, taus: Any, mix: Any, regime: str
) -> float:
    language = encoder.language
    assert language is not None
    targets = language.targets(list(of.split(split).inputs), None)
    found = []
    for text, wanted in zip(of.split(split).inputs, targets, strict=True):
        ids = language.inputs.tokenizer(text, return_tensors="pt")["input_ids"][:, :LENGTH]
        shares = [mix.get(one.name, 0.0) for one in taus]
        rows = logits(full, ids, list(taus.values()), shares, regime)[0].log_softmax(-1)
        there = [place for place, word in enumerate(wanted.tolist()) if word != IGNORED]
        found.append(-torch.stack([rows[place, wanted[place]] for place in there]).mean())
    return float(torch.stack(found).mean())


@pytest.fixture(autouse=True)
def exact_attention() -> Any:
    """Forward mode has no rule for fused attention."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel(SDPBackend.MATH):
        yield


@pytest.mark.thinned(2)
@pytest.mark.parametrize("regime", ["standard", "posthoc", "linear"])
def test_losses_at_any_mix_are_those_of_the_whole_model(
    near: float, full: nn.Module, encoder: ts.Encoder, regime: Any
) -> None:
    taus = vectors(full, encoder, "linear" if regime == "linear" else "standard")
    editor = ts.Editor(encoder, taus, regime)
    for mix in MIXES:
        at = editor.evaluate(mix, split="validation")
        for of, score in zip(taus, at.tasks, strict=True):
            wanted = loss(full, encoder, of, "validation", taus, mix, regime)
            assert score.loss == pytest.approx(wanted, rel=near), (of.name, mix)


@pytest.mark.thinned(4)
def test_every_question_is_answered(full: nn.Module, encoder: ts.Encoder) -> None:
    for regime in ("standard", "linear"):
        taus = vectors(full, encoder, regime)
        editor = ts.Editor(encoder, taus)
        solved = editor.coefficients(bootstrap=0, max_evaluations=8)
        wanted = [loss(full, encoder, of, "validation", taus, solved.coefficients, regime) for of in taus]
        assert solved.loss == pytest.approx(sum(wanted) / 2, rel=1e-6)
        if regime == "linear":
            assert solved.certificate is not None
            assert solved.certificate <= 1e-8
        by_layer = editor.coefficients(per="layer", bootstrap=0, max_evaluations=4)
        assert by_layer.loss <= solved.loss * 1.05
        assert editor.add(grid=[0.0, 0.5]).alpha in (0.0, 0.5)
        assert editor.negate("first", floor=0.5, grid=[0.0, 0.25]).alpha in (0.0, 0.25)


def test_an_edited_model_has_its_own_table(
    near: float, full: nn.Module, encoder: ts.Encoder, tmp_path: Path
) -> None:
    """In memory, from its directory, and as transformers reads it."""
    taus = vectors(full, encoder, "standard")
    of, tau = next(iter(taus.items()))
    wanted = loss(full, encoder, of, "test", taus, {"first": 0.5}, "standard")
    edited: Any = ts.apply(encoder, tau, 0.5)
    assert ts.evaluate(edited, [of]).tasks[0].loss == pytest.approx(wanted, rel=near)
    ts.save(edited, tmp_path / "edited")
    again: Any = ts.load(tmp_path / "edited", language=LENGTH)
    assert ts.evaluate(again, [of]).tasks[0].loss == pytest.approx(wanted, rel=1e-5)
    tangent: Any = ts.apply(encoder, tau, 0.5, regime="posthoc")
    wanted = loss(full, encoder, of, "test", taus, {"first": 0.5}, "posthoc")
    assert ts.evaluate(tangent, [of]).tasks[0].loss == pytest.approx(wanted, rel=near)


def test_tokens_are_decoded_with_the_moved_table(near: float, full: nn.Module, encoder: ts.Encoder) -> None:
    taus = {of.name: tau for of, tau in vectors(full, encoder, "linear").items()}
    text = Decoder(encoder, taus).text("a cat")
    for place, token in enumerate(b" sat"):
        mix = {"first": 0.5 + place, "second": -0.25 * place}
        wanted = logits(full, torch.tensor([text.ids]), list(taus.values()), list(mix.values()), "linear")[
            0, -1
        ]
        found = text.logits(mix)
        torch.testing.assert_close(found, wanted, rtol=near, atol=near * float(wanted.abs().max()))
        text.append(token)


def test_a_small_space_that_holds_the_table_is_its_whole_vectors(tmp_path: Path) -> None:
    encoder = ts.load(languages.write(tmp_path / "model", "llama tied"), language=LENGTH).double()
    basis = {}
    for seed, name in enumerate(("embed_tokens.weight", "layers.0.mlp.up_proj.weight")):
        shape = encoder.backbone.get_parameter(name).shape
        basis[name] = torch.linalg.qr(normal(2, shape.numel(), seed=seed).double().T)[0].T.reshape(2, *shape)
    space = ts.restrict(encoder, basis).space
    assert space is not None
    of, mix = task("t", 1), {"t": 0.7}
    deltas = {name: normal(2, seed=5) for name in space.small}
    for regime in ("standard", "linear"):
        small = ts.TaskVector(deltas, fingerprint_of(encoder), regime, "t", space=space)  # type: ignore[arg-type]
        whole = small.dense(encoder)
        assert float(whole.deltas["model.embed_tokens.weight"].norm()) > 0
        found, wanted = (ts.Editor(encoder, {of: tau}).evaluate(mix).tasks[0].loss for tau in (small, whole))
        still = ts.evaluate(encoder, [of]).tasks[0].loss
        assert found == pytest.approx(wanted, rel=1e-6)
        assert found != pytest.approx(still, rel=1e-5)
    texts = [Decoder(encoder, {"t": tau}).text("a cat").logits(mix) for tau in (small, whole)]
    torch.testing.assert_close(texts[0], texts[1], rtol=1e-6, atol=1e-6)
    with pytest.raises(UsageError, match="does not train here"):
        ts.finetune(ts.restrict(encoder, basis), of, ts.Settings("linear", lr=1e-3, epochs=1))


def test_the_table_does_not_train_by_name(tmp_path: Path) -> None:
    encoder = ts.load(languages.write(tmp_path / "model", "llama tied"), language=LENGTH)
    for params in ("*", "embed_tokens.weight"):
        with pytest.raises(UsageError, match=r"embed_tokens.*does not train here"):
            ts.finetune(encoder, task("t", 1), ts.Settings("linear", params=params, lr=1e-3, epochs=1))
        with pytest.raises(UsageError, match=r"embed_tokens.*does not train here"):
            ts.fit(encoder, task("t", 1), params=params)
    ts.finetune(encoder, task("t", 1), ts.Settings("linear", params="all", lr=1e-3, epochs=1))
