"""The parser's own behaviour: no shortened options, a default in each help text, and the nearest name after a slip."""

import argparse
import difflib
import sys
from collections.abc import Iterable
from typing import Any, Never

from tauspan.core.errors import nearest


class Help(argparse.HelpFormatter):
    """Adds its default to the help of each option, unless the text contains it."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        shown = action.help or ""
        said = "default" in shown or not action.option_strings
        none = action.default is None or action.default is False or action.default == argparse.SUPPRESS
        return shown if said or none else f"{shown} (default: %(default)s)"


class Parser(argparse.ArgumentParser):
    """A parser that accepts no abbreviated options, so that an option that is added never changes a script's meaning.

    An unknown verb, option or choice is refused with the nearest known one.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=Help, **options)
        self._words: list[str] = []  # of the line that is being read

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """The parsed line; options that the parser does not have are refused here, where it is known which it has."""
        self._words = list(sys.argv[1:] if args is None else args)
        found, unknown = super().parse_known_args(self._words, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return found, unknown

    def error(self, message: str) -> Never:
        """End with what the verb takes, in a line, and the message; where an option is unknown, also with the nearest."""
        if message.startswith(("unrecognized arguments", "the following arguments are required")):
            message = " ".join([f"{message}.", *dict.fromkeys(map(self._told, self._unknown()))])
        usage = self._get_formatter()
        usage.add_usage(None, self._get_positional_actions(), [])
        self.exit(2, f"{usage.format_help().strip()} [options]\n{self.prog}: error: {message}\n")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            raise argparse.ArgumentError(
                action, f"invalid choice: {value!r}. {nearest(str(value), map(str, action.choices))}"
            )

    def _unknown(self) -> Iterable[str]:
        """The words of the line that look like options and are none of this parser's; those of a verb are not seen."""
        known = self._option_string_actions
        for word in self._words:
            name = word.partition("=")[0]
            if word == "--" or (self._subparsers is not None and not word.startswith("-")):
                return
            if word.startswith("--") and name not in known:
                yield name

    def _told(self, option: str) -> str:
        """What to write in place of an unknown option."""
        names = {name.lstrip("-"): name for name in self._option_string_actions if name.startswith("--")}
        close = difflib.get_close_matches(option.lstrip("-"), names, n=1, cutoff=0.6)
        if close:
            return f"Did you mean {names[close[0]]} in place of {option}?"
        if self._subparsers is not None:
            return f"Options stand after the verb, as in `{self.prog} VERB {option}`."
        return f"`{self.prog} --help` lists the options."
