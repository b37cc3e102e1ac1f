"""TVM still has the names that the rules depend on. A failure here says which one moved."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tvm
from tvm import relax, te, tirx
from tvm.s_tir import dlight

from zmq_offload.schedules import exact, layout, simplify, tvm_internals
from zmq_offload.schedules.functions import vector_math
from zmq_offload.schedules.stages import parse
from zmq_offload.schedules.tvm_internals import last_part, operator_name


def twice() -> tirx.PrimFunc:
    x = te.placeholder((4, 8), name="x")
    return te.create_prim_func([x, te.compute((4, 8), lambda i, j: x[i, j] * 2.0)])


@pytest.mark.parametrize("name", sorted({*layout._RULES, *simplify._FOLDED, *exact._REWRITES}))
def test_relax_still_has_the_operators_of_the_passes(name: str) -> None:
    assert tvm.ir.Op.get(name).name == name


@pytest.mark.parametrize("name", sorted(vector_math._RULES))
def test_functions_still_have_the_names_by_which_they_are_replaced(name: str) -> None:
    call = getattr(tirx, name)(*[tirx.Var("x", "float32")] * (2 if name == "pow" else 1))
    assert last_part(operator_name(call)) == name


def test_c_functions_and_conditionals_are_still_called_by_these_operators() -> None:
    x = tirx.Var("x", "float32")
    assert last_part(operator_name(tirx.call_pure_extern("float32", "f", x))) == tvm_internals.CALL_PURE_EXTERN
    assert tirx.if_then_else(x > 0, x, x).op.same_as(tvm_internals.IF_THEN_ELSE)


def test_tvms_own_schedulers_still_skip_and_mark_functions_by_this_attribute() -> None:
    target = tvm.target.Target({"kind": "llvm", "num-cores": 2})

    class Fails(dlight.ScheduleRule):  # type: ignore[misc]  # TVM has no types
        def apply(self, *_: Any) -> Any:
            raise AssertionError("a function that is marked as scheduled is scheduled again")

    marked = tvm.IRModule({"f": twice().with_attr(tvm_internals.SCHEDULED, True)})
    with target:
        dlight.ApplyDefaultSchedule(Fails())(marked)

    class Plain(dlight.ScheduleRule):  # type: ignore[misc]
        def apply(self, func: tirx.PrimFunc, *_: Any) -> Any:
            return tvm.s_tir.Schedule(tvm.IRModule({"main": func}))

    with target:
        done = dlight.ApplyDefaultSchedule(Plain())(tvm.IRModule({"f": twice()}))
    assert done["f"].attrs[tvm_internals.SCHEDULED]


def test_pools_still_pad_in_a_buffer_of_this_name() -> None:
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((1, 4, 4, 2), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            y = builder.emit_output(relax.op.nn.max_pool2d(x, (3, 3), padding=(1, 1, 1, 1), layout="NHWC"))
        builder.emit_func_output(y)
    legal = relax.transform.LegalizeOps()(builder.get())
    (pool,) = (f for f in legal.functions.values() if isinstance(f, tirx.PrimFunc))
    stages = parse(pool).stages
    assert [str(s.buffer.name) for s in stages[:-1]] == [tvm_internals.POOL_PADDING]
    padding = stages[0].value.args[2]
    assert float(padding.value) == -np.inf, "a border of -inf would not stay -inf"


def test_reduced_axes_still_have_this_type() -> None:
    x = te.placeholder((4, 8), name="x")
    k = te.reduce_axis((0, 8), "k")
    func = te.create_prim_func([x, te.compute((4,), lambda i: te.sum(x[i, k], axis=k))])
    (stage,) = parse(func).stages
    assert (len(stage.axes), len(stage.reduce_axes)) == (1, 1)
