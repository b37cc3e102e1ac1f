"""Linking: with the compiler that is there, without one, and for another machine."""

from __future__ import annotations

import platform
from pathlib import Path

import numpy as np
import onnx_models
import pytest
from local_client import LocalClient, run_uncut

from zmq_offload.byoc.model import load
from zmq_offload.compile import compile_model
from zmq_offload.compile.link import linker
from zmq_offload.errors import FailedPrecondition

HERE = f"{platform.machine()}-unknown-linux-gnu"


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CXX", "CC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", "/nowhere")


def test_a_compiler_that_is_named_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "aarch64-linux-gnu-g++ -static-libgcc")
    assert linker("aarch64-linux-gnu") == ["aarch64-linux-gnu-g++", "-static-libgcc"]


@pytest.mark.usefixtures("no_compiler")
def test_without_a_compiler_zig_links(mlp: Path, tmp_path: Path) -> None:
    assert linker(HERE)[1:4] == ["-m", "ziglang", "cc"]
    compiled = compile_model(mlp, inputs={"x": (2, 8)}, cut=["h2"], name="mlp", output=tmp_path)
    x = onnx_models.random(2, 8)
    found = load(compiled.device, client=LocalClient(tmp_path / "repository"))(x)
    np.testing.assert_allclose(found, run_uncut(mlp, {"x": (2, 8)}, [x])[0], atol=1e-5)


@pytest.mark.usefixtures("no_compiler")
def test_a_device_of_another_architecture_is_linked_for_and_refused_here(mlp: Path, tmp_path: Path) -> None:
    target = {"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mcpu": "cortex-a72"}
    other = "aarch64" if platform.machine() != "aarch64" else "x86_64"
    if other == "x86_64":
        target = {"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": "haswell"}
    compiled = compile_model(mlp, inputs={"x": (2, 8)}, cut=["h2"], name="mlp", output=tmp_path, device_target=target)
    machine = int.from_bytes((compiled.device / "device.so").read_bytes()[18:20], "little")
    assert machine == {"aarch64": 183, "x86_64": 62}[other]  # e_machine of the ELF specification
    with pytest.raises(FailedPrecondition, match=f"was built for {other}, this CPU is"):
        load(compiled.device, client=LocalClient(tmp_path / "repository"))


@pytest.mark.usefixtures("no_compiler")
def test_with_nothing_to_link_with_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(FailedPrecondition, match="pip install ziglang"):
        linker(HERE)


@pytest.mark.usefixtures("no_compiler")
def test_a_linker_that_fails_is_quoted(mlp: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/bin/false")
    with pytest.raises(FailedPrecondition, match="/bin/false cannot link"):
        compile_model(mlp, inputs={"x": (2, 8)}, cut=["h2"], name="mlp", output=tmp_path)
