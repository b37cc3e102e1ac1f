"""A virtual machine on a GPU, with the CPU in the place of one."""

from __future__ import annotations

import gc
from unittest.mock import Mock

import numpy as np
import pytest
import tvm

from tests.support import onnx_models
from tests.support.gpus import StubCudart, stub_gpu
from zmq_offload.artifacts.repository import LIBRARY
from zmq_offload.compile import Compiled
from zmq_offload.errors import FailedPrecondition, InvalidArgument
from zmq_offload.protocol.payload import Array
from zmq_offload.protocol.tensors import TensorSpec
from zmq_offload.runtime.copies import Cudart
from zmq_offload.runtime.gpu import GpuMachine, open_gpu
from zmq_offload.runtime.machine import Machine, load_library

Made = tuple[GpuMachine, Machine, StubCudart]


@pytest.fixture(params=[(2, 16), (-1, 16)])
def made(request: pytest.FixtureRequest, compiled_mlp: Compiled) -> Made:
    """A machine on a stub, the same on the CPU, and what the stub did."""
    library = load_library(compiled_mlp.subgraphs[0] / LIBRARY)
    specs = [TensorSpec("h2", "FP32", request.param)]
    cudart = StubCudart()
    return GpuMachine(library, specs, stub_gpu(cudart=cudart)), Machine(library, specs), cudart


def inputs(seed: int, rows: int = 2) -> Array:
    return onnx_models.random(rows, 16, seed=seed)


def test_it_computes_what_the_cpu_does_and_outputs_stay(made: Made) -> None:
    gpu, plain, _ = made
    held = [(gpu.run([inputs(seed)])[0], plain.run([inputs(seed)])[0]) for seed in range(3)]
    del gpu, plain, made
    gc.collect()
    for found, right in held:
        np.testing.assert_array_equal(found, right)


def test_the_next_inputs_are_copied_while_one_computes(made: Made) -> None:
    """Through page-locked memory, and its outputs are not waited for before those of the first are there. A run that is
    alone has its inputs copied from where they are."""
    gpu, plain, cudart = made
    right = [plain.run([inputs(seed)])[0].copy() for seed in range(5)]
    first = gpu.begin([[inputs(0)]])
    assert cudart.done == ["in, not locked"]
    for seed in range(1, 5):
        second = gpu.begin([[inputs(seed)]])
        assert cudart.done[-1] == "in", "the outputs of the first are not there yet"
        np.testing.assert_array_equal(first.end()[0], right[seed - 1])
        assert cudart.done[-1] == "out"
        first = second
    np.testing.assert_array_equal(first.end()[0], right[4])
    gpu.run([inputs(0)])
    assert cudart.done[-2:] == ["in, not locked", "out"]


def test_what_is_given_is_read_when_a_run_begins(made: Made) -> None:
    """Frames are given back then, and a third begins as soon as the first ended: it has the memory of its inputs."""
    gpu, plain, _ = made
    right = [plain.run([inputs(seed)])[0].copy() for seed in range(3)]
    flights, ends = [], []
    for seed in range(3):
        given = inputs(seed)
        if len(flights) == 2:
            ends.append(flights.pop(0).end()[0])
        flights.append(gpu.begin([[given]]))
        given[...] = 0
    ends += [flight.end()[0] for flight in flights]
    for found, wanted in zip(ends, right, strict=True):
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("made", [(-1, 16)], indirect=True)
def test_requests_run_together(made: Made) -> None:
    gpu, plain, _ = made
    (right,) = plain.run([inputs(1)])
    (together,) = gpu.run_together([[inputs(1)[:1]], [inputs(1)[1:]]])
    np.testing.assert_array_equal(together, right)
    np.testing.assert_array_equal(gpu.run([inputs(1)])[0], right)


def test_unaligned_and_foreign_inputs_are_read(made: Made) -> None:
    gpu, plain, _ = made
    (right,) = plain.run([inputs(1)])
    frame = np.frombuffer(b"\x01" + inputs(1).tobytes(), np.uint8)[1:].view("<f4").reshape(2, 16)
    for given in (frame, inputs(1).astype(">f4"), np.asfortranarray(inputs(1))):
        np.testing.assert_array_equal(gpu.run([given])[0], right)
        first = gpu.begin([[given]])
        second = gpu.begin([[given]])
        np.testing.assert_array_equal(first.end()[0], right)
        np.testing.assert_array_equal(second.end()[0], right)


