"""Weights of less than a byte: read them, one value for each byte, before the model is imported.

4-bit weights of DequantizeLinear become bytes of the same values. MatMulNBits of com.microsoft, which has a scale for
each block of its weights, becomes a MatMul with floats.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from zmq_offload.compile.operators.nodes import label_of
from zmq_offload.compile.operators.refusal import cannot_import
from zmq_offload.compile.operators.schemas import MICROSOFT
from zmq_offload.protocol.payload import Array

_WIDER = {TensorProto.INT4: np.int8, TensorProto.UINT4: np.uint8}
_NARROW = ("int4", "int2", "float4e2m1", "float6e2m3", "float6e3m2")
"""How the names of datatypes end that TVM cannot hold."""


def widen_narrow_weights(graph: onnx.GraphProto) -> None:
    """Give each 4-bit weight of DequantizeLinear a byte for each value, and write MatMulNBits out.

    Raises InvalidArgument for any other use of weights of less than a byte.
    """
    weights = {w.name: w for w in graph.initializer}
    for node in graph.node:
        if (node.domain, node.op_type) == (MICROSOFT, "MatMulNBits"):
            continue
        for index, name in enumerate(node.input):
            kind = TensorProto.DataType.Name(weights[name].data_type).lower() if name in weights else ""
            readable = node.op_type == "DequantizeLinear" and kind in ("int4", "uint4")
            if kind.endswith(_NARROW) and (not readable or index == 1):
                raise cannot_import(
                    node.op_type, node.domain, label_of(node), f"it is of {kind}", "quantize to int8 or uint8"
                )
    for weight in graph.initializer:
        if weight.data_type in _WIDER:
            value = numpy_helper.to_array(weight).astype(_WIDER[weight.data_type])
            weight.CopyFrom(numpy_helper.from_array(value, weight.name))
    _write_out_blocks(graph, weights)


def _write_out_blocks(graph: onnx.GraphProto, weights: Mapping[str, onnx.TensorProto]) -> None:
    """Replace each MatMulNBits by MatMul."""
    for index, node in enumerate(graph.node):
        if (node.domain, node.op_type) != (MICROSOFT, "MatMulNBits"):
            continue
        x, inputs, output = node.input[0], dict(enumerate(node.input)), node.output[0]
        weight = f"{output}.weight"
        graph.initializer.append(numpy_helper.from_array(_dequantized(node, weights), weight))
        bias = inputs.get(5, "")
        product = helper.make_node("MatMul", [x, weight], [f"{output}.product" if bias else output], label_of(node))
        if bias:
            graph.node.insert(index + 1, helper.make_node("Add", [product.output[0], bias], [output], f"{output}.bias"))
        graph.node[index].CopyFrom(product)


def _dequantized(node: onnx.NodeProto, weights: Mapping[str, onnx.TensorProto]) -> Array:
    """The weight of MatMulNBits as floats, [K, N]."""
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    rows, columns, block = (int(attributes[name]) for name in ("K", "N", "block_size"))
    bits = int(attributes.get("bits", 4))
    if attributes.get("weight_prepacked"):
        raise _refused(
            node, "with weight_prepacked=1", "use the model as it was before it was prepared for one machine"
        )
    if bits not in (2, 4, 8):
        raise _refused(node, f"with bits={bits}", "quantize to 2, 4 or 8 bits")
    if len(node.input) > 4 and node.input[4]:
        raise _refused(node, f"its input 5, {node.input[4]!r}, orders the rows", "quantize without it")
    given = [numpy_helper.to_array(weights[n]) if n in weights else None for n in node.input[1:4] if n]
    if any(value is None for value in given):
        raise _refused(node, "its weight is computed when the model runs", "it has to be a constant")
    packed, scales, *zeros = (value for value in given if value is not None)
    blocks = -(-rows // block)
    values = _unpacked(packed.reshape(columns, -1), bits)[:, : blocks * block].reshape(columns, blocks, block)
    zero: Array = np.full((columns, blocks, 1), 2 ** (bits - 1), "f4")
    if zeros and zeros[0].dtype == np.uint8:
        zero = _unpacked(zeros[0].reshape(columns, -1), bits)[:, :blocks, None]
    elif zeros:
        zero = zeros[0].reshape(columns, blocks, 1)
    real = (values.astype("f4") - zero.astype("f4")) * scales.reshape(columns, blocks, 1).astype("f4")
    whole = real.reshape(columns, -1)[:, :rows].T
    return np.ascontiguousarray(whole.astype(scales.dtype))


def _unpacked(packed: Array, bits: int) -> Array:
    """Values of `bits` bits, the lowest bits of each byte first."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    return np.asarray(packed[..., None] >> shifts & (2**bits - 1)).reshape(*packed.shape[:-1], -1)


def _refused(node: onnx.NodeProto, why: str, instead: str) -> Exception:
    return cannot_import(node.op_type, node.domain, label_of(node), why, instead)
