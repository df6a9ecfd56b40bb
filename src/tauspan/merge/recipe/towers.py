"""The stacks of numbered layers of a model: which one is meant, and where its configuration counts it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tauspan.core.errors import ModelError, listed
from tauspan.merge.engine.settings import outermost, stacks
from tauspan.merge.sources.source import Source, config_of

TEXT = ("text_config", "llm_config", "language_config", "thinker_config")
_IMAGES = ("vision_config", "visual_config", "vit_config")
_TEXT_NAMES = ("language_model", "text_model", "text_decoder", "text", "decoder", "llm")
_IMAGE_NAMES = ("vision_tower", "vision_model", "visual", "vision", "vit")
_COUNTS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers", "depth")
_SIDES = {
    "encoder": ("encoder_layers", "num_encoder_layers", "num_layers", "num_hidden_layers"),
    "decoder": ("decoder_layers", "num_decoder_layers"),
}


@dataclass(frozen=True)
class Towers:
    """The outermost stacks of a model, each with how many layers it has.

    Args:
        stacks: prefix and count, for example `{"model.layers.": 32}`.
        main: the prefix of the one that `slices` means where none is named: the only one, or that of the text; None where
            a model has several of equal rank, such as an encoder and a decoder.
        where: the model, for errors.
        outside: names of the tensors beside the stacks.
    """

    stacks: Mapping[str, int]
    main: str | None
    where: str
    outside: tuple[str, ...] = ()

    @staticmethod
    def of(source: Source) -> "Towers":
        """The stacks that the names of a source's tensors show."""
        numbered = stacks(source.tensors)
        found = {prefix: len(numbered[prefix]) for prefix in sorted(outermost(numbered))}
        several = {prefix: count for prefix, count in found.items() if count > 1} or found
        outside = tuple(
            name for name in source.tensors if all(number(name, stack) is None for stack in several)
        )
        return Towers(several, _main(several, config_of(source.path)), str(source.path), outside)

    def named(self, wanted: str | None) -> str:
        """The prefix of the part of the model that a name means.

        The name is a part of a stack's prefix, mergekit's name of the module, or the name of a part of the model
        without layers, such as a projector. None means the main stack.

        Raises:
            ModelError: nothing has that name, or several stacks have.
        """
        if wanted in (None, "default"):
            if self.main is None:
                raise ModelError(
                    f"layers are taken from a stack of numbered ones, and {self.where} has {self._listed()}. "
                    + (
                        "Say which: `stack`, in the slice; --stack of `tauspan layers`."
                        if self.stacks
                        else "A merge takes it whole, under `models`; `tauspan layers` has nothing to do."
                    )
                )
            return self.main
        asked = str(wanted).strip(".")
        parts = {asked}
        for names in (_TEXT_NAMES, _IMAGE_NAMES):
            parts |= set(names) if asked in names else set()
        exact = [prefix for prefix in self.stacks if _has(prefix, asked)]
        found = exact or [prefix for prefix in self.stacks if any(_has(prefix, part) for part in parts)]
        if not found and asked in _TEXT_NAMES and self.main is not None:
            found = [self.main]
        found = found or self._beside(asked)
        if len(found) != 1:
            raise ModelError(
                f"the stack {wanted!r} of {self.where} is {'none' if not found else listed(found)} of {self._listed()}. "
                "Write a part of the name of one of them."
            )
        return found[0]

    def _beside(self, part: str) -> list[str]:
        """The prefixes of tensors outside the stacks whose names have `part` among their steps."""
        marked = (f".{name}".partition(f".{part}.") for name in self.outside)
        return list(
            dict.fromkeys(f"{before}.{part}.".removeprefix(".") for before, found, _ in marked if found)
        )

    def _listed(self) -> str:
        return listed(self.stacks) or "none"

    def keys(self, stack: str, config: Mapping[str, Any]) -> list[tuple[str, ...]]:
        """Where a configuration says how many layers the stack has, as paths of keys."""
        count = self.stacks[stack]
        if len(self.stacks) == 1:
            places = [(), *((key,) for key in TEXT)]
            return [
                path
                for place in places
                for path in _holding(config, place, (*_COUNTS, *_SIDES["encoder"]), count)
            ]
        side = next((side for side in _SIDES if _has(stack, side)), None)
        if side is not None and not any(key in config for key in (*TEXT, *_IMAGES)):
            return _holding(config, (), _SIDES[side], count)
        places = [(key,) for key in (TEXT if stack == self.main else _IMAGES)]
        found = [path for place in places for path in _holding(config, place, _COUNTS, count)]
        return found + (_holding(config, (), _COUNTS, count) if stack == self.main else [])


def _holding(
    config: Mapping[str, Any], place: tuple[str, ...], keys: tuple[str, ...], count: int
) -> list[tuple[str, ...]]:
    inner: Any = config
    for key in place:
        inner = inner.get(key) if isinstance(inner, Mapping) else None
    if not isinstance(inner, Mapping):
        return []
    return [(*place, key) for key in dict.fromkeys(keys) if inner.get(key) == count]


def _main(found: Mapping[str, int], config: Mapping[str, Any]) -> str | None:
    """The stack of the text: the only one, or by its name, or the one that `text_config` counts."""
    if len(found) == 1:
        return next(iter(found))
    text = next((config[key] for key in TEXT if isinstance(config.get(key), Mapping)), None)
    others = any(key in config for key in _IMAGES) or "audio_config" in config
    if text is None and not others:
        return None
    named = [prefix for prefix in found if any(_has(prefix, part) for part in _TEXT_NAMES[:4])]
    if len(named) == 1:
        return named[0]
    plain = [
        prefix for prefix in found if not any(_has(prefix, part) for part in (*_IMAGE_NAMES, "audio_tower"))
    ]
    if len(plain) == 1:
        return plain[0]
    counts = {text.get(key) for key in _COUNTS} if isinstance(text, Mapping) else set()
    counted = [prefix for prefix in found if found[prefix] in counts]
    return counted[0] if len(counted) == 1 else None


def _has(prefix: str, part: str) -> bool:
    """Whether a name, of one or several steps, is among the steps of a prefix."""
    return f".{part}." in f".{prefix}"


def number(name: str, stack: str) -> int | None:
    """The number of a tensor's layer in a stack; None outside it.

    Example:
        >>> number("h.3.w", "h."), number("emb", "h.")
        (3, None)
    """
    text = name[len(stack) :].partition(".")[0]
    return int(text) if name.startswith(stack) and text.isdecimal() else None


def common(name: str, stack: str) -> int:
    """How many first steps a tensor's name and a stack's prefix share."""
    shared = 0
    for mine, theirs in zip(name.split("."), stack.split("."), strict=False):
        if mine != theirs:
            break
        shared += 1
    return shared
