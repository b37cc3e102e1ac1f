"""A fused PrimFunc as stages, each defining the elements of one buffer by an expression of its indices.

`parse` makes them of the loops and blocks that FuseTIR leaves. `Inliner` expands stages into each other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tvm
from tvm import s_tir, tirx
from tvm.ir import Call, Expr, TensorLoad, Var

from zmq_offload.schedules.rewrite import Rewriter, Unsupported, children, constant, loads, same
from zmq_offload.schedules.tvm_internals import POOL_PADDING, REDUCE_AXIS

KERNEL = "zmq_offload.kernel"
"""Annotation of a block of `operators`: the name of its kernel."""

Substitute = Callable[[Var, list[Expr]], Expr | None]
"""Returns an expression that replaces an element of a buffer; None to keep the load."""


@dataclass(eq=False)
class Stage:
    """`buffer[axes] = value`; with `reduce_axes`, `value` combined over them, starting with `init`."""

    buffer: Var
    axes: list[Var]
    extents: list[Expr]
    value: Expr
    reduce_axes: list[Var] = field(default_factory=list)
    reduce_extents: list[Expr] = field(default_factory=list)
    combine: type | None = None  # tirx.Add, Mul, Max or Min
    init: Expr | None = None
    annotations: dict[str, Any] = field(default_factory=dict)

    @property
    def kernel(self) -> str | None:
        """The name of the kernel, None if the stage has none."""
        return str(self.annotations[KERNEL]) if KERNEL in self.annotations else None


@dataclass(eq=False)
class Program:
    """A PrimFunc as stages in an executable order; the last one writes the only output."""

    func: tirx.PrimFunc
    stages: list[Stage]

    def producer(self, buffer: Var) -> Stage | None:
        """Return the stage that writes `buffer`; None for an input."""
        return next((s for s in self.stages if s.buffer.same_as(buffer)), None)


def parse(func: tirx.PrimFunc) -> Program:
    """Return the stages of `func`.

    Raises Unsupported if `func` is not a root block with a sequence of serial loop nests, each around one block that
    stores every element of its buffer once, or if it has several outputs.
    """
    root = func.body
    if not isinstance(root, s_tir.SBlockRealize) or root.block.iter_vars:
        raise Unsupported("no root block")
    body = root.block.body
    stages = [_stage(s) for s in (body.seq if isinstance(body, tirx.SeqStmt) else [body])]
    written = [s.buffer for s in stages]
    if any(a.same_as(b) for i, a in enumerate(written) for b in written[:i]):
        raise Unsupported("a buffer that is written twice")
    outputs = [b for b in written if any(b.same_as(p) for p in func.params)]
    if len(outputs) != 1 or not outputs[0].same_as(written[-1]):
        raise Unsupported("several outputs")
    for stage in stages:
        _pad_with_identity(stage, stages)
    return Program(func, stages)


def _pad_with_identity(stage: Stage, stages: Sequence[Stage]) -> None:
    """Pad a pool with the identity of its maximum or minimum, so that a window of -inf gives -inf."""
    if stage.combine not in (tirx.Max, tirx.Min):
        return
    for pad in (s for s in stages if str(s.buffer.name) == POOL_PADDING):
        call = pad.value
        if (
            isinstance(call, Call)
            and len(call.args) == 3
            and any(e.source.same_as(pad.buffer) for e in loads(stage.value))
        ):
            outside = identity(stage.combine, call.args[2])
            pad.value = Call(call.op, [*call.args[:2], outside], call.attrs, call.ty_args, call.span, call.ty)


def _stage(statement: tirx.Stmt) -> Stage:
    while isinstance(statement, tirx.For):
        if statement.kind != tirx.ForKind.SERIAL:
            raise Unsupported("already scheduled")
        statement = statement.body
    if not isinstance(statement, s_tir.SBlockRealize) or constant(statement.predicate) != 1:
        raise Unsupported("no plain block")
    block = statement.block
    store = block.body
    if not isinstance(store, tirx.BufferStore) or block.alloc_buffers or block.match_buffers:
        raise Unsupported("more than one assignment in a block")
    spatial = [v for v in block.iter_vars if v.iter_type != REDUCE_AXIS]
    reduce = [v for v in block.iter_vars if v.iter_type == REDUCE_AXIS]
    if any(constant(v.dom.min) != 0 for v in block.iter_vars):
        raise Unsupported("an axis that does not start at 0")
    if not store.indices and all(constant(v.dom.extent) == 1 for v in spatial):
        spatial = []  # TVM gives a block for a scalar an axis that nothing uses
    if len(store.indices) != len(spatial) or not all(
        isinstance(i, Var) and i.same_as(v.var) for i, v in zip(store.indices, spatial, strict=True)
    ):
        raise Unsupported("a permuted or partial assignment")
    stage = Stage(
        buffer=store.buffer,
        axes=[v.var for v in spatial],
        extents=[v.dom.extent for v in spatial],
        value=store.value,
        annotations=dict(block.annotations),
    )
    if not all(_equal(e, s) for e, s in zip(stage.extents, stage.buffer.shape, strict=True)):
        raise Unsupported("a block that writes a part of its buffer")
    if reduce:
        _reduction(stage, block.init, reduce)
    elif block.init is not None or any(e.source.same_as(stage.buffer) for e in loads(stage.value)):
        raise Unsupported("a block that reads what it writes")
    return stage


def _equal(a: Expr, b: Expr) -> bool:
    """Return whether two extents are equal, also if TVM has simplified only one of them."""
    return same(a, b) or constant(tvm.sym.Analyzer().simplify(a - b)) == 0


def _reduction(stage: Stage, init: tirx.Stmt | None, axes: list[tirx.IterVar]) -> None:
    """Split `out = combine(out, value)` into its parts."""
    update = stage.value
    if not isinstance(init, tirx.BufferStore) or type(update) not in (tirx.Add, tirx.Mul, tirx.Max, tirx.Min):
        raise Unsupported("an unknown reduction")
    operands = [update.a, update.b]
    own = [isinstance(o, TensorLoad) and o.source.same_as(stage.buffer) for o in operands]
    if sum(own) != 1:
        raise Unsupported("an unknown reduction")
    stage.combine, stage.init = type(update), identity(type(update), init.value)
    stage.value = operands[own.index(False)]
    stage.reduce_axes = [v.var for v in axes]
    stage.reduce_extents = [v.dom.extent for v in axes]


def identity(combine: type | None, given: Expr) -> Expr:
    """Return the initial value of a reduction; an infinity where TVM starts with the last finite number."""
    if combine not in (tirx.Max, tirx.Min) or not isinstance(given, tirx.FloatImm):
        return given
    sign = -1.0 if combine is tirx.Max else 1.0
    least = sign * float(np.finfo(str(given.ty)).max)
    return tirx.FloatImm(str(given.ty), sign * float("inf")) if float(given.value) == least else given


class Inliner(Rewriter):
    """Expands a stage's value down to loads of `kept` buffers and inputs.

    An element that is read several times is bound by a `Let`, inside the side of an `if_then_else` that reads it: the
    condition may guard an index that is out of bounds.
    """

    def __init__(self, program: Program, kept: Sequence[Var], substitute: Substitute | None = None) -> None:
        super().__init__({})
        self.program = program
        self.kept = kept
        self.substitute = substitute
        self._scopes: list[list[_Binding]] = []

    def expand(self, stage: Stage, indices: Sequence[Expr]) -> Expr:
        """Return the value of `stage` at `indices`; its reduce axes stay free."""
        self.variables = dict(zip(stage.axes, indices, strict=True))
        return self.branch(stage.value)

    def branch(self, value: Expr) -> Expr:
        self._scopes.append([])
        result = self.visit(value)
        for binding in reversed(self._scopes.pop()):
            result = tirx.Let(binding.var, binding.value, result)
        return result

    def load(self, load: TensorLoad, indices: list[Expr]) -> Expr:
        if self.substitute and (answer := self.substitute(load.source, indices)) is not None:
            return answer
        stage = self.program.producer(load.source)
        if stage is None or any(load.source.same_as(k) for k in self.kept):
            return tirx.BufferLoad(load.source, indices)
        if stage.reduce_axes:
            raise Unsupported("a reduction that would have to be inlined")
        for binding in (b for scope in self._scopes for b in scope):
            if binding.buffer.same_as(load.source) and same_indices(binding.indices, indices):
                return binding.var
        outer, self.variables = self.variables, dict(zip(stage.axes, indices, strict=True))
        value = self.visit(stage.value)
        self.variables = outer
        if not children(value):
            return value
        binding = _Binding(tirx.Var(str(stage.buffer.name), value.ty), load.source, indices, value)
        self._scopes[-1].append(binding)
        return binding.var


@dataclass(frozen=True, eq=False)
class _Binding:
    var: Var
    buffer: Var
    indices: list[Expr]
    value: Expr


def same_indices(a: Sequence[Expr], b: Sequence[Expr]) -> bool:
    """Return whether two index tuples are the same expressions."""
    return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
