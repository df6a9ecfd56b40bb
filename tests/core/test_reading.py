"""`Reading` refuses what cannot be read."""

from typing import Any

import pytest

from tauspan.core.errors import TauspanError
from tauspan.core.reading import Reading


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"batch_size": 0}, "batch_size=0: it must be a whole number, at least 1"),
        ({"batch_size": True}, "`batch_size` is True"),
        ({"batch_size": 2.5}, "`batch_size` is the number 2.5"),
        ({"max_tokens": 0}, "max_tokens=0"),
        ({"point": "logit"}, "Did you mean 'logits'"),
    ],
)
def test_impossible_readings_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(TauspanError, match=message):
        Reading(**given)


def test_a_point_that_nothing_reads_is_refused() -> None:
    Reading().require_no_point("fit")
    with pytest.raises(TauspanError, match="fit linearises encoder and head together"):
        Reading(point="encoder").require_no_point("fit")
