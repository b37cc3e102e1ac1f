"""pyzmq is as `zmq_offload.net.pyzmq_internals` expects it. After an update of pyzmq, look there first."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import zmq
import zmq.auth

from zmq_offload.net import pyzmq_internals

ADVICE = "pyzmq has changed: adapt zmq_offload/net/pyzmq_internals.py"


def test_the_backends_send_lacks_only_arguments_that_are_not_used() -> None:
    assert issubclass(zmq.Socket, zmq.backend.Socket), ADVICE
    backend = list(inspect.signature(zmq.backend.Socket.send).parameters)
    assert backend[:3] == ["self", "data", "flags"], ADVICE
    # Calling the backend directly loses only these two.
    skipped = set(inspect.signature(zmq.Socket.send).parameters) - set(backend)
    assert skipped == {"routing_id", "group"}, ADVICE


def test_the_backend_takes_bytes_views_and_frames() -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        one, other = context.socket(zmq.PAIR), context.socket(zmq.PAIR)
        one.bind("inproc://pair")
        other.connect("inproc://pair")
        for data in (b"bytes", memoryview(b"view")):
            pyzmq_internals.send_frame(one, data, zmq.DONTWAIT | zmq.SNDMORE)
        pyzmq_internals.send_frame(one, zmq.Frame(b"frame"), zmq.DONTWAIT)
        assert other.poll(5000)
        assert other.recv_multipart() == [b"bytes", b"view", b"frame"], ADVICE
    finally:
        context.destroy(linger=0)


def test_certificates_fail_to_load_as_expected(tmp_path: Path) -> None:
    other, missing = tmp_path / "other", tmp_path / "missing"
    other.write_text("no certificate\n")
    with pytest.raises(ValueError, match="public key") as not_one:
        zmq.auth.load_certificate(other)
    assert pyzmq_internals.is_not_a_certificate(not_one.value), ADVICE
    with pytest.raises(OSError, match="missing") as absent:
        zmq.auth.load_certificate(missing)
    assert pyzmq_internals.is_missing_certificate(absent.value, missing), ADVICE
