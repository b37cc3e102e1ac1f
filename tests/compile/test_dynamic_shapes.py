"""Symbolic extents, in the node patterns in which exporters write computed shapes, against ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from tvm import tirx

from zmq_offload.artifacts.repository import Repository
from zmq_offload.byoc.extents import Extents
from zmq_offload.compile import compile_model, list_cuts
from zmq_offload.compile.onnx.importer import import_onnx
from zmq_offload.compile.uncut import UncutModel, compile_uncut
from zmq_offload.errors import InvalidArgument
from zmq_offload.protocol.payload import Array
from zmq_offload.protocol.tensors import TensorSpec, check_tensors

N = helper.make_node
FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
FEW = settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def numbers(*values: int) -> Array:
    return np.array(values, np.int64)


def scalar(value: float, dtype: str = "int64") -> Array:
    return np.array(value, dtype)


def saved(
    file: Path,
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, tuple[int, Sequence[int | str]]],
    outputs: Mapping[str, int],
    weights: Mapping[str, Array],
) -> Path:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in inputs.items()],
        [helper.make_tensor_value_info(name, kind, None) for name, kind in outputs.items()],
        [onnx.numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), file)
    return file


class Both:
    """A model compiled without a cut, and the same file in ONNX Runtime."""

    def __init__(self, file: Path, inputs: Mapping[str, Sequence[int | str]]) -> None:
        compile_uncut(file, file.with_suffix(".so"), inputs=inputs)
        self._ours = UncutModel(file.with_suffix(".so"))
        self._right = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])

    def agree(self, **feeds: Array) -> None:
        for ours, right in zip(self._ours(*feeds.values()), self._right.run(None, feeds), strict=True):
            assert ours.shape == right.shape and ours.dtype == right.dtype
            np.testing.assert_allclose(ours, right, rtol=1e-4, atol=1e-5)


# A mask as TorchScript writes it: Expand to a shape in which Where replaces -1 by 1, and a mask of rows and columns.
MASK = [
    N("Shape", ["ids"], ["s"]),
    N("Gather", ["s", "i0"], ["b"]),
    N("Gather", ["s", "i1"], ["t"]),
    N("Cast", ["mask"], ["keep"], to=TensorProto.BOOL),
    N("Unsqueeze", ["keep", "a12"], ["keep4"]),
    N("Unsqueeze", ["b", "a0"], ["b1"]),
    N("Unsqueeze", ["t", "a0"], ["t1"]),
    N("Concat", ["b1", "one", "t1", "t1"], ["wanted"], axis=0),
    N("ConstantOfShape", ["four"], ["ones"], value=onnx.numpy_helper.from_array(numbers(1))),
    N("Mul", ["ones", "minus"], ["minuses"]),
    N("Equal", ["wanted", "minuses"], ["open"]),
    N("Where", ["open", "ones", "wanted"], ["shape"]),
    N("Expand", ["keep4", "shape"], ["wide"]),
    N("Range", ["z", "t", "o"], ["r"]),
    N("Unsqueeze", ["r", "a0"], ["row"]),
    N("Unsqueeze", ["r", "a1"], ["column"]),
    N("LessOrEqual", ["row", "column"], ["before"]),
    N("And", ["wide", "before"], ["seen"]),
    N("Where", ["seen", "zero", "low"], ["bias"]),
]
# Attention of two heads, reshaped by products of extents, and positions from a table that is longer than the sequence.
ENCODER = [
    N("Gather", ["words", "ids"], ["e"]),
    N("Slice", ["positions", "a0", "t1", "a1"], ["p"]),
    N("Gather", ["table", "p"], ["pe"]),
    N("Add", ["e", "pe"], ["x"]),
    N("Concat", ["b1", "t1", "two", "eight"], ["heads"], axis=0),
    *[node for name in "qkv" for node in (
        N("MatMul", ["x", f"w{name}"], [f"m{name}"]),
        N("Reshape", [f"m{name}", "heads"], [f"h{name}"]),
        N("Transpose", [f"h{name}"], [name], perm=[0, 2, 3, 1] if name == "k" else [0, 2, 1, 3]),
    )],
    N("MatMul", ["q", "k"], ["scores"]),
    N("Add", ["scores", "bias"], ["masked"]),
    N("Softmax", ["masked"], ["weights"], axis=-1),
    N("MatMul", ["weights", "v"], ["mixed"]),
    N("Transpose", ["mixed"], ["back"], perm=[0, 2, 1, 3]),
    N("Mul", ["two", "eight"], ["width"]),
    N("Concat", ["b1", "t1", "width"], ["flat"], axis=0),
    N("Reshape", ["back", "flat"], ["z1"]),
    N("MatMul", ["z1", "wo"], ["out"]),
    N("Add", ["out", "x"], ["block"]),
    N("Relu", ["block"], ["y"]),
]  # fmt: skip


def encoder(file: Path) -> Path:
    rng = np.random.default_rng(0)
    weights: dict[str, Array] = {f"w{n}": rng.standard_normal((16, 16)).astype("f4") / 4 for n in "qkvo"}
    weights |= {n: rng.standard_normal((128, 16)).astype("f4") for n in ("words", "table")}
    weights |= {"positions": np.arange(128)[None], "zero": scalar(0, "f4"), "low": scalar(-1e9, "f4")}
    weights |= {"i0": scalar(0), "i1": scalar(1), "z": scalar(0), "o": scalar(1), "minus": scalar(-1)}
    weights |= {"a0": numbers(0), "a1": numbers(1), "a12": numbers(1, 2), "one": numbers(1), "four": numbers(4)}
    weights |= {"two": numbers(2), "eight": numbers(8)}
    inputs = {name: (INT64, ["b", "t"]) for name in ("ids", "mask")}
    return saved(file, [*MASK, *ENCODER], inputs, {"y": FLOAT}, weights)


def words(batch: int, length: int) -> dict[str, Array]:
    rng = np.random.default_rng(batch * 100 + length)
    mask = np.ones((batch, length), np.int64)
    mask[-1, length // 2 + 1 :] = 0
    return {"ids": rng.integers(0, 64, (batch, length)), "mask": mask}


@pytest.fixture(scope="module")
def encoder_of_any_size(tmp_path_factory: pytest.TempPathFactory) -> Both:
    file = encoder(tmp_path_factory.mktemp("encoder") / "m.onnx")
    return Both(file, {"ids": ("B", "T"), "mask": ("B", "T")})


@FEW
@given(batch=st.integers(1, 5), length=st.integers(1, 64))
def test_an_encoder_of_any_batch_and_length(encoder_of_any_size: Both, batch: int, length: int) -> None:
    encoder_of_any_size.agree(**words(batch, length))


@pytest.mark.parametrize("cut", [["x", "bias"], pytest.param(["block"], marks=pytest.mark.operators)])
def test_an_encoder_is_cut_and_checked(tmp_path: Path, cut: list[str]) -> None:
    """The check runs both halves on two inputs of different extents."""
    file = encoder(tmp_path / "m.onnx")
    inputs = {"ids": ("B", "T"), "mask": ("B", "T")}
    compiled = compile_model(file, cut=cut, name="m", inputs=inputs, output=tmp_path / "dist", check=True)
    assert compiled.check is not None and "2 random inputs" in compiled.check.on
    # A worker refuses what is longer than the table of positions, too.
    served = Repository(tmp_path / "dist" / "repository").read("m", 1).inputs
    assert served == compiled.manifest.offloaded[0].inputs
    most = {spec.name: spec.maximums for spec in served}
    assert most[cut[0]] == (-1, 128, -1)
    given = {
        s.name: (s.datatype, tuple(129 if m == 128 else max(d, 1) for d, m in zip(s.shape, s.maximums, strict=True)))
        for s in served
    }
    with pytest.raises(InvalidArgument, match="a table of the model ends at 128"):
        check_tensors(served, given, what="model 'm'")


def cached_decoder(file: Path) -> Path:
    """Two blocks of attention that take the keys and values of earlier tokens, and give those of all."""
    rng = np.random.default_rng(0)
    nodes = [
        N("Shape", ["past.0.key"], ["ps"]),
        N("Gather", ["ps", "i2"], ["p"]),
        N("Shape", ["ids"], ["s"]),
        N("Gather", ["s", "i1"], ["t"]),
        N("Gather", ["s", "i0"], ["b"]),
        N("Range", ["z", "t", "o"], ["new"]),
        N("Add", ["new", "p"], ["place"]),
        N("Add", ["t", "p"], ["end"]),
        N("Range", ["z", "end", "o"], ["all"]),
        N("Unsqueeze", ["place", "a1"], ["row"]),
        N("LessOrEqual", ["all", "row"], ["before"]),
        N("Cast", ["mask"], ["keep"], to=TensorProto.BOOL),
        N("Unsqueeze", ["keep", "a12"], ["keep4"]),
        N("And", ["before", "keep4"], ["seen"]),
        N("Cast", ["row"], ["angle"], to=FLOAT),
        N("Sin", ["angle"], ["wave"]),
        N("Gather", ["words", "ids"], ["e"]),
        N("Add", ["e", "wave"], ["x0"]),
        N("Unsqueeze", ["b", "a0"], ["b1"]),
        N("Unsqueeze", ["t", "a0"], ["t1"]),
        N("Concat", ["b1", "t1", "two", "eight"], ["heads"], axis=0),
        N("Concat", ["b1", "t1", "width"], ["flat"], axis=0),
    ]
    weights: dict[str, Array] = {"words": rng.standard_normal((64, 16)).astype("f4"), "low": scalar(-1e9, "f4")}
    weights |= {"i0": scalar(0), "i1": scalar(1), "i2": scalar(2), "z": scalar(0), "o": scalar(1)}
    weights |= {"a0": numbers(0), "a1": numbers(1), "a12": numbers(1, 2), "two": numbers(2), "eight": numbers(8)}
    weights |= {"width": numbers(16)}
    for i in range(2):
        weights |= {f"w{i}{n}": rng.standard_normal((16, 16)).astype("f4") / 4 for n in "qkvo"}
        for name in "qkv":
            nodes += [
                N("MatMul", [f"x{i}", f"w{i}{name}"], [f"m{i}{name}"]),
                N("Reshape", [f"m{i}{name}", "heads"], [f"h{i}{name}"]),
                N("Transpose", [f"h{i}{name}"], [f"{name}{i}"], perm=[0, 2, 1, 3]),
            ]
        nodes += [
            N("Concat", [f"past.{i}.key", f"k{i}"], [f"present.{i}.key"], axis=2),
            N("Concat", [f"past.{i}.value", f"v{i}"], [f"present.{i}.value"], axis=2),
            N("Transpose", [f"present.{i}.key"], [f"kt{i}"], perm=[0, 1, 3, 2]),
            N("MatMul", [f"q{i}", f"kt{i}"], [f"scores{i}"]),
            N("Where", ["seen", f"scores{i}", "low"], [f"masked{i}"]),
            N("Softmax", [f"masked{i}"], [f"weights{i}"], axis=-1),
            N("MatMul", [f"weights{i}", f"present.{i}.value"], [f"mixed{i}"]),
            N("Transpose", [f"mixed{i}"], [f"back{i}"], perm=[0, 2, 1, 3]),
            N("Reshape", [f"back{i}", "flat"], [f"z{i}"]),
            N("MatMul", [f"z{i}", f"w{i}o"], [f"out{i}"]),
            N("Add", [f"out{i}", f"x{i}"], [f"x{i + 1}"]),
        ]
    inputs = {"ids": (INT64, ["b", "s"]), "mask": (INT64, ["b", "past_plus_s"])}
    caches = [f"{i}.{kind}" for i in range(2) for kind in ("key", "value")]
    past = {f"past.{cache}": (FLOAT, ["b", 2, "past", 8]) for cache in caches}
    return saved(file, nodes, inputs | past, {"x2": FLOAT} | {f"present.{c}": FLOAT for c in caches}, weights)


CACHE = ("B", 2, "P", 8)
CACHED = {"ids": ("B", "S"), "mask": ("B", "P+S")}
CACHED |= {f"past.{i}.{kind}": CACHE for i in range(2) for kind in ("key", "value")}


def tokens(batch: int, new: int, past: int) -> dict[str, Array]:
    rng = np.random.default_rng(past)
    mask = np.ones((batch, past + new), np.int64)
    mask[-1, : past // 2] = 0
    known = {name: rng.standard_normal((batch, 2, past, 8)).astype("f4") for name in CACHED if "past" in name}
    return {"ids": rng.integers(0, 64, (batch, new)), "mask": mask, **known}


@pytest.fixture(scope="module")
def decoder_with_a_cache(tmp_path_factory: pytest.TempPathFactory) -> Both:
    return Both(cached_decoder(tmp_path_factory.mktemp("decoder") / "m.onnx"), CACHED)


@pytest.mark.operators
@FEW
@given(batch=st.integers(1, 3), new=st.integers(1, 5), past=st.integers(1, 40))
def test_a_decoder_with_a_cache_of_any_length(decoder_with_a_cache: Both, batch: int, new: int, past: int) -> None:
    """The mask has an extent that is a sum of two others."""
    decoder_with_a_cache.agree(**tokens(batch, new, past))


def test_places_after_those_of_a_cache(tmp_path: Path) -> None:
    """`P` is a number for the places of the new tokens, and the extent of none of their tensors."""
    nodes = [
        N("Shape", ["past"], ["ps"]),
        N("Gather", ["ps", "i1"], ["p"]),
        N("Shape", ["x"], ["s"]),
        N("Gather", ["s", "i1"], ["t"]),
        N("Range", ["z", "t", "o"], ["new"]),
        N("Add", ["new", "p"], ["place"]),
        N("Cast", ["place"], ["angle"], to=FLOAT),
        N("Add", ["x", "angle"], ["y"]),
        N("Concat", ["past", "y"], ["present"], axis=1),
        N("Add", ["present", "mask"], ["all"]),
    ]
    inputs = {"x": ["b", "s"], "past": ["b", "p"], "mask": ["b", "both"]}
    weights = {"i1": scalar(1), "z": scalar(0), "o": scalar(1)}
    file = saved(tmp_path / "m.onnx", nodes, {n: (FLOAT, d) for n, d in inputs.items()}, {"all": FLOAT}, weights)
    both = Both(file, {"x": ("B", "S"), "past": ("B", "P"), "mask": ("B", "P+S")})
    rng = np.random.default_rng(0)
    for new, past in ((1, 7), (5, 2)):
        both.agree(**{n: rng.random((2, e)).astype("f4") for n, e in zip(inputs, (new, past, new + past), strict=True)})


def test_a_block_of_a_decoder_with_a_cache_is_a_cut(tmp_path: Path) -> None:
    """The cache of the first block, which is an output, is finished by then; that of the second goes along."""
    points = list_cuts(cached_decoder(tmp_path / "m.onnx"), inputs=CACHED)
    assert ("past.1.key", "past.1.value", "x1") in {point.names for point in points}


# Integers that a model computes from Shape(x), x of [b, 3, h, w]; each is an output.
ARITHMETIC = [
    N("Shape", ["x"], ["s"]),
    N("Slice", ["s", "a2", "a4", "a0"], ["hw"]),
    N("Cast", ["hw"], ["hwf"], to=FLOAT),
    N("Mul", ["hwf", "scale"], ["scaled"]),
    N("Floor", ["scaled"], ["floored"]),
    N("Cast", ["floored"], ["doubled"], to=INT64),
    N("Div", ["hw", "a4"], ["quarter"]),
    N("Mod", ["hw", "a4"], ["rest"]),
    N("ReduceProd", ["hw"], ["area"], keepdims=0),
    N("ReduceMin", ["hw"], ["least"], keepdims=1),
    N("ReduceMax", ["hw"], ["most"], keepdims=1),
    N("Sub", ["most", "least"], ["apart"]),
    N("Greater", ["hw", "a4"], ["larger"]),
    N("Where", ["larger", "hw", "a4"], ["atleast"]),
    N("Concat", ["doubled", "quarter", "rest", "least", "most", "apart", "atleast"], ["all"], axis=0),
    N("Size", ["x"], ["size"]),
    N("Range", ["z", "area", "step"], ["range"]),
]


@pytest.fixture(scope="module")
def arithmetic(tmp_path_factory: pytest.TempPathFactory) -> Both:
    weights = {"a0": numbers(0), "a2": numbers(2), "a4": numbers(4), "z": scalar(0), "step": scalar(3)}
    file = saved(
        tmp_path_factory.mktemp("arithmetic") / "m.onnx",
        ARITHMETIC,
        {"x": (FLOAT, ["b", 3, "h", "w"])},
        {"all": INT64, "size": INT64, "area": INT64, "range": INT64},
        weights | {"scale": scalar(1.5, "f4")},
    )
    return Both(file, {"x": ("B", 3, "H", "W")})


@FEW
@given(batch=st.integers(1, 4), height=st.integers(1, 40), width=st.integers(1, 40))
def test_shapes_are_computed_as_onnx_defines_it(arithmetic: Both, batch: int, height: int, width: int) -> None:
    arithmetic.agree(x=np.zeros((batch, 3, height, width), "f4"))


def test_results_without_elements_and_open_ends(tmp_path: Path) -> None:
    nodes = [
        N("Shape", ["x"], ["shape"]),  # only a shape is made of T
        N("Slice", ["x", "a0", "far", "a1"], ["all"]),
        N("Slice", ["x", "a2", "a1", "a2"], ["none"]),
        N("Tile", ["x", "tiles"], ["untiled"]),
        N("TopK", ["x", "a0"], ["top", "places"], axis=1),
        N("Concat", ["a0", "a2"], ["constants"], axis=0),
        N("Identity", ["empty"], ["loaded"]),
        # No table: ONNX clamps the end.
        N("Gather", ["shape", "i1"], ["t"]),
        N("Slice", ["x", "a0", "t", "a2"], ["clamped"]),
    ]
    weights = {"a0": numbers(0), "a1": numbers(1), "a2": numbers(2), "far": numbers(2**31 - 1), "i1": numbers(1)}
    weights |= {"tiles": numbers(1, 0, 2), "empty": np.zeros((0, 2), "f4")}
    outputs = dict.fromkeys(("all", "none", "untiled", "top", "loaded", "clamped"), FLOAT)
    outputs |= dict.fromkeys(("shape", "places", "constants"), INT64)
    file = saved(tmp_path / "m.onnx", nodes, {"x": (FLOAT, ["b", "t", 3])}, outputs, weights)
    both = Both(file, {"x": ("B", "2*T", 3)})
    for batch, length in ((1, 2), (3, 8)):
        both.agree(x=np.random.default_rng(0).standard_normal((batch, length, 3)).astype("f4"))


def unet(file: Path, up: str) -> Path:
    """A skip over a pooling by 2: back by ConvTranspose, the same and a Pad to Shape(c)[2:4], a Resize of scale 2 from
    centers or from corners, or a Resize to Shape(c)[2:4]."""
    rng = np.random.default_rng(0)
    weights: dict[str, Array] = {
        "w": rng.standard_normal((8, 3, 3, 3)).astype("f4") / 3,
        "w2": rng.standard_normal((8, 8, 2, 2)).astype("f4") / 3,
        "wo": rng.standard_normal((2, 16, 1, 1)).astype("f4"),
    }
    back = {"kernel_shape": [2, 2], "strides": [2, 2]}
    steps = {
        "ConvTranspose": [N("ConvTranspose", ["p", "w2"], ["u"], **back)],
        "padded": [
            N("ConvTranspose", ["p", "w2"], ["v"], **back),
            N("Shape", ["c"], ["s"]),
            N("Shape", ["v"], ["vs"]),
            N("Sub", ["s", "vs"], ["short"]),
            N("Mul", ["short", "spatial"], ["all"]),
            N("Div", ["all", "two"], ["before"]),
            N("Sub", ["all", "before"], ["after"]),
            N("Concat", ["before", "after"], ["pads"], axis=0),
            N("Pad", ["v", "pads"], ["u"]),
        ],
        "scale": [N("Resize", ["p", "", "scales"], ["u"], mode="linear", coordinate_transformation_mode="half_pixel")],
        "corners": [
            N("Resize", ["p", "", "scales"], ["u"], mode="linear", coordinate_transformation_mode="align_corners")
        ],
        "size": [
            N("Shape", ["c"], ["s"]),
            N("Slice", ["s", "a2", "a4", "a0"], ["hw"]),
            N("Shape", ["p"], ["ps"]),
            N("Slice", ["ps", "a0", "a2", "a0"], ["nc"]),
            N("Concat", ["nc", "hw"], ["sizes"], axis=0),
            N("Resize", ["p", "", "", "sizes"], ["u"], mode="linear", coordinate_transformation_mode="half_pixel"),
        ],
    }
    extra = {"scales": np.array([1, 1, 2, 2], "f4"), "a0": numbers(0), "a2": numbers(2), "a4": numbers(4)}
    extra |= {"spatial": numbers(0, 0, 1, 1), "two": numbers(2)}
    nodes = [
        N("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]),
        N("Relu", ["c"], ["r"]),
        N("MaxPool", ["r"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        *steps[up],
        N("Concat", ["u", "c"], ["j"], axis=1),
        N("Conv", ["j", "wo"], ["y"]),
    ]
    used = {name for node in nodes for name in node.input}
    kept = {name: value for name, value in (weights | extra).items() if name in used}
    return saved(file, nodes, {"x": (FLOAT, [1, 3, "h", "w"])}, {"y": FLOAT}, kept)


@pytest.mark.parametrize(
    ("up", "height", "sizes"),
    [
        pytest.param("padded", "H", (7, 30), marks=pytest.mark.operators),
        pytest.param("size", "H", (7, 30), marks=pytest.mark.operators),
        pytest.param("ConvTranspose", "8*H", (8, 40), marks=pytest.mark.operators),
        ("padded", "8*H", (8, 40)),
        pytest.param("scale", "2*H", (6, 22), marks=pytest.mark.operators),
        ("corners", "2*H", (6, 22)),
    ],
)
def test_a_skip_over_a_pooling(tmp_path: Path, up: str, height: str, sizes: tuple[int, int]) -> None:
    both = Both(unet(tmp_path / "m.onnx", up), {"x": (1, 3, height, height.replace("H", "W"))})
    rng = np.random.default_rng(0)
    for size in (sizes, sizes[::-1]):
        both.agree(x=rng.standard_normal((1, 3, *size)).astype("f4"))


def test_same_padding_one_hot_and_means_of_integers(tmp_path: Path) -> None:
    """The padding of SAME depends on the extent where the stride does not divide it."""
    average = {"kernel_shape": [3, 2], "strides": [2, 2]}
    nodes = [
        N("MaxPool", ["x"], ["most"], auto_pad="SAME_UPPER", kernel_shape=[3, 3], strides=[2, 2]),
        N("AveragePool", ["x"], ["own"], auto_pad="SAME_UPPER", **average),
        N("AveragePool", ["x"], ["padded"], auto_pad="SAME_LOWER", count_include_pad=1, **average),
        N("Shape", ["x"], ["s"]),
        N("Gather", ["s", "three"], ["depth"]),
        N("OneHot", ["places", "depth", "values"], ["hot"], axis=0),
        N("Cast", ["x"], ["integers"], to=TensorProto.INT32),
        N("ReduceMean", ["integers"], ["mean"], axes=[3]),
    ]
    weights = {"three": scalar(3), "places": numbers(0, -1, 2, 99), "values": np.array([0.5, 2], "f4")}
    outputs = {"most": FLOAT, "own": FLOAT, "padded": FLOAT, "hot": FLOAT}
    outputs["mean"] = TensorProto.INT32
    both = Both(
        saved(tmp_path / "m.onnx", nodes, {"x": (FLOAT, [1, 3, "h", "w"])}, outputs, weights), {"x": (1, 3, "H", "W")}
    )
    for size in ((7, 10), (8, 9), (1, 2)):
        both.agree(x=np.random.default_rng(1).standard_normal((1, 3, *size)).astype("f4") * 9)


def test_padded_pools_of_any_batch_height_and_width(tmp_path: Path) -> None:
    window = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}
    nodes = [N("MaxPool", ["x"], ["most"], **window), N("AveragePool", ["x"], ["mean"], **window)]
    file = saved(tmp_path / "m.onnx", nodes, {"x": (FLOAT, ["b", 4, "h", "w"])}, {"most": FLOAT, "mean": FLOAT}, {})
    both = Both(file, {"x": ("B", 4, "H", "W")})
    for shape in ((2, 4, 7, 10), (1, 4, 1, 2), (3, 4, 8, 5)):
        both.agree(x=np.random.default_rng(1).standard_normal(shape).astype("f4"))


@pytest.mark.operators
def test_convolutions_with_same_padding(tmp_path: Path) -> None:
    nodes = [
        N("Conv", ["x", "w"], ["y"], auto_pad="SAME_LOWER", strides=[2, 2]),
        N("Conv", ["x", "w"], ["whole"], auto_pad="SAME_UPPER"),
    ]
    weights = {"w": np.random.default_rng(0).standard_normal((4, 3, 3, 3)).astype("f4")}
    inputs, outputs = {"x": (FLOAT, [1, 3, "h", "w"])}, {"y": FLOAT, "whole": FLOAT}
    both = Both(saved(tmp_path / "m.onnx", nodes, inputs, outputs, weights), {"x": (1, 3, "H", "W")})
    for size in ((7, 10), (8, 9), (1, 2)):
        both.agree(x=np.random.default_rng(1).standard_normal((1, 3, *size)).astype("f4"))


def test_a_sequence_longer_than_the_table_is_refused(tmp_path: Path) -> None:
    """The encoder takes a slice of 128 positions up to the length of its sequence."""
    specs = import_onnx(encoder(tmp_path / "m.onnx"), {"ids": ("B", "2*T"), "mask": ("B", "2*T")}).inputs
    assert TensorSpec.from_json(specs[0].to_json()) == specs[0]
    for length in (128, 130):
        given = {spec.name: ("INT64", (1, length)) for spec in specs}
        if length == 128:
            check_tensors(specs, given, what="the model")
            continue
        with pytest.raises(InvalidArgument) as caught:
            check_tensors(specs, given, what="the model")
    assert str(caught.value) == (
        "the model: dimension 1 of input 'ids' is 130, but a table of the model ends at 128; it takes at most 128"
    )


def test_a_cut_behind_strides_says_which_divisor_it_needs(tmp_path: Path) -> None:
    pool = {"kernel_shape": [2], "strides": [2], "pads": [0, 1]}
    nodes = [N("MaxPool", ["x"], ["a"], **pool), N("MaxPool", ["a"], ["b"], **pool), N("Neg", ["b"], ["y"])]
    file = saved(tmp_path / "m.onnx", nodes, {"x": (FLOAT, [1, 3, "t"])}, {"y": FLOAT}, {})
    with pytest.raises(InvalidArgument) as caught:
        compile_model(file, cut="b", name="m", inputs={"x": (1, 3, "T")}, output=tmp_path / "dist")
    assert str(caught.value) == (
        "--cut: the region needs the symbolic extent T, which is not a dimension of 'b'; state a divisor in --input, "
        "4*T for T, or cut at a tensor that has it"
    )


@pytest.mark.parametrize("how", ["Range", "NonZero", "extent"])
def test_positions_past_the_end_of_a_table_are_refused(tmp_path: Path, how: str) -> None:
    """A table of 16 rows is read at positions up to the length, which begin at 2."""
    ones = onnx.numpy_helper.from_array(numbers(1))
    positions = {
        "Range": [N("Range", ["z", "t", "o"], ["r"]), N("Unsqueeze", ["r", "a0"], ["p"])],
        "NonZero": [
            N("Unsqueeze", ["t", "a0"], ["t1"]),
            N("ConstantOfShape", ["t1"], ["filled"], value=ones),
            N("NonZero", ["filled"], ["p"]),
        ],
        "extent": [N("Sub", ["t", "o"], ["p"])],
    }
    nodes = [
        N("Shape", ["x"], ["s"]),
        N("Gather", ["s", "o"], ["t"]),
        *positions[how],
        N("Add", ["p", "two"], ["later"]),
        N("Gather", ["table", "later"], ["y"]),
    ]
    weights = {"z": scalar(0), "o": scalar(1), "a0": numbers(0), "two": numbers(2), "table": np.zeros((16, 4), "f4")}
    used = {name for node in nodes for name in node.input}
    kept = {name: value for name, value in weights.items() if name in used}
    file = saved(tmp_path / "m.onnx", nodes, {"x": (FLOAT, ["b", "t"])}, {"y": FLOAT}, kept)
    (spec,) = import_onnx(file, {"x": ("B", "T")}).inputs
    assert spec.maximums == (-1, 14)
    with pytest.raises(InvalidArgument, match="dimension 1 of input 'x' is 15, but a table of the model ends at 14"):
        check_tensors([spec], {"x": ("FP32", (1, 15))}, what="the model")


def test_an_extent_that_does_not_divide_is_refused(tmp_path: Path) -> None:
    compiled = compile_model(
        unet(tmp_path / "m.onnx", "ConvTranspose"),
        cut=["p", "c"],
        name="m",
        inputs={"x": (1, 3, "8*H", "8*W")},
        output=tmp_path / "dist",
        check=True,
    )
    (spec,) = compiled.manifest.inputs
    assert str(spec) == "x FP32[1,3,8*?,8*?]"
    with pytest.raises(InvalidArgument) as caught:
        check_tensors([spec], {"x": ("FP32", (1, 3, 16, 20))}, what="the model")
    assert str(caught.value) == (
        "the model: dimension 3 of input 'x' is 20, which is not a multiple of 8; it takes x FP32[1,3,8*?,8*?]"
    )
    at_worker = {s.name: s for s in compiled.models[0].inputs}
    assert str(at_worker["p"]) == "p FP32[1,8,4*?,4*?]"
    assert TensorSpec.from_json(at_worker["p"].to_json()) == at_worker["p"]


def refused(file: Path, inputs: Mapping[str, Sequence[int | str]]) -> str:
    with pytest.raises(InvalidArgument) as caught:
        import_onnx(file, inputs)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_extents_that_may_differ_name_the_divisor(tmp_path: Path) -> None:
    text = refused(unet(tmp_path / "m.onnx", "ConvTranspose"), {"x": (1, 3, "H", "W")})
    assert "Concat" in text and "whether the extents 2*floor(H/2) and H of its inputs are equal" in text
    assert "state a divisor: 2*H for dimension 2 of input 'x'" in text


CASES: dict[str, tuple[list[onnx.NodeProto], dict[str, Array], str]] = {
    "reshape to other numbers": (
        [N("Reshape", ["x", "to"], ["y"])],
        {"to": numbers(-1, 8)},
        r"it reshapes [N,4] to [-1,8]: only the run tells",
    ),
    "shape from values": (
        [
            N("ReduceMax", ["x"], ["m"], keepdims=0),
            N("Cast", ["m"], ["k"], to=INT64),
            N("Range", ["z", "k", "o"], ["y"]),
        ],
        {"z": scalar(0), "o": scalar(1)},
        "'k', is computed when the model runs",
    ),
    "an extent of values": (
        [N("NonZero", ["x"], ["m"]), N("Reshape", ["m", "to"], ["y"])],
        {"to": numbers(-1, 4)},
        "the shape of 'm' depends on the values of the inputs: export a model that ends before it",
    ),
    "a value that is not followed": (
        [
            N("Shape", ["x"], ["s"]),
            N("Gather", ["s", "z"], ["n"]),
            N("Sub", ["n", "nine"], ["less"]),
            N("Div", ["less", "o"], ["third"]),
            N("Range", ["z", "third", "o"], ["y"]),
        ],
        {"z": scalar(0), "o": scalar(3), "nine": scalar(9)},
        "'third', is computed when the model runs; it has to be a constant: fix N, dimension 0 of input 'x'",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_only_the_run_tells_is_refused_in_one_line(tmp_path: Path, case: str) -> None:
    nodes, weights, message = CASES[case]
    kind = INT64 if case != "reshape to other numbers" else FLOAT
    file = saved(tmp_path / "m.onnx", nodes, {"x": (FLOAT, ["n", 4])}, {"y": kind}, weights)
    assert message in refused(file, {"x": ("N", 4)})


def test_cuts_of_a_model_with_symbolic_extents_are_listed(tmp_path: Path) -> None:
    found = list_cuts(encoder(tmp_path / "m.onnx"), inputs={"ids": ("B", "T"), "mask": ("B", "T")})
    assert "block" in [point.name for point in found]
    assert found.left_out["that are shapes"] >= 4 and found.left_out["that other tensors go around"] > 10
    assert len(found) + sum(found.left_out.values()) < 200


SYMBOLS = [tirx.Var(name, "int64") for name in "ABC"]
SUMS = st.recursive(
    st.sampled_from(SYMBOLS) | st.integers(-6, 6).map(lambda n: tirx.IntImm("int64", n)),
    lambda inner: st.one_of(
        st.tuples(st.sampled_from([tirx.Add, tirx.Sub, tirx.Mul, tirx.Min, tirx.Max]), inner, inner).map(
            lambda made: made[0](made[1], made[2])
        ),
        st.tuples(st.sampled_from([tirx.FloorDiv, tirx.FloorMod]), inner, st.integers(1, 9)).map(
            lambda made: made[0](made[1], tirx.IntImm("int64", made[2]))
        ),
    ),
    max_leaves=8,
)


def value_of(expr: Any, symbols: Mapping[str, int]) -> int:
    if isinstance(expr, int | tirx.IntImm):
        return int(expr)
    if isinstance(expr, tirx.Var):
        return symbols[str(expr.name)]
    a, b = value_of(expr.a, symbols), value_of(expr.b, symbols)
    kinds = {tirx.Add: a + b, tirx.Sub: a - b, tirx.Mul: a * b, tirx.Min: min(a, b), tirx.Max: max(a, b)}
    if type(expr) in kinds:
        return kinds[type(expr)]
    return a // b if isinstance(expr, tirx.FloorDiv) else a % b


DRAWN = {"expr": SUMS, "other": SUMS, "values": st.tuples(*[st.integers(1, 50)] * 3)}


@settings(max_examples=60, deadline=None)
@given(**DRAWN)
def test_the_normal_form_of_an_extent_has_its_value(expr: Any, other: Any, values: tuple[int, ...]) -> None:
    check_normal_form(expr, other, values)


@pytest.mark.operators
@settings(max_examples=2000, deadline=None)
@given(**DRAWN)
def test_the_normal_forms_of_many_extents_have_their_values(expr: Any, other: Any, values: tuple[int, ...]) -> None:
    check_normal_form(expr, other, values)


def check_normal_form(expr: Any, other: Any, values: tuple[int, ...]) -> None:
    extents, symbols = Extents(), dict(zip("ABC", values, strict=True))
    right, more = value_of(expr, symbols), value_of(other, symbols)
    assert value_of(extents.normal(expr), symbols) == right
    assert not extents.equal(expr, other) or right == more
    assert not extents.differ(expr, other) or right != more
    assert not extents.at_least(expr, other) or right >= more
    quotient = extents.quotient(expr, other) if more else None
    assert quotient is None or value_of(quotient, symbols) * more == right
