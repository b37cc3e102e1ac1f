"""Kernels with weights of 16 bits compute what the same kernels compute with these weights in float32."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from tvm import relax

from tests.schedules.schedule_harness import TARGETS, close, compiled
from tests.support.examples import examples
from zmq_offload.compile.build import prepared

Array = np.ndarray[Any, Any]
few = examples(8)
channels = st.sampled_from([1, 3, 8, 16, 17, 40, 70])


@st.composite
def kernels(draw: st.DrawFn) -> tuple[relax.Call, relax.Var, Array, Array]:
    """An operator whose weights are a constant of 16 bits, its input, and the same weights in float32."""
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    kind = draw(st.sampled_from(["dense", "dense", "batched", "conv", "conv", "depthwise", "transposed", "volume"]))
    dtype = draw(st.sampled_from([np.dtype("f2"), np.dtype(ml_dtypes.bfloat16)]))
    ic, oc = draw(channels), draw(channels)
    rows = draw(st.sampled_from([1, 2, 7, 30, 100]))
    size, kernel = draw(st.sampled_from([4, 9, 20])), draw(st.sampled_from([1, 2, 3]))
    shapes = {
        "dense": ((rows, ic), (ic, oc)),
        "batched": ((2, rows, ic), (2, ic, oc)),
        "conv": ((1, ic, size, size), (oc, ic, kernel, kernel)),
        "depthwise": ((1, 17, size, size), (17, 1, kernel, kernel)),
        "transposed": ((1, ic, size, size), (ic, oc, kernel, kernel)),
        "volume": ((1, ic, 4, size, size), (oc, ic, kernel, kernel, kernel)),
    }
    data, weight = shapes[kind]
    values = (rng.standard_normal(weight) * 0.3).astype(dtype)
    x = relax.Var("x", relax.TensorType(data, "float32"))
    w = relax.op.astype(relax.const(values, str(dtype)), "float32")
    if kind in ("dense", "batched"):
        y = relax.op.matmul(x, w)
    elif kind == "transposed":
        y = relax.op.nn.conv2d_transpose(x, w, strides=[kernel, kernel])
    elif kind == "volume":
        y = relax.op.nn.conv3d(x, w, padding=[1] * 6)
    else:
        y = relax.op.nn.conv2d(x, w, padding=[1] * 4, groups=17 if kind == "depthwise" else 1)
    return y, x, rng.standard_normal(data).astype("f4"), values.astype("f4")


@few
@given(kernels(), st.sampled_from(TARGETS))
def test_weights_of_16_bits(case: tuple[relax.Call, relax.Var, Array, Array], target: Any) -> None:
    y, x, given, values = case
    builder = relax.BlockBuilder()
    with builder.function("main", [x]):
        with builder.dataflow():
            out = builder.emit_output(relax.op.nn.relu(builder.emit(y)))
        builder.emit_func_output(out)
    (got,) = compiled(prepared(builder.get()), target)(given)
    plain = relax.BlockBuilder()
    x = relax.Var("x", x.ty)
    with plain.function("main", [x]):
        with plain.dataflow():
            same = relax.Call(y.op, [x, relax.const(values)], y.attrs)
            out = plain.emit_output(relax.op.nn.relu(plain.emit(same)))
        plain.emit_func_output(out)
    (want,) = compiled(plain.get(), target)(given)
    close(got, want, 1e-6)
