"""Pages of other origins: who may call, what a browser asks before, and that nothing changes for others."""

from __future__ import annotations

import pytest

from tests.gateway.fake_fabric import ALL
from zmq_offload.errors import InvalidArgument
from zmq_offload.gateway.http.cors import crossing, origins_of
from zmq_offload.gateway.http.messages import Request, Respond, Response

PAGE = "https://page.example"


def echo(_request: Request, respond: Respond) -> None:
    respond(Response(200, (b"{}",), [("Content-Type", "application/json")]))


def ask(origins: tuple[str, ...], method: str = "POST", **headers: str) -> Response:
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    responses: list[Response] = []
    crossing(echo, origins)(Request(method, "/v2", "", given, b"", ALL), responses.append)
    (response,) = responses
    return response


@pytest.mark.parametrize("origins", [(PAGE,), ("https://other.example", PAGE), ("*",)])
def test_a_page_of_an_origin_may_call(origins: tuple[str, ...]) -> None:
    headers = dict(ask(origins, origin=PAGE).headers)
    assert headers["Access-Control-Allow-Origin"] == PAGE
    assert headers["Vary"] == "Origin"
    assert "Inference-Header-Content-Length" in headers["Access-Control-Expose-Headers"]
    assert headers["Content-Type"] == "application/json"


@pytest.mark.parametrize(
    ("origins", "headers"),
    [
        ((), {"origin": PAGE}),
        ((PAGE,), {"origin": "https://page.example.org"}),
        ((PAGE,), {}),
        ((PAGE,), {"origin": ""}),
    ],
)
def test_others_get_what_they_always_got(origins: tuple[str, ...], headers: dict[str, str]) -> None:
    response = ask(origins, **headers)
    assert response.headers == [("Content-Type", "application/json")]
    response = ask(origins, "OPTIONS", access_control_request_method="POST", **headers)
    assert response.status == 200


def test_a_browser_may_ask_before() -> None:
    response = ask((PAGE,), "OPTIONS", origin=PAGE, access_control_request_method="POST")
    headers = dict(response.headers)
    assert response.status == 204
    assert headers["Access-Control-Allow-Origin"] == PAGE
    assert "POST" in headers["Access-Control-Allow-Methods"]
    assert {"Authorization", "Inference-Header-Content-Length"} <= set(
        headers["Access-Control-Allow-Headers"].split(", ")
    )
    assert ask((PAGE,), "OPTIONS", origin=PAGE).status == 200


@pytest.mark.parametrize(
    ("text", "origins"),
    [(PAGE, (PAGE,)), (f" {PAGE} , http://a:8080", (PAGE, "http://a:8080")), ("*", ("*",))],
)
def test_origins_are_a_list(text: str, origins: tuple[str, ...]) -> None:
    assert origins_of(text) == origins


@pytest.mark.parametrize("text", ["", ",", "page.example", "https://page.example/", "ftp://a", f"{PAGE},b", "null"])
def test_what_is_no_origin(text: str) -> None:
    with pytest.raises(InvalidArgument, match="is not an origin; use https://HOST"):
        origins_of(text)
