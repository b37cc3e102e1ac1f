"""A small net of each family, in the form that exporters write; random weights, the same in every run.

Each function writes a file and returns where to cut it, and inputs to run it with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Array = np.ndarray[Any, Any]
Dims = Sequence[int | str]


@dataclass(frozen=True)
class Case:
    """A net: its file, the tensors to cut at, all tensors that are sent, the inputs' dimensions, and samples."""

    file: Path
    cut: tuple[str, ...]
    sent: tuple[str, ...]
    """Datatypes of the tensors that cross the wire."""
    inputs: Mapping[str, Dims]
    samples: Sequence[Mapping[str, Array]]


class Net:
    """Writes a net, node by node."""

    def __init__(self, **inputs: tuple[int, Dims]) -> None:
        self.inputs = inputs
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.generator = np.random.default_rng(0)

    def add(self, operator: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        names = [f"{operator.lower()}_{len(self.nodes)}{'' if i == 0 else f'_{i}'}" for i in range(outputs)]
        self.nodes.append(helper.make_node(operator, list(inputs), names, **attributes))
        return names[0] if outputs == 1 else names

    def value(self, value: Array | float | Sequence[int]) -> str:
        """Add a constant; integers are int64."""
        array = value if isinstance(value, np.ndarray) else np.asarray(value)
        array = array.astype("f4") if array.dtype == np.float64 else array
        self.weights.append(numpy_helper.from_array(array, f"constant_{len(self.weights)}"))
        return str(self.weights[-1].name)

    def weight(self, *shape: int) -> str:
        depth = int(np.prod(shape[1:])) if len(shape) > 2 else shape[0]
        return self.value(self.generator.standard_normal(shape) / depth**0.5)

    def conv(self, x: str, rows: int, columns: int, *kernel: int, **attributes: Any) -> str:
        """A convolution that keeps the size of the image, unless it has strides."""
        pads = [k // 2 for k in kernel] * 2
        weight, bias = self.weight(rows, columns, *kernel), self.weight(rows)
        return str(self.add("Conv", x, weight, bias, **{"pads": pads, "kernel_shape": kernel, **attributes}))

    def dense(self, x: str, rows: int, columns: int) -> str:
        return str(self.add("Add", self.add("MatMul", x, self.weight(rows, columns)), self.weight(columns)))

    def norm(self, x: str, width: int) -> str:
        return str(self.add("LayerNormalization", x, self.weight(width), self.weight(width), axis=-1, epsilon=1e-5))

    def gelu(self, x: str) -> str:
        gate = self.add("Add", self.add("Erf", self.add("Div", x, self.value(2**0.5))), self.value(1.0))
        return str(self.add("Mul", self.add("Mul", x, gate), self.value(0.5)))

    def extent(self, x: str, axis: int) -> str:
        """An extent as a vector of one value, as exporters compute it."""
        found = self.add("Gather", self.add("Shape", x), self.value(np.array(axis)), axis=0)
        return str(self.add("Unsqueeze", found, self.value([0])))

    def heads(self, x: str, count: int, width: int) -> str:
        shape = self.add(
            "Concat", self.extent(x, 0), self.extent(x, 1), self.value([count]), self.value([width]), axis=0
        )
        return str(self.add("Reshape", x, shape))

    def block(self, x: str, width: int, mask: str | None = None, causal: str | None = None) -> str:
        """A block of a transformer, with two heads. `mask` is added to the scores; where `causal` is false they are
        minus infinity."""
        read, size = self.norm(x, width), width // 2
        query, key, value = (
            self.add("Transpose", self.heads(self.dense(read, width, width), 2, size), perm=order)
            for order in ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3])
        )
        scores = self.add("Div", self.add("MatMul", query, key), self.value(size**0.5))
        if mask is not None:
            scores = self.add("Add", scores, mask)
        if causal is not None:
            scores = self.add("Where", causal, scores, self.value(np.array(-np.inf, "f4")))
        mixed = self.add("MatMul", self.add("Softmax", scores, axis=-1), value)
        joined = self.add("Transpose", mixed, perm=[0, 2, 1, 3])
        shape = self.add("Concat", self.extent(x, 0), self.extent(x, 1), self.value([width]), axis=0)
        x = self.add("Add", x, self.dense(self.add("Reshape", joined, shape), width, width))
        wide = self.gelu(self.dense(self.norm(x, width), width, 2 * width))
        return str(self.add("Add", x, self.dense(wide, 2 * width, width)))

    def save(self, path: Path, *outputs: str) -> Path:
        graph = helper.make_graph(
            self.nodes,
            "net",
            [helper.make_tensor_value_info(n, kind, list(dims)) for n, (kind, dims) in self.inputs.items()],
            [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in outputs],
            self.weights,
        )
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
        return path

    def case(
        self,
        path: Path,
        outputs: Sequence[str],
        cut: Sequence[str],
        samples: Sequence[Mapping[str, int]],
        sent: Sequence[str] = ("FP32",),
        inputs: Mapping[str, Dims] | None = None,
    ) -> Case:
        """Save the net. `samples` are the values of its symbolic extents, one run each."""
        arrays = []
        for seed, known in enumerate(samples):
            generator = np.random.default_rng(seed)
            fed: dict[str, Array] = {}
            for name, (kind, dims) in self.inputs.items():
                shape = [known[d] if isinstance(d, str) else d for d in dims]
                if kind == TensorProto.FLOAT:
                    fed[name] = generator.standard_normal(shape).astype("f4")
                elif name == "mask":
                    fed[name] = (np.arange(shape[1]) < generator.integers(2, shape[1], (shape[0], 1))).astype("i8")
                else:
                    fed[name] = generator.integers(0, 20, shape)
            arrays.append(fed)
        written = inputs or {name: dims for name, (_, dims) in self.inputs.items()}
        return Case(self.save(path, *outputs), tuple(cut), tuple(sent), written, arrays)


