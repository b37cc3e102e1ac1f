"""Subgraphs for NVIDIA's GPUs, compiled on a machine without one."""

from __future__ import annotations

import importlib.util
import struct
from pathlib import Path

import pytest
import tvm

from zmq_offload.artifacts.repository import LIBRARY, Repository
from zmq_offload.compile import Compiled, compile_model, packing
from zmq_offload.compile.cuda import nvrtc
from zmq_offload.compile.cuda.names import gpu_target
from zmq_offload.compile.cuda.packing import with_machine_code
from zmq_offload.errors import FailedPrecondition, InvalidArgument

EM_CUDA = 190
"""What the header of an ELF file has for NVIDIA's GPUs."""


def has_nvrtc() -> bool:
    try:
        nvrtc.toolkit()
    except FailedPrecondition:
        return False
    return True


needs_nvrtc = pytest.mark.skipif(not has_nvrtc(), reason="the extra cuda is not installed")


def compiled(file: Path, output: Path, target: str) -> Compiled:
    return compile_model(
        file, inputs={"x": (1, 3, 12, 12)}, cut=["features"], name="net", output=output, target=target, check=True
    )


def test_a_library_for_a_gpu_holds_machine_code_and_no_source(
    convnet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def compile_source(source: str, architecture: str) -> bytes:
        seen.append((source, architecture))
        return b"machine code of the kernels"

    monkeypatch.setattr("zmq_offload.compile.build.toolkit", lambda: tmp_path)
    monkeypatch.setattr(packing, "machine_code", compile_source)
    made = compiled(convnet, tmp_path, "cuda-sm80")
    ((source, architecture),) = seen
    assert architecture == "sm_80" and "__global__" in source
    library = (made.subgraphs[0] / LIBRARY).read_bytes()
    assert b"machine code of the kernels" in library and b"__global__" not in library
    model = Repository(tmp_path / "repository").read("net", 1)
    assert model.gpu is not None and model.gpu.architecture == "sm_80" and model.target["kind"] == "cuda"
    # The device's part is a CPU's, and what only a GPU runs is not checked here.
    assert made.manifest.target["kind"] == "llvm"
    assert made.check is not None and "cannot run code for the target" in str(made.check)


@needs_nvrtc
@pytest.mark.parametrize("name", ["sm80", "sm86", "sm89", "sm90"])
def test_nvrtc_compiles_for_each_gpu_without_one(name: str) -> None:
    code = nvrtc.machine_code('extern "C" __global__ void f(float* x) { x[threadIdx.x] = INFINITY; }', f"sm_{name[2:]}")
    assert code.startswith(b"\x7fELF") and struct.unpack_from("<H", code, 18) == (EM_CUDA,)


@needs_nvrtc
def test_a_model_is_compiled_to_machine_code(convnet: Path, tmp_path: Path) -> None:
    library = (compiled(convnet, tmp_path, "cuda-sm90").subgraphs[0] / LIBRARY).read_bytes()
    at = library.find(b"\x7fELF", 4)
    assert struct.unpack_from("<H", library, at + 18) == (EM_CUDA,)


def test_without_nvrtc_it_says_what_to_install(convnet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(FailedPrecondition, match=r"needs NVRTC .* pip install 'zmq-offload\[cuda\]'"):
        compiled(convnet, tmp_path, "cuda-sm90")
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


@pytest.mark.parametrize("name", ["cuda-sm70", "cuda-", "cuda-SM90"])
def test_names_that_are_not_known_are_refused_with_those_that_are(name: str) -> None:
    with pytest.raises(InvalidArgument, match=r"is not a GPU that is known; use cuda-sm80, .* or cuda-native$"):
        gpu_target(name)


@pytest.mark.skipif(tvm.cuda(0).exist, reason="this machine has a GPU")
def test_this_machines_gpu_is_refused_where_there_is_none() -> None:
    with pytest.raises(FailedPrecondition, match="this machine has no GPU"):
        gpu_target("cuda-native")


def test_a_device_has_no_gpu(convnet: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="is a GPU; only --target, for the workers, can name one"):
        compile_model(convnet, cut=["features"], name="net", output=tmp_path, device_target="cuda-sm80")


def test_other_targets_of_tvm_are_refused_with_the_names(convnet: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=r"only CPUs are supported .* cuda-sm80"):
        compile_model(convnet, cut=["features"], name="net", output=tmp_path, target={"kind": "cuda", "arch": "sm_80"})


def test_packed_modules_without_source_stay_as_they_are() -> None:
    packed = struct.pack("<Q", 4) + b"rest"
    assert with_machine_code(packed, lambda _: b"") == packed
