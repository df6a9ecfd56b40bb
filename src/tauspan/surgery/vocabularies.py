"""`Vocabulary`: the tokens of a tokenizer, the text of each, and how it cuts text."""

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from tauspan import store
from tauspan.core.errors import ModelError
from tauspan.merge.sources.source import model_folder
from tauspan.merge.sources.vocabulary import vocabulary
from tauspan.models.extras import require_extra
from tauspan.models.sources import model_directory

_ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
_LIKE = {"cls": "bos", "bos": "cls", "sep": "eos", "eos": "sep"}  # of encoders and of decoders
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_MOST_IDS = 1 << 24
_AT_ONCE = 4096  # texts that are cut together: the library keeps far more of each than its ids
_MARK = "\u2581"  # sentencepiece's mark of a space


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """A tokenizer as tokens with what they stand for, in a form that is the same for every kind of tokenizer.

    A piece is the bytes of a token: with a space in front where a word begins there. So `##ing` of WordPiece, `ing` of
    byte-level BPE and `ing` of sentencepiece are one piece, and `ing`, `Ġing` and `▁ing` another.

    Args:
        folder: of the tokenizer's files.
        ids: by token.
        pieces: by id; None for special tokens and for ids without a token.
        special: tokens that stand for no text.
        roles: the special token of a role, such as `pad`.
        backend: the tokenizer of the library `tokenizers`.
        digest: SHA-256 of its file.
    """

    folder: Path
    ids: Mapping[str, int]
    pieces: tuple[bytes | None, ...]
    special: frozenset[str]
    roles: Mapping[str, str]
    backend: Any = field(repr=False)
    digest: str

    def __repr__(self) -> str:
        return f"Vocabulary({self.folder.name}, {len(self.ids)} tokens)"

    @cached_property
    def known(self) -> dict[bytes, int]:
        """The id of each piece; the first of several."""
        return {piece: number for number, piece in reversed([*enumerate(self.pieces)]) if piece is not None}

    @cached_property
    def named(self) -> dict[int, str]:
        """The token of each id."""
        return {number: token for token, number in self.ids.items()}

    def text(self, number: int) -> str | None:
        """What a token reads like, without spaces around it; None for bytes that are no text, and where nothing is."""
        return words_of(self.pieces[number])

    def cut(self, pieces: Sequence[bytes | None]) -> list[list[int]]:
        """The ids of each piece's parts; none for what cannot be read. Bytes that are no text are cut into bytes."""
        texts = [None if piece is None else _decoded(piece) for piece in pieces]
        read = [place for place, text in enumerate(texts) if text is not None and text.strip()]
        found: list[list[int]] = [[] for _ in pieces]
        for place, ids in zip(read, self.encode([texts[place] or "" for place in read]), strict=True):
            found[place] = self._continued(pieces[place] or b"", ids)
        for place, piece in enumerate(pieces):
            if piece and not found[place]:
                single = [self.known.get(bytes([byte]), -1) for byte in piece]
                found[place] = single if min(single) >= 0 else []
        return found

    def _continued(self, piece: bytes, numbers: Sequence[int]) -> list[int]:
        """The ids without unknown ones; the first is that inside a word where the piece begins inside one."""
        inside = [number for number in numbers if self.pieces[number] is not None]
        if not piece.startswith(b" ") and inside and self.pieces[inside[0]] == b" ":
            inside = inside[1:]  # the space that sentencepiece puts in front of every text
        if inside and not piece.startswith(b" "):
            first = self.pieces[inside[0]] or b""
            inside[0] = self.known.get(first.removeprefix(b" "), inside[0])
        return inside

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of texts, without special tokens."""
        found: list[list[int]] = []
        for start in range(0, len(texts), _AT_ONCE):
            some = list(texts[start : start + _AT_ONCE])
            found += [one.ids for one in self.backend.encode_batch(some, add_special_tokens=False)]
        return found


def words_of(piece: bytes | None) -> str | None:
    """A piece as text without spaces around it; None where it is no text.

    Example:
        >>> words_of(b" film"), words_of(bytes([226, 150]))
        ('film', None)
    """
    text = None if piece is None else _decoded(piece)
    return None if text is None else text.strip() or None


def _decoded(piece: bytes) -> str | None:
    try:
        return piece.decode("utf-8")
    except UnicodeDecodeError:
        return None


def open_vocabulary(place: str | Path) -> Vocabulary:
    """The vocabulary of a tokenizer's or a model's directory, a `tokenizer.json`, `"minilm"` or a hub id.

    Raises:
        ModelError: there is no `tokenizer.json`, or it holds no vocabulary.
        MissingExtraError: the library `tokenizers` is not installed.

    Example:
        >>> words = open_vocabulary("minilm")
        >>> words, words.text(words.cut([b" films"])[0][0])
        (Vocabulary(model, 30522 tokens), 'films')
    """
    folder = Path(place)
    if folder.is_file() and folder.name != "tokenizer.json" and folder.suffix == ".json":
        raise ModelError(
            f"{place}: a tokenizer's file is called tokenizer.json, and its other files lie beside it. Put it under that "
            "name into a directory of its own."
        )
    if not folder.exists():
        folder = model_directory(str(place))
    folder = folder.parent if folder.name == "tokenizer.json" else model_folder(folder) or folder
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise ModelError(
            f"{folder} has no tokenizer.json, from which vocabularies are read. Save it as one (transformers: "
            f"`AutoTokenizer.from_pretrained({str(folder)!r}).save_pretrained({str(folder)!r})`)."
        )
    ids, content = vocabulary(folder), store.read_json(file)
    if not ids or not isinstance(content, Mapping):
        raise ModelError(
            f"{file} holds no vocabulary of tokens: it is damaged, or of a tokenizer that has none. Save the tokenizer "
            "again, with a version of the library that writes `model.vocab`."
        )
    most = max(ids.values())
    if most >= _MOST_IDS:
        token = next(token for token, number in ids.items() if number == most)
        raise ModelError(
            f"{file} gives {token!r} the id {most:,} among {len(ids):,} tokens, and a table has a row for each id, at "
            f"most {_MOST_IDS:,} here. Number the tokens without gaps."
        )
    library = require_extra("tokenizers", "transformers", "reading how a tokenizer cuts text")
    text = file.read_text(encoding="utf-8")
    try:
        backend = library.Tokenizer.from_str(text)
    except Exception as error:  # the library raises its own class for everything
        raise ModelError(
            f"{file} cannot be read by the library tokenizers: {error}. Save it again."
        ) from error
    backend.no_truncation()
    backend.no_padding()
    roles = _roles(folder)
    flagged = {one["content"] for one in content.get("added_tokens") or () if one.get("special")}
    special = frozenset({*flagged, *roles.values(), *_unknown(content["model"])} & set(ids))
    kind = _Kind.of(content)
    pieces: list[bytes | None] = [None] * (most + 1)
    added = {one["content"] for one in content.get("added_tokens") or ()}
    for token, number in ids.items():
        if token not in special:
            pieces[number] = token.encode() if token in added else kind.piece(token)
    return Vocabulary(
        folder, ids, tuple(pieces), special, roles, backend, hashlib.sha256(text.encode()).hexdigest()
    )


@dataclass(frozen=True)
class _Kind:
    """How a tokenizer spells pieces as tokens."""

    model: str
    prefix: str
    suffix: str
    steps: frozenset[str]
    marked: bool

    @staticmethod
    def of(content: Mapping[str, Any]) -> "_Kind":
        model = content["model"]
        steps = frozenset(
            kind for part in ("pre_tokenizer", "decoder", "normalizer") for kind in _types(content.get(part))
        )
        tokens = model.get("vocab") or ()
        marked = "Metaspace" in steps or ("ByteLevel" not in steps and _most_marked(tokens))
        return _Kind(
            str(model.get("type", "")), model.get("continuing_subword_prefix") or "",
            model.get("end_of_word_suffix") or "", steps, marked,
        )  # fmt: skip

    def piece(self, token: str) -> bytes:
        """The bytes of a token's text."""
        if self.suffix and token.endswith(self.suffix):
            token = f"{token.removesuffix(self.suffix)} "
        byte = _BYTE.fullmatch(token)
        if "ByteLevel" in self.steps:
            codes = [_CODES.get(letter) for letter in token]
            return token.encode() if None in codes else bytes(code for code in codes if code is not None)
        if self.marked:
            return bytes([int(byte[1], 16)]) if byte else token.replace(_MARK, " ").encode()
        if self.prefix and token.startswith(self.prefix) and token != self.prefix:
            return token.removeprefix(self.prefix).encode()
        return f" {token}".encode() if self.model in ("WordPiece", "WordLevel") else token.encode()


