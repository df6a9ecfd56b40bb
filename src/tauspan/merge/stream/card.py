"""The model card of a merge: what the hub wants to know, and everything that is needed to make the merge again."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tauspan import store
from tauspan.core.errors import RecipeError, StoreError
from tauspan.core.report import Table, bulleted, versions
from tauspan.merge.engine.engine import meaning
from tauspan.merge.engine.own import source_hash
from tauspan.merge.engine.plugins import origin_of
from tauspan.merge.methods.method import Method
from tauspan.merge.recipe.reading import parse_recipe
from tauspan.merge.recipe.recipe import MergeRecipe, named, places, renamed
from tauspan.merge.sources.source import Source, model_folder
from tauspan.merge.stream.opened import Opened
from tauspan.merge.stream.result import MergeResult

FILE = "README.md"
FORMAT = "tauspan-merge-card/1"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
_LARGEST = 1 << 20  # bytes of a card that is read
_LIBRARY = {"model": "transformers", "vector": "tauspan", "adapter": "peft"}


@dataclass(frozen=True)
class Card:
    """What a card keeps of a merge.

    Args:
        recipe: complete: every option with its value.
        digest: SHA-256 of the result, as `stream.execute` computes it; of an adapter's file of weights.
        block: entries of a block of that merge.
        inputs: identity of each source: the base first, if there is one.
        versions: of what the numbers depend on.
        files: of the result, so that an output is told from a folder that holds something else too.
        places: for each local file, by its path as given, the absolute path.
    """

    recipe: MergeRecipe
    digest: str
    block: int
    inputs: Sequence[Mapping[str, Any]] = ()
    versions: Mapping[str, str] = field(default_factory=versions)
    files: Sequence[str] = ()
    places: Mapping[str, str] = field(default_factory=dict)

    @staticmethod
    def read(path: str | Path) -> "Card":
        """The card in a merged model's directory, or the card itself.

        Raises:
            StoreError: it is not there, or no card of a merge.
            RecipeError: its recipe does not read.
        """
        file = Path(path) / FILE if Path(path).is_dir() else Path(path)
        if file.suffix == ".safetensors":
            raise StoreError(
                f"{file} is a vector's file, and only a directory has a card beside it. The file's header holds the "
                "recipe that made it, under `info.merge.recipe`: merge by it again."
            )
        text = _text(file)
        if text is None:
            raise StoreError(
                f"{file} cannot be read as a card: it is not there, not text, or larger than 1 MiB."
            )
        recipe, facts = _fenced(text, "Recipe", "yaml"), _fenced(text, "Reproduction", "json")
        try:
            kept = json.loads(facts or "")
            if kept["format"] != FORMAT or recipe is None:
                raise ValueError(f"its format is {kept['format']!r}, and must be {FORMAT!r}")
            return Card(
                parse_recipe(recipe, f"the recipe in {file}"),
                str(kept["digest"]),
                int(kept["block"]),
                tuple(map(dict, kept["inputs"])),
                {str(name): str(value) for name, value in kept["versions"].items()},
                tuple(map(str, kept.get("files", ()))),
                {str(name): str(place) for name, place in kept.get("places", {}).items()},
            )
        except RecipeError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise StoreError(
                f"{file} is no card of a merge ({error}): it needs a recipe and the facts that tauspan writes below "
                "`## Reproduction`. Take the card that the merge wrote."
            ) from error


def write(
    folder: Path, opened: Opened, result: MergeResult, block: int, title: str | None = None,
    results: Table | None = None, again: str | None = None,
) -> Card:  # fmt: skip
    """Write the card `README.md` of a merge and return what it keeps.

    Args:
        folder: where the result is made.
        opened: the merge's recipe with its sources.
        result: what the merge wrote.
        block: entries of a block, which the digest depends on.
        title: of the card; the name of the output when None.
        results: accuracies, if there are any.
        again: the sentence about how to make the result again; None where the recipe alone does.
    """
    recipe, sources, inputs = opened.recipe, opened.points, opened.identities()
    files = sorted({FILE, *(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())})
    card = Card(
        pinned(recipe.resolved(), sources), str(result.digest), block, inputs, files=files,
        places=places(recipe),
    )  # fmt: skip
    licences = {source.label: _licence(source) for source in sources}
    note = _CUT if recipe.output == "adapter" else meaning(result.displaced)
    facts = {
        "format": FORMAT,
        "digest": card.digest,
        "block": block,
        "inputs": inputs,
        "versions": card.versions,
        "files": card.files,
        "places": card.places,
    } | _code(recipe, opened.method)
    parts = [
        f"---\n{_front(recipe, licences)}---",
        f"# {title or result.out.name}",
        _origin(card, opened.method),
        _models(opened, licences).to_markdown(),
        f"## Recipe\n\n```yaml\n{card.recipe.to_yaml()}```",
        Table("Precision", [result.precision()], note).to_markdown(),
        *(table.to_markdown() for table in result.kept_table()),
        *([bulleted(result.warnings)] if result.warnings else []),
        *([] if results is None else [results.to_markdown()]),
        f"## Reproduction\n\n{again or _needs_code(recipe) or _REPRODUCTION}",
        f"```json\n{json.dumps(facts, indent=1)}\n```\n",
    ]
    store.write_text(folder / FILE, "\n\n".join(parts))
    return card


_CUT = "norm: of the exact merged displacement; loss: the share of it that the SVD cut off."
_REPRODUCTION = (
    "`tauspan reproduce-card DIRECTORY` makes the merge again from this card and compares it bit for bit."
)


def _needs_code(recipe: MergeRecipe) -> str | None:
    """What to do where the method is code of the user's own or of a package, which the card does not hold."""
    given = None if recipe.own is not None else origin_of(recipe.method)
    if given is not None:
        return (
            f"The method is of the package {given.get('package')} {given.get('version')}. Where it is installed, "
            + (_REPRODUCTION)
        )
    if ":" not in recipe.method:
        return None
    return (
        f"The method is code of its own, `{recipe.method}`, which this card does not hold. Where Python finds it, "
        f"`tauspan reproduce-card DIRECTORY --code {recipe.method}` makes the merge again and compares it bit for bit."
    )


