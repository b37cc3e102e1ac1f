"""Regions by BYOC patterns, as TVM users annotate them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm
from tvm import relax
from tvm.relax.dpl import is_op, wildcard

from tests.support import onnx_models
from tests.support.local_client import LocalClient, run_uncut
from zmq_offload.compile import compile_module, partition_for_zmq_offload
from zmq_offload.compile.onnx.importer import import_onnx
from zmq_offload.device.model import load
from zmq_offload.errors import InvalidArgument

MATMUL = ("zmq_offload.matmul", is_op("relax.matmul")(wildcard(), wildcard()))
RELU = ("zmq_offload.relu", is_op("relax.nn.relu")(wildcard()))
ADD = ("zmq_offload.add", is_op("relax.add")(wildcard(), wildcard()))


def module(path: Path, **shapes: Any) -> tvm.IRModule:
    """The model as a Relax module, without the outputs that the importer adds."""
    imported = import_onnx(path, shapes)
    main = imported.mod["main"]
    results = [imported.graph.tensors[n] for n in imported.graph.outputs]
    result = relax.Tuple(results) if len(results) > 1 else results[0]
    out = relax.Var("out", result.ty)
    block = relax.DataflowBlock([*imported.graph.bindings, relax.VarBinding(out, result)])
    function = relax.Function(main.params, relax.SeqExpr([block], out), out.ty).with_attr("global_symbol", "main")
    return relax.transform.Normalize()(tvm.IRModule({"main": function}))


def test_adjacent_matches_become_one_request(mlp: Path, tmp_path: Path) -> None:
    mod = partition_for_zmq_offload(module(mlp, x=("N", 8)), [MATMUL, RELU])
    compiled = compile_module(mod, name="mlp", outputs=["z"], output=tmp_path)
    assert [m.name for m in compiled.models] == ["mlp"]
    assert str(compiled.manifest.outputs[0]) == "z FP32[?,2,4]"
    client = LocalClient(tmp_path / "repository")
    x = onnx_models.random(3, 8)
    y = load(compiled.device, client=client)(x)
    np.testing.assert_allclose(y, run_uncut(mlp, {"x": (3, 8)}, [x])[0], atol=1e-4)
    assert len(client.calls) == 1
    device = b"".join(p.read_bytes() for p in compiled.device.iterdir())
    assert b"matmul" not in device and b"relu" not in device and b"sigmoid" in device
    assert onnx_models.random(8, 16, seed=1).tobytes()[:16] not in device


def test_several_offloaded_functions_are_models_of_their_own(diamond: Path, tmp_path: Path) -> None:
    mod = partition_for_zmq_offload(module(diamond), [MATMUL])
    compiled = compile_module(mod, name=["left", "right"], output=tmp_path)
    assert [m.name for m in compiled.models] == ["left", "right"]
    assert [o.model for o in compiled.manifest.offloaded] == ["left", "right"]
    assert len({o.symbol for o in compiled.manifest.offloaded}) == 2
    client = LocalClient(tmp_path / "repository")
    arrays = [onnx_models.random(4, 6, seed=1), onnx_models.random(4, 6, seed=2)]
    found = load(compiled.device, client=client)(*arrays)
    for got, want in zip(found, run_uncut(diamond, {}, arrays), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-4)
    assert [call[0] for call in client.calls] == ["left", "right"]


def test_merged_functions_with_several_inputs_and_outputs_work(diamond: Path, tmp_path: Path) -> None:
    mod = partition_for_zmq_offload(module(diamond), [MATMUL, RELU, ADD])
    compiled = compile_module(mod, name="part", output=tmp_path)
    assert [m.name for m in compiled.models] == [f"part_{i + 1}" for i in range(len(compiled.models))]
    arrays = [onnx_models.random(4, 6, seed=1), onnx_models.random(4, 6, seed=2)]
    found = load(compiled.device, client=LocalClient(tmp_path / "repository"))(*arrays)
    for got, want in zip(found, run_uncut(diamond, {}, arrays), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-4)


def test_bad_partitions_are_refused(mlp: Path, tmp_path: Path) -> None:
    mod = module(mlp, x=(2, 8))
    with pytest.raises(InvalidArgument, match=r"'dnnl.matmul' is not ours; its name must begin with 'zmq_offload\.'"):
        partition_for_zmq_offload(mod, [("dnnl.matmul", MATMUL[1])])
    with pytest.raises(InvalidArgument, match=r"nothing in the module's 'main' matches zmq_offload.add"):
        partition_for_zmq_offload(mod, [ADD])
    with pytest.raises(InvalidArgument, match="has no function 'main'"):
        partition_for_zmq_offload(tvm.IRModule({}), [ADD])
    with pytest.raises(InvalidArgument, match="partition it with partition_for_zmq_offload"):
        compile_module(mod, name="m", output=tmp_path)
    partitioned = partition_for_zmq_offload(mod, [MATMUL])
    with pytest.raises(InvalidArgument, match="1 model names are given, but the module has 2 offloaded functions"):
        compile_module(partitioned, name=["one"], output=tmp_path)
    with pytest.raises(InvalidArgument, match="the model names m, m are not distinct"):
        compile_module(partitioned, name=["m", "m"], output=tmp_path)
    with pytest.raises(InvalidArgument, match="2 output names are given, but the model has 1 outputs"):
        compile_module(partitioned, name="m", outputs=["a", "b"], output=tmp_path)
