"""Tokenizers of a few words, of each kind, and tiny models that read them."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

from tauspan.editing.model.edit_files import Base
from tauspan.models.extras import quiet
from tauspan.store import Checkpoint
from tauspan.vector import TaskVector

TEXTS = (
    "the good film was made for good people", "a bad film is made of bad words", "the dog and the cat like filming",
    "people like the words of a good book", "filming a dog is like reading a book to a cat",
)  # fmt: skip
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def word_pieces(size: int, texts: Sequence[str] = TEXTS) -> Any:
    """A tokenizer of WordPiece, trained on texts; the same at each call, where training decides ties by chance."""
    from tokenizers import Tokenizer

    return Tokenizer.from_str(_word_pieces(size, tuple(texts)))


@cache
def _word_pieces(size: int, texts: tuple[str, ...]) -> str:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer, made.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    made.train_from_iterator(texts, trainers.WordPieceTrainer(vocab_size=size, special_tokens=list(SPECIAL)))
    ends = [("[CLS]", made.token_to_id("[CLS]")), ("[SEP]", made.token_to_id("[SEP]"))]
    made.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", "[CLS] $A [SEP] $B [SEP]", ends)
    text: str = made.to_str()
    return text


def byte_level(size: int, texts: Sequence[str] = TEXTS) -> Any:
    """A tokenizer of byte-level BPE with all 256 bytes, trained on texts."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=["<eos>"], initial_alphabet=letters)
    made.train_from_iterator(texts, trainer)
    return made


def save(folder: Path, tokenizer: Any) -> Path:
    """The directory that transformers writes for a tokenizer, with the roles of its special tokens."""
    from transformers import PreTrainedTokenizerFast

    names = {"[PAD]": "pad", "[UNK]": "unk", "[CLS]": "cls", "[SEP]": "sep", "[MASK]": "mask", "<eos>": "eos"}
    known = tokenizer.get_vocab()
    roles = {f"{role}_token": token for token, role in names.items() if token in known}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **roles).save_pretrained(folder)
    return folder


def bert(folder: Path, tokenizer: Any, padding: int = 0, layers: int = 2, head: bool = False) -> Path:
    """A tiny BERT over a tokenizer; its tables may have rows without a token."""
    from transformers import BertConfig, BertForMaskedLM, BertModel

    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_hidden_layers": layers, "num_attention_heads": 2, "intermediate_size": 12}
    config = BertConfig(vocab_size=tokenizer.get_vocab_size() + padding, max_position_embeddings=24, **sizes)
    model = (BertForMaskedLM if head else BertModel)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return save(folder, tokenizer)


def gpt(folder: Path, tokenizer: Any, tied: bool = True, layers: int = 2) -> Path:
    """A tiny GPT-2 over a tokenizer."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    eos = tokenizer.token_to_id("<eos>")
    config = GPT2Config(
        vocab_size=tokenizer.get_vocab_size(), n_positions=32, n_embd=8, n_layer=layers, n_head=2,
        bos_token_id=eos, eos_token_id=eos, tie_word_embeddings=tied,
    )  # fmt: skip
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return save(folder, tokenizer)


def letters(texts: Sequence[str]) -> torch.Tensor:
    """A vector of a text that needs no model: how often each letter stands in it."""
    return torch.tensor(
        [[1e-3 + text.lower().count(chr(97 + place)) for place in range(26)] for text in texts]
    )


def with_vectors(folder: Path) -> None:
    """A small masked language model under `bert`, its vectors `one` and `two`, and a tokenizer under `new`."""
    import transformers

    with quiet(transformers):
        bert(folder / "bert", word_pieces(60), padding=4, head=True)
    save(folder / "new", word_pieces(90))
    tensors, base = Checkpoint(folder / "bert").read(), Base(str(folder / "bert")).fingerprint
    for name, seed in (("one", 1), ("two", 2)):
        generator = torch.Generator().manual_seed(seed)
        deltas = {key: torch.randn(tensor.shape, generator=generator) for key, tensor in tensors.items()}
        TaskVector(deltas, base, "standard", name).save_pretrained(folder / f"{name}.safetensors")
