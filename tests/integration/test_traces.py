"""Traces through real processes: what a collector gets of requests to a gateway."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import urllib.request
from collections.abc import Iterator
from typing import NamedTuple

import grpc
import numpy as np
import opentelemetry.trace
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from tests.support.collector import Collector, Span, collecting
from tests.support.processes import (
    Fabric,
    Gateway,
    eventually,
    faulty_workers,
    running_broker,
    running_gateway,
    running_gateway_with_broker,
    running_workers,
    wait_for_workers,
    worker_pids,
)
from zmq_offload import Client, load
from zmq_offload.compile import Compiled
from zmq_offload.protobuf.messages import message_class

TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
HEADER = f"00-{TRACE}-{CALLER}-01"


class Running(NamedTuple):
    collector: Collector
    broker: Fabric
    gateway: Gateway


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    with (
        collecting() as collector,
        running_broker("--traces", collector.url) as broker,
        faulty_workers(broker.backend),
        running_gateway(broker.frontend, options=["--traces", collector.url, "--trace-share", "0"]) as gateway,
    ):
        wait_for_workers(broker.frontend, 1)
        yield Running(collector, broker, gateway)


@pytest.fixture(autouse=True)
def _empty(running: Running) -> None:
    running.collector.spans.clear()


def ask(gateway: Gateway, path: str, body: object, *traceparents: str) -> int:
    request = urllib.request.Request(f"{gateway.url}/{path}", json.dumps(body).encode())
    for traceparent in traceparents:
        request.add_header("traceparent", traceparent)
    try:
        with urllib.request.urlopen(request, timeout=20) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def one(spans: list[Span], name: str) -> Span:
    (found,) = [span for span in spans if span.name == name]
    return found


INFER = {"inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}]}


def check(spans: list[Span], parent: str = CALLER, trace: str = TRACE) -> None:
    """All four spans of a served request: one trace, the right parents, times within each other."""
    assert sorted(span.name for span in spans) == ["attempt", "compute", "infer echo", "queue"]
    server, queue, attempt, compute = (one(spans, name) for name in ("infer echo", "queue", "attempt", "compute"))
    assert {span.trace for span in spans} == {trace}
    assert (server.parent, queue.parent, attempt.parent, compute.parent) == (parent, server.id, server.id, attempt.id)
    assert (server.service, queue.service) == ("zmq-offload-gateway", "zmq-offload-broker")
    assert server.kind == 2
    tolerance = 5_000_000  # two processes, and two readings of the clock
    for inner, outer in ((queue, server), (attempt, server), (compute, attempt)):
        assert outer.start - tolerance <= inner.start <= inner.end <= outer.end + tolerance
    assert queue.end <= attempt.start
    assert (attempt.attributes["zmq_offload.rows"], attempt.attributes["zmq_offload.outcome"]) == (1, "served")
    assert not any(span.error for span in spans)


def over_grpc(gateway: Gateway, trace: str) -> None:
    message = message_class("inference.ModelInferRequest")(model_name="echo")
    message.inputs.add(name="x", datatype="FP32", shape=[1, 3])
    message.raw_input_contents.append(np.zeros(3, np.float32).tobytes())
    with grpc.insecure_channel(gateway.grpc) as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        call(message.SerializeToString(), metadata=[("traceparent", f"00-{trace}-{CALLER}-01")], timeout=20)


def test_requests_over_http_and_grpc_an_error_and_others_that_are_not_traced(running: Running) -> None:
    """All at once, as spans are sent once a second."""
    of_grpc, of_error = TRACE[::-1], TRACE[8:] + TRACE[:8]
    for header in ([], ["00-garbage"], [HEADER[:-1] + "0"], [HEADER]):
        assert ask(running.gateway, "v2/models/echo/infer", INFER, *header) == 200
    over_grpc(running.gateway, of_grpc)
    refused = {**INFER, "parameters": {"timeout": 1}}  # a microsecond
    assert ask(running.gateway, "v2/models/echo/infer", refused, f"00-{of_error}-{CALLER}-01") == 504
    spans = running.collector.wait(9)
    assert {span.trace for span in spans} == {TRACE, of_grpc, of_error}
    check([span for span in spans if span.trace == TRACE])
    check([span for span in spans if span.trace == of_grpc], trace=of_grpc)
    (span,) = (span for span in spans if span.trace == of_error)  # the broker refuses it
    assert span.attributes["error.type"] == "DEADLINE_EXCEEDED" and span.error is not None and "deadline" in span.error


def test_a_worker_that_is_killed_gives_two_attempts(running: Running) -> None:
    frontend = running.broker.frontend
    with Client(frontend) as client:
        future = client.submit("echo", {"sleep": np.array(0.3)}, trace=HEADER)
        eventually(lambda: any(worker["outstanding"] for worker in client.status()["workers"]))
        (pid,) = worker_pids(frontend)
        os.kill(pid, signal.SIGKILL)
        future.result()
    spans = running.collector.wait(5)
    assert [span.name for span in spans] == ["queue", "attempt", "queue", "attempt", "compute"]
    lost, served = (span for span in spans if span.name == "attempt")
    assert (lost.attributes["zmq_offload.outcome"], served.attributes["zmq_offload.outcome"]) == ("lost", "served")
    assert (
        lost.attributes["zmq_offload.worker"]
        == f"{lost.attributes['zmq_offload.worker']}".rpartition("-")[0] + f"-{pid}"
    )
    assert lost.error and not served.error and lost.end <= served.start
    assert {(span.trace, span.parent) for span in (lost, served)} == {(TRACE, CALLER)}


@pytest.mark.observers
def test_calls_of_a_device_model_belong_to_the_span_around_them(
    running: Running, compiled_mlp: Compiled, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider, made = TracerProvider(), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(made))
    monkeypatch.setattr(opentelemetry.trace, "get_tracer", lambda *_: provider.get_tracer("test"))
    x = np.ones((2, 8), np.float32)
    repository = str(compiled_mlp.subgraphs[0].parent.parent)
    with (
        running_workers(running.broker.backend, "--repository", repository, "--threads", "1"),
        load(compiled_mlp.device, running.broker.frontend, trace=True) as model,
    ):
        wait_for_workers(running.broker.frontend, 2)
        with provider.get_tracer("test").start_as_current_span("frame") as frame:
            results = [model(x), model.submit(x).result(), *model.map([x])]
            results.append(asyncio.run(model.acall(x)))
    assert all(np.array_equal(result, results[0]) for result in results)
    context = frame.get_span_context()
    calls = [span for span in made.get_finished_spans() if span.name == "infer mlp"]
    assert len(calls) == 4 and {span.parent and span.parent.span_id for span in calls} == {context.span_id}
    spans = running.collector.wait(12)
    assert {span.trace for span in spans} == {f"{context.trace_id:032x}"}
    assert {span.parent for span in spans if span.name == "attempt"} == {f"{s.context.span_id:016x}" for s in calls}


@pytest.mark.observers
def test_a_broker_in_the_gateways_process_and_a_share(running: Running) -> None:
    collector = running.collector
    with running_gateway_with_broker("--traces", collector.url, "--trace-share", "1") as (gateway, broker):
        with faulty_workers(broker.backend):
            wait_for_workers(broker.frontend, 1)
            assert ask(gateway, "v2/models/echo/infer", INFER) == 200
        assert gateway.process.end() == 0  # what waits is sent at the end
    check(collector.spans, "", collector.spans[0].trace)
