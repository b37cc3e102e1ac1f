"""Loads, products and stores of squares of 16 by tensor cores, for TVM's `tensorize`.

TVM has them, too. Its module registers those of all machines, which takes 16 s.
"""

from __future__ import annotations

import functools

import tvm
from tvm.tirx import PrimFunc

LOAD_A, LOAD_B, FILL, STORE, MULTIPLY = (
    f"zmq_offload.wmma_{name}" for name in ("load_a", "load_b", "fill", "store", "multiply")
)

_PLACE = "{0}.elem_offset // {1} // 16 * ({1} // 16) + {0}.elem_offset % {1} // 16"
"""The number of a square among the fragments of a warp. Its rows are `{1}` apart."""


@functools.cache
def register() -> None:
    """Register the intrinsics of this module with TVM."""
    for name, side in ((LOAD_A, "a"), (LOAD_B, "b")):
        tiles = [("A", "float16", "shared"), ("C", "float16", f"wmma.matrix_{side}")]
        access = 'A.access_ptr("r", ptr_type="float16")'
        load = (
            f"T.tvm_load_matrix_sync(C.data, 16, 16, 16, {_PLACE.format('C', 'C1')}, {access}, A1, "
            '"row_major", dtype="void")'
        )
        _register(name, tiles, "C[i, j] = A[i, j]", load)
    fill = f'T.tvm_fill_fragment(C.data, 16, 16, 16, {_PLACE.format("C", "C1")}, T.float32(0), dtype="void")'
    _register(FILL, [("C", "float32", "wmma.accumulator")], "C[i, j] = T.float32(0)", fill)
    access = 'C.access_ptr("w", ptr_type="float32")'
    store = (
        f"T.tvm_store_matrix_sync(A.data, 16, 16, 16, {_PLACE.format('A', 'A1')}, {access}, C1, "
        '"row_major", dtype="void")'
    )
    tiles = [("A", "float32", "wmma.accumulator"), ("C", "float32", "shared")]
    _register(STORE, tiles, "C[i, j] = A[i, j]", store)
    tiles = [
        ("A", "float16", "wmma.matrix_a"),
        ("B", "float16", "wmma.matrix_b"),
        ("C", "float32", "wmma.accumulator"),
    ]
    places = ", ".join(f"{t}.data, {_PLACE.format(t, t + '1')}" for t in "CABC")
    product = 'C[i, j] = C[i, j] + T.Cast("float32", A[i, k]) * T.Cast("float32", B[k, j])'
    _register(MULTIPLY, tiles, product, f'T.tvm_mma_sync({places}, dtype="void")')


def _register(name: str, tiles: list[tuple[str, str, str]], does: str, call: str) -> None:
    """Register an intrinsic of the squares `tiles`, each with its datatype and memory: what it does, and its call."""
    from tvm.s_tir import TensorIntrin

    summed = "[i, k]" in does
    axes = "i, j, k" if summed else "i, j"
    names = [tile for tile, _, _ in tiles]
    reads = ", ".join(f"{tile}[0:16, 0:16]" for tile in (["C", "A", "B"] if summed else names[:-1]))
    regions = [f"    T.reads({reads})", "    T.writes(C[0:16, 0:16])"]
    loops = [
        f"    for i_, j_{', k_' if summed else ''} in T.grid({', '.join(['16'] * (2 + summed))}):",
        '        with T.sblock("square"):',
        f'            {axes} = T.axis.remap("{"SSR" if summed else "SS"}", [{axes.replace(",", "_,")}_])',
        f"            {does}",
    ]
    what = _parsed(tiles, [*regions, *loops], strides=False)
    how = _parsed(tiles, [*regions, f"    T.evaluate({call})"], strides=True)
    TensorIntrin.register(name, what, how, override=True)


def _parsed(tiles: list[tuple[str, str, str]], lines: list[str], *, strides: bool) -> PrimFunc:
    head = ["@T.prim_func(s_tir=True)", f"def intrinsic({', '.join(f'{t.lower()}: T.handle' for t, _, _ in tiles)}):"]
    for tile, dtype, scope in tiles:
        extra = ""
        if strides:
            head += [f"    {tile}1 = T.int32()", f"    {tile}0 = T.int32()"]
            extra = f", strides=[{tile}1, {tile}0]"
        head.append(
            f'    {tile} = T.match_buffer({tile.lower()}, (16, 16), "{dtype}", align=64, offset_factor=16, '
            f'scope="{scope}"{extra})'
        )
    body = ['    with T.sblock("root"):', *(f"    {line}" for line in lines)]
    return tvm.script.from_source("\n".join([*head, *body]))
