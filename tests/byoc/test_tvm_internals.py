"""TVM still has the names and values that the passes depend on. A failure here says which one moved."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tvm
from tvm import relax

from zmq_offload.byoc import tvm_internals
from zmq_offload.byoc.codegen import CODEGEN
from zmq_offload.byoc.tvm_internals import codegen_of, is_call_of, unfusable, without_constants
from zmq_offload.compile import partition_for_zmq_offload

RELU = ("zmq_offload.relu", relax.dpl.is_op("relax.add")(relax.dpl.wildcard(), relax.dpl.is_const()))


def module() -> tvm.IRModule:
    """exp(x) + weight."""
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((2, 8), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            h = builder.emit(relax.op.exp(x))
            y = builder.emit_output(relax.op.add(h, relax.const(np.ones((2, 8), "float32"))))
        builder.emit_func_output(y)
    return builder.get()


def values(function: relax.Function) -> list[Any]:
    return [b.value for block in function.body.blocks for b in block.bindings]


def test_partitioned_functions_still_name_their_backend_in_this_attribute() -> None:
    partitioned = partition_for_zmq_offload(module(), [RELU])
    backends = {str(gv.name_hint): codegen_of(f) for gv, f in partitioned.functions.items()}
    assert backends.pop("main") is None
    assert CODEGEN in backends.values()


def test_run_codegen_still_leaves_one_packed_call_and_the_weights_as_an_attribute() -> None:
    partitioned = partition_for_zmq_offload(module(), [RELU])
    done = relax.transform.RunCodegen()(partitioned)
    assert [v for v in values(done["main"]) if is_call_of(v, tvm_internals.CALL_PACKED)]
    assert "const_name_to_constant" in done.attrs, "TVM keeps the weights elsewhere: look for them in the device bundle"
    assert "const_name_to_constant" not in (without_constants(done, partitioned.attrs).attrs or {})


@pytest.mark.parametrize("fused", [True, False])
def test_fuse_ops_still_leaves_opaque_functions_alone(fused: bool) -> None:
    steps = [relax.transform.LegalizeOps(), relax.transform.AnnotateTIROpPattern()]
    mod = tvm.transform.Sequential(steps)(module())
    assert len([v for v in values(mod["main"]) if is_call_of(v, tvm_internals.CALL_TIR)]) == 2
    for gv, function in list(mod.functions.items()):
        if isinstance(function, tvm.tirx.PrimFunc) and not fused:
            mod[gv] = unfusable(function)
    mod = relax.transform.FuseOps()(mod)
    grouped = [
        f for f in mod.functions.values() if isinstance(f, relax.Function) and f.attrs and "Primitive" in f.attrs
    ]
    assert len(grouped) == (1 if fused else 0)
