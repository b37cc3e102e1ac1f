"""Results with as many rows as the run keeps: NonMaxSuppression and what follows it, on either side of a cut."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import zmq_offload
from tests.support import family_nets
from tests.support.local_client import LocalClient
from zmq_offload.artifacts.repository import Batching
from zmq_offload.compile import compile_model
from zmq_offload.compile.uncut import UncutModel, compile_uncut
from zmq_offload.errors import InvalidArgument


def _session(file: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])


def _suppression(file: Path, numbers: Sequence[float | None], centred: int) -> Path:
    """A model of one NonMaxSuppression; `numbers` are its other inputs, None is omitted."""
    pairs = list(zip(numbers, ("i8", "f4", "f4"), strict=True))
    given = [numpy_helper.from_array(np.array([n], k), f"{k}{i}") for i, (n, k) in enumerate(pairs) if n is not None]
    names = ["" if n is None else f"{k}{i}" for i, (n, k) in enumerate(pairs)]
    node = helper.make_node("NonMaxSuppression", ["b", "s", *names], ["y"], center_point_box=centred)
    inputs = [helper.make_tensor_value_info("b", TensorProto.FLOAT, [2, 30, 4]),
              helper.make_tensor_value_info("s", TensorProto.FLOAT, [2, 3, 30])]  # fmt: skip
    outputs = [helper.make_tensor_value_info("y", TensorProto.INT64, [None, 3])]
    graph = helper.make_graph([node], "net", inputs, outputs, given)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), file)
    return file


@pytest.mark.parametrize(
    ("numbers", "centred"),
    [
        pytest.param((4, 0.3, 0.4), 0, id="usual"),
        pytest.param((2**63 - 1, 0.5, None), 1, id="every box, centres"),
        pytest.param((3, None, -0.3), 0, id="negative scores", marks=pytest.mark.operators),
        pytest.param((None, 0.5, 0.1), 0, id="no box", marks=pytest.mark.operators),
    ],
)
def test_the_rows_are_those_of_onnx_runtime(numbers: tuple[float | None, ...], centred: int, tmp_path: Path) -> None:
    file = _suppression(tmp_path / "m.onnx", numbers, centred)
    compile_uncut(file, tmp_path / "m.so")
    model, session = UncutModel(tmp_path / "m.so"), _session(file)
    for seed, brightness in enumerate((1, 0.5, 0, -1)):
        generator = np.random.default_rng(seed)
        boxes = generator.random((2, 30, 4), np.float32)
        # With one digit, many scores are equal.
        scores = np.round(generator.random((2, 3, 30)) * brightness, 1).astype("f4")
        (right,) = session.run(None, {"b": boxes, "s": scores})
        (ours,) = model(boxes, scores)
        np.testing.assert_array_equal(ours, right)


@pytest.mark.parametrize(
    "until", [pytest.param(("boxes", "scores"), marks=pytest.mark.operators), ("boxes", "scores", "rows")]
)
def test_either_side_of_a_cut_keeps_the_rows(until: tuple[str, ...], tmp_path: Path) -> None:
    case = family_nets.detection_with_suppression(tmp_path / "m.onnx")
    suppression = next(n for n in onnx.load(case.file).graph.node if n.op_type == "NonMaxSuppression")
    known = dict(zip(("boxes", "scores", "rows"), [*suppression.input[:2], *suppression.output], strict=True))
    compiled = compile_model(
        case.file, cut=case.cut, until=[known[name] for name in until], name="net", output=tmp_path / "dist"
    )
    session, counts = _session(case.file), []
    with zmq_offload.load(compiled.device, client=LocalClient(tmp_path / "dist" / "repository")) as model:
        for sample in case.samples:
            (right,) = session.run(None, dict(sample))
            np.testing.assert_allclose(model(**sample), right, rtol=0, atol=1e-5 * np.abs(right).max(initial=0))
            counts.append(len(right))
    assert len(set(counts)) == len(counts)
    assert counts[-1] == 0


def test_kept_rows_are_no_batch(tmp_path: Path) -> None:
    case = family_nets.detection_with_suppression(tmp_path / "m.onnx")
    with pytest.raises(InvalidArgument, match="cannot run together"):
        compile_model(case.file, cut=case.cut, name="net", output=tmp_path / "dist", batching=Batching(4))


def test_places_and_slices_that_are_kept(tmp_path: Path) -> None:
    """NonZero, Compress, and what reads by their results, at inputs of any number of rows."""
    net = family_nets.Net(x=(TensorProto.FLOAT, ["N", 6]), y=(TensorProto.FLOAT, [5]))
    places = net.add("NonZero", "x")
    values = net.add("GatherND", "x", net.add("Transpose", places))
    kept = net.add("Compress", "x", net.add("Greater", "y", net.value(0.5)), axis=1)
    whole = net.add("Compress", "x", net.add("Greater", "y", net.value(0.5)))
    file = net.save(tmp_path / "m.onnx", net.add("Cast", places, to=TensorProto.FLOAT), values, kept, whole)
    compile_uncut(file, tmp_path / "m.so", inputs={"x": ("N", 6), "y": (5,)})
    model, session = UncutModel(tmp_path / "m.so"), _session(file)
    for rows, brightness in ((3, 1), (9, 0.2), (4, 0)):
        generator = np.random.default_rng(rows)
        x = (generator.random((rows, 6)) * brightness).round(1).astype("f4")
        y = (generator.random(5) * brightness).astype("f4")
        for ours, right in zip(model(x, y), session.run(None, {"x": x, "y": y}), strict=True):
            np.testing.assert_array_equal(ours, right)


def test_two_tensors_read_at_the_same_places_have_the_same_rows(tmp_path: Path) -> None:
    """As exporters write `boxes[mask]` and `scores[mask]`, and then the best of what is left."""
    net = family_nets.Net(boxes=(TensorProto.FLOAT, [40, 4]), scores=(TensorProto.FLOAT, [40]))
    mask = net.add("Greater", "scores", net.value(0.3))
    boxes, scores = (
        net.add("GatherND", x, net.add("Transpose", net.add("NonZero", mask))) for x in ("boxes", "scores")
    )
    most = net.add("Concat", net.value([6]), net.extent(scores, 0), axis=0)
    values, places = net.add("TopK", scores, net.add("ReduceMin", most, axes=[0], keepdims=1), outputs=2)
    best = net.add("Gather", net.add("Mul", boxes, net.add("Unsqueeze", scores, net.value([1]))), places)
    file = net.save(tmp_path / "m.onnx", best, values)
    compile_uncut(file, tmp_path / "m.so")
    model, session = UncutModel(tmp_path / "m.so"), _session(file)
    for seed, brightness in enumerate((1, 0.4, 0)):
        generator = np.random.default_rng(seed)
        fed = {"boxes": generator.random((40, 4), np.float32), "scores": generator.random(40, np.float32) * brightness}
        fed = {name: array.astype("f4") for name, array in fed.items()}
        for ours, right in zip(model(*fed.values()), session.run(None, fed), strict=True):
            np.testing.assert_array_equal(ours, right)


def test_boxes_of_any_number_are_suppressed(tmp_path: Path) -> None:
    net = family_nets.Net(boxes=(TensorProto.FLOAT, [1, "N", 4]), scores=(TensorProto.FLOAT, [1, 2, "N"]))
    rows = net.add("NonMaxSuppression", "boxes", "scores", net.value([2**63 - 1]), net.value([0.5]))
    file = net.save(tmp_path / "m.onnx", net.add("Cast", rows, to=TensorProto.FLOAT))
    compile_uncut(file, tmp_path / "m.so", inputs={"boxes": (1, "N", 4), "scores": (1, 2, "N")})
    model, session = UncutModel(tmp_path / "m.so"), _session(file)
    for boxes in (1, 7, 400):
        generator = np.random.default_rng(boxes)
        fed = {
            "boxes": generator.random((1, boxes, 4), np.float32),
            "scores": generator.random((1, 2, boxes), np.float32),
        }
        np.testing.assert_array_equal(model(*fed.values())[0], session.run(None, fed)[0])


def test_a_branch_for_no_boxes_is_no_choice(tmp_path: Path) -> None:
    """As exporters write batched_nms: an empty result if there is no box, or else what is kept."""
    net = family_nets.Net(boxes=(TensorProto.FLOAT, [40, 4]), scores=(TensorProto.FLOAT, [40]))
    places = net.add("Transpose", net.add("NonZero", net.add("Greater", "scores", net.value(0.3))))
    boxes, scores = (net.add("GatherND", x, places) for x in ("boxes", "scores"))
    count = net.add("ReduceProd", net.add("Shape", boxes), keepdims=0)
    one, two = net.value([0]), net.value([0, 1])
    inner = [
        helper.make_node("Unsqueeze", [boxes, one], ["three"]),
        helper.make_node("Unsqueeze", [scores, two], ["each"]),
        helper.make_node("NonMaxSuppression", ["three", "each", net.value([100]), net.value([0.5])], ["rows"]),
        helper.make_node("Gather", ["rows", net.value(np.array(2))], ["kept"], axis=1),
    ]
    nothing = helper.make_node("Constant", [], ["nothing"], value=numpy_helper.from_array(np.zeros(0, "i8")))
    branches = {
        "then_branch": helper.make_graph(
            [nothing], "then", [], [helper.make_tensor_value_info("nothing", TensorProto.INT64, None)]
        ),
        "else_branch": helper.make_graph(
            inner, "else", [], [helper.make_tensor_value_info("kept", TensorProto.INT64, None)]
        ),
    }
    kept = net.add("If", net.add("Equal", count, net.value(np.array(0))), **branches)
    file = net.save(tmp_path / "m.onnx", net.add("Gather", boxes, kept))
    compile_uncut(file, tmp_path / "m.so")
    model, session = UncutModel(tmp_path / "m.so"), _session(file)
    for seed, brightness in enumerate((1, 0.4, 0)):
        generator = np.random.default_rng(seed)
        scores_given = (generator.random(40) * brightness).astype("f4")
        fed = {"boxes": generator.random((40, 4), np.float32), "scores": scores_given}
        np.testing.assert_array_equal(model(*fed.values())[0], session.run(None, fed)[0])
