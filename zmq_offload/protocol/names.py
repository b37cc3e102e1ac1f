"""Names and version numbers of models, as the protocol, the repository and the commands accept them."""

from __future__ import annotations

import re

from zmq_offload.errors import InvalidArgument
from zmq_offload.protocol import limits

NAME_PATTERN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")


def check_model_name(name: str, what: str = "model") -> str:
    """Return `name` if it can name a model (and a folder); `what` has that name.

    Raises InvalidArgument.
    """
    if not isinstance(name, str) or not NAME_PATTERN.fullmatch(name):
        raise InvalidArgument(
            f"{what} name {name!r} is not valid; use 1 to 128 letters, digits, '_', '-' and '.', and do not begin with "
            "'-' or '.'"
        )
    return name


def check_label(label: object) -> str:
    """Return `label` if it can stand for a version. Raises InvalidArgument."""
    if not isinstance(label, str) or not NAME_PATTERN.fullmatch(label):
        raise InvalidArgument(f"label {label!r:.80} is not 1 to 128 letters, digits, '_', '-' or '.'")
    return label


def check_version(version: object) -> int:
    """Return `version` if it can be a model's version number. Raises InvalidArgument."""
    if type(version) is not int or not 1 <= version <= limits.VERSION:
        raise InvalidArgument(f"version {version!r} is not a whole number from 1 to {limits.VERSION}")
    return version
