"""Dot products of small integers: the instructions of a CPU, the form of the operands they read, packed weights.

Each 32-bit lane of a vector of sums takes `group` products at once. The left operand is a group of neighboring values
of one row, the same for all lanes; the right one holds a group for each column. All sums are exact: none of the
instructions here saturates.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from tvm import tirx
from tvm.ir import Expr

from zmq_offload.schedules.emit import splat
from zmq_offload.schedules.machine import Machine
from zmq_offload.schedules.operators import Array
from zmq_offload.schedules.tiles import Tile, choose_tile

INTEGERS = ("uint8", "int8")
"""Datatypes of activations. Weights are int8."""

# LLVM's names by the bits of a vector.
_VPDPBUSD = {bits: f"llvm.x86.avx512.vpdpbusd.{bits}" for bits in (128, 256, 512)}
_PMADDWD = {128: "llvm.x86.sse2.pmadd.wd", 256: "llvm.x86.avx2.pmadd.wd", 512: "llvm.x86.avx512.pmaddw.d.512"}
_PMADDUBSW = {
    128: "llvm.x86.ssse3.pmadd.ub.sw.128",
    256: "llvm.x86.avx2.pmadd.ub.sw",
    512: "llvm.x86.avx512.pmaddubs.w.512",
}
# The largest sum of two weights of one sign whose products with 255 fit int16.
_PAIR = 128
# The narrowest vector of sums that the instructions take.
_LEAST = 4


@dataclass(frozen=True)
class DotProduct:
    """How a machine sums products of activations of one datatype with int8 weights.

    `operand` is the datatype in which it reads activations, after `shift` is added to them. A shift changes each sum by
    `shift` times the sum of the column's weights; the packed weights end with minus that, for each column.
    """

    instruction: str
    group: int
    operand: str
    shift: int = 0

    @property
    def extra(self) -> int:
        """Groups after the weights that hold the start of the sums, four bytes for each column."""
        return 4 // self.group if self.shift else 0

    @property
    def operand_bytes(self) -> int:
        """Size of an activation as the instructions read it."""
        return 2 if self.operand == "int16" else 1

    def steps(self, depth: int) -> int:
        """Return how many groups `depth` values fill."""
        return -(-depth // self.group)

    def convert(self, value: Expr, width: int = 1) -> Expr:
        """Return activations as the instructions read them."""
        dtype, wanted = str(value.ty), self.operand if width == 1 else f"{self.operand}x{width}"
        if self.shift:
            # Adding 128 inverts the sign bit, for signed and unsigned numbers alike.
            sign = tirx.const(128, dtype) if dtype.startswith("uint8") else tirx.const(-128, dtype)
            return tirx.reinterpret(wanted, tirx.BitwiseXor(value, sign))
        return value if dtype == wanted else tirx.Cast(wanted, value)

    def left(self, values: Expr) -> Expr:
        """Return a group of activations as one number, to be broadcast."""
        if self.group == 1:
            return tirx.Cast("int32", values)
        bits = self.group * self.operand_bytes * 8
        return tirx.reinterpret(f"int{bits}", values)

    def spread(self, left: Expr, width: int) -> Expr:
        """Return a group in every lane."""
        value = splat(left, width)
        return value if self.group == 1 else tirx.reinterpret(f"{self.operand}x{width * self.group}", value)

    def update(self, total: Expr, left: Expr, right: Expr, width: int) -> Expr:
        """Return `total` plus the products of `left`, from `spread`, with `width` groups of weights."""
        bits, dtype = width * 32, f"int32x{width}"
        if self.instruction == "vpdpbusd":
            return tirx.call_llvm_pure_intrin(dtype, _VPDPBUSD[bits], total, left, right)
        if self.instruction == "pmaddwd":
            wide = tirx.Cast(f"int16x{width * 2}", right)
            return tirx.Add(total, tirx.call_llvm_pure_intrin(dtype, _PMADDWD[bits], left, wide))
        if self.instruction == "pmaddubsw":
            pairs = tirx.call_llvm_pure_intrin(f"int16x{width * 2}", _PMADDUBSW[bits], left, right)
            ones = splat(tirx.IntImm("int16", 1), width * 2)
            return tirx.Add(total, tirx.call_llvm_pure_intrin(dtype, _PMADDWD[bits], pairs, ones))
        if self.instruction in ("sdot", "usdot"):
            name = f"llvm.aarch64.neon.{self.instruction}"
            return tirx.call_llvm_pure_intrin(dtype, name, total, left, right)
        if self.instruction == "smull":
            both = tirx.call_llvm_pure_intrin(f"int16x{width * 2}", "llvm.aarch64.neon.smull", left, right)
            return tirx.Add(total, tirx.call_llvm_pure_intrin(dtype, "llvm.aarch64.neon.saddlp", both))
        return tirx.Add(total, tirx.Mul(left, tirx.Cast(dtype if width > 1 else "int32", right)))

    def vectors(self, columns: int, machine: Machine) -> list[tuple[int, int]]:
        """Return (offset, width) of the vectors of sums that cover `columns`; the last may reach further."""
        whole, rest = divmod(columns, machine.lanes)
        vectors = [(i * machine.lanes, machine.lanes) for i in range(whole)]
        if rest:
            vectors.append((whole * machine.lanes, max(_LEAST, 1 << (rest - 1).bit_length())))
        return vectors


def dot_product(machine: Machine, activations: str, group: int | None = None) -> DotProduct:
    """Return how `machine` sums products of activations of this datatype with int8 weights.

    `group` is that of packed weights, if they are: groups of four are for small weights where others have two.
    """
    kind = machine.integers
    if kind == "pmaddwd" and group == 4:
        return DotProduct("pmaddubsw", 4, "uint8", 0 if activations == "uint8" else 128)
    if kind == "vpdpbusd":  # unsigned times signed
        return DotProduct(kind, 4, "uint8", 0 if activations == "uint8" else 128)
    if kind == "pmaddwd":  # 16 bits, signed
        return DotProduct(kind, 2, "int16")
    if kind == "usdot":
        return DotProduct("usdot" if activations == "uint8" else "sdot", 4, activations)
    if kind in ("sdot", "smull"):  # signed times signed
        return DotProduct(kind, 4 if kind == "sdot" else 2, "int8", 0 if activations == "int8" else -128)
    return DotProduct(kind, 1, activations)


def dot_product_of(machine: Machine, activations: str, rows: Array) -> DotProduct:
    """Return how `machine` sums products with these weights, (..., depth).

    `pmaddubsw` adds two products in int16 and saturates. It is used where no pair of weights is large enough for that,
    as in models that are quantized to 7 bits (`reduce_range`).
    """
    if machine.integers != "pmaddwd" or machine.lanes < 8:
        return dot_product(machine, activations)
    wide = np.pad(rows.astype("int32"), [(0, 0)] * (rows.ndim - 1) + [(0, rows.shape[-1] % 2)])
    pairs = wide.reshape(*wide.shape[:-1], -1, 2)
    largest = max(int(np.maximum(sign * pairs, 0).sum(-1).max(initial=0)) for sign in (1, -1))
    return dot_product(machine, activations, 4 if largest <= _PAIR else None)


def lane_product(machine: Machine, activations: str) -> DotProduct:
    """Return how `machine` sums products where each lane has a group of its own, as in a depthwise convolution."""
    dot = dot_product(machine, activations)
    return DotProduct("widen", 1, activations) if dot.instruction == "smull" else dot


def tile_of(machine: Machine, dot: DotProduct, rows: int | None, columns: int) -> Tile:
    """Choose a tile; 16-bit products need one more register for what they add, and another one for ones."""
    if dot.instruction in ("pmaddwd", "pmaddubsw"):
        machine = replace(machine, registers=machine.registers - (1 if dot.instruction == "pmaddwd" else 2))
    return choose_tile(replace(machine, lane_factors=False), rows, columns)


def pack(columns_first: Array, dot: DotProduct, lanes: int, phases: int = 1) -> Array:
    """Pack int8 weights (sets, columns, rows, depth) as (sets * chunks, rows * steps + extra, lanes, group).

    Zeros fill the last chunk of each set, and the last group of each row. The sums' start follows, if there is a shift.
    The rows may hold the same weights in several `phases`, of which a sum takes one.
    """
    sets, columns, rows, depth = columns_first.shape
    chunks, steps = -(-columns // lanes), dot.steps(depth)
    full = np.zeros((sets, chunks * lanes, rows, steps * dot.group), "int8")
    full[:, :columns, :, :depth] = columns_first
    packed = full.reshape(sets * chunks, lanes, rows * steps, dot.group).transpose(0, 2, 1, 3)
    if not dot.shift:
        return np.ascontiguousarray(packed)
    sums = full.sum(axis=(2, 3), dtype="int64").reshape(sets * chunks, lanes)
    start = (-dot.shift * sums // phases).astype("<i4").view("int8").reshape(sets * chunks, dot.extra, lanes, dot.group)
    return np.concatenate([packed, start], axis=1)
