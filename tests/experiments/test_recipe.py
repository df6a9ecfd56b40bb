"""Recipes: what they accept, and that every refusal names the file, the line, the key and the repair."""

import dataclasses
import json
import re
import typing
from pathlib import Path
from typing import Any

import pytest
import yaml

from tauspan.core.errors import RecipeError, StoreError
from tauspan.core.schema import Document, documents, visible
from tauspan.experiments.run import (
    PARTS,
    Addition,
    Energies,
    Maps,
    Negation,
    Part,
    Recipe,
    References,
    Rows,
    Training,
)  # fmt: skip
from tauspan.experiments.run.recipe import json_schema
from tauspan.experiments.run.vectors import Finetuning
from tauspan.experiments.shipped import recipe_file, shipped
from tauspan.tasks.data.suite import NAMES
from tauspan.train import Settings

LEAST = "model: minilm\ntasks: [email_spam, movie_sentiment]\n"

REFUSED = {
    "an unknown key": ("modle: a\n", "line 3: unknown key 'modle'. Did you mean 'model'?"),
    "an unknown key below another": (
        "finetune:\n  epochs: 2\n  batchsize: 4\n",
        "line 5: unknown key 'finetune.batchsize'. Did you mean 'batch_size'?",
    ),
    "a key like nothing": ("zzz: 1\n", "line 3: unknown key 'zzz'. Known: "),
    "a key that is a number": ("7: 1\n", "line 3: unknown key '7'"),
    "a word for a number": (
        "finetune: {epochs: two}\n",
        "line 3: finetune.epochs is 'two', and must be a whole number",
    ),
    "a fraction for a whole number": ("max_tokens: 1.5\n", "line 3: max_tokens is 1.5"),
    "yes for a number": (
        "finetune: {epochs: yes}\n",
        "finetune.epochs is yes, which YAML reads as true, and must be a whole number",
    ),
    "one name for a list": ("seeds: 3\n", "line 3: seeds is 3"),
    "a wrong entry of a list": ("seeds: [0, one]\n", "line 3: seeds[1] is 'one', and must be a whole number"),
    "an unknown regime": ("regimes: [linear, lineal]\n", "regimes[1] is 'lineal'"),
    "an unknown point": ("point: output\n", "point is 'output'"),
    "an unknown grid": ("grid: fine\n", "grid is 'fine'"),
    "a truth for a regime": (
        "regimes: [no]\n",
        "line 3: regimes[0] is no, which YAML reads as false, and must be 'standard' or 'posthoc' or 'linear'.",
    ),
    "a truth for a text": (
        "title: off\n",
        "title is off, which YAML reads as false, and must be a text. If it is a text, write "
        "it in quotes: 'off'.",
    ),
    "a date for a text": (
        "title: 2024-01-31\n",
        "title is 2024-01-31, which YAML reads as a date, and must be a text.",
    ),
    "a number for a text": (
        "title: 1e5\n",
        "title is 1e5, and must be a text. If it is a text, write it in quotes: '1e5'.",
    ),
    "a large number for a whole one": (
        "max_tokens: 1e2\n",
        "max_tokens is 1e2, and must be a whole number or null.",
    ),
    "a key that is a truth": ("on: 1\n", "line 3: YAML reads the key on as true"),
    "a value where keys belong": ("rows: 640\n", "line 3: rows needs keys below it, not 640"),
    "nothing where keys belong": ("rows:\n", "line 3: rows needs keys below it, not null"),
    "an empty list": ("seeds: []\n", "seeds: []: it needs at least one entry"),
    "one seed twice": ("seeds: [1, 1]\n", "seeds: [1, 1]: it needs at least one entry and none twice"),
    "no regime and no energy": ("regimes: []\n", "regimes: []: it needs at least one"),
    "no regime where vectors are needed": (
        "regimes: []\nenergy: {}\nreferences: [joint]\n",
        "references needs vectors",
    ),
    "one regime twice": ("regimes: [linear, linear]\n", "none twice"),
    "one key twice": ("seeds: [1]\nseeds: [2]\n", "line 4: the key 'seeds' stands twice, first in line 3"),
    "one key twice below another": (
        "rows: {test: 1, test: 2}\n",
        "line 3: the key 'rows.test' stands twice, first in line 3",
    ),
    "a target that is no task": (
        "negate: {targets: [email_spm]}\n",
        "negate.targets: 'email_spm' is not among the tasks. Did you mean 'email_spam'?",
    ),
    "a floor above one": ("negate: {targets: [email_spam], floor: 1.5}\n", "negate.floor: 1.5"),
    "a floor that is no number": ("negate: {floor: .nan}\n", "negate.floor: nan"),
    "an unknown key of the maps": (
        "disentangle: {pair: all}\n",
        "line 3: unknown key 'disentangle.pair'. Did you mean 'pairs'?",
    ),
    "a word for the pairs": ("disentangle: {pairs: some}\n", "line 3: disentangle.pairs is 'some'"),
    "a pair of one": (
        "disentangle: {pairs: [[email_spam]]}\n",
        "['email_spam']: a pair is two different tasks",
    ),
    "a pair of the same": (
        "disentangle: {pairs: [[email_spam, email_spam]]}\n",
        "['email_spam', 'email_spam']: a pair is two different tasks",
    ),
    "a pair twice": (
        "disentangle: {pairs: [[email_spam, movie_sentiment], [movie_sentiment, email_spam]]}\n",
        "one pair stands twice",
    ),
    "a pair with no task": (
        "disentangle: {pairs: [[email_spam, movie_sentimen]]}\n",
        "disentangle.pairs: 'movie_sentimen' is not among the tasks. Did you mean 'movie_sentiment'?",
    ),
    "a map of a regime that is not run": (
        "regimes: [linear]\ndisentangle: {pairs: all, regimes: [standard]}\n",
        "disentangle.regimes: 'standard' is not among the recipe's regimes, linear.",
    ),
    "maps of no regime": ("disentangle: {pairs: all, regimes: []}\n", "disentangle.regimes: []"),
    "a grid that falls": ("disentangle: {grid: [1, 0]}\n", "disentangle.grid: [1.0, 0.0]: it needs finite"),
    "a grid outside the box": ("disentangle: {grid: [2, 3]}\n", "at least one of them in [0, 1]"),
    "an empty grid of a map": ("disentangle: {grid: []}\n", "disentangle.grid: []"),
    "a grid with infinity": ("disentangle: {grid: [0, .inf]}\n", "disentangle.grid: [0.0, inf]"),
    "one row for a map": ("disentangle: {rows: 1}\n", "disentangle.rows: 1"),
    "epochs of no task": (
        "finetune: {epochs_by_task: {email_spm: 2}}\n",
        "finetune.epochs_by_task: 'email_spm' is not among the tasks. Did you mean 'email_spam'?",
    ),
    "epochs that are no number": (
        "finetune:\n  epochs_by_task:\n    email_spam: few\n",
        "line 5: finetune.epochs_by_task.email_spam is 'few', and must be a whole number",
    ),
    "no epochs": (
        "finetune: {epochs_by_task: {email_spam: 0}}\n",
        "finetune.epochs_by_task.email_spam: 0: it must be at least 1",
    ),
    "epochs of a list": ("finetune: {epochs_by_task: [2]}\n", "finetune.epochs_by_task needs keys below it"),
    "a control that is trained": (
        "negate: {targets: [email_spam], controls: [movie_sentiment]}\n",
        "negate.controls: 'movie_sentiment' is among the tasks, and a control is never trained on",
    ),
    "a control twice": ("negate: {controls: [a, a]}\n", "negate.controls: ['a', 'a']: none may stand twice"),
    "an unknown start": ("start: zero\n", "line 3: start is 'zero'"),
    "an unknown reference": ("references: [joint, atention]\n", "references[1] is 'atention'"),
    "a reference twice": (
        "references: [joint, joint]\n",
        "references: ['joint', 'joint']: none may stand twice",
    ),
    "an unknown head": ("head: prompt\n", "line 3: head is 'prompt'"),
    "an unknown key of the energy": (
        "energy: {eigenfunction: 3}\n",
        "unknown key 'energy.eigenfunction'. Did you mean 'eigenfunctions'?",
    ),
    "no eigenfunction": ("energy: {eigenfunctions: 0}\n", "energy.eigenfunctions: 0: it must be at least 1"),
    "energy of one row": ("energy: {rows: 1}\n", "energy.rows: 1: a kernel says something about 2 rows"),
    "data that are no folder's name": ("data: 3\n", "line 3: data is 3"),
    "a word for the drift": (
        "disentangle: {drift: maybe}\n",
        "disentangle.drift is 'maybe', and must be true or false",
    ),
    "an unknown distance": ("disentangle: {distance: euclidean}\n", "disentangle.distance is 'euclidean'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_recipe_is_refused_with_its_place(case: str) -> None:
    more, words = REFUSED[case]
    with pytest.raises(RecipeError) as caught:
        Recipe.parse(LEAST + more, "mine.yaml")
    assert words in str(caught.value)
    assert "mine.yaml" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("tasks: [email_spam]\n", "model is missing"),
        ("model: minilm\n", "tasks is missing"),
        ("model: minilm\ntasks: []\n", "at least one"),
        ("model: minilm\ntasks: [a, a]\n", "none twice"),
        ("model: minilm\ntasks: [a]\nnegate: {targets: [a]}\n", "at least one other task"),
        ("model: minilm\ntasks: [a]\nenergy: {}\n", "at least one other task as its control"),
        ("model: minilm\ntasks: [a]\ndisentangle: {pairs: all}\n", "a pair needs at least two tasks"),
        ("model: 3\ntasks: [a]\n", "line 1: model is 3, and must be a text"),
        ("model: [minilm\n", "is not YAML"),
        ("a: b: c\n", "is not YAML"),
        ("a: 1\n\x00", "is not YAML"),
        ("a: \x07\n", "is not YAML"),
        ("model: !!python/object:os.system x\n", "is not YAML"),
        ("- model\n", "holds a list, not a mapping"),
        ("", "holds nothing, not a mapping"),
        ("no", "holds no, which YAML reads as false, not a mapping"),
        ("minilm", "holds the text 'minilm', not a mapping"),
        ("a: 1\n---\nb: 2\n", "is not YAML"),
    ],
)
def test_a_text_that_is_no_recipe_is_refused(text: str, words: str) -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe.parse(text, "mine.yaml")
    assert words in str(caught.value)
    assert "mine.yaml" in str(caught.value)


def test_a_recipe_that_is_not_there_or_not_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"there is no recipe .*none\.yaml"):
        Recipe.read(tmp_path / "none.yaml")
    with pytest.raises(StoreError, match="cannot be read: Is a directory"):
        Recipe.read(tmp_path)
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="no text in UTF-8"):
        Recipe.read(tmp_path / "bytes.yaml")


def test_a_short_recipe_gets_the_defaults() -> None:
    made = Recipe.parse(LEAST)
    assert made == Recipe("minilm", ("email_spam", "movie_sentiment"))
    assert made.regimes == ("standard", "posthoc", "linear")
    assert (made.rows, made.finetune, made.parts) == (Rows(), Training(), (Addition(),))


def test_every_value_arrives_in_its_place() -> None:
    text = LEAST + (
        "title: t\nregimes: [linear]\nseeds: [3, 1]\nrows: {train: 5, test: null}\nmax_tokens: 7\n"
        "finetune: {params: [a.*, b], epochs: 2, warmup: 1, lr_linear: 1.0e-4, decay_toward: zero}\n"
        "point: encoder\ngrid: [0, 0.5]\nnegate: {targets: [email_spam], floor: 1}\n"
        "disentangle: {pairs: [[movie_sentiment, email_spam]], grid: [-1, 0.5], regimes: [linear], rows: 9, "
        "distance: probabilities}\n"
    )
    made = Recipe.parse(text)
    assert made == Recipe(
        "minilm", ("email_spam", "movie_sentiment"), "t", ("linear",), (3, 1), Rows(5), 7,
        Training(params=("a.*", "b"), epochs=2, warmup=1.0, lr_linear=1e-4, decay_toward="zero"), "encoder",
        (0.0, 0.5), parts=(
            Negation(("email_spam",), 1.0),
            Maps((("movie_sentiment", "email_spam"),), (-1.0, 0.5), ("linear",), 9, "probabilities"),
        ),
    )  # fmt: skip
    assert isinstance(made.finetune.warmup, float)


def test_the_keys_of_a_reproduction_arrive_in_their_places() -> None:
    text = LEAST + (
        "data: /data\nstart: random\nhead: probe\nreferences: [attention, joint]\n"
        "finetune: {epochs_by_task: {email_spam: 4}}\nnegate: {targets: [email_spam], controls: [imagenet]}\n"
        "energy: {eigenfunctions: 5, rows: 9, outputs: all, params: attention}\ndisentangle: {pairs: all, drift: true}\n"
    )
    made = Recipe.parse(text)
    assert (made.data, made.start, made.head) == ("/data", "random", "probe")
    assert made.part(References) == References(("attention", "joint"))
    assert made.finetune.epochs_by_task == {"email_spam": 4}
    assert made.part(Negation) == Negation(("email_spam",), 0.95, ("imagenet",))
    assert made.part(Energies) == Energies(5, 9, "all", "attention")
    assert made.part(Maps) == Maps("all", drift=True)
    assert [type(part) for part in made.parts] == [Addition, References, Negation, Maps, Energies]
    assert Recipe.parse(LEAST + "energy: {}\n").part(Energies) == Energies(10, 64, "contrast", None)
    assert Recipe.parse(LEAST).part(Energies) is None
    assert Recipe.parse(made.to_yaml()) == made


def test_one_task_with_a_control_can_be_negated() -> None:
    text = "model: minilm\ntasks: [a]\nnegate: {targets: [a], controls: [b]}\n"
    assert Recipe.parse(text).controls == ("b",)


def test_a_recipe_survives_being_written_out_and_read_again() -> None:
    def plain(value: object) -> object:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, tuple) else value

    made = Recipe.read(shipped()["demo"])
    assert Recipe.parse(yaml.safe_dump(plain(made.as_dict()))) == made


ELSEWHERE = {"regime", "seed", "point", "lr", "max_tokens", "engine", "check"}


def test_a_recipe_sets_every_setting_that_it_does_not_say_elsewhere() -> None:
    settings = {field.name: field.default for field in dataclasses.fields(Settings)}
    ours = {field.name: field.default for field in visible(Training)}
    own = {name: ours.pop(name) for name in ("lr_standard", "lr_linear", "epochs_by_task")}
    assert own["lr_standard"] is own["lr_linear"] is None
    assert ours == {name: value for name, value in settings.items() if name not in ELSEWHERE}


def test_every_setting_reaches_the_vectors_that_it_is_for() -> None:
    own = (
        "cache: primal, precision: tf32, accumulation: 2, lr_standard: 0.5, epochs_by_task: {email_spam: 4}, "
    )
    own += "lr_multipliers: {'*.bias': 2}"
    tuned = f"finetune: {{{own}}}"
    made = Recipe.parse(f"{LEAST}{tuned}\nmax_tokens: 9\npoint: encoder\n")
    linear = made.settings(Finetuning("linear", "email_spam", 3))
    assert linear == Settings(
        "linear", 3, point="encoder", epochs=4, accumulation=2, max_tokens=9, cache="primal", precision="tf32",
        lr_multipliers={"*.bias": 2.0},
    )  # fmt: skip
    attention = made.settings(Finetuning("attention", "movie_sentiment", 0))
    assert attention == Settings(
        "standard", 0, "attention", accumulation=2, lr=0.5, max_tokens=9, precision="tf32",
        lr_multipliers={"*.bias": 2.0},
    )  # fmt: skip
    assert Recipe.parse(made.to_yaml()) == made


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("finetune: {epochs: 0}", "finetune.epochs=0: it must be a whole number, at least 1"),
        ("finetune: {lr_standard: -1}", "lr=-1.0: it must be above 0"),
        ("finetune: {cache: factor}", "finetune.cache is 'factor', and must be"),
        ("finetune: {cache: primal, augment: crop}", "a cache keeps what a batch gave"),
        ("finetune: {cache: primal}\nregimes: [standard]", "only vectors of the regime linear have one"),
        ("finetune: {seed: 3}", "unknown key 'finetune.seed'"),
        ("finetune: {lr: 0.1}", "unknown key 'finetune.lr'"),
    ],
)
def test_settings_are_refused_with_their_place(text: str, words: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(words)) as caught:
        Recipe.parse(f"{LEAST}{text}\n", "mine.yaml")
    assert "mine.yaml" in str(caught.value)


FORMATS = (Path(__file__).parents[2] / "docs" / "formats.md").read_text("utf-8")


@pytest.mark.parametrize("part", PARTS)
def test_the_page_of_formats_names_every_key_of_every_part(part: type[Part]) -> None:
    names = [f"{part.key}.{field.name}" for field in visible(part)] if part.hint() is part else [part.key]
    for name in names if part.key else ():
        assert f"`{name}`" in FORMATS


def test_the_page_of_formats_names_every_key_of_a_recipe() -> None:
    keys = [*(field.name for field in dataclasses.fields(Recipe) if field.name not in ("parts", "rows", "finetune")),
            *(f"rows.{field.name}" for field in dataclasses.fields(Rows)),
            *(f"finetune.{field.name}" for field in visible(Training))]  # fmt: skip
    assert [key for key in keys if f"`{key}`" not in FORMATS] == []


@pytest.mark.parametrize("name", shipped())
def test_a_shipped_recipe_is_whole(name: str) -> None:
    recipe = Recipe.read(recipe_file(name))
    assert recipe.model == "minilm"
    assert set(recipe.tasks) <= set(NAMES)
    assert set((recipe.part(Negation) or Negation()).targets) < set(recipe.tasks)


def test_a_path_that_ends_as_a_shipped_recipe_is_named_says_how_to_run_that() -> None:
    with pytest.raises(StoreError, match=r"no recipe recipes/demo.yaml; .*: `tauspan run demo`"):
        recipe_file("recipes/demo.yaml")


def test_the_demo_maps_the_standard_and_the_linear_regime() -> None:
    recipe = Recipe.read(shipped()["demo"])
    maps = recipe.part(Maps)
    assert maps is not None
    assert (maps.regimes or recipe.regimes) == ("standard", "linear")
    assert maps.grid is not None
    assert {0.0, 1.0} <= set(maps.grid)


@pytest.mark.parametrize("above", ["%YAML 1.1\n", "# mine\n", "\n%YAML 1.1\n# mine\n"])
def test_directives_and_comments_may_stand_above_a_document(above: str, tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(f"{above}---\nmodel: minilm\n---\nmodel: other\n")
    assert [document.plain for document in documents(file)] == [{"model": "minilm"}, {"model": "other"}]


def test_a_key_that_is_a_list_is_refused() -> None:
    with pytest.raises(RecipeError, match="line 1: a key is a name"):
        Recipe.parse("? [a]\n: 2\n")


# -- numbers and words as people write them ---------------------------------------------------------------------


@pytest.mark.parametrize("text", ["1e-4", "1.0e-4", "1E-4", "0.0001", ".0001", "+1e-4", "1.e-4", "10e-5"])
def test_a_number_may_be_written_in_any_usual_way(text: str) -> None:
    assert Recipe.parse(f"{LEAST}finetune: {{lr_linear: {text}}}\n").finetune.lr_linear == pytest.approx(1e-4)


@pytest.mark.parametrize("text", ["1e", "e4", "1e-4x", "1-4", "1.2.3", "1e4.5", "-e4", "v1e4"])
def test_a_text_that_begins_like_a_number_stays_a_text(text: str) -> None:
    assert Recipe.parse(f"{LEAST}title: {text}\n").title == text


@pytest.mark.parametrize("title", ["1e-4", "no", "1.0e5", "null", "2024-01-31", "a: b", "#", "ü", "1_000"])
def test_a_text_that_looks_like_something_else_is_quoted_where_a_recipe_is_written(title: str) -> None:
    made = dataclasses.replace(Recipe.parse(LEAST), title=title)
    assert Recipe.parse(made.to_yaml()) == made


def _fields(kind: Any, path: str = "") -> typing.Iterator[str]:
    """Every key of a recipe's file, with the keys above it."""
    hints = typing.get_type_hints(kind)
    for field in visible(kind):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            yield from _fields(hint, f"{path}{field.name}.")
        elif field.name != "parts":
            yield path + field.name


KEYS = [
    *_fields(Recipe),
    *(key for part in PARTS if part.key and part.hint() is part for key in _fields(part, f"{part.key}.")),
]


@pytest.mark.parametrize("value", ["{a: {b: no}}", "[[[~]]]", "2024-01-31", "yes", "~"])
@pytest.mark.parametrize("key", KEYS)
def test_no_message_speaks_of_types_of_python(key: str, value: str) -> None:
    try:
        Recipe.of(Document(LEAST, "mine.yaml").with_value(key, value, f"--set {key}={value}"))
    except RecipeError as error:
        words = str(error)
        assert words.startswith(f"--set {key}={value}: {key}")
        assert not re.search(
            r"None|True|False|tuple|dict|Mapping|Sequence|Literal|str\b|datetime|NoneType", words
        ), words


# -- values from elsewhere --------------------------------------------------------------------------------------


def changed(*sets: str, text: str = LEAST + "rows: {train: 640}\nfinetune: {epochs: 3}\n") -> Recipe:
    document = Document(text, "mine.yaml")
    for one in sets:
        key, _, value = one.partition("=")
        document = document.with_value(key, value, f"--set {one}")
    return Recipe.of(document)


def test_values_from_elsewhere_take_the_place_of_those_of_the_file() -> None:
    made = changed(
        "finetune.epochs=2",
        "finetune.lr_linear=1e-4",
        "finetune.epochs_by_task.email_spam=4",
        "rows.test=5",
        "seeds=[1, 2]",
        "regimes=[linear]",
        "negate.targets=[email_spam]",
    )
    assert (made.finetune.epochs, made.rows, made.seeds, made.regimes) == (
        2,
        Rows(640, None, 5),
        (1, 2),
        ("linear",),
    )
    assert made.part(Negation) == Negation(("email_spam",))
    assert (made.finetune.lr_linear, made.finetune.epochs_by_task) == (1e-4, {"email_spam": 4})
    assert changed("rows={test: 5}").rows == Rows(test=5)  # a mapping replaces the file's


@pytest.mark.parametrize(
    ("sets", "words"),
    [
        (["finetune.epochs=two"], "--set finetune.epochs=two: finetune.epochs is 'two', and must be a whole number."),
        (["finetune.epoks=2"], "--set finetune.epoks=2: unknown key 'finetune.epoks'. Did you mean 'epochs'?"),
        (["modle=2"], "--set modle=2: unknown key 'modle'. Did you mean 'model'?"),
        (["seeds=[0, one]"], "--set seeds=[0, one]: seeds[1] is 'one', and must be a whole number."),
        (["title.sub=1"], "--set title.sub=1: title is {'sub': 1}, and must be a text."),
        (["rows=7"], "--set rows=7: rows needs keys below it, not 7."),
        (["rows.train.x=7"], "--set rows.train.x=7: rows.train is 640, which has no keys below it: set it as a whole."),
        (["tasks.0=a"], "--set tasks.0=a: tasks is ['email_spam', 'movie_sentiment'], which has no keys below it"),
        (["seeds=["], "--set seeds=[ is not YAML"),
        (["rows={test: 1, test: 2}"], "--set rows={test: 1, test: 2}: the key 'test' stands twice"),
        (["finetune.epochs=010"], "--set finetune.epochs=010: YAML 1.1 reads 010 in base 8"),
        (["title="], "--set title=: title is null, and must be a text."),
        (["finetune.epochs=-1"], "mine.yaml, line 4: finetune.epochs=-1: it must be a whole number, at least 1. "
                                 "Changed by --set finetune.epochs=-1."),
        (["rows.test=3", "negate.targets=[x]"], "mine.yaml: negate.targets: 'x' is not among the tasks. Known: "
                        "email_spam, movie_sentiment. Changed by --set rows.test=3, --set negate.targets=[x]."),
        (["negate.floor=2"], "--set negate.floor=2: negate.floor: 2.0: it is a share, between 0 and 1."),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_value_from_elsewhere_is_said_of_it(sets: list[str], words: str) -> None:
    with pytest.raises(RecipeError) as caught:
        changed(*sets)
    assert str(caught.value).startswith(words), str(caught.value)


def test_a_value_from_elsewhere_changes_no_alias_and_no_other_document() -> None:
    text = "rows: &r {train: 3}\nfinetune: *r\nmore: {<<: *r, test: 1}\n"
    document = Document(text, "mine.yaml")
    other = document.with_value("rows.train", "5", "--set rows.train=5").with_value(
        "more.train", "6", "--set more.train=6"
    )
    assert document.plain == {"rows": {"train": 3}, "finetune": {"train": 3}, "more": {"train": 3, "test": 1}}
    assert other.plain == {"rows": {"train": 5}, "finetune": {"train": 3}, "more": {"test": 1, "train": 6}}
    assert other.place("finetune", "train") == "mine.yaml, line 1"
    assert other.place("rows", "train") == "--set rows.train=5"
    assert other.place("more", "train") == "--set more.train=6"


# -- the schema for editors -------------------------------------------------------------------------------------

SCHEMA = Path(__file__).parents[2] / "docs" / "run.schema.json"


def test_the_schema_for_editors_is_current() -> None:
    """If not: tauspan run --schema > docs/run.schema.json."""
    assert json.loads(SCHEMA.read_text()) == json.loads(json.dumps(json_schema()))


def test_the_schema_has_every_key_with_a_description() -> None:
    made = json_schema()
    assert set(made["properties"]) == set(Recipe.parse(LEAST).as_dict()) | {
        part.key for part in PARTS if part.key
    }
    tuned = made["properties"]["finetune"]["properties"]
    assert set(tuned) == {field.name for field in visible(Training)}
    assert all(entry.get("description") for entry in (*made["properties"].values(), *tuned.values()))


@pytest.mark.slow
def test_the_schema_takes_what_the_reader_takes_and_refuses_slips() -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="the extra `real` has it")
    check = jsonschema.Draft202012Validator(json_schema())
    for file in shipped().values():
        assert list(check.iter_errors(Document.read(file).plain)) == []
    whole = json.loads(
        json.dumps(changed("negate.targets=[email_spam]", "disentangle.pairs=all", "energy={}").as_dict())
    )
    assert list(check.iter_errors(whole)) == []
    for slip in (
        "modle: a",
        "seeds: 3",
        "regimes: [lineal]",
        "finetune: {epoks: 1}",
        "negate: {floor: high}",
        "rows: 640",
    ):
        assert list(check.iter_errors({**Document(LEAST, "x").plain, **Document(slip, "x").plain})), slip
