"""Names and version numbers of models: what the protocol, the repository and the commands take."""

from __future__ import annotations

import re
from typing import Any

from zmq_offload.errors import InvalidArgument
from zmq_offload.protocol import limits

NAME_PATTERN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")


def check_model_name(name: str, what: str = "model") -> str:
    """`name`, if it can name a model (and a folder); raises InvalidArgument otherwise. `what` has the name, if it is
    something else for which the same rules hold."""
    if not isinstance(name, str) or not NAME_PATTERN.fullmatch(name):
        raise InvalidArgument(
            f"{what} name {name!r}: use 1 to 128 letters, digits, '_', '-' and '.', not beginning with '-' or '.'"
        )
    return name


def check_version(version: Any) -> int:
    """`version`, if it can be a model's version number; raises InvalidArgument otherwise."""
    if type(version) is not int or not 1 <= version <= limits.VERSION:
        raise InvalidArgument(f"version {version!r} is not a whole number from 1 to {limits.VERSION}")
    return version
