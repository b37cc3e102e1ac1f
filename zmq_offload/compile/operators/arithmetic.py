"""Element-wise arithmetic and matrix products, as ONNX defines them."""

from __future__ import annotations

import numpy as np
from tvm import relax

from zmq_offload.compile.operators.node import Node, by_tvm, dtype_of
from zmq_offload.compile.operators.tvm_importer import Builder, Expr

op = relax.op


def is_inf(bb: Builder, node: Node) -> Expr:
    """TVM ignores the attributes that say which infinities to detect."""
    x = node.inputs[0]
    signs = [node.attributes.flag("detect_negative", True), node.attributes.flag("detect_positive", True)]
    limit = [relax.const(sign * np.inf, dtype_of(x)) for sign in (-1, 1)]
    found = [op.equal(x, end) for wanted, end in zip(signs, limit, strict=True) if wanted]
    if not found:
        return op.zeros(x.ty.shape, "bool")
    return found[0] if len(found) == 1 else op.logical_or(*found)


def negative(bb: Builder, node: Node) -> Expr:
    """TVM multiplies by -1, which no unsigned integer is."""
    x, kind = node.inputs[0], dtype_of(node.inputs[0])
    return op.subtract(relax.const(0, kind), x) if kind.startswith("uint") else by_tvm(bb, node)


def sign(bb: Builder, node: Node) -> Expr:
    """TVM has a -1 for unsigned integers, too."""
    x, kind = node.inputs[0], dtype_of(node.inputs[0])
    return op.minimum(x, relax.const(1, kind)) if kind.startswith("uint") else by_tvm(bb, node)


def thresholded_relu(bb: Builder, node: Node) -> Expr:
    """TVM multiplies by a float32 mask, which gives NaN for minus infinity."""
    x = node.inputs[0]
    alpha = relax.const(node.attributes.number("alpha", 1.0), dtype_of(x))
    return op.where(op.greater(x, alpha), x, relax.const(0, dtype_of(x)))


def elu(bb: Builder, node: Node) -> Expr:
    """TVM's constants are float32 for every datatype."""
    x, kind = node.inputs[0], dtype_of(node.inputs[0])
    alpha = relax.const(node.attributes.number("alpha", 1.0), kind)
    low = op.multiply(alpha, op.subtract(op.exp(x), relax.const(1, kind)))
    return op.where(op.less(x, relax.const(0, kind)), low, x)


def selu(bb: Builder, node: Node) -> Expr:
    x, kind = node.inputs[0], dtype_of(node.inputs[0])
    alpha = node.attributes.number("alpha", 1.67326319217681884765625)
    gamma = relax.const(node.attributes.number("gamma", 1.05070102214813232421875), kind)
    low = op.multiply(relax.const(alpha, kind), op.subtract(op.exp(x), relax.const(1, kind)))
    return op.multiply(gamma, op.where(op.greater(x, relax.const(0, kind)), x, low))


def power(bb: Builder, node: Node) -> Expr:
    """ONNX allows an exponent of another datatype, and integers; TVM does neither. Integers are computed in float64."""
    x, y = node.inputs[0], node.inputs[1]
    if not isinstance(x, relax.Expr) or not isinstance(y, relax.Expr):
        return by_tvm(bb, node)
    if not all(isinstance(v.ty, relax.TensorType) for v in (x, y)):
        return by_tvm(bb, node)
    base, exponent = dtype_of(x), dtype_of(y)
    if base.startswith("float"):
        return op.power(x, y if base == exponent else op.astype(y, base))
    return op.astype(op.power(op.astype(x, "float64"), op.astype(y, "float64")), base)


def swish(bb: Builder, node: Node) -> Expr:
    x = node.inputs[0]
    alpha = node.attributes.number("alpha", 1.0)
    scaled = x if alpha == 1 else op.multiply(x, relax.const(alpha, dtype_of(x)))
    return op.multiply(x, op.sigmoid(scaled))


def sinh(bb: Builder, node: Node) -> Expr:
    """TVM's compiler has no sinh of float64. It is e^|x| / 2 in two factors, to avoid overflow, and a series near 0."""
    x, kind = node.inputs[0], dtype_of(node.inputs[0])
    if kind != "float64":
        return op.sinh(x)
    one, half = relax.const(1, kind), relax.const(0.5, kind)
    size = bb.normalize(op.abs(x))
    root = bb.normalize(op.exp(op.multiply(size, half)))
    large = op.subtract(op.multiply(op.multiply(root, half), root), op.divide(half, op.multiply(root, root)))
    square = bb.normalize(op.multiply(x, x))
    series = relax.const(1 / 362880, kind)
    for term in (1 / 5040, 1 / 120, 1 / 6, 1.0):
        series = op.add(op.multiply(series, square), relax.const(term, kind))
    signed = op.where(op.less(x, relax.const(0, kind)), op.negative(large), large)
    return op.where(op.less(size, one), op.multiply(series, x), signed)


