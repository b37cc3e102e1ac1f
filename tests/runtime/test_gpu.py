"""A virtual machine on a GPU, with the CPU in the place of one."""

from __future__ import annotations

import gc

import numpy as np
import pytest
import tvm

from tests.support import onnx_models
from zmq_offload.artifacts.repository import LIBRARY
from zmq_offload.compile import Compiled
from zmq_offload.errors import FailedPrecondition
from zmq_offload.protocol.tensors import TensorSpec
from zmq_offload.runtime.gpu import Gpu, GpuMachine, open_gpu
from zmq_offload.runtime.machine import Machine, load_library

STUB = Gpu("cuda:0", "9.0", tvm.cpu())


@pytest.mark.parametrize("shape", [(2, 16), (-1, 16)])
def test_it_computes_what_the_cpu_does_with_memory_of_its_own_or_new(
    compiled_mlp: Compiled, shape: tuple[int, ...]
) -> None:
    library = load_library(compiled_mlp.subgraphs[0] / LIBRARY)
    specs = [TensorSpec("h2", "FP32", shape)]
    staged, plain = GpuMachine(library, specs, STUB), Machine(library, specs)
    held = []
    for seed in range(3):
        h2 = onnx_models.random(2, 16, seed=seed)
        held.append((staged.run([h2])[0], plain.run([h2])[0]))
    del staged, plain
    gc.collect()
    for found, right in held:
        np.testing.assert_array_equal(found, right)


def test_requests_run_together(compiled_mlp: Compiled) -> None:
    staged = GpuMachine(load_library(compiled_mlp.subgraphs[0] / LIBRARY), [TensorSpec("h2", "FP32", (-1, 16))], STUB)
    rows = onnx_models.random(2, 16, seed=1)
    (together,), (alone,) = staged.run_together([[rows[:1]], [rows[1:]]]), staged.run([rows])
    np.testing.assert_array_equal(together, alone)


@pytest.mark.skipif(tvm.cuda(0).exist, reason="this machine has a GPU")
def test_without_a_gpu_it_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FailedPrecondition, match=r"^cuda:0 (cannot be used: .*libcuda\.so\.1|is not there; )"):
        open_gpu("cuda:0")


def test_a_gpu_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zmq_offload.runtime.gpu._load_cuda", lambda: None)
    with pytest.raises(FailedPrecondition, match=r"^cuda:99 is not there; `nvidia-smi -L` lists"):
        open_gpu("cuda:99")
