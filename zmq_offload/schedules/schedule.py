"""The scheduling pass: choose a rule for each PrimFunc, and leave the others to TVM's default.

A function is parsed into stages (`stages.parse`). If exactly one stage has a kernel, that kernel's rule schedules the
function, with the later stages as its epilogue. If there is none, or the rule raises Unsupported, `generic` makes loop
nests of the stages. If `generic` raises Unsupported, too, the function stays as it is.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

import tvm
from tvm import tirx
from tvm.ir import Expr, IRModule, Var

from zmq_offload.schedules import products
from zmq_offload.schedules.convolutions import conv2d
from zmq_offload.schedules.depthwise import depthwise
from zmq_offload.schedules.emit import FlatBuffer, finish, sequence, when, with_buffers
from zmq_offload.schedules.epilogue import Epilogue
from zmq_offload.schedules.generic import generic
from zmq_offload.schedules.integers import convolutions as integer_convolutions
from zmq_offload.schedules.integers import depthwise as integer_depthwise
from zmq_offload.schedules.integers import products as integer_products
from zmq_offload.schedules.integers.byte_lookup import lookup
from zmq_offload.schedules.machine import Machine
from zmq_offload.schedules.nests import NestContext, elementwise
from zmq_offload.schedules.rewrite import Unsupported, constant, loads
from zmq_offload.schedules.stages import Inliner, Program, Stage, parse
from zmq_offload.schedules.statements import with_safe_values
from zmq_offload.schedules.transposed import transposed
from zmq_offload.schedules.tvm_internals import SCHEDULED
from zmq_offload.schedules.weights import STORED

logger = logging.getLogger(__name__)

_INTEGER_KERNELS = ("integer_dense", "integer_conv2d", "integer_depthwise")
KERNELS = ("conv2d", "depthwise", "transposed", "dense", "matmul", "lookup", *_INTEGER_KERNELS)
"""Kernels, as `operators` annotates their blocks. (Blocks of the kernel "pad" belong to those of convolutions.)"""

Rule = Callable[[tirx.PrimFunc], tirx.PrimFunc | None]
"""Returns a scheduled function, or None to leave it to the next rule."""


def schedule(func: tirx.PrimFunc, machine: Machine) -> tirx.PrimFunc | None:
    """Return `func` scheduled for `machine`, or None if no rule takes it."""
    try:
        program = parse(func)
        try:
            body = _where_any(program.stages[-1], _with_kernel(program, machine))
        except Unsupported:
            body = generic(program, machine)
    except Unsupported as reason:
        logger.debug("%s keeps TVM's default schedule: %s", func.attrs.get("global_symbol", "a function"), reason)
        return None
    return finish(func, body)


def _where_any(result: Stage, body: tirx.Stmt) -> tirx.Stmt:
    """A kernel's nest only where its result has elements: it divides by symbolic extents, and TVM and LLVM compute such
    quotients before the loops that use them. A division by 0 ends the process."""
    symbolic = [extent for extent in result.extents if constant(extent) is None]
    return when(tirx.all(*(extent > 0 for extent in symbolic)), body) if symbolic else body


def _with_kernel(program: Program, machine: Machine) -> tirx.Stmt:
    anchors = [s for s in program.stages if s.kernel in KERNELS]
    if len(anchors) != 1:
        raise Unsupported("no kernel, or more than one")
    stage = anchors[0]
    program = _kernel_first(program, stage)
    at = program.stages.index(stage)
    if any(s.kernel != "pad" for s in program.stages[:at]) or any(s.reduce_axes for s in program.stages[at + 1 :]):
        raise Unsupported("a stage before the kernel, or a reduction after it")
    final = program.stages[-1]
    try:
        return _kernel(machine, program, stage, Epilogue(Inliner(program, [stage.buffer]), stage, final))
    except Unsupported:
        if final is stage:
            raise
    # The epilogue does not fit the kernel's nest: store the kernel's result and compute the rest in a second nest.
    result = FlatBuffer(str(stage.buffer.name), stage.extents, str(stage.buffer.dtype))

    def read(buffer: Var, indices: list[Expr]) -> Expr | None:
        return result.load(indices) if buffer.same_as(stage.buffer) else None

    first = _kernel(machine, program, stage, Epilogue(Inliner(program, []), stage, stage, result.store))
    context = NestContext(machine, lambda: Inliner(program, [final.buffer], read))
    return with_buffers([result.buffer], sequence([first, elementwise(context, final)]))


def _kernel_first(program: Program, kernel: Stage) -> Program:
    """Move the stages that the kernel does not need after it: scalars of its epilogue, which TVM may compute before."""
    needed, wanted = [], [kernel]
    while wanted:
        stage = wanted.pop()
        needed.append(stage)
        wanted += [p for p in map(program.producer, (e.source for e in loads(stage.value))) if p and p not in needed]
    stages = program.stages
    first, rest = [s for s in stages if s in needed], [s for s in stages if s not in needed]
    return replace(program, stages=[*first, *rest])


def _kernel(machine: Machine, program: Program, stage: Stage, epilogue: Epilogue) -> tirx.Stmt:
    if stage.kernel == "integer_dense":
        return integer_products.dense(machine, stage, epilogue)
    if stage.kernel == "integer_conv2d":
        return integer_convolutions.conv2d(machine, program, stage, epilogue)
    if stage.kernel == "integer_depthwise":
        return integer_depthwise.depthwise(machine, program, stage, epilogue)
    if stage.kernel == "lookup":
        return lookup(machine, stage)
    *operands, weight = (e.source for e in loads(stage.value))
    if any(str(b.dtype) != "float32" for b in (stage.buffer, *operands)) or str(weight.dtype) not in STORED:
        raise Unsupported("a kernel of another datatype than float32")
    if stage.kernel == "conv2d":
        return conv2d(machine, program, stage, epilogue)
    if stage.kernel == "depthwise":
        return depthwise(machine, program, stage, epilogue)
    if stage.kernel == "transposed":
        return transposed(machine, stage, epilogue)
    if stage.kernel == "dense":
        return products.dense(machine, stage, epilogue)
    return products.matmul(machine, stage, epilogue)


def schedule_or_default(func: tirx.PrimFunc, machine: Machine, name: str) -> tirx.PrimFunc | None:
    """Return `schedule(func, machine)`, or None with a warning if a rule fails."""
    try:
        return schedule(func, machine)
    except Exception:  # a faulty rule costs speed, not the model; the tests make it an error
        logger.warning("a schedule rule failed on %s; it keeps TVM's default schedule", name, exc_info=True)
        return None


def scheduled(mod: IRModule, machine: Machine, first: Rule | None = None) -> IRModule:
    """Schedule the PrimFuncs of `mod`.

    Takes fused functions that are not lowered: a root block with one block for each stage. Functions marked as
    scheduled are left alone, as are Relax functions. `first`, if given, is asked before the rules of this package;
    tuning passes what it found. Returns a module with the same functions; those that a rule took are marked as
    scheduled, the others keep their loops. In all of them maxima and minima keep NaN, and integers divided by zero do
    not trap (`statements.with_safe_values`).
    """
    result = IRModule(dict(mod.functions), attrs=mod.attrs, global_infos=mod.global_infos)
    for name, func in mod.functions.items():
        if isinstance(func, tirx.PrimFunc) and not func.attrs.get(SCHEDULED, False):
            tuned = first(func) if first is not None else None
            done = None if tuned is None else with_safe_values(tuned)
            if done is None:
                done = schedule_or_default(func, machine, str(name.name_hint))
            if done is None:
                result[name] = with_safe_values(func)
            else:
                result[name] = done.with_attr(SCHEDULED, True)
    return result


def schedule_pass(machine: Machine, first: Rule | None = None) -> tvm.ir.transform.Pass:
    """Return `scheduled` as a module pass."""

    def apply(mod: IRModule, _: tvm.ir.transform.PassContext) -> IRModule:
        return scheduled(mod, machine, first)

    return tvm.ir.transform.module_pass(apply, opt_level=0, name="zmq_offload.schedule")
