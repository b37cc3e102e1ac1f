"""Read an ONNX file with its external data, and convert it to an opset that TVM's importer supports."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import onnx
import onnx.version_converter
from onnx.external_data_helper import ExternalDataInfo, load_external_data_for_model, uses_external_data

from zmq_offload.compile.onnx.order import sort_nodes
from zmq_offload.compile.onnx.usable import check_usable
from zmq_offload.compile.operators.constants import without_weights
from zmq_offload.compile.operators.nodes import all_graphs
from zmq_offload.compile.operators.rewrite import resized_as_before, slopes_per_channel
from zmq_offload.errors import InvalidArgument, one_line

OLDEST_OPSET = 6
"""The oldest opset that can be converted. Earlier operators have other attributes and broadcasting rules."""

IMPORTED_OPSET = 11
"""The oldest opset that TVM's importer supports. Older models are converted to it."""


def read_onnx(path: str | os.PathLike[str]) -> onnx.ModelProto:
    """Read a model, with its external data, and convert it to opset 11 if it is older.

    Raises InvalidArgument, with the file's name, if the file cannot be read, is not ONNX, is not a whole network for
    inference (`check_usable`), lacks external data, or has an unsupported opset.
    """
    file = Path(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = onnx.load(file, load_external_data=False)
    except OSError as error:
        raise InvalidArgument(f"{file} cannot be read: {error.strerror or error}") from None
    except Exception as error:  # the suffix decides on protobuf, JSON or text; each raises other errors
        raise InvalidArgument(f"{file} is not an ONNX model, or only a part of one: {one_line(error)}") from None
    sort_nodes(model.graph)
    check_usable(model, file)
    _load_external_data(model, file)
    return _typed(_modern(model, file))


def _load_external_data(model: onnx.ModelProto, file: Path) -> None:
    for tensor in _tensors(model.graph):
        if uses_external_data(tensor):
            _check_external(tensor, file)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            load_external_data_for_model(model, str(file.parent))
    except Exception as error:
        raise InvalidArgument(f"{file}: its external data cannot be read: {one_line(error)}") from None


def _check_external(tensor: onnx.TensorProto, file: Path) -> None:
    """Raises InvalidArgument, with the file's name, if the file with a tensor's data is missing or too short."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            info = ExternalDataInfo(tensor)
    except ValueError as error:
        raise InvalidArgument(f"{file}: the external data of {tensor.name!r} is damaged: {one_line(error)}") from None
    place = file.parent / info.location
    try:
        size = place.stat().st_size
    except OSError as error:
        raise InvalidArgument(
            f"{file} keeps the weight {tensor.name!r} in the external data file {info.location!r}, which cannot be "
            f"read ({error.strerror or error}): it was looked for at {place}; put it next to the model"
        ) from None
    end = (info.offset or 0) + (_bytes(tensor) if info.length is None else info.length)
    if place.is_file() and size < end:
        raise InvalidArgument(
            f"{place} is cut short: {file} keeps the weight {tensor.name!r} in its bytes {info.offset or 0:,} to "
            f"{end:,}, but it has {size:,}; copy it again"
        )


def _bytes(tensor: onnx.TensorProto) -> int:
    """The size of a tensor in bytes, for external data without a length; 0 for elements smaller than a byte."""
    try:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    except KeyError:
        return 0
    return math.prod(tensor.dims) * dtype.itemsize if dtype.kind in "fiub" and dtype.isbuiltin else 0


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """The weights and constants of a graph, and of the bodies of its loops and branches."""
    for inner in all_graphs(graph):
        yield from inner.initializer
        for node in inner.node:
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    yield attribute.t
                yield from attribute.tensors


def _modern(model: onnx.ModelProto, file: Path) -> onnx.ModelProto:
    """The model, converted if its opset is too old for TVM's importer."""
    opset = max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=None)
    newest = onnx.defs.onnx_opset_version()
    if opset is None or IMPORTED_OPSET <= opset <= newest:
        return model
    if opset > newest:
        raise InvalidArgument(
            f"{file} is of ONNX opset {opset}; the installed onnx {onnx.__version__} knows opsets up to {newest}; "
            f"export it with opset {newest} or older, or upgrade the package onnx"
        )
    if opset < OLDEST_OPSET:
        raise InvalidArgument(
            f"{file} is of ONNX opset {opset}, which is too old; export it again with opset {IMPORTED_OPSET} or later "
            f"(opsets {OLDEST_OPSET} to {IMPORTED_OPSET - 1} are converted)"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if opset < 7:
                slopes_per_channel(model)
            converted = onnx.version_converter.convert_version(model, IMPORTED_OPSET)
            resized_as_before(converted)
            return converted
    except Exception as error:
        raise InvalidArgument(
            f"{file} is of ONNX opset {opset}, and onnx.version_converter cannot convert it to opset {IMPORTED_OPSET}: "
            f"{one_line(error)}; export it again with opset {IMPORTED_OPSET} or later"
        ) from None


def _typed(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with a datatype for each output, inferred where the file omits it."""
    if all(output.type.WhichOneof("value") for output in model.graph.output):
        return model
    inferred = onnx.shape_inference.infer_shapes(without_weights(model))
    for own, found in zip(model.graph.output, inferred.graph.output, strict=True):
        own.CopyFrom(found)
    return model
