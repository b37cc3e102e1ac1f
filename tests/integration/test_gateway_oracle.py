"""The gateway answers as Triton does, for calls good and bad, but for the decisions in `DIFFERENCES`."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.support import oracle, oracle_calls
from tests.support.fabrics import gateway_of_signed_models
from tests.support.processes import Gateway

RECORDED: dict[str, dict[str, Any]] = json.loads(oracle.RECORDED.read_text())

MALFORMED = "a request that cannot be read is its sender's fault: 400, where Triton says 500"
LOGGING = "the log belongs to whoever started the gateway: 501, UNIMPLEMENTED"
CONFIG = "the configuration has what is known of a model; most of Triton's is about its back ends"
DIFFERENCES: dict[tuple[str, str], str] = {
    **{
        ("http", name): "KServe's client reads JSON, which Triton leaves out; its own clients read the status"
        for name in ("live", "ready", "model ready", "model version ready")
    },
    **{
        ("http", f"infer, {what}"): MALFORMED
        for what in (
            "negative extent", "extent no integer", "shape no list", "no name", "no shape", "no datatype",
            "too few values", "too many values", "text as values", "data no list", "no inputs", "inputs no list",
            "id no text", "not an object", "malformed", "not UTF-8",
        )
    },
    ("http", "index, malformed"): MALFORMED,
    ("http", "load, malformed"): MALFORMED,
    ("http", "binary, size negative"): MALFORMED,
    ("http", "binary, head too short"): MALFORMED,
    ("http", "gzip, damaged"): "Triton takes what is not gzip for an empty request, and answers it",
    ("http", "unknown content coding"): "415 is HTTP's status for this (RFC 9110, 15.5.16), where Triton says 501",
    ("http", "gzip answer of a few bytes"): "compressed, it would be longer",
    ("http", "model, escaped"): "a URL is the same URL with a letter escaped (RFC 3986, 2.3)",
    ("http", "config"): CONFIG,
    ("http", "config of a version"): CONFIG,
    ("http", "logging"): LOGGING,
    ("grpc", "logging"): LOGGING,
    ("grpc", "config"): CONFIG,
    ("grpc", "register system shared memory, no key"): "its sender's fault, where Triton says INTERNAL",
}  # fmt: skip
"""Where another answer is right, and why."""


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    with gateway_of_signed_models("--model-control", "--system-shared-memory") as running:
        yield running


@pytest.fixture(scope="module")
def channel(gateway: Gateway) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(gateway.grpc) as made:
        yield made


def compare(protocol: str, name: str, answer: Any) -> None:
    ours, theirs = oracle.outline(answer), oracle.outline(RECORDED[protocol][name])
    if (protocol, name) in DIFFERENCES:
        assert ours != theirs, "the difference is gone: take it from the list"
    else:
        assert ours == theirs, f"{answer}\nTriton: {RECORDED[protocol][name]}"


@pytest.mark.parametrize("name", oracle_calls.HTTP)
def test_http(gateway: Gateway, name: str) -> None:
    compare("http", name, oracle.ask_http(gateway.http, oracle_calls.HTTP[name]))


@pytest.mark.parametrize("name", oracle_calls.GRPC)
def test_grpc(channel: grpc.Channel, name: str) -> None:
    compare("grpc", name, oracle.ask_grpc(channel, *oracle_calls.GRPC[name]))


@pytest.mark.parametrize("name", oracle_calls.STREAM)
def test_stream(channel: grpc.Channel, name: str) -> None:
    compare("stream", name, oracle.ask_stream(channel, oracle_calls.STREAM[name]))


@pytest.mark.load
def test_the_recorded_answers_are_those_of_triton(tmp_path: Path) -> None:
    """Set TRITON_PYTHON to the Python of an environment with nvidia-pytriton."""
    if "TRITON_PYTHON" not in os.environ:
        pytest.skip("TRITON_PYTHON is not set")
    with oracle.triton(tmp_path, os.environ["TRITON_PYTHON"]) as running:
        answers = oracle.ask_all(running.http, running.grpc)
    assert oracle.outline(answers) == oracle.outline(RECORDED)
