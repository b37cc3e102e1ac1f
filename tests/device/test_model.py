"""Loading a device bundle and calling the model in it."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import tvm
import tvm_ffi
from opentelemetry.trace import NonRecordingSpan, SpanContext, get_current_span, use_span

from tests.support import onnx_models
from tests.support.local_client import LocalClient, run_uncut
from zmq_offload.artifacts.manifest import LIBRARY, MANIFEST
from zmq_offload.artifacts.repository import checksum
from zmq_offload.common.crew import Crew
from zmq_offload.compile import Compiled, compile_model
from zmq_offload.device.model import OffloadedModel, load
from zmq_offload.errors import FailedPrecondition, InvalidArgument, Unavailable

X = onnx_models.random(2, 8, seed=11)


@pytest.fixture
def client(compiled_mlp: Compiled) -> LocalClient:
    return LocalClient(compiled_mlp.subgraphs[0].parent.parent)


@pytest.fixture
def model(compiled_mlp: Compiled, client: LocalClient) -> OffloadedModel:
    return load(compiled_mlp.device, client=client)


def test_inputs_are_taken_in_order_and_by_name(model: OffloadedModel, mlp: Path) -> None:
    expected = run_uncut(mlp, {"x": (2, 8)}, [X])[0]
    for found in (model(X), model(x=X), model(np.asfortranarray(X)), model(np.flip(np.flip(X)))):
        np.testing.assert_allclose(found, expected, atol=1e-5)
    assert [str(t) for t in model.inputs] == ["x FP32[2,8]"]
    assert [str(t) for t in model.outputs] == ["z FP32[2,2,4]"]


def test_it_shows_what_it_takes_and_returns_and_where_the_rest_runs(model: OffloadedModel) -> None:
    shown = "<OffloadedModel (x FP32[2,8]) -> (z FP32[2,2,4]), offloads 'mlp' version latest: "
    assert repr(model) == f"{shown}offload 'always'>"
    model.close()
    assert repr(model) == f"{shown}closed>"


def test_the_depth_of_a_stream_may_be_numpys(model: OffloadedModel) -> None:
    assert len(list(model.map([X] * 3, depth=np.int8(2)))) == 3  # type: ignore[call-overload]
    for wrong in (np.float32(2), True, float("nan"), np.True_):
        with pytest.raises(InvalidArgument, match=r"depth .* is not a whole number from 1 to 256"):
            model.map([X], depth=wrong)


def test_without_threads_items_fail_and_calls_work(
    compiled_mlp: Compiled, client: LocalClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_thread(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("zmq_offload.device.runs._crew", Crew("new"))
    with load(compiled_mlp.device, client=client) as model:
        expected = model(X)
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", no_thread)
            for _ in range(3):  # none keeps its turn
                with pytest.raises(Unavailable, match="cannot start a thread: can't start new thread"):
                    model.submit(X).result(timeout=20)
                with pytest.raises(Unavailable, match="cannot start a thread"):
                    next(model.map([X, X]))
                assert np.array_equal(model(X), expected)
        assert np.array_equal(model.submit(X).result(), expected)


class SpanClient(LocalClient):
    """Notes the current span of each call that is traced."""

    spans: ClassVar[list[int]] = []

    def infer(self, *args: Any, trace: bool, **options: Any) -> Any:
        assert trace is True
        self.spans.append(get_current_span().get_span_context().span_id)
        return super().infer(*args, **options)


def test_calls_are_traced_under_the_span_of_who_calls(compiled_mlp: Compiled) -> None:
    client = SpanClient(compiled_mlp.subgraphs[0].parent.parent)
    with load(compiled_mlp.device, client=client, trace=True) as model:
        for span_id in (5, 6):
            around = NonRecordingSpan(SpanContext(1, span_id, is_remote=True))
            with use_span(around):
                results = [model(X), model.submit(X).result(), *model.map([X]), asyncio.run(model.acall(X))]
            assert client.spans == [span_id] * 4 and len(results) == 4
            client.spans.clear()
        model(X)
        assert client.spans == [0]


def test_what_cannot_be_traced_is_refused(compiled_mlp: Compiled, client: LocalClient) -> None:
    with pytest.raises(InvalidArgument, match="trace '00-' is not True or False"):
        load(compiled_mlp.device, client=client, trace="00-")  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match="only requests to a broker carry traces"):
        load(compiled_mlp.device, server="http://127.0.0.1:9", trace=True)


@pytest.mark.parametrize("bundle", [None, 5, b"device"])
def test_a_bundle_is_a_path(bundle: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"bundle .* is not a path"):
        load(bundle, broker="tcp://127.0.0.1:9")


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((), {}, "input 'x' is missing; it takes x FP32"),
        ((X, X), {}, "takes 1 inputs, not 2: x FP32"),
        ((X,), {"x": X}, "input 'x' is given twice"),
        ((X,), {"y": X}, "input 'y' is not known"),
        ((X[:1],), {}, r"input 'x' has shape \[1, 8\], it takes x FP32\[2,8\]"),
        ((X.astype("f8"),), {}, r"input 'x' has datatype FP64, it takes x FP32"),
        ((X[0],), {}, r"input 'x' has shape \[8\]"),
        (([["a"] * 8] * 2,), {}, "input 'x' is not a tensor: datatype <U1 cannot be sent"),
        ((None,), {}, "input 'x' is not a tensor: datatype object cannot be sent"),
        (([[1.0], [2.0, 3.0]],), {}, "input 'x' is not a tensor: .* inhomogeneous"),
        ((np.ma.masked_less(np.arange(4.0), 3),), {}, "input 'x' is not a tensor: it has masked values"),
    ],
)
def test_inputs_that_do_not_fit_are_refused_by_name(
    model: OffloadedModel, client: LocalClient, args: Any, kwargs: Any, message: str
) -> None:
    with pytest.raises(InvalidArgument, match=message):
        model(*args, **kwargs)
    assert client.calls == []


def test_batches_of_one_call_must_agree(tmp_path: Path) -> None:
    from onnx import helper

    nodes = [helper.make_node("Add", ["a", "b"], ["s"]), helper.make_node("Relu", ["s"], ["y"])]
    path = onnx_models.write(tmp_path / "m.onnx", nodes, {"a": ["N", 2], "b": ["N", 2]}, {"y": ["N", 2]}, {})
    compiled = compile_model(path, inputs={"a": ("?", 2), "b": ("?", 2)}, cut=["s"], name="m", output=tmp_path)
    model = load(compiled.device, client=LocalClient(tmp_path / "repository"))
    assert model(np.ones((3, 2), "f4"), np.ones((3, 2), "f4")).shape == (3, 2)  # type: ignore[union-attr]
    with pytest.raises(InvalidArgument, match="input 'b' has batch 2 but input 'a' has batch 3"):
        model(np.ones((3, 2), "f4"), np.ones((2, 2), "f4"))


def test_nan_and_infinity_pass_through(mlp: Path, tmp_path: Path) -> None:
    compiled = compile_model(mlp, inputs={"x": (2, 8)}, cut=["x"], until=["h1"], name="m", output=tmp_path)

    class Noting(LocalClient):
        def infer(self, model: str, inputs: Mapping[str, Any], **options: Any) -> Any:
            seen.append(inputs["x"].copy())
            answer = super().infer(model, inputs, **options)
            assert np.isnan(answer["h1"][0]).all() and np.isfinite(answer["h1"][1]).all()
            return answer

    seen: list[Any] = []
    x = X.copy()
    x[0] = np.nan, np.inf, -np.inf, 0, 1, 2, 3, 4
    load(compiled.device, client=Noting(tmp_path / "repository"))(x)
    np.testing.assert_array_equal(seen[0], x)


def load_like(model: OffloadedModel, client: Any) -> OffloadedModel:
    return OffloadedModel(model.manifest, library_of(model), client)


def library_of(model: OffloadedModel) -> tvm.runtime.Module:
    assert model._machines is not None
    return model._machines._library[0]


def test_the_client_is_asked_for_the_version_and_with_the_timeout(mlp: Path, tmp_path: Path) -> None:
    compiled = compile_model(
        mlp, inputs={"x": (2, 8)}, cut=["h2"], until=["h4"], name="mlp", version=3, policy=3, output=tmp_path
    )
    client = LocalClient(tmp_path / "repository")
    load(compiled.device, client=client, timeout=1.5)(X)
    assert client.calls == [("mlp", 3, 1.5, ["h2"])]


class Custom(Unavailable):
    pass


@pytest.mark.parametrize("error", [Custom("no worker"), KeyError("x"), KeyboardInterrupt()])
def test_errors_of_the_client_are_raised_as_the_same_objects(
    model: OffloadedModel, client: LocalClient, error: BaseException
) -> None:
    client.error = error
    with pytest.raises(type(error)) as caught:
        model(X)
    assert caught.value is error
    client.error = None
    model(X)  # and the model still works


def test_an_answer_of_the_wrong_shape_is_an_error_and_not_broadcast(model: OffloadedModel) -> None:
    class Wrong:
        def __init__(self, answer: Any) -> None:
            self.answer = answer

        def infer(self, *_: Any, **__: Any) -> Any:
            return self.answer

    for answer, message in (
        ({"h4": np.ones((1, 8), "f4")}, r"float32\[1, 8\]; the device needs h4 FP32\[2,8\]"),
        ({"h4": np.ones((2, 8), "f8")}, "with float64"),
        ({}, "output 'h4' with nothing"),
    ):
        with pytest.raises(FailedPrecondition, match=message):
            load_like(model, Wrong(answer))(X)
    right = load_like(model, Wrong({"h4": np.full((2, 8), 0.5, "f4")}))
    np.testing.assert_array_equal(right(X), np.full((2, 2, 4), 0.5, "f4"))


def test_results_are_not_changed_by_later_calls(model: OffloadedModel) -> None:
    first = model(X)
    assert isinstance(first, np.ndarray)
    copy = first.copy()
    others = [model(X + i) for i in range(1, 5)]
    np.testing.assert_array_equal(first, copy)
    assert all((o != first).any() for o in others)


def test_two_loads_of_one_bundle_call_each_their_own_client(compiled_mlp: Compiled) -> None:
    clients = [LocalClient(compiled_mlp.subgraphs[0].parent.parent) for _ in range(2)]
    models = [load(compiled_mlp.device, client=c) for c in clients]
    models[0](X), models[1](X), models[0](X)
    assert [len(c.calls) for c in clients] == [2, 1]
    # None of their functions stays registered: the next load would find them.
    (region,) = compiled_mlp.manifest.offloaded
    assert region.symbol not in tvm_ffi.registry.list_global_func_names()


def test_threads_share_a_model(compiled_mlp: Compiled) -> None:
    class Locked(LocalClient):  # its executor is for one thread at a time
        lock = threading.Lock()
        threads: ClassVar[set[int]] = set()

        def infer(self, *args: Any, **kwargs: Any) -> Any:
            self.threads.add(threading.get_ident())
            with self.lock:
                return super().infer(*args, **kwargs)

    model = load(compiled_mlp.device, client=Locked(compiled_mlp.subgraphs[0].parent.parent))
    inputs = [onnx_models.random(2, 8, seed=i) for i in range(32)]
    expected = [model(x) for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        for found, want in zip(pool.map(model, inputs), expected, strict=True):
            np.testing.assert_array_equal(found, want)
    assert len(Locked.threads) > 2


class Slow:
    """A client whose calls take a while; it counts how many run at once."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.now = self.most = self.calls = 0

    def infer(self, _model: str, inputs: Mapping[str, Any], **options: Any) -> Any:
        with self.lock:
            self.now += 1
            self.calls += 1
            self.most = max(self.most, self.now)
        time.sleep(0.02)
        with self.lock:
            self.now -= 1
        if np.isnan(inputs["h2"]).any() or inputs["h2"].max() > 1e6:
            raise Unavailable("no worker")
        return {"h4": np.full((2, 8), inputs["h2"].sum(), "f4")}


