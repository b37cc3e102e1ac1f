"""The front door: open a model of any format."""

from __future__ import annotations

from pathlib import Path

from zmq_offload.common.extras import needs
from zmq_offload.compile.models.base import Model, PathLike
from zmq_offload.compile.models.formats import Format, format_of


def read_model(path: PathLike) -> Model:
    """Open a model file. Its content and its suffix tell the format.

    Raises InvalidArgument if the file cannot be read, or is of no format that can be compiled; the message then says
    which exporter to use.
    """
    file = Path(path)
    found = format_of(file)
    if found is Format.PYTORCH:
        with needs("torch"):
            from zmq_offload.compile.pytorch.model import PyTorchModel
        return PyTorchModel(file)
    from zmq_offload.compile.models.onnx_model import OnnxModel

    return OnnxModel(file)
