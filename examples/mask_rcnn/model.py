"""A Mask R-CNN in Relax with random weights from a seed, the network of the proposal as far as its shapes are known.

The input is a picture of 640 x 480. A MobileNetV2-like backbone (inverted residuals, ReLU6) computes the feature map
(1,16,40,30). The heads follow: a region proposal network with NMS, ROIAlign, a box head with NMS per class, and a mask
head for the eight best boxes. Random weights find nothing in a picture, but each step takes its real time.

All shapes are static: where there are fewer boxes, the best one is repeated with score 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from tvm import relax
from tvm.relax.op import vision

from zmq_offload.protocol.payload import Array

FEATURES = "features"
"""The tensor between backbone and heads, where the model is cut."""

OUTPUTS = ("boxes", "labels", "scores", "masks")


@dataclass(frozen=True)
class Config:
    """The sizes of the network.

    `blocks` are those of the backbone: expansion, channels and stride of each. With the stem there are four strides of
    2. `anchors` is the number of best anchors for the first NMS, `proposals` the number of boxes that it keeps.
    """

    height: int = 640
    width: int = 480
    stem: int = 8
    blocks: tuple[tuple[int, int, int], ...] = (
        (1, 8, 2), (3, 12, 1), (3, 16, 2), (4, 16, 1), (4, 24, 2), (4, 24, 1), (4, 24, 1),
    )  # fmt: skip
    features: int = 16
    rpn: int = 64
    anchors: int = 256
    proposals: int = 100
    hidden: int = 768
    classes: int = 21
    mask: int = 96
    detections: int = 8

    @property
    def input_shape(self) -> tuple[int, int, int, int]:
        return 1, 3, self.height, self.width

    @property
    def feature_shape(self) -> tuple[int, int, int, int]:
        return 1, self.features, self.height // STRIDE, self.width // STRIDE


STRIDE = 16
SIZES, RATIOS = (32.0, 96.0, 256.0), (0.5, 1.0, 2.0)

SMALL = Config(64, 48, 4, ((2, 4, 2), (2, 8, 2), (2, 8, 2)), 16, 8, 32, 6, 16, 4, 8)
"""The same network, small enough for a test."""


def mask_rcnn(config: Config | None = None, seed: int = 0) -> tvm.IRModule:
    """The network: `main` takes `image`, float32 [1,3,height,width] from 0 to 1, and returns `OUTPUTS`.

    boxes (8,4) as x1, y1, x2, y2 in pixels, labels (8) int64 from 1, scores (8), best first, masks (8,1,12,12) from 0
    to 1 over each box; float32 but for the labels.
    """
    config = config or Config()
    layers = _Layers(np.random.default_rng(seed))
    builder = layers.builder
    image = relax.Var("image", relax.TensorType(config.input_shape, "float32"))
    with builder.function("main", [image]):
        with builder.dataflow():
            features = _backbone(layers, image, config)
            proposals = _proposals(layers, features, config)
            boxes, labels, scores = _boxes(layers, features, proposals, config)
            masks = _masks(layers, features, boxes, labels, config)
            found = zip((boxes, labels, scores, masks), OUTPUTS, strict=True)
            results = [builder.emit_output(value, name) for value, name in found]
        builder.emit_func_output(relax.Tuple(results))
    return builder.get()


class _Layers:
    """Layers with weights of their own."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.builder = relax.BlockBuilder()
        self._rng = rng

    def emit(self, value: Any, name: str = "") -> Any:
        return self.builder.emit(value, name)

    def weight(self, *shape: int, fan_in: int) -> relax.Expr:
        # He initialization keeps the magnitude of signals through ReLUs.
        return relax.const((self._rng.standard_normal(shape) * (2.0 / fan_in) ** 0.5).astype("float32"))

    def conv(self, x: Any, out: int, kernel: int, stride: int = 1, groups: int = 1, name: str = "") -> Any:
        """Convolution and bias. Without training, a batch normalization is the same."""
        into = int(x.ty.shape[1]) // groups
        weight = self.weight(out, into, kernel, kernel, fan_in=into * kernel * kernel)
        padding = kernel // 2
        y = self.emit(relax.op.nn.conv2d(x, weight, strides=stride, padding=padding, groups=groups))
        return self.emit(relax.op.add(y, self._bias(1, out, 1, 1)), name)

    def relu6(self, x: Any) -> Any:
        return self.emit(relax.op.clip(x, 0, 6))

    def relu(self, x: Any) -> Any:
        return self.emit(relax.op.nn.relu(x))

    def linear(self, x: Any, out: int) -> Any:
        into = int(x.ty.shape[1])
        y = self.emit(relax.op.matmul(x, self.weight(into, out, fan_in=into)))
        return self.emit(relax.op.add(y, self._bias(1, out)))

    def _bias(self, *shape: int) -> relax.Expr:
        return relax.const((self._rng.standard_normal(shape) * 0.1).astype("float32"))


