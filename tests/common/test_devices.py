"""Which devices an option names, and which process of a worker has which."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.gpus import StubDriver
from zmq_offload.common import nvidia
from zmq_offload.common.devices import all_of, named, number_of, of_seats
from zmq_offload.common.nvidia import Driver, NvidiaGpu, cores_near, cores_of, driver


def test_devices_are_the_cpu_or_gpus() -> None:
    assert named("cpu") == ("cpu",) and named("cuda:all") == ("cuda:all",)
    assert named("cuda:1, cuda:0") == ("cuda:1", "cuda:0")


@pytest.mark.parametrize("text", ["", "cuda", "cuda:0,", "cpu,cuda:0", "cuda:0,cuda:0", "cuda:all,cuda:1", "cuda:100"])
def test_other_devices_are_not(text: str) -> None:
    with pytest.raises(ValueError, match=f"^{text}$"):
        named(text)


def test_each_gpu_has_its_own_processes() -> None:
    assert of_seats(("cuda:0", "cuda:1"), 2) == ("cuda:0", "cuda:0", "cuda:1", "cuda:1")
    assert of_seats(all_of(("cuda:all",), 2), 1) == ("cuda:0", "cuda:1")
    assert all_of(("cuda:3",), 2) == ("cuda:3",)
    assert [number_of(device) for device in ("cpu", "cuda:12", "cuda:all")] == [None, 12, None]


def test_the_driver_tells_where_a_gpu_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvidia.ctypes, "CDLL", lambda _: StubDriver(2))
    assert driver() == Driver(
        "", "12.4", (NvidiaGpu("GPU 0", "9.0", "0000:3b:00.0"), NvidiaGpu("GPU 1", "9.1", "0000:3c:00.0"))
    )


def test_the_system_tells_which_cores_are_near_a_gpu(tmp_path: Path) -> None:
    (tmp_path / "0000:3b:00.0").mkdir()
    (tmp_path / "0000:3b:00.0" / "local_cpulist").write_text("0-2,8\n")
    assert cores_near("0000:3b:00.0", tmp_path) == {0, 1, 2, 8}
    assert cores_near("0000:3c:00.0", tmp_path) == cores_near("", tmp_path) == frozenset()
    assert cores_of("\n") == frozenset()
