"""LSTM, GRU and RNN: one matrix product for the inputs of all steps, then one function with a loop over time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import tvm
from tvm import relax

from zmq_offload.compile.operators.node import Node, dtype_of, refuse, static_shape
from zmq_offload.compile.operators.quantized import quantized_dynamically
from zmq_offload.compile.operators.tvm_importer import Builder, Expr
from zmq_offload.compile.quantization import integers
from zmq_offload.protocol.payload import Array
from zmq_offload.schedules.recurrent.cell import ACTIVATIONS, Activation, Recurrence
from zmq_offload.schedules.recurrent.operators import RECURRENT, definition

op = relax.op

_USUAL = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh"), "RNN": ("Tanh",)}
# The functions with an alpha and a beta, and their defaults. None where ONNX has no default, or ONNX Runtime another.
_ALPHA = {
    "Affine": None,
    "Elu": 1.0,
    "HardSigmoid": 0.2,
    "LeakyRelu": 0.01,
    "ScaledTanh": None,
    "ThresholdedRelu": None,
}
_BETA = {"Affine": None, "HardSigmoid": 0.5, "ScaledTanh": None}


def recurrent(bb: Builder, node: Node) -> Expr:
    """TVM's importer unrolls the steps, and ignores several of the attributes."""
    x, w, r, b = node.inputs[:4]
    geometry, lengths, initial_h, initial_c = _checked(node, b)
    if static_shape(r) != [geometry.directions, geometry.gates * geometry.hidden, geometry.hidden]:
        raise node.refused(
            f"its input 3, {node.input_name(2)}, has another shape than its attributes say", "correct it"
        )
    datatype = dtype_of(x)
    if datatype not in ("float32", "float16", "bfloat16"):
        raise node.refused(f"its datatype is {datatype}", "convert the model to float32")
    x, w, r, b, initial_h, initial_c = (_float32(bb, v) for v in (x, w, r, b, initial_h, initial_c))
    last = node.attributes.flag("layout")
    if last:
        x, initial_h, initial_c = (
            v if v is None else bb.normalize(op.permute_dims(v, [1, 0, 2])) for v in (x, initial_h, initial_c)
        )
    found = layer(bb, geometry, x, w, r, b, [initial_h, initial_c, lengths])
    if last:
        orders = [[2, 0, 1, 3], [1, 0, 2], [1, 0, 2]]
        found = [op.permute_dims(v, order) for v, order in zip(found, orders, strict=False)]
    if datatype != "float32":
        found = [op.astype(bb.normalize(v), datatype) for v in found]
    return _results(bb, node, found)


def layer(
    bb: Builder, geometry: Recurrence, x: Expr, w: Expr, r: Expr, b: Expr, optional: Sequence[Expr]
) -> list[Expr]:
    """One layer of float32, time first, with ONNX's layout of its weights and biases.

    `optional` has those of initial h, initial c and lengths that the geometry names; others are left out or None.
    """
    gates, bias = _biased(bb, geometry, _projected(bb, geometry, x, w), b)
    lengths = optional[-1] if geometry.lengths else None
    states = optional[:-1] if geometry.lengths else optional
    return _call(bb, geometry, gates, r, [bias, *states, lengths])


def dynamic_quantize_lstm(bb: Builder, node: Node) -> Expr:
    """ONNX Runtime's LSTM with weights of 8 bits: inputs and states are quantized when it runs."""
    x, b = node.inputs[0], node.inputs[3]
    geometry, lengths, initial_h, initial_c = _checked(node, b)
    weights = [_Columns.of(node, i, 8 + 2 * k) for k, i in enumerate((1, 2))]
    geometry = replace(geometry, quantized=True, zeros=bool(weights[1].zeros.any()))
    inputs, state = weights
    depth, columns = inputs.values.shape[1], geometry.directions * geometry.gates * geometry.hidden
    matrix = relax.const(np.ascontiguousarray(inputs.values.transpose(1, 0, 2).reshape(depth, columns)), "int8")
    zeros = relax.const(inputs.zeros.reshape(1, columns), "int8") if inputs.zeros.any() else None
    values, scale, zero = quantized_dynamically(bb, x)
    sums = bb.normalize(op.astype(bb.normalize(integers.matmul(bb, values, matrix, zero, zeros)), "float32"))
    scales = bb.normalize(op.multiply(scale, relax.const(inputs.scales.reshape(columns), "float32")))
    gates, _ = _biased(bb, geometry, bb.emit(op.multiply(sums, scales)), b)
    r = relax.const(np.ascontiguousarray(state.values.transpose(0, 2, 1)), "int8")
    kept = [relax.const(state.scales, "float32")]
    if geometry.zeros:
        kept.append(relax.const(state.zeros.astype("float32"), "float32"))
    return _results(bb, node, _call(bb, geometry, gates, r, [*kept, initial_h, initial_c, lengths]))


