"""Tiny causal language models as directories, with a tokenizer of bytes that says which characters a token is made of."""

from pathlib import Path
from typing import Any

import torch
import transformers as T
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers import models as token_models
from tokenizers.processors import TemplateProcessing

from helpers import zoo
from tauspan.models.extras import quiet
from tauspan.tasks import Task

END, MASK = "<|end|>", "<|mask|>"
_SIZES: dict[str, Any] = {
    "vocab_size": 257, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "bos_token_id": 256, "eos_token_id": 256, "pad_token_id":
    256,
}  # fmt: skip
SEQ2SEQ = ("t5", "t5 unscaled", "bart")
MASKED = ("bert", "roberta", "distilbert")
KINDS = ("llama", "llama tied", "gpt2", "qwen3", "gemma3")


def tokenizer(ended: bool = False, masks: bool = False) -> Any:
    """A token for each byte; if `ended`, an end after every text; if `masks`, a token that hides others."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(token_models.BPE({**{c: n for n, c in enumerate(alphabet)}, END: 256}, []))
    if masks:
        made.add_special_tokens([MASK])
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    if ended:
        made.post_processor = TemplateProcessing(single=f"$A {END}", special_tokens=[(END, 256)])
    return T.PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token=END, pad_token=END, **({"mask_token": MASK} if masks else {})
    )


def model(kind: str) -> Any:
    if kind == "gpt2":
        return T.GPT2LMHeadModel(T.GPT2Config(
            vocab_size=257, n_positions=64, n_embd=16, n_layer=2, n_head=4, bos_token_id=256, eos_token_id=256,
        ))  # fmt: skip
    if kind.startswith("t5"):
        config = T.T5Config(
            vocab_size=257, d_model=16, d_kv=4, d_ff=24, num_layers=2, num_heads=4, decoder_start_token_id=256,
            feed_forward_proj="relu" if kind == "t5" else "gated-gelu", pad_token_id=256, eos_token_id=256,
            relative_attention_num_buckets=8,
        )  # fmt: skip
        return T.T5ForConditionalGeneration(config)
    if kind == "bart":
        made = T.BartForConditionalGeneration(T.BartConfig(
            vocab_size=257, d_model=16, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
            decoder_attention_heads=4, encoder_ffn_dim=24, decoder_ffn_dim=24, max_position_embeddings=64,
            bos_token_id=256, eos_token_id=256, pad_token_id=256, decoder_start_token_id=256, forced_eos_token_id=None,
        ))  # fmt: skip
        made.final_logits_bias.copy_(torch.linspace(-1, 1, 257))
        return made
    if kind in MASKED:
        sizes: dict[str, Any] = {"vocab_size": 258, "pad_token_id": 256, "max_position_embeddings": 512}
        if kind == "distilbert":
            return T.DistilBertForMaskedLM(
                T.DistilBertConfig(**sizes, dim=16, n_layers=2, n_heads=4, hidden_dim=24)
            )
        sizes |= {
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
        }
        if kind == "bert":
            return T.BertForMaskedLM(T.BertConfig(**sizes))
        return T.RobertaForMaskedLM(T.RobertaConfig(**sizes))
    if kind == "qwen3":
        return T.Qwen3ForCausalLM(T.Qwen3Config(**_SIZES, head_dim=4, tie_word_embeddings=True))
    if kind == "granite":  # which divides its logits
        return T.GraniteForCausalLM(T.GraniteConfig(**_SIZES, logits_scaling=2.0))
    if kind == "gemma2":  # which caps them
        return T.Gemma2ForCausalLM(T.Gemma2Config(**_SIZES, head_dim=4, final_logit_softcapping=1.0))
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
    if kind == "t5 unscaled":  # as version 1.1, which has gated layers and no scale before the table
        config = folder / "config.json"
        config.write_text(
            config.read_text().replace('"tie_word_embeddings": true', '"tie_word_embeddings": false')
        )
    tokenizer(ended=kind in SEQ2SEQ, masks=kind in MASKED).save_pretrained(folder)
    return folder


def sums(rows: int = 16) -> Task:
    """Texts with prompts and without, of several lengths: small sums, of which the answer is predicted."""
    texts = [f"{n} + {n * n} = {n + n * n}." for n in range(rows + 4)]
    prompts = torch.tensor([text.index("=") + 1 if place % 3 else 0 for place, text in enumerate(texts)])
    held, rest = (texts[:4], prompts[:4]), (texts[4:], prompts[4:])
    return Task.from_tensors("sums", [], objective="next-token", train=rest, validation=held, test=held)
