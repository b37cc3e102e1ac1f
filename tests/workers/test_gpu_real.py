"""A worker on a GPU of NVIDIA's. Without one these tests are skipped; a stub is in its place in others."""

from __future__ import annotations

import importlib.util
import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.support import onnx_models
from tests.support.processes import eventually, running_broker, running_workers, status, wait_for_workers
from zmq_offload import Client
from zmq_offload.artifacts.repository import Repository
from zmq_offload.common import nvidia
from zmq_offload.protocol.payload import Array

FOUND = nvidia.driver()
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not FOUND.gpus, reason=f"no GPU of NVIDIA's: {FOUND.error or 'the driver finds none'}"),
]

GIVEN = [onnx_models.random(1 + seed % 3, 16, seed=seed) for seed in range(60)]


def assert_right(found: Array, h2: Array) -> None:
    np.testing.assert_allclose(found, 1 / (1 + np.exp(-(h2 @ onnx_models.random(16, 8, seed=2)))), atol=1e-5)


@pytest.fixture(scope="module")
def repository(mlp: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from zmq_offload.compile import BuildOptions, compile_model

    output = tmp_path_factory.mktemp("gpu")
    options = BuildOptions(output=output, target="cuda-native")
    compile_model(mlp, inputs={"x": ("N", 8)}, cut=["h2"], until=["h4"], name="mlp", options=options)
    return output / "repository"


def test_runs_overlap_and_outputs_are_those_of_their_inputs(repository: Path) -> None:
    from workers.executor import GpuExecutor, executor_of
    from zmq_offload.runtime.gpu import open_gpu

    executor = executor_of(Repository(repository), "mlp", 1, open_gpu("cuda:0"))
    assert isinstance(executor, GpuExecutor)
    last = executor.begin([[GIVEN[0]]])
    for before, h2 in itertools.pairwise(GIVEN):
        following = executor.begin([[h2]])
        assert_right(last()[0][0], before)
        last = following
    assert_right(last()[0][0], GIVEN[-1])
    for one, two in itertools.pairwise(GIVEN):
        first, second = executor.run([[one], [two]])
        assert_right(first[0], one)
        assert_right(second[0], two)


def test_large_inputs_and_outputs_pass_through_page_locked_memory(repository: Path) -> None:
    from workers.executor import GpuExecutor, executor_of
    from zmq_offload.runtime.gpu import open_gpu

    executor = executor_of(Repository(repository), "mlp", 1, open_gpu("cuda:0"))
    assert isinstance(executor, GpuExecutor)
    one, two = (onnx_models.random(100_000, 16, seed=seed) for seed in (1, 2))
    ends = [executor.begin([[given]]) for given in (one, two)]
    for end, given in zip(ends, (one, two), strict=True):
        assert_right(end()[0][0], given)


def test_a_worker_for_each_gpu_serves_and_tells_its_memory(repository: Path) -> None:
    options = ["--repository", str(repository), "--device", "cuda:all", "--max-batch", "8"]
    with (
        running_broker() as broker,
        running_workers(broker.backend, *options),
        Client(broker.frontend) as client,
    ):
        wait_for_workers(broker.frontend, len(FOUND.gpus), timeout=120)
        calls = [client.submit("mlp", {"h2": h2}, timeout=60) for h2 in GIVEN]
        for h2, call in zip(GIVEN, calls, strict=True):
            (found,) = call.result().values()
            assert_right(found, h2)
        devices = {worker["device"] for worker in status(broker.frontend)["workers"]}
        assert devices == {f"cuda:{number}" for number in range(len(FOUND.gpus))}
        if importlib.util.find_spec("pynvml") is not None:
            eventually(lambda: all("used_bytes" in w.get("gpu", {}) for w in status(broker.frontend)["workers"]))


def test_a_kernel_that_reads_a_wrong_address_loses_the_gpu_to_its_process() -> None:
    """What CUDA then says is known for that."""
    code = """
import ctypes
from zmq_offload.common.cudaerrors import gpu_lost
from zmq_offload.runtime.gpu import open_gpu
copies = open_gpu("cuda:0").copies
cuda = ctypes.CDLL("libcuda.so.1")
ptx = b'''.version 7.0
.target sm_75
.address_size 64
.visible .entry wrong() { .reg .u64 %a; mov.u64 %a, 8; st.global.u32 [%a], 1; ret; }'''
module, function = ctypes.c_void_p(), ctypes.c_void_p()
assert cuda.cuModuleLoadData(ctypes.byref(module), ptx) == 0
assert cuda.cuModuleGetFunction(ctypes.byref(function), module, b"wrong") == 0
assert cuda.cuLaunchKernel(function, 1, 1, 1, 1, 1, 1, 0, None, None, None) == 0
try:
    copies.settle()
except RuntimeError as error:
    print(gpu_lost(error))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "cudaErrorIllegalAddress\n", done.stderr