def vision_transformer(path: Path) -> Case:
    """Patches of 4x4, a token for the class, positions, two blocks, a classifier."""
    net = Net(x=(TensorProto.FLOAT, [1, 3, 16, 16]))
    patches = net.conv("x", 24, 3, 4, 4, strides=[4, 4], pads=[0] * 4)
    rows = net.add("Transpose", net.add("Reshape", patches, net.value([1, 24, 16])), perm=[0, 2, 1])
    tokens = net.add("Add", net.add("Concat", net.weight(1, 1, 24), rows, axis=1), net.weight(1, 17, 24))
    cut = net.block(tokens, 24)
    last = net.norm(net.block(cut, 24), 24)
    y = net.dense(net.add("Gather", last, net.value(np.array(0)), axis=1), 24, 10)
    return net.case(path, [y], [cut], [{}, {}])


def text_encoder(path: Path) -> Case:
    """Words, positions, and three blocks that all read a mask of the batch: it is sent along."""
    net = Net(ids=(TensorProto.INT64, ["batch", 8]), mask=(TensorProto.INT64, ["batch", 8]))
    words = net.add("Gather", net.weight(20, 24), "ids")
    x = net.add("Add", words, net.weight(1, 8, 24))
    shape = net.add("Concat", net.extent("ids", 0), net.value([1]), net.value([8]), net.value([8]), axis=0)
    wide = net.add("Expand", net.add("Unsqueeze", "mask", net.value([1, 2])), shape)
    hidden = net.add("Sub", net.value(1.0), net.add("Cast", wide, to=TensorProto.FLOAT))
    bias = net.add("Mul", hidden, net.value(np.array(np.finfo("f4").min)))
    cut = net.block(x, 24, mask=bias)
    y = net.block(net.block(cut, 24, mask=bias), 24, mask=bias)
    return net.case(path, [y], [cut], [{"batch": 1}, {"batch": 3}], ["FP32", "INT64"])


