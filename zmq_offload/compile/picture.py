"""Draw the cuts of a model."""

from __future__ import annotations

from pathlib import Path

from zmq_offload.charts import graph
from zmq_offload.charts.style import byte_size, save
from zmq_offload.common.units import counted
from zmq_offload.compile.onnx.importer import Imported
from zmq_offload.compile.stretches import stretches
from zmq_offload.errors import FailedPrecondition


def draw_cuts(imported: Imported, file: Path, title: str) -> None:
    """Draw the graph of a model with its cuts. Raises FailedPrecondition if the file cannot be written."""
    found = stretches(imported.graph)
    total = sum(s.multiply_adds for s in found.stretches)
    drawn = [
        graph.Stretch(s.operators, s.multiply_adds / total if total else 0.0, s.nbytes, s.tensors, s.cut)
        for s in found.stretches
    ]
    cuts = sum(s.cut is not None for s in drawn)
    inputs = ", ".join(f"{spec.name} {byte_size(spec.nbytes)}" for spec in imported.inputs)
    summary = f"{total / 1e9:.3g} G multiply-adds, {counted(cuts, 'cut')} by name. Inputs: {inputs}"
    chart = graph.GraphChart(Path(title).name, summary, drawn, found.skips)
    try:
        save(graph.draw(chart), file)
    except OSError as error:
        raise FailedPrecondition(f"{file} cannot be written: {error.strerror or error}") from None