def test_a_run_that_fails_gives_its_memory_back(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, plain, cudart = made
    for _ in range(3):
        with monkeypatch.context() as patched:
            patched.setattr(gpu, "_entry", Mock(side_effect=RuntimeError("it fails")))
            with pytest.raises(RuntimeError, match="it fails"):
                gpu.run([inputs(0)])
        flight = gpu.begin([[inputs(0)]])
        cudart.code = 700
        with pytest.raises(RuntimeError, match=r"^CUDA Runtime Error: cudaErrorIllegalAddress \(700\): an illegal"):
            flight.end()
    assert not gpu._gpu.flights and len(gpu._slots) == 2
    np.testing.assert_array_equal(gpu.run([inputs(1)])[0], plain.run([inputs(1)])[0])


def test_inputs_that_do_not_fit_are_an_error(made: Made) -> None:
    with pytest.raises(InvalidArgument, match="'h2'"):
        made[0].run([onnx_models.random(2, 17, seed=1)])


def test_page_locked_memory_is_used_again_and_without_it_outputs_are_copied_too(made: Made) -> None:
    gpu, plain, cudart = made
    for seed in range(4):
        gpu.run([inputs(seed)])
    assert cudart.memory == (1 << 40) - 4096
    cudart.memory = 0
    held = [gpu.run([inputs(seed)])[0] for seed in range(3)]
    assert cudart.done[-1] == "out, not locked"
    for seed, found in enumerate(held):
        np.testing.assert_array_equal(found, plain.run([inputs(seed)])[0])


def test_not_all_memory_that_was_used_is_kept() -> None:
    cudart = StubCudart()
    copies = stub_gpu(cudart=cudart).copies
    large = [copies.memory((100 << 20,), np.dtype("u1")) for _ in range(3)]
    assert copies.memory((0, 3), np.dtype("f4")).shape == (0, 3)
    del large
    gc.collect()
    assert cudart.memory == (1 << 40) - 2 * (128 << 20), "one of three was given back"


def test_the_events_of_a_machine_are_used_again(compiled_mlp: Compiled) -> None:
    library, specs = load_library(compiled_mlp.subgraphs[0] / LIBRARY), [TensorSpec("h2", "FP32", (2, 16))]
    cudart = StubCudart()
    gpu = stub_gpu(cudart=cudart)
    machine = GpuMachine(library, specs, gpu)
    made = cudart._made
    del machine
    gc.collect()
    GpuMachine(library, specs, gpu)
    assert cudart._made == made


def test_a_thread_that_captures_a_graph_forbids_others_nothing(made: Made) -> None:
    """As a version that warms up does while another serves."""
    gpu, plain, cudart = made
    right = plain.run([inputs(0)])[0]
    large = gpu._gpu.copies.memory((300 << 20,), np.dtype("u1"))
    free = cudart.memory
    flight = gpu.begin([[inputs(0)]])
    cudart.capturing = -1
    np.testing.assert_array_equal(flight.end()[0], right)
    del large
    gc.collect()
    assert cudart.memory > free


@pytest.mark.skipif(tvm.cuda(0).exist, reason="this machine has a GPU")
def test_without_a_gpu_it_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FailedPrecondition, match=r"^cuda:0 (cannot be used: .*libcuda\.so\.1|is not there; )"):
        open_gpu("cuda:0")


def test_a_driver_that_is_too_old_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    cudart = StubCudart()
    cudart.code = 35
    monkeypatch.setattr("zmq_offload.runtime.gpu._load_cuda", lambda: Cudart(cudart))
    with pytest.raises(
        FailedPrecondition, match=r"^cuda:0 cannot be used: .*cudaErrorInsufficientDriver \(35\): CUDA dr"
    ):
        open_gpu("cuda:0")


def test_a_gpu_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zmq_offload.runtime.gpu._load_cuda", lambda: Cudart(StubCudart()))
    with pytest.raises(FailedPrecondition, match=r"^cuda:99 is not there; `nvidia-smi -L` lists"):
        open_gpu("cuda:99")