def text_decoder(path: Path) -> Case:
    """Words, positions by Range, and blocks with a causal mask."""
    net = Net(ids=(TensorProto.INT64, [1, 12]))
    length = net.add("Squeeze", net.extent("ids", 1), net.value([0]))
    places = net.add("Range", net.value(np.array(0)), length, net.value(np.array(1)))
    x = net.add("Add", net.add("Gather", net.weight(20, 24), "ids"), net.add("Gather", net.weight(16, 24), places))
    row, column = (net.add("Unsqueeze", places, net.value([axis])) for axis in (1, 0))
    causal = net.add("LessOrEqual", column, row)
    cut = net.block(x, 24, causal=causal)
    last = net.norm(net.block(cut, 24, causal=causal), 24)
    logits = net.add("MatMul", last, net.weight(24, 20))
    return net.case(path, [logits], [cut], [{}, {}])


def decoder_with_a_cache(path: Path) -> Case:
    """Two blocks that take the keys and values of any number of earlier tokens, and give those of all. The mask is of
    all tokens. The second block runs on a worker."""
    cache = (TensorProto.FLOAT, ["batch", 2, "past", 12])
    caches = [(f"past.{i}.key", f"past.{i}.value") for i in range(2)]
    net = Net(
        ids=(TensorProto.INT64, ["batch", "new"]),
        mask=(TensorProto.INT64, ["batch", "all"]),
        **{name: cache for names in caches for name in names},
    )
    past, new = (net.add("Squeeze", net.extent(*at), net.value([0])) for at in ((caches[0][0], 2), ("ids", 1)))
    zero, one = net.value(np.array(0)), net.value(np.array(1))
    places = net.add("Add", net.add("Range", zero, new, one), past)
    row = net.add("Unsqueeze", places, net.value([1]))
    before = net.add("LessOrEqual", net.add("Range", zero, net.add("Add", past, new), one), row)
    keep = net.add("Unsqueeze", net.add("Cast", "mask", to=TensorProto.BOOL), net.value([1, 2]))
    seen = net.add("And", before, keep)
    x = net.add("Add", net.add("Gather", net.weight(20, 24), "ids"), net.add("Gather", net.weight(64, 24), places))
    blocks, presents = [x], []
    for names in caches:
        read = net.norm(x, 24)
        query, *now = (
            net.add("Transpose", net.heads(net.dense(read, 24, 24), 2, 12), perm=[0, 2, 1, 3]) for _ in range(3)
        )
        key, value = (net.add("Concat", name, part, axis=2) for name, part in zip(names, now, strict=True))
        scores = net.add("MatMul", query, net.add("Transpose", key, perm=[0, 1, 3, 2]))
        masked = net.add("Where", seen, scores, net.value(np.array(-1e9, "f4")))
        mixed = net.add("MatMul", net.add("Softmax", masked, axis=-1), value)
        shape = net.add("Concat", net.extent("ids", 0), net.extent("ids", 1), net.value([24]), axis=0)
        joined = net.add("Reshape", net.add("Transpose", mixed, perm=[0, 2, 1, 3]), shape)
        x = net.add("Add", x, net.dense(joined, 24, 24))
        blocks.append(x)
        presents += [key, value]
    samples = [{"batch": b, "new": n, "past": p, "all": n + p} for b, n, p in ((1, 1, 9), (2, 3, 4))]
    inputs = {name: ["past+new" if d == "all" else d for d in dims] for name, (_, dims) in net.inputs.items()}
    sent = ["FP32"] * 3 + ["BOOL"]
    return net.case(path, [x, *presents], [blocks[1], *caches[1]], samples, sent, inputs)


