"""Two passes that overlap requests with each other and with the device's own work.

Relax's virtual machine calls one function after the other. `overlap`, after FuseOps, splits the call of a region into a
send and a receive wherever other work can run between them. The send begins the request and returns its number in a
token, a scalar int64 tensor; the receive waits for the reply. `isolate_joins`, before FuseOps, keeps operators that
combine a reply with local results out of fused kernels: fused, the local work would have to wait for the reply, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import tvm
from tvm import ir, relax

from zmq_offload.artifacts.manifest import RECEIVE, SEND
from zmq_offload.byoc.codegen import CODEGEN
from zmq_offload.byoc.graph import variables_of
from zmq_offload.byoc.order import topological_order
from zmq_offload.byoc.tvm_internals import CALL_PACKED, CALL_TIR, is_call_of, unfusable

CONSTANT, SENDING, NEEDED_TO_SEND, WORK, RECEIVING = range(5)
"""Kinds of steps. Of the steps that are ready, the lowest kind is next."""


def isolate_joins(mod: tvm.IRModule) -> tvm.IRModule:
    """Keep operators that combine a reply with local results from being fused with the operators of those results.

    Takes a module after LegalizeOps and AnnotateTIROpPattern. A call_tir joins if it waits, directly or not, for a
    reply for which one of its operands does not wait, unless that operand is constant or needed for the request
    itself. It gets a copy of its PrimFunc that FuseOps leaves alone. Blocks that are not dataflow are left alone.
    """
    builder = relax.BlockBuilder(tvm.IRModule(mod.functions, attrs=mod.attrs))
    functions = {}
    for gv, function in _device_functions(mod):
        blocks = [_with_joins_apart(builder, b) if _may_move(b) else b for b in function.body.blocks]
        functions[gv] = _with_blocks(function, blocks)
    return _updated(builder.get(), functions)


def overlap(mod: tvm.IRModule) -> tvm.IRModule:
    """Split each call of a region into a send and a receive wherever other work can run between them.

    Takes a module after FuseOps, and returns one in which the bindings of dataflow blocks that call regions are in a
    new topological order: constants, then sends, then what a send needs, then other work, then receives. A call stays
    one blocking call, the cheaper path, if no kernel, packed function or other reply comes between its send and its
    receive. Blocks that are not dataflow, or that match shapes at run time, are left alone.
    """
    functions = {}
    for gv, function in _device_functions(mod):
        blocks = [_overlapped(b) if _may_move(b) else b for b in function.body.blocks]
        functions[gv] = _with_blocks(function, blocks)
    return _updated(mod, functions)


@dataclass(frozen=True)
class _Steps:
    """A block's bindings by number: which others each needs, which call regions, which are constant."""

    bindings: list[relax.Binding]
    needs: list[set[int]]
    calls: list[int]
    constant: set[int]

    def upstream(self, steps: Iterable[int]) -> set[int]:
        """Return the steps and all steps that they need, directly or not."""
        found, todo = set[int](), list(steps)
        while todo:
            i = todo.pop()
            if i not in found:
                found.add(i)
                todo += self.needs[i]
        return found


def _steps(block: relax.DataflowBlock) -> _Steps:
    bindings = list(block.bindings)
    makers = {b.var: i for i, b in enumerate(bindings)}
    needs, constant = [], set[int]()
    for i, binding in enumerate(bindings):
        used = variables_of(binding.value)
        needs.append({makers[v] for v in used if v in makers})
        if needs[i] <= constant and all(v in makers for v in used):
            constant.add(i)
    return _Steps(bindings, needs, [i for i, b in enumerate(bindings) if symbol_of(b.value) is not None], constant)


def _overlapped(block: relax.DataflowBlock) -> relax.DataflowBlock:
    steps = _steps(block)
    # Step `call` is the send. The receive is a new step, which users of the result need.
    receives = {call: len(steps.bindings) + at for at, call in enumerate(steps.calls)}
    order = _order(steps, receives)
    split = _calls_to_split(steps, receives, order)
    return _with_calls_split(steps, receives, order, split) if split else block


def _order(steps: _Steps, receives: Mapping[int, int]) -> list[int]:
    """Return the bindings' steps and the receives in the order in which they run."""
    needs = [{receives.get(n, n) for n in needed} for needed in steps.needs] + [{call} for call in steps.calls]
    return topological_order(needs, _kinds(steps) + [RECEIVING] * len(steps.calls))


def _calls_to_split(steps: _Steps, receives: Mapping[int, int], order: Sequence[int]) -> set[int]:
    """Return the calls with another receive, or a binding that takes time, between their send and their receive."""
    place = {step: at for at, step in enumerate(order)}

    def takes_time(step: int) -> bool:
        return step >= len(steps.bindings) or _takes_time(steps.bindings[step].value)

    return {c for c in steps.calls if any(takes_time(s) for s in order[place[c] + 1 : place[receives[c]]])}


