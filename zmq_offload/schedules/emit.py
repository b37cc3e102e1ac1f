"""Builders for TIR statements: loops, parallel loops, vectors and their tails, buffers."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence

from tvm import tirx
from tvm.ir import Call, Expr, TensorLoad, Var
from tvm.tirx import ForKind

from zmq_offload.schedules.machine import Machine
from zmq_offload.schedules.rewrite import Rewriter, constant

INDEX = "int64"  # as TVM's shapes; its pass NarrowDataType makes int32 of indices that fit


def index(value: int) -> Expr:
    """Return an index literal."""
    return tirx.IntImm(INDEX, value)


def as_index(value: Expr | int) -> Expr:
    """Return `value` as an index expression."""
    return index(value) if isinstance(value, int) else value


def sequence(statements: Iterable[tirx.Stmt | None]) -> tirx.Stmt:
    """Return the statements in sequence, without None; a statement without effect if none is left."""
    flat: list[tirx.Stmt] = []
    for statement in statements:
        if isinstance(statement, tirx.SeqStmt):
            flat.extend(statement.seq)
        elif statement is not None:
            flat.append(statement)
    if not flat:
        return tirx.Evaluate(0)
    return flat[0] if len(flat) == 1 else tirx.SeqStmt(flat)


def loop(
    extent: Expr | int,
    body: Callable[[Expr], tirx.Stmt],
    name: str = "i",
    kind: ForKind = ForKind.SERIAL,
    start: Expr | int = 0,
) -> tirx.Stmt:
    """Emit `for name in range(start, start + extent)`; the body alone for a single iteration."""
    if constant(as_index(extent)) == 1:
        return body(as_index(start))
    var = tirx.Var(name, INDEX)
    return tirx.For(var, as_index(start), as_index(extent), kind, body(var))


def nest(extents: Sequence[Expr], body: Callable[[list[Expr]], tirx.Stmt], kind: ForKind = ForKind.SERIAL) -> tirx.Stmt:
    """Emit nested loops over `extents`. Those over an extent known at run time only are not unrolled."""
    if not extents:
        return body([])
    own = ForKind.SERIAL if kind == ForKind.UNROLLED and constant(extents[0]) is None else kind
    return loop(extents[0], lambda i: nest(extents[1:], lambda rest: body([i, *rest]), kind), kind=own)


def parallel(extents: Sequence[Expr], body: Callable[[list[Expr]], tirx.Stmt], threads: bool = True) -> tirx.Stmt:
    """Emit one loop over all `extents` that threads share; nested serial loops with `threads=False`."""
    if not threads:
        return nest(extents, body)
    total = product(extents)

    def unfold(flat: Expr) -> tirx.Stmt:
        indices: list[Expr] = []
        for extent in reversed(extents):
            # Nothing is negative here. TVM does not know that of a symbolic extent, and writes a floor of one with
            # variables that it cannot bind twice.
            known = constant(extent) is not None
            rest, whole = (tirx.floormod, tirx.floordiv) if known else (tirx.truncmod, tirx.truncdiv)
            indices.insert(0, rest(flat, extent) if len(indices) + 1 < len(extents) else flat)
            flat = whole(flat, extent)
        return body(indices)

    return loop(total, unfold, "p", ForKind.PARALLEL)


def product(extents: Iterable[Expr]) -> Expr:
    """Return the product of the extents as an expression."""
    total: Expr = index(1)
    for extent in extents:
        total = total * extent
    return total


def elements(extents: Iterable[Expr], unknown: int = 1) -> int:
    """Return the product of the extents as a number, with `unknown` for each symbolic one."""
    total = 1
    for extent in extents:
        value = constant(extent)
        total *= unknown if value is None else value
    return total


def pieces(extent: int, machine: Machine) -> list[tuple[int, int, int]]:
    """Split `extent` into (start, width, count) runs of vectors: the full width first, then its halves for the tail."""
    runs, start = [], 0
    for width in machine.widths:
        count = (extent - start) // width
        if count:
            runs.append((start, width, count))
            start += width * count
    return runs


def vectors(start: Expr, extent: int, machine: Machine, body: Callable[[Expr, int], tirx.Stmt]) -> tirx.Stmt:
    """Emit `body(first, width)` for each vector of [start, start + extent)."""

    def run(at: int, width: int, count: int) -> tirx.Stmt:
        return loop(count, lambda i: body(start + at + i * width, width), "v")

    return sequence(run(*piece) for piece in pieces(extent, machine))


def when(condition: Expr, statement: tirx.Stmt) -> tirx.Stmt:
    """Emit `statement` under a condition."""
    return tirx.IfThenElse(condition, statement, None)


def lanes(width: int, body: Callable[[Expr], tirx.Stmt]) -> tirx.Stmt:
    """Emit the store `body(lane)` for all lanes of one vector; local buffers replace its `Let` bindings."""
    lane: Expr = tirx.Var("lane", INDEX) if width > 1 else index(0)
    statement = body(lane)
    if not isinstance(statement, tirx.BufferStore):
        raise TypeError(f"the body of a vector is a {type(statement).__name__}; it must be a single store")
    names = _Names(lane, width)
    value = _comparison(names.visit(statement.value)) if width > 1 else names.visit(statement.value)
    statement = sequence([*names.assignments, tirx.BufferStore(statement.buffer, value, statement.indices)])
    if width > 1:
        statement = tirx.For(lane, index(0), index(width), ForKind.VECTORIZED, statement)
    return with_buffers(names.buffers, statement)


def _comparison(value: Expr) -> Expr:
    """Return bool values that are only copied as a comparison: TVM loads vectors of bool as int8, and then cannot store
    them as bool."""
    if str(value.ty) == "bool" and isinstance(value, TensorLoad | tirx.Select | Call):
        return tirx.NE(tirx.Cast("int8", value), tirx.IntImm("int8", 0))
    return value


class _Names(Rewriter):
    """Replaces `Let` bindings by stores to buffers of one vector.

    When TVM generates code, its simplifier substitutes the value of a `Let` for each use of the variable. Time and
    memory grow exponentially with the depth of nested bindings: a sigmoid of a sigmoid of an exp took minutes.
    """

    def __init__(self, lane: Expr, width: int) -> None:
        super().__init__({})
        self.assignments: list[tirx.Stmt] = []
        self.buffers: list[Var] = []
        self._lane = lane
        self._width = width

    def visit(self, e: Expr) -> Expr:
        if not isinstance(e, tirx.Let):
            return super().visit(e)
        value = self.visit(e.value)
        if isinstance(value, tirx.IntImm | tirx.FloatImm | Var):
            self.variables = {**self.variables, e.var: value}
            return self.visit(e.body)
        buffer = local(str(e.var.name), [self._width], str(e.var.ty))
        self.buffers.append(buffer)
        self.assignments.append(tirx.BufferStore(buffer, value, [self._lane]))
        self.variables = {**self.variables, e.var: tirx.BufferLoad(buffer, [self._lane])}
        return self.visit(e.body)

    def branch(self, value: Expr) -> Expr:
        # A side of a conditional is computed only if the condition holds: its bindings must stay inside.
        return Rewriter(self.variables).visit(value)


def ramp(base: Expr | int, width: int) -> Expr:
    """Return the indices of a vector's lanes."""
    return tirx.Ramp(as_index(base), index(1), width) if width > 1 else as_index(base)


