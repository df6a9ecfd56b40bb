"""Directories as transformers writes them: tiny models in float32 with their tokenizers, made in code."""

import json
import shutil
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers import models as token_models
from torch import nn

from helpers import zoo
from tauspan.models.extras import quiet

KINDS = ["bert", "gpt2", "llama", "vit", "clip"]
Copy = Callable[[str], Path]
LETTERS = list(string.ascii_lowercase)
MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.3, 0.4]


def numbered(*pieces: str) -> dict[str, int]:
    return {piece: place for place, piece in enumerate(pieces)}


def bert_tokenizer() -> Any:
    words = [*LETTERS, *(f"##{letter}" for letter in LETTERS)]
    return transformers.BertTokenizer(vocab=numbered("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words))


def gpt2_tokenizer() -> Any:
    """Has no padding token, like the real one."""
    return transformers.GPT2Tokenizer(vocab=numbered(*LETTERS, "Ġ", "<|endoftext|>"), merges=[])


def llama_tokenizer() -> Any:
    """Pads on the left, like the real one."""
    return transformers.LlamaTokenizer(vocab=numbered("<unk>", "<s>", "</s>", "▁", *LETTERS), merges=[])


def clip_tokenizer() -> Any:
    ends = [f"{letter}</w>" for letter in LETTERS]
    return transformers.CLIPTokenizer(
        vocab=numbered(*LETTERS, *ends, "<|startoftext|>", "<|endoftext|>"), merges=[]
    )


def bare_tokenizer() -> Any:
    """Neither a padding token nor one that could stand in for it."""
    words = Tokenizer(token_models.WordLevel(numbered("<unk>", *LETTERS), "<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>")


def image_settings(folder: Path, size: Any, **more: Any) -> None:
    content = {"size": size, "image_mean": MEAN, "image_std": STD, **more}
    write_json(folder / "preprocessor_config.json", content)


def write_json(file: Path, content: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))


def edit_json(file: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def homes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A fixture: a directory of every kind."""
    root = tmp_path_factory.mktemp("homes")
    return {kind: write(root / kind, kind) for kind in KINDS}


def copy(homes: dict[str, Path], tmp_path: Path) -> Copy:
    """A fixture: makes copies of the directories, to be spoilt."""
    return lambda kind: Path(shutil.copytree(homes[kind], tmp_path / kind))


def write(folder: Path, kind: str) -> Path:
    """A whole directory of one kind: bert, gpt2, llama, vit or clip."""
    model = getattr(zoo, f"{kind}_model")()
    if kind == "bert":  # the zoo's has no pooler
        model = transformers.BertModel(model.config)
    model = zoo.stirred(model, scale=0.1).float()
    write_model(folder, model)
    if kind in ("vit", "clip"):
        square = {"height": 8, "width": 8}
        image_settings(folder, *([square] if kind == "vit" else [{"shortest_edge": 8}]), crop_size=square)
    if kind != "vit":
        globals()[f"{kind}_tokenizer"]().save_pretrained(folder)
    return folder


def write_model(folder: Path, model: nn.Module) -> None:
    with quiet(transformers):
        model.save_pretrained(folder)


def pooling(folder: Path, **modes: bool) -> None:
    """The file in which sentence-transformers says how it pools."""
    content = {"word_embedding_dimension": 8} | {f"pooling_mode_{mode}": on for mode, on in modes.items()}
    write_json(folder / "1_Pooling" / "config.json", content)
