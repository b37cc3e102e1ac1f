"""Vectors of bytes: as many as a register holds where nothing wider is computed, and transposes in registers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from tvm import tirx
from tvm.ir import Expr, TensorLoad, Var

from zmq_offload.schedules.emit import index, local, ramp, sequence, with_buffers
from zmq_offload.schedules.machine import Machine
from zmq_offload.schedules.rewrite import Rewriter, children, uses

_BYTES = ("int8", "uint8")
TILE = 16
"""Rows and columns of a transpose in registers: the bytes of the narrowest registers."""


def byte_machine(machine: Machine, value: Expr, dtype: str) -> Machine:
    """Return `machine` with four times the lanes, if all values that `value` combines to a `dtype` are bytes."""
    return replace(machine, lanes=machine.lanes * 4) if dtype in _BYTES and _only_bytes(value) else machine


def _only_bytes(value: Expr) -> bool:
    if isinstance(value, TensorLoad | tirx.IntImm):
        return str(value.ty) in (*_BYTES, "bool")
    if isinstance(value, tirx.Cast | Var):
        return False
    parts = children(value)
    parts = parts[1:] if len(parts) == 3 else parts  # without the condition of a selection
    return str(value.ty) in _BYTES and all(map(_only_bytes, parts))


def is_byte_transpose(value: Expr, across: Var, along: Var) -> bool:
    """Return whether `value` is a byte, next to its neighbor along `across`; `along` is in another index."""
    if not isinstance(value, TensorLoad) or str(value.source.dtype) not in _BYTES:
        return False
    *outer, last = value.indices
    return last.same_as(across) and any(uses(i, along) for i in outer) and not any(uses(i, across) for i in outer)


def transposed_tile(
    value: TensorLoad, across: Var, along: Var, at: tuple[Expr, Expr], store: Callable[[int, Expr], tirx.Stmt]
) -> tirx.Stmt:
    """Emit a tile of TILE x TILE bytes from position `at` (across, along) on: `store(row, vector)` for each row.

    Four times, halves of the vectors are interleaved in pairs.
    """
    buffers: list[Var] = []
    statements: list[tirx.Stmt] = []
    dtype = str(value.source.dtype)

    def keep(vector: Expr) -> Expr:
        buffers.append(local("bytes", [TILE], dtype))
        statements.append(tirx.BufferStore(buffers[-1], vector, [ramp(0, TILE)]))
        return tirx.BufferLoad(buffers[-1], [ramp(0, TILE)])

    def column(j: int) -> Expr:
        indices = [Rewriter({along: at[1] + j}).visit(i) for i in value.indices[:-1]]
        return keep(tirx.BufferLoad(value.source, [*indices, ramp(at[0], TILE)]))

    vectors: Sequence[Expr] = [column(j) for j in range(TILE)]
    half = TILE // 2
    while half:
        vectors = [keep(v) for k in range(TILE // 2) for v in _interleaved(vectors[k], vectors[k + TILE // 2])]
        half //= 2
    return with_buffers(buffers, sequence([*statements, *(store(i, v) for i, v in enumerate(vectors))]))


def _interleaved(a: Expr, b: Expr) -> list[Expr]:
    """Return the lower halves of two vectors, element by element, and the upper ones."""
    halves = []
    for start in (0, TILE // 2):
        order = [index(start + i + side * TILE) for i in range(TILE // 2) for side in range(2)]
        halves.append(tirx.Shuffle([a, b], order))
    return halves
