"""Sequences of tensors. Their length is known; they are tuples."""

from __future__ import annotations

from tvm import relax

from zmq_offload.compile.operators.node import Node
from zmq_offload.compile.operators.tvm_importer import Builder, Expr


def sequence_insert(bb: Builder, node: Node) -> Expr:
    """Insert before a place. TVM inserts after it if it is counted from the end."""
    items, place = _items(bb, node.inputs[0]), node.constant(2)
    at = len(items) if place is None else int(place.reshape(-1)[0])
    if not -len(items) <= at <= len(items):
        raise node.refused(f"its place {at} is outside of the {len(items)} tensors", "use a place inside")
    items.insert(at, node.inputs[1])
    return relax.Tuple(items)


def sequence_length(bb: Builder, node: Node) -> Expr:
    return relax.const(len(_items(bb, node.inputs[0])), "int64")


def _items(bb: Builder, sequence: Expr) -> list[Expr]:
    sequence = bb.normalize(sequence)
    if isinstance(sequence, relax.Tuple):
        return list(sequence.fields)
    return [bb.emit(relax.TupleGetItem(sequence, i)) for i in range(len(sequence.ty.fields))]
