"""Recurrent networks as one function with one loop over time, whose length may be symbolic.

The product of the inputs and their weights is an operator of its own, for all steps at once. What depends on the step
before is one PrimFunc: `definition` makes it for the importer, with ONNX's layout of the recurrent weights, and
`packed_call` replaces it in the layout pass by one with packed weights and vectors.
"""

from __future__ import annotations

import numpy as np
from tvm import relax, tirx
from tvm.ir import Call, Expr, Var

from zmq_offload.schedules.emit import INDEX, index
from zmq_offload.schedules.integers.dot_product import dot_product
from zmq_offload.schedules.machine import Machine
from zmq_offload.schedules.operators import Array
from zmq_offload.schedules.recurrent import integers as recurrent_integers
from zmq_offload.schedules.recurrent.cell import Recurrence
from zmq_offload.schedules.recurrent.loops import Loops
from zmq_offload.schedules.recurrent.tiles import Phase, pack, packed, phases
from zmq_offload.schedules.rewrite import constant
from zmq_offload.schedules.tvm_internals import OPAQUE, SCHEDULED

RECURRENT = "zmq_offload.recurrent"
"""Attribute of a function that `definition` made: the text of its `Recurrence`."""

# The import form has vectors of one element; it is what a machine without vectors runs.
_SCALAR = Machine(lanes=1, registers=16, threads=1)


def definition(recurrence: Recurrence, time: Expr, batch: Expr, lengths: str = "int32") -> tirx.PrimFunc:
    """Return the function of a recurrence with ONNX's layout of the recurrent weights.

    Its parameters are the inputs' product (time, batch, directions * gates * hidden) with all biases added, the
    recurrent weights, then the optional operands that `recurrence` names, in its order; and the results y (time,
    directions, batch, hidden), h and, for LSTM, c (directions, batch, hidden). Symbolic extents become variables.
    """
    return _function(recurrence, _SCALAR, time, batch, lengths, for_import=True)


def operation_count(function: tirx.PrimFunc) -> tuple[int, list[Expr]] | None:
    """Return the multiply-adds of a recurrent function for each step and batch entry, and the extents of time and
    batch; None for another function."""
    text = function.attrs.get(RECURRENT, None)
    if text is None:
        return None
    recurrence = Recurrence.of(str(text))
    return recurrence.directions * recurrence.gates * recurrence.hidden**2, list(function.params[0].ty.shape)[:2]


def packed_call(builder: relax.BlockBuilder, call: Call, weight: Array | None, machine: Machine) -> Expr | None:
    """Return a call of a `definition` with packed weights, or None if `call` calls another function.

    `weight` has the recurrent weights if they are constant.
    """
    func = builder.get()[call.args[0]]
    text = func.attrs.get(RECURRENT, None) if isinstance(func, tirx.PrimFunc) else None
    if text is None or func.attrs.get(SCHEDULED, False):
        return None
    recurrence = Recurrence.of(str(text))
    given, given_weight, *rest = call.args[1].fields
    time, batch, _ = given.ty.shape.values
    known = constant(batch)
    if recurrence.quantized:
        if weight is None:
            return None
        (phase,) = phases(recurrence, machine, known)
        value = relax.const(recurrent_integers.pack(weight, recurrence, phase, machine), "int8")
        for i in range(1 + recurrence.zeros):
            columns = np.asarray(rest[i].value.numpy())
            rest[i] = relax.const(recurrent_integers.pack_columns(columns, recurrence, phase, machine), "float32")
    elif weight is not None:
        value = relax.const(pack(weight, recurrence, machine, known), "float32")
    else:
        parts = [
            builder.emit_te(lambda r, phase=phase: packed(r, recurrence, phase), given_weight)
            for phase in phases(recurrence, machine, known)
        ]
        tail = relax.const(np.zeros(machine.lanes, "float32"), "float32")
        value = builder.emit(relax.op.concat([*parts, tail], 0))
    kind = next((str(a.ty.dtype.dtype) for a in rest[-1:] if recurrence.lengths), "int32")
    made = _function(recurrence, machine, time, batch, kind).with_attr(SCHEDULED, True)
    name = builder.add_func(made, "recurrent")
    types = call.ty.fields if isinstance(call.ty, relax.TupleType) else [call.ty]
    return relax.op.call_tir(name, relax.Tuple([given, value, *rest]), list(types))


def _extent(name: str, extent: Expr) -> Expr:
    return index(known) if (known := constant(extent)) is not None else tirx.Var(name, INDEX)


def _function(
    recurrence: Recurrence, machine: Machine, time: Expr, batch: Expr, lengths: str, for_import: bool = False
) -> tirx.PrimFunc:
    steps, rows = _extent("time", time), _extent("batch", batch)
    d, hidden = index(recurrence.directions), index(recurrence.hidden)
    plan = phases(recurrence, machine, constant(rows))
    width = recurrence.directions * recurrence.gates * recurrence.hidden

    def buffer(name: str, *shape: Expr, dtype: str = "float32") -> Var:
        return tirx.decl_buffer(list(shape), dtype, name)

    if recurrence.quantized:
        (phase,) = plan
        weight, columns = _quantized(recurrence, phase, machine, for_import)
    elif not for_import:
        last = plan[-1]
        size = last.offset + recurrence.directions * last.chunks * recurrence.hidden * last.columns + machine.lanes
        weight = buffer("weight", index(size))
    else:
        weight = buffer("weight", d, index(recurrence.gates * recurrence.hidden), hidden)
    operands = {"x": buffer("x", steps, rows, index(width)), "weight": weight}
    if recurrence.quantized:
        for name in ("scales", *(["zeros"] if recurrence.zeros else [])):
            operands[name] = buffer(name, *columns)
    if recurrence.bias:
        operands["bias"] = buffer("bias", d, hidden)
    for name in ("initial_h", "initial_c"):
        if getattr(recurrence, name):
            operands[name] = buffer(name, d, rows, hidden)
    if recurrence.lengths:
        operands["lengths"] = buffer("lengths", rows, dtype=lengths)
    operands["y"] = buffer("y", steps, d, rows, hidden)
    operands["last_h"] = buffer("last_h", d, rows, hidden)
    if recurrence.has_cell:
        operands["last_c"] = buffer("last_c", d, rows, hidden)
    body = Loops(recurrence, machine, operands, steps, rows, plan, not for_import).statement()
    function = tirx.PrimFunc(list(operands.values()), body)
    return function.with_attrs({"tirx.noalias": True, "op_pattern": OPAQUE, RECURRENT: recurrence.text()})


def _quantized(recurrence: Recurrence, phase: Phase, machine: Machine, for_import: bool) -> tuple[Var, list[Expr]]:
    """Return the buffer of int8 weights, and the shape of what each of their columns has."""
    d, hidden = recurrence.directions, recurrence.hidden
    if for_import:
        shape, columns = [d, recurrence.gates * hidden, hidden], [d, recurrence.gates * hidden]
    else:
        dot = dot_product(machine, "int8")
        width = recurrent_integers.packed_width(phase, machine)
        shape = [d * phase.chunks, dot.steps(hidden) + dot.extra, width, dot.group]
        columns = [d * phase.chunks * phase.columns + machine.lanes]
    return tirx.decl_buffer([index(s) for s in shape], "int8", "weight"), [index(c) for c in columns]