def splat(value: Expr, width: int) -> Expr:
    """Return `value` in every lane."""
    return tirx.Broadcast(value, width) if width > 1 else value


_numbers = itertools.count()


def local(name: str, shape: Sequence[int], dtype: str = "float32") -> Var:
    """Declare a small buffer that LLVM keeps in registers.

    TVM allocates buffers of scope "global" and up to 1 KiB (its kMaxStackAlloca) on the stack, where LLVM can promote
    them. Larger ones, and those of scope "local", come from TVM's workspace, which costs 0.1 us for each allocation.
    """
    return tirx.decl_buffer([index(s) for s in shape], dtype, f"{name}_{next(_numbers)}")


def scratch(name: str, shape: Sequence[Expr | int], dtype: str = "float32") -> Var:
    """Declare a buffer in the thread's workspace."""
    return tirx.decl_buffer([as_index(s) for s in shape], dtype, f"{name}_{next(_numbers)}")


class FlatBuffer:
    """A one-dimensional buffer addressed by several indices, where an inner index may run on into the next row.

    TVM's pass CompactBufferAllocation shrinks an allocated buffer to the part that its indices seem to reach. Only a
    one-dimensional buffer keeps its layout.
    """

    def __init__(self, name: str, extents: Sequence[Expr | int], dtype: str = "float32") -> None:
        self.extents = [as_index(e) for e in extents]
        self.buffer = scratch(name, [product(self.extents)], dtype)

    def position(self, indices: Sequence[Expr]) -> Expr:
        """Return the flat index of an element; one of the indices may be a vector."""
        place: Expr = index(0)
        for at, extent in zip(indices, self.extents, strict=True):
            scaled = place * extent
            lanes_ = isinstance(at, tirx.Ramp)
            place = tirx.Ramp(scaled + at.base, at.stride, at.lanes) if lanes_ else scaled + at
        return place

    def load(self, indices: Sequence[Expr]) -> Expr:
        """Load an element or a vector."""
        return tirx.BufferLoad(self.buffer, [self.position(indices)])

    def store(self, indices: Sequence[Expr], value: Expr) -> tirx.Stmt:
        """Store an element."""
        return tirx.BufferStore(self.buffer, value, [self.position(indices)])


def with_buffers(buffers: Iterable[Var], body: tirx.Stmt) -> tirx.Stmt:
    """Allocate `buffers` around `body`."""
    return sequence([*(tirx.AllocBuffer(b) for b in buffers), body])


def finish(func: tirx.PrimFunc, body: tirx.Stmt) -> tirx.PrimFunc:
    """Return `func` with another body and the same signature and attributes."""
    return tirx.PrimFunc(list(func.params), body, func.ret_type, func.attrs)