def _code(recipe: MergeRecipe, method: Method) -> dict[str, Any]:
    """Which code the method is, if it is none of `METHODS`."""
    given = origin_of(recipe.method) if recipe.own is None else {}
    return {} if given is None else {"code": {"name": recipe.method, **given, "sha256": source_hash(method)}}


def _front(recipe: MergeRecipe, licences: Mapping[str, str | None]) -> str:
    """The front matter that the hub reads."""
    ids = [name.partition("@")[0] for name in named(recipe) if _is_hub_id(name)]
    front: dict[str, Any] = (
        {"base_model": list(dict.fromkeys(ids)), "base_model_relation": "merge"} if ids else {}
    )
    front |= {"library_name": _LIBRARY[recipe.output], "tags": ["merge", "task-arithmetic", "tauspan"]}
    stated = set(licences.values())
    if len(stated) == 1 and None not in stated:
        front["license"] = stated.pop()
    elif stated - {None}:
        front |= {"license": "other", "license_name": "parents", "license_link": "#models"}
    return yaml.safe_dump(front, sort_keys=False)


def _is_hub_id(name: str) -> bool:
    return _HUB_ID.fullmatch(name) is not None and not Path(name).exists() and not name.startswith(".")


def _origin(card: Card, method: Method) -> str:
    made = f"Made by tauspan {card.versions.get('tauspan', '')}"
    return f"{made}: {method.title} ({method.paper}), {method.formula}."


def _models(opened: Opened, licences: Mapping[str, str | None]) -> Table:
    sources = [(source, "base" if source is opened.base else "merged") for source in opened.points]
    return Table("Models", [
        {"model": source.label, "role": role, "licence": licences[source.label] or "not stated"}
        for source, role in sources
    ])  # fmt: skip


def _licence(source: Source) -> str | None:
    """The licence that a model's own card states."""
    folder = model_folder(source.path)
    text = None if folder is None else _text(folder / FILE)
    found = re.match(r"---\n(.*?)\n---\n", text or "", re.DOTALL)
    if found is None:
        return None
    try:
        front = yaml.safe_load(found[1])
    except Exception:  # a card written by hand may fail in many ways; its licence is then not stated
        return None
    stated = front.get("license") if isinstance(front, Mapping) else None
    return stated if isinstance(stated, str) else None


def _text(file: Path) -> str | None:
    """A small text file's content; None where there is none."""
    try:
        if file.stat().st_size > _LARGEST:
            return None
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None


def _fenced(text: str, section: str, language: str) -> str | None:
    """The first fenced block of a section."""
    found = re.search(rf"^## {section}\n.*?^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return None if found is None else found[1]


def pinned(recipe: MergeRecipe, sources: Sequence[Source]) -> MergeRecipe:
    """The same recipe with each hub id at its commit, whose content does not change."""
    commits = {
        str(source.identity["path"]): str(source.identity["commit"])
        for source in sources
        if "commit" in source.identity and "path" in source.identity
    }

    def pin(name: str) -> str:
        return f"{name.partition('@')[0]}@{commits[name]}" if name in commits and _is_hub_id(name) else name

    return renamed(recipe, pin)
