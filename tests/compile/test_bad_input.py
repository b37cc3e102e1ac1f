"""Input that compile refuses, and the messages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper
from tvm import relax

from tests.support import onnx_models
from zmq_offload.byoc.codegen import tensor_spec
from zmq_offload.compile import Region, compile_model
from zmq_offload.compile.onnx.importer import import_onnx
from zmq_offload.compile.onnx.shapes import parse_shape, parse_shapes
from zmq_offload.errors import InvalidArgument

NET: dict[str, Any] = {"inputs": {"x": (1, 3, 8, 8)}, "name": "net"}


@pytest.mark.parametrize(
    ("cut", "until", "message"),
    [
        (["featurez"], None, "--cut: the model has no tensor 'featurez'; did you mean 'features'?"),
        (["features"], ["inner_pol"], "--until: the model has no tensor 'inner_pol'; did you mean 'inner_pool'?"),
        (["w2"], None, "--cut: tensor 'w2' is constant"),
        (
            ["conv2"],
            None,
            "--cut: 'conv2' does not separate the graph: input 'x' also reaches the region around it, by "
            "relu1 -> features; add 'relu1' to --cut",
        ),
        (["y"], None, "no output of the model is computed from 'y'"),
        (["features"], ["features"], "--until: 'features' is where the region begins"),
        (["features"], ["relu1"], "--cut: 'features' is not needed for 'relu1'"),
        (["features", "inner_pool"], None, "--cut: 'features' is not needed for 'y', or only through another cut"),
        (["conv1"], ["conv2"], "add these: 'relu1' (for 'features')"),
        (["relu1", "features"], ["conv2", "y"], "--cut: 'features' is itself computed from 'conv2'"),
        ([], None, "--cut: name at least one tensor"),
        (["features"], [], "--until: name at least one tensor"),
    ],
)
def test_cuts_that_do_not_enclose_a_region(
    convnet: Path, tmp_path: Path, cut: list[str], until: list[str] | None, message: str
) -> None:
    with pytest.raises(InvalidArgument) as caught:
        compile_model(convnet, cut=cut, until=until, output=tmp_path, **NET)
    assert message in str(caught.value)
    assert list(tmp_path.rglob("*.so")) == []


def test_everything_else_that_the_model_needs_of_the_region_is_listed(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["h"]),
        helper.make_node("Tanh", ["h"], ["t"]),
        helper.make_node("Relu", ["t"], ["second"]),
        helper.make_node("Exp", ["second"], ["e"]),
        helper.make_node("Add", ["e", "t"], ["first"]),
    ]
    path = onnx_models.write(tmp_path / "m.onnx", nodes, {"x": [2]}, {"first": [2], "second": [2]}, {})
    with pytest.raises(
        InvalidArgument, match=r"add these: 't' \(for 'first'\), 'second' \(for an output of the model\)"
    ):
        compile_model(path, cut=["h"], until=["e"], name="m", output=tmp_path)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "--input is missing for 'x' [N,3,H,W]; give a shape, like x=1,3,64,64"),
        ({"x": (1, 3, 8)}, "--input 'x' has 3 dimensions, the model's is 'x' [N,3,H,W]"),
        ({"x": (1, 3, 8, 2**63)}, "--input 'x': dimension 3 is 9223372036854775808; use a number from 1, "),
        (
            {"x": (1, 3, 8, 0)},
            "--input 'x': dimension 3 is 0; use a number from 1, a symbolic one's name, a multiple of one (8*H), ",
        ),
        ({"x": (1, 3, 8, None)}, "--input 'x': dimension 3 is None; use"),
        ({"x": (1, 3, 8, "W/2")}, "--input 'x': dimension 3 is 'W/2'; use"),
        ({"x": (1, 4, 8, 8)}, "--input 'x': dimension 1 is 3 in the model, not 4"),
        ({"z": (1, 3, 8, 8)}, "the model has no input 'z'; it has 'x' [N,3,H,W]"),
        ({"x": (1, 3, 8, 8), "w1": (1,)}, "the model has no input 'w1'"),
    ],
)
def test_input_shapes_that_do_not_fit(convnet: Path, tmp_path: Path, inputs: Any, message: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        compile_model(convnet, cut=["features"], inputs=inputs, name="net", output=tmp_path)
    assert message in str(caught.value)


def test_inputs_whose_shape_the_file_fixes_need_not_be_given(diamond: Path) -> None:
    assert [str(t) for t in import_onnx(diamond, {}).inputs] == ["a FP32[4,6]", "b FP32[4,6]"]


@pytest.mark.parametrize(
    "text", ["x", "=1,2", "x=1,,2", "x=0,2", "x=-1,2", "x=1;2", "x=1.5", "x=a-b", "x=a+", "x=1+a", "x=a+?"]
)
def test_an_input_must_be_written_as_name_and_dimensions(text: str) -> None:
    with pytest.raises(InvalidArgument, match="write NAME=DIMS"):
        parse_shape(text)


def test_names_of_inputs_may_have_any_character() -> None:
    assert parse_shape("a=b:0=1,N,?") == ("a=b:0", (1, "N", "?"))
    assert parse_shape("scalar=") == ("scalar", ())


def test_a_dimension_may_be_a_multiple_or_a_sum() -> None:
    assert parse_shape("x=N,8*H,P+S,P+1") == ("x", ("N", "8*H", "P+S", "P+1"))


@pytest.mark.parametrize("content", [b"no model at all", b"\x08\x08", json.dumps({"a": 1}).encode()])
def test_files_that_are_not_onnx(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "m.onnx"
    file.write_bytes(content)
    with pytest.raises(InvalidArgument, match=r"m\.onnx is not an ONNX model"):
        compile_model(file, cut=["x"], name="m", output=tmp_path)


@pytest.mark.parametrize("suffix", [".json", ".textproto", ".onnxtxt"])
def test_files_that_are_not_onnx_by_suffixes_that_onnx_knows(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"m{suffix}"
    file.write_text("{ hello")
    with pytest.raises(InvalidArgument, match=rf"m\{suffix} is not an ONNX model, or only a part of one: [^\n]+$"):
        compile_model(file, cut=["x"], name="m", output=tmp_path)


def test_the_example_of_a_missing_shape_has_the_models_rank_and_fixed_extents(mlp: Path) -> None:
    with pytest.raises(InvalidArgument, match=r"'x' \[N,8\]; give a shape, like x=1,8$"):
        import_onnx(mlp, {})


def test_an_input_given_twice_is_refused() -> None:
    assert parse_shapes(["x=1,2", "y=N"]) == {"x": (1, 2), "y": ("N",)}
    with pytest.raises(InvalidArgument, match="the shape of 'x' is given twice"):
        parse_shapes(["x=1,2", "x=1,3"])


def test_a_truncated_model(convnet: Path, tmp_path: Path) -> None:
    whole = convnet.read_bytes()
    for part in (len(whole) // 2, len(whole) - 3):
        (tmp_path / "m.onnx").write_bytes(whole[:part])
        with pytest.raises(InvalidArgument, match=r"m\.onnx is not an ONNX model"):
            compile_model(tmp_path / "m.onnx", cut=["features"], output=tmp_path, **NET)


def test_files_that_are_not_there(tmp_path: Path) -> None:
    none = tmp_path / "none.onnx"
    for path, reason in ((none, "cannot be read: No such file"), (tmp_path, "is a folder, which cannot be compiled")):
        with pytest.raises(InvalidArgument, match=f"{path} {reason}"):
            compile_model(path, cut=["x"], name="m", output=tmp_path / "dist")


@pytest.mark.parametrize(("operator", "domain"), [("Frobnicate", "com.example"), ("StringNormalizer", "")])
def test_operators_that_tvm_cannot_import_are_named(tmp_path: Path, operator: str, domain: str) -> None:
    nodes = [helper.make_node("Relu", ["x"], ["h"]), helper.make_node(operator, ["h"], ["y"], domain=domain)]
    opset = (("", 17), ("com.example", 1))
    path = onnx_models.write(tmp_path / "m.onnx", nodes, {"x": [2]}, {"y": [2]}, {}, opset=opset)
    said = rf"^cannot import the operator {operator} \({domain or 'ai.onnx'}, node 'y'\): [^\n]*; write [^\n]*$"
    with pytest.raises(InvalidArgument, match=said):
        compile_model(path, cut=["h"], name="m", output=tmp_path)


def test_shapes_that_do_not_go_together(tmp_path: Path) -> None:
    nodes = [helper.make_node("Relu", ["x"], ["h"]), helper.make_node("MatMul", ["h", "w"], ["y"])]
    path = onnx_models.write(
        tmp_path / "m.onnx", nodes, {"x": ["N", "C"]}, {"y": ["N", 4]}, {"w": onnx_models.random(8, 4)}
    )
    with pytest.raises(InvalidArgument) as caught:
        compile_model(path, cut=["h"], inputs={"x": (2, 7)}, name="m", output=tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"target": "nonsense"}, "target 'nonsense' is not known; `zmq-offload compile --list-targets`"),
        ({"target": "{broken"}, "target '{broken': Failed to parse"),
        ({"device_target": {"kind": "llvm", "mcpu": "pentium99"}}, "LLVM does not know the CPU 'pentium99'"),
        ({"target": "c"}, "only CPUs are supported"),
        ({"name": "-x"}, "model name '-x'"),
        ({"name": "a/b"}, "model name 'a/b'"),
        ({"version": 0}, "version 0 is not a whole number from 1"),
        ({"version": 2**31}, "version 2147483648 is not a whole number from 1 to 2147483647"),
        ({"policy": "newest"}, "version 'newest' is neither"),
    ],
)
def test_invalid_options(convnet: Path, tmp_path: Path, option: Any, message: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        compile_model(convnet, cut=["features"], output=tmp_path, **(NET | option))
    assert message in str(caught.value)


def test_a_tensor_name_that_is_too_long_for_a_message_is_refused(tmp_path: Path) -> None:
    name = "n" * 513
    nodes = [helper.make_node("Relu", ["x"], [name]), helper.make_node("Exp", [name], ["y"])]
    path = onnx_models.write(tmp_path / "m.onnx", nodes, {"x": [2]}, {"y": [2]}, {})
    with pytest.raises(InvalidArgument, match="1 to 512 bytes, not 513"):
        compile_model(path, cut=[name], name="m", output=tmp_path)


def test_a_tensor_of_unknown_shape_cannot_be_cut() -> None:
    with pytest.raises(InvalidArgument, match=r"'where' has type .*; it must be a tensor of known rank and shape"):
        tensor_spec("where", relax.TensorType(dtype="int64", ndim=2))


def test_inputs_of_different_symbolic_batches_are_refused(tmp_path: Path) -> None:
    """Workers would take them for a batch that does not agree, and refuse each request."""
    nodes = [
        helper.make_node("Relu", ["x"], ["h"]),
        helper.make_node("Reshape", ["h", "rows"], ["t"]),
        helper.make_node("MatMul", ["t", "w"], ["u"]),
        helper.make_node("Reshape", ["u", "back"], ["v"]),
        helper.make_node("Add", ["v", "h"], ["y"]),
    ]
    weights = {"w": onnx_models.random(8, 8), "rows": np.array([-1, 8]), "back": np.array([-1, 4, 8])}
    path = onnx_models.write(tmp_path / "m.onnx", nodes, {"x": ["N", 4, 8]}, {"y": ["N", 4, 8]}, weights)
    options: dict[str, Any] = {"cut": ["h", "t"], "name": "m", "output": tmp_path}
    with pytest.raises(InvalidArgument, match=r"dimension 0 is N for input 'h' and N \* 4 for input 't'; "):
        compile_model(path, inputs={"x": ("N", 4, 8)}, **options)
    compile_model(path, inputs={"x": (2, 4, 8)}, **options)


def test_inputs_of_the_model_of_different_symbolic_batches_are_refused(tmp_path: Path) -> None:
    nodes = [helper.make_node("MatMul", ["q", "k"], ["y"])]
    path = onnx_models.write(tmp_path / "m.onnx", nodes, {"q": ["N", "M"], "k": ["M", 4]}, {"y": ["N", 4]}, {})
    with pytest.raises(InvalidArgument, match="dimension 0 is N for input 'q' and M for input 'k'"):
        import_onnx(path, {"q": ("N", "M"), "k": ("M", 4)})
    assert import_onnx(path, {"q": ("N", 3), "k": (3, 4)}).inputs


def test_two_regions_of_one_name_are_refused_at_once(tmp_path: Path) -> None:
    regions = [Region("a", ["h"]), Region("a", ["l"])]
    with pytest.raises(InvalidArgument, match="two regions are named 'a'"):
        compile_model(tmp_path / "no such file", regions=regions, output=tmp_path)


@pytest.mark.parametrize("kind", ["STRING", "COMPLEX64"])
def test_an_input_that_is_not_numbers_is_named(tmp_path: Path, kind: str) -> None:
    info = helper.make_tensor_value_info
    number = onnx.TensorProto.DataType.Value(kind)
    graph = helper.make_graph(
        [helper.make_node("Identity", ["text"], ["y"])], "g", [info("text", number, [3])], [info("y", number, [3])]
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), tmp_path / "m.onnx")
    with pytest.raises(InvalidArgument, match=f"input 'text' is of {kind}; only numbers and booleans"):
        import_onnx(tmp_path / "m.onnx", {})


def test_a_reshape_that_loses_a_symbolic_extent_is_refused(tmp_path: Path) -> None:
    """Exported for a batch of 2: a batch of 3 would lose a row, a batch of 1 would read past the tensor's end."""
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["h"]), helper.make_node("Reshape", ["h", "to"], ["y"], "flat")],
        "g",
        [info("x", onnx.TensorProto.FLOAT, ["N", 4])],
        [info("y", onnx.TensorProto.FLOAT, None)],
        [onnx.numpy_helper.from_array(np.array([1, 8]), "to")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), tmp_path / "m.onnx")
    with pytest.raises(
        InvalidArgument, match=r"Reshape \(.*'flat'\): it reshapes \[N,4\] to \[1,8\].* a fixed shape, or export"
    ):
        import_onnx(tmp_path / "m.onnx", {"x": ("N", 4)})
    assert import_onnx(tmp_path / "m.onnx", {"x": (2, 4)}).outputs[0].shape == (1, 8)


