"""ONNX files as users have them: external data, old opsets, inputs without a shape or a datatype."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.support import onnx_models
from zmq_offload.compile import compile_model, list_cuts
from zmq_offload.compile.onnx.file import read_onnx
from zmq_offload.compile.onnx.importer import import_onnx
from zmq_offload.compile.uncut import UncutModel, compile_uncut
from zmq_offload.errors import InvalidArgument

CUT: dict[str, Any] = {"cut": "h", "name": "m"}


def external(folder: Path, **options: Any) -> Path:
    nodes = [helper.make_node("MatMul", ["x", "w0"], ["h"]), helper.make_node("MatMul", ["h", "w1"], ["y"])]
    weights = {"w0": onnx_models.random(16, 16), "w1": onnx_models.random(16, 300, seed=1)}
    path = onnx_models.write(folder / "m.onnx", nodes, {"x": [2, 16]}, {"y": [2, 300]}, weights)
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="m.bin", size_threshold=0, **options)
    return path


class TestExternalData:
    def test_it_is_read_from_beside_the_model(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        path = external(tmp_path)
        monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
        weights = {w.name: numpy_helper.to_array(w) for w in read_onnx(path).graph.initializer}
        np.testing.assert_array_equal(weights["w1"], onnx_models.random(16, 300, seed=1))

    def test_a_missing_file_is_named_and_so_is_the_place_where_it_was_looked_for(self, tmp_path: Path) -> None:
        path = external(tmp_path)
        (tmp_path / "m.bin").unlink()
        with pytest.raises(InvalidArgument) as caught:
            compile_model(path, output=tmp_path / "dist", **CUT)
        assert "external data file 'm.bin'" in str(caught.value)
        assert f"No such file or directory): it was looked for at {tmp_path}/m.bin" in str(caught.value)
        assert "is not an ONNX model" not in str(caught.value)

    @pytest.mark.parametrize("length", [True, False])
    def test_a_file_that_was_cut_short_is_named_with_the_bytes_that_it_lacks(
        self, tmp_path: Path, length: bool
    ) -> None:
        path = external(tmp_path)
        if not length:
            model = onnx.load(path, load_external_data=False)
            for weight in model.graph.initializer:
                kept = [e for e in weight.external_data if e.key != "length"]
                del weight.external_data[:]
                weight.external_data.extend(kept)
            path.write_bytes(model.SerializeToString())
        (tmp_path / "m.bin").write_bytes((tmp_path / "m.bin").read_bytes()[:1000])
        with pytest.raises(InvalidArgument, match=r"m\.bin is cut short: .*'w0' in its bytes 0 to 1,024, .* has 1,000"):
            list_cuts(path)

    def test_a_folder_in_its_place_and_a_way_out_of_the_folder_are_refused(self, tmp_path: Path) -> None:
        (tmp_path / "a").mkdir()
        path = external(tmp_path / "a")
        (tmp_path / "a/m.bin").rename(tmp_path / "m.bin")
        (tmp_path / "a/m.bin").mkdir()
        with pytest.raises(InvalidArgument, match=r"external data cannot be read: .*not regular file"):
            read_onnx(path)
        model = onnx.load(path, load_external_data=False)
        for weight in model.graph.initializer:
            weight.external_data[0].value = "../m.bin"
        path.write_bytes(model.SerializeToString())
        with pytest.raises(InvalidArgument, match="external data cannot be read"):
            read_onnx(path)


def old(path: Path, opset: int) -> Path:
    """Operators whose attributes became inputs, or whose meaning has changed, since `opset`."""
    weights: dict[str, np.ndarray[Any, Any]] = {"w": onnx_models.random(4, 3, 3, 3), "c": np.array([1, 1, 2, 2], "f4")}
    if opset < 9:
        resize = helper.make_node("Upsample", ["h"], ["u"], mode="nearest", scales=[1.0, 1.0, 2.0, 2.0])
        del weights["c"]
    else:
        resize = helper.make_node("Upsample" if opset == 9 else "Resize", ["h", "c"], ["u"], mode="nearest")
    if opset < 10:
        part = helper.make_node("Slice", ["u"], ["s"], axes=[2], starts=[1], ends=[-1])
    else:
        weights |= {"from": np.array([1]), "to": np.array([-1]), "axes": np.array([2])}
        part = helper.make_node("Slice", ["u", "from", "to", "axes"], ["s"])
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["h"], pads=[1, 1, 1, 1]),
        resize,
        part,
        helper.make_node("Dropout", ["s"], ["d"]),
        helper.make_node("Flatten", ["d"], ["f"]),
        helper.make_node("Softmax", ["f"], ["y"]),
    ]
    return onnx_models.write(path, nodes, {"x": [1, 3, 8, 8]}, {"y": [1, 896]}, weights, [("", opset)])


@pytest.mark.parametrize("opset", [7, 8, 9, 10])
def test_an_old_opset_is_converted_and_means_the_same(tmp_path: Path, opset: int) -> None:
    path = old(tmp_path / "m.onnx", opset)
    assert "h" in import_onnx(path, {}, ["h"]).graph.tensors
    compile_uncut(path, tmp_path / "m.so")
    x = onnx_models.random(1, 3, 8, 8, seed=1)
    (expected,) = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, {"x": x})
    np.testing.assert_allclose(UncutModel(tmp_path / "m.so")(x)[0], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("opset", "words"),
    [
        (5, r"is of ONNX opset 5, which is too old; export it again with opset 11 or later \(opsets 6 to 10"),
        (onnx.defs.onnx_opset_version() + 1, rf"knows opsets up to {onnx.defs.onnx_opset_version()}; export it"),
    ],
)
def test_an_opset_that_cannot_be_used_is_refused_with_what_would_be_right(
    tmp_path: Path, opset: int, words: str
) -> None:
    nodes = [helper.make_node("Relu", ["x"], ["h"]), helper.make_node("Exp", ["h"], ["y"])]
    path = onnx_models.write(tmp_path / "m.onnx", nodes, {"x": [2]}, {"y": [2]}, {}, [("", opset)])
    with pytest.raises(InvalidArgument, match=words):
        list_cuts(path)


def test_an_operator_that_cannot_be_converted_is_named_with_the_opset(tmp_path: Path) -> None:
    nodes = [helper.make_node("Relu", ["x"], ["h"]), helper.make_node("NoSuchOperator", ["h"], ["y"])]
    path = onnx_models.write(tmp_path / "m.onnx", nodes, {"x": [2]}, {"y": [2]}, {}, [("", 9)])
    with pytest.raises(InvalidArgument, match="NoSuchOperator"):
        list_cuts(path)


def shapeless(path: Path, kind: int = TensorProto.FLOAT, shape: Sequence[int] | None = None) -> Path:
    nodes = [helper.make_node("Relu", ["x"], ["h"]), helper.make_node("Exp", ["h"], ["y"])]
    graph = helper.make_graph(
        nodes, "m", [helper.make_tensor_value_info("x", kind, shape)], [helper.make_empty_tensor_value_info("y")]
    )
    path.write_bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    )
    return path


class TestInputsWithoutAShape:
    @pytest.mark.parametrize("shape", [(2, 3), (4,), ("N", 3)])
    def test_one_can_be_given(self, tmp_path: Path, shape: tuple[int | str, ...]) -> None:
        path = shapeless(tmp_path / "m.onnx")
        (spec,) = import_onnx(path, {"x": shape}).inputs
        assert spec.shape == tuple(-1 if isinstance(d, str) else d for d in shape)
        compiled = compile_model(path, inputs={"x": shape}, output=tmp_path / "dist", **CUT)
        assert compiled.models[0].inputs[0].shape == spec.shape

    def test_none_given_is_an_error_that_says_how(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidArgument, match=r"--input is missing for 'x' \[any shape\].*, like x=1,3,64,64$"):
            list_cuts(shapeless(tmp_path / "m.onnx"))

    def test_a_scalar_has_a_shape(self, tmp_path: Path) -> None:
        assert import_onnx(shapeless(tmp_path / "m.onnx", shape=()), {}).inputs[0].shape == ()
        assert import_onnx(shapeless(tmp_path / "n.onnx"), {"x": ()}).inputs[0].shape == ()

    def test_an_input_without_a_datatype_is_refused_by_name(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidArgument, match="input 'x' has no datatype"):
            list_cuts(shapeless(tmp_path / "m.onnx", TensorProto.UNDEFINED, (2,)))


def test_an_input_that_is_not_there_is_suggested(tmp_path: Path) -> None:
    nodes = [helper.make_node("Relu", ["image"], ["h"]), helper.make_node("Exp", ["h"], ["y"])]
    path = onnx_models.write(tmp_path / "m.onnx", nodes, {"image": ["N", 2]}, {"y": ["N", 2]}, {})
    with pytest.raises(InvalidArgument, match=r"no input 'images'; it has 'image' \[N,2\]; did you mean 'image'\?"):
        list_cuts(path, inputs={"images": (1, 2)})


class TestOrder:
    """ONNX Runtime takes nodes in any order; converters to float16 append Casts at the end."""

    def test_nodes_are_put_in_order(self, tmp_path: Path) -> None:
        body = helper.make_graph(
            [helper.make_node("Identity", ["shifted"], ["out"]), helper.make_node("Add", ["h", "w"], ["shifted"])],
            "body",
            [],
            [helper.make_tensor_value_info("out", TensorProto.FLOAT, [2, 4])],
        )
        nodes = [
            helper.make_node("Relu", ["b"], ["y"], "last"),
            helper.make_node("If", ["yes"], ["b"], then_branch=body, else_branch=body),
            helper.make_node("MatMul", ["x", "w"], ["h"]),
        ]
        weights = {"w": onnx_models.random(4, 4), "yes": np.array(True)}
        path = onnx_models.write(tmp_path / "m.onnx", nodes, {"x": [2, 4]}, {"y": [2, 4]}, weights)
        read = read_onnx(path)
        assert [node.op_type for node in read.graph.node] == ["MatMul", "If", "Relu"]
        assert [node.op_type for node in read.graph.node[1].attribute[0].g.node] == ["Add", "Identity"]

    def test_nodes_in_order_keep_their_places(self, tmp_path: Path) -> None:
        nodes = [helper.make_node("Relu", ["x"], [name], name) for name in ("c", "a", "b")]
        nodes.append(helper.make_node("Sum", ["a", "b", "c"], ["y"]))
        path = onnx_models.write(tmp_path / "m.onnx", nodes, {"x": [2]}, {"y": [2]}, {})
        assert [node.name for node in read_onnx(path).graph.node][:3] == ["c", "a", "b"]

    def test_nodes_in_a_circle_are_refused(self, tmp_path: Path) -> None:
        nodes = [helper.make_node("Add", ["x", "b"], ["a"], "one"), helper.make_node("Relu", ["a"], ["b"], "two")]
        path = onnx_models.write(tmp_path / "m.onnx", nodes, {"x": [2]}, {"b": [2]}, {})
        with pytest.raises(InvalidArgument, match=r"node 'one' \(Add\) reads the tensor 'b', which no node before it"):
            read_onnx(path)


N = helper.make_node
TWO = [N("Relu", ["h"], ["y"], "last"), N("Neg", ["x"], ["h"], "first")]


def test_a_tensor_that_two_nodes_compute_is_refused(tmp_path: Path) -> None:
    nodes = [*TWO, N("Abs", ["x"], ["h"], "again")]
    path = onnx_models.write(tmp_path / "m.onnx", nodes, {"x": [2]}, {"y": [2]}, {})
    with pytest.raises(InvalidArgument, match=r"\(Abs\) computes the tensor 'h', which is there before it"):
        read_onnx(path)


def test_an_input_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    path = onnx_models.write(tmp_path / "m.onnx", TWO[::-1], {"x": [2]}, {"y": [2]}, {})
    model = onnx.load(path)
    model.graph.input.append(model.graph.input[0])
    onnx.save(model, path)
    with pytest.raises(InvalidArgument, match="has two inputs 'x'"):
        read_onnx(path)


def test_a_slice_of_an_old_file_keeps_its_shape(tmp_path: Path) -> None:
    """The converter of opsets makes weights that are no inputs, which ONNX's shape inference ignores in such a file."""
    node = N("Slice", ["x"], ["y"], axes=[1], starts=[0], ends=[5])
    path = onnx_models.write(tmp_path / "m.onnx", [node], {"x": [1, 16]}, {"y": [1, 5]}, {}, [("", 9)])
    model = onnx.load(path)
    model.ir_version = 3
    onnx.save(model, path)
    assert import_onnx(path, {}).outputs[0].shape == (1, 5)
