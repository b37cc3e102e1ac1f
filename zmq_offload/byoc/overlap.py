"""Let the device's own work, and requests of several offloaded parts, go on at the same time.

A virtual machine calls one function after the other. Where something could run while an offloaded part is away, its one
call becomes two: one that sends the inputs and leaves a number in a token, and one that waits for the outputs. The
first is called as soon as the inputs exist, the second when nothing else is left to do without it.

Two passes, around the fusion of operators: `isolate_joins` before it, `overlap` after it.
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

_OPAQUE = 8
"""TVM's OpPatternKind for a function that is not fused with anything."""

CONSTANT, SENDING, NEEDED_TO_SEND, WORK, RECEIVING = range(5)
"""Kinds of steps, in the order in which they are taken when several could be."""


def isolate_joins(mod: tvm.IRModule) -> tvm.IRModule:
    """The module with what joins an answer and the device's own results not to be fused with what computes the latter:
    fused, that would wait for the answer, too."""
    builder = relax.BlockBuilder(tvm.IRModule(mod.functions, attrs=mod.attrs))
    functions = {}
    for gv, function in _device_functions(mod):
        blocks = [_with_joins_apart(builder, b) if _may_move(b) else b for b in function.body.blocks]
        functions[gv] = _with_blocks(function, blocks)
    return _updated(builder.get(), functions)


def overlap(mod: tvm.IRModule) -> tvm.IRModule:
    """The module with calls of offloaded parts taken in two where something can happen in between."""
    functions = {}
    for gv, function in _device_functions(mod):
        blocks = [_overlapped(b) if _may_move(b) else b for b in function.body.blocks]
        functions[gv] = _with_blocks(function, blocks)
    return _updated(mod, functions)


@dataclass(frozen=True)
class _Steps:
    """A block's bindings by their numbers: what each needs, which call offloaded parts, which are constant."""

    bindings: list[relax.Binding]
    needs: list[set[int]]
    calls: list[int]
    constant: set[int]

    def upstream(self, steps: Iterable[int]) -> set[int]:
        """The steps and all that they need."""
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
    count, calls = len(steps.bindings), steps.calls
    # Of an offloaded part, step i is the sending; the receiving is a step of its own, which is what others need.
    receiving = {call: count + at for at, call in enumerate(calls)}
    needs = [{receiving.get(n, n) for n in needed} for needed in steps.needs] + [{call} for call in calls]
    kinds = _kinds(steps) + [RECEIVING] * len(calls)
    order = topological_order(needs, kinds)
    place = {step: at for at, step in enumerate(order)}

    def waits(call: int) -> bool:
        between = order[place[call] + 1 : place[receiving[call]]]
        return any(i >= count or _takes_time(steps.bindings[i].value) for i in between)

    apart = {call for call in calls if waits(call)}
    if not apart:
        return block
    found: list[relax.Binding] = []
    tokens = {call: relax.DataflowVar(f"token_{at}", relax.TensorType([], "int64")) for at, call in enumerate(calls)}
    for i in order:
        call = calls[i - count] if i >= count else i
        binding = steps.bindings[call]
        if call in apart:
            token = tokens[call]
            if i < count:
                found.append(relax.VarBinding(token, _half(binding.value, SEND, [], token.ty)))
            else:
                found.append(relax.VarBinding(binding.var, _half(binding.value, RECEIVE, [token], binding.value.ty)))
        elif i < count:
            found.append(binding)
    return relax.DataflowBlock(found)


def _kinds(steps: _Steps) -> list[int]:
    feeding = steps.upstream(n for call in steps.calls for n in steps.needs[call])
    return [
        SENDING if i in steps.calls else CONSTANT if i in steps.constant else NEEDED_TO_SEND if i in feeding else WORK
        for i in range(len(steps.bindings))
    ]


def _half(call: ir.Call, suffix: str, first: Sequence[relax.Expr], returns: relax.Type) -> ir.Call:
    """A call of one half. The inputs go to both: their memory is in use until the answer is there."""
    name, inputs = call.args
    types = list(returns.fields) if isinstance(returns, relax.TupleType) else returns
    return relax.op.call_dps_packed(f"{name.global_symbol}{suffix}", relax.Tuple([*first, *inputs.fields]), types)


def _with_joins_apart(builder: relax.BlockBuilder, block: relax.DataflowBlock) -> relax.DataflowBlock:
    """The block with those calls replaced; what they call is added to the builder's module."""
    steps = _steps(block)
    before = {call: steps.upstream(steps.needs[call]) for call in steps.calls}
    answers: list[set[int]] = []  # those for which a step waits
    found = []
    for i, binding in enumerate(steps.bindings):
        answers.append(set[int]().union(*(answers[n] for n in steps.needs[i]), {i} if i in before else ()))
        # What an offloaded part is called with, directly or not, is computed before it anyway.
        joins = any(
            not any(n in before[call] for call in answers[i] - answers[n])
            for n in steps.needs[i]
            if answers[n] < answers[i] and n not in steps.constant
        )
        found.append(_apart(builder, binding) if joins and _is_call_of(binding.value, "relax.call_tir") else binding)
    return relax.DataflowBlock(found)


def _apart(builder: relax.BlockBuilder, binding: relax.Binding) -> relax.Binding:
    call = binding.value
    callee, *rest = call.args
    function = builder.get()[callee].with_attr("op_pattern", _OPAQUE)
    own = builder.add_func(function, f"{callee.name_hint}_joining")
    return relax.VarBinding(binding.var, ir.Call(call.op, [own, *rest], call.attrs, call.ty_args))


def symbol_of(value: relax.Expr) -> str | None:
    """The symbol of the offloaded part that an expression calls."""
    if not _is_call_of(value, "relax.call_dps_packed"):
        return None
    symbol = str(value.args[0].global_symbol)
    return symbol if symbol.startswith(f"{CODEGEN}_") and not symbol.endswith((SEND, RECEIVE)) else None


def _device_functions(mod: tvm.IRModule) -> list[tuple[ir.GlobalVar, relax.Function]]:
    """Those that call offloaded parts."""
    return [
        (gv, function)
        for gv, function in mod.functions.items()
        if isinstance(function, relax.Function)
        and isinstance(function.body, relax.SeqExpr)
        and any(symbol_of(b.value) is not None for block in function.body.blocks for b in block.bindings)
    ]


def _may_move(block: relax.BindingBlock) -> bool:
    """Whether the order of a block's steps is free but for what they need of each other. (What is matched at run time
    names extents, which others use without a word.)"""
    return isinstance(block, relax.DataflowBlock) and all(isinstance(b, relax.VarBinding) for b in block.bindings)


def _takes_time(value: relax.Expr) -> bool:
    return _is_call_of(value, "relax.call_tir") or _is_call_of(value, "relax.call_dps_packed")


def _is_call_of(value: relax.Expr, name: str) -> bool:
    return isinstance(value, ir.Call) and isinstance(value.op, ir.Op) and value.op.name == name


def _with_blocks(function: relax.Function, blocks: Sequence[relax.BindingBlock]) -> relax.Function:
    body = relax.SeqExpr(list(blocks), function.body.body)
    return relax.Function(function.params, body, function.ret_ty, function.is_pure, function.attrs)


def _updated(mod: tvm.IRModule, functions: Mapping[ir.GlobalVar, relax.Function]) -> tvm.IRModule:
    changed = tvm.IRModule(mod.functions, attrs=mod.attrs)
    for gv, function in functions.items():
        changed[gv] = function
    # Calls that are made by hand have no type; a pass that fills it in later trips over the change.
    return relax.transform.Normalize()(changed)
