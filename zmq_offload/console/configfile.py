"""`--config FILE`: the options of programs in a TOML file, a table for each program.

A value of the file takes the place of the option's default, so an argument goes before it. It goes before an
environment variable, too. Above the tables are values for all programs: a key is the name of a variable
(`max-queued` for ZMQ_OFFLOAD_MAX_QUEUED) and means what that means.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from zmq_offload.common import toml
from zmq_offload.common.suggest import did_you_mean
from zmq_offload.console import settings
from zmq_offload.console.parser import Parser, Placed
from zmq_offload.console.variables import LIBRARY, PREFIX, VARIABLES
from zmq_offload.errors import InvalidArgument, printable

PROGRAMS = ("broker", "worker", "gateway")
TABLES = (
    *PROGRAMS, "compile", "export", "image", "profile", "plan", "status", "models", "top", "doctor", "dashboard",
    "load", "link", "keys", "demo",
)  # fmt: skip
"""The tables that a file may have: the commands with options. A command looks at its own."""

_VARIABLE = f"{PREFIX}CONFIG"
_PATHS = (settings.file, settings.folder, settings.path, Path)
"""The types of options whose value is the name of a file or folder."""


def add_config(parser: Parser, table: str, above: Mapping[str, str] | None = None) -> None:
    """Add `--config` to a command or to each of its commands: a file with their options, in a table of this name.

    `above` are keys above the tables that the command takes for an option without their variable.
    """
    text = f"file with options, in its TOML table [{table}]"
    family = list(_with_options(parser))
    for member in family:
        _add(member, text, _FromFile(table, family, above=above or {}))


def add_config_of_all(parser: Parser, table: str, but: Collection[str]) -> None:
    """Add `--config` of a command that looks at what the programs are given.

    Of the programs' tables it takes the options that it has itself, but for some, which mean something else there.
    """
    _add(parser, "file with options of the programs, in their TOML tables", _FromFile(table, [parser], but=but))


def _with_options(parser: Parser) -> Iterator[Parser]:
    """A parser or the parsers of its commands: those with options."""
    commands = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    for action in commands:
        for command in action.choices.values():
            yield from _with_options(command)
    if not commands and any(action.option_strings and action.dest != "help" for action in parser._actions):
        yield parser


def _add(parser: Parser, text: str, config: _FromFile) -> None:
    parser.add_argument("--config", type=settings.file, help=f"{text} [{_VARIABLE}]", metavar="FILE")
    parser.config = config
    settings.OPTIONS.setdefault(_VARIABLE, set()).add(parser.prog)


def read(file: str) -> dict[str, Any]:
    """The content of a file. Raises InvalidArgument for one that cannot be read."""
    try:
        content = Path(file).read_bytes()
    except OSError as error:
        raise InvalidArgument(f"--config {file}: {error.strerror or error}") from None
    try:
        return toml.parse(content)
    except InvalidArgument as error:
        raise InvalidArgument(f"--config {file}: {error.message}") from None


class _FromFile:
    """What a file says for a command."""

    def __init__(
        self, table: str, family: Sequence[Parser], above: Mapping[str, str] | None = None, but: Collection[str] = ()
    ) -> None:
        self._table, self._family, self._above, self._but = table, family, above or {}, but
        self._entries: dict[argparse.Action, Any] = {}
        self._defaults: dict[argparse.Action, Any] = {}
        self._file = ""

    def prepare(self, parser: Parser, given: Sequence[str]) -> str | None:
        first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        first.add_argument("--config", nargs="?")  # the program itself objects if the name is missing
        name = first.parse_known_args([word for word in given if word != "--config="])[0].config
        self._file = name or os.environ.get(_VARIABLE) or ""
        if not self._file:
            return None
        values = read(self._file)
        self._check_above(values)
        for where, keys in (("", values), (f"[{self._table}] ", values.get(self._table, {}))):
            names = [key.replace("_", "-") for key in keys]
            if twice := [name for name in names if names.count(name) > 1]:
                raise self._error(f"{where}{printable(twice[0])} is given twice, with a dash and with an underscore")
        for key, value in values.items():
            if not isinstance(value, dict):
                self._take_above(parser, key, value)
        if self._but:
            for program in PROGRAMS:
                self._take_table(parser, program, values.get(program, {}), known_only=True)
        self._take_table(parser, self._table, values.get(self._table, {}))
        self._check_groups(parser)
        self._defaults = {action: action.default for action in self._entries}
        for action in self._entries:
            action.default = argparse.SUPPRESS  # what is not in the arguments is missing then
            action.required = False
        return self._file

    def finish(self, parser: Parser, found: argparse.Namespace) -> None:
        replaced = {
            other
            for group in parser._mutually_exclusive_groups
            for given in group._group_actions
            for other in group._group_actions
            if other is not given and getattr(found, given.dest, given.default) is not given.default
        }
        for action, value in self._entries.items():
            if not hasattr(found, action.dest):
                fallback = self._defaults[action]
                setattr(found, action.dest, fallback if action in replaced else _value(parser, action, value))
            action.default = value  # errors of later checks name its place

    # --- what the file says -----------------------------------------------------------------------------------

    def _check_above(self, values: Mapping[str, Any]) -> None:
        """Check what stands above the tables, and the tables' names."""
        for key, value in values.items():
            shown, is_list = printable(key), isinstance(value, list) and value and isinstance(value[0], dict)
            if isinstance(value, dict) or is_list:
                if key not in TABLES:
                    meant = did_you_mean(key, TABLES) or f"; the tables are {', '.join(TABLES)}"
                    raise self._error(f"table [{shown}] is of no program{meant}")
                if is_list:
                    raise self._error(f"[[{shown}]] is a list of tables; write [{shown}], once")
            elif key in TABLES:
                hint = "; above the tables, the broker's endpoints are frontend and backend" if key == "broker" else ""
                raise self._error(
                    f"key {shown!r} is {value!r:.80}, not a table; write [{shown}] and options in the lines below{hint}"
                )

    def _take_above(self, parser: Parser, key: str, value: object) -> None:
        name = key.replace("_", "-")
        variable = PREFIX + name.replace("-", "_").upper()
        place = self._place(printable(key))
        if name == "config":
            raise InvalidArgument(f"{place}: a file of options names no other; leave it out")
        readers = VARIABLES[variable].readers if variable in VARIABLES else ()
        if not set(readers) & set(TABLES):
            raise self._error(f"key {printable(key)!r} {self._wrong_above(name)}")
        for action in parser.variables.get(variable, ()):
            self._take(action, value, place, bare=action.nargs == "?")
        if name in self._above:
            self._take(_options(parser)[self._above[name]], value, place)
        if variable not in parser.variables and LIBRARY in readers and self._table in readers:
            # The client of the library reads it: there is no option.
            os.environ[variable] = self._beside(_text(value, place))

    def _wrong_above(self, name: str) -> str:
        if any(name in _options(member) for member in self._family):
            return f"is not for all programs; write it below [{self._table}]"
        known = [key.removeprefix(PREFIX).lower().replace("_", "-") for key in VARIABLES]
        return f"is no option of any program{did_you_mean(name, known)}"

    def _check_groups(self, parser: Parser) -> None:
        """Options of which a command takes one."""
        for group in parser._mutually_exclusive_groups:
            both = [action.option_strings[-1] for action in group._group_actions if action in self._entries]
            if len(both) > 1:
                raise self._error(f"[{self._table}] has {' and '.join(both)}; give one of them")

    def _take_table(self, parser: Parser, table: str, values: Mapping[str, Any], known_only: bool = False) -> None:
        options = _options(parser)
        for key, value in values.items():
            name = key.replace("_", "-")
            if known_only and f"{table}-{name}" in options:  # --broker-metrics for the broker's --metrics
                name = f"{table}-{name}"
            if name in options and not (known_only and name in self._but):
                self._take(options[name], value, self._place(f"[{table}] {printable(key)}"))
            elif not known_only and not any(name in _options(member) for member in self._family):
                near = did_you_mean(name, sorted(options))
                raise self._error(f"[{table}] has no option {printable(key)!r}{near}")

    def _take(self, action: argparse.Action, value: object, place: str, bare: bool = False) -> None:
        """Note a value for an option. `bare`: it is what the option means without a value."""
        if action.nargs == 0 and not isinstance(value, bool):
            raise InvalidArgument(f"{place}: {value!r:.80} is not true or false")
        if _is_several(action):
            listed = value if isinstance(value, list) else [value]
            self._entries[action] = [self._placed(action, item, place) for item in listed]
        elif isinstance(value, bool) and action.nargs in (0, "?"):
            self._entries[action] = value if action.nargs == 0 else action.const if value else None
        elif bare:
            action.const = self._placed(action, value, place)
        else:
            self._entries[action] = self._placed(action, value, place)

    def _placed(self, action: argparse.Action, value: object, place: str) -> Placed:
        text = _text(value, place)
        return Placed.of(self._beside(text) if action.type in _PATHS else text, place)

    def _beside(self, name: str) -> str:
        """A name of a file, which is relative to the folder of the file of options."""
        return str(Path(self._file).parent / name) if name.strip() else name

    def _place(self, where: str) -> str:
        return f"--config {self._file}: {where}"

    def _error(self, text: str) -> InvalidArgument:
        return InvalidArgument(self._place(text))


