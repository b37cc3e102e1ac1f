"""ONNX's schemas of operators."""

from __future__ import annotations

import onnx

CONTRIB = {
    ("com.microsoft", name)
    for name in (
        "Attention",
        "BiasGelu",
        "EmbedLayerNormalization",
        "FastGelu",
        "Gelu",
        "MatMulInteger16",
        "SkipLayerNormalization",
    )
}
"""Operators of ONNX Runtime (contrib operators) that TVM imports."""


def schema_of(node: onnx.NodeProto | None, opset: int) -> onnx.defs.OpSchema | None:
    """The schema of a node's operator at an opset; None if ONNX does not have the operator."""
    if node is None or node.domain not in ("", "ai.onnx"):
        return None
    try:
        return onnx.defs.get_schema(node.op_type, opset, "")
    except onnx.defs.SchemaError:
        return None
