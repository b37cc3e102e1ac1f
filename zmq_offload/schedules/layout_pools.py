"""Pools and resizes for the layout pass: the same operator over channels-last data."""

from __future__ import annotations

from tvm import relax
from tvm.ir import Call, Expr

from zmq_offload.schedules.tvm_internals import last_part, operator_name

_LAYOUTS = {"NCHW": "NHWC", "NCDHW": "NDHWC"}  # TOPI's one-dimensional pools take (n, c, w) only


def takes(call: Call) -> bool:
    """Return whether a pool, or a resize, has a channels-last form."""
    layout = str(call.attrs.layout)
    return layout in _LAYOUTS and str(getattr(call.attrs, "out_layout", layout)) == layout


def pool(call: Call, data: Expr) -> Call:
    """Return a pool of channels-last `data`."""
    attrs, layout = call.attrs, _LAYOUTS[str(call.attrs.layout)]
    make = getattr(relax.op.nn, last_part(operator_name(call)))
    if hasattr(attrs, "output_size"):
        return make(data, attrs.output_size, layout=layout)
    return make(
        data,
        attrs.pool_size,
        attrs.strides,
        attrs.padding,
        attrs.dilation,
        attrs.ceil_mode,
        attrs.count_include_pad,
        layout=layout,
    )


def resize(call: Call, data: Expr) -> Call:
    """Return a resize of channels-last `data`, an image."""
    attrs = call.attrs
    return relax.op.image.resize2d(
        data,
        call.args[1],
        roi=[float(r.value) for r in attrs.roi],
        layout="NHWC",
        method=attrs.method,
        coordinate_transformation_mode=attrs.coordinate_transformation_mode,
        rounding_method=attrs.rounding_method,
        cubic_alpha=attrs.cubic_alpha,
        cubic_exclude=attrs.cubic_exclude,
        extrapolation_value=attrs.extrapolation_value,
        out_dtype=attrs.out_dtype,
    )
