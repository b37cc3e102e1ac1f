"""Import a TFLite graph into Relax. The file has the shape and datatype of each tensor; they are checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import tvm
from tvm import ir, relax, tirx
from tvm.relax.frontend.tflite.tflite_frontend import ExprTable, OperatorConverter, get_tensor_name

from zmq_offload.compile.models.exposed import closed_on_error
from zmq_offload.compile.tflite.weights import with_float_weights
from zmq_offload.errors import InvalidArgument, OffloadError, one_line

STATEFUL = ("VAR_HANDLE", "READ_VARIABLE", "ASSIGN_VARIABLE", "CALL_ONCE")
"""Operators with variables."""


@dataclass(frozen=True)
class ImportedGraph:
    """A graph in Relax. `main` returns the graph's outputs and then the tensors `names`, as one tuple."""

    mod: tvm.IRModule
    outputs: int
    names: tuple[str, ...]


def import_graph(model: Any, inputs: list[relax.Var], resized: bool) -> ImportedGraph:
    """Import the first graph of a model, with these variables for its inputs.

    `resized` says that they have other shapes than the file states, so that its other shapes are not right either.

    Raises InvalidArgument, with operator and tensor, for what TVM cannot import.
    """
    subgraph = model.Subgraphs(0)
    table, builder = ExprTable(), relax.BlockBuilder()
    for var in inputs:
        table.set_expr(str(var.name), var)
    with closed_on_error(builder), builder.function("main", inputs):
        with builder.dataflow():
            converter = GraphConverter(model, subgraph, table, builder)
            converter.resized = resized
            names = converter.convert()
            wrapped = converter.get_tensors(subgraph.OutputsAsNumpy())
            outputs = [converter.get_tensor_expr(tensor) for tensor in wrapped]
            result = builder.emit_output(relax.Tuple([*outputs, *names.values()]))
        builder.emit_func_output(result)
    return ImportedGraph(builder.get(), len(outputs), tuple(names))


class GraphConverter(OperatorConverter):  # type: ignore[misc]  # TVM has no types
    """TVM's converter with ours for operators that it gets wrong, and with a check of each result."""

    resized = False

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.convert_map["DEQUANTIZE"] = self._dequantized
        self.convert_map["EXPAND_DIMS"] = self._expanded
        self.convert_map["PRELU"] = self._sloped

    def convert(self) -> dict[str, relax.Expr]:
        """Convert the operators in order. Returns the tensors that they compute, by name."""
        self._check_stateless()
        self._check_known()
        tensors: dict[str, relax.Expr] = {}
        for number in range(self.subgraph.OperatorsLength()):
            operation = self.subgraph.Operators(number)
            outputs = self.get_output_tensors(operation)
            names = [get_tensor_name(self.subgraph, tensor.tensor_idx) for tensor in outputs]
            where = f"the operator {self.get_op_code_str(operation)} ({names[0] if names else ''!r})"
            try:
                value = self.convert_map[self.get_op_code_str(operation)](op=operation)
                if value is None:  # a constant, which its users read from the file
                    continue
                value = self.bb.normalize(value)
            except OffloadError:
                raise
            except Exception as error:
                why = one_line(error) or type(error).__name__
                raise InvalidArgument(f"TVM cannot import {where}: {why}") from error
            values = [value] if len(outputs) == 1 else [value[at] for at in range(len(outputs))]
            for name, tensor, result in zip(names, outputs, values, strict=True):
                tensors[name] = self._as_declared(where, tensor, result)
                self.exp_tab.set_expr(name, tensors[name])
        return tensors

    def get_input_tensors(self, op: Any) -> list[Any]:
        """As TVM's; constants of bytes in an operator on floats are floats."""
        inputs: list[Any] = super().get_input_tensors(op)
        if self.get_op_code_str(op) == "DEQUANTIZE":
            return inputs
        return with_float_weights(inputs, self.get_output_tensors(op))

    def _check_stateless(self) -> None:
        for number in range(self.subgraph.OperatorsLength()):
            name = self.get_op_code_str(self.subgraph.Operators(number))
            if name in STATEFUL:
                raise InvalidArgument(
                    f"TVM cannot import the model: it keeps state from one call to the next ({name}); convert it with "
                    "its state as an input and an output"
                )

    def _check_known(self) -> None:
        try:
            self.check_unsupported_ops()
        except Exception as error:
            raise InvalidArgument(
                f"TVM cannot import the model: {one_line(error)}; convert it again as float32 (without "
                "converter.optimizations), or to ONNX with tf2onnx"
            ) from None

    def _as_declared(self, where: str, tensor: Any, value: relax.Expr) -> relax.Expr:
        """The result as a variable. Raises InvalidArgument if its shape or datatype is not the file's."""
        value = self.bb.normalize(value)
        if not isinstance(value, ir.Var):
            value = self.bb.emit(value)
        ty = value.ty
        if not isinstance(ty, relax.TensorType) or not isinstance(ty.shape, relax.ShapeExpr):
            raise InvalidArgument(f"TVM cannot import {where}: the shape of its result depends on values")
        right = [int(d) for d in tensor.tensor.ShapeAsNumpy()] if tensor.tensor.ShapeLength() else []
        kind = self.get_tensor_type_str(tensor.tensor.Type())
        have = [int(d) if isinstance(d, tirx.IntImm) else -1 for d in ty.shape]
        if self.resized:
            right = have
        if str(ty.dtype.dtype) != kind or have != right:
            raise InvalidArgument(
                f"TVM cannot import {where}: it computes {ty.dtype.dtype}{have} where the file has {kind}{right}"
            )
        return value

    def _expanded(self, op: Any) -> relax.Expr:
        """A new dimension at a constant place. TVM calls its operator wrongly."""
        value, axis = self.get_input_tensors(op)
        place = int(self.get_tensor_value(axis).reshape(-1)[0])
        return relax.op.expand_dims(self.get_tensor_expr(value), place)

    def _dequantized(self, op: Any) -> relax.Expr:
        """A weight of half precision that was sparse in the file; TVM looks for it in the file again."""
        (given,) = self.get_input_tensors(op)
        if not self.is_prefetched(given.tensor_idx) or given.qnn_params:
            return self.convert_dequantize(op)
        value = self.get_prefetched_node(given.tensor_idx)
        return relax.op.astype(relax.const(value, str(value.dtype)), "float32")

    def _sloped(self, op: Any) -> relax.Expr:
        """PReLU with slopes for channels. TVM copies the slopes to the shape of the tensor."""
        given, slope = (self.get_tensor_expr(tensor) for tensor in self.get_input_tensors(op))
        zero = relax.const(0, given.ty.dtype)
        return relax.op.where(relax.op.greater(given, zero), given, relax.op.multiply(given, slope))
