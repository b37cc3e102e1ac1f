"""Quantized networks: time of one run, one thread, beside ONNX Runtime and beside their float32 form.

    python -m tests.benchmarks.quantized

The networks are built here, with random weights, quantized statically (`--quantize int8`) and dynamically
(`onnxruntime.quantization.quantize_dynamic`). Times are minima of the thread's CPU time, taken in turns.
"""

from __future__ import annotations

import os

os.environ["TVM_NUM_THREADS"] = "1"

import contextlib
import io
import logging
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

from zmq_offload.compile import UncutModel, compile_uncut
from zmq_offload.compile.quantization.quantize import quantize_model

ROUNDS = 20
Array = np.ndarray[Any, Any]


class Net:
    """Writes a float32 network, layer by layer."""

    def __init__(self, *shape: int) -> None:
        self.generator = np.random.default_rng(0)
        self.shape, self.top = shape, "x"
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, Array] = {}

    def weight(self, *shape: int) -> str:
        name = f"w{len(self.weights)}"
        fan = np.prod(shape[1:]) if len(shape) > 2 else shape[0]
        self.weights[name] = (self.generator.standard_normal(shape) * (2 / fan) ** 0.5).astype("f4")
        return name

    def add(self, operator: str, *inputs: str, **attributes: Any) -> str:
        self.top = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [self.top], **attributes))
        return self.top

    def conv(self, rows: int, columns: int, kernel: int, stride: int = 1, group: int = 1) -> str:
        weight = self.weight(rows, columns // group, kernel, kernel)
        pads = [kernel // 2] * 4
        return self.add("Conv", self.top, weight, self.weight(rows), strides=[stride] * 2, pads=pads, group=group)

    def dense(self, x: str, rows: int, columns: int) -> str:
        return self.add("Add", self.add("MatMul", x, self.weight(rows, columns)), self.weight(columns))

    def save(self, path: Path) -> Path:
        self.nodes[-1].output[0] = "y"
        graph = helper.make_graph(
            self.nodes,
            "net",
            [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, list(self.shape))],
            [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
            [numpy_helper.from_array(w, n) for n, w in self.weights.items()],
        )
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
        return path


def residual() -> Net:
    """Four blocks of two 3x3 convolutions with 64 channels, as in ResNet."""
    net = Net(1, 3, 112, 112)
    skip = net.add("Relu", net.conv(64, 3, 7, 2))
    for _ in range(4):
        net.add("Relu", net.conv(64, 64, 3))
        skip = net.add("Relu", net.add("Add", net.conv(64, 64, 3), skip))
    net.add("Flatten", net.add("GlobalAveragePool", skip))
    net.dense(net.top, 64, 100)
    return net


def mobile() -> Net:
    """Blocks of 1x1, depthwise and 1x1 convolutions, as in MobileNet."""
    net = Net(1, 3, 112, 112)
    net.add("Relu", net.conv(32, 3, 3, 2))
    channels = 32
    for wide, after, stride in ((96, 24, 2), (144, 24, 1), (144, 32, 2), (192, 32, 1), (192, 64, 2), (384, 64, 1)):
        net.add("Relu", net.conv(wide, channels, 1))
        net.add("Relu", net.conv(wide, wide, 3, stride, wide))
        net.conv(after, wide, 1)
        channels = after
    net.add("Flatten", net.add("GlobalAveragePool", net.top))
    net.dense(net.top, channels, 100)
    return net


def transformer() -> Net:
    """Two blocks of attention and a feed-forward part with GELU, as in BERT."""
    length, width, heads = 128, 256, 4
    net = Net(1, length, width)
    net.weights |= {"scale": np.float32((width // heads) ** -0.5), "half": np.float32(0.5), "one": np.float32(1)}
    net.weights |= {"root": np.float32(2**0.5), "split": np.array([0, length, heads, width // heads])}
    net.weights |= {"joined": np.array([0, length, width]), "gain": np.ones(width, "f4"), "zero": np.zeros(width, "f4")}
    for _ in range(2):
        x = net.top
        parts = [net.add("Reshape", net.dense(x, width, width), "split") for _ in range(3)]
        query, value = (net.add("Transpose", p, perm=[0, 2, 1, 3]) for p in (parts[0], parts[2]))
        key = net.add("Transpose", parts[1], perm=[0, 2, 3, 1])
        scores = net.add("Softmax", net.add("Mul", net.add("MatMul", query, key), "scale"), axis=-1)
        joined = net.add("Transpose", net.add("MatMul", scores, value), perm=[0, 2, 1, 3])
        mixed = net.add("Add", net.dense(net.add("Reshape", joined, "joined"), width, width), x)
        x = net.add("LayerNormalization", mixed, "gain", "zero", axis=-1)
        wide = net.dense(x, width, 4 * width)
        gate = net.add("Add", net.add("Erf", net.add("Div", wide, "root")), "one")
        narrow = net.dense(net.add("Mul", net.add("Mul", wide, gate), "half"), 4 * width, width)
        net.add("LayerNormalization", net.add("Add", narrow, x), "gain", "zero", axis=-1)
    return net


def fastest(runs: Sequence[Callable[[], object]]) -> list[float]:
    """The least CPU time of each, in ms, taken in turns."""
    times: list[list[float]] = [[] for _ in runs]
    for _ in range(ROUNDS):
        for run, taken in zip(runs, times, strict=True):
            begin = time.thread_time()
            run()
            taken.append(time.thread_time() - begin)
    return [min(taken) * 1e3 for taken in times]


def runners(file: Path, x: Array) -> list[Callable[[], object]]:
    """A model in this project and in ONNX Runtime, one thread each."""
    library = file.with_suffix(".so")
    compile_uncut(file, library)
    uncut = UncutModel(library)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    return [lambda: uncut(x), lambda: session.run(None, {"x": x})]


def main() -> None:
    from onnxruntime import quantization

    print(f"{'network':<14}{'int8':<9}{'ours ms':>9}{'ONNX Runtime':>14}{'ratio':>7}{'our float32':>13}{'faster':>8}")
    for build in (residual, mobile, transformer):
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
            logging.disable(logging.WARNING)
            plain = build().save(Path(folder) / "float32.onnx")
            shape = build().shape
            samples = [np.random.default_rng(i).standard_normal(shape).astype("f4") for i in range(4)]
            quantize_model(plain, samples, Path(folder) / "static.onnx", check=False)
            quantization.quantize_dynamic(str(plain), str(Path(folder) / "dynamic.onnx"))
            files = [Path(folder) / f"{kind}.onnx" for kind in ("float32", "static", "dynamic")]
            runs = [run for file in files for run in runners(file, samples[0])]
            real, _, *others = fastest(runs)
        for kind, ours, theirs in (("static", *others[:2]), ("dynamic", *others[2:])):
            figures = f"{ours:>9.2f}{theirs:>14.2f}{ours / theirs:>7.2f}{real:>13.2f}{real / ours:>8.2f}"
            print(f"{build.__name__:<14}{kind:<9}{figures}", flush=True)


if __name__ == "__main__":
    main()
