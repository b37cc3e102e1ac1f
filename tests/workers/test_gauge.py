"""What a worker tells of its GPU."""

from __future__ import annotations

import sys

import pytest

from tests.support.gpus import StubNvml
from workers import gauge
from workers.gauge import Gauge, gauge_of
from zmq_offload.common.nvidia import Driver, NvidiaGpu
from zmq_offload.protocol.payload import decode_body

TWO = Driver("", "13.0", (NvidiaGpu("A", "9.0", "0000:3b:00.0"), NvidiaGpu("B", "9.0", "0000:af:00.0")))
MEMORY = {"used_bytes": 5 * 1024**3, "total_bytes": 80 * 1024**3}


def told(nvml: StubNvml) -> object:
    read = Gauge(nvml, "handle", 1.0)
    read.read()
    return decode_body(read.body, "a Heartbeat") if read.body else None


def test_it_tells_what_the_gpu_does() -> None:
    assert told(StubNvml()) == {"gpu": {**MEMORY, "busy_percent": 87}}
    assert told(StubNvml(parted=True)) == {"gpu": MEMORY}
    assert told(StubNvml(lost=True)) is None


def test_the_gpu_is_found_by_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its number is another for NVML where CUDA_VISIBLE_DEVICES hides some."""
    nvml = StubNvml()
    monkeypatch.setattr(gauge, "driver", lambda: TWO)
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    assert gauge_of("cuda:1", 1.0) is not None
    assert nvml.address == b"0000:af:00.0"
    assert gauge_of("cuda:2", 1.0) is None and gauge_of("cpu", 1.0) is None


def test_without_nvml_it_is_not_known(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(gauge, "driver", lambda: TWO)
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with caplog.at_level("INFO"):
        assert gauge_of("cuda:0", 1.0) is None
    assert "how much of cuda:0 is used is not known: " in caplog.text and "pip install nvidia-ml-py" in caplog.text
