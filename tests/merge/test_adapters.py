"""LoRA adapters: what is read, the exact algebra, truncation, writing. The oracle is dense algebra in float64."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from helpers import merging
from helpers.tiny import same_bits
from tauspan.core import params
from tauspan.core.errors import (
    MismatchError,
    ModelError,
    NonFiniteError,
    PickleRefusedError,
    StoreError,
    TauspanError,
    UsageError,
)
from tauspan.merge import METHODS, merge_files
from tauspan.merge.lora.adapters import WEIGHTS, AdapterSource, combine_adapters, save_adapter
from tauspan.merge.lora.lowrank import LowRank, Term, from_dense
from tauspan.merge.sources.opening import open_source
from tauspan.merge.stream.adapter import merged
from tauspan.merge.stream.adapter_vector import adapter_vector
from tauspan.merge.stream.plan import LINEAR

CONFIG = "adapter_config.json"
PLAIN = {"peft_type": "LORA", "r": 3, "lora_alpha": 6, "target_modules": ["q"], "bias": "none"}
# by layout: what PEFT calls the factors, their shapes at rank 3, and the weight they make
LAYOUTS: dict[str, tuple[str, str, tuple[int, ...], tuple[int, ...]]] = {
    "linear": ("lora_A.weight", "lora_B.weight", (3, 7), (70, 3)),
    "transposed": ("lora_A.weight", "lora_B.weight", (3, 70), (5, 3)),
    "embedding": ("lora_embedding_A", "lora_embedding_B", (3, 50), (6, 3)),
    "convolution": ("lora_A.weight", "lora_B.weight", (3, 4, 3, 2), (8, 3, 1, 1)),
}


def normal(shape: Any, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def write(path: Path, tensors: dict[str, Tensor], **config: Any) -> Path:
    """An adapter as PEFT writes it; names without its prefix."""
    path.mkdir(parents=True, exist_ok=True)
    named = {f"base_model.model.{name}": tensor for name, tensor in tensors.items()}
    save_file(named, path / WEIGHTS, {"format": "pt"})
    (path / CONFIG).write_text(json.dumps({**PLAIN, **config}, indent=2, sort_keys=True))
    return path


def linear(
    path: Path, *modules: str, rank: int = 3, seed: int = 0, shape: Any = (9, 7), **config: Any
) -> Path:
    """An adapter of linear layers of one shape."""
    tensors = {}
    for place, module in enumerate(modules or ("q",)):
        tensors[f"{module}.lora_A.weight"] = normal((rank, shape[1]), seed + 2 * place)
        tensors[f"{module}.lora_B.weight"] = normal((shape[0], rank), seed + 2 * place + 1)
    return write(path, tensors, **{"r": rank, **config})


def of_layout(path: Path, layout: str, seed: int = 0, **config: Any) -> tuple[AdapterSource, Tensor]:
    """An adapter of one module, and its displacement without the scale, by plain sums in float64."""
    name_a, name_b, shape_a, shape_b = LAYOUTS[layout]
    a, b = normal(shape_a, seed), normal(shape_b, seed + 1)
    write(path, {f"q.{name_a}": a, f"q.{name_b}": b}, fan_in_fan_out=layout == "transposed", **config)
    wide = torch.einsum("ro...,nr->no...", a.double(), b.double().flatten(1))
    return AdapterSource(path), wide.T if layout in ("transposed", "embedding") else wide


def close(first: Tensor, second: Tensor) -> bool:
    return torch.allclose(first.double(), second.double(), rtol=1e-12, atol=1e-12)


# -- reading -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({}, 2.0),
        ({"use_rslora": True}, 6 / math.sqrt(3)),
        ({"alpha_pattern": {"x": 1, "q": 1.5}}, 0.5),
        ({"r": 5, "rank_pattern": {"^q": 3}}, 2.0),
    ],
)
def test_the_displacement_is_scale_b_a(
    tmp_path: Path, layout: str, config: dict[str, Any], scale: float
) -> None:
    source, dense = of_layout(tmp_path / "a", layout, **config)
    assert source.low.shape("q.weight") == dense.shape == source.tensors["q.weight"].shape
    assert close(source.low.dense("q.weight", torch.float64), scale * dense)
    whole = source.read("q.weight", 0, dense.numel())
    assert torch.allclose(whole, (scale * dense).flatten().float(), rtol=1e-7, atol=0)


def test_patterns_match_the_end_of_a_modules_name_from_a_dot_on(tmp_path: Path) -> None:
    path = linear(
        tmp_path / "a", "b.q", "b.xq", "c.q", alpha_pattern={"^c.q": 30, "b.q": 3, "c": 99, "q": 12, "xq": 9}
    )
    scales = {name: term.scale for name, (term,) in AdapterSource(path).low.terms.items()}
    assert scales == {"b.q.weight": 1.0, "b.xq.weight": 3.0, "c.q.weight": 10.0}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_pieces_of_a_tensor_have_the_bits_of_the_whole(tmp_path: Path, layout: str) -> None:
    source, dense = of_layout(tmp_path / "a", layout)
    count = dense.numel()
    low = source.low + 0.37 * source.low
    for dtype in (torch.float32, torch.float64):  # float64 shows what rounding to float32 hides
        whole = low.block("q.weight", 0, count, dtype)
        for size in (1, 5, 33, 100, count):
            cuts = [(start, min(start + size, count)) for start in range(0, count, size)]
            assert torch.equal(torch.cat([low.block("q.weight", *cut, dtype) for cut in cuts]), whole)
    assert low.block("q.weight", 4, 4).shape == (0,)


def test_a_source_says_what_it_holds(tmp_path: Path) -> None:
    path = linear(tmp_path / "mine", "b.q")
    source = open_source(path)
    assert isinstance(source, AdapterSource)
    assert (source.label, source.kind, source.path, dict(source.aliases)) == ("mine", "delta", path, {})
    stored = source.tensors["b.q.weight"]
    assert (stored.dtype, stored.shape, stored.nbytes) == (torch.float32, torch.Size([9, 7]), 252)
    assert stored.file == path / WEIGHTS
    assert json.loads(json.dumps(source.identity))["adapter"]["lora_alpha"] == 6
    source.close()
    assert open_source(path, label="other", access="pread").label == "other"
    with pytest.raises(StoreError, match=r"no tensor 'q.weight'; it has b.q.weight"):
        source.read("q.weight", 0, 1)


def test_a_model_plus_an_adapter_is_the_sum(tmp_path: Path) -> None:
    theta0 = {"q.weight": normal((9, 7), 5), "n.bias": normal((3,), 6)}
    save_file(theta0, tmp_path / "model.safetensors")
    adapter = linear(tmp_path / "a")
    both = open_source(f"{tmp_path / 'model.safetensors'}+{adapter}")
    assert torch.equal(
        both.read("q.weight", 0, 63).view(9, 7),
        theta0["q.weight"] + AdapterSource(adapter).low.dense("q.weight"),
    )
    assert torch.equal(both.read("n.bias", 0, 3), theta0["n.bias"])


# -- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("peft_type", "IA3"),
        ("peft_type", None),
        ("use_dora", True),
        ("lora_bias", True),
        ("target_parameters", ["w"]),
        ("trainable_token_indices", [1]),
        ("layer_replication", [[0, 1]]),
        ("arrow_config", {"top_k": 1}),
        ("init_lora_weights", "pissa_niter_4"),
        ("init_lora_weights", ["gaussian"]),
        ("a_new_kind_of_scaling", 0.5),
    ],
)
def test_more_than_lora_is_refused_by_name(tmp_path: Path, key: str, value: Any) -> None:
    with pytest.raises(ModelError, match=rf"{key}=.*merge_and_unload\(\).*tauspan vector diff"):
        AdapterSource(linear(tmp_path / "a", **{key: value}))


def test_what_is_off_or_says_nothing_of_the_displacement_is_accepted(tmp_path: Path) -> None:
    off = {"use_dora": False, "a_new_kind_of_scaling": None, "alora_invocation_tokens": [], "kasa_config": {}}
    inert = {"lora_dropout": 0.1, "task_type": "SEQ_CLS", "init_lora_weights": "gaussian", "revision": "x"}
    assert len(AdapterSource(linear(tmp_path / "a", **off, **inert)).tensors) == 1


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"r": 4}, "gives 'q' the rank 4, and its factors have 3"),
        ({"r": True}, "r=True, and it must be a whole number"),
        ({"lora_alpha": "6"}, "lora_alpha='6'.*a finite number"),
        ({"lora_alpha": math.inf}, "lora_alpha=inf"),
        ({"use_rslora": 1}, "use_rslora=1.*true or false"),
        ({"alpha_pattern": ["q"]}, "no mapping"),
        ({"alpha_pattern": {"q": "1"}}, "q='1'"),
        ({"alpha_pattern": {"(q": 1}}, "no regular expression"),
        ({"alpha_pattern": {"(a+)+b": 1}}, "repeats a group"),
        ({"rank_pattern": {".*.*.*.*.*b": 1}}, "too much"),
    ],
)
def test_settings_of_the_wrong_kind_are_errors(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    path = linear(tmp_path / "a")
    (path / CONFIG).write_text(json.dumps({**PLAIN, **config}))
    with pytest.raises(StoreError, match=message):
        AdapterSource(path)


@pytest.mark.parametrize(
    ("tensors", "error", "message"),
    [
        ({"q.lora_magnitude_vector": (9,)}, ModelError, "lora_magnitude_vector"),
        ({"q.lora_B.bias": (9,)}, ModelError, "lora_B.bias"),
        ({"v.lora_A.weight": (3, 7)}, StoreError, "holds A of 'v', not one A and one B"),
        ({"v.lora_A.weight": (3, 7), "v.lora_B.weight": (9, 2)}, StoreError, r"\(3, 7\) and \(9, 2\)"),
        ({"v.lora_A.weight": (0,), "v.lora_B.weight": (0,)}, StoreError, "not gathered"),
        ({"v.lora_A.weight": (3, 2, 3), "v.lora_B.weight": (4, 1, 1)}, ModelError, "grouped convolution 'v'"),
        ({"q.lora_embedding_A": (3, 7), "q.lora_embedding_B": (9, 3)}, StoreError, "not one A and one B"),
    ],
)
def test_tensors_that_make_no_product_are_errors(
    tmp_path: Path, tensors: dict[str, tuple[int, ...]], error: type[TauspanError], message: str
) -> None:
    path = linear(tmp_path / "a")
    own = {
        name.removeprefix("base_model.model."): tensor for name, tensor in load_file(path / WEIGHTS).items()
    }
    write(path, own | {name: torch.ones(shape) for name, shape in tensors.items()})
    with pytest.raises(error, match=message):
        AdapterSource(path)


def test_files_that_are_no_adapter_are_errors(tmp_path: Path) -> None:
    path = linear(tmp_path / "a")
    save_file({"q.lora_A.weight": torch.ones(3, 7)}, path / WEIGHTS)
    with pytest.raises(StoreError, match=r"'q\.lora_A\.weight'.*base_model"):
        AdapterSource(path)
    write(path, {"q.lora_A.weight": torch.ones(3, 7, dtype=torch.int32), "q.lora_B.weight": torch.ones(9, 3)})
    with pytest.raises(StoreError, match="not floating point"):
        AdapterSource(path)
    (path / WEIGHTS).unlink()
    with pytest.raises(StoreError, match=f"no {WEIGHTS}"):
        AdapterSource(path)
    (path / "adapter_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(PickleRefusedError):
        AdapterSource(path)
    (path / CONFIG).write_text("[]")
    with pytest.raises(StoreError, match="not a JSON object"):
        AdapterSource(path)
    with pytest.raises(StoreError, match="no tensors"):
        AdapterSource(write(tmp_path / "b", {}))


# -- algebra -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_sums_of_adapters_are_sums_of_products(tmp_path: Path, layout: str) -> None:
    one, dense_one = of_layout(tmp_path / "a", layout, seed=1)
    two, dense_two = of_layout(tmp_path / "b", layout, seed=11, lora_alpha=-5, use_rslora=True)
    low = combine_adapters([one, two], [0.7, -0.4])
    expected = 0.7 * 2.0 * dense_one + 0.4 * 5 / math.sqrt(3) * dense_two
    assert low.rank("q.weight") == 6
    assert close(low.dense("q.weight", torch.float64), expected)
    save_adapter(low, tmp_path / "c", like=one)
    again = AdapterSource(tmp_path / "c")
    assert torch.allclose(again.low.dense("q.weight", torch.float64), expected, rtol=0, atol=1e-6)


def test_adapters_may_adapt_different_modules(tmp_path: Path) -> None:
    one = AdapterSource(linear(tmp_path / "a", "q", "v"))
    two = AdapterSource(linear(tmp_path / "b", "v", "k", seed=9))
    low = combine_adapters([one, two], [1.0, 2.0])
    assert {name: low.rank(name) for name in low.terms} == {"q.weight": 3, "v.weight": 6, "k.weight": 3}
    assert torch.equal(low.dense("k.weight"), 2 * two.low.dense("k.weight"))


@given(st.lists(st.floats(-4, 4), min_size=2, max_size=4), st.integers(0, 99))
def test_the_algebra_is_that_of_the_dense_tensors(factors: list[float], seed: int) -> None:
    lows, dense = [], []
    for place in range(len(factors)):
        a, b = normal((2, 5), seed + 2 * place), normal((4, 2), seed + 2 * place + 1)
        lows.append(LowRank({"w": (Term(a, b, 0.5),)}))
        dense.append(0.5 * b.double() @ a.double())
    total = sum(factor * low for factor, low in zip(factors, lows, strict=True))
    assert isinstance(total, LowRank)
    expected = sum(factor * tensor for factor, tensor in zip(factors, dense, strict=True))
    assert isinstance(expected, Tensor)
    assert close(total.dense("w", torch.float64), expected)
    assert total.norm() == pytest.approx(float(expected.norm()), abs=1e-9)
    assert (total - total).norm() == pytest.approx(0, abs=1e-9)
    negated = -total
    assert torch.equal(-negated.dense("w"), total.dense("w"))


def test_impossible_sums_are_errors(tmp_path: Path) -> None:
    one = AdapterSource(linear(tmp_path / "a"))
    with pytest.raises(MismatchError, match=r"'q.weight' is linear with shape \(9, 7\) in .* \(9, 8\)"):
        combine_adapters([one, AdapterSource(linear(tmp_path / "b", shape=(9, 8)))], [1.0, 1.0])
    turned = AdapterSource(linear(tmp_path / "c", shape=(7, 9), fan_in_fan_out=True))
    with pytest.raises(MismatchError, match="transposed"):
        combine_adapters([one, turned], [1.0, 1.0])
    with pytest.raises(UsageError, match="1 adapters and 2 weights"):
        combine_adapters([one], [1.0, 1.0])
    with pytest.raises(UsageError, match="finite"):
        one.low * math.nan
    for wrong in (1, "x"):
        with pytest.raises(TypeError):
            one.low + wrong
    with pytest.raises(TypeError):
        one.low * "x"
    with pytest.raises(TypeError):
        one.low - 1


# -- writing -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_adapter_with_weight_1_comes_back_bit_for_bit(tmp_path: Path, layout: str) -> None:
    one, _ = of_layout(tmp_path / "a", layout, use_rslora=True, task_type="CAUSAL_LM", peft_version="9")
    save_adapter(combine_adapters([one], [1.0]), tmp_path / "b", like=one)
    for name in (WEIGHTS, CONFIG):
        assert (tmp_path / "b" / name).read_bytes() == (tmp_path / "a" / name).read_bytes()


def test_scaling_and_negation_change_the_scale_and_no_factor(tmp_path: Path) -> None:
    path = linear(tmp_path / "a", "q", "v", alpha_pattern={"v": 9}, base_model_name_or_path="org/base")
    one = AdapterSource(path)
    for weight in (-1.0, 0.1):
        save_adapter(combine_adapters([one], [weight]), tmp_path / "b", like=one, overwrite=True)
        assert (tmp_path / "b" / WEIGHTS).read_bytes() == (path / WEIGHTS).read_bytes()
        again = AdapterSource(tmp_path / "b")
        assert again.adapter.config.content["base_model_name_or_path"] == "org/base"
        scales = {name: term.scale for name, (term,) in again.low.terms.items()}
        assert scales == pytest.approx({"q.weight": 2.0 * weight, "v.weight": 3.0 * weight}, rel=1e-15)


def test_every_rank_and_scale_is_written(tmp_path: Path) -> None:
    def term(rank: int, scale: float) -> tuple[Term, ...]:
        return (Term(normal((rank, 5), rank), normal((4, rank), rank + 9), scale),)

    low = LowRank({"a.q.weight": term(2, 1.5), "q.weight": term(3, 1.5), "b.q.weight": term(2, -0.25)})
    again = AdapterSource(save_adapter(low, tmp_path / "a")).low
    assert {name: (t.rank, t.scale) for name, (t,) in again.terms.items()} == {
        "a.q.weight": (2, 1.5), "q.weight": (3, 1.5), "b.q.weight": (2, -0.25),
    }  # fmt: skip
    assert same_bits({n: again.dense(n) for n in low.terms}, {n: low.dense(n) for n in low.terms})


def test_what_no_adapter_can_hold_is_not_written(tmp_path: Path) -> None:
    a, b = torch.ones(1, 2), torch.ones(3, 1)
    with pytest.raises(UsageError, match=r"'q\.in_proj' is no module's weight"):
        save_adapter(LowRank({"q.in_proj": (Term(a, b, 1.0),)}), tmp_path / "a")
    both = {"q.weight": (Term(a, b, 1.0),), "v.weight": (Term(a, b, 1.0, "transposed"),)}
    with pytest.raises(UsageError, match="transposed"):
        save_adapter(LowRank(both), tmp_path / "a")
    with pytest.raises(NonFiniteError, match=r"q\.lora_A"):
        save_adapter(LowRank({"q.weight": (Term(a * math.nan, b, 1.0),)}), tmp_path / "a")
    assert not (tmp_path / "a").exists()
    save_adapter(LowRank({"q.weight": (Term(a, b, 1.0),)}), tmp_path / "a")
    with pytest.raises(StoreError, match="already there"):
        save_adapter(LowRank({"q.weight": (Term(a, b, 1.0),)}), tmp_path / "a")


# -- other ranks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_truncation_is_the_best_approximation_and_says_what_it_loses(tmp_path: Path, layout: str) -> None:
    one, dense_one = of_layout(tmp_path / "a", layout, seed=1)
    two, dense_two = of_layout(tmp_path / "b", layout, seed=11)
    expected = 2.0 * (dense_one + dense_two)
    low = combine_adapters([one, two], [1.0, 1.0], rank=2)
    left, sigma, right = torch.linalg.svd(expected.flatten(1), full_matrices=False)
    best = (left[:, :2] * sigma[:2] @ right[:2]).view(expected.shape)
    scale = float(sigma[0])
    assert low.rank("q.weight") == 2
    assert torch.allclose(low.dense("q.weight", torch.float64), best, rtol=0, atol=1e-6 * scale)
    assert low.lost["q.weight"] == pytest.approx(float(sigma[2:].norm()), rel=1e-9)
    assert low.lost["q.weight"] == pytest.approx(float((best - expected).norm()), rel=1e-9)
    again, lost = from_dense([("q.weight", expected)], 2, like={"q.weight": layout}, dtype=torch.float64)
    assert close(again.dense("q.weight", torch.float64), best)
    assert lost["q.weight"] == pytest.approx(low.lost["q.weight"], rel=1e-9)


def test_a_rank_that_suffices_keeps_the_factors(tmp_path: Path) -> None:
    one = AdapterSource(linear(tmp_path / "a"))
    low = combine_adapters([one], [1.0], rank=3)
    assert low.lost == {}
    assert low.terms["q.weight"][0].a is one.low.terms["q.weight"][0].a
    cut = one.low.truncated(1)
    assert (cut - 2 * cut).lost["q.weight"] == pytest.approx(3 * cut.lost["q.weight"])
    for rank in (0, 1.5, True):
        with pytest.raises(UsageError, match="rank"):
            one.low.truncated(rank)  # type: ignore[arg-type]


def test_an_exact_rank_loses_nothing_and_zeros_are_left_out() -> None:
    matrix = normal((6, 2), 1) @ normal((2, 5), 2)
    low, lost = from_dense([("w", matrix), ("z", torch.zeros(3))], 2)
    assert list(low.terms) == ["w"]
    assert lost["w"] == pytest.approx(0, abs=1e-5)
    assert torch.allclose(low.dense("w"), matrix, atol=1e-5)
    with pytest.raises(UsageError, match=r"'b' of 'low rank' has shape \(3,\).*output: vector"):
        from_dense([("b", torch.ones(3))], 2)
    with pytest.raises(NonFiniteError, match="'b'"):
        from_dense([("b", torch.full((2, 2), math.inf))], 2)
    assert str(low) == "LowRank(low rank, 1 matrices, ranks 2 to 2)"


# -- vectors -------------------------------------------------------------------------------------------------------


def test_whole_tensors_need_the_base(tmp_path: Path) -> None:
    path = linear(tmp_path / "a", bias="all")
    own = {
        name.removeprefix("base_model.model."): tensor for name, tensor in load_file(path / WEIGHTS).items()
    }
    own |= {"q.base_layer.bias": normal((9,), 7), "q.base_layer.weight": normal((9, 7), 8)}
    write(path, own | {"head.weight": normal((2, 2), 9)}, bias="all")
    with pytest.raises(UsageError, match=r"head.weight, q.bias, q.weight.*adapter_vector"):
        AdapterSource(path)
    base = {"q.weight": normal((9, 7), 1), "q.bias": normal((9,), 2), "n.weight": torch.ones(4)}
    with pytest.raises(MismatchError, match=r"changes head.weight, which the base lacks"):
        adapter_vector(path, base)
    vector = adapter_vector(path, base, leave_out=["head.weight"], dtype=torch.float64)
    product = 2.0 * own["q.lora_B.weight"].double() @ own["q.lora_A.weight"].double()
    moved = own["q.base_layer.weight"].double() - base["q.weight"].double()
    assert list(vector.deltas) == ["q.weight", "q.bias"]
    assert close(vector.deltas["q.weight"], product + moved)
    assert close(vector.deltas["q.bias"], own["q.base_layer.bias"].double() - base["q.bias"].double())
    assert (vector.base, vector.regime, vector.label) == (params.fingerprint(base), "standard", "a")


@pytest.mark.parametrize(("theirs", "ours"), [("bert.q", "q"), ("q", "bert.q"), ("x.q", "x.q")])
def test_a_vector_has_the_names_of_its_base(tmp_path: Path, theirs: str, ours: str) -> None:
    path = linear(tmp_path / "a", theirs, f"{theirs}.k")
    base = {f"{ours}.weight": torch.ones(9, 7), f"{ours}.k.weight": torch.ones(9, 7)}
    vector = adapter_vector(path, base)
    low = AdapterSource(path).low
    assert same_bits(
        vector.deltas,
        {
            f"{ours}.weight": low.dense(f"{theirs}.weight"),
            f"{ours}.k.weight": low.dense(f"{theirs}.k.weight"),
        },
    )
    assert vector.apply(base)[f"{ours}.weight"].shape == (9, 7)


def test_a_base_that_does_not_fit_is_an_error(tmp_path: Path) -> None:
    path = linear(tmp_path / "a")
    with pytest.raises(MismatchError, match=r"\(9, 7\), and the base has \(7, 9\).*fan_in_fan_out"):
        adapter_vector(path, {"q.weight": torch.ones(7, 9)})
    with pytest.raises(MismatchError, match="has several times"):
        adapter_vector(path, {"a.q.weight": torch.ones(9, 7), "b.q.weight": torch.ones(9, 7)})


# -- merging into an adapter ---------------------------------------------------------------------------------------


def low_rank(
    method: str, models: list[Path], rank: int | None = None, base: Path | None = None, **options: Any
) -> LowRank:
    """The displacement of an adapter that is merged of others, or of models."""
    paths = models if base is None else [base, *models]
    based = base is not None
    recipe = merging.recipe(paths, method, options, based, output="adapter", rank=rank)
    return merged(merging.plan(recipe))


@pytest.mark.parametrize(
    ("method", "options", "factors"),
    [
        ("task_arithmetic", {"weight": [0.5, -2.0], "scale": 3.0}, {"0": [1.5, -6.0], "1": [1.5, -6.0]}),
        ("linear", {"weight": [1.0, 3.0]}, {"0": [0.25, 0.75], "1": [0.25, 0.75]}),
        ("lines", {"alpha": 1.0, "beta": 1.0}, {"0": [1.0, 1.0], "1": [2.0, 2.0]}),
    ],
)
def test_linear_methods_keep_the_factors_of_adapters(
    tmp_path: Path, method: str, options: dict[str, Any], factors: dict[str, list[float]]
) -> None:
    modules = ["h.0.q", "h.1.q"]
    models = [
        AdapterSource(linear(tmp_path / "a", *modules)),
        AdapterSource(linear(tmp_path / "b", *modules, seed=9)),
    ]
    low = low_rank(method, [one.path for one in models], **options)
    for layer, (one, two) in factors.items():
        name = f"h.{layer}.q.weight"
        dense = [model.low.dense(name, torch.float64) for model in models]
        assert low.rank(name) == 6
        assert close(low.dense(name, torch.float64), one * dense[0] + two * dense[1])
    cut = low_rank(method, [one.path for one in models], 4, **options)
    assert {cut.rank(name) for name in cut.terms} == {4}
    assert all(lost > 0 for lost in cut.lost.values())


def test_every_linear_method_is_linear() -> None:
    assert {row.name for row in LINEAR} <= set(METHODS)
    assert all(row.grain == "entry" and row.prepare is None for row in LINEAR)


def test_one_adapter_merged_alone_comes_back(tmp_path: Path) -> None:
    one = AdapterSource(linear(tmp_path / "a", "q", "v"))
    save_adapter(low_rank("task_arithmetic", [one.path], 3), tmp_path / "b", like=one)
    for name in (WEIGHTS, CONFIG):
        assert (tmp_path / "b" / name).read_bytes() == (tmp_path / "a" / name).read_bytes()


def test_other_methods_go_through_the_dense_displacement(tmp_path: Path) -> None:
    models = [AdapterSource(linear(tmp_path / name, seed=seed)) for name, seed in (("a", 0), ("b", 9))]
    with pytest.raises(UsageError, match="'magmax' does not keep these inputs' ranks"):
        low_rank("magmax", [one.path for one in models])
    low = low_rank("magmax", [one.path for one in models], 4)
    one, two = (model.low.dense("q.weight") for model in models)
    expected = torch.where(two.abs() > one.abs(), two, one)
    missed = low.dense("q.weight").double() - expected.double()
    assert low.rank("q.weight") == 4
    assert 0.01 < low.lost["q.weight"] < float(expected.norm())
    assert float(missed.norm()) == pytest.approx(low.lost["q.weight"], rel=1e-5)
    whole = low_rank("magmax", [one.path for one in models], 7)
    assert torch.allclose(whole.dense("q.weight"), expected, atol=1e-5)


def test_an_adapter_made_of_models_has_the_layouts_of_their_class(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(vocab_size=11, n_embd=8, n_layer=1, n_head=2, n_positions=6)
    model = transformers.GPT2LMHeadModel(config)
    model.save_pretrained(tmp_path / "base")
    changed = {
        "transformer.wte": (11, 8),
        "transformer.h.0.attn.c_proj": (8, 8),
        "transformer.h.0.mlp.c_fc": (8, 32),
    }
    moved = {name: normal((shape[0], 2), 1) @ normal((2, shape[1]), 2) for name, shape in changed.items()}
    with torch.no_grad():
        for name, delta in moved.items():
            model.get_submodule(name).weight.add_(delta)
    model.save_pretrained(tmp_path / "tuned")
    recipe = {"method": "task_arithmetic", "base_model": str(tmp_path / "base"), "models": [str(tmp_path / "tuned")],
              "output": "adapter", "rank": 2}  # fmt: skip
    merge_files(recipe, tmp_path / "out")
    made = AdapterSource(tmp_path / "out")
    assert made.adapter.config.transposed
    kinds = {name: terms[0].layout for name, terms in made.low.terms.items()}
    assert kinds.pop("transformer.wte.weight") == "embedding"
    assert set(kinds.values()) == {"transposed"}
    for name, delta in moved.items():
        assert torch.allclose(made.low.dense(f"{name}.weight"), delta, atol=1e-5)


@pytest.mark.parametrize("norm", ["norm.weight", "attn.c_attn.bias", "h.0.ln_1.weight"])
def test_the_way_out_for_what_is_no_matrix_works(norm: str, tmp_path: Path) -> None:
    base = {"q.weight": normal((4, 3), 1), norm: normal((4,), 2)}
    save_file(base, tmp_path / "base.safetensors")
    save_file({name: tensor + 1 for name, tensor in base.items()}, tmp_path / "tuned.safetensors")
    recipe = {"method": "task_arithmetic", "base_model": str(tmp_path / "base.safetensors"), "rank": 1,
              "models": [str(tmp_path / "tuned.safetensors")], "output": "adapter"}  # fmt: skip
    with pytest.raises(UsageError, match="matrices only") as error:
        merge_files(recipe, tmp_path / "out")
    weight = yaml.safe_load(str(error.value).split("`")[3])
    merge_files({**recipe, "parameters": weight}, tmp_path / "out")
    assert list(AdapterSource(tmp_path / "out").low.terms) == ["q.weight"]


def test_an_adapter_can_be_made_of_models(tmp_path: Path) -> None:
    base = {"q.weight": normal((9, 7), 1), "n.weight": normal((4,), 2)}
    moved = normal((9, 2), 3) @ normal((2, 7), 4)
    save_file(base, tmp_path / "base.safetensors")
    save_file({**base, "q.weight": base["q.weight"] + moved}, tmp_path / "tuned.safetensors")
    tuned, origin = (tmp_path / f"{name}.safetensors" for name in ("tuned", "base"))
    for method in ("task_arithmetic", "linear"):
        low = low_rank(method, [tuned], 2, origin)
        assert list(low.terms) == ["q.weight"]
        assert torch.allclose(low.dense("q.weight"), moved, atol=1e-5)
