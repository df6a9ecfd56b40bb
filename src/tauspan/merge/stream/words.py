"""Which tokenizer the result of a merge has, and how the models' rows are aligned with it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tauspan import store
from tauspan.core.errors import RecipeError, StoreError, listed
from tauspan.merge.recipe.parts import Token
from tauspan.merge.recipe.recipe import UNION, MergeRecipe
from tauspan.merge.recipe.slices import LayerView
from tauspan.merge.sources.adapted import SumSource
from tauspan.merge.sources.source import Source, SourceView, model_folder
from tauspan.merge.sources.vocabulary import Alignment, Donor, Tokens, has_tokenizer, rows_of, vocabulary
from tauspan.models.extras import require_extra


@dataclass(frozen=True)
class Words:
    """The tokenizer of the result.

    Args:
        folder: whose files it has; None where there is none.
        extra: tokens that are added to it, with how the tokenizer that has them describes them.
        alignment: how rows are brought into its order; None where they stay as they are.
        notes: what is to be said about it.
    """

    folder: Path | None
    extra: Mapping[str, Mapping[str, Any]]
    alignment: Alignment | None = None
    notes: tuple[str, ...] = ()


def chosen(
    recipe: MergeRecipe, home: Source, words: Source, base: Source | None, models: Sequence[Source]
) -> Words:
    """The tokenizer that a recipe asks for, and the alignment that it needs.

    Rows are aligned by token where `tokenizer_source`, `tokens` or `pad_to_multiple_of` are in the recipe and the
    vocabularies, or the numbers of rows, differ; `allow: [tokenizer]` leaves them in the order of their ids.

    Args:
        recipe: the merge's.
        home: the source of the configuration.
        words: the source whose tokenizer is named; `home` for the base's and for a union.
        base: theta0, if there is one.
        models: what is merged.

    Raises:
        RecipeError: vocabularies have to be aligned, and a model's cannot be read.
    """
    folder = model_folder(_place(words))
    asked = (
        recipe.tokenizer_source is not None or bool(recipe.tokens) or recipe.pad_to_multiple_of is not None
    )
    if not asked:
        folder = model_folder(home.path)
        return Words(folder, {}, notes=_silent(home, [one for one in (base, *models) if one is not None]))
    if "tokenizer" in recipe.allow and not recipe.tokens and recipe.pad_to_multiple_of is None:
        note = f"rows of embeddings keep their order of ids, and the tokenizer is that of {_place(words)}."
        return Words(folder, {}, notes=(note,))
    sources = [*([] if base is None else [base]), *models]
    if not any(rows_of(one) for one in sources):
        return Words(folder, {})  # no embeddings with a known name
    return _Reader(recipe, home, words, sources, base is not None).made()


def _silent(home: Source, sources: Sequence[Source]) -> tuple[str, ...]:
    """Notes where no tokenizer was asked for: about a tokenizer that only another model or an adapter has."""
    notes = []
    own = model_folder(home.path)
    if not has_tokenizer(own):
        other = next((one for one in sources if has_tokenizer(model_folder(one.path))), None)
        if other is not None:
            notes.append(
                f"{home.path} has no tokenizer, and {other.path} has one: the result has none. "
                f"To take it, write `tokenizer_source: {other.path}`."
            )
    for one in sources:
        adapter = getattr(one, "adapter", None)
        place = getattr(adapter, "path", None)
        if isinstance(place, Path) and place.is_dir() and has_tokenizer(place) and own is not None:
            mine, theirs = vocabulary(place), vocabulary(own) if has_tokenizer(own) else None
            if mine is not None and mine != theirs:
                notes.append(
                    f"the adapter {place} has a tokenizer of its own, and the result has that of {home.path}. To "
                    f"take it, write `tokenizer_source: {place}`."
                )
    return tuple(notes)


@dataclass(frozen=True)
class _Reader:
    """The vocabularies of one merge."""

    recipe: MergeRecipe
    home: Source
    words: Source
    sources: Sequence[Source]
    based: bool

    def words_folder(self) -> Path:
        folder = model_folder(_place(self.words))
        if folder is None or not has_tokenizer(folder):
            raise self._refused(f"{self.words.path} has no tokenizer beside it")
        return folder

    def made(self) -> Words:
        folder = self.words_folder()
        first = self._read(folder)
        leaves = {_place(leaf): leaf for one in self.sources for leaf in _leaves(one)}
        notes = []
        known: dict[Path, Tokens] = {}
        for path, leaf in leaves.items():
            own = model_folder(path)
            if leaf.kind == "point" and (own is None or not has_tokenizer(own)):
                notes.append(
                    f"{path} has no tokenizer: its rows are taken to mean what those of {self.home.path} mean."
                )
        home = model_folder(_place(self.home))
        default = self._read(home) if has_tokenizer(home) and home is not None else first
        for path, leaf in leaves.items():
            own = model_folder(path)
            point = leaf.kind == "point" and own is not None and has_tokenizer(own)
            known[path] = self._read(own) if point and own is not None else default
        every = [known[one] for one in (_place(self.home), *known) if one in known]
        extra = self._extra(folder, first, every, list(leaves))
        tokens = {**first, **{token: number for number, token in enumerate(extra, _next(first))}}
        rows = _padded(max(tokens.values(), default=-1) + 1, self.recipe.pad_to_multiple_of)
        counts = {rows_of(leaf) for leaf in leaves.values() if rows_of(leaf) is not None}
        alike = all(own == tokens for own in known.values()) and len(counts) == 1
        if alike and not self.recipe.tokens and self.recipe.pad_to_multiple_of is None:
            return Words(folder, {}, notes=tuple(notes))

        notes += self._require_known(tokens, list(known.values()))

        def own_tokens(place: int, name: str) -> Tokens:
            source = self.sources[place]
            leaf = source.parts[name][0] if isinstance(source, LayerView) and name in source.parts else source
            return known[_place(_leaves(leaf)[0])]

        alignment = Alignment(tokens, rows, own_tokens, self.sources, self.based, self._donors())
        notes.append(
            f"rows of embeddings are aligned by token with {self._named()}: {len(tokens)} tokens, {rows} rows "
            f"(before: {', '.join(str(count) for count in sorted(filter(None, counts)))})."
        )
        return Words(folder, extra, alignment, tuple(notes))

    def _require_known(self, tokens: Tokens, known: Sequence[Tokens]) -> list[str]:
        """A note about tokens that no model has; an error if they are more than half of all."""
        strange = [
            token
            for token in tokens
            if not any(token in own for own in known) and token not in self.recipe.tokens
        ]
        if 2 * len(strange) > len(tokens):
            raise RecipeError(
                f"{self.recipe.place('tokenizer_source', 'tokenizer')}tokenizer_source: {len(strange)} of the "
                f"{len(tokens)} tokens of {_place(self.words)} are in no model ({listed(map(repr, strange), 3)}): it is "
                "the tokenizer of other models. Name the base's or a model's."
            )
        if not strange:
            return []
        return [f"{listed(map(repr, strange), 3)} of the tokenizer are in no model: their rows are 0."]

    def _named(self) -> str:
        source = self.recipe.tokenizer_source
        return (
            "the union of all vocabularies" if source == UNION else f"the tokenizer of {_place(self.words)}"
        )

    def _read(self, folder: Path) -> Tokens:
        found = vocabulary(folder)
        if found is None:
            raise self._refused(
                f"{folder} has a tokenizer of a kind whose tokens are not read here. Save it as tokenizer.json "
                f"(transformers: `AutoTokenizer.from_pretrained({str(folder)!r}).save_pretrained({str(folder)!r})`)"
            )
        return found

    def _refused(self, what: str) -> RecipeError:
        place = self.recipe.place("tokenizer_source", "tokenizer", "tokens")
        return RecipeError(
            f"{place}to align embeddings by token every vocabulary has to be known: {what}. Or merge rows by their ids: "
            "`--allow tokenizer`."
        )

    def _extra(
        self, folder: Path, first: Tokens, every: Sequence[Tokens], paths: Sequence[Path]
    ) -> dict[str, Mapping[str, Any]]:
        """Tokens that the tokenizer lacks: plain ones of the other models, then added ones, then the recipe's."""
        wanted: dict[str, Mapping[str, Any]] = {}
        if self.recipe.tokenizer_source == UNION:
            described = [_described(model_folder(path)) for path in paths]
            for added in (False, True):
                for own in every:
                    for token in sorted(own, key=own.__getitem__):
                        how = next((one[token] for one in described if token in one), None)
                        if token not in first and token not in wanted and (how is not None) == added:
                            wanted[token] = how or {}
        for token in self.recipe.tokens:
            if token not in first:
                wanted.setdefault(token, {})
        return wanted

    def _donors(self) -> dict[str, Donor]:
        return {token: self._donor(token, how) for token, how in self.recipe.tokens.items()}

    def _donor(self, token: str, how: Token) -> Donor:
        if how.source in (None, "zero"):
            return Donor(None, force=how.force)
        place = next((at for at, one in enumerate(self.sources) if _is(one, str(how.source))), None)
        if place is None:
            raise RecipeError(
                f"{self.recipe.place('tokens', 'tokenizer')}tokens: the row of {token!r} shall come from {how.source!r}, "
                "which is none of the models that are merged."
            )
        row = how.token_id
        if how.token is not None:
            row = self._read(model_folder(_place(_leaves(self.sources[place])[0])) or Path()).get(how.token)
            if row is None:
                raise RecipeError(
                    f"{self.recipe.place('tokens', 'tokenizer')}tokens: {how.source!r} has no token {how.token!r}."
                )
        return Donor(place, row, how.force)