def test_map_overlaps_items_and_keeps_their_order(model: OffloadedModel) -> None:
    client = Slow()
    pipelined = load_like(model, client)
    items = [onnx_models.random(2, 8, seed=i) for i in range(12)]
    expected = [pipelined(x) for x in items]
    client.most = 0
    taken: list[int] = []

    def source() -> Any:
        for i, item in enumerate(items):
            taken.append(i)
            yield item if i % 2 else (item,)

    results = pipelined.map(source(), depth=3)
    np.testing.assert_array_equal(next(results), expected[0])
    assert len(taken) <= 3  # no item is taken before it is needed
    for found, want in zip(results, expected[1:], strict=True):
        np.testing.assert_array_equal(found, want)
    assert 1 < client.most <= 3
    assert list(pipelined.map([])) == []
    with pytest.raises(InvalidArgument, match="depth 0"):
        pipelined.map(items, depth=0)


def test_map_ends_with_the_first_error_and_can_be_stopped(model: OffloadedModel) -> None:
    client = Slow()
    pipelined = load_like(model, client)
    with pytest.raises(Unavailable):
        list(pipelined.map([X, X * 1e9, X, X, X, X, X, X], depth=2))
    assert client.calls <= 4
    for _ in pipelined.map([X] * 100, depth=2):
        break
    assert client.calls <= 8


