"""Make the values of functions that TVM schedules safe: NaN survives maxima, integer divisions do not trap."""

from __future__ import annotations

from collections.abc import Callable

from tvm import s_tir, tirx
from tvm.ir import Expr

from zmq_offload.schedules.functions.vector_math import Safe
from zmq_offload.schedules.rewrite import Unsupported
from zmq_offload.schedules.stages import identity


def with_safe_values(func: tirx.PrimFunc) -> tirx.PrimFunc:
    """Rewrite all values that `func` stores with `vector_math.Safe`; unchanged if it has other statements."""
    try:
        body = _visit(func.body, lambda value: Safe().visit(value))
    except Unsupported:
        return func
    return tirx.PrimFunc(list(func.params), body, func.ret_type, func.attrs)


def _visit(s: tirx.Stmt, rewrite: Callable[[Expr], Expr]) -> tirx.Stmt:
    if isinstance(s, tirx.SeqStmt):
        return tirx.SeqStmt([_visit(part, rewrite) for part in s.seq])
    if isinstance(s, tirx.For):
        body = _visit(s.body, rewrite)
        return tirx.For(s.loop_var, s.min, s.extent, s.kind, body, s.thread_binding, s.annotations, s.step)
    if isinstance(s, tirx.BufferStore):
        return tirx.BufferStore(s.buffer, rewrite(s.value), list(s.indices))
    if isinstance(s, tirx.IfThenElse):
        other = None if s.else_case is None else _visit(s.else_case, rewrite)
        return tirx.IfThenElse(s.condition, _visit(s.then_case, rewrite), other)
    if isinstance(s, s_tir.SBlockRealize):
        return s_tir.SBlockRealize(list(s.iter_values), s.predicate, _block(s.block, rewrite))
    raise Unsupported(f"a statement of type {type(s).__name__}")


def _block(block: s_tir.SBlock, rewrite: Callable[[Expr], Expr]) -> s_tir.SBlock:
    init = block.init
    if isinstance(init, tirx.BufferStore) and isinstance(block.body, tirx.BufferStore):
        first = identity(type(block.body.value), init.value)
        init = tirx.BufferStore(init.buffer, first, list(init.indices))
    return s_tir.SBlock(
        list(block.iter_vars),
        list(block.reads),
        list(block.writes),
        block.name_hint,
        _visit(block.body, rewrite),
        init,
        list(block.alloc_buffers),
        list(block.match_buffers),
        block.annotations,
    )