@dataclass(frozen=True)
class _Columns:
    """Weights (directions, depth, columns) as int8, and scale and zero point of each column, (directions, columns)."""

    values: Array
    scales: Array
    zeros: Array

    @staticmethod
    def of(node: Node, weight: int, scale: int) -> _Columns:
        """Read the inputs `weight`, `scale` and the one after it; all have to be constants."""
        values, scales, zeros = (node.constant(i) for i in (weight, scale, scale + 1))
        assert values is not None and scales is not None
        directions, _, columns = values.shape
        zeros = np.zeros(1, values.dtype) if zeros is None else zeros
        moved = 128 if values.dtype == np.uint8 else 0
        shape = (directions, columns)
        return _Columns(
            (values.astype("int16") - moved).astype("int8"),
            np.broadcast_to(scales.reshape(len(scales), -1), shape).astype("float32"),
            (np.broadcast_to(zeros.reshape(len(zeros), -1), shape).astype("int16") - moved).astype("int8"),
        )


def _checked(node: Node, b: Expr) -> tuple[Recurrence, Expr, Expr, Expr]:
    """The geometry of a node, and its inputs sequence_lens, initial_h and initial_c. Raises InvalidArgument."""
    kind, attributes = node.operator.removeprefix("DynamicQuantize"), node.attributes
    lengths, initial_h = node.inputs[4], node.inputs[5]
    initial_c = node.inputs[6] if kind == "LSTM" else None
    if kind == "LSTM" and node.inputs[7] is not None:
        why = f"with its input 8, {node.input_name(7)}, the weights of peepholes"
        raise node.refused(why, "export the model without peepholes")
    x = node.inputs[0]
    if x.ty.ndim != 3:
        raise node.refused(f"its input 1, {node.input_name(0)}, has {x.ty.ndim} dimensions", "it takes 3")
    geometry = Recurrence(
        kind,
        _hidden(node, kind),
        attributes.text("direction", "forward") == "reverse",
        _activations(node, kind),
        attributes.number("clip", 0.0) if "clip" in attributes else None,
        kind == "GRU" and attributes.flag("linear_before_reset"),
        kind == "LSTM" and attributes.flag("input_forget"),
        kind == "GRU" and attributes.flag("linear_before_reset") and b is not None,
        initial_h is not None,
        initial_c is not None,
        lengths is not None,
    )
    return geometry, lengths, initial_h, initial_c


def _results(bb: Builder, node: Node, found: Sequence[Expr]) -> Expr:
    wanted = [bb.normalize(v) for v in found[: max(node.outputs, 1)]]
    return relax.Tuple(wanted) if node.outputs > 1 else wanted[0]


def _hidden(node: Node, kind: str) -> int:
    """The number of hidden units. The recurrent weights have them, for each gate and the state, in either order."""
    shape, given = static_shape(node.inputs[2]), node.attributes.get("hidden_size")
    if shape is None or len(shape) != 3:
        raise node.refused(f"its input 3, {node.input_name(2)}, has no fixed shape of 3 dimensions", "give it one")
    hidden = min(shape[1:])
    if given is not None and int(given) != hidden:
        refuse(node, "hidden_size", given, f"its weights are for {hidden}")
    return hidden


