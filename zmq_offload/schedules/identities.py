"""Start the maximum and minimum of floats at an infinity: TVM starts at the last finite number.

The rules of this package do so in what they schedule. This pass is for what TVM computes before that: its FoldConstant
would make a finite maximum of a row of -inf, as a mask has for a token that sees no other, and the softmax of that row
NaN.
"""

from __future__ import annotations

from tvm import s_tir, tirx
from tvm.ir import IRModule

from zmq_offload.schedules.stages import identity


def with_identities(mod: IRModule) -> IRModule:
    """Return `mod` with the reductions of its plain PrimFuncs started at their identities."""
    changed = {}
    for gv, func in mod.functions.items():
        if isinstance(func, tirx.PrimFunc):
            body = _statement(func.body)
            if body is not func.body:
                changed[gv] = func.with_body(body)
    if not changed:
        return mod
    copy = IRModule(dict(mod.functions), attrs=mod.attrs)
    for gv, func in changed.items():
        copy.update_func(gv, func)
    return copy


def _statement(statement: tirx.Stmt) -> tirx.Stmt:
    """Return the statement itself, or a copy with other initial values."""
    if isinstance(statement, tirx.SeqStmt):
        parts = list(statement.seq)
        new = [_statement(part) for part in parts]
        return statement if all(a is b for a, b in zip(parts, new, strict=True)) else tirx.SeqStmt(new, statement.span)
    if isinstance(statement, tirx.For):
        inner = statement.body
        body = _statement(inner)
        if body is inner:
            return statement
        s = statement
        return tirx.For(
            s.loop_var, s.min, s.extent, s.kind, body, s.thread_binding, s.annotations, step=s.step, span=s.span
        )
    if isinstance(statement, s_tir.SBlockRealize):
        block = statement.block
        new = _block(block)
        return statement if new is block else s_tir.SBlockRealize(statement.iter_values, statement.predicate, new)
    return statement


def _block(block: s_tir.SBlock) -> s_tir.SBlock:
    inner, init = block.body, block.init
    body, first = _statement(inner), init
    if isinstance(init, tirx.BufferStore) and isinstance(inner, tirx.BufferStore):
        value = init.value
        start = identity(type(inner.value), value)
        if start is not value:
            first = tirx.BufferStore(init.buffer, start, init.indices)
    if body is inner and first is init:
        return block
    return s_tir.SBlock(
        block.iter_vars,
        block.reads,
        block.writes,
        block.name_hint,
        body,
        first,
        block.alloc_buffers,
        block.match_buffers,
        block.annotations,
    )
