"""What the doctor makes of cores, memory, limits, clocks and GPUs."""

from __future__ import annotations

import pytest

from tests.support.gpus import StubDriver
from zmq_offload.common import nvidia
from zmq_offload.doctor.checks.findings import Finding, Level, failed
from zmq_offload.doctor.checks.machine import Clock, Gpus, Machine, check_clock, check_gpus, check_machine
from zmq_offload.doctor.facts import machine

GIB = 1024**3
GOOD = Machine(8, 8, None, 16 * GIB, 8 * GIB, 1024, 1_000_000, "", 4 * GIB)


def worst(findings: list[Finding]) -> Finding:
    order = list(Level)
    return max(findings, key=lambda finding: order.index(finding.level))


def found(facts: Machine, connections: int = 1000) -> Finding:
    return worst(check_machine(facts, connections, 2))


def test_a_good_machine_has_nothing_wrong() -> None:
    findings = check_machine(GOOD, 1000, 2)
    assert {finding.level for finding in findings} == {Level.OK} and not failed(findings)
    assert [finding.text for finding in findings[:2]] == ["8 cores of 8, no quota", "8 GiB of 16 GiB are available"]
    assert found(GOOD._replace(files_hard=None)).level is Level.OK


@pytest.mark.parametrize(
    ("facts", "level", "check", "text", "remedy"),
    [
        (GOOD._replace(quota=0.5), Level.WARNING, "cores", "a quota of 0.5: less than a core", "docker run --cpus=1"),
        (GOOD._replace(quota=1.5), Level.NOTE, "cores", "workers use 1 core, and the rest", "a whole number of cores"),
        (GOOD._replace(available=100 * 1024**2), Level.WARNING, "memory", "100 MiB of 16 GiB", "--processes"),
        (GOOD._replace(files_hard=1024), Level.WARNING, "files", "takes 960 connections", "ulimit -Hn, LimitNOFILE="),
        (GOOD._replace(files_hard=4096), Level.OK, "", "", ""),
        (GOOD._replace(memfd="Function not implemented"), Level.WARNING, "shared memory",
         "no memory can be shared (Function not implemented)", "allow memfd_create"),
        (GOOD._replace(shm=None), Level.NOTE, "shared memory", "/dev/shm is missing", "--shm-size=1g"),
        (GOOD._replace(shm=64 * 1024**2), Level.NOTE, "shared memory", "/dev/shm has 64 MiB free", "--shm-size=1g"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_with_a_remedy(facts: Machine, level: Level, check: str, text: str, remedy: str) -> None:
    finding = found(facts)
    assert finding.level is level
    if level is not Level.OK:
        assert finding.check == check and text in finding.text and remedy in finding.remedy


def test_connections_over_the_limit_of_files_are_noted() -> None:
    finding = found(GOOD._replace(files_hard=20000), 16384)
    assert finding.level is Level.NOTE and "19936 connections fit, not the 16384" in finding.text
    assert "or lower --max-connections" in finding.remedy


@pytest.mark.parametrize(
    ("facts", "level", "text", "remedy"),
    [
        (Clock(1.8e9, True, 1e-9, False), Level.OK, "synchronized", ""),
        (Clock(1.8e9, None, 1e-9, False), Level.OK, "does not tell", ""),
        (Clock(1.8e9, False, 1e-9, False), Level.NOTE, "no time service", "timedatectl set-ntp true"),
        (Clock(1000.0, False, 1e-9, False), Level.FAIL, "before this release", "set the date"),
        (Clock(1.8e9, True, 0.01, False), Level.FAIL, "has steps of 10 ms", "current_clocksource"),
        (Clock(1.8e9, True, 1e-9, True), Level.FAIL, "goes backwards", "current_clocksource"),
    ],
)
def test_clocks(facts: Clock, level: Level, text: str, remedy: str) -> None:
    (finding,) = check_clock(facts)
    assert finding.level is level and text in finding.text and remedy in finding.remedy


NONE = Gpus("libcuda.so.1 is missing", "", ())
H100 = Gpus("", "13.0", [("NVIDIA H100", "9.0")])
OLD = Gpus("", "12.4", [("NVIDIA H100", "9.0")])
TWO = Gpus("", "13.0", [("NVIDIA H100", "9.0"), ("NVIDIA L40S", "8.9")])


@pytest.mark.parametrize(
    ("facts", "device", "needed", "level", "text", "remedy"),
    [
        (NONE, "cpu", [], Level.NOTE, "everything here runs on the CPU", ""),
        (NONE, "cpu", [("m:1", "9.0")], Level.FAIL, "libcuda.so.1 is missing; m:1 needs one", "NVIDIA's driver"),
        (NONE, "cuda:0", [], Level.FAIL, "--device cuda:0 needs one", "docker run --gpus all"),
        (Gpus("", "13.0", []), "cpu", [], Level.NOTE, "the driver finds none", ""),
        (H100, "cpu", [], Level.OK, "CUDA 13.0: cuda:0 NVIDIA H100 (9.0)", ""),
        (H100, "cuda:0", [("m:1", "9.0")], Level.OK, "H100", ""),
        (H100, "cuda:1", [], Level.FAIL, "--device cuda:1 is not there", "use cuda:0 to cuda:0"),
        (H100, "cuda:0", [("m:1", "8.0")], Level.FAIL, "compute capability 8.0, NVIDIA H100 has 9.0", "--target"),
        (H100, "cuda:0", [("m:1", "9.1")], Level.FAIL, "compute capability 9.1", "--target cuda-native"),
        (H100, "cuda:0,cuda:1", [], Level.FAIL, "--device cuda:1 is not there", "use cuda:0 to cuda:0"),
        (TWO, "cuda:all", [("m:1", "9.0")], Level.FAIL, "9.0, NVIDIA L40S has 8.9", "--target cuda-native"),
        (TWO, "cuda:0", [("m:1", "9.0")], Level.OK, "cuda:1 NVIDIA L40S", ""),
        (NONE, "cuda:all", [], Level.FAIL, "--device cuda:all needs one", "docker run --gpus all"),
        (OLD, "cuda:0", [], Level.FAIL, "the driver has CUDA 12.4, and workers need 13.0", "from 580 on"),
        (OLD, "cpu", [], Level.OK, "CUDA 12.4: cuda:0 NVIDIA H100", ""),
        (H100, "cpu", [("m:1", "9.0")], Level.WARNING, "m:1 needs a GPU", "--device cuda:0"),
    ],
)
def test_gpus(facts: Gpus, device: str, needed: list[tuple[str, str]], level: Level, text: str, remedy: str) -> None:
    finding = worst(check_gpus(facts, device.split(","), needed))
    assert finding.level is level and text in finding.text and remedy in finding.remedy


def test_facts_of_this_machine_can_be_gathered() -> None:
    here = machine.machine()
    assert here.affinity >= 1 and 0 < here.available <= here.memory
    assert not machine.clock().backwards
    gpus = machine.gpus()
    assert gpus.error or gpus.driver


def test_gpus_are_asked_of_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvidia.ctypes, "CDLL", lambda _: StubDriver(2))
    assert machine.gpus() == Gpus("", "12.4", [("GPU 0", "9.0"), ("GPU 1", "9.1")])
    monkeypatch.setattr(nvidia.ctypes, "CDLL", lambda _: StubDriver(0, 100))
    assert machine.gpus().error == "cuInit says 100"