def test_closing_closes_the_models_own_client_only(model: OffloadedModel) -> None:
    closed: list[int] = []
    own = OffloadedModel(model.manifest, library_of(model), LocalClient(Path()), close=lambda: closed.append(1))
    with own:
        pass
    own.close()
    assert closed == [1]
    with pytest.raises(FailedPrecondition, match="the model is closed"):
        own(X)
    model.close()


def test_a_broker_or_a_client_must_be_given(compiled_mlp: Compiled, client: LocalClient) -> None:
    for options in ({}, {"broker": "tcp://127.0.0.1:5555", "client": client}):
        with pytest.raises(InvalidArgument, match="needs a broker, a server or a client, and just one of them"):
            load(compiled_mlp.device, **options)  # type: ignore[arg-type]


def test_an_impossible_timeout_is_refused_when_loading(compiled_mlp: Compiled, client: LocalClient) -> None:
    for timeout in (0, -1.0, float("nan")):
        with pytest.raises(InvalidArgument, match="timeout"):
            load(compiled_mlp.device, client=client, timeout=timeout)


@pytest.mark.parametrize("depth", [0, -1, 1.5])
def test_an_impossible_depth_is_refused(model: OffloadedModel, depth: Any) -> None:
    with pytest.raises(InvalidArgument, match="not a whole number from 1"):
        model.map([X], depth=depth)


