"""The built template: its places, its policy, its size; and that `web/` builds it to the byte."""

import base64
import hashlib
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from benchmarks.desk_pages import TEMPLATE

WEB = Path(__file__).parents[3] / "web"
TEXT = TEMPLATE.read_text(encoding="utf-8")
PLACES = [
    '<script type="application/json" id="desk-data">__DESK_DATA__</script>',
    '<script type="text/plain" id="desk-numbers">__DESK_NUMBERS__</script>',
    '<script type="text/plain" id="desk-texts">__DESK_TEXTS__</script>',
    "<title>__DESK_TITLE__</title>",
]
BUILDS = pytest.mark.skipif(
    not (shutil.which("node") and (WEB / "node_modules").exists()),
    reason="needs node and the packages of web/: npm ci in web/",
)


def elements(name):
    return re.findall(rf"<{name}>(.*?)</{name}>", TEXT, re.DOTALL)


@pytest.mark.parametrize("place", PLACES)
def test_each_place_is_there_once(place):
    assert TEXT.count(place) == 1
    assert TEXT.count(re.search("__DESK_[A-Z]+__", place)[0]) == 1


def test_the_policy_allows_the_pages_own_script_and_style_alone():
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', TEXT)
    directives = dict(line.split(" ", 1) for line in policy.split("; "))
    assert directives.pop("default-src") == "'none'"
    assert directives.pop("img-src") == "data: blob:"
    for name, key in (("script", "script-src"), ("style", "style-src")):
        (content,) = elements(name)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert directives.pop(key) == f"'sha256-{digest}'"
    assert directives == {
        "base-uri": "'none'",
        "form-action": "'none'",
        "require-trusted-types-for": "'script'",
    }
    assert TEXT.index("Content-Security-Policy") < TEXT.index("<style>")


def test_the_template_and_its_script_are_small():
    assert len(TEXT.encode()) <= 80_000
    assert len(elements("script")[0].encode()) <= 60_000


def test_nothing_is_loaded_from_anywhere():
    assert not re.search(r"<(link|iframe|object|embed|img|script[^>]* src)\b", TEXT)
    assert set(re.findall(r"https?://[^\s\"'`)]+", TEXT)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xhtml",
        "http://www.w3.org/1998/Math/MathML",
    }


@pytest.mark.slow
@BUILDS
def test_the_source_builds_the_template_to_the_byte(tmp_path):
    out = tmp_path / "page.html"
    subprocess.run(["node", str(WEB / "build.mjs"), str(out)], check=True, capture_output=True)
    assert out.read_bytes() == TEMPLATE.read_bytes()


@pytest.mark.slow
@BUILDS
def test_the_source_has_the_types_it_says():
    subprocess.run([str(WEB / "node_modules/.bin/tsc"), "-p", str(WEB)], check=True, capture_output=True)
