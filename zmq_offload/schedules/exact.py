"""A pass that replaces operators whose usual formula loses small numbers, infinities or NaN, and scans.

It takes and returns a module of Relax operators, and runs after `layout`: the PrimFuncs that it makes are opaque to
that pass. It matches single operators, and pairs such as log(1 + x), through their bindings. docs/numbers.md lists the
results.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from tvm import relax, te, tirx
from tvm.ir import Call, Expr, IRModule
from tvm.relax.expr_functor import mutator

from zmq_offload.schedules.emit import product
from zmq_offload.schedules.machine import Machine
from zmq_offload.schedules.positions import first_extreme
from zmq_offload.schedules.rewrite import constant
from zmq_offload.schedules.scans import scan
from zmq_offload.schedules.simplify import GraphRewriter, rewritten
from zmq_offload.schedules.softmax import softmax
from zmq_offload.schedules.tvm_internals import FUSABLE, last_part, operator_name

_FLOATS = ("float16", "float32", "float64")
_SCANNED = ("float32", "float64", "int32", "int64")


@mutator
class _Exact(GraphRewriter):
    def __init__(self, mod: IRModule, machine: Machine) -> None:
        super().__init__(mod)
        self.machine = machine

    def visit_call_(self, call: Call) -> Expr:
        call = self.operands(call)
        rule = _REWRITES.get(operator_name(call))
        if rule is None or getattr(call.ty, "shape", None) is None:
            return call
        other = rule(self, call)
        return call if other is None else other

    def called(self, expr: Expr, name: str) -> Call | None:
        """Return the call of operator `name` that `expr` is or is bound to."""
        value = self.bound(expr)
        return value if operator_name(value) == name else None

    def is_number(self, expr: Expr, value: float) -> bool:
        """Return whether `expr` is a constant with one element, `value`."""
        array = self.array(expr)
        return array is not None and array.size == 1 and float(array.item()) == value

    def elementwise(self, name: str, x: Expr, value: Callable[[Expr], Expr]) -> Expr:
        """Emit a function of each element of `x`."""

        def compute(tensor: te.Tensor) -> te.Tensor:
            return te.compute(tensor.shape, lambda *at: value(tensor[at]), name=name)

        return self.builder_.emit_te(compute, x, primfunc_name_hint=name)


def _log(graph: _Exact, call: Call) -> Expr | None:
    """log(1 + x), a part of Softplus and Mish: 1 + x loses the digits of a small x."""
    added = graph.called(call.args[0], "relax.add")
    if added is None or str(call.ty.dtype) != "float32":
        return None
    for one, x in ((added.args[0], added.args[1]), (added.args[1], added.args[0])):
        if graph.is_number(one, 1.0) and x.ty.ndim == call.ty.ndim:
            return graph.elementwise("log1p", x, tirx.log1p)
    return None


def _subtract(graph: _Exact, call: Call) -> Expr | None:
    """e^x - 1 and 1 - e^x, parts of Elu and Selu: the difference cancels for small x."""
    if str(call.ty.dtype) != "float32":
        return None
    a, b = call.args
    for one, power, sign in ((b, a, 1.0), (a, b, -1.0)):
        exp = graph.called(power, "relax.exp")
        if exp is not None and graph.is_number(one, 1.0) and exp.ty.ndim == call.ty.ndim:
            value = graph.elementwise("expm1", exp.args[0], lambda v: tirx.call_pure_extern("float32", "expm1f", v))
            return value if sign > 0 else relax.op.negative(value)
    return None


def _sign(graph: _Exact, call: Call) -> Expr | None:
    """The sign of NaN is NaN."""
    dtype = str(call.ty.dtype)
    if dtype not in _FLOATS:
        return None
    zero, one = tirx.FloatImm(dtype, 0.0), tirx.FloatImm(dtype, 1.0)

    def value(v: Expr) -> Expr:
        rest = tirx.Select(tirx.EQ(v, zero), zero, v)
        return tirx.Select(v > zero, one, tirx.Select(v < zero, tirx.FloatImm(dtype, -1.0), rest))

    return graph.elementwise("sign", call.args[0], value)


def _multiply(graph: _Exact, call: Call) -> Expr | None:
    """x * (x > limit), the importer's ThresholdedRelu: 0 times infinity would be NaN."""
    for mask, x in ((call.args[0], call.args[1]), (call.args[1], call.args[0])):
        cast = graph.called(mask, "relax.astype")
        above = None if cast is None else graph.called(cast.args[0], "relax.greater")
        if cast is not None and above is not None and above.args[0].same_as(x) and str(x.ty.dtype) in _FLOATS:
            return relax.op.where(cast.args[0], x, relax.const(0.0, str(x.ty.dtype)))
    return None


def _add(graph: _Exact, call: Call) -> Expr | None:
    """log(sum(exp(x - m))) + m with m = max(x), ReduceLogSumExp: x - m is NaN if m is infinite."""
    for logarithm, m in ((call.args[0], call.args[1]), (call.args[1], call.args[0])):
        log = graph.called(logarithm, "relax.log")
        total = None if log is None else graph.called(log.args[0], "relax.sum")
        exp = None if total is None else graph.called(total.args[0], "relax.exp")
        difference = None if exp is None else graph.called(exp.args[0], "relax.subtract")
        if difference is None or total is None or graph.called(m, "relax.max") is None:
            continue
        if not graph.bound(difference.args[1]).same_as(graph.bound(m)):
            continue
        largest = float(np.finfo(str(m.ty.dtype)).max)
        emit = graph.builder_.emit
        finite = emit(relax.op.clip(m, -largest, largest))
        powers = emit(relax.op.exp(emit(relax.op.subtract(difference.args[0], finite))))
        summed = emit(
            relax.op.sum(powers, [int(a) for a in total.attrs.axis or []] or None, bool(total.attrs.keepdims))
        )
        return relax.op.add(emit(relax.op.log(summed)), finite)
    return None


