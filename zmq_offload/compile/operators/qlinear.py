"""Write ONNX Runtime's and ONNX's operators on quantized tensors out as DequantizeLinear, the plain operator and
QuantizeLinear, so that there is one form of quantized models to import. `compile.qdq` makes integers of it again."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx
from onnx import TensorProto, helper

from zmq_offload.compile.operators.narrow import widen_narrow_weights
from zmq_offload.compile.operators.nodes import all_graphs, label_of, opset_of
from zmq_offload.compile.operators.refusal import cannot_import
from zmq_offload.compile.operators.schemas import MICROSOFT


class _Writer:
    """Writes the nodes that replace `node`. Their tensors are named after its first output."""

    def __init__(self, node: onnx.NodeProto, opset: int) -> None:
        self.node, self.opset = node, opset
        self.nodes: list[onnx.NodeProto] = []
        self.attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}

    def input(self, index: int) -> str:
        """The name of an input; "" if it is omitted."""
        return str(self.node.input[index]) if index < len(self.node.input) else ""

    def add(
        self, operator: str, inputs: Sequence[str], output: str = "", domain: str = "", **attributes: object
    ) -> str:
        name = output or f"{self.node.output[0]}.{operator}.{len(self.nodes)}"
        label = label_of(self.node)
        label = label if operator in self.node.op_type else f"{label}.{operator}.{len(self.nodes)}"
        given = list(inputs)
        while given and not given[-1]:
            given.pop()
        chosen = {key: value for key, value in attributes.items() if value is not None}
        self.nodes.append(helper.make_node(operator, given, [name], label, domain=domain, **chosen))
        return name

    def real(self, first: int, axis: int | None = None) -> str:
        """The real values of inputs `first` to `first` + 2: a tensor, its scale and its zero point."""
        tensor, scale, zero = (self.input(first + i) for i in range(3))
        return self.dequantized(tensor, scale, zero, axis)

    def dequantized(self, tensor: str, scale: str, zero: str = "", axis: int | None = None) -> str:
        return self.add("DequantizeLinear", [tensor, scale, zero], axis=axis)

    def result(self, real: str, scale: int) -> None:
        """Quantize to the node's output, with the scale and zero point in inputs `scale` and `scale` + 1."""
        self.add("QuantizeLinear", [real, self.input(scale), self.input(scale + 1)], self.node.output[0])

    def number(self, value: float) -> str:
        tensor = helper.make_tensor("value", TensorProto.FLOAT, [], [value])
        return self.add("Constant", [], value=tensor)

    def refuse_channels_last(self) -> None:
        if self.attributes.pop("channels_last", 0):
            why, instead = "with channels_last=1", "use the model as it was before ONNX Runtime optimized it"
            raise cannot_import(self.node.op_type, self.node.domain, label_of(self.node), why, instead)


def _conv(write: _Writer) -> None:
    write.refuse_channels_last()
    x, w = write.real(0), write.real(3, axis=0)
    bias = write.input(8)
    if bias:
        bias = write.dequantized(bias, write.add("Mul", [write.input(1), write.input(4)]), axis=0)
    write.result(write.add("Conv", [x, w, bias], **write.attributes), 6)


def _matmul(write: _Writer) -> None:
    write.result(write.add("MatMul", [write.real(0, axis=-2), write.real(3, axis=-1)]), 6)


def _gemm(write: _Writer) -> None:
    attributes = write.attributes
    a, b = write.real(0), write.real(3, axis=0 if attributes.get("transB") else 1)
    c = write.input(6)
    if c:
        scale = write.add("Mul", [write.input(1), write.input(4)])
        if attributes.get("alpha", 1.0) != 1.0:
            scale = write.add("Mul", [scale, write.number(attributes["alpha"])])
        c = write.dequantized(c, scale, axis=-1)
    if write.input(7):
        write.result(write.add("Gemm", [a, b, c], **attributes), 7)
    else:
        write.add("Gemm", [a, b, c], write.node.output[0], **attributes)


def _binary(operator: str) -> Callable[[_Writer], None]:
    return lambda write: write.result(write.add(operator, [write.real(0), write.real(3)]), 6)


def _unary(operator: str) -> Callable[[_Writer], None]:
    def expand(write: _Writer) -> None:
        write.refuse_channels_last()
        write.result(write.add(operator, [write.real(0)], **write.attributes), 3)

    return expand


def _softmax(write: _Writer) -> None:
    x, axis = write.real(0), write.attributes.get("axis", -1)
    if write.attributes.get("opset", 13) >= 13 or axis == -1:
        write.result(write.add("Softmax", [x], axis=axis), 3)
        return
    # Before opset 13 all axes from `axis` on are one.
    rows = write.add("Softmax", [write.add("Flatten", [x], axis=axis)], axis=-1 if write.opset >= 13 else 1)
    write.result(write.add("Reshape", [rows, write.add("Shape", [x])]), 3)


def _reduce_mean(write: _Writer) -> None:
    x, axes, keep = write.real(0), write.attributes["axes"], write.attributes.get("keepdims", 1)
    if write.opset < 18:
        write.result(write.add("ReduceMean", [x], axes=axes, keepdims=keep), 3)
        return
    chosen = write.add("Constant", [], value=helper.make_tensor("axes", TensorProto.INT64, [len(axes)], axes))
    write.result(write.add("ReduceMean", [x, chosen], keepdims=keep), 3)


