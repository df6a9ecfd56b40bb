"""sentence-transformers itself: what it saves gives its embeddings here, and what is written here gives ours there."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tauspan
from helpers import checkpoints, zoo
from tauspan.core.errors import ModelError
from tauspan.models import Encoder, fingerprint_of
from tauspan.models.pooling import POOLINGS
from tauspan.vector import TaskVector

pytestmark = pytest.mark.slow
TEXTS = ["a good film", "bad", "the cat sat", "a b c d e f g h i j k l m n o p q r"]  # the last one is cut


@pytest.fixture
def library() -> Any:
    return pytest.importorskip(
        "sentence_transformers", reason="sentence-transformers is not installed: the extra `real`"
    )


def saved(library: Any, folder: Path, kind: str, modes: Any, *, behind: Any = (), **options: Any) -> Path:
    """A model of three stages or more, saved by the library."""
    home = checkpoints.write(folder / kind, kind)
    if kind != "bert":  # the library wants a padding token
        checkpoints.edit_json(
            home / "tokenizer_config.json", lambda c: c.update(pad_token=c.get("pad_token") or c["eos_token"])
        )
    parts = library.sentence_transformer.modules
    transformer = parts.Transformer(str(home), max_seq_length=12)
    stages = [transformer, parts.Pooling(8, modes), *(make(parts) for make in behind)]
    library.SentenceTransformer(modules=stages, device="cpu", **options).save(str(folder / "saved"))
    return folder / "saved"


def embedded(library: Any, home: Path, texts: list[str] = TEXTS, **options: Any) -> Tensor:
    found: Tensor = library.SentenceTransformer(str(home), device="cpu").encode(
        texts, convert_to_tensor=True, show_progress_bar=False, **options
    )
    return found


@torch.no_grad()
def features(encoder: Encoder, texts: list[str] = TEXTS) -> Tensor:
    return encoder(encoder.encode(texts))


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama"])
@pytest.mark.parametrize("modes", [*POOLINGS, ("cls", "mean")])
def test_a_model_that_it_saved_gives_its_embeddings(
    kind: str, modes: Any, library: Any, tmp_path: Path
) -> None:
    home = saved(library, tmp_path, kind, modes)
    close(features(tauspan.load(home)), embedded(library, home))


@pytest.mark.parametrize(
    "options",
    [
        {"prompts": {"query": "a b ", "passage": "c "}, "default_prompt_name": "query"},
        {"prompts": {"query": "a b "}},
        {"similarity_fn_name": "dot"},
    ],
)
def test_its_prompts_and_settings_are_kept(options: Any, library: Any, tmp_path: Path) -> None:
    home = saved(library, tmp_path, "bert", "mean", **options)
    close(features(tauspan.load(home)), embedded(library, home))


def test_its_last_norm_is_left_to_the_heads(library: Any, tmp_path: Path) -> None:
    home = saved(library, tmp_path, "bert", "mean", behind=[lambda parts: parts.Normalize()])
    encoder, wanted = tauspan.load(home), embedded(library, home)
    close(F.normalize(features(encoder), dim=-1), wanted)
    close(encoder.embed_labels(TEXTS), wanted)


def test_embeddings_of_one_text_do_not_depend_on_the_others(library: Any, tmp_path: Path) -> None:
    home = saved(library, tmp_path, "bert", "max")
    encoder = tauspan.load(home)
    close(torch.cat([features(encoder, [text]) for text in TEXTS]), embedded(library, home, batch_size=2))


@pytest.mark.parametrize("kind", ["bert", "llama"])
@pytest.mark.parametrize("modes", ["cls", "mean", "lasttoken", ("max", "mean")])
def test_an_edited_model_that_was_written_here_gives_the_same_embeddings_there(
    kind: str, modes: Any, library: Any, tmp_path: Path
) -> None:
    prompt = {"prompts": {"query": "a b "}, "default_prompt_name": "query"}
    norm = [lambda parts: parts.Normalize()]
    home = saved(library, tmp_path, kind, modes, behind=norm, **prompt)
    encoder = tauspan.load(home)
    moved = zoo.stirred(tauspan.load(home).backbone, scale=0.1).float()
    edited = tauspan.apply(encoder, TaskVector.from_checkpoints(encoder.backbone, moved), 0.7)
    assert isinstance(edited, Encoder)
    tauspan.save(edited, tmp_path / "out")
    there = embedded(library, tmp_path / "out")
    close(there, F.normalize(features(edited), dim=-1))
    assert not torch.allclose(there, embedded(library, home), atol=1e-3)
    again = tauspan.load(tmp_path / "out")
    assert fingerprint_of(again) == fingerprint_of(edited)
    close(features(again), features(edited))
    library.SentenceTransformer(str(tmp_path / "out"), device="cpu").save(str(tmp_path / "again"))
    close(features(tauspan.load(tmp_path / "again")), features(edited))  # and back


class Embeddings(nn.Module):
    """What the error of a layer behind the pooling asks for: a module that returns the features."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, **batch: Tensor) -> Tensor:
        found: Tensor = self.model(batch)["sentence_embedding"]
        return found


