"""An ONNX operator is computed as ONNX defines it, or it is refused by name."""

from __future__ import annotations

import re
from collections import Counter
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.support import operator_cases, operator_table
from tests.support.local_client import LocalClient
from tests.support.model_cases import light_networks, model_cases
from tests.support.operator_cases import REFUSED, RIGHT, Case, floats, outcome, run
from zmq_offload.compile import compile_model
from zmq_offload.compile.onnx.importer import import_onnx
from zmq_offload.compile.operators.contrib import CONTRIB_CONVERTERS
from zmq_offload.compile.operators.converters import CONVERTERS
from zmq_offload.compile.operators.tvm_importer import known_operators
from zmq_offload.device.model import load
from zmq_offload.errors import InvalidArgument

Array = np.ndarray[Any, Any]


def chosen() -> list[Case]:
    """One of ONNX's tests for each operator that this project converts itself or that TVM does not know, and more for
    those of which TVM's importer ignores attributes. `-m operators` runs all of ONNX's tests."""
    subtle = (
        "test_isinf",
        "test_convtranspose_output",
        "test_onehot",
        "test_resize_downsample_scales_linear",
        "test_resize_downsample_sizes_nearest",
        "test_lppool_2d_same",
        "test_bitshift_left_uint8",
        "test_bitshift_right_int32",
    )
    unknown = {name for case in operator_cases.cases() for name in case.operators} - known_operators()
    taken: dict[frozenset[str], Case] = {}
    more = []
    for case in operator_cases.cases():
        if case.name.startswith(subtle):
            more.append(case)
        elif "expanded" not in case.name and case.operators & (CONVERTERS.keys() | unknown):
            taken.setdefault(frozenset(case.operators), case)
    return [*taken.values(), *more]


CHOSEN_SHARE = 111 / 131
"""The share of `chosen` that is right. It may only rise."""


def check(case: Case, constant: bool) -> str:
    found = outcome(case, constant)
    assert found.kind in (RIGHT, REFUSED), f"{case.name}: {found.kind}: {found.detail}"
    if found.kind == REFUSED:
        assert found.detail, f"{case.name} is refused without a reason"
    return found.kind


def test_an_operator_is_right_or_refused() -> None:
    """The cases of `chosen` that are right may only become more."""
    kinds = Counter(check(case, constant=len(case.inputs) > 1) for case in chosen())
    print(f"{kinds[RIGHT]} of {kinds.total()} chosen tests of ONNX are right")
    assert kinds[RIGHT] / kinds.total() >= CHOSEN_SHARE


@pytest.mark.operators
def test_all_operator_tests_of_onnx() -> None:
    """Nothing is wrong, and the share that is right may only rise."""
    page = operator_table.page(list(operator_table.measured()), [])
    (right, total), (before, total_before) = map(operator_table.counts, (page, operator_table.PAGE.read_text()))
    print(f"{right} of {total} tests of ONNX are right ({100 * right / total:.1f} %)")
    assert right / total >= before / total_before


@pytest.mark.operators
def test_the_models_of_onnx() -> None:
    for case in (*model_cases(), *light_networks()):
        found = operator_table.both(case)
        assert all(one.kind in (RIGHT, REFUSED) for one in found), f"{case.name}: {found}"
        assert operator_table.right(found) or case.name.startswith(OUTSIDE), f"{case.name}: {found}"


def test_some_models_of_onnx() -> None:
    """Layers as PyTorch exported them at opset 6, and small graphs with shapes and sequences."""
    wanted = (
        "PReLU_2d_multiparam",
        "operator_repeat",
        "expand_shape_model2",
        "Conv2d_groups",
        "Linear_no_bias",
        "sequence_model3",
    )
    chosen = [case for case in model_cases() if case.name.endswith(wanted)]
    assert len(chosen) >= 4
    for case in chosen:
        found = operator_table.both(case)
        assert operator_table.right(found), f"{case.name}: {found}"


OUTSIDE = ("simple/test_gradient", "simple/test_sequence_model8")
"""Models that compute gradients, and one whose input has no elements. They are refused."""


N = helper.make_node
ODD = np.array([np.nan, np.inf, -np.inf, 0, 1, -1], "f4")
UP = {"s": np.array([1, 1, 1.5, 1.5], "f4")}
DOWN = {"s": np.array([1, 1, 0.6, 0.6], "f4")}
HALF = {"s": np.array([1, 1, 0.5, 0.5], "f4")}


