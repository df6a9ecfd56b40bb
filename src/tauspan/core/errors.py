"""Every error that tauspan raises on purpose, and the exit code the program ends with.

```text
TauspanError                 1
├── UsageError               2   an argument, option or name that does not exist or does not fit
│   ├── ArgumentError        2   a function's argument of a wrong type, or one that it does not take
│   └── RecipeError          2   a recipe with an unknown key, a wrong type or an impossible value
├── ModelError               3   a model that cannot be loaded, or not be linearised as asked
│   └── PickleRefusedError   3   weights in a pickle, which can run code when opened
├── MismatchError            4   two sets of named tensors that do not fit together
│   └── BaseMismatchError    4   a task vector that belongs to another pre-trained model
├── StoreError               5   a file: missing, damaged, already there, not writable, disk full
├── DataError                6   a task: unknown, without rows, labels outside the range
├── NonFiniteError           7   NaN or infinity in weights, gradients or a loss
└── MissingExtraError        8   an optional package that this call needs is not installed
(interrupted by the user   130   KeyboardInterrupt, reported by the program, never wrapped)
```

A message names the object, both values where two disagree, and the repair.
"""

import difflib
from collections.abc import Iterable


class TauspanError(Exception):
    """The base class: `except tauspan.TauspanError` catches every error that tauspan raises on purpose."""

    exit_code = 1


class UsageError(TauspanError, ValueError):
    """An argument, option or name that does not exist or does not fit."""

    exit_code = 2


class ArgumentError(UsageError, TypeError):
    """A function's argument of a type that it does not take, or of a name that it does not have."""


class RecipeError(UsageError):
    """A recipe with an unknown key, a wrong type or an impossible value."""


class ModelError(TauspanError):
    """A model that cannot be loaded, or cannot be linearised as asked."""

    exit_code = 3


class PickleRefusedError(ModelError):
    """Weights in a pickle: opening one can run any code its author chose."""


class MismatchError(TauspanError, ValueError):
    """Two sets of named tensors that do not fit together."""

    exit_code = 4


class BaseMismatchError(MismatchError):
    """A task vector that belongs to another pre-trained model."""


class StoreError(TauspanError, OSError):
    """A file: missing, damaged, already there, not writable, or a full disk."""

    exit_code = 5


class DataError(TauspanError, ValueError):
    """A task: unknown, without rows, or with labels outside its range."""

    exit_code = 6


class NonFiniteError(TauspanError, ArithmeticError):
    """NaN or infinity in weights, gradients or a loss."""

    exit_code = 7


class MissingExtraError(TauspanError, ImportError):
    """An optional package that this call needs is not installed."""

    exit_code = 8


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: `Did you mean ...?`, or the possible names.

    Example:
        >>> nearest("lerning_rate", ["learning_rate", "epochs"])
        "Did you mean 'learning_rate'?"
    """
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if close:
        return f"Did you mean {close[0]!r}?"
    return f"Known: {listed(known, 12)}."


def listed(names: Iterable[str], most: int = 5) -> str:
    """At most `most` names, separated by commas, and how many were left out.

    Example:
        >>> listed(["a", "b", "c"], most=2)
        'a, b and 1 more'
    """
    names = list(names)
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
