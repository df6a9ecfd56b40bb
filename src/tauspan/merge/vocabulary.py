"""Tokenizers beside models: whether two of them give an id to the same token."""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tauspan.errors import listed
from tauspan.merge.inputs import Source, model_folder
from tauspan.merge.problems import Problem, Severity
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
            "of the embeddings mean other tokens. Merge models with one tokenizer.",
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
