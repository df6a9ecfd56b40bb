"""Small models for the shapes of mergekit files in tests/merge/shapes: made with transformers, in a folder, by name."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

ROWS = 64
CHAT = ("<|im_start|>", "<|im_end|>")
_LLAMA = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": ROWS, "tie_word_embeddings": False,
}  # fmt: skip
_EMBEDDINGS = ("lm_head.weight", "model.embed_tokens.weight")


def make(folder: Path, only: str | None = None) -> None:
    """All models of the shapes; `llama` makes those of one architecture alone, within a second."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    folder.mkdir(parents=True, exist_ok=True)
    _llamas(folder, transformers)
    if only != "llama":
        _gemma(folder, transformers)
        _t5(folder, transformers)


def _llamas(folder: Path, transformers: Any) -> None:
    torch.manual_seed(0)
    base = folder / "base"
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**_LLAMA)).save_pretrained(base)
    words(base, [f"w{number}" for number in range(ROWS)])
    for seed, name in enumerate("abc", 1):
        tuned(base, folder / name, seed)
    change_config(tuned(base, folder / "wide", 4), rope_theta=1e6, rope_parameters=None)
    half(base, folder / "half", folder / "half_a")
    chat = tuned(base, folder / "chat", 5, longer=2)
    change_config(chat, vocab_size=ROWS + 2)
    words(chat, [*(f"w{number}" for number in range(ROWS)), *CHAT])
    renamed = [*(f"w{number}" for number in range(ROWS - 2)), *CHAT]
    words(tuned(base, folder / "renamed", 6), renamed)
    shuffled = tuned(base, folder / "shuffled", 7)
    words(shuffled, [f"w{(5 * number + 3) % ROWS}" for number in range(ROWS)])
    for seed, name in ((8, "chat_a"), (9, "chat_b")):
        template = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
        (tuned(base, folder / name, seed) / "chat_template.jinja").write_text(template)
    adapter(folder / "adapter")


def _gemma(folder: Path, transformers: Any) -> None:
    torch.manual_seed(1)
    text = {
        "vocab_size": ROWS, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    }  # fmt: skip
    vision = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
        "image_size": 16, "patch_size": 4,
    }  # fmt: skip
    config = transformers.Gemma3Config(
        text_config=text, vision_config=vision, mm_tokens_per_image=4, image_token_index=60
    )
    transformers.Gemma3ForConditionalGeneration(config).save_pretrained(folder / "gemma")
    words(folder / "gemma", [f"w{number}" for number in range(ROWS)])
    tuned(folder / "gemma", folder / "gemma_a", 10)


def _t5(folder: Path, transformers: Any) -> None:
    torch.manual_seed(2)
    config = transformers.T5Config(
        vocab_size=ROWS, d_model=16, d_kv=4, d_ff=32, num_layers=2, num_decoder_layers=3, num_heads=4
    )
    transformers.T5ForConditionalGeneration(config).save_pretrained(folder / "t5")
    words(folder / "t5", [f"w{number}" for number in range(ROWS)])
    tuned(folder / "t5", folder / "t5_a", 11)


def tuned(base: Path, folder: Path, seed: int, longer: int = 0) -> Path:
    """A copy whose weights moved a little; `longer` rows more in its embeddings."""
    shutil.copytree(base, folder)
    draw = torch.Generator().manual_seed(seed)
    tensors = {
        name: tensor + 0.02 * torch.randn(tensor.shape, generator=draw)
        for name, tensor in load_file(folder / "model.safetensors").items()
    }
    for name in _EMBEDDINGS if longer else ():
        more = 0.05 * torch.randn(longer, tensors[name].shape[1], generator=draw)
        tensors[name] = torch.cat([tensors[name], more])
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def half(base: Path, first: Path, second: Path) -> None:
    """A pair in bfloat16, whose displacements are few multiples of the spacing."""
    draw = torch.Generator().manual_seed(12)
    shutil.copytree(base, first)
    tensors: dict[str, Tensor] = {}
    for name, tensor in load_file(base / "model.safetensors").items():
        tensors[name] = (0.02 * torch.randn(tensor.shape, generator=draw)).bfloat16()
    save_file(tensors, first / "model.safetensors", {"format": "pt"})
    shutil.copytree(first, second)
    moved = {
        name: (tensor.float() + 1e-4 * torch.randn(tensor.shape, generator=draw)).bfloat16()
        for name, tensor in tensors.items()
    }
    save_file(moved, second / "model.safetensors", {"format": "pt"})


def words(folder: Path, vocabulary: list[str]) -> None:
    """A tokenizer of whole words; those in angle brackets are added and special."""
    plain = {word: number for number, word in enumerate(vocabulary) if not word.startswith("<")}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    added = [
        {"id": number, "content": word, **flags}
        for number, word in enumerate(vocabulary)
        if word.startswith("<")
    ]
    model = {"type": "WordLevel", "vocab": plain, "unk_token": "w0"}
    content = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": None, "decoder": None, "model": model,
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(content))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": "w0",
        "bos_token": "w1",
        "eos_token": "w2",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def adapter(folder: Path) -> None:
    """A LoRA adapter of the llamas, as PEFT writes it."""
    folder.mkdir()
    draw = torch.Generator().manual_seed(13)
    config = {
        "peft_type": "LORA",
        "r": 2,
        "lora_alpha": 4,
        "target_modules": ["q_proj"],
        "task_type": "CAUSAL_LM",
    }
    (folder / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "base"}))
    tensors = {}
    for layer in range(_LLAMA["num_hidden_layers"]):
        prefix = f"base_model.model.model.layers.{layer}.self_attn.q_proj.lora_"
        tensors[f"{prefix}A.weight"] = 0.1 * torch.randn(2, 32, generator=draw)
        tensors[f"{prefix}B.weight"] = 0.1 * torch.randn(32, 2, generator=draw)
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})


def change_config(folder: Path, **more: Any) -> Path:
    """Change entries of a model's configuration; None removes one."""
    file = folder / "config.json"
    content: Mapping[str, Any] = {**json.loads(file.read_text()), **more}
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    return folder
