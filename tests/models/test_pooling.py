"""Texts become the features that sentence-transformers makes of them, whatever its files ask for."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from helpers import checkpoints
from helpers.checkpoints import Copy
from tauspan.core.errors import DataError, ModelError, StoreError
from tauspan.models import Encoder, load_model
from tauspan.models.pooling import POOLINGS, Pooled, last_token, mean_pooled
from tauspan.tangent import linearize

homes = pytest.fixture(scope="module")(checkpoints.homes)
copy = pytest.fixture(checkpoints.copy)

TEXTS = [
    "a good film",
    "bad",
    "the cat sat",
    "a b c d e f g h i j k l m n o p q r s t u v",
]  # the last one is cut
MODES = ["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]
OLDER = {
    "cls": "cls_token", "max": "max_tokens", "mean": "mean_tokens", "mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "weightedmean": "weightedmean_tokens", "lasttoken": "lasttoken",
}  # fmt: skip


@pytest.fixture
def library() -> Any:
    return pytest.importorskip("sentence_transformers")


def by_library(library: Any, home: Path) -> Tensor:
    """What the library itself makes of the texts."""
    found: Tensor = library.SentenceTransformer(str(home), device="cpu").encode(
        TEXTS, convert_to_tensor=True, show_progress_bar=False
    )
    return found


@torch.no_grad()
def features(encoder: Encoder, texts: list[str] = TEXTS) -> Tensor:
    return encoder(encoder.encode(texts))


def write(home: Path, content: Any, name: str = "1_Pooling/config.json") -> None:
    checkpoints.write_json(home / name, content)


def modules(home: Path, *kinds: str, folder: str = "") -> Path:
    """The file that makes a directory one of sentence-transformers."""
    paths = [folder if kind == "Transformer" else f"{place}_{kind}" for place, kind in enumerate(kinds)]
    entries = [
        {"idx": place, "name": str(place), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for place, (kind, path) in enumerate(zip(kinds, paths, strict=True))
    ]
    write(home, entries, "modules.json")
    return home


def padded(home: Path) -> Path:
    """With a padding token, for which the library asks."""
    said = json.loads((home / "tokenizer_config.json").read_text())
    checkpoints.edit_json(
        home / "tokenizer_config.json",
        lambda c: c.update(pad_token=said.get("pad_token") or said["eos_token"]),
    )
    return home


@pytest.mark.thinned(15)
@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama"])
@pytest.mark.parametrize(
    "modes", [*MODES, ["cls", "mean"], ["max", "cls", "lasttoken"], ["mean", "mean_sqrt_len_tokens"]]
)
@pytest.mark.parametrize("form", ["new", "old"])
def test_every_pooling_in_both_forms_is_the_librarys(
    library: Any, copy: Copy, kind: str, modes: Any, form: str
) -> None:
    home = modules(copy(kind), "Transformer", "Pooling")
    padded(home)
    if form == "new":
        write(home, {"embedding_dimension": 8, "pooling_mode": modes, "include_prompt": True})
    else:
        asked = {
            f"pooling_mode_{OLDER[mode]}": True for mode in ([modes] if isinstance(modes, str) else modes)
        }
        write(home, {"word_embedding_dimension": 8, "pooling_mode_mean_tokens": False, **asked})
    torch.testing.assert_close(features(load_model(home)), by_library(library, home), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "content",
    [
        {"embedding_dimension": 8},
        {"word_embedding_dimension": 8, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": False},
        {"embedding_dimension": 8, "pooling_mode": ["max"]},
        {"embedding_dimension": 8, "pooling_mode": "cls", "pooling_mode_mean_tokens": True},
    ],
)
def test_files_that_leave_the_mode_open_mean_what_the_library_takes(
    library: Any, copy: Copy, content: Any
) -> None:
    home = modules(copy("bert"), "Transformer", "Pooling")
    write(home, content)
    torch.testing.assert_close(features(load_model(home)), by_library(library, home), rtol=1e-5, atol=1e-5)


def test_a_model_that_the_library_saved_is_read(library: Any, copy: Copy, tmp_path: Path) -> None:
    parts = library.sentence_transformer.modules
    transformer = parts.Transformer(str(copy("bert")), max_seq_length=6)
    model = library.SentenceTransformer(
        modules=[transformer, parts.Pooling(8, ("cls", "max")), parts.Normalize()]
    )
    model.save(str(tmp_path / "saved"))
    found = features(load_model(tmp_path / "saved"))
    expected = by_library(library, tmp_path / "saved")
    assert not torch.allclose(found.norm(dim=-1), torch.ones(len(TEXTS)))  # heads normalise
    torch.testing.assert_close(F.normalize(found, dim=-1), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("most", [3, 7, 16])
def test_texts_are_cut_where_the_library_cuts_them(library: Any, copy: Copy, most: int) -> None:
    home = modules(copy("bert"), "Transformer", "Pooling")
    write(home, {"embedding_dimension": 8, "pooling_mode": "mean"})
    write(home, {"max_seq_length": most, "do_lower_case": False}, "sentence_bert_config.json")
    encoder = load_model(home)
    torch.testing.assert_close(features(encoder), by_library(library, home), rtol=1e-5, atol=1e-5)
    assert encoder.encode(TEXTS)["input_ids"].shape[1] == min(most, 16)
    assert encoder.encode(TEXTS, max_tokens=10)["input_ids"].shape[1] == 10  # the caller's word goes before


@pytest.mark.parametrize("name", ["sentence_bert_config.json", "sentence_roberta_config.json"])
def test_the_case_is_lowered_where_the_library_lowers_it(library: Any, copy: Copy, name: str) -> None:
    home = padded(modules(copy("llama"), "Transformer", "Pooling"))
    write(home, {"embedding_dimension": 8, "pooling_mode": "mean"})
    write(home, {"max_seq_length": 12, "do_lower_case": True}, name)
    shouted = [text.upper() for text in TEXTS[:3]]
    encoder = load_model(home)
    torch.testing.assert_close(features(encoder, shouted), features(encoder, TEXTS[:3]), rtol=0, atol=0)
    found = library.SentenceTransformer(str(home), device="cpu").encode(shouted, convert_to_tensor=True)
    torch.testing.assert_close(features(encoder, shouted), found, rtol=1e-5, atol=1e-5)


def test_the_default_prompt_is_put_before_texts_and_labels(library: Any, copy: Copy) -> None:
    home = modules(copy("bert"), "Transformer", "Pooling")
    write(home, {"embedding_dimension": 8, "pooling_mode": "mean"})
    settings = {"prompts": {"query": "a b ", "other": "c "}, "default_prompt_name": "query"}
    write(home, settings, "config_sentence_transformers.json")
    encoder = load_model(home)
    torch.testing.assert_close(features(encoder), by_library(library, home), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(encoder.embed_labels(TEXTS), F.normalize(features(encoder), dim=-1))
    assert "after 'a b '" in repr(encoder)
    write(home, {"embedding_dimension": 8, "pooling_mode": "mean", "include_prompt": False})
    with pytest.raises(ModelError, match=r"pools without it.*`default_prompt_name` to null"):
        load_model(home)
    write(home, settings | {"default_prompt_name": None}, "config_sentence_transformers.json")  # as it says
    torch.testing.assert_close(features(load_model(home)), by_library(library, home), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"pooling_mode": "median"}, r"pooling median; known: cls, max, mean"),
        ({"pooling_mode": ["mean", "first"]}, "pooling first; known"),
        (
            {"pooling_mode_cls_token": True, "pooling_mode_new_tokens": True},
            "pooling pooling_mode_new_tokens",
        ),
        ({"pooling_mode": []}, "of no mode"),
        (["mean"], "no JSON object"),
    ],
)
def test_a_pooling_that_is_not_known_is_refused(copy: Copy, content: Any, said: str) -> None:
    home = copy("bert")
    write(home, content)
    with pytest.raises(ModelError, match=rf"1_Pooling.*{said}"):
        load_model(home)


def test_the_pooling_may_lie_in_another_folder_but_not_outside(library: Any, copy: Copy) -> None:
    home = modules(copy("bert"), "Transformer", "Pooling")
    checkpoints.edit_json(home / "modules.json", lambda entries: entries[1].update(path="pool"))
    write(home, {"embedding_dimension": 8, "pooling_mode": "max"}, "pool/config.json")
    torch.testing.assert_close(features(load_model(home)), by_library(library, home), rtol=1e-5, atol=1e-5)
    checkpoints.edit_json(home / "modules.json", lambda entries: entries[1].update(path="../pool"))
    with pytest.raises(ModelError, match="leads out of"):
        load_model(home)


@pytest.mark.parametrize("kind", ["LayerNorm", "WordWeights", "CNN"])
def test_a_layer_behind_the_pooling_is_refused_rather_than_left_out(copy: Copy, kind: str) -> None:
    home = modules(copy("bert"), "Transformer", "Pooling", kind, "Normalize")
    with pytest.raises(ModelError, match=rf"modules\.json.*{kind}"):
        load_model(home)


def test_other_ways_of_the_library_to_read_a_model_are_refused(copy: Copy) -> None:
    home = modules(copy("bert"), "Transformer", "Pooling")
    write(home, {"embedding_dimension": 8, "pooling_mode": "mean"})
    for content in (
        {"transformer_task": "fill-mask"},
        {"modality_config": {"text": {"method": "forward", "method_output_name": "pooler_output"}}},
        {"modality_config": {"text": {"method": "get_text_features", "method_output_name": None}}},
    ):
        write(home, content, "sentence_bert_config.json")
        with pytest.raises(
            ModelError, match=r"sentence_bert_config\.json asks for .*Load it with sentence-transformers"
        ):
            load_model(home)


def test_a_transformer_in_a_folder_of_its_own_is_told_with_a_way_out(
    library: Any, homes: dict[str, Path], tmp_path: Path
) -> None:
    import shutil

    shutil.copytree(homes["bert"], tmp_path / "old" / "0_Transformer")
    modules(tmp_path / "old", "Transformer", "Pooling", folder="0_Transformer")
    write(tmp_path / "old", {"embedding_dimension": 8, "pooling_mode": "cls"})
    with pytest.raises(
        ModelError, match=r"keeps its transformer in '0_Transformer'.*SentenceTransformer\(OLD\)\.save\(NEW\)"
    ):
        load_model(tmp_path / "old")
    library.SentenceTransformer(str(tmp_path / "old"), device="cpu").save(str(tmp_path / "new"))
    expected = by_library(library, tmp_path / "old")
    torch.testing.assert_close(features(load_model(tmp_path / "new")), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "modes", [("max",), ("weightedmean",), ("mean_sqrt_len_tokens",), ("cls", "max", "mean")]
)
@pytest.mark.parametrize("engine", ["onepass", "reference"])
def test_every_pooling_can_be_linearised(homes: dict[str, Path], modes: tuple[str, ...], engine: Any) -> None:
    loaded = load_model(homes["bert"])
    encoder = Encoder(loaded.backbone.double(), Pooled(modes), loaded.inputs).eval()
    batch = encoder.encode(TEXTS)
    lin = linearize(encoder, engine=engine)
    tau = {name: torch.randn_like(t, generator=None) * 0.1 for name, t in lin.tau.items()}
    with torch.no_grad():
        for name, tensor in lin.tau.items():
            tensor.copy_(tau[name])
    parameters = dict(encoder.backbone.named_parameters())
    out = encoder(batch)
    probe = torch.randn_like(out)
    grads = torch.autograd.grad((out * probe).sum(), list(parameters.values()), allow_unused=True)
    expected = sum(
        (g * tau[n]).sum() for (n, _), g in zip(parameters.items(), grads, strict=True) if g is not None
    )
    found = (lin.tangent(batch)[1].squeeze(0) * probe).sum()
    torch.testing.assert_close(found.detach(), expected.detach(), rtol=1e-9, atol=1e-9)


# -- what is printed, and texts that cannot be pooled ----------------------------------------------------------


def test_an_encoder_prints_how_it_reads_and_pools(homes: dict[str, Path], copy: Copy) -> None:
    assert repr(load_model(homes["bert"])).endswith(
        "BertModel; reads text; features: the mean state over tokens)"
    )
    assert repr(load_model(homes["gpt2"])).endswith("features: the last token's state)")
    assert repr(load_model(homes["vit"])).endswith(
        "reads images of 8 x 8 pixels; features: the pooled output)"
    )
    assert repr(load_model(homes["clip"])).endswith("features: the projected image embedding)")
    home = modules(copy("bert"), "Transformer", "Pooling")
    write(home, {"embedding_dimension": 8, "pooling_mode": ["cls", "max"]})
    write(home, {"max_seq_length": 7}, "sentence_bert_config.json")
    told = "the first token's state, beside the largest value of each entry over tokens"
    assert repr(load_model(home)).endswith(f"reads text, cut at 7 tokens; features: {told})")
    assert (
        repr(Encoder(torch.nn.Linear(2, 2)))
        == "Encoder(Linear; reads tensors; features: the module's output)"
    )


def test_poolings_are_told_apart_where_heads_and_stages_are_kept(homes: dict[str, Path]) -> None:
    loaded = load_model(homes["bert"])
    told = {Encoder(loaded.backbone, Pooled((mode,)), loaded.inputs).describe() for mode in POOLINGS}
    assert len(told) == len(POOLINGS)
    assert loaded.features is mean_pooled
    assert load_model(homes["gpt2"]).features is last_token


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("texts", [["a b", "", "c"], ["", ""], [""]])
def test_texts_without_a_token_are_refused_by_name(copy: Copy, kind: str, texts: list[str]) -> None:
    home = copy(kind)
    content = json.loads((home / "tokenizer.json").read_text())
    content["post_processor"] = None  # no start token
    (home / "tokenizer.json").write_text(json.dumps(content))
    checkpoints.edit_json(home / "tokenizer_config.json", lambda c: c.update(add_bos_token=False))
    with pytest.raises(DataError, match=rf"input {texts.index('')} of {len(texts)}, '', has no token"):
        load_model(home).encode(texts)


def dense(home: Path, **config: Any) -> Path:
    """A directory with a dense layer behind the pooling."""
    modules(home, "Transformer", "Pooling", "Dense")
    write(home, {"embedding_dimension": 8, "pooling_mode": "mean"})
    asked = {"in_features": 8, "out_features": 3, "bias": True, "activation_function": TANH, **config}
    write(home, asked, "2_Dense/config.json")
    draw = torch.Generator().manual_seed(0)
    tensors = {
        "linear.weight": torch.randn(3, 8, generator=draw),
        "linear.bias": torch.randn(3, generator=draw),
    }
    save_file(tensors, home / "2_Dense" / "model.safetensors")
    return home


TANH = "torch.nn.modules.activation.Tanh"


def test_a_dense_layer_is_frozen_behind_the_pooling_and_its_tangents_are_exact(copy: Copy) -> None:
    home = dense(copy("bert"))
    encoder = load_model(home).double()
    weight = load_file(home / "2_Dense" / "model.safetensors")
    plain = Encoder(encoder.backbone, mean_pooled, encoder.inputs)
    batch = encoder.encode(TEXTS)
    with torch.no_grad():
        z = plain(batch) @ weight["linear.weight"].double().T + weight["linear.bias"].double()
        torch.testing.assert_close(encoder(batch), z.tanh(), rtol=1e-12, atol=1e-12)
        assert "frozen dense layer" in repr(encoder)
        tangent, below = linearize(encoder, "*value*"), linearize(plain, "*value*")
        assert not any("linear" in name for name in tangent.tau)
        for tau, other in zip(tangent.tau.values(), below.tau.values(), strict=True):
            other.copy_(tau.copy_(torch.randn(tau.shape, dtype=torch.float64)))
        moved = below.parts(batch)[1] @ weight["linear.weight"].double().T
        torch.testing.assert_close(
            tangent.parts(batch)[1], moved * (1 - z.tanh() ** 2), rtol=1e-10, atol=1e-10
        )


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"activation_function": "mine.Activation"}, r"'mine\.Activation'.*pass a module"),
        ({"module_input_name": "token_embeddings"}, r"token_embeddings.*'sentence_embedding'.*pass a module"),
    ],
)
def test_a_dense_layer_of_another_kind_is_refused(copy: Copy, config: Any, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        load_model(dense(copy("bert"), **config))


def test_a_dense_layer_without_its_weights_is_refused(copy: Copy) -> None:
    home = dense(copy("bert"))
    (home / "2_Dense" / "model.safetensors").unlink()
    with pytest.raises(StoreError, match=r"2_Dense has no model\.safetensors: save the model"):
        load_model(home)
