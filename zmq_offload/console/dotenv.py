"""Read the file `.env` of the current folder.

honcho passes it to the processes of a Procfile. The commands read it, too, so that `zmq-offload status` in the same
folder finds the broker that honcho started.
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
    """Set this project's variables from the file, unless they are set already.

    A missing `.env` is not an error. Raises InvalidArgument for a line that cannot be read, and for a file that
    ZMQ_OFFLOAD_ENV_FILE names and that cannot be read.
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
            return  # the file of another user
        raise
    for name, value in parse(text, str(path)).items():
        if not environment.get(name):
            environment[name] = value


def parse(text: str, file: str) -> dict[str, str]:
    """This project's variables in a file of lines NAME=VALUE. Lines for other programs are ignored.

    The rules are honcho's: quotes as in a shell, and # begins a comment. Raises InvalidArgument, naming the line.
    """
    found = {}
    for number, line in enumerate(text.splitlines(), 1):
        match = _LINE.match(line)
        if match is None or not match[1].startswith(PREFIX):
            continue
        name = match[1]
        if "\0" in line:
            raise InvalidArgument(f"{file}, line {number}: a zero byte; a variable cannot hold one")
        lexer = shlex.shlex(match[2], posix=True)
        lexer.whitespace_split = True
        try:
            found[name] = "".join(lexer)
        except ValueError as error:
            raise InvalidArgument(f"{file}, line {number}: {name}: {str(error).lower()}") from None
    return found