def detection(path: Path) -> Case:
    """Features of two sizes, joined as in a pyramid, and heads for boxes and scores of each."""
    net = Net(x=(TensorProto.FLOAT, [1, 3, 32, 32]))
    stem = net.add("Relu", net.conv("x", 8, 3, 3, 3, strides=[2, 2]))
    cut = net.add("Relu", net.conv(stem, 16, 8, 3, 3, strides=[2, 2]))
    low = net.add("Relu", net.conv(cut, 16, 16, 3, 3, strides=[2, 2]))
    large = net.add("Resize", low, "", net.value(np.array([1, 1, 2, 2], "f4")), mode="nearest", nearest_mode="floor",
                    coordinate_transformation_mode="asymmetric")  # fmt: skip
    boxes: list[str] = []
    scores: list[str] = []
    for level in (net.add("Add", large, cut), low):
        for results, width in ((boxes, 4), (scores, 5)):
            turned = net.add("Transpose", net.conv(level, 2 * width, 16, 3, 3), perm=[0, 2, 3, 1])
            results.append(net.add("Reshape", turned, net.value([1, -1, width])))
    corners = net.add("Exp", net.add("Concat", *boxes, axis=1))
    classes = net.add("Sigmoid", net.add("Concat", *scores, axis=1))
    return net.case(path, [corners, classes], [cut], [{}, {}])


def detection_with_suppression(path: Path) -> Case:
    """Boxes and scores, and as exporters write it: NonMaxSuppression, and what is read by its rows. The brighter the
    image, the more boxes are kept; of the darkest one, none."""
    net = Net(x=(TensorProto.FLOAT, [1, 3, 16, 16]))
    cut = net.add("Relu", net.conv("x", 8, 3, 3, 3, strides=[2, 2]))
    flat = net.value([1, 12, 64])
    boxes, scores = net.add("Split", net.add("Reshape", net.conv(cut, 12, 8, 3, 3), flat), net.value([4, 8]),
                            outputs=2, axis=1)  # fmt: skip
    boxes = net.add("Transpose", net.add("Sigmoid", boxes), perm=[0, 2, 1])
    light = net.add("ReduceMean", "x", axes=[1, 2, 3], keepdims=0)
    scores = net.add("Mul", net.add("Sigmoid", scores), light)
    rows = net.add("NonMaxSuppression", boxes, scores, net.value([5]), net.value([0.4]), net.value([0.3]))
    last = net.value([1])
    place = net.add("Squeeze", net.add("Gather", rows, net.value([2]), axis=1), last)
    kept = net.add("Gather", net.add("Squeeze", boxes, net.value([0])), place, axis=0)
    score = net.add("Unsqueeze", net.add("GatherND", scores, rows), last)
    kind = net.add("Cast", net.add("Slice", rows, last, net.value([2]), last), to=TensorProto.FLOAT)
    found = net.add("Concat", kept, score, kind, axis=1)
    images = [net.generator.random((1, 3, 16, 16)).astype("f4") * np.float32(light) for light in (2, 1, 0)]
    file = net.save(path, found)
    return Case(file, (cut, light), ("FP32", "FP32"), {"x": (1, 3, 16, 16)}, [{"x": image} for image in images])


def segmentation(path: Path) -> Case:
    """A U-Net for images of any even height; the cut goes through its skip connection."""
    net = Net(x=(TensorProto.FLOAT, [1, 3, "H", 32]))
    top = net.add("Relu", net.conv("x", 8, 3, 3, 3))
    x = net.add("Relu", net.conv(net.add("MaxPool", top, kernel_shape=[2, 2], strides=[2, 2]), 16, 8, 3, 3))
    cut = [top, x]
    size = net.add("Slice", net.add("Shape", top), net.value([2]), net.value([4]), net.value([0]))
    kept = net.add("Slice", net.add("Shape", x), net.value([0]), net.value([2]), net.value([0]))
    sizes = net.add("Concat", kept, size, axis=0)
    x = net.add("Resize", x, "", "", sizes, mode="linear", coordinate_transformation_mode="half_pixel")
    y = net.conv(net.add("Concat", x, top, axis=1), 4, 24, 3, 3)
    dims = {"x": (1, 3, "2*H", 32)}
    return net.case(path, [y], cut, [{"H": 16}, {"H": 22}], ["FP32"] * 2, dims)