def test_a_layer_behind_the_pooling_is_refused_and_the_way_out_gives_its_embeddings(
    library: Any, tmp_path: Path
) -> None:
    norm = [lambda parts: parts.LayerNorm(8)]
    home = saved(library, tmp_path, "bert", "mean", behind=norm)
    with pytest.raises(ModelError, match=r"LayerNorm.*pass a module that returns the features"):
        tauspan.load(home)
    model = library.SentenceTransformer(str(home), device="cpu").eval()
    encoder = tauspan.load(Embeddings(model))
    batch = {name: item for name, item in model.preprocess(TEXTS).items() if isinstance(item, Tensor)}
    with torch.no_grad():
        close(encoder(batch), embedded(library, home))
    lin = tauspan.linearize(encoder, "*.norm.weight")
    lin(batch).sum().backward()
    assert all(tau.grad is not None for tau in lin.tau.values())


def tanh(parts: Any) -> Any:
    return parts.Dense(8, 5)


def square(parts: Any) -> Any:
    return parts.Dense(8, 8, bias=False, activation_function=nn.Identity(), use_residual=True)


def narrow(parts: Any) -> Any:
    return parts.Dense(8, 3, activation_function=nn.GELU(), use_residual=True)


def norm(parts: Any) -> Any:
    return parts.Normalize()


@pytest.mark.parametrize(
    "behind", [[tanh], [square, norm], [square, narrow, norm], [norm, tanh], [norm, square, norm, narrow]]
)
@pytest.mark.parametrize("old", [False, True])
def test_dense_layers_behind_the_pooling_are_frozen_and_kept(
    behind: Any, old: bool, library: Any, tmp_path: Path
) -> None:
    """Its embeddings are ours, before an edit, after one of nothing, and after one that moves the model."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        home = saved(library, tmp_path, "bert", "mean", behind=behind)
    if old:  # the form of version 5
        checkpoints.write_json(
            home / "1_Pooling" / "config.json",
            {
                "word_embedding_dimension": 8,
                "pooling_mode_cls_token": False,
                "pooling_mode_mean_tokens": True,
            },
        )
    encoder = tauspan.load(home)
    last = (lambda z: F.normalize(z, dim=-1)) if behind[-1] is norm else (lambda z: z)
    exactly = {"rtol": 1e-6, "atol": 1e-6}
    torch.testing.assert_close(last(features(encoder)), embedded(library, home), **exactly)
    moved = zoo.stirred(tauspan.load(home).backbone, scale=0.1).float()
    tau = TaskVector.from_checkpoints(encoder.backbone, moved)
    for scale in (0.0, 0.7):
        edited: Any = tauspan.apply(encoder, tau, scale)
        out = tmp_path / f"out{scale}"
        tauspan.save(edited, out)
        there = embedded(library, out)
        torch.testing.assert_close(last(features(edited)), there, **exactly)
        torch.testing.assert_close(features(tauspan.load(out)), features(edited), rtol=0, atol=0)
        assert torch.allclose(there, embedded(library, home), **exactly) is (scale == 0.0)


def test_a_dense_layer_that_moved_is_told(library: Any, tmp_path: Path) -> None:
    home = saved(library, tmp_path, "bert", "mean", behind=[tanh])
    there = tmp_path / "tuned"
    shutil.copytree(home, there)
    model = library.SentenceTransformer(str(there), device="cpu")
    with torch.no_grad():
        model[2].linear.weight += 1
    model.save(str(there))
    with pytest.warns(UserWarning, match=r"2_Dense.*frozen.*tauspan merge"):
        TaskVector.from_checkpoints(home, there)
    assert not torch.allclose(features(tauspan.load(home)), features(tauspan.load(there)), atol=1e-3)
    assert tauspan.load(home).describe() != tauspan.load(there).describe()


def test_a_pooling_that_is_listed_and_not_there_is_refused(library: Any, tmp_path: Path) -> None:
    home = saved(library, tmp_path, "bert", "cls")
    shutil.rmtree(home / "1_Pooling")
    with pytest.raises(ModelError, match=r"lists a pooling.*is not there"):
        tauspan.load(home)


def test_a_pooling_of_another_width_is_refused(library: Any, tmp_path: Path) -> None:
    home = saved(library, tmp_path, "bert", "mean")
    checkpoints.edit_json(
        home / "1_Pooling" / "config.json",
        lambda content: content.update({key: 768 for key in content if key.endswith("embedding_dimension")}),
    )
    with pytest.raises(ModelError, match=r"768 numbers.*has 8"):
        tauspan.load(home)


def test_dense_layers_that_do_not_fit_one_another_are_refused(library: Any, tmp_path: Path) -> None:
    home = saved(
        library, tmp_path, "bert", "mean",
        behind=(lambda parts: parts.Dense(8, 6), lambda parts: parts.Dense(6, 5)),
    )  # fmt: skip
    other = saved(library, tmp_path / "other", "bert", "mean", behind=(lambda parts: parts.Dense(8, 7),))
    shutil.copytree(other / "2_Dense", home / "2_Dense", dirs_exist_ok=True)
    with pytest.raises(ModelError, match="gives 7 numbers, and the next one reads 6"):
        tauspan.load(home)
