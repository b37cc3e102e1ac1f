"""Find the product of two matrices in a function, and how to cut it into tiles.

Convolutions, matrix products of any layout, and transposed convolutions are one kind of loop nest:
`C[S, I, J] += A[S, I, K] * B[S, J, K]`, where each letter stands for any number of axes. Here the nest is brought to
that form, with the axis that is contiguous in the result as J.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil
from typing import TypeAlias

import tvm
from tvm import s_tir, tirx
from tvm.ir import Expr, TensorLoad, Var
from tvm.tirx.analysis import undefined_vars

Block: TypeAlias = s_tir.schedule.SBlockRV
Loop: TypeAlias = s_tir.schedule.LoopRV

MANY_BLOCKS = 128
"""Thread blocks that keep a large GPU busy: it has about as many multiprocessors."""

WARP = 32
"""Threads that run together."""

MOST_PLANES = 65535
"""The largest grid along y and z."""


class Unsuited(Exception):
    """The function is not what the rule is for."""


@dataclass(frozen=True)
class Tile:
    """How a thread block computes its part of the result: `rows` along I, `columns` along J, `depth` steps of K.

    A thread computes `thread_rows` by `thread_columns` of it; a warp, where tensor cores compute, `thread_rows` by
    `thread_columns` squares of 16. `rate` is how much a block of this kind does for what it loads, in comparison.
    """

    rows: int
    columns: int
    depth: int
    thread_rows: int
    thread_columns: int
    rate: float


@dataclass(frozen=True)
class Product:
    """A product in a schedule: its block, whose loops are S, I, J, K; `rows` is the number of the operand with I.

    `extents` are those of S, I, J and K. `deep` says of the operands with I and with J whether K is contiguous in
    memory, and not the other axis.
    """

    block: Block
    rows: int
    extents: tuple[int, int, int, int]
    deep: tuple[bool, bool]


def chosen(tiles: Sequence[Tile], extents: tuple[int, int, int, int]) -> Tile:
    """The tile with the best estimate: how much of its work is of use, and how much of a GPU it fills."""
    batch, rows, columns, _ = extents

    def estimate(tile: Tile) -> float:
        down, across = ceil(rows / tile.rows), ceil(columns / tile.columns)
        useful = rows * columns / (down * tile.rows * across * tile.columns)
        return useful * tile.rate * min(1.0, batch * down * across / MANY_BLOCKS)

    return max(tiles, key=estimate)


def product_of(schedule: s_tir.Schedule) -> Product:
    """Bring the only reduction of a schedule into the form of a product. Raises Unsuited if it is none."""
    block = only_reduction(schedule)
    kinds, swapped, deep = _kinds(schedule.get(block))
    operands = [schedule.reindex(block, ("read", number)) for number in (0, 1)]
    result = schedule.reindex(block, ("write", 0))
    statement = schedule.get(block)
    kinds = {new.var: kind for new, kind in zip(statement.iter_vars, kinds.values(), strict=True)}
    rows = int(swapped)
    for number, operand in enumerate(operands):
        own = "I" if number == rows else "J"
        order = "SIK" if number == rows else "SKJ"
        used = _used(statement, statement.reads[number].region, kinds, {"S", own, "K"})
        schedule.transform_layout(operand, ("write", 0), _index_map(used, kinds, order, statement))
    used = _used(statement, statement.writes[0].region, kinds, {"S", "I", "J"})
    schedule.transform_layout(result, ("read", 0), _index_map(used, kinds, "SIJ", statement))
    schedule.transform_block_layout(block, _index_map(list(kinds), kinds, "SIJK", statement))
    extents = tuple(int(schedule.get(loop).extent) for loop in schedule.get_loops(block))
    if len(extents) != 4 or extents[0] > MOST_PLANES:
        raise Unsuited
    return Product(block, rows, (extents[0], extents[1], extents[2], extents[3]), deep)


def only_reduction(schedule: s_tir.Schedule) -> Block:
    root = schedule.get_sblock("root")
    found = []
    for block in schedule.get_child_blocks(root):
        kinds = {iterator.iter_type for iterator in schedule.get(block).iter_vars}
        if not kinds <= {tirx.IterVar.DataPar, tirx.IterVar.CommReduce}:
            raise Unsuited
        if tirx.IterVar.CommReduce in kinds:
            found.append(block)
    if len(found) != 1:
        raise Unsuited
    return found[0]


def _kinds(statement: s_tir.SBlock) -> tuple[dict[Var, str], bool, tuple[bool, bool]]:
    """The kind of each axis of a block, S, I, J or K; whether I is of the second operand; `Product.deep`.

    Raises Unsuited if the block is no sum of products of two operands, or an extent is symbolic.
    """
    body = statement.body
    if len(statement.reads) != 2 or len(statement.writes) != 1 or not isinstance(body, tirx.BufferStore):
        raise Unsuited
    value = body.value
    if not isinstance(value, tirx.Add) or not isinstance(value.b, tirx.Mul):
        raise Unsuited
    if not all(isinstance(_plain(side), TensorLoad) for side in (value.b.a, value.b.b)):
        raise Unsuited
    first, second, written = (
        _axes(region) for region in (statement.reads[0].region, statement.reads[1].region, statement.writes[0].region)
    )
    kinds: dict[Var, str] = {}
    for iterator in statement.iter_vars:
        var = iterator.var
        if not isinstance(iterator.dom.extent, tirx.IntImm):
            raise Unsuited
        if int(iterator.dom.extent) == 1:
            kinds[var] = "1"
        elif iterator.iter_type == tirx.IterVar.CommReduce:
            kinds[var] = "K"
        else:
            kinds[var] = {(True, True): "S", (True, False): "I", (False, True): "J"}.get(
                (var in first, var in second), "?"
            )
        if kinds[var] == "?" or (kinds[var] not in "1K" and var not in written):
            raise Unsuited
        if kinds[var] == "K" and not (var in first and var in second):
            raise Unsuited
    if not {"I", "J", "K"} <= set(kinds.values()):
        raise Unsuited
    inner = next(
        kinds[v]
        for dimension in reversed(statement.writes[0].region)
        for v in undefined_vars(dimension.min)
        if kinds.get(v, "1") in "IJS"
    )
    swapped = inner == "I"
    if swapped:
        kinds = {var: {"I": "J", "J": "I"}.get(kind, kind) for var, kind in kinds.items()}
    deep = [_is_deep(region.region, kinds) for region in statement.reads]
    return kinds, swapped, (deep[int(swapped)], deep[1 - int(swapped)])


def _is_deep(region: Sequence[tvm.ir.Range], kinds: dict[Var, str]) -> bool:
    """Whether only axes of the sum are in the last index that has an axis at all."""
    for dimension in reversed(region):
        used = {kinds.get(v, "1") for v in undefined_vars(dimension.min)} - {"1"}
        if used:
            return used == {"K"}
    return False


def _plain(value: Expr) -> Expr:
    """An operand without the cast to the datatype of the sum."""
    return value.value if isinstance(value, tirx.Cast) else value


def _axes(region: Sequence[tvm.ir.Range]) -> set[Var]:
    found: set[Var] = set()
    for dimension in region:
        if not isinstance(dimension.extent, tirx.IntImm) or int(dimension.extent) != 1:
            raise Unsuited
        found.update(undefined_vars(dimension.min))
    return found


def _used(
    statement: s_tir.SBlock, region: Sequence[tvm.ir.Range], kinds: dict[Var, str], expected: set[str]
) -> list[Var]:
    """The axes by which a reindexed operand is indexed, in order."""
    used = _axes(region)
    axes = [iterator.var for iterator in statement.iter_vars if iterator.var in used]
    if not {kinds[v] for v in axes} <= expected | {"1"}:
        raise Unsuited
    return axes


def _index_map(axes: Sequence[Var], kinds: dict[Var, str], order: str, statement: s_tir.SBlock) -> tirx.IndexMap:
    """The map that fuses the axes of each kind into one, in the order of the kinds."""
    extents = {iterator.var: iterator.dom.extent for iterator in statement.iter_vars}
    new = [Var(f"i{number}", extents[axis].ty) for number, axis in enumerate(axes)]
    fused: dict[str, Expr] = {}
    for own, axis in zip(new, axes, strict=True):
        kind = kinds[axis]
        if kind != "1":
            fused[kind] = own if kind not in fused else fused[kind] * extents[axis] + own
    zero = tirx.IntImm(statement.iter_vars[0].dom.extent.ty, 0)
    return tirx.IndexMap(new, [fused.get(kind, zero) for kind in order], None)


def inline_producers(schedule: s_tir.Schedule, block: Block) -> None:
    """Compute what a block reads where it reads it, as far as that is possible."""
    while sum(_done(schedule.compute_inline, producer) for producer in _before(schedule, block)):
        pass


def _before(schedule: s_tir.Schedule, block: Block) -> list[Block]:
    found: list[Block] = []
    for producer in schedule.get_producers(block):
        found += [producer, *_before(schedule, producer)]
    return found


def inline_consumers(schedule: s_tir.Schedule, block: Block) -> None:
    """Compute all that follows a block where the block is computed. Raises Unsuited if something is left."""
    changed = 1
    while changed:
        changed = 0
        for other in _beside(schedule, block):
            changed += _done(schedule.compute_inline, other)
        for change in (schedule.compute_inline, schedule.reverse_compute_inline):
            changed += sum(_done(change, consumer) for consumer in _after(schedule, block))
    if schedule.get_consumers(block):
        raise Unsuited


def _done(change: Callable[[Block], None], block: Block) -> bool:
    """Whether a change of a schedule could be made."""
    try:
        change(block)
    except Exception:
        return False
    return True


def _beside(schedule: s_tir.Schedule, block: Block) -> list[Block]:
    """What the readers of a block read otherwise."""
    readers = _after(schedule, block)
    own = [schedule.get(other) for other in (block, *readers)]
    found = [other for consumer in readers for other in schedule.get_producers(consumer)]
    return [other for other in found if schedule.get(other) not in own]


def _after(schedule: s_tir.Schedule, block: Block) -> list[Block]:
    found: list[Block] = []
    for consumer in schedule.get_consumers(block):
        found += [consumer, *_after(schedule, consumer)]
    return found
