"""A worker's versions for GPUs: what is refused when it loads them, and what a lack of memory becomes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.support import onnx_models
from tests.support.gpus import for_a_gpu, stub_gpu
from workers.config import parse
from workers.executor import executor_of
from workers.serving import DeviceLost, Job, begin, execute
from zmq_offload.artifacts.repository import Repository
from zmq_offload.compile import Compiled
from zmq_offload.errors import FailedPrecondition, OffloadError, ResourceExhausted
from zmq_offload.runtime.gpu import GpuMachine

H2 = onnx_models.random(2, 16, seed=3)


@pytest.fixture
def repository(fresh_mlp: Path) -> Repository:
    return Repository(for_a_gpu(fresh_mlp / "repository"))


def test_a_worker_without_a_gpu_refuses_it(repository: Repository) -> None:
    with pytest.raises(FailedPrecondition, match=r"subgraph\.so was built for a GPU \(sm_90\), .* --device cuda:0"):
        executor_of(repository, "mlp", 1)


def test_a_worker_with_another_gpu_refuses_it(repository: Repository) -> None:
    with pytest.raises(FailedPrecondition, match=r"subgraph\.so was built for .* capability 9\.0, cuda:0 has 8\.6; "):
        executor_of(repository, "mlp", 1, stub_gpu(capability="8.6"))


def test_a_worker_with_the_gpu_runs_it_there(repository: Repository) -> None:
    executor = executor_of(repository, "mlp", 1, stub_gpu())
    assert isinstance(executor._machine, GpuMachine)
    ((found,),) = executor.run([[H2]])
    np.testing.assert_allclose(found, 1 / (1 + np.exp(-(H2 @ onnx_models.random(16, 8, seed=2)))), atol=1e-5)


def test_inputs_may_be_unaligned_read_only_views(repository: Repository) -> None:
    frame = memoryview(b"\x01" + H2.tobytes())
    view = np.frombuffer(frame[1:], "<f4").reshape(2, 16)
    executor = executor_of(repository, "mlp", 1, stub_gpu())
    np.testing.assert_array_equal(executor.run([[view]])[0][0], executor.run([[H2]])[0][0])


def test_a_version_for_the_cpu_runs_there_in_a_worker_with_a_gpu(compiled_mlp: Compiled) -> None:
    executor = executor_of(Repository(compiled_mlp.subgraphs[0].parent.parent), "mlp", 1, stub_gpu())
    assert not isinstance(executor._machine, GpuMachine)


def test_a_lack_of_memory_is_an_error_of_the_request(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    executor = executor_of(repository, "mlp", 1, stub_gpu())

    def fails(*_: object) -> None:
        raise RuntimeError("CUDA Runtime Error: cudaErrorMemoryAllocation (2): out of memory")

    with monkeypatch.context() as patched:
        patched.setattr(executor._machine, "_entry", fails)
        with pytest.raises(ResourceExhausted, match="model 'mlp' version 1: the GPU has too little memory"):
            executor.run([[H2]])
    assert executor.run([[H2]])[0][0].shape == (2, 8)


def test_a_run_ahead_without_memory_runs_when_the_one_before_has_ended(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor = executor_of(repository, "mlp", 1, stub_gpu())
    job = Job(executor, {"h2": H2})
    first = begin([job])

    def fails(*_: object) -> None:
        raise RuntimeError("CUDA Runtime Error: cudaErrorMemoryAllocation (2): out of memory")

    with monkeypatch.context() as patched:
        patched.setattr(executor._machine, "_entry", fails)
        ahead, never = begin([job]), begin([job])
        (right,), (refused,) = first(), never()
    assert isinstance(refused, ResourceExhausted)
    assert not isinstance(right, OffloadError)
    (found,) = ahead()
    assert not isinstance(found, OffloadError) and [bytes(f) for f in found] == [bytes(f) for f in right]


def test_a_lost_gpu_is_no_answer_to_a_request(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    executor = executor_of(repository, "mlp", 1, stub_gpu())

    def fails(*_: object) -> None:
        raise RuntimeError("CUDA Runtime Error: cudaErrorIllegalAddress (700): an illegal memory access")

    monkeypatch.setattr(executor._machine, "_entry", fails)
    with pytest.raises(DeviceLost, match=r"^model .mlp. version 1: .* lost .* \(cudaErrorIllegalAddress\)"):
        execute([Job(executor, {"h2": H2}), Job(executor, {"h2": H2})])


@pytest.mark.parametrize(
    "device", ["cuda", "cuda:-1", "gpu", "cuda:01", "cuda:0,cuda:0", "cpu,cuda:0", "cuda:all,cuda:0"]
)
def test_devices_that_are_not_known_are_refused(device: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--device", device])
    assert "cpu, GPUs such as cuda:0 or cuda:0,cuda:1, or cuda:all" in capsys.readouterr().err.replace("\n", " ")


def test_the_device_is_the_cpu_by_default() -> None:
    assert parse([]).devices == ("cpu",) and parse(["--device", "cuda:1"]).devices == ("cuda:1",)


def test_a_process_with_a_gpu_may_hold_more_requests_and_is_alone_there_by_itself() -> None:
    gpus = parse(["--device", "cuda:0, cuda:2", "--processes", "auto"])
    assert (gpus.devices, gpus.processes, gpus.slots) == (("cuda:0", "cuda:2"), 1, 4)
    assert parse(["--device", "cuda:all", "--processes", "2", "--slots", "3"]).slots == 3
