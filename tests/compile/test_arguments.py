"""Arguments of a compiled library that do not fit, where users call TVM's virtual machine themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tvm
import tvm_ffi
from tvm import relax, tirx

from zmq_offload.compile.build import build
from zmq_offload.compile.target import resolve_target
from zmq_offload.protocol.payload import Array
from zmq_offload.runtime.refusal import refusal

SHAPE = (4, 32)


@pytest.fixture(scope="module")
def added() -> Callable[..., Any]:
    """The `main` of a library that adds two tensors of one symbolic number of rows."""
    builder, rows = relax.BlockBuilder(), tirx.Var("rows", "int64")
    params = [relax.Var(name, relax.TensorType((rows, SHAPE[1]), "float32")) for name in "xy"]
    with builder.function("main", params):
        with builder.dataflow():
            result = builder.emit_output(builder.emit(relax.op.add(*params)))
        builder.emit_func_output(result)
    main: Callable[..., Any] = relax.VirtualMachine(build(builder.get(), resolve_target(None)), tvm.cpu())["main"]
    return main


def at(offset: int, shape: tuple[int, ...] = SHAPE) -> Array:
    """Memory so many bytes after an address that is aligned to 64 bytes."""
    size = int(np.prod(shape)) * 4
    memory = np.zeros(size + 128, np.uint8)
    start = -memory.ctypes.data % 64 + offset
    return memory[start : start + size].view(np.float32).reshape(shape)


def test_memory_that_fits_is_used_as_it_is(added: Callable[..., Any]) -> None:
    x, y = at(0), at(0, (8, 32))[4:]
    x[:], y[:] = 1, 2
    np.testing.assert_array_equal(np.from_dlpack(added(tvm_ffi.from_dlpack(x), tvm_ffi.from_dlpack(y))), 3)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (at(0, (4, 64))[:, :32], "strides"),
        (at(0, (4, 64))[:, ::2], "strides"),
        (at(0, (32, 4)).T, "strides"),
        (at(0)[:, ::-1], "strides"),
        (at(4), "the memory of y is not aligned to 64 bytes; copy it"),
        (at(16), "the memory of y is not aligned to 64 bytes; copy it"),
        (at(0).astype(np.float64), "expect Tensor with dtype float32 but get float64"),
        (at(0, (32,)), "expect Tensor with ndim 2 but get 1"),
        (at(0, (4, 31)), "shape[1] mismatch to specified constant"),
        (at(0, (5, 32)), "shape[0] mismatch to a previous populated value"),
    ],
)
def test_other_memory_is_refused(added: Callable[..., Any], wrong: Array, says: str) -> None:
    with pytest.raises((ValueError, RuntimeError), match=says.replace("[", r"\[")):
        added(tvm_ffi.from_dlpack(at(0)), tvm_ffi.from_dlpack(wrong))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (at(0).astype(np.float64), "input 'second' is of float64; it takes float32"),
        (at(0, (32,)), "input 'second' has 1 dimensions; it takes 2"),
        (at(0, (4, 31)), "dimension 1 of input 'second' is 31; it takes 32"),
        (
            at(0, (5, 32)),
            "dimension 0 of input 'second' is 5, but the same extent is 4 elsewhere in the inputs; give both the same",
        ),
    ],
)
def test_what_the_virtual_machine_refuses_is_said_in_our_words(
    added: Callable[..., Any], wrong: Array, says: str
) -> None:
    with pytest.raises((ValueError, RuntimeError)) as caught:
        added(tvm.runtime.tensor(at(0)), tvm.runtime.tensor(wrong))
    assert str(refusal(caught.value, ["first", "second"])) == says


def test_other_errors_are_not_the_callers(added: Callable[..., Any]) -> None:
    assert refusal(RuntimeError("std::bad_alloc"), ["x"]) is None
