"""Extents are defined before they are used, whatever order FuseOps leaves."""

from __future__ import annotations

from itertools import permutations

import pytest
import tvm
from tvm import relax, tirx

from zmq_offload.compile.definitions import definitions_first


def module(order: tuple[int, ...]) -> tvm.IRModule:
    """x [n] -> Unique -> MatchCast of its rows -> zeros of as many rows -> their sum; the bindings in an order."""
    x = relax.Var("x", relax.TensorType((tirx.Var("n", "int64"),), "float32"))
    rows = tirx.Var("rows", "int64")
    builder = relax.BlockBuilder()
    with builder.function("main", [x]):
        with builder.dataflow():
            unknown = builder.emit(relax.op.unique(x))
            builder.match_cast(unknown, relax.TensorType((rows,), "float32"))
            zeros = builder.emit(relax.op.zeros((rows,), "float32"))
            gv = builder.emit_output(relax.op.sum(zeros))
        builder.emit_func_output(gv)
    mod = builder.finalize()
    main = mod["main"]
    (block,) = main.body.blocks
    body = relax.SeqExpr([relax.DataflowBlock([block.bindings[i] for i in order])], main.body.body)
    return tvm.IRModule({"main": relax.Function(main.params, body, main.ret_ty, main.is_pure, main.attrs)})


@pytest.mark.parametrize("order", list(permutations(range(4))))
def test_bindings_are_in_the_order_of_tensors_and_extents(order: tuple[int, ...]) -> None:
    ordered = definitions_first(module(order))
    tvm.ir.assert_structural_equal(ordered, module((0, 1, 2, 3)))


def test_bindings_that_are_in_order_stay() -> None:
    mod = module((0, 1, 2, 3))
    assert definitions_first(mod)["main"].body.blocks[0].same_as(mod["main"].body.blocks[0])