@pytest.mark.parametrize(
    ("last", "words"),
    [("Relu", "functions stand for 1,099,511,627,776 nodes; at most 1,000,000"), ("f0", "function 'f0' calls itself")],
)
def test_functions_that_would_become_too_many_nodes_are_refused(tmp_path: Path, last: str, words: str) -> None:
    """40 functions, each of which calls the next one twice."""
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    functions = []
    for number in range(40):
        callee, domain = (f"f{number + 1}", "own") if number < 39 else (last, "own" if last == "f0" else "")
        nodes = [
            helper.make_node(callee, ["x"], ["h"], domain=domain),
            helper.make_node(callee, ["h"], ["y"], domain=domain),
        ]
        functions.append(helper.make_function("own", f"f{number}", ["x"], ["y"], nodes, imports))
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("f0", ["x"], ["y"], domain="own")],
        "g",
        [info("x", onnx.TensorProto.FLOAT, [2])],
        [info("y", onnx.TensorProto.FLOAT, [2])],
    )
    onnx.save(helper.make_model(graph, functions=functions, opset_imports=imports, ir_version=8), tmp_path / "m.onnx")
    with pytest.raises(InvalidArgument, match=words):
        compile_model(tmp_path / "m.onnx", cut="x", name="m", output=tmp_path)