def _backbone(layers: _Layers, image: Any, config: Config) -> Any:
    x = layers.relu6(layers.conv(image, config.stem, 3, 2))
    for expansion, out, stride in config.blocks:
        skip, channels = x, int(x.ty.shape[1])
        if expansion > 1:
            x = layers.relu6(layers.conv(x, channels * expansion, 1))
        wide = int(x.ty.shape[1])
        x = layers.relu6(layers.conv(x, wide, 3, stride, groups=wide))
        x = layers.conv(x, out, 1)
        if stride == 1 and channels == out:
            x = layers.emit(relax.op.add(x, skip))
    return layers.conv(x, config.features, 1, name=FEATURES)


def _proposals(layers: _Layers, features: Any, config: Config) -> Any:
    """(proposals, 4): boxes that may contain an object."""
    emit = layers.emit
    each = len(SIZES) * len(RATIOS)
    x = layers.relu(layers.conv(features, config.rpn, 3))
    rows, columns = config.feature_shape[2:]
    total = rows * columns * each
    objectness = _by_position(layers, layers.conv(x, each, 1), (total,))
    deltas = _by_position(layers, layers.conv(x, 4 * each, 1), (total, 4))
    best = emit(relax.op.topk(objectness, config.anchors, axis=0, ret_type="both", dtype="int32"))
    scores, chosen = emit(best[0]), emit(best[1])
    boxes = _decoded(
        layers,
        emit(relax.op.take(relax.const(anchors(rows, columns)), chosen, axis=0)),
        emit(relax.op.take(deltas, chosen, axis=0)),
        config,
    )
    zeros = relax.const(np.zeros((config.anchors, 1), "float32"))
    kept, _ = _suppressed(layers, zeros, scores, boxes, config.proposals, 0.7)
    return emit(relax.op.take(boxes, kept, axis=0))


def _boxes(layers: _Layers, features: Any, proposals: Any, config: Config) -> tuple[Any, Any, Any]:
    """The best boxes of all classes, their labels and scores."""
    emit = layers.emit
    x = _aligned(layers, features, proposals, 7)
    x = emit(relax.op.reshape(x, (config.proposals, config.features * 49)))
    x = layers.relu(layers.linear(layers.relu(layers.linear(x, config.hidden)), config.hidden))
    classes = config.classes
    found = emit(relax.op.nn.softmax(layers.linear(x, classes), axis=1))
    real = emit(relax.op.strided_slice(found, [1], [1], [classes]))  # class 0 is the background
    total = config.proposals * (classes - 1)
    deltas = emit(relax.op.reshape(layers.linear(x, 4 * (classes - 1)), (total, 4)))
    count = min(total, 2 * config.proposals)
    flat = emit(relax.op.reshape(real, (total,)))
    best = emit(relax.op.topk(flat, count, axis=0, ret_type="both", dtype="int32"))
    scores, chosen = emit(best[0]), emit(best[1])
    # Candidate i is class i % (classes - 1) of proposal i // (classes - 1); tables replace the division.
    owner = np.repeat(np.arange(config.proposals, dtype="int32"), classes - 1)
    label = np.tile(np.arange(1, classes, dtype="int32"), config.proposals)
    labels = emit(relax.op.take(relax.const(label), chosen, axis=0))
    base = emit(relax.op.take(proposals, emit(relax.op.take(relax.const(owner), chosen, axis=0)), axis=0))
    boxes = _decoded(layers, base, emit(relax.op.take(deltas, chosen, axis=0)), config)
    column = emit(relax.op.reshape(emit(relax.op.astype(labels, "float32")), (count, 1)))
    kept, valid = _suppressed(layers, column, scores, boxes, config.detections, 0.5)
    return (
        emit(relax.op.take(boxes, kept, axis=0)),
        emit(relax.op.astype(emit(relax.op.take(labels, kept, axis=0)), "int64")),
        emit(relax.op.multiply(emit(relax.op.take(scores, kept, axis=0)), valid)),
    )


