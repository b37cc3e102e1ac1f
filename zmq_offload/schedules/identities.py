"""Start the maximum and minimum of floats at an infinity: TVM starts at the last finite number.

The rules of this package do so in what they schedule. This pass is for what TVM computes before that: its FoldConstant
would make a finite maximum of a row of -inf, as a mask has for a token that sees no other, and the softmax of that row
NaN.
"""

from __future__ import annotations

from tvm import s_tir, tirx
from tvm.ir import IRModule
from tvm_ffi import structural_map

from zmq_offload.schedules.stages import identity


def with_identities(mod: IRModule) -> IRModule:
    """Return `mod` with the reductions of its plain PrimFuncs started at their identities."""
    changed = {}
    for gv, func in mod.functions.items():
        if isinstance(func, tirx.PrimFunc):
            body = structural_map(func.body, (s_tir.SBlock, _started))
            if not body.same_as(func.body):
                changed[gv] = func.with_body(body)
    if not changed:
        return mod
    copy = IRModule(dict(mod.functions), attrs=mod.attrs)
    for gv, func in changed.items():
        copy.update_func(gv, func)
    return copy


def _started(block: s_tir.SBlock) -> s_tir.SBlock:
    """Return the block itself, or a copy with another initial value."""
    body, init = block.body, block.init
    if not isinstance(init, tirx.BufferStore) or not isinstance(body, tirx.BufferStore):
        return block
    value = init.value
    start = identity(type(body.value), value)
    if start is value:
        return block
    return s_tir.SBlock(
        block.iter_vars,
        block.reads,
        block.writes,
        block.name_hint,
        body,
        tirx.BufferStore(init.buffer, start, init.indices),
        block.alloc_buffers,
        block.match_buffers,
        block.annotations,
    )
