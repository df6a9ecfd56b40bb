"""What docstrings say of arguments, however Python keeps them."""

import inspect
import textwrap
from dataclasses import dataclass

import pytest

from tauspan.core.docstrings import documented
from tauspan.train import Settings


@dataclass
class _Lower:
    """A class.

    Args:
        first, second: two at once.
        third: which goes on
            in another line: with a colon.

    Raises:
        ValueError: never.
    """


class _Upper(_Lower):
    """Another one.

    Args:
        third: its own.
    """


class _Silent(_Upper):
    pass


SAID = {
    "first": "two at once.",
    "second": "two at once.",
    "third": "which goes on in another line: with a colon.",
}


@pytest.mark.parametrize("kept", [inspect.cleandoc, textwrap.dedent, str])
def test_the_indentation_that_python_keeps_does_not_matter(
    kept: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From 3.13 on the compiler strips it."""
    assert callable(kept)
    monkeypatch.setattr(_Lower, "__doc__", kept(_Lower.__doc__))
    assert documented(_Lower) == SAID


def test_a_class_without_a_text_of_its_own_has_that_of_its_bases() -> None:
    assert documented(_Upper) == documented(_Silent) == {**SAID, "third": "its own."}
    assert documented(object) == {}


def test_every_setting_is_described() -> None:
    assert set(documented(Settings)) == set(Settings.__dataclass_fields__)
