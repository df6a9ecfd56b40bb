"""From data to the page: the template's places filled, with contents that no parser takes for anything but text."""

import base64
import gzip
import html
import json
import math
import re
from collections.abc import Mapping
from importlib import resources
from typing import Any

from tauspan.core.errors import StoreError

_PLACES = re.compile("__DESK_(?:DATA|NUMBERS|TEXTS|TITLE)__")
_MARKUP = str.maketrans({sign: f"\\u{ord(sign):04x}" for sign in "<>&"})


def template() -> str:
    """The page without contents, which is built from `web/`."""
    return resources.files(__package__).joinpath("page.html").read_text("utf-8")


def as_script(value: Any) -> str:
    r"""JSON that stands in a script element: ASCII alone, and no sign that could end the element or begin another.

    Signs of other alphabets, line separators and the controls that reverse a text's direction are written as escapes.
    NaN and infinity become null.

    Example:
        >>> print(as_script({"name": "</script>", "loss": float("nan")}))
        {"name":"\u003c/script\u003e","loss":null}
    """
    plain = json.dumps(_finite(value), ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return plain.translate(_MARKUP)  # such signs stand only in strings, where an escape means the same


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def as_texts(examples: Mapping[str, Mapping[str, list[str]]]) -> str:
    """Examples as base64 of gzip of JSON, the same bytes each time; empty without any."""
    if not examples:
        return ""
    plain = json.dumps(examples, ensure_ascii=True, separators=(",", ":")).encode("ascii")
    return base64.b64encode(gzip.compress(plain, 9, mtime=0)).decode("ascii")


def filled(title: str, data: Any, numbers: bytes, texts: str, page: str | None = None) -> str:
    """The page: the template with its four places filled, each once; what is filled in is not looked at again.

    Args:
        title: of the window.
        data: what JSON holds.
        numbers: the blob to which `data` has offsets.
        texts: from `as_texts`.
        page: another template; None takes the package's.

    Raises:
        StoreError: the template lacks a place or has it twice.

    Example:
        >>> blank = "<title>__DESK_TITLE__</title>__DESK_DATA__ __DESK_NUMBERS__ __DESK_TEXTS__"
        >>> filled("a < b", {"x": 1}, b"", "", blank)
        '<title>a &lt; b</title>{"x":1}  '
    """
    page = template() if page is None else page
    contents = {
        "__DESK_DATA__": as_script(data),
        "__DESK_NUMBERS__": base64.b64encode(numbers).decode("ascii"),
        "__DESK_TEXTS__": texts,
        "__DESK_TITLE__": html.escape(title).encode("ascii", "xmlcharrefreplace").decode("ascii"),
    }
    found = _PLACES.findall(page)
    if sorted(found) != sorted(contents):
        raise StoreError(
            f"the desk's template has the places {', '.join(found) or 'none'}, and each of "
            f"{', '.join(contents)} is wanted once: install the package again."
        )
    return _PLACES.sub(lambda place: contents[place.group()], page)
