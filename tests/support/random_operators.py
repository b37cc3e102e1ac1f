"""Random models of one operator: shapes, datatypes, attributes, omitted inputs and opsets that ONNX's own tests lack.

Each generator draws one model. The draws depend on a seed only, so that a failure can be repeated.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from onnx import helper, numpy_helper

from tests.support.operator_cases import Case

Array = np.ndarray[Any, Any]
T = TypeVar("T")

FLOATS = ("float32", "float32", "float64", "float16")
INTEGERS = ("int64", "int32", "int8", "uint8")


class Draw:
    """Random choices from one seed."""

    def __init__(self, seed: str) -> None:
        self._random = random.Random(seed)
        self.numbers = np.random.default_rng(self._random.randrange(2**31))

    def one(self, values: Sequence[T]) -> T:
        return self._random.choice(values)

    def some(self, values: Sequence[T], count: int) -> list[T]:
        return self._random.sample(values, count)

    def coin(self, share: float = 0.5) -> bool:
        return self._random.random() < share

    def integer(self, least: int, most: int) -> int:
        return self._random.randint(least, most)

    def shape(self, least: int, most: int, extent: int = 5) -> list[int]:
        return [self.integer(1, extent) for _ in range(self.integer(least, most))]

    def axis(self, rank: int) -> int:
        """An axis, half of the time counted from the end."""
        return self.turned(self.integer(0, rank - 1), rank)

    def turned(self, axis: int, rank: int) -> int:
        return axis - rank if self.coin() else axis

    def array(self, shape: Sequence[int], dtype: str = "float32", odd: float = 0.1) -> Array:
        """Values of a datatype; now and then with NaN, infinities and ties."""
        if dtype == "bool":
            return self.numbers.random(tuple(shape)) < 0.5
        if dtype not in FLOATS:
            return self.numbers.integers(0 if dtype.startswith("u") else -7, 8, tuple(shape)).astype(dtype)
        values = np.asarray(self.numbers.standard_normal(tuple(shape)) * 3).astype(dtype)
        if values.size and self.coin(odd):
            for special in (np.nan, np.inf, -np.inf, -0.0, 0.5, 2.5, -2.5):
                values.reshape(-1)[self.integer(0, values.size - 1)] = special
        return values

    def broadcast(self, shape: Sequence[int]) -> list[int]:
        """A shape that broadcasts to another one."""
        dims = [1 if self.coin(0.3) else d for d in shape]
        return dims[self.integer(0, len(dims)) :] if self.coin() else dims


@dataclass
class Sample:
    """One operator. The inputs `constant` are weights; None is an omitted input."""

    operator: str
    inputs: list[Array | None]
    opset: int
    attributes: dict[str, Any] = field(default_factory=dict)
    outputs: int = 1
    constant: Sequence[int] = ()

    def case(self, name: str) -> Case | None:
        """A model with ONNX Runtime's result as the expected one; None for what ONNX Runtime does not compute."""
        import onnxruntime

        names = ["" if value is None else f"x{i}" for i, value in enumerate(self.inputs)]
        given = {n: np.asarray(v) for n, v in zip(names, self.inputs, strict=True) if v is not None}
        weights = {f"x{i}" for i in self.constant} | {n for n, v in given.items() if not v.size}
        fed = {n: v for n, v in given.items() if n not in weights}
        outputs = [f"y{i}" for i in range(self.outputs)]
        node = helper.make_node(self.operator, names, outputs, "it", **self.attributes)
        kinds = {n: helper.np_dtype_to_tensor_dtype(v.dtype) for n, v in fed.items()}
        graph = helper.make_graph(
            [node],
            name,
            [helper.make_tensor_value_info(n, kinds[n], v.shape) for n, v in fed.items()],
            [helper.make_empty_tensor_value_info(o) for o in outputs],
            [numpy_helper.from_array(v, n) for n, v in given.items() if n in weights],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8)
        options = onnxruntime.SessionOptions()
        options.log_severity_level, options.intra_op_num_threads = 4, 1
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        quiet = onnxruntime.RunOptions()
        quiet.log_severity_level = 4
        try:
            session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
            results = tuple(session.run(None, fed, quiet))
        except Exception:  # ONNX Runtime has an own class for each kind of error, without a common one
            return None
        for output, result in zip(model.graph.output, results, strict=True):
            output.type.tensor_type.elem_type = helper.np_dtype_to_tensor_dtype(result.dtype)
        double = any(v.dtype == np.float64 for v in given.values())
        return Case(name, model, tuple(fed.values()), results, 1e-5 if double else 2e-4, 1e-6 if double else 1e-4)


