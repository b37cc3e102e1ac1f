"""Folding with NumPy changes the time of compiling, and no result."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tvm
from onnx import helper
from tvm import relax
from tvm.runtime import vm

from tests.support import onnx_models
from zmq_offload.compile.fold import FOLDERS, fold_constants
from zmq_offload.compile.importer import import_onnx


def operators(mod: tvm.IRModule) -> list[str]:
    bindings = [b for block in mod["main"].body.blocks for b in block.bindings]
    return [b.value.op.name for b in bindings if isinstance(b.value, tvm.ir.Call)]


def test_what_the_importer_computes_from_weights_is_folded(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["h"]),  # its bias is reshaped
        helper.make_node("Clip", ["h", "low", "high"], ["c"]),  # its limits may be NaN
        helper.make_node("Flatten", ["c"], ["f"]),
        helper.make_node("Gemm", ["f", "v"], ["y"], transB=1),  # its weight is transposed
    ]
    weights = {
        "w": onnx_models.random(4, 3, 2, 2),
        "b": onnx_models.random(4),
        "v": onnx_models.random(5, 16),
        "low": np.array(-0.5, "f4"),
        "high": np.array(np.nan, "f4"),
    }
    path = onnx_models.write(tmp_path / "m.onnx", nodes, {"x": [1, 3, 3, 3]}, {"y": [1, 5]}, weights)
    mod = import_onnx(path, {}).mod
    folded = fold_constants(mod)
    assert {"relax.permute_dims", "relax.isnan", "relax.where"} <= set(operators(mod))
    assert not {"relax.permute_dims", "relax.isnan", "relax.where"} & set(operators(folded))
    x = tvm.runtime.tensor(onnx_models.random(1, 3, 3, 3))
    one, other = (vm.VirtualMachine(tvm.compile(m, "llvm"), tvm.cpu())["main"](x)[0].numpy() for m in (mod, folded))
    np.testing.assert_array_equal(one, other)


def test_what_depends_on_an_input_is_left_alone() -> None:
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((2, 3), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            constant = builder.emit(relax.op.permute_dims(relax.const(onnx_models.random(2, 3))))
            turned = builder.emit(relax.op.permute_dims(x))
            result = builder.emit_output(relax.op.add(turned, constant))
        builder.emit_func_output(result)
    assert operators(fold_constants(builder.get())) == ["relax.permute_dims", "relax.add"]
    assert "relax.add" not in FOLDERS
