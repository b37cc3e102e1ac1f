"""Requests of one model overlap with each other and with the device's own work."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm
from tvm import relax
from tvm.relax.dpl import is_op, wildcard

from tests.byoc.conftest import Split
from tests.support import onnx_models
from tests.support.bundle_secrets import contents
from tests.support.local_client import LocalClient, run_uncut
from zmq_offload.byoc.codegen import split
from zmq_offload.byoc.outline import outline_regions
from zmq_offload.byoc.overlap import symbol_of
from zmq_offload.compile import Compiled, Region, compile_module, partition_for_zmq_offload
from zmq_offload.compile.build import prepared
from zmq_offload.compile.onnx.importer import import_onnx
from zmq_offload.compile.pipeline import fusing
from zmq_offload.compile.target import host_target
from zmq_offload.device.model import OffloadedModel, load
from zmq_offload.errors import Cancelled, FailedPrecondition, Unavailable
from zmq_offload.runtime.views import view_of

LEFT, RIGHT = Region("left", ["features"], ["left"]), Region("right", ["features"], ["right"])
X = onnx_models.random(1, 3, 8, 8)
MEETING = 20.0
"""Seconds that each side of a rendezvous waits for the other at most."""


@pytest.fixture(scope="module")
def compiled(split_branches: Split) -> Compiled:
    return split_branches(LEFT, RIGHT, batch="N")


class ThreadedClient(LocalClient):
    """A client that runs each submitted request in its own thread, after `before(model)`."""

    def __init__(self, repository: Path, before: Callable[[str], object] = lambda _: None) -> None:
        super().__init__(repository)
        self.before = before
        self.submitted: list[str] = []
        self._pool = ThreadPoolExecutor(8)
        self._lock = threading.Lock()

    def submit(
        self, model: str, inputs: Mapping[str, Any], *, version: int | None = None, timeout: float | None = None
    ) -> Future[Any]:
        self.submitted.append(model)
        return self._pool.submit(self._run, model, inputs)

    def _run(self, model: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
        self.before(model)
        described = self.repository.read(model, 1)
        outputs = {t.name: np.empty([d if d > 0 else len(inputs["features"]) for d in t.shape], t.dtype)
                   for t in described.outputs}  # fmt: skip
        with self._lock:
            return dict(self.infer(model, inputs, outputs=outputs))

    def close(self) -> None:
        self._pool.shutdown()


@pytest.fixture
def client(compiled: Compiled) -> Iterator[ThreadedClient]:
    pool = ThreadedClient(compiled.subgraphs[0].parent.parent)
    yield pool
    pool.close()


@pytest.fixture
def model(compiled: Compiled, client: ThreadedClient) -> OffloadedModel:
    return load(compiled.device, client=client)


def check(model: OffloadedModel, path: Path, x: Any = X) -> None:
    for got, want in zip(model(x), run_uncut(path, {"x": x.shape}, [x]), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-4)


def test_independent_requests_are_in_flight_together(
    model: OffloadedModel, client: ThreadedClient, branches: Path
) -> None:
    meeting = threading.Barrier(2)
    client.before = lambda _: meeting.wait(MEETING)  # neither gets its reply before both are there
    for batch in (1, 3):
        check(model, branches, onnx_models.random(batch, 3, 8, 8))
    assert sorted(client.submitted) == ["left", "left", "right", "right"]


def test_a_client_without_submit_gets_one_call_after_the_other(compiled: Compiled, branches: Path) -> None:
    local = LocalClient(compiled.subgraphs[0].parent.parent)
    check(load(compiled.device, client=local, timeout=2.5), branches)
    assert sorted((call[0], call[2]) for call in local.calls) == [("left", 2.5), ("right", 2.5)]


def test_each_thread_has_requests_of_its_own(model: OffloadedModel, branches: Path) -> None:
    inputs = [onnx_models.random(1 + seed % 2, 3, 8, 8, seed=seed) for seed in range(12)]
    with ThreadPoolExecutor(4) as pool:
        for found, x in zip(pool.map(model, inputs), inputs, strict=True):
            for got, want in zip(found, model(x), strict=True):
                np.testing.assert_array_equal(got, want)


def module(joins: bool) -> tvm.IRModule:
    """tanh and matmul (offloaded), and in parallel relu (another backend) and exp; y joins them."""
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((4, 6), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            h = builder.emit(relax.op.tanh(x))
            m = builder.emit(relax.op.matmul(h, relax.const(onnx_models.random(6, 6))))
            r = builder.emit(relax.op.nn.relu(x))
            t = builder.emit(relax.op.exp(r))
            y = builder.emit_output(relax.op.add(m, t) if joins else relax.Tuple([m, t]))
        builder.emit_func_output(y)
    relu = relax.transform.FusionPattern("test_own.relu", is_op("relax.nn.relu")(wildcard()))
    mod = relax.transform.FuseOpsByPattern([relu], bind_constants=True, annotate_codegen=True)(builder.get())
    return partition_for_zmq_offload(mod, [("zmq_offload.matmul", is_op("relax.matmul")(wildcard(), wildcard()))])


@pytest.mark.parametrize("joins", [True, False])
def test_the_device_works_while_its_request_is_in_flight(tmp_path: Path, joins: bool) -> None:
    worked = threading.Event()

    def own(source: Any, result: Any) -> None:
        view_of(result)[...] = np.from_dlpack(source) * 2
        worked.set()

    def backend(functions: Any, *_: Any) -> list[Any]:
        for function in functions:
            tvm.register_global_func(str(function.attrs["global_symbol"]), own, override=True)
        return []

    tvm.register_global_func("relax.ext.test_own", backend, override=True)
    compiled = compile_module(module(joins), name="m", output=tmp_path)

    class Waiting(LocalClient):
        def submit(self, model: str, inputs: Mapping[str, Any], **_: Any) -> Future[Any]:
            return pool.submit(self.answer, model, inputs)

        def answer(self, model: str, inputs: Mapping[str, Any]) -> Any:
            assert worked.wait(MEETING), "the device waits for the reply before work that does not need it"
            return self.infer(model, inputs, outputs={"output_0": np.empty((4, 6), "f4")})

    with ThreadPoolExecutor(1) as pool:
        x = onnx_models.random(4, 6, seed=5)
        found = load(compiled.device, client=Waiting(tmp_path / "repository"))(x)
    product, exponential = np.tanh(x) @ onnx_models.random(6, 6), np.exp(x * 2)
    for got, want in zip(
        (found,) if joins else found, (product + exponential,) if joins else (product, exponential), strict=True
    ):
        np.testing.assert_allclose(got, want, atol=1e-4)


@pytest.mark.parametrize(
    ("regions", "apart"),
    [
        ([LEFT, RIGHT], True),
        ([LEFT], True),  # the device's own convolutions do not wait
        ([Region("tail", ["features"])], False),
        ([Region("middle", ["conv1"], ["features"])], False),  # all later operators need it
        ([Region("middle", ["conv1"], ["features"]), Region("tail", ["joined", "right"], ["y"])], False),
    ],
)
def test_a_region_whose_reply_is_needed_at_once_is_one_call(
    split_branches: Split, regions: list[Region], apart: bool
) -> None:
    compiled = split_branches(*regions)
    library = contents(compiled.device)
    for region in compiled.manifest.offloaded:
        assert (f"{region.symbol}_send".encode() in library) == apart
        assert (f"{region.symbol}_receive".encode() in library) == apart


def test_an_operator_that_joins_a_reply_is_not_fused_with_local_work(branches: Path) -> None:
    model = import_onnx(branches, {"x": (1, 3, 8, 8)})
    mod, _ = outline_regions(model.mod, model.graph, [LEFT, RIGHT])
    device, _ = split(mod, ["left", "right"])
    target = host_target()
    with target:
        fused = tvm.transform.Sequential(fusing(target))(prepared(device))
    steps = [str(b.value) for block in fused["main"].body.blocks for b in block.bindings]
    kinds = [k for s in steps for k in ("_send", "_receive", "conv2d") if k in s.split(",")[0]]
    # The second convolution, the device's own branch, stands between the sends and the receives.
    assert kinds == ["conv2d", "_send", "_send", "conv2d", "_receive", "_receive"]
    assert not [b for block in fused["main"].body.blocks for b in block.bindings if symbol_of(b.value)]


class Pending:
    """A client whose requests stay open until the test decides."""

    def __init__(self) -> None:
        self.requests: dict[str, Future[Any]] = {}
        self.on_submit: Callable[[str], None] = lambda _: None

    def infer(self, model: str, *_: Any, **__: Any) -> Any:
        raise AssertionError(f"{model} is called and not submitted")

    def submit(self, model: str, _: Mapping[str, Any], **__: Any) -> Future[Any]:
        self.requests[model] = Future()
        self.on_submit(model)
        return self.requests[model]


class Lost(Unavailable):
    pass


@pytest.mark.parametrize("failing", ["left", "right"])
@pytest.mark.parametrize(
    "moment", ["before the other is sent", "before it is waited for", "while the other is waited for"]
)
def test_the_failure_of_one_request_cancels_the_other_and_is_raised_as_it_is(
    compiled: Compiled, branches: Path, client: ThreadedClient, failing: str, moment: str
) -> None:
    pending = Pending()
    error = Lost("no worker")

    def on_submit(model: str) -> None:
        both = len(pending.requests) == 2
        if moment == "before the other is sent":
            if model == failing:
                pending.requests[model].set_exception(error)
        elif both and moment == "before it is waited for":
            pending.requests[failing].set_exception(error)
        elif both:
            waited = threading.Timer(0.05, pending.requests[failing].set_exception, [error])
            waited.start()

    pending.on_submit = on_submit
    model = load(compiled.device, client=pending)
    with pytest.raises(Lost) as caught:
        model(X)
    assert caught.value is error
    other = pending.requests["right" if failing == "left" else "left"]
    assert other.cancelled()
    # The next call of this thread works.
    check(load(compiled.device, client=client), branches)


@pytest.mark.parametrize("error", [KeyError("x"), KeyboardInterrupt()])
def test_an_error_of_submit_ends_the_call_and_cancels_its_requests(compiled: Compiled, error: BaseException) -> None:
    pending = Pending()

    def on_submit(_: str) -> None:
        if len(pending.requests) == 2:
            raise error

    pending.on_submit = on_submit
    with pytest.raises(type(error)) as caught:
        load(compiled.device, client=pending)(X)
    assert caught.value is error
    assert next(iter(pending.requests.values())).cancelled()


def test_a_request_that_is_cancelled_from_outside_raises_cancelled(compiled: Compiled) -> None:
    pending = Pending()

    def on_submit(_: str) -> None:
        for request in pending.requests.values():
            request.cancel()

    pending.on_submit = on_submit
    with pytest.raises(Cancelled, match="canceled"):
        load(compiled.device, client=pending)(X)


def test_a_reply_of_the_wrong_shape_is_an_error_and_cancels_the_other_request(compiled: Compiled) -> None:
    pending = Pending()

    def on_submit(_: str) -> None:
        if len(pending.requests) == 2:  # the first is waited for first
            name, request = next(iter(pending.requests.items()))
            request.set_result({name: np.zeros((1, 8, 8, 9), "f4")})

    pending.on_submit = on_submit
    with pytest.raises(FailedPrecondition, match=r"the device needs left FP32\[\?,8,8,8\]"):
        load(compiled.device, client=pending)(X)
    assert list(pending.requests.values())[1].cancelled()
