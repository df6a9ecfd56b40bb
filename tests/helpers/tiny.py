"""Small things that several tests make: vectors with whole numbers, networks, a BERT directory, CSV files."""

import copy
import csv
import gzip
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tauspan.core.params import Params
from tauspan.models import Encoder
from tauspan.vector import TaskVector

BASE = "b" * 64
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "good", "bad", "a", "film", "code", "dog")


def vector(base: str = BASE, regime: Any = "standard", label: str = "tau", **deltas: Any) -> TaskVector:
    """A task vector from lists of numbers: `vector(w=[1, 2])`."""
    tensors = {name: torch.tensor(values, dtype=torch.float32) for name, values in deltas.items()}
    return TaskVector(tensors, base, regime, label)


def whole(shape: Sequence[int], seed: int, dtype: torch.dtype = torch.float32, most: int = 64) -> Tensor:
    """Whole numbers in [-most, most]: their sums and small multiples are exact in float32."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-most, most + 1, tuple(shape), generator=generator).to(dtype)


def equal(first: Params, second: Params) -> bool:
    """Equal names, types, shapes and values, exactly; 0.0 and -0.0 are one value."""
    return first.keys() == second.keys() and all(
        a.dtype == second[name].dtype and torch.equal(a, second[name]) for name, a in first.items()
    )


def same_bits(first: Params, second: Params) -> bool:
    """Equal names, dtypes and bits, so that 0.0 and -0.0 differ."""
    return first.keys() == second.keys() and all(
        a.dtype == second[name].dtype and a.shape == second[name].shape and raw(a) == raw(second[name])
        for name, a in first.items()
    )


def raw(tensor: Tensor) -> bytes:
    """The bytes of a tensor's values."""
    return bytes(tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes())


def mlp(seed: int = 0) -> nn.Sequential:
    """Two linear layers, whole numbers as weights."""
    module = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    with torch.no_grad():
        for place, parameter in enumerate(module.parameters()):
            parameter.copy_(whole(parameter.shape, 100 * seed + place, most=8))
    return module


def moved(module: Any, by: float = 1.0) -> Any:
    """A copy of the module with every parameter increased by the same number."""
    module = copy.deepcopy(module)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(by)
    return module


def bert(seed: int = 0) -> Any:
    """A BERT of one layer that reads `WORDS`."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(seed)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 12}
    return BertModel(BertConfig(vocab_size=len(WORDS), max_position_embeddings=16, **sizes)).eval()


def save_bert(path: Path, model: Any) -> Path:
    """The directory that transformers writes for `model`, with a tokenizer of `WORDS`."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]")
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def flat_encoder() -> Encoder:
    """An encoder whose features are its inputs, times one parameter that is 1."""

    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))

        def forward(self, batch: Tensor) -> Tensor:
            return batch * self.scale

    return Encoder(Scale())


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """A CSV file, compressed if its name ends in .gz."""
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "wt", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def twice(path: Path) -> tuple[Path, Path]:
    """A file or folder and a copy of it: one for two splits is warned about."""
    copied = path.with_name(f"copy-{path.name}")
    if path.is_dir():
        shutil.copytree(path, copied)
    elif path.is_file():
        shutil.copyfile(path, copied)
    return path, copied
