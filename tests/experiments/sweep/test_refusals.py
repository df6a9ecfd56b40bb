"""Sweeps: what is refused before anything starts."""

from pathlib import Path

import pytest

from helpers.sweeps import quietly
from tauspan.core.errors import NonFiniteError, TauspanError, UsageError
from tauspan.experiments.sweep import Job, sweep
from tauspan.experiments.sweep.worker import function_of, plain

NAMES = [
    "",
    ".",
    "..",
    "../a",
    "a/b",
    "/a",
    "a\\b",
    ".hidden",
    "a\nb",
    "a\0",
    "\x1b[2J",
    "\ud800",
    "x" * 201,
    3,
    None,
]


@pytest.mark.parametrize("name", NAMES)
def test_names_that_are_no_file_names(name):
    with pytest.raises(UsageError, match="name"):
        Job(name, "helpers.sweep_jobs:double", {"number": 1})


@pytest.mark.parametrize("name", ["a", "linear-cars-seed0", "a..b", "Straße 1", "x" * 200, "[red]"])
def test_names_that_are(tmp_path, name):
    assert quietly([Job(name, "helpers.sweep_jobs:double", {"number": 1})], tmp_path) == {name: 2}
    assert (tmp_path / f"{name}.json").is_file()


@pytest.mark.parametrize("second", ["a", "A"])
def test_two_jobs_of_one_name(tmp_path, second):
    jobs = [Job(name, "helpers.sweep_jobs:double", {"number": 1}) for name in ("a", second)]
    with pytest.raises(UsageError, match=f"'a' and '{second}'"):
        quietly(jobs, tmp_path)


@pytest.mark.parametrize(
    "function", ["", "os", "os:", ":path", "os:path:x", "os; x:y", "../os:x", "os:a.b", "1a:b", 7]
)
def test_functions_spelt_otherwise(function):
    with pytest.raises(UsageError, match="'module:function'"):
        Job("a", function)


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        ("no_such_module:run", {}, "No module named 'no_such_module'.*PYTHONPATH"),
        ("helpers.sweep_jobs:doubel", {}, "Did you mean 'double'"),
        ("os:name", {}, "'name' is not a function"),
        (
            "helpers.sweep_jobs:double",
            {},
            r"helpers.sweep_jobs:double\(number.*missing a required argument: 'number'",
        ),
        ("helpers.sweep_jobs:double", {"numer": 1}, "'j'.*numer"),
    ],
)
def test_functions_that_cannot_be_called(tmp_path, place, function, arguments, message):
    jobs = [
        Job("first", "helpers.sweep_jobs:count", {"place": str(place), "name": "b"}),
        Job("j", function, arguments),
    ]
    with pytest.raises(UsageError, match=message):
        quietly(jobs, tmp_path / "out")
    assert not list(place.iterdir())
    assert not (tmp_path / "out").exists()


def test_a_function_of_the_program_itself_is_refused():
    with pytest.raises(UsageError, match="module of its own"):
        Job("a", "__main__:f")


def test_a_module_that_fails_when_imported(tmp_path, monkeypatch):
    (tmp_path / "ends_at_once.py").write_text("raise SystemExit('bye')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UsageError, match="SystemExit: bye"):
        function_of("ends_at_once:f")


def test_a_function_written_in_c_may_not_say_what_it_takes(tmp_path):
    with pytest.raises(TauspanError, match="TypeError"):
        quietly([Job("a", "builtins:max", {"no": 1})], tmp_path, attempts=1)


CIRCLE: list = []
CIRCLE.append(CIRCLE)


@pytest.mark.parametrize(
    ("value", "kind", "message"),
    [
        (object(), UsageError, r"arguments\.v is a object"),
        ({1, 2}, UsageError, r"arguments\.v is a set"),
        ([0, {"x": Path("a")}], UsageError, r"arguments\.v\[1\]\.x is a PosixPath.*str\(path\)"),
        ({2: 3}, UsageError, r"arguments\.v has the key 2.*write '2'"),
        (float("nan"), NonFiniteError, r"arguments\.v is nan"),
        ([float("inf")], NonFiniteError, r"arguments\.v\[0\] is inf"),
        ("\ud800", UsageError, "UTF-8"),
        (CIRCLE, UsageError, "holds itself"),
    ],
)
def test_arguments_that_json_lacks(value, kind, message):
    with pytest.raises(kind, match=message):
        Job("a", "helpers.sweep_jobs:shapes", {"v": value})


def test_arguments_that_are_no_mapping():
    with pytest.raises(UsageError, match="mapping"):
        Job("a", "helpers.sweep_jobs:shapes", [1])


def test_plain_values_lose_their_special_types():
    import numpy as np

    found = plain({"a": np.float64(0.5), "b": True, "c": (1,)}, "it")
    assert found == {"a": 0.5, "b": True, "c": [1]}
    assert type(found["a"]) is float
    assert found["b"] is True


@pytest.mark.parametrize(
    "options", [{"workers": 0}, {"workers": True}, {"workers": 1.5}, {"threads": 0}, {"attempts": 0}]
)
def test_counts_below_one(tmp_path, options):
    (name,) = options
    with pytest.raises(UsageError, match=f"{name}=.*from 1 on|`{name}` is .* and a whole number"):
        sweep([], tmp_path, **options)


def test_an_unknown_backend(tmp_path):
    with pytest.raises(UsageError, match="Did you mean 'processes'"):
        quietly([], tmp_path, backend="proceses")
