"""Reshapes and concatenations with symbolic extents: the same results at every size, and what is left of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import tvm
from tvm import relax, tirx

from tests.schedules.schedule_harness import TARGETS
from zmq_offload.compile.build import build
from zmq_offload.compile.pipeline import fusing, lowering_passes

B, S, P = (tirx.Var(name, "int64") for name in "BSP")

SHAPES: list[Sequence[relax.Expr | int]] = [
    [B, S, 24],  # merges
    [B, S, 2, 2, 6],
    [B, S, 2, 2, 2, 3],  # splits both
    [B, 1, S, 4, 6, 1],
    [B * S, 24],  # merges by a symbol
    [B * S * 4, 6],
    [B, S * 4, 6],
    [B, S * 24],
    [B, S, 3, 8],  # neither merges nor splits
    [B, S, 4, 6],
]


def module(x: relax.Var, result: relax.Expr, *others: relax.Var) -> tvm.IRModule:
    builder = relax.BlockBuilder()
    with builder.function("main", [x, *others]):
        with builder.dataflow():
            out = builder.emit_output(builder.normalize(result))
        builder.emit_func_output(out)
    return builder.get()


def machine(mod: tvm.IRModule) -> tvm.runtime.vm.VMFunction:
    return relax.VirtualMachine(build(mod, TARGETS[0]), tvm.cpu())["main"]


def fused(mod: tvm.IRModule) -> str:
    return str(tvm.ir.transform.Sequential(fusing(TARGETS[0]))(mod)["main"])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_reshape_is_the_same_alone_and_between_operators(shape: Sequence[relax.Expr | int]) -> None:
    x = relax.Var("x", relax.TensorType([B, S, 4, 6], "float32"))
    alone = relax.op.reshape(relax.op.exp(x), shape)
    turned = relax.op.permute_dims(relax.op.reshape(relax.op.permute_dims(x, [0, 1, 3, 2]), shape))
    main = machine(module(x, relax.Tuple([alone, turned, relax.op.reshape(x, shape)])))
    single = machine(module(x, alone))
    for b, s in ((1, 1), (2, 3), (3, 1), (1, 17)):
        given = np.random.default_rng(0).standard_normal((b, s, 4, 6)).astype("float32")
        first, second, third = (t.numpy() for t in main(tvm.runtime.tensor(given)))
        np.testing.assert_allclose(first, np.exp(given).reshape(first.shape), rtol=1e-5)
        moved = given.transpose(0, 1, 3, 2).reshape(second.shape[::-1])
        np.testing.assert_array_equal(second, moved.transpose())
        np.testing.assert_array_equal(third, given.reshape(third.shape))
        np.testing.assert_array_equal(single(tvm.runtime.tensor(given)).numpy(), first)


def test_heads_that_are_joined_to_a_cache_are_one_kernel() -> None:
    x = relax.Var("x", relax.TensorType([B, S, 128], "float32"))
    past = relax.Var("past", relax.TensorType([B, 4, P, 32], "float32"))
    heads = relax.op.permute_dims(relax.op.reshape(x, [B, S, 4, 32]), [0, 2, 1, 3])
    joined = relax.op.concat([past, heads], axis=2)
    keys = relax.op.permute_dims(relax.op.reshape(joined, [B * 4, P + S, 32]), [0, 2, 1])
    mod = module(x, relax.op.multiply(relax.op.reshape(keys, [B, 4, 32, P + S]), relax.const(0.5)), past)
    assert fused(mod).count("call_tir") == 1
    main = machine(mod)
    for b, s, p in ((1, 1, 5), (2, 3, 1), (3, 16, 16)):
        rng = np.random.default_rng(0)
        new, old = (rng.standard_normal(n).astype("float32") for n in ((b, s, 128), (b, 4, p, 32)))
        whole = np.concatenate([old, new.reshape(b, s, 4, 32).transpose(0, 2, 1, 3)], axis=2)
        found = main(tvm.runtime.tensor(new), tvm.runtime.tensor(old)).numpy()
        np.testing.assert_array_equal(found, whole.transpose(0, 1, 3, 2) * np.float32(0.5))


def test_rows_of_a_batch_are_a_view() -> None:
    x = relax.Var("x", relax.TensorType([B, S, 128], "float32"))
    text = fused(module(x, relax.op.exp(relax.op.reshape(relax.op.exp(x), [S * B, 128]))))
    assert text.count("call_tir") == 2
    assert text.count("R.reshape") == 1


def test_a_shape_is_made_once() -> None:
    """Each kernel's result has the same shape; without sharing, each of them makes it."""
    x = relax.Var("x", relax.TensorType([B, S, 8], "float32"))
    value: relax.Expr = x
    for _ in range(4):
        value = relax.op.nn.softmax(value)
    mod = tvm.ir.transform.Sequential([*fusing(TARGETS[0]), *lowering_passes()])(module(x, value))
    text = str(mod["main"])
    made = [line.split("=", 1)[1] for line in text.splitlines() if "vm.builtin.make_shape" in line]
    assert text.count("alloc_tensor") == 4
    assert len(made) == len(set(made))
