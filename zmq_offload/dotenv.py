"""The file `.env` of the current folder, which honcho gives to what the Procfile names.

The commands read it, too, so that `zmq-offload status` beside a Procfile asks the broker that was started there.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import MutableMapping
from pathlib import Path

from zmq_offload.errors import InvalidArgument
from zmq_offload.variables import PREFIX

FILE_VARIABLE = f"{PREFIX}ENV_FILE"


def load(environment: MutableMapping[str, str] = os.environ) -> None:
    """Set the variables of this project that the file has and the environment has not.

    Raises InvalidArgument naming the line for one that cannot be read. A file that is not there is no error, unless
    ZMQ_OFFLOAD_ENV_FILE names it.
    """
    named = environment.get(FILE_VARIABLE)
    path = Path(named or ".env")
    if not named and not path.is_file():
        return
    try:
        text = path.read_text(encoding="utf-8", errors="surrogateescape")
    except PermissionError:
        if named:
            raise
        return  # somebody else's
    for name, value in parse(text, str(path)).items():
        if not environment.get(name):
            environment[name] = value


def parse(text: str, file: str) -> dict[str, str]:
    """This project's variables in a file of lines NAME=VALUE, by honcho's rules: quotes as in a shell, # begins a
    comment. Other programs' lines are passed over. Raises InvalidArgument naming the line."""
    found = {}
    for number, line in enumerate(text.splitlines(), 1):
        name, equals, _ = (part.strip() for part in line.strip().removeprefix("export ").partition("="))
        if not equals or not name.startswith(PREFIX):
            continue
        lexer = shlex.shlex(line.partition("=")[2], posix=True)
        lexer.whitespace_split = True
        try:
            found[name] = "".join(lexer)
        except ValueError as error:
            raise InvalidArgument(f"{file}, line {number}: {name}: {str(error).lower()}") from None
    return found
