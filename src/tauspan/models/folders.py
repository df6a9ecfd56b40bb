"""The files in a model's folder: which are weights, which are copied with the weights, and which are not read."""

import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

from tauspan import store
from tauspan.core.errors import StoreError, listed

CONFIG = "config.json"
MODULES = "modules.json"
TOKENIZER = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "tokenizer.model.v*", "special_tokens_map.json",
    "added_tokens.json", "*vocab*.json", "*vocab*.txt", "vocab.bpe", "encoder.json", "merges.txt", "bpe.codes",
    "spiece.model", "sentencepiece.bpe.model", "*.bpe.model", "source.spm", "target.spm", "tekken.json", "*.tiktoken",
    "normalizer.json",
    "chat_template.json", "chat_template.jinja", "additional_chat_templates/*.jinja",
)  # fmt: skip
"""Files that make up a tokenizer, as transformers reads them."""

_BESIDE = (
    CONFIG, "generation_config.json", "preprocessor_config.json", "processor_config.json", "image_processor_config.json",
    "video_preprocessor_config.json", "feature_extractor_config.json", "audio_tokenizer_config.json",
    MODULES, "1_Pooling/config.json", "config_sentence_transformers.json", "sentence_*_config.json",
    "open_clip_config.json",
)  # fmt: skip
_MODULE = (CONFIG, "sentence_*_config.json")  # files of one sentence-transformers module


@dataclass(frozen=True)
class Module:
    """One step of a sentence-transformers model, in a subfolder or in the model's folder.

    Args:
        path: relative to the model's folder; empty for the model itself.
        kind: the last part of its class.
    """

    path: str
    kind: str


def modules(folder: Path) -> tuple[Module, ...]:
    """The steps that `modules.json` lists; none where there is no such file.

    Raises:
        StoreError: the file is not a list of modules, or a module is outside the folder.
    """
    file = folder / MODULES
    if not file.is_file():
        return ()
    content = store.read_json(file)
    fits = isinstance(content, list) and all(isinstance(one, Mapping) for one in content)
    if not fits:
        raise StoreError(f"{file} is no list of modules: save the model with sentence-transformers again.")
    found = []
    for one in content:
        path = PurePosixPath(str(one.get("path", "")))
        if path.is_absolute() or ".." in path.parts:
            raise StoreError(f"{file} names the module {str(path)!r}, which lies outside its folder.")
        found.append(
            Module(
                "" if path == PurePosixPath(".") else str(path), str(one.get("type", "")).rpartition(".")[2]
            )
        )
    return tuple(found)


def main_folder(folder: Path) -> Path:
    """The folder of the model's own weights and configuration: the folder itself, or that of its first module."""
    if (folder / CONFIG).is_file():
        return folder
    return next((folder / one.path for one in modules(folder)[:1] if one.path), folder)


def parts(folder: Path) -> dict[str, Path]:
    """Weights besides the main ones, by their folder's relative path: a sentence-transformers Dense layer, for instance.

    Raises:
        PickleRefusedError: a module's weights are there only as a pickle.
    """
    main, found = main_folder(folder), {}
    for one in modules(folder):
        inner = folder / one.path
        if not one.path or inner == main or not inner.is_dir():
            continue
        if (inner / "model.safetensors").is_file():
            found[one.path] = inner / "model.safetensors"
        elif (inner / "pytorch_model.bin").is_file():
            store.refuse_pickle(inner / "pytorch_model.bin")
    return found


def inside(folder: Path, file: Path) -> bool:
    """Whether a file, with all links followed, is in the folder, or in the hub cache of which the folder is part."""
    root, real = folder.resolve(), file.resolve()
    # in the hub cache the files of a snapshot are links to blobs in a folder beside the snapshots
    cache = next((one.parent.parent for one in (root, *root.parents) if one.parent.name == "snapshots"), root)
    return cache in real.parents


def beside(folder: Path) -> list[Path]:
    """The files that a loader reads besides the weights, relative to the folder, including links out of it."""
    patterns = [*_BESIDE, *TOKENIZER]
    for one in modules(folder):
        patterns += [f"{one.path}/{pattern}" for pattern in (*_BESIDE, *TOKENIZER, *_MODULE) if one.path]
    return list(_matching(folder, patterns))


def copied(folder: Path, target: Path, files: Iterable[Path]) -> None:
    """Copy some files of a folder, given relative to it; links out of the folder are not copied."""
    for file in files:
        if inside(folder, folder / file):
            (target / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / file, target / file)


def tokenizer_files(folder: Path) -> list[Path]:
    """The files of the folder's tokenizer, relative to it."""
    return list(_matching(folder, TOKENIZER))


def _matching(folder: Path, patterns: list[str] | tuple[str, ...]) -> Iterator[Path]:
    """The files that match a pattern, relative to the folder; only subfolders that a pattern names are searched."""
    places = dict.fromkeys(pattern.rpartition("/")[0] for pattern in patterns)
    for place in places:
        inner = folder / place
        own = [pattern.rpartition("/")[2] for pattern in patterns if pattern.rpartition("/")[0] == place]
        for file in (
            sorted(inner.iterdir()) if inner.is_dir() and (not place or inside(folder, inner)) else ()
        ):
            if file.is_file() and any(fnmatch(file.name, one) for one in own):
                yield file.relative_to(folder)


def unread(folder: Path, read: Mapping[Path, Any]) -> str | None:
    """A message about weights in a folder that are not read; None if there are none."""
    known = {file.resolve() for file in read}  # as shards of an index are already
    others = [
        file.name
        for file in sorted(folder.iterdir())
        if (file.suffix == ".safetensors" or file.name.endswith(store.INDEX_SUFFIX))
        and file.resolve() not in known
        and file.name != "vector.safetensors"
    ]
    shards = {
        match[1] for file in read if (match := re.fullmatch(r"(.+)-\d{5}-of-\d{5}\.safetensors", file.name))
    }
    others = [name for name in others if name not in {f"{stem}{store.INDEX_SUFFIX}" for stem in shards}]
    if not others or not read:
        return None
    return (
        f"{folder} also holds {listed(others, 3)}, which {'is' if len(others) == 1 else 'are'} not read: of several "
        f"sets of weights {listed(sorted({file.name for file in read}), 2)} is the one that its library loads. Name "
        "another file to take that one."
    )
