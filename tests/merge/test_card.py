"""The card of a merge: what it says, that it is read back, and that the merge it describes can be made again."""

import json
from pathlib import Path

import pytest
import torch
import yaml

from tauspan.core.errors import MismatchError, RecipeError, StoreError
from tauspan.merge import parse_recipe
from tauspan.merge.stream.card import FILE, Card
from tauspan.merge.stream.files import merge_files
from tauspan.merge.stream.reproduce import reproduce
from tauspan.store import write_tensors


def model(folder: Path, name: str, value: float, licence: str | None = None, text: str | None = None) -> Path:
    """A directory with weights and, if a licence or a text is given, a card."""
    here = folder / name
    here.mkdir()
    write_tensors(here / "model.safetensors", {"w": torch.arange(6.0).view(2, 3) * value, "b": torch.ones(2)})
    (here / "config.json").write_text(json.dumps({"model_type": "x", "torch_dtype": "float32"}))
    if licence is not None:
        text = f"---\nlicense: {licence}\n---\n# {name}\n"
    if text is not None:
        (here / FILE).write_text(text)
    return here


def merged(folder: Path, *licences: str | None, more: str = "") -> Path:
    """A merge of two models with a base, whose cards state the licences."""
    stated = [*licences, *[None] * (3 - len(licences))]
    base, a, b = (model(folder, n, v, c) for n, v, c in zip("bac", (1.0, 2.0, 3.0), stated, strict=True))
    text = f"method: ties\nbase_model: {base}\nmodels:\n- {{model: {a}, parameters: {{weight: 0.3}}}}\n"
    text += f"- {{model: {b}}}\n{more}"
    merge_files(parse_recipe(text), folder / "out")
    return folder / "out"


def front(out: Path) -> dict[str, object]:
    found = yaml.safe_load((out / FILE).read_text().split("---\n")[1])
    assert isinstance(found, dict)
    return found


def test_a_card_says_what_the_hub_wants_to_know(tmp_path: Path) -> None:
    out = merged(tmp_path, "mit", "mit", "mit")
    assert front(out) == {
        "library_name": "transformers",
        "tags": ["merge", "task-arithmetic", "tauspan"],
        "license": "mit",
    }
    text = (out / FILE).read_text()
    assert text.startswith("---\n")
    assert "\n# out\n" in text
    for words in ("| b | base | mit |", "| a | merged | mit |", "Yadav", "## Precision", "## Reproduction"):
        assert words in text


@pytest.mark.parametrize(
    ("licences", "expected"),
    [
        (
            ("mit", "mit", "apache-2.0"),
            {"license": "other", "license_name": "parents", "license_link": "#models"},
        ),
        (("mit", "mit", None), {"license": "other", "license_name": "parents", "license_link": "#models"}),
        ((None, None, None), {}),
    ],
)
def test_licences_that_differ_are_listed(
    tmp_path: Path, licences: tuple[str | None, ...], expected: dict[str, str]
) -> None:
    out = merged(tmp_path, *licences)
    assert {key: value for key, value in front(out).items() if key.startswith("license")} == expected
    assert f"| c | merged | {licences[2] or 'not stated'} |" in (out / FILE).read_text()


@pytest.mark.parametrize(
    "text",
    ["---\n{\n---\n", "---\nlicense: [mit]\n---\n", "---\n- a\n---\n", "plain", "---\nlicense: 3\n---\n"],
)
def test_a_parents_odd_card_states_no_licence(tmp_path: Path, text: str) -> None:
    a = model(tmp_path, "a", 1.0, text=text)
    merge_files(parse_recipe(f"method: linear\nmodels: [{{model: {a}}}]\n"), tmp_path / "out")
    assert "| a | merged | not stated |" in (tmp_path / "out" / FILE).read_text()


def test_hub_ids_stand_in_the_front_matter_and_are_pinned_to_commits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a network: the hub's cache as it lies on the disk, found under the id."""
    commit = "c" * 40
    snapshots = tmp_path / "hub" / "models--org--name" / "snapshots"
    snapshots.mkdir(parents=True)
    model(snapshots, commit, 2.0)
    monkeypatch.setattr("tauspan.models.sources._from_hub", lambda *_: snapshots / commit)
    recipe = parse_recipe("method: linear\nmodels: [{model: org/name}]\n")
    merge_files(recipe, tmp_path / "out")
    assert front(tmp_path / "out")["base_model"] == ["org/name"]
    assert front(tmp_path / "out")["base_model_relation"] == "merge"
    assert Card.read(tmp_path / "out").recipe.models[0].model == f"org/name@{commit}"