def element_wise(draw: Draw) -> Sample:
    operator = draw.one(
        ("Add", "Sub", "Mul", "Div", "Max", "Min", "Mod", "Equal", "Less", "GreaterOrEqual", "Where", "Pow")
    )
    kind = draw.one((*FLOATS, "int64", "int32"))
    shape = draw.shape(0, 4)
    values = [draw.array(s, kind) for s in (shape, draw.broadcast(shape))]
    attributes = {"fmod": 1} if operator == "Mod" and (kind in FLOATS or draw.coin()) else {}
    if operator in ("Div", "Mod") and kind not in FLOATS:
        values[1] = np.where(values[1] == 0, 3, values[1]).astype(kind)
    if operator == "Pow" and kind not in FLOATS:
        values[1] = np.abs(values[1] % 4).astype(kind)
    if draw.coin() and operator != "Pow":
        values.reverse()
        if operator in ("Div", "Mod") and kind not in FLOATS:
            values[1] = np.where(values[1] == 0, 3, values[1]).astype(kind)
    inputs: list[Array | None] = list(values)
    if operator == "Where":
        inputs = [draw.array(draw.broadcast(shape), "bool"), *values]
    return Sample(operator, inputs, draw.one((13, 16, 17)), attributes)


def unary(draw: Draw) -> Sample:
    names = ("Abs", "Ceil", "Clip", "Erf", "Exp", "Floor", "HardSigmoid", "IsInf", "LeakyRelu", "Log", "Neg", "Round")
    operator = draw.one((*names, "Selu", "Shrink", "Sigmoid", "Sign", "Softplus", "Sqrt", "Tanh", "Elu", "HardSwish"))
    kind = draw.one(("float32", "float32", "float64"))
    if operator in ("Abs", "Sign", "Neg", "Clip") and draw.coin():
        kind = draw.one(INTEGERS if operator != "Neg" else ("int64", "int32", "int8"))
    attributes: dict[str, Any] = {}
    if operator in ("HardSigmoid", "LeakyRelu", "Selu", "Elu") and draw.coin():
        attributes["alpha"] = draw.one((0.3, 1.0, 2.0))
    if operator == "IsInf":
        attributes = {name: draw.integer(0, 1) for name in ("detect_negative", "detect_positive") if draw.coin()}
    inputs: list[Array | None] = [draw.array(draw.shape(0, 4, draw.one((5, 20))), kind, 0.4)]
    if operator == "Clip":
        ends = sorted(draw.array([2], kind, 0).tolist())
        inputs += [None if draw.coin(0.3) else np.array(end, kind) for end in ends]
    return Sample(operator, inputs, draw.one((14, 17, 21)), attributes, constant=(1, 2) if draw.coin() else ())


def reduction(draw: Draw) -> Sample:
    names = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")
    operator = "Reduce" + draw.one(names)
    kind = draw.one((*FLOATS, "int32")) if operator in ("ReduceMax", "ReduceSum", "ReduceMean") else draw.one(FLOATS)
    shape = draw.shape(0, 4, draw.one((4, 17)))
    axes = [draw.turned(a, len(shape)) for a in draw.some(range(len(shape)), draw.integer(0, len(shape)))]
    opset = draw.one((11, 13, 18))
    x = draw.array(shape, kind, 0.2)
    x = np.abs(x) if operator == "ReduceLogSum" else x
    attributes: dict[str, Any] = {"keepdims": draw.integer(0, 1)} if draw.coin(0.8) else {}
    if opset >= 18 or (operator == "ReduceSum" and opset >= 13):
        if draw.coin(0.3):
            attributes["noop_with_empty_axes"] = draw.integer(0, 1)
        return Sample(operator, [x] if draw.coin(0.2) else [x, np.array(axes, "i8")], opset, attributes, constant=(1,))
    return Sample(operator, [x], opset, attributes | ({"axes": axes} if axes else {}))


