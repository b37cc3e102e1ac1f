"""Cuts at the modules of a PyTorch program, in ONNX files as both of its exporters write them."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import helper

from tests.support import onnx_models
from zmq_offload.cli.main import main
from zmq_offload.compile import compile_model, list_cuts
from zmq_offload.compile.models.modules import Step, located, module_outputs, outermost
from zmq_offload.errors import InvalidArgument


def exported(path: Path, *, dynamo: bool) -> Path:
    """x -> body.0 (a product and its activation) -> body.1 -> two outputs of split -> head."""
    paths = {"p": "body.0.linear", "a": "body.0.relu", "b": "body.1", "s": "split", "t": "split", "y": "head"}
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["p"]),
        helper.make_node("Relu", ["p"], ["a"]),
        helper.make_node("Sigmoid", ["a"], ["b"]),
        helper.make_node("Exp", ["b"], ["s"]),
        helper.make_node("Tanh", ["b"], ["t"]),
        helper.make_node("Add", ["s", "t"], ["y"]),
    ]
    for node in nodes:
        where = paths[node.output[0]].split(".")
        around = [".".join(where[: end + 1]) for end in range(len(where))]
        if dynamo:
            node.name = f"node_{node.output[0]}"
            property_ = node.metadata_props.add()
            property_.key, property_.value = "pkg.torch.onnx.name_scopes", str(["", *around, "fx_node"])
        else:
            # A child of a Sequential has its parent's name in front, other children do not.
            names = [
                a if i == 1 and where[0] == "body" else w for i, (a, w) in enumerate(zip(around, where, strict=True))
            ]
            node.name = "/" + "/".join([*names, node.op_type])
    return onnx_models.write(path, nodes, {"x": [2, 4]}, {"y": [2, 4]}, {"w": onnx_models.random(4, 4)})


@pytest.fixture(params=[True, False], ids=["dynamo", "torchscript"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return exported(tmp_path / "m.onnx", dynamo=request.param)


@pytest.mark.parametrize(("module", "tensor"), [("body", "b"), ("body.0", "a"), ("body.0.linear", "p"), ("a", "a")])
def test_a_module_stands_for_the_tensor_that_leaves_it(path: Path, tmp_path: Path, module: str, tensor: str) -> None:
    compiled = compile_model(path, cut=module, name="m", output=tmp_path / "dist")
    assert [spec.name for spec in compiled.models[0].inputs] == [tensor]


def test_list_cuts_names_the_outermost_module(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert {p.name: p.module for p in list_cuts(path)} == {"x": None, "p": "body.0.linear", "a": "body.0", "b": "body"}
    assert main(["compile", str(path), "--list-cuts"]) == 0
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split()[-1] == "MODULE"
    assert next(row for row in rows if row.startswith("b ")).split()[-1] == "body"


@pytest.mark.parametrize(
    ("cut", "words"),
    [
        ("split", "several tensors leave the module 'split'; name those to cut at: 's', 't'$"),
        ("body.2", r"the model has no tensor or module 'body\.2'; did you mean 'body\.1'\?$"),
        ("bodi", r"the model has no tensor or module 'bodi'; did you mean 'body'\?$"),
    ],
)
def test_an_ambiguous_and_an_unknown_module_are_errors(path: Path, tmp_path: Path, cut: str, words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        compile_model(path, cut=cut, name="m", output=tmp_path / "dist")


def test_a_file_without_modules_has_no_column_for_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = exported(tmp_path / "m.onnx", dynamo=True)
    model = onnx.load(path)
    for node in model.graph.node:
        del node.metadata_props[:]
    path.write_bytes(model.SerializeToString())
    assert main(["compile", str(path), "--list-cuts"]) == 0
    assert "MODULE" not in capsys.readouterr().out


def test_outputs_of_a_module_are_what_others_use_or_the_model_returns() -> None:
    steps = [
        Step(["a", "rest"], ["x"], "m.first"),
        Step(["b"], ["a"], "m.second"),
        Step(["c"], ["b", "a"], "n"),
        Step(["d"], ["c"], ""),
    ]
    assert module_outputs(steps, {"d", "rest"}) == {
        "m": ("a", "rest", "b"),
        "m.first": ("a", "rest"),
        "m.second": ("b",),
        "n": ("c",),
    }
    assert outermost({"m": ("a",), "m.inner": ("a",), "n": ("b", "c")}) == {"a": "m"}


def test_a_tensor_goes_before_a_module_of_the_same_name() -> None:
    assert located(["conv", "m"], {"conv"}, {"conv": ("conv_1",), "m": ("a",)}) == ["conv", "a"]
    with pytest.raises(InvalidArgument, match="no tensor leaves the module 'dead'"):
        located(["dead"], {"conv"}, {"dead": ()})


@pytest.mark.parametrize(
    ("name", "meant"), [("backbone.layer4", "layer4"), ("conv1", "layer4.conv1"), ("layr4", "layer4")]
)
def test_a_path_that_begins_elsewhere_is_suggested(name: str, meant: str) -> None:
    modules = {"layer4": ("a",), "layer4.conv1": ("b",), "head": ("c",)}
    with pytest.raises(InvalidArgument, match=f"did you mean '{meant}'"):
        located([name], {"a", "b", "c", "backbone.layer4.weight"}, modules)