def test_a_card_is_read_back(tmp_path: Path) -> None:
    out = merged(tmp_path, more="parameters: {weight: [{filter: w, value: 0.5}]}\nseed: 3\n")
    card = Card.read(out)
    assert card == Card.read(out / FILE)
    assert card.recipe.models[0].parameters == {"weight": 0.3}
    assert card.recipe.resolved() == card.recipe
    assert (card.recipe.seed, len(card.digest), len(card.inputs)) == (3, 64, 3)


def test_a_merge_is_made_again_bit_for_bit(tmp_path: Path) -> None:
    out = merged(tmp_path)
    for path, target in ((out, None), (out / FILE, None), (out, tmp_path / "again")):
        report = reproduce(path, target, workers=1, access="pread")
        assert report.digest == Card.read(out).digest
    weights = [(folder / "model.safetensors").read_bytes() for folder in (out, tmp_path / "again")]
    assert weights[0] == weights[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "again", "b", "c", "out"]
    with pytest.raises(StoreError, match="again"):
        reproduce(out, tmp_path / "again")


def test_a_difference_is_named(tmp_path: Path) -> None:
    out = merged(tmp_path)
    original = (out / "model.safetensors").read_bytes()
    (out / "model.safetensors").write_bytes(original[:-4] + b"\0\0\0\x40")
    with pytest.raises(MismatchError, match=r"as the card says.*: w\. The files of .*out were altered after"):
        reproduce(out)
    (out / "model.safetensors").write_bytes(original)
    write_tensors(tmp_path / "a" / "model.safetensors", {"w": torch.full((2, 3), 9.0), "b": torch.ones(2)})
    with pytest.raises(MismatchError, match=r"are the same.*an input's values changed, or the program did"):
        reproduce(out / FILE)
    other = {"w": torch.full((2, 3), 9.0), "b": torch.ones(2)}
    write_tensors(tmp_path / "a" / "model.safetensors", other, {"format": "pt", "more": "x"})
    text = (out / FILE).read_text()
    (out / FILE).write_text(text.replace('"numpy": "', '"numpy": "0.'))
    with pytest.raises(
        MismatchError, match=rf"Inputs that changed: {tmp_path}/a\..*Versions that changed: numpy 0\.\d"
    ):
        reproduce(out / FILE)


SPOILT = {
    "nothing": lambda text: "",
    "no facts": lambda text: text.partition("## Reproduction")[0],
    "no recipe": lambda text: text.replace("```yaml", "```text"),
    "facts that are no JSON": lambda text: text.replace('"format"', "format"),
    "facts that are a list": lambda text: text[: text.index("```json")] + "```json\n[]\n```\n",
    "another format": lambda text: text.replace("tauspan-merge-card/1", "tauspan-merge-card/9"),
    "inputs that are numbers": lambda text: text.replace('"inputs": [', '"inputs": [3,'),
    "a block of text": lambda text: text.replace('"block": ', '"block": "x", "bock": '),
}


@pytest.mark.parametrize("case", SPOILT)
def test_what_is_no_card_is_an_error(tmp_path: Path, case: str) -> None:
    out = merged(tmp_path)
    (out / FILE).write_text(SPOILT[case]((out / FILE).read_text()))
    with pytest.raises(
        StoreError, match=r"README\.md is no card of a merge .*Take the card that the merge wrote"
    ):
        reproduce(out)


def test_cards_that_cannot_be_read_or_hold_a_bad_recipe(tmp_path: Path) -> None:
    out = merged(tmp_path)
    text = (out / FILE).read_text()
    (out / FILE).write_text(text.replace("seed: 0", "sead: 0"))
    with pytest.raises(RecipeError, match=r"the recipe in .*README\.md, line \d+: unknown key 'sead'"):
        Card.read(out)
    (out / FILE).write_bytes(b"\xff\xfe")
    for path in (out, tmp_path / "nowhere"):
        with pytest.raises(StoreError, match="cannot be read as a card"):
            Card.read(path)
