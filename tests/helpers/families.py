"""Tiny models of families whose names in files and in memory differ, or that have a head beside their backbone."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers as T
from safetensors.torch import load_file, save_file
from torch import Tensor

from tauspan.models.extras import quiet

_TEXT = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
_GROUPED = {**_TEXT, "num_key_value_heads": 2}
_BERT = {**_TEXT, "max_position_embeddings": 16}
_LOOKS = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "image_size": 16,
          "patch_size": 4}  # fmt: skip


def _gemma3() -> Any:
    text = {**_GROUPED, "head_dim": 8}
    config = T.Gemma3Config(
        text_config=text, vision_config=_LOOKS, mm_tokens_per_image=4, image_token_index=60
    )
    return T.Gemma3ForConditionalGeneration(config)


def _llava() -> Any:
    config = T.LlavaConfig(
        text_config=T.LlamaConfig(**_GROUPED, tie_word_embeddings=False), vision_config=T.CLIPVisionConfig(**_LOOKS),
        image_token_index=60,
    )  # fmt: skip
    return T.LlavaForConditionalGeneration(config)


def _qwen2_vl() -> Any:
    text = {**_GROUPED, "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}}
    looks = {"depth": 1, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "patch_size": 4}
    return T.Qwen2VLForConditionalGeneration(T.Qwen2VLConfig(text_config=text, vision_config=looks))


def _clip() -> Any:
    text = {**_TEXT, "max_position_embeddings": 16, "projection_dim": 8}
    return T.CLIPModel(
        T.CLIPConfig(text_config=text, vision_config={**_LOOKS, "projection_dim": 8}, projection_dim=8)
    )


FAMILIES: dict[str, Callable[[], Any]] = {
    "llama": lambda: T.LlamaForCausalLM(T.LlamaConfig(**_GROUPED, tie_word_embeddings=False)),
    "llama tied": lambda: T.LlamaForCausalLM(T.LlamaConfig(**_GROUPED, tie_word_embeddings=True)),
    "gpt2": lambda: T.GPT2LMHeadModel(T.GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4)),
    "bert": lambda: T.BertForMaskedLM(T.BertConfig(**_BERT)),
    "bert classes": lambda: T.BertForSequenceClassification(T.BertConfig(**_BERT, num_labels=3)),
    "llama classes": lambda: T.LlamaForSequenceClassification(
        T.LlamaConfig(**_GROUPED, num_labels=3, pad_token_id=0)
    ),
    "mixtral": lambda: T.MixtralForCausalLM(T.MixtralConfig(**_GROUPED, num_local_experts=3)),
    "qwen moe": lambda: T.Qwen2MoeForCausalLM(
        T.Qwen2MoeConfig(
            **_GROUPED, num_experts=11, moe_intermediate_size=8, shared_expert_intermediate_size=8
        )
    ),
    "gemma3": _gemma3,
    "llava": _llava,
    "qwen2-vl": _qwen2_vl,
    "t5": lambda: T.T5ForConditionalGeneration(
        T.T5Config(vocab_size=64, d_model=32, d_ff=48, d_kv=8, num_layers=2, num_heads=4)
    ),
    "clip": _clip,
    "vit classes": lambda: T.ViTForImageClassification(T.ViTConfig(**_LOOKS, num_labels=3)),
}


def make(name: str, folder: Path) -> Path:
    """The directory of a tiny model, as transformers writes it: without a tokenizer."""
    with torch.random.fork_rng(), quiet(T):
        torch.manual_seed(0)
        FAMILIES[name]().save_pretrained(folder)
    return folder


def tune(
    base: Path, folder: Path, seed: int = 1, change: Callable[[dict[str, Tensor]], Any] = lambda t: t
) -> Path:
    """A copy of a directory with every weight moved."""
    shutil.copytree(base, folder)
    draw = torch.Generator().manual_seed(seed)
    moved = {
        name: tensor + 0.02 * torch.randn(tensor.shape, generator=draw)
        if tensor.is_floating_point()
        else tensor
        for name, tensor in load_file(base / "model.safetensors").items()
    }
    save_file(change(moved), folder / "model.safetensors", {"format": "pt"})
    return folder


def loaded(folder: Path) -> tuple[Any, Mapping[str, Any]]:
    """The model of the class that the directory names, and what transformers says of its tensors."""
    named = T.AutoConfig.from_pretrained(folder).architectures[0]
    with quiet(T):
        model, info = getattr(T, named).from_pretrained(folder, output_loading_info=True)
    return model.eval(), {
        key: sorted(info[key]) for key in ("missing_keys", "unexpected_keys", "mismatched_keys")
    }


def state(folder: Path) -> dict[str, Tensor]:
    """All tensors of a directory as the class that it names has them in memory."""
    model, said = loaded(folder)
    assert not any(said.values()), said
    return {name: tensor.detach() for name, tensor in model.state_dict().items()}