def slices(draw: Draw) -> Sample:
    shape = draw.shape(1, 4, 7)
    axes = draw.some(range(len(shape)), draw.integer(1, len(shape)))
    starts, ends, steps = [], [], []
    for axis in axes:
        n, step = shape[axis], draw.one((1, 1, 2, 3, -1, -2))
        starts.append(draw.integer(-n - 2, n + 2))
        ends.append(draw.one((draw.integer(-n - 2, n + 2), n, 2**63 - 1 if step > 0 else -(2**63))))
        steps.append(step)
    turned = [draw.turned(a, len(shape)) for a in axes]
    numbers: list[Array | None] = [np.array(v, "i8") for v in (starts, ends, turned, steps)]
    return Sample("Slice", [draw.array(shape, draw.one((*FLOATS, *INTEGERS))), *numbers], 13, constant=(1, 2, 3, 4))


def gathers(draw: Draw) -> Sample:
    operator, shape = draw.one(("Gather", "GatherElements", "GatherND")), draw.shape(1, 4)
    x, axis = draw.array(shape, draw.one((*FLOATS, "int64", "bool"))), draw.axis(len(shape))
    if operator == "GatherND":
        width, wide = draw.integer(1, len(shape)), draw.shape(0, 2)
        places = [draw.numbers.integers(-shape[j], shape[j], wide) for j in range(width)]
        return Sample(operator, [x, np.stack(places, -1).astype("i8")], 13)
    wide = draw.shape(0, 3)
    if operator == "GatherElements":
        wide = [draw.integer(1, d) for d in shape]
        wide[axis] = draw.integer(1, 6)
    places = np.asarray(draw.numbers.integers(-shape[axis], shape[axis], wide)).astype(draw.one(("i8", "i4")))
    return Sample(operator, [x, places], 13, {"axis": axis})


def scatters(draw: Draw) -> Sample:
    shape, reduction = draw.shape(1, 4), draw.one(("none", "add", "mul", "max", "min"))
    axis, x = draw.axis(len(shape)), draw.array(shape, draw.one(("float32", "float64", "int32", "int64")), 0)
    wide = [draw.integer(1, d) for d in shape]
    rows = [draw.numbers.permutation(shape[axis])[: wide[axis]] for _ in range(x[..., 0].size * 99)]
    across = [d for a, d in enumerate(wide) if a != axis % len(shape)]
    places = np.array(rows[: int(np.prod(across))]).reshape([*across, wide[axis]])
    places = np.moveaxis(places, -1, axis)
    places = np.where(draw.numbers.random(places.shape) < 0.3, places - shape[axis], places)
    updates = draw.array(wide, str(x.dtype), 0)
    return Sample("ScatterElements", [x, places, updates], 18, {"axis": axis, "reduction": reduction})


def pads(draw: Draw) -> Sample:
    shape, mode = (
        [draw.integer(2, 6) for _ in range(draw.integer(1, 4))],
        draw.one(("constant", "reflect", "edge", "wrap")),
    )
    axes = draw.some(range(len(shape)), draw.integer(1, len(shape)))
    least = -1 if mode == "constant" else 0
    numbers = [draw.integer(least, min(3, shape[a] - 1)) for a in (*axes, *axes)]
    fill = draw.array([], "float32", 0) if mode == "constant" and draw.coin() else None
    turned = np.array([draw.turned(a, len(shape)) for a in axes])
    inputs = [draw.array(shape), np.array(numbers), fill, turned]
    return Sample("Pad", inputs, 19, {"mode": mode}, constant=(1, 2, 3))


