"""Which endpoint answers a path, and what is answered if there is none."""

import json

import pytest

from zmq_offload.errors import NotFound, ResourceExhausted, Unauthenticated
from zmq_offload.gateway.http.messages import Request, Respond, Response
from zmq_offload.gateway.http.responses import failed, head_of, size_of
from zmq_offload.gateway.http.router import Endpoint, Names, Router
from zmq_offload.net.grants import Grant


def says(text: str) -> Endpoint:
    """An endpoint that answers with a text and the names of the path."""

    def endpoint(request: Request, names: Names, respond: Respond) -> None:
        respond(Response(200, [text.encode(), json.dumps(dict(names)).encode()]))

    return endpoint


@pytest.fixture(name="router")
def _router() -> Router:
    router = Router()
    router.add("GET", "/v1/models/{model}", says("status"))
    router.add("POST", "/v1/models/{model}:predict", says("predict"))
    router.add("GET", "/v2/models/{model}", says("metadata"))
    router.add("GET", "/v2/models/stats", says("stats"))
    router.add("POST", "/v2/models/{model}/versions/{version}/infer", says("infer"))
    router.add("GET", "/v2/health.live", says("live"))
    router.add("POST", "/v2/health.live", says("posted"))
    return router


def ask(router: Router, method: str, path: str) -> Response:
    answers: list[Response] = []
    router(Request(method, path, "", {}, b"", Grant("x")), answers.append)
    (answer,) = answers
    return answer


@pytest.mark.parametrize(
    ("method", "path", "text"),
    [
        ("GET", "/v1/models/a", 'status{"model": "a"}'),
        ("POST", "/v1/models/a:predict", 'predict{"model": "a"}'),
        ("POST", "/v1/models/a:b:predict", 'predict{"model": "a:b"}'),
        ("GET", "/v2/models/stats", "stats{}"),
        ("GET", "/v2/models/st%61ts%2Fx", 'metadata{"model": "stats/x"}'),
        ("POST", "/v2/models/m/versions/3/infer", 'infer{"model": "m", "version": "3"}'),
        ("HEAD", "/v2/health.live", "live{}"),
        ("POST", "/v2/health.live", "posted{}"),
    ],
)
def test_a_path_has_an_endpoint(router: Router, method: str, path: str, text: str) -> None:
    for _ in range(2):
        answer = ask(router, method, path)
        assert answer.status == 200
        assert b"".join(answer.body).decode() == text


@pytest.mark.parametrize(
    "path", ["/", "/v2/healthxlive", "/v2/models/", "/v2/models/a/", "/v2/models//versions/1/infer"]
)
def test_a_path_without_endpoint_is_not_found(router: Router, path: str) -> None:
    answer = ask(router, "GET", path)
    assert answer.status == 404
    assert json.loads(answer.body[0]) == {
        "error": f"the path {path!r} is not served here; paths begin with /v2 or /v1/models"
    }


def test_a_path_that_is_not_text_is_refused(router: Router) -> None:
    assert ask(router, "GET", "/v2/models/%ff").status == 400


def test_a_wrong_method_learns_the_right_ones(router: Router) -> None:
    answer = ask(router, "DELETE", "/v2/health.live")
    assert (answer.status, dict(answer.headers)["Allow"]) == (405, "GET, POST, HEAD, OPTIONS")
    assert ask(router, "HEAD", "/v1/models/m:predict").status == 405
    answer = ask(router, "OPTIONS", "/v1/models/m:predict")
    assert (answer.status, answer.headers) == (200, [("Allow", "POST, OPTIONS")])


def test_the_memory_for_paths_is_bounded(router: Router) -> None:
    for number in range(3000):
        assert ask(router, "GET", f"/v2/models/{number}").status == 200
    assert ask(router, "GET", f"/v2/models/{'x' * 300}").status == 200
    assert len(router._known) <= 1024


def test_heads_of_responses() -> None:
    assert head_of(200, [("A", "b")], 3, "now") == b"HTTP/1.1 200 OK\r\nDate: now\r\nA: b\r\nContent-Length: 3\r\n\r\n"
    assert head_of(204, [], 0, "now", "close") == b"HTTP/1.1 204 No Content\r\nDate: now\r\nConnection: close\r\n\r\n"
    assert head_of(299, [], 0, "now").startswith(b"HTTP/1.1 299 \r\n")
    assert size_of([b"abc", bytearray(2), memoryview(bytearray(16)).cast("f")]) == 21


def test_errors_are_responses() -> None:
    answer = failed(NotFound("no"))
    assert (answer.status, answer.body, answer.headers) == (
        404,
        [b'{"error": "no"}'],
        [("Content-Type", "application/json")],
    )
    assert ("Retry-After", "1") in failed(ResourceExhausted("no")).headers
    assert "WWW-Authenticate" in dict(failed(Unauthenticated("no")).headers)
