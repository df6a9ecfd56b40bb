"""Single values of a recipe, read as people spell them: the method's name, dtypes and sizes."""

import re
from typing import Any

from tauspan.core.errors import RecipeError, nearest
from tauspan.merge.methods.table import METHODS

ARITHMETIC = ("float32", "float64")
RESULT = ("float64", "float32", "float16", "bfloat16")
_SHORT = {"bf16": "bfloat16", "fp16": "float16", "half": "float16", "fp32": "float32", "float": "float32"}
_SHORT |= {"fp64": "float64", "double": "float64"}
_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "TIB": 1 << 40}
_UNITS |= {"K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "B": 10**9}  # B is mergekit's, of billion
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]+)\s*")


def method(name: Any, place: str) -> str:
    """The name of a method of the table, or of code of the user's."""
    if not isinstance(name, str) or (name not in METHODS and ":" not in name):
        raise RecipeError(f"{place}: no merging method {name!r}. {nearest(str(name), METHODS)}")
    return name


def canonical(dtype: str) -> str:
    """The name that torch gives a dtype that people spell in several ways.

    Example:
        >>> canonical("bf16"), canonical("torch.float16"), canonical("int7")
        ('bfloat16', 'float16', 'int7')
    """
    plain = dtype.removeprefix("torch.")
    return _SHORT.get(plain, plain)


def arithmetic(name: Any, place: str) -> str:
    """The dtype of the arithmetic, by its plain name."""
    plain = canonical(str(name))
    if plain in ARITHMETIC:
        return plain
    hint = nearest(plain, ARITHMETIC)
    if plain in RESULT:
        hint = (
            f"It is the arithmetic's: float32 or float64. For the result's dtype write `out_dtype: {plain}`."
        )
    raise RecipeError(f"{place} is {name!r}. {hint}")


def result(name: Any, place: str) -> str | None:
    """The dtype of the result, by its plain name; None for the base's."""
    plain = None if name is None else canonical(str(name))
    if plain is not None and plain not in RESULT:
        raise RecipeError(f"{place} is {name!r}. {nearest(plain, RESULT)}")
    return plain


def require_plain(dtype: str, out_dtype: str | None) -> None:
    """Raise unless both dtypes, given in Python, have their plain names."""
    for key, given, plain in (
        ("dtype", dtype, arithmetic(dtype, "dtype")),
        ("out_dtype", out_dtype, result(out_dtype, "out_dtype")),
    ):
        if given != plain:
            raise RecipeError(f"{key} is {given!r}: write {plain!r}.")


def size_text(text: Any, place: str) -> str:
    """The text of a size, such as `5GB`."""
    if not isinstance(text, str):
        raise RecipeError(f"{place} is {text!r}: write a text such as 5GB.")
    size(text, place)
    return text


def size(text: str, place: str = "shard_size") -> int:
    """Bytes of a size such as `5GB` (in powers of 1000), `2GiB` (of 1024) or mergekit's `5B`, billions of bytes.

    Example:
        >>> size("5GB"), size("5B"), size("1.5 MiB")
        (5000000000, 5000000000, 1572864)
    """
    found = _SIZE.fullmatch(text)
    unit = _UNITS.get(found[2].upper()) if found else None
    nbytes = int(float(found[1]) * unit) if found and unit else 0
    if not nbytes:
        raise RecipeError(
            f"{place} is {text!r}: it is a number with KB, MB, GB or TB, or KiB, MiB, GiB or TiB, for example 5GB."
        )
    return nbytes
