"""Operators of ONNX Runtime's own domain, com.microsoft, which its optimizers and other tools write into models."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import tvm
from tvm import relax

from zmq_offload.compile.operators import attention, pools
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
    a, b = node.inputs[0], node.inputs[1]
    for name in ("transBatchA", "transBatchB"):
        if node.attributes.flag(name):
            refuse(node, name, 1, "write the transposition as Transpose")
    a, b = (_swapped(bb, v) if node.attributes.flag(n) else v for v, n in ((a, "transA"), (b, "transB")))
    result = op.matmul(a, b)
    alpha = node.attributes.number("alpha", 1.0)
    return result if alpha == 1 else op.multiply(result, relax.const(alpha, dtype_of(a)))


def _swapped(bb: Builder, x: Expr) -> Expr:
    rank = x.ty.ndim
    return x if rank < 2 else bb.normalize(op.permute_dims(x, [*range(rank - 2), rank - 1, rank - 2]))


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


def multi_head_attention(bb: Builder, node: Node) -> Expr:
    """Attention after the projections. Masks are numbers that are added, as ONNX Runtime does."""
    heads, inputs = node.attributes.integer("num_heads", 1), node.inputs
    q, k, v, bias = inputs[0], inputs[1], inputs[2], inputs[3]
    if k is None or v is None:
        raise node.refused("its query is packed with key and value", "give the three as inputs of their own")
    if bias is not None:
        width, whole = int(q.ty.shape.values[2]), int(bias.ty.shape.values[0])
        parts = bb.normalize(op.split(bias, [width, whole - int(v.ty.shape.values[-1])]))
        q, k, v = (bb.normalize(op.add(x, bb.emit(relax.TupleGetItem(parts, i)))) for i, x in enumerate((q, k, v)))
    q, k, v = (attention.in_heads(bb, x, heads if x.ty.ndim == 3 else None) for x in (q, k, v))
    past_k, past_v, offset = inputs[6], inputs[7], 0
    if past_k is not None:
        offset = past_k.ty.shape.values[2]
        k, v = (bb.normalize(op.concat([past, new], 2)) for past, new in ((past_k, k), (past_v, v)))
    kind, least = dtype_of(q), node.attributes.number("mask_filter_value", -10000.0)
    scale = node.attributes.number("scale", 0.0) or 1 / math.sqrt(int(q.ty.shape.values[3]))
    scores = attention.products(bb, q, k, scale)
    masked, more = inputs[4], inputs[5]
    if masked is not None:
        if masked.ty.ndim not in (2, 3):
            raise node.refused("its key_padding_mask has lengths", "give a mask of [batch, keys]")
        scores = bb.normalize(op.add(scores, _mask(bb, masked, kind, least)))
    scores = scores if more is None else bb.normalize(op.add(scores, more))
    if node.attributes.flag("unidirectional"):
        s, t = q.ty.shape.values[2], k.ty.shape.values[2]
        if not all(isinstance(n, int | tvm.tirx.IntImm) for n in (s, t, offset)):
            raise node.refused("it is causal and has symbolic extents", "give the input a fixed shape")
        ahead = np.arange(int(t))[None, :] - np.arange(int(s))[:, None] > int(offset)
        scores = bb.normalize(op.add(scores, relax.const(np.where(ahead, -np.inf, 0).astype(kind), kind)))
    result = attention.weighted(bb, bb.normalize(op.nn.softmax(scores, -1)), v)
    result = attention.out_of_heads(bb, result)
    return result if node.outputs <= 1 else relax.Tuple([result, k, v][: node.outputs])


def _mask(bb: Builder, mask: Expr, kind: str, least: float) -> Expr:
    """0 where a mask is above 0, and a large negative number elsewhere."""
    dims = list(mask.ty.shape.values)
    dims[1:1] = [1, 1] if len(dims) == 2 else [1]
    keep = bb.normalize(op.greater(mask, relax.const(0, dtype_of(mask))))
    added = bb.normalize(op.where(keep, relax.const(0, kind), relax.const(least, kind)))
    return bb.normalize(op.reshape(added, relax.ShapeExpr(dims)))


def rotary_embedding(bb: Builder, node: Node) -> Expr:
    x, places, cosines, sines = node.inputs[0], node.inputs[1], node.inputs[2], node.inputs[3]
    attributes = node.attributes
    if attributes.number("scale", 1.0) != 1:
        refuse(node, "scale", attributes["scale"], "use 1")
    attributes.get("is_packed_batching")
    half = int(cosines.ty.shape.values[1])
    flat, interleaved = x.ty.ndim == 3, attributes.flag("interleaved")
    heads, reach = attributes.integer("num_heads", 0), attributes.integer("rotary_embedding_dim", 0)
    if flat:
        heads = heads if reach or heads else int(x.ty.shape.values[2]) // (2 * half)
        x = attention.in_heads(bb, x, heads)
    s = x.ty.shape.values[2]
    places = bb.normalize(op.astype(places, "int64"))
    if places.ty.ndim == 1:
        places = bb.normalize(op.add(op.arange(0, s, 1, "int64"), places))
        places = bb.normalize(op.reshape(places, relax.ShapeExpr([1, s])))

    def table(cache: Expr) -> Expr:
        rows = bb.normalize(op.take(cache, places, 0, mode="clip"))
        return bb.normalize(op.expand_dims(rows, 1))

    cos, sin, last = table(cosines), table(sines), x.ty.ndim - 1

    def part(begin: int, end: int, step: int = 1) -> Expr:
        return bb.normalize(op.strided_slice(x, [last], [begin], [end], [step]))

    a, b = (part(0, 2 * half, 2), part(1, 2 * half, 2)) if interleaved else (part(0, half), part(half, 2 * half))
    turned = op.subtract(op.multiply(a, cos), op.multiply(b, sin)), op.add(op.multiply(b, cos), op.multiply(a, sin))
    first, second = map(bb.normalize, turned)
    if interleaved:
        pairs = bb.normalize(op.stack([first, second], last + 1))
        result = bb.normalize(op.reshape(pairs, relax.ShapeExpr([*x.ty.shape.values[:-1], 2 * half])))
    else:
        result = bb.normalize(op.concat([first, second], last))
    width = int(x.ty.shape.values[-1])
    if width > 2 * half:
        result = bb.normalize(op.concat([result, part(2 * half, width)], last))
    return attention.out_of_heads(bb, result) if flat else result


CONTRIB_CONVERTERS: dict[str, Converter] = {
    "DynamicQuantizeLSTM": dynamic_quantize_lstm,
    "FusedConv": fused_conv,
    "FusedGemm": fused_gemm,
    "FusedMatMul": fused_matmul,
    "MultiHeadAttention": multi_head_attention,
    "QuickGelu": quick_gelu,
    "RotaryEmbedding": rotary_embedding,
    "SimplifiedLayerNormalization": simplified_layer_norm,
    "SkipLayerNormalization": skip_layer_norm,
    "SkipSimplifiedLayerNormalization": skip_layer_norm,
    "TransposeMatMul": fused_matmul,
}
"""Converters of com.microsoft. TVM has a few more, which `schemas.BY_TVM` lists."""
