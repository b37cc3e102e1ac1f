"""TOML that people and editors write, and what is none."""

from __future__ import annotations

import pytest

from zmq_offload.common import toml
from zmq_offload.errors import InvalidArgument


def test_a_byte_order_mark_is_skipped() -> None:
    assert toml.parse(b"\xef\xbb\xbfa = 1\r\n") == {"a": 1}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"a = \xff", "it is not UTF-8: byte 4 cannot be read"),
        (b"a = [", "it is not TOML: "),
        (b"a = " + b"[" * 5000, "it is not TOML: it is nested too deeply"),
        (b"a = " + b"9" * 5000, "it has a number with thousands of digits"),
        (b"a = 0x" + b"f" * 5000, "it has a number with thousands of digits"),
    ],
)
def test_what_is_wrong_is_said(content: bytes, says: str) -> None:
    with pytest.raises(InvalidArgument, match=says):
        toml.parse(content)
