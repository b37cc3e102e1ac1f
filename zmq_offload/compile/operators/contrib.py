"""Operators of ONNX Runtime's own domain, com.microsoft, which its optimizers and other tools write into models."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from tvm import relax

from zmq_offload.compile.operators import contrib_attention as heads
from zmq_offload.compile.operators import pools
from zmq_offload.compile.operators.node import Converter, Node, by_tvm, dtype_of, refuse
from zmq_offload.compile.operators.recurrent import dynamic_quantize_lstm
from zmq_offload.compile.operators.tvm_importer import Builder, Expr

op = relax.op


def quick_gelu(bb: Builder, node: Node) -> Expr:
    x = node.inputs[0]
    alpha = relax.const(node.attributes.number("alpha", 1.702), dtype_of(x))
    return op.multiply(x, op.sigmoid(op.multiply(x, alpha)))


def simplified_layer_norm(bb: Builder, node: Node) -> Expr:
    """The root of the mean square in place of mean and deviation."""
    node.attributes.get("stash_type")  # sums are at least in float32
    axis = node.attributes.integer("axis", -1)
    return _normalized(bb, node.inputs[0], node.inputs[1], node.attributes.number("epsilon", 1e-5), axis)


def skip_layer_norm(bb: Builder, node: Node) -> Expr:
    """Add, and normalize. The fourth output is the sum; the second and third are for training."""
    simplified = node.operator.startswith("SkipSimplified")
    total, scale = bb.normalize(op.add(node.inputs[0], node.inputs[1])), node.inputs[2]
    bias = node.inputs[3 if simplified else 4]
    total = total if bias is None else bb.normalize(op.add(total, bias))
    epsilon = node.attributes.number("epsilon", 1e-12)
    if simplified:
        result = _normalized(bb, total, scale, epsilon)
    else:
        shift = node.inputs[3]
        shift = bb.normalize(op.zeros_like(scale)) if shift is None else shift
        result = bb.normalize(op.nn.layer_norm(total, scale, shift, axes=[-1], epsilon=epsilon))
    if node.outputs <= 1:
        return result
    used = [name for name in (node.proto.output[1:3] if node.proto is not None else ()) if name]
    if used:
        raise node.refused(f"its output {used[0]!r} is for training", "export the model for inference")
    unused = relax.const(np.zeros(0, "float32"))
    return relax.Tuple([result, unused, unused, total][: node.outputs])


def _normalized(bb: Builder, x: Expr, scale: Expr, epsilon: float, axis: int = -1) -> Expr:
    kind, axes = dtype_of(x), list(range(axis % x.ty.ndim, x.ty.ndim))
    wide = "float64" if kind == "float64" else "float32"
    value = x if kind == wide else bb.normalize(op.astype(x, wide))
    square = op.mean(op.multiply(value, value), axes, True)
    value = op.divide(value, op.sqrt(op.add(square, relax.const(epsilon, wide))))
    return bb.normalize(op.multiply(value if kind == wide else op.astype(value, kind), scale))


def fused_matmul(bb: Builder, node: Node) -> Expr:
    attributes = node.attributes
    a, b = (
        _turned(bb, node.inputs[i], attributes.flag(f"transBatch{n}"), attributes.flag(f"trans{n}"))
        for i, n in enumerate("AB")
    )
    result = op.matmul(a, b)
    alpha = attributes.number("alpha", 1.0)
    return result if alpha == 1 else op.multiply(result, relax.const(alpha, dtype_of(a)))


def _turned(bb: Builder, x: Expr, batch: bool, swap: bool) -> Expr:
    """A matrix with its first axis before the last one, and with its last two axes swapped, if it has them."""
    order = [*range(x.ty.ndim)]
    if batch and len(order) > 2:
        order.insert(len(order) - 2, order.pop(0))
    if swap and len(order) > 1:
        order[-2:] = reversed(order[-2:])
    return x if order == [*range(len(order))] else bb.normalize(op.permute_dims(x, order))


def fused_gemm(bb: Builder, node: Node) -> Expr:
    given = {"alpha": "activation_alpha", "beta": "activation_beta", "gamma": "activation_gamma"}
    values = [node.attributes.pop(name) for name in given.values() if name in node.attributes]
    activation = node.attributes.pop("activation", b"")
    node.operator = "Gemm"
    return _activated(bb, node, by_tvm(bb, node), activation, values)


def fused_conv(bb: Builder, node: Node) -> Expr:
    """A convolution, a fourth input that is added, and an activation."""
    values = list(node.attributes.pop("activation_params", []))
    activation = node.attributes.pop("activation", b"")
    added = node.inputs[3]
    node.operator, node.inputs[3:] = "Conv", []
    result = bb.normalize(pools.convolution(bb, node))
    result = result if added is None else bb.normalize(op.add(result, added))
    return _activated(bb, node, result, activation, values)


def _activated(bb: Builder, node: Node, x: Expr, name: bytes, values: list[float]) -> Expr:
    x = bb.normalize(x)
    kind = dtype_of(x)

    def given(index: int, usual: float) -> float:
        return float(values[index]) if index < len(values) else usual

    def hard_sigmoid() -> Expr:
        scaled = op.multiply(x, relax.const(given(0, 0.2), kind))
        return op.clip(op.add(scaled, relax.const(given(1, 0.5), kind)), 0, 1)

    known: dict[str, Callable[[], Expr]] = {
        "": lambda: x,
        "Relu": lambda: op.nn.relu(x),
        "Tanh": lambda: op.tanh(x),
        "Sigmoid": lambda: op.sigmoid(x),
        "LeakyRelu": lambda: op.nn.leakyrelu(x, given(0, 0.01)),
        "Clip": lambda: op.clip(x, given(0, -math.inf), given(1, math.inf)),
        "HardSigmoid": hard_sigmoid,
    }
    activation = name.decode() if isinstance(name, bytes) else str(name)
    if activation not in known:
        refuse(node, "activation", activation, f"use one of {', '.join(filter(None, known))}")
    return known[activation]()


CONTRIB_CONVERTERS: dict[str, Converter] = {
    "Attention": heads.attention,
    "DynamicQuantizeLSTM": dynamic_quantize_lstm,
    "EmbedLayerNormalization": heads.embed_layer_norm,
    "FusedConv": fused_conv,
    "FusedGemm": fused_gemm,
    "FusedMatMul": fused_matmul,
    "GroupQueryAttention": heads.group_query_attention,
    "MultiHeadAttention": heads.multi_head_attention,
    "QuickGelu": quick_gelu,
    "RotaryEmbedding": heads.rotary_embedding,
    "SimplifiedLayerNormalization": simplified_layer_norm,
    "SkipLayerNormalization": skip_layer_norm,
    "SkipSimplifiedLayerNormalization": skip_layer_norm,
    "TransposeMatMul": fused_matmul,
}
"""Converters of com.microsoft. TVM has a few more, which `schemas.BY_TVM` lists."""
