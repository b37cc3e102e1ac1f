"""What is left after whole tiles or vectors, where the extent is known only at run time.

A loop over single rows or elements would take longer than the whole tiles before it. So sizes are halved: rows get one
tile that ends at the last row and may compute a few rows again, elements get at most one vector of each width.
"""

from __future__ import annotations

from collections.abc import Callable

from tvm import tirx
from tvm.ir import Expr

from zmq_offload.schedules.emit import index, loop, sequence, when
from zmq_offload.schedules.machine import Machine


def rows_after_tiles(rows: Expr, height: int, tile: Callable[[Expr, int], tirx.Stmt]) -> tirx.Stmt:
    """Emit `tile(first, size)` for the rows after the whole tiles of `height` rows.

    Sizes are powers of two, and `height`. The smallest one that covers the rest ends at the last row. If there are
    fewer rows than that, the next smaller size runs twice, at the first and at the last row.
    """
    if height == 1:
        return sequence([])
    sizes = [1 << i for i in range((height - 1).bit_length())]
    rest = rows - tirx.floordiv(rows, index(height)) * height

    def several(size: int, following: int) -> tirx.Stmt:
        twice = tirx.all(rows > size, rows < following)
        once = tirx.all(rest > size // 2, rest <= size, rows >= size)
        count = tirx.Select(twice, index(2), tirx.Select(once, index(1), index(0)))
        return loop(count, lambda i: tile(tirx.Select(twice, i, index(1)) * (rows - size), size), "rest")

    smaller = [several(size, following) for size, following in zip(sizes, [*sizes[1:], height], strict=True)]
    whole = when(tirx.all(rest > sizes[-1], rows >= height), tile(rows - height, height))
    return sequence([*smaller, whole])


def vectors_after(start: Expr, count: Expr, machine: Machine, body: Callable[[Expr, int], tirx.Stmt]) -> tirx.Stmt:
    """Emit `body(first, width)` for `count` elements from `start` on, fewer than a vector: one vector of each width."""

    def part(width: int) -> tirx.Stmt:
        before = tirx.floordiv(count, index(2 * width)) * (2 * width)
        return when(tirx.floormod(count, index(2 * width)) >= width, body(start + before, width))

    return sequence(part(width) for width in machine.widths[1:])


def covering(extent: Expr, size: int, body: Callable[[Expr], tirx.Stmt]) -> tirx.Stmt:
    """Emit `body(first)` for parts of `size` that cover `extent`, at least `size`. The last one may overlap the one
    before."""
    parts = tirx.floordiv(extent + (size - 1), index(size))
    return loop(parts, lambda i: body(tirx.Min(i * size, extent - size)), "part")
