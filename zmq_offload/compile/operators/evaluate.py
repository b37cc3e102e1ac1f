"""Evaluate one node of an ONNX model, as ONNX's reference defines it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

from zmq_offload.protocol.payload import Array


class Evaluator:
    """Evaluates the nodes of a model with the given opsets. Nodes that differ only in names share one program."""

    def __init__(self, opsets: Mapping[str, int]) -> None:
        self._opsets = opsets
        self._programs: dict[bytes, ReferenceEvaluator] = {}

    def __call__(self, node: onnx.NodeProto, inputs: Sequence[Array | None]) -> list[Array] | None:
        """The results of a node for inputs (None for one that is left out); None if the reference cannot tell."""
        if node.op_type == "DequantizeLinear":  # not in the reference before opset 19
            x, scale, zero = (*inputs, None)[:3]
            if x is None or scale is None or any(a.name == "output_dtype" for a in node.attribute):
                return None
            moved = x.astype("i8") - (0 if zero is None else zero.astype("i8"))
            return [np.asarray(moved.astype("f4") * scale, scale.dtype).reshape(x.shape)]
        pattern = onnx.NodeProto(op_type=node.op_type, domain=node.domain)
        names = [f"i{n}" if name else "" for n, name in enumerate(node.input)]
        pattern.input.extend(names)
        pattern.output.extend(f"o{n}" if name else "" for n, name in enumerate(node.output))
        pattern.attribute.extend(node.attribute)
        key = pattern.SerializeToString()
        feeds = {name: value for name, value in zip(names, inputs, strict=True) if value is not None}
        try:
            with warnings.catch_warnings(), np.errstate(all="ignore"):
                warnings.simplefilter("ignore")
                if key not in self._programs:
                    self._programs[key] = ReferenceEvaluator(self._model(pattern, feeds))
                results = self._programs[key].run(None, feeds)
        except Exception:  # not implemented there, or a faulty node, which the importer refuses by name
            return None
        return results if all(isinstance(r, np.ndarray) and r.dtype.isbuiltin for r in results) else None

    def _model(self, node: onnx.NodeProto, feeds: Mapping[str, Array]) -> onnx.ModelProto:
        inputs = [onnx.ValueInfoProto(name=name, type=type_of(value)) for name, value in feeds.items()]
        outputs = [onnx.ValueInfoProto(name=name) for name in node.output if name]
        graph = onnx.helper.make_graph([node], "node", inputs, outputs)
        imports = [onnx.helper.make_opsetid(domain, version) for domain, version in self._opsets.items()]
        return onnx.helper.make_model(graph, opset_imports=imports, ir_version=8)


def type_of(value: Array | onnx.TensorProto) -> onnx.TypeProto:
    """The type of an array or a weight."""
    if isinstance(value, onnx.TensorProto):
        return onnx.helper.make_tensor_type_proto(value.data_type, list(value.dims))
    return onnx.helper.make_tensor_type_proto(onnx.helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
