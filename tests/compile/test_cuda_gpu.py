"""Kernels on a GPU of NVIDIA's, by each rule, against the CPU. Without one these tests are skipped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tvm

from tests.benchmarks import gpu as benchmark
from tests.compile.gpu_functions import module_of
from tests.compile.test_cuda_precision import residual
from zmq_offload.common import nvidia
from zmq_offload.compile.build import build, build_library
from zmq_offload.compile.cuda.names import gpu_target
from zmq_offload.compile.models.read import read_model
from zmq_offload.compile.target import host_target
from zmq_offload.protocol.tensors import TensorSpec
from zmq_offload.runtime.gpu import GpuMachine, open_gpu
from zmq_offload.runtime.machine import load_library

FOUND = nvidia.driver()
on_a_gpu = pytest.mark.skipif(not FOUND.gpus, reason=f"no GPU of NVIDIA's: {FOUND.error or 'the driver finds none'}")

NETWORKS = {
    "ppocr-det": ("ch_PP-OCRv4_det_infer.onnx", (3, 320, 320)),
    "ppocr-rec": ("ch_PP-OCRv4_rec_infer.onnx", (3, 48, 320)),
}


def compared(mod: tvm.IRModule, specs: list[TensorSpec], folder: Path, precision: str) -> float:
    """The largest difference of the first output between GPU and CPU, relative to the largest value."""
    library = folder / "model.so"
    build_library(mod, library, gpu_target("cuda-native"), None, precision)
    rng = np.random.default_rng(0)
    inputs = [rng.standard_normal(spec.shape).astype("float32") for spec in specs]
    machine = GpuMachine(load_library(library), specs, open_gpu("cuda:0"))
    runs = [machine.run(inputs)[0] for _ in range(3)]  # the second is recorded, the third repeats the record
    np.testing.assert_array_equal(runs[1], runs[2])
    host = tvm.relax.VirtualMachine(build(mod, host_target()), tvm.cpu())
    right = host["main"](*map(tvm.runtime.tensor, inputs))
    right = (right if isinstance(right, tvm.runtime.Tensor) else right[0]).numpy()
    return float(np.abs(runs[-1] - right).max() / np.abs(right).max())


@on_a_gpu
@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "float16"])
@pytest.mark.parametrize("build_one", [residual], ids=["residual"])
def test_a_small_network_is_right_on_a_gpu(build_one: Callable[..., object], precision: str, tmp_path: Path) -> None:
    mod = module_of([(2, 4, 30, 31)], build_one)
    specs = [TensorSpec("x0", "FP32", (2, 4, 30, 31))]
    assert compared(mod, specs, tmp_path, precision) < (1e-4 if precision == "float32" else 2e-2)


@on_a_gpu
@pytest.mark.gpu
@pytest.mark.parametrize("batch", [1, 8, 32])
@pytest.mark.parametrize("precision", ["float32", "float16"])
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_are_right_on_a_gpu(name: str, precision: str, batch: int, tmp_path: Path) -> None:
    package = pytest.importorskip("rapidocr_onnxruntime")
    file, shape = NETWORKS[name]
    source = read_model(Path(package.__file__).parent / "models" / file)
    shapes = {"x": (batch, *shape)}
    difference = compared(source.uncut(shapes), list(source.inputs(shapes)), tmp_path, precision)
    assert difference < (1e-3 if precision == "float32" else 1e-1)


@pytest.mark.skipif(bool(FOUND.gpus), reason="this machine has a GPU")
def test_without_a_gpu_the_benchmark_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark.main(["model.onnx"]) == 2
    assert "no measurement: cuda:0 " in capsys.readouterr().err
