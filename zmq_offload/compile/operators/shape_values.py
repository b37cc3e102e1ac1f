"""Values that a model computes from extents: known as expressions when the model is imported.

Exporters write shapes as graphs: Shape, Gather, Mul, Concat, Reshape. Each node here whose inputs are such values gives
one again, by the arithmetic of ONNX. So a shape is a list of expressions of extents, however it was computed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx.helper import tensor_dtype_to_np_dtype

from zmq_offload.byoc.extents import Extents, fraction_of
from zmq_offload.compile.operators.shape_arithmetic import Arithmetic, NotKnown, Ratio, Scalar
from zmq_offload.protocol.payload import Array

MOST_ELEMENTS = 4096
"""Larger constants are weights."""


@dataclass(frozen=True)
class Value:
    """A tensor of known shape whose elements are expressions of extents."""

    elements: Array
    dtype: str

    @property
    def numbers(self) -> Array | None:
        """The tensor, if no element depends on a symbol."""
        flat = [_number(element) for element in self.elements.flat]
        if any(number is None for number in flat):
            return None
        return np.array(flat, self.dtype).reshape(self.elements.shape)


def _number(element: Scalar) -> float | None:
    if isinstance(element, Ratio):
        return element.above / element.below if isinstance(element.above, int) else None
    return element if isinstance(element, bool | int) else None


def value_of(array: Array) -> Value | None:
    """A constant as a value; None if it is no part of a shape computation."""
    if array.size > MOST_ELEMENTS or array.dtype.kind not in "iubf":
        return None
    elements = np.empty(array.shape, object)
    for at, number in np.ndenumerate(array):
        if array.dtype.kind == "f":
            fraction = fraction_of(float(number))
            if fraction is None:
                return None
            elements[at] = Ratio(fraction.numerator, fraction.denominator)
        else:
            elements[at] = bool(number) if array.dtype.kind == "b" else int(number)
    return Value(elements, str(array.dtype))


def evaluated(node: onnx.NodeProto, inputs: Sequence[Value | None], opset: int, extents: Extents) -> list[Value]:
    """The results of a node. Omitted inputs are None. Raises NotKnown."""
    evaluate = EVALUATED.get(node.op_type)
    if evaluate is None or node.domain not in ("", "ai.onnx"):
        raise NotKnown
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    try:
        results = evaluate(_Node(list(inputs), attributes, opset, len(node.output), Arithmetic(extents)))
    except (IndexError, ValueError, TypeError) as error:  # not a valid node; the import of it says so
        raise NotKnown from error
    results = [Value(_array(r.elements), r.dtype) for r in (results if isinstance(results, list) else [results])]
    if any(result.elements.size > MOST_ELEMENTS for result in results):
        raise NotKnown
    return results


def _array(elements: Scalar) -> Array:
    """NumPy gives an element where an array without dimensions is meant."""
    if isinstance(elements, np.ndarray):
        return elements
    found = np.empty((), object)
    found[()] = elements
    return found


@dataclass(frozen=True)
class _Node:
    inputs: list[Value | None]
    attributes: dict[str, Any]
    opset: int
    outputs: int
    arithmetic: Arithmetic

    def value(self, index: int) -> Value:
        value = self.inputs[index]
        if value is None:
            raise NotKnown
        return value

    def integers(self, index: int, attribute: str) -> list[int] | None:
        """A list of numbers, which is an attribute in old opsets and an input in new ones; None if it is omitted."""
        if attribute in self.attributes:
            given = self.attributes[attribute]
            return [int(v) for v in (given if isinstance(given, list | tuple) else [given])]
        if index >= len(self.inputs) or self.inputs[index] is None:
            return None
        numbers = self.value(index).numbers
        if numbers is None:
            raise NotKnown
        return [int(v) for v in numbers.reshape(-1)]


def _element_wise(function: Callable[..., Scalar], result: str | None = None) -> Callable[[_Node], Value]:
    def evaluate(node: _Node) -> Value:
        values = [node.value(i) for i in range(len(node.inputs))]
        arrays = np.broadcast_arrays(*[v.elements for v in values])
        method = function.__get__(node.arithmetic)
        elements = np.empty(arrays[0].shape, object)
        for at in np.ndindex(elements.shape):
            elements[at] = method(*[array[at] for array in arrays])
        return Value(elements, result or values[-1].dtype)

    return evaluate


def _folded(function: Callable[..., Scalar]) -> Callable[[_Node], Value]:
    """Min, Max and Sum take any number of inputs."""

    def evaluate(node: _Node) -> Value:
        total = node.value(0)
        for index in range(1, len(node.inputs)):
            pair = _Node([total, node.value(index)], {}, node.opset, 1, node.arithmetic)
            total = _element_wise(function)(pair)
        return total

    return evaluate


def _reduce(function: Callable[..., Scalar], first: int | None) -> Callable[[_Node], Value]:
    def evaluate(node: _Node) -> Value:
        value = node.value(0)
        axes, rank = node.integers(1, "axes"), value.elements.ndim
        if not axes and node.attributes.get("noop_with_empty_axes"):
            return value
        chosen = sorted({a % rank for a in axes} if axes else set(range(rank)))
        kept = [a for a in range(rank) if a not in chosen]
        moved = value.elements.transpose([*kept, *chosen]).reshape([*(value.elements.shape[a] for a in kept), -1])
        method = function.__get__(node.arithmetic)
        elements = np.empty(moved.shape[:-1], object)
        for at in np.ndindex(elements.shape):
            row = list(moved[at])
            if not row and (first is None or value.dtype.startswith("float")):
                raise NotKnown
            total = row.pop(0) if row else first
            for element in row:
                total = method(total, element)
            elements[at] = total
        if node.attributes.get("keepdims", 1):
            elements = elements.reshape([1 if a in chosen else e for a, e in enumerate(value.elements.shape)])
        return Value(elements, value.dtype)

    return evaluate


def _moved(function: Callable[[_Node, Array], Array]) -> Callable[[_Node], Value]:
    """An operator that moves elements only."""

    def evaluate(node: _Node) -> Value:
        value = node.value(0)
        return Value(function(node, value.elements), value.dtype)

    return evaluate


def _gather(node: _Node) -> Value:
    data, indices = node.value(0), node.value(1).numbers
    if indices is None:
        raise NotKnown
    return Value(np.take(data.elements, indices.astype(int), int(node.attributes.get("axis", 0))), data.dtype)


def _slice(node: _Node, elements: Array) -> Array:
    starts, ends = node.integers(1, "starts"), node.integers(2, "ends")
    axes, steps = node.integers(3, "axes"), node.integers(4, "steps")
    if starts is None or ends is None:
        raise NotKnown
    places = [slice(None)] * elements.ndim
    for i, axis in enumerate(range(len(starts)) if axes is None else axes):
        step = 1 if steps is None else steps[i]
        # Past the beginning, backward: Python has no number for it.
        end = None if step < 0 and ends[i] < -elements.shape[axis] else ends[i]
        places[axis] = slice(starts[i], end, step)
    return np.asarray(elements[tuple(places)])


def _concat(node: _Node) -> Value:
    values = [node.value(i) for i in range(len(node.inputs))]
    return Value(np.concatenate([v.elements for v in values], int(node.attributes["axis"])), values[0].dtype)


def _split(node: _Node) -> list[Value]:
    value = node.value(0)
    axis, sizes = int(node.attributes.get("axis", 0)), node.integers(1, "split")
    if sizes is None:
        each = -(-value.elements.shape[axis] // node.outputs)
        ends = [min(each * (i + 1), value.elements.shape[axis]) for i in range(node.outputs)]
    else:
        ends = list(itertools.accumulate(sizes))
    return [Value(piece, value.dtype) for piece in np.split(value.elements, ends[:-1], axis)]


def _squeeze(node: _Node, elements: Array) -> Array:
    axes = node.integers(1, "axes")
    return elements.squeeze(tuple(axes) if axes is not None else None)


def _unsqueeze(node: _Node, elements: Array) -> Array:
    axes = node.integers(1, "axes")
    if axes is None:
        raise NotKnown
    return np.expand_dims(elements, tuple(axes))


def _reshape(node: _Node, elements: Array) -> Array:
    shape = node.integers(1, "shape")
    if shape is None:
        raise NotKnown
    if not node.attributes.get("allowzero"):
        shape = [elements.shape[axis] if extent == 0 else extent for axis, extent in enumerate(shape)]
    return elements.reshape(shape)


def _expand(node: _Node, elements: Array) -> Array:
    shape = node.integers(1, "")
    if shape is None or math.prod(shape) > MOST_ELEMENTS:
        raise NotKnown
    return np.broadcast_to(elements, np.broadcast_shapes(elements.shape, tuple(shape)))


def _constant_of_shape(node: _Node) -> Value:
    shape = node.integers(0, "")
    if shape is None or math.prod(shape) > MOST_ELEMENTS:
        raise NotKnown
    given = node.attributes.get("value")
    number = np.zeros(1, np.float32) if given is None else onnx.numpy_helper.to_array(given)
    value = value_of(number.reshape(-1))
    if value is None:
        raise NotKnown
    return Value(np.broadcast_to(value.elements, shape), value.dtype)


def _cast(node: _Node) -> Value:
    value, after = node.value(0), str(tensor_dtype_to_np_dtype(int(node.attributes["to"])))
    if not after.strip("u").startswith(("int", "float", "bool")):
        raise NotKnown
    elements = np.empty(value.elements.shape, object)
    for at, element in np.ndenumerate(value.elements):
        elements[at] = node.arithmetic.cast(element, value.dtype, after)
    return Value(elements, after)


def _clip(node: _Node) -> Value:
    """Limits are inputs since opset 11."""
    if node.opset < 11:
        raise NotKnown
    value = node.value(0)
    for index, function in ((1, Arithmetic.most), (2, Arithmetic.least)):
        if index < len(node.inputs) and node.inputs[index] is not None:
            value = _element_wise(function)(_Node([value, node.value(index)], {}, node.opset, 1, node.arithmetic))
    return value


def _not_less(arithmetic: Arithmetic, a: Scalar, b: Scalar) -> Scalar:
    return arithmetic.negate(arithmetic.less(a, b))


def _either(arithmetic: Arithmetic, a: Scalar, b: Scalar) -> Scalar:
    return arithmetic.negate(arithmetic.both(arithmetic.negate(a), arithmetic.negate(b)))


def _opposite(arithmetic: Arithmetic, a: Scalar) -> Scalar:
    return arithmetic.multiply(a, Ratio(-1) if isinstance(a, Ratio) else -1)


EVALUATED: dict[str, Callable[[_Node], Value | list[Value]]] = {
    "Add": _element_wise(Arithmetic.add),
    "And": _element_wise(Arithmetic.both),
    "Cast": _cast,
    "Ceil": _element_wise(Arithmetic.ceil),
    "Clip": _clip,
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "Div": _element_wise(Arithmetic.divide),
    "Equal": _element_wise(Arithmetic.equal, "bool"),
    "Expand": _moved(_expand),
    "Floor": _element_wise(Arithmetic.floor),
    "Gather": _gather,
    "Greater": _element_wise(lambda self, a, b: self.less(b, a), "bool"),
    "GreaterOrEqual": _element_wise(_not_less, "bool"),
    "Identity": _moved(lambda _, elements: elements),
    "Less": _element_wise(Arithmetic.less, "bool"),
    "LessOrEqual": _element_wise(lambda self, a, b: _not_less(self, b, a), "bool"),
    "Max": _folded(Arithmetic.most),
    "Min": _folded(Arithmetic.least),
    "Mod": _element_wise(Arithmetic.modulo),
    "Mul": _element_wise(Arithmetic.multiply),
    "Neg": _element_wise(_opposite),
    "Not": _element_wise(Arithmetic.negate),
    "Or": _element_wise(_either),
    "ReduceMax": _reduce(Arithmetic.most, None),
    "ReduceMin": _reduce(Arithmetic.least, None),
    "ReduceProd": _reduce(Arithmetic.multiply, 1),
    "ReduceSum": _reduce(Arithmetic.add, 0),
    "Reshape": _moved(_reshape),
    "Slice": _moved(_slice),
    "Split": _split,
    "Squeeze": _moved(_squeeze),
    "Sub": _element_wise(Arithmetic.subtract),
    "Sum": _folded(Arithmetic.add),
    "Transpose": _moved(lambda node, elements: np.transpose(elements, node.attributes.get("perm"))),
    "Unsqueeze": _moved(_unsqueeze),
    "Where": _element_wise(Arithmetic.choose),
}
"""Operators of shape computations. Shape and Size, whose inputs are tensors, are `_Importer`'s."""
