"""`--config FILE`: the options of programs in a TOML file, a table for each program.

A value of the file takes the place of the option's default, so an argument goes before it. It goes before an
environment variable, too.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from zmq_offload.common.suggest import did_you_mean
from zmq_offload.console.variables import PREFIX, VARIABLES
from zmq_offload.errors import InvalidArgument, printable

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PROGRAMS = ("broker", "worker", "gateway")
"""Tables that every file may have; a program looks at its own."""


class FromFile(str):
    """A value of the file as an argument would be written, with its place for errors."""

    place: str

    @classmethod
    def of(cls, value: str, place: str) -> FromFile:
        made = cls(value)
        made.place = place
        return made


def read(file: str) -> dict[str, Any]:
    """The content of a file. Raises InvalidArgument for one that cannot be read."""
    try:
        content = Path(file).read_bytes()
    except OSError as error:
        raise InvalidArgument(f"--config {file}: {error.strerror or error}") from None
    try:
        found: dict[str, Any] = tomllib.loads(content.decode("utf-8-sig"))
        return found
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        what = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise InvalidArgument(f"--config {file}: not TOML: {what}") from None


def apply(
    values: Mapping[str, Any], file: str, table: str, actions: Iterable[argparse.Action], paths: Collection[object]
) -> None:
    """Make the values of a program's table, and those at the top for all programs, the defaults of its options.

    A relative name of a file is relative to the folder of `file`; `paths` are the types of such options. Raises
    InvalidArgument for a table, a key or a value that is wrong.
    """
    options = {
        option.removeprefix("--"): action
        for action in actions
        for option in action.option_strings
        if option.startswith("--") and option not in ("--help", "--version", "--config")
    }
    shared = {key: value for key, value in values.items() if not isinstance(value, dict)}
    _check_tables(values, file, table)
    for key, value in shared.items():
        name = key.replace("_", "-")
        if name in options:
            _set(options[name], value, file, key, paths)
        elif PREFIX + key.replace("-", "_").upper() not in VARIABLES:
            raise InvalidArgument(
                f"--config {file}: key {printable(key)!r} is no option of any program{_near(name, options)}"
            )
    for key, value in values.get(table, {}).items():
        name = key.replace("_", "-")
        if name not in options:
            raise InvalidArgument(f"--config {file}: [{table}] has no option {printable(key)!r}{_near(name, options)}")
        _set(options[name], value, file, f"[{table}] {key}", paths)


def _check_tables(values: Mapping[str, Any], file: str, table: str) -> None:
    known = [*dict.fromkeys((*PROGRAMS, table))]
    for key, value in values.items():
        if isinstance(value, dict) and key not in known:
            meant = did_you_mean(key, known) or f"; the tables are {', '.join(known)}"
            raise InvalidArgument(f"--config {file}: table [{printable(key)}] is of no program{meant}")


def _near(name: str, options: Mapping[str, object]) -> str:
    return did_you_mean(name, sorted(options))


def _set(action: argparse.Action, value: object, file: str, key: str, paths: Collection[object]) -> None:
    place = f"--config {file}: {key}"
    if action.nargs == 0:
        if not isinstance(value, bool):
            raise InvalidArgument(f"{place}: {value!r} is not true or false")
        action.default = value
    elif isinstance(value, bool) and action.nargs == "?":
        action.default = action.const if value else None
    else:
        text = _text(value, place)
        if getattr(action.type, "kind", action.type) in paths:
            text = str(Path(file).parent / text)
        action.default = FromFile.of(text, place)
    action.required = False


def _text(value: object, place: str) -> str:
    """A value as an argument would have it."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, str | int | float):
        return str(value)
    if isinstance(value, list) and all(isinstance(item, str | int | float) for item in value):
        return ",".join(map(str, value))
    raise InvalidArgument(f"{place}: {value!r:.80} is not a text, a number, true, false, or a list of texts or numbers")
