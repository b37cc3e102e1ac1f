"""Operators that TVM's importer converts wrongly or incompletely, converted as ONNX defines them."""

from __future__ import annotations

import numpy as np
import tvm
import tvm_ffi
from tvm import relax, te

from zmq_offload.compile.operators import (
    arithmetic,
    attention,
    contrib,
    places,
    pools,
    quantized,
    reductions,
    sampling,
    sequences,
    shaping,
    signal,
    slices,
    suppression,
)
from zmq_offload.compile.operators.node import Converter, Node, by_tvm, dtype_of, refuse, static_shape
from zmq_offload.compile.operators.recurrent import recurrent
from zmq_offload.compile.operators.resize import resize, upsample
from zmq_offload.compile.operators.tvm_importer import Builder, Expr, datatype
from zmq_offload.protocol.payload import Array

op = relax.op


def one_hot(bb: Builder, node: Node) -> Expr:
    """TVM's result has the datatype of Python's numbers, not that of the values."""
    indices, known, values = node.inputs[0], node.known(1), node.constant(2)
    assert values is not None
    if known is not None and known.numbers is None:
        return shaping.one_hot(bb, node, known.elements.reshape(-1)[0], values)
    depth = node.constant(1)
    assert depth is not None
    extent, kind = int(depth.reshape(-1)[0]), str(values.dtype)
    indices = bb.normalize(op.astype(indices, "int64"))
    zero = relax.const(0, "int64")
    indices = bb.normalize(op.where(op.less(indices, zero), op.add(indices, relax.const(extent, "int64")), indices))
    axis = node.attributes.integer("axis", -1)
    places = bb.normalize(op.expand_dims(indices, axis))
    shape = [1] * places.ty.ndim
    shape[axis] = extent
    hit = op.equal(places, relax.const(np.arange(extent).reshape(shape), "int64"))
    return op.where(hit, relax.const(values.reshape(-1)[1], kind), relax.const(values.reshape(-1)[0], kind))


def eye_like(bb: Builder, node: Node) -> Expr:
    """TVM accepts only the datatype of the input."""
    kind = node.attributes.get("dtype")
    wanted = datatype(kind) if kind is not None else dtype_of(node.inputs[0])
    return op.astype(op.eye_like(node.inputs[0], node.attributes.integer("k", 0)), wanted)


def equal(bb: Builder, node: Node) -> Expr:
    """TVM says that a symbolic extent never equals a number. For a positive number only the run time can tell."""
    values = [node.inputs[0], node.inputs[1]]
    if any(isinstance(v, relax.ShapeExpr) for v in values):
        extents = [list(v.values) if isinstance(v, relax.ShapeExpr) else v for v in values]
        extents = [v.value.numpy().reshape(-1).tolist() if isinstance(v, tvm.ir.GenericConst) else v for v in extents]
        if all(isinstance(v, list) for v in extents):
            for a, b in zip(*extents, strict=False):
                numbers = [int(v) for v in (a, b) if isinstance(v, int | tvm.tirx.IntImm)]
                if (len(numbers) == 1 and numbers[0] > 0) or (not numbers and not tvm_ffi.structural_equal(a, b)):
                    why = f"whether the symbolic dimension {a} is {b} is known when the model runs"
                    raise node.refused(why, "give the input a fixed shape")
    elif all(
        isinstance(v, relax.Expr) and isinstance(v.ty, relax.TensorType) and dtype_of(v) == "bool" for v in values
    ):
        # TVM's compiler compares booleans as floats.
        return op.equal(*(bb.normalize(op.astype(v, "uint8")) for v in values))
    return by_tvm(bb, node)


def constant(bb: Builder, node: Node) -> Expr:
    for name, kind in (
        ("value_float", "float32"),
        ("value_floats", "float32"),
        ("value_int", "int64"),
        ("value_ints", "int64"),
    ):
        if name in node.attributes:
            return relax.const(np.asarray(node.attributes[name], kind), kind)
    for name in ("value_string", "value_strings", "sparse_value"):
        if name in node.attributes:
            refuse(node, name, node.attributes[name], "only numbers can be used")
    return by_tvm(bb, node)


def layer_norm(bb: Builder, node: Node) -> Expr:
    """TVM takes the number of axes from the scale's rank, and does not compute the second and third output."""
    x, scale, bias = node.inputs[0], node.inputs[1], node.inputs[2]
    rank = x.ty.ndim
    axis = node.attributes.integer("axis", -1) % rank
    node.opset = max(node.opset, 17)  # ONNX Runtime's optimizer writes it at older opsets, too
    if node.outputs == 1 and len(scale.ty.shape) == rank - axis and (bias is None or len(bias.ty.shape) == rank - axis):
        shape = static_shape(x)
        if shape is None or all(v is None or static_shape(v) == shape[axis:] for v in (scale, bias)):
            return by_tvm(bb, node)
    kind, axes = dtype_of(x), list(range(axis, rank))
    wide = "float64" if kind == "float64" else "float32"
    x = bb.normalize(op.astype(x, wide)) if kind != wide else x
    mean = bb.normalize(op.mean(x, axes, True))
    centered = bb.normalize(op.subtract(x, mean))
    variance = op.mean(op.multiply(centered, centered), axes, True)
    epsilon = relax.const(node.attributes.number("epsilon", 1e-5), wide)
    inverse = bb.normalize(op.divide(relax.const(1, wide), op.sqrt(op.add(variance, epsilon))))
    result = op.multiply(centered, inverse)
    result = op.multiply(op.astype(result, kind) if kind != wide else result, scale)
    result = result if bias is None else op.add(result, bias)
    return relax.Tuple([bb.normalize(result), mean, inverse][: max(node.outputs, 1)]) if node.outputs > 1 else result