def convolution(draw: Draw) -> Sample:
    rank, groups = draw.one((1, 2, 2, 3)), draw.one((1, 1, 2, 3))
    inside, outside = draw.integer(1, 3), draw.integer(1, 3)
    kernel = [draw.integer(1, 4) for _ in range(rank)]
    dilations = [draw.one((1, 1, 2, 3)) for _ in range(rank)]
    extents = [draw.integer(1, 7) + (k - 1) * d for k, d in zip(kernel, dilations, strict=True)]
    attributes: dict[str, Any] = {"dilations": dilations, "group": groups}
    if draw.coin():
        attributes["strides"] = [draw.integer(1, 3) for _ in range(rank)]
    padding = draw.one(("", "pads", "SAME_UPPER", "SAME_LOWER", "VALID"))
    if padding == "pads":
        attributes["pads"] = [draw.integer(0, 3) for _ in range(2 * rank)]
    elif padding:
        attributes["auto_pad"] = padding
    weight = draw.array([outside * groups, inside, *kernel], odd=0)
    bias = draw.array([outside * groups], odd=0) if draw.coin() else None
    x = draw.array([draw.integer(1, 2), inside * groups, *extents], odd=0)
    return Sample("Conv", [x, weight] + ([] if bias is None else [bias]), 11, attributes, constant=(1, 2))


