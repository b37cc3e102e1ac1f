"""What workers remember of canaries that a broker returned."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from workers.returned import ReturnedCanaries
from zmq_offload.artifacts.config import NO_CONFIG, parse
from zmq_offload.errors import ProtocolError

CONFIG = parse(b"[canary]\nversion = 2\nshare = 1")
BODY = {"canary": {**msgspec.to_builtins(CONFIG.canary), "share": 1.0}, "text": "it failed"}


def test_a_canary_is_returned_as_long_as_the_configuration_has_it() -> None:
    returned = ReturnedCanaries()
    assert returned.of("m") == ""
    assert returned.told("m", BODY, {"m": CONFIG})
    assert not returned.told("m", BODY, {"m": CONFIG}), "no news"
    assert (returned.of("m"), returned.of("n")) == ("it failed", "")
    returned.keep({"m": CONFIG})
    assert returned.of("m") == "it failed"
    returned.keep({"m": parse(b"[canary]\nversion = 2\nshare = 0.5")})
    assert returned.of("m") == ""
    assert returned.told("m", BODY, {"m": CONFIG})
    returned.keep({})
    assert returned.of("m") == ""


def test_what_is_said_of_another_canary_is_no_news() -> None:
    returned = ReturnedCanaries()
    for configs in ({}, {"m": NO_CONFIG}, {"m": parse(b"[canary]\nversion = 3\nshare = 1")}):
        assert not returned.told("m", BODY, configs)
    assert returned.of("m") == ""


@pytest.mark.parametrize("body", [None, [], {}, {"text": 7}, {"text": ""}, {"text": "x" * 1501}])
def test_what_is_not_a_return_is_refused(body: Any) -> None:
    with pytest.raises(ProtocolError, match="the body of a Returned is a map with a canary and a text"):
        ReturnedCanaries().told("m", body, {"m": CONFIG})
