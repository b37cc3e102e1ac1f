"""The table of `zmq-offload compile --list-cuts`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zmq_offload.console.tables import Column, Part, Table

if TYPE_CHECKING:
    from zmq_offload.compile.api import CutPoint
    from zmq_offload.protocol.tensors import TensorSpec


def _shape(spec: TensorSpec) -> str:
    return str(spec).removeprefix(f"{spec.name} ")


def table(cuts: list[CutPoint]) -> Part:
    """The cuts for a person: tensors as --cut takes them, datatype and shape, bytes in all, share of multiply-adds
    offloaded, what is sent along, module if known."""
    if not cuts:
        return "no single tensor separates the model's inputs from its outputs; give several to --cut"
    columns: tuple[Column, ...] = (
        Column("TENSOR", folds=True),
        Column("SHAPE"),
        Column("BYTES", right=True),
        Column("OFFLOADED", right=True),
    )
    rows: list[tuple[str, ...]] = [
        (" ".join(c.names), "; ".join(map(_shape, (*c.others, c.tensor))), f"{c.nbytes:,}", f"{c.share:.1%}")
        for c in cuts
    ]
    if any(c.carried for c in cuts):
        columns = (*columns, Column("SENT ALONG", folds=True))
        rows = [(*row, " ".join(spec.name for spec in c.carried)) for row, c in zip(rows, cuts, strict=True)]
    if any(c.module for c in cuts):
        columns = (*columns, Column("MODULE", folds=True))
        rows = [(*row, c.module or "") for row, c in zip(rows, cuts, strict=True)]
    return Table(columns, rows)