def _masks(layers: _Layers, features: Any, boxes: Any, labels: Any, config: Config) -> Any:
    """(detections, 1, 12, 12): the mask of each box for its own class."""
    emit, many = layers.emit, config.detections
    x = _aligned(layers, features, boxes, 6)
    for _ in range(3):
        x = layers.relu(layers.conv(x, config.mask, 3))
    weight = layers.weight(config.mask, config.mask, 2, 2, fan_in=config.mask)
    x = layers.relu(emit(relax.op.nn.conv2d_transpose(x, weight, strides=2)))
    x = emit(relax.op.reshape(layers.conv(x, config.classes, 1), (many * config.classes, 144)))
    first = relax.const(np.arange(many) * config.classes, "int64")
    x = emit(relax.op.take(x, emit(relax.op.add(labels, first)), axis=0))
    return emit(relax.op.reshape(emit(relax.op.sigmoid(x)), (many, 1, 12, 12)))


def _by_position(layers: _Layers, x: Any, shape: tuple[int, ...]) -> Any:
    """(1, n, rows, columns) -> rows, columns, n, flattened: in the order of `anchors`."""
    return layers.emit(relax.op.reshape(layers.emit(relax.op.permute_dims(x, [0, 2, 3, 1])), shape))


def _aligned(layers: _Layers, features: Any, boxes: Any, size: int) -> Any:
    emit = layers.emit
    zeros = relax.const(np.zeros((int(boxes.ty.shape[0]), 1), "float32"))  # the index in the batch
    rois = emit(relax.op.concat([zeros, boxes], axis=1))
    return emit(vision.roi_align(features, rois, (size, size), 1.0 / STRIDE, sample_ratio=2, aligned=True))


def _decoded(layers: _Layers, base: Any, deltas: Any, config: Config) -> Any:
    """Boxes moved and stretched by what a head says, inside the picture."""
    emit, op = layers.emit, relax.op

    def halves(x: Any) -> tuple[Any, Any]:
        parts = emit(op.split(x, 2, axis=1))
        return emit(parts[0]), emit(parts[1])

    (first, last), (move, stretch) = halves(base), halves(deltas)
    size = emit(op.subtract(last, first))
    center = emit(op.add(first, emit(op.multiply(size, relax.const(0.5)))))
    center = emit(op.add(center, emit(op.multiply(emit(op.multiply(move, relax.const(0.1))), size))))
    limited = emit(op.clip(emit(op.multiply(stretch, relax.const(0.2))), -4, 4))
    half = emit(op.multiply(emit(op.multiply(emit(op.exp(limited)), size)), relax.const(0.5)))
    corners = emit(op.concat([emit(op.subtract(center, half)), emit(op.add(center, half))], axis=1))
    ends = relax.const(np.array([[config.width, config.height] * 2], "float32"))
    return emit(op.minimum(emit(op.maximum(corners, relax.const(0.0))), ends))


def _suppressed(layers: _Layers, classes: Any, scores: Any, boxes: Any, keep: int, overlap: float) -> tuple[Any, Any]:
    """Indices (keep) of the boxes after NMS, best first, and (keep) 1.0, or 0.0 for a repeated box."""
    emit, op = layers.emit, relax.op
    many = int(boxes.ty.shape[0])
    column = emit(op.reshape(emit(op.sigmoid(scores)), (many, 1)))  # NMS ignores scores of 0 and below
    data = emit(op.reshape(emit(op.concat([classes, column, boxes], axis=1)), (1, many, 6)))
    every = relax.const(np.arange(many, dtype="int32").reshape(1, many))
    found = emit(
        vision.non_max_suppression(
            data, relax.const(np.array([many], "int32")), every, keep, overlap, return_indices=True
        )
    )
    indices = emit(op.reshape(emit(op.strided_slice(emit(found[0]), [1], [0], [keep])), (keep,)))
    valid = emit(op.astype(emit(op.greater_equal(indices, relax.const(0, "int32"))), "float32"))
    return emit(op.maximum(indices, relax.const(0, "int32"))), valid


def anchors(rows: int, columns: int) -> Array:
    """(rows * columns * 9, 4): nine initial boxes at each position of the feature map."""
    shapes = np.array([(s * r**-0.5, s * r**0.5) for s in SIZES for r in RATIOS], "float32")
    y, x = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
    centers = (np.stack([x, y], -1).astype("float32") + 0.5)[:, :, None, :] * STRIDE
    return np.concatenate([centers - shapes / 2, centers + shapes / 2], -1).reshape(-1, 4)
