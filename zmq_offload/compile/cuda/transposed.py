"""Transposed convolutions whose windows do not overlap, as a product of matrices.

TVM puts zeros between the elements of the input and convolves that: with a stride of 2 three of four multiplications
are by zero. Where the kernel is as large as the stride, each element of the result is one sum over the channels.
"""

from __future__ import annotations

from tvm import relax, te, topi
from tvm.ir import Call, Expr
from tvm.relax.block_builder import BlockBuilder
from tvm.relax.transform.legalize_ops.nn import _nn_conv2d_transpose

from zmq_offload.schedules.tvm_internals import FUSABLE


def transposed_convolution(builder: BlockBuilder, call: Call) -> Expr:
    """Legalize a transposed convolution: as a product if its windows do not overlap, as TVM does otherwise."""
    attrs, (data, weight) = call.attrs, call.args
    strides = [int(s) for s in attrs.strides]
    shapes = [e.ty.shape for e in (data, weight)]
    fixed = all(isinstance(shape, relax.ShapeExpr) for shape in shapes)
    plain = (
        not any(int(p) for p in (*attrs.padding, *attrs.output_padding))
        and int(attrs.groups) == 1
        and (attrs.data_layout, attrs.kernel_layout, attrs.out_layout) == ("NCHW", "IOHW", "NCHW")
    )
    if not fixed or not plain or [str(e) for e in shapes[1].values[2:]] != [str(s) for s in strides]:
        return _nn_conv2d_transpose(builder, call)
    down, across = strides
    dtype = str(call.ty.dtype)

    def compute(x: te.Tensor, w: te.Tensor) -> te.Tensor:
        batch, channels, height, width = x.shape
        c = te.reduce_axis((0, channels), "c")
        squares = te.compute(
            (batch, w.shape[1], height, down, width, across),
            lambda n, o, y, i, z, j: te.sum(x[n, c, y, z].astype(dtype) * w[c, o, i, j].astype(dtype), axis=c),
            name="conv2d_transpose",
        )
        return topi.reshape(squares, (batch, w.shape[1], height * down, width * across))

    return builder.call_te(
        compute, data, weight, primfunc_name_hint="conv2d_transpose", primfunc_attrs={"op_pattern": FUSABLE}
    )
