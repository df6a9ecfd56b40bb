"""Vectors of prompts: sums over keys and values, sums of prompts, the measured error, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import tauspan as ts
from helpers import checkpoints, languages
from helpers.zoo import close, normal, stirred
from tauspan.core.errors import ModelError, UsageError
from tauspan.models import Encoder
from tauspan.prefix import FeatureMap, prompt_vector
from tauspan.prefix.attention import Attended, Prefix, watching
from tauspan.prefix.prompt import in_front

PHIS: tuple[Any, ...] = ("elu", "taylor", "positive")
TEXTS = ["a b c", "x y", "z"]


@pytest.fixture(scope="module", params=["bert", "gpt2", "vit"])
def encoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    """Small logits, as every weight is near its tiny start."""
    folder = checkpoints.write(tmp_path_factory.mktemp("models") / request.param, request.param)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ts.load(folder).double()  # type: ignore[return-value]


def inputs(encoder: Encoder, seed: int = 0) -> list[Any]:
    if encoder.inputs.modality == "text":
        return TEXTS[seed:] + TEXTS[:seed]
    return list(normal(3, 8, 8, 3, seed=seed).abs().clamp(0, 1).float())


def calls(encoder: Encoder, rows: list[Any]) -> list[Attended]:
    seen: list[Attended] = []
    with torch.no_grad(), watching(lambda call: seen.append(call)):
        encoder(encoder.encode(rows))
    return seen


@pytest.mark.parametrize("phi", PHIS)
def test_it_is_the_sum_over_the_keys_of_the_prompt(encoder: Encoder, phi: Any) -> None:
    made = ts.with_prefix(encoder, phi, features=7)
    prompt = inputs(encoder)[0]
    vector = prompt_vector(made, prompt, rows=inputs(encoder), bound=1e6)
    for (name, part), call in zip(prefixes(made), calls(made, [prompt]), strict=True):
        z, kappa = torch.zeros_like(part.z), torch.zeros_like(part.kappa)
        for head in range(part.heads):
            for key, value in zip(call.key[0, head], call.value[0, head], strict=True):
                features = part.features(key, call.scaling)
                z[head] += torch.outer(features, value)
                kappa[head] += features
        assert close(vector.deltas[f"{name}.z"], z, 1e-12)
        assert close(vector.deltas[f"{name}.kappa"], kappa, 1e-12)


def prefixes(encoder: Encoder) -> list[tuple[str, Prefix]]:
    return [(name, part) for name, part in encoder.backbone.named_modules() if isinstance(part, Prefix)]


@pytest.mark.parametrize("phi", PHIS)
def test_a_sum_of_vectors_is_both_prompts_one_behind_the_other(encoder: Encoder, phi: Any) -> None:
    """Each layer of theta0 + (tau_1 + tau_2), from the keys and values of both prompts."""
    made = ts.with_prefix(encoder, phi, features=7)
    prompts = inputs(encoder)[:2]
    first, second = (prompt_vector(made, one, rows=inputs(encoder), bound=1e6) for one in prompts)
    both = ts.apply(made, first + second)
    assert isinstance(both, Encoder)
    assert "prompt" not in (first + second).info
    alone = [calls(made, [one]) for one in prompts]
    for place, (call, (_, part)) in enumerate(zip(calls(both, inputs(encoder)), prefixes(both), strict=True)):
        key = torch.cat([one[place].key for one in alone], 2)
        value = torch.cat([one[place].value for one in alone], 2)
        phi_q, phi_k = part.features(call.query, call.scaling), part.features(key, call.scaling)
        weights = phi_q @ phi_k.mT  # of the prompts' tokens, (N, H, L, m)
        with torch.no_grad():
            numerator, share = part(call.query, call.scaling)
        assert close(numerator, weights @ value, 1e-12)
        assert close(share, weights.sum(-1, keepdim=True), 1e-12)


@given(
    st.lists(st.integers(1, 6), min_size=1, max_size=4), st.sampled_from(PHIS), st.floats(0.01, 3.0), st.integers(0, 99)
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_features_of_prompts_add(lengths: list[int], phi: Any, scale: float, seed: int) -> None:
    """Sums over tokens do not know how tokens are divided into prompts, to 1e-12."""
    feature_map = FeatureMap(phi, features=9, seed=seed)
    keys = normal(sum(lengths), 4, seed=seed) * scale
    values = normal(sum(lengths), 3, seed=seed + 1)
    whole = feature_map(keys).mT @ values, feature_map(keys).sum(0)
    parts = zip(keys.split(lengths), values.split(lengths), strict=True)
    sums = [(feature_map(k).mT @ v, feature_map(k).sum(0)) for k, v in parts]
    for place, exact in enumerate(whole):
        assert close(sum((one[place] for one in sums), torch.zeros(())), exact, 1e-12)


def test_random_features_mean_the_exponential_and_taylor_is_its_second_order() -> None:
    u, k = normal(6, 4, seed=1) * 0.5, normal(5, 4, seed=2) * 0.5
    scores = u @ k.T
    taylor = FeatureMap("taylor")
    assert close(taylor(u) @ taylor(k).T, 1 + scores + scores**2 / 2, 1e-12)
    positive = FeatureMap("positive", features=100_000)
    assert close(positive(u) @ positive(k).T, scores.exp(), 0.02)
    assert bool((positive(u) > 0).all())


def test_the_real_prompt_is_attention_over_more_keys(encoder: Encoder) -> None:
    """One row after the other, the keys of the prompt in front."""
    made = ts.with_prefix(encoder)
    prompt, rows = calls(made, inputs(encoder)[:1]), calls(made, inputs(encoder))
    for one, call in zip(prompt, rows, strict=True):
        found = in_front(call, one.key, one.value)
        mask = torch.zeros_like(call.scores()) if call.mask is None else call.mask
        added = torch.where(mask, 0.0, -torch.inf) if mask.dtype == torch.bool else mask
        added = added.expand(call.scores().shape).double()
        wide = torch.cat([torch.zeros(*added.shape[:3], one.key.shape[2]).double(), added], -1)
        keys = torch.cat([one.key.expand(len(call.key), -1, -1, -1), call.key], 2)
        values = torch.cat([one.value.expand(len(call.key), -1, -1, -1), call.value], 2)
        exact: Tensor = torch.nn.functional.scaled_dot_product_attention(
            call.query, keys, values, wide, scale=call.scaling
        )
        assert close(found, exact.transpose(1, 2))


def test_taylor_stands_for_a_prompt_where_logits_are_small_and_elu_for_none(encoder: Encoder) -> None:
    rows, prompt = inputs(encoder, 1), inputs(encoder)[0]
    vector = prompt_vector(ts.with_prefix(encoder, "taylor"), prompt, rows=rows)
    assert vector.info["prompt"]["error"] < 0.05
    assert vector.info["prompt"]["rows"] == 3
    assert vector.regime == "standard"
    assert vector.info["prefix"] == {"phi": "taylor"}
    made = ts.with_prefix(encoder, "elu")
    with pytest.raises(UsageError, match=r"above bound=0\.05") as error:
        prompt_vector(made, prompt, rows=rows, bound=0.05)
    assert "tauspan.with_prefix(ENCODER, 'taylor')" in str(error.value)
    passed = float(str(error.value).rpartition("bound=")[2].rstrip("."))
    assert prompt_vector(made, prompt, rows=rows, bound=passed).info["prompt"]["error"] > 0.05


def test_the_error_is_that_of_the_edited_encoder(encoder: Encoder) -> None:
    """Measured by hand: apply the vector, and put the prompt's keys in front in every layer."""
    made = ts.with_prefix(encoder, "taylor")
    rows, prompt = inputs(encoder, 1), inputs(encoder)[0]
    vector = prompt_vector(made, prompt, rows=rows)
    kept = {call.module: call for call in calls(made, [prompt])}
    batch = made.encode(rows)
    edited = ts.apply(made, vector)
    with torch.no_grad():
        plain, own = made(batch), edited(batch)
        with watching(lambda call: in_front(call, kept[call.module].key, kept[call.module].value)):
            real = made(batch)
    error = float((own - real).norm() / (real - plain).norm())
    assert vector.info["prompt"]["error"] == pytest.approx(error, rel=1e-5)
    assert vector.info["prompt"]["effect"] == pytest.approx(float((real - plain).norm() / plain.norm()))
    gone = ts.apply(edited, (-1.0 * vector).rebased(edited))
    with torch.no_grad():
        assert close(gone(batch), plain, 1e-10)