def _concat(write: _Writer) -> None:
    parts = [write.real(i) for i in range(2, len(write.node.input), 3)]
    write.result(write.add("Concat", parts, **write.attributes), 0)


def _where(write: _Writer) -> None:
    write.result(write.add("Where", [write.input(0), write.real(1), write.real(4)]), 7)


def _integers_to_float(write: _Writer, operands: Sequence[str], scales: Sequence[str], bias: str) -> None:
    """MatMulInteger, with a result in real values."""
    sums = write.add("Cast", [write.add("MatMulInteger", operands)], to=TensorProto.FLOAT)
    parts = [sums, write.add("Mul", scales)]
    if bias:
        write.add("Add", [write.add("Mul", parts), bias], write.node.output[0])
    else:
        write.add("Mul", parts, write.node.output[0])


def _matmul_to_float(write: _Writer) -> None:
    a, b, a_scale, b_scale, a_zero, b_zero, bias = (write.input(i) for i in range(7))
    _integers_to_float(write, [a, b, a_zero, b_zero], [a_scale, b_scale], bias)


def _dynamic_matmul(write: _Writer) -> None:
    a, b, b_scale, b_zero, bias = (write.input(i) for i in range(5))
    names = [f"{write.node.output[0]}.{part}" for part in ("quantized", "scale", "zero")]
    write.nodes.append(helper.make_node("DynamicQuantizeLinear", [a], names, f"{names[0]}.node"))
    _integers_to_float(write, [names[0], b, names[2], b_zero], [names[1], b_scale], bias)


def _attention(write: _Writer) -> None:
    x = write.dequantized(write.input(0), write.input(3), write.input(6))
    weight = write.dequantized(write.input(1), write.input(4), write.input(7), axis=1)
    inputs = [x, weight, write.input(2), write.input(5), write.input(8)]
    write.add("Attention", inputs, write.node.output[0], domain=MICROSOFT, **write.attributes)
    write.nodes[-1].output[:] = write.node.output


def _same(operator: str) -> Callable[[_Writer], None]:
    """The same operator of ONNX, which takes more datatypes and axes than it did when ONNX Runtime added its own."""
    return lambda write: _renamed(write, operator)


def _renamed(write: _Writer, operator: str) -> None:
    write.add(operator, list(write.node.input), write.node.output[0], **write.attributes)


EXPANSIONS: dict[tuple[str, str], Callable[[_Writer], None]] = {
    ("", "QLinearConv"): _conv,
    ("", "QLinearMatMul"): _matmul,
    (MICROSOFT, "DequantizeLinear"): _same("DequantizeLinear"),
    (MICROSOFT, "DynamicQuantizeMatMul"): _dynamic_matmul,
    (MICROSOFT, "MatMulIntegerToFloat"): _matmul_to_float,
    (MICROSOFT, "QAttention"): _attention,
    (MICROSOFT, "QGemm"): _gemm,
    (MICROSOFT, "QLinearAdd"): _binary("Add"),
    (MICROSOFT, "QLinearAveragePool"): _unary("AveragePool"),
    (MICROSOFT, "QLinearConcat"): _concat,
    (MICROSOFT, "QLinearConv"): _conv,
    (MICROSOFT, "QLinearGlobalAveragePool"): _unary("GlobalAveragePool"),
    (MICROSOFT, "QLinearLeakyRelu"): _unary("LeakyRelu"),
    (MICROSOFT, "QLinearMul"): _binary("Mul"),
    (MICROSOFT, "QLinearReduceMean"): _reduce_mean,
    (MICROSOFT, "QLinearSigmoid"): _unary("Sigmoid"),
    (MICROSOFT, "QLinearSoftmax"): _softmax,
    (MICROSOFT, "QLinearWhere"): _where,
    (MICROSOFT, "QuantizeLinear"): _same("QuantizeLinear"),
}
"""How each operator is written out, by domain and name."""


def write_out_quantized(model: onnx.ModelProto) -> None:
    """Replace the operators of `EXPANSIONS`, in the bodies of branches and loops, too.

    Raises InvalidArgument for an operator that has a layout of its own, and for weights of less than a byte that
    are not those of DequantizeLinear or MatMulNBits.
    """
    opset = opset_of(model)
    for graph in all_graphs(model.graph):
        widen_narrow_weights(graph)
        found = [("" if n.domain == "ai.onnx" else n.domain, n.op_type) in EXPANSIONS for n in graph.node]
        if not any(found):
            continue
        nodes: list[onnx.NodeProto] = []
        for node, chosen in zip(graph.node, found, strict=True):
            if chosen:
                write = _Writer(node, opset)
                EXPANSIONS["" if node.domain == "ai.onnx" else node.domain, node.op_type](write)
                nodes += write.nodes
            else:
                nodes.append(node)
        kept = [onnx.NodeProto.FromString(n.SerializeToString()) for n in nodes]
        del graph.node[:]
        graph.node.extend(kept)
