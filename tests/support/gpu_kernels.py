"""Lower a scheduled function to CUDA's kernels without a GPU: their code, launches and temporary buffers."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass

import tvm
import tvm_ffi
from tvm import tirx
from tvm.ir.instrument import pass_instrument

AXES = ("x", "y", "z")


@dataclass(frozen=True)
class Launch:
    """A kernel that the host starts: `arguments` are names of buffers, in the order of the kernel's parameters."""

    kernel: str
    arguments: tuple[str, ...]
    grid: tuple[int, int, int]
    block: tuple[int, int, int]


@dataclass(frozen=True)
class Kernels:
    """A function after lowering.

    `parameters` are names, shapes and datatypes of its buffers, `temporaries` those that it allocates.
    """

    parameters: tuple[tuple[str, tuple[int, ...], str], ...]
    temporaries: tuple[tuple[str, tuple[int, ...], str], ...]
    launches: tuple[Launch, ...]
    code: tvm.IRModule
    source: str


def lowered(function: tirx.PrimFunc, target: tvm.target.Target) -> Kernels:
    """Lower a scheduled function with static shapes by the passes that a build uses."""
    before: list[tvm.IRModule] = []

    @pass_instrument
    class Keep:
        def run_after_pass(self, mod: tvm.IRModule, info: tvm.transform.PassInfo) -> None:
            if info.name == "tirx.SplitHostDevice":
                before.append(mod)

    mod = tirx.transform.BindTarget(target)(tvm.IRModule({"f": function.with_attr("global_symbol", "f")}))
    passes, _, finish = tvm.tirx.get_tir_pipeline("s_tir")
    with tvm.transform.PassContext(opt_level=3, instruments=[Keep()]), target:
        done = passes(mod)
    build = importlib.import_module("tvm.tirx.build")
    _, devices = build.split_host_device_mods(done)
    ((kind, code),) = devices.items()
    code = finish()(code)
    host = before[0]["f"]
    temporaries, launches = _host(host)
    parameters = tuple((p.name, _shape(p.ty.shape), str(p.ty.dtype)) for p in host.params)
    return Kernels(parameters, temporaries, launches, code, str(build.codegen_build(code, kind).inspect_source()))


def _shape(shape: Sequence[tvm.ir.Expr]) -> tuple[int, ...]:
    return tuple(int(extent) for extent in shape)


def _host(host: tirx.PrimFunc) -> tuple[tuple[tuple[str, tuple[int, ...], str], ...], tuple[Launch, ...]]:
    """The buffers that the host allocates, and its launches, by the names of buffers."""
    own: dict[tirx.Var, tirx.Var] = {}
    temporaries: list[tuple[str, tuple[int, ...], str]] = []
    launches: list[Launch] = []

    def allocated(node: tirx.AllocBuffer) -> None:
        temporaries.append((node.buffer.name, _shape(node.buffer.ty.shape), str(node.buffer.ty.dtype)))

    def declared(node: tirx.DeclBuffer) -> None:
        own[node.buffer] = node.data.args[0]

    def evaluated(node: tirx.Evaluate) -> None:
        call = node.value
        if not isinstance(call, tvm.ir.Call) or call.op.name != "tirx.call_ffi_kernel":
            raise ValueError(f"the host does more than it should: {node}")
        name, *rest = call.args
        along = list(call.attrs.launch_params)
        buffers, extents = rest[: -len(along)], rest[-len(along) :]
        sizes = {str(axis): int(extent) for axis, extent in zip(along, extents, strict=True)}
        grid, block = (tuple(sizes.get(f"{kind}.{axis}", 1) for axis in AXES) for kind in ("blockIdx", "threadIdx"))
        names = tuple(_root(own, b.args[0]).name for b in buffers)
        launches.append(Launch(str(name.value), names, grid, block))

    tvm_ffi.structural_walk(
        host.body,
        [(tirx.AllocBuffer, allocated), (tirx.DeclBuffer, declared), (tirx.Evaluate, evaluated)],
        order="pre",
    )
    return tuple(temporaries), tuple(launches)


def _root(own: dict[tirx.Var, tirx.Var], buffer: tirx.Var) -> tirx.Var:
    while buffer in own and own[buffer] is not buffer:
        buffer = own[buffer]
    return buffer