def resized(**attributes: Any) -> list[onnx.NodeProto]:
    return [N("Resize", ["x", "", "s"], ["y"], **attributes)]


OWN: dict[str, Any] = {
    "nearest half_pixel": lambda: run(resized(mode="nearest"), floats(1, 1, 3, 3), UP),
    "nearest prefer ceil": lambda: run(resized(nearest_mode="round_prefer_ceil"), floats(1, 2, 5, 7), UP),
    "nearest ceil": lambda: run(
        resized(nearest_mode="ceil", coordinate_transformation_mode="asymmetric"), floats(1, 1, 4, 4), UP
    ),
    "nearest twice": lambda: run(resized(), floats(1, 2, 4, 5), {"s": np.array([1, 1, 2, 2], "f4")}),
    "nearest of integers": lambda: run(resized(), np.arange(9, dtype="u1").reshape(1, 1, 3, 3), UP),
    "linear down": lambda: run(resized(mode="linear"), floats(1, 1, 7, 7), DOWN),
    "linear up": lambda: run(resized(mode="linear"), floats(1, 3, 5, 6), {"s": np.array([1, 1, 3, 2], "f4")}),
    "antialias": lambda: run(resized(mode="linear", antialias=1), floats(1, 1, 8, 8), HALF, opset=18),
    "cubic outside": lambda: run(resized(mode="cubic", exclude_outside=1), floats(1, 1, 6, 6), UP),
    "cubic antialias": lambda: run(resized(mode="cubic", antialias=1), floats(1, 1, 9, 9), HALF, opset=18),
    "resize of opset 10": lambda: run(
        [N("Resize", ["x", "s"], ["y"], mode="linear")], floats(1, 1, 3, 3), {"s": np.array([1, 1, 2, 2], "f4")}, 10
    ),
    "upsample": lambda: run(
        [N("Upsample", ["x", "s"], ["y"], mode="linear")], floats(1, 1, 3, 3), {"s": np.array([1, 1, 2, 2], "f4")}, 9
    ),
    "infinities below": lambda: run([N("IsInf", ["x"], ["y"], detect_positive=0)], ODD, {}),
    "infinities above": lambda: run([N("IsInf", ["x"], ["y"], detect_negative=0)], ODD, {}),
    "output_shape": lambda: run(
        [N("ConvTranspose", ["x", "w"], ["y"], strides=[2, 2], output_shape=[10, 10])],
        floats(1, 2, 5, 5),
        {"w": floats(2, 3, 3, 3)},
    ),
    "output_shape upper": lambda: run(
        [N("ConvTranspose", ["x", "w"], ["y"], strides=[2, 2], output_shape=[10, 10], auto_pad="SAME_UPPER")],
        floats(1, 2, 5, 5),
        {"w": floats(2, 3, 3, 3)},
    ),
    "mean of integers": lambda: run(
        [N("ReduceMean", ["x"], ["y"], axes=[1])], np.array([[1, 2, 4], [-1, -2, -4]], "i4"), {}
    ),
    "one hot": lambda: run(
        [N("OneHot", ["x", "d", "v"], ["y"], axis=1)],
        np.array([0, -1, 2, 5], "i8"),
        {"d": np.int64(3), "v": np.array([0, 1], "f4")},
    ),
    "thresholded infinity": lambda: run([N("ThresholdedRelu", ["x"], ["y"])], ODD[1:], {}),
    "log of nothing": lambda: run(
        [N("ReduceLogSumExp", ["x"], ["y"], axes=[1])], np.array([[-np.inf, -np.inf], [0, 1]], "f4"), {}, 13
    ),
    "sinh": lambda: run([N("Sinh", ["x"], ["y"])], np.array([88.85, 89, -88.9, 1e-4, 0, 1, -2], "f4"), {}),
    "power of integers": lambda: run([N("Pow", ["x", "e"], ["y"])], np.array([2, 3, -2]), {"e": np.array([3, 2, 3])}),
    "power of float by integer": lambda: run(
        [N("Pow", ["x", "e"], ["y"])], floats(3), {"e": np.array([3, 2, 1], "i8")}
    ),
    "pool lower": lambda: run(
        [N("MaxPool", ["x"], ["y"], kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_LOWER")], floats(1, 1, 7, 7), {}
    ),
    "pool ceil": lambda: run(
        [N("AveragePool", ["x"], ["y"], kernel_shape=[2, 2], strides=[3, 3], pads=[0, 0, 1, 1], ceil_mode=1)],
        floats(1, 1, 6, 7),
        {},
        19,
    ),
    "scale of fewer axes": lambda: run(
        [N("LayerNormalization", ["x", "s"], ["y"], axis=1)], floats(2, 4, 4), {"s": floats(4)}
    ),
    "float16 products": lambda: run(
        [N("MatMul", ["x", "w"], ["y"])], floats(3, 64).astype("f2"), {"w": floats(64, 2).astype("f2")}
    ),
    "boxes that are scaled, and empty ones": lambda: run(
        [N("RoiAlign", ["x", "r", "b"], ["y"], output_height=2, output_width=2, spatial_scale=0.5)],
        floats(2, 3, 6, 7),
        {"r": np.array([[0, 0, 9, 8], [2, 3, 2, 3], [5, 5, 1, 1], [1, 1, 7, 6]], "f4"), "b": np.array([0, 0, 1, 1])},
    ),
    "reflected to the far end": lambda: run(
        [N("Pad", ["x", "p"], ["y"], mode="reflect")], floats(1, 2, 4, 5), {"p": np.array([0, 0, 3, 0, 0, 1, 3, 4])}
    ),
    "cut at one end, continued at the other": lambda: run(
        [N("Pad", ["x", "p"], ["e"], mode="edge"), N("Pad", ["e", "p"], ["y"], mode="reflect")],
        floats(1, 2, 9, 9),
        {"p": np.array([0, 0, -1, 2, 0, 0, 3, -2])},
    ),
    "parts that are not equal": lambda: run(
        [N("Split", ["x"], ["a", "b", "c"], num_outputs=3), N("Concat", ["c", "a", "b"], ["y"], axis=0)],
        floats(7, 2),
        {},
        18,
    ),
    "equal booleans": lambda: run(
        [N("Equal", ["x", "b"], ["e"]), N("Not", ["e"], ["y"])], np.arange(40) % 2 == 0, {"b": np.arange(40) % 3 == 0}
    ),
    "the place of the largest of nothing but zeros": lambda: run(
        [N("ArgMax", ["x"], ["y"], axis=1)], np.array([[0, 0, 0], [0, 2, 2]], "u1"), {}
    ),
    "the place of the smallest": lambda: run(
        [N("ArgMin", ["x"], ["y"], axis=0)], np.array([[127, 127], [127, -3]], "i1"), {}
    ),
    "steps of a quotient": lambda: run(
        [N("Div", ["x", "d"], ["q"]), N("Floor", ["q"], ["f"]), N("Ceil", ["q"], ["c"]), N("Sub", ["c", "f"], ["y"])],
        np.arange(200, dtype="f4") * 41,
        {"d": np.float32(41)},
    ),
    "the mean of equal numbers": lambda: run(
        [N("ReduceMean", ["x"], ["m"], axes=[1]), N("Floor", ["m"], ["y"])],
        np.repeat(np.arange(20, dtype="f4")[:, None], 41, 1),
        {},
    ),
    "quantized ties": lambda: run(
        [N("QuantizeLinear", ["x", "s", "z"], ["y"])],
        np.arange(64, dtype="f4") * 20.5,
        {"s": np.float32(41), "z": np.uint8(3)},
    ),
    "parts without an extent": lambda: run(
        [
            N("Split", ["x", "s"], ["a", "b", "c"]),
            N("Relu", ["b"], ["d"]),
            N("Add", ["c", "one"], ["e"]),
            N("Concat", ["d", "a", "e"], ["y"], axis=0),
        ],
        floats(4, 5),
        {"s": np.array([3, 0, 1]), "one": np.float32(1)},
    ),
    "fewer indices than data": lambda: run(
        [N("ScatterElements", ["x", "i", "u"], ["y"], axis=1, reduction="add")],
        floats(3, 4, 5),
        {"i": np.array([[[0, -1, 2], [0, 1, 1]]]), "u": floats(1, 2, 3, seed=1)},
        18,
    ),
    "backwards from before the start": lambda: run(
        [N("Slice", ["x", "s", "e", "a", "d"], ["y"])],
        floats(3, 4),
        {"s": np.array([-9, 7]), "e": np.array([-(2**63), -3]), "a": np.array([0, -1]), "d": np.array([-1, -2])},
    ),
    "backwards over nothing": lambda: run(
        [N("Slice", ["x", "s", "e", "a", "d"], ["n"]), N("Concat", ["x", "n"], ["y"], axis=1)],
        floats(3, 4),
        {"s": np.array([0]), "e": np.array([2]), "a": np.array([1]), "d": np.array([-1])},
    ),
    "places of negative infinity": lambda: run(
        [N("MaxPool", ["x"], ["m", "i"], kernel_shape=[3], strides=[2], pads=[1, 1]), N("Cast", ["i"], ["y"], to=7)],
        np.array([[[1, -np.inf, -np.inf, -np.inf, -np.inf]]], "f4"),
        {},
    ),
    "places in a matrix": lambda: run(
        [N("Unique", ["x"], ["u", "", "i"]), N("Gather", ["u", "i"], ["y"])],
        np.array([[3, 1, 3], [2, 1, 0]], "i8"),
        {},
    ),
    "reflection in one column": lambda: run(
        [N("GridSample", ["x", "g"], ["y"], padding_mode="reflection", align_corners=1)],
        floats(1, 2, 3, 1),
        {"g": floats(1, 4, 5, 2)},
        16,
    ),
    "one pixel with corners": lambda: run(
        [N("Resize", ["x", "", "", "n"], ["y"], mode="cubic", coordinate_transformation_mode="align_corners")],
        floats(1, 2, 3, 4),
        {"n": np.array([1, 2, 1, 1])},
    ),
    "sign of bytes": lambda: run([N("Sign", ["x"], ["y"])], np.arange(6, dtype="u1"), {}),
    "dropout": lambda: run([N("Dropout", ["x"], ["h"]), N("Relu", ["h"], ["y"])], floats(4), {}),
}


@pytest.mark.parametrize("name", OWN)
def test_operators_that_tvm_converts_wrongly_are_right(name: str) -> None:
    if name == "scale of fewer axes" and metadata.version("onnxruntime").startswith("1.23."):
        pytest.skip("ONNX Runtime 1.23, the last for Python 3.10, does not compute it")
    found = outcome(OWN[name](), constant=False)
    assert found.kind == RIGHT, found.detail


REFUSALS: dict[str, tuple[onnx.NodeProto, dict[str, Array], str]] = {
    "an attribute": (
        N("RoiAlign", ["x", "r", "b"], ["y"], "roi", mode="max"),
        {"r": np.zeros((1, 4), "f4"), "b": np.zeros(1, "i8")},
        r"RoiAlign \(ai.onnx, node 'roi'\) with mode=max; use avg",
    ),
    "an attribute that nobody knows": (
        N("Relu", ["x"], ["y"], "r", speed=3),
        {},
        r"Relu \(ai.onnx, node 'r'\) with speed=3",
    ),
    "an input that is ignored": (
        N("Relu", ["x", "b"], ["y"], "r"),
        {"b": np.zeros(1, "f4")},
        r"Relu \(ai.onnx, node 'r'\) with its input 2, 'b'",
    ),
    "an operator of another domain": (
        N("Relu", ["x"], ["y"], domain="org.example"),
        {},
        r"Relu \(org.example, node 'y'\): its def",
    ),
    "a reflection of more than there is": (
        N("Pad", ["x", "p"], ["y"], "pad", mode="reflect"),
        {"p": np.array([0, 0, 0, 4, 0, 0, 0, 0])},
        r"Pad \(ai.onnx, node 'pad'\) with mode=reflect; at axis 3 pads must be less than its extent, 4",
    ),
    "nothing left of an image": (
        N("Resize", ["x", "", "k"], ["y"], "less", mode="linear"),
        {"k": np.array([1, 1, 0.2, 1], "f4")},
        r"Resize \(ai.onnx, node 'less'\): its output has no elements: axis 2 of extent 4 becomes 0; give",
    ),
    "training": (
        N("BatchNormalization", ["x", "s", "s", "s", "s"], ["y", "m", "v"], training_mode=1),
        {"s": np.ones(2, "f4")},
        "training_mode=1",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_cannot_be_computed_is_refused_by_name(name: str, tmp_path: Path) -> None:
    node, constants, said = REFUSALS[name]
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(v, k) for k, v in constants.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("org.example", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), tmp_path / "m.onnx")
    with pytest.raises(InvalidArgument, match=said):
        import_onnx(tmp_path / "m.onnx", {})


def test_all_unknown_operators_are_named_at_once_and_nothing_is_printed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    nodes = [
        N("StringNormalizer", ["x"], ["a"], "clean"),
        N("Frobnicate", ["a"], ["b"], "f", domain="org.example"),
        N("Frobnicate", ["b"], ["y"], "g", domain="org.example"),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in "xy"]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("org.example", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), tmp_path / "m.onnx")
    with pytest.raises(InvalidArgument) as caught:
        import_onnx(tmp_path / "m.onnx", {})
    assert str(caught.value) == (
        "cannot import the operators StringNormalizer (ai.onnx, node 'clean'), "
        "Frobnicate (org.example, node 'f' and 1 other): their definitions are not known; "
        "write the model with other operators (docs/models.md lists those that can be imported)"
    )
    assert capfd.readouterr() == ("", "")


def test_the_page_of_models_says_what_happens() -> None:
    text = operator_table.PAGE.read_text()
    found = re.findall(r"^\| ([\w() ]+) \| (\d+) \| (\d+) \| (.*) \|$", text, re.M)
    page = {name: (int(right), int(refused), why) for name, right, refused, why in found}
    tested = Counter(operator for _, operator in operator_table.tested())
    assert {name: right + refused for name, (right, refused, _) in page.items()} == tested
    assert all(bool(refused) == bool(why) for _, refused, why in page.values())
    assert operator_table.counts(text) == (sum(right for right, _, _ in page.values()), sum(tested.values()))
    assert set(re.findall(r"`([A-Z]\w+)`", text)) >= CONTRIB_CONVERTERS.keys()


@pytest.mark.parametrize("extents", [("N", 4), (3, "L"), ("N", "L")])
def test_positions_of_a_symbolic_extent(tmp_path: Path, extents: tuple[int | str, int | str]) -> None:
    """Positions as exporters write them: Range to an extent of the input, a look-up by it, and an addition."""
    axis = 0 if extents[1] == 4 else 1
    nodes = [
        N("Relu", ["x"], ["h"]),
        N("Shape", ["h"], ["s"]),
        N("Gather", ["s", "axis"], ["n"]),
        N("Range", ["zero", "n", "one"], ["r"]),
        N("Gather", ["table", "r"], ["p"]),
        N("Unsqueeze", ["p", "other"], ["q"]),
        N("Add", ["h", "q"], ["y"]),
    ]
    table = floats(128)
    weights = {"axis": np.int64(axis), "zero": np.int64(0), "one": np.int64(1), "table": table}
    weights["other"] = np.array([1 - axis])
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, extents)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, extents)],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "m.onnx")
    compiled = compile_model(tmp_path / "m.onnx", inputs={"x": extents}, cut="h", name="m", output=tmp_path, check=True)
    assert compiled.check is not None and compiled.check.skipped is None
    x = floats(3, 4)
    model = load(compiled.device, client=LocalClient(tmp_path / "repository"))
    positions = np.expand_dims(table[: x.shape[axis]], 1 - axis)
    np.testing.assert_allclose(model(x), np.maximum(x, 0) + positions, rtol=1e-6)


def test_a_wrong_shape_that_the_file_says_of_its_output_does_not_count(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [N("Relu", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, "length"])],
    )
    onnx.save(helper.make_model(graph, ir_version=8), tmp_path / "m.onnx")
    (y,) = import_onnx(tmp_path / "m.onnx", {}).graph.outputs
    assert y == "y"


def test_shapes_that_do_not_fit_together_are_said_in_plain_words(tmp_path: Path) -> None:
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", ["h"]), ("z", [4]), ("y", None))]
    graph = helper.make_graph([N("Add", ["x", "z"], ["y"], "sum")], "g", ends[:2], ends[2:])
    onnx.save(helper.make_model(graph, ir_version=8), tmp_path / "m.onnx")
    with pytest.raises(InvalidArgument) as caught:
        import_onnx(tmp_path / "m.onnx", {"x": (3,)})
    assert str(caught.value) == (
        "cannot import the operator Add (ai.onnx, node 'sum'): in add, the first input shape at dim 0 is 3 and the "
        "second input shape at dim 0 is 4, which are not broadcastable; give shapes with --input that fit together, "
        "for images often multiples of 32"
    )
