"""Walk and rebuild TIR expressions in Python. (TVM 0.27 has no Python mutator for them.)"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import tvm
import tvm_ffi
from tvm import tirx
from tvm.ir import Call, Expr, TensorLoad, Var

from zmq_offload.schedules.tvm_internals import IF_THEN_ELSE


class Unsupported(Exception):
    """A rule does not take a function; the next rule does, or in the end TVM's default."""


def _logical(kind: type, absorbing: int) -> Callable[[Expr, Expr], Expr]:
    """Return And or Or with literals folded, which decides whole branches of a concatenation."""

    def build(a: Expr, b: Expr) -> Expr:
        for known, other in ((a, b), (b, a)):
            if (value := constant(known)) is not None:
                return known if bool(value) == bool(absorbing) else other
        return kind(a, b)

    return build


_BINARY: dict[type, Callable[[Any, Any], Expr]] = {
    tirx.Add: lambda a, b: a + b,
    tirx.Sub: lambda a, b: a - b,
    tirx.Mul: lambda a, b: a * b,
    tirx.FloorDiv: tirx.floordiv,
    tirx.FloorMod: tirx.floormod,
    # The constructors of the others do not fold constants. Indices need only the five above.
    tirx.Min: tirx.Min,
    tirx.Max: tirx.Max,
    tirx.And: _logical(tirx.And, 0),
    tirx.Or: _logical(tirx.Or, 1),
    **{
        kind: kind
        for kind in (
            *(tirx.Div, tirx.Mod),
            *(tirx.EQ, tirx.NE, tirx.LT, tirx.LE, tirx.GT, tirx.GE),
            *(tirx.LShift, tirx.RShift, tirx.BitwiseAnd, tirx.BitwiseOr, tirx.BitwiseXor),
        )
    },
}


def children(expr: Expr) -> list[Expr]:
    """Return the direct operands of an expression."""
    if type(expr) in _BINARY:
        return [expr.a, expr.b]
    if isinstance(expr, tirx.Not | tirx.BitwiseNot):
        return [expr.a]
    if isinstance(expr, tirx.Select):
        return [expr.condition, expr.true_value, expr.false_value]
    if isinstance(expr, tirx.Cast):
        return [expr.value]
    if isinstance(expr, tirx.Let):
        return [expr.value, expr.body]
    if isinstance(expr, TensorLoad):
        return list(expr.indices)
    if isinstance(expr, Call):
        return list(expr.args)
    return []


def walk(expr: Expr) -> Iterator[Expr]:
    """Yield `expr` and all expressions in it."""
    yield expr
    for child in children(expr):
        yield from walk(child)


def loads(expr: Expr) -> list[TensorLoad]:
    """Return all loads in `expr`."""
    return [e for e in walk(expr) if isinstance(e, TensorLoad)]


def uses(expr: Expr, var: Var) -> bool:
    """Return whether `var` occurs in `expr`."""
    return any(isinstance(e, Var) and e.same_as(var) for e in walk(expr))


class Rewriter:
    """Rebuilds an expression with `variables` replaced; subclasses replace loads and calls, too."""

    def __init__(self, variables: Mapping[Var, Expr]) -> None:
        self.variables = variables

    def load(self, load: TensorLoad, indices: list[Expr]) -> Expr:
        """Return the replacement of a load, whose indices are rewritten."""
        return tirx.BufferLoad(load.source, indices)

    def call(self, call: Call, args: list[Expr]) -> Expr:
        """Return the replacement of a call, whose arguments are rewritten."""
        return Call(call.op, args, call.attrs, call.ty_args, call.span, call.ty)

    def branch(self, value: Expr) -> Expr:
        """Rewrite a side of an `if_then_else`, whose loads may be out of bounds if the condition does not hold."""
        return self.visit(value)

    def visit(self, e: Expr) -> Expr:
        """Return `e` rewritten."""
        if isinstance(e, Var):
            return self.variables.get(e, e)
        kind = type(e)
        if kind in _BINARY:
            return _BINARY[kind](self.visit(e.a), self.visit(e.b))
        if isinstance(e, tirx.IntImm | tirx.FloatImm | tvm.ir.StringImm):
            return e
        if isinstance(e, TensorLoad):
            return self.load(e, [self.visit(i) for i in e.indices])
        if isinstance(e, Call):
            return self._call(e)
        if isinstance(e, tirx.Cast):
            return tirx.Cast(e.ty, self.visit(e.value))
        if isinstance(e, tirx.Select):
            condition = self.visit(e.condition)
            if (taken := constant(condition)) is not None:
                return self.visit(e.true_value if taken else e.false_value)
            return tirx.Select(condition, self.visit(e.true_value), self.visit(e.false_value))
        if isinstance(e, tirx.Not) and loads(e.a):
            # TVM keeps a vector of bool as bytes and inverts all bits: not 1 would be 254, which is true.
            return tirx.EQ(tirx.Cast("int8", self.visit(e.a)), tirx.IntImm("int8", 0))
        if isinstance(e, tirx.Not | tirx.BitwiseNot):
            return kind(self.visit(e.a))
        if isinstance(e, tirx.Let):
            # A new variable: TIR allows one definition of each, and an expression may be emitted twice.
            value, var = self.visit(e.value), Var(e.var.name, e.var.ty)
            self.variables = {**self.variables, e.var: var}
            return tirx.Let(var, value, self.visit(e.body))
        raise Unsupported(f"an expression of type {kind.__name__}")

    def _call(self, e: Call) -> Expr:
        if not e.op.same_as(IF_THEN_ELSE):
            return self.call(e, [self.visit(a) for a in e.args])
        condition = self.visit(e.args[0])
        if (taken := constant(condition)) is not None:
            return self.visit(e.args[1 if taken else 2])
        return self.call(e, [condition, self.branch(e.args[1]), self.branch(e.args[2])])


def constant(value: Expr) -> int | None:
    """Return the value of an integer literal; None for any other expression."""
    return int(value.value) if isinstance(value, tirx.IntImm) else None


def same(a: Expr, b: Expr) -> bool:
    """Return whether two expressions are the same, regardless of the width of integer literals."""
    if (value := constant(a)) is not None:
        return value == constant(b)
    return bool(tvm_ffi.structural_equal(a, b))
