"""Several regions of one model: where they may be, and that they compute the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm
from hypothesis import assume, given, reject
from hypothesis import strategies as st
from onnx import helper
from tvm import relax, te, tirx
from tvm.relax.dpl import is_op, wildcard
from tvm.runtime import vm

from tests.byoc.conftest import Split
from tests.compile.test_cuts import evaluate, graphs, imported
from tests.support import onnx_models
from tests.support.bundle_secrets import contents, four_byte_values, share_found
from tests.support.examples import examples
from tests.support.local_client import LocalClient, run_uncut
from zmq_offload.artifacts.manifest import OffloadedRegion
from zmq_offload.artifacts.repository import Batching, Repository
from zmq_offload.byoc.codegen import OUTPUT_NAMES, split
from zmq_offload.byoc.cut import cut_module
from zmq_offload.byoc.encoding import Wire
from zmq_offload.byoc.outline import outline_regions
from zmq_offload.byoc.wire import encode_boundary
from zmq_offload.compile import Compiled, Region, compile_model, compile_module, partition_for_zmq_offload
from zmq_offload.compile.build import build
from zmq_offload.compile.target import host_target
from zmq_offload.device.model import load
from zmq_offload.device.remote import InFlight, RemoteModule, registered
from zmq_offload.errors import FailedPrecondition, InvalidArgument

LEFT, RIGHT = Region("left", ["features"], ["left"]), Region("right", ["features"], ["right"])


def check(path: Path, compiled: Compiled, *arrays: Any, atol: float = 1e-4) -> LocalClient:
    client = LocalClient(compiled.subgraphs[0].parent.parent)
    results = load(compiled.device, client=client)(*arrays)
    shapes = {spec.name: a.shape for spec, a in zip(compiled.manifest.inputs, arrays, strict=True)}
    expected = run_uncut(path, shapes, list(arrays))
    for got, want in zip(results if isinstance(results, tuple) else (results,), expected, strict=True):
        np.testing.assert_allclose(got, want, atol=atol, rtol=0)
    return client


@pytest.mark.parametrize(
    "regions",
    [
        [LEFT, RIGHT],
        [RIGHT, LEFT],
        [Region("a", "conv1", ["features"]), LEFT, RIGHT],  # one after the other, and two next to each other
        [Region("a", ["x"], ["features"]), Region("b", ["own_conv", "left", "right"], ["y"])],  # the first and the last
        [Region("a", "left_conv", "left"), Region("b", ["right_conv"], ["right"]), Region("c", "product", "y")],
        [Region("a", ["features"], ["left", "own_conv"]), RIGHT],
        [Region("a", "features", ["joined", "right"]), Region("b", ["joined", "right"], "y")],  # end where one begins
    ],
)
def test_regions_of_a_model_compute_the_same(branches: Path, split_branches: Split, regions: list[Region]) -> None:
    compiled = split_branches(*regions)
    assert {m.name for m in compiled.models} == {r.name for r in regions}
    signatures = {m.name: ([t.name for t in m.inputs], [t.name for t in m.outputs]) for m in compiled.models}
    for region in regions:
        expected = [[n] if isinstance(n, str) else n for n in (region.cut, region.until)]
        assert list(signatures[region.name]) == expected
    client = check(branches, compiled, onnx_models.random(1, 3, 8, 8))
    assert sorted(call[0] for call in client.calls) == sorted(r.name for r in regions)  # one request each


@pytest.mark.parametrize("wire", ["float32", "int8"])
def test_regions_have_a_symbolic_batch_and_encodings_of_their_own(branches: Path, tmp_path: Path, wire: Wire) -> None:
    compiled = compile_model(
        branches,
        inputs={"x": ("N", 3, 8, 8)},
        regions=[LEFT, Region("right", ["features"], ["right"], wire="float16")],
        wire=wire,
        batching=Batching(4),
        output=tmp_path,
    )
    datatypes = {m.name: m.inputs[0].datatype for m in compiled.models}
    assert datatypes == {"left": {"float32": "FP32", "int8": "INT8"}[wire], "right": "FP16"}
    for batch in (1, 3):
        check(branches, compiled, onnx_models.random(batch, 3, 8, 8), atol=0.01 if wire == "float32" else 0.5)


def test_a_tensor_that_goes_to_several_models_is_encoded_once(branches: Path, tmp_path: Path) -> None:
    from zmq_offload.compile.onnx.importer import import_onnx

    model = import_onnx(branches, {"x": (1, 3, 8, 8)})
    mod, _ = outline_regions(model.mod, model.graph, [LEFT, RIGHT])
    assert str(encode_boundary(mod, ["int8", "int8"])["main"]).count("R.stack(") == 1


def test_several_inputs_and_outputs_of_several_regions(diamond: Path, tmp_path: Path) -> None:
    regions = [Region("a", ["a1", "s"], ["p", "t"]), Region("b", ["p", "t"], ["first", "second"])]
    compiled = compile_model(diamond, regions=regions, output=tmp_path)
    check(diamond, compiled, onnx_models.random(4, 6, seed=7), onnx_models.random(4, 6, seed=8))


def chain(path: Path) -> Path:
    """Three independent chains of two operators, a -> a1 -> a2 and so on; y joins them."""
    nodes = [
        helper.make_node("Exp", ["a"], ["a1"]),
        helper.make_node("Sin", ["a1"], ["a2"]),
        helper.make_node("Tanh", ["b"], ["b1"]),
        helper.make_node("Cos", ["b1"], ["b2"]),
        helper.make_node("Sqrt", ["c"], ["c1"]),
        helper.make_node("Sigmoid", ["c1"], ["c2"]),
        helper.make_node("Sum", ["a2", "b2", "c2"], ["y"]),
    ]
    inputs = {n: [2, 3] for n in "abc"}
    return onnx_models.write(path, nodes, inputs, {"y": [2, 3]}, {})


def test_regions_in_a_cycle_are_refused_and_named(tmp_path: Path) -> None:
    # P computes a1 and b2, Q computes b1 and a2: each needs a result of the other that depends on its own.
    nodes = [
        helper.make_node("Exp", ["a"], ["a1"]),
        helper.make_node("Sin", ["a1"], ["a2"]),
        helper.make_node("Tanh", ["b"], ["b1"]),
        helper.make_node("Cos", ["b1"], ["b2"]),
        helper.make_node("Add", ["a2", "b2"], ["y"]),
    ]
    path = onnx_models.write(tmp_path / "m.onnx", nodes, {"a": [2], "b": [2]}, {"y": [2]}, {})
    regions = [Region("P", ["a", "b1"], ["a1", "b2"]), Region("Q", ["b", "a1"], ["b1", "a2"])]
    with pytest.raises(InvalidArgument, match="regions depend on each other in a cycle") as caught:
        compile_model(path, regions=regions, output=tmp_path)
    assert "'P' needs 'b1' of 'Q' (for 'b1')" in str(caught.value)
    assert "'Q' needs 'a1' of 'P' (for 'a1')" in str(caught.value)


def test_a_cycle_of_three_is_found_too(tmp_path: Path) -> None:
    regions = [
        Region("P", ["a", "c1"], ["a1", "c2"]),
        Region("Q", ["b", "a1"], ["b1", "a2"]),
        Region("R", ["c", "b1"], ["c1", "b2"]),
    ]
    with pytest.raises(InvalidArgument, match="in a cycle") as caught:
        compile_model(chain(tmp_path / "m.onnx"), regions=regions, output=tmp_path)
    for one, tensor, other in (("P", "c1", "R"), ("R", "b1", "Q"), ("Q", "a1", "P")):
        assert f"{one!r} needs {tensor!r} of {other!r}" in str(caught.value)


@pytest.mark.parametrize(
    ("regions", "message"),
    [
        (
            [Region("A", ["features"], ["joined", "right"]), LEFT],
            "regions 'A' and 'left' overlap: both compute 'left_conv'",
        ),
        ([LEFT, Region("left", ["features"], ["right"])], "two regions are named 'left'"),
        ([Region("A", ["w1"], ["left"]), RIGHT], "region 'A': --cut: tensor 'w1' is constant"),
        (
            [Region("A", ["feature"], ["left"]), RIGHT],
            "region 'A': --cut: the model has no tensor 'feature'; did you mean",
        ),
        ([LEFT, Region("B", ["left"], ["joined"])], "region 'B': --cut: 'left' does not separate the graph"),
        ([LEFT, Region("B", ["left_conv", "own_conv"], ["joined"])], "regions 'left' and 'B' overlap: both compute"),
        (
            [LEFT, Region("B", ["features", "left_conv"], ["joined"])],
            "regions 'left' and 'B' overlap: both compute 'le",
        ),
        ([Region("A", ["left"], ["left"]), RIGHT], "region 'A': --until: 'left' is where the region begins"),
        ([Region("A", [], ["left"]), RIGHT], "region 'A': --cut: name at least one tensor"),
        ([], "name at least one region"),
        ([Region("A/B", ["features"], ["left"])], "model name 'A/B'"),
        (
            [Region("A", ["features"], ["left"], wire="float8"), RIGHT],
            "wire 'float8' is not an encoding; choose",
        ),  # type: ignore
    ],
)
def test_invalid_regions_are_refused(branches: Path, tmp_path: Path, regions: list[Region], message: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        compile_model(branches, inputs={"x": (1, 3, 8, 8)}, regions=regions, output=tmp_path)
    assert message in str(caught.value)
    assert not list(tmp_path.rglob("*.so"))


def test_one_region_or_several_are_given_in_one_way(branches: Path, tmp_path: Path) -> None:
    shapes = {"x": (1, 3, 8, 8)}
    with pytest.raises(InvalidArgument, match="regions cannot be combined with cut, until or name"):
        compile_model(branches, inputs=shapes, regions=[LEFT], cut="features", output=tmp_path)
    for one in ({"cut": "features"}, {"name": "n"}, {}):
        with pytest.raises(InvalidArgument, match="cut or name is missing; give cut and name for one region"):
            compile_model(branches, inputs=shapes, output=tmp_path, **one)  # type: ignore[arg-type]


def test_nothing_of_a_region_is_on_the_device_or_in_another(split_branches: Split) -> None:
    compiled = split_branches(LEFT, RIGHT)
    places = {"device": contents(compiled.device)}
    places |= {m.name: contents(folder) for m, folder in zip(compiled.models, compiled.subgraphs, strict=True)}
    weights = {"device": [(3, 1), (8, 4)], "left": [(8, 2)], "right": [(8, 3)]}
    for owner, its in weights.items():
        for channels, seed in its:
            weight = onnx_models.random(8, channels, 3, 3, seed=seed)
            for place, content in places.items():
                share = share_found(weight, four_byte_values(content))
                assert share > 0.9 if place == owner else share < 0.1, (owner, place, share)
    # An operator that only one has, and names that begin with whose they are.
    operators = {"left": b"tanh", "right": b"sigmoid"}
    for owner, operator in operators.items():
        assert [place for place, content in places.items() if operator in content.lower()] == [owner]
    assert b"left_" not in places["device"] + places["right"] and b"right_" not in places["device"] + places["left"]


def other_backend(functions: Any, _options: Any, _constants: Any) -> list[Any]:
    """Another BYOC backend: its one pattern is relu of a [4,6] tensor, which it computes with 1 added."""
    return [_relu_and_one(str(function.attrs["global_symbol"])) for function in functions]


def _relu_and_one(symbol: str) -> Any:
    source = te.placeholder((4, 6), "float32")
    result = te.compute((4, 6), lambda *i: tirx.max(source[i], tirx.const(0, "float32")) + tirx.const(1, "float32"))
    prim = te.create_prim_func([source, result]).with_attr("global_symbol", symbol)
    return tvm.tirx.build(tvm.IRModule({symbol: prim}), target="llvm")


@pytest.mark.parametrize("ours_first", [True, False])
def test_another_backend_keeps_its_functions_in_the_device_library(tmp_path: Path, ours_first: bool) -> None:
    tvm.register_global_func("relax.ext.test_other", other_backend, override=True)
    weight = onnx_models.random(6, 6)
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((4, 6), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            h = builder.emit(relax.op.nn.relu(builder.emit(relax.op.exp(x))))
            m = builder.emit(relax.op.matmul(h, relax.const(weight)))
            r = builder.emit(relax.op.nn.relu(x))
            y = builder.emit_output(relax.op.add(m, r))
        builder.emit_func_output(y)
    relu = relax.transform.FusionPattern("test_other.relu", is_op("relax.nn.relu")(wildcard()))
    others = relax.transform.FuseOpsByPattern([relu], bind_constants=True, annotate_codegen=True)
    ours = [("zmq_offload.matmul", is_op("relax.matmul")(wildcard(), wildcard()))]
    if ours_first:
        mod = others(partition_for_zmq_offload(builder.get(), ours))
    else:
        mod = partition_for_zmq_offload(others(builder.get()), ours)
    compiled = compile_module(mod, name="m", output=tmp_path)
    assert [m.name for m in compiled.models] == ["m"]
    a = onnx_models.random(4, 6, seed=3)
    client = LocalClient(tmp_path / "repository")
    results = load(compiled.device, client=client)(a)
    np.testing.assert_allclose(results, (np.exp(a) + 1) @ weight + np.maximum(a, 0) + 1, atol=1e-4)
    assert len(client.calls) == 1
    assert share_found(weight, four_byte_values(contents(compiled.device))) < 0.1


class Subgraphs:
    """A client that runs subgraphs from their modules."""

    def __init__(self, subgraphs: Any) -> None:
        self.of = {
            s.model: (s, vm.VirtualMachine(build(s.module, host_target()), tvm.cpu())["main"]) for s in subgraphs
        }

    def infer(self, model: str, inputs: Any, **_: Any) -> dict[str, Any]:
        subgraph, main = self.of[model]
        result = main(*(tvm.runtime.tensor(inputs[t.name]) for t in subgraph.inputs))
        results = [result] if isinstance(result, tvm.runtime.Tensor) else list(result)
        return {t.name: r.numpy() for t, r in zip(subgraph.outputs, results, strict=True)}


def regions_of(nodes: list[tuple[str, list[str], str]], owners: list[int]) -> list[Region]:
    """The regions of nodes by their owners (0: the device), with all tensors that they and others need."""
    regions = []
    for owner in sorted(set(owners) - {0}):
        own = [node for node, of in zip(nodes, owners, strict=True) if of == owner]
        made = [output for _, _, output in own]
        cut = dict.fromkeys(i for _, inputs, _ in own for i in inputs if i not in made and i != "w")
        used = {i for _, inputs, _ in nodes for i in inputs}
        elsewhere = {i for node in nodes if node not in own for i in node[1]}
        until = [output for output in made if output in elsewhere or output not in used]
        regions.append(Region(f"r{owner}", list(cut), until))
    return regions


@examples(6)
@given(data=st.data())
def test_any_regions_are_either_refused_or_compute_the_same(data: st.DataObject, tmp_path: Path) -> None:
    nodes = data.draw(graphs())
    # Simplifying leaves one of two that compute the same.
    assume(len({(operator, *inputs) for operator, inputs, _ in nodes}) == len(nodes))
    owners = data.draw(st.lists(st.sampled_from([0, 1, 1, 2, 2, 3]), min_size=len(nodes), max_size=len(nodes)))
    regions = regions_of(nodes, owners)
    assume(len(regions) > 1)
    model = imported(nodes, tmp_path, [t for r in regions for t in (*r.cut, *(r.until or ()))])
    try:
        mod, placed = outline_regions(model.mod, model.graph, regions)
    except InvalidArgument as error:
        # A region may only be refused because it needs its own result, directly or through other regions.
        if not any(words in str(error) for words in ("in a cycle", "cannot feed itself")):
            raise
        reject()
    assert sorted(r.name for r in placed) == sorted(r.name for r in regions)
    arrays = [onnx_models.random(3, 3, seed=i) for i, _ in enumerate(model.inputs)]
    expected = evaluate(model.mod, arrays)[: len(model.outputs)]
    device, subgraphs = split(mod, [r.name for r in placed])
    client = Subgraphs(subgraphs)
    parts = [OffloadedRegion(s.symbol, s.model, "latest", s.inputs, s.outputs) for s in subgraphs]
    with registered({p.symbol: RemoteModule(p, client, None, InFlight()) for p in parts}):
        results = evaluate(device, arrays)
    for got, want in zip(results, expected, strict=True):
        np.testing.assert_allclose(got, want, atol=1e-4)


def test_a_path_around_two_cuts_is_named_if_it_joins_before_it_leaves(tmp_path: Path) -> None:
    """One cut lies before the other: the path around both joins after the first and leaves before the second."""
    nodes = [
        ("Relu", ["x0"], "a"),
        ("Add", ["x0", "a"], "u"),
        ("Tanh", ["u"], "w1"),
        ("Relu", ["w1"], "b"),
        ("Mul", ["w1", "b"], "m"),
        ("Add", ["m", "a"], "y"),
    ]
    model = imported(nodes, tmp_path, ["a", "b", "y"])
    with pytest.raises(InvalidArgument, match=r"does not separate the graph: .* by w1"):
        outline_regions(model.mod, model.graph, [Region("r", ["a", "b"], ["y"])])


def test_nothing_is_written_if_the_second_region_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = onnx_models.branches(tmp_path / "m.onnx")
    regions = [Region("left", ["features"], ["left"]), Region("right", ["features"], ["right"])]
    write = Repository.write

    def full(self: Repository, name: str, *arguments: Any, **options: Any) -> Any:
        if name == "right":
            raise FailedPrecondition("No space left on device")
        return write(self, name, *arguments, **options)

    monkeypatch.setattr(Repository, "write", full)
    with pytest.raises(FailedPrecondition, match="No space left"):
        compile_model(model, inputs={"x": (1, 3, 8, 8)}, regions=regions, output=tmp_path / "dist")
    assert not (tmp_path / "dist").exists()


def test_a_region_of_a_module_without_dataflow_has_two_results() -> None:
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((4, 6), "float32"))
    with builder.function("main", [x]):
        h = builder.emit(relax.op.exp(x), "h")
        a = builder.emit(relax.op.nn.relu(h), "a")
        b = builder.emit(relax.op.tanh(h), "b")
        builder.emit_func_output(relax.op.add(a, b))
    split = cut_module(builder.get(), "h", ["a", "b"])
    regions = [function for gv, function in split.functions.items() if gv.name_hint != "main"]
    assert [list(function.attrs[OUTPUT_NAMES]) for function in regions] == [["a", "b"]]