def _activations(node: Node, kind: str) -> tuple[tuple[Activation, ...], ...]:
    """The activations of each direction. Each that has an alpha or a beta takes the next of the attributes' values."""
    attributes, usual = node.attributes, _USUAL[kind]
    directions = 2 if attributes.text("direction", "forward") == "bidirectional" else 1
    listed = attributes.get("activations")
    names = [n.decode() if isinstance(n, bytes) else str(n) for n in listed] if listed else list(usual * directions)
    known = {name.lower(): name for name in ACTIVATIONS}
    for name in names:
        if name.lower() not in known:
            refuse(node, "activations", name, f"use one of {', '.join(ACTIVATIONS)}")
    if len(names) != len(usual) * directions:
        refuse(node, "activations", ",".join(names), f"it needs {len(usual) * directions} of them")
    given = {name: list(attributes.get(f"activation_{name}") or []) for name in ("alpha", "beta")}

    def taken(which: str, name: str, defaults: dict[str, float | None]) -> float:
        if name not in defaults:
            return 0.0
        value = given[which].pop(0) if given[which] else defaults[name]
        if value is None:
            refuse(node, "activations", name, f"export the model with activation_{which}")
        return float(value)

    made = [
        Activation(n, taken("alpha", n, _ALPHA), taken("beta", n, _BETA)) for n in (known[n.lower()] for n in names)
    ]
    return tuple(tuple(made[i : i + len(usual)]) for i in range(0, len(made), len(usual)))


def _float32(bb: Builder, value: Expr) -> Expr:
    if value is None or dtype_of(value) == "float32":
        return value
    if isinstance(value, tvm.ir.GenericConst):
        return relax.const(value.value.numpy().astype("float32"), "float32")
    return bb.normalize(op.astype(value, "float32"))


def _projected(bb: Builder, recurrence: Recurrence, x: Expr, w: Expr) -> Expr:
    """The product of the inputs and their weights, for all steps."""
    columns = recurrence.directions * recurrence.gates * recurrence.hidden
    if (array := integers.array_of(w)) is not None:
        matrix = relax.const(np.ascontiguousarray(array.reshape(columns, -1).T), "float32")
    else:
        flat = bb.normalize(op.reshape(w, (columns, w.ty.shape.values[2])))
        matrix = bb.normalize(op.permute_dims(flat))
    return bb.emit(op.matmul(x, matrix))


def _biased(bb: Builder, recurrence: Recurrence, gates: Expr, b: Expr) -> tuple[Expr, Expr]:
    """`gates` plus the biases; and GRU's recurrent bias of gate h, which the reset gate multiplies."""
    if b is None:
        return gates, None
    columns = recurrence.directions * recurrence.gates * recurrence.hidden
    size = recurrence.gates * recurrence.hidden
    counted = np.ones(size, "float32")  # 0 where the recurrent bias is not a part of the sum
    if recurrence.bias:
        counted[2 * recurrence.hidden :] = 0.0
    if (array := integers.array_of(b)) is not None:
        halves = array.reshape(recurrence.directions, 2, size)
        total = relax.const((halves[:, 0] + halves[:, 1] * counted).ravel(), "float32")
        inner = relax.const(np.ascontiguousarray(halves[:, 1, size - recurrence.hidden :]), "float32")
    else:
        first, second = (bb.normalize(op.strided_slice(b, [1], [begin], [begin + size])) for begin in (0, size))
        summed = bb.normalize(op.add(first, op.multiply(second, relax.const(counted, "float32"))))
        total = bb.normalize(op.reshape(summed, (columns,)))
        inner = bb.normalize(op.strided_slice(second, [1], [size - recurrence.hidden], [size]))
    return bb.emit(op.add(gates, total)), inner if recurrence.bias else None


def _call(bb: Builder, recurrence: Recurrence, gates: Expr, r: Expr, optional: Sequence[Expr]) -> list[Expr]:
    """The call of the recurrence, as its results."""
    time, batch, _ = gates.ty.shape.values
    lengths = optional[-1]
    function = definition(recurrence, time, batch, "int32" if lengths is None else dtype_of(lengths))
    state = (recurrence.directions, batch, recurrence.hidden)
    shapes = [(time, recurrence.directions, *state[1:]), state, *([state] if recurrence.has_cell else [])]
    call = op.call_tir(
        bb.add_func(function, "recurrent"),
        relax.Tuple([gates, r, *(v for v in optional if v is not None)]),
        [relax.TensorType(shape, "float32") for shape in shapes],
    )
    # The attribute shows what the function is where the module with it is not at hand.
    attributes = tvm.ir.make_node("ir.DictAttrs", **{RECURRENT: True})
    together = bb.emit(relax.Call(call.op, call.args, attributes, call.ty_args))
    return [bb.emit(relax.TupleGetItem(together, i)) for i in range(len(shapes))]