def batch_normalization(bb: Builder, node: Node) -> Expr:
    training = node.attributes.integer("training_mode", 0)
    if training and node.outputs > 1:
        refuse(node, "training_mode", training, "export the model for inference: its statistics would not be ONNX's")
    return by_tvm(bb, node)


def rms_normalization(bb: Builder, node: Node) -> Expr:
    """TVM's kernel cannot normalize over all axes."""
    x, scale, kind = node.inputs[0], node.inputs[1], dtype_of(node.inputs[0])
    rank = x.ty.ndim
    axes = list(range(node.attributes.integer("axis", -1) % rank, rank))
    wide = "float32" if node.attributes.integer("stash_type", 1) == 1 and kind != "float64" else kind
    x = bb.normalize(op.astype(x, wide)) if kind != wide else x
    square = op.mean(op.multiply(x, x), axes, True)
    epsilon = relax.const(node.attributes.number("epsilon", 1e-5), wide)
    result = op.divide(x, op.sqrt(op.add(square, epsilon)))
    return op.multiply(op.astype(result, kind) if kind != wide else result, scale)


def lrn(bb: Builder, node: Node) -> Expr:
    size = int(node.attributes["size"])
    if size % 2 == 0:
        refuse(node, "size", size, "use an odd one, as ONNX Runtime requires")
    return by_tvm(bb, node)


def max_unpool(bb: Builder, node: Node) -> Expr:
    if node.inputs[2] is not None:
        raise node.refused(
            f"with its input 3, {node.input_name(2)}, the shape of its output", "export the model without it"
        )
    return by_tvm(bb, node)


def pad(bb: Builder, node: Node) -> Expr:
    mode = node.attributes.text("mode", "constant")
    given = node.attributes.integers("pads")
    symbolic = node.numbers(1) if given is None else []
    if any(not isinstance(n, int) for n in symbolic):
        return shaping.pad(bb, node, symbolic)
    pads = np.asarray(given) if given is not None else node.constant(1)
    node.constant(2)
    if pads is not None and not pads.any():
        node.constant(3)
        return node.inputs[0]
    if mode in ("edge", "reflect") and pads is not None:
        return _continued(bb, node, pads, mode)
    if mode != "constant" and pads is not None and (pads < 0).any():
        refuse(node, "mode", mode, "use pads that are not negative, and Slice")
    return by_tvm(bb, node)


