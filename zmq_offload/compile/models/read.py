"""The front door: open a model of any format."""

from __future__ import annotations

from pathlib import Path

import tvm

from zmq_offload.common.extras import needs
from zmq_offload.compile.models.base import Model, PathLike
from zmq_offload.compile.models.formats import Format, format_of
from zmq_offload.compile.models.relax_model import RelaxModel


def read_model(model: PathLike | tvm.IRModule) -> Model:
    """Open a model file, of which its content and its suffix tell the format, or a Relax module.

    Raises InvalidArgument if the file cannot be read, or is of no format that can be compiled; the message then says
    which exporter to use.
    """
    if isinstance(model, tvm.IRModule):
        return RelaxModel(model)
    file = Path(model)
    found = format_of(file)
    if found is Format.PYTORCH:
        with needs("torch"):
            from zmq_offload.compile.pytorch.model import PyTorchModel
        return PyTorchModel(file)
    if found is Format.TFLITE:
        with needs("compile"):
            from zmq_offload.compile.tflite.model import TFLiteModel
        return TFLiteModel(file)
    from zmq_offload.compile.models.onnx_model import OnnxModel

    return OnnxModel(file)
