"""Loops with a known number of rounds are written out, and branches are computed and chosen; others are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.support import onnx_models
from tests.support.operator_cases import RIGHT, Case, floats, outcome, run
from zmq_offload.compile.onnx.importer import import_onnx
from zmq_offload.compile.operators.loops import MOST_NODES
from zmq_offload.errors import InvalidArgument

Array = np.ndarray[Any, Any]
N = helper.make_node
ROUND = ("i", TensorProto.INT64)
GO = ("go", TensorProto.BOOL)


def body(nodes: list[onnx.NodeProto], inputs: list[tuple[str, int]], outputs: list[tuple[str, int]]) -> onnx.GraphProto:
    def info(name: str, kind: int) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, kind, None if kind == F else [])

    values = [[info(*value) for value in ends] for ends in (inputs, outputs)]
    return helper.make_graph(nodes, "body", *values)


F, B, INT = TensorProto.FLOAT, TensorProto.BOOL, TensorProto.INT64
ROUNDS = {"n": np.int64(3), "go0": np.bool_(True), "w": floats(4)}


def counted() -> Case:
    """The body reads the round, a tensor from outside, and keeps a result of each round."""
    nodes = [
        N("Cast", ["i"], ["f"], to=F),
        N("Mul", ["a", "w"], ["b"]),
        N("Add", ["b", "f"], ["a2"]),
        N("Identity", ["go"], ["go2"]),
        N("Relu", ["a2"], ["each"]),
    ]
    graph = body(nodes, [ROUND, GO, ("a", F)], [("go2", B), ("a2", F), ("each", F)])
    loop = N("Loop", ["n", "go0", "x"], ["last", "all"], "loop", body=graph)
    return run([loop, N("Add", ["last", "all"], ["y"])], floats(4), ROUNDS)


def nested() -> Case:
    inner = body(
        [N("Add", ["c", "a"], ["d"]), N("Mul", ["d", "w"], ["c2"]), N("Identity", ["go_in"], ["go_in2"])],
        [("k", INT), ("go_in", B), ("c", F)],
        [("go_in2", B), ("c2", F)],
    )
    # The inner loop has as many rounds as the outer one has done.
    outer = body(
        [N("Loop", ["i", "", "a"], ["a2"], "inner", body=inner), N("Identity", ["go"], ["go2"])],
        [ROUND, GO, ("a", F)],
        [("go2", B), ("a2", F)],
    )
    return run([N("Loop", ["n", "", "x"], ["y"], "outer", body=outer)], floats(4), ROUNDS)


def counting() -> Case:
    """`while count < 5`: the condition is computed from constants."""
    nodes = [N("Add", ["c", "one"], ["c2"]), N("Less", ["c2", "five"], ["go2"]), N("Sin", ["a"], ["a2"])]
    graph = body(nodes, [ROUND, GO, ("c", INT), ("a", F)], [("go2", B), ("c2", INT), ("a2", F)])
    constants = {"go0": np.bool_(True), "c0": np.int64(0), "one": np.int64(1), "five": np.int64(5)}
    return run([N("Loop", ["", "go0", "c0", "x"], ["count", "y"], body=graph)], floats(3), constants)


def by_shape() -> Case:
    """As many rounds as the input has rows."""
    nodes = [N("Gather", ["x", "i"], ["row"], axis=0), N("Add", ["a", "row"], ["a2"]), N("Identity", ["go"], ["go2"])]
    graph = body(nodes, [ROUND, GO, ("a", F)], [("go2", B), ("a2", F)])
    before = [N("Shape", ["x"], ["s"]), N("Gather", ["s", "zero"], ["rows"], axis=0)]
    constants = {"zero": np.int64(0), "a0": floats(3, seed=1), "go0": np.bool_(True)}
    return run([*before, N("Loop", ["rows", "go0", "a0"], ["y"], body=graph)], floats(5, 3), constants)


def scanned(**attributes: Any) -> Case:
    nodes = [N("Add", ["a", "row"], ["a2"]), N("Mul", ["a2", "a2"], ["each"])]
    graph = body(nodes, [("a", F), ("row", F)], [("a2", F), ("each", F)])
    scan = N("Scan", ["a0", "x"], ["last", "all"], body=graph, num_scan_inputs=1, **attributes)
    return run([scan, N("Sub", ["all", "last"], ["y"])], floats(4, 4), {"a0": floats(4, seed=1)})


def chosen(condition: bool) -> Case:
    """Only the branch that is taken has to be importable."""
    yes = helper.make_graph([N("Mul", ["x", "w"], ["p"])], "yes", [], [helper.make_tensor_value_info("p", F, None)])
    no = helper.make_graph([N("Sub", ["x", "w"], ["q"])], "no", [], [helper.make_tensor_value_info("q", F, None)])
    branch = N("If", ["c"], ["y"], then_branch=yes, else_branch=no)
    return run([branch], floats(4), {"c": np.bool_(condition), "w": floats(4, seed=1)})


def decided(sign: float, *, same_names: bool = False) -> Case:
    """Only the run tells which branch is taken. One has a branch inside that depends on a shape, and a weight."""
    inner = [
        helper.make_graph(
            [N("Reshape", ["p", "one"], ["r"])], "yes", [], [helper.make_tensor_value_info("r", F, None)]
        ),
        helper.make_graph([N("Identity", ["p"], ["t"])], "no", [], [helper.make_tensor_value_info("t", F, None)]),
    ]
    nodes = [
        N("Mul", ["x", "w"], ["p"]),
        N("Shape", ["p"], ["s"]),
        N("Equal", ["s", "one"], ["is_one"]),
        N("If", ["is_one"], ["u"], then_branch=inner[0], else_branch=inner[1]),
        N("Mul", ["u", "own"], ["v"]),
    ]
    own = numpy_helper.from_array(floats(4, seed=2), "own")
    ends = [[helper.make_tensor_value_info(name, F, None)] for name in ("v", "p" if same_names else "q")]
    yes = helper.make_graph(nodes, "yes", [], ends[0], [own])
    no = helper.make_graph([N("Sin", ["x"], [ends[1][0].name])], "no", [], ends[1])
    before = [N("ReduceSum", ["x"], ["sum"], keepdims=0), N("Greater", ["sum", "nothing"], ["c"])]
    constants = {"w": floats(4, seed=1), "one": np.int64([1]), "nothing": np.float32(0)}
    after = N("Add", ["l", "x"], ["y"])
    return run(
        [*before, N("If", ["c"], ["l"], then_branch=yes, else_branch=no), after], floats(4) ** 2 * sign, constants
    )


def until_large() -> Case:
    """At most eight rounds; how many it really has depends on the values."""
    nodes = [
        N("Add", ["a", "w"], ["a2"]),
        N("ReduceMax", ["a2"], ["most"], keepdims=0),
        N("Less", ["most", "limit"], ["go2"]),
    ]
    graph = body(nodes, [ROUND, GO, ("a", F)], [("go2", B), ("a2", F)])
    constants = {"n": np.int64(8), "w": np.float32(0.75), "limit": np.float32(3)}
    return run([N("Loop", ["n", "", "x"], ["y"], "loop", body=graph)], floats(4), constants)


CASES = {
    "counted": counted,
    "nested": nested,
    "counting": counting,
    "by shape": by_shape,
    "scan": scanned,
    "scan backward along columns": lambda: scanned(
        scan_input_axes=[1], scan_input_directions=[1], scan_output_axes=[1], scan_output_directions=[1]
    ),
    "true": lambda: chosen(True),
    "false": lambda: chosen(False),
    "decided by the run: true": lambda: decided(1),
    "decided by the run: false": lambda: decided(-1),
    "branches with the same names": lambda: decided(1, same_names=True),
    "until large": until_large,
}


@pytest.mark.parametrize("name", CASES)
def test_a_loop_with_a_known_number_of_rounds_is_right(name: str) -> None:
    found = outcome(CASES[name](), constant=False)
    assert found.kind == RIGHT, found.detail


def test_branches_of_different_shapes_are_refused_by_name(tmp_path: Path) -> None:
    sides = [
        helper.make_graph([N("Flatten", ["x"], ["f"])], "yes", [], [helper.make_tensor_value_info("f", F, None)]),
        helper.make_graph([N("Relu", ["x"], ["r"])], "no", [], [helper.make_tensor_value_info("r", F, None)]),
    ]
    nodes = [
        N("ReduceSum", ["x"], ["sum"], keepdims=0),
        N("Cast", ["sum"], ["c"], to=B),
        N("If", ["c"], ["l"], "choose", then_branch=sides[0], else_branch=sides[1]),
        N("Relu", ["l"], ["y"]),
    ]
    path = onnx_models.write(tmp_path / "m.onnx", nodes, {"x": [2, 3, 4]}, {"y": [1]}, {})
    with pytest.raises(InvalidArgument) as caught:
        import_onnx(path, {})
    assert str(caught.value) == (
        "cannot import the operator If (ai.onnx, node 'choose'): its branches give float32[2,12] and float32[2,3,4] "
        "for 'l', and only the run decides between them; export the model with one of its branches"
    )


def refused(tmp_path: Path, rounds: int | None, condition: str) -> str:
    nodes = [N("Sin", ["a"], ["a2"]), N("ReduceSum", ["a2"], ["t"], keepdims=0), N("Greater", ["t", "zero"], ["go2"])]
    if condition == "known":
        nodes = [N("Sin", ["a"], ["a2"]), N("Identity", ["go"], ["go2"])]
    graph = body(nodes, [ROUND, GO, ("a", F)], [("go2", B), ("a2", F)])
    weights = {"zero": np.float32(0)} | ({} if rounds is None else {"n": np.int64(rounds)})
    loop = N("Loop", ["n" if rounds is not None else "", "", "x"], ["y"], "again", body=graph)
    info = [helper.make_tensor_value_info(name, F, [4]) for name in "xy"]
    whole = helper.make_graph(
        [loop], "g", [info[0]], [info[1]], [numpy_helper.from_array(np.asarray(v), k) for k, v in weights.items()]
    )
    onnx.save(helper.make_model(whole, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "m.onnx")
    with pytest.raises(InvalidArgument) as caught:
        import_onnx(tmp_path / "m.onnx", {})
    return str(caught.value)


def test_a_loop_that_cannot_be_written_out_is_refused_by_name(tmp_path: Path) -> None:
    where = "cannot import the operator Loop (ai.onnx, node 'again'): "
    for rounds in (5000, None):
        data = refused(tmp_path, rounds, "data")
        assert data.startswith(f"{where}the condition to go on, 'go2', is computed when the model runs; write it with")
    assert refused(tmp_path, 5000, "known").startswith(
        f"{where}its 5,000 rounds of 2 nodes are more than {MOST_NODES:,}"
    )
    assert refused(tmp_path, None, "known").startswith(
        f"{where}its rounds of 2 nodes are more than {MOST_NODES:,} nodes"
    )