def _with_calls_split(
    steps: _Steps, receives: Mapping[int, int], order: Sequence[int], split: set[int]
) -> relax.DataflowBlock:
    """Return the block in its new order; the calls in `split` are a send and a receive, the others stay one call."""
    call_of = {receive: call for call, receive in receives.items()}
    token_type = relax.TensorType([], "int64")
    tokens = {call: relax.DataflowVar(f"token_{at}", token_type) for at, call in enumerate(steps.calls)}
    found: list[relax.Binding] = []
    for step in order:
        call = call_of.get(step, step)
        binding = steps.bindings[call]
        if call not in split:
            if step == call:
                found.append(binding)
        elif step == call:
            found.append(relax.VarBinding(tokens[call], _half(binding.value, SEND, [], token_type)))
        else:
            received = _half(binding.value, RECEIVE, [tokens[call]], binding.value.ty)
            found.append(relax.VarBinding(binding.var, received))
    return relax.DataflowBlock(found)


def _kinds(steps: _Steps) -> list[int]:
    needed_to_send = steps.upstream(n for call in steps.calls for n in steps.needs[call])

    def kind(step: int) -> int:
        if step in steps.calls:
            return SENDING
        if step in steps.constant:
            return CONSTANT
        return NEEDED_TO_SEND if step in needed_to_send else WORK

    return [kind(step) for step in range(len(steps.bindings))]


def _half(call: ir.Call, suffix: str, first: Sequence[relax.Expr], returns: relax.Type) -> ir.Call:
    """Return the call of a send or a receive. Both take the inputs, whose memory is in use until the reply arrives."""
    name, inputs = call.args
    types = list(returns.fields) if isinstance(returns, relax.TupleType) else returns
    return relax.op.call_dps_packed(f"{name.global_symbol}{suffix}", relax.Tuple([*first, *inputs.fields]), types)


def _with_joins_apart(builder: relax.BlockBuilder, block: relax.DataflowBlock) -> relax.DataflowBlock:
    """Return the block with joining calls replaced; the builder's module gets their PrimFuncs."""
    steps = _steps(block)
    before = {call: steps.upstream(steps.needs[call]) for call in steps.calls}
    replies: list[set[int]] = []  # the calls for whose replies a step waits
    found = []
    for i, binding in enumerate(steps.bindings):
        replies.append(set[int]().union(*(replies[n] for n in steps.needs[i]), {i} if i in before else ()))
        # An operand from which the call's inputs are computed is there before the request.
        joins = any(
            not any(n in before[call] for call in replies[i] - replies[n])
            for n in steps.needs[i]
            if replies[n] < replies[i] and n not in steps.constant
        )
        found.append(_isolated(builder, binding) if joins and is_call_of(binding.value, CALL_TIR) else binding)
    return relax.DataflowBlock(found)


def _isolated(builder: relax.BlockBuilder, binding: relax.Binding) -> relax.Binding:
    call = binding.value
    callee, *rest = call.args
    own = builder.add_func(unfusable(builder.get()[callee]), f"{callee.name_hint}_joining")
    return relax.VarBinding(binding.var, ir.Call(call.op, [own, *rest], call.attrs, call.ty_args))


def symbol_of(value: relax.Expr) -> str | None:
    """Return the symbol of the region that an expression calls as a whole; None if it calls none."""
    if not is_call_of(value, CALL_PACKED):
        return None
    symbol = str(value.args[0].global_symbol)
    return symbol if symbol.startswith(f"{CODEGEN}_") and not symbol.endswith((SEND, RECEIVE)) else None


def _device_functions(mod: tvm.IRModule) -> list[tuple[ir.GlobalVar, relax.Function]]:
    """Return the functions that call regions."""
    return [
        (gv, function)
        for gv, function in mod.functions.items()
        if isinstance(function, relax.Function)
        and isinstance(function.body, relax.SeqExpr)
        and any(symbol_of(b.value) is not None for block in function.body.blocks for b in block.bindings)
    ]


def _may_move(block: relax.BindingBlock) -> bool:
    """Return whether only their needs order a block's bindings. (A match at run time defines extents, which other
    bindings use without naming it.)"""
    return isinstance(block, relax.DataflowBlock) and all(isinstance(b, relax.VarBinding) for b in block.bindings)


def _takes_time(value: relax.Expr) -> bool:
    return is_call_of(value, CALL_TIR) or is_call_of(value, CALL_PACKED)


def _with_blocks(function: relax.Function, blocks: Sequence[relax.BindingBlock]) -> relax.Function:
    body = relax.SeqExpr(list(blocks), function.body.body)
    return relax.Function(function.params, body, function.ret_ty, function.is_pure, function.attrs)


def _updated(mod: tvm.IRModule, functions: Mapping[ir.GlobalVar, relax.Function]) -> tvm.IRModule:
    changed = tvm.IRModule(mod.functions, attrs=mod.attrs)
    for gv, function in functions.items():
        changed[gv] = function
    # New calls have no type yet, and later passes rely on it.
    return relax.transform.Normalize()(changed)
