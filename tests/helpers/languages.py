"""Tiny causal language models as directories, with a tokenizer of bytes that says which characters a token is made of."""

from pathlib import Path
from typing import Any

import torch
import transformers as T
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers import models as token_models

from helpers import zoo
from tauspan.models.extras import quiet

END = "<|end|>"
_SIZES: dict[str, Any] = {
    "vocab_size": 257, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "bos_token_id": 256, "eos_token_id": 256, "pad_token_id":
    256,
}  # fmt: skip
KINDS = ("llama", "llama tied", "gpt2", "qwen3", "gemma3")


def tokenizer() -> Any:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(token_models.BPE({**{c: n for n, c in enumerate(alphabet)}, END: 256}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return T.PreTrainedTokenizerFast(tokenizer_object=made, eos_token=END, pad_token=END)


def model(kind: str) -> Any:
    if kind == "gpt2":
        return T.GPT2LMHeadModel(T.GPT2Config(
            vocab_size=257, n_positions=64, n_embd=16, n_layer=2, n_head=4, bos_token_id=256, eos_token_id=256,
        ))  # fmt: skip
    if kind == "qwen3":
        return T.Qwen3ForCausalLM(T.Qwen3Config(**_SIZES, head_dim=4, tie_word_embeddings=True))
    if kind == "gemma3":
        return T.Gemma3ForCausalLM(T.Gemma3TextConfig(**_SIZES, head_dim=4, sliding_window=8))
    if kind == "phi":  # its table has a bias
        return T.PhiForCausalLM(T.PhiConfig(**{**_SIZES, "num_key_value_heads": 4}))
    return T.LlamaForCausalLM(T.LlamaConfig(**_SIZES, tie_word_embeddings=kind.endswith("tied")))


def write(folder: Path, kind: str) -> Path:
    """A directory of one kind."""
    with torch.random.fork_rng(), quiet(T):
        torch.manual_seed(0)
        zoo.stirred(model(kind), scale=0.1).float().save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder
