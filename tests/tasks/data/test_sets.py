"""The catalog of data sets: what the protocol says of them, and how strictly a description is read."""

import pytest

from tauspan.core.errors import DataError, RecipeError
from tauspan.tasks.data import CONTROL, EIGHT, FOURTEEN, TWENTY, DataSet, catalog, find_set
from tauspan.tasks.data.classes import key

# name: templates, classes, epochs, rows of train, validation and test
PROTOCOL = {
    "cars": (8, 196, 35, 7330, 814, 8041),
    "dtd": (8, 47, 76, 3384, 376, 1880),
    "eurosat": (3, 10, 12, 21600, 2700, 2700),
    "gtsrb": (3, 43, 11, 23976, 2664, 12630),
    "mnist": (1, 10, 5, 55000, 5000, 10000),
    "resisc45": (18, 45, 15, 17010, 1890, 6300),
    "sun397": (2, 397, 14, 17865, 1985, 19850),
    "svhn": (1, 10, 4, 68257, 5000, 26032),
    "imagenet": (80, 1000, None, 1276167, 5000, 50000),
}
MINIMAL = {
    "name": "toy", "title": "Toy", "hub": "{id: org/toy}", "class_count": "2", "classes": "[cat, dog]",
    "templates": "['a photo of a {}.']", "source": "here", "licence": "MIT",
    "sizes": "{train: 8, validation: 2, test: 4}", "download_gb": "0.1",
}  # fmt: skip


def write(tmp_path, **changes):
    """A description with some of its lines changed; None leaves one out."""
    lines = [f"{key}: {value}" for key, value in (MINIMAL | changes).items() if value is not None]
    (tmp_path / "toy.yaml").write_text("\n".join(lines) + "\n")
    return tmp_path / "toy.yaml"


@pytest.mark.parametrize("name", PROTOCOL)
def test_a_data_set_is_as_the_protocol_says(name):
    one = catalog()[name]
    sizes = (one.sizes.train, one.sizes.validation, one.sizes.test)
    assert (len(one.templates), one.class_count, one.paper_epochs, *sizes) == PROTOCOL[name]
    assert len(one.classes) == one.class_count


def test_the_catalog_holds_the_three_suites_and_the_control():
    assert (len(EIGHT), len(FOURTEEN), len(TWENTY)) == (8, 14, 20)
    assert set(catalog()) == {*TWENTY, CONTROL}
    assert set(EIGHT) < set(FOURTEEN) < set(TWENTY)
    assert all(name == one.name for name, one in catalog().items())


def test_validation_is_a_tenth_of_train_and_at_most_5000_except_where_it_is_the_data_s_own():
    for name, one in catalog().items():
        whole = one.sizes.train + one.sizes.validation
        own = one.splits.validation is not None
        assert own == (name == "eurosat")
        assert own or one.sizes.validation == min(whole // 10, 5000), name


def test_class_names_tell_classes_apart_but_for_those_that_go_by_order():
    for name, one in catalog().items():
        spelled = {key(found) for found in one.classes}
        assert "" not in spelled
        assert one.match == "order" or len(spelled) == one.class_count, name


def test_the_control_says_which_split_is_which():
    assert {name for name, one in catalog().items() if one.control_split} == {CONTROL}
    assert "official validation" in catalog()[CONTROL].control_split
    assert catalog()[CONTROL].hub.splits.test == "validation"


def test_an_unknown_name_gets_the_nearest():
    with pytest.raises(DataError, match=r"no data set 'eurosta'\. Did you mean 'eurosat'"):
        find_set("eurosta")


def test_a_description_is_read(tmp_path):
    one = DataSet.read(write(tmp_path))
    assert (one.classes, one.splits.train, one.columns.image) == (("cat", "dog"), "train", "image")
    assert (one.near, one.paper_epochs, one.rename) == (None, None, {})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"titel": "x"}, r"toy\.yaml, line 11: unknown key 'titel'\. Did you mean 'title'"),
        ({"licence": None}, r"toy\.yaml: licence is missing"),
        ({"class_count": "3"}, r"class_count is 3, and classes has 2 names"),
        (
            {"templates": "['a photo of a {}.', 'a photo.']"},
            r"the template 'a photo\.' needs exactly one \{\}",
        ),
        ({"templates": "['a {x}{}']"}, r"needs exactly one \{\}"),
        ({"rename": "{Kitty: cta}"}, r"rename gives 'Kitty' the name 'cta'\. Did you mean 'cat'"),
        ({"splits": "{train: ../train}"}, r"line 11: splits\.train is '\.\./train': a name of letters"),
        ({"splits": "{test: /etc/passwd}"}, r"line 11: splits\.test is '/etc/passwd'"),
        ({"splits": "{train: ..}"}, r"splits\.train is '\.\.'"),
        ({"name": "../toy"}, r"line 1: name is '\.\./toy'"),
        ({"hub": "{id: ../../toy}"}, r"line 3: hub\.id is '\.\./\.\./toy': a hub id has the form OWNER/NAME"),
        ({"hub": "{id: org/toy, config: a/b}"}, r"line 3: hub\.config is 'a/b'"),
        ({"near": "9"}, r"near is 9: a distance of 0 to 8"),
        (
            {"sizes": "{train: 8, validation: 2, test: many}"},
            r"line 9: sizes\.test is 'many', and must be a whole number",
        ),
        ({"match": "places"}, r"match is 'places'"),
    ],
)
def test_what_does_not_belong_into_a_description_is_refused_with_its_line(tmp_path, changes, message):
    with pytest.raises(RecipeError, match=message):
        DataSet.read(write(tmp_path, **changes))
