"""PEFT itself: what it saves is the vector that its own merge adds, and its weighted sums are the merges of that name."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor

import tauspan
from helpers.families import loaded, make
from tauspan.core.errors import ModelError
from tauspan.merge import merge, merge_files
from tauspan.merge.lora.adapters import AdapterSource, combine_adapters, save_adapter
from tauspan.models.extras import quiet
from tauspan.vector import TaskVector

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::UserWarning:peft")]  # its own advice
RANK = 3
QKV, SQUARE = ["q_proj", "v_proj"], ["q_proj", "o_proj"]


@pytest.fixture
def peft() -> Any:
    return pytest.importorskip("peft", reason="peft is not installed: the extra `real`")


@pytest.fixture
def write(peft: Any, tmp_path: Path) -> Callable[..., Path]:
    """A function that trains an adapter of a family by random steps, and has PEFT save it; float64 throughout.

    `base` beside it is the model, and `whole` what `merge_and_unload` makes of the two.
    """

    def written(family: str, config: Any, name: str = "ad") -> Path:
        if not (tmp_path / "base").exists():
            model, _ = loaded(make(family, tmp_path / "single"))
            model.double().save_pretrained(tmp_path / "base")
        with quiet(transformers):
            trained = peft.get_peft_model(fresh(tmp_path), config)
            draw = torch.Generator().manual_seed(len(name) + sum(map(ord, name)))
            for parameter in (p for p in trained.parameters() if p.requires_grad):
                parameter.data.add_(0.1 * torch.randn(parameter.shape, generator=draw, dtype=torch.float64))
            trained.save_pretrained(tmp_path / name)
            found = peft.PeftModel.from_pretrained(fresh(tmp_path), tmp_path / name).merge_and_unload()
            found.save_pretrained(tmp_path / "whole")
        return tmp_path / name

    return written


def fresh(folder: Path) -> Any:
    """The base, as often as it is wanted: PEFT changes the model that it is given."""
    return loaded(folder / "base")[0].double()


def added(folder: Path, whole: str = "whole") -> dict[str, Tensor]:
    """What a merge by PEFT added to each tensor of the base's files."""
    before = load_file(folder / "base" / "model.safetensors")
    after = load_file(folder / whole / "model.safetensors")
    assert before.keys() == after.keys()
    gaps = {name: after[name] - before[name] for name in before}
    return {name: gap for name, gap in gaps.items() if gap.any()}


def equal(found: Any, wanted: Any, tolerance: float = 1e-12) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        gap = float((found[name].detach() - tensor.detach()).abs().max())
        assert gap <= tolerance, f"{name} differs by {gap}"


# -- one adapter -----------------------------------------------------------------------------------------------------

ADAPTERS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("llama", {"target_modules": QKV}),
    "ranks and alphas by pattern": (
        "llama",
        {
            "target_modules": [*QKV, "down_proj"],
            "rank_pattern": {"q_proj": 2, "layers.1.mlp.down_proj": 5},
            "alpha_pattern": {"^model.layers.0.self_attn.v_proj": 7, "down_proj": 1.5},
        },
    ),
    "rank-stabilised": ("llama", {"target_modules": QKV, "use_rslora": True, "rank_pattern": {"v_proj": 6}}),
    "all linear layers": ("llama", {"target_modules": "all-linear"}),
    "some layers": ("llama", {"target_modules": QKV, "layers_to_transform": [1]}),
    "whole modules": ("llama", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "norm"]}),
    "embedding": ("llama", {"target_modules": ["q_proj", "embed_tokens"]}),
    "tied embedding": ("llama tied", {"target_modules": ["q_proj", "embed_tokens"]}),
    "class head": ("bert classes", {"target_modules": ["query"], "task_type": "SEQ_CLS"}),
    "every bias": ("bert classes", {"target_modules": ["query"], "bias": "all"}),
    "biases of the products": ("bert classes", {"target_modules": ["query", "value"], "bias": "lora_only"}),
    "transposed": ("gpt2", {"target_modules": ["c_attn"], "fan_in_fan_out": True}),
    "convolution": ("vit classes", {"target_modules": ["projection", "q_proj"]}),
    "experts' router": ("mixtral", {"target_modules": ["q_proj"], "modules_to_save": ["gate"]}),
    "gaussian start": ("llama", {"target_modules": QKV, "init_lora_weights": "gaussian"}),
    "orthogonal start": ("llama", {"target_modules": QKV, "init_lora_weights": "orthogonal", "r": 4}),
}


