"""Cut a Relax module by its variables' names: the Mask R-CNN of the examples."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from tvm import relax
from tvm.runtime import vm

from examples.mask_rcnn.model import FEATURES, OUTPUTS, SMALL, mask_rcnn
from tests.support.bundle_secrets import contents, four_byte_values, share_found
from tests.support.local_client import LocalClient
from zmq_offload.byoc.cut import cut_module
from zmq_offload.compile import Compiled, compile_module
from zmq_offload.compile.build import build
from zmq_offload.compile.target import host_target
from zmq_offload.device.model import load
from zmq_offload.errors import InvalidArgument


@pytest.fixture(scope="module")
def module() -> tvm.IRModule:
    return mask_rcnn(SMALL)


@pytest.fixture(scope="module")
def split(module: tvm.IRModule, tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    cut = cut_module(module, FEATURES)
    return compile_module(cut, name="heads", outputs=OUTPUTS, output=tmp_path_factory.mktemp("mask_rcnn"))


def test_the_two_halves_are_the_model(module: tvm.IRModule, split: Compiled) -> None:
    picture = np.random.default_rng(1).random(SMALL.input_shape, "float32")
    uncut = vm.VirtualMachine(build(module, host_target()), tvm.cpu())["main"]
    expected = [r.numpy() for r in uncut(tvm.runtime.tensor(picture))]
    client = LocalClient(split.subgraphs[0].parent.parent)
    with load(split.device, client=client) as model:
        results = model(picture)
    assert isinstance(results, tuple)
    assert [r.shape for r in results] == [(8, 4), (8,), (8,), (8, 1, 12, 12)]
    for result, wanted in zip(results, expected, strict=True):
        np.testing.assert_allclose(result, wanted, rtol=1e-4, atol=1e-4)
    boxes, labels, scores, masks = results
    assert (np.diff(scores) <= 0).all() and scores[0] > 0
    assert (boxes[:, :2] <= boxes[:, 2:]).all() and (boxes >= 0).all()
    assert (boxes <= [SMALL.width, SMALL.height] * 2).all()
    assert ((labels >= 1) & (labels < SMALL.classes)).all()
    assert ((masks > 0) & (masks < 1)).all()
    # Boxes of one class that NMS kept overlap by at most half.
    for i in range(8):
        for j in range(i):
            if labels[i] == labels[j] and scores[i] > 0 and scores[j] > 0:
                assert overlap(boxes[i], boxes[j]) <= 0.5 + 1e-5


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    inside = np.maximum(0, np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])).prod()
    return float(inside / ((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - inside))


def test_the_picture_stays_on_the_device_and_the_heads_weights_on_the_server(
    module: tvm.IRModule, split: Compiled
) -> None:
    """Only the feature map is sent, and the bundle has no weight of the heads."""
    (region,) = split.manifest.offloaded
    assert [(t.name, t.shape) for t in region.inputs] == [(FEATURES, SMALL.feature_shape)]
    sent: list[np.ndarray] = []

    class Watching(LocalClient):
        def infer(self, model, inputs, **more):  # type: ignore[no-untyped-def]
            sent.extend(np.array(array) for array in inputs.values())
            return super().infer(model, inputs, **more)

    picture = np.random.default_rng(2).random(SMALL.input_shape, "float32")
    with load(split.device, client=Watching(split.subgraphs[0].parent.parent)) as model:
        model(picture)
    assert [array.shape for array in sent] == [SMALL.feature_shape]
    pixels = np.unique(picture.view("u4"))
    assert not np.isin(sent[0].view("u4"), pixels).any()

    backbone, heads = weights_of(module)
    device, server = four_byte_values(contents(split.device)), four_byte_values(contents(split.subgraphs[0]))
    assert len(heads) >= 8 and len(backbone) >= 8
    for weight in heads:
        assert share_found(weight, device) < 0.25
    assert np.mean([share_found(weight, server) for weight in heads]) > 0.75
    assert np.mean([share_found(weight, device) for weight in backbone]) > 0.75


def weights_of(module: tvm.IRModule) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The random constants before and after the feature map."""
    sides: tuple[list[np.ndarray], list[np.ndarray]] = [], []
    after = False
    for block in module["main"].body.blocks:
        for binding in block.bindings:

            def visit(expr: relax.Expr, side: int = int(after)) -> None:
                if isinstance(expr, tvm.ir.GenericConst):
                    value = expr.value.numpy()
                    if value.dtype == np.float32 and value.size >= 64 and len(np.unique(value)) > value.size // 2:
                        sides[side].append(value)

            relax.analysis.post_order_visit(binding.value, visit)
            after = after or binding.var.name == FEATURES
    return sides


def test_names_that_are_not_there_or_not_unique(module: tvm.IRModule) -> None:
    with pytest.raises(InvalidArgument, match="no tensor 'featurs'; did you mean 'features'"):
        cut_module(module, "featurs")
    with pytest.raises(InvalidArgument, match="it must end after that"):
        cut_module(module, FEATURES, FEATURES)
    x = relax.Var("x", relax.TensorType((2, 2), "float32"))
    twice = relax.Var("y", relax.TensorType((2, 2), "float32")), relax.Var("y", relax.TensorType((2, 2), "float32"))
    bindings = [
        relax.VarBinding(twice[0], relax.op.nn.relu(x)),
        relax.VarBinding(twice[1], relax.op.tanh(twice[0])),
    ]
    body = relax.SeqExpr([relax.BindingBlock(bindings)], twice[1])
    function = relax.Function([x], body, twice[1].ty).with_attr("global_symbol", "main")
    with pytest.raises(InvalidArgument, match="2 variables 'y'"):
        cut_module(tvm.IRModule({"main": function}), "y")
    with pytest.raises(InvalidArgument, match="no function 'main'"):
        cut_module(tvm.IRModule({"other": function.with_attr("global_symbol", "other")}), "y")
