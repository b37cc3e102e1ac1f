"""The file `.env` of the current folder, which honcho gives to what the Procfile names.

The commands read it, too, so that `zmq-offload status` beside a Procfile asks the broker that was started there.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import MutableMapping
from pathlib import Path

from zmq_offload.console.variables import PREFIX
from zmq_offload.errors import InvalidArgument

FILE_VARIABLE = f"{PREFIX}ENV_FILE"

_LINE = re.compile(r"\s*(?:export\s+)?([^=]*?)\s*=(.*)")


def load(environment: MutableMapping[str, str] = os.environ) -> None:
    """Set the variables of this project that the file has and the environment has not.

    Raises InvalidArgument naming the line that cannot be read, or the file that ZMQ_OFFLOAD_ENV_FILE names if it
    cannot be read. A missing `.env` is not an error.
    """
    named = environment.get(FILE_VARIABLE)
    path = Path(named or ".env")
    if not named and not path.is_file():
        return
    try:
        text = path.read_text(encoding="utf-8-sig", errors="surrogateescape")
    except OSError as error:
        if named:
            raise InvalidArgument(f"{FILE_VARIABLE}: {named}: {error.strerror or error}") from None
        if isinstance(error, PermissionError):
            return  # somebody else's
        raise
    for name, value in parse(text, str(path)).items():
        if not environment.get(name):
            environment[name] = value


def parse(text: str, file: str) -> dict[str, str]:
    """This project's variables in a file of lines NAME=VALUE, by honcho's rules: quotes as in a shell, # begins a
    comment. Other programs' lines are passed over. Raises InvalidArgument naming the line."""
    found = {}
    for number, line in enumerate(text.splitlines(), 1):
        match = _LINE.match(line)
        if match is None or not match[1].startswith(PREFIX):
            continue
        name = match[1]
        if "\0" in line:
            raise InvalidArgument(f"{file}, line {number}: a zero byte, which no variable can hold")
        lexer = shlex.shlex(match[2], posix=True)
        lexer.whitespace_split = True
        try:
            found[name] = "".join(lexer)
        except ValueError as error:
            raise InvalidArgument(f"{file}, line {number}: {name}: {str(error).lower()}") from None
    return found
