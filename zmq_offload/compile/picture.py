"""Draw the cuts of a model."""

from __future__ import annotations

from pathlib import Path

from zmq_offload.charts import graph
from zmq_offload.charts.style import byte_size, save
from zmq_offload.common.units import counted
from zmq_offload.compile.onnx.importer import Imported
from zmq_offload.compile.onnx.shapes import shape_options
from zmq_offload.compile.stretches import stretches
from zmq_offload.compile.typical import Typical
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
    typical = Typical(imported.graph)
    inputs = ", ".join(f"{imported.graph.name(p)} {byte_size(typical.nbytes([p]))}" for p in imported.graph.params)
    work = f"{total / 1e9:.3g} G" if total >= 1e9 else f"{total / 1e6:.3g} M"
    summary = [f"{work} multiply-adds, {counted(cuts, 'cut')} by name. Inputs: {inputs}"]
    if typical.inputs:
        summary.append(f"Bytes and work are those for {shape_options(typical.inputs)}")
    chart = graph.GraphChart(Path(title).name, summary, drawn, found.skips)
    try:
        save(graph.draw(chart), file)
    except OSError as error:
        raise FailedPrecondition(f"{file} cannot be written: {error.strerror or error}") from None
