"""A base with an adapter: whole tensors beside the products, names in memory, tied and grown embeddings."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import tauspan
from helpers.families import loaded, make, state
from tauspan.cli import main as cli
from tauspan.core.errors import MismatchError, StoreError, TauspanError, UsageError
from tauspan.editing.model.edit_files import apply_files
from tauspan.merge import merge_files
from tauspan.merge.lora.adapters import AdapterSource
from tauspan.merge.sources.opening import open_source
from tauspan.models.extras import quiet

Changes = Mapping[str, Any]
RANK, ALPHA = 2, 4


def drawn(seed: int, *shape: int) -> Tensor:
    return 0.05 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def adapter(
    folder: Path, model: nn.Module, low: list[str], whole: Mapping[str, Tensor], **config: Any
) -> Path:
    """An adapter as PEFT writes it: products on some modules of a model, and tensors that are stored whole."""
    tensors: dict[str, Tensor] = {}
    for place, name in enumerate(low):
        module = model.get_submodule(name)
        rows, columns = module.weight.shape
        embeds = isinstance(module, nn.Embedding)
        inputs, outputs = (rows, columns) if embeds else (columns, rows)
        kind, end = ("embedding_", "") if embeds else ("", ".weight")
        tensors[f"{name}.lora_{kind}A{end}"] = drawn(2 * place, RANK, inputs)
        tensors[f"{name}.lora_{kind}B{end}"] = drawn(2 * place + 1, outputs, RANK)
    tensors |= whole
    folder.mkdir(parents=True)
    save_file(
        {f"base_model.model.{n}": t.clone() for n, t in tensors.items()}, folder / "adapter_model.safetensors"
    )
    settings = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "target_modules": low, **config}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder


def plain(name: str) -> str:
    return name.replace(".base_layer.", ".").replace(".modules_to_save.", ".")


@torch.no_grad()
def expected(folder: Path, base: Path, low: list[str], whole: Mapping[str, Tensor]) -> Path:
    """What transformers writes of the model with the products added and the whole tensors in place."""
    model, _ = loaded(base)
    tied = getattr(model.config, "tie_word_embeddings", False)
    for name, tensor in whole.items():
        own = plain(name)
        if own in ("lm_head.weight", "model.embed_tokens.weight") and tied and ".base_layer." not in name:
            holder: Any = model.get_submodule(own.rpartition(".")[0])
            holder.weight = nn.Parameter(tensor.clone())  # not the tied one any more
        else:
            model.get_parameter(own).copy_(tensor)
    for place, name in enumerate(low):
        module = model.get_submodule(name)
        rows, columns = module.weight.shape
        embeds = isinstance(module, nn.Embedding)
        inputs, outputs = (rows, columns) if embeds else (columns, rows)
        product = (ALPHA / RANK) * drawn(2 * place + 1, outputs, RANK) @ drawn(2 * place, RANK, inputs)
        module.weight.add_(product.T if embeds else product)
    if model.get_input_embeddings().weight is not getattr(model.get_output_embeddings(), "weight", None):
        model.config.tie_word_embeddings = False
    with quiet(transformers):
        model.save_pretrained(folder)
    return folder


def whole_of(model: nn.Module, *names: str, by: float = 0.5) -> dict[str, Tensor]:
    found = model.state_dict()
    return {name: found[plain(name)].clone() + by for name in names}


def merged(base: Path, ad: Path, out: Path, **more: Any) -> Path:
    merge_files({"method": "passthrough", "models": [f"{base}+{ad}"], **more}, out)
    return out


def same(one: Path, other: Path) -> bool:
    mine, theirs = state(one), state(other)
    return mine.keys() == theirs.keys() and all(
        torch.allclose(t, theirs[n], atol=1e-6) for n, t in mine.items()
    )


Q, TEXT = "model.layers.0.self_attn.q_proj", "model.language_model.layers.0.self_attn.q_proj"
BERT = "bert.encoder.layer.0.attention.self"
CASES: dict[str, tuple[str, list[str], list[str]]] = {
    "head and embedding": ("llama", [Q], ["lm_head.weight", "model.embed_tokens.weight"]),
    "spelt with modules_to_save": ("llama", [Q], ["lm_head.modules_to_save.weight"]),
    "norms": ("llama", [Q], ["model.norm.weight", "model.layers.1.input_layernorm.weight"]),
    "a product on the head": ("llama", ["lm_head", Q], []),
    "an embedding under its product": (
        "llama",
        ["model.embed_tokens", Q],
        ["model.embed_tokens.base_layer.weight"],
    ),
    "biases": ("bert classes", [f"{BERT}.query"], [f"{BERT}.key.bias", f"{BERT}.query.base_layer.bias"]),
    "norms that had other names": (
        "bert classes",
        [f"{BERT}.query"],
        ["bert.embeddings.LayerNorm.bias", f"{BERT.removesuffix('self')}output.LayerNorm.weight"],
    ),
    "a class head": ("bert classes", [f"{BERT}.value"], ["classifier.weight", "classifier.bias"]),
    "experts beside the gate": ("mixtral", [Q], ["model.layers.0.mlp.gate.weight"]),
    "gemma 3": ("gemma3", [TEXT, "model.vision_tower.encoder.layers.0.mlp.fc1"], []),
    "llava": ("llava", [TEXT], ["lm_head.weight", "model.multi_modal_projector.linear_1.bias"]),
    "qwen2-vl": ("qwen2-vl", [TEXT, "model.visual.blocks.0.attn.qkv"], ["model.visual.merger.mlp.0.weight"]),
    "tied: a product on the embedding": (
        "llama tied",
        ["model.embed_tokens"],
        ["model.embed_tokens.base_layer.weight"],
    ),
    "tied: a product on the head": ("llama tied", ["lm_head"], []),
    "tied: another embedding": ("llama tied", [Q], ["model.embed_tokens.weight"]),
    "tied: another head": ("llama tied", [Q], ["lm_head.weight"]),
    "t5": ("t5", ["encoder.block.0.layer.0.SelfAttention.q"], ["decoder.final_layer_norm.weight"]),
}


@pytest.mark.thinned(9)
@pytest.mark.parametrize("case", CASES)
def test_a_base_with_an_adapter_is_what_the_class_gives(case: str, tmp_path: Path) -> None:
    family, low, names = CASES[case]
    base = make(family, tmp_path / "base")
    model, _ = loaded(base)
    wholes = whole_of(model, *names, by=0.0 if "under its product" in case else 0.5)
    ad = adapter(tmp_path / "ad", model, low, wholes)
    want = expected(tmp_path / "want", base, low, wholes)
    assert same(merged(base, ad, tmp_path / "out"), want)
    if case.startswith("tied: another"):  # no displacement: one tensor there, two here
        with pytest.raises(MismatchError, match="two tensors where the base has one"):
            tauspan.adapter_vector(ad, base)
        return
    apply_files(base, tauspan.adapter_vector(ad, base), tmp_path / "applied")
    assert same(tmp_path / "applied", want)
    recipe = {"method": "task_arithmetic", "base_model": str(base), "models": [str(ad)]}
    merge_files(recipe, tmp_path / "delta")
    assert same(tmp_path / "delta", want)
    vector = tauspan.adapter_vector(ad, model)  # the same from the module in memory
    assert vector.base == tauspan.adapter_vector(ad, base).base


@pytest.mark.parametrize("family", ["llama", "llama tied"])
@pytest.mark.parametrize("twice", [False, True])
def test_a_grown_vocabulary_is_stored_whole_and_the_configuration_says_so(
    family: str, twice: bool, tmp_path: Path
) -> None:
    base = make(family, tmp_path / "base")
    model, _ = loaded(base)
    torch.manual_seed(0)
    model.resize_token_embeddings(70)
    names = ["model.embed_tokens.weight", "lm_head.weight"]
    wholes = whole_of(model, *names, by=0.0)
    more = {n.replace(".weight", ".modules_to_save.weight"): t for n, t in wholes.items()} if twice else {}
    olds = {n.replace(".weight", ".original_module.weight"): torch.zeros_like(t) for n, t in more.items()}
    ad = adapter(tmp_path / "ad", model, [Q], wholes | more | olds)
    out = merged(base, ad, tmp_path / "out")
    found = state(out)  # loads whole: `vocab_size` and ties fit
    assert found["model.embed_tokens.weight"].shape == (70, 32)
    assert all(torch.equal(found[name], wholes[name]) for name in names)
    assert json.loads((out / "config.json").read_text())["vocab_size"] == 70
    with pytest.raises(MismatchError, match=r"vocabulary has grown.*BASE\+"):
        tauspan.adapter_vector(ad, base)


def test_sharded_bases_and_their_indexes_are_bases(tmp_path: Path) -> None:
    base = make("llama", tmp_path / "base")
    model, _ = loaded(base)
    ad = adapter(tmp_path / "ad", model, [Q], whole_of(model, "lm_head.weight"))
    tensors = load_file(base / "model.safetensors")
    shards = shutil.copytree(base, tmp_path / "shards")
    (shards / "model.safetensors").unlink()
    files = {name: f"model-0000{1 + place % 2}-of-00002.safetensors" for place, name in enumerate(tensors)}
    for file in set(files.values()):
        save_file({n: t for n, t in tensors.items() if files[n] == file}, shards / file, {"format": "pt"})
    index = shards / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": files}))
    whole = tauspan.adapter_vector(ad, base)
    for place, one in enumerate((base / "model.safetensors", shards, index)):
        out = tmp_path / f"v{place}.safetensors"
        assert cli.main(["vector", "from-adapter", str(one), str(ad), "-o", str(out), "-q"]) == 0
        vector = tauspan.TaskVector.from_pretrained(out)
        assert vector.base == whole.base
        assert all(torch.equal(delta, whole.deltas[n]) for n, delta in vector.deltas.items())
    assert same(
        merged(shards, ad, tmp_path / "out"),
        expected(tmp_path / "want", base, [Q], whole_of(model, "lm_head.weight")),
    )


def test_a_head_that_the_base_lacks_is_left_out_by_the_command_that_the_error_prints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = make("llama", tmp_path / "base")
    model, _ = loaded(base)
    ad = adapter(tmp_path / "ad", model, [Q], {"score.weight": torch.ones(3, 32)}, task_type="SEQ_CLS")
    with pytest.raises(MismatchError, match=r"holds 'score.weight' whole.*a head") as caught:
        merged(base, ad, tmp_path / "out")
    command = (
        str(caught.value).partition("`tauspan ")[2].partition("`")[0].replace("FILE", str(tmp_path / "v"))
    )
    assert cli.main([*command.split(), "-q"]) == 0
    recipe = {
        "method": "task_arithmetic",
        "base_model": str(base),
        "models": [str(tmp_path / "v.safetensors")],
    }
    merge_files(recipe, tmp_path / "out")
    assert same(tmp_path / "out", expected(tmp_path / "want", base, [Q], {}))
    for wrong in ("scor", "classifier"):
        assert (
            cli.main(
                [
                    "vector",
                    "from-adapter",
                    str(base),
                    str(ad),
                    "--leave-out",
                    wrong,
                    "-o",
                    str(tmp_path / "w"),
                ]
            )
            == 2
        )
        assert "leave_out (--leave-out)" in capsys.readouterr().err


def test_the_way_out_for_an_adapter_alone_works(tmp_path: Path) -> None:
    base = make("llama", tmp_path / "base")
    model, _ = loaded(base)
    ad = adapter(tmp_path / "ad", model, [Q], whole_of(model, "model.norm.weight"))
    with pytest.raises(UsageError, match="holds whole tensors") as caught:
        open_source(ad)
    said = str(caught.value).replace("FILE", str(tmp_path / "v")).replace("BASE", str(base))
    command = said.partition("`tauspan ")[2].partition("`")[0]
    assert cli.main([*command.split(), "-q"]) == 0
    assert open_source(said.partition("'")[2].partition("'")[0]).kind == "point"


def test_one_tensor_stored_twice_and_differently_is_refused(tmp_path: Path) -> None:
    model, _ = loaded(make("llama", tmp_path / "base"))
    wholes = whole_of(model, "lm_head.weight") | whole_of(model, "lm_head.modules_to_save.weight", by=1.0)
    ad = adapter(tmp_path / "ad", model, [Q], wholes)
    with pytest.raises(StoreError, match="twice, as itself and under `modules_to_save`"):
        AdapterSource(ad, whole=True)


def test_an_adapter_of_memory_names_keeps_them_when_it_is_merged_into_an_adapter(tmp_path: Path) -> None:
    base = make("gemma3", tmp_path / "base")
    model, _ = loaded(base)
    low = ["model.language_model.layers.0.self_attn.q_proj"]
    one, two = (adapter(tmp_path / name, model, low, {}) for name in ("one", "two"))
    recipe = {
        "method": "task_arithmetic",
        "base_model": str(base),
        "models": [str(one), str(two)],
        "output": "adapter",
    }
    merge_files(recipe, tmp_path / "out")
    names = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert set(names) == set(load_file(one / "adapter_model.safetensors"))
    assert same(merged(base, tmp_path / "out", tmp_path / "both"), merged_twice(base, one, two, tmp_path))


def merged_twice(base: Path, one: Path, two: Path, folder: Path) -> Path:
    recipe = {"method": "task_arithmetic", "base_model": str(base), "models": [str(one), str(two)]}
    merge_files(recipe, folder / "twice")
    return folder / "twice"


def test_both_ends_of_a_tie_move_and_the_check_says_so(tmp_path: Path) -> None:
    from tauspan.merge.checks.checks import check

    base = make("llama tied", tmp_path / "base")
    ad = adapter(tmp_path / "ad", loaded(base)[0], ["lm_head"], {})
    problems = check(None, [open_source(f"{base}+{ad}"), open_source(base)])
    assert [(one.severity, one.kind) for one in problems] == [("warning", "tied")]
    assert "both move, as in PEFT's `merge_and_unload`" in problems[0].message


# -- against PEFT itself ---------------------------------------------------------------------------------------

PEFT: dict[str, tuple[str, dict[str, Any], int | None]] = {
    "whole": ("llama", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "embed_tokens"]}, None),
    "norms": ("llama", {"target_modules": ["q_proj"], "modules_to_save": ["norm", "input_layernorm"]}, None),
    "embedding": ("llama", {"target_modules": ["q_proj", "embed_tokens"]}, None),
    "grown": ("llama", {"target_modules": ["q_proj"]}, 70),
    "grown, saved": (
        "llama",
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "embed_tokens"]},
        70,
    ),
    "grown, products": ("llama", {"target_modules": ["q_proj", "embed_tokens", "lm_head"]}, 70),
    "tied, embedding": ("llama tied", {"target_modules": ["embed_tokens"]}, None),
    "tied, head": ("llama tied", {"target_modules": ["q_proj", "lm_head"]}, None),
    "tied, saved embedding": (
        "llama tied",
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
        None,
    ),
    "tied, saved head": ("llama tied", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}, None),
    "tied, kept tied": (
        "llama tied",
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
        None,
    ),
    "tied, grown": ("llama tied", {"target_modules": ["q_proj"]}, 70),
    "biases": ("bert classes", {"target_modules": ["query"], "bias": "all"}, None),
    "classes": ("bert classes", {"target_modules": ["query"], "task_type": "SEQ_CLS"}, None),
    "gpt2": (
        "gpt2",
        {"target_modules": ["c_attn"], "modules_to_save": ["ln_f"], "fan_in_fan_out": True},
        None,
    ),
    "mixtral": ("mixtral", {"target_modules": ["q_proj"], "modules_to_save": ["gate"]}, None),
    "gemma3": ("gemma3", {"target_modules": ["q_proj", "fc1"], "modules_to_save": ["embed_tokens"]}, None),
    "gemma3, head": ("gemma3", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}, None),
    "llava": ("llava", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "linear_1"]}, None),
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning:peft")  # its own advice
@pytest.mark.parametrize("case", PEFT)
def test_the_sum_is_what_peft_merges(case: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed: the extra `real`")
    family, settings, rows = PEFT[case]
    base = make(family, tmp_path / "base")

    def fresh() -> Any:
        model, _ = loaded(base)
        if rows:
            torch.manual_seed(0)
            model.resize_token_embeddings(rows)
        return model

    with quiet(transformers):
        trained = peft.get_peft_model(fresh(), peft.LoraConfig(r=RANK, lora_alpha=ALPHA, **settings))
        draw = torch.Generator().manual_seed(1)
        for parameter in (p for p in trained.parameters() if p.requires_grad):
            parameter.data.add_(0.05 * torch.randn(parameter.shape, generator=draw))
        trained.save_pretrained(tmp_path / "ad")
        whole = peft.PeftModel.from_pretrained(fresh(), tmp_path / "ad").merge_and_unload()
        whole.save_pretrained(tmp_path / "want")
    out = merged(base, tmp_path / "ad", tmp_path / "out")
    found, want = load_file(out / "model.safetensors"), load_file(tmp_path / "want" / "model.safetensors")
    assert found.keys() == want.keys()
    assert all(torch.allclose(tensor, want[name], atol=1e-6) for name, tensor in found.items())
    assert same(out, tmp_path / "want")


def test_errors_are_of_tauspan(tmp_path: Path) -> None:
    base = make("llama", tmp_path / "base")
    ad = adapter(tmp_path / "ad", loaded(base)[0], [Q], {})
    other = make("gpt2", tmp_path / "other")
    with pytest.raises(TauspanError, match="made for another model"):
        merged(other, ad, tmp_path / "out")
