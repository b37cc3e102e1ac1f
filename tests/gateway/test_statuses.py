"""The table of status codes: complete, gRPC's own numbers, and as the documentation has it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import grpc
import pytest

from zmq_offload.errors import OffloadError, Status, from_status
from zmq_offload.gateway.http.responses import failed
from zmq_offload.gateway.statuses import CODES

ERRORS = Path(__file__).parent.parent.parent / "docs" / "errors.md"


def test_each_code_of_ours_has_the_number_of_its_name() -> None:
    assert {code.value: CODES[code].grpc for code in Status} == {
        known.name: known.value[0] for known in grpc.StatusCode if known.name in Status.__members__
    }


def test_the_documentation_has_the_table() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\d+) `(\w+)` \| (\d+) \| (.*)\|$", ERRORS.read_text(), re.M)
    assert {name: (int(grpc), same, int(http)) for name, grpc, same, http, _ in rows} == {
        code.value: (known.grpc, code.value, known.http) for code, known in CODES.items()
    }
    for name, _, _, _, note in rows:
        headers = [header for header, _ in failed(from_status(name, "full")).headers if header != "Content-Type"]
        assert re.findall(r"header `([\w-]+)`", note) == headers


@pytest.mark.parametrize("error", [from_status(code.value, "what is wrong; what is right") for code in Status])
def test_the_body_of_an_error_over_http(error: OffloadError) -> None:
    response = failed(error)
    assert response.status == CODES[error.code].http
    assert json.loads(b"".join(response.body)) == {"error": "what is wrong; what is right"}
    assert ("Content-Type", "application/json") in response.headers
