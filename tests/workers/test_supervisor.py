"""Which devices a supervisor gives its processes, and near which cores."""

from __future__ import annotations

import pytest

from workers import supervisor
from workers.config import parse
from zmq_offload.common.nvidia import Driver, NvidiaGpu
from zmq_offload.errors import FailedPrecondition

GPUS = Driver("", "13.0", (NvidiaGpu("A", "9.0", "0000:3b:00.0"), NvidiaGpu("B", "9.0", "0000:af:00.0")))


def devices(monkeypatch: pytest.MonkeyPatch, found: Driver, *arguments: str) -> object:
    near = {"0000:3b:00.0": frozenset({0}), "0000:af:00.0": frozenset({1})}
    monkeypatch.setattr(supervisor, "driver", lambda: found)
    monkeypatch.setattr(supervisor, "cores_near", near.__getitem__)
    return supervisor._devices(parse(arguments))


def test_gpus_have_processes_and_cores_near_them(monkeypatch: pytest.MonkeyPatch) -> None:
    near = {"cuda:0": {0}, "cuda:1": {1}}
    found = devices(monkeypatch, GPUS, "--device", "cuda:all", "--processes", "2")
    assert found == (("cuda:0", "cuda:0", "cuda:1", "cuda:1"), near)
    assert devices(monkeypatch, GPUS, "--device", "cuda:1,cuda:2") == (("cuda:1", "cuda:2"), near)
    assert devices(monkeypatch, Driver("no driver", "", ()), "--device", "cuda:0") == (("cuda:0",), {})


def test_the_driver_is_not_asked_for_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert devices(monkeypatch, GPUS, "--processes", "3") == (("cpu", "cpu", "cpu"), {})


def test_all_gpus_of_a_machine_without_one_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FailedPrecondition, match=r"^cuda:all finds no GPU: no driver; install NVIDIA's driver"):
        devices(monkeypatch, Driver("no driver", "", ()), "--device", "cuda:all")
    with pytest.raises(FailedPrecondition, match=r"finds no GPU: the driver has none"):
        devices(monkeypatch, Driver("", "13.0", ()), "--device", "cuda:all")
