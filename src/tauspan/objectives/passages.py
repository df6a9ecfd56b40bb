"""What models read of a row: a text and which of its tokens are to be predicted, or several inputs."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Passage:
    """A text whose tokens are predicted one after the other, or some of them.

    Args:
        text: all of it.
        spans: where what counts begins and ends, in characters; None where all of it does.
        marked: the text has the model's special tokens itself, as a rendered chat has.

    Example:
        >>> Passage.after("2 + 2 = 4", 8).parts
        ('2 + 2 = ', '4')
    """

    text: str
    spans: tuple[tuple[int, int], ...] | None = None
    marked: bool = False

    @staticmethod
    def after(text: str, prompt: int) -> "Passage":
        """A text of which the first `prompt` characters are given; without any, all of it counts."""
        return Passage(text, ((prompt, len(text)),) if prompt else None)

    @property
    def parts(self) -> tuple[str, str] | None:
        """What is given, and what follows it; None where they are not one after the other."""
        if self.spans is None or len(self.spans) != 1 or self.spans[0][1] != len(self.text):
            return None
        begin = self.spans[0][0]
        return self.text[:begin], self.text[begin:]


@dataclass(frozen=True)
class Cloze:
    """A text of which some tokens are hidden, and predicted from the others.

    Args:
        text: all of it.
        share: about which share of its tokens is hidden; at least one is, and never all.
        seed: with the text and a token's place, it decides whether the token is hidden.
    """

    text: str
    share: float
    seed: int


class Group(tuple[Any, ...]):
    """Several inputs that are one row: texts, images or tensors.

    A model reads each of them by itself, and the row's features are theirs, one after the other.

    Example:
        >>> Group(["a question", "its answer"])
        Group('a question', 'its answer')
    """

    __slots__ = ()

    def __repr__(self) -> str:
        return f"Group({', '.join(map(repr, self))})"
