"""Clients of other projects, unmodified: each of their public methods, called through a gateway."""

from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import ovmsclient
import pytest
from tritonclient.utils import InferenceServerException

from tests.support import triton_clients
from tests.support.fabrics import gateway_of_signed_models
from tests.support.processes import ROOT, Gateway
from tests.support.triton_clients import CALLS, KINDS, NOT_HERE, Session, X

SCRIPT = ROOT / "tests/support/kserve_clients.py"


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    with gateway_of_signed_models("--model-control", "--system-shared-memory") as running:
        yield running


@pytest.fixture(scope="module", params=KINDS)
def session(request: pytest.FixtureRequest, gateway: Gateway) -> Iterator[Session]:
    kind: str = request.param
    with triton_clients.session(kind, gateway.http if kind.startswith("http") else gateway.grpc) as made:
        yield made


def test_every_method_of_tritonclient_has_a_call() -> None:
    assert {name for kind in KINDS for name in triton_clients.methods(kind)} == set(CALLS)


@pytest.mark.parametrize("method", CALLS)
def test_tritonclient(session: Session, method: str) -> None:
    if method not in triton_clients.methods(session.kind):
        assert not hasattr(session.client, method)
        return
    result = CALLS[method](session)
    if method in NOT_HERE:
        assert isinstance(result, InferenceServerException)
        assert result.status() == ("501" if session.over_http else "StatusCode.UNIMPLEMENTED")
    else:
        assert result is True


def ovms(gateway: Gateway) -> dict[str, Any]:
    """The clients of ovmsclient, which speaks TensorFlow Serving's protocols."""
    return {
        "http": ovmsclient.make_http_client(gateway.http),
        "grpc": ovmsclient.make_grpc_client(gateway.grpc),
    }


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_ovmsclient(gateway: Gateway, protocol: str) -> None:
    client = ovms(gateway)[protocol]
    methods = {name for name, _ in inspect.getmembers(type(client), callable) if not name.startswith("_")}
    assert methods == {"predict", "get_model_metadata", "get_model_status"}
    for version in (0, 1):
        given = {"x": X}
        answer = client.predict(given, "identity", version)
        assert np.array_equal(np.asarray(answer["y"] if isinstance(answer, dict) else answer), X)
    described = client.get_model_metadata("identity")
    if protocol == "grpc":
        assert described["model_version"] == 2
        assert described["inputs"]["x"]["shape"] == [-1, 3] and described["outputs"]["y"]["dtype"] == "DT_FLOAT"
    else:
        assert described["model_spec"]["version"] == "2"
        signature = described["metadata"]["signature_def"]["signature_def"]["serving_default"]
        assert signature["inputs"]["x"]["tensor_shape"]["dim"][1]["size"] == "3"
    status = client.get_model_status("identity")
    assert {version: own["state"] for version, own in status.items()} == {1: "AVAILABLE", 2: "AVAILABLE"}
    with pytest.raises(ovmsclient.ModelNotFoundError):
        client.predict({"x": X}, "nobody")
    with pytest.raises(ovmsclient.InvalidInputError):
        client.predict({"z": X}, "identity")


@pytest.mark.load
def test_kserve_and_open_inference(gateway: Gateway) -> None:
    """Set KSERVE_PYTHON to the Python of an environment with kserve and open-inference-openapi."""
    if "KSERVE_PYTHON" not in os.environ:
        pytest.skip("KSERVE_PYTHON is not set")
    command = [os.environ["KSERVE_PYTHON"], str(SCRIPT), gateway.http, gateway.grpc]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    results = json.loads(done.stdout.splitlines()[-1])
    assert {name for name, result in results.items() if result is not True} == {"InferenceRESTClient.explain"}


@pytest.mark.load
@pytest.mark.parametrize(
    "options",
    [
        ["-i", "http"],
        ["-i", "grpc"],
        ["-i", "grpc", "--streaming"],
        ["-i", "http", "--shared-memory", "system"],
        ["-i", "grpc", "--shared-memory", "system"],
        ["-i", "grpc", "--service-kind", "tfserving", "--model-signature-name", "serving_default"],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("concurrency", [1, 16])
def test_perf_analyzer(gateway: Gateway, options: list[str], concurrency: int, tmp_path: Path) -> None:
    """Set PERF_ANALYZER to the program; docs/protocols.md says where to get it."""
    if "PERF_ANALYZER" not in os.environ:
        pytest.skip("PERF_ANALYZER is not set")
    url = gateway.http if "http" in options else gateway.grpc
    command = [
        os.environ["PERF_ANALYZER"], "-m", "row", "-u", url, "--shape", "x:1,256", "-s", "999",
        "-p", "300", "-r", "10", "--concurrency-range", str(concurrency), *options,
    ]  # fmt: skip
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.search(r"throughput: ([\d.]+) infer/sec", done.stdout)
    assert found and float(found[1]) > 0