def _continued(bb: Builder, node: Node, pads: Array, mode: str) -> Expr:
    """TVM reflects once, does not check that the result is inside the tensor, and cuts nothing for negative pads."""
    x, axes = node.inputs[0], node.constant(3)
    rank = x.ty.ndim
    before, after = [0] * rank, [0] * rank
    for i, axis in enumerate(range(rank) if axes is None else axes.tolist()):
        before[axis], after[axis] = int(pads[i]), int(pads[i + len(pads) // 2])
    extents = list(x.ty.shape.values)
    for axis, ends in enumerate(zip(before, after, strict=True)):
        if mode == "reflect" and isinstance(extents[axis], tvm.tirx.IntImm):
            extent = int(extents[axis]) + sum(min(end, 0) for end in ends)
            if max(ends) >= extent:
                refuse(node, "mode", mode, f"at axis {axis} pads must be less than its extent, {extent}")

    def compute(data: te.Tensor) -> te.Tensor:
        def place(axis: int, i: Expr) -> Expr:
            last, j = data.shape[axis] - 1, i - before[axis]
            if mode == "edge":
                return tvm.tirx.max(tvm.tirx.min(j, last), 0)
            j = last - tvm.tirx.abs(last - tvm.tirx.abs(j))
            # A symbolic extent may be smaller than the padding.
            return tvm.tirx.max(tvm.tirx.min(j, last), 0) if not isinstance(last, tvm.tirx.IntImm) else j

        def element(*at: Expr) -> Expr:
            return data[tuple(i if not before[a] and not after[a] else place(a, i) for a, i in enumerate(at))]

        shape = [d + before[a] + after[a] for a, d in enumerate(data.shape)]
        return te.compute(shape, element, name=mode, tag="injective")

    return bb.emit_te(compute, x, primfunc_name_hint=mode)


def dropout(bb: Builder, node: Node) -> Expr:
    """Inference drops nothing, and the mask is all true."""
    node.attributes.get("ratio")
    ratio, training = node.inputs[1], node.inputs[2]
    if training is not None:
        value = node.constant(2)
        if value is not None and bool(value.reshape(-1)[0]) and not _is_zero(ratio):
            refuse(node, "training_mode", True, "export the model for inference")
    x = node.inputs[0]
    return x if node.outputs == 1 else relax.Tuple([x, bb.normalize(op.ones(x.ty.shape, "bool"))])


def _is_zero(value: Expr) -> bool:
    return isinstance(value, tvm.ir.GenericConst) and not value.value.numpy().any()


def mean_variance(bb: Builder, node: Node) -> Expr:
    """Keep the input's datatype, avoid TVM's cancellation, and add ONNX's epsilon to the deviation."""
    x, kind = node.inputs[0], dtype_of(node.inputs[0])
    given = node.attributes.integers("axes")
    axes = [0, 2, 3] if given is None else given
    centered = bb.normalize(op.subtract(x, op.mean(x, axes, True)))
    deviation = op.sqrt(op.mean(op.multiply(centered, centered), axes, True))
    return op.divide(centered, op.add(deviation, relax.const(1e-9, kind)))


CONVERTERS: dict[str, Converter] = {
    "And": arithmetic.logical,
    "Attention": attention.attention,
    "AveragePool": pools.pool,
    "BatchNormalization": batch_normalization,
    "BitCast": places.bit_cast,
    "BitShift": arithmetic.bit_shift,
    "BlackmanWindow": signal.window,
    "Col2Im": places.column_to_image,
    "Compress": suppression.compress,
    "Constant": constant,
    "ConstantOfShape": shaping.constant_of_shape,
    "Conv": pools.convolution,
    "ConvInteger": quantized.conv_integer,
    "ConvTranspose": pools.transposed_convolution,
    "Cosh": arithmetic.cosh,
    "CumProd": places.cumulative_product,
    "DFT": signal.dft,
    "DeformConv": places.deformed_convolution,
    "DequantizeLinear": quantized.dequantize_linear,
    "Dropout": dropout,
    "DynamicQuantizeLinear": quantized.dynamic_quantize_linear,
    "Elu": arithmetic.elu,
    "Equal": equal,
    "Expand": shaping.expand,
    "EyeLike": eye_like,
    "GRU": recurrent,
    "Gemm": arithmetic.gemm,
    "GridSample": sampling.grid_sample,
    "HammingWindow": signal.window,
    "HannWindow": signal.window,
    "IsInf": arithmetic.is_inf,
    "LRN": lrn,
    "LSTM": recurrent,
    "LayerNormalization": layer_norm,
    "LpNormalization": places.lp_normalization,
    "LpPool": pools.pool,
    "MatMul": arithmetic.matmul,
    "MatMulInteger": quantized.matmul_integer,
    "MaxPool": pools.pool,
    "MaxUnpool": max_unpool,
    "MeanVarianceNormalization": mean_variance,
    "MelWeightMatrix": signal.mel_weight_matrix,
    "Mod": arithmetic.modulo,
    "Neg": arithmetic.negative,
    "NonMaxSuppression": suppression.non_max_suppression,
    "NonZero": suppression.non_zero,
    "OneHot": one_hot,
    "Or": arithmetic.logical,
    "Pad": pad,
    "Pow": arithmetic.power,
    "QuantizeLinear": quantized.quantize_linear,
    "RMSNormalization": rms_normalization,
    "RNN": recurrent,
    "Range": shaping.range_,
    "ReduceL1": reductions.reduction(lambda x, _: op.abs(x), None),
    "ReduceL2": reductions.reduction(lambda x, _: op.abs(x), None),
    "ReduceLogSum": reductions.reduction(None, lambda x, _: op.log(x)),
    "ReduceLogSumExp": reductions.reduce_log_sum_exp,
    "ReduceMax": reductions.reduce_extreme,
    "ReduceMean": reductions.reduce_mean,
    "ReduceMin": reductions.reduce_extreme,
    "ReduceProd": reductions.reduction(None, None),
    "ReduceSum": reductions.reduction(None, None),
    "ReduceSumSquare": reductions.reduction(lambda x, _: op.multiply(x, x), None),
    "Reshape": shaping.reshape,
    "Resize": resize,
    "ReverseSequence": places.reverse_sequence,
    "RoiAlign": sampling.roi_align,
    "STFT": signal.stft,
    "Scatter": places.scatter_elements,
    "ScatterElements": places.scatter_elements,
    "Selu": arithmetic.selu,
    "SequenceInsert": sequences.sequence_insert,
    "SequenceLength": sequences.sequence_length,
    "Sign": arithmetic.sign,
    "SimplifiedLayerNormalization": contrib.simplified_layer_norm,
    "Sinh": arithmetic.sinh,
    "Slice": slices.slice_,
    "SpaceToDepth": places.space_to_depth,
    "Split": slices.split,
    "Swish": arithmetic.swish,
    "TensorScatter": places.tensor_scatter,
    "ThresholdedRelu": arithmetic.thresholded_relu,
    "Tile": shaping.tile,
    "TopK": slices.top_k,
    "Unique": places.unique,
    "Upsample": upsample,
    "Where": arithmetic.where,
    "Xor": arithmetic.logical,
}
