"""A browser for the tests of the page, shared by all of them; they are skipped where there is none."""

import pytest
from benchmarks.desk_browser import browser, missing


@pytest.fixture(scope="session")
def chromium():
    reason = missing()
    if reason:
        pytest.skip(reason)
    with browser() as running:
        yield running
