"""LSTM, GRU and RNN: one matrix product for the inputs of all steps, then one function with a loop over time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tvm
from tvm import relax

from zmq_offload.compile.operators.node import Node, dtype_of, refuse, static_shape
from zmq_offload.compile.operators.tvm_importer import Builder, Expr
from zmq_offload.protocol.payload import Array
from zmq_offload.schedules.recurrent import RECURRENT, definition
from zmq_offload.schedules.recurrent_cell import ACTIVATIONS, Activation, Recurrence

op = relax.op

_USUAL = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh"), "RNN": ("Tanh",)}
_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
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
    kind, attributes = node.operator, node.attributes
    x, w, r, b, lengths, initial_h = node.inputs[:6]
    initial_c = node.inputs[6] if kind == "LSTM" else None
    if kind == "LSTM" and node.inputs[7] is not None:
        why = f"with its input 8, {node.input_name(7)}, the weights of peepholes"
        raise node.refused(why, "export the model without peepholes")
    datatype = dtype_of(x)
    if datatype not in ("float32", "float16"):
        raise node.refused(f"its datatype is {datatype}", "convert the model to float32")
    if x.ty.ndim != 3:
        raise node.refused(f"its input 1, {node.input_name(0)}, has {x.ty.ndim} dimensions", "it takes 3")
    hidden = _hidden(node, r)
    recurrence = Recurrence(
        kind,
        hidden,
        attributes.text("direction", "forward") == "reverse",
        _activations(node),
        attributes.number("clip", 0.0) if "clip" in attributes else None,
        kind == "GRU" and attributes.flag("linear_before_reset"),
        kind == "LSTM" and attributes.flag("input_forget"),
        kind == "GRU" and attributes.flag("linear_before_reset") and b is not None,
        initial_h is not None,
        initial_c is not None,
        lengths is not None,
    )
    x, w, r, b, initial_h, initial_c = (_float32(bb, v) for v in (x, w, r, b, initial_h, initial_c))
    last = attributes.flag("layout")
    if last:
        x, initial_h, initial_c = (
            v if v is None else bb.normalize(op.permute_dims(v, [1, 0, 2])) for v in (x, initial_h, initial_c)
        )
    gates, bias = _projected(bb, recurrence, x, w, b)
    found = _call(bb, recurrence, gates, r, [bias, initial_h, initial_c, lengths])
    if last:
        orders = [[2, 0, 1, 3], [1, 0, 2], [1, 0, 2]]
        found = [op.permute_dims(v, order) for v, order in zip(found, orders, strict=False)]
    if datatype != "float32":
        found = [op.astype(bb.normalize(v), datatype) for v in found]
    found = [bb.normalize(v) for v in found[: max(node.outputs, 1)]]
    return relax.Tuple(found) if node.outputs > 1 else found[0]


def _hidden(node: Node, r: Expr) -> int:
    """The number of hidden units."""
    shape = static_shape(r)
    given = node.attributes.get("hidden_size")
    if shape is None or len(shape) != 3:
        raise node.refused(f"its input 3, {node.input_name(2)}, has no fixed shape", "give it one")
    if given is not None and int(given) != shape[2]:
        refuse(node, "hidden_size", given, f"its weights are for {shape[2]}")
    return shape[2]


def _activations(node: Node) -> tuple[tuple[Activation, ...], ...]:
    """The activations of each direction. Each that has an alpha or a beta takes the next of the attributes' values."""
    attributes, usual = node.attributes, _USUAL[node.operator]
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


def _projected(bb: Builder, recurrence: Recurrence, x: Expr, w: Expr, b: Expr) -> tuple[Expr, Expr]:
    """The product of the inputs and their weights with the biases, for all steps; and GRU's recurrent bias of gate h,
    which the reset gate multiplies."""
    columns = recurrence.directions * recurrence.gates * recurrence.hidden
    if (array := _array(w)) is not None:
        matrix = relax.const(np.ascontiguousarray(array.reshape(columns, -1).T), "float32")
    else:
        flat = bb.normalize(op.reshape(w, (columns, w.ty.shape.values[2])))
        matrix = bb.normalize(op.permute_dims(flat))
    gates = bb.emit(op.matmul(x, matrix))
    if b is None:
        return gates, None
    size = recurrence.gates * recurrence.hidden
    counted = np.ones(size, "float32")  # 0 where the recurrent bias is not a part of the sum
    if recurrence.bias:
        counted[2 * recurrence.hidden :] = 0.0
    if (array := _array(b)) is not None:
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


def _array(value: Expr) -> Array | None:
    return np.asarray(value.value.numpy()) if isinstance(value, tvm.ir.GenericConst) else None
