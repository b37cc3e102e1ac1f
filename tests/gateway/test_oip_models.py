"""The Open Inference Protocol over HTTP, apart from inference: health, metadata, statistics, repository."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from tests.gateway.fake_fabric import ALL, FakeFabric, model
from tests.gateway.test_oip_rest import ask
from zmq_offload.client.results import Timings
from zmq_offload.common.version import __version__
from zmq_offload.errors import Unavailable
from zmq_offload.gateway.catalog import Model
from zmq_offload.gateway.control import ModelControl
from zmq_offload.gateway.http.messages import Request, Response
from zmq_offload.gateway.http.router import Router
from zmq_offload.gateway.oip.metadata import max_batch_size
from zmq_offload.gateway.oip.regions import region_routes
from zmq_offload.gateway.oip.rest import routes
from zmq_offload.gateway.regions.files import Off, System
from zmq_offload.protocol.tensors import TensorSpec

X = TensorSpec("x", "FP32", (-1, 3))
Y = TensorSpec("y", "INT8", (-1,))
FIXED = TensorSpec("f", "BOOL", (2, -1))
OLD = Model("table", 1, (X,), (Y,), workers=1, latest=False)
TABLE = Model("table", 2, (X,), (Y,), workers=3, latest=True)
OTHER = model("other", FIXED, outputs=(FIXED,))


def fabric() -> FakeFabric:
    return FakeFabric(OTHER, OLD, TABLE)


def get(path: str, served: FakeFabric | None = None) -> Any:
    response = ask(served or fabric(), "GET", path)
    assert response.status == 200
    return body(response.body)


def body(parts: Any) -> Any:
    return json.loads(b"".join(parts))


def status(method: str, path: str, sent: bytes = b"", served: FakeFabric | None = None) -> int:
    response = ask(served or fabric(), method, path, sent)
    assert response.status == 200 or body(response.body).keys() == {"error"}
    return response.status


def test_the_server_names_itself_and_its_extensions() -> None:
    described = get("/v2")
    assert (described["name"], described["version"]) == ("zmq-offload", __version__)
    assert {"binary_tensor_data", "classification", "statistics"} <= set(described["extensions"])
    assert "system_shared_memory" not in described["extensions"]
    (answer,) = (endpoint for _, path, endpoint in routes(fabric(), System()) if path == "/v2")
    answers: list[Any] = []
    answer(None, {}, answers.append)  # type: ignore[arg-type]
    assert "system_shared_memory" in body(answers[0].body)["extensions"]


def test_live_is_always_so() -> None:
    served = fabric()
    served.catalog = Unavailable("no broker")
    assert status("GET", "/v2/health/live", served=served) == 200


def test_ready_means_that_a_broker_serves_a_model_and_the_gateway_goes_on() -> None:
    served = fabric()
    assert status("GET", "/v2/health/ready", served=served) == 200
    served.stopping = True
    assert status("GET", "/v2/health/ready", served=served) == 400
    assert status("GET", "/v2/health/ready", served=FakeFabric()) == 400
    alone = FakeFabric(OTHER)
    alone.control.closed.add("other")
    assert status("GET", "/v2/health/ready", served=alone) == 400
    alone.catalog = Unavailable("no broker")
    assert status("GET", "/v2/health/ready", served=alone) == 503


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        ("/v2/models/table", 200),
        ("/v2/models/table/versions/1", 200),
        ("/v2/models/table/versions/9", 400),
        ("/v2/models/nobody", 400),
        ("/v2/models/table/versions/x", 404),
        ("/v2/models/table/versions/99999999999999999999", 400),
    ],
)
def test_a_model_is_ready_if_a_worker_takes_requests_for_it(path: str, wanted: int) -> None:
    assert status("GET", f"{path}/ready") == wanted


def test_metadata_has_the_tensors_with_the_batch() -> None:
    described = {
        "name": "table",
        "versions": ["1", "2"],
        "platform": "tvm",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 3]}],
        "outputs": [{"name": "y", "datatype": "INT8", "shape": [-1]}],
    }
    assert get("/v2/models/table") == described
    assert get("/v2/models/table/versions/1") == described | {"versions": ["1"]}


@pytest.mark.parametrize("suffix", ["", "/config"])
def test_metadata_of_unknown_models_is_not_found(suffix: str) -> None:
    for path in ("/v2/models/nobody", "/v2/models/table/versions/9"):
        assert status("GET", path + suffix) == 404


def test_the_configuration_has_the_batch_apart() -> None:
    config = get("/v2/models/table/versions/2/config")
    assert config["max_batch_size"] == 2**31 - 1
    assert config["input"] == [{"name": "x", "data_type": "TYPE_FP32", "dims": [3]}]
    assert config["output"] == [{"name": "y", "data_type": "TYPE_INT8", "dims": []}]
    assert config["instance_group"] == [{"name": "table", "kind": "KIND_CPU", "count": 3}]
    config = get("/v2/models/other/config")
    assert config["max_batch_size"] == 0
    assert config["input"] == [{"name": "f", "data_type": "TYPE_BOOL", "dims": [2, -1]}]


@pytest.mark.parametrize(
    ("inputs", "most"),
    [
        ([X], 2**31 - 1),
        ([X, FIXED], 0),
        ([TensorSpec("x", "FP32", ())], 0),
        ([TensorSpec("x", "FP32", (-1, 3), (8, 1))], 0),
        ([X, TensorSpec("z", "FP32", (-1, 3), maximums=(64, -1))], 64),
    ],
)
def test_there_is_a_batch_if_all_tensors_have_it(inputs: list[TensorSpec], most: int) -> None:
    described = model("m", *inputs, outputs=(Y,))
    assert max_batch_size(described) == most
    assert max_batch_size(dataclasses.replace(described, max_batch=32)) == min(most, 32)


def test_statistics_are_by_version() -> None:
    served = fabric()
    served.statistics.count("table", 2).succeeded(4, Timings(0.001, 0.002, 0.004, 0.005), 12.5)
    served.statistics.count("table", 2).fail.add(0.25)
    (first, second) = get("/v2/models/table/stats", served)["model_stats"]
    assert (first["version"], first["inference_count"], first["batch_stats"]) == ("1", 0, [])
    computed = {
        "compute_input": {"count": 1, "ns": 0},
        "compute_infer": {"count": 1, "ns": 2_000_000},
        "compute_output": {"count": 1, "ns": 0},
    }
    assert second == {
        "name": "table",
        "version": "2",
        "last_inference": 12500,
        "inference_count": 4,
        "execution_count": 1,
        "inference_stats": {
            "success": {"count": 1, "ns": 5_000_000},
            "fail": {"count": 1, "ns": 250_000_000},
            "queue": {"count": 1, "ns": 1_000_000},
            **computed,
            "cache_hit": {"count": 0, "ns": 0},
            "cache_miss": {"count": 0, "ns": 0},
        },
        "response_stats": {},
        "batch_stats": [{"batch_size": 4, **computed}],
        "memory_usage": [],
    }
    assert get("/v2/models/table/versions/2/stats", served)["model_stats"] == [second]
    everything = get("/v2/models/stats", served)["model_stats"]
    assert [(entry["name"], entry["version"]) for entry in everything] == [
        ("other", "1"),
        ("table", "1"),
        ("table", "2"),
    ]
    for path in ("/v2/models/nobody/stats", "/v2/models/table/versions/9/stats"):
        assert status("GET", path, served=served) == 400


def test_models_are_unloaded_and_loaded() -> None:
    served = fabric()

    def index(sent: bytes = b"") -> list[tuple[str, str, str]]:
        response = ask(served, "POST", "/v2/repository/index", sent)
        assert response.status == 200
        return [(entry["name"], entry["version"], entry["state"]) for entry in body(response.body)]

    ready = [("other", "1", "READY"), ("table", "1", "READY"), ("table", "2", "READY")]
    assert index() == index(b"{}") == index(b'{"ready": true}') == ready
    assert (
        status("POST", "/v2/repository/models/table/unload", b'{"parameters":{"unload_dependents":false}}', served)
        == 200
    )
    assert [state for _, _, state in index()] == ["READY", "UNAVAILABLE", "UNAVAILABLE"]
    assert index(b'{"ready": true}') == ready[:1]
    assert status("GET", "/v2/models/table", served=served) == 404
    assert status("POST", "/v2/repository/models/table/load", b"{}", served) == 200
    assert index() == ready
    assert status("POST", "/v2/repository/models/nobody/load", b"", served) == 500
    served.control = ModelControl(False)
    assert status("POST", "/v2/repository/models/table/load", b"", served) == 503


def test_an_index_without_a_broker_is_an_error() -> None:
    served = fabric()
    served.catalog = Unavailable("no broker answers")
    assert status("POST", "/v2/repository/index", b"", served) == 503


@pytest.mark.parametrize(
    ("path", "sent", "wanted"),
    [
        ("index", b"{", 400),
        ("index", b'{"ready": 1}', 400),
        ("index", b"\xff", 400),
        ("index", b"[" * 100_000, 400),
        ("models/table/load", b"{", 400),
        ("models/table/load", b'{"parameters": {"config": "{}"}}', 501),
        ("models/table/unload", b"[]", 400),
    ],
)
def test_wrong_requests_to_the_repository(path: str, sent: bytes, wanted: int) -> None:
    assert status("POST", f"/v2/repository/{path}", sent) == wanted


@pytest.mark.parametrize(
    ("method", "path", "wanted"),
    [
        ("GET", "/v2/trace/setting", 200),
        ("GET", "/v2/models/table/trace/setting", 200),
        ("POST", "/v2/trace/setting", 501),
        ("GET", "/v2/logging", 501),
        ("POST", "/v2/logging", 501),
        ("GET", "/v2/cudasharedmemory/status", 200),
        ("GET", "/v2/cudasharedmemory/region/r/status", 200),
        ("POST", "/v2/cudasharedmemory/region/r/register", 501),
        ("POST", "/v2/cudasharedmemory/unregister", 200),
        ("GET", "/v2/nothing", 404),
        ("GET", "/v2/models/table/infer", 405),
        ("POST", "/v2/health/live", 405),
    ],
)
def test_what_is_not_here_is_refused(method: str, path: str, wanted: int) -> None:
    assert status(method, path) == wanted


def test_answers_that_are_always_the_same_are_not_shared() -> None:
    (answer,) = (endpoint for _, path, endpoint in routes(fabric(), Off()) if path == "/v2")
    answers: list[Any] = []
    for _ in range(2):
        answer(None, {}, answers.append)  # type: ignore[arg-type]
    answers[0].headers.append(("X", "1"))
    assert answers[1].headers == [("Content-Type", "application/json")]


def test_health_says_it_in_json_too() -> None:
    """KServe's client reads it; Triton's read the status only."""
    assert get("/v2/health/live") == {"live": True}
    assert get("/v2/health/ready") == {"ready": True}
    assert get("/v2/models/table/ready") == {"name": "table", "ready": True}


@pytest.mark.parametrize(
    "path",
    [
        "/v2/repository/index",
        "/v2/repository/models/table/load",
        "/v2/repository/models/table/unload",
        "/v2/systemsharedmemory/region/r/register",
    ],
)
def test_a_request_without_tensors_has_no_large_body(path: str) -> None:
    served = fabric()
    router = Router()
    for route in (*routes(served, Off()), *region_routes(Off())):
        router.add(*route)
    responses: list[Response] = []
    router(Request("POST", path, "", {}, b'{"parameters":{"a":[' + b"[]," * 2**19 + b"[]]}}", ALL), responses.append)
    (response,) = responses
    assert response.status == 400 and b"such a request takes at most 1048576" in b"".join(response.body)