@pytest.mark.parametrize("case", ADAPTERS)
def test_a_saved_adapter_is_the_vector_that_its_merge_adds(
    case: str, peft: Any, write: Any, tmp_path: Path
) -> None:
    family, settings = ADAPTERS[case]
    adapter = write(family, peft.LoraConfig(**{"r": RANK, "lora_alpha": 4, **settings}))
    vector = tauspan.adapter_vector(adapter, tmp_path / "base", dtype=torch.float64)
    wanted = added(tmp_path)
    unchanged = {name: delta for name, delta in vector.deltas.items() if name not in wanted}
    assert not any(delta.any() for delta in unchanged.values())  # stored whole, and as it was
    equal({name: vector.deltas[name] for name in wanted}, wanted)
    moved = tauspan.adapter_vector(adapter, fresh(tmp_path), dtype=torch.float64)  # of the module in memory
    equal(moved.deltas, vector.deltas)


MORE: dict[str, Callable[[Any], Any]] = {
    "dora": lambda peft: peft.LoraConfig(target_modules=QKV, r=RANK, use_dora=True),
    "tokens": lambda peft: peft.LoraConfig(target_modules=QKV, r=RANK, trainable_token_indices=[3, 5]),
    "ia3": lambda peft: peft.IA3Config(target_modules=["v_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "loha": lambda peft: peft.LoHaConfig(target_modules=QKV, r=RANK),
    "lokr": lambda peft: peft.LoKrConfig(target_modules=QKV, r=RANK),
    "vera": lambda peft: peft.VeraConfig(target_modules=["o_proj"], r=RANK),
    "oft": lambda peft: peft.OFTConfig(target_modules=["q_proj"], oft_block_size=4),
}  # fmt: skip


@pytest.mark.parametrize("kind", MORE)
def test_what_is_more_than_a_product_is_refused_and_its_merge_is_the_way_out(
    kind: str, peft: Any, write: Any, tmp_path: Path
) -> None:
    adapter = write("llama", MORE[kind](peft))
    with pytest.raises(
        ModelError, match=r"merge_and_unload\(\)\.save_pretrained\(DIR\).*vector diff BASE DIR"
    ):
        tauspan.adapter_vector(adapter, tmp_path / "base")
    vector = TaskVector.from_checkpoints(tmp_path / "base", tmp_path / "whole")  # as the message says
    wanted = added(tmp_path)
    assert wanted
    equal({name: vector.deltas[name].double() for name in wanted}, wanted, 1e-6)


# -- several adapters ------------------------------------------------------------------------------------------------


@pytest.fixture
def two(peft: Any, write: Any, tmp_path: Path) -> Callable[..., tuple[Any, list[Path]]]:
    """A function that makes PEFT's model with the adapters `one` and `two`, and their directories."""

    def made(
        ranks: tuple[int, int] = (RANK, RANK), targets: Any = (SQUARE, SQUARE)
    ) -> tuple[Any, list[Path]]:
        paths = [
            write("llama", peft.LoraConfig(r=rank, lora_alpha=5, target_modules=target), name)
            for name, rank, target in zip(("one", "two"), ranks, targets, strict=True)
        ]
        model = peft.PeftModel.from_pretrained(fresh(tmp_path), paths[0], adapter_name="one")
        model.load_adapter(str(paths[1]), adapter_name="two")
        return model, paths

    return made


def summed(model: Any, kind: str, weights: list[float], **options: Any) -> dict[str, Tensor]:
    """PEFT's weighted adapter, as what its merge adds to each weight."""
    model.add_weighted_adapter(["one", "two"], weights, "both", combination_type=kind, **options)
    layers = {
        name.removeprefix("base_model.model."): module
        for name, module in model.named_modules()
        if hasattr(module, "get_delta_weight") and "both" in module.lora_A
    }
    return {f"{name}.weight": layer.get_delta_weight("both").detach() for name, layer in layers.items()}


def dense(low: Any) -> dict[str, Tensor]:
    return {name: low.dense(name, torch.float64) for name in low.terms}


@pytest.mark.parametrize("targets", [(QKV, QKV), (["q_proj"], ["q_proj", "k_proj"])])
def test_adapters_side_by_side_are_pefts_cat(two: Any, targets: Any) -> None:
    model, paths = two((2, 4), targets)
    low = combine_adapters([AdapterSource(path) for path in paths], [0.7, 1.6])
    equal(dense(low), summed(model, "cat", [0.7, 1.6]))


@pytest.mark.parametrize("rank", [1, 4, 6])
def test_a_sum_cut_to_a_rank_is_pefts_svd(two: Any, rank: int) -> None:
    model, paths = two((2, 4))
    low = combine_adapters([AdapterSource(path) for path in paths], [0.7, 1.6], rank=rank)
    equal(dense(low), summed(model, "svd", [0.7, 1.6], svd_rank=rank), 1e-6)  # factors are kept in float32


def vectors(paths: list[Path], base: Path) -> list[TaskVector]:
    return [tauspan.adapter_vector(path, base, dtype=torch.float64) for path in paths]


FULL = 32  # the rank that leaves nothing out


@pytest.mark.parametrize(
    ("kind", "method", "options"),
    [
        ("ties_svd", "ties_peft", {"density": 0.3}),
        ("ties_svd", "ties_peft", {"density": 0.7, "majority_sign_method": "frequency"}),
        ("dare_linear_svd", "dare_linear", {"density": 1.0}),
        ("magnitude_prune_svd", "breadcrumbs", {"density": 0.4}),
        ("svd", "linear", {}),
        ("svd", "task_arithmetic", {}),
    ],
)
@pytest.mark.filterwarnings("ignore:The density 1.0 is greater")  # PEFT's, that nothing is pruned
def test_displacements_merge_as_peft_merges_them(
    kind: str, method: str, options: dict[str, Any], two: Any, tmp_path: Path
) -> None:
    model, paths = two()
    wanted = summed(model, kind, [0.75, 1.5], svd_rank=FULL, **options)
    own = {{"majority_sign_method": "majority"}.get(name, name): value for name, value in options.items()}
    own |= {"gamma": 0.0} if method == "breadcrumbs" else {"normalize": False} if method == "linear" else {}
    found = merge(vectors(paths, tmp_path / "base"), method, {"weight": [0.75, 1.5], **own})
    equal(found.deltas, wanted, 1e-6)  # PEFT's weights are float32


def test_dare_drops_and_rescales_as_peft_does(peft: Any, two: Any, write: Any, tmp_path: Path) -> None:
    """Each draws for itself: equal are the values that stay, and how many do."""
    model, paths = two()
    for name, parameter in model.named_parameters():
        if ".lora_B.two." in name:  # one displacement, so that each entry shows whether it was dropped
            parameter.data.zero_()
    theirs = summed(model, "dare_linear_svd", [1.0, 1.0], svd_rank=FULL, density=0.5)
    one = vectors(paths[:1], tmp_path / "base")[0]
    ours = merge([one], "dare_linear", {"density": 0.5}, seed=3).deltas
    for name, tensor in theirs.items():
        for found in (tensor, ours[name]):
            kept = found.abs() > 1e-9
            torch.testing.assert_close(found[kept], one.deltas[name][kept] / 0.5, rtol=0, atol=1e-6)
            spread = 5 * (0.25 / kept.numel()) ** 0.5
            assert abs(kept.double().mean() - 0.5) < spread


def test_pefts_linear_adds_factors_apart_and_ours_is_the_exact_sum(two: Any, tmp_path: Path) -> None:
    model, paths = two()
    apart = summed(model, "linear", [1.0, 1.0])
    low = combine_adapters([AdapterSource(path) for path in paths], [1.0, 1.0])
    one, other = (vector.deltas for vector in vectors(paths, tmp_path / "base"))
    equal(dense(low), {name: one[name] + other[name] for name in one})
    scale = 5 / RANK
    for name in apart:  # (A1 + A2) and (B1 + B2): the sum, and the products that belong to neither
        a, b = (
            sum(getattr(AdapterSource(path).low.terms[name][0], side).double() for path in paths)
            for side in "ab"
        )
        torch.testing.assert_close(apart[name], scale * b @ a, rtol=0, atol=1e-6)
        assert (apart[name] - dense(low)[name]).abs().max() > 0.01


# -- written here, read there ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [None, 2])
def test_peft_reads_an_adapter_that_was_merged_here(
    rank: int | None, peft: Any, two: Any, tmp_path: Path
) -> None:
    _, paths = two((2, 4))
    sources = [AdapterSource(path) for path in paths]
    low = combine_adapters(sources, [0.7, 1.6], rank=rank)
    save_adapter(low, tmp_path / "ours", like=sources[0])
    whole = peft.PeftModel.from_pretrained(fresh(tmp_path), tmp_path / "ours").merge_and_unload()
    whole.save_pretrained(tmp_path / "read")
    equal(added(tmp_path, "read"), dense(low))


def test_peft_reads_the_directory_that_a_merge_of_files_writes(peft: Any, two: Any, tmp_path: Path) -> None:
    _, paths = two()
    recipe = {
        "method": "linear", "parameters": {"normalize": False}, "output": "adapter",
        "models": [{"model": str(path), "parameters": {"weight": weight}}
                   for path, weight in zip(paths, (0.7, 1.6), strict=True)],
    }  # fmt: skip
    merge_files(recipe, tmp_path / "ours")
    whole = peft.PeftModel.from_pretrained(fresh(tmp_path), tmp_path / "ours").merge_and_unload()
    whole.save_pretrained(tmp_path / "read")
    low = combine_adapters([AdapterSource(path) for path in paths], [0.7, 1.6])
    equal(added(tmp_path, "read"), dense(low))
