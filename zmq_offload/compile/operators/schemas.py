"""ONNX's schemas of operators."""

from __future__ import annotations

import onnx

MICROSOFT = "com.microsoft"

BY_TVM = {"BiasGelu", "FastGelu", "Gelu", "MatMulInteger16"}
"""Operators of ONNX Runtime's domain (contrib operators) that TVM imports."""

EARLY = {"LayerNormalization", "SimplifiedLayerNormalization"}
"""Operators that ONNX Runtime's optimizer writes into ONNX's domain at opsets that do not have them."""


def schema_of(node: onnx.NodeProto | None, opset: int) -> onnx.defs.OpSchema | None:
    """The schema of a node's operator at an opset; None if ONNX does not have the operator."""
    if node is None or node.domain not in ("", "ai.onnx"):
        return None
    try:
        return onnx.defs.get_schema(node.op_type, opset, "")
    except onnx.defs.SchemaError:
        return None
