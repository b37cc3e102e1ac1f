"""A worker's versions for GPUs: what is refused when it loads them, and what a lack of memory becomes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tvm

from tests.support import onnx_models
from workers.config import parse
from workers.executor import GraphExecutor
from zmq_offload.artifacts.repository import DESCRIPTION, Repository
from zmq_offload.compile import Compiled
from zmq_offload.errors import FailedPrecondition, ResourceExhausted
from zmq_offload.runtime.gpu import Gpu, GpuMachine

H2 = onnx_models.random(2, 16, seed=3)


def gpu(capability: str) -> Gpu:
    """The CPU, in the place of a GPU."""
    return Gpu("cuda:0", capability, tvm.cpu())


@pytest.fixture
def repository(fresh_mlp: Path) -> Repository:
    """A version that says that it was built for a GPU. Its library is the CPU's, for the stub."""
    folder = fresh_mlp / "repository" / "mlp" / "1"
    described = json.loads((folder / DESCRIPTION).read_text())
    (folder / DESCRIPTION).write_text(json.dumps({**described, "gpu": {"architecture": "sm_90"}}))
    return Repository(folder.parent.parent)


def test_a_worker_without_a_gpu_refuses_it(repository: Repository) -> None:
    with pytest.raises(FailedPrecondition, match=r"subgraph\.so was built for a GPU \(sm_90\), .* --device cuda:0"):
        GraphExecutor(repository, "mlp", 1)


def test_a_worker_with_another_gpu_refuses_it(repository: Repository) -> None:
    with pytest.raises(FailedPrecondition, match=r"subgraph\.so was built for .* capability 9\.0, cuda:0 has 8\.6; "):
        GraphExecutor(repository, "mlp", 1, gpu("8.6"))


def test_a_worker_with_the_gpu_runs_it_there(repository: Repository) -> None:
    executor = GraphExecutor(repository, "mlp", 1, gpu("9.0"))
    assert isinstance(executor._machine, GpuMachine)
    ((found,),) = executor.run([[H2]])
    np.testing.assert_allclose(found, 1 / (1 + np.exp(-(H2 @ onnx_models.random(16, 8, seed=2)))), atol=1e-5)


def test_inputs_may_be_unaligned_read_only_views(repository: Repository) -> None:
    frame = memoryview(b"\x01" + H2.tobytes())
    view = np.frombuffer(frame[1:], "<f4").reshape(2, 16)
    executor = GraphExecutor(repository, "mlp", 1, gpu("9.0"))
    np.testing.assert_array_equal(executor.run([[view]])[0][0], executor.run([[H2]])[0][0])


def test_a_version_for_the_cpu_runs_there_in_a_worker_with_a_gpu(compiled_mlp: Compiled) -> None:
    executor = GraphExecutor(Repository(compiled_mlp.subgraphs[0].parent.parent), "mlp", 1, gpu("9.0"))
    assert not isinstance(executor._machine, GpuMachine)


def test_a_lack_of_memory_is_an_error_of_the_request(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    executor = GraphExecutor(repository, "mlp", 1, gpu("9.0"))

    def fails(*_: object) -> None:
        raise RuntimeError("CUDA Runtime Error: cudaErrorMemoryAllocation (2): out of memory")

    with monkeypatch.context() as patched:
        patched.setattr(executor._machine, "_entry", fails)
        with pytest.raises(ResourceExhausted, match="model 'mlp' version 1: the GPU has too little memory"):
            executor.run([[H2]])
    assert executor.run([[H2]])[0][0].shape == (2, 8)


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