def transposed(draw: Draw) -> Sample:
    rank, groups = draw.one((1, 2, 2)), draw.one((1, 2))
    kernel, strides = ([draw.integer(1, most) for _ in range(rank)] for most in (4, 3))
    attributes: dict[str, Any] = {"strides": strides, "group": groups}
    padding = draw.one(("", "pads", "SAME_UPPER", "SAME_LOWER", "output_shape"))
    extents = [draw.integer(2, 6) for _ in range(rank)]
    if padding == "pads":
        attributes["pads"] = [draw.integer(0, kernel[i % rank] // 2) for i in range(2 * rank)]
        attributes["output_padding"] = [draw.integer(0, s - 1) for s in strides]
    elif padding == "output_shape":
        whole = [s * (e - 1) + k for s, e, k in zip(strides, extents, kernel, strict=True)]
        attributes["output_shape"] = [w - draw.integer(0, k - 1) for w, k in zip(whole, kernel, strict=True)]
    elif padding:
        attributes["auto_pad"] = padding
    inside, outside = draw.integer(1, 3), draw.integer(1, 3)
    weight = draw.array([inside * groups, outside, *kernel], odd=0)
    x = draw.array([draw.integer(1, 2), inside * groups, *extents], odd=0)
    return Sample("ConvTranspose", [x, weight], 11, attributes, constant=(1,))


def pool(draw: Draw) -> Sample:
    operator, rank = draw.one(("MaxPool", "AveragePool")), draw.one((1, 2, 2, 3))
    kernel = [draw.integer(1, 4) for _ in range(rank)]
    attributes: dict[str, Any] = {"kernel_shape": kernel, "strides": [draw.integer(1, k) for k in kernel]}
    padding = draw.one(("", "pads", "SAME_UPPER", "SAME_LOWER", "VALID"))
    if padding == "pads":
        attributes["pads"] = [draw.integer(0, kernel[i % rank] - 1) for i in range(2 * rank)]
    elif padding:
        attributes["auto_pad"] = padding
    if not padding.startswith("SAME") and draw.coin():  # ONNX Runtime and ONNX disagree about both at once
        attributes["ceil_mode"] = 1
    if operator == "AveragePool":
        attributes["count_include_pad"] = draw.integer(0, 1)
    kind = draw.one(("float32", "float32", "float64", "uint8")) if operator == "MaxPool" else "float32"
    x = draw.array([draw.integer(1, 2), draw.integer(1, 3), *(draw.integer(k, 8) for k in kernel)], kind, 0)
    return Sample(operator, [x], draw.one((12, 19)), attributes)


def resized(draw: Draw) -> Sample:
    rank, mode = draw.one((1, 2, 2, 3)), draw.one(("nearest", "linear", "cubic"))
    mode = "linear" if mode == "cubic" and rank != 2 else mode
    attributes: dict[str, Any] = {"mode": mode}
    kinds = ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric", "half_pixel_symmetric")
    attributes["coordinate_transformation_mode"] = draw.one(kinds)
    if mode == "nearest":
        attributes["nearest_mode"] = draw.one(("round_prefer_floor", "round_prefer_ceil", "floor", "ceil"))
    elif draw.coin(0.3):
        attributes["antialias"] = 1
    sizes = np.array([1, 2, *(draw.integer(1, 9) for _ in range(rank))])
    x = draw.array([1, 2, *draw.shape(rank, rank, 6)], odd=0)
    return Sample("Resize", [x, None, None, sizes], 19, attributes, constant=(3,))


def product(draw: Draw) -> Sample:
    m, k, n = (draw.integer(1, draw.one((6, 40))) for _ in range(3))
    if draw.coin():
        a, b = draw.integer(0, 1), draw.integer(0, 1)
        added = draw.one(([m, n], [1, n], [m, 1], [n], []))
        inputs: list[Array | None] = [
            draw.array([k, m] if a else [m, k], odd=0),
            draw.array([n, k] if b else [k, n], odd=0),
        ]
        inputs += [draw.array(added, odd=0)] if draw.coin() else []
        return Sample("Gemm", inputs, 13, {"transA": a, "transB": b, "alpha": draw.one((1.0, 0.5)), "beta": 2.0})
    batch = draw.shape(0, 2, 3)
    left = [k] if draw.coin(0.2) else [*draw.broadcast(batch), m, k]
    right = [k] if draw.coin(0.2) else [*batch, k, n]
    return Sample("MatMul", [draw.array(left, odd=0), draw.array(right, odd=0)], 13)


def chosen(draw: Draw) -> Sample:
    operator, shape = draw.one(("TopK", "ArgMax", "Softmax", "CumSum", "Split", "Trilu")), draw.shape(1, 4, 7)
    axis, x = draw.axis(len(shape)), draw.array(shape, draw.one(("float32", "float64")), 0)
    if operator == "TopK":
        count = np.array([draw.integer(1, shape[axis])])
        return Sample(operator, [x, count], 11, {"axis": axis, "largest": draw.integer(0, 1)}, 2, (1,))
    if operator == "ArgMax":
        attributes = {"axis": axis, "keepdims": draw.integer(0, 1), "select_last_index": draw.integer(0, 1)}
        return Sample(draw.one(("ArgMax", "ArgMin")), [np.round(x)], 13, attributes)
    if operator == "Softmax":
        return Sample(draw.one(("Softmax", "LogSoftmax", "Hardmax")), [x], draw.one((11, 13)), {"axis": axis})
    if operator == "CumSum":
        flags = {name: draw.integer(0, 1) for name in ("exclusive", "reverse")}
        return Sample(operator, [x, np.array(axis)], 14, flags, constant=(1,))
    if operator == "Split":
        cuts = sorted(draw.integer(0, shape[axis]) for _ in range(draw.integer(1, 3)))
        sizes = np.diff([0, *cuts, shape[axis]])
        return Sample(operator, [x, sizes], 13, {"axis": axis}, len(sizes), (1,))
    return Sample(
        operator, [draw.array([*shape, 4]), np.array(draw.integer(-7, 7))], 14, {"upper": draw.integer(0, 1)}, 1, (1,)
    )


GENERATORS: tuple[Callable[[Draw], Sample], ...] = (
    *(element_wise, unary, reduction, slices, gathers, scatters, pads),
    *(convolution, transposed, pool, resized, product, chosen),
)


def samples(seeds: Sequence[int]) -> list[tuple[str, Sample]]:
    """One sample of each generator for each seed, with its name."""
    return [
        (f"{generator.__name__}/{seed}", generator(Draw(f"{generator.__name__}/{seed}")))
        for seed in seeds
        for generator in GENERATORS
    ]
