"""ONNX -> ONNX, before anything else: operators that are made of others are replaced by those."""

from __future__ import annotations

import inspect

import numpy as np
import onnx
import onnx.inliner
from tvm.relax.frontend.onnx import onnx_frontend as frontend

from zmq_offload.compile.operators.converters import CONVERTERS

NOT_ONNX = {"Attention"}
"""TVM's operator of this name is that of ONNX Runtime (com.microsoft), which differs."""


def resized_as_before(model: onnx.ModelProto) -> None:
    """Give each Resize of a model that was converted from an opset before 11 the coordinates that it had there.

    onnx.version_converter leaves them out, and the defaults of opset 11 are others.
    """
    for node in model.graph.node:
        given = {attribute.name for attribute in node.attribute}
        for name, value in (("coordinate_transformation_mode", "asymmetric"), ("nearest_mode", "floor")):
            if node.op_type == "Resize" and name not in given:
                node.attribute.append(onnx.helper.make_attribute(name, value))


def inlined(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of the model without functions of its own, and without operators that TVM does not know or takes for
    others where ONNX itself defines them by operators that it does know."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    if copy.functions:
        copy = onnx.inliner.inline_local_functions(copy)
    _write_out_parts(copy)
    known = (set(frontend._get_convert_map()) | set(CONVERTERS)) - NOT_ONNX
    names = {node.op_type for node in copy.graph.node if node.domain in ("", "ai.onnx")} - known
    opset = next((o.version for o in copy.opset_import if o.domain in ("", "ai.onnx")), 1)
    chosen = [("", name) for name in sorted(names) if _defined_by_others(name, opset)]
    # Before ONNX 1.17 the inliner knows the model's own functions only: such operators stay, and are refused.
    if chosen and "inline_schema_functions" in inspect.signature(onnx.inliner.inline_selected_functions).parameters:
        try:
            return onnx.inliner.inline_selected_functions(_typed(copy), chosen, inline_schema_functions=True)
        except Exception:  # a tensor whose type ONNX cannot infer: the operator stays, and is refused by name
            return copy
    return copy


def _write_out_parts(model: onnx.ModelProto) -> None:
    """Give each Split in a number of parts that are not equal its sizes: onnxslim and TVM have others than ONNX.

    Each part is as large as the first, the last one smaller.
    """
    nodes = [n for n in model.graph.node if n.op_type == "Split" and any(a.name == "num_outputs" for a in n.attribute)]
    if not nodes:
        return
    typed = onnx.shape_inference.infer_shapes(model)
    known = {v.name: v.type.tensor_type for v in (*typed.graph.input, *typed.graph.value_info, *typed.graph.output)}
    for number, node in enumerate(nodes):
        parts = [known.get(name) for name in node.output]
        axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
        dims = [part.shape.dim[axis] for part in parts if part is not None and len(part.shape.dim)]
        sizes = [dim.dim_value for dim in dims if dim.HasField("dim_value")]
        if len(sizes) < len(parts) or len(set(sizes)) < 2:
            continue
        name = f"{node.output[0]}.sizes.{number}"
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(sizes, "int64"), name))
        node.input[1:] = [name]
        kept = [a for a in node.attribute if a.name != "num_outputs"]
        del node.attribute[:]
        node.attribute.extend(kept)


def _typed(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with the types of its tensors, weights included, on which the definitions of some operators depend."""
    typed = onnx.shape_inference.infer_shapes(model)
    known = {v.name for v in (*typed.graph.input, *typed.graph.value_info)}
    typed.graph.value_info.extend(
        onnx.helper.make_tensor_value_info(w.name, w.data_type, list(w.dims))
        for w in typed.graph.initializer
        if w.name not in known
    )
    return typed


def _defined_by_others(name: str, opset: int) -> bool:
    try:
        schema = onnx.defs.get_schema(name, opset, "")
    except onnx.defs.SchemaError:
        return False
    return bool(schema.has_function or schema.has_context_dependent_function)
