"""Linking with a compiler, without one, and for another architecture."""

from __future__ import annotations

import importlib.util
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper

from tests.support import onnx_models
from tests.support.local_client import LocalClient, run_uncut
from zmq_offload.compile import compile_model
from zmq_offload.compile.uncut import compile_uncut
from zmq_offload.device.model import load
from zmq_offload.errors import FailedPrecondition

MLP: dict[str, Any] = {"inputs": {"x": (2, 8)}, "cut": "h2", "until": "h4", "name": "mlp"}
ELF_AARCH64 = 183

needs_lld = pytest.mark.skipif(importlib.util.find_spec("ziglang") is None, reason="ziglang is not installed")


@pytest.fixture(autouse=True)
def no_choice_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.delenv("CC", raising=False)


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")


def machine(library: Path) -> int:
    return int.from_bytes(library.read_bytes()[18:20], "little")


@pytest.mark.usefixtures("no_compiler")
def test_without_a_linker_it_says_what_is_missing(mlp: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(FailedPrecondition, match=r"a C\+\+ compiler for it: .* or the package ziglang"):
        compile_model(mlp, output=tmp_path, **MLP)
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_a_compiler_named_in_the_environment_is_used(
    mlp: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", str(tmp_path / "my-compiler"))
    with pytest.raises(FailedPrecondition, match="my-compiler"):
        compile_model(mlp, output=tmp_path, **MLP)


def test_a_temporary_folder_may_have_any_name(mlp: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The assembler reads the weights from a file there.
    folder = tmp_path / 'a "b" \\ é'
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    compiled = compile_model(mlp, output=tmp_path / "dist", **MLP)
    x = onnx_models.random(2, 8)
    found = load(compiled.device, client=LocalClient(tmp_path / "dist" / "repository"))(x)
    np.testing.assert_allclose(found, run_uncut(mlp, {"x": (2, 8)}, [x])[0], rtol=1e-5, atol=1e-6)
    assert not [p for p in folder.rglob("*") if p.is_file()]


def test_weights_are_in_the_library_once(tmp_path: Path) -> None:
    weights = onnx_models.random(64, 512)
    path = onnx_models.write(
        tmp_path / "m.onnx",
        [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Add", ["h", "h"], ["y"])],
        {"x": [1, 64]},
        {"y": [1, 512]},
        {"w": weights},
    )
    compile_uncut(path, tmp_path / "m.so")
    size = (tmp_path / "m.so").stat().st_size
    assert weights.nbytes < size < 1.5 * weights.nbytes


@needs_lld
@pytest.mark.usefixtures("no_compiler")
def test_python_and_pip_are_enough(mlp: Path, tmp_path: Path) -> None:
    compiled = compile_model(mlp, output=tmp_path, **MLP)
    x = onnx_models.random(2, 8)
    found = load(compiled.device, client=LocalClient(tmp_path / "repository"))(x)
    assert isinstance(found, np.ndarray)
    np.testing.assert_allclose(found, run_uncut(mlp, {"x": (2, 8)}, [x])[0], atol=1e-5)


@needs_lld
def test_a_device_may_have_another_architecture(mlp: Path, tmp_path: Path) -> None:
    board = {"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mcpu": "cortex-a72"}
    compiled = compile_model(mlp, output=tmp_path, device_target=board, **MLP)
    assert machine(compiled.device / "device.so") == ELF_AARCH64
    assert compiled.manifest.target["mcpu"] == "cortex-a72"
    with pytest.raises(FailedPrecondition, match="was built for aarch64, this CPU is"):
        load(compiled.device, client=LocalClient(tmp_path / "repository"))
