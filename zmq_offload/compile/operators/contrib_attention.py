"""Attention as ONNX Runtime's optimizer writes it: operators of com.microsoft, with masks, caches and embeddings."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from tvm import relax, tirx

from zmq_offload.compile.operators.attention import in_heads, out_of_heads, products, weighted
from zmq_offload.compile.operators.node import Node, dtype_of, refuse
from zmq_offload.compile.operators.places import scattered
from zmq_offload.compile.operators.tvm_importer import Builder, Expr

op = relax.op


class _Heads(NamedTuple):
    """Queries, keys and values, of [batch, heads, sequence, head size]. So many keys were there before the queries."""

    q: Expr
    k: Expr
    v: Expr
    offset: Expr = 0

    def after(self, bb: Builder, past_k: Expr, past_v: Expr) -> _Heads:
        k, v = (bb.normalize(op.concat([past, new], 2)) for past, new in ((past_k, self.k), (past_v, self.v)))
        return _Heads(self.q, k, v, past_k.ty.shape.values[2])


def attention(bb: Builder, node: Node) -> Expr:
    """Attention with the projections to queries, keys and values as one product."""
    x, weight, bias, mask, past, more = node.inputs[:6]
    attributes = node.attributes
    for name in ("do_rotary", "past_present_share_buffer"):
        if attributes.flag(name):
            refuse(node, name, 1)
    heads = attributes.integer("num_heads", 1)
    projected = bb.normalize(op.matmul(x, weight))
    projected = projected if bias is None else bb.normalize(op.add(projected, bias))
    whole = int(weight.ty.shape.values[1])
    sizes = attributes.integers("qkv_hidden_sizes") or [whole // 3] * 3
    q, k, v = (in_heads(bb, part, heads) for part in _parts(bb, projected, sizes))
    given = _Heads(q, k, v)
    if past is not None:
        before = (bb.normalize(op.squeeze(part, [0])) for part in _parts(bb, past, [1, 1], 0))
        given = given.after(bb, *before)
    result = _attended(bb, node, given, mask, more)
    if node.outputs <= 1:
        return result
    return relax.Tuple([result, bb.normalize(op.stack([given.k, given.v], 0))])


def _parts(bb: Builder, x: Expr, sizes: list[int], axis: int = -1) -> list[Expr]:
    parts = bb.normalize(op.split(x, np.cumsum(sizes[:-1]).tolist(), axis))
    return [bb.emit(relax.TupleGetItem(parts, i)) for i in range(len(sizes))]


def multi_head_attention(bb: Builder, node: Node) -> Expr:
    """Attention after the projections."""
    heads, inputs = node.attributes.integer("num_heads", 1), node.inputs
    q, k, v, bias = inputs[0], inputs[1], inputs[2], inputs[3]
    if k is None or v is None:
        raise node.refused("its query is packed with key and value", "give the three as inputs of their own")
    if bias is not None:
        width, whole = int(q.ty.shape.values[2]), int(bias.ty.shape.values[0])
        shared = int(v.ty.shape.values[-1])
        parts = _parts(bb, bias, [width, whole - width - shared, shared])
        q, k, v = (bb.normalize(op.add(x, part)) for x, part in zip((q, k, v), parts, strict=True))
    given = _Heads(*(in_heads(bb, x, heads if x.ty.ndim == 3 else None) for x in (q, k, v)))
    given = given if inputs[6] is None else given.after(bb, inputs[6], inputs[7])
    result = _attended(bb, node, given, inputs[4], inputs[5])
    return result if node.outputs <= 1 else relax.Tuple([result, given.k, given.v][: node.outputs])


def _attended(bb: Builder, node: Node, given: _Heads, mask: Expr, more: Expr) -> Expr:
    """Masks are numbers that are added, as in ONNX Runtime."""
    q, k, v, offset = given
    kind, least = dtype_of(q), node.attributes.number("mask_filter_value", -10000.0)
    scale = node.attributes.number("scale", 0.0) or 1 / math.sqrt(int(q.ty.shape.values[3]))
    scores = products(bb, q, k, scale)
    s, t = q.ty.shape.values[2], k.ty.shape.values[2]
    if mask is not None:
        scores = bb.normalize(op.add(scores, _mask(bb, node, mask, t, kind, least)))
    scores = scores if more is None else bb.normalize(op.add(scores, more))
    if node.attributes.flag("unidirectional"):
        if not all(isinstance(n, int | tirx.IntImm) for n in (s, t, offset)):
            raise node.refused("it is causal and has symbolic extents", "give the input a fixed shape")
        ahead = np.arange(int(t))[None, :] - np.arange(int(s))[:, None] > int(offset)
        scores = bb.normalize(op.add(scores, relax.const(np.where(ahead, -np.inf, 0).astype(kind), kind)))
    return out_of_heads(bb, weighted(bb, bb.normalize(op.nn.softmax(scores, -1)), v))


def _mask(bb: Builder, node: Node, mask: Expr, t: Expr, kind: str, least: float) -> Expr:
    """0 where a mask is above 0, or where a key is inside of a length, and a large negative number elsewhere."""
    dims = list(mask.ty.shape.values)
    if len(dims) == 1:
        batch = node.inputs[0].ty.shape.values[0]
        keep = _inside(bb, node, mask, batch, t)
    elif len(dims) in (2, 3):
        dims[1:1] = [1, 1] if len(dims) == 2 else [1]
        keep = bb.normalize(op.greater(mask, relax.const(0, dtype_of(mask))))
        keep = bb.normalize(op.reshape(keep, relax.ShapeExpr(dims)))
    else:
        raise node.refused(f"its mask has {len(dims)} dimensions", "use a mask of [batch, keys]")
    return bb.normalize(op.where(keep, relax.const(0, kind), relax.const(least, kind)))


def _inside(bb: Builder, node: Node, mask: Expr, batch: Expr, t: Expr) -> Expr:
    """Which keys are before the length of their item, and from its start on, if the starts follow the lengths."""
    count = mask.ty.shape.values[0]
    many = node.extents.equal(node.dims(3 if node.operator == "Attention" else 4)[0], node.dims(0)[0])
    ends = bb.normalize(op.astype(mask, "int64"))
    starts = None
    if not many:
        if not all(isinstance(n, tirx.IntImm) for n in (count, batch)) or int(count) != 2 * int(batch):
            raise node.refused(f"its mask has the shape [{count}]", "use a mask of [batch, keys]")
        ends, starts = _parts(bb, ends, [int(batch)] * 2)
    places = bb.normalize(op.reshape(bb.normalize(op.arange(0, t, 1, "int64")), relax.ShapeExpr([1, 1, 1, t])))
    each = relax.ShapeExpr([batch, 1, 1, 1])
    keep = bb.normalize(op.less(places, bb.normalize(op.reshape(ends, each))))
    if starts is not None:
        begun = bb.normalize(op.greater_equal(places, bb.normalize(op.reshape(starts, each))))
        keep = bb.normalize(op.logical_and(keep, begun))
    return keep


def embed_layer_norm(bb: Builder, node: Node) -> Expr:
    """The sum of the embeddings of words, places and segments, normalized; and the lengths that a mask says."""
    ids, segments, words, places, parts, scale, shift, mask, given = node.inputs[:9]
    node.attributes.get("mask_index_type")  # the type of an output that the optimizer leaves at int32
    b, s = ids.ty.shape.values
    total = bb.normalize(op.take(words, ids, 0, mode="clip"))
    if given is not None:
        rows = bb.normalize(op.take(places, given, 0, mode="clip"))
    else:
        node.scope.limit(node.dims(0)[1], int(places.ty.shape.values[0]))  # ONNX Runtime refuses more
        rows = bb.normalize(op.take(places, bb.normalize(op.arange(0, s, 1, "int64")), 0, mode="clip"))
    total = bb.normalize(op.add(total, rows))
    if segments is not None:
        total = bb.normalize(op.add(total, bb.normalize(op.take(parts, segments, 0, mode="clip"))))
    epsilon = node.attributes.number("epsilon", 1e-12)
    result = bb.normalize(op.nn.layer_norm(total, scale, shift, axes=[-1], epsilon=epsilon))
    if node.outputs <= 1:
        return result
    if mask is None:
        lengths = bb.normalize(op.zeros(relax.ShapeExpr([b]), "int32"))
    else:
        lengths = bb.normalize(op.astype(op.sum(bb.normalize(op.astype(mask, "int32")), [1]), "int32"))
    return relax.Tuple([result, lengths, total][: node.outputs])


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
        x = in_heads(bb, x, heads)
    s = x.ty.shape.values[2]
    places = bb.normalize(op.astype(places, "int64"))
    if places.ty.ndim == 1:
        places = bb.normalize(op.add(op.arange(0, s, 1, "int64"), places))
        places = bb.normalize(op.reshape(places, relax.ShapeExpr([1, s])))
    result = _rotated(bb, x, places, cosines, sines, interleaved)
    return out_of_heads(bb, result) if flat else result


def _rotated(bb: Builder, x: Expr, places: Expr, cosines: Expr, sines: Expr, interleaved: bool) -> Expr:
    """Heads turned by the angles of their places; what is past the width of the tables stays."""
    half = int(cosines.ty.shape.values[1])

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
    return result


def group_query_attention(bb: Builder, node: Node) -> Expr:
    """Causal attention of language models: several heads of queries share one of keys, which a cache keeps."""
    attributes = node.attributes
    q, k, v, past_k, past_v, ends = node.inputs[:6]
    total = node.numbers(6)[0]
    heads, groups = attributes.integer("num_heads", 1), attributes.integer("kv_num_heads", 1)
    s = q.ty.shape.values[1]
    if not isinstance(total, int) or not isinstance(s, tirx.IntImm):
        raise node.refused("only the run tells how long its sequence is", "give the inputs fixed shapes")
    if attributes.flag("smooth_softmax"):
        refuse(node, "smooth_softmax", 1)
    if k is None:
        size = int(q.ty.shape.values[2]) // (heads + 2 * groups)
        q, k, v = _parts(bb, q, [heads * size, groups * size, groups * size])
    q, k, v = (in_heads(bb, x, n) for x, n in ((q, heads), (k, groups), (v, groups)))
    b, _, _, size = k.ty.shape.values
    # How many keys of an item are in the cache.
    ends = bb.normalize(op.reshape(bb.normalize(op.astype(ends, "int64")), relax.ShapeExpr([b])))
    first = bb.normalize(op.subtract(ends, relax.const(int(s) - 1, "int64")))
    first = bb.normalize(op.zeros(relax.ShapeExpr([b]), "int64")) if int(s) == total else first
    new = bb.normalize(op.reshape(op.arange(0, s, 1, "int64"), relax.ShapeExpr([1, s])))
    places = bb.normalize(op.add(bb.normalize(op.expand_dims(first, 1)), new))
    if attributes.flag("do_rotary"):
        turned = places if node.inputs[9] is None else bb.normalize(op.astype(node.inputs[9], "int64"))
        interleaved = attributes.flag("rotary_interleaved")
        q, k = (_rotated(bb, x, turned, node.inputs[7], node.inputs[8], interleaved) for x in (q, k))
    length = total if past_k is None else max(total, int(past_k.ty.shape.values[2]))
    k, v = (_kept(bb, old, x, first, length) for old, x in ((past_k, k), (past_v, v)))
    scores = products(bb, q, k, attributes.number("scale", 0.0) or 1 / math.sqrt(int(size)))
    cap = attributes.number("softcap", 0.0)
    if cap > 0:
        limit = relax.const(cap, dtype_of(q))
        scores = bb.normalize(op.multiply(op.tanh(op.divide(scores, limit)), limit))
    if node.inputs[10] is not None:
        scores = bb.normalize(op.add(scores, node.inputs[10]))
    ahead = bb.normalize(op.subtract(op.arange(0, length, 1, "int64"), bb.normalize(op.expand_dims(places, 2))))
    keep = op.less_equal(ahead, relax.const(0, "int64"))
    window = attributes.integer("local_window_size", -1)
    if window >= 0:
        keep = op.logical_and(keep, op.greater(ahead, relax.const(-window, "int64")))
    keep = bb.normalize(op.expand_dims(bb.normalize(keep), 1))
    kind = dtype_of(scores)
    scores = bb.normalize(op.where(keep, scores, relax.const(float(np.finfo(kind).min), kind)))
    result = out_of_heads(bb, weighted(bb, bb.normalize(op.nn.softmax(scores, -1)), v))
    return result if node.outputs <= 1 else relax.Tuple([result, k, v][: node.outputs])


def _kept(bb: Builder, old: Expr, new: Expr, first: Expr, length: int) -> Expr:
    """A cache of a length, with the new keys or values written to it from a place on for each item."""
    if old is None:
        return new
    shape = list(old.ty.shape.values)
    shape[2] = length - int(shape[2])
    if shape[2]:
        old = bb.normalize(op.concat([old, op.zeros(relax.ShapeExpr(shape), dtype_of(old))], 2))
    return scattered(bb, old, new, first, 2)
