"""ONNX's Attention: scaled dot products of queries and keys, masked, as weights of the values."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import tvm
from tvm import relax

from zmq_offload.compile.operators.node import Node, dtype_of
from zmq_offload.compile.operators.tvm_importer import Builder, Expr, datatype

op = relax.op


def attention(bb: Builder, node: Node) -> Expr:
    """Grouped heads are rows of one product, so that keys and values are not repeated. Sums are at least in float32."""
    attributes, flat = node.attributes, node.inputs[0].ty.ndim == 3
    heads, groups = (attributes.get(name) for name in ("q_num_heads", "kv_num_heads"))
    q = in_heads(bb, node.inputs[0], heads if flat else None)
    k, v = (in_heads(bb, node.inputs[i], groups if flat else None) for i in (1, 2))
    past_k, past_v = node.inputs[4], node.inputs[5]
    offset: Expr = 0
    if past_k is not None:
        offset = past_k.ty.shape.values[2]
        k, v = (bb.normalize(op.concat([past, new], 2)) for past, new in ((past_k, k), (past_v, v)))
    kind = dtype_of(q)
    wide = "float64" if kind == "float64" else "float32"
    precise = attributes.get("softmax_precision")
    inner = wide if precise is None or datatype(precise) != "float64" else "float64"
    scale = attributes.get("scale") or 1 / math.sqrt(int(q.ty.shape.values[3]))
    scores = products(bb, _cast(bb, q, wide), _cast(bb, k, wide), float(scale))
    mode, kept = attributes.integer("qk_matmul_output_mode", 0), scores
    cap = attributes.number("softcap", 0.0)
    if cap > 0:
        limit = relax.const(cap, wide)
        scores = bb.normalize(op.multiply(op.tanh(op.divide(scores, limit)), limit))
        kept = scores if mode in (1, 2) else kept
    mask = _mask(bb, node, q.ty.shape.values[2], k.ty.shape.values[2], offset, wide)
    if mask is not None:
        if mode == 2:
            kept = bb.normalize(op.add(scores, mask.bias))
        scores = bb.normalize(op.add(scores, mask.finite))
    weights = _cast(bb, bb.normalize(op.nn.softmax(_cast(bb, scores, inner), -1)), wide)
    result = weighted(bb, weights, _cast(bb, v, wide))
    if mask is not None and mask.empty is not None:
        # A row without a key to attend to is 0 in ONNX.
        result = bb.normalize(op.where(mask.empty, relax.const(0, wide), result))
        weights = bb.normalize(op.where(mask.empty, relax.const(0, wide), weights)) if mode == 3 else weights
    result = _cast(bb, result, kind)
    if flat:
        result = out_of_heads(bb, result)
    kept = weights if mode == 3 else kept
    kept = _cast(bb, kept, kind)
    return result if node.outputs <= 1 else relax.Tuple([result, k, v, kept][: node.outputs])


def _cast(bb: Builder, x: Expr, kind: str) -> Expr:
    return x if dtype_of(x) == kind else bb.normalize(op.astype(x, kind))


def in_heads(bb: Builder, x: Expr, heads: int | None) -> Expr:
    """[batch, heads, sequence, head size] from [batch, sequence, heads * head size], or as it is."""
    if heads is None:
        return x
    b, s, width = x.ty.shape.values
    x = bb.normalize(op.reshape(x, relax.ShapeExpr([b, s, int(heads), int(width) // int(heads)])))
    return bb.normalize(op.permute_dims(x, [0, 2, 1, 3]))


def out_of_heads(bb: Builder, x: Expr) -> Expr:
    """[batch, sequence, heads * head size] from [batch, heads, sequence, head size]."""
    b, h, s, d = x.ty.shape.values
    x = bb.normalize(op.permute_dims(x, [0, 2, 1, 3]))
    return bb.normalize(op.reshape(x, relax.ShapeExpr([b, s, h * d])))


def products(bb: Builder, q: Expr, k: Expr, scale: float) -> Expr:
    """The scores of queries and keys; several heads of queries may share one of keys."""
    b, h, s, d = q.ty.shape.values
    groups, t = int(k.ty.shape.values[1]), k.ty.shape.values[2]
    q = bb.normalize(op.multiply(q, relax.const(scale, dtype_of(q))))
    if groups != int(h):
        q = bb.normalize(op.reshape(q, relax.ShapeExpr([b, groups, int(h) // groups * s, d])))
    product = bb.normalize(op.matmul(q, bb.normalize(op.permute_dims(k, [0, 1, 3, 2]))))
    return product if groups == int(h) else bb.normalize(op.reshape(product, relax.ShapeExpr([b, h, s, t])))


def weighted(bb: Builder, weights: Expr, v: Expr) -> Expr:
    """The values, weighted; several heads of weights may share one of values."""
    b, h, s, t = weights.ty.shape.values
    groups, d = int(v.ty.shape.values[1]), v.ty.shape.values[3]
    if groups != int(h):
        weights = bb.normalize(op.reshape(weights, relax.ShapeExpr([b, groups, int(h) // groups * s, t])))
    result = bb.normalize(op.matmul(weights, v))
    return result if groups == int(h) else bb.normalize(op.reshape(result, relax.ShapeExpr([b, h, s, d])))


class _Mask(NamedTuple):
    """What is added to the scores; the same with 0 in rows that are masked as a whole; and which rows are."""

    bias: Expr
    finite: Expr
    empty: Expr | None


def _mask(bb: Builder, node: Node, s: Expr, t: Expr, offset: Expr, kind: str) -> _Mask | None:
    """Combine the mask with the causal one, the window and the padding. s queries attend to t keys."""
    given, lengths = node.inputs[3], node.inputs[6]
    zero, never = relax.const(0, kind), relax.const(-np.inf, kind)
    conditions = _places(bb, node, s, t, offset)
    if lengths is not None:
        conditions.append(bb.normalize(op.less(_range(bb, t, [1, 1, 1, t]), _each(bb, lengths))))
    if given is None and len(conditions) == 1 and isinstance(conditions[0], tvm.ir.GenericConst):
        table = conditions[0].value.numpy()
        if table.any(axis=-1).all():
            bias = relax.const(np.where(table, 0, -np.inf).astype(kind), kind)
            return _Mask(bias, bias, None)
    bias = None
    if given is not None:
        boolean = dtype_of(given) == "bool"
        bias = bb.normalize(op.where(given, zero, never)) if boolean else _cast(bb, given, kind)
        bias = _padded(bb, bias, t)
    for condition in conditions:
        bias = bb.normalize(op.where(condition, zero if bias is None else bias, never))
    if bias is None:
        return None
    empty = bb.normalize(op.equal(op.max(bias, -1, True), never))
    return _Mask(bias, bb.normalize(op.where(empty, zero, bias)), empty)


def _places(bb: Builder, node: Node, s: Expr, t: Expr, offset: Expr) -> list[Expr]:
    """Conditions for the keys that a query may attend to, by its place: causal attention and windows."""
    attributes, lengths = node.attributes, node.inputs[6]
    left, right = attributes.integer("left_window_size", -1), attributes.integer("right_window_size", -1)
    if attributes.flag("is_causal"):
        right = 0
    if left < 0 and right < 0:
        return []
    if lengths is None and all(isinstance(n, int | tvm.tirx.IntImm) for n in (s, t, offset)):
        ahead = np.arange(int(t))[None, :] - np.arange(int(s))[:, None] - int(offset)
        inside = (ahead <= right if right >= 0 else True) & (ahead >= -left if left >= 0 else True)
        return [relax.const(np.asarray(inside), "bool")]
    ahead = bb.normalize(op.subtract(_range(bb, t, [1, t]), _range(bb, s, [s, 1], offset)))
    if lengths is not None:
        ahead = bb.normalize(op.subtract(op.add(ahead, _extent(bb, s)), _each(bb, lengths)))
    found = []
    if right >= 0:
        found.append(bb.normalize(op.less_equal(ahead, relax.const(right, "int64"))))
    if left >= 0:
        found.append(bb.normalize(op.greater_equal(ahead, relax.const(-left, "int64"))))
    return found


def _range(bb: Builder, extent: Expr, shape: list[Expr], start: Expr = 0) -> Expr:
    """start, start + 1, ... of an extent, which may be symbolic."""
    return bb.normalize(op.reshape(bb.normalize(op.arange(start, start + extent, 1, "int64")), relax.ShapeExpr(shape)))


def _each(bb: Builder, lengths: Expr) -> Expr:
    """A number for each item of the batch, for tensors of rank 4."""
    wide = _cast(bb, lengths, "int64")
    return bb.normalize(op.reshape(wide, relax.ShapeExpr([wide.ty.shape.values[0], 1, 1, 1])))


def _extent(bb: Builder, extent: Expr) -> Expr:
    if isinstance(extent, tvm.tirx.IntImm):
        return relax.const(int(extent), "int64")
    return bb.normalize(op.shape_to_tensor(relax.ShapeExpr([extent])))


def _padded(bb: Builder, mask: Expr, t: Expr) -> Expr:
    """Keys past the end of a mask are masked."""
    shape = list(mask.ty.shape.values)
    if not isinstance(shape[-1], tvm.tirx.IntImm) or not isinstance(t, tvm.tirx.IntImm) or int(shape[-1]) == int(t):
        return mask
    shape[-1] = int(t) - int(shape[-1])
    # TVM's `full` does not know infinity.
    rest = op.add(op.zeros(relax.ShapeExpr(shape), dtype_of(mask)), relax.const(-np.inf, dtype_of(mask)))
    return bb.normalize(op.concat([mask, bb.normalize(rest)], -1))
