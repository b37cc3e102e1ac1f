"""TOML, as people and their editors write it."""

from __future__ import annotations

import sys
from typing import Any

from zmq_offload.errors import InvalidArgument

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def parse(content: bytes) -> dict[str, Any]:
    """The value of a file. Raises InvalidArgument for content that is not TOML.

    A byte order mark is skipped. All numbers can be shown in messages.
    """
    try:
        found: dict[str, Any] = tomllib.loads(content.decode("utf-8-sig"))
        repr(found)  # Python refuses to write an integer of thousands of digits; in hexadecimal, it was read
    except UnicodeDecodeError as error:
        raise InvalidArgument(f"it is not UTF-8: byte {error.start} cannot be read") from None
    except tomllib.TOMLDecodeError as error:
        raise InvalidArgument(f"it is not TOML: {error}") from None
    except RecursionError:
        raise InvalidArgument("it is not TOML: it is nested too deeply") from None
    except ValueError:
        raise InvalidArgument("it has a number with thousands of digits; TOML's integers have 64 bits") from None
    return found
