"""An encoder with a prefix: equal to its base at 0, its formula row by row, and its tangents by every engine."""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers import zoo
from helpers.zoo import Example, close
from tauspan.core.errors import ModelError, UsageError
from tauspan.models import Encoder, fingerprint_of
from tauspan.models.inputs import Inputs
from tauspan.prefix import with_prefix
from tauspan.prefix.attention import FLOOR, Attended, Prefix, watching
from tauspan.tangent import linearize

PHIS: tuple[Any, ...] = ("elu", "taylor", "positive")
MODELS = {"bert": zoo.bert, "gpt2": zoo.gpt2, "llama": zoo.llama, "vit": zoo.vit, "clip": zoo.clip}


@dataclass(frozen=True)
class Given(Inputs):
    """Inputs whose every batch is the same one."""

    batch: Any = None

    def encode(self, *_: Any, **__: Any) -> Any:
        return self.batch


def prefixed(example: Example, phi: Any = "elu", scale: float = 0.0, seed: int = 3) -> Encoder:
    """The example's encoder with a prefix, of normal random numbers of some scale."""
    base = example.model
    assert isinstance(base, Encoder)
    base.inputs = Given(batch=example.args[0])
    made = with_prefix(base, phi, features=5)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in moving(made).values():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return made


def moving(encoder: Encoder) -> dict[str, Tensor]:
    return {name: p for name, p in encoder.backbone.named_parameters() if p.requires_grad}


def calls(encoder: Encoder, batch: Any) -> list[Attended]:
    seen: list[Attended] = []
    with torch.no_grad(), watching(seen.append):
        encoder(batch)
    return seen


def eager(make: Callable[[], Example]) -> Callable[[], Example]:
    def made() -> Example:
        example = make()
        example.model.backbone.config._attn_implementation = "eager"  # type: ignore[union-attr]
        return example

    return made


def digits(example: Example) -> float:
    """Llama's own attention, without a fused kernel, makes its weights in float32."""
    config = example.model.backbone.config  # type: ignore[union-attr]
    return 1e-5 if (config.model_type, config._attn_implementation) == ("llama", "eager") else 1e-10


@pytest.fixture(params=[*MODELS, "eager bert", "eager llama"])
def example(request: Any) -> Iterator[Example]:
    kind, _, name = request.param.rpartition(" ")
    return (eager(MODELS[name]) if kind else MODELS[name])()


def test_at_zero_it_is_its_base_bit_for_bit(example: Example) -> None:
    base = example.model
    assert isinstance(base, Encoder)
    before, print_ = example(), fingerprint_of(base)
    made = prefixed(example)
    with torch.no_grad():
        assert torch.equal(made(*example.args), before)
    assert torch.equal(example(), before)
    assert fingerprint_of(made) == print_ == fingerprint_of(base)
    assert all(p.requires_grad for p in base.parameters())
    assert base.added is None
    assert "tauspan" not in base.backbone.config._attn_implementation
    assert {name.rpartition(".")[2] for name in moving(made)} == {"z", "kappa"}
    shared = dict(base.backbone.named_parameters())
    fixed = {n: p for n, p in made.backbone.named_parameters() if not p.requires_grad}
    assert fixed.keys() == shared.keys()
    assert all(p.data_ptr() == shared[name].data_ptr() for name, p in fixed.items())


