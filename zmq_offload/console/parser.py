"""The argument parser of all programs: errors of one line, suggestions, `--version`, and help in color."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from zmq_offload.common.suggest import did_you_mean
from zmq_offload.common.version import __version__
from zmq_offload.console.programs import shortened
from zmq_offload.console.terminal import console_of
from zmq_offload.errors import OffloadError

if TYPE_CHECKING:
    from typing import TypeAlias

    from _typeshed import SupportsWrite

    Commands: TypeAlias = "argparse._SubParsersAction[Parser]"

EXAMPLE = "example:\n"
"""How the end of a help text begins. It is printed as it is, so that its commands can be copied."""


class Placed(str):
    """A value that comes from an environment variable or a file, with its place for errors."""

    place: str

    @classmethod
    def of(cls, value: str, place: str) -> Placed:
        made = cls(value)
        made.place = place
        return made


class WrongValue(Exception):
    """A `Placed` value is one that its option does not accept.

    Not an error that argparse would report as one of the option, which nobody gave.
    """


class ConfigOption(Protocol):
    """The option `--config` of a parser: see `zmq_offload.console.configfile`."""

    def prepare(self, parser: Parser, given: Sequence[str]) -> str | None:
        """Make what the file says the defaults of options, and return the file's name."""

    def finish(self, parser: Parser, found: argparse.Namespace) -> None:
        """Set what is in the file and not in the arguments."""


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, with a suggestion for a misspelled name.

    Each program and command has `--version`, unless it has an option of its own with that name.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"formatter_class": _Formatter, **options})
        self.variables: dict[str, list[argparse.Action]] = {}
        """The options that fall back to each environment variable."""
        self.config: ConfigOption | None = None
        self.config_file: str | None = None

    def set_example(self, *commands: str) -> None:
        """End the help text with commands that work. A long one has a backslash at the end of a line, as in a shell."""
        self.epilog = EXAMPLE + "\n".join(f"  {command}" for command in commands)

    def complete_options(self) -> None:
        """Add `--version` where it is missing."""
        if "--version" not in self._option_string_actions:
            text = f"zmq-offload {__version__}"
            self.add_argument("--version", action="version", version=text, help="show the version and exit")

    def parse_known_args(self, args: Iterable[str] | None = None, namespace: Any = None) -> tuple[Any, list[str]]:
        given = list(sys.argv[1:] if args is None else args)
        self.complete_options()
        self._check_names(given)
        try:
            if self.config is not None:
                self.config_file = self.config.prepare(self, given)
            found, rest = super().parse_known_args(given, namespace)
            if self.config is not None:
                if found.__dict__.pop("config") not in (None, self.config_file):
                    self.error("--config is shortened; write it in full")
                self.config.finish(self, found)
        except WrongValue as error:
            self.error(str(error))
        except OffloadError as error:
            self.error(error.message)
        if rest:
            self.error(f"unexpected argument {rest[0]!r}")
        return found, rest

    def value_of(self, action: argparse.Action, text: str) -> Any:
        """The value of an option for a text. Raises WrongValue for a `Placed` one that is wrong."""
        try:
            value = self._get_value(action, text)
            self._check_value(action, value)
        except argparse.ArgumentError as error:
            raise WrongValue(f"{getattr(text, 'place', text)}: {error.message}") from None
        return str(value) if isinstance(value, Placed) else value

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        # argparse calls this for arguments, and for defaults that are texts.
        try:
            return super()._get_value(action, arg_string)
        except argparse.ArgumentError as error:
            if isinstance(arg_string, Placed):
                raise WrongValue(f"{arg_string.place}: {error.message}") from None
            raise

    def print_help(self, file: SupportsWrite[str] | None = None) -> None:
        """Print the help text, in color on a terminal where the package rich-argparse is installed."""
        if file is None and console_of(sys.stdout) is not None:
            self.formatter_class = _color_formatter()
        super().print_help(file)

    def error(self, message: str) -> NoReturn:
        """Print the message as one line, without the usage, and exit with 2."""
        lost = message.startswith(("unknown", "unexpected", "the following arguments are required"))
        see = f" (see {self.prog} --help)" if lost else ""
        self.exit(2, f"{self.prog}: error: {shortened(message)}{see}\n")

    def _check_names(self, args: Sequence[str]) -> None:
        """Find unknown commands and options first: argparse would name required arguments that they made missing."""
        options = self._option_string_actions
        commands = next((a for a in self._actions if isinstance(a, argparse._SubParsersAction)), None)
        if commands is not None:
            self._check_command(args, list(commands.choices))
            return
        for arg in args:
            name = arg.partition("=")[0]
            if arg == "--":
                return
            if name.startswith("--") and " " not in name and not any(known.startswith(name) for known in options):
                self.error(f"unknown option {name}{did_you_mean(name, options)}")

    def _check_command(self, args: Sequence[str], names: list[str]) -> None:
        options = self._option_string_actions
        for arg in args:
            if arg in names:
                return
            if not arg.startswith("-"):
                meant = did_you_mean(arg, names) or f"; the commands are {', '.join(names)}"
                self.error(f"unknown command {arg!r}{meant}")
            if not any(known.startswith(arg) for known in options):
                self.error(f"unknown option {arg}{did_you_mean(arg, options)}")


class _Formatter(argparse.HelpFormatter):
    """Wraps all text but the example."""

    def add_argument(self, action: argparse.Action) -> None:
        super().add_argument(action)
        if isinstance(action, argparse._SubParsersAction):
            # argparse forgets that commands are indented, and would break the line after the longest one.
            self._action_max_length += self._indent_increment

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if text.startswith(EXAMPLE) else super()._fill_text(text, width, indent)


def _color_formatter() -> type[argparse.HelpFormatter]:
    """The formatter for a terminal."""
    try:
        from rich.text import Text
        from rich_argparse import RichHelpFormatter
    except ImportError:
        return _Formatter

    class ColorFormatter(RichHelpFormatter, _Formatter):
        text_markup = False
        help_markup = False
        group_name_formatter = str

        def _rich_fill_text(self, text: Text, width: int, indent: Text) -> Text:
            if text.plain.startswith(EXAMPLE):
                return Text(text.plain + "\n\n")
            return super()._rich_fill_text(text, width, indent)

    return ColorFormatter