def _is(source: Source, name: str) -> bool:
    return any(
        str(leaf.identity.get("path")) == name or str(leaf.path) == name
        for leaf in (source, *_leaves(source))
    )


def _leaves(source: Source) -> list[Source]:
    """The sources that a view is made of; any other source alone."""
    return list(source.sources) if isinstance(source, LayerView) else [source]


def _place(source: Source) -> Path:
    """Where a source's tokenizer is: beside the adapter that is added to a model if it has one, else beside the model."""
    while isinstance(source, SourceView):
        source = source.inner
    added = source.adapter.path if isinstance(source, SumSource) else None
    return added if added is not None and added.is_dir() and has_tokenizer(added) else source.path


def _next(tokens: Tokens) -> int:
    return max(tokens.values(), default=-1) + 1


def _padded(rows: int, multiple: int | None) -> int:
    return rows if not multiple else -(-rows // multiple) * multiple


def _described(folder: Path | None) -> dict[str, Mapping[str, Any]]:
    """How a tokenizer describes its added tokens."""
    if folder is None or not (folder / "tokenizer.json").is_file():
        return {}
    content = store.read_json(folder / "tokenizer.json")
    added = content.get("added_tokens") if isinstance(content, Mapping) else None
    return {str(one["content"]): one for one in added or () if isinstance(one, Mapping) and "content" in one}


def with_tokens(folder: Path, target: Path, extra: Mapping[str, Mapping[str, Any]], ids: Tokens) -> None:
    """Add tokens to the tokenizer in `target`, which was copied from `folder`.

    Raises:
        StoreError: it has no tokenizer.json, which alone can be added to, or gives a token another id.
        MissingExtraError: the tokenizers library is not there.
    """
    file = target / "tokenizer.json"
    if not file.is_file():
        raise StoreError(
            f"{folder} has no tokenizer.json, and {len(extra)} tokens have to be added to its tokenizer. Save it with a "
            "fast tokenizer: `AutoTokenizer.from_pretrained(dir).save_pretrained(dir)` in transformers."
        )
    library = require_extra("tokenizers", "transformers", "adding tokens to a tokenizer")
    tokenizer = library.Tokenizer.from_str(file.read_text(encoding="utf-8"))
    for token, how in extra.items():
        flags = {
            key: bool(how[key]) for key in ("single_word", "lstrip", "rstrip", "normalized") if key in how
        }
        added = library.AddedToken(token, special=bool(how.get("special", False)), **flags)
        (tokenizer.add_special_tokens if how.get("special") else tokenizer.add_tokens)([added])
        if tokenizer.token_to_id(token) != ids[token]:
            raise StoreError(
                f"{folder}: the token {token!r} gets the id {tokenizer.token_to_id(token)}, and its row is "
                f"{ids[token]}: the vocabulary has gaps. Fill them first: `resize_token_embeddings` in transformers."
            )
    text = json.dumps(json.loads(tokenizer.to_str()), ensure_ascii=False, indent=2)
    store.write_text(file, text + "\n")


def with_rows(config: Mapping[str, Any], rows: int) -> dict[str, Any]:
    """A configuration whose vocabulary has so many rows."""
    changed = dict(config)
    for key in ("text_config", "decoder", "encoder"):
        inner = config.get(key)
        if isinstance(inner, Mapping) and "vocab_size" in inner:
            changed[key] = {**inner, "vocab_size": rows}
    if "vocab_size" in config or changed == dict(config):
        changed["vocab_size"] = rows
    return changed