def _unknown(model: Mapping[str, Any]) -> list[str]:
    """The token of what a tokenizer cannot read."""
    number, tokens = model.get("unk_id"), model.get("vocab")
    if isinstance(number, int) and isinstance(tokens, list):
        return [str(tokens[number][0])]
    return [model["unk_token"]] if isinstance(model.get("unk_token"), str) else []


def _most_marked(tokens: Any) -> bool:
    """Whether sentencepiece's mark begins many tokens."""
    words = [one if isinstance(one, str) else str(one[0]) for one in tokens]
    return 10 * sum(word.startswith(_MARK) for word in words) > len(words)


def _types(part: Any) -> Iterator[str]:
    """The types of a step and of the steps inside it."""
    if isinstance(part, Mapping):
        yield str(part.get("type", ""))
        for inner in part.values():
            yield from _types(inner)
    elif isinstance(part, list):
        for inner in part:
            yield from _types(inner)


def _codes() -> dict[str, int]:
    """The letter by which byte-level tokenizers write each byte: printable ones as they are, others from 256 on."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + n): byte for n, byte in enumerate(others)}


_CODES = _codes()


def _roles(folder: Path) -> dict[str, str]:
    """The special tokens by their roles, from the files beside the vocabulary."""
    found: dict[str, str] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        content = store.read_json(folder / name) if (folder / name).is_file() else {}
        for role in _ROLES:
            given = content.get(f"{role}_token") if isinstance(content, Mapping) else None
            token = given.get("content") if isinstance(given, Mapping) else given
            if isinstance(token, str):
                found[role] = token
    return found


def shared_tokens(old: Vocabulary, new: Vocabulary) -> dict[int, int]:
    """The old id of each new id with the same meaning: the same piece, special token, or role of one.

    Example:
        >>> words = open_vocabulary("minilm")
        >>> len(shared_tokens(words, words))
        30522
    """
    if old.ids == new.ids:
        return {number: number for number in new.ids.values()}
    found: dict[int, int] = {}
    by_token = {token: role for role, token in new.roles.items()}
    for token, number in new.ids.items():
        piece = new.pieces[number]
        if piece is not None:
            same = old.ids.get(token)
            same = same if same is not None and old.pieces[same] == piece else old.known.get(piece)
        else:
            role = by_token.get(token, "")
            theirs = old.roles.get(role) or old.roles.get(_LIKE.get(role, ""))
            same = old.ids[token] if token in old.special else old.ids.get(theirs or "")
        if same is not None:
            found[number] = same
    return found
