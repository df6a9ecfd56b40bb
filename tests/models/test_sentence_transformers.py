"""sentence-transformers itself: what it saves gives its embeddings here, and what is written here gives ours there."""

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
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


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
    dense = [lambda parts: parts.Dense(8, 5)]
    home = saved(library, tmp_path, "bert", "mean", behind=dense)
    with pytest.raises(ModelError, match=r"Dense.*pass a module that returns the features"):
        tauspan.load(home)
    model = library.SentenceTransformer(str(home), device="cpu").eval()
    encoder = tauspan.load(Embeddings(model))
    batch = {name: item for name, item in model.preprocess(TEXTS).items() if isinstance(item, Tensor)}
    with torch.no_grad():
        close(encoder(batch), embedded(library, home))
    lin = tauspan.linearize(encoder, "*linear.weight")
    lin(batch).sum().backward()
    assert all(tau.grad is not None for tau in lin.tau.values())