def _power(graph: _Exact, call: Call) -> Expr | None:
    """A constant exponent, as a literal: squares and roots need no logarithm. (TVM's constructor prints warnings.)"""
    x, exponent = call.args
    array = graph.array(exponent)
    if array is None or array.size != 1 or str(call.ty.dtype) != "float32" or x.ty.ndim != call.ty.ndim:
        return None
    literal = tirx.FloatImm("float32", float(array.item()))
    return graph.elementwise("power", x, lambda v: tirx.call_intrin("float32", "tirx.pow", v, literal))


def _position(graph: _Exact, call: Call) -> Expr | None:
    """The index of the first largest (or smallest) element, or of the first NaN.

    TVM starts with index -1 and the datatype's last finite number. It returns -1 if no element is better, as with
    bytes that are all 0, and ignores NaN.
    """
    (x,), attrs, dtype = call.args, call.attrs, str(call.ty.dtype)
    kind = str(x.ty.dtype)
    if attrs.axis is None or kind == "bool":
        return None
    largest = operator_name(call) == "relax.argmax"
    rank = x.ty.ndim
    axis = int(attrs.axis) % rank
    if kind == "float32":
        return graph.builder_.emit_te(
            first_extreme,
            x,
            axis,
            bool(attrs.keepdims),
            largest,
            dtype,
            primfunc_name_hint=last_part(operator_name(call)),
        )

    def combine(a: Sequence[Expr], b: Sequence[Expr]) -> tuple[Expr, Expr]:
        better = a[1] > b[1] if largest else a[1] < b[1]
        kept = tirx.Or(better, tirx.And(tirx.EQ(a[1], b[1]), a[0] < b[0]))
        kept = tirx.Or(kept, tirx.isnan(a[1])) if kind in _FLOATS else kept
        return tirx.Select(kept, a[0], b[0]), tirx.Select(kept, a[1], b[1])

    def identity(index: str, value: str) -> tuple[Expr, Expr]:
        if kind in _FLOATS:
            worst: Expr = tirx.FloatImm(value, float("-inf") if largest else float("inf"))
        else:
            worst = tirx.const(int(np.iinfo(kind).min if largest else np.iinfo(kind).max), kind)
        return tirx.IntImm(index, np.iinfo(index).max), worst

    def compute(tensor: te.Tensor) -> te.Tensor:
        reducer = te.comm_reducer(combine, identity, name="position")
        k = te.reduce_axis((0, tensor.shape[axis]), name="k")
        kept = [1 if a == axis else s for a, s in enumerate(tensor.shape) if a != axis or attrs.keepdims]

        def element(*at: Expr) -> Sequence[Expr]:
            outer = [i for a, i in enumerate(at) if a != axis] if attrs.keepdims else list(at)
            place = (*outer[:axis], k, *outer[axis:])
            pair: Sequence[Expr] = reducer((tirx.Cast(dtype, k.var), tensor[place]), axis=k)
            return pair

        found, _ = te.compute(kept, element, name="position")
        return te.compute(kept, lambda *at: found[at], name="index")

    return graph.builder_.emit_te(compute, x, primfunc_name_hint=last_part(operator_name(call)))


def _softmax(graph: _Exact, call: Call) -> Expr | None:
    if str(call.ty.dtype) != "float32":
        return None
    axis = int(call.attrs.axis) % call.ty.ndim
    return graph.builder_.emit_te(
        softmax, call.args[0], axis, primfunc_name_hint="softmax", primfunc_attrs={"op_pattern": FUSABLE}
    )


def _scan(graph: _Exact, call: Call) -> Expr | None:
    """Running sums and products along another axis than the last, of which TVM makes slow code (`scans`)."""
    (x,), attrs, sizes = call.args, call.attrs, call.ty.shape.values if hasattr(call.ty.shape, "values") else []
    if attrs.axis is None or not sizes or str(x.ty.dtype) != str(call.ty.dtype) or str(x.ty.dtype) not in _SCANNED:
        return None
    axis = int(attrs.axis) % len(sizes)
    columns = constant(product(sizes[axis + 1 :]))
    if columns is None or columns < 2:
        return None
    kind, start = (tirx.Add, 0) if operator_name(call) == "relax.cumsum" else (tirx.Mul, 1)
    exclusive = bool(attrs.exclusive)
    merged = axis < len(sizes) - 2
    rows = graph.builder_.emit(relax.op.reshape(x, [*sizes[: axis + 1], columns])) if merged else x
    done = graph.builder_.emit_te(
        lambda t: scan(t, kind, start, exclusive, graph.machine),
        rows,
        primfunc_name_hint=last_part(operator_name(call)),
    )
    return relax.op.reshape(done, call.ty.shape) if merged else done


_REWRITES: dict[str, Callable[[_Exact, Call], Expr | None]] = {
    "relax.log": _log,
    "relax.subtract": _subtract,
    "relax.sign": _sign,
    "relax.multiply": _multiply,
    "relax.add": _add,
    "relax.power": _power,
    "relax.nn.softmax": _softmax,
    "relax.argmax": _position,
    "relax.argmin": _position,
    "relax.cumprod": _scan,
    "relax.cumsum": _scan,
}


def exact(mod: IRModule, machine: Machine) -> IRModule:
    """Return `mod` with those operators replaced."""
    return rewritten(mod, _Exact(mod, machine))
