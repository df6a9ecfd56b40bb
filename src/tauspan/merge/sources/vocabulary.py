"""Tokenizers beside models: which token each id means, and whether two of them agree."""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tauspan.core.errors import listed
from tauspan.merge.sources.inputs import Source, model_folder
from tauspan.merge.sources.problems import Problem, Severity
from tauspan.store import read_json

# the first that both models have is compared; a sentencepiece model is not parsed, only compared byte by byte
_FILES = ("tokenizer.json", "vocab.json", "vocab.txt", "tokenizer.model", "spiece.model")


def tokenizers(reference: Source, other: Source) -> Iterator[Problem]:
    """Whether ids mean the same tokens in both; nothing if either has no tokenizer beside it."""
    folders = [model_folder(source.path) for source in (reference, other)]
    for name in _FILES:
        files = [folder / name for folder in folders if folder is not None and (folder / name).is_file()]
        if len(files) == 2:
            yield from _compared(other, *files)
            return


def has_tokenizer(folder: Path | None) -> bool:
    """Whether a folder holds a vocabulary of any kind."""
    return folder is not None and any((folder / name).is_file() for name in _FILES)


def _compared(other: Source, theirs: Path, mine: Path) -> Iterator[Problem]:
    if _digest(theirs) == _digest(mine):
        return

    def problem(severity: Severity, message: str) -> Problem:
        return Problem(severity, "tokenizer", None, other.label, mine, message)

    first, second = _vocabulary(theirs), _vocabulary(mine)
    if first is None or second is None:
        yield problem(
            "warning",
            f"{mine} and {theirs} have different bytes: their tokens may differ. Merge models with one tokenizer.",
        )
        return
    tokens = {number: token for token, number in first.items()}
    clashes = [(number, token) for token, number in second.items() if tokens.get(number, token) != token]
    if clashes:
        number, token = min(clashes)
        yield problem(
            "error",
            f"id {number} is {token!r} in {mine} and {tokens[number]!r} in {theirs} ({len(clashes)} such ids): the rows "
            "of the embeddings mean other tokens. Align them by token with `tokenizer_source`: base, union or a model.",
        )
    alone = sorted(set(first) ^ set(second))
    if alone and not clashes:
        yield problem(
            "warning",
            f"{mine} has {len(second)} tokens and {theirs} {len(first)}; one alone has {listed(map(repr, alone), 3)}. "
            "Choose the one that the merged model should have: `tokenizer_source`.",
        )


def _digest(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def vocabulary(folder: Path) -> dict[str, int] | None:
    """Ids by token, of the tokenizer in a folder, tokens that were added included; None where no file says them."""
    for name in _FILES[:3]:
        if (folder / name).is_file():
            found = _vocabulary(folder / name)
            return None if found is None else {**found, **_added(folder)}
    return None


def _added(folder: Path) -> dict[str, int]:
    """Tokens that were added in other files than the vocabulary's."""
    found: dict[str, int] = {}
    if (folder / "added_tokens.json").is_file():
        content = read_json(folder / "added_tokens.json")
        found |= {str(token): number for token, number in content.items() if isinstance(number, int)}
    if (folder / "tokenizer_config.json").is_file():
        content = read_json(folder / "tokenizer_config.json")
        added = content.get("added_tokens_decoder") if isinstance(content, Mapping) else None
        for number, token in (added if isinstance(added, Mapping) else {}).items():
            if isinstance(token, Mapping) and str(number).isdecimal() and "content" in token:
                found[str(token["content"])] = int(number)
    return found


def _vocabulary(file: Path) -> dict[str, int] | None:
    """Ids by token; None where the file's format is not known here."""
    if file.suffix == ".txt":
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
        return {token: number for number, token in enumerate(lines)}
    if file.suffix != ".json":
        return None
    content = read_json(file)
    if file.name == "tokenizer.json":
        content = _tokenizer(content)
    fits = isinstance(content, dict) and all(isinstance(number, int) for number in content.values())
    return content if fits else None


def _tokenizer(content: Any) -> Mapping[str, Any] | None:
    """The vocabulary of the tokenizers library's file: a mapping, or for Unigram a list of pairs (token, score)."""
    try:
        vocabulary, added = content["model"]["vocab"], content.get("added_tokens") or []
        if isinstance(vocabulary, list):
            vocabulary = {token: number for number, (token, _) in enumerate(vocabulary)}
        return {**vocabulary, **{token["content"]: token["id"] for token in added}}
    except (AttributeError, KeyError, TypeError, ValueError):
        return None
