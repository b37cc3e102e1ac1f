"""The cuts that are listed separate the model, and all of them are accepted."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import tvm
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from tvm import relax
from tvm.runtime import vm

from tests.support import onnx_models
from tests.support.examples import examples
from tests.support.local_client import LocalClient
from zmq_offload import load
from zmq_offload.byoc.graph import Graph
from zmq_offload.byoc.outline import outline
from zmq_offload.cli.main import main
from zmq_offload.compile import compile_model, list_cuts
from zmq_offload.compile.build import build
from zmq_offload.compile.cuts import cut_points
from zmq_offload.compile.onnx.importer import Imported, import_onnx
from zmq_offload.compile.stretches import stretches
from zmq_offload.compile.target import host_target
from zmq_offload.errors import InvalidArgument


def test_cuts_have_shape_bytes_and_the_share_after_them(convnet: Path) -> None:
    cuts = list_cuts(convnet, inputs={"x": (1, 3, 8, 8)})
    pixels = 8 * 8
    first, second, third = pixels * 8 * 3 * 9, pixels * 8 * 8 * 9, 8 * 10
    total = first + second + third
    assert [(c.name, c.tensor.shape, c.nbytes, round(c.share * total)) for c in cuts] == [
        ("x", (1, 3, 8, 8), 768, total),
        ("conv1", (1, 8, 8, 8), 2048, second + third),
        ("relu1", (1, 8, 8, 8), 2048, second + third),
        ("features", (1, 8, 8, 8), 2048, third),
        ("inner_tanh", (1, 8, 8, 8), 2048, third),
        ("inner_pool", (1, 8, 1, 1), 32, third),
        ("inner_flat", (1, 8), 32, third),
        ("inner_logits", (1, 10), 40, 0),
    ]


def test_transposed_convolutions_and_symbolic_extents_count(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["h"]),
        helper.make_node("ConvTranspose", ["h", "w"], ["t"], strides=[2, 2]),
        helper.make_node("MatMul", ["t", "v"], ["y"]),
    ]
    weights = {"w": onnx_models.random(3, 5, 2, 2), "v": onnx_models.random(8, 6)}
    path = onnx_models.write(tmp_path / "m.onnx", nodes, {"x": ["N", 3, 4, 4]}, {"y": ["N", 5, 8, 6]}, weights)
    cuts = {c.name: c for c in list_cuts(path, inputs={"x": ("N", 3, 4, 4)})}
    transposed, product = 3 * 4 * 4 * 5 * 2 * 2, 5 * 8 * 6 * 8
    assert cuts["t"].share == pytest.approx(product / (transposed + product))
    assert cuts["t"].tensor.shape == (-1, 5, 8, 8) and cuts["t"].nbytes == 5 * 8 * 8 * 4


def test_bytes_and_work_of_an_image_of_any_size_are_those_of_one_that_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["h"], strides=[4, 4]),
        helper.make_node("Conv", ["h", "v"], ["y"]),
    ]
    weights = {"w": onnx_models.random(8, 3, 4, 4), "v": onnx_models.random(8, 8, 1, 1)}
    path = onnx_models.write(tmp_path / "m.onnx", nodes, {"x": ["N", 3, "H", "W"]}, {"y": ["N", 8, "h", "w"]}, weights)
    for dims, height in ((("N", 3, "8*H", "W"), 64), (("N", 3, "100*H", "W"), 100), ((1, 3, "H", "W"), 64)):
        found = list_cuts(path, inputs={"x": dims}, picture=tmp_path / "m.svg")
        fixed = list_cuts(path, inputs={"x": (1, 3, height, 64)})
        assert found.inputs == {"x": (1, 3, height, 64)} and fixed.inputs == {}
        assert [(c.name, c.nbytes, c.share) for c in found] == [(c.name, c.nbytes, c.share) for c in fixed]
    assert "input x=1,3,64,64 " in (tmp_path / "m.svg").read_text()
    assert main(["compile", str(path), "--input", "x=N,3,8*H,8*W", "--list-cuts"]) == 0
    assert "BYTES and OFFLOADED are those for --input x=1,3,64,64" in capsys.readouterr().out


def test_only_inputs_with_new_symbols_are_told(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Concat", ["past", "new"], ["all"], axis=1),
        helper.make_node("Add", ["all", "mask"], ["sum"]),
        helper.make_node("MatMul", ["sum", "w"], ["h"]),
        helper.make_node("Relu", ["h"], ["y"]),
    ]
    inputs: dict[str, Sequence[int | str]] = {"past": ["B", "P", 4], "new": ["B", "S", 4], "mask": ["B", "P+S", 4]}
    path = onnx_models.write(tmp_path / "m.onnx", nodes, inputs, {"y": ["B", "T", 4]}, {"w": onnx_models.random(4, 4)})
    found = list_cuts(path, inputs=inputs)
    assert found.inputs == {"past": (1, 64, 4), "new": (1, 64, 4)}
    assert {c.name: c.nbytes for c in found}["sum"] == 128 * 4 * 4


def test_a_model_that_no_single_tensor_separates_is_cut_at_several(diamond: Path, tmp_path: Path) -> None:
    points = list_cuts(diamond)
    assert points and all(point.others for point in points)
    for number, point in enumerate(points):
        compile_model(diamond, cut=point.names, name="m", output=tmp_path / str(number))


def masked(path: Path, blocks: int = 3) -> Path:
    """Blocks that all read a mask, which is made of an integer input: x [2,6,8], mask [2,6]."""
    nodes = [
        helper.make_node("Cast", ["mask"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["one", "float"], ["hidden"]),
        helper.make_node("Unsqueeze", ["hidden", "axes"], ["wide"]),
        helper.make_node("Mul", ["wide", "large"], ["bias"]),
    ]
    for i in range(blocks):
        x, y = (f"h{i}", f"h{i + 1}") if i else ("x", "h1")
        nodes += [
            helper.make_node("MatMul", [x, f"w{i}"], [f"m{i}"]),
            helper.make_node("Add", [f"m{i}", "bias"], [f"s{i}"]),
            helper.make_node("Softmax", [f"s{i}"], [f"p{i}"], axis=1),
            helper.make_node("Mul", [f"p{i}", x], [f"g{i}"]),
            helper.make_node("Add", [f"g{i}", x], ["y" if i == blocks - 1 else y]),
        ]
    weights = {f"w{i}": onnx_models.random(8, 8, seed=i) for i in range(blocks)}
    constants = {"one": np.float32(1), "large": np.float32(-1e4), "axes": np.array([2])}
    graph = helper.make_graph(
        nodes,
        "g",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 6, 8]),
            helper.make_tensor_value_info("mask", TensorProto.INT64, [2, 6]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 6, 8])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in (weights | constants).items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_a_mask_that_every_block_reads_is_sent_along(tmp_path: Path) -> None:
    """The blocks are cuts. Device and region both make the bias of the mask, which the user need not name."""
    path = masked(tmp_path / "m.onnx")
    points = {point.name: point for point in list_cuts(path)}
    assert [n for n in points if n in ("h1", "h2")] == ["h1", "h2"]
    assert [spec.name for spec in points["h2"].carried] == ["bias"]  # float32, smaller than the mask of int64
    x = onnx_models.random(2, 6, 8)
    mask = np.array([[1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0]])
    (expected,) = onnxruntime.InferenceSession(path).run(None, {"x": x, "mask": mask})
    for cut in (["h1"], ["h2"], ["h2", "mask"], ["m1", "h1"]):
        folder = tmp_path / "-".join(cut)
        compiled = compile_model(path, cut=cut, name="m", output=folder)
        sent = [spec.name for spec in compiled.models[0].inputs]
        assert sent == [*cut, *(["bias"] if "mask" not in cut else [])]
        found = load(compiled.device, client=LocalClient(folder / "repository"))(x, mask)
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_stretches_of_a_picture_lie_between_the_cuts(tmp_path: Path) -> None:
    found = stretches(import_onnx(masked(tmp_path / "m.onnx"), {}).graph)
    assert [s.cut for s in found.stretches] == ["h1", "h2", None]
    assert sum(s.multiply_adds for s in found.stretches) == 3 * 12 * 8 * 8
    carried = {c.name: c.nbytes for c in list_cuts(tmp_path / "m.onnx")}
    assert [s.nbytes for s in found.stretches if s.cut] == [carried["h1"], carried["h2"]]
    assert found.stretches[-1].nbytes == 0 and found.skips == [(0, 2)]  # the bias


def test_a_float_input_leaves_the_device_only_where_the_user_cuts_at_it(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Relu", ["picture"], ["r"]),
        helper.make_node("Add", ["h", "r"], ["y"]),
    ]
    path = onnx_models.write(
        tmp_path / "m.onnx", nodes, {"x": [3, 4], "picture": [3, 4]}, {"y": [3, 4]}, {"w": onnx_models.random(4, 4)}
    )
    with pytest.raises(InvalidArgument, match="input 'picture' also reaches the region"):
        compile_model(path, cut="h", name="m", output=tmp_path)
    compiled = compile_model(path, cut=["h", "picture"], name="m", output=tmp_path)
    assert [spec.name for spec in compiled.models[0].inputs] == ["h", "picture"]


OPERATORS = ("Add", "Mul", "Relu", "Tanh", "MatMul")


@st.composite
def graphs(draw: st.DrawFn) -> list[tuple[str, list[str], str]]:
    """Nodes (operator, inputs, output) of a random acyclic graph with inputs x0 and x1."""
    tensors = ["x0", "x1"][: draw(st.integers(1, 2))]
    nodes = []
    for i in range(draw(st.integers(2, 9))):
        operator = draw(st.sampled_from(OPERATORS))
        pick = st.sampled_from(tensors[-4:])
        inputs = [draw(pick), "w"] if operator == "MatMul" else [draw(pick)]
        if operator in ("Add", "Mul"):
            inputs.append(draw(pick))
        nodes.append((operator, inputs, f"t{i}"))
        tensors.append(f"t{i}")
    return nodes


def imported(nodes: list[tuple[str, list[str], str]], folder: Path, tensors: Sequence[str] = ()) -> Imported:
    used = {i for _, inputs, _ in nodes for i in inputs}
    outputs = [t for _, _, t in nodes if t not in used]
    path = onnx_models.write(
        folder / "m.onnx",
        [helper.make_node(op, inputs, [output]) for op, inputs, output in nodes],
        {x: [3, 3] for x in ("x0", "x1") if x in used},
        {o: [3, 3] for o in outputs},
        {"w": onnx_models.random(3, 3) / 3},
    )
    return import_onnx(path, {}, tensors)


def separators(graph: Graph) -> list[str]:
    """The tensors that separate by definition: without one of them, no input reaches an output."""
    names = {}
    results, params = set(graph.result_vars()), set(graph.params)
    for var in (*graph.params, *(b.var for b in graph.bindings)):
        if var not in results and not graph.upstream(results, stop=[var]) & params:
            names[graph.name(var)] = True
    return list(names)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(nodes=graphs())
def test_the_listed_cuts_are_those_that_separate_and_all_are_accepted(
    nodes: list[tuple[str, list[str], str]], tmp_path: Path
) -> None:
    model = imported(nodes, tmp_path)
    listed = [c.name for c in cut_points(model.graph)]
    assert listed == separators(model.graph)
    for name in listed:
        mod = outline(model.mod, model.graph, [name])
        assert {gv.name_hint for gv in mod.get_global_vars()} >= {"main", "offloaded_0"}


def evaluate(mod: tvm.IRModule, arrays: list[Any]) -> list[Any]:
    result = vm.VirtualMachine(build(mod, host_target()), tvm.cpu())["main"](*map(tvm.runtime.tensor, arrays))
    return [t.numpy() for t in ([result] if isinstance(result, tvm.runtime.Tensor) else result)]


@examples(12)
@given(data=st.data())
def test_any_region_is_either_refused_or_computes_the_same(data: st.DataObject, tmp_path: Path) -> None:
    model = imported(data.draw(graphs()), tmp_path)
    names = [n for n in model.graph.tensors if n not in model.graph.constants]
    arrays = [onnx_models.random(3, 3, seed=i) for i, _ in enumerate(model.inputs)]
    expected = evaluate(model.mod, arrays)[: len(model.outputs)]
    some = st.lists(st.sampled_from(names), min_size=1, max_size=3, unique=True)
    tried = 0
    for cut, until in itertools.product(data.draw(st.lists(some, min_size=4, max_size=4)), [None, data.draw(some)]):
        try:
            mod = outline(model.mod, model.graph, cut, until)
        except InvalidArgument:
            continue
        for found, want in zip(evaluate(mod, arrays), expected, strict=True):
            np.testing.assert_allclose(found, want, atol=1e-4)
        tried += 1
        if tried == 2:
            return


def test_what_no_input_reaches_is_cheap_though_it_is_made_of_a_table() -> None:
    # T5's distances of places, as PyTorch programs compute them: the mask hides some, and each block reads the rest.
    builder = relax.BlockBuilder()
    x, mask = (relax.Var(n, relax.TensorType([4, 4], kind)) for n, kind in (("x", "float32"), ("mask", "bool")))
    with builder.function("main", [x, mask], {"num_input": 2}):
        with builder.dataflow():
            places = builder.emit(relax.op.arange(0, 4, 1, "int64"))
            table = builder.emit(relax.op.take(relax.const(onnx_models.random(4, 4)), places, axis=0))
            bias = builder.emit(relax.op.where(mask, table, relax.const(-1.0)))
            h = x
            for seed in range(3):
                product = builder.emit(relax.op.matmul(h, relax.const(onnx_models.random(4, 4, seed=seed))))
                h = builder.emit(relax.op.add(product, bias))
            result = builder.emit_output(h)
        builder.emit_func_output(result)
    points = [p for p in list_cuts(builder.get()) if not p.others]
    assert len(points) >= 5
    assert {spec.name for p in points for spec in p.carried} <= {"mask", "bias"}
