"""Editing: what an edited model computes, and that it is the same model after a file."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from torch.func import functional_call, jvp

from helpers import checkpoints, tiny
from helpers.program import vector_of
from helpers.zoo import normal
from tauspan.core.errors import BaseMismatchError, StoreError, UsageError
from tauspan.editing.model.edit import apply, load, save
from tauspan.editing.model.regime import edit_regime
from tauspan.models import Classifier, Encoder, Head, fingerprint_of, state_of
from tauspan.models.extras import quiet
from tauspan.tangent import Linearized
from tauspan.vector import TaskVector

X = normal(5, 3, seed=8).float()
TEXTS = ["a b c", "x y", "q"]


def vector(module: nn.Module, regime: Any = "standard") -> TaskVector:
    deltas = {
        name: normal(*tensor.shape, seed=place).float()
        for place, (name, tensor) in enumerate(state_of(module).items())
    }
    return TaskVector(deltas, fingerprint_of(module), regime)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.write(tmp_path_factory.mktemp("models") / "bert", "bert")


# -- what it computes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [0.0, 0.3, 1.0, -2.0])
def test_a_standard_edit_is_the_module_at_theta0_plus_alpha_tau(scale: float) -> None:
    net = tiny.mlp()
    tau = vector(net)
    moved = {name: tensor + scale * tau.deltas[name] for name, tensor in net.named_parameters()}
    edited = apply(net, tau, scale)
    assert type(edited) is type(net)
    torch.testing.assert_close(edited(X), functional_call(net, moved, (X,)))


@pytest.mark.parametrize("scale", [0.0, 0.3, 1.0, -2.0])
@pytest.mark.parametrize("regime", ["posthoc", "linear"])
def test_a_tangent_edit_is_the_first_order_expansion_at_alpha_tau(regime: Any, scale: float) -> None:
    net = tiny.mlp()
    tau = vector(net, "linear" if regime == "linear" else "standard")
    theta0 = {name: tensor.detach() for name, tensor in net.named_parameters()}
    value, slope = jvp(lambda theta: functional_call(net, theta, (X,)), (theta0,), (dict(tau.deltas),))
    edited = apply(net, tau, scale, regime=regime)
    assert isinstance(edited, Linearized)
    torch.testing.assert_close(edited(X), value + scale * slope)


@pytest.mark.parametrize("regime", ["standard", "posthoc", "linear"])
def test_the_input_is_not_changed(regime: Any) -> None:
    net = tiny.mlp()
    tau = vector(net, "linear" if regime == "linear" else "standard")
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    deltas = {name: tensor.clone() for name, tensor in tau.deltas.items()}
    apply(net, tau, 0.5, regime=regime)
    assert tiny.same_bits(net.state_dict(), before)
    assert tiny.same_bits(tau.deltas, deltas)


def test_encoders_and_classifiers_are_edited_as_what_they_are() -> None:
    encoder = load(tiny.mlp())
    assert isinstance(encoder, Encoder)
    tau, head = vector(encoder), Head(torch.eye(2), scale=1.0)
    plain = apply(tiny.mlp(), tau)
    for module in (encoder, Classifier(encoder, head)):
        edited = apply(module, tau)
        assert type(edited) is type(module)
        found = edited.encoder if isinstance(edited, Classifier) else edited
        torch.testing.assert_close(found(X), plain(X))


def test_the_regime_is_the_vectors_own_unless_another_fits() -> None:
    net = tiny.mlp()
    standard, linear = vector(net), vector(net, "linear")
    assert [edit_regime(standard, None), edit_regime(linear, None)] == ["standard", "linear"]
    assert edit_regime(standard, "posthoc") == "posthoc"
    for tau, regime in ((standard, "linear"), (linear, "standard"), (linear, "posthoc")):
        with pytest.raises(UsageError, match="as_regime"):
            apply(net, tau, regime=regime)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="Did you mean 'standard'"):
        edit_regime(standard, "standart")


def test_a_vector_of_another_base_is_refused() -> None:
    net = tiny.mlp()
    for regime in ("standard", "posthoc"):
        with pytest.raises(BaseMismatchError, match="starts from base"):
            apply(tiny.moved(net), vector(net), regime=regime)  # type: ignore[arg-type]


# -- files ---------------------------------------------------------------------------------------------------


def test_transformers_loads_an_edited_directory_unchanged(directory: Path, tmp_path: Path) -> None:
    edited: Any = apply(load(directory), vector_of(directory), 0.7)
    save(edited, tmp_path / "edited")
    with quiet(transformers):
        theirs = transformers.AutoModel.from_pretrained(tmp_path / "edited").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "edited")
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = edited.backbone(**batch).last_hidden_state
        torch.testing.assert_close(theirs(**batch).last_hidden_state, expected, atol=1e-6, rtol=0)
        again: Any = load(tmp_path / "edited")
        assert torch.equal(again(again.encode(TEXTS)), edited(edited.encode(TEXTS)))
    assert tiny.same_bits(state_of(again), state_of(edited))


@pytest.mark.parametrize("regime", ["posthoc", "linear"])
def test_a_tangent_model_is_the_same_after_a_file(directory: Path, tmp_path: Path, regime: Any) -> None:
    tau = vector_of(directory, regime="linear" if regime == "linear" else "standard")
    base: Any = load(directory)
    edited: Any = apply(base, tau, 0.7, regime=regime)
    save(edited, tmp_path / "edited")
    assert sorted(file.name for file in (tmp_path / "edited").iterdir()) == [
        "tauspan.json",
        "vector.safetensors",
    ]
    again: Any = load(tmp_path / "edited")
    assert isinstance(again, Linearized)
    assert tiny.same_bits(again.tau, edited.tau)
    batch = base.encode(TEXTS)
    assert torch.equal(again(batch), edited(batch))


def test_a_tangent_model_whose_base_was_changed_is_refused(tmp_path: Path) -> None:
    base = checkpoints.write(tmp_path / "base", "bert")
    tau = vector_of(base)
    save(apply(load(base), tau, regime="posthoc"), tmp_path / "edited")
    save(apply(load(base), tau), tmp_path / "other")
    shutil.copytree(tmp_path / "other", base, dirs_exist_ok=True)
    with pytest.raises(BaseMismatchError, match="Restore the model it was made from"):
        load(tmp_path / "edited")


@pytest.mark.parametrize("content", ["{}", "[]", '{"format": "tauspan-tangent/9", "base": "x"}', "{"])
def test_a_reference_that_is_none_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "tauspan.json").write_text(content)
    with pytest.raises(StoreError, match=r"tauspan\.json"):
        load(tmp_path)


@pytest.mark.parametrize("regime", ["standard", "posthoc"])
def test_a_model_is_not_written_over_another(directory: Path, tmp_path: Path, regime: Any) -> None:
    edited = apply(load(directory), vector_of(directory), regime=regime)
    save(edited, tmp_path / "edited")
    before = {file.name: file.read_bytes() for file in (tmp_path / "edited").iterdir()}
    with pytest.raises(StoreError, match="already there"):
        save(edited, tmp_path / "edited")
    assert {file.name: file.read_bytes() for file in (tmp_path / "edited").iterdir()} == before
    save(edited, tmp_path / "edited", overwrite=True)
    assert [file.name for file in tmp_path.iterdir()] == ["edited"]


def test_a_classifier_is_saved_as_its_encoder(directory: Path, tmp_path: Path) -> None:
    base: Any = load(directory)
    edited = apply(Classifier(base, Head(torch.ones(2, 8))), vector_of(directory))
    save(edited, tmp_path / "edited")
    assert fingerprint_of(load(tmp_path / "edited")) == fingerprint_of(edited)