def by_hand(call: Attended, prefix: Prefix) -> Tensor:
    """The formula, one query after the other: sums over keys, then the two terms of the prefix."""
    rows, heads, length, _ = call.query.shape
    out = torch.zeros_like(call.out)
    group = heads // prefix.heads
    for n in range(rows):
        for h in range(heads):
            key, value = call.key[n, h // group], call.value[n, h // group]
            z, kappa = prefix.z[h // group], prefix.kappa[h // group]
            for q in range(length):
                query = call.query[n, h, q]
                scores = key @ query * call.scaling
                if call.mask is not None:
                    mask = call.mask.expand(rows, heads, length, len(key))[n, h, q]
                    scores = (
                        scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
                    )
                largest = scores.max()
                weights = (scores - largest).exp()
                phi = features(prefix.phi.phi, query * call.scaling**0.5, prefix.directions)
                scaled = (-largest).exp()
                own = weights.sum()
                whole = torch.maximum(own + scaled * (phi @ kappa), FLOOR * own)
                out[n, q, h] = (weights @ value + scaled * (phi @ z)) / whole
    return out


def features(phi: str, u: Tensor, directions: Tensor) -> Tensor:
    if phi == "elu":
        return torch.stack([x + 1 if x > 0 else x.exp() for x in u])
    if phi == "positive":
        drawn = [(g @ u - u @ u / 2).exp() for g in directions]
        return torch.stack(drawn) / len(drawn) ** 0.5
    pairs = [u[i] * u[j] / (2**0.5 if i == j else 1) for i in range(len(u)) for j in range(i, len(u))]
    return torch.stack([torch.ones_like(u[0]), *u, *pairs])


@pytest.mark.parametrize("phi", PHIS)
def test_each_layer_follows_the_formula(example: Example, phi: Any) -> None:
    made = prefixed(example, phi, scale=0.2)
    batch = example.args[0]
    outputs: list[Tensor] = []

    def note(call: Attended) -> None:
        prefix = next(part for part in call.module.children() if isinstance(part, Prefix))
        outputs.append(call.with_prefix(*prefix(call.query, call.scaling)))
        assert close(outputs[-1], by_hand(call, prefix), digits(example))

    with torch.no_grad(), watching(note):
        made(batch)
    assert len(outputs) == 2
    with torch.no_grad():
        assert not close(made(batch), example(), 1e-3)
    assert fingerprint_of(made) != fingerprint_of(example.model)


def test_the_floor_holds_where_a_prefix_takes_more_than_all_of_the_weight() -> None:
    example = zoo.gpt2()
    made = prefixed(example)
    with torch.no_grad():
        for name, parameter in moving(made).items():
            if name.endswith("kappa"):
                parameter.fill_(-1e4)
        first = calls(made, example.args[0])[0]
        prefix = next(part for part in first.module.children() if isinstance(part, Prefix))
        found = first.with_prefix(*prefix(first.query, first.scaling))
        assert close(found, by_hand(first, prefix))
        assert close(found, first.out / FLOOR)
        assert bool(made(example.args[0]).isfinite().all())


@pytest.mark.parametrize("scale", [1e-3, 40.0])
def test_large_and_small_scores_leave_finite_numbers(scale: float) -> None:
    """In float32 exp(scores) overflows from 88 on; a row without any visible key keeps its output."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 2, 5, 4, generator=generator) * scale for _ in range(3))
    mask = torch.ones(2, 1, 5, 5, dtype=torch.bool)
    mask[0, :, 2] = False
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2)
    call = Attended(torch.nn.Identity(), q, k, v, mask, 0.5, out)
    numerator, share = torch.randn(2, 2, 5, 4, generator=generator), torch.rand(2, 2, 5, 1)
    numerator.requires_grad_()
    share.requires_grad_()
    found = call.with_prefix(numerator, share)
    found.sum().backward()
    assert bool(found.isfinite().all())
    assert torch.equal(found[0, 2], out[0, 2])
    assert bool(numerator.grad.isfinite().all())
    assert bool(share.grad.isfinite().all())


@pytest.mark.parametrize("phi", PHIS)
def test_the_first_order_is_the_one_of_the_formula(phi: Any) -> None:
    """d out = (phi(q) dZ - (phi(q).dkappa) out0) / D0, layer by layer, at a prefix of 0."""
    example = zoo.llama()
    made = prefixed(example, phi)
    for call in calls(made, example.args[0]):
        prefix = next(part for part in call.module.children() if isinstance(part, Prefix))
        generator = torch.Generator().manual_seed(1)
        dz = torch.randn(prefix.z.shape, generator=generator, dtype=torch.float64)
        dkappa = torch.randn(prefix.kappa.shape, generator=generator, dtype=torch.float64)

        def at(z: Tensor, kappa: Tensor, call: Attended = call, prefix: Prefix = prefix) -> Tensor:
            parts = torch.func.functional_call(prefix, {"z": z, "kappa": kappa}, (call.query, call.scaling))
            return call.with_prefix(*parts)

        start = (prefix.z.detach(), prefix.kappa.detach())
        _, moved = torch.func.jvp(at, start, (dz, dkappa))
        heads = call.query.shape[1]
        group = heads // prefix.heads
        phi_q = prefix.features(call.query, call.scaling)
        d0 = call.scores().exp().sum(-1, keepdim=True)
        term = phi_q @ dz.repeat_interleave(group, 0)
        taken = (phi_q * dkappa.repeat_interleave(group, 0)[:, None]).sum(-1, keepdim=True)
        wanted = (term - taken * call.out.transpose(1, 2)) / d0
        assert close(moved.transpose(1, 2), wanted)


@pytest.mark.parametrize("scale", [0.0, 0.2])
def test_tangents_by_one_pass_are_those_of_autograd(example: Example, scale: float) -> None:
    """In float64, with the engine's own check on, at a prefix of 0 and elsewhere."""
    made = prefixed(example, "taylor" if scale else "elu", scale)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lin, oracle = linearize(made), linearize(made, engine="reference")
        tau = zoo.direction(lin)
        zoo.at(lin, tau), zoo.at(oracle, tau)
        (value, moved), (exact, wanted) = lin.tangent(*example.args), oracle.tangent(*example.args)
    assert (lin.engine, oracle.engine) == ("onepass", "reference")
    assert close(value, exact, digits(example))
    assert close(moved, wanted, digits(example))
    weights = zoo.normal(*moved.shape, seed=9)
    pulled = torch.autograd.grad(moved, list(lin.tau.values()), weights)
    plain = torch.autograd.grad(made(*example.args), list(moving(made).values()), weights)
    assert all(close(a, b, digits(example)) for a, b in zip(pulled, plain, strict=True))
    assert all(bool(g.any()) for g in pulled)


def test_only_the_prefix_moves_unless_others_are_named() -> None:
    made = prefixed(zoo.bert())
    names = list(moving(made))
    assert list(linearize(made).tau) == names
    assert list(linearize(made, "last:1").tau) == [name for name in names if "layer.1." in name]
    assert len(linearize(made, "*").tau) == len(list(made.parameters()))


def test_a_model_without_a_registry_is_refused() -> None:
    with pytest.raises(ModelError, match="no attention layer that goes through transformers' registry"):
        with_prefix(Encoder(zoo.mlp().model), rows=[torch.zeros(4, dtype=torch.float64)])
    with pytest.raises(UsageError, match=r'rows=task.split\("train"\).inputs'):
        with_prefix(zoo.bert().model)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="has a prefix already"):
        with_prefix(prefixed(zoo.bert()))
    with pytest.raises(UsageError, match="Did you mean 'taylor'"):
        with_prefix(zoo.bert().model, "tailor")  # type: ignore[arg-type]