def edit(bundle: Path, **changes: Any) -> None:
    file = bundle / MANIFEST
    described = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({k: v for k, v in described.items() if v is not None}))


REGION = {"symbol": "s", "version": 1, "model": "m", "inputs": [], "outputs": []}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tvm_version": "0.26.0"}, r"was built by TVM 0\.26\.0, this is TVM 0\.27"),
        ({"format_version": 2}, "format_version is 2, this release reads 1"),
        ({"checksum": "sha256:00"}, f"{LIBRARY} is damaged: its checksum is sha256:[0-9a-f]+, manifest.json says"),
        ({"inputs": None}, "is damaged: key 'inputs' is missing"),
        ({"inputs": [{"name": "x", "datatype": "FP33", "shape": []}]}, "is damaged: tensor 'x': datatype 'FP33'"),
        (
            {"offloaded": [{**REGION, "symbol": ""}]},
            r"offloaded\[0\]: symbol is empty",
        ),
        (
            {"offloaded": [{**REGION, "version": 0}]},
            r"offloaded\[0\]\.version is 0; expected int >= 1",
        ),
        (
            {"offloaded": [{**REGION, "version": "last"}]},
            r"offloaded\[0\]: version 'last' is neither a whole number from 1 nor 'latest' nor a label",
        ),
        ({"offloaded": [{**REGION, "model": "../m"}]}, r"offloaded\[0\]: model name '\.\./m' is not valid; use 1"),
        ({"cpu": 3}, "cpu is 3; expected object"),
        ({"cpu": {"architecture": "x86_64", "features": [1]}}, r"cpu\.features\[0\] is 1; expected str"),
        ({"offloaded": 3}, "is damaged: offloaded is 3; expected array"),
        ({"checksum": 3}, "checksum is 3; expected str"),
    ],
)
def test_a_damaged_manifest_is_refused_by_name(fresh_mlp: Path, changes: dict[str, Any], message: str) -> None:
    edit(fresh_mlp / "device", **changes)
    with pytest.raises(FailedPrecondition, match=message) as caught:
        load(fresh_mlp / "device", client=LocalClient(Path()))
    assert str(fresh_mlp) in str(caught.value)


def test_missing_and_broken_files_are_refused_by_name(fresh_mlp: Path) -> None:
    bundle, client = fresh_mlp / "device", LocalClient(Path())
    with pytest.raises(
        FailedPrecondition, match=r"nowhere/manifest\.json: No such file or directory; is .* a device bun"
    ):
        load(fresh_mlp / "nowhere", client=client)
    (bundle / LIBRARY).write_bytes(b"no library")
    edit(bundle, checksum=checksum(bundle / LIBRARY))
    with pytest.raises(FailedPrecondition, match=f"{LIBRARY} cannot be loaded"):
        load(bundle, client=client)
    (bundle / LIBRARY).unlink()
    with pytest.raises(FailedPrecondition, match=f"{LIBRARY}: No such file"):
        load(bundle, client=client)
    for content in (b"{", b"\xff\xfe\x00", b"[1]", b"null"):
        (bundle / MANIFEST).write_bytes(content)
        with pytest.raises(FailedPrecondition, match=r"manifest\.json is damaged"):
            load(bundle, client=client)


def test_loading_a_model_leaves_the_thread_its_cores() -> None:
    """TVM binds each of its pools, and the thread that makes one, to the first cores, where all runs would meet."""
    program = (
        "import os, threading, tvm, zmq_offload.device.machine\n"
        "cores = [os.sched_getaffinity(0)]\n"
        "def run():\n    tvm.runtime.num_threads()\n    cores.append(os.sched_getaffinity(0))\n"
        "thread = threading.Thread(target=run)\nthread.start()\nthread.join()\n"
        "print(*map(len, cores))"
    )
    environment = {k: v for k, v in os.environ.items() if k != "TVM_BIND_THREADS"} | {"TVM_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment)
    mine = len(os.sched_getaffinity(0))
    assert done.stdout.split() == [str(mine), str(mine)]
