"""Schedule functions for GPUs: by the rules of this package, and by TVM's dlight where those do not apply.

A rule may schedule a function in a way that TVM fails to lower, so that each result is lowered before it is taken. The
next rule is tried if that fails. The last one, of dlight, gives each result of each loop nest to a thread.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import tvm
from tvm import s_tir, tirx
from tvm.ir import IRModule
from tvm.target import Target
from tvm_ffi import structural_map

from zmq_offload.compile.cuda.products import Unsuited
from zmq_offload.compile.cuda.tensorcores import on_tensor_cores
from zmq_offload.compile.cuda.tiles import tiled
from zmq_offload.compile.cuda.windows import mapped, windowed

RULE = "zmq_offload.rule"
"""Attribute of a scheduled function: the name of its rule."""

_OWN = {"tensor cores": on_tensor_cores, "tiles": tiled, "windows": windowed, "maps": mapped}

Rule = tuple[str, Callable[[tirx.PrimFunc, Target], tirx.PrimFunc]]


def scheduled(mod: IRModule, target: Target) -> IRModule:
    """A module whose functions are scheduled. Raises what the last rule raises."""
    done = tvm.IRModule(mod.functions, attrs=mod.attrs, global_infos=mod.global_infos)
    for name, function in mod.functions.items():
        if isinstance(function, tirx.PrimFunc):
            done[name] = schedule(function, target)
    return done


def schedule(function: tirx.PrimFunc, target: Target) -> tirx.PrimFunc:
    """A function as the first rule that can schedules it; as it is if it is scheduled already."""
    if function.attrs is not None and function.attrs.get("tirx.is_scheduled"):
        return function
    *rules, (last, fallback) = _rules()
    for name, rule in rules:
        try:
            found = rule(function, target)
            check_lowers(found, target)
        except Exception:
            continue
        return found.with_attr(RULE, name)
    return fallback(function, target).with_attr(RULE, last)


def check_lowers(function: tirx.PrimFunc, target: Target) -> None:
    """Raises what TVM raises if it cannot make kernels of a scheduled function."""
    passes, _, finish = tirx.get_tir_pipeline("s_tir")
    with target:
        bound = tirx.transform.BindTarget(target)(IRModule({"main": function.with_attr("global_symbol", "main")}))
        kernels = tirx.transform.Filter(_is_kernel)(passes(bound))
        finish()(kernels)


def _is_kernel(function: tirx.PrimFunc) -> bool:
    return bool(function.attrs["target"].kind.name == "cuda")


def _rules() -> Iterator[Rule]:
    for name, own in _OWN.items():
        yield name, _own(own)
    yield from of_dlight()


def of_dlight() -> Iterator[Rule]:
    """TVM's own rules, by name."""
    from tvm.s_tir.dlight import gpu

    for rule in (gpu.Matmul(), gpu.GEMV(), gpu.Reduction(), gpu.GeneralReduction()):
        yield f"dlight {type(rule).__name__}", _of_dlight(rule, _finite_starts)
    yield "dlight Fallback", _of_dlight(gpu.Fallback(), lambda function: function)


def _own(rule: Callable[[tirx.PrimFunc], s_tir.Schedule]) -> Callable[[tirx.PrimFunc, Target], tirx.PrimFunc]:
    def apply(function: tirx.PrimFunc, target: Target) -> tirx.PrimFunc:
        with target:
            return rule(function).mod["main"].with_attr("tirx.is_scheduled", True)

    return apply


def _of_dlight(
    rule: object, prepared: Callable[[tirx.PrimFunc], tirx.PrimFunc]
) -> Callable[[tirx.PrimFunc, Target], tirx.PrimFunc]:
    def apply(function: tirx.PrimFunc, target: Target) -> tirx.PrimFunc:
        from tvm.s_tir import dlight

        with target:
            found = dlight.ApplyDefaultSchedule(rule)(IRModule({"main": prepared(function)}))["main"]
        if found.attrs is None or not found.attrs.get("tirx.is_scheduled"):
            raise Unsuited
        return found

    return apply


def _finite_starts(function: tirx.PrimFunc) -> tirx.PrimFunc:
    """The function with maxima and minima of floats that start at the last finite number.

    TVM computes a maximum by several threads together only if it starts there, and this package starts it at minus
    infinity (`schedules.identities`). Only the maximum of nothing but minus infinities differs.
    """

    def started(block: s_tir.SBlock) -> tvm.Object:
        init, body = block.init, block.body
        if not isinstance(init, tirx.BufferStore) or not isinstance(body, tirx.BufferStore):
            return block
        first = {tirx.Max: tirx.min_value, tirx.Min: tirx.max_value}.get(type(body.value))
        if first is None or not isinstance(init.value, tirx.FloatImm) or not math.isinf(init.value.value):
            return block
        start = tirx.BufferStore(init.buffer, first(str(init.value.ty)), init.indices)
        return s_tir.SBlock(
            block.iter_vars,
            block.reads,
            block.writes,
            block.name_hint,
            body,
            start,
            block.alloc_buffers,
            block.match_buffers,
            block.annotations,
        )

    return function.with_body(structural_map(function.body, (s_tir.SBlock, started)))