def super_resolution(path: Path) -> Case:
    """Convolutions at the small size, and a shuffle of channels to twice the size, plus the image enlarged."""
    net = Net(x=(TensorProto.FLOAT, [1, 3, 9, 13]))
    first = net.conv("x", 16, 3, 3, 3)
    cut = net.add("PRelu", first, net.weight(16, 1, 1))
    y = net.add("Add", cut, net.conv(net.add("Relu", net.conv(cut, 16, 16, 3, 3)), 16, 16, 3, 3))
    y = net.add("DepthToSpace", net.conv(y, 12, 16, 3, 3), blocksize=2, mode="CRD")
    large = net.add("Resize", "x", "", net.value(np.array([1, 1, 2, 2], "f4")), mode="linear",
                    coordinate_transformation_mode="half_pixel")  # fmt: skip
    return net.case(path, [net.add("Add", y, large)], [cut, "x"], [{}, {}], ["FP32"] * 2)


def speech(path: Path) -> Case:
    """One-dimensional convolutions over features of any length: strided, gated, depthwise."""
    net = Net(x=(TensorProto.FLOAT, [1, 20, "time"]))
    stem = net.gelu(net.conv("x", 24, 20, 3, strides=[2]))
    cut = net.norm(net.add("Transpose", stem, perm=[0, 2, 1]), 24)
    turned = net.add("Transpose", cut, perm=[0, 2, 1])
    one, two = net.add("Split", net.conv(turned, 48, 24, 1), axis=1, outputs=2)
    gated = net.add("Mul", one, net.add("Sigmoid", two))
    deep = net.conv(gated, 24, 1, 5, group=24)
    swish = net.add("Mul", deep, net.add("Sigmoid", deep))
    y = net.dense(net.add("Add", net.add("Transpose", swish, perm=[0, 2, 1]), cut), 24, 12)
    y, dims = net.add("LogSoftmax", y, axis=-1), {"x": (1, 20, "2*time")}
    return net.case(path, [y], [cut], [{"time": 20}, {"time": 34}], inputs=dims)


def video(path: Path) -> Case:
    """Three-dimensional convolutions with a residual block."""
    net = Net(x=(TensorProto.FLOAT, [1, 3, 4, 16, 16]))
    cut = net.add("Relu", net.conv("x", 8, 3, 3, 7, 7, strides=[1, 2, 2]))
    deep = net.conv(net.add("Relu", net.conv(cut, 8, 8, 3, 3, 3)), 8, 8, 3, 3, 3)
    y = net.add("Flatten", net.add("GlobalAveragePool", net.add("Relu", net.add("Add", deep, cut))))
    return net.case(path, [net.add("Gemm", y, net.weight(6, 8), net.weight(6), transB=1)], [cut], [{}, {}])


def tabular(path: Path) -> Case:
    """Embeddings of categories, normalized numbers, and products of all pairs, as in a recommender."""
    net = Net(x=(TensorProto.FLOAT, ["batch", 6]), categories=(TensorProto.INT64, ["batch", 3]))
    scale, shift, mean = net.weight(6), net.weight(6), net.weight(6)
    spread = net.value(net.generator.random(6).astype("f4") + 0.5)
    numbers = net.dense(net.add("BatchNormalization", "x", scale, shift, mean, spread), 6, 8)
    rows = [net.add("Unsqueeze", net.add("Relu", numbers), net.value([1]))]
    for column in range(3):
        place = net.add("Gather", "categories", net.value(np.array(column)), axis=1)
        rows.append(net.add("Unsqueeze", net.add("Gather", net.weight(20, 8), place), net.value([1])))
    cut = net.add("Concat", *rows, axis=1)
    pairs = net.add("MatMul", cut, net.add("Transpose", cut, perm=[0, 2, 1]))
    flat = net.add("Reshape", pairs, net.value([-1, 16]))
    y = net.add("Sigmoid", net.dense(net.add("Relu", net.dense(flat, 16, 16)), 16, 1))
    return net.case(path, [y], [cut], [{"batch": 1}, {"batch": 5}])


CASES = {
    build.__name__: build
    for build in (
        vision_transformer,
        text_encoder,
        text_decoder,
        detection,
        detection_with_suppression,
        segmentation,
        super_resolution,
        speech,
        video,
        tabular,
    )
}
