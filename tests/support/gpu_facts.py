"""Facts about kernels for GPUs that their code tells, without a GPU. They are counts, and not times."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import tvm
import tvm_ffi
from tvm import tirx
from tvm.ir import TensorLoad

from tests.support.gpu_kernels import AXES, Kernels, Launch

SECTOR = 32
"""Bytes of global memory that a GPU loads or stores at once."""

WARP = 32


@dataclass(frozen=True)
class Facts:
    """One kernel. Accesses are those of all threads, where each condition holds and each loop runs to its end.

    `sectors` are the sectors of global memory that the warps touch, by the addresses of a block's first warp; `ideal`
    would be their number if the lanes of a warp used neighboring elements.
    """

    kernel: str
    threads: int
    blocks: int
    shared_bytes: int
    sectors: int
    ideal: int
    shared_accesses: int
    barriers: int

    @property
    def bytes_moved(self) -> int:
        return self.sectors * SECTOR


def facts(kernels: Kernels) -> list[Facts]:
    """The facts of a function's kernels, in the order of their launches."""
    code = {gv.name_hint: function for gv, function in kernels.code.functions.items()}
    return [_facts(launch, code[launch.kernel]) for launch in kernels.launches]


class _Counts:
    def __init__(self, launch: Launch) -> None:
        self.sectors = self.ideal = self.shared = self.shared_bytes = self.barriers = 0.0
        lanes = np.arange(min(WARP, prod(launch.block)))
        x, y, _ = launch.block
        self.threads = {"x": lanes % x, "y": lanes // x % y, "z": lanes // (x * y)}
        self.values: dict[tirx.Var, Any] = {}
        self.warps = -(-prod(launch.block) // WARP) * prod(launch.grid)


def _facts(launch: Launch, function: tirx.PrimFunc) -> Facts:
    counts = _Counts(launch)
    _count(function.body, 1, counts)
    return Facts(
        launch.kernel,
        prod(launch.block),
        prod(launch.grid),
        int(counts.shared_bytes),
        int(counts.sectors),
        int(counts.ideal),
        int(counts.shared),
        int(counts.barriers),
    )


def _count(node: tvm.Object, times: float, counts: _Counts) -> None:
    """Add what a statement does to the counts. It runs `times` times in a warp."""
    if isinstance(node, tirx.For):
        counts.values[node.loop_var] = int(node.min)
        _count(node.body, times * int(node.extent), counts)
    elif isinstance(node, tirx.AttrStmt):
        if node.attr_key == "thread_extent":
            kind, _, axis = str(node.node.thread_tag).partition(".")
            counts.values[node.node.var] = counts.threads[axis] if kind == "threadIdx" and axis in AXES else 0
        _count(node.body, times, counts)
    elif isinstance(node, tirx.SeqStmt):
        for part in node:
            _count(part, times, counts)
    elif isinstance(node, tirx.IfThenElse):
        _reads(node.condition, times, counts)
        _count(node.then_case, times, counts)
        if node.else_case is not None:
            _count(node.else_case, times, counts)
    elif isinstance(node, tirx.AllocBuffer):
        if _scope(node.buffer).startswith("shared"):
            counts.shared_bytes += prod(int(e) for e in node.buffer.ty.shape) * _size(node.buffer)
    elif isinstance(node, tirx.Bind):
        _reads(node.value, times, counts)
        counts.values[node.var] = _value(node.value, counts.values)
    elif isinstance(node, tirx.BufferStore):
        _access(node.buffer, node.indices, times, counts)
        for index in node.indices:
            _reads(index, times, counts)
        _reads(node.value, times, counts)
    elif isinstance(node, tirx.Evaluate):
        if isinstance(node.value, tvm.ir.Call) and node.value.op.name == "tirx.tvm_storage_sync":
            counts.barriers += times
        _reads(node.value, times, counts)


def _reads(expr: tvm.Object, times: float, counts: _Counts) -> None:
    def load(node: TensorLoad) -> None:
        _access(node.source, node.indices, times, counts)

    tvm_ffi.structural_walk(expr, [(TensorLoad, load)], order="post")


def _access(buffer: tirx.Var, indices: Any, times: float, counts: _Counts) -> None:
    scope = _scope(buffer)
    (index,) = indices
    lanes = int(index.lanes) if isinstance(index, tirx.Ramp) else 1
    if scope.startswith("shared"):
        counts.shared += times * counts.warps * WARP
    elif scope in ("", "global"):
        first = np.broadcast_to(_value(index, counts.values), len(counts.threads["x"]))
        size = _size(buffer)
        touched = np.concatenate([(first + lane) * size // SECTOR for lane in range(lanes)])
        counts.sectors += times * counts.warps * len(np.unique(touched))
        counts.ideal += times * counts.warps * -(-len(np.unique(first)) * lanes * size // SECTOR)


def _scope(buffer: tirx.Var) -> str:
    return str(buffer.scope() if callable(getattr(buffer, "scope", None)) else buffer.ty.storage_scope)


def _size(buffer: tirx.Var) -> int:
    return max(1, int(np.dtype(str(buffer.ty.dtype).partition("x")[0]).itemsize))


_BINARY: dict[type, Callable[[Any, Any], Any]] = {
    tirx.Add: np.add,
    tirx.Sub: np.subtract,
    tirx.Mul: np.multiply,
    tirx.FloorDiv: np.floor_divide,
    tirx.FloorMod: np.mod,
    tirx.Div: np.floor_divide,
    tirx.Mod: np.mod,
    tirx.Min: np.minimum,
    tirx.Max: np.maximum,
}


def _value(expr: tvm.Object, values: Mapping[tirx.Var, Any]) -> Any:
    """The value of an index in each lane; 0 for what no index is made of, such as what a kernel reads."""
    if isinstance(expr, tirx.IntImm):
        return int(expr.value)
    if isinstance(expr, tirx.Var):
        return values.get(expr, 0)
    if type(expr) in _BINARY:
        return _BINARY[type(expr)](_value(expr.a, values), _value(expr.b, values))
    if isinstance(expr, tirx.Cast):
        return _value(expr.value, values)
    if isinstance(expr, tirx.Ramp):
        return _value(expr.base, values)
    if isinstance(expr, tvm.ir.Call) and expr.op.name in ("tirx.shift_right", "tirx.shift_left", "tirx.bitwise_and"):
        a, b = (_value(arg, values) for arg in expr.args)
        shift = {"tirx.shift_right": np.right_shift, "tirx.shift_left": np.left_shift}
        return shift.get(expr.op.name, np.bitwise_and)(a, b)
    return 0


# -- what the machine code tells -------------------------------------------------------------------------------------

_FRAME_SIZE, _REGISTERS = 0x11, 0x2F
"""Of the attributes in a cubin's section .nv.info, as NVIDIA's cuobjdump names them."""


def registers(cubin: bytes) -> dict[str, tuple[int, int]]:
    """Registers and bytes on the stack, for spilled registers and local arrays, of each thread, by kernel."""
    offset, size, number = struct.unpack_from("<Q", cubin, 40)[0], *struct.unpack_from("<HH", cubin, 58)
    sections = [struct.unpack_from("<IIQQQQIIQQ", cubin, offset + size * i) for i in range(number)]
    symbols = next(s for s in sections if s[1] == 2)
    names_at = sections[symbols[6]][4]

    def name(index: int) -> str:
        (at,) = struct.unpack_from("<I", cubin, symbols[4] + 24 * index)
        return cubin[names_at + at : cubin.index(b"\0", names_at + at)].decode()

    found: dict[str, list[int]] = {}
    for _, kind, _, _, at, length, _, info, _, _ in sections:
        if kind != 0x70000000 or info:  # the section .nv.info of all kernels
            continue
        end = at + length
        while at < end:
            form, attribute, width = struct.unpack_from("<BBH", cubin, at)
            if form == 4:
                if attribute in (_FRAME_SIZE, _REGISTERS):
                    index, value = struct.unpack_from("<II", cubin, at + 4)
                    found.setdefault(name(index), [0, 0])[attribute == _FRAME_SIZE] = value
                at += width
            at += 4
    return {kernel: (used, stack) for kernel, (used, stack) in found.items()}