def cosh(bb: Builder, node: Node) -> Expr:
    """Computed as `sinh` is."""
    x, kind = node.inputs[0], dtype_of(node.inputs[0])
    if kind != "float64":
        return op.cosh(x)
    half = bb.normalize(op.exp(op.multiply(op.abs(x), relax.const(0.5, kind))))
    large = op.multiply(op.multiply(half, relax.const(0.5, kind)), half)
    return op.add(large, op.divide(relax.const(0.5, kind), op.multiply(half, half)))


def bit_shift(bb: Builder, node: Node) -> Expr:
    """A shift by the width of the datatype or more leaves nothing. The CPU takes the shift modulo the width."""
    x, by = node.inputs[0], node.inputs[1]
    kind = dtype_of(x)
    bits = relax.const(int(kind.strip("uint")), kind)
    zero = relax.const(0, kind)
    inside = op.logical_and(op.less(by, bits), op.greater_equal(by, zero))
    safe = bb.normalize(op.where(inside, by, zero))
    if node.attributes.text("direction", "") == "LEFT":
        return op.where(inside, op.left_shift(x, safe), zero)
    gone = zero if kind.startswith("u") else op.where(op.less(x, zero), relax.const(-1, kind), zero)
    return op.where(inside, op.right_shift(x, safe), gone)


def logical(bb: Builder, node: Node) -> Expr:
    """TVM's code for loops over symbolic extents mixes booleans of one bit and of one byte."""
    function = {"And": op.bitwise_and, "Or": op.bitwise_or, "Xor": op.bitwise_xor}[node.operator]
    a, b = (bb.normalize(op.astype(node.inputs[index], "uint8")) for index in range(2))
    return op.astype(function(a, b), "bool")


def where(bb: Builder, node: Node) -> Expr:
    """Booleans are chosen as bytes, for the same reason."""
    values = node.inputs[1:3]
    if not all(
        isinstance(v, relax.Expr) and isinstance(v.ty, relax.TensorType) and dtype_of(v) == "bool" for v in values
    ):
        return by_tvm(bb, node)
    a, b = (bb.normalize(op.astype(v, "uint8")) for v in values)
    return op.astype(op.where(node.inputs[0], a, b), "bool")


def modulo(bb: Builder, node: Node) -> Expr:
    """The remainder has the sign of the dividend with `fmod`, and that of the divisor without it."""
    x, y = node.inputs[0], node.inputs[1]
    real = isinstance(x.ty, relax.TensorType) and not dtype_of(x).strip("u").startswith("int")
    if not real or node.attributes.flag("fmod"):
        return by_tvm(bb, node)
    rest = bb.normalize(op.mod(x, y))
    signs = op.multiply(op.sign(rest), op.sign(y))
    return op.where(op.less(signs, relax.const(0, dtype_of(x))), op.add(rest, y), rest)


def matmul(bb: Builder, node: Node) -> Expr:
    """Sum float16 products in float32, as ONNX Runtime does."""
    a, b = node.inputs[0], node.inputs[1]
    if dtype_of(a) != "float16":
        return by_tvm(bb, node)
    return op.astype(op.matmul(a, b, out_dtype="float32"), "float16")


def gemm(bb: Builder, node: Node) -> Expr:
    """Sum float16 products in float32, as `matmul` does."""
    kind, attributes = dtype_of(node.inputs[0]), node.attributes
    if kind != "float16":
        return by_tvm(bb, node)
    a, b, c = node.inputs[0], node.inputs[1], node.inputs[2]
    a = op.permute_dims(a) if attributes.flag("transA") else a
    b = op.permute_dims(b) if attributes.flag("transB") else b
    alpha, beta = (relax.const(attributes.number(name, 1.0), "float32") for name in ("alpha", "beta"))
    result = op.multiply(op.matmul(a, b, out_dtype="float32"), alpha)
    if c is not None:
        result = op.add(result, op.multiply(op.astype(c, "float32"), beta))
    return op.astype(result, "float16")