def _options(parser: Parser) -> dict[str, argparse.Action]:
    """The options that may be in a file, by name. Not those that stand in for an argument, or for several options."""
    found = {}
    beside_arguments = {
        action
        for group in parser._mutually_exclusive_groups
        for action in group._group_actions
        if not all(other.option_strings for other in group._group_actions)
    }
    for action in parser._actions:
        names = [option.removeprefix("--") for option in action.option_strings if option.startswith("--")]
        if action.dest in ("help", "config") or isinstance(action, argparse._VersionAction):
            continue
        if names and action not in beside_arguments and not getattr(action, "only_argument", False):
            found[names[0]] = action
    return found


def _is_several(action: argparse.Action) -> bool:
    return action.nargs in ("+", "*") or isinstance(action, argparse._AppendAction)


def _value(parser: Parser, action: argparse.Action, value: object) -> object:
    """The value of an option, as argparse makes it of an argument."""
    if isinstance(value, list):
        return [parser.value_of(action, text) for text in value]
    return parser.value_of(action, value) if isinstance(value, Placed) else value


def _text(value: object, place: str) -> str:
    """A value as an argument would have it."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, str | int | float):
        return str(value)
    if isinstance(value, list) and all(isinstance(item, str | int | float) for item in value):
        return ",".join(map(str, value))
    raise InvalidArgument(f"{place}: {value!r:.80} is not a text, a number, true, false, or a list of texts or numbers")
