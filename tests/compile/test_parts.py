"""Machine code is made a few functions at a time: the library is the same, and LLVM's form of it takes less memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tvm
from onnx import helper
from tvm.runtime import vm

from tests.support import onnx_models
from zmq_offload.compile import parts
from zmq_offload.compile.build import build, build_library
from zmq_offload.compile.onnx.importer import import_uncut
from zmq_offload.compile.target import host_target
from zmq_offload.errors import InvalidArgument
from zmq_offload.runtime.machine import Machine, load_library


def functions(path: Path) -> tvm.IRModule:
    """Six products and softmaxes of a symbolic number of rows, no two alike."""
    nodes, weights, before = [], {}, "x"
    for i in range(6):
        weights[f"w{i}"] = onnx_models.random(8 + i, 9 + i, seed=i)
        nodes += [
            helper.make_node("MatMul", [before, f"w{i}"], [f"a{i}"]),
            helper.make_node("Softmax", [f"a{i}"], [f"b{i}"], axis=-1),
        ]
        before = f"b{i}"
    return import_uncut(onnx_models.write(path, nodes, {"x": ["N", 8]}, {before: ["N", 14]}, weights), {"x": ("N", 8)})


def test_a_library_in_parts_computes_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    whole = tvm.tirx.build

    def counted(mod: tvm.IRModule, target: tvm.target.Target, pipeline: str) -> tvm.runtime.Module:
        sizes.append(len(mod.functions))
        return whole(mod, target, pipeline)

    monkeypatch.setattr(parts, "FUNCTIONS", 3)
    mod = functions(tmp_path / "m.onnx")
    with monkeypatch.context() as patch:
        patch.setattr(tvm.tirx, "build", counted)
        build_library(mod, tmp_path / "m.so", host_target())
    assert sizes and set(sizes[:-1]) == {3} and sizes[-1] <= 3
    assert sum(sizes) >= 12
    x = onnx_models.random(5, 8)
    (y,) = Machine(load_library(tmp_path / "m.so")).run([x])
    expected = vm.VirtualMachine(build(mod, host_target()), tvm.cpu())["main"](tvm.runtime.tensor(x))
    np.testing.assert_array_equal(y, expected.numpy())
    assert [p.name for p in tmp_path.iterdir() if p.suffix == ".o"] == []


def test_an_error_names_the_functions_that_tvm_fails_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = tvm.tirx.build

    def failing(mod: tvm.IRModule, target: tvm.target.Target, pipeline: str) -> tvm.runtime.Module:
        if any(name.name_hint == "softmax1" for name in mod.functions):
            raise RuntimeError("a failed check")
        return whole(mod, target, pipeline)

    monkeypatch.setattr(tvm.tirx, "build", failing)
    with pytest.raises(InvalidArgument, match="TVM cannot compile the operators softmax1 with the symbolic extents N;"):
        build_library(functions(tmp_path / "m.onnx"), tmp_path / "m.so", host_target())
