"""The file of a task vector: its header and its path."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tauspan import store
from tauspan.core.choices import REGIMES, Regime
from tauspan.core.errors import StoreError

FORMAT = "tauspan-vector/1"
SMALL = "tauspan-vector/2"  # the numbers of a small space, which are no tensors of the base
FILE = "vector.safetensors"


def header(
    base: str, regime: Regime, label: str, info: Mapping[str, Any], space: Mapping[str, Any] | None = None
) -> dict[str, str]:
    """The metadata of a task-vector file, which `parse_header` reads."""
    content = {"format": FORMAT, "base": base, "regime": regime, "label": label, "info": info}
    content |= {} if space is None else {"format": SMALL, "space": space}
    return {"tauspan": json.dumps(content, sort_keys=True)}


def parse_header(text: str | None, file: Path, small: bool = False) -> dict[str, Any]:
    """The header of a task-vector file, checked.

    Args:
        text: as the file has it.
        file: for messages.
        small: a vector of a small space will do; else it must hold whole tensors.

    Raises:
        StoreError: no header, or one that is not of this format.
    """
    if text is None:
        raise StoreError(
            f"{file} is a safetensors file without a task vector's header. If it holds a model's weights, make a "
            f"vector of it: `tauspan vector diff BASE {file} -o OUT`."
        )
    try:
        header = json.loads(text)
    except json.JSONDecodeError as error:
        raise StoreError(f"the header of {file} is not JSON: {error}.") from error
    wanted: dict[str, Callable[[Any], bool]] = {
        "format": lambda value: value == FORMAT or (value == SMALL and isinstance(header.get("space"), dict)),
        "base": lambda value: isinstance(value, str),
        "regime": lambda value: value in REGIMES,
        "label": lambda value: isinstance(value, str),
        "info": lambda value: isinstance(value, dict),
    }
    for key, fits in wanted.items():
        if not isinstance(header, dict) or key not in header or not fits(header[key]):
            value = header.get(key) if isinstance(header, dict) else header
            raise StoreError(f"the header of {file} has {key}={value!r}; this version reads {FORMAT!r}.")
    if header["format"] == SMALL and not small:
        raise StoreError(
            f"{file} holds the few numbers of a small space ({header['space'].get('word')}), and whole tensors are "
            f"wanted here. Make it whole: `tauspan vector dense BASE {file} -o OUT`."
        )
    result: dict[str, Any] = header
    return result


def vector_file(path: str | Path) -> Path:
    """The file of a vector's path: the path itself, or `vector.safetensors` in that directory."""
    path = Path(path)
    store.refuse_pickle(path)
    return path if path.suffix == ".safetensors" else path / FILE


def existing_file(path: str | Path) -> Path:
    """The file of a vector that is to be read.

    Raises:
        StoreError: another file, or the directory of a model.
    """
    path, file = Path(path), vector_file(path)
    if path.is_file() and path != file:
        raise StoreError(
            f"{path} is no task vector, whose file ends in .safetensors: name that file or its folder."
        )
    if path.is_dir() and not file.exists() and any(path.glob("*.safetensors")):
        raise StoreError(
            f"{path} holds weights and no {FILE}. If it is a fine-tuned model, make a vector of it: `tauspan vector diff "
            f"BASE {path} -o OUT`."
        )
    return file
