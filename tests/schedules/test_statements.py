"""Functions that TVM or tuning schedules keep NaN and do not trap."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from tvm import relax, s_tir, tirx
from tvm.relax.frontend.onnx import from_onnx

from tests.schedules.schedule_harness import HOST, Net
from zmq_offload.compile.pipeline import cpu_pipeline


def split_and_vectorized(func: tirx.PrimFunc) -> tirx.PrimFunc | None:
    """A schedule as tuning makes it."""
    schedule = s_tir.Schedule(tvm.IRModule({"main": func}))
    block = schedule.get_child_blocks(schedule.get_sblock("root"))[0]
    outer, inner = schedule.split(schedule.get_loops(block)[0], [None, 8])
    schedule.parallel(outer)
    if len(schedule.get_loops(block)) == 2:
        schedule.vectorize(inner)
    return schedule.mod["main"]


@pytest.mark.parametrize("kind", ["Relu", "Max", "ReduceMin"])
def test_a_tuned_schedule_keeps_nan(kind: str) -> None:
    net = Net()
    x = net.input(64) if kind != "ReduceMin" else net.input(64, 5)
    net.inputs["x0"].flat[::7] = np.nan
    y = net.op(kind, x, **({"axes": [1], "keepdims": 0} if kind == "ReduceMin" else {}))
    if kind == "Max":
        net.nodes[-1].input.append(net.constant(np.float32(range(64))))
    mod = from_onnx(net.model(y), keep_params_in_input=False)
    built = tvm.compile(mod, HOST, relax_pipeline=cpu_pipeline(HOST, split_and_vectorized))
    out = relax.VirtualMachine(built, tvm.cpu())["main"](tvm.runtime.tensor(net.inputs["x0"]))
    got = (out if hasattr(out, "numpy") else out[0]).numpy()
    values = net.inputs["x0"]
    other = 0 if kind == "Relu" else np.float32(range(64))
    want = values.min(1) if kind == "ReduceMin" else np.maximum(values, other)
    np.testing.assert_array_equal(got, want)
