"""Synthetic checkpoints for the merge benchmarks: shaped like Llama, random, in bfloat16; and headers without data."""

import json
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

LAYERS = 16
_HEAD = 64  # size of an attention head
_SPREAD, _MOVED = 0.02, 0.002  # standard deviations of weights and of what fine-tuning adds
_POOL = 1 << 24  # random numbers that are drawn; tensors take them from different places


def shapes(width: int, layers: int = LAYERS) -> dict[str, tuple[int, ...]]:
    """Names and shapes; width 1024 makes 271 million entries, twice the width four times as many.

    Example:
        >>> sum(prod(shape) for shape in shapes(1024).values()) // 10**6
        271
    """
    vocabulary, inner = 32000 * width // 1024, 11 * width // 4
    made: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, width)}
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        made |= {f"{prefix}.self_attn.{name}_proj.weight": (width, width) for name in "qkvo"}
        made |= {f"{prefix}.mlp.{name}_proj.weight": (inner, width) for name in ("gate", "up")}
        made[f"{prefix}.mlp.down_proj.weight"] = (width, inner)
        made |= {f"{prefix}.{name}_layernorm.weight": (width,) for name in ("input", "post_attention")}
    return made | {"model.norm.weight": (width,), "lm_head.weight": (vocabulary, width)}


def checkpoints(folder: Path, width: int, models: int) -> list[Path]:
    """Files of a base and of so many fine-tuned models; made once, then found again."""
    files = [folder / f"{name}.safetensors" for name in ("base", *(f"tuned{i}" for i in range(models)))]
    for place, file in enumerate(files):
        if not file.exists():
            folder.mkdir(parents=True, exist_ok=True)
            write(file, dict(values(shapes(width), place)))
    return files


def sharded(folder: Path, nbytes: int, models: int) -> list[Path]:
    """Directories of a base and of so many models of about that size, in a shard a layer, with index and settings."""
    width = 4096
    fixed, one = (2 * sum(prod(shape) for shape in shapes(width, layers).values()) for layers in (0, 1))
    layers = max((nbytes - fixed) // (one - fixed), 1)
    made = shapes(width, layers)
    parts = [
        {name: shape for name, shape in made.items() if _layer(name) == layer} for layer in range(-1, layers)
    ]
    directories = [folder / name for name in ("base", *(f"tuned{i}" for i in range(models)))]
    for place, directory in enumerate(directories):
        if (directory / "config.json").exists():
            continue
        directory.mkdir(parents=True, exist_ok=True)
        files = _names(len(parts))
        for file, part in zip(files, parts, strict=True):
            write(directory / file, dict(values(part, place)))
        _describe(directory, zip(files, parts, strict=True), width, layers)
    return directories


def headers(folder: Path, nbytes: int, models: int) -> list[Path]:
    """Sharded models that are whole for whoever reads headers only: sparse files that hold no data.

    Args:
        folder: where.
        nbytes: of all models together, about.
        models: how many, the base included.
    """
    width = 4096
    one = 2 * sum(prod(shape) for name, shape in shapes(width, 1).items() if _layer(name) == 0)
    layers = max(nbytes // models // one, 1)
    made = shapes(width, layers)
    parts = [
        {name: shape for name, shape in made.items() if _layer(name) == layer} for layer in range(-1, layers)
    ]
    directories = [folder / f"model{place}" for place in range(models)]
    for directory in directories:
        directory.mkdir(parents=True, exist_ok=True)
        files = _names(len(parts))
        for file, part in zip(files, parts, strict=True):
            _sparse(directory / file, part)
        _describe(directory, zip(files, parts, strict=True), width, layers)
    return directories


def values(made: Mapping[str, tuple[int, ...]], model: int) -> Iterator[tuple[str, Tensor]]:
    """The tensors of model 0, the base, or of a model that was moved from it."""
    pool = torch.randn(_POOL, generator=torch.Generator().manual_seed(0))
    for place, (name, shape) in enumerate(made.items()):
        tensor = _SPREAD * _taken(pool, prod(shape), 7919 * place)
        if model:
            tensor += _MOVED * _taken(pool, prod(shape), 7919 * place + 104729 * model)
        yield name, tensor.view(shape).bfloat16()


def recipe(file: Path, method: str, files: Sequence[Path], each: Mapping[str, float]) -> Path:
    """A recipe in mergekit's spelling, which both programs read; the first file is the base."""
    lines = [f"merge_method: {method}", f"base_model: {files[0]}", "models:"]
    for model in files[1:]:
        lines += [f"  - model: {model}", "    parameters:"]
        lines += [f"      {name}: {value}" for name, value in each.items()]
    file.write_text("\n".join(lines) + "\n")
    return file


def write(file: Path, tensors: dict[str, Tensor]) -> None:
    """One file, whole or not at all."""
    temporary = file.with_suffix(".part")
    save_file(tensors, temporary, metadata={"format": "pt"})
    temporary.rename(file)


def _taken(pool: Tensor, count: int, start: int) -> Tensor:
    """So many numbers of the pool from a place on, from its beginning again where it ends."""
    start %= _POOL
    around = -(-(start + count) // _POOL)
    return (pool if around == 1 else pool.repeat(around))[start : start + count]


def _layer(name: str) -> int:
    """The layer's number; -1 outside the layers."""
    return int(name.split(".")[2]) if name.startswith("model.layers.") else -1


def _names(count: int) -> list[str]:
    return [f"model-{place + 1:05d}-of-{count:05d}.safetensors" for place in range(count)]


def _sparse(file: Path, part: Mapping[str, tuple[int, ...]]) -> None:
    """A header, and as many bytes as it promises, none of them on the disk."""
    entries: dict[str, object] = {}
    end = 0
    for name, shape in part.items():
        begin, end = end, end + 2 * prod(shape)
        entries[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps({"__metadata__": {"format": "pt"}, **entries}).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as handle:
        handle.write(len(text).to_bytes(8, "little") + text)
        handle.truncate(8 + len(text) + end)


def _describe(
    directory: Path, parts: Iterator[tuple[str, Mapping[str, tuple[int, ...]]]], width: int, layers: int
) -> None:
    where = {name: file for file, part in parts for name in part}
    total = 2 * sum(prod(shape) for shape in shapes(width, layers).values())
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    heads = width // _HEAD
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": width, "num_hidden_layers": layers,
        "intermediate_size": 11 * width // 4, "vocab_size": 32000 * width // 1024, "num_attention_heads": heads,
        "num_key_value_heads": heads, "tie_word_embeddings": False, "dtype": "bfloat16",
    }  # fmt: skip
    (directory / "config.json").write_text(json.dumps(config))