def test_what_cannot_be_a_prompt_vector_is_refused(encoder: Encoder, tmp_path: Path) -> None:
    rows, prompt = inputs(encoder, 1), inputs(encoder)[0]
    with pytest.raises(UsageError, match="has no prefix"):
        prompt_vector(encoder, prompt)
    made = ts.with_prefix(encoder, "taylor")
    with pytest.raises(UsageError, match=r"bound=0\.0: it must be above 0"):
        prompt_vector(made, prompt, bound=0.0)
    with pytest.raises(UsageError, match="`rows` is empty"):
        prompt_vector(made, prompt, rows=[])
    edited = ts.apply(made, prompt_vector(made, prompt, rows=rows))
    assert isinstance(edited, Encoder)
    with pytest.raises(
        UsageError, match=r"was edited \(1 prompt .*with_prefix\(ENCODER, 'taylor'\)` made it"
    ):
        prompt_vector(edited, prompt)


def test_rotary_positions_are_refused(tmp_path: Path) -> None:
    encoder = ts.load(languages.write(tmp_path / "llama", "llama"))
    with pytest.raises(ModelError, match="rotary positions"):
        prompt_vector(ts.with_prefix(encoder, "taylor"), "ab")  # type: ignore[arg-type]


def test_a_model_of_tensors_needs_rows() -> None:
    from helpers.zoo import vit_model

    tensors = Encoder(stirred(vit_model(), scale=0.1), lambda model, x: model(x).last_hidden_state[:, 0])
    pictures = list(normal(4, 3, 8, 8))
    made = ts.with_prefix(tensors, "taylor", rows=pictures[:1])
    with pytest.raises(UsageError, match=r'rows=task.split\("validation"\).inputs'):
        prompt_vector(made, pictures[0])
    assert prompt_vector(made, pictures[0], rows=pictures[1:]).label == "prompt 'a picture'"
