"""Errors of other servers as errors of this project."""

from __future__ import annotations

import pytest

from zmq_offload import errors
from zmq_offload.transports.codes import of_grpc, of_http


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, errors.InvalidArgument), (404, errors.NotFound), (418, errors.InvalidArgument),
        (429, errors.ResourceExhausted), (503, errors.Unavailable), (504, errors.DeadlineExceeded),
        (599, errors.Internal),
    ],
)  # fmt: skip
def test_an_http_status_has_its_error_with_the_servers_text(status: int, kind: type[errors.OffloadError]) -> None:
    error = of_http(status, "the  model\nis\x1b gone", "http://edge:8000")
    assert type(error) is kind
    assert error.message.startswith("the model is") and error.message.endswith("(from http://edge:8000)")
    assert "\x1b" not in error.message


def test_an_http_status_without_a_text_is_named() -> None:
    assert of_http(502, "", "edge").message == "HTTP status 502 (from edge)"


def test_a_grpc_code_has_its_error() -> None:
    assert type(of_grpc("NOT_FOUND", "no such model", "edge")) is errors.NotFound
    assert of_grpc("UNAVAILABLE", " ", "edge").message == "status UNAVAILABLE (from edge)"
